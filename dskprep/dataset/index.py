"""index.parquet: one row a record, brought up to date from the records. The home of its tables."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from dskprep import storage
from dskprep.dataset import store
from dskprep.dataset.record import Record, RecordName, parse_record
from dskprep.errors import DamagedDataset, InfrastructureError, UsageError

READ_AT_ONCE = 5000
"""Records that are held while they are made into rows."""

ROWS_AT_ONCE = 1000
"""Rows that are plain dictionaries at a time: as such they take ten times the memory."""

LISTINGS = 3
"""Tries to read the records where others change them at the same time."""

WRITE_EVERY_S = 600.0
"""How often a long run writes the index."""

NAME = ("status", "key", "input_digest")
"""The columns that name a record."""

Row = dict[str, Any]


def read(target: str) -> pd.DataFrame:
    """Read index.parquet as it is. Raises UsageError if there is none yet, DamagedDataset if it is damaged."""
    return _frame(_read(target))


def rows(target: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of index.parquet as it is, by the names of their columns, or of some. Raises as `read`."""
    for batch in _read(target, columns).to_batches(max_chunksize=ROWS_AT_ONCE):
        yield from batch.to_pylist()


def current(target: str) -> pd.DataFrame:
    """One row for each record there is, sorted by key; only records that index.parquet lacks are read."""
    return _frame(_current(target, []))


def write(target: str, fresh: Sequence[Row] = ()) -> pd.DataFrame:
    """Bring index.parquet up to date with the records, and return it.

    `fresh` are rows of records just written, which need not be read. Raises InfrastructureError if the
    record of one is not there.
    """
    table = _current(target, fresh)
    gone = {row["key"] for row in fresh} - set(table["key"].to_pylist())
    if gone:
        raise InfrastructureError(f"{target}: {len(gone)} records that were written are not there any more; run again")
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    storage.write_many(target, {"index.parquet": buffer.getvalue()})
    return _frame(table)


class Writer:
    """The records of a run on their way into the index, which is written now and then, beside the run."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._fresh: list[Row] = []
        self._started_s = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._under_way: Future[Any] | None = None
        self._sent: list[Row] = []

    def add(self, records: Iterable[Record]) -> None:
        """Take records that were written."""
        self._fresh += [row(record) for record in records]
        if self._under_way and self._under_way.done():
            self._settle()
        if not self._under_way and time.monotonic() - self._started_s > WRITE_EVERY_S:
            self._sent, self._fresh, self._started_s = self._fresh, [], time.monotonic()
            self._under_way = self._thread.submit(write, self._target, self._sent)

    def close(self) -> pd.DataFrame:
        """Write the index with all that was added; return it. Raises InfrastructureError if it cannot be written."""
        self._settle()
        self._thread.shutdown()
        return write(self._target, self._fresh)

    def _settle(self) -> None:
        """Wait for the index under way; rows that did not get into it are kept for the next one."""
        if self._under_way and self._under_way.exception():
            self._fresh = self._sent + self._fresh
        self._under_way, self._sent = None, []


def split_series(table: pd.DataFrame) -> list[list[str]]:
    """Keys of written volumes that share a SeriesInstanceUID, but not their voxels: parts of one series, it seems."""
    written = table[(table["status"] == "written") & table["series_uid_sha256"].notna()]
    n_different = written.groupby("series_uid_sha256")["hu_sha256"].transform("nunique")
    groups = written[n_different > 1].groupby("series_uid_sha256", sort=True)
    return [sorted(group["key"]) for _, group in groups]


def row(record: Record) -> Row:
    """Return a record as one flat row: names of nested values are joined, lists become text."""
    row: Row = {name: getattr(record, name) for name in ("key", "status", "reason", "input_digest")}
    for name in ("message", "url"):  # a path that is not UTF-8 has characters that Parquet cannot hold
        text = getattr(record, name)
        row[name] = text.encode(errors="backslashreplace").decode() if text else text
    row["warnings"] = ",".join(record.warnings)
    geometry, lungs = record.geometry, record.lungs
    for axis, name in enumerate("zyx"):
        row[f"n_{name}"] = geometry and geometry.shape[axis]
        row[f"spacing_{name}_mm"] = geometry and geometry.spacing_mm[axis]
    row["affine"] = geometry and [value for line in geometry.affine for value in line]
    row["right_lung_ml"], row["left_lung_ml"] = lungs and lungs.right_ml, lungs and lungs.left_ml
    row["mean_lung_hu"], row["dense_lung_share"] = lungs and lungs.mean_hu, lungs and lungs.dense_share
    content = record.as_dict()
    row.update({f"source_{name}": value for name, value in content.get("source", {}).items()})
    row.update({f"seconds_{stage}": value for stage, value in record.seconds.items()})
    row["series_uid_sha256"], row["hu_sha256"] = record.series_uid_sha256, record.hu_sha256
    row["bytes_read"], row["bytes_written"] = record.bytes_read, record.bytes_written
    return row


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(use_threads=False)
    return frame


def _read(target: str, columns: Sequence[str] | None = None) -> pa.Table:
    """In this thread alone: pyarrow's own let go of a Python file late, which aborts a program that ends just then."""
    try:
        content = storage.read(storage.join(target, "index.parquet"))
    except FileNotFoundError as error:
        raise UsageError(f"{target}: no index.parquet yet; a run writes it at its end") from error
    try:
        return parquet.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(columns, use_threads=False)
    except (ValueError, KeyError) as error:
        raise DamagedDataset(f"{target}: index.parquet is damaged; the next run writes it anew") from error


def _current(target: str, fresh: Sequence[Row]) -> pa.Table:
    """The index as it should be; read again if records go while they are read."""
    try:
        old = _read(target)
    except (UsageError, DamagedDataset):  # there is none yet, or it is damaged
        old = _table([])
    for listing in range(1, LISTINGS + 1):
        try:
            return _combined(target, [_table(fresh), old])
        except storage.ObjectChanged as error:
            if listing == LISTINGS:
                raise InfrastructureError(f"{target}: its records change while they are read: {error}") from error
        except (pa.ArrowInvalid, pa.ArrowTypeError, KeyError):  # the old one has other columns
            old = _table([])
    raise AssertionError("the last listing returned or raised")


def _combined(target: str, tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of the tables whose record is there, each once, and rows read from all other records."""
    missing = dict(store.list_records(target))
    parts = []
    for table in tables:
        names = [RecordName(*name) for name in zip(*(table[column].to_pylist() for column in NAME), strict=True)]
        wanted = [missing.pop(name, None) is not None for name in names]
        parts.append(table.filter(pa.array(wanted, pa.bool_())))
    names = sorted(missing)
    for i in range(0, len(names), READ_AT_ONCE):
        some = names[i : i + READ_AT_ONCE]
        contents = storage.read_many(storage.join(target, "records"), [missing[name] for name in some])
        parts.append(_table([_row_of(*each) for each in zip(some, contents, strict=True)]))
    table = pa.concat_tables(parts, promote_options="permissive")
    return table.sort_by([(column, "ascending") for column in ("key", "input_digest", "status")])


def _table(rows: Sequence[Row]) -> pa.Table:
    columns = (
        dict.fromkeys(name for row in rows for name in row)
        if rows
        else row(Record(key="", status="failed", input_digest=""))
    )
    return pa.table({name: [row.get(name) for row in rows] for name in columns})


def _row_of(name: RecordName, file: tuple[str, bytes]) -> Row:
    """The row of a record just read; a damaged one is a row too."""
    try:
        return row(parse_record(file[1], file[0]))
    except DamagedDataset as error:
        return row(
            Record(
                key=name.key,
                status="failed",
                input_digest=name.digest,
                reason="damaged-record",
                message=str(error),
            )
        )

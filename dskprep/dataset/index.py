"""The index of a dataset: index.parquet, with one row per record, made from the records. The home of pyarrow."""

from __future__ import annotations

import contextlib
import io
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
from pyarrow import compute, parquet

from dskprep import storage
from dskprep.dataset import columns, store
from dskprep.dataset.record import Record, RecordName, parse_record
from dskprep.errors import DamagedDataset, InfrastructureError, UsageError

READ_AT_ONCE = 5000
"""Records that are in memory together while they are made into rows."""

ROWS_AT_ONCE = 1000
"""Rows that are turned into dictionaries together; a dictionary takes ten times the memory of its row in a table."""

LISTINGS = 3
"""How often the records are listed and read, if another process changes them meanwhile, before this is an error."""

WRITE_EVERY_S = 600.0
"""Seconds between two writes of the index during a long run."""

NAME = ("status", "key", "input_digest")
"""The columns that make up a `RecordName`, in its order."""

OF_RECORD = (
    *("chosen", "patient", "study", "frame_of_reference", "series_uid_sha256", "stack"),
    *("hu_sha256", "bytes_read", "bytes_written"),
)
"""Columns that are fields of a record."""

TAG = "record_tag"
"""The column that says which state of a record its row was made of: its size and tag in the listing."""

DAMAGED = "damaged-record"
"""The reason in the row of a record that cannot be read."""

Row = dict[str, Any]


def read(target: str) -> pd.DataFrame:
    """Read index.parquet as it is. Raises UsageError if there is none yet, DamagedDataset if it is damaged."""
    return to_frame(_read(target))


def current(target: str) -> pd.DataFrame:
    """Return one row per record, sorted by key.

    The records are listed. Only those are read that index.parquet lacks, or that have changed since it was written.
    """
    return to_frame(current_table(target))


def current_table(target: str) -> pa.Table:
    """Do what `current` does, and return a table of pyarrow, which takes a fraction of the memory."""
    return _bring_up_to_date(target, [])


def written_table(target: str) -> pa.Table:
    """Return what index.parquet says of written volumes: their names, grids, and by what labels are linked to them."""
    table = _read(target)
    wanted = "key input_digest series_uid_sha256 hu_sha256 frame_of_reference affine n_z n_y n_x".split()
    written = table.filter(compute.equal(table["status"], "written"))
    return written.select([name for name in wanted if name in table.schema.names])


def rows_of(table: pa.Table, names: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a table, with all columns or only those named."""
    for batch in (table if names is None else table.select(names)).to_batches(max_chunksize=ROWS_AT_ONCE):
        yield from batch.to_pylist()


def write(target: str, fresh: Sequence[Row] = ()) -> pd.DataFrame:
    """Bring index.parquet up to date with the records, and return it.

    `fresh` are the rows of records that were just written, so that they need not be read. Raises InfrastructureError
    if one of these records does not exist.
    """
    table = _bring_up_to_date(target, fresh)
    gone = {row["key"] for row in fresh} - set(table["key"].to_pylist())
    if gone:
        raise InfrastructureError(f"{target}: {len(gone)} records that were written are not there any more; run again")
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    storage.write_many(target, {"index.parquet": buffer.getvalue()})
    return to_frame(table)


def settle(target: str, written: pd.DataFrame) -> pd.DataFrame:
    """Write the index again while records come that the one just written lacks, as another run ends; return it.

    Whoever wrote last has looked for records after that, so the index that stays has those of all. A run that goes on
    writes its own index at its end, so this gives up after a few times.
    """
    for _ in range(LISTINGS):
        names = {RecordName(*name) for name in zip(*(written[column] for column in NAME), strict=True)}
        if names == set(store.record_names(target)):
            break
        written = write(target)
    return written


class Writer:
    """Collects the records of a run and writes the index from time to time, in a thread beside the run."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._fresh: list[Row] = []
        self._n_sent = 0
        self._started_s = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._under_way: Future[Any] | None = None

    def add(self, records: Iterable[Record]) -> None:
        """Add records that were written."""
        self._fresh += [to_row(record) for record in records]
        if self._under_way and self._under_way.done():
            self._settle()
        if not self._under_way and time.monotonic() - self._started_s > WRITE_EVERY_S:
            self._n_sent, self._started_s = len(self._fresh), time.monotonic()
            self._under_way = self._thread.submit(write, self._target, self._fresh[:])

    def close(self) -> pd.DataFrame:
        """Write the index with all added records; return it. Raises InfrastructureError if it cannot be written."""
        self._settle()
        self._thread.shutdown()
        return write(self._target, self._fresh)

    def _settle(self) -> None:
        """Wait for the write under way; if it failed, its rows are kept for the next one."""
        if self._under_way and not self._under_way.exception():
            del self._fresh[: self._n_sent]
        self._under_way = None


def split_series(table: pd.DataFrame) -> list[list[str]]:
    """Group the keys of written volumes that share a SeriesInstanceUID but differ in voxels.

    Such volumes are probably parts of one series that was stored in several folders.
    """
    written = table[(table["status"] == "written") & table["series_uid_sha256"].notna()]
    same = [written["series_uid_sha256"], written["stack"].fillna(0)]  # stacks of one series differ
    n_different = written.groupby(same)["hu_sha256"].transform("nunique")
    groups = written[n_different > 1].groupby("series_uid_sha256", sort=True)
    return [sorted(group["key"]) for _, group in groups]


def to_row(record: Record) -> Row:
    """Return a record as one flat row: the names of nested values are joined by `_`, warnings by commas."""
    row: Row = {name: getattr(record, name) for name in ("key", "status", "reason", "input_digest")}
    row["message"], row["url"] = record.message, record.url
    row["warnings"] = ",".join(record.warnings)
    geometry, lungs = record.geometry, record.lungs
    for axis, name in enumerate("zyx"):
        row[f"n_{name}"] = geometry and geometry.shape[axis]
        row[f"spacing_{name}_mm"] = geometry and geometry.spacing_mm[axis]
    row["affine"] = geometry and [value for line in geometry.affine for value in line]
    for name in "right_ml left_ml unsided_ml mean_hu dense_share disagreed_ml missing_ml missing_place".split():
        what, unit = name.split("_")
        row[f"{what}_lung_{unit}"] = lungs and getattr(lungs, name)
    looked = record.curation
    row["lungs_cut"] = None if looked is None or looked.lungs_cut is None else ",".join(looked.lungs_cut)
    for name in ("arms", "body_cut_share", "metal_share", "noise_hu", "motion_step_mm"):
        row[name] = looked and getattr(looked, name)
    origin = record.attribution
    row["licence"], row["doi"] = origin and origin.licence, origin and origin.doi
    row["citation"] = origin and origin.citation
    source = record.as_dict().get("source", {})
    row.update({f"source_{name}": columns.as_number(name, value) for name, value in source.items()})
    row.update({f"seconds_{stage}": value for stage, value in record.seconds.items()})
    for name in OF_RECORD:
        row[name] = getattr(record, name)
    return {name: _as_utf8(value) if isinstance(value, str) else value for name, value in row.items()}


def _as_utf8(text: str) -> str:
    """Escape what Parquet cannot hold: a path that is not UTF-8 has such characters."""
    return text.encode(errors="backslashreplace").decode()


def damaged(table: pd.DataFrame) -> dict[str, str]:
    """Return the keys of the records that cannot be read, and why."""
    rows = table[table["reason"] == DAMAGED]
    return dict(zip(rows["key"], rows["message"], strict=True))


class Names(NamedTuple):
    """The records of a dataset."""

    names: Iterable[RecordName]
    """Of all of them."""
    damaged: set[tuple[str, str]]
    """Key and input digest of those that cannot be read."""


def record_names(target: str) -> Names:
    """Return the names of all records, and which cannot be read.

    The records are listed once, and as few are read as by `current`.
    """
    table = current_table(target)
    rows = table.filter(compute.equal(table["reason"], DAMAGED))
    damaged = set(zip(rows["key"].to_pylist(), rows["input_digest"].to_pylist(), strict=True))
    if damaged:  # the row of such a record does not say which folder it lies in
        return Names(store.record_names(target), damaged)
    names = zip(*(table[column].to_pylist() for column in NAME), strict=True)
    return Names(itertools.starmap(RecordName, names), damaged)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Return a table for pandas. A column of numbers that has no value yet is of numbers too."""
    frame: pd.DataFrame = table.to_pandas(use_threads=False)
    without_type = [field.name for field in table.schema if str(field.type) == "null"]
    return frame.astype({name: float for name in without_type if columns.is_number(name)})


def _read(target: str) -> pa.Table:
    try:
        content = storage.read(storage.join(target, "index.parquet"))
    except FileNotFoundError as error:
        raise UsageError(f"{target}: no index.parquet yet; a run writes it at its end") from error
    try:
        # in this thread: those of pyarrow release a Python file late, which aborts a program that is just ending
        table = parquet.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False)
    except (ValueError, KeyError, OSError) as error:  # pyarrow raises OSError for bytes in memory, too
        raise DamagedDataset(f"{target}: index.parquet is damaged; the next run writes it anew") from error
    names = table.schema.names
    if len({*names}) < len(names) or not columns.are_ours({field.name: str(field.type) for field in table.schema}):
        raise DamagedDataset(f"{target}: index.parquet has not the columns of an index; the next run writes it anew")
    return table


def _bring_up_to_date(target: str, fresh: Sequence[Row]) -> pa.Table:
    """Return the index as it should be, from `fresh`, index.parquet (if it can be used) and the other records."""
    known = None
    with contextlib.suppress(UsageError, DamagedDataset):  # there is none yet, or it is damaged or not ours
        known = _read(target)
    changed = None
    for _ in range(LISTINGS):
        try:
            return _combine(target, fresh, known)
        except storage.ObjectChanged as error:
            changed = error
    raise InfrastructureError(f"{target}: its records change while they are read: {changed}") from changed


def _combine(target: str, fresh: Sequence[Row], known: pa.Table | None) -> pa.Table:
    """Join fresh rows whose record exists, known rows whose record is as it was, and rows read from all others."""
    missing = dict(store.list_records(target))
    taken = [(row, missing.pop(RecordName(*(row[column] for column in NAME)), None)) for row in fresh]
    parts = [_to_table([row | {TAG: _tag(entry)} for row, entry in taken if entry])]
    if known is not None:
        wanted = []
        for *parts_of_name, tag in zip(*(known[column].to_pylist() for column in (*NAME, TAG)), strict=True):
            entry = missing.get(name := RecordName(*parts_of_name))
            wanted.append(entry is not None and _tag(entry) == tag)
            if wanted[-1]:
                del missing[name]
        parts.append(known.filter(pa.array(wanted, pa.bool_())))
    names = sorted(missing)
    for i in range(0, len(names), READ_AT_ONCE):
        some = names[i : i + READ_AT_ONCE]
        contents = storage.read_many_metadata(storage.join(target, "records"), [missing[name] for name in some])
        read = [_parse_row(*each) for each in zip(some, contents, strict=True)]
        parts.append(_to_table([row | {TAG: _tag(missing[name])} for name, row in zip(some, read, strict=True)]))
    table = pa.concat_tables(parts, promote_options="permissive")
    order = [(column, "ascending") for column in ("key", "input_digest", "status")]
    return table.take(compute.sort_indices(table, sort_keys=order))  # not sort_by(): that starts threads


def _tag(entry: storage.Entry) -> str:
    return f"{entry.size} {entry.tag}"


def _to_table(rows: Sequence[Row]) -> pa.Table:
    """Return rows as a table; without any, an empty one that has the columns of every record."""
    some = rows or [to_row(Record(key="", status="failed", input_digest="")) | {TAG: ""}]
    return pa.table(
        {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in some for name in row)}
    )


def _parse_row(name: RecordName, file: tuple[str, bytes]) -> Row:
    """Return the row of a record that was just read; a damaged record has a row too."""
    try:
        return to_row(parse_record(file[1], file[0]))
    except DamagedDataset as error:
        message = str(error)
    return to_row(Record(key=name.key, status="failed", input_digest=name.digest, reason=DAMAGED, message=message))

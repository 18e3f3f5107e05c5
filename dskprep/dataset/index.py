"""The index of a dataset: `index.parquet`, with one row per record, made from the records.

The records count. Whoever reads the index lists them, and reads those that it lacks or that have changed since.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
from pyarrow import compute

from dskprep.dataset import index_files
from dskprep.dataset.index_files import join
from dskprep.dataset.listed import Known, Listed, compare
from dskprep.dataset.record import Record
from dskprep.dataset.rows import DAMAGED as DAMAGED
from dskprep.dataset.rows import NAME as NAME
from dskprep.dataset.rows import UNREADABLE, Row, are_unread, is_number, select, to_row, to_table
from dskprep.dataset.undisturbed import LISTINGS, undisturbed
from dskprep.errors import CHANGED, InfrastructureError
from dskprep.storage.threads import Threads

ROWS_AT_ONCE = 1000
"""Rows that are dictionaries together; a dictionary takes ten times the memory of its row in a table."""

WRITE_EVERY_S = 600.0
"""Seconds between two writes of the index during a long run."""

NOT_CHOSEN = "not-chosen"
"""The reason why a series was set aside if another one of the study or patient was chosen."""
OF_ACCOUNT = ("key", "status", "reason", "message", "warnings", "series_uid_sha256", "study", "stack", "hu_sha256")
"""Columns by which series are counted, and such be found that were split or cannot be read."""


class RecordsGone(InfrastructureError):
    """Records that were written are not there."""


def read(target: str) -> pd.DataFrame:
    """Read index.parquet as it is. Raises UsageError if there is none yet, DamagedDataset if it is damaged."""
    return to_frame(read_table(target))


def read_table(target: str, names: Sequence[str] | None = None) -> pa.Table:
    """Do what `read` does, with all columns or those of `names` that it has, and return a table of pyarrow."""
    asked = None if names is None else (*names, *NAME)
    found = []
    for part, table in index_files.parts(target, asked):
        if table is None:
            raise index_files.damage(target, part)
        found.append(table)
    table = found[0] if len(found) == 1 else join(found)
    return table if names is None else table.select([name for name in names if name in table.schema.names])


def current(target: str, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one row per record, sorted by key, with all columns or those named.

    The records are listed. Only those are read that index.parquet lacks, or that have changed since it was written.
    """
    return to_frame(current_table(target, names))


def current_table(target: str, names: Sequence[str] | None = None) -> pa.Table:
    """Do what `current` does, and return a table of pyarrow, which takes a fraction of the memory."""

    def combine() -> pa.Table:
        found = compare(target, None if names is None else (*names, *NAME))
        added = (table if names is None else select(table, (*names, *NAME)) for table in found.added(target, ()))
        table = join([*found.kept, *added])
        return table if names is None else select(table, names)

    return undisturbed(target, combine)


def written_table(target: str) -> pa.Table:
    """Return what index.parquet says of written volumes: their names, grids, and by what labels are linked to them."""
    wanted = "status key input_digest series_uid_sha256 hu_sha256 frame_of_reference affine n_z n_y n_x".split()
    table = read_table(target, wanted)
    return table.filter(compute.equal(table["status"], "written")).drop_columns(["status"])


def rows_of(table: pa.Table, names: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a table, with all columns or only those named."""
    for batch in (table if names is None else table.select(names)).to_batches(max_chunksize=ROWS_AT_ONCE):
        yield from batch.to_pylist()


def write(target: str, fresh: Sequence[pa.Table] = ()) -> bool:
    """Bring index.parquet up to date with the records; return whether it was not.

    `fresh` are the rows of records that were just written, so that they need not be read. Raises RecordsGone if
    one of these records does not exist.
    """

    def update() -> bool:
        found = compare(target, ())
        if n_gone := sum(map(found.count_gone, fresh)):
            raise RecordsGone(
                f"{target}: {n_gone} records that were written are not there any more; look whether something deletes "
                "there, and whether all workers have the same disk or store, then run again"
            )
        if found.held and found.is_current:
            return False
        index_files.update(target, found.held, found.added(target, fresh), len(found.missing))
        return True

    return undisturbed(target, update)


def settle(target: str) -> None:
    """Write the index again while records come that the one just written lacks, as another run ends.

    Whoever wrote last has looked for records after that, so the index that stays has those of all. A run that goes on
    writes its own index at its end, so this gives up after a few times.
    """
    for _ in range(LISTINGS):
        if not write(target):
            break


class Names(NamedTuple):
    """The records of a dataset."""

    known: Known
    """Of all of them."""
    damaged: set[tuple[str, str]]
    """Key and input digest of those that are damaged."""
    unreadable: set[tuple[str, str]]
    """The same of those that the disk does not give; their names say what became of their series."""
    incomplete: set[tuple[str, str]]
    """The same of those whose folder had other series, of which one has no record any more: it was forgotten."""
    not_chosen: set[tuple[str, str]]
    """The same of those that were set aside as another series was chosen."""
    changed: set[tuple[str, str]]
    """The same of those that were refused as their files changed meanwhile."""

    @property
    def undone(self) -> set[tuple[str, str]]:
        """Key and input digest of these, but for `not_chosen`: their patients are to be done again."""
        return self.damaged | self.incomplete | self.changed

    def notes(self) -> Iterator[str]:
        """Yield a line on each kind of records that do not tell what they should."""
        again = "a run does these patients again"
        for what, found, then in (
            ("damaged records", self.damaged, again),
            ("records of other series gone", self.incomplete, again),
            ("records that cannot be read", self.unreadable, "their patients count as done"),
        ):
            if found:
                yield f"{what}: {len(found)}, such as that of {min(key for key, _ in found)}; {then}"


def record_names(target: str) -> Names:
    """Return the names of all records, and which do not hold. The index is brought up to date with them.

    The records are listed once, and as few are read as by `current`, which nobody has to do again.
    """

    def look() -> Names:
        found = compare(target, ("key", "input_digest", "reason", "further_series"))
        of_reason = {reason: set[tuple[str, str]]() for reason in (DAMAGED, UNREADABLE, NOT_CHOSEN, CHANGED)}
        incomplete = set[tuple[str, str]]()

        def noted(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
            for table in tables:
                for reason, names in of_reason.items():
                    some = table.filter(compute.equal(table["reason"], reason))
                    names.update(zip(some["key"].to_pylist(), some["input_digest"].to_pylist(), strict=True))
                incomplete.update(_incomplete(table, found.listed))
                yield table

        for _ in noted(found.kept):
            pass
        if not found.is_current:
            index_files.update(target, found.held, noted(found.added(target, ())), len(found.missing))
        damaged, unreadable, not_chosen, changed = of_reason.values()
        return Names(found.listed.known, damaged, unreadable, incomplete, not_chosen, changed)

    return undisturbed(target, look)


def _incomplete(table: pa.Table, listed: Listed) -> Iterator[tuple[str, str]]:
    """Yield key and input digest of the rows that name a further series without a record."""
    some = table.filter(compute.not_equal(table["further_series"].cast(pa.string()).fill_null(""), ""))
    columns = (some[name].to_pylist() for name in ("key", "input_digest", "further_series"))
    named = [
        ((key, digest), f"{name}.{digest}.json")
        for key, digest, names in zip(*columns, strict=True)
        for name in names.split(" ")
    ]
    if named:
        at = listed.find(pa.array([path for _, path in named], pa.large_string()))
        yield from (row for (row, _), i in zip(named, at, strict=True) if i < 0)


class Writer:
    """Collects the records of a run and writes the index from time to time, in a thread beside the run."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._rows: list[Row] = []
        self._fresh: list[pa.Table] = []
        self._n_sent = 0
        self._started_s = time.monotonic()
        self._thread = Threads(1, "index")
        self._under_way: Future[Any] | None = None

    def add(self, records: Iterable[Record]) -> None:
        """Add records that were written."""
        self._rows += [to_row(record) for record in records]
        if len(self._rows) >= ROWS_AT_ONCE:
            self._pack()
        if self._under_way and self._under_way.done():
            self._settle()
        if not self._under_way and self._is_due():
            self._pack()
            self._n_sent, self._started_s = len(self._fresh), time.monotonic()
            self._under_way = self._thread.submit(write, self._target, self._fresh[:])

    def close(self) -> None:
        """Write the index with all added records. Raises InfrastructureError if it cannot be written."""
        self._settle()
        self._thread.shutdown()
        self._pack()
        write(self._target, self._fresh)

    def _is_due(self) -> bool:
        is_full = len(self._fresh) * ROWS_AT_ONCE >= index_files.PART_ROWS
        return is_full or time.monotonic() - self._started_s > WRITE_EVERY_S

    def _pack(self) -> None:
        """Keep what was added as a table, a fifth of the memory of its rows."""
        if self._rows:
            self._fresh.append(to_table(self._rows))
            self._rows = []

    def _settle(self) -> None:
        """Wait for the write under way; if it failed, its rows are kept for the next one."""
        if self._under_way and not self._under_way.exception():
            del self._fresh[: self._n_sent]
        self._under_way = None


def split_series(table: pa.Table) -> list[list[str]]:
    """Group the keys of written volumes that share study and series but differ in voxels.

    Such volumes are probably parts of one series that was stored in several folders. Volume files, and slices without
    UIDs, have no study: the digests of their series say no more than that files have one name, or no UID.
    """
    written = table.filter(compute.equal(table["status"], "written"))
    if "study" in table.schema.names:  # not in an index of the first datasets
        written = written.filter(compute.is_valid(written["study"]))
    uids = compute.value_counts(written["series_uid_sha256"].combine_chunks().drop_null())
    several = uids.field("values").filter(compute.greater(uids.field("counts"), 1))
    some = to_frame(written.filter(compute.is_in(written["series_uid_sha256"], several)))
    series = [name for name in ("series_uid_sha256", "study") if name in some]
    same = [*(some[name] for name in series), some["stack"].fillna(0)]  # stacks of one series differ
    n_different = some.groupby(same)["hu_sha256"].transform("nunique")
    groups = some[n_different > 1].groupby(series, sort=True)
    return [sorted(group["key"]) for _, group in groups]


def damaged(table: pa.Table) -> dict[str, str]:
    """Return the keys of the records that cannot be read, and why."""
    some = table.filter(are_unread(table))
    return dict(zip(some["key"].to_pylist(), some["message"].to_pylist(), strict=True))


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Return a table for pandas. A column of numbers that has no value yet is of numbers too."""
    frame: pd.DataFrame = table.to_pandas(use_threads=False)
    without_type = [field.name for field in table.schema if str(field.type) == "null"]
    return frame.astype({name: float for name in without_type if is_number(name)})

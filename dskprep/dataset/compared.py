"""The index compared with a listing of the records: which rows hold, and which records have none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dskprep import storage
from dskprep.dataset import index_files
from dskprep.dataset.listed import Listed
from dskprep.dataset.record import FURTHER
from dskprep.dataset.rows import NAME, TAG, parse_row, paths_of, select, tag_of, to_table
from dskprep.errors import UsageError

READ_AT_ONCE = 5000
"""Records that are in memory together while they are made into rows."""


class Found(NamedTuple):
    """The index compared with the records: the `kept` rows, and where in the listing records are without a row."""

    listed: Listed
    held: index_files.Held
    kept: list[pa.Table]
    missing: NDArray[np.int64]

    @property
    def is_current(self) -> bool:
        """Whether each record has its row, and each row its record."""
        return not len(self.missing) and all(mask is not None and mask.all() for mask in self.held.values())

    def added(self, target: str, fresh: Sequence[pa.Table]) -> Iterator[pa.Table]:
        """Yield rows of the missing records, few at a time: the `fresh` ones, and then what is read of the others."""
        is_missing = np.zeros(len(self.listed), bool)
        is_missing[self.missing] = True
        for table in fresh:
            at = self.listed.find(paths_of(table))
            at, is_taken = _taken(at, is_missing)
            is_missing[at] = False
            yield _with_tags(table.filter(pa.array(is_taken)), self.listed.tags.take(pa.array(at)))
        (left,) = is_missing.nonzero()
        for start in range(0, len(left), READ_AT_ONCE):
            some = sorted(self.listed.entry(int(i)) for i in left[start : start + READ_AT_ONCE])
            contents = storage.read_many_metadata(storage.join(target, "records"), [entry for _, entry in some])
            read = [parse_row(name, file) for (name, _), file in zip(some, contents, strict=True)]
            yield _with_tags(to_table(read), pa.array([tag_of(entry) for _, entry in some]))

    def count_gone(self, fresh: pa.Table) -> int:
        """Count the rows whose record is not there, nor another one of the same series."""
        (gone,) = (self.listed.find(paths_of(fresh)) < 0).nonzero()
        keys = fresh["key"].take(pa.array(gone)).to_pylist()
        known = self.listed.known
        return sum(key not in {name.key for name in known.get(key.partition(FURTHER)[0])} for key in keys)


def compare(target: str, names: Sequence[str] | None) -> Found:
    """Compare the index with a listing of the records. Of the rows that hold, the columns `names` are kept, or all."""
    listed = Listed(target)
    is_missing = np.ones(len(listed), bool)
    held: index_files.Held = {}
    kept = []
    asked = None if names is None else (*names, *NAME, TAG)
    with contextlib.suppress(UsageError):  # there is none yet
        for part, table in index_files.parts(target, asked):
            held[part] = None
            if table is not None:
                at = listed.find(paths_of(table), table[TAG].combine_chunks())
                at, held[part] = _taken(at, is_missing)
                is_missing[at] = False
                if names is None or names:
                    kept.append(select(table.filter(pa.array(held[part])), names))
    return Found(listed, held, kept, is_missing.nonzero()[0])


def _taken(at: NDArray[np.int64], is_free: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the places that are free, each once, and which of `at` they are. -1 is no place."""
    is_taken = (at >= 0) & is_free[at] if len(is_free) else np.zeros(len(at), bool)
    _, first = np.unique(at, return_index=True)
    is_first = np.zeros(len(at), bool)
    is_first[first] = True
    is_taken &= is_first
    return at[is_taken], is_taken


def _with_tags(table: pa.Table, tags: pa.Array) -> pa.Table:
    rest = table.drop_columns([TAG]) if TAG in table.schema.names else table
    return rest.append_column(TAG, tags.cast(pa.string()))

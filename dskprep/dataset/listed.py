"""The records as they are listed, and the index compared with them: which rows hold, and which records have none.

A listing takes little memory: some 130 bytes for each record, and 60 of its name alone.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from dskprep import storage
from dskprep.dataset import index_files, store
from dskprep.dataset.record import FURTHER, RecordName
from dskprep.dataset.rows import NAME, TAG, UNREADABLE, parse_row, paths_of, select, tag_of, to_table
from dskprep.errors import UsageError

AT_ONCE = 10_000
"""Records that are in memory as Python objects together."""

READ_AT_ONCE = 5000
"""Records that are in memory together while they are made into rows."""

AFTER_KEY = len(".0123456789abcdef.json")
"""Letters of a path after the key of the series."""

Ints = NDArray[np.int64]


class Known:
    """The names of all records, by the key of their case: that of the main series, without those of others."""

    def __init__(self, paths: pa.Array) -> None:
        """Take the paths of the records below `records`."""
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def _by_hash(self) -> tuple[Ints, Ints]:
        """The hashes of the keys of all cases in order, and where in `paths` each of them is."""
        cases = (path[path.index("/") + 1 : -AFTER_KEY].partition(FURTHER)[0] for path in _each(self.paths))
        hashes = np.fromiter(map(hash, cases), np.int64, len(self.paths))
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def get(self, key: str) -> list[RecordName]:
        """Return the names of the records of a case, in the order of the listing."""
        found, wanted = [], hash(key)
        hashes, order = self._by_hash
        i = int(hashes.searchsorted(wanted))
        while i < len(hashes) and hashes[i] == wanted:
            name = RecordName.of(self.paths[int(order[i])].as_py())
            if name and name.key.partition(FURTHER)[0] == key:
                found.append(name)
            i += 1
        return found

    def of_input(self, digest: str) -> Iterator[RecordName]:
        """Yield the names of the records of this input digest."""
        yield from filter(
            None, map(RecordName.of, _each(self.paths.filter(compute.ends_with(self.paths, f".{digest}.json"))))
        )

    def __iter__(self) -> Iterator[RecordName]:
        yield from filter(None, map(RecordName.of, _each(self.paths)))


class Listed:
    """All records of a dataset: the `known` names, and how each was listed. Made by one listing; reads none of them."""

    def __init__(self, target: str) -> None:
        paths: list[pa.Array] = []
        tags: list[pa.Array] = []
        for some in _batches(store.list_records(target)):
            paths.append(pa.array([entry.name for _, entry in some], pa.large_string()))
            tags.append(pa.array([tag_of(entry) for _, entry in some], pa.large_string()))
        self.known = Known(pa.chunked_array(paths, pa.large_string()).combine_chunks())
        self.tags = pa.chunked_array(tags, pa.large_string()).combine_chunks()
        hashes = np.fromiter(map(hash, _each(self.known.paths)), np.int64, len(self.tags))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        return len(self.tags)

    def find(self, paths: pa.Array, tags: pa.Array | None = None) -> Ints:
        """Return where each of these paths, with these tags if they are given, is in the listing; -1 if it is not."""
        if not len(self):
            return np.full(len(paths), -1, np.int64)
        wanted = np.fromiter(map(hash, paths.to_pylist()), np.int64, len(paths))
        at = self._order[self._hashes.searchsorted(wanted).clip(max=len(self) - 1)]
        is_there = _are_equal(self.known.paths.take(pa.array(at)), paths)
        if tags is not None:
            is_there &= _are_equal(self.tags.take(pa.array(at)), tags)
        return np.where(is_there, at, -1)

    def entry(self, i: int) -> tuple[RecordName, storage.Entry]:
        """Return the name and the entry of a record by its place in the listing."""
        path = self.known.paths[i].as_py()
        n_bytes, _, tag = self.tags[i].as_py().partition(" ")
        name = RecordName.of(path)
        assert name is not None  # as it was when it was listed
        return name, storage.Entry(path, int(n_bytes), tag)


def _each(paths: pa.Array) -> Iterator[str]:
    for start in range(0, len(paths), AT_ONCE):
        yield from paths.slice(start, AT_ONCE).to_pylist()


def _are_equal(some: pa.Array, others: pa.Array) -> NDArray[np.bool_]:
    same = compute.equal(some, others.cast(pa.large_string())).fill_null(False)
    return np.asarray(same.to_numpy(zero_copy_only=False), bool)


def _batches(listing: Iterator[Any]) -> Iterator[list[Any]]:
    while some := list(itertools.islice(listing, AT_ONCE)):
        yield some


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
            contents = storage.read_each(storage.join(target, "records"), [entry for _, entry in some])
            read = [parse_row(name, *file) for (name, _), file in zip(some, contents, strict=True)]
            # a row without a tag is of no state of a record, and so does not last
            tags = ["" if r["reason"] == UNREADABLE else tag_of(e) for r, (_, e) in zip(read, some, strict=True)]
            yield _with_tags(to_table(read), pa.array(tags, pa.string()))

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

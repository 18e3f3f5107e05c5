"""The records of a dataset as they are listed, in little memory: some 130 bytes for each, and 60 of its name alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from dskprep import storage
from dskprep.dataset import rows, store
from dskprep.dataset.record import FURTHER, RecordName

AT_ONCE = 10_000
"""Records that are in memory as Python objects together."""

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

    def __iter__(self) -> Iterator[RecordName]:
        yield from filter(None, map(RecordName.of, _each(self.paths)))


class Listed:
    """All records of a dataset: the `known` names, and how each was listed. Made by one listing; reads none of them."""

    def __init__(self, target: str) -> None:
        paths: list[pa.Array] = []
        tags: list[pa.Array] = []
        for some in _batches(store.list_records(target)):
            paths.append(pa.array([entry.name for _, entry in some], pa.large_string()))
            tags.append(pa.array([rows.tag_of(entry) for _, entry in some], pa.large_string()))
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

"""Which label sources are to be done: those without a record that still holds.

A file is called by its path below the folder that is annotated, and so may be files of other folders: in many archives
each patient has a `1-1.dcm`. The same file is what lies at the same URL. Of other files the records and labels stay.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from dskprep.dataset import annotations as table
from dskprep.dataset import index
from dskprep.dataset.label_record import LabelRecordName
from dskprep.dataset.record import STATUSES
from dskprep.errors import CHANGED
from dskprep.pipeline import checked
from dskprep.pipeline.label_account import LabelSummary
from dskprep.source.label_files import Asked, LabelFile
from dskprep.worker.label_job import LabelJob

RETRIES = checked.RETRIES | {"unlinked": (), "all": STATUSES}
"""Which statuses are done again, by the value of `retry`. `unlinked` are those with something that found no volume."""


class Known:
    """The records of a dataset, by the files that they are of. Made of the rows of `annotations.by_source`."""

    def __init__(self, rows: dict[LabelRecordName, list[dict[str, Any]]]) -> None:
        self.rows = rows
        self._contents: dict[LabelRecordName, str] = {}
        self._places: dict[LabelRecordName, str | None] = {}
        self._by_key: dict[str, list[LabelRecordName]] = defaultdict(list)
        self._sources: dict[tuple[str, str | None], str] = {}
        for name in sorted(rows):
            place = rows[name][0]["url"]  # None of a record that cannot be read
            key = _key_of_all(name.source, place)
            self._places[name], self._contents[name] = place, rows[name][0]["source_sha256"] or ""
            self._by_key[key].append(name)
            self._sources.setdefault((key, place), name.source)

    def apart(self, files: Iterable[LabelFile]) -> Iterator[LabelFile]:
        """Yield the files; one whose key a file of another place has gets a key of its own, which it keeps."""
        for file in files:
            own = self._sources.get((file.key, file.place))
            is_taken = any(not self._is_own(name, file, file.key) for name in self._by_key.get(file.key, ()))
            yield dataclasses.replace(file, key=own or (key_apart(file.key, file.place) if is_taken else file.key))

    def of(self, file: LabelFile, options: str) -> tuple[list[LabelRecordName], list[LabelRecordName]]:
        """Return the records of a file with these options, and those of other files that have its key, with any.

        Its own are also those that cannot be read; and with hashed keys the only one, if that is of an older version
        and does not say where its file lay. A file that was moved is done again: its listing does not tell what it is.
        """
        own, others = [], []
        shared = _key_of_all(file.key, file.place)
        for name in itertools.chain(*(self._by_key.get(key, ()) for key in dict.fromkeys([shared, file.key]))):
            if not self._is_own(name, file, shared):
                others.append(name)
            elif name.options == options and (self._places[name] is not None or name.source == file.key):
                own.append(name)
        return own, others

    def _is_own(self, name: LabelRecordName, file: LabelFile, shared: str) -> bool:
        """Tell whether a record is of a file; `shared` is the key that all files of its path have."""
        is_older = self._places[name] == "" and file.is_hashed
        is_only = {other.source for other in self._by_key.get(shared, ())} == {name.source}
        return self._places[name] in (None, file.place) or (is_older and is_only)

    def contents(self, names: Iterable[LabelRecordName]) -> tuple[tuple[str, LabelRecordName], ...]:
        """Return the SHA-256 of the file of each record, and the record."""
        return tuple((self._contents[name], name) for name in names)


def key_apart(key: str, place: str) -> str:
    """Return the key of a file whose own key another file has: with a digest of its place, before the suffix.

    >>> key_apart("1-1.dcm", "/data/LUNG1-002/1-1.dcm")
    '1-1-a117978e.dcm'
    """
    stem, dot, suffix = key.rpartition(".")
    mark = f"-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    return f"{stem}{mark}{dot}{suffix}" if stem else f"{key}{mark}"


def _key_of_all(key: str, place: str | None) -> str:
    """Return the key that all files of this path have, of that of one of them at this place."""
    mark = f"-{hashlib.sha256((place or '').encode()).hexdigest()[:8]}"
    before, _, after = key.rpartition(mark)
    shared = before + after
    return shared if place and before and key_apart(shared, place) == key else key


def label_jobs(
    files: Iterable[LabelFile], asked: Asked, summary: LabelSummary, known: Known, retry: str | None
) -> Iterator[LabelJob]:
    """Yield the sources that are to be done, and count the others as done before.

    Done is what has a record of this file and of what is asked for, whose volumes are as they were then, with all of
    their copies.
    """
    written = index.written_table(summary.target)
    now = dict(zip(written["key"].to_pylist(), written["input_digest"].to_pylist(), strict=True))
    recorded: dict[str, list[str]] = defaultdict(list)
    copies = _copies(written)
    again = set()
    for name, rows in known.rows.items():
        recorded[name.source].append(f"{name.source}.{name.options}")
        reasons = {row["reason"] for row in rows}
        is_stale = name.status == "written" and any(now.get(row["key"]) != row["image"] for row in rows)
        here = {row["key"] for row in rows if row["linked_by"] not in (None, "key")}
        has_new_copy = name.status == "written" and any(copies.get(key, here) - here for key in here)
        warnings = {word for row in rows for word in (row["source_warnings"] or "").split(",")}
        is_unlinked = reasons == {"label-unlinked"} or "points-unlinked" in warnings
        is_asked = name.status in RETRIES[retry] or (retry == "unlinked" and is_unlinked)
        if is_stale or has_new_copy or is_asked or reasons & {table.DAMAGED, CHANGED}:
            again.add(name)
    for file in files:
        names, others = known.of(file, asked.digest)
        done = [name.status for name in names if name.digest == file.digest and name not in again]
        if done and all(name.digest == file.digest for name in names):  # else two have drawn two states of it at once
            status = min(done, key=STATUSES.index)
            summary.counts[status] += 1
            summary.already[status] += 1
        else:
            elsewhere = known.contents(others)
            yield LabelJob(file, asked, summary.run_id, tuple(names), tuple(recorded[file.key]), elsewhere)


def _copies(written: Any) -> dict[str, set[str]]:
    """Return the keys of all volumes of one series with one image, by the key of each of several."""
    names = ("key", "series_uid_sha256", "hu_sha256")
    columns = [written[name].to_pylist() for name in names if name in written.schema.names]
    together: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for key, *image in zip(*columns, strict=True):
        together[tuple(image)].add(key)
    return {key: keys for image, keys in together.items() if all(image) and len(keys) > 1 for key in keys}

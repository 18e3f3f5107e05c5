"""Patients that count as done though their records were made from another place than the one of this run.

A record tells files by their names, sizes and times. Two sources can have the same of other patients.
"""

from __future__ import annotations

from contextlib import suppress

from dskprep import storage
from dskprep.counts import n_of
from dskprep.dataset import index, store
from dskprep.dataset.listed import Known
from dskprep.dataset.past_runs import past_runs
from dskprep.dataset.record import RecordName
from dskprep.errors import DamagedDataset
from dskprep.pipeline.account import Summary
from dskprep.source.case import Case

MOST_HASHED = 100
"""Records that are read in a dataset with hashed keys, whose index does not tell of places."""


class OtherPlaces:
    """Hears of each case that is done before, and notes at the end how many of them come from another place."""

    def __init__(self, summary: Summary, known: Known) -> None:
        """Read the places in the index, which is up to date with the `known` records, if a run had another source."""
        self._target, self._is_hashed = summary.target, summary.is_hashed
        self._n = 0
        self._first: tuple[RecordName, str] | None = None
        self._hashed: list[tuple[RecordName, str]] = []
        self._places: set[int] | None = None  # hashes of key, digest and place
        is_asked = len(known) > 0 and not self._is_hashed
        if is_asked and any(run.source not in ("", summary.source) for run in past_runs(self._target)):
            table = index.read_table(self._target, ("key", "input_digest", "url"))
            rows = index.rows_of(table)
            self._places = {hash((row["key"], row["input_digest"], row.get("url"))) for row in rows}

    def hear(self, case: Case, status: str) -> None:
        """Look at a case that has a record of this status."""
        name = RecordName(status, case.key, case.digest)
        if self._is_hashed and len(self._hashed) < MOST_HASHED:
            self._hashed.append((name, case.place))
        elif self._places is not None and hash((case.key, case.digest, case.url)) not in self._places:
            self._n += 1
            self._first = self._first or (name, case.url)

    def note(self) -> str:
        """Return what is to be said of them, "" if there are none."""
        for name, place in self._hashed:
            if self._place_of(name) not in (None, place):
                self._n += 1
                self._first = self._first or (name, place)
        if self._first is None:
            return ""
        name, here = self._first
        there = self._place_of(name)
        where = "" if self._is_hashed or not there else f" (made from {there}, and found in {here})"
        return (
            f"{n_of(self._n, 'patient')} done before from another place, such as {name.key}{where}: files of equal "
            "names, sizes and times are taken for the same; if they are not, give them other keys, as by a manifest"
        )

    def _place_of(self, name: RecordName) -> str | None:
        """Return the place of a record, or its digest; None if it does not tell."""
        with suppress(FileNotFoundError, DamagedDataset, storage.UnreadableFile):
            record = store.read_record(self._target, name)
            return (record.place if self._is_hashed else record.url) or None
        return None

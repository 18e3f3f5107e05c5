"""What a dataset holds of the studies or patients whose series are chosen by `[select]`."""

from __future__ import annotations

from typing import NamedTuple

from dskprep.dataset import index
from dskprep.keys import FURTHER
from dskprep.selecting import KEPT


class Taken(NamedTuple):
    """What became of series before. The keys are those of cases."""

    written: dict[str, list[str]]
    """The keys of what is written, by the digest of its study or patient."""
    refused: set[tuple[str, str]]
    """Key and input digest of what was refused, but for the reasons `selecting.KEPT`."""
    known: set[str]
    """The keys of all records."""

    @classmethod
    def nothing(cls) -> Taken:
        """Return that of a dataset without a record."""
        return cls({}, set(), set())


def taken(target: str, per: str) -> Taken:
    """Return what a dataset holds; `per` is `study` or `patient`."""
    found = Taken.nothing()
    for row in index.rows_of(index.current_table(target, ("key", "input_digest", "status", "reason", per))):
        key = row["key"].partition(FURTHER)[0]
        found.known.add(key)
        if row["status"] == "written":
            found.written.setdefault(row[per] or "", []).append(key)
        elif row["status"] == "refused" and row["reason"] not in KEPT and key == row["key"]:
            found.refused.add((key, row["input_digest"]))
    return found

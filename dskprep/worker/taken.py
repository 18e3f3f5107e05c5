"""Two sources with a folder of the same name: which records of its key are of the other one, and stay.

A record that no longer holds is mostly that of an earlier state of the same folder, and its volume is replaced. If its
volume came from another place, and is of another series, it is somebody else's: nothing takes its name from it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from dskprep.dataset import store
from dskprep.dataset.record import Record, RecordName
from dskprep.errors import DamagedDataset, Refusal
from dskprep.source.case import Case


def of_another_source(
    target: str, case: Case, stale: Iterable[RecordName], made: Collection[Record]
) -> dict[RecordName, Record]:
    """Return those of the `stale` records that are of another source than the case, each with a written one of it.

    They are all records of a source that has written a volume, if that was read from another place than the case, and
    none of its series is among those `made` of the case. With hashed keys the place is known by its digest; a record of
    an older version has none, and is of another source if the patient is known to be another one.
    """
    names: dict[str, list[RecordName]] = {}
    for name in stale:
        names.setdefault(name.digest, []).append(name)
    names.pop(case.digest, None)
    found: dict[RecordName, Record] = {}
    for of_source in names.values():
        records = list(_written(target, of_source))
        if records and all(_is_foreign(record, case, made) for record in records):
            found |= dict.fromkeys(of_source, records[0])
    return found


def refusal(foreign: Mapping[RecordName, Record]) -> Refusal:
    """Return why a case is not written over volumes `of_another_source`."""
    record = min(foreign.values(), key=lambda record: record.key)
    return Refusal(
        "key-taken",
        f"{record.key}: expected no volume of this name, found that of another series, read from "
        f"{record.url or 'another place'}; it stays. Run this source into another target, or as a manifest with other "
        "keys; to replace that volume, delete it by dskprep.forget, and run again with --retry refused",
    )


def _written(target: str, names: Iterable[RecordName]) -> Iterator[Record]:
    for name in names:
        if name.status == "written":
            try:
                yield store.read_record(target, name)
            except (FileNotFoundError, DamagedDataset):
                continue  # of a damaged record nobody knows whose it is; its patient is made again


def _is_foreign(record: Record, case: Case, made: Collection[Record]) -> bool:
    if any(_are_same_series(record, other) for other in made):
        return False
    if record.url:
        return record.url != case.url
    if record.place:
        return record.place != case.place
    patients = {other.patient for other in made if other.patient}
    return bool(record.patient and patients) and record.patient not in patients


def _are_same_series(one: Record, other: Record) -> bool:
    """Tell by the voxels, or by all identifiers, where there are any: one alone may be made up for all patients."""
    if one.hu_sha256 is not None and one.hu_sha256 == other.hu_sha256:
        return True
    of_one, of_other = ((each.patient, each.study, each.series_uid_sha256) for each in (one, other))
    return one.study is not None and of_one == of_other

"""Whose slices are: those of one SeriesInstanceUID parted by patient, study and frame of reference.

Programs that remove identities write one UID for all series, or none; then it does not tell series apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from dskprep.dicom.description import Identity
from dskprep.dicom.slices import Slice

PATIENT = 2
"""So many of the fields of an identity say which patient it is: PatientID and its issuer."""
OWNER = 4
"""So many say of which patient, study and frame of reference a slice is; the next is of the slice itself."""
ALONE = 2
"""A study or frame of reference that no more slices share is made up for each file, as LIDC-IDRI has them."""
STRAY, STRAYS = 10, 4
"""One of so few slices of a patient's series, and of less than a tenth of them, is a mistake: they stay with most."""


def part_by_owner(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Part slices by patient, study and frame of reference; the most slices come first, whatever their order was.

    A slice that lacks one of these belongs to those with which it shares another one, if they are of one owner.
    """
    parts = [list(slices)]
    if len({s.identity[:OWNER] for s in slices}) > 1:
        for field in range(OWNER):
            parts = [part for whole in parts for part in _part_by(whole, field)]
    return sorted(parts, key=lambda part: (-len(part), min((s.identity for s in part), default=())))


def owner_of(slices: Sequence[Slice]) -> Identity:
    """Return the identity of slices of one owner, without an instance: of each field what most say that have it."""
    said = (Counter(filter(None, (s.identity[field] for s in slices))).most_common(1) for field in range(OWNER))
    return Identity(*(found[0][0] if found else "" for found in said))


def has_strays(slices: Sequence[Slice]) -> bool:
    """Tell whether a few slices name another study and another frame of reference than the others, and stayed.

    Where these are made up for each file, they are not few.
    """
    owner = owner_of(slices)
    others = [s for s in slices if all(s.identity[field] not in ("", owner[field]) for field in range(PATIENT, OWNER))]
    return 0 < len(others) <= STRAYS


def _part_by(slices: list[Slice], field: int) -> list[list[Slice]]:
    counts = Counter(s.identity[field] for s in slices if s.identity[field])
    strays, main = set[str](), ""
    if len(counts) > 1 and field >= PATIENT:
        if 2 * sum(n for n in counts.values() if n <= ALONE) >= counts.total():
            return [slices]
        if any(s.identity.patient for s in slices):
            strays = {value for value, n in counts.items() if n <= STRAYS and STRAY * n < counts.total()}
            main = counts.most_common(1)[0][0]
    if len(counts.keys() - strays) < 2:
        return [slices]
    parts: dict[str, list[Slice]] = defaultdict(list)
    others: dict[tuple[int, str], set[str]] = defaultdict(set)
    for s in slices:
        if (value := s.identity[field]) and value not in strays:
            for other in _others(s, field):
                others[other].add(value)
    for s in slices:
        value = main if s.identity[field] in strays else s.identity[field]
        if not value:
            told = [found for other in _others(s, field) if len(found := others.get(other, set())) == 1]
            value = next(iter(told[0])) if told and all(found == told[0] for found in told) else ""
        parts[value].append(s)
    return list(parts.values())


def _others(s: Slice, field: int) -> list[tuple[int, str]]:
    """Return the other identifiers that a slice has, by field."""
    return [(k, s.identity[k]) for k in range(OWNER) if k != field and s.identity[k]]

"""The choice between the series of one case, all of whose headers are read: the table `[select]` of the settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.keys import series_digest
from dskprep.selecting import KEPT, Chosen, Select, chosen_of, order_of
from dskprep.source.peek import Peeked, group_of, of_slices


class Owned(NamedTuple):
    """The slices of one owner among those of a SeriesInstanceUID: number `owner` of `n_owners`."""

    uid: str
    owner: int = 1
    n_owners: int = 1

    @property
    def digest(self) -> str:
        """The digest by which records name the SeriesInstanceUID."""
        return series_digest(self.uid)


class Rivals:
    """The series of one case: which of them are tried, in which order, and which are set aside."""

    def __init__(self, series: Mapping[Owned, Sequence[Slice]], select: Select | None, n_least: int) -> None:
        self.order = list(series)
        self._select = select
        self._scores: dict[Owned, tuple[float, ...]] = {}
        self._group: dict[Owned, tuple[str, ...]] = {}
        self._taken: dict[tuple[str, ...], list[Owned]] = {}
        self._refused: dict[tuple[str, ...], str] = {}
        if select is None:
            return
        for one, slices in series.items():
            if len(slices) < n_least:  # refused in any case
                continue
            peeked = _peek(one.uid, slices)
            if group := group_of(peeked, select):
                self._group[one], self._scores[one] = group, select.scores(peeked.texts)
        if select.per == "study":
            self._group = _with_patients(self._group)
        self.order.sort(key=lambda one: order_of(self._scores.get(one, ()), one.digest))

    def is_beaten(self, one: Owned) -> Refusal | None:
        """Return why a series is set aside, None if it is to be tried."""
        taken = self._taken.get(self._group.get(one, ()), [])
        if self._select is None or len(taken) < self._select.keep:
            return None
        why = self._select.why_first(self._scores[taken[-1]], self._scores[one])
        return Refusal(
            "not-chosen",
            f"expected the best series of one {self._select.per}, which is that of digest {taken[-1].digest}, by {why}",
        )

    def tried(self, one: Owned, made: object) -> Chosen | None:
        """Note what became of a series that was tried. Returns why it was chosen, if there was a choice."""
        group = self._group.get(one, ())
        if self._select is None or not group:
            return None
        if isinstance(made, Refusal) and made.reason not in KEPT:
            self._refused.setdefault(group, f"the series of digest {one.digest}, refused: {made.reason}")
            return None
        taken = self._taken.setdefault(group, [])
        if one not in taken:
            taken.append(one)
        return self._why(one, group, self._select)

    def _why(self, one: Owned, group: tuple[str, ...], select: Select) -> Chosen | None:
        rivals = [other for other in self.order if self._group.get(other) == group]
        n_more = select.keep - len(self._taken[group])
        loser = next(iter(rivals[rivals.index(one) + 1 + n_more :]), None)
        scores = None if loser is None else self._scores[loser]
        return chosen_of(select, self._scores[one], scores, len(rivals), self._refused.get(group))


def _with_patients(groups: Mapping[Owned, tuple[str, ...]]) -> dict[Owned, tuple[str, ...]]:
    """Join the series without a PatientID to the patient of their study, if it has one patient alone."""
    patients: dict[str, set[str]] = {}
    for study, patient in groups.values():
        patients.setdefault(study, set()).update({patient} - {""})
    only = {study: min(found) for study, found in patients.items() if len(found) == 1}
    return {one: (study, patient or only.get(study, "")) for one, (study, patient) in groups.items()}


def _peek(uid: str, slices: Sequence[Slice]) -> Peeked:
    """Return what most slices of a series say, whatever their order."""
    found = Counter((s.identity._replace(instance=""), tuple(sorted(s.facts.items()))) for s in slices)
    identity, facts = min(found, key=lambda said: (-found[said], said))
    return of_slices(identity, uid, dict(facts), len(slices))

"""The choice between the series of one case, all of whose headers are read: the table `[select]` of the settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.keys import series_digest
from dskprep.selecting import KEPT, Chosen, Select, chosen_of, order_of
from dskprep.source.peek import Peeked, group_of, of_slices


class Rivals:
    """The series of one case, by UID: which of them are tried, in which order, and which are set aside."""

    def __init__(
        self, uids: Sequence[str], slices: dict[str, list[Slice]], select: Select | None, n_least: int
    ) -> None:
        self.order = list(uids)
        self._select = select
        self._scores: dict[str, tuple[float, ...]] = {}
        self._group: dict[str, tuple[str, ...]] = {}
        self._taken: dict[tuple[str, ...], list[str]] = {}
        self._refused: dict[tuple[str, ...], str] = {}
        if select is None:
            return
        for uid in uids:
            if len(slices.get(uid, ())) < n_least:  # refused in any case
                continue
            peeked = _peek(uid, slices[uid])
            if group := group_of(peeked, select):
                self._group[uid], self._scores[uid] = group, select.scores(peeked.texts)
        self.order.sort(key=lambda uid: order_of(self._scores.get(uid, ()), series_digest(uid)))

    def is_beaten(self, uid: str) -> Refusal | None:
        """Return why a series is set aside, None if it is to be tried."""
        taken = self._taken.get(self._group.get(uid, ()), [])
        if self._select is None or len(taken) < self._select.keep:
            return None
        why = self._select.why_first(self._scores[taken[-1]], self._scores[uid])
        return Refusal(
            "not-chosen",
            f"expected the best series of one {self._select.per}, which is that of digest {series_digest(taken[-1])}, "
            f"by {why}",
        )

    def tried(self, uid: str, made: object) -> Chosen | None:
        """Note what became of a series that was tried. Returns why it was chosen, if there was a choice."""
        group = self._group.get(uid, ())
        if self._select is None or not group:
            return None
        if isinstance(made, Refusal) and made.reason not in KEPT:
            self._refused.setdefault(group, f"the series of digest {series_digest(uid)}, refused: {made.reason}")
            return None
        taken = self._taken.setdefault(group, [])
        if uid not in taken:
            taken.append(uid)
        return self._why(uid, group, self._select)

    def _why(self, uid: str, group: tuple[str, ...], select: Select) -> Chosen | None:
        rivals = [other for other in self.order if self._group.get(other) == group]
        n_more = select.keep - len(self._taken[group])
        loser = next(iter(rivals[rivals.index(uid) + 1 + n_more :]), None)
        scores = None if loser is None else self._scores[loser]
        return chosen_of(select, self._scores[uid], scores, len(rivals), self._refused.get(group))


def _peek(uid: str, slices: Sequence[Slice]) -> Peeked:
    """Return what most slices of a series say, whatever their order."""
    found = Counter((s.identity._replace(instance=""), tuple(sorted(s.facts.items()))) for s in slices)
    identity, facts = min(found, key=lambda said: (-found[said], said))
    return of_slices(identity, uid, dict(facts), len(slices))

"""Which of the series of a study or patient a run does: the table `[select]` of the settings, over a whole source.

Each study or patient is decided on its own, when all of its series are known, so the order of the listing has no part
in it. What is decided comes in rounds: first the series that were chosen, with all that are no choice; where one of
them is refused, the next best of its study; at the end, as set aside, what was chosen in no round.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from dskprep.dataset import identity, index, seen
from dskprep.dataset.record import FURTHER, Record
from dskprep.pipeline.account import Account
from dskprep.pipeline.survey import DUE, KNOWN, LOST, PLAIN, WAITING, Asked, Rival, Survey, family_name
from dskprep.selecting import KEPT, Select, chosen_of
from dskprep.settings import PrepConfig
from dskprep.source.case import Case


class Taken(NamedTuple):
    """What became of series before. The keys are those of cases."""

    written: dict[str, list[str]]
    """The keys of what is written, by the name of its study or patient (`survey.family_name`)."""
    refused: set[tuple[str, str]]
    """Key and input digest of what was refused, but for the reasons `selecting.KEPT`."""
    known: set[str]
    """The keys of all records."""


def taken(target: str | None, per: str) -> Taken:
    """Return what a dataset holds, nothing if there is none; `per` is `study` or `patient`."""
    found = Taken({}, set(), set())
    columns = ("key", "input_digest", "status", "reason", "study", "patient", "patient_without_issuer")
    for row in index.rows_of(index.current_table(target, columns)) if target else ():
        key = row["key"].partition(FURTHER)[0]
        found.known.add(key)
        if row["status"] == "written":
            patient = (per == "study" and row["patient_without_issuer"]) or row["patient"]
            found.written.setdefault(family_name(per, row["study"], patient) or "", []).append(key)
        elif row["status"] == "refused" and row["reason"] not in KEPT and key == row["key"]:
            found.refused.add((key, row["input_digest"]))
    return found


class Choice:
    """The choice among the series of a survey, for the dataset at `target` that holds what `held` says.

    All series have a part in it, also those that are not asked for. `note` is called with what the user should know.
    """

    def __init__(
        self, select: Select, survey: Survey, held: Taken, note: Callable[[str], None], target: str | None
    ) -> None:
        self._select, self._survey, self._taken, self._note, self._target = select, survey, held, note, target
        self._written = set(itertools.chain.from_iterable(held.written.values()))
        self._refused: list[tuple[str, str]] = []
        self._late: list[str] = []

    def rounds(self, account: Account, has_met_others: Callable[[], bool]) -> Iterator[Iterator[Case]]:
        """Yield the cases of one round after another; between them, `hear` what became of those before.

        The cases of later rounds are inputs of the account from the first one on. `has_met_others` says whether other
        runs have written to the dataset meanwhile.
        """
        self._decide()
        account.inputs += self._survey.count(WAITING)
        yield self._survey.due()
        while lost := self._lost(has_met_others()):
            if following := [case for key in lost if (case := self.instead_of(key))]:
                yield iter(following)
        yield self._rest()

    def everything(self) -> list[Case]:
        """Return all cases at once, as if none would be refused."""
        self._decide()
        return [*self._survey.due(), *self._rest()]

    def hear(self, record: Record) -> None:
        """Note what became of a case."""
        if is_lost(record.status, record.reason):
            self._refused.append((record.key, record.input_digest))

    def instead_of(self, key: str) -> Case | None:
        """Return the next best series of a study or patient whose chosen one was refused, if there is one to do."""
        name = self._survey.family_of(key)
        if name is None:
            return None
        family = self._survey.family(name)
        self._survey.set(next(rival.n for rival in family if rival.key == key), LOST)
        following, *others = [*(rival for rival in family if rival.state == WAITING), None]
        if following is None:
            return None
        self._take(following, others[0], len(family), f"{key}, which was refused")
        return self._survey.case(following.n) if following.is_wanted else None

    def _lost(self, has_met_others: bool) -> list[str]:
        """Return the keys of chosen series that were refused since this was asked before, here or by another run."""
        lost, self._refused = self._refused, []
        if has_met_others and self._target:
            lost += sorted(taken(self._target, self._select.per).refused)
        return [key for key, digest in lost if self._survey.family_of(key, digest)]

    def _decide(self) -> None:
        """Take the best of each study or patient: what is written keeps its place, what was refused has none."""
        n_series = n_families = n_tied = 0
        for name, family in self._survey.families():
            n_series, n_families = n_series + len(family), n_families + 1
            holders = {*self._taken.written.get(name, []), *(r.key for r in family if r.key in self._written)}
            live, refused = list[Rival](), list[Rival]()
            for rival in family:
                if rival.key in holders:
                    self._survey.set(rival.n, DUE)
                elif (rival.key, rival.digest) in self._taken.refused:
                    self._survey.set(rival.n, KNOWN)
                    refused.append(rival)
                else:
                    live.append(rival)
            n_seats = max(0, self._select.keep - len(holders))
            loser = next(iter(live[n_seats:]), None)
            for rival in live[:n_seats]:
                better = next((r.key for r in refused if r.order < rival.order), None)
                n_tied += self._take(rival, loser, len(family), better and f"{better}, which was refused")
            self._find_late(family, holders)
        per = self._select.per
        self._note(
            f"[select] chooses among {n_series} series, {self._select.keep} per {per} ({n_families} in all); {n_tied} "
            f"are decided by a tie; {self._survey.count(PLAIN)} more are not among them: no CT, too short, archives, "
            f"volume files, or without the identifier of a {per}"
        )
        if n_families == 1 and n_series > self._select.keep:
            self._note(
                f"[select] all {n_series} series name the same {per}, as some programs that remove identities write; "
                f"if they are of several, choose otherwise than per {per}"
            )
        if self._late:
            self._note(
                f"[select] {len(self._late)} series that came later, such as {self._late[0]}, fit the rules better "
                f"than what is written of their {per}; what is written stays, and they are set aside"
            )

    def _take(self, rival: Rival, loser: Rival | None, n_rivals: int, instead_of: str | None) -> bool:
        """Note that a series is chosen, and why. Returns whether that is a tie."""
        chosen = chosen_of(self._select, rival.scores, loser and loser.scores, n_rivals, instead_of)
        self._survey.set(rival.n, DUE, chosen)
        return chosen is not None and "chosen-by-tie" in chosen.warnings

    def _find_late(self, family: list[Rival], holders: set[str]) -> None:
        """Note the series without a record that fit the rules better than one that is written."""
        least = min((rival.scores for rival in family if rival.key in holders), default=None)
        if least is not None:
            better = (rival.key for rival in family if rival.scores > least and rival.key not in holders)
            self._late += [key for key in better if key not in self._taken.known]

    def _rest(self) -> Iterator[Case]:
        """Yield what is set aside, with the reason."""
        for name, family in self._survey.families():
            chosen = [rival for rival in family if rival.state == DUE]
            for rival in family:
                if rival.state != WAITING or not rival.is_wanted:
                    continue
                if not chosen:  # it is not in the source any more
                    why = f"{self._taken.written[name][0]}, which is written"
                elif rival.order < chosen[-1].order:
                    why = f"{chosen[-1].key}, which was written before this one came"
                else:
                    why = f"{chosen[-1].key}, by {self._select.why_first(chosen[-1].scores, rival.scores)}"
                message = f"another of the {len(family)} series of this {self._select.per} was chosen: {why}"
                yield self._survey.case(rival.n).set_aside("not-chosen", message)


def choose(
    cases: Iterable[Case],
    asked: Asked,
    settings: PrepConfig,
    note: Callable[[str], None],
    target: str | None = None,
    *,
    is_again: bool = False,
) -> Choice:
    """Survey the cases of a source for the choice that the settings ask for, for a dataset if there is one.

    With `is_again`, what was refused before is tried again. Raises as `Survey.take` does.
    """
    select = settings.select or Select()
    identities = identity.of(target) if target else identity.Identities(secrets.token_bytes())
    survey = Survey(select, settings.min_slices, identities, note)
    if survey.take(cases, asked, seen.read(target) if target else ()) and target:
        seen.write(target, survey.seen())
    held = taken(target, select.per)
    for older, name in survey.older_names():
        if written := held.written.pop(older, None):
            held.written[name] = [*held.written.get(name, []), *written]
    if is_again:
        held.refused.clear()
    return Choice(select, survey, held, note, target)


def is_lost(status: str, reason: str | None) -> bool:
    """Tell whether a series is refused for good, so that the next best one is taken for it."""
    return status == "refused" and reason not in KEPT

"""A run under way: its patients in rounds, each prepared, recorded and counted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

from dskprep.dataset import claims, identity, index, store, target_place
from dskprep.errors import InfrastructureError
from dskprep.pipeline import cluster_check, executor, hashed_keys, sharing, watch
from dskprep.pipeline.account import Account, Summary
from dskprep.pipeline.checked import Checked
from dskprep.pipeline.choice import Choice, choose
from dskprep.pipeline.crew import Crew, begun
from dskprep.pipeline.listing import Listing
from dskprep.pipeline.observer import LoggedNotes, Observer, tell
from dskprep.pipeline.other_places import OtherPlaces
from dskprep.source.case import Case, apart
from dskprep.worker import patient
from dskprep.worker.patient import Job, Outcome


class UnderWay:
    """A run that was checked, from the beginning of its dataset to its last patient.

    `summary` is its account so far, and `rows` its part of the index. `shared` is what it and other runs leave to each
    other. `give_labels` is called when the patients are done, if labels were asked for.
    """

    def __init__(self, checked: Checked, crew: Crew, time_limit_s: float, observers: Sequence[Observer]) -> None:
        target = checked.target
        self.crew = crew
        self.observers: list[Observer] = [*(observers or [LoggedNotes()])]
        self._checked, self._time_limit_s = checked, time_limit_s
        is_hashed = store.are_hashed(store.create(target, checked.settings, keys=checked.keys))
        identities = identity.begin(target)
        cluster_check.check_target(crew.client, target, identities.fingerprint)
        self._cases = checked.cases
        if is_hashed:
            self._cases = hashed_keys.hash_keys(self._cases, identities, checked.mapping)
        elif target_place.mixes_capitals(target):
            self._cases = apart(self._cases, target)
        self.summary = Summary(
            claims.new_run_id(),
            checked.source,
            target,
            Account(),
            0.0,
            is_hashed=is_hashed,
            fingerprint=identities.fingerprint,
        )
        self.shared = sharing.Sharing(target, self.summary.run_id, self.summary.account, self._note)
        self._found = index.record_names(target)
        self._notes = [hashed_keys.NO_MAPPING] if is_hashed and not checked.mapping else []
        self._notes += self._found.notes()
        self.rows = index.Writer(target)
        self._choice: Choice | None = None
        self.give_labels = self._labels() if checked.labels else None

    def prepare_all(self) -> None:
        """Prepare every patient that has no record which holds. Raises InfrastructureError if that is lost."""
        tell(self.observers, "on_start", self.summary)
        watch.begin(self.crew, self.summary, self.observers)
        for message in self._notes:
            self._note(message)
        rounds, places = self._rounds(), OtherPlaces(self.summary, self._found.known)
        with hashed_keys.kept(self._checked.mapping):
            for number, cases in enumerate(rounds):
                with Listing(
                    cases,
                    self.summary,
                    self._checked.again,
                    self._found,
                    is_counted=number > 0,
                    hear_before=places.hear,
                ) as listed:
                    if jobs := begun(iter(listed)):
                        self._prepare(jobs)
        if message := places.note():
            self._note(message)

    def write_account(self) -> None:
        """Write the account as it is now."""
        store.write_run(self.summary.target, self.summary.run_id, self.summary.as_dict())
        self.shared.has_account = True

    def _rounds(self) -> Iterator[Iterator[Case]]:
        """Return the cases; with `[select]`, first those that were chosen, and then those that take their places."""
        if not (asked := self._checked.asked):
            return iter([self._cases])
        self.shared.begin()
        is_again = "refused" in self._checked.again
        settings, target = self._checked.settings, self.summary.target
        self._choice = choose(self._cases, asked, settings, self._note, target, is_again=is_again)
        return self._choice.rounds(self.summary.account, lambda: self.shared.has_met_others)

    def _prepare(self, jobs: Iterator[Job]) -> None:
        """Prepare the patients of one round, and count them."""
        self.shared.begin()
        if self.crew.start():
            watch.begin(self.crew, self.summary, self.observers)
            self.summary.account.pace.begin(self.crew.start_s)
        limits = self.crew.limits(self._time_limit_s)
        target, settings = self.summary.target, self._checked.settings
        work = functools.partial(patient.prepare_patient, target=target, config=settings, **limits)
        with (
            closing(watch.Deaths(self.crew.client)) as deaths,
            closing(self.shared.execute(self.crew.client, jobs, work)) as done,
        ):
            for outcome in self._recorded(done):
                for message in deaths.new():
                    self._note(message)
                self._count(outcome)

    def _recorded(self, done: Iterable[executor.Done[Job, Outcome]]) -> Iterator[Outcome]:
        """Yield the outcome of each job, after writing the records that its worker could not write.

        Raises InfrastructureError if the infrastructure fails one patient after another.
        """
        target = self.summary.target
        failures = executor.Failures("patients", "run again with --retry failed")
        for job, outcome in done:
            if outcome is None:
                outcome = patient.record_killed(job, target, self._checked.settings)
            if not outcome.is_recorded:
                identity.check_there(target)
                for record in outcome.records:
                    store.commit(target, record)
            yield outcome
            last = outcome.records[-1]
            failures.count(last.message or "" if last.reason == InfrastructureError.__name__ else "")

    def _count(self, outcome: Outcome) -> None:
        account = self.summary.account
        *further, own = outcome.records
        self.shared.finish(own.name)
        if self._choice:
            self._choice.hear(own)
        self.rows.add(outcome.records)  # also those that are said to be of another run: they must be there at the end
        if outcome.is_of_other:
            account.add_elsewhere(own.status, [record.status for record in further])
            return
        account.add(outcome.records)
        account.labels_deleted += outcome.labels_deleted
        tell(self.observers, "on_patient", self.summary, outcome.records)

    def _labels(self) -> Callable[[], None]:
        from dskprep.pipeline import annotate  # loads zarr and parts of scipy, which a run without labels does not need

        return functools.partial(
            annotate.for_run, self.summary, self._checked.labels, self.crew, self._time_limit_s, self.observers
        )

    def _note(self, message: str) -> None:
        tell(self.observers, "on_note", message)

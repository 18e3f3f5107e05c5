"""A run: the cases of a source, prepared on workers, become a dataset. Wiring only.

What a run does, in this order:

1. Check: source and target lie apart, the target is empty or a dataset of these settings, there are patients (`check`,
   which needs no workers); workers that are given can do the work.
2. Choose: the cases that are asked for; of these, the jobs are those without a record that still holds, and those
   with a record that cannot be read. `listing` lists them ahead of the work. With `[select]`, `choice` says which
   series of each study come first, and which follow when one of them is refused.
3. Work: workers that are not there yet start when there is a first job. `executor` yields each job with its outcome. A
   worker writes a patient's volumes and its records itself; what it could not record is recorded here (`_recorded`).
   Then the account, the index and the observers hear of it.
4. End: the index and the account are written, also of a run that was interrupted or stopped. Only then, and if it was
   not, follows what `at_end` names: by default the report. The observers hear of the end last.

Retries, patients that kill their workers, and lost clusters are the executor's; one patient is `worker.patient`'s.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

from distributed import Client

from dskprep import settings as config
from dskprep.dataset import claims, identity, index, licences, store, target_place
from dskprep.dataset.past_runs import next_number
from dskprep.errors import InfrastructureError, UsageError
from dskprep.look import report
from dskprep.pipeline import cluster_check, executor, hashed_keys, sharing, watch
from dskprep.pipeline.account import Account, RunStopped, Summary
from dskprep.pipeline.checked import Checked, check
from dskprep.pipeline.choice import Choice, choose
from dskprep.pipeline.crew import Crew, Start, begun
from dskprep.pipeline.ended import ended
from dskprep.pipeline.listing import Listing
from dskprep.pipeline.observer import LoggedNotes, Observer, tell
from dskprep.plain import words_of
from dskprep.settings import PrepConfig
from dskprep.source.case import apart
from dskprep.worker import patient
from dskprep.worker.patient import Job, Outcome

TIME_LIMIT_S = 1800.0
"""Default limit for one stage of one patient, in seconds."""

AtEnd = Callable[[str, str], None]
"""Called with the target and the id of a run that is done."""


def run(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    preset: str = "default",
    settings: PrepConfig | None = None,
    client: Client | None = None,
    limit: int | None = None,
    only: str | None = None,
    retry: str | None = None,
    patient_folders: bool = False,
    licence: str | None = None,
    labels: Sequence[str] = (),
    keys: str | None = None,
    mapping: str | os.PathLike[str] | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    observers: Sequence[Observer] = (),
    at_end: Sequence[AtEnd] = (report.write_for_run,),
) -> Summary:
    """Prepare every series of `source` that `target` does not hold yet.

    Parameters
    ----------
    source, target
        Paths, or URLs such as s3://bucket/scans. The source is a tree of folders with DICOM files, archives, or a
        manifest, or ``"idc:lidc_idri"`` for the Imaging Data Commons (docs/idc.md); the target is where the dataset is,
        or will be.
    preset, settings
        The name of a preset, or settings in its place.
    client
        A dask.distributed Client. Without one, the work is done in this process.
    limit
        Take the first `limit` cases only.
    only
        Take the cases whose key matches this pattern.
    retry
        Do cases again that were `refused`, or `failed` (which includes killed), or `all` of these.
    patient_folders
        Take each folder directly in the source as one patient, with all below it, instead of each leaf folder.
    licence
        `"commercial"`: refuse series of the Imaging Data Commons whose licence does not allow commercial use.
    labels
        Patterns of names or paths of label files in the source, such as `*RTSTRUCT*`. When the patients are done,
        `annotate` gives the volumes these labels.
    keys
        What the volumes are called: `"folder"`, by their folders, the default; or `"hashed"`, by keyed digests of
        these names, and then no record, log or page has the name of a folder or file (docs/security.md). It is settled
        by the run that begins the dataset.
    mapping
        Asks for hashed keys, and says where to write which of them is whose: a CSV file with the columns `key` and
        `source`, outside of the target.
    time_limit_s
        A patient whose reading, computing or writing takes longer is given up as `failed`, and its worker is
        restarted. Without a client there is no limit, as this process cannot be restarted.
    observers
        Hear of the start, of each patient and of the end, and of what the cluster lacks (`on_note`). Without
        observers these notes are logged as warnings of the logger `dskprep`. An observer that raises an exception is
        logged and hears no more; KeyboardInterrupt ends the run.
    at_end
        Functions that are called with the target and the id of the run when it has done all its patients, some of
        them new. By default, they write the report, `runs/<id>/qc.html`.

    Returns
    -------
    Summary
        The account of the run; `is_interrupted` if KeyboardInterrupt ended it. A second Ctrl-C meanwhile is raised, and
        there is no account.

    Raises
    ------
    UsageError
        Nothing was started: an argument, the source or the settings are wrong, or the target holds something else
        than a dataset.
    InfrastructureError
        Nothing was started: workers lack dskprep or do not reach the data, or a store does not answer.
    RunStopped
        The scheduler or the store was lost (an InfrastructureError with the summary so far). What is written stays;
        run again to go on.
    """
    checked = check(
        source,
        target,
        settings=config.preset(preset) if settings is None else settings,
        limit=limit,
        only=only,
        retry=retry,
        patient_folders=patient_folders,
        licence=licence,
        labels=labels,
        keys=keys,
        mapping=mapping,
    )
    return execute(checked, client=client, time_limit_s=time_limit_s, observers=observers, at_end=at_end)


def execute(
    checked: Checked,
    *,
    client: Client | None = None,
    starts: Start | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    observers: Sequence[Observer] = (),
    at_end: Sequence[AtEnd] = (report.write_for_run,),
) -> Summary:
    """Do a run that was checked, once. Arguments, result and errors are those of `run`.

    In place of a client, `starts` may start the workers: it is called once there is a patient to be prepared.
    """
    if not isinstance(observers, (list, tuple)):
        raise UsageError(f"observers must be a list of Observers, not {observers!r:.100}")
    source, target, settings, labels = checked.source, checked.target, checked.settings, checked.labels
    look = functools.partial(cluster_check.check, source=checked.place, target=target, settings=settings)
    crew, notes = Crew(client, starts, look), list[str]()
    described = store.create(target, settings, keys=checked.keys)
    identities = identity.begin(target)
    cluster_check.check_target(client, target, identities.fingerprint)
    cases, mapped = checked.cases, checked.mapping
    if is_hashed := store.are_hashed(described):
        cases = hashed_keys.hash_keys(cases, identities, mapped)
        notes += [] if mapped else [hashed_keys.NO_MAPPING]
    elif target_place.mixes_capitals(target):
        cases = apart(cases, target)
    run_id = claims.new_run_id()
    fingerprint = identities.fingerprint
    summary = Summary(run_id, source, target, Account(), 0.0, is_hashed=is_hashed, fingerprint=fingerprint)
    everybody = [*(observers or [LoggedNotes()])]
    note = functools.partial(tell, everybody, "on_note")
    shared = sharing.Sharing(target, run_id, summary.account, note)
    found = index.record_names(target)
    notes += found.notes()
    rows = index.Writer(target)
    choice: Choice | None = None
    give_labels = None
    if labels:
        from dskprep.pipeline import annotate  # loads zarr and parts of scipy, which a run without labels does not need

        give_labels = functools.partial(annotate.for_run, summary, labels, crew, time_limit_s, everybody)

    def count(outcome: Outcome) -> None:
        *further, own = outcome.records
        shared.finish(own.name)
        if choice:
            choice.hear(own)
        rows.add(outcome.records)  # also those that a worker says are of another run: at the end they must be there
        if outcome.is_of_other:
            summary.account.add_elsewhere(own.status, [record.status for record in further])
            return
        summary.account.add(outcome.records)
        summary.account.labels_deleted += outcome.labels_deleted
        tell(everybody, "on_patient", summary, outcome.records)

    try:
        with closing(shared):  # others know of this run until its account is there
            with ended(summary, crew):
                tell(everybody, "on_start", summary)
                watch.begin(crew, summary, everybody)
                for message in notes:
                    note(message)
                if checked.asked:
                    shared.begin()
                    choice = choose(cases, checked.asked, settings, note, target, is_again="refused" in checked.again)
                rounds = choice.rounds(summary.account, lambda: shared.has_met_others) if choice else iter([cases])
                with hashed_keys.kept(mapped):
                    for number, of_round in enumerate(rounds):
                        with Listing(of_round, summary, checked.again, found, is_counted=number > 0) as listed:
                            if (jobs := begun(iter(listed))) is None:
                                continue
                            shared.begin()
                            if crew.start():
                                watch.begin(crew, summary, everybody)
                                summary.account.pace.begin(crew.start_s)
                            limits = crew.limits(time_limit_s)
                            work = functools.partial(patient.prepare_patient, target=target, config=settings, **limits)
                            with (
                                closing(watch.Deaths(crew.client)) as deaths,
                                closing(shared.execute(crew.client, jobs, work)) as done,
                            ):
                                for outcome in _recorded(done, target, settings):
                                    for message in deaths.new():
                                        note(message)
                                    count(outcome)
            _write_end(summary, rows, give_labels, at_end, shared)
    except KeyboardInterrupt:
        if summary.is_interrupted:  # a second one: who presses twice does not wait for those who hear of the end
            everybody.clear()
        raise
    finally:
        tell(everybody, "on_end", summary)
    if summary.stopped_by:
        raise RunStopped(summary)
    return summary


def _recorded(done: Iterable[executor.Done[Job, Outcome]], target: str, settings: PrepConfig) -> Iterator[Outcome]:
    """Yield the outcome of each job, after writing the records that its worker could not write.

    Raises InfrastructureError if the infrastructure fails one patient after another.
    """
    failures = executor.Failures("patients", "run again with --retry failed")
    for job, outcome in done:
        if outcome is None:
            outcome = patient.record_killed(job, target, settings)
        if not outcome.is_recorded:
            identity.check_there(target)
            for record in outcome.records:
                store.commit(target, record)
        yield outcome
        last = outcome.records[-1]
        failures.count(last.message or "" if last.reason == InfrastructureError.__name__ else "")


def _write_end(
    summary: Summary,
    rows: index.Writer,
    give_labels: Callable[[], None] | None,
    at_end: Sequence[AtEnd],
    shared: sharing.Sharing,
) -> None:
    """Write the index, the labels and the account, and call `at_end` for a run that is done and has new patients."""
    try:
        identity.check_there(summary.target)
        summary.number = next_number(summary.target)
        rows.close()
        if shared.meets_others():  # one that ends now may have written its index over this one
            index.settle(summary.target)
        table = index.read_table(summary.target, (*index.OF_ACCOUNT, *licences.FIELDS))
        summary.account.split_series = index.split_series(table)
        summary.account.damaged_records = index.damaged(table)
        store.write_run(summary.target, summary.run_id, summary.as_dict())
        if give_labels and not summary.is_interrupted and not summary.stopped_by:
            give_labels()
            store.write_run(summary.target, summary.run_id, summary.as_dict())
        licences.attribute(summary.target, table)
        if summary.n_new and not summary.is_interrupted and not summary.stopped_by:
            for finish in at_end:
                finish(summary.target, summary.run_id)
    except InfrastructureError as error:
        summary.stopped_by = summary.stopped_by or words_of(error)
        if isinstance(error, index.RecordsGone):
            store.write_run(summary.target, summary.run_id, summary.as_dict())

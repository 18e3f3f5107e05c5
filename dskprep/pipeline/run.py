"""A run: the cases of a source, prepared on workers, become a dataset. Wiring only.

What a run does, in this order:

1. Check: source and target lie apart, the target is empty or a dataset of these settings, there are patients (`check`,
   which needs no workers); workers that are given can do the work.
2. Choose: the cases that are asked for; of these, the jobs are those without a record that still holds, and those
   with a record that cannot be read. `listing` lists them ahead of the work. With `[select]`, `choice` says which
   series of each study come first, and which follow when one of them is refused.
3. Work: workers that are not there yet start when there is a first job. `executor` yields each job with its outcome. A
   worker writes a patient's volumes and its records itself; what it could not record is recorded by the run. Then the
   account, the index and the observers hear of it. All of this is `under_way`'s.
4. End: the index and the account are written, also of a run that was interrupted or stopped. Only then, and if it was
   not, follows what `at_end` names: by default the report. The observers hear of the end last.

Retries, patients that kill their workers, and lost clusters are the executor's; one patient is `worker.patient`'s.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import closing

from distributed import Client

from dskprep import settings as config
from dskprep.dataset import identity, index, licences
from dskprep.dataset.past_runs import next_number
from dskprep.errors import InfrastructureError, UsageError
from dskprep.look import report
from dskprep.pipeline import cluster_check
from dskprep.pipeline.account import RunStopped, Summary
from dskprep.pipeline.checked import Checked, check
from dskprep.pipeline.crew import Crew, Start
from dskprep.pipeline.ended import ended
from dskprep.pipeline.observer import Observer, tell
from dskprep.pipeline.under_way import UnderWay
from dskprep.plain import words_of
from dskprep.settings import PrepConfig

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
    look = functools.partial(
        cluster_check.check, source=checked.place, target=checked.target, settings=checked.settings
    )
    under_way = UnderWay(checked, Crew(client, starts, look), time_limit_s, observers)
    summary = under_way.summary
    try:
        with closing(under_way.shared):  # others know of this run until its account is there
            with ended(summary, under_way.crew):
                under_way.prepare_all()
            _write_end(under_way, at_end)
    except KeyboardInterrupt:
        if summary.is_interrupted:  # a second one: who presses twice does not wait for those who hear of the end
            under_way.observers.clear()
        raise
    finally:
        tell(under_way.observers, "on_end", summary)
    if summary.stopped_by:
        raise RunStopped(summary)
    return summary


def _write_end(under_way: UnderWay, at_end: Sequence[AtEnd]) -> None:
    """Write the index, the labels and the account, and call `at_end` for a run that is done and has new patients."""
    summary, target = under_way.summary, under_way.summary.target
    try:
        identity.check_there(target)
        summary.number = next_number(target)
        under_way.rows.close()
        if under_way.shared.meets_others():  # one that ends now may have written its index over this one
            index.settle(target)
        table = index.read_table(target, (*index.OF_ACCOUNT, *licences.FIELDS))
        summary.account.split_series = index.split_series(table)
        summary.account.damaged_records = index.damaged(table)
        under_way.write_account()
        if under_way.give_labels and not summary.is_interrupted and not summary.stopped_by:
            under_way.give_labels()
            under_way.write_account()
        licences.attribute(target, table)
        if summary.n_new and not summary.is_interrupted and not summary.stopped_by:
            for finish in at_end:
                finish(target, summary.run_id)
    except InfrastructureError as error:
        summary.stopped_by = summary.stopped_by or words_of(error)
        if isinstance(error, index.RecordsGone):
            under_way.write_account()

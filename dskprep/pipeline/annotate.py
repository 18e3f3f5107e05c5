"""Labels for the volumes of a dataset: the same bag, workers, slots and records as for patients.

What `annotate` does, in this order: it brings index.parquet up to date, by which workers link labels to volumes;
chooses the label files without a record that still holds; lets the workers do them; and writes annotations.parquet.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from distributed import Client

from dskprep import endings, storage
from dskprep.dataset import annotations as table
from dskprep.dataset import claims, identity, index, label_store, store
from dskprep.dataset.label_record import LabelRecord
from dskprep.errors import DskprepError, InfrastructureError, UsageError
from dskprep.patterns import as_patterns
from dskprep.pipeline import cluster_check, executor, hashed_keys, label_order
from dskprep.pipeline.account import Summary
from dskprep.pipeline.crew import Crew, Start, begun
from dskprep.pipeline.label_account import LabelSummary
from dskprep.pipeline.label_jobs import RETRIES, Known, label_jobs
from dskprep.pipeline.observer import LoggedNotes, Observer, tell
from dskprep.source.label_files import Asked, LabelFile, label_files
from dskprep.worker import annotate as work
from dskprep.worker.annotate import LabelOutcome
from dskprep.worker.label_job import LabelJob

TIME_LIMIT_S = 1800.0
"""Default limit for one stage of one label source, in seconds."""


def annotate(
    target: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    *,
    only: Sequence[str] = (),
    name_as: str = "{name}",
    names: dict[int, str] | None = None,
    consensus: float = 0.5,
    patterns: Sequence[str] = (),
    retry: str | None = None,
    client: Client | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    observers: Sequence[Observer] = (),
) -> LabelSummary:
    """Give volumes of a dataset the labels and points that a folder or bucket holds.

    Parameters
    ----------
    target
        The dataset, as a path or URL.
    labels
        A folder or bucket with DICOM SEG and RTSTRUCT, LIDC-IDRI XML, mask volumes (`<key>.nii.gz` or
        `<key>/<name>.nii.gz`, also NRRD and MetaImage), and tables of points (CSV, Parquet); or one such file.
    only
        Patterns of the names of labels, as `GTV*`; without any, all are taken. A reader's own outline of a nodule is
        taken only by a pattern that says `reader`: not by `nodule-*`, by `nodule-*-reader-*`.
    name_as
        The name under which a label is stored, with `{name}`, `{file}` and `{number}`.
    names
        Names of the values of mask volumes.
    consensus
        The share of the readers of LIDC-IDRI who must agree on a voxel.
    patterns
        Take only the files whose path or name matches one of these.
    retry
        Do sources again that were `refused`, `failed` (or killed), `set-aside`, or `all` of them; or those that were
        `unlinked`, as a whole or in some of their points, for volumes that have come since.
    client, time_limit_s, observers
        As in `run`; observers hear of notes, and of each source by `on_label`.

    Returns
    -------
    LabelSummary
        What became of the sources.

    Raises
    ------
    UsageError
        Nothing was started: there is no dataset, or nothing at `labels`, or an argument is wrong.
    InfrastructureError
        A store or the scheduler cannot be used.

    Examples
    --------
    >>> dskprep.annotate("scans-1mm", "/data/rtstruct", only=["GTV*"]).counts  # doctest: +SKIP
    Counter({'written': 421, 'refused': 3})
    """
    checked = check(
        target,
        labels,
        only=only,
        name_as=name_as,
        names=names,
        consensus=consensus,
        patterns=patterns,
        retry=retry,
    )
    return execute(checked, client=client, time_limit_s=time_limit_s, observers=observers)


def execute(
    checked: Checked,
    *,
    client: Client | None = None,
    starts: Start | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    observers: Sequence[Observer] = (),
) -> LabelSummary:
    """Do what was checked. Arguments, result and errors are those of `annotate`.

    In place of a client, `starts` may start the workers: it is called once there is a source to be done.
    """
    started, everybody = time.monotonic(), [*(observers or [LoggedNotes()])]
    target, labels, asked, patterns, retry = checked
    settings = store.settings_of(target)
    noted = functools.partial(tell, everybody, "on_note")
    crew = Crew(client, starts, functools.partial(cluster_check.check, source=labels, target=target))
    for note in crew.notes:
        noted(note)
    identities = identity.begin(target)
    cluster_check.check_target(client, target, identities.fingerprint)

    index.write(target)
    known = Known(table.by_source(table.write(target)))

    def files(report: Callable[[str], None]) -> Iterable[LabelFile]:
        is_hashed = store.has_hashed_keys(target)
        found = label_files(labels, patterns, report, names_archives=not is_hashed)
        return known.apart(hashed_keys.hash_sources(found, identities) if is_hashed else found)

    run_id = claims.new_run_id()
    summary = LabelSummary(run_id, target)

    def do(jobs: Iterator[LabelJob]) -> Iterator[LabelRecord]:
        if (some := begun(jobs)) is None:
            return
        if crew.start():
            for note in crew.notes:
                noted(note)
        task = functools.partial(work.annotate_source, target=target, config=settings, **crew.limits(time_limit_s))
        with closing(executor.execute(crew.client, some, task)) as done:
            for record in label_order.without_copies(_recorded(done, target), target):
                summary.add(record)
                tell(everybody, "on_label", summary, record)
                yield record

    try:
        with endings.taken(functools.partial(setattr, summary, "is_interrupted", True)):
            jobs = label_jobs(files(noted), asked, summary, known, retry)
            losers = [record for record in do(jobs) if any(label.taken_by for label in record.labels)]
            if groups := label_order.contests(target, run_id, losers):
                for record in itertools.chain(*groups):
                    summary.take_back(record)
                for _ in label_order.do_again(target, run_id, groups, files(lambda _: None), asked, known, do):
                    pass
    except InfrastructureError:
        with contextlib.suppress(DskprepError):  # of what is written by now
            table.write(target)
        raise
    summary.damaged_records = table.damaged(table.write(target))
    summary.seconds = time.monotonic() - started
    return summary


class Checked(NamedTuple):
    """What is to be done, once all that can be wrong with it and shows without workers is excluded."""

    target: str
    labels: str
    asked: Asked
    patterns: tuple[str, ...]
    retry: str | None


def check(
    target: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    *,
    only: Sequence[str] = (),
    name_as: str = "{name}",
    names: dict[int, str] | None = None,
    consensus: float = 0.5,
    patterns: Sequence[str] = (),
    retry: str | None = None,
) -> Checked:
    """Look at all that can be wrong before there are workers. Arguments and errors are those of `annotate`."""
    asked = Asked(as_patterns(only, "only"), name_as, names or {}, consensus)
    patterns = as_patterns(patterns, "patterns")
    target, labels = storage.absolute(target), storage.absolute(labels)
    if retry not in RETRIES:
        raise UsageError(f"retry must be unlinked, refused, failed, set-aside or all, not {retry!r}")
    if storage.is_within(labels, target):
        where = "is the dataset itself" if labels == target else f"lies inside of the dataset {target}"
        raise UsageError(f"{labels}: {where}; name the folder with the labels, and keep it outside")
    if store.has_hashed_keys(target) and asked.is_by_file:
        raise UsageError(
            f"{target}: has hashed keys, so that it holds no name of a file, and {name_as!r} would write that of each "
            "label's; leave {file} out"
        )
    if not storage.exists(labels):
        raise UsageError(f"{labels}: there is no such folder or file; check the path")
    return Checked(target, labels, asked, patterns, retry)


def for_run(
    run: Summary, patterns: Sequence[str], crew: Crew, time_limit_s: float, observers: Sequence[Observer]
) -> None:
    """Give the volumes of a run the labels that its source holds; those without a volume are tried again."""
    checked = check(run.target, run.source, patterns=patterns, retry="unlinked" if run.n_new else None)
    workers: dict[str, Any] = {"client": crew.client, "starts": crew.starts}
    run.labels = execute(checked, **workers, time_limit_s=time_limit_s, observers=observers)
    run.is_interrupted = run.labels.is_interrupted


def forget_labels(target: str | os.PathLike[str], *patterns: str, is_trial: bool = False) -> list[str]:
    """Delete the labels and points whose stored name, or source, matches one of the patterns; images stay as they are.

    Each pattern takes all that it matches: `nodule-*` also what each reader drew.

    Returns the names of the objects that are deleted, or in a trial would be. A source that loses some of its labels
    keeps the others; one that loses all is no longer done, so that `annotate` makes it again.

    Raises UsageError if there is no dataset, or nothing matches.

    Examples
    --------
    >>> dskprep.forget_labels("scans-1mm", "nodule-*")  # doctest: +SKIP
    """
    target, patterns = storage.absolute(target), as_patterns(patterns, "patterns")
    store.describe(target)
    deleted = label_store.forget_matching(target, patterns, is_trial=is_trial)
    if not deleted:
        raise UsageError(f"{target}: no label is named {' or '.join(patterns)}; `dskprep status` lists them")
    if not is_trial:
        table.write(target)
    return deleted


def _recorded(done: Iterable[executor.Done[LabelJob, LabelOutcome]], target: str) -> Iterator[LabelRecord]:
    """Yield the record of each source, after writing those that their worker could not write.

    Raises InfrastructureError if the infrastructure fails one source after another.
    """
    failures = executor.Failures("label sources", "annotate again with --retry failed")
    for job, outcome in done:
        if outcome is None:
            outcome = work.record_killed(job, target)
        if not outcome.is_recorded:
            label_store.commit(target, outcome.record)
        yield outcome.record
        is_lost = outcome.record.reason == InfrastructureError.__name__
        failures.count(outcome.record.message or "" if is_lost else "")

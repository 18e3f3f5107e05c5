"""The run: the cases of a source through the workers into a dataset. The only user of dask.bag."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import functools
import itertools
import logging
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import dask.bag as db
from dask.delayed import Delayed
from distributed import Client, Future, KilledWorker, as_completed
from distributed.comm.core import CommClosedError
from distributed.system import MEMORY_LIMIT

from dskprep import settings as config
from dskprep import storage
from dskprep.dataset import index, store
from dskprep.dataset.record import FURTHER, STATUSES, Record, RecordName
from dskprep.errors import InfrastructureError, UsageError
from dskprep.look import report
from dskprep.pipeline import cluster, watch
from dskprep.pipeline.account import Account, RunStopped, Summary
from dskprep.preparation import user_steps
from dskprep.settings import PrepConfig
from dskprep.source import cases as discover
from dskprep.worker import patient
from dskprep.worker.patient import Job, Outcome

log = logging.getLogger("dskprep")

RETRIES = {
    None: (),
    "refused": ("refused",),
    "failed": ("failed", "killed"),
    "all": ("refused", "failed", "killed"),
}
"""Which statuses are done again, by the value of --retry."""

FIRST_BAG, LARGEST_BAG = 32, 512
"""Patients in the first bag of a run, and in its later ones: so far ahead is the source listed."""

MAX_FAILURES_IN_A_ROW = 20
"""Patients that the infrastructure fails one after another before a run gives up."""

TIME_LIMIT_S = 1800.0
"""For one stage of one patient, by default."""

RESTART_S = 30.0
"""How long the restart of a worker is waited for."""

RECOUNT_S = 5.0
"""How often the workers are counted, so that late ones are used."""


Work = Callable[[Job], Outcome]
"""What is done with a job in a worker; it never raises."""

Progress = Callable[[Account, Sequence[Record]], None]
"""Called with the account so far and the records of the case just done."""


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
    time_limit_s: float = TIME_LIMIT_S,
    progress: Progress | None = None,
) -> Summary:
    """Prepare every series of `source` that `target` does not hold yet.

    Parameters
    ----------
    source, target
        fsspec URLs or paths: a tree of folders with DICOM files, archives, or a manifest; and where
        the dataset is, or will be.
    preset, settings
        The name of a preset, or settings in its place.
    client
        A dask.distributed Client; without one, the work is done in this process. What its cluster lacks, and what
        that costs, is logged as warnings of the logger `dskprep`.
    limit, only
        Take the first `limit` cases; take the cases whose key matches the pattern `only`.
    retry
        Do cases again that were `refused`, or `failed` (which includes killed), or `all` of these.
    patient_folders
        Take each folder directly in the source as one patient, with all below it, instead of each leaf folder.
    time_limit_s
        A patient is given up as `failed` when reading, computing or writing it takes longer; its worker is
        restarted. Not without a client: this process cannot be.

    Raises
    ------
    UsageError
        Wrong use or settings; nothing was started.
    InfrastructureError
        Nothing was started: for instance, the workers have no dskprep, or do not reach the data.
    RunStopped
        The scheduler or the store was lost (an InfrastructureError with the account). What is written stays; run
        again to go on.
    """
    source, target = storage.absolute(source), storage.absolute(target)
    _check_places(source, target)
    if retry not in RETRIES:
        raise UsageError(f"retry must be refused, failed or all, not {retry!r}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be 1 or more, not {limit}")
    settings = config.preset(preset) if settings is None else config.given(settings)
    user_steps.check(settings)
    cases = _chosen(source, limit, only, patient_folders=patient_folders)
    for note in cluster.check(client, source, target) if client else []:
        log.warning(note)
    memory_bytes = min(cluster.memory_limits(client)) if client else MEMORY_LIMIT
    store.create(target, settings)
    summary = Summary(_run_id(), source, target, Account(), 0.0)
    work = functools.partial(
        patient.prepare_patient,
        target=target,
        config=settings,
        memory_bytes=memory_bytes,
        limit_s=time_limit_s if client else None,
    )
    account, watched = summary.account, watch.Watch(client, summary)
    jobs = _jobs(cases, target, account, RETRIES[retry])
    rows = index.Writer(target)
    try:
        with (
            watched.over(),
            _timed(summary),
            contextlib.closing(on_cluster(client, jobs, work) if client else _in_process(jobs, work)) as done,
        ):
            for records in _recorded(done, target, settings):
                account.add(records)
                rows.add(records)
                if progress:
                    progress(account, records)
    except KeyboardInterrupt:
        summary.is_interrupted = True
    except InfrastructureError as error:
        summary.stopped_by = str(error)
    try:
        summary.account.split_series = index.split_series(rows.close())
        store.write_run(target, summary.run_id, summary.as_dict(), watched.report)
        if summary.n_new and not summary.is_interrupted and not summary.stopped_by:
            report.write_for_run(target, summary.run_id)
    except InfrastructureError as error:
        summary.stopped_by = summary.stopped_by or str(error)
    if summary.stopped_by:
        raise RunStopped(summary)
    return summary


@contextlib.contextmanager
def _timed(summary: Summary) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        summary.seconds = time.monotonic() - started


def _recorded(
    done: Iterable[tuple[Job, Outcome | None]], target: str, settings: PrepConfig
) -> Iterator[tuple[Record, ...]]:
    """The records of each job, all of them written now, if need be from here.

    Raises InfrastructureError if patients fail one after another for want of a store.
    """
    n_in_a_row = 0
    for job, outcome in done:
        if outcome is None:
            outcome = patient.record_loss(target, patient.killed_record(job.case, settings), job.stale)
        if not outcome.is_recorded:
            for record in outcome.records:
                store.commit(target, record)
        yield outcome.records
        last = outcome.records[-1]
        n_in_a_row = n_in_a_row + 1 if last.reason == InfrastructureError.__name__ else 0
        if n_in_a_row == MAX_FAILURES_IN_A_ROW:
            raise InfrastructureError(
                f"the last {n_in_a_row} patients failed, the last one with: {last.message}; mend it, and run "
                "again with --retry failed"
            )


def _check_places(source: str, target: str) -> None:
    if storage.is_within(target, source):
        raise UsageError(f"the target {target} lies inside the source {source}; choose a place outside it")
    if storage.is_within(source, target):
        raise UsageError(f"the source {source} lies inside the target {target}; choose another target")


def _chosen(source: str, limit: int | None, only: str | None, *, patient_folders: bool) -> Iterator[discover.Case]:
    """The cases of the source that are asked for; raises UsageError now if there are none."""
    cases = discover.cases(source, patient_folders=patient_folders)
    first = next(cases, None)
    if first is None and not storage.exists(source):
        raise UsageError(f"{source}: there is no such folder; check the path")
    if first is None:
        raise UsageError(f"{source}: holds no patients; expected folders of DICOM files, archives or a manifest")
    cases = itertools.chain([first], cases)
    matching = (case for case in cases if only is None or fnmatch.fnmatchcase(case.key, only))
    first = next(matching, None)
    if first is None:
        raise UsageError(f"no patient of {source} matches {only!r}")
    return itertools.islice(itertools.chain([first], matching), limit)


def _jobs(cases: Iterable[discover.Case], target: str, account: Account, again: tuple[str, ...]) -> Iterator[Job]:
    """The cases that are to be done; the others are counted."""
    known: dict[str, list[RecordName]] = defaultdict(list)
    for name in store.record_names(target):
        known[name.key.partition(FURTHER)[0]].append(name)
    for case in cases:
        account.inputs += 1
        names = known[case.key]
        user_steps = [n for n in names if n.key == case.key and n.digest == case.digest]
        user_steps.sort(key=lambda name: STATUSES.index(name.status))
        if user_steps and user_steps[0].status not in again:
            account.counts[user_steps[0].status] += 1
            account.already[user_steps[0].status] += 1
            _count_further(account, names, case)
        else:
            yield Job(case, tuple(names))
    account.is_listed = True


def _count_further(account: Account, names: list[RecordName], case: discover.Case) -> None:
    for name in names:
        if name.key != case.key and name.digest == case.digest:
            account.further_series[name.status] += 1


def _in_process(jobs: Iterable[Job], work: Work) -> Generator[tuple[Job, Outcome | None]]:
    for job in jobs:
        yield job, _bag([job], work).compute(scheduler="sync")[0]


def _bag(jobs: list[Job], work: Work) -> db.Bag:
    """One patient an element, one element a partition, one partition a task."""
    tasks: dict[Any, Any] = {("patient", i): cluster.packed(_partition, work, job) for i, job in enumerate(jobs)}
    return db.Bag(tasks, "patient", len(jobs))


def _partition(work: Work, job: Job) -> list[Outcome]:
    return [work(job)]


def on_cluster(client: Client, jobs: Iterator[Job], work: Work) -> Generator[tuple[Job, Outcome | None]]:
    """Each job and what `work` returned of it, in the order in which they end.

    As many are under way as there are slots, and one more wait on the scheduler. A job that lost its worker goes
    last, alone; if that kills another worker, it ends with None.
    """
    suspects: list[Job] = []
    line = _Line(client, work)
    try:
        yield from line.drain(jobs, suspects)
        for job in suspects:
            lost: list[Job] = []
            yield from line.drain(iter([job]), lost)
            yield from ((job, None) for job in lost)
    finally:
        line.abandon()


def _tasks(jobs: Iterator[Job], work: Work) -> Iterator[tuple[Job, Any]]:
    """Each job with its task, from bags that double in size: the first patients should not wait for a long listing.

    The dashboard shows all tasks as one bar, `patient`, and each under its patient's key.
    """
    size, run, count = FIRST_BAG, secrets.token_hex(4), itertools.count()
    while batch := list(itertools.islice(jobs, size)):
        bag = _bag(batch, work)
        for i, job in enumerate(batch):
            # a graph of its own, or each task would carry the whole bag's to the scheduler
            key = ("patient", job.case.key, f"{run}-{next(count)}")
            yield job, Delayed(key, {key: bag.dask[bag.name, i]})
        size = min(2 * size, LARGEST_BAG)


@contextlib.contextmanager
def _lost_cluster_named() -> Iterator[None]:
    """Patients never raise, so what the cluster raises is its own trouble."""
    try:
        yield
    except (CancelledError, CommClosedError, OSError, TimeoutError) as error:
        raise InfrastructureError(
            f"the Dask scheduler was lost ({type(error).__name__}); what is written stays"
        ) from error
    except Exception as error:
        raise InfrastructureError(
            f"the workers cannot run dskprep ({type(error).__name__}: {str(error)[:200]}); they need the same versions "
            "of dskprep and Dask as here"
        ) from error


class _Line:
    """The futures under way."""

    def __init__(self, client: Client, work: Work) -> None:
        self.client = client
        self.work = work
        self.under_way: dict[Future[Any], Job] = {}
        self.n_slots = 0
        self.counted = float("-inf")

    def drain(self, jobs: Iterator[Job], lost: list[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Run the jobs; those whose worker died with them too often are added to `lost`."""
        done = as_completed()
        tasks = _tasks(jobs, self.work)
        while True:
            with _lost_cluster_named():
                n_free = self._free_slots()
            new = list(itertools.islice(tasks, n_free))
            with _lost_cluster_named():
                done.update(self._submit(new))
                if not self.under_way:
                    return
                ended = self._collect(done.next_batch())
            for job, outcome in ended:
                if outcome is None:
                    lost.append(job)
                else:
                    yield job, outcome

    def _collect(self, futures: list[Future[Any]]) -> list[tuple[Job, Outcome | None]]:
        """What came of the futures, in one request; None for one that lost its worker too often."""
        killed = {f for f in futures if f.status == "error" and isinstance(f.exception(), KilledWorker)}
        alive = [f for f in futures if f not in killed]
        results = dict(zip(alive, self.client.gather(alive), strict=True))
        ended: list[tuple[Job, Outcome | None]] = []
        for future in futures:
            ended.append((self.under_way.pop(future), None if future in killed else results[future][0]))
            future.release()
        stuck = {outcome.stuck_worker for _, outcome in ended if outcome and outcome.stuck_worker}
        if stuck:
            self.client.restart_workers(list(stuck), timeout=RESTART_S, raise_for_error=False)
        return ended

    def abandon(self) -> None:
        """Cancel what is still under way."""
        if self.under_way and self.client.status == "running":
            self.client.cancel(list(self.under_way), force=True)
        self.under_way.clear()

    def _submit(self, tasks: list[tuple[Job, Any]]) -> list[Future[Any]]:
        if not tasks:
            return []
        futures = self.client.compute([task for _, task in tasks])
        self.under_way.update(zip(futures, (job for job, _ in tasks), strict=True))
        return list(futures)

    def _free_slots(self) -> int:
        if time.monotonic() - self.counted > RECOUNT_S:
            self.n_slots = max(1, sum(self.client.nthreads().values()))
            self.counted = time.monotonic()
        # More than two a slot, or Dask queues those that wait on a worker, and blames them for its death. Those that
        # wait on the scheduler are begun at once where a slot is free, and tell an adaptive cluster to grow.
        return max(0, 2 * self.n_slots + 1 - len(self.under_way))


def _run_id() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"

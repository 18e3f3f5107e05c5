"""Patients through the workers: the bag, its tasks, lost workers and lost clusters. The only user of dask.bag."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import dask.bag as db
from dask.delayed import Delayed
from dask.optimization import inline
from distributed import Client, Future, KilledWorker, as_completed
from distributed.protocol import pickle

from dskprep import endings
from dskprep.errors import InfrastructureError
from dskprep.pipeline import lost
from dskprep.plain import in_one_line

BAG = 32
"""Patients in one bag. A bag waits until so many are listed, so it must not be large."""
RESTART_S = 30.0
"""How long to wait for a worker to restart, in seconds."""
MAX_FAILURES_IN_A_ROW = 20
"""A run gives up when the infrastructure has failed this many jobs one after another."""
RECOUNT_S = 5.0
"""How often to count the workers, in seconds, so that those that join later are used."""


class Keyed(Protocol):
    """A case of a job."""

    @property
    def key(self) -> str:
        """What the dashboard calls it."""


class AnyJob(Protocol):
    """What is to be done: a patient, or a label source."""

    @property
    def case(self) -> Keyed:
        """Of what."""


class AnyOutcome(Protocol):
    """What became of a job."""

    @property
    def stuck_worker(self) -> str:
        """The address of a process that hangs and has to be restarted, or ""."""


J = TypeVar("J", bound=AnyJob)
R = TypeVar("R", bound=AnyOutcome)
T = TypeVar("T", bound=tuple[Any, ...])

Work = Callable[[J], R]
"""What a worker does with a job; it never raises."""
Done = tuple[J, R | None]
"""A job and its outcome; None if the job killed its worker twice, the second time running alone."""


class Take(Protocol):
    """Chooses what is done next."""

    def __call__(self, tasks: Iterator[T], n: int) -> list[T]:
        """Return `n` of the tasks, whose first part is a job; fewer only if there are no more."""


def take_first(tasks: Iterator[T], n: int) -> list[T]:
    """Return the first `n` of the tasks."""
    return list(itertools.islice(tasks, n))


class Failures:
    """Counts the jobs that failed one after another, and gives up when they are too many.

    `what` are the jobs, and `advice` is what to do then.
    """

    def __init__(self, what: str, advice: str) -> None:
        self.what, self.advice = what, advice
        self.n_in_a_row = 0

    def count(self, problem: str) -> None:
        """Count a job, with what the infrastructure failed it with or "". Raises InfrastructureError."""
        self.n_in_a_row = self.n_in_a_row + 1 if problem else 0
        if self.n_in_a_row == MAX_FAILURES_IN_A_ROW:
            raise InfrastructureError(
                f"the last {self.n_in_a_row} {self.what} failed, the last one with: {problem}; mend it, and "
                f"{self.advice}"
            )


def execute(
    client: Client | None, jobs: Iterator[J], work: Work[J, R], take: Take = take_first
) -> Generator[Done[J, R]]:
    """Do the jobs on the workers of `client`, or in this process. Yield them in the order in which they end.

    `take` is asked for jobs when there are free slots. A job that lost its worker is run again at the end, alone. If
    that kills another worker, its outcome is None. Ctrl-C takes effect when all that have ended are yielded, so that
    whoever counts them counts each of them, wholly.
    """
    if client is None:
        tasks = ((job,) for job in jobs)
        while taken := take(tasks, 1):
            for (job,) in taken:
                (outcome,) = _bag([job], work).compute(scheduler="sync")
                with endings.held_back():
                    yield job, outcome
        return
    suspects = []
    line = _Line(client, work, take)
    try:
        with lost.watched(client):
            for job, outcome in line.drain(jobs):
                if outcome is None:
                    suspects.append(job)
                else:
                    yield job, outcome
            for job in suspects:
                yield from line.drain(iter([job]))
    finally:
        line.abandon()


def _bag(jobs: Sequence[J], work: Work[J, R]) -> Any:
    """Return the outcomes of the jobs as a bag: one patient per element, one element per partition.

    The elements are pickled calls, so that a scheduler which lacks dskprep can pass them on.
    """
    calls = [pickle.dumps(functools.partial(work, job)) for job in jobs]
    return db.from_sequence(calls, partition_size=1).map(pickle.loads).map(operator.call)


def _tasks(jobs: Iterator[J], work: Work[J, R]) -> Iterator[tuple[J, Delayed]]:
    """Yield each job with its task, from one bag after another."""
    run, count = secrets.token_hex(4), itertools.count()
    while batch := list(itertools.islice(jobs, BAG)):
        bag = _bag(batch, work)
        graph, ends = bag.dask.to_dict(), bag.__dask_keys__()
        graph = inline(graph, keys=graph.keys() - set(ends))
        for job, end in zip(batch, ends, strict=True):
            # The one step by hand: a task with a key and a graph of its own. The dashboard then shows all as one bar,
            # `patient`, and each by its patient's key. With `client.compute(bag.to_delayed())` all tasks have one
            # name, and each carries the graph of the whole bag. By `benchmarks/run_loop.py` that takes 8.2 ms of CPU
            # per patient, 2.4 ms with a new bag for each submission; this takes 1.9 ms, and a graph wholly by hand 1.7.
            key = ("patient", job.case.key, f"{run}-{next(count)}")
            yield job, Delayed(key, {key: graph[end]})


@contextlib.contextmanager
def _lost_cluster_named() -> Iterator[None]:
    """Raise whatever goes wrong in the block as InfrastructureError: patients never raise, so it is the cluster."""
    try:
        with lost.named():
            yield
    except InfrastructureError:
        raise
    except Exception as error:
        raise InfrastructureError(
            f"the workers cannot run dskprep ({type(error).__name__}: {in_one_line(error, 200)}); they need the same "
            "versions of dskprep and Dask as here"
        ) from error


class _Line(Generic[J, R]):
    """The futures under way."""

    def __init__(self, client: Client, work: Work[J, R], take: Take) -> None:
        self.client = client
        self.work = work
        self.take = take
        self.under_way: dict[Future[Any], J] = {}
        self.n_slots = 0
        self.counted_s = float("-inf")

    def drain(self, jobs: Iterator[J]) -> Iterator[Done[J, R]]:
        """Run the jobs. The outcome is None for those that the scheduler gave up, as their workers died."""
        done = as_completed()
        tasks = _tasks(jobs, self.work)
        while True:
            try:
                with _lost_cluster_named():
                    n_free = self._count_free_slots()
                new = self.take(tasks, n_free)
                with _lost_cluster_named():
                    done.update(self._submit(new))
                    if not self.under_way:
                        return
                    batch = done.next_batch()
            except KeyboardInterrupt:
                yield from self._collect_rest()
                raise
            with endings.held_back():
                with _lost_cluster_named():
                    ended = self._collect(batch)
                yield from ended

    def _collect_rest(self) -> list[Done[J, R]]:
        """Return the outcomes of those that have ended by now; none if the cluster is lost."""
        finished = [future for future in self.under_way if future.status == "finished"]
        with contextlib.suppress(InfrastructureError), lost.named():
            return self._collect(finished) if lost.answers(self.client, is_ended=True) else []
        return []

    def abandon(self) -> None:
        """Cancel what is still under way."""
        if self.under_way and lost.answers(self.client, is_ended=True):
            with contextlib.suppress(InfrastructureError), lost.named():  # it may be lost just now
                self.client.cancel(list(self.under_way), force=True)
        self.under_way.clear()

    def _count_free_slots(self) -> int:
        if time.monotonic() - self.counted_s > RECOUNT_S:
            self.n_slots = max(1, sum(self.client.nthreads().values()))
            self.counted_s = time.monotonic()
        # With more than two per slot, Dask queues the rest on the workers, and blames them when their worker dies.
        # Those that wait on the scheduler start as soon as a slot is free, and tell an adaptive cluster to grow.
        return max(0, 2 * self.n_slots + 1 - len(self.under_way))

    def _submit(self, tasks: list[tuple[J, Delayed]]) -> list[Future[Any]]:
        if not tasks:
            return []
        futures = self.client.compute([task for _, task in tasks])
        self.under_way.update(zip(futures, (job for job, _ in tasks), strict=True))
        return list(futures)

    def _collect(self, futures: list[Future[Any]]) -> list[Done[J, R]]:
        """Return the outcomes of these futures, gathered in one request, and restart workers that hang."""
        killed = {f for f in futures if f.status == "error" and isinstance(f.exception(), KilledWorker)}
        alive = [f for f in futures if f not in killed]
        results = dict(zip(alive, self.client.gather(alive), strict=True))
        ended: list[Done[J, R]] = []
        for future in futures:
            ended.append((self.under_way.pop(future), None if future in killed else results[future][0]))
            future.release()
        stuck = {outcome.stuck_worker for _, outcome in ended if outcome and outcome.stuck_worker}
        if stuck:
            self.client.restart_workers(list(stuck), timeout=RESTART_S, raise_for_error=False)
        return ended

"""A Dask cluster: one on this machine, sized and set for the work, or the address of another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from distributed import Client, LocalCluster, Nanny
from distributed.comm.core import connect as connect_comm
from distributed.core import Status
from distributed.security import Security
from distributed.system import MEMORY_LIMIT

from dskprep.errors import InfrastructureError, UsageError
from dskprep.pipeline import apart, lost, main_guard
from dskprep.pipeline.workers import MIN_WORKER_BYTES, check_address, check_sizes
from dskprep.plain import in_one_line
from dskprep.preparation import prepare
from dskprep.settings import PrepConfig, given

SLOTS = 3
"""Threads per worker process: at a time one patient is read, one computed and one written."""
MEMORY_SHARE = 0.9
"""Share of the machine's memory (or of the container's limit) for all workers together."""
CONNECT_S = 15
"""How long to wait for a scheduler to answer, in seconds."""
WORKERS_S = 120
"""How long to wait for the first worker of a cluster, in seconds."""

SETTINGS: dict[str, Any] = {
    # a worker holds volumes while it works on them, not as results: there is nothing to spill or to wait for
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # a patient that killed two workers is run alone at the end, so do not try it on all of them
    "distributed.scheduler.allowed-failures": 1,
    # a cluster that was started here looks so long after a death whether another worker has come, or gives it up
    "distributed.deploy.lost-worker-timeout": "5 minutes",
    # only what runs on a dying worker is blamed for its death
    "distributed.scheduler.worker-saturation": 1.0,
    # one CPU per worker: no library may start threads of its own; the thresholds let memory go back to the system, but
    # not in pieces so small that page faults double the time of encoding; one arena, because each thread's own would
    # keep what its patients freed
    "distributed.nanny.pre-spawn-environ": {
        "MALLOC_ARENA_MAX": 1,
        "MALLOC_MMAP_THRESHOLD_": 4 * 2**20,
        "MALLOC_TRIM_THRESHOLD_": 32 * 2**20,
        "OMP_NUM_THREADS": 1,
        "OPENBLAS_NUM_THREADS": 1,
        "MKL_NUM_THREADS": 1,
        "NUMBA_NUM_THREADS": 1,
        "BLOSC_NTHREADS": 1,
    },
}
"""What any cluster should be set to; `cluster/dask.yaml` holds the same."""

OWN: dict[str, Any] = {
    # a worker that is not there just then would never come: where patients kill one after another, or the machine is
    # busy, the next one may just be starting
    "distributed.deploy.lost-worker-timeout": "52 weeks",
}
"""What else a cluster of this machine is set to."""


@contextlib.contextmanager
def local_client(
    workers: int | None = None, memory_limit: str | int | None = None, settings: PrepConfig | None = None
) -> Iterator[Client]:
    """Start worker processes on this machine and yield a client of them; they end with the block.

    Parameters
    ----------
    workers
        How many. By default one per CPU that the container may use, or fewer where memory is short.
    memory_limit
        Of each worker, such as "1.6GiB" or a number of bytes. By default they share 90 % of the memory.
    settings
        Those of the run, if they have `mask_slots`: the workers leave that many times `mask_memory` free.

    Raises
    ------
    UsageError
        The numbers are wrong, or do not fit this machine; or a script calls this outside of `if __name__ ==
        "__main__":`, so that each worker process, which imports the script, would call it again.
    InfrastructureError
        The workers could not be started.

    Notes
    -----
    Scheduler, workers and dashboard listen on loopback only. Only who has the certificate of this cluster is let in.
    It is made anew each time, and kept in memory. A second client needs it too: `security=client.security`. The
    dashboard has no lock: other users of this machine can look at it, and change nothing.
    """
    main_guard.check()
    workers, limit_bytes = worker_sizes(workers, memory_limit, settings)
    prepare.warm(settings)
    with apart.from_others() as private, dask.config.set(SETTINGS | OWN | private), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Port .* is already in use")
        with apart.from_here(), _started(workers, limit_bytes) as cluster, lost.closed(Client(cluster)) as client:
            yield client


def kill_workers(client: Client) -> None:
    """Kill the worker processes of a `local_client`, whatever they do. None starts in their place."""
    cluster = getattr(client, "cluster", None)
    if not isinstance(cluster, LocalCluster):
        return
    for nanny in [*cluster.workers.values()]:
        if isinstance(nanny, Nanny) and nanny.pid:
            if nanny.status == Status.running:
                nanny.close_gracefully()
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(nanny.pid, signal.SIGKILL)


@contextlib.contextmanager
def _started(workers: int, limit_bytes: int) -> Iterator[LocalCluster]:
    size: dict[str, Any] = {"n_workers": workers, "threads_per_worker": SLOTS, "memory_limit": limit_bytes}
    place: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:8787"}
    place["security"] = Security.temporary()
    with contextlib.ExitStack() as stack:  # a Ctrl-C while they start comes when they have, and ends them
        try:
            with _kept_from_ctrl_c():
                cluster = stack.enter_context(LocalCluster(**size, **place, processes=True, silence_logs=40))
        except RuntimeError as error:
            cause: BaseException = error
            while deeper := cause.__cause__ or cause.__context__:  # Dask only says that something did not start
                cause = deeper
            why = f"{type(cause).__name__}: {in_one_line(cause, 200)}"
            raise InfrastructureError(f"the workers could not be started: {why}") from error
        yield cluster


@contextlib.contextmanager
def _kept_from_ctrl_c() -> Iterator[None]:
    """Start threads and processes in the block that never get SIGINT: a terminal sends it to all, one is enough."""
    resource_tracker.ensure_running()  # if it started later, it would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_sizes(
    workers: int | None, memory_limit: str | int | None, settings: PrepConfig | None = None
) -> tuple[int, int]:
    """Return how many workers to start, and how many bytes each may use. Raises UsageError; see `local_client`."""
    masks = given(settings).slots_bytes
    total = int(MEMORY_LIMIT * MEMORY_SHARE) - masks
    if total < MIN_WORKER_BYTES // 4:
        raise UsageError(
            f"mask_slots and mask_memory take {format_bytes(masks)}; of the {format_bytes(total + masks)} that may be "
            "used here this leaves none for workers"
        )
    limit = check_sizes(workers, memory_limit)
    workers = workers or max(1, min(CPU_COUNT, total // (limit or MIN_WORKER_BYTES)))
    share = total // workers
    if limit is None and share < MIN_WORKER_BYTES // 4:
        raise UsageError(f"{workers} workers leave each {format_bytes(share)}; at most {total // MIN_WORKER_BYTES} fit")
    if limit is not None and limit > share:
        raise UsageError(
            f"{workers} workers of {format_bytes(limit)} need more than the {format_bytes(total)} that may be used here"
        )
    return workers, limit or share


@contextlib.contextmanager
def connect(address: str) -> Iterator[Client]:
    """Yield a client of a running scheduler, given its address or its scheduler file.

    Raises UsageError for an address of another form, InfrastructureError if no scheduler answers there.
    """
    check_address(address)
    is_file = address.endswith(".json")
    if is_file and not Path(address).is_file():
        raise InfrastructureError(f"{address}: there is no such scheduler file")
    try:
        _meet(json.loads(Path(address).read_text())["address"] if is_file else address)
        client = Client(scheduler_file=address, timeout=CONNECT_S) if is_file else Client(address, timeout=CONNECT_S)
    except Exception as error:  # also MemoryError: what another server says first is taken for a length
        problem = in_one_line(error, 150) or f"nothing that speaks as one within {2 * CONNECT_S} s"
    else:
        with lost.closed(client):
            yield client
        return
    gc.collect()  # of the client that failed: if that came later, it could block while another one starts
    raise InfrastructureError(f"{address}: no Dask scheduler answers ({problem})")


def _meet(address: str) -> None:
    """Raise TimeoutError, or what Dask raises, if no scheduler greets at an address.

    Dask's client has no limit for that: a server of another kind, which only listens, would hold it for ever.
    """

    async def greet() -> None:
        security = Security().get_connection_args("client")
        comm = await asyncio.wait_for(connect_comm(address, timeout=CONNECT_S, **security), 2 * CONNECT_S)
        comm.abort()

    with ThreadPoolExecutor(1) as thread:  # a notebook has a loop that runs
        thread.submit(asyncio.run, greet()).result()


@lost.named()
def workers_of(client: Client) -> dict[str, Any]:
    """Return what the scheduler says of each worker, by its address. Waits for the first one.

    Raises InfrastructureError if there are none. The client's own `scheduler_info` is not asked: its copy is renewed
    behind our back every two seconds, and then has no worker in it.
    """
    if not client.nthreads():
        work = client.submit(int, pure=False)  # an adaptive cluster starts its workers when there is work
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError as error:
            raise InfrastructureError(f"no workers came for {WORKERS_S} s; start some and run again") from error
        finally:
            work.release()
    assert client.scheduler is not None  # it has just answered
    workers: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    if not workers:
        raise InfrastructureError("all workers of the scheduler are gone; start some and run again")
    return workers


def least_memory(client: Client | None) -> int:
    """Return the bytes that any of the workers may use; without a client, those of this machine."""
    return min(memory_limits(client)) if client else MEMORY_LIMIT


def memory_limits(client: Client) -> list[int]:
    """Return the memory limit of each worker, in bytes. Raises InfrastructureError if there are no workers."""
    return [int(worker["memory_limit"] or MEMORY_LIMIT) for worker in workers_of(client).values()]

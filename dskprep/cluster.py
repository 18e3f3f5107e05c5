"""A Dask cluster: one on this machine, sized and set for the work, or somebody else's."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import dask
from dask.system import CPU_COUNT
from dask.utils import format_bytes, parse_bytes
from distributed import Client, LocalCluster
from distributed.system import MEMORY_LIMIT

from dskprep import steps
from dskprep.errors import InfrastructureError, UsageError

SLOTS = 3
"""Threads a worker process: one patient is read, one computed, one written at a time."""

MEMORY_SHARE = 0.9
"""Of the machine's memory (or the container's limit), for all workers together."""

MIN_WORKER_BYTES = 1_200_000_000
"""Below this a worker cannot take an ordinary chest; fewer workers are started instead."""

CONNECT_S = 15

SETTINGS = {
    # a worker holds volumes in its slots, not as results: nothing to spill, nobody to pause for
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # a patient that killed its worker twice is run alone, so do not try it on the whole cluster
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.worker-saturation": 1.0,
    # the dashboard's history is in the scheduler's memory
    "distributed.scheduler.dashboard.tasks.task-stream-length": 5000,
    # one CPU a worker: no library may start threads of its own
    # (and memory goes back to the system, but not in pieces so small that page faults double the encoding)
    "distributed.nanny.pre-spawn-environ": {
        "MALLOC_MMAP_THRESHOLD_": 4 * 2**20,
        "MALLOC_TRIM_THRESHOLD_": 32 * 2**20,
        "OMP_NUM_THREADS": 1,
        "OPENBLAS_NUM_THREADS": 1,
        "MKL_NUM_THREADS": 1,
        "NUMBA_NUM_THREADS": 1,
        "BLOSC_NTHREADS": 1,
    },
}


@contextlib.contextmanager
def local_client(workers: int | None = None, memory_limit: str | int | None = None) -> Iterator[Client]:
    """A client of a new cluster of worker processes on this machine, closed at the end.

    By default one worker a CPU (as the container's limits allow), sharing 90 % of the memory; fewer if
    there is too little memory. Listens on loopback only. Raises UsageError if the numbers cannot be.
    """
    workers, limit_bytes = worker_sizes(workers, memory_limit)
    steps.warm()
    with dask.config.set(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Port .* is already in use")
        with _started(workers, limit_bytes) as cluster, Client(cluster) as client:
            yield client


def _started(workers: int, limit_bytes: int) -> LocalCluster:
    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=SLOTS,
            processes=True,
            memory_limit=limit_bytes,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:8787",
            silence_logs=40,
        )
    except RuntimeError as error:
        raise InfrastructureError(f"the workers could not be started: {' '.join(str(error).split())[:200]}") from error


def worker_sizes(workers: int | None, memory_limit: str | int | None) -> tuple[int, int]:
    """How many workers, and how many bytes each may use."""
    total = int(MEMORY_LIMIT * MEMORY_SHARE)
    if workers is not None and workers < 1:
        raise UsageError(f"--workers must be 1 or more, not {workers}")
    try:
        limit = None if memory_limit is None else int(parse_bytes(memory_limit))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--memory-limit must be a size such as 1.6GiB, not {memory_limit!r}") from error
    if limit is not None and limit < MIN_WORKER_BYTES // 4:
        raise UsageError(
            f"--memory-limit {memory_limit} is too small; a worker needs about {format_bytes(MIN_WORKER_BYTES)}"
        )
    if workers is None:
        workers = max(1, min(CPU_COUNT, total // (limit or MIN_WORKER_BYTES)))
    if limit is None:
        limit = total // workers
        if limit < MIN_WORKER_BYTES // 4:
            raise UsageError(
                f"{workers} workers leave each {format_bytes(limit)}; at most {total // MIN_WORKER_BYTES} fit"
            )
    elif limit * workers > total:
        raise UsageError(
            f"{workers} workers of {format_bytes(limit)} need more than the {format_bytes(total)} that may be used here"
        )
    return workers, limit


@contextlib.contextmanager
def connect(address: str) -> Iterator[Client]:
    """A client of a running scheduler, by its address or scheduler file."""
    is_file = address.endswith(".json")
    if not is_file and "://" not in address:
        raise UsageError(
            f"--scheduler must be local, sync, an address such as tcp://host:8786, or a .json file, not {address!r}"
        )
    if is_file and not Path(address).exists():
        raise InfrastructureError(f"{address}: there is no such scheduler file")
    client, problem = _try_to_connect(address, is_file=is_file)
    if client is None:
        # the client that failed must not be collected later: its end can block while another one starts
        gc.collect()
        raise InfrastructureError(f"{address}: no Dask scheduler answers ({problem})")
    with client:
        yield client


def _try_to_connect(address: str, *, is_file: bool) -> tuple[Client | None, str]:
    try:
        client = Client(scheduler_file=address, timeout=CONNECT_S) if is_file else Client(address, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError, AssertionError) as error:
        return None, " ".join(str(error).split())[:150]
    return client, ""


def memory_limits(client: Client) -> list[int]:
    """Memory limit of each worker, in bytes. Raises InfrastructureError if there is none."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        raise InfrastructureError("the scheduler has no workers; start some and run again") from error
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return [int(worker["memory_limit"] or MEMORY_LIMIT) for worker in workers]

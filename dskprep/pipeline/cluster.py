"""A Dask cluster: one on this machine, sized and set for the work, or somebody else's."""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
import os
import secrets
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
from dask.delayed import Delayed
from dask.system import CPU_COUNT
from dask.utils import format_bytes, parse_bytes
from distributed import Client, Future, LocalCluster
from distributed.protocol import pickle
from distributed.system import MEMORY_LIMIT

from dskprep import storage
from dskprep.errors import DskprepError, InfrastructureError, UsageError
from dskprep.preparation import prepare

SLOTS = 3
"""Threads a worker process: one patient is read, one computed, one written at a time."""

MEMORY_SHARE = 0.9
"""Of the machine's memory (or the container's limit), for all workers together."""

MIN_WORKER_BYTES = 1_200_000_000
"""Below this a worker cannot take an ordinary chest; fewer workers are started instead."""

CONNECT_S = 15

WORKERS_S = 120
"""How long the first worker of a cluster is waited for."""

CHECK_S = 120
"""How long a worker may take to look for the data; its store's own retries come to less."""

MAX_NOTES = 3
"""Workers that are named for the same fault."""

DO_THIS = "give the scheduler and workers DASK_CONFIG=cluster/dask.yaml"

SETTINGS: dict[str, Any] = {
    # a worker holds volumes in its slots, not as results: nothing to spill, nobody to pause for
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # a patient that killed its worker twice is run alone, so do not try it on the whole cluster
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.worker-saturation": 1.0,
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
    prepare.warm()
    with dask.config.set(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Port .* is already in use")
        with _started(workers, limit_bytes) as cluster, Client(cluster) as client:
            yield client


def _started(workers: int, limit_bytes: int) -> LocalCluster:
    try:
        with _kept_from_ctrl_c():
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
        cause: BaseException = error
        while deeper := cause.__cause__ or cause.__context__:  # Dask's own words only say that something did not start
            cause = deeper
        why = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
        raise InfrastructureError(f"the workers could not be started: {why}") from error


@contextlib.contextmanager
def _kept_from_ctrl_c() -> Iterator[None]:
    """What starts within, threads and processes, never gets SIGINT: a terminal sends it to all, one is enough."""
    resource_tracker.ensure_running()  # whose start, if it came later, would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    except (OSError, TimeoutError, ValueError, TypeError, AssertionError, RuntimeError) as error:
        return None, " ".join(str(error).split())[:150]
    return client, ""


def check(client: Client, source: str, target: str) -> list[str]:
    """What somebody else's cluster lacks for this work, and what that costs: a line each; the work can be done.

    Raises InfrastructureError where it cannot: workers without dskprep, or with another version than here;
    workers that do not see the source or may not reach source or target with credentials of their own. UsageError if
    this is no Client, or an asynchronous one.
    """
    if not isinstance(client, Client) or client.asynchronous:
        found = "an asynchronous one" if isinstance(client, Client) else f"a {type(client).__name__}"
        raise UsageError(f"client must be a dask.distributed Client that is not asynchronous, not {found}")
    if client.status != "running":
        raise InfrastructureError(f"the client is {client.status}; open another")
    limits = memory_limits(client)
    about_versions = _notes_on_versions(client)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    hosts = {worker["host"]: address for address, worker in sorted(workers.items(), reverse=True)}
    is_there = storage.exists(storage.absolute(source))
    asked = {host: _submit_to(client, address, _seen_by_worker, source, target) for host, address in hosts.items()}
    notes: set[str] = set()
    for host, future in asked.items():
        try:
            seen = future.result(timeout=CHECK_S)
        except TimeoutError as error:
            raise InfrastructureError(
                f"{host}: a worker there did not answer for {CHECK_S} s about {source}"
            ) from error
        except Exception as error:
            raise InfrastructureError(
                f"{host}: a worker there cannot run dskprep ({type(error).__name__}: {str(error)[:200]})"
            ) from error
        if seen["problem"]:
            raise InfrastructureError(f"{host}: a worker there cannot reach the data: {seen['problem']}")
        if is_there and not seen["source_exists"]:
            raise InfrastructureError(
                f"{host}: a worker there does not see {source}; mount it in the same place on every host"
            )
        notes.update(_notes_on_worker(seen))
    return [*about_versions, *_notes_on_scheduler(client), *_notes_on_sizes(workers.values(), limits), *sorted(notes)]


def packed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """A task of Dask's that the scheduler can pass on without having what it needs, such as dskprep."""
    return operator.call, (pickle.loads, pickle.dumps(functools.partial(work, *arguments)))


def _submit_to(client: Client, address: str, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    key = f"check-{secrets.token_hex(4)}"
    future: Future[Any] = client.compute(Delayed(key, {key: packed(work, *arguments)}), workers=[address])
    return future


def _notes_on_versions(client: Client) -> list[str]:
    """Raises InfrastructureError if a worker lacks what it needs, or has another dskprep than here."""
    versions: Any = client.get_versions(packages=["dskprep"])
    here = versions["client"]["packages"]
    notes = []
    for address, there in versions["workers"].items():
        for package in ("dskprep", "dask", "distributed"):
            found = there["packages"].get(package)
            if found is None or (package == "dskprep" and found != here[package]):
                raise InfrastructureError(
                    f"{address}: expected {package} {here[package]} as here, found {found or 'none'}; install the same "
                    "on every worker"
                )
            if found != here[package]:
                notes.append(f"{address} has {package} {found}, here it is {here[package]}: Dask promises nothing then")
    return notes[:MAX_NOTES]


def _seen_by_worker(source: str, target: str) -> dict[str, Any]:
    """Runs on a worker: whether it reaches the data, and how it is set."""
    seen: dict[str, Any] = {"problem": "", "source_exists": False}
    try:
        seen["source_exists"] = storage.exists(storage.absolute(source))
        storage.exists(storage.absolute(target))
    except (DskprepError, OSError) as error:
        seen["problem"] = str(error)
    seen["memory"] = dask.config.get("distributed.worker.memory")
    seen["threads"] = {name: os.environ.get(name) for name in SETTINGS["distributed.nanny.pre-spawn-environ"]}
    return seen


def _notes_on_worker(seen: dict[str, Any]) -> Iterator[str]:
    memory = seen["memory"]
    on = [name for name in ("target", "spill", "pause") if memory.get(name) is not False]
    if on:
        yield (
            f"workers have distributed.worker.memory.{', '.join(on)} on: a worker near its limit takes no more "
            f"patients, perhaps for good; {DO_THIS}"
        )
    if any(seen["threads"][name] != "1" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS")):
        yield f"libraries on the workers may start threads of their own: each patient is slower; {DO_THIS}"


def _notes_on_scheduler(client: Client) -> Iterator[str]:
    names = ("distributed.scheduler.allowed-failures", "distributed.scheduler.worker-saturation")
    there = client.run_on_scheduler(lambda names: {name: dask.config.get(name) for name in names}, names)
    if there[names[0]] != SETTINGS[names[0]]:
        yield (
            f"the scheduler's allowed-failures is {there[names[0]]}: a patient that kills its worker kills "
            f"{there[names[0]] + 1} of them before it is set apart; {DO_THIS}"
        )
    if there[names[1]] != SETTINGS[names[1]]:
        yield (
            f"the scheduler's worker-saturation is {there[names[1]]}: patients that wait beside one that kills its "
            f"worker are blamed with it; {DO_THIS}"
        )


def _notes_on_sizes(workers: Iterable[dict[str, Any]], limits: list[int]) -> Iterator[str]:
    workers = list(workers)
    n_threads = {worker["nthreads"] for worker in workers}
    if n_threads != {SLOTS}:
        yield (
            f"workers have {', '.join(map(str, sorted(n_threads)))} threads, not {SLOTS}: fewer leave the CPU "
            f"idle while files are read and written, more only wait; start them with --nthreads {SLOTS}"
        )
    if min(limits) < MIN_WORKER_BYTES:
        yield (
            f"the smallest worker has {format_bytes(min(limits))}, an ordinary chest needs "
            f"{format_bytes(MIN_WORKER_BYTES)}: larger patients will be refused as too-large, by name"
        )
    elif max(limits) > 1.1 * min(limits):
        yield (
            f"workers have from {format_bytes(min(limits))} to {format_bytes(max(limits))}: a patient must "
            "fit into the smallest, or it is refused as too-large"
        )
    if any(not worker["memory_limit"] for worker in workers):
        yield "a worker has no memory limit: the machine's memory is taken for it; start it with --memory-limit"
    if any(not worker["nanny"] for worker in workers):
        yield "a worker has no nanny: when a patient kills it or hangs in it, nothing starts it again"


def memory_limits(client: Client) -> list[int]:
    """Memory limit of each worker, in bytes. Raises InfrastructureError if there is none."""
    if not client.nthreads():
        work = client.submit(int, pure=False)  # an adaptive cluster starts its workers when there is work
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError as error:
            raise InfrastructureError(
                f"the scheduler had no workers for {WORKERS_S} s; start some and run again"
            ) from error
        finally:
            work.release()
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return [int(worker["memory_limit"] or MEMORY_LIMIT) for worker in workers]

"""Whether somebody else's cluster can do the work, and what it lacks."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import dask
from dask.utils import format_bytes, parse_timedelta
from distributed import Client, Future, KilledWorker, SpecCluster, wait
from distributed.protocol import pickle
from distributed.system import MEMORY_LIMIT

from dskprep import storage
from dskprep.dataset import identity
from dskprep.errors import DskprepError, InfrastructureError, UsageError
from dskprep.pipeline import lost
from dskprep.pipeline.cluster import SETTINGS, SLOTS, memory_limits, workers_of
from dskprep.pipeline.workers import MIN_WORKER_BYTES
from dskprep.plain import in_one_line, words_of
from dskprep.preparation import user_steps
from dskprep.settings import PrepConfig, given

CHECK_S = 120
"""How long a worker may take to look for the data, in seconds; the retries of its store take less."""
TARGET_S = 60
"""How long the workers may take to look for the dataset, in seconds."""
UNSEEN_S = 30.0
"""How long a dataset that has just begun may stay unseen on another host, as NFS has it, in seconds."""
LOOK_AGAIN_S = 2
"""How often to look whether a host has workers still, in seconds."""
MAX_NOTES = 3
"""How many workers are named for the same fault."""
DO_THIS = "give the scheduler and workers DASK_CONFIG=cluster/dask.yaml"
"""What to do about settings that are not as in `cluster.SETTINGS`."""
GIVEN_UP = "distributed.deploy.lost-worker-timeout"
MIN_GIVEN_UP_S = 60.0
"""A worker may take so long to come back on a busy machine, in seconds."""


@lost.named()
def check(client: Client, source: str, target: str, settings: PrepConfig | None = None) -> list[str]:
    """Return what the cluster lacks for this work, and what that costs, as one line each.

    Raises InfrastructureError if the work cannot be done: workers lack dskprep, have another version of it than here,
    do not see the source, may not reach source or target with their own credentials, or cannot import what the settings
    name. Raises UsageError if `client` is not a Client, or an asynchronous one.
    """
    if not isinstance(client, Client) or client.asynchronous:
        found = "an asynchronous one" if isinstance(client, Client) else f"a {type(client).__name__}"
        raise UsageError(f"client must be a dask.distributed Client that is not asynchronous, not {found}")
    if client.status != "running":
        raise InfrastructureError(f"the client is {client.status}; open another")
    check_python(client)
    limits = memory_limits(client)  # which may wake the first workers
    about_versions = _notes_on_versions(client)
    workers = workers_of(client)
    hosts = sorted({worker["host"] for worker in workers.values()})
    is_there = storage.exists(storage.absolute(source))
    settings = given(settings)
    look = functools.partial(_seen_by_worker, source, target, settings)
    asked = {host: _submit_to(client, host, look) for host in hosts}
    notes: set[str] = set()
    for host, future in asked.items():
        worker = f"{host}: a worker there"
        seen = _answer(client, host, future, source)
        future.release()  # what was raised while it was waited for may still hold it
        if seen is None:
            continue
        if seen["problem"]:
            raise InfrastructureError(f"{worker} cannot reach the data: {seen['problem']}")
        if seen["missing_function"]:
            raise InfrastructureError(f"{worker} lacks a function of the settings: {seen['missing_function']}")
        if is_there and not seen["source_exists"]:
            raise InfrastructureError(f"{worker} does not see {source}; mount it in the same place on every host")
        notes.update(_notes_on_worker(seen))
        if settings.mask_slots:
            n_bytes = sum(worker["memory_limit"] or 0 for worker in workers.values() if worker["host"] == host)
            notes.update(_notes_on_masks(host, n_bytes, seen["memory_bytes"], settings))
    return [*about_versions, *_notes_on_scheduler(client), *_notes_on_sizes(workers.values(), limits), *sorted(notes)]


@lost.named()
def check_target(client: Client | None, target: str, fingerprint: str) -> None:
    """Raise InfrastructureError if a worker sees something else at the target than the dataset with that fingerprint.

    All are asked, since those of one host may be containers. One that is busy or comes later looks before its first
    patient (`worker.patient`).
    """
    if client is None:
        return
    look = functools.partial(_seen_of_target, target, fingerprint, UNSEEN_S)
    free = [address for address, tasks in client.processing().items() if not tasks]
    asked = {address: _submit_to(client, address, look) for address in free}
    with contextlib.suppress(TimeoutError):
        wait(list(asked.values()), timeout=TARGET_S)
    for address, future in asked.items():
        if future.done() and (problem := future.result()):
            raise InfrastructureError(f"the worker {address}: {problem}")


@lost.named()
def check_python(client: Client) -> None:
    """Raise InfrastructureError if the scheduler or a worker has another Python than here: pickles differ between them.

    Dask asks for this without a pickle. Nothing else should be sent before.
    """
    _compare_python(client.get_versions())


def _compare_python(versions: Any) -> None:
    here = _python_of(versions["client"])
    if not versions["scheduler"] or versions["workers"] is None:
        raise InfrastructureError(
            "what answers as a Dask scheduler does not tell its version; look at the address, and which program it is"
        )
    for name, there in {"the scheduler": versions["scheduler"], **versions["workers"]}.items():
        if there and (found := _python_of(there)) != here:
            raise InfrastructureError(
                f"{name}: expected Python {here} as here, found {found}; start scheduler, workers and client with the "
                "same Python"
            )


def _python_of(versions: Any) -> str:
    """Return the major and minor version of a Python."""
    return ".".join(str(versions["host"]["python"]).split(".")[:2])


def _submit_to(client: Client, host: str, work: Callable[[], Any]) -> Future[Any]:
    """Call a function on a worker of a host, or of an address.

    It goes as bytes, so that a scheduler without dskprep can pass it on.
    """
    call = client.submit(pickle.loads, pickle.dumps(work), workers=[host], pure=False)
    return client.submit(operator.call, call, workers=[host], pure=False)


def _answer(client: Client, host: str, asked: Future[Any], source: str) -> Any:
    """Return what a worker of the host has seen; None if the host has none any more.

    If that worker dies, the scheduler asks the one that its nanny starts in its place, or another one of the host.
    """
    worker, began_s = f"{host}: a worker there", time.monotonic()
    while True:
        try:
            wait([asked], timeout=LOOK_AGAIN_S)
        except TimeoutError as error:
            if host not in {other["host"] for other in workers_of(client).values()}:
                return None
            if time.monotonic() - began_s > CHECK_S:
                raise InfrastructureError(f"{worker} did not answer for {CHECK_S} s about {source}") from error
            continue
        try:
            return asked.result(timeout=CHECK_S)
        except KilledWorker as error:
            raise InfrastructureError(
                f"{worker} dies whenever it looks at {source} and imports what the settings name; see its log"
            ) from error
        except Exception as error:
            problem = f"{type(error).__name__}: {in_one_line(error, 200)}"
            raise InfrastructureError(f"{worker} cannot run dskprep ({problem})") from error


def _notes_on_versions(client: Client) -> list[str]:
    """Raise InfrastructureError if a worker lacks dskprep or Dask, or has another dskprep. Return notes on the rest."""
    versions: Any = client.get_versions(packages=["dskprep"])
    _compare_python(versions)
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


def _seen_by_worker(source: str, target: str, settings: PrepConfig) -> dict[str, Any]:
    """Return whether this worker reaches the data, and how it is set. Runs on the worker."""
    seen: dict[str, Any] = {"problem": "", "source_exists": False, "missing_function": "", "memory_bytes": MEMORY_LIMIT}
    try:
        seen["source_exists"] = storage.exists(storage.absolute(source))
        if storage.is_bucket(target):  # a folder may be new: its host would remember for a while that it was not there
            storage.exists(target)
    except (DskprepError, OSError) as error:
        seen["problem"] = words_of(error)
    try:
        user_steps.check(settings)
    except UsageError as error:
        seen["missing_function"] = words_of(error)
    seen["memory"] = dask.config.get("distributed.worker.memory")
    seen["threads"] = {name: os.environ.get(name) for name in SETTINGS["distributed.nanny.pre-spawn-environ"]}
    return seen


def _seen_of_target(target: str, fingerprint: str, unseen_s: float) -> str:
    """Return what is wrong with what this worker sees at the target, or "". Runs on the worker."""
    began_s = time.monotonic()
    try:
        while (problem := identity.missed(target, fingerprint)) and time.monotonic() - began_s < unseen_s:
            time.sleep(1)
    except (DskprepError, OSError) as error:
        return words_of(error)
    return problem


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


def _notes_on_masks(host: str, workers_bytes: int, memory_bytes: int, settings: PrepConfig) -> Iterator[str]:
    if workers_bytes + settings.slots_bytes > memory_bytes:
        yield (
            f"{host}: its workers may use {format_bytes(workers_bytes)}, and the processes of mask_slots beside them "
            f"{format_bytes(settings.slots_bytes)}; it has {format_bytes(memory_bytes)}, so the system may end one of "
            "them: give the workers less"
        )


def _notes_on_scheduler(client: Client) -> Iterator[str]:
    names = ("distributed.scheduler.allowed-failures", "distributed.scheduler.worker-saturation")
    failures, saturation = (client.run_on_scheduler(dask.config.get, name) for name in names)
    if failures != SETTINGS[names[0]]:
        yield (
            f"the scheduler's allowed-failures is {failures}: a patient that kills its worker kills "
            f"{failures + 1} of them before it is set apart; {DO_THIS}"
        )
    if saturation != SETTINGS[names[1]]:
        yield (
            f"the scheduler's worker-saturation is {saturation}: patients that wait beside one that kills its "
            f"worker are blamed with it; {DO_THIS}"
        )
    given_up_s = parse_timedelta(dask.config.get(GIVEN_UP))
    if isinstance(client.cluster, SpecCluster) and given_up_s < MIN_GIVEN_UP_S:
        yield (
            f"a worker that is not back {given_up_s:g} s after its process died is given up for good by this "
            f'{type(client.cluster).__name__}: dask.config.set({{"{GIVEN_UP}": "5 minutes"}})'
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

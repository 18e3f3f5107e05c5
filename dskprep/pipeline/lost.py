"""A scheduler that is lost, does not answer, or has no workers. Dask itself would wait for the last two for ever."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

from distributed import Client, LocalCluster
from distributed.client import ClosedClientError, FutureCancelledError

from dskprep.errors import DskprepError, InfrastructureError

log = logging.getLogger("dskprep")

ASK_EVERY_S = 30.0
"""How often a scheduler is asked whether it is there, in seconds."""
SILENT_S = 120.0
"""How long it may take to answer, in seconds: one of a large cluster may be busy."""
WORKERLESS_S = 120.0
"""How long it may have no worker before that is told, in seconds. On this machine no other will come, so it is lost."""
ENDING_S = 10.0
"""How long it may take where a run is ended by the user, in seconds."""


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Raise InfrastructureError for what Dask raises in the block where the scheduler is not there any more."""
    try:
        yield
    except DskprepError:  # an InfrastructureError is an OSError
        raise
    except FutureCancelledError as error:
        what = "the cluster was restarted" if error.reason == "scheduler-restart" else "the Dask scheduler was lost"
        raise InfrastructureError(f"{what} ({type(error).__name__}); what is written stays") from error
    except (CancelledError, ClosedClientError, OSError) as error:  # OSError: also CommClosedError, TimeoutError
        raise InfrastructureError(
            f"the Dask scheduler was lost ({type(error).__name__}); what is written stays"
        ) from error


@contextlib.contextmanager
def closed(client: Client) -> Iterator[Client]:
    """Close a client at the end of the block. What that raises, as where its scheduler is lost, does not matter."""
    client.__enter__()
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.__exit__(None, None, None)


@contextlib.contextmanager
def watched(client: Client) -> Iterator[None]:
    """Over the block, let a scheduler be lost that does not answer for SILENT_S, as when its process is stopped.

    One without workers is told after WORKERLESS_S, and is lost then if it is of this machine.
    """
    ended, is_local = threading.Event(), isinstance(client.cluster, LocalCluster)

    def ask() -> None:
        had_workers_s, is_told = time.monotonic(), False
        while not ended.wait(ASK_EVERY_S):
            problem = ""
            try:
                if _count_workers(client, SILENT_S) != 0:
                    had_workers_s, is_told = time.monotonic(), False
            except TimeoutError:
                problem = f"the Dask scheduler has not answered for {SILENT_S:g} s, and counts as lost"
            if not is_told and time.monotonic() - had_workers_s > WORKERLESS_S:
                is_told = True
                if is_local:
                    problem = problem or f"all workers have been gone for {WORKERLESS_S:g} s, and count as lost"
                else:
                    log.warning(f"the cluster has had no worker for {WORKERLESS_S:g} s; the run goes on when some come")
            if problem and not ended.is_set():
                log.warning(problem)
                _give_up(client)
                return

    threading.Thread(target=ask, name="scheduler", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def answers(client: Client, *, is_ended: bool = False) -> bool:
    """Tell whether the scheduler answers: within SILENT_S, or of a run that is ended within ENDING_S.

    If not, nothing waits for it any longer.
    """
    if client.status != "running":
        return False
    if _is_silent(client, ENDING_S if is_ended else SILENT_S):
        _give_up(client)
        return False
    return True


def _is_silent(client: Client, limit_s: float) -> bool:
    try:
        _count_workers(client, limit_s)
    except TimeoutError:
        return True
    return False


def _count_workers(client: Client, limit_s: float) -> int | None:
    """Return how many workers there are; None if the scheduler is lost, which whoever asks next hears.

    Raises TimeoutError if it does not answer.
    """
    if client.scheduler is None:  # the client is closed
        return None
    try:
        found = client.sync(client.scheduler.identity, n_workers=0, callback_timeout=limit_s)
    except TimeoutError:
        raise
    except Exception:
        return None
    return int(found["n_workers"])


def _give_up(client: Client) -> None:
    """Break the connections to the scheduler, so that all who wait for an answer hear that it is lost."""

    async def abort() -> None:
        assert client.scheduler is not None
        client.rpc.remove(str(client.scheduler.address))
        if client.scheduler_comm:
            client.scheduler_comm.abort()

    with contextlib.suppress(Exception):  # it may be closed by now
        client.sync(abort)

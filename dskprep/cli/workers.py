"""The workers of a command: of a cluster that is there, or of this machine, which start once there is work for them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from dskprep import endings
from dskprep.cli import options, terminal
from dskprep.counts import n_of

if TYPE_CHECKING:
    from distributed import Client

    from dskprep.settings import PrepConfig

STOPPING = "ending, in some seconds: the workers are being stopped"


def tell_that_workers_stop() -> None:
    """Say at once that a signal was heard, as it takes a while to stop the workers."""
    terminal.say_at_once(f"dskprep: {STOPPING}")


def told_that_workers_stop() -> contextlib.AbstractContextManager[None]:
    """Say so when a signal comes in the block."""
    return endings.told(tell_that_workers_stop)


class Workers:
    """The workers that a command has, or may have: `client` is None until they are there, and for good without any.

    `opening` returns the context in which workers of this machine run; without it none can be started.
    """

    def __init__(
        self,
        client: Client | None = None,
        opening: Callable[[], contextlib.AbstractContextManager[Client]] | None = None,
    ) -> None:
        self.client = client
        self.can_start = opening is not None
        self._opening = opening
        self._open = contextlib.ExitStack()

    def start(self) -> Client:
        """Start the workers. Two signals meanwhile take effect when they have: half of a cluster cannot be stopped."""
        assert self._opening is not None
        opened = self._opening()
        with endings.held_back(2):
            self.client = self._open.enter_context(opened)
        return self.client

    def meet(self, opened: contextlib.AbstractContextManager[Client]) -> None:
        """Take a client of a cluster that is there."""
        with told_that_workers_stop():
            self.client = self._open.enter_context(opened)

    def stop(self) -> None:
        """Stop them, or leave their cluster, when all is done: a signal meanwhile is told, and changes nothing."""
        if self.client is not None:
            terminal.wait_for("stopping the workers")
        with endings.passed_over(self._hear_while_they_stop):
            self._open.close()
        self.client = None
        terminal.end_wait()

    def _hear_while_they_stop(self) -> None:
        tell_that_workers_stop()
        self.hurry()

    def hurry(self) -> None:
        """Kill those of this machine, as nobody waits any more for what they do."""
        if self._opening and self.client is not None:
            from dskprep.pipeline import cluster

            cluster.kill_workers(self.client)

    def close(self) -> None:
        """Stop them wherever the command is. A signal takes effect when they have."""
        if self.client is not None:
            terminal.wait_for("stopping the workers")
        with endings.held_back(), told_that_workers_stop():
            self._open.close()
        terminal.end_wait()


@contextlib.contextmanager
def workers_of(
    scheduler: str, workers: int | None, memory_limit: str | None, settings: PrepConfig | None = None
) -> Iterator[Workers]:
    """Yield the workers that `options.check_workers` has checked. They are stopped at the end of the block.

    Those of this machine are still to be started; a cluster that is there is met at once; `sync` means none. Dask's own
    log stays out of the terminal, unless --debug is given: what goes wrong is said in one line.
    """
    if scheduler == "sync":
        yield Workers()
        return
    from dskprep.pipeline import cluster
    from dskprep.preparation import prepare

    if not click.get_current_context().find_root().params.get("debug"):
        for name in ("distributed", "distributed.client", "distributed.comm", "tornado.application"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    if scheduler == "local":
        n, limit_bytes = cluster.worker_sizes(workers, memory_limit, settings)

        def opening() -> contextlib.AbstractContextManager[Client]:
            options.wait_for_code("loading compiled code")
            prepare.warm(settings)
            terminal.wait_for(f"starting {n_of(n, 'worker')}")
            return cluster.local_client(n, limit_bytes, settings)

        made = Workers(opening=opening)
    else:
        made = Workers()
    try:
        if scheduler != "local":
            terminal.wait_for(f"waiting for the scheduler at {scheduler}")
            made.meet(cluster.connect(scheduler))
        yield made
    finally:
        made.close()

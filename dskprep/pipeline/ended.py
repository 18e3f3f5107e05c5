"""How a run ended, and how long it took, as its summary says."""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dskprep import endings
from dskprep.errors import InfrastructureError
from dskprep.pipeline.account import Summary
from dskprep.pipeline.crew import Crew
from dskprep.plain import words_of


@contextmanager
def ended(summary: Summary, crew: Crew) -> Iterator[None]:
    """Put into the summary how the block ended, and how long it took without the start of the workers.

    What ends a run on purpose ends the block alone: KeyboardInterrupt, unless a second signal came by then, and a store
    or scheduler that is lost.
    """
    started = time.monotonic()
    try:
        with endings.taken(functools.partial(setattr, summary, "is_interrupted", True)):
            yield
    except InfrastructureError as error:
        summary.stopped_by = words_of(error)
    except Exception as error:  # a bug
        summary.stopped_by = f"{type(error).__name__}: {words_of(error)}"
        raise
    finally:
        summary.account.pace.end()
        summary.seconds = time.monotonic() - started - crew.start_s
        summary.ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")

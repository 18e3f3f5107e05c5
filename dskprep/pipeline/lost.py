"""A scheduler that is lost, in whatever Dask raises of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import CancelledError

from distributed import Client
from distributed.client import ClosedClientError

from dskprep.errors import DskprepError, InfrastructureError


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Raise InfrastructureError for what Dask raises in the block where the scheduler is not there any more."""
    try:
        yield
    except DskprepError:  # an InfrastructureError is an OSError
        raise
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

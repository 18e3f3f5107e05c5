"""What is asked of workers: how many, how large, where. What is wrong with the words shows before more is loaded."""

from __future__ import annotations

from dask.utils import parse_bytes

from dskprep.counts import format_bytes
from dskprep.errors import UsageError

MIN_WORKER_BYTES = 1_200_000_000
"""Memory that an ordinary chest needs. Fewer workers are started rather than smaller ones."""


def check_sizes(workers: int | None, memory_limit: str | int | None) -> int | None:
    """Return the memory limit in bytes. Raises UsageError for numbers that no machine could take."""
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be 1 or more, not {workers}")
    try:
        limit = None if memory_limit is None else int(parse_bytes(memory_limit))
    except (ValueError, OverflowError) as error:
        raise UsageError(f"the memory limit must be a size such as 1.6GiB, not {memory_limit!r}") from error
    if limit is not None and limit < MIN_WORKER_BYTES // 4:
        raise UsageError(
            f"a memory limit of {format_bytes(limit)} is too small: a worker needs "
            f"{format_bytes(MIN_WORKER_BYTES // 4)}, and {format_bytes(MIN_WORKER_BYTES)} for most patients, as in 2GiB"
        )
    return limit


def check_address(address: str) -> None:
    """Raise UsageError for what is neither the address of a scheduler nor its file."""
    if "://" in address and "@" in address:
        raise UsageError("expected the address of a scheduler alone, found a user or password before it; leave it out")
    if "://" not in address and not address.endswith(".json"):
        raise UsageError(
            f"expected the address of a scheduler, such as tcp://host:8786, or its .json file, found {address!r}; "
            "on the command line local and sync are schedulers too"
        )

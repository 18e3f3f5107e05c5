"""Work done ahead by threads, a few pieces at a time, with its results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(values: Iterable[T], submit: Callable[[T], Future[R]], n: int) -> Iterator[R]:
    """Yield the result for each value; so many are under way at once, that which is waited for among them."""
    under_way: deque[Future[R]] = deque()
    for value in values:
        under_way.append(submit(value))
        if len(under_way) == n:
            yield under_way.popleft().result()
    yield from (future.result() for future in under_way)

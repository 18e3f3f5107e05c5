"""Signals that end the program by an exception, as Ctrl-C does: told at once, or held back for what must be whole."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handle = Callable[[int, FrameType | None], Any]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def told(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` when such a signal comes in the block, before it takes effect."""

    def hear(before: Handle, number: int, frame: FrameType | None) -> None:
        tell()
        before(number, frame)

    with _handled(hear):
        yield


@contextlib.contextmanager
def held_back(n: int = 1) -> Iterator[None]:
    """Let the exceptions of the first `n` such signals come only when the block has ended, as one. More do not wait.

    Who is `told` of them, also outside of the block, hears each at once.
    """
    came: list[BaseException] = []

    def hear(before: Handle, number: int, frame: FrameType | None) -> None:
        if len(came) == n:
            before(number, frame)
            return
        try:
            before(number, frame)
        except BaseException as error:
            came.append(error)

    with _handled(hear):
        yield
    if came:
        raise came.pop()


@contextlib.contextmanager
def taken(tell: Callable[[], None]) -> Iterator[None]:
    """Let KeyboardInterrupt end the block alone, and call `tell`. If a second signal came by then, it goes on."""
    n = 0

    def hear(before: Handle, number: int, frame: FrameType | None) -> None:
        nonlocal n
        n += 1
        before(number, frame)

    with _handled(hear):
        try:
            yield
        except KeyboardInterrupt:
            tell()
            if n > 1:
                raise


@contextlib.contextmanager
def passed_over(tell: Callable[[], None]) -> Iterator[None]:
    """Only call `tell` when such a signal comes in the block, where all is done. A second one takes effect."""
    came: list[int] = []

    def hear(before: Handle, number: int, frame: FrameType | None) -> None:
        if came:
            before(number, frame)
        came.append(number)
        tell()

    with _handled(hear):
        yield


@contextlib.contextmanager
def _handled(hear: Callable[[Handle, int, FrameType | None], None]) -> Iterator[None]:
    """Call `hear` with what Python would call for each such signal in the block, and with its arguments.

    One that Python does not handle stays as it is. So do all of them in other threads than the main one, which Python
    handles signals in.
    """
    before: dict[int, Handle] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = ((number, signal.getsignal(number)) for number in SIGNALS)
        before = {number: handler for number, handler in handlers if callable(handler)}
    for number, handler in before.items():
        signal.signal(number, functools.partial(hear, handler))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

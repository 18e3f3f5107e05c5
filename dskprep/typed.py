"""Typed values out of plain ones, which strangers may have written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def converter(kind: type[T]) -> Callable[[Any], T]:
    """Return a function that makes a value of this kind out of plain JSON values, and raises ValueError if it cannot.

    msgspec looks at a type when it is first asked for one. If several threads are the first, that can crash the
    process, so it is asked here, while a module is imported.
    """
    msgspec.json.Decoder(kind)
    return functools.partial(msgspec.convert, type=kind)

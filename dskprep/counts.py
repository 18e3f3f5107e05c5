"""Numbers and lists in words: a number with its noun, bytes with their unit, and the first of many names."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

NAMED = 3
"""How many of several things a message names."""


def n_of(n: int, noun: str) -> str:
    """Return a number with its noun.

    >>> n_of(1, "patient"), n_of(2, "patient"), n_of(2, "series")
    ('1 patient', '2 patients', '2 series')
    """
    return f"{n} {noun}" if n == 1 or noun.endswith("s") else f"{n} {noun}s"


def format_bytes(n: float) -> str:
    """Return a number of bytes in the unit that suits it.

    >>> format_bytes(12), format_bytes(66_519), format_bytes(3 << 30)
    ('12 B', '64.96 KiB', '3.00 GiB')
    """
    for power, unit in reversed([*enumerate(("KiB", "MiB", "GiB", "TiB", "PiB"), 1)]):
        if n >= 0.9 * 1024**power:
            return f"{n / 1024**power:.2f} {unit}"
    return f"{n:g} B"


def some_of(names: Iterable[str], between: str = ", ") -> str:
    """Return the first NAMED of the names, and a mark if there are more.

    >>> some_of("abc"), some_of("abcd")
    ('a, b, c', 'a, b, c, …')
    """
    found = [*itertools.islice(names, NAMED + 1)]
    return between.join([*found[:NAMED], *(["…"] if len(found) > NAMED else [])])

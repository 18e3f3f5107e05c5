"""A number and its noun, in words."""

from __future__ import annotations


def n_of(n: int, noun: str) -> str:
    """Return a number with its noun.

    >>> n_of(1, "patient"), n_of(2, "patient"), n_of(2, "series")
    ('1 patient', '2 patients', '2 series')
    """
    return f"{n} {noun}" if n == 1 or noun.endswith("s") else f"{n} {noun}s"

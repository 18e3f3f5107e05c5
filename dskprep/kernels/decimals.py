"""Compiled loops over numbers that are written out, separated by backslashes, as DICOM writes them (PS3.5, VR DS)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

POWERS = 10.0 ** np.arange(23)
"""The powers of ten that a float64 holds exactly."""
EXACT = 1 << 53
"""Whole numbers up to this one are exact in a float64."""
MOST_DIGITS = 18
"""Digits that fit a whole number of 64 bits."""


@compiled
def count_numbers(text: NDArray[Any], starts: NDArray[Any], stops: NDArray[Any], counts: NDArray[Any]) -> None:
    """Write into `counts` how many numbers stand in uint8 `text` from each start to each stop.

    Blanks, zeros and backslashes at the end are none: each of `stops` is set before them.
    """
    for k in range(starts.size):
        stop = stops[k]
        while stop > starts[k] and (text[stop - 1] == 32 or text[stop - 1] == 0 or text[stop - 1] == 92):
            stop -= 1
        n = 0
        for i in range(starts[k], stop):
            n += text[i] == 92
        stops[k] = stop
        counts[k] = n + 1 if stop > starts[k] else 0


@compiled
def read_numbers(text: NDArray[Any], start: int, stop: int, powers: NDArray[Any], out: NDArray[Any]) -> bool:
    """Write into float64 `out` the numbers of uint8 `text` from `start` to `stop`, each as float() reads it.

    Returns False if one of them is not plain: digits with at most one point, a sign before, blanks around, an exponent
    behind; so few that both the whole number of its digits and the power of ten are exact, since then their one product
    or quotient is rounded right (Clinger 1990). Then `out` holds nothing.
    """
    i, n = start, 0
    while True:
        while i < stop and text[i] == 32:
            i += 1
        is_negative = i < stop and text[i] == 45
        if i < stop and (is_negative or text[i] == 43):
            i += 1
        whole, begin = np.int64(0), i
        while i < stop and 48 <= text[i] <= 57 and i - begin <= MOST_DIGITS:
            whole = whole * 10 + (np.int64(text[i]) - 48)
            i += 1
        n_digits, power = i - begin, np.int64(0)
        if i < stop and text[i] == 46:
            i, begin = i + 1, i + 1
            while i < stop and 48 <= text[i] <= 57 and n_digits + i - begin <= MOST_DIGITS:
                whole = whole * 10 + (np.int64(text[i]) - 48)
                i += 1
            n_digits, power = n_digits + i - begin, np.int64(begin - i)
        if n_digits > MOST_DIGITS:
            return False
        if n_digits == 0 or whole > EXACT:
            return False
        if i < stop and (text[i] == 69 or text[i] == 101):
            i += 1
            is_small = i < stop and text[i] == 45
            if i < stop and (is_small or text[i] == 43):
                i += 1
            exponent, n_digits = np.int64(0), 0
            while i < stop and 48 <= text[i] <= 57 and n_digits < 3:
                exponent = exponent * 10 + (np.int64(text[i]) - 48)
                n_digits += 1
                i += 1
            if n_digits == 0:
                return False
            power += -exponent if is_small else exponent
        while i < stop and text[i] == 32:
            i += 1
        if abs(power) >= powers.size or (i < stop and text[i] != 92):
            return False
        value = whole * powers[power] if power >= 0 else whole / powers[-power]
        out[n] = -value if is_negative else value
        n += 1
        if i >= stop:
            return n == out.size
        i += 1

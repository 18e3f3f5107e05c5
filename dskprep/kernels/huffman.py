"""Compiled walk through the Huffman codes of lossless JPEG (ITU-T T.81 annexes F and H), without decoding them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled

LONGEST = 16
"""Bits of the longest code."""


def bits_of_values(counts: NDArray[np.uint8], categories: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return how many bits a difference takes that begins with these 16 bits, as uint8 (65536); 0 for no code.

    `counts` has the number of codes of each length, and `categories` what they stand for, as a DHT segment has them
    (T.81 B.2.4.2 and C.2): so many bits follow the code, but none in category 16.
    """
    found = np.zeros(1 << LONGEST, np.uint8)
    at, lengths = 0, np.repeat(np.arange(1, LONGEST + 1), counts)
    for length, category in zip(lengths.tolist(), categories.tolist(), strict=False):
        stop = at + (1 << (LONGEST - length))
        found[at:stop] = length + category % 16
        at = stop
    return found


@compiled
def count_left(coded: NDArray[Any], bits_of: NDArray[Any], n_values: int, interval: int) -> int:
    """Return how many bits are left of uint8 `coded` after so many differences; -1 if it ends before, or has no code.

    With an interval above 0 a restart marker stands after each such number of them. A 0 follows each byte of 255 that
    is a value's (T.81 B.1.1.5), and 255 may fill what is before a marker.
    """
    i, held, n_held, restart = 0, np.uint64(0), np.int64(0), interval
    for k in range(n_values):
        if k == restart and interval > 0:
            while i + 1 < coded.size and coded[i] == 255 and coded[i + 1] == 255:
                i += 1
            if n_held >= 8 or i + 1 >= coded.size or coded[i] != 255 or coded[i + 1] & 0xF8 != 0xD0:
                return -1
            i, held, n_held, restart = i + 2, np.uint64(0), np.int64(0), restart + interval
        if n_held < 2 * LONGEST:  # a code, and what follows it
            while n_held <= 48 and i < coded.size:
                byte = coded[i]
                if byte == 255:
                    if i + 1 >= coded.size or coded[i + 1] != 0:
                        break
                    i += 1
                held = (held << np.uint64(8)) | np.uint64(byte)
                n_held += 8
                i += 1
        lacking = LONGEST - n_held
        first = held << np.uint64(lacking) if lacking > 0 else held >> np.uint64(-lacking)
        n = np.int64(bits_of[first & np.uint64(0xFFFF)])
        if n == 0 or n > n_held:
            return -1
        n_held -= n
    return int(n_held) + 8 * (coded.size - i)

"""A compiled loop that finds where words may begin in bytes, however many words there are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled, inlined

TABLE_BITS = np.uint64(20)
"""The table has 2**20 bytes, so it stays in the cache; with 10,000 beginnings one place in 100 is taken."""
SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio: multiplied by it, near numbers come to lie far apart (Knuth, TAOCP 6.4)."""


@inlined
def _place(gram: Any) -> Any:
    return (gram * SPREAD) >> (np.uint64(64) - TABLE_BITS)


@compiled
def table_of(beginnings: NDArray[Any]) -> NDArray[Any]:
    """Return the table in which `find_beginnings` looks up bytes, uint8; `beginnings` are folded (words, n)."""
    table = np.zeros(1 << 20, np.uint8)
    for k in range(beginnings.shape[0]):
        gram = np.uint64(0)
        for i in range(beginnings.shape[1]):
            gram = (gram << np.uint64(8)) | np.uint64(beginnings[k, i])
        table[_place(gram)] = 1
    return table


@compiled
def find_beginnings(
    data: NDArray[Any], fold: NDArray[Any], table: NDArray[Any], n: int, first: int, found: NDArray[Any]
) -> tuple[int, int]:
    """Write into `found` where, from `first` on, `n` bytes may be a beginning; `fold` maps each byte to lower case.

    Returns how many there are, and where to go on: len(data) at the end, earlier if `found` is full. A few places are
    none, as two beginnings may share a place of the table; none is left out.
    """
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * n)
    gram, count = np.uint64(0), 0
    for i in range(first, data.size):
        gram = ((gram << np.uint64(8)) | np.uint64(fold[data[i]])) & mask
        if i - first >= n - 1 and table[_place(gram)]:
            found[count] = i - n + 1
            count += 1
            if count == found.size:
                return count, i - n + 2
    return count, data.size

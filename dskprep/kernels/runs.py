"""Masks as runs of voxels along x, and the compiled loops that make, change and draw them.

A lung of some million voxels has some ten thousand runs, so what goes from run to run is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import bits
from dskprep.kernels.bits import END, NONE, ONE
from dskprep.kernels.compiled import compiled

DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
"""A de Bruijn sequence: each of its 64 windows of six bits holds another number (Leiserson et al. 1998)."""
TOP = np.uint64(58)
"""The shift that leaves the top six bits of a word."""
PLACES = np.argsort([(int(DE_BRUIJN) << place) % 2**64 >> int(TOP) for place in range(64)]).astype(np.int32)
"""The place of a word's only bit, by the top six bits of its product with DE_BRUIJN.

The product is DE_BRUIJN shifted by that place, so the top six bits are the window that begins there. numba has no
instruction for it that works on every machine.
"""


class Runs(NamedTuple):
    """A mask (z, y, x). Row r = z * ny + y has the runs first[r] to first[r + 1], in the order of x, never touching."""

    first: NDArray[np.int64]
    """Index of each row's first run; one value more than there are rows."""
    starts: NDArray[np.int32]
    """First x of each run."""
    stops: NDArray[np.int32]
    """The x after each run's last."""


def of_mask(mask: NDArray[Any]) -> Runs:
    """Return the runs of a bool mask (z, y, x)."""
    found: Runs = of_bits(bits.of_mask(mask), mask.shape[2])
    return found


def of_bits(words: NDArray[Any], nx: int) -> Runs:
    """Return the runs of a mask as bits, uint64 (z, y, words), with rows of `nx` voxels.

    The bits are read twice: to count the runs, so that the arrays fit, then to place them.
    """
    nz, ny, _ = words.shape
    first = np.zeros(nz * ny + 1, np.int64)
    _count(words, first)
    starts, stops = np.empty(first[-1], np.int32), np.empty(first[-1], np.int32)
    _place(words, nx, starts, stops)
    return Runs(first, starts, stops)


@compiled
def _count(words: NDArray[Any], first: NDArray[Any]) -> None:
    """Write the number of runs that begin before each row, and of all at the end."""
    nz, ny, nw = words.shape
    n = 0
    for z in range(nz):
        for y in range(ny):
            carry = NONE  # the voxel before the word
            for w in range(nw):
                word = words[z, y, w]
                begins = word & ~(word << ONE | carry)  # voxels whose neighbour before is not in the mask
                while begins:
                    begins &= begins - ONE  # clears the lowest bit
                    n += 1
                carry = word >> END
            first[z * ny + y + 1] = n


@compiled
def _place(words: NDArray[Any], nx: int, starts: NDArray[Any], stops: NDArray[Any]) -> None:
    """Write the first x of each run, and the one after its last."""
    nz, ny, nw = words.shape
    k = 0  # starts and stops come by turns
    for z in range(nz):
        for y in range(ny):
            carry = NONE
            for w in range(nw):
                word = words[z, y, w]
                differs = word ^ (word << ONE | carry)  # voxels that differ from the one before
                while differs:
                    lowest = differs & (~differs + ONE)  # two's complement: the lowest bit alone
                    place = 64 * w + PLACES[(lowest * DE_BRUIJN) >> TOP]
                    if k % 2 == 0:
                        starts[k // 2] = place
                    else:
                        stops[k // 2] = place
                    k += 1
                    differs ^= lowest
                carry = word >> END
            if carry != NONE:  # a run to the end of the last word, with no bit after it that would differ
                stops[k // 2] = nx
                k += 1


@compiled
def to_bits(runs: Runs, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Return the runs of a mask of `shape` (z, y, x) as bits."""
    nz, ny, nx = shape
    words = np.zeros((nz, ny, (nx + 63) // 64), np.uint64)
    for row in range(nz * ny):
        for run in range(runs.first[row], runs.first[row + 1]):
            bits.set_range(words[row // ny, row % ny], runs.starts[run], runs.stops[run])
    return words


def invert(runs: Runs, nx: int) -> Runs:
    """Return the voxels that are in no run, in rows of `nx` voxels."""
    one_plane = (1, runs.first.size - 1, nx)  # rows are all that counts
    found: Runs = of_bits(bits.invert(to_bits(runs, one_plane), nx), nx)
    return found


def where(runs: Runs, is_kept: NDArray[Any]) -> Runs:
    """Return the runs where bool `is_kept` (runs) is set."""
    n_kept = np.zeros(is_kept.size + 1, np.int64)  # among the runs before each
    np.cumsum(is_kept, out=n_kept[1:])
    return Runs(n_kept[runs.first], runs.starts[is_kept], runs.stops[is_kept])


def run_at(runs: Runs, row: int, x: int) -> int:
    """Return the run that holds column `x` of a row, or -1."""
    begin, end = int(runs.first[row]), int(runs.first[row + 1])
    run = begin + int(np.searchsorted(runs.stops[begin:end], x, side="right"))
    return run if run < end and runs.starts[run] <= x else -1


def rows_of(runs: Runs) -> NDArray[np.int64]:
    """Return the row of each run."""
    return np.repeat(np.arange(runs.first.size - 1), np.diff(runs.first))


def box_of(masks: Sequence[Runs], ny: int) -> list[tuple[int, int]]:
    """Return the first index along each of (z, y, x), and the one after the last, of the voxels in any of the masks."""
    rows = np.concatenate([np.flatnonzero(np.diff(mask.first)) for mask in masks])  # with a run
    starts, stops = (np.concatenate([mask[k] for mask in masks]) for k in (1, 2))
    pairs = ((rows // ny, rows // ny + 1), (rows % ny, rows % ny + 1), (starts, stops))
    return [(int(begins.min()), int(ends.max())) for begins, ends in pairs]


@compiled
def shift(runs: Runs, ny: int, offset: tuple[int, int, int], nz_new: int, ny_new: int) -> Runs:
    """Return the same voxels on a grid of another size, each moved by `offset` (z, y, x).

    All must lie within the new grid. So the runs stay the same ones in the same order: only the numbers of runs per
    row come from another row.
    """
    dz, dy, dx = offset
    nz = (runs.first.size - 1) // ny
    first = np.zeros(nz_new * ny_new + 1, np.int64)
    for z in range(nz_new):
        for y in range(ny_new):
            row = z * ny_new + y
            first[row + 1] = first[row]
            if 0 <= z - dz < nz and 0 <= y - dy < ny:
                old = (z - dz) * ny + y - dy
                first[row + 1] += runs.first[old + 1] - runs.first[old]
    return Runs(first, (runs.starts + dx).astype(np.int32), (runs.stops + dx).astype(np.int32))


def paint(runs: Runs, value: int, out: NDArray[Any]) -> None:
    """Set the voxels of `out` (z, y, x), bool or uint8, that are in the runs to `value`."""
    _paint(*runs, value, out.view(np.uint8))


@compiled
def _paint(first: NDArray[Any], starts: NDArray[Any], stops: NDArray[Any], value: int, out: NDArray[Any]) -> None:
    """Set the voxels of the runs."""
    ny = out.shape[1]
    for row in range(first.size - 1):
        line = out[row // ny, row % ny]
        for run in range(first[row], first[row + 1]):
            for x in range(starts[run], stops[run]):
                line[x] = value

"""Masks as bits: uint64 (z, y, words), where bit i of word w of a row is the voxel x = 64 w + i.

One instruction handles 64 voxels: OR and AND join and intersect masks, and a shift moves a row along x.
Bits beyond the end of a row are 0 in every mask, so that words can be compared and counted as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled, inlined

# All operands are uint64, because numba makes int64 or float64 of a uint64 and a plain int.

ONE = np.uint64(1)
"""The first voxel of a word, and the shift by one voxel."""
END = np.uint64(63)
"""The shift between the first and the last voxel of a word: it carries a voxel into the next word."""
NONE = np.uint64(0)
"""A word without a voxel."""
ALL = np.uint64(2**64 - 1)
"""A word of 64 voxels."""
TOLERANCE = 1 + 1e-6
"""Factor on a distance in mm: a voxel that lies exactly at a limit is within it, in spite of rounding."""


@compiled
def dilate(bits: NDArray[Any], nx: int, steps: int) -> NDArray[Any]:
    """Return the mask after `steps` dilations by face neighbours, as scipy.ndimage.binary_dilation."""
    before, after = np.empty_like(bits), bits.copy()
    for _ in range(steps):
        before, after = after, before
        _step(before, after, nx, False)
    return after


@compiled
def erode(bits: NDArray[Any], nx: int) -> NDArray[Any]:
    """Return the voxels whose six face neighbours are in the mask too, as scipy.ndimage.binary_erosion."""
    after = np.empty_like(bits)
    _step(bits, after, nx, True)
    return after


@compiled
def _step(before: NDArray[Any], after: NDArray[Any], nx: int, is_erosion: bool) -> None:
    """Write one dilation or erosion by face neighbours into `after`; beyond the edges there is nothing."""
    nz, ny, nw = before.shape
    last = _last_word(nx)
    nothing = np.zeros(nw, np.uint64)
    for z in range(nz):
        for y in range(ny):
            line, out = before[z, y], after[z, y]
            front = before[z, y - 1] if y > 0 else nothing
            back = before[z, y + 1] if y < ny - 1 else nothing
            below = before[z - 1, y] if z > 0 else nothing
            above = before[z + 1, y] if z < nz - 1 else nothing
            for w in range(nw):
                word = line[w]
                # the voxel that leaves one word enters the next
                right = word << ONE | (line[w - 1] >> END if w > 0 else NONE)
                left = word >> ONE | (line[w + 1] << END if w < nw - 1 else NONE)
                if is_erosion:
                    out[w] = word & right & left & front[w] & back[w] & below[w] & above[w]
                else:
                    out[w] = word | right | left | front[w] | back[w] | below[w] | above[w]
            out[nw - 1] &= last


@compiled
def _last_word(nx: int) -> np.uint64:
    """Return the bits that the last word of a row of `nx` voxels can hold."""
    return ALL >> np.uint64(63 - (nx - 1) % 64)


def of_mask(mask: NDArray[Any]) -> NDArray[Any]:
    """Return a bool mask (z, y, x) as bits."""
    nz, ny, nx = mask.shape
    bits = np.empty((nz, ny, (nx + 63) // 64), np.uint64)
    _pack(mask, bits)
    return bits


@compiled
def _pack(mask: NDArray[Any], bits: NDArray[Any]) -> None:
    """Write the bits of a mask."""
    nz, ny, _ = mask.shape
    for z in range(nz):
        for y in range(ny):
            _pack_row(mask[z, y], bits[z, y])


@inlined
def _pack_row(row: NDArray[Any], words: NDArray[Any]) -> None:
    """Write the bits of a row (x) of a mask."""
    for w in range(words.size):
        word = NONE
        for i in range(min(64, row.size - 64 * w)):
            word |= np.uint64(row[64 * w + i]) << np.uint64(i)
        words[w] = word


def of_range(values: NDArray[Any], low: int, high: int) -> NDArray[Any]:
    """Return the voxels whose int16 value is from `low` to `high`, both included, as bits."""
    nz, ny, nx = values.shape
    bits = np.empty((nz, ny, (nx + 63) // 64), np.uint64)
    _pack_range(values, low, high, np.empty(nx, np.uint8), bits)
    return bits


@compiled
def _pack_range(values: NDArray[Any], low: int, high: int, is_in: NDArray[Any], bits: NDArray[Any]) -> None:
    """Write the bits of the values in a range; `is_in` (x) is scratch."""
    nz, ny, nx = values.shape
    least, most = np.int16(low), np.int16(high)
    for z in range(nz):
        for y in range(ny):
            row = values[z, y]
            for x in range(nx):  # by itself, so that many values are compared at a time
                is_in[x] = (row[x] >= least) & (row[x] <= most)
            _pack_row(is_in, bits[z, y])


def columns(bits: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """Return the columns (x) from `start` to `stop`, as bits."""
    first, n_words = start // 64, (stop - start + 63) // 64
    by = np.uint64(start % 64)
    found: NDArray[Any] = bits[:, :, first : first + n_words] >> by
    if by:  # the rest of each word lies in the next one
        following = bits[:, :, first + 1 : first + 1 + n_words]
        found[:, :, : following.shape[2]] |= following << (np.uint64(64) - by)
    if n_words:
        found[:, :, -1] &= ALL >> np.uint64(63 - (stop - start - 1) % 64)
    return found


def to_mask(bits: NDArray[Any], nx: int) -> NDArray[Any]:
    """Return bits as a bool mask (z, y, x) with rows of `nx` voxels."""
    mask = np.empty((*bits.shape[:2], nx), np.bool_)
    _unpack(bits, mask)
    return mask


@compiled
def _unpack(bits: NDArray[Any], mask: NDArray[Any]) -> None:
    """Write the mask of bits."""
    nz, ny, nx = mask.shape
    for z in range(nz):
        for y in range(ny):
            for w in range(bits.shape[2]):
                word = bits[z, y, w]
                for i in range(min(64, nx - 64 * w)):
                    mask[z, y, 64 * w + i] = (word >> np.uint64(i)) & ONE != NONE


@compiled
def count_range(row: NDArray[Any], start: int, stop: int) -> int:
    """Return how many voxels from `start` to `stop` of a row (words) are set; the stop lies beyond the start."""
    first, last = start >> 6, (stop - 1) >> 6  # words
    n = 0
    for w in range(first, last + 1):
        word = row[w]
        if w == first:
            word &= ALL << np.uint64(start & 63)  # from the start on
        if w == last:
            word &= ALL >> np.uint64(63 - ((stop - 1) & 63))  # to the last voxel
        n += n_set(word)
    return n


@compiled
def n_set(word: Any) -> Any:
    """Return how many bits of a word are set (Warren 2013, Hacker's Delight, 5-1); the compiler knows this."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def set_range(row: NDArray[Any], start: int, stop: int) -> None:
    """Set the voxels from `start` to `stop` of a row (words), in place; none if the stop is not beyond the start."""
    if start >= stop:
        return
    first, last = start >> 6, (stop - 1) >> 6  # words
    head = ALL << np.uint64(start & 63)  # from the start to the end of its word
    tail = ALL >> np.uint64(63 - ((stop - 1) & 63))  # from the beginning of the last word to the last voxel
    if first == last:
        row[first] |= head & tail
    else:
        row[first] |= head
        for w in range(first + 1, last):
            row[w] = ALL
        row[last] |= tail


def invert(bits: NDArray[Any], nx: int) -> NDArray[Any]:
    """Return the voxels that are not in the mask."""
    rest: NDArray[Any] = ~bits
    rest[:, :, -1] &= ALL >> np.uint64(63 - (nx - 1) % 64)
    return rest


def erode_ball(bits: NDArray[Any], nx: int, radius_mm: float, spacing: tuple[float, float, float]) -> NDArray[Any]:
    """Return the voxels of the mask that are more than `radius_mm` from the rest; beyond the edges is no rest."""
    eroded: NDArray[Any] = invert(dilate_ball(invert(bits, nx), nx, radius_mm, spacing), nx)
    return eroded


def dilate_ball(bits: NDArray[Any], nx: int, radius_mm: float, spacing: tuple[float, float, float]) -> NDArray[Any]:
    """Return the voxels at most `radius_mm` from the mask, from centre to centre.

    A ball is a stack of discs, and a disc is a stack of rows. So each plane of the mask is first widened along x by
    every number of voxels that a row of the ball has. A disc is then some of these, each moved along y, in one OR per
    row of the disc; and the ball is its discs, each moved along z.
    """
    nz, ny, nw = bits.shape
    if bits.size == 0:
        return bits.copy()
    planes = bits.reshape(nz, ny * nw)  # rows follow one another in memory, so a move along y is one offset
    result = np.zeros_like(planes)
    z_mm, y_mm, x_mm = map(float, spacing)  # of one type, so that one kernel is compiled
    radius_mm = float(radius_mm * TOLERANCE)
    widened = np.empty((min(int(radius_mm / x_mm), nx) + 1, ny * nw), np.uint64)
    _dilate_planes(planes, nx, radius_mm, z_mm, y_mm, x_mm, widened, np.empty(ny * nw, np.uint64), result)
    dilated: NDArray[Any] = result.reshape(nz, ny, nw)
    return dilated


@compiled
def _dilate_planes(
    planes: NDArray[Any],
    nx: int,
    radius_mm: float,
    z_mm: float,
    y_mm: float,
    x_mm: float,
    widened: NDArray[Any],
    disc: NDArray[Any],
    result: NDArray[Any],
) -> None:
    """Add the dilation of `planes` (z, words of all rows) to `result`, all 0 before.

    Scratch of a plane each: `disc`, and widened[n], a plane widened by n voxels to either side.
    """
    nz, size = planes.shape
    nw = (nx + 63) // 64
    ny = size // nw
    reach_z, reach_y = min(int(radius_mm / z_mm), nz - 1), min(int(radius_mm / y_mm), ny - 1)
    reach_x = widened.shape[0] - 1
    for z in range(nz):
        any_of_plane = NONE
        for i in range(size):
            widened[0, i] = planes[z, i]
            any_of_plane |= planes[z, i]
        if any_of_plane == NONE:
            continue
        for n in range(1, reach_x + 1):
            _widen(widened[n - 1], nx, widened[n])
        for dz in range(reach_z + 1):
            for i in range(size):
                disc[i] = NONE
            for dy in range(-reach_y, reach_y + 1):
                rest_mm2 = radius_mm**2 - (dz * z_mm) ** 2 - (dy * y_mm) ** 2  # what is left for x
                if rest_mm2 >= 0:
                    row = widened[min(int(np.sqrt(rest_mm2) / x_mm), reach_x)]
                    begin, end = max(0, dy * nw), min(size, size + dy * nw)  # moved along y, by words
                    _join(row[begin - dy * nw : end - dy * nw], disc[begin:end])
            # the same disc counts dz planes below and above
            if z >= dz:
                _join(disc, result[z - dz])
            if 0 < dz < nz - z:
                _join(disc, result[z + dz])


@compiled
def _join(words: NDArray[Any], out: NDArray[Any]) -> None:
    """Add words to as many others."""
    for i in range(words.size):
        out[i] |= words[i]


@compiled
def _widen(words: NDArray[Any], nx: int, out: NDArray[Any]) -> None:
    """Write a plane, dilated by one voxel along x, into `out`."""
    nw = (nx + 63) // 64
    last = _last_word(nx)
    for first in range(0, words.size, nw):
        row, wide = words[first : first + nw], out[first : first + nw]
        for w in range(nw):
            right = row[w] << ONE | (row[w - 1] >> END if w > 0 else NONE)
            left = row[w] >> ONE | (row[w + 1] << END if w < nw - 1 else NONE)
            wide[w] = row[w] | right | left
        wide[nw - 1] &= last

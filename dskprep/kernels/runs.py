"""Compiled loops over masks as runs of voxels along x: far fewer than the voxels are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import bits
from dskprep.kernels.bits import ALL, NONE, ONE, WORD
from dskprep.kernels.compiled import compiled

FACES, EDGES, CORNERS, IN_SLICE = 6, 18, 26, 8
"""What joins two voxels: a shared face, edge or corner, or, in one axial slice, an edge or corner there."""

DE_BRUIJN, TOP = np.uint64(0x03F79D71B4CB0A89), np.uint64(58)
"""The place of the only bit of a word is that of the top six bits of its product in PLACES (Leiserson et al. 1998)."""
PLACES = np.argsort([(int(DE_BRUIJN) << place) % 2**64 >> int(TOP) for place in range(64)]).astype(np.int32)


class Runs(NamedTuple):
    """A mask (z, y, x): in row r = z * ny + y, the runs first[r] to first[r + 1], each from `starts` to `stops`."""

    first: NDArray[np.int64]
    starts: NDArray[np.int32]
    stops: NDArray[np.int32]


@compiled
def of_mask(mask: NDArray[Any]) -> Runs:
    """The runs of a bool mask (z, y, x)."""
    return of_bits(bits.of_mask(mask), mask.shape[2])


@compiled
def of_bits(words: NDArray[Any], nx: int) -> Runs:
    """The runs of a mask (z, y, words) of rows of `nx` voxels."""
    nz, ny, nw = words.shape
    first = np.empty(nz * ny + 1, np.int64)
    n = 0
    for z in range(nz):
        for y in range(ny):
            first[z * ny + y] = n
            carry = NONE
            for w in range(nw):
                word = words[z, y, w]
                begins = word & ~(word << ONE | carry)
                while begins:
                    begins &= begins - ONE
                    n += 1
                carry = word >> WORD
    first[nz * ny] = n
    changes = np.empty(2 * n, np.int32)  # where a run starts or has stopped, by turns
    k = 0
    for z in range(nz):
        for y in range(ny):
            carry = NONE
            for w in range(nw):
                word = words[z, y, w]
                differs = word ^ (word << ONE | carry)
                while differs:
                    lowest = differs & (~differs + ONE)
                    changes[k] = 64 * w + PLACES[(lowest * DE_BRUIJN) >> TOP]
                    k += 1
                    differs ^= lowest
                carry = word >> WORD
            if carry != NONE:
                changes[k] = nx
                k += 1
    return Runs(first, changes[::2].copy(), changes[1::2].copy())


@compiled
def to_bits(runs: Runs, shape: tuple[int, int, int]) -> NDArray[Any]:
    """The mask (z, y, x) as bits: uint64 (z, y, words); bit i of word w is x = 64 w + i."""
    nz, ny, nx = shape
    bits = np.zeros((nz, ny, (nx + 63) // 64), np.uint64)
    for row in range(nz * ny):
        line = bits[row // ny, row % ny]
        for run in range(runs.first[row], runs.first[row + 1]):
            start, last = runs.starts[run], runs.stops[run] - 1
            head = ALL << np.uint64(start & 63)
            tail = ALL >> np.uint64(63 - (last & 63))
            if start >> 6 == last >> 6:
                line[start >> 6] |= head & tail
            else:
                line[start >> 6] |= head
                line[(start >> 6) + 1 : last >> 6] = ALL
                line[last >> 6] |= tail
    return bits


@compiled
def at_most(array: NDArray[Any], limit: int) -> Runs:
    """The runs of voxels whose value is `limit` or less."""
    nz, ny, nx = array.shape
    first = np.empty(nz * ny + 1, np.int64)
    starts = np.empty(8 * nz * ny + nx, np.int32)
    stops = np.empty(8 * nz * ny + nx, np.int32)
    n = 0
    for z in range(nz):
        for y in range(ny):
            first[z * ny + y] = n
            if n + nx > starts.size:
                starts = enlarged(starts)
                stops = enlarged(stops)
            n = add_row(array[z, y], limit, 0, nx, n, starts, stops)
    first[nz * ny] = n
    return Runs(first, starts[:n].copy(), stops[:n].copy())


@compiled
def add_row(
    row: NDArray[Any], limit: float, begin: int, end: int, n: int, starts: NDArray[Any], stops: NDArray[Any]
) -> int:
    """Append the runs of `row` between `begin` and `end` that are `limit` or less; return the number of all."""
    x = begin
    while x < end:
        while x < end and row[x] > limit:
            x += 1
        if x >= end:
            break
        starts[n] = x
        while x < end and row[x] <= limit:
            x += 1
        stops[n] = x
        n += 1
    return n


@compiled
def enlarged(array: NDArray[Any]) -> NDArray[Any]:
    """A copy with room for as much again."""
    larger = np.empty(2 * array.size, array.dtype)
    larger[: array.size] = array
    return larger


@compiled
def inverse(runs: Runs, nx: int) -> Runs:
    """The voxels that are in no run, in rows of `nx` voxels."""
    n_rows = runs.first.size - 1
    first = np.empty(n_rows + 1, np.int64)
    starts = np.empty(runs.starts.size + n_rows, np.int32)
    stops = np.empty(runs.starts.size + n_rows, np.int32)
    n = 0
    for row in range(n_rows):
        first[row] = n
        x = 0
        for run in range(runs.first[row], runs.first[row + 1]):
            if runs.starts[run] > x:
                starts[n], stops[n] = x, runs.starts[run]
                n += 1
            x = runs.stops[run]
        if x < nx:
            starts[n], stops[n] = x, nx
            n += 1
    first[n_rows] = n
    return Runs(first, starts[:n].copy(), stops[:n].copy())


@compiled
def union(a: Runs, b: Runs) -> Runs:
    """The voxels of either mask; no voxel is in both."""
    n_rows = a.first.size - 1
    first = np.empty(n_rows + 1, np.int64)
    starts = np.empty(a.starts.size + b.starts.size, np.int32)
    stops = np.empty(a.starts.size + b.starts.size, np.int32)
    n = 0
    for row in range(n_rows):
        first[row] = n
        i, j = a.first[row], b.first[row]
        while i < a.first[row + 1] or j < b.first[row + 1]:
            if j == b.first[row + 1] or (i < a.first[row + 1] and a.starts[i] < b.starts[j]):
                start, stop = a.starts[i], a.stops[i]
                i += 1
            else:
                start, stop = b.starts[j], b.stops[j]
                j += 1
            if n > first[row] and stops[n - 1] == start:
                stops[n - 1] = stop
            else:
                starts[n], stops[n] = start, stop
                n += 1
    first[n_rows] = n
    return Runs(first, starts[:n].copy(), stops[:n].copy())


@compiled
def where(runs: Runs, is_kept: NDArray[Any]) -> Runs:
    """The runs that are kept."""
    n_rows = runs.first.size - 1
    first = np.empty(n_rows + 1, np.int64)
    n = 0
    for row in range(n_rows):
        first[row] = n
        for run in range(runs.first[row], runs.first[row + 1]):
            n += is_kept[run]
    first[n_rows] = n
    starts = np.empty(n, np.int32)
    stops = np.empty(n, np.int32)
    n = 0
    for run in range(runs.starts.size):
        if is_kept[run]:
            starts[n], stops[n] = runs.starts[run], runs.stops[run]
            n += 1
    return Runs(first, starts, stops)


@compiled
def label(runs: Runs, ny: int, joined_by: int) -> NDArray[Any]:
    """The piece that each run belongs to, named by its first run.

    `joined_by` is FACES, EDGES or CORNERS, or IN_SLICE for pieces of single slices; rows are `ny` a slice.
    """
    parents = np.arange(runs.starts.size).astype(np.int32)
    diagonal = 0 if joined_by == FACES else 1
    for row in range(runs.first.size - 1):
        y = row % ny
        if y > 0:
            _join_rows(parents, runs, row, row - 1, diagonal)
        if row < ny or joined_by == IN_SLICE:
            continue
        _join_rows(parents, runs, row, row - ny, diagonal)
        if joined_by == FACES:
            continue
        if y > 0:
            _join_rows(parents, runs, row, row - ny - 1, joined_by == CORNERS)
        if y < ny - 1:
            _join_rows(parents, runs, row, row - ny + 1, joined_by == CORNERS)
    for run in range(parents.size):
        parents[run] = parents[parents[run]]  # parents come first, so theirs are roots already
    return parents


@compiled
def _join_rows(parents: NDArray[Any], runs: Runs, row: int, other_row: int, diagonal: int) -> None:
    """Join the runs of two rows that overlap, or with `diagonal` 1 touch; the earliest run becomes the root."""
    a, b = runs.first[row], runs.first[other_row]
    while a < runs.first[row + 1] and b < runs.first[other_row + 1]:
        if runs.starts[a] < runs.stops[b] + diagonal and runs.starts[b] < runs.stops[a] + diagonal:
            root_a, root_b = _find_root(parents, a), _find_root(parents, b)
            parents[max(root_a, root_b)] = min(root_a, root_b)
        if runs.stops[a] < runs.stops[b]:
            a += 1
        else:
            b += 1


@compiled
def _find_root(parents: NDArray[Any], run: int) -> int:
    """Follow the parents of a run, halving the path."""
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run


@compiled
def sizes(runs: Runs, pieces: NDArray[Any]) -> NDArray[Any]:
    """Number of voxels of each piece at the index of its first run, 0 elsewhere."""
    counts = np.zeros(pieces.size, np.int64)
    for run in range(pieces.size):
        counts[pieces[run]] += runs.stops[run] - runs.starts[run]
    return counts


@compiled
def numbered(pieces: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """The number of each run's piece, from 0 on in the order of their first runs, and how many there are."""
    numbers = np.empty(pieces.size, np.int32)
    n = 0
    for run in range(pieces.size):
        if pieces[run] == run:
            numbers[run] = n
            n += 1
        else:
            numbers[run] = numbers[pieces[run]]
    return numbers, n


@compiled
def counts(runs: Runs, numbers: NDArray[Any], n_pieces: int, mask: NDArray[Any]) -> NDArray[Any]:
    """Number of voxels of each numbered piece that are in a bool mask (z, y, x)."""
    ny = mask.shape[1]
    found = np.zeros(n_pieces, np.int64)
    for row in range(runs.first.size - 1):
        line = mask[row // ny, row % ny]
        for run in range(runs.first[row], runs.first[row + 1]):
            n = np.int32(0)
            for x in range(runs.starts[run], runs.stops[run]):
                n += np.int32(line[x])
            found[numbers[run]] += n
    return found


@compiled
def boxes(runs: Runs, numbers: NDArray[Any], n_pieces: int, ny: int) -> NDArray[Any]:
    """The box (first z, y, x, last + 1) of each numbered piece."""
    found = np.empty((n_pieces, 2, 3), np.int64)
    found[:, 0] = np.iinfo(np.int64).max
    found[:, 1] = 0
    for row in range(runs.first.size - 1):
        z, y = row // ny, row % ny
        for run in range(runs.first[row], runs.first[row + 1]):
            first, stop = found[numbers[run]]
            first[0], stop[0] = min(first[0], z), max(stop[0], z + 1)
            first[1], stop[1] = min(first[1], y), max(stop[1], y + 1)
            first[2], stop[2] = min(first[2], runs.starts[run]), max(stop[2], runs.stops[run])
    return found


@compiled
def paint_piece(
    runs: Runs, numbers: NDArray[Any], number: int, ny: int, first: tuple[int, int, int], out: NDArray[Any]
) -> None:
    """Set the voxels of a bool box (z, y, x) at `first` that are in a numbered piece."""
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            row = (first[0] + z) * ny + first[1] + y
            for run in range(runs.first[row], runs.first[row + 1]):
                if numbers[run] == number:
                    out[z, y, max(0, runs.starts[run] - first[2]) : max(0, runs.stops[run] - first[2])] = True


@compiled
def is_largest_in_slice(runs: Runs, pieces: NDArray[Any], ny: int) -> NDArray[Any]:
    """Whether each run belongs to the largest piece of its slice; of equals, to the first."""
    counts = sizes(runs, pieces)
    is_largest = np.zeros(pieces.size, np.bool_)
    for row in range(0, runs.first.size - 1, ny):
        begin, end = runs.first[row], runs.first[row + ny]
        largest = begin
        for run in range(begin, end):
            if counts[run] > counts[largest]:
                largest = run
        for run in range(begin, end):
            is_largest[run] = pieces[run] == largest
    return is_largest


def largest(runs: Runs, pieces: NDArray[Any]) -> Runs:
    """The largest piece; of equals, the first."""
    if pieces.size == 0:
        return runs
    return where(runs, pieces == sizes(runs, pieces).argmax())


def run_at(runs: Runs, row: int, x: int) -> int:
    """The run that holds column `x` of a row, or -1."""
    begin, end = int(runs.first[row]), int(runs.first[row + 1])
    run = begin + int(np.searchsorted(runs.stops[begin:end], x, side="right"))
    return run if run < end and runs.starts[run] <= x else -1


@compiled
def moved(runs: Runs, ny: int, offset: tuple[int, int, int], nz_new: int, ny_new: int) -> Runs:
    """The same voxels on a grid of another size: (z, y, x) becomes (z, y, x) + offset. All must lie within it."""
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


@compiled
def paint(runs: Runs, value: int, out: NDArray[Any]) -> None:
    """Set the voxels of `out` (z, y, x) that are in the runs."""
    ny = out.shape[1]
    for row in range(runs.first.size - 1):
        line = out[row // ny, row % ny]
        for run in range(runs.first[row], runs.first[row + 1]):
            line[runs.starts[run] : runs.stops[run]] = value

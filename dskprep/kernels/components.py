"""Connected components (pieces) of masks, on runs of voxels: labelling and sizes.

A piece is named by the index of its first run, or by a number from 0 on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.bits import ALL, count_range, n_set
from dskprep.kernels.compiled import compiled
from dskprep.kernels.runs import Runs, rows_of, where

FACES = 6
"""Connectivity: voxels that share a face belong together; each has six such neighbours."""
EDGES = 18
"""Connectivity: voxels that share a face or an edge."""
CORNERS = 26
"""Connectivity: voxels that share a face, an edge or a corner."""
IN_SLICE = 8
"""Connectivity: pixels of one axial slice that share an edge or a corner; slices stay apart."""
IN_SLICE_EDGES = 4
"""Connectivity: pixels of one axial slice that share an edge."""


def label(runs: Runs, ny: int, joined_by: int) -> NDArray[Any]:
    """Return the piece that each run belongs to, named by the piece's first run: int32 (runs).

    `joined_by` is one of the connectivities above; `ny` is the number of rows per slice.
    """
    # the rows that come before one and may hold its neighbours, half of all: how many slices and rows before, and
    # whether runs need only touch at a corner
    before = [(0, 1, joined_by in (EDGES, CORNERS, IN_SLICE))]
    if joined_by in (FACES, EDGES, CORNERS):
        before += [(1, 0, joined_by != FACES)]
    if joined_by in (EDGES, CORNERS):  # one up and one across: an edge is shared where runs overlap
        before += [(1, 1, joined_by == CORNERS), (1, -1, joined_by == CORNERS)]
    parents = np.arange(runs.starts.size, dtype=np.int32)
    _join(*runs, ny, np.array(before, np.int64), parents)
    return parents


@compiled
def _join(
    first: NDArray[Any],
    starts: NDArray[Any],
    stops: NDArray[Any],
    ny: int,
    before: NDArray[Any],
    parents: NDArray[Any],
) -> None:
    """Write the piece of each run into `parents`, where each run is its own before.

    This is union-find: each run points to an earlier run of its piece, its parent, and the first one, the root, to
    itself. Runs of two rows are joined if they overlap or touch at a corner; the earlier root is that of both.
    """
    for row in range(first.size - 1):
        for k in range(before.shape[0]):
            other, diagonal = row - before[k, 0] * ny - before[k, 1], before[k, 2]
            if other < 0 or not 0 <= row % ny - before[k, 1] < ny:
                continue
            a, b, end_a, end_b = first[row], first[other], first[row + 1], first[other + 1]
            while a < end_a and b < end_b:
                if starts[a] < stops[b] + diagonal and starts[b] < stops[a] + diagonal:
                    root_a, root_b = _find_root(parents, a), _find_root(parents, b)
                    if root_a < root_b:
                        parents[root_b] = root_a
                    else:
                        parents[root_a] = root_b
                if stops[a] < stops[b]:  # the run that ends first meets no later one of the other row
                    a += 1
                else:
                    b += 1
    for run in range(parents.size):
        parents[run] = parents[parents[run]]  # parents come first, so that theirs are roots already


@compiled
def _find_root(parents: NDArray[Any], run: int) -> int:
    """Return the first run of the piece. Each step skips a parent for good, which keeps later paths short."""
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run


def sizes(runs: Runs, pieces: NDArray[Any]) -> NDArray[Any]:
    """Return the number of voxels of each piece at the index of its first run, and 0 elsewhere."""
    # sums of whole numbers are exact in float64
    return np.bincount(pieces, runs.stops - runs.starts, minlength=pieces.size).astype(np.int64)


def number(pieces: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return the number of each run's piece, and how many pieces there are.

    They are numbered from 0 on in the order of their first runs, as scipy.ndimage.label does.
    """
    n_up_to = np.cumsum(pieces == np.arange(pieces.size), dtype=np.int32)
    return n_up_to[pieces] - np.int32(1), int(n_up_to[-1]) if pieces.size else 0


def counts(runs: Runs, numbers: NDArray[Any], n_pieces: int, mask: NDArray[Any]) -> NDArray[Any]:
    """Return the number of voxels of each numbered piece that are in a mask as bits (z, y, words)."""
    found = np.zeros(n_pieces, np.int64)
    _count(*runs, numbers, mask, found)
    return found


@compiled
def _count(
    first: NDArray[Any],
    starts: NDArray[Any],
    stops: NDArray[Any],
    numbers: NDArray[Any],
    mask: NDArray[Any],
    found: NDArray[Any],
) -> None:
    """Add the number of voxels of each piece that are in the mask to `found` (pieces)."""
    ny = mask.shape[1]
    for row in range(first.size - 1):
        line = mask[row // ny, row % ny]
        for run in range(first[row], first[row + 1]):
            found[numbers[run]] += count_range(line, starts[run], stops[run])


def counts_around(
    runs: Runs,
    numbers: NDArray[Any],
    n_pieces: int,
    near: NDArray[Any],
    wide: NDArray[Any],
    nx: int,
    first: NDArray[Any],
    second: NDArray[Any],
) -> NDArray[Any]:
    """Return how many voxels lie in a ring round each numbered piece, and how many of these are in two masks.

    The ring lies in the ball `wide` round a voxel of the piece, and in the ball `near` round none. A ball is half its
    width along x in each row (z, y) round its middle, -1 where it has none. Rings may overlap. Both masks are bits of
    rows of `nx` voxels.
    """
    found = np.zeros((3, n_pieces), np.int64)
    marks = np.zeros_like(first)
    starts, stops, order = runs.starts, runs.stops, np.argsort(numbers, kind="stable")
    _count_around(rows_of(runs), starts, stops, numbers, order, near, wide, nx, first, second, marks, found)
    return found


@compiled
def _count_around(
    rows: NDArray[Any],
    starts: NDArray[Any],
    stops: NDArray[Any],
    numbers: NDArray[Any],
    order: NDArray[Any],
    near: NDArray[Any],
    wide: NDArray[Any],
    nx: int,
    first: NDArray[Any],
    second: NDArray[Any],
    marks: NDArray[Any],
    found: NDArray[Any],
) -> None:
    """Add the counts to `found` (3, pieces). `order` sorts the runs by piece; masks and `marks`, all 0, are bits.

    Each piece marks the balls `wide`, takes the marks off in the balls `near`, and then counts what it has marked and
    takes that off too.
    """
    nz, ny, _ = marks.shape
    begin = 0
    while begin < order.size:
        piece, end = numbers[order[begin]], begin
        while end < order.size and numbers[order[end]] == piece:
            end += 1
        for step in range(3):
            ball = near if step == 1 else wide
            for k in range(begin, end):
                run = order[k]
                z, y = rows[run] // ny - ball.shape[0] // 2, rows[run] % ny - ball.shape[1] // 2
                for i in range(max(0, -z), min(ball.shape[0], nz - z)):
                    for j in range(max(0, -y), min(ball.shape[1], ny - y)):
                        if ball[i, j] < 0:
                            continue
                        x0, x1 = max(0, starts[run] - ball[i, j]), min(nx, stops[run] + ball[i, j])
                        for w in range(x0 >> 6, ((x1 - 1) >> 6) + 1):
                            part = ALL << np.uint64(max(x0 - 64 * w, 0))
                            part &= ALL >> np.uint64(max(64 * w + 64 - x1, 0))
                            marked = marks[z + i, y + j, w]
                            if step == 0:
                                marks[z + i, y + j, w] = marked | part
                                continue
                            marks[z + i, y + j, w] = marked & ~part
                            if step == 2 and marked & part:
                                found[0, piece] += n_set(marked & part)
                                found[1, piece] += n_set(marked & part & first[z + i, y + j, w])
                                found[2, piece] += n_set(marked & part & second[z + i, y + j, w])
        begin = end


def is_largest_in_slice(runs: Runs, pieces: NDArray[Any], ny: int) -> NDArray[Any]:
    """Return whether each run belongs to the largest piece of its slice; of equals, to the first."""
    is_largest = np.zeros(pieces.size, np.bool_)
    _mark_largest_in_slice(runs, pieces, sizes(runs, pieces), ny, is_largest)
    return is_largest


@compiled
def _mark_largest_in_slice(
    runs: Runs, pieces: NDArray[Any], counts: NDArray[Any], ny: int, is_largest: NDArray[Any]
) -> None:
    """Set `is_largest` of the runs of the largest piece of each slice; `counts` are the voxels at its first run."""
    for row in range(0, runs.first.size - 1, ny):
        begin, end = runs.first[row], runs.first[row + ny]
        largest = begin
        for run in range(begin, end):
            if counts[run] > counts[largest]:
                largest = run
        for run in range(begin, end):
            is_largest[run] = pieces[run] == largest


def largest(runs: Runs, pieces: NDArray[Any]) -> Runs:
    """Return the largest piece; of equals, the first."""
    if pieces.size == 0:
        return runs
    return where(runs, pieces == sizes(runs, pieces).argmax())


def reaches_edge(runs: Runs, pieces: NDArray[Any], ny: int, nx: int) -> NDArray[Any]:
    """Return whether the piece of each run reaches the edge of a slice (ny, nx): no hole does."""
    y = rows_of(runs) % ny
    is_open = np.zeros(pieces.size, np.bool_)
    is_open[pieces[(y == 0) | (y == ny - 1) | (runs.starts == 0) | (runs.stops == nx)]] = True
    reaches: NDArray[Any] = is_open[pieces]
    return reaches

"""Connected components (pieces) of masks, on runs of voxels: labelling and sizes.

A piece is named by the index of its first run, or by a number from 0 on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels.compiled import compiled
from dskprep.kernels.runs import Runs, where

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


@compiled
def label(runs: Runs, ny: int, joined_by: int) -> NDArray[Any]:
    """Return the piece that each run belongs to, named by the piece's first run: int32 (runs).

    `joined_by` is one of the connectivities above; `ny` is the number of rows per slice. This is union-find: each
    run points to an earlier run of its piece, its parent, and the first one, the root, to itself.
    """
    parents = np.empty(runs.starts.size, np.int32)
    for run in range(parents.size):
        parents[run] = run
    diagonal = 0 if joined_by in (FACES, IN_SLICE_EDGES) else 1
    for row in range(runs.first.size - 1):  # joined to the rows that came before: half of all neighbours
        y = row % ny
        if y > 0:
            _join_rows(parents, runs, row, row - 1, diagonal)
        if row < ny or joined_by in (IN_SLICE, IN_SLICE_EDGES):
            continue
        _join_rows(parents, runs, row, row - ny, diagonal)
        if joined_by == FACES:
            continue
        # rows that lie one up and one across share an edge where runs overlap, and a corner where they touch
        if y > 0:
            _join_rows(parents, runs, row, row - ny - 1, joined_by == CORNERS)
        if y < ny - 1:
            _join_rows(parents, runs, row, row - ny + 1, joined_by == CORNERS)
    for run in range(parents.size):
        parents[run] = parents[parents[run]]  # parents come first, so that theirs are roots already
    return parents


@compiled
def _join_rows(parents: NDArray[Any], runs: Runs, row: int, other_row: int, diagonal: int) -> None:
    """Join the runs of two rows that overlap, or with `diagonal` 1 touch; the earlier root becomes the root of both."""
    a, b = runs.first[row], runs.first[other_row]
    while a < runs.first[row + 1] and b < runs.first[other_row + 1]:
        if runs.starts[a] < runs.stops[b] + diagonal and runs.starts[b] < runs.stops[a] + diagonal:
            root_a, root_b = _find_root(parents, a), _find_root(parents, b)
            parents[max(root_a, root_b)] = min(root_a, root_b)
        if runs.stops[a] < runs.stops[b]:  # the run that ends first meets no later one of the other row
            a += 1
        else:
            b += 1


@compiled
def _find_root(parents: NDArray[Any], run: int) -> int:
    """Return the first run of the piece. Each step skips a parent for good, which keeps later paths short."""
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run


@compiled
def sizes(runs: Runs, pieces: NDArray[Any]) -> NDArray[Any]:
    """Return the number of voxels of each piece at the index of its first run, and 0 elsewhere."""
    counts = np.zeros(pieces.size, np.int64)
    for run in range(pieces.size):
        counts[pieces[run]] += runs.stops[run] - runs.starts[run]
    return counts


@compiled
def number(pieces: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return the number of each run's piece, and how many pieces there are.

    They are numbered from 0 on in the order of their first runs, as scipy.ndimage.label does.
    """
    numbers = np.empty(pieces.size, np.int32)
    n = 0
    for run in range(pieces.size):
        if pieces[run] == run:
            numbers[run] = n
            n += 1
        else:  # its first run has a number already
            numbers[run] = numbers[pieces[run]]
    return numbers, n


@compiled
def counts(runs: Runs, numbers: NDArray[Any], n_pieces: int, mask: NDArray[Any]) -> NDArray[Any]:
    """Return the number of voxels of each numbered piece that are in a bool mask (z, y, x)."""
    ny = mask.shape[1]
    found = np.zeros(n_pieces, np.int64)
    for row in range(runs.first.size - 1):
        line = mask[row // ny, row % ny]
        for run in range(runs.first[row], runs.first[row + 1]):
            n = np.int32(0)  # in 32 bits, so that many fit a register
            for x in range(runs.starts[run], runs.stops[run]):
                n += np.int32(line[x])
            found[numbers[run]] += n
    return found


@compiled
def counts_around(
    runs: Runs,
    rows: NDArray[Any],
    numbers: NDArray[Any],
    order: NDArray[Any],
    n_pieces: int,
    near: NDArray[Any],
    wide: NDArray[Any],
    first: NDArray[Any],
    second: NDArray[Any],
) -> NDArray[Any]:
    """Return how many voxels lie in a ring round each numbered piece, and how many of these are in two bool masks.

    The ring lies in the ball `wide` round a voxel of the piece, and in the ball `near` round none. A ball is half its
    width along x in each row (z, y) round its middle, -1 where it has none. `order` sorts the runs, which lie in
    `rows`, by piece. Each piece has a box of its own, so that rings may overlap.
    """
    nz, ny, nx = first.shape
    found = np.zeros((3, n_pieces), np.int64)
    dz, dy, dx = wide.shape[0] // 2, wide.shape[1] // 2, wide[wide.shape[0] // 2, wide.shape[1] // 2]
    begin = 0
    while begin < order.size:
        piece, end = numbers[order[begin]], begin
        z0, z1, y0, y1, x0, x1 = nz, 0, ny, 0, nx, 0  # the piece's box
        while end < order.size and numbers[order[end]] == piece:
            run = order[end]
            z, y = rows[run] // ny, rows[run] % ny
            z0, z1, y0, y1 = min(z0, z), max(z1, z), min(y0, y), max(y1, y)
            x0, x1 = min(x0, runs.starts[run]), max(x1, runs.stops[run])
            end += 1
        z0, y0, x0 = max(0, z0 - dz), max(0, y0 - dy), max(0, x0 - dx)
        is_counted = np.zeros((min(nz, z1 + dz + 1) - z0, min(ny, y1 + dy + 1) - y0, min(nx, x1 + dx) - x0), np.bool_)
        for n in range(2):
            ball = near if n == 0 else wide
            for k in range(begin, end):
                run = order[k]
                z, y = rows[run] // ny, rows[run] % ny
                for i in range(max(0, ball.shape[0] // 2 - z), min(ball.shape[0], nz - z + ball.shape[0] // 2)):
                    for j in range(max(0, ball.shape[1] // 2 - y), min(ball.shape[1], ny - y + ball.shape[1] // 2)):
                        if ball[i, j] < 0:
                            continue
                        to_z, to_y = z + i - ball.shape[0] // 2, y + j - ball.shape[1] // 2
                        line, in_first, in_second = (
                            is_counted[to_z - z0, to_y - y0],
                            first[to_z, to_y],
                            second[to_z, to_y],
                        )
                        for x in range(max(0, runs.starts[run] - ball[i, j]), min(nx, runs.stops[run] + ball[i, j])):
                            if not line[x - x0]:
                                line[x - x0] = True
                                found[0, piece] += n
                                found[1, piece] += n * in_first[x]
                                found[2, piece] += n * in_second[x]
        begin = end
    return found


@compiled
def is_largest_in_slice(runs: Runs, pieces: NDArray[Any], ny: int) -> NDArray[Any]:
    """Return whether each run belongs to the largest piece of its slice; of equals, to the first."""
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
    """Return the largest piece; of equals, the first."""
    if pieces.size == 0:
        return runs
    return where(runs, pieces == sizes(runs, pieces).argmax())


@compiled
def reaches_edge(runs: Runs, pieces: NDArray[Any], ny: int, nx: int) -> NDArray[Any]:
    """Return whether the piece of each run reaches the edge of a slice (ny, nx): no hole does."""
    is_open = np.zeros(pieces.size, np.bool_)
    for row in range(runs.first.size - 1):
        for run in range(runs.first[row], runs.first[row + 1]):
            if row % ny == 0 or row % ny == ny - 1 or runs.starts[run] == 0 or runs.stops[run] == nx:
                is_open[pieces[run]] = True
    reaches = np.empty(pieces.size, np.bool_)
    for run in range(pieces.size):
        reaches[run] = is_open[pieces[run]]
    return reaches

"""What is held of a label while it is drawn on a grid: of each plane as much as reaches the grid.

Planes are made one at a time, so that one alone is ever whole. What all of them will take is told before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.kernels.shares import sum_pixels
from dskprep.labels.stack import FULL, Plane, Stack, same_axes
from dskprep.volume import Grid

Admit = Callable[[int], None]
"""Is told how many bytes the planes of a label will take, before they are made; raises if there is no room for them."""

MARGIN = 2
"""Pixels round the grid that are kept of a plane, so that those at its edge have their neighbours."""
MAX_BYTES = 1 << 33
"""Most that the planes of one label may take; a body in 2000 slices of 1024 x 1024 takes 2 GB."""
MAX_DIRECTIONS = 32
"""Most directions of the planes of one label, each of which may be sampled in the whole image."""
CORNERS = np.array(list(itertools.product((0, 1), (2, 3), (4, 5))))
"""Of (low, high, first row, last row, first column, last column), those that make up each corner of a plane."""


class Held(NamedTuple):
    """A stack with the planes that are held, and what was told of them while they were whole.

    Its volume in mm3; the sum of its places in LPS mm, weighted by volume; and the corners of all planes, (n, 3) in LPS
    mm.
    """

    stack: Stack
    planes: list[Plane]
    volume_mm3: float
    moment: NDArray[np.float64]
    corners: NDArray[np.float64]


def hold(stacks: Iterable[Stack], grid: Grid, where: str, admit: Admit | None = None) -> Iterator[Held]:
    """Make the planes of stacks, and yield what is held of those stacks that have any.

    A plane that ends further than MARGIN beyond the grid is cropped there; one that does not reach it keeps no pixel.
    Raises Refusal `label-too-large` if they take more than MAX_BYTES or have more than MAX_DIRECTIONS, and what `admit`
    raises.
    """
    n_bytes = 0
    for n_stacks, stack in enumerate(stacks, 1):
        if n_stacks > MAX_DIRECTIONS:
            raise Refusal(
                "label-too-large", f"{where}: expected planes of {MAX_DIRECTIONS} directions at most, found more"
            )
        low, high = _reach(stack, grid)
        if stack.boxes is not None:
            n_bytes += _bytes_of(stack, stack.boxes, low, high, grid)
            if (most := n_bytes + stack.making_bytes) > MAX_BYTES:
                raise Refusal(
                    "label-too-large", f"{where}: expected planes of {MAX_BYTES} bytes at most, found {most} bytes"
                )
            if admit:
                admit(most)
        if held := _hold(stack, low, high):
            yield held


def _reach(stack: Stack, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return from where to where a grid reaches, as (mm along the normal, row, column) of a stack."""
    ends = np.array([(-0.5, n - 0.5) for n in grid.shape]).ravel()
    corners = (grid.to_patient(ends[CORNERS]) - stack.origin) @ np.linalg.inv(stack.axes).T
    return corners.min(0), corners.max(0)


def _bytes_of(
    stack: Stack, boxes: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], grid: Grid
) -> int:
    """Return what the planes of a stack take once they are made and cropped, and while they are drawn."""
    if not len(boxes):
        return 0
    first, size = boxes[:, 2:4], boxes[:, 4:6]
    kept = np.minimum(first + size, np.ceil(high[1:]) + MARGIN + 2) - np.maximum(first, np.floor(low[1:]) - MARGIN - 1)
    is_there = (boxes[:, 0] < high[0]) & (boxes[:, 1] > low[0])
    n_bytes = float((kept.clip(0).prod(1) * is_there).sum())
    order = same_axes(stack.axes, grid)
    if order is None:  # then they are put one after another
        return int(2 * n_bytes)
    begins, thickest = np.sort(boxes[:, 0]), (boxes[:, 1] - boxes[:, 0]).max() + grid.spacing[order[0]]
    n_together = int((np.searchsorted(begins, begins + thickest) - np.arange(len(begins))).max())
    return int(n_bytes) + 4 * n_together * grid.shape[order[1]] * grid.shape[order[2]]  # weighed, as float32


def _hold(stack: Stack, low: NDArray[np.float64], high: NDArray[np.float64]) -> Held | None:
    pixel_mm2 = float(np.linalg.norm(np.cross(stack.axes[:, 1], stack.axes[:, 2])))
    begin, end = np.floor(low).astype(int).tolist(), np.ceil(high).astype(int).tolist()
    volume, moment = 0.0, np.zeros(3)
    planes: list[Plane] = []
    ends = []
    for p in stack.planes:
        n_rows, n_columns = p.pixels.shape
        ends.append((p.low, p.high, p.row - 0.5, p.row + n_rows - 0.5, p.column - 0.5, p.column + n_columns - 0.5))
        n, rows, columns = sum_pixels(p.pixels)
        if n:
            row, column = p.row + rows / n, p.column + columns / n
            mm3 = n / FULL * pixel_mm2 * (p.high - p.low)
            volume += mm3
            moment += mm3 * (stack.origin + stack.axes @ [(p.low + p.high) / 2, row, column])
        planes.append(_cropped(p, begin, end))
    if not planes:
        return None
    corners = stack.origin + np.array(ends)[:, CORNERS].reshape(-1, 3) @ stack.axes.T
    return Held(stack, planes, volume, moment, corners)


def _cropped(plane: Plane, begin: list[int], end: list[int]) -> Plane:
    """Return the part of a plane that lies between two places, (mm along the normal, row, column), and MARGIN round."""
    if plane.high <= begin[0] or plane.low >= end[0]:
        return plane._replace(pixels=np.empty((0, 0), np.uint8))
    n_rows, n_columns = plane.pixels.shape
    top, left = max(0, begin[1] - MARGIN - round(plane.row)), max(0, begin[2] - MARGIN - round(plane.column))
    bottom, right = end[1] + MARGIN + 1 - round(plane.row), end[2] + MARGIN + 1 - round(plane.column)
    if top == left == 0 and bottom >= n_rows and right >= n_columns:
        return plane
    pixels = plane.pixels[top : max(bottom, 0), left : max(right, 0)].copy()
    return Plane(plane.low, plane.high, plane.row + top, plane.column + left, pixels)

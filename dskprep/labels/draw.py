"""Draw a label on a grid, as the share of each voxel that lies inside, and keep its volume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.kernels.planes import weigh_plane
from dskprep.kernels.sampling import sample_planes
from dskprep.kernels.shares import add_area, quantize, weigh_overlaps
from dskprep.labels.hold import Admit, Held, hold
from dskprep.labels.settle import settle
from dskprep.labels.stack import FULL, Plane, Stack, same_axes
from dskprep.volume import Grid, Triple

MOST_POINTS = 8
"""Most points per axis of a voxel at which oblique planes are sampled."""
TABLE_PART = 32
"""The table of oblique planes has this many entries for the thinnest slab."""
MAX_TABLE = 1 << 22
"""Most entries of that table."""
OVERLAP = 0.02
"""Planes of different directions that share less of their volume than this lie beside each other, up to rounding."""
EVEN = 1e-6
"""Pixels are those of the grid if they lie nearer to them than this part of one."""
EPSILON = 1e-3
"""So much of a voxel is rounding."""


@dataclass(frozen=True, eq=False, repr=False)
class Drawn:
    """A label on a grid.

    Parameters
    ----------
    grid
        The grid it was drawn on.
    first
        Index (z, y, x) of the first voxel of `mask` in the grid.
    mask
        bool (z, y, x), the box round the label. Its volume is that of the label to half a percent or half a voxel.
    ml
        Volume of the label as its author drew it, also of what lies outside of the grid.
    centroid_mm
        Its centre of mass in LPS mm (x, y, z), likewise.
    outside
        The share of its volume that lies outside of the grid, 0 to 1.
    overlap
        The share of the volume of its planes in which planes of different directions overlap, 0 to 1. It counts once.
    """

    grid: Grid
    first: tuple[int, int, int]
    mask: NDArray[np.bool_]
    ml: float
    centroid_mm: Triple
    outside: float
    overlap: float = 0.0

    def __repr__(self) -> str:
        middle = tuple(round(mm, 1) for mm in self.centroid_mm)
        return f"<Drawn: {self.ml:.3g} ml around {middle} mm, {np.count_nonzero(self.mask)} voxels>"

    def whole(self) -> NDArray[np.uint8]:
        """Return the label on the whole grid: uint8 (z, y, x), 1 inside."""
        array = np.zeros(self.grid.shape, np.uint8)
        array[tuple(slice(f, f + n) for f, n in zip(self.first, self.mask.shape, strict=True))] = self.mask
        return array


def draw(stacks: Iterable[Stack], grid: Grid, where: str, admit: Admit | None = None) -> Drawn:
    """Draw a label given as planes on a grid.

    A voxel belongs to the label if half or more of it lies inside. Where that would change the label's volume, the
    voxels nearest to one half decide (see `settle`).

    Raises Refusal: `label-empty` if no pixel is set, `label-outside-volume` if no part of it lies in the grid, and what
    `hold` does.
    """
    found = list(hold(stacks, grid, where, admit))
    volume_mm3 = sum(held.volume_mm3 for held in found)
    if not volume_mm3:
        raise Refusal("label-empty", f"{where}: expected a label, found no pixel of it set")
    x, y, z = np.sum([held.moment for held in found], axis=0) / volume_mm3
    first, shape, is_whole = _box(found, grid)
    shares = np.zeros(shape, np.uint8)
    n_voxels = 0.0  # of what lies in the grid, where that is not the whole label or there are several stacks
    is_counted = not is_whole or len(found) > 1
    for held in found if shares.size else ():
        order, planes = _planes(held, Grid(shape, _moved(grid.affine, first)))
        across = shares.transpose(order)
        for alike, first_row, first_column, share in planes:
            steps = np.empty(share.shape, np.uint8)
            quantize(share, steps)
            n_here = 0.0 if not is_counted else float(np.minimum(share, 1).sum(dtype=np.float64))
            for i in alike:
                n_voxels += n_here
                part = across[i, first_row:, first_column:][: share.shape[0], : share.shape[1]]
                np.maximum(part, steps, out=part)
    if is_whole and not shares.any():  # smaller than the distance of the points that oblique voxels are sampled at
        index = np.round(grid.to_index((x, y, z))).astype(int) - first
        shares[tuple(np.clip(index, 0, np.array(shape) - 1))] = 255
    if not (is_whole or n_voxels):
        raise Refusal("label-outside-volume", _outside(where, (float(x), float(y), float(z)), grid))
    voxel_mm3 = grid.voxel_ml * 1000
    outside = 0.0 if is_whole else max(0.0, 1 - n_voxels * voxel_mm3 / volume_mm3)
    overlap = max(0.0, 1 - float(shares.sum(dtype=np.int64)) / 256 / n_voxels) if len(found) > 1 and n_voxels else 0.0
    if overlap < OVERLAP:
        overlap = 0.0
    else:  # of contours that were drawn in axial and in coronal planes each has the same organ
        volume_mm3 *= 1 - overlap
    mask = settle(shares, (1 - outside) * volume_mm3 / voxel_mm3, grid.spacing)
    return Drawn(grid, first, mask, volume_mm3 / 1000, (float(x), float(y), float(z)), outside, overlap)


def _outside(where: str, centre: Triple, grid: Grid) -> str:
    ends = np.sort(grid.to_patient([np.zeros(3) - 0.5, np.array(grid.shape) - 0.5]), axis=0)
    places = ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in zip("xyz", *ends.tolist(), strict=True))
    return (
        f"{where}: expected a label inside of the image ({places} LPS mm), found one about "
        f"({centre[0]:.1f}, {centre[1]:.1f}, {centre[2]:.1f}); it may belong to another image"
    )


def _moved(affine: NDArray[np.float64], first: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return the affine of the part of a grid that begins at voxel `first`."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ first
    return moved


def _box(found: list[Held], grid: Grid) -> tuple[tuple[int, int, int], tuple[int, int, int], bool]:
    """Return the first voxel and the shape of the part of a grid that planes reach, and whether that is all of them.

    A side of the shape is 0 if they reach no voxel.
    """
    corners = grid.to_index(np.concatenate([held.corners for held in found]))
    first = np.clip(np.floor(corners.min(0) + 0.5), 0, grid.shape).astype(int)
    last = np.clip(np.ceil(corners.max(0) - 0.5), -1, np.array(grid.shape) - 1).astype(int)
    is_whole = (corners > -0.5 - EPSILON).all() and (corners < np.array(grid.shape) - 0.5 + EPSILON).all()
    z, y, x = np.maximum(last + 1 - first, 0).tolist()
    return tuple(first.tolist()), (z, y, x), bool(is_whole)


class _Alike(NamedTuple):
    """Planes of the box that are alike: their indices, and the share from a row and column on (float32, 2D)."""

    planes: Sequence[int]
    row: int
    column: int
    share: NDArray[np.float32]


def _planes(held: Held, box: Grid) -> tuple[tuple[int, int, int], Iterator[_Alike]]:
    """Return the order of the box's axes, and its planes along the first of them, where something is inside.

    A share holds until the next one is asked for.
    """
    inverse = np.linalg.inv(held.stack.axes)
    matrix = inverse @ box.affine[:3, :3]
    offset = inverse @ (box.affine[:3, 3] - held.stack.origin)
    order = same_axes(held.stack.axes, box)
    if order is not None:
        return order, _along(held.planes, matrix, offset, order, box.shape)
    return (0, 1, 2), _oblique(held, matrix, offset, box)


class _Overlaps(NamedTuple):
    """For the outputs from `first` on: the first input that each overlaps, and the share of it in each input."""

    first: int
    start: NDArray[np.int64]
    weights: NDArray[np.float32]


def _overlap(scale: float, offset: float, n: int, n_out: int) -> _Overlaps:
    """Weigh `n` inputs centred on whole numbers by their overlap with outputs centred on scale * i + offset."""
    half = abs(scale) / 2
    ends = sorted(((-0.5 - offset) / scale, (n - 0.5 - offset) / scale))
    first = max(math.floor(ends[0] + 0.5), 0)
    n_reached = max(min(math.ceil(ends[1] - 0.5), n_out - 1) + 1 - first, 0)
    start, weights = np.empty(n_reached, np.int64), np.empty((n_reached, min(n, math.ceil(2 * half) + 1)), np.float32)
    weigh_overlaps(scale, offset, n, first, start, weights)
    return _Overlaps(first, start, weights)


class _Area(NamedTuple):
    """The pixels of a slab, weighed for the planes of a box, from a row and column on."""

    row: int
    column: int
    values: NDArray[np.float32] | NDArray[np.uint8]


def _area(
    pixels: NDArray[np.uint8], scales: tuple[float, float], offsets: tuple[float, float], shape: tuple[int, int]
) -> _Area:
    """Weigh pixels by their overlap with the pixels of a plane of a box, of this shape; see `_overlap`."""
    at_y, at_x = round(offsets[0]), round(offsets[1])
    if scales == (1, 1) and max(abs(offsets[0] - at_y), abs(offsets[1] - at_x)) < EVEN:  # they are its pixels
        here = pixels[max(at_y, 0) : max(at_y + shape[0], 0), max(at_x, 0) : max(at_x + shape[1], 0)]
        return _Area(max(-at_y, 0), max(-at_x, 0), here)
    y, x = (_overlap(*each) for each in zip(scales, offsets, pixels.shape, shape, strict=True))
    area = np.empty((y.start.size, x.start.size), np.float32)
    if area.size:
        weigh_plane(pixels, y.start, y.weights, x.start, x.weights, area)
    return _Area(y.first, x.first, area)


def _along(
    planes: Sequence[Plane],
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    axes: tuple[int, int, int],
    shape: tuple[int, int, int],
) -> Iterator[_Alike]:
    """Yield the planes of a box whose axes are those of the stack, exactly.

    A plane inside of a thick slab is like its neighbours in it. The pixels of a slab are weighed once, and held while
    there are planes that reach beyond it.
    """
    n, n_rows, n_columns = (shape[axis] for axis in axes)
    normal, row, column = (float(matrix[k, axis]) for k, axis in enumerate(axes))
    row, column = (1.0 if abs(step - 1) * n < EVEN else step for step, n in ((row, n_rows), (column, n_columns)))
    half, (across, *begin) = abs(normal) / 2, offset.tolist()
    slabs = sorted((p for p in planes if p.pixels.size), key=lambda p: p.low)
    parts: dict[int, list[tuple[int, np.float32]]] = {}  # which slabs a plane lies in, and how much of it in each
    last: dict[int, int] = {}
    for k, slab in enumerate(slabs):
        ends = sorted(((slab.low - across) / normal, (slab.high - across) / normal))
        for i in range(max(math.floor(ends[0] + 0.5), 0), min(math.ceil(ends[1] - 0.5), n - 1) + 1):
            centre = normal * i + across
            depth = (min(slab.high, centre + half) - max(slab.low, centre - half)) / (2 * half)
            if depth > 0:
                parts.setdefault(i, []).append((k, np.float32(depth / FULL)))
                last[k] = i
    areas: dict[int, _Area] = {}
    space = np.empty(n_rows * n_columns, np.float32)
    for of_each, run in itertools.groupby(sorted(parts), key=lambda i: parts[i]):
        alike = list(run)
        for k, _ in of_each:
            if k not in areas:
                offsets = (begin[0] - slabs[k].row, begin[1] - slabs[k].column)
                areas[k] = _area(slabs[k].pixels, (row, column), offsets, (n_rows, n_columns))
        here = [(areas[k], weight) for k, weight in of_each if areas[k].values.size]
        for k, _ in of_each:
            if last[k] <= alike[-1]:
                del areas[k]
        if not here:
            continue
        top, left = min(each.row for each, _ in here), min(each.column for each, _ in here)
        height = max(each.row + each.values.shape[0] for each, _ in here) - top
        width = max(each.column + each.values.shape[1] for each, _ in here) - left
        share = space[: height * width].reshape(height, width)
        share.fill(0)
        for each, weight in here:
            add_area(each.values, weight, share[each.row - top :, each.column - left :])
        yield _Alike(alike, top, left, share)


def _oblique(held: Held, matrix: NDArray[np.float64], offset: NDArray[np.float64], box: Grid) -> Iterator[_Alike]:
    """Yield the planes of a box that is oblique to the stack, from many points per voxel."""
    planes, axes = held.planes, held.stack.axes
    low = np.array([plane.low for plane in planes])
    high = np.array([plane.high for plane in planes])
    begin, thinnest = float(low.min()), float((high - low).min())
    step = max(thinnest / TABLE_PART, float(high.max() - begin) / MAX_TABLE)
    table = np.full(math.ceil((high.max() - begin) / step), -1, np.int64)
    for k in np.argsort(low):
        table[math.ceil((low[k] - begin) / step - 0.5) : math.ceil((high[k] - begin) / step - 0.5)] = k
    sizes = np.array([plane.pixels.size for plane in planes])
    pixels = np.concatenate([plane.pixels.ravel() for plane in planes])
    shapes = np.array([plane.pixels.shape for plane in planes])
    corners = np.array([(plane.row, plane.column) for plane in planes], np.float64)
    finest = min(thinnest, *np.linalg.norm(axes[:, 1:], axis=0))
    n_sub = np.clip(np.ceil(2 * np.array(box.spacing) / finest), 3, MOST_POINTS).astype(np.int64)
    offset = offset - [begin, 0, 0]
    out = np.empty((1, *box.shape[1:]), np.float32)
    for z in range(box.shape[0]):
        at = offset + matrix[:, 0] * z
        sample_planes(pixels, np.cumsum(sizes) - sizes, shapes, corners, table, step, matrix, at, n_sub, out)
        yield _Alike((z,), 0, 0, out[0] / np.float32(FULL))

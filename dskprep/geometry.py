"""From the places of slices to the place of a volume: which slices, in which order, with which affine.

Everything is decided from positions and orientations (DICOM PS3.3 C.7.6.2.1.1), never from
InstanceNumber, SliceLocation, SliceThickness or one pair of slices.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.volume import Triple, Volume

SAME_POSITION_MM = 0.01
"""Slices closer than this along their normal lie at one position."""

STEP_TOLERANCE = 0.1
"""A slice may lie this fraction of a step off its even place; headers round positions."""

DRIFT_TOLERANCE_MM = 0.5
"""Slices may drift sideways by this much over the whole stack; headers round positions and directions."""

SAME_PIXEL_MM = 1e-4
SAME_DIRECTION = 1e-3
"""Pixel spacings and the components of directions that differ by less are equal."""

MAX_EXTENT_MM = 3000.0
"""No patient is longer; positions farther apart come from a damaged header."""

FIT_DIGITS = 6
"""Decimals (mm) to which a fit is rounded, so that its last bits decide nothing."""

CLEAR_MAJORITY = 2
"""A group of slices is preferred if it has this many times the slices of the next one."""


@dataclass(frozen=True)
class Plane:
    """Where one slice lies.

    `position` is the centre of the first pixel and `row`, `column` the unit directions along a row and
    down a column, all LPS (x, y, z) in mm; `pixel_mm` is the distance between (rows, columns). `stack`
    holds what tells the stacks of one series apart.
    """

    shape: tuple[int, int]
    pixel_mm: tuple[float, float]
    position: Triple
    row: Triple
    column: Triple
    stack: tuple[str, ...] = ()

    def shares_grid(self, other: Plane) -> bool:
        """Whether the two slices can share a volume."""
        return (
            self.shape == other.shape
            and _are_close(self.pixel_mm, other.pixel_mm, SAME_PIXEL_MM)
            and _are_close(self.row + self.column, other.row + other.column, SAME_DIRECTION)
        )


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices that make one volume: `order` indexes the given planes, by position along the normal."""

    order: list[int]
    affine: NDArray[np.float64]
    warnings: tuple[str, ...]


def stack_up(
    planes: Sequence[Plane], *, min_slices: int, is_copy: Callable[[int, int], bool] = lambda _a, _b: False
) -> Stack:
    """Choose and order the slices of one series that make a volume.

    Of slices on different grids, those on the commonest grid are taken if they are a clear majority.
    Of slices at equal positions, copies are dropped; `is_copy` says of two planes (by index) whether their
    pixels are the same. If different ones remain, one stack is taken: that with the most slices, then the
    one first by its tags. Raises Refusal where a choice would be a guess, or slices are missing or sheared.
    """
    min_slices = max(min_slices, 2)  # one slice has no step
    warnings: list[str] = []
    chosen = _commonest_grid(planes)
    if len(chosen) < len(planes):
        warnings.append("one-of-several-stacks")
    normal = _normal(planes[chosen[0]])
    along = {i: float(np.dot(planes[i].position, normal)) for i in chosen}
    chosen.sort(key=lambda i: (along[i], planes[i].stack, planes[i].position))
    n_positions = 1 + sum(along[b] - along[a] > SAME_POSITION_MM for a, b in itertools.pairwise(chosen))
    if n_positions < min_slices:
        raise Refusal(
            "too-few-slices",
            f"expected at least {min_slices} slice positions, found {n_positions} in {len(chosen)} slices",
        )
    if along[chosen[-1]] - along[chosen[0]] > MAX_EXTENT_MM:
        raise Refusal(
            "mixed-geometry",
            f"expected slices within {MAX_EXTENT_MM:g} mm, found them from {along[chosen[0]]:.2f} to "
            f"{along[chosen[-1]]:.2f} mm along the normal",
        )
    if n_positions < len(chosen):
        chosen, notes = _one_slice_a_position(planes, chosen, along, min_slices, is_copy)
        warnings += notes
    steps = _even_steps(np.array([along[i] for i in chosen]))
    _check_upright(np.array([planes[i].position for i in chosen]), normal)
    return Stack(chosen, _affine(planes[chosen[0]], normal, steps), tuple(dict.fromkeys(warnings)))


def to_patient_axes(volume: Volume) -> Volume:
    """Flip and transpose so that (z, y, x) run nearest to superior, posterior and left.

    No interpolation: every voxel keeps its value and its place in the patient.
    """
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    order = _nearest_axes(directions)
    array, affine = volume.array.transpose(order), volume.affine.copy()
    affine[:3, :3] = affine[:3, order]
    for axis, patient_axis in enumerate((2, 1, 0)):
        if affine[patient_axis, axis] < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(array), affine)


def upwards(volume: Volume) -> Volume:
    """Flip the slices, if need be, so that they go from foot to head; they themselves stay as they are."""
    if volume.affine[2, 0] >= 0:
        return volume
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (volume.shape[0] - 1)
    affine[:3, 0] *= -1
    return Volume(np.ascontiguousarray(volume.array[::-1]), affine)


def _nearest_axes(directions: NDArray[np.float64]) -> list[int]:
    """Which array axis runs nearest to the patient's z, y and x: the best of the six orders."""
    orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    return max(orders, key=lambda order: sum(abs(directions[2 - k, axis]) for k, axis in enumerate(order)))


def _are_close(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    return all(abs(u - v) < tolerance for u, v in zip(a, b, strict=True))


def _commonest_grid(planes: Sequence[Plane]) -> list[int]:
    grids: list[list[int]] = []
    for i in sorted(range(len(planes)), key=lambda i: (planes[i].shape, planes[i].pixel_mm, planes[i].position)):
        for grid in grids:
            if planes[grid[0]].shares_grid(planes[i]):
                grid.append(i)
                break
        else:
            grids.append([i])
    if not grids:
        raise Refusal("too-few-slices", "expected slices, found none")
    grids.sort(key=len, reverse=True)
    if len(grids) > 1 and len(grids[0]) < CLEAR_MAJORITY * len(grids[1]):
        first, second = (f"{len(grid)} of {_describe(planes[grid[0]])}" for grid in grids[:2])
        raise Refusal(
            "mixed-geometry",
            f"expected slices of one size, pixel spacing and orientation, found {first} and {second}",
        )
    return grids[0]


def _describe(plane: Plane) -> str:
    directions = tuple(round(v, 3) + 0.0 for v in plane.row + plane.column)
    return f"{plane.shape} pixels of {plane.pixel_mm} mm, orientation {directions}"


def _normal(plane: Plane) -> NDArray[np.float64]:
    normal = np.cross(plane.row, plane.column)
    return normal / np.linalg.norm(normal)


def _one_slice_a_position(
    planes: Sequence[Plane],
    chosen: list[int],
    along: dict[int, float],
    min_slices: int,
    is_copy: Callable[[int, int], bool],
) -> tuple[list[int], list[str]]:
    """Drop identical duplicates; if others remain, keep the stack with the most slices."""
    warnings = []
    kept: list[int] = []
    for i in chosen:
        neighbours = itertools.takewhile(lambda k: along[i] - along[k] <= SAME_POSITION_MM, reversed(kept))  # noqa: B023
        if any(is_copy(k, i) for k in neighbours):
            warnings.append("identical-duplicates-dropped")
        else:
            kept.append(i)
    if _duplicates(kept, along):
        kept = _longest_stack(planes, kept, along, min_slices)
        warnings.append("one-of-several-stacks")
    return kept, warnings


def _duplicates(chosen: list[int], along: dict[int, float]) -> list[int]:
    """Those of the sorted slices that share their position with the next one."""
    return [a for a, b in itertools.pairwise(chosen) if along[b] - along[a] <= SAME_POSITION_MM]


def _longest_stack(planes: Sequence[Plane], chosen: list[int], along: dict[int, float], min_slices: int) -> list[int]:
    stacks: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in chosen:
        stacks[planes[i].stack].append(i)
    best = stacks[min(stacks, key=lambda tags: (-len(stacks[tags]), tags))]
    if _duplicates(best, along) or len(best) < min_slices:
        where = along[_duplicates(chosen, along)[0]]
        raise Refusal(
            "duplicate-positions",
            f"expected one slice a position, found different slices at {where:.2f} mm along the normal "
            f"({len(chosen)} slices in all), and no tags that part them into stacks of {min_slices} or more",
        )
    return best


def _even_steps(along: NDArray[np.float64]) -> tuple[float, float]:
    """Start and step (mm) of the even grid that the positions lie on. Raises Refusal if they don't."""
    steps = np.diff(along)
    start, step, off = _fit_line(np.arange(len(along)), along)
    if off.max() <= STEP_TOLERANCE * step:
        return start, step
    typical = float(np.median(steps))
    jumps = np.maximum(np.rint(steps / typical), 1)
    start, step, off = _fit_line(np.append(0, np.cumsum(jumps)), along)
    gaps = np.flatnonzero(jumps > 1)
    if off.max() > STEP_TOLERANCE * step or len(gaps) == 0:
        raise Refusal(
            "uneven-spacing",
            f"expected even steps, found {steps.min():.3f} to {steps.max():.3f} mm (median {typical:.3f} mm); "
            f"the slice at {along[off.argmax()]:.2f} mm lies {off.max():.2f} mm off",
        )
    missing = int((jumps - 1).sum())
    where = ", ".join(f"{along[g]:.2f} and {along[g + 1]:.2f}" for g in gaps[:5])
    raise Refusal(
        "missing-slices",
        f"expected a slice every {step:.3f} mm, found {missing} missing, between {where} mm along the normal",
    )


def _fit_line(numbers: NDArray[np.int_], along: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
    """Start, step and distances (mm) of the least-squares line through the positions of numbered slices."""
    centred = numbers - numbers.mean()
    step = round(float(centred @ along / (centred @ centred)), FIT_DIGITS)
    start = float(along.mean() - step * numbers.mean())
    return start, step, np.abs(along - (start + step * numbers))


def _check_upright(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """The first pixels must lie above one another along the normal."""
    offset = positions - positions[0]
    along = offset @ normal
    sideways = offset - np.outer(along, normal)
    drift = np.linalg.norm(sideways, axis=1)
    worst = int(np.argmax(drift))
    if drift[worst] <= DRIFT_TOLERANCE_MM:
        return
    shear = along @ sideways / (along @ along)
    if np.abs(sideways - np.outer(along, shear)).max() > DRIFT_TOLERANCE_MM:
        raise Refusal(
            "mixed-geometry",
            f"expected slices above one another, found one {drift[worst]:.1f} mm aside at {along[worst]:.1f} mm",
        )
    raise Refusal(
        "gantry-tilt",
        f"expected slices above one another, found them sheared by {np.linalg.norm(shear):.3f} mm a mm "
        f"({np.degrees(np.arctan(np.linalg.norm(shear))):.1f} degrees)",
    )


def _affine(first: Plane, normal: NDArray[np.float64], steps: tuple[float, float]) -> NDArray[np.float64]:
    """Index (z, y, x, 1) of a voxel centre to LPS (x, y, z, 1)."""
    start, step = steps
    position = np.array(first.position)
    affine = np.eye(4)
    affine[:3, 0] = normal * step
    affine[:3, 1] = np.array(first.column) * first.pixel_mm[0]
    affine[:3, 2] = np.array(first.row) * first.pixel_mm[1]
    affine[:3, 3] = position + normal * round(start - float(position @ normal), FIT_DIGITS)
    return affine

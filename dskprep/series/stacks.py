"""Choose the slices of a series that make a volume, and their order: one stack, or all that there are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dskprep.counts import n_of
from dskprep.dicom.header import KINDS
from dskprep.dicom.plane import Plane
from dskprep.errors import Refusal
from dskprep.series.geometry import Layout, lay_out
from dskprep.series.parts import SAME_POSITION_MM, count_positions, join, part

CLEAR_MAJORITY = 2
"""A group of slices is preferred if it has at least this many times the slices of the next largest."""
MOST_GRIDS = 256
"""Most kinds of size, pixel spacing and orientation among the slices of a series."""
MOST_AT_ONE_PLACE = 2000
"""Most different slices at one position; CT perfusion has a hundred."""
NONE_FOUND = "expected slices, found none"


IsCopy = Callable[[int, int], bool]
"""Tells whether the pixels of two planes, by index, are equal."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of one volume: `order` indexes the given planes, by position along the normal.

    `left_out_mm` is how much of the extent of all slices the stack does not cover.
    """

    order: list[int]
    layout: Layout
    warnings: tuple[str, ...]
    left_out_mm: float = 0.0


def stack_up(
    planes: Sequence[Plane],
    *,
    min_slices: int,
    max_gap_slices: int = 0,
    is_copy: IsCopy = lambda _a, _b: False,
) -> Stack:
    """Choose and order the slices of one series that make a volume.

    1. If size, pixel spacing or orientation differ, the largest group of equal slices is taken, provided that it is
       a clear majority.
    2. Copies at one position are dropped.
    3. If different slices remain at one position, or two stacks interleave, the longest stack is taken, with what
       continues it: see `parts`.

    Raises Refusal where a choice would be a guess, or the chosen slices lie on no even grid (see `geometry.lay_out`).
    """
    found = next(_stacks_of(planes, _largest(planes, group_by_grid(planes)), min_slices, max_gap_slices, is_copy))
    if isinstance(found, Refusal):
        raise found
    return found


def stack_up_all(
    planes: Sequence[Plane],
    *,
    min_slices: int,
    max_gap_slices: int = 0,
    is_copy: IsCopy = lambda _a, _b: False,
) -> list[Stack | Refusal]:
    """Return every stack of one series, or why it makes no volume; groups too small for a stack are left out.

    Raises Refusal if there is no stack at all.
    """
    found: list[Stack | Refusal] = []
    for group in group_by_grid(planes):
        found += _stacks_of(planes, group, min_slices, max_gap_slices, is_copy)
    large = [f for f in found if not (isinstance(f, Refusal) and f.reason == "too-few-slices")]
    if not large:
        raise next((f for f in found if isinstance(f, Refusal)), Refusal("too-few-slices", NONE_FOUND))
    return large


def _stacks_of(
    planes: Sequence[Plane], group: list[int], min_slices: int, max_gap_slices: int, is_copy: IsCopy
) -> Iterator[Stack | Refusal]:
    """Yield the stacks of slices of one size, pixel spacing and orientation, the longest first."""
    min_slices = max(min_slices, 2)  # one slice has no step
    normal = planes[group[0]].normal
    along = {i: float(np.dot(planes[i].position, normal)) for i in group}
    group.sort(key=lambda i: (along[i], planes[i].stack, planes[i].order, planes[i].position))
    n_positions = count_positions(group, along)
    if n_positions < min_slices:
        found = f"found {n_positions} in {n_of(len(group), 'slice')}"
        yield Refusal("too-few-slices", f"expected at least {min_slices} slice positions, {found}")
        return

    def lay(order: list[int]) -> Layout:
        return lay_out([planes[i] for i in order], max_gap_slices=max_gap_slices)

    try:
        unique = _drop_copies(group, along, is_copy)
        parts = part(planes, unique, along, min_slices, lay)
    except Refusal as refusal:
        yield refusal
        return
    reach = [*along.values()]
    if len(group) < len(planes):
        reach += [float(np.dot(p.position, normal)) for p in planes if _is_parallel(p.normal, normal)]
    doubts = [("one-of-several-stacks", len(group) < len(planes)), ("identical-duplicates-dropped", unique != group)]
    while parts and count_positions(parts[0], along) >= min_slices:
        order, others = join(planes, parts[0], parts[1:], along, lay)
        try:
            layout = lay(order)
        except Refusal as refusal:
            yield refusal
        else:
            covered_mm = along[order[-1]] - along[order[0]]
            left_out_mm = round(max(reach) - min(reach) - covered_mm, 3)
            is_left_out = left_out_mm > layout.grid.spacing[0] * 1.5
            more = [
                ("stacks-joined", len(order) > len(parts[0]) or _are_of_several_kinds([planes[i] for i in order])),
                ("one-of-several-stacks", len(others) > 0),
                ("body-left-out", is_left_out),
                ("tilt-corrected", layout.tilt_degrees > 0),
                ("gap-interpolated", len(layout.gaps_mm) > 0),
            ]
            words = tuple(dict.fromkeys(word for word, applies in doubts + more if applies))
            yield Stack(order, layout, words, left_out_mm if is_left_out else 0.0)
        parts = others


def _is_parallel(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Tell whether slices with these normals lie along one way through the body.

    Up to 0.1 degree: then places along it, which are those of corners, are wrong by less than 1 mm.
    """
    return abs(float(np.dot(a, b))) > math.cos(math.radians(0.1))


def _are_of_several_kinds(planes: Sequence[Plane]) -> bool:
    """Tell whether kernel, kVp or description change along a stack."""
    return any(len({plane.stack[k] for plane in planes}) > 1 for k in KINDS if k < len(planes[0].stack))


def group_by_grid(planes: Sequence[Plane]) -> list[list[int]]:
    """Group the slices of one size, pixel spacing and orientation; the largest group is first.

    Raises Refusal `mixed-geometry` if there are more than MOST_GRIDS.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(planes)), key=lambda i: (planes[i].shape, planes[i].pixel_mm, planes[i].position)):
        group = next((group for group in groups if planes[group[0]].shares_grid(planes[i])), None)
        if group is None:
            if len(groups) == MOST_GRIDS:
                raise Refusal(
                    "mixed-geometry",
                    f"expected slices of one size, pixel spacing and orientation, found more than {MOST_GRIDS} kinds",
                )
            groups.append(group := [])
        group.append(i)
    return sorted(groups, key=len, reverse=True)


def _largest(planes: Sequence[Plane], groups: list[list[int]]) -> list[int]:
    """Return the first group, the largest one, if it is a clear majority."""
    if not groups:
        raise Refusal("too-few-slices", NONE_FOUND)
    if len(groups) > 1 and len(groups[0]) < CLEAR_MAJORITY * len(groups[1]):
        first, second = (f"{len(group)} of {_describe(planes[group[0]])}" for group in groups[:2])
        raise Refusal(
            "mixed-geometry",
            f"expected slices of one size, pixel spacing and orientation, found {first} and {second}",
        )
    return groups[0]


def _describe(plane: Plane) -> str:
    directions = tuple(round(v, 3) + 0.0 for v in plane.row + plane.column)
    return f"{plane.shape} pixels of {plane.pixel_mm} mm, orientation {directions}"


def _drop_copies(chosen: list[int], along: dict[int, float], is_copy: IsCopy) -> list[int]:
    kept: list[int] = []
    for i in chosen:
        neighbours = itertools.takewhile(lambda k: along[i] - along[k] <= SAME_POSITION_MM, reversed(kept))  # noqa: B023
        for n_different, k in enumerate(neighbours):
            if n_different == MOST_AT_ONE_PLACE:
                raise Refusal(
                    "duplicate-positions",
                    f"expected one slice per position, found more than {MOST_AT_ONE_PLACE} different ones at "
                    f"{along[i]:.2f} mm along the normal",
                )
            if is_copy(k, i):
                break
        else:
            kept.append(i)
    return kept

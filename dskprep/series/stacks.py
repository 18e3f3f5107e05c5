"""Which slices of a series make its volume, and in which order."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dskprep.dicom.plane import Plane
from dskprep.errors import Refusal
from dskprep.series.geometry import Grid, lay_out

SAME_POSITION_MM = 0.01
"""Slices closer than this along their normal lie at one position."""

CLEAR_MAJORITY = 2
"""A group of slices is preferred if it has this many times the slices of the next one."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices that make one volume: `order` indexes the given planes, by position along the normal."""

    order: list[int]
    grid: Grid
    warnings: tuple[str, ...]


def stack_up(
    planes: Sequence[Plane],
    *,
    min_slices: int,
    max_gap_slices: int = 0,
    is_copy: Callable[[int, int], bool] = lambda _a, _b: False,
) -> Stack:
    """Choose and order the slices of one series that make a volume.

    1. Of slices on different grids, those on the commonest grid are taken if they are a clear majority.
    2. Of slices at equal positions, copies are dropped; `is_copy` says of two planes (by index) whether
       their pixels are the same.
    3. If different ones remain at one position, or two stacks interleave, one stack is taken: see
       `_one_stack`.

    Raises Refusal where a choice would be a guess, or the chosen slices lie on no even grid (see
    `geometry.lay_out`).
    """
    min_slices = max(min_slices, 2)  # one slice has no step
    warnings: list[str] = []
    chosen = _commonest_grid(planes)
    if len(chosen) < len(planes):
        warnings.append("one-of-several-stacks")
    normal = planes[chosen[0]].normal
    along = {i: float(np.dot(planes[i].position, normal)) for i in chosen}
    chosen.sort(key=lambda i: (along[i], planes[i].stack, planes[i].time, planes[i].position))
    n_positions = len(chosen) - len(_repeats(chosen, along))
    if n_positions < min_slices:
        raise Refusal(
            "too-few-slices",
            f"expected at least {min_slices} slice positions, found {n_positions} in {len(chosen)} slices",
        )
    n_all = len(chosen)
    chosen = _without_copies(chosen, along, is_copy)
    if len(chosen) < n_all:
        warnings.append("identical-duplicates-dropped")
    n_all = len(chosen)
    chosen = _one_stack(planes, chosen, along, min_slices)
    if len(chosen) < n_all:
        warnings.append("one-of-several-stacks")
    grid = lay_out([planes[i] for i in chosen], max_gap_slices=max_gap_slices)
    if grid.tilt_degrees:
        warnings.append("tilt-corrected")
    if grid.gaps_mm:
        warnings.append("gap-interpolated")
    return Stack(chosen, grid, tuple(dict.fromkeys(warnings)))


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


def _without_copies(chosen: list[int], along: dict[int, float], is_copy: Callable[[int, int], bool]) -> list[int]:
    kept: list[int] = []
    for i in chosen:
        neighbours = itertools.takewhile(lambda k: along[i] - along[k] <= SAME_POSITION_MM, reversed(kept))  # noqa: B023
        if not any(is_copy(k, i) for k in neighbours):
            kept.append(i)
    return kept


def _repeats(chosen: list[int], along: dict[int, float]) -> list[int]:
    """Those of the sorted slices that share their position with the next one."""
    return [a for a, b in itertools.pairwise(chosen) if along[b] - along[a] <= SAME_POSITION_MM]


def _one_stack(planes: Sequence[Plane], chosen: list[int], along: dict[int, float], min_slices: int) -> list[int]:
    """The longest of the stacks that the slices are parted into, if they hold several.

    They are parted by the smallest set of tags that leaves one slice a position; else by time, if one
    stack was made after the other. Of equally long stacks the one first by its tags, or in time, is taken.
    Slices at positions of their own are parted too if two stacks interleave: two reconstructions, one
    half a step beside the other.
    """
    repeats = _repeats(chosen, along)
    for stacks in itertools.chain(_parted_by_tags(planes, chosen), _parted_by_time(planes, chosen, along)):
        best = max(stacks, key=len)  # the first of the longest
        if len(best) < min_slices or any(_repeats(stack, along) for stack in stacks):
            continue
        if repeats or _interleave([stack for stack in stacks if len(stack) >= min_slices], along):
            return best
    if repeats:
        raise Refusal(
            "duplicate-positions",
            f"expected one slice a position, found different slices at {along[repeats[0]]:.2f} mm along the normal "
            f"({len(chosen)} slices in all), and no tags that part them into stacks of {min_slices} or more",
        )
    return chosen


def _parted_by_tags(planes: Sequence[Plane], chosen: list[int]) -> Iterator[list[list[int]]]:
    """The slices by the values of one tag, of two and so on, smaller sets first; groups sorted by value."""
    n_tags = len(planes[chosen[0]].stack)
    varying = [k for k in range(n_tags) if len({planes[i].stack[k] for i in chosen}) > 1]
    for n in range(1, len(varying) + 1):
        for tags in itertools.combinations(varying, n):
            groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
            for i in chosen:
                groups[tuple(planes[i].stack[k] for k in tags)].append(i)
            yield [groups[values] for values in sorted(groups)]


def _parted_by_time(planes: Sequence[Plane], chosen: list[int], along: dict[int, float]) -> Iterator[list[list[int]]]:
    """The slices in order of time, a new group wherever a position comes again; none if times are equal there."""
    if not all(planes[i].time for i in chosen):
        return
    place = dict(zip(chosen, itertools.accumulate(_is_new(chosen, along)), strict=True))
    stacks: list[list[int]] = [[]]
    seen: set[int] = set()
    last = ""
    for i in sorted(chosen, key=lambda i: planes[i].time):
        if place[i] in seen:
            if planes[i].time == last:
                return
            stacks.append([])
            seen.clear()
        stacks[-1].append(i)
        seen.add(place[i])
        last = planes[i].time
    if len(stacks) > 1:
        yield [sorted(stack, key=lambda i: along[i]) for stack in stacks]


def _is_new(chosen: list[int], along: dict[int, float]) -> Iterator[bool]:
    """Whether each of the sorted slices lies at another position than the one before."""
    yield True
    yield from (along[b] - along[a] > SAME_POSITION_MM for a, b in itertools.pairwise(chosen))


def _interleave(stacks: list[list[int]], along: dict[int, float]) -> bool:
    """Whether one stack begins before another ends."""
    ends = sorted((along[stack[0]], along[stack[-1]]) for stack in stacks)
    return any(low <= high for (_, high), (low, _) in itertools.pairwise(ends))

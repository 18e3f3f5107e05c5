"""Choose the slices of a series that make its volume, and their order."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dskprep.dicom.plane import Plane
from dskprep.errors import Refusal
from dskprep.series.geometry import Layout, lay_out

SAME_POSITION_MM = 0.01
"""Slices no farther apart along their normal lie at one position."""
CLEAR_MAJORITY = 2
"""A group of slices is preferred if it has at least this many times the slices of the next largest."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The chosen slices: `order` indexes the given planes, by position along the normal."""

    order: list[int]
    layout: Layout
    warnings: tuple[str, ...]


def stack_up(
    planes: Sequence[Plane],
    *,
    min_slices: int,
    max_gap_slices: int = 0,
    is_copy: Callable[[int, int], bool] = lambda _a, _b: False,
) -> Stack:
    """Choose and order the slices of one series that make a volume.

    1. If size, pixel spacing or orientation differ, the largest group of equal slices is taken, provided that it is
       a clear majority.
    2. Copies at one position are dropped; `is_copy` says whether the pixels of two planes (by index) are equal.
    3. If different slices remain at one position, or two stacks interleave, one stack is taken: see `_choose_stack`.

    Raises Refusal where a choice would be a guess, or the chosen slices lie on no even grid (see `geometry.lay_out`).
    """
    min_slices = max(min_slices, 2)  # one slice has no step
    group = _choose_group(planes)
    normal = planes[group[0]].normal
    along = {i: float(np.dot(planes[i].position, normal)) for i in group}
    group.sort(key=lambda i: (along[i], planes[i].stack, planes[i].time, planes[i].position))
    n_positions = len(group) - len(_find_repeats(group, along))
    if n_positions < min_slices:
        raise Refusal(
            "too-few-slices",
            f"expected at least {min_slices} slice positions, found {n_positions} in {len(group)} slices",
        )
    unique = _drop_copies(group, along, is_copy)
    order = _choose_stack(planes, unique, along, min_slices)
    layout = lay_out([planes[i] for i in order], max_gap_slices=max_gap_slices)
    doubts = (
        ("one-of-several-stacks", len(group) < len(planes)),
        ("identical-duplicates-dropped", len(unique) < len(group)),
        ("one-of-several-stacks", len(order) < len(unique)),
        ("tilt-corrected", layout.tilt_degrees > 0),
        ("gap-interpolated", len(layout.gaps_mm) > 0),
    )
    return Stack(order, layout, tuple(dict.fromkeys(word for word, applies in doubts if applies)))


def _choose_group(planes: Sequence[Plane]) -> list[int]:
    """Return the largest group of slices of one size, pixel spacing and orientation."""
    groups: list[list[int]] = []
    for i in sorted(range(len(planes)), key=lambda i: (planes[i].shape, planes[i].pixel_mm, planes[i].position)):
        group = next((group for group in groups if planes[group[0]].shares_grid(planes[i])), None)
        if group is None:
            groups.append(group := [])
        group.append(i)
    if not groups:
        raise Refusal("too-few-slices", "expected slices, found none")
    groups.sort(key=len, reverse=True)
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


def _drop_copies(chosen: list[int], along: dict[int, float], is_copy: Callable[[int, int], bool]) -> list[int]:
    kept: list[int] = []
    for i in chosen:
        neighbours = itertools.takewhile(lambda k: along[i] - along[k] <= SAME_POSITION_MM, reversed(kept))  # noqa: B023
        if not any(is_copy(k, i) for k in neighbours):
            kept.append(i)
    return kept


def _find_repeats(chosen: list[int], along: dict[int, float]) -> list[int]:
    """Return those of the sorted slices that share their position with the next one."""
    return [a for a, b in itertools.pairwise(chosen) if along[b] - along[a] <= SAME_POSITION_MM]


def _choose_stack(planes: Sequence[Plane], chosen: list[int], along: dict[int, float], min_slices: int) -> list[int]:
    """Return the longest stack if the slices hold several, else all slices.

    The smallest set of tags that leaves one slice per position separates the stacks, or else time, if one stack was
    made after the other. Of equally long stacks, the first by its tags or in time is taken. Two stacks without a
    position in common are separated too if they interleave: two reconstructions, one shifted by half a step.
    """
    repeats = _find_repeats(chosen, along)
    for stacks in itertools.chain(_part_by_tags(planes, chosen), _part_by_time(planes, chosen, along)):
        best = max(stacks, key=len)  # the first of the longest
        if len(best) < min_slices or any(_find_repeats(stack, along) for stack in stacks):
            continue
        if repeats or _are_interleaved([stack for stack in stacks if len(stack) >= min_slices], along):
            return best
    if repeats:
        raise Refusal(
            "duplicate-positions",
            f"expected one slice per position, found different slices at {along[repeats[0]]:.2f} mm along the normal "
            f"({len(chosen)} slices in all), and no tags that separate stacks of {min_slices} or more",
        )
    return chosen


def _part_by_tags(planes: Sequence[Plane], chosen: list[int]) -> Iterator[list[list[int]]]:
    """Group the slices by each tag, then by each pair of tags and so on; groups are sorted by value."""
    n_tags = len(planes[chosen[0]].stack)
    varying = [k for k in range(n_tags) if len({planes[i].stack[k] for i in chosen}) > 1]
    for n in range(1, len(varying) + 1):
        for tags in itertools.combinations(varying, n):
            groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
            for i in chosen:
                groups[tuple(planes[i].stack[k] for k in tags)].append(i)
            yield [groups[values] for values in sorted(groups)]


def _part_by_time(planes: Sequence[Plane], chosen: list[int], along: dict[int, float]) -> Iterator[list[list[int]]]:
    """Start a new stack, in order of time, wherever a position comes again; yield nothing if times are equal there."""
    if not all(planes[i].time for i in chosen):
        return
    place = {chosen[0]: 0}  # equal for slices at one position
    for a, b in itertools.pairwise(chosen):
        place[b] = place[a] + (along[b] - along[a] > SAME_POSITION_MM)
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


def _are_interleaved(stacks: list[list[int]], along: dict[int, float]) -> bool:
    """Tell whether one stack begins before another ends."""
    ends = sorted((along[stack[0]], along[stack[-1]]) for stack in stacks)
    return any(low <= high for (_, high), (low, _) in itertools.pairwise(ends))

"""Part the slices of one series into stacks, by their tags or the order of their making; join the parts of one scan."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from dskprep.dicom.header import RECONSTRUCTION
from dskprep.dicom.plane import Plane
from dskprep.errors import Refusal
from dskprep.series.geometry import Layout

SAME_POSITION_MM = 0.01
"""Slices no farther apart along their normal lie at one position."""
MAX_OVERLAP = 0.25
"""Largest share of the shorter of two stacks that may lie where the other does, for both to be parts of one scan."""
JUMP = 0.5
"""Share of a series' extent over which a scanner goes back only to begin anew."""
MAX_TAGS = 3
"""Most tags that are used together to tell stacks apart."""

Lay = Callable[[list[int]], Layout]
"""Lays out the planes of these indices, or raises Refusal."""


def find_repeats(chosen: list[int], along: dict[int, float]) -> list[int]:
    """Return those of the sorted slices that share their position with the next one."""
    return [a for a, b in itertools.pairwise(chosen) if along[b] - along[a] <= SAME_POSITION_MM]


def count_positions(chosen: list[int], along: dict[int, float]) -> int:
    return len(chosen) - len(find_repeats(chosen, along))


def part(
    planes: Sequence[Plane],
    chosen: list[int],
    along: dict[int, float],
    min_slices: int,
    lay: Lay,
) -> list[list[int]]:
    """Part the slices into stacks if they hold several; else return them as the one part. The longest is first.

    A part with `min_slices` positions is a stack, which has one slice per position; what is smaller, such as the
    images that watch the contrast agent arrive, comes along. The smallest set of tags that gives stacks of even steps
    separates them, or else the order in which they were made. Of equally long stacks, the first by its tags or in time
    is first. Stacks without a position in common are separated too if they interleave: two reconstructions, one
    shifted by half a step.
    """
    repeats = find_repeats(chosen, along)
    second_best: list[list[int]] = []
    for parts in itertools.chain(
        _part_by_tags(planes, chosen, along, min_slices), _part_by_order(planes, chosen, along)
    ):
        stacks = [part for part in parts if count_positions(part, along) >= min_slices]
        if not stacks or any(find_repeats(stack, along) for stack in stacks):
            continue
        if not repeats and not _are_interleaved(stacks, along):
            continue
        parts = sorted(parts, key=lambda part: (part in stacks, len(part)), reverse=True)
        try:
            for stack in stacks if not repeats else parts[:1]:
                lay(stack)
        except Refusal:
            second_best = second_best or (parts if repeats else [])
        else:
            return parts
    if second_best or not repeats:
        return second_best or [chosen]
    raise Refusal(
        "duplicate-positions",
        f"expected one slice per position, found different slices at {along[repeats[0]]:.2f} mm along the normal "
        f"({len(chosen)} slices in all), and no tags that separate stacks of {min_slices} or more",
    )


def _part_by_tags(
    planes: Sequence[Plane], chosen: list[int], along: dict[int, float], min_slices: int
) -> Iterator[list[list[int]]]:
    """Group the slices by each tag, then by each pair and each three; groups are sorted by value.

    A tag that leaves no group large enough, such as a time that each slice has for itself, is of no use in a pair.
    """

    def group(tags: tuple[int, ...]) -> list[list[int]]:
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i in chosen:
            groups[tuple(planes[i].stack[k] for k in tags)].append(i)
        return [groups[values] for values in sorted(groups)]

    by_tag = {k: group((k,)) for k in range(len(planes[chosen[0]].stack))}
    telling = [
        k
        for k, parts in by_tag.items()
        if len(parts) > 1 and max(count_positions(part, along) for part in parts) >= min_slices
    ]
    for n in range(1, MAX_TAGS + 1):
        yield from (group(tags) for tags in itertools.combinations(telling, n))


def _part_by_order(planes: Sequence[Plane], chosen: list[int], along: dict[int, float]) -> Iterator[list[list[int]]]:
    """Start a new stack, in the order of making, where a position comes again; nothing if that order is not told.

    If none does, start one where the scanner went back a long way, by the time alone: numbers may mean anything.
    """
    place = {chosen[0]: 0}  # equal for slices at one position
    for a, b in itertools.pairwise(chosen):
        place[b] = place[a] + (along[b] - along[a] > SAME_POSITION_MM)
    n_places = 1 + max(place.values())
    ways = range(len(planes[chosen[0]].order))
    is_repeated = len(chosen) > n_places
    for way in ways if is_repeated else ways[:1]:
        made = {i: planes[i].order[way] for i in chosen}
        order = sorted(chosen, key=lambda i: made[i])
        if not all(made.values()):
            continue
        if is_repeated:
            found = [_cut_by_repeats(order, place, is_by_sweeps=by_sweeps) for by_sweeps in (True, False)]
            cuts = found[: 1 + (found[0] != found[1])]
        else:
            pairs = itertools.pairwise(range(len(order)))
            cuts = [[b for a, b in pairs if abs(place[order[b]] - place[order[a]]) > JUMP * n_places]]
        for cut in sorted(cuts, key=len):
            if cut and all(made[order[n]] != made[order[n - 1]] for n in cut):
                ends = itertools.pairwise([0, *cut, len(order)])
                yield [sorted(order[start:end], key=lambda i: along[i]) for start, end in ends]


def _cut_by_repeats(order: list[int], place: dict[int, int], *, is_by_sweeps: bool) -> list[int]:
    """Return where stacks begin in the order of making, after the first: no position comes twice in one of them.

    A slice at a position that comes again is of another stack. That begins with this slice or, with `is_by_sweeps`,
    where the sweep of the slice began, which may be beyond the stack before.
    """
    cuts: list[int] = []
    first, seen = 0, set[int]()
    for n, i in enumerate(order):
        if place[i] in seen:
            first = _begin_of_sweep(order, place, first, n) if is_by_sweeps else n
            cuts.append(first)
            seen = {place[k] for k in order[first:n]}
        seen.add(place[i])
    return cuts


def _begin_of_sweep(order: list[int], place: dict[int, int], first: int, n: int) -> int:
    """Return the number, after `first` and up to `n`, of the slice with which the sweep to the n-th slice began.

    The scanner went to it by the longest step since it last turned.
    """
    ways = {k: place[order[k]] - place[order[k - 1]] for k in range(first + 1, n + 1)}
    turn = n
    while turn > first + 1 and ways[turn] * ways[n] > 0:
        turn -= 1
    return max(range(n, turn - 1, -1), key=lambda k: abs(ways[k]))


def _are_interleaved(stacks: list[list[int]], along: dict[int, float]) -> bool:
    """Tell whether one stack begins before another ends."""
    ends = sorted((along[stack[0]], along[stack[-1]]) for stack in stacks)
    return any(low <= high for (_, high), (low, _) in itertools.pairwise(ends))


def join(
    planes: Sequence[Plane],
    stack: list[int],
    others: list[list[int]],
    along: dict[int, float],
    lay: Lay,
) -> tuple[list[int], list[list[int]]]:
    """Add to a stack the parts that continue it on its own grid: a scan that was made in two parts, one a little over.

    Where both have a slice, that of the stack is kept. Returns the stack, and the parts that were not added.
    """

    def reconstruction(i: int) -> list[str]:
        return [planes[i].stack[k] for k in RECONSTRUCTION if k < len(planes[i].stack)]

    apart: list[list[int]] = []
    for other in others:
        low, high = along[stack[0]] - SAME_POSITION_MM, along[stack[-1]] + SAME_POSITION_MM
        beyond = [i for i in other if not low <= along[i] <= high]
        within = [i for i in other if i not in beyond]
        joined = sorted([*stack, *beyond], key=lambda i: along[i])
        if (
            beyond
            and len(within) <= MAX_OVERLAP * min(len(stack), len(other))
            and reconstruction(stack[0]) == reconstruction(other[0])
            and not find_repeats(joined, along)
            and _lies_even(joined, lay)
        ):
            stack = joined
        else:
            apart.append(other)
    return stack, apart


def _lies_even(order: list[int], lay: Lay) -> bool:
    try:
        lay(order)
    except Refusal:
        return False
    return True

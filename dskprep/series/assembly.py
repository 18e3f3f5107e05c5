"""From the slices of one series, in any order, to the series that a volume is made of: one, or all that there are."""

from __future__ import annotations

import itertools
from typing import Any

from dskprep.dicom.plane import Plane
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.series import hounsfield, stacks
from dskprep.series.of_slices import Reread, of_slices
from dskprep.series.series import Series


def assemble(
    slices: list[Slice],
    *,
    min_slices: int = 10,
    max_gap_slices: int = 0,
    to_hu: hounsfield.ToHU | None = None,
    reread: Reread | None = None,
    check_hu: bool = True,
) -> Series:
    """Choose and order the slices of one series that make its volume (see `stacks.stack_up`). Empties `slices`.

    Up to `max_gap_slices` missing slices in a row are interpolated. With `to_hu`, a recipe's way to HU, the series
    is decoded as the recipes of 2017 had it, and a tilt is refused. With `reread`, `slices` are header-only. Unless
    `check_hu` is false, values that cannot be HU are refused once all planes have been decoded.

    Raises Refusal if the slices make no volume.
    """
    stack = stacks.stack_up(
        _sorted_planes(slices), min_slices=min_slices, max_gap_slices=max_gap_slices, is_copy=_copies(slices, reread)
    )
    chosen = [slices[i] for i in stack.order]
    slices.clear()
    return of_slices(chosen, stack, to_hu=to_hu, reread=reread, check_hu=check_hu)


def assemble_all(
    slices: list[Slice],
    *,
    min_slices: int = 10,
    max_gap_slices: int = 0,
    to_hu: hounsfield.ToHU | None = None,
    reread: Reread | None = None,
    check_hu: bool = True,
) -> list[Series | Refusal]:
    """Return each stack of one series as `assemble` returns one, or why it makes no volume (`stacks.stack_up_all`).

    Empties `slices`. Raises Refusal if there is no stack.
    """
    found = stacks.stack_up_all(
        _sorted_planes(slices), min_slices=min_slices, max_gap_slices=max_gap_slices, is_copy=_copies(slices, reread)
    )
    made: list[Series | Refusal] = []
    for stack in found:
        try:
            if isinstance(stack, Refusal):
                raise stack
            chosen = [slices[i] for i in stack.order]
            made.append(of_slices(chosen, stack, to_hu=to_hu, reread=reread, check_hu=check_hu))
        except Refusal as refusal:
            made.append(refusal)
    slices.clear()
    return made


def _sorted_planes(slices: list[Slice]) -> list[Plane]:
    """Sort the slices so that neither the names nor the order of the files matter, and return their planes."""
    slices.sort(key=_rank)
    for _, group in itertools.groupby(range(len(slices)), lambda i: _rank(slices[i])):
        first, *others = group
        if others:  # only their pixels tell them apart, if anything does
            alike = slice(first, others[-1] + 1)
            slices[alike] = sorted(slices[alike], key=lambda s: bytes(s.data))
    return [s.plane for s in slices]


def _copies(slices: list[Slice], reread: Reread | None) -> stacks.IsCopy:
    """Return a function that tells whether the pixels of two slices, by index, are equal."""

    def is_copy(a: int, b: int) -> bool:
        pair = [slices[a], slices[b]]
        return Slice.is_copy_of(*(pair if reread is None else reread(pair)))

    return is_copy


def _rank(s: Slice) -> tuple[Any, ...]:
    return s.plane.position, s.plane.stack, s.plane.order, s.slope, s.intercept, sorted(s.facts.items())

"""From the slices of one series, in any order, to the series that a volume is made of: one, or all that there are."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dskprep.counts import n_of
from dskprep.dicom import pixels
from dskprep.dicom.owners import has_strays, owner_of
from dskprep.dicom.plane import Plane
from dskprep.dicom.slices import MAX_PLANE_MM, Slice
from dskprep.errors import Refusal
from dskprep.plain import to_number
from dskprep.series import hounsfield, stacks
from dskprep.series.series import Fact, Series, Stored, facts_of

Reread = Callable[[Sequence[Slice]], Iterator[Slice]]
"""Re-reads header-only slices with their pixel data, in the requested order."""


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
    try:
        planes, is_copy = _sorted_planes(slices), _copies(slices, reread)
        stack = stacks.stack_up(planes, min_slices=min_slices, max_gap_slices=max_gap_slices, is_copy=is_copy)
    except Refusal as refusal:
        raise _with_doubled_names(refusal, slices) from None
    chosen = [slices[i] for i in stack.order]
    slices.clear()
    return _of_slices(chosen, stack, to_hu=to_hu, reread=reread, check_hu=check_hu)


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
    try:
        planes, is_copy = _sorted_planes(slices), _copies(slices, reread)
        found = stacks.stack_up_all(planes, min_slices=min_slices, max_gap_slices=max_gap_slices, is_copy=is_copy)
    except Refusal as refusal:
        raise _with_doubled_names(refusal, slices) from None
    made: list[Series | Refusal] = []
    for stack in found:
        try:
            if isinstance(stack, Refusal):
                raise stack
            chosen = [slices[i] for i in stack.order]
            made.append(_of_slices(chosen, stack, to_hu=to_hu, reread=reread, check_hu=check_hu))
        except Refusal as refusal:
            made.append(_with_doubled_names(refusal, slices))
    slices.clear()
    return made


def _with_doubled_names(refusal: Refusal, slices: list[Slice]) -> Refusal:
    """Return the refusal; of slices at one position, it says whether files have one name, as only in an archive."""
    twice = sorted(name for name, n in Counter(s.name for s in slices).items() if n > 1)
    if refusal.reason != "duplicate-positions" or not twice:
        return refusal
    return Refusal(
        refusal.reason,
        f"{refusal.message}; {n_of(len(twice), 'name')} of files, such as {twice[0]}, more than once in the archive, "
        "as after adding to it: unpack it, so that the last file of each name counts",
    )


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


def _of_slices(
    slices: list[Slice],
    stack: stacks.Stack,
    *,
    to_hu: hounsfield.ToHU | None,
    reread: Reread | None,
    check_hu: bool,
) -> Series:
    """Return the series of slices that are in the order of their stack. With `reread` they are header-only."""
    layout = stack.layout
    if layout.tilt_degrees and to_hu is not None:
        raise Refusal(
            "gantry-tilt",
            f"expected no tilt, as the recipes of 2017 do, found one of {layout.tilt_degrees} degrees",
        )
    facts: dict[str, Fact] = {
        key: Counter(s.facts[key] for s in slices).most_common(1)[0][0] for key in slices[0].facts
    }
    facts |= facts_of(layout, len(slices), slices[0].plane.shape)
    facts |= _ratios(facts)
    if stack.left_out_mm:
        facts["left_out_mm"] = stack.left_out_mm
    doubt = _doubt_of(slices)
    seen = (
        ("mixed-rescale", len({(s.slope, s.intercept) for s in slices}) > 1),
        ("lossy-compression", any(s.is_lossy or s.pixel_format.transfer_syntax in pixels.LOSSY for s in slices)),
        ("slices-of-another-study", has_strays(slices)),
        ("derived-slices", any(s.is_derived for s in slices)),
        ("hu-from-values", bool(doubt)),
    )
    low, next_ = sorted(s.plane.position[2] for s in slices)[:2]
    formats = {s.pixel_format: s.name for s in slices}
    instance_of = dict(zip(layout.numbers, (s.identity.instance for s in slices), strict=True))

    def check_formats() -> None:
        for pixel_format, name in formats.items():
            pixels.check_format(pixel_format, name)

    return Series(
        layout,
        len(slices),
        lambda: map(_stored, _pop_all(slices) if reread is None else reread(slices)),
        facts=facts,
        first_gap_mm=abs(low - next_),
        warnings=(*stack.warnings, *(word for word, applies in seen if applies)),
        doubt=doubt,
        to_hu=to_hu,
        check_hu=check_hu,
        check_formats=check_formats,
        identity=owner_of(slices),
        instances=tuple(instance_of.get(k, "") for k in range(layout.grid.shape[0])),
    )


def _ratios(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    """Return the thickness of the slices by their distance, and the reconstructed field by the width of the image."""
    width_mm = float(facts["columns"]) * float(facts["column_spacing_mm"])
    of = {
        "thickness_ratio": (facts["slice_thickness_mm"], float(facts["step_mm"])),
        "diameter_ratio": (facts["reconstruction_diameter_mm"], width_mm),
    }
    found: dict[str, Fact] = {}
    for name, (value, by_mm) in of.items():
        mm = to_number(str(value))
        if mm is not None and 0 < mm < MAX_PLANE_MM:
            found[name] = round(mm / by_mm, 4)
    return found


def _stored(s: Slice) -> Stored:
    return Stored(pixels.stored_values(s.data, s.pixel_format, s.name), s.slope, s.intercept, s.padding)


def _doubt_of(slices: list[Slice]) -> str:
    """Return why the header leaves open whether the values are HU, which must be the same for all slices."""
    doubts = {s.doubt: s.name for s in slices}
    if len(doubts) > 1:
        (one, name), (other, other_name) = sorted(doubts.items())[:2]
        raise Refusal(
            "not-hu",
            f"expected RescaleType HU, slope and intercept in all slices or none, found {one or 'them'} in {name} and "
            f"{other} in {other_name}",
        )
    return next(iter(doubts))


def _pop_all(slices: list[Slice]) -> Iterator[Slice]:
    """Yield the slices in order and empty the list, so that each can be freed before the next is taken."""
    slices.reverse()
    while slices:
        yield slices.pop()

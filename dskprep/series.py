"""The slices of one series to a volume in HU."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep import geometry, intensity, pixels, resample, stacks
from dskprep.dicom import Slice
from dskprep.errors import Refusal
from dskprep.geometry import Grid
from dskprep.volume import Triple, Volume


@dataclass(frozen=True, eq=False)
class Series:
    """A series put right.

    `volume` is int16 HU (z, y, x) along the patient's axes, PADDING where nothing was measured;
    `hu_sha256` is over the HU as acquired (little-endian int16, slices by position along the normal,
    padding as the scanner wrote it, before a tilt is corrected or a gap filled); `warnings` are words of
    errors.WARNINGS.
    """

    volume: Volume
    hu_sha256: str
    warnings: tuple[str, ...]
    first_gap_mm: float
    """How far the first two slices are apart along the patient's z axis."""
    facts: dict[str, str | int | float]


def assemble(
    slices: list[Slice],
    *,
    min_slices: int = 10,
    max_gap_slices: int = 0,
    to_hu: intensity.ToHU | None = None,
    reserve: Callable[[tuple[int, int, int], Triple], None] = lambda _shape, _spacing: None,
) -> Series:
    """Order the slices of one series, decode them and make their volume. Empties `slices` as it goes.

    Up to `max_gap_slices` missing slices in a row are interpolated. `reserve` is called with the volume's
    shape and spacing before anything is decoded, and may raise.

    With `to_hu`, a recipe's way to HU, the volume is as the recipes of 2017 had it: padding is not marked,
    slices lie as they were stored, from foot to head, and a tilt is refused.

    Raises Refusal if the slices make no volume.
    """
    stack = stack_up(slices, min_slices=min_slices, max_gap_slices=max_gap_slices, may_tilt=to_hu is None)
    grid = stack.grid
    reserve(grid.shape, grid.spacing)
    chosen = [slices[i] for i in stack.order]
    slices.clear()
    facts = _facts(chosen, grid)
    warnings = list(stack.warnings)
    if len({(s.slope, s.intercept) for s in chosen}) > 1:
        warnings.append("mixed-rescale")
    if any(s.is_lossy or s.layout.transfer_syntax in pixels.LOSSY for s in chosen):
        warnings.append("lossy-compression")
    first_gap_mm = _first_gap_mm(chosen)
    array, digest, n_clipped = _decode(chosen, grid, to_hu)
    if n_clipped:
        warnings.append("hu-clipped")
    volume = Volume(array, grid.affine)
    volume = geometry.to_patient_axes(volume) if to_hu is None else geometry.upwards(volume)
    return Series(volume, digest, tuple(warnings), first_gap_mm, facts)


def _first_gap_mm(chosen: list[Slice]) -> float:
    """Distance in z of the two lowest slices."""
    low, next_ = sorted(s.plane.position[2] for s in chosen)[:2]
    return abs(low - next_)


def stack_up(
    slices: list[Slice],
    *,
    min_slices: int,
    max_gap_slices: int,
    may_tilt: bool = True,
    is_copy: Callable[[Slice, Slice], bool] | None = None,
) -> stacks.Stack:
    """Sort the slices of one series, and choose those that make its volume (see `stacks.stack_up`).

    `is_copy` says whether two slices at one position have the same pixels; by default they are compared.
    Unless they `may_tilt`, as for a recipe of 2017 they may not, tilted ones are refused.
    """
    _sort(slices)
    are_same = is_copy or _is_copy
    stack = stacks.stack_up(
        [s.plane for s in slices],
        min_slices=min_slices,
        max_gap_slices=max_gap_slices,
        is_copy=lambda a, b: are_same(slices[a], slices[b]),
    )
    if stack.grid.tilt_degrees and not may_tilt:
        raise Refusal(
            "gantry-tilt",
            f"expected no tilt, as the recipes of 2017 do, found one of {stack.grid.tilt_degrees} degrees",
        )
    return stack


def _decode(chosen: list[Slice], grid: Grid, to_hu: intensity.ToHU | None) -> tuple[NDArray[np.int16], str, int]:
    """HU of every slice, one after another, each slice's encoded pixels freed when it is done."""
    array = np.empty(grid.shape, np.int16)
    hu = np.empty(chosen[0].plane.shape, np.int16)
    sha256 = hashlib.sha256()
    n_clipped = 0
    chosen.reverse()
    for number, offset in zip(grid.numbers, grid.offsets.tolist(), strict=True):
        s = chosen.pop()
        if not grid.tilt_degrees:
            hu = array[number]
        stored = pixels.stored_values(s.data, s.layout, s.name)
        intensity.to_hu(stored, s.slope, s.intercept, out=hu)
        sha256.update(hu.astype("<i2", copy=False).data)
        if to_hu is not None:
            to_hu(stored, s.slope, s.intercept, hu)
            continue
        intensity.mark_padding(hu, _padding_hu(s))
        n_clipped += int(np.count_nonzero(hu == intensity.INT16_HU[1]))
        if grid.tilt_degrees:
            resample.shift(hu, offset, array[number])
    for below, above in itertools.pairwise(grid.numbers):
        resample.fill_gap(array, below, above)
    return array, sha256.hexdigest(), n_clipped


def _padding_hu(s: Slice) -> tuple[int, int] | None:
    """The declared padding in HU, rounded and clipped as the slice is."""
    if s.padding is None:
        return None
    low, high = sorted(intensity.to_hu(np.array([s.padding], np.int64), s.slope, s.intercept)[0].tolist())
    return low, high


def _facts(chosen: list[Slice], grid: Grid) -> dict[str, str | int | float]:
    """What the record says of the source: the commonest value of each attribute, and the geometry."""
    facts: dict[str, str | int | float] = {
        key: Counter(s.facts[key] for s in chosen).most_common(1)[0][0] for key in chosen[0].facts
    }
    z, y, x = (float(v) for v in np.linalg.norm(grid.affine[:3, :3], axis=0))
    facts.update(slices=len(chosen), rows=chosen[0].layout.rows, columns=chosen[0].layout.columns)
    facts.update(step_mm=round(z, 6), row_spacing_mm=y, column_spacing_mm=x)
    for axis, value in zip("xyz", grid.affine[:3, 3], strict=True):
        facts[f"first_{axis}_mm"] = round(float(value), 4)
    if grid.tilt_degrees:
        facts["tilt_degrees"] = grid.tilt_degrees
    if grid.gaps_mm:
        facts["interpolated_mm"] = " ".join(f"{mm:.2f}" for mm in grid.gaps_mm)  # along the normal
    return facts


def _sort(slices: list[Slice]) -> None:
    """Bring slices into an order that the files' names and order have no part in."""
    slices.sort(key=_rank)
    for _, group in itertools.groupby(range(len(slices)), lambda i: _rank(slices[i])):
        first, *others = group
        if others:  # only their pixels tell them apart, if anything does
            alike = slice(first, others[-1] + 1)
            slices[alike] = sorted(slices[alike], key=lambda s: bytes(s.data))


def _rank(s: Slice) -> tuple[Any, ...]:
    return s.plane.position, s.plane.stack, s.plane.time, s.slope, s.intercept, sorted(s.facts.items())


def _is_copy(a: Slice, b: Slice) -> bool:
    """Whether pixels, their rescale and their padding are equal."""
    return (a.layout, a.slope, a.intercept, a.padding, a.data) == (b.layout, b.slope, b.intercept, b.padding, b.data)

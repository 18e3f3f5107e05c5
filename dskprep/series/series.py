"""The slices of one series to a volume in HU."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.dicom import pixels
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.series import hounsfield, stacks, upright
from dskprep.series.geometry import Grid
from dskprep.volume import Triple, Volume

Reread = Callable[[Sequence[Slice]], Iterator[Slice]]
"""Gives slices that came without their pixels once more, in the order asked for, with them."""


def uid_digest(uid: str) -> str:
    """What stands for a SeriesInstanceUID in records and keys."""
    return hashlib.sha256(uid.encode()).hexdigest()[:12]


class Series:
    """A series put right: its slices in order along their normal, each decoded when it is asked for.

    `shape`, `affine` and `spacing` are those of its `planes`; `facts` are what the record says of the source,
    and `first_gap_mm` is how far the first two slices are apart along the patient's z axis.
    """

    def __init__(
        self,
        slices: list[Slice],
        grid: Grid,
        warnings: Sequence[str],
        to_hu: hounsfield.ToHU | None = None,
        reread: Reread | None = None,
    ) -> None:
        self.shape, self.affine, self.spacing = grid.shape, grid.affine, grid.spacing
        self.facts = _facts(slices, grid)
        self.first_gap_mm = _first_gap_mm(slices)
        self._slices, self._grid, self._to_hu, self._reread = slices, grid, to_hu, reread
        self._warnings = tuple(warnings)
        self._sha256 = hashlib.sha256()
        self._n_clipped = 0

    def planes(self) -> Iterator[NDArray[np.int16]]:
        """Each slice in int16 HU (rows, columns), PADDING where nothing was measured; those of gaps interpolated.

        They can be had once. Raises Refusal where a slice cannot be decoded.
        """
        if not self._slices:
            raise RuntimeError("the slices of this series have been decoded already")
        grid, below, last = self._grid, np.empty((0, 0), np.int16), -1  # the first slice is number 0
        for number, offset, s in zip(grid.numbers, grid.offsets.tolist(), self._encoded(), strict=True):
            hu = self._decode(s)
            del s  # its pixels are no longer needed
            if grid.tilt_degrees:
                shifted = np.empty(grid.shape[1:], np.int16)
                upright.shift(hu, offset, shifted)
                hu = shifted
            for missing in range(last + 1, number):
                yield upright.between(below, hu, (missing - last) / (number - last))
            yield hu
            below, last = hu, number

    def _encoded(self) -> Iterator[Slice]:
        slices, self._slices = self._slices, []
        if self._reread is not None:
            yield from self._reread(slices)
            return
        slices.reverse()
        while slices:
            yield slices.pop()

    def _decode(self, s: Slice) -> NDArray[np.int16]:
        stored = pixels.stored_values(s.data, s.layout, s.name)
        hu = hounsfield.to_hu(stored, s.slope, s.intercept)
        self._sha256.update(hu.astype("<i2", copy=False).data)
        if self._to_hu is not None:
            self._to_hu(stored, s.slope, s.intercept, hu)
            return hu
        hounsfield.mark_padding(hu, _padding_hu(s))
        self._n_clipped += int(np.count_nonzero(hu == hounsfield.INT16_HU[1]))
        return hu

    @cached_property
    def volume(self) -> Volume:
        """All of it: int16 HU (z, y, x) along the patient's axes, PADDING where nothing was measured.

        For a recipe of 2017, as the recipe had it: padding is not marked, and slices lie as they were stored,
        from foot to head. Raises Refusal where a slice cannot be decoded.
        """
        array = np.empty(self.shape, np.int16)
        for out, plane in zip(array, self.planes(), strict=True):
            out[...] = plane
        volume = Volume(array, self.affine)
        return upright.to_patient_axes(volume) if self._to_hu is None else upright.upwards(volume)

    @property
    def hu_sha256(self) -> str:
        """Of the HU as acquired, once all are decoded.

        Over little-endian int16, slices by position along the normal, padding as the scanner wrote it, before a
        tilt is corrected or a gap filled.
        """
        self._decode_all()
        return self._sha256.hexdigest()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Words of errors.WARNINGS, once all are decoded."""
        self._decode_all()
        return (*self._warnings, *["hu-clipped"] * bool(self._n_clipped))

    def _decode_all(self) -> None:
        if self._slices:
            _ = self.volume


def assemble(
    slices: list[Slice],
    *,
    min_slices: int = 10,
    max_gap_slices: int = 0,
    to_hu: hounsfield.ToHU | None = None,
    reserve: Callable[[tuple[int, int, int], Triple], None] = lambda _shape, _spacing: None,
    reread: Reread | None = None,
) -> Series:
    """Order the slices of one series. Empties `slices`.

    Up to `max_gap_slices` missing slices in a row are interpolated. `reserve` is called with the volume's
    shape and spacing before anything is decoded, and may raise.

    With `reread`, the slices came without their pixels, and it gives them again with theirs, in any order.

    With `to_hu`, a recipe's way to HU, the volume is as the recipes of 2017 had it, and a tilt is refused.

    Raises Refusal if the slices make no volume.
    """
    stack = stack_up(
        slices,
        min_slices=min_slices,
        max_gap_slices=max_gap_slices,
        may_tilt=to_hu is None,
        is_copy=copies_among(reread),
    )
    grid = stack.grid
    reserve(grid.shape, grid.spacing)
    chosen = [slices[i] for i in stack.order]
    slices.clear()
    warnings = list(stack.warnings)
    if len({(s.slope, s.intercept) for s in chosen}) > 1:
        warnings.append("mixed-rescale")
    if any(s.is_lossy or s.layout.transfer_syntax in pixels.LOSSY for s in chosen):
        warnings.append("lossy-compression")
    return Series(chosen, grid, warnings, to_hu, reread)


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
    is_copy: Callable[[Slice, Slice], bool] = Slice.is_copy_of,
) -> stacks.Stack:
    """Sort the slices of one series, and choose those that make its volume (see `stacks.stack_up`).

    `is_copy` says whether two slices at one position have the same pixels; by default those that they came with are.
    Unless they `may_tilt`, as for a recipe of 2017 they may not, tilted ones are refused.
    """
    _sort(slices)
    stack = stacks.stack_up(
        [s.plane for s in slices],
        min_slices=min_slices,
        max_gap_slices=max_gap_slices,
        is_copy=lambda a, b: is_copy(slices[a], slices[b]),
    )
    if stack.grid.tilt_degrees and not may_tilt:
        raise Refusal(
            "gantry-tilt",
            f"expected no tilt, as the recipes of 2017 do, found one of {stack.grid.tilt_degrees} degrees",
        )
    return stack


def _padding_hu(s: Slice) -> tuple[int, int] | None:
    """The declared padding in HU, rounded and clipped as the slice is."""
    if s.padding is None:
        return None
    low, high = sorted(hounsfield.to_hu(np.array([s.padding], np.int64), s.slope, s.intercept)[0].tolist())
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


def copies_among(reread: Reread | None) -> Callable[[Slice, Slice], bool]:
    """Whether two slices are equal with their pixels; these come by `reread`, if not with the slices."""
    if reread is None:
        return Slice.is_copy_of
    return lambda a, b: Slice.is_copy_of(*reread([a, b]))

"""The ordered slices of one volume to Hounsfield units, decoded one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.counts import n_of
from dskprep.dicom.description import NOBODY, Identity
from dskprep.errors import Refusal
from dskprep.series import hounsfield, upright
from dskprep.series.geometry import Layout
from dskprep.series.plausibility import Histograms
from dskprep.volume import Volume, grid_in_words

Fact = str | int | float


class Stored(NamedTuple):
    """The stored values (y, x) of one slice. HU = values * slope + intercept.

    `padding` is the range of values that a header declares as padding.
    """

    values: NDArray[Any]
    slope: float
    intercept: float
    padding: tuple[int, int] | None = None


class Series:
    """What was found of a series: its slices in order along their normal, still encoded, and their grid.

    `read_series` gives it. `facts` describe the source in a record. `warnings` are those of docs/reasons.md that the
    headers show; further ones show when it is decoded. `first_gap_mm` is the distance of the two lowest slices along
    the patient's z axis. `encoded_bytes` are held until it is decoded, or None where these are its slices. `identity`
    is that of most slices, `instances` are the SOPInstanceUIDs of the planes of the grid, "" for one that has none.
    """

    def __init__(
        self,
        layout: Layout,
        n_slices: int,
        take: Callable[[], Iterator[Stored]],
        *,
        facts: dict[str, Fact],
        first_gap_mm: float,
        warnings: tuple[str, ...],
        doubt: str,
        to_hu: hounsfield.ToHU | None,
        check_hu: bool,
        check_formats: Callable[[], None] = lambda: None,
        check_values: Callable[[], None] = lambda: None,
        check_order: Callable[[], None] = lambda: None,
        encoded_bytes: int | None = None,
        identity: Identity = NOBODY,
        instances: tuple[str, ...] = (),
    ) -> None:
        self.n_slices, self.grid, self.facts, self.first_gap_mm = n_slices, layout.grid, facts, first_gap_mm
        self.warnings, self.encoded_bytes = warnings, encoded_bytes
        self._take: Callable[[], Iterator[Stored]] | None = take
        self._layout, self._to_hu, self._check_hu = layout, to_hu, check_hu
        self._doubt, self._check_formats = doubt, check_formats
        self._check_values, self._check_order = check_values, check_order
        self.identity, self.instances = identity, instances

    def __repr__(self) -> str:
        state = "" if self._take else ", decoded"
        return f"<Series: {n_of(self.n_slices, 'slice')}, {grid_in_words(self.grid.shape, self.grid.spacing)}{state}>"

    def check_formats(self) -> None:
        """Raise Refusal, as decoding would, if a slice has pixels in a format that is not read here."""
        self._check_formats()

    def decode(self) -> Decoded:
        """Return the series' HU planes, each decoded when it is taken. Raises RuntimeError when called again.

        To save memory, each encoded slice is dropped once it is decoded.
        """
        take, self._take = self._take, None
        if take is None:
            raise RuntimeError("a series can be decoded once, because its encoded slices are dropped; read it again")
        return Decoded(self, take())


class Decoded:
    """The HU of a series: planes one by one, or one volume; then what is known only when all are decoded.

    `grid` is that of the planes as acquired. Comes from `Series.decode`.
    """

    def __init__(self, found: Series, encoded: Iterator[Stored]) -> None:
        self.grid, self.first_gap_mm = found.grid, found.first_gap_mm
        self._layout, self._warnings, self._to_hu = found._layout, found.warnings, found._to_hu
        self._encoded: Iterator[Stored] | None = encoded
        self._n_encoded, self._n_clipped, self._blanks = found.n_slices, 0, hounsfield.Blanks()
        self._sha256, self._histograms = hashlib.sha256(), Histograms()
        self._doubt, self._check_hu = found._doubt, found._check_hu
        self._check_values, self._check_order = found._check_values, found._check_order

    def __repr__(self) -> str:
        return f"<Decoded: {grid_in_words(self.grid.shape, self.grid.spacing)}{'' if self._encoded else ', taken'}>"

    def planes(self) -> Iterator[NDArray[np.int16]]:
        """Return int16 HU (rows, columns) of plane after plane of the grid, gaps interpolated; only once.

        PADDING marks what was never measured. Raises RuntimeError when called again, and Refusal, as the planes are
        taken, where a slice cannot be decoded; and after the last one, where the values cannot be HU.
        """
        encoded, self._encoded = self._encoded, None
        if encoded is None:
            raise RuntimeError("the planes of a series can be taken once; read it again")
        return self._decode_planes(encoded)

    def _decode_planes(self, encoded: Iterator[Stored]) -> Iterator[NDArray[np.int16]]:
        layout, below, last = self._layout, np.empty((0, 0), np.int16), -1  # the first slice is number 0
        decoded = map(self._decode, encoded)  # keeps no encoded slice, as zip would
        for number, offset, hu in zip(layout.numbers, layout.offsets, decoded, strict=True):
            if layout.tilt_degrees:
                shifted = np.empty(self.grid.shape[1:], np.int16)
                upright.shift(hu, offset, shifted)
                hu = shifted
            for missing in range(last + 1, number):
                yield upright.interpolate(below, hu, (missing - last) / (number - last))
            yield hu
            below, last = hu, number
        self._judge_values()
        self._check_order()

    def _judge_values(self) -> None:
        """Refuse a series whose values cannot be HU, or do not show that they are where the header leaves it open."""
        self._check_values()
        accept = "if you know better, accept the values with the setting check_hu = false"
        found = self._histograms.what_else()
        if found and self._check_hu:
            raise Refusal(
                "hu-implausible", f"expected HU (air near -1000, soft tissue near 0), found {found}; {accept}"
            )
        if self._doubt and self._check_hu and not self._histograms.show_hu():
            raise Refusal(
                "not-hu",
                f"expected a header that promises HU, or values that show it by themselves (air near -1000, soft "
                f"tissue near 0), found {self._doubt} and no such values; {accept}",
            )
        if found:
            self._warnings += ("hu-implausible",)

    def _decode(self, s: Stored) -> NDArray[np.int16]:
        hu = hounsfield.to_hu(s.values, s.slope, s.intercept)
        self._sha256.update(hu.astype("<i2", copy=False).data)
        self._n_encoded -= 1
        declared = hounsfield.padding_in_hu(s.padding, s.slope, s.intercept)
        self._blanks.add(hu)
        self._histograms.of(s.slope, s.intercept).add(hu, hounsfield.find_fills(hu, declared))
        if self._to_hu is not None:
            self._to_hu(s.values, s.slope, s.intercept, hu)
            return hu
        hounsfield.mark_padding(hu, declared)
        self._n_clipped += int(np.count_nonzero(hu == hounsfield.INT16_HU[1]))
        return hu

    @cached_property
    def volume(self) -> Volume:
        """All planes in memory: int16 HU (z, y, x) along the patient's axes, PADDING where nothing was measured.

        For a recipe of 2017, as the recipe had it: padding is not marked, and slices lie as they were stored, from
        foot to head. Raises as `planes` does.
        """
        array = np.empty(self.grid.shape, np.int16)
        for out, plane in zip(array, self.planes(), strict=True):
            out[...] = plane
        volume = Volume(array, self.grid.affine)
        return upright.to_patient_axes(volume) if self._to_hu is None else upright.flip_upwards(volume)

    @property
    def hu_sha256(self) -> str:
        """SHA-256 of the HU as acquired; raises RuntimeError unless all planes have been taken.

        It is over little-endian int16, slices in order of their position along the normal, padding as the scanner
        wrote it, before a tilt is corrected or a gap filled.
        """
        self._check_all_taken()
        return self._sha256.hexdigest()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Words of docs/reasons.md; raises RuntimeError unless all planes have been taken."""
        self._check_all_taken()
        seen = (("hu-clipped", self._n_clipped), ("blank-slices", self._blanks.n))
        return (*self._warnings, *(word for word, n in seen if n))

    def _check_all_taken(self) -> None:
        if self._n_encoded:
            raise RuntimeError(f"take all planes first: {self._n_encoded} slices of this series are not yet decoded")


def facts_of(layout: Layout, n_slices: int, shape: tuple[int, int]) -> dict[str, Fact]:
    """Return what a record says of the geometry of a source, whose slices have that shape (rows, columns)."""
    z, y, x = layout.grid.spacing
    facts: dict[str, Fact] = {"slices": n_slices, "rows": shape[0], "columns": shape[1]}
    facts.update(step_mm=round(z, 6), row_spacing_mm=y, column_spacing_mm=x)
    for axis, value in zip("xyz", layout.grid.affine[:3, 3], strict=True):
        facts[f"first_{axis}_mm"] = round(float(value), 4)
    if layout.tilt_degrees:
        facts["tilt_degrees"] = layout.tilt_degrees
    if layout.gaps_mm:
        facts["interpolated_mm"] = " ".join(f"{mm:.2f}" for mm in layout.gaps_mm)  # along the normal
    return facts

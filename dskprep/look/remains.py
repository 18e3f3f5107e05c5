"""What can be drawn of a refused series: the slices that decode, at their places."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dskprep.dicom import pixels
from dskprep.dicom.contents import Contents
from dskprep.dicom.description import text_of
from dskprep.dicom.header import Attributes, read_attributes
from dskprep.dicom.plane import Plane
from dskprep.dicom.slices import Slice, read_slices
from dskprep.errors import DskprepError, Refusal
from dskprep.keys import series_digest
from dskprep.series import stacks
from dskprep.series.parts import SAME_POSITION_MM
from dskprep.source.archive import Outgrown
from dskprep.source.found import files_at

Floats = NDArray[np.float32]

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
NO_PLACE = {
    "ImagePositionPatient": [0, 0, 0],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [1, 1],
}
"""Stands in for a place that a header lacks: the slice can be drawn, and nothing be measured in it."""
REACH = 0.55
"""A slice is drawn so many usual steps to either side: even steps leave no blank, steps a tenth wider do."""
FINE = 8
"""Rows of a cut per usual step, so that a narrow step shows as narrow."""
MOST_ROWS = 3000
"""Most rows of a cut."""
FAR_MM = 1500.0
"""A slice farther from the middle one has its position from a damaged header; with it the others would be a line."""
MOST_SHIFTED = 3
"""Slices that lie farther apart sideways, in widths of a slice, are drawn straight above one another."""


class Trust(IntEnum):
    """How much of a slice is known: HU and place, the place only, or neither. Better ones are lower."""

    HU = 0
    PLACE = 1
    NOTHING = 2


@dataclass(frozen=True, eq=False)
class Cut:
    """A plane across the slices: rows (position, pixel), NaN where no slice is near, from `low_mm` to `high_mm`.

    It is `wide_mm` wide.
    """

    array: Floats
    low_mm: float
    high_mm: float
    wide_mm: float


@dataclass(frozen=True, eq=False)
class Remains:
    """The slices of one series that decode and share size, pixel spacing and orientation, by position.

    `positions` are their first pixels (LPS, mm), in the order of `along_mm`, those along the normal. `slices` are the
    first, the middle and the last of them, each once. `lines` are the middle column and the middle row of each.
    `n_slices` counts all slices of the series, drawn or not. The values are HU, or as they were stored if `is_hu` is
    false. `problem` says what ended the reading before the last file.
    """

    plane: Plane
    positions: NDArray[np.float64]
    slices: tuple[Floats, ...]
    lines: tuple[Floats, Floats]
    n_slices: int
    trust: Trust
    is_localizer: bool = False
    problem: str = ""

    @property
    def is_hu(self) -> bool:
        return self.trust == Trust.HU and not self.is_localizer

    @property
    def along_mm(self) -> NDArray[np.float64]:
        along: NDArray[np.float64] = self.positions @ self.plane.normal
        return along

    @property
    def step_mm(self) -> float:
        """The usual distance of neighbours, 0 if all slices lie at one position."""
        steps = np.diff(self.along_mm)
        steps = steps[steps > SAME_POSITION_MM]
        return float(np.median(steps)) if len(steps) else 0.0

    @property
    def repeated_mm(self) -> NDArray[np.float64]:
        """The positions at which more than one slice lies, each once."""
        return self.along_mm[1:][np.diff(self.along_mm) <= SAME_POSITION_MM]

    def cut(self, across: int) -> Cut:
        """Put the middle columns (`across` 0) or rows (1) of all slices at their positions."""
        along, step = self.along_mm, self.step_mm
        low, high = along[0] - step / 2, along[-1] + step / 2
        n = int(np.clip(round((high - low) / step * FINE), 1, MOST_ROWS))
        at = low + (np.arange(n) + 0.5) * (high - low) / n
        right = np.searchsorted(along, at).clip(1, len(along) - 1)
        nearest = right - (at - along[right - 1] < along[right] - at)
        lines = self._shifted(across)
        array = lines[nearest]
        array[np.abs(along[nearest] - at) > max(REACH * step, (high - low) / n / 2)] = np.nan
        return Cut(array, float(low), float(high), lines.shape[1] * self.plane.pixel_mm[across])

    def _shifted(self, across: int) -> Floats:
        """Return the lines, each moved to where its slice lies sideways, so that a shear shows."""
        lines, direction = self.lines[across], np.array((self.plane.column, self.plane.row)[across])
        sideways = self.positions @ direction / self.plane.pixel_mm[across]
        offsets = np.rint(sideways - sideways.min()).astype(int)
        if offsets.max() > MOST_SHIFTED * lines.shape[1]:
            return lines
        shifted = np.full((len(lines), lines.shape[1] + offsets.max()), np.nan, np.float32)
        for line, offset, out in zip(lines, offsets, shifted, strict=True):
            out[offset : offset + len(line)] = line
        return shifted


def read(url: str, uid_sha256: str | None = None) -> Remains | None:
    """Read what can be drawn of a refused series, or None if nothing can.

    Without a digest it is the series with the most slices; if there is no CT slice at all, the first localizer. Other
    objects that are no CT are never drawn: secondary captures often have the patient's name in their pixels.

    Raises DskprepError, or Outgrown for an archive, if nothing can because the source cannot be read.
    """
    pile, files = _Pile(), files_at(url)
    try:
        for name, content in files:
            pile.add(name, content)
    except (DskprepError, Outgrown) as error:  # a dead link, a damaged archive: what came before it can be drawn
        found = _choose(pile, uid_sha256)
        if found is None:
            raise
        return replace(found, problem=str(error))
    return _choose(pile, uid_sha256)


def _choose(pile: _Pile, uid_sha256: str | None) -> Remains | None:
    chosen = {key: slices for key, slices in pile.found.items() if uid_sha256 in (None, series_digest(key[0]))}
    if chosen:
        uid, trust = max(chosen, key=lambda key: (len(chosen[key]), -key[1]))
        n_slices = pile.n_lost[uid] + sum(len(slices) for (of, _), slices in chosen.items() if of == uid)
        return _decode(chosen[uid, trust], n_slices, trust)
    if pile.localizers and uid_sha256 is None:
        (_, trust), slices = next(iter(pile.localizers.items()))
        return _decode(slices[:1], sum(map(len, pile.localizers.values())), trust, is_localizer=True)
    return None


class _Pile:
    """The slices of many files, by series and trust, and how many objects of each series are lost."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, Trust], list[Slice]] = defaultdict(list)
        self.localizers: dict[tuple[str, Trust], list[Slice]] = defaultdict(list)
        self.n_lost: Counter[str] = Counter()

    def add(self, name: str, content: bytes) -> None:
        """Sort one file as a run does; read what a run would set aside or refuse with less trust."""
        contents = Contents()
        contents.add(name, content)
        for uid, slices in contents.slices.items():
            self.found[uid, Trust.PLACE if slices[0].doubt else Trust.HU] += slices
        is_localizer = any(aside.kind == "localizer" for aside in contents.aside)
        if contents.all_damage() or is_localizer:
            with warnings.catch_warnings(action="ignore"):  # pydicom warns of values that break the standard
                self._add_untrusted(name, content, self.localizers if is_localizer else self.found)

    def _add_untrusted(self, name: str, content: bytes, found: dict[tuple[str, Trust], list[Slice]]) -> None:
        try:
            header = read_attributes(content)
        except Exception:  # whatever a damaged byte leads pydicom to
            return
        if found is self.localizers and "LOCALIZER" not in text_of(header, "ImageType").upper():
            return  # a page of dose figures, a screen save
        uid = text_of(header, "SeriesInstanceUID")
        for trust in Trust:
            try:
                slices = list(read_slices(_lenient(header, trust), name))
            except Refusal:
                continue
            found[uid, trust] += slices
            return
        self.n_lost[uid] += 1


def _lenient(header: Attributes, trust: Trust) -> Attributes:
    """Return a header from which slices can be read with so little trust: values as stored, or no place either."""
    if trust == Trust.HU:
        return header
    without = {"RescaleType", *(GROUPS if trust == Trust.NOTHING else ())}
    known = {key: value for key, value in header.items() if key not in without}
    known |= {"RescaleSlope": 1, "RescaleIntercept": 0, **(NO_PLACE if trust == Trust.NOTHING else {})}
    for key in GROUPS:
        if isinstance(known.get(key), list):
            known[key] = [
                {k: v for k, v in group.items() if k != "PixelValueTransformationSequence"} for group in known[key]
            ]
    return known


def _decode(slices: list[Slice], n_slices: int, trust: Trust, *, is_localizer: bool = False) -> Remains | None:
    """Decode the largest group of slices that share their grid, one after another; keep what is drawn."""
    try:
        group = [slices[i] for i in stacks.group_by_grid([s.plane for s in slices])[0]]
    except Refusal:  # of so many kinds that none is worth a picture
        return None
    normal = group[0].plane.normal
    group.sort(key=lambda s: float(np.dot(s.plane.position, normal)))
    middle = group[len(group) // 2].plane.position
    group = [s for s in group if abs(np.dot(np.subtract(s.plane.position, middle), normal)) <= FAR_MM]
    some: dict[str, Floats] = {}
    positions, columns, rows = [], [], []
    for number, (s, values) in enumerate(_decoded(group)):
        some.setdefault("first", values)
        if number <= len(group) // 2:
            some["middle"] = values
        some["last"] = values
        positions.append(s.plane.position)
        columns.append(values[:, values.shape[1] // 2].copy())
        rows.append(values[values.shape[0] // 2].copy())
    if not some:
        return None
    kept = tuple({id(values): values for values in (some["first"], some["middle"], some["last"])}.values())
    lines = np.array(columns), np.array(rows)
    return Remains(group[0].plane, np.array(positions), kept, lines, n_slices, trust, is_localizer)


def _decoded(slices: list[Slice]) -> Iterator[tuple[Slice, Floats]]:
    """Yield the slices that decode, with their values."""
    for s in slices:
        try:
            stored = pixels.stored_values(s.data, s.pixel_format, s.name)
        except Refusal:
            continue
        yield s, stored.astype(np.float32) * np.float32(s.slope) + np.float32(s.intercept)

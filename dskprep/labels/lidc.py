"""Nodules of LIDC-IDRI: outlines of four readers on the pixels of a series, and their consensus."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.counts import n_of
from dskprep.errors import Refusal, UsageError
from dskprep.kernels.polygons import fill_inside
from dskprep.labels import lidc_xml, nodules
from dskprep.labels.attributes import refuse_if_more
from dskprep.labels.lidc_xml import RATINGS, Mark, Outline
from dskprep.labels.stack import Plane, Stack, axes_of, crop
from dskprep.labels.values import Labels, Links, Segment
from dskprep.volume import Grid, TiltedGrid

if TYPE_CHECKING:
    import pandas as pd

CONSENSUS = 0.5
"""A voxel belongs to a nodule if this share of the readers who outlined it say so."""
MAX_NODULES = 500
"""Most outlines of nodules by all readers; there are some tens."""
MAX_AREA = 1 << 24
"""Most pixels of the boxes round all outlines; there are some hundred thousand."""
NEAR_SLICE = 0.1
"""An outline may lie off its slice by this part of the distance between slices, as headers round."""
SLICES = "is this the grid of the slices that the readers saw, as at(series.grid) gives it of read_series(...)?"
"""What is asked where an outline lies beside the slices."""


class Lidc(Labels):
    """The readers' XML of one series. Its outlines are pixels, so `at` must tell it the grid of the slices first."""

    kind = "lidc"

    def __init__(self, content: bytes, where: str) -> None:
        self.where = where
        self.reading = lidc_xml.parse(content, where)
        instances = {outline.instance for mark in self.reading.marks for outline in mark.outlines} - {""}
        self.links = Links(frozenset({self.reading.series} - {""}), frozenset(instances), are_drawn_on=True)

    def __repr__(self) -> str:
        return f"<lidc {self.where}: {n_of(len(self.reading.marks), 'mark')}; at(read_series(...).grid) gives nodules>"

    def named(self, *patterns: str) -> tuple[Segment, ...]:
        """Raises UsageError: which marks are one nodule is not known yet."""
        raise UsageError(f"{self._not_placed}.named({', '.join(map(repr, patterns))})")

    def at(self, slices: Grid, consensus: float = CONSENSUS, instances: Mapping[str, int] | None = None) -> PlacedLidc:
        """Return the nodules as they lie in the series.

        Parameters
        ----------
        slices
            The grid of the series' slices as they are stored, (slice, row, column). Of a tilted gantry it may be that
            onto which they were shifted, as `series.grid` is.
        consensus
            The share of the readers who outlined a nodule that must have a voxel inside.
        instances
            The index of the slice of each SOPInstanceUID, if it is known. An outline without a z lies in the slice of
            its UID, and its z and its UID must be those of one slice.

        Raises
        ------
        Refusal
            `label-off-grid` if an outline lies between slices or beyond their rows and columns, or if the z and the UID
            of every mark are those of two slices. Marks of which only some are so are left out (see `left_out`).
        """
        askew = slices.slices if isinstance(slices, TiltedGrid) else slices
        return PlacedLidc(self, askew, consensus, instances or {})

    def stacks(self, segment: Segment, grid: Grid) -> Iterator[Stack]:
        """Raises UsageError: the place is not known yet."""
        del segment, grid
        raise UsageError(self._not_placed)

    @property
    def _not_placed(self) -> str:
        return f"{self.where}: the outlines are pixels of a series; call at with its grid, labels.at(series.grid)"


class _Place(NamedTuple):
    """A mark in the slices: its mask in each slice that has one, and its outlines' places (slice, row, column)."""

    mark: Mark
    masks: dict[int, NDArray[np.bool_]]
    first: tuple[int, int]
    outline: NDArray[np.int64]

    @property
    def n_voxels(self) -> int:
        """How many voxels lie inside."""
        return sum(int(np.count_nonzero(mask)) for mask in self.masks.values())

    @property
    def centre(self) -> NDArray[np.float64]:
        """The centre (slice, row, column) of its voxels, or of its outline if it has none."""
        total = np.zeros(3)
        for k, mask in self.masks.items():
            rows, columns = (np.count_nonzero(mask, axis=axis) for axis in (1, 0))
            n = rows.sum()
            row, column = rows @ np.arange(len(rows)), columns @ np.arange(len(columns))
            total += (n * k, row + n * self.first[0], column + n * self.first[1])
        return total / self.n_voxels if self.n_voxels else self.outline.mean(0)


class PlacedLidc(Labels):
    """The nodules of a series of LIDC-IDRI.

    Segments are the consensus of each nodule (`nodule-1`, number 10) and the outlines of each of its readers
    (`nodule-1-reader-2`, number 12; where ten or more have drawn, 100 and 102). An outline runs along the first pixels
    outside of the nodule, so its own pixels do not belong to it. `points` has a row per mark: nodules with nine
    ratings, small nodules, and what is no nodule.
    `left_out` says of each mark whose z and UID are of two slices what was found; it is neither drawn nor a point.
    """

    kind = "lidc"

    def __init__(self, read: Lidc, slices: Grid, consensus: float, instances: Mapping[str, int]) -> None:
        if not 0 < consensus <= 1:
            raise UsageError(f"consensus is a share of the readers, above 0 and at most 1, not {consensus}")
        self.where, self.links = read.where, read.links
        self._slices, self._consensus = slices, consensus
        _check_size(read.reading.marks, self.where)
        left_out: list[str] = []
        self._places = []
        for mark in read.reading.marks:
            if why := _contradiction(mark, slices, instances):
                left_out.append(why)
            else:
                self._places.append(_place(mark, slices, self.where, instances))
        self.left_out = tuple(left_out)
        if left_out and not self._places:
            raise Refusal("label-off-grid", f"{self.where}: {left_out[0]}; {SLICES}")
        outlined = [k for k, place in enumerate(self._places) if place.mark.kind == "nodule"]
        placed = [self._in_mm(self._places[k]) for k in outlined]
        found = nodules.match(placed, slices.spacing[0])
        self._nodules = [[outlined[k] for k in nodule] for nodule in found]
        self._step = 10 ** len(str(max((self._places[k].mark.reader for k in outlined), default=1)))
        segments = []
        for nodule_number, nodule in enumerate(self._nodules, 1):
            number, name = self._step * nodule_number, f"nodule-{nodule_number}"
            segments.append(Segment(number, name, algorithm="MANUAL"))
            for k in nodule:
                reader = self._places[k].mark.reader
                segments.append(Segment(number + reader, f"{name}-reader-{reader}", algorithm="MANUAL"))
        self.segments = tuple(segments)

    def _in_mm(self, place: _Place) -> nodules.Placed:
        outline, (centre,) = (self._slices.to_patient(index) for index in (place.outline, [place.centre]))
        return nodules.Placed(place.mark.reader, outline, centre, place.masks, place.first)

    def stacks(self, segment: Segment, grid: Grid) -> Iterator[Stack]:
        """Yield the slices of a nodule."""
        del grid  # the slices have pixels of their own
        number, reader = divmod(segment.number, self._step)
        marks = [self._places[k] for k in self._nodules[number - 1]]
        marks = [place for place in marks if reader in (0, place.mark.reader)]
        first = np.min([place.first for place in marks], axis=0)
        ends = [np.add(place.first, mask.shape) for place in marks for mask in place.masks.values()]
        shape = np.max([*ends, first], axis=0) - first
        axes, (along, row, column) = axes_of(self._slices)
        planes = []
        for k in sorted({k for place in marks for k in place.masks}):
            votes = np.zeros(shape, np.int64)
            for place in marks:
                if k in place.masks:
                    y, x = np.subtract(place.first, first)
                    mask = place.masks[k]
                    votes[y : y + mask.shape[0], x : x + mask.shape[1]] += mask
            box = crop(votes >= max(1.0, self._consensus * len(marks) - 1e-9))
            if box is not None:
                corner = (k * row + first[0] + box[0], k * column + first[1] + box[1])
                planes.append(Plane((k - 0.5) * along, (k + 0.5) * along, *corner, box[2]))
        yield Stack(self._slices.affine[:3, 3], axes, planes)

    @property
    def points(self) -> pd.DataFrame:
        """One row per mark: `kind`, `nodule` (0: none), `reader`, `name`, x, y, z in LPS mm, `ml`, nine ratings."""
        import pandas as pd

        nodule_of = {k: number for number, nodule in enumerate(self._nodules, 1) for k in nodule}
        rows = []
        for k, place in enumerate(self._places):
            placed = self._in_mm(place)
            mark = place.mark
            row = {"kind": mark.kind, "nodule": nodule_of.get(k, 0), "reader": mark.reader, "name": mark.name}
            row |= dict(zip("xyz", placed.centre_mm.tolist(), strict=True))
            row["ml"] = place.n_voxels * self._slices.voxel_ml if mark.kind == "nodule" else np.nan
            rows.append(row | {name: mark.ratings.get(name, pd.NA) for name in RATINGS})
        columns = ["kind", "nodule", "reader", "name", "x", "y", "z", "ml", *RATINGS]
        return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(RATINGS, "Int64"))


def _check_size(marks: list[Mark], where: str) -> None:
    """Refuse more nodules or pixels than readers draw, before they are filled."""
    refuse_if_more(sum(mark.kind == "nodule" for mark in marks), MAX_NODULES, "nodules", where)
    boxes = (np.ptp(np.concatenate([o.pixels for o in mark.outlines]), axis=0) + 1 for mark in marks)
    area = sum(math.prod(box.tolist()) * len(mark.outlines) for box, mark in zip(boxes, marks, strict=True))
    refuse_if_more(area, MAX_AREA, "pixels in outlines", where)


def _place(mark: Mark, slices: Grid, where: str, instances: Mapping[str, int]) -> _Place:
    """Fill the outlines of a mark. Raises Refusal `label-off-grid`."""
    points = np.concatenate([outline.pixels for outline in mark.outlines])[:, ::-1]
    if points.min() < 0 or (points >= slices.shape[1:]).any():
        rows, columns = slices.shape[1:]
        raise Refusal(
            "label-off-grid",
            f"{where}: {mark.name!r}: expected pixels of {rows} rows and {columns} columns, found one at "
            f"row and column {points.max(0).tolist()}; {SLICES}",
        )
    first, last = points.min(0), points.max(0)
    inside: dict[int, NDArray[np.bool_]] = {}
    outside: dict[int, NDArray[np.bool_]] = {}
    places = []
    for outline in mark.outlines:
        k = _slice_of(outline, slices, f"{where}: {mark.name!r}", instances.get(outline.instance))
        pixels = outline.pixels[:, ::-1]
        places.append(np.insert(pixels, 0, k, axis=1))
        area = np.zeros(last - first + 1, np.bool_)
        row, column = np.ascontiguousarray((pixels - first).T)
        fill_inside(row, column, area)
        if outline.is_inside:
            inside[k] = inside.get(k, False) | area
        else:
            area[row, column] = True
            outside[k] = outside.get(k, False) | area
    masks = {k: area & ~outside.get(k, np.False_) for k, area in inside.items()}
    return _Place(mark, masks, (int(first[0]), int(first[1])), np.concatenate(places))


def _contradiction(mark: Mark, slices: Grid, instances: Mapping[str, int]) -> str:
    """Say where the z of an outline is that of another slice than its SOPInstanceUID; "" if that is nowhere so."""
    for outline in mark.outlines:
        k = instances.get(outline.instance)
        if k is not None and not np.isnan(outline.z_mm) and _index_of(outline.z_mm, slices) != k:
            axis = "xyz"[np.abs(slices.affine[:3, 0]).argmax()]
            at_z = f"the UID of the slice at {slices.to_patient((k, 0, 0))[2]:g} mm"
            return (
                f"{mark.name!r} of reader {mark.reader}: expected imageZposition and imageSOP_UID of one slice, found "
                f"{outline.z_mm:g} mm, and {at_z if axis == 'z' else f'slices along {axis}, which no z tells apart'}"
            )
    return ""


def _index_of(z_mm: float, slices: Grid) -> int | None:
    """Return the index of the slice at a z, None if there is none."""
    place = (z_mm - slices.affine[2, 3]) / slices.affine[2, 0] if slices.affine[2, 0] else np.inf
    is_there = -0.5 < place < slices.shape[0] - 0.5 and abs(place - round(place)) <= NEAR_SLICE
    return round(place) if is_there else None


def _slice_of(outline: Outline, slices: Grid, where: str, of_instance: int | None) -> int:
    """Return the index of an outline's slice: that of its z, or of its SOPInstanceUID where it has no z."""
    if np.isnan(outline.z_mm):
        if of_instance is None:
            raise Refusal(
                "label-off-grid",
                f"{where}: expected imageZposition, or an imageSOP_UID of one of the slices, found neither in an "
                "outline; if an older version prepared the image, prepare it again",
            )
        return of_instance
    if (index := _index_of(outline.z_mm, slices)) is None:
        ends = sorted(slices.to_patient([(0, 0, 0), (slices.shape[0] - 1, 0, 0)])[:, 2].tolist())
        raise Refusal(
            "label-off-grid",
            f"{where}: expected outlines in slices, which lie from z {ends[0]:g} to {ends[1]:g} mm in "
            f"steps of {slices.spacing[0]:g} mm, found one at {outline.z_mm:g} mm; {SLICES}",
        )
    return index

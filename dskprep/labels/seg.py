"""DICOM Segmentation: binary, fractional and label map (PS3.3 A.51); every frame at its own place."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dskprep.errors import Refusal
from dskprep.labels.attributes import code_of, floats_of, item_of, one_line, owner_of, refuse_if_more, uids_below
from dskprep.labels.draw import Drawn
from dskprep.labels.hold import Admit
from dskprep.labels.seg_frames import Frame, read_frames
from dskprep.labels.seg_pixels import Layout
from dskprep.labels.stack import Plane, Stack, axes_of, crop, places, slabs, which_place
from dskprep.labels.values import Labels, Links, Segment
from dskprep.volume import Grid

CLASSES = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}
"""SOP classes of Segmentation and Label Map Segmentation."""
BACKGROUND = ("125040", "DCM")
"""Coded type of what a label map calls the rest (PS3.16 annex D)."""
MAX_SEGMENTS = 10_000
"""Most segments; atlases of the brain have some hundreds."""
WHOLE = 0.05
"""Frames lie whole steps apart if the distance differs by less than this share."""
SAME_PIXEL = 0.01
"""Pixels are those of the image if their edges differ by less than this share."""
LEAST_STEP = 0.4
"""Slices are not nearer than this part of their declared distance or thickness: they overlap by half at most."""
DECODING = 12
"""Bytes per pixel of a frame that is decoded and made a mask: most in a label map, whose values are counted."""


class Seg(Labels):
    """A DICOM Segmentation.

    A fractional segment is where its value is half of the largest possible or more. Segments may overlap. Frames that
    are not there are empty. Pixels are decoded anew for each segment that is drawn, one frame after another, and of
    each only the box round what is set is held.
    """

    kind = "seg"

    def __init__(self, header: Dataset, pixels: bytes | memoryview, where: str) -> None:
        self.where = where
        self._pixels = pixels
        items = header.get("SegmentSequence") or []
        refuse_if_more(len(items), MAX_SEGMENTS, "segments", where)
        found = [_read_segment(item) for item in items]
        self._layout = Layout(header, pixels, [segment.number for segment in found], where)
        self._frames = list(read_frames(header, self._layout.n_frames, where))
        drawn_on: dict[int, set[str]] = {}
        for frame in self._frames:
            drawn_on.setdefault(frame.segment, set()).update(frame.sources)
        on_all = drawn_on.get(0, set())
        found = [replace(s, instances=frozenset(on_all | drawn_on.get(s.number, set()))) for s in found]
        self.segments = tuple(s for s in found if not _is_background(s, header))
        references = header.get("ReferencedSeriesSequence")
        sources = frozenset[str]().union(*drawn_on.values())
        self.links = Links(
            uids_below(references, "SeriesInstanceUID"),
            # all slices of a series may be listed, also those of other phases
            sources or uids_below(references, "ReferencedSOPInstanceUID"),
            frozenset({str(header.get("FrameOfReferenceUID") or "")} - {""}),
            *owner_of(header),
            are_drawn_on=bool(sources),
        )
        _check_numbers([segment.number for segment in found], self._frames, where)
        self._steps: dict[tuple[float, ...], float] = {}
        self._declared = _declared_steps(header)
        self._slices: Grid | None = None

    def at(self, slices: Grid) -> Seg:
        """Return the segments as they lie in the image that they were drawn on: frames are as thick as its slices."""
        placed = copy.copy(self)
        placed._slices, placed._steps = slices, {}
        return placed

    def draw(self, segment: Segment, grid: Grid, admit: Admit | None = None) -> Drawn:
        """Draw one segment on a grid (see `Labels.draw`). An empty fractional one says how high its values are."""
        self._layout.highest = 0
        try:
            return super().draw(segment, grid, admit)
        except Refusal as refusal:
            if refusal.reason != "label-empty" or not self._layout.highest:
                raise
            raise Refusal(
                "label-empty",
                f"{refusal.message}: the highest value is {self._layout.highest}, and half of the largest possible is "
                f"{self._layout.least}; if it is no empty label, correct its MaximumFractionalValue",
            ) from refusal

    def stacks(self, segment: Segment, grid: Grid) -> Iterator[Stack]:
        """Yield the planes of a segment, those of one orientation after another."""
        del grid  # the frames have pixels of their own
        frames = [f for f in self._frames if f.segment in (0, segment.number)]
        by_geometry = itertools.groupby(
            sorted(frames, key=lambda f: (f.orientation, f.spacing)), key=lambda f: (f.orientation, f.spacing)
        )
        for (orientation, spacing), group in by_geometry:
            yield self._stack(segment, list(group), orientation, spacing)

    def _stack(
        self, segment: Segment, frames: list[Frame], orientation: tuple[float, ...], spacing: tuple[float, ...]
    ) -> Stack:
        along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
        normal = np.cross(along_row, along_column)
        axes = np.stack([normal, along_column * spacing[0], along_row * spacing[1]], axis=1)
        step = self._step(orientation, spacing)
        origin = frames[0].position
        place = np.array([f.position - origin for f in frames]) @ np.linalg.inv(axes).T
        along = places(place[:, 0])
        low, high = slabs(along, step)
        which = which_place(place[:, 0], along)
        by_place: dict[tuple[int, float, float], list[int]] = {}
        for i, (k, (_, row, column)) in enumerate(zip(which.tolist(), place.tolist(), strict=True)):
            by_place.setdefault((k, round(row, 2), round(column, 2)), []).append(i)
        layout = self._layout

        def planes() -> Iterator[Plane]:
            for (k, _, _), there in by_place.items():
                number = segment.number if frames[there[0]].segment == 0 else None
                box = crop(layout.union(self._pixels, [frames[i].at for i in there], number))
                if box is not None:
                    row, column = place[there[0], 1:].tolist()
                    yield Plane(float(low[k]), float(high[k]), row + box[0], column + box[1], box[2])

        boxes = [(low[k], high[k], row, column, layout.rows, layout.columns) for k, row, column in by_place]
        return Stack(origin, axes, planes(), np.array(boxes), DECODING * layout.rows * layout.columns)

    def _step(self, orientation: tuple[float, ...], spacing: tuple[float, ...]) -> float:
        """Return the distance of neighbouring slices: that of the nearest frames of all segments, or the declared one.

        The frames of a segment that is in every third slice only are not nearer than three slices. Where all frames
        lie on slices of the image, its slices tell, unless the frames lie as far apart as they declare.
        """
        if orientation not in self._steps:
            here = np.array([f.position for f in self._frames if f.orientation == orientation])
            apart = np.diff(places(here @ np.cross(orientation[:3], orientation[3:])))
            between, thickness = self._declared
            if self._slices is not None and _are_on(self._slices, here, orientation, spacing):
                slice_mm = axes_of(self._slices)[1][0]
                is_declared = apart.size and abs(apart.min() - between) < WHOLE * between
                self._steps[orientation] = max(slice_mm, between if is_declared else 0.0)
                return self._steps[orientation]
            usual = apart[apart >= LEAST_STEP * (between or thickness)]  # a frame may lie beside its slice
            nearest = float((usual if usual.size else apart).min(initial=np.inf)) if apart.size else 0.0
            n_steps = round(nearest / between) if between else 0
            is_multiple = n_steps and abs(nearest / between - n_steps) < WHOLE * n_steps
            step = between if is_multiple else nearest or between or thickness
            if not step:
                raise Refusal(
                    "label-damaged",
                    f"{self.where}: expected SpacingBetweenSlices or SliceThickness where all frames lie in one plane, "
                    "found neither; add one of them",
                )
            self._steps[orientation] = step
        return self._steps[orientation]


def _are_on(
    slices: Grid, positions: NDArray[np.float64], orientation: tuple[float, ...], spacing: tuple[float, ...]
) -> bool:
    """Tell whether frames lie on slices of an image and have their pixels, in whatever order of rows and columns."""
    axes, (step_mm, _, _) = axes_of(slices)
    inverse = np.linalg.inv(axes)
    rows, columns = np.array(orientation[3:]) * spacing[0], np.array(orientation[:3]) * spacing[1]
    pixels = np.abs(inverse @ np.column_stack([rows, columns]))
    whole = np.eye(3)[:, 1:]
    has_pixels = any(np.abs(pixels - wanted).max() < SAME_PIXEL for wanted in (whole, whole[:, ::-1]))
    index = (positions - slices.affine[:3, 3]) @ inverse[0] / step_mm
    off = np.abs(index - np.round(index)).max()
    return has_pixels and bool(off < WHOLE and index.min() > -0.5 and index.max() < slices.shape[0] - 0.5)


def _read_segment(item: Dataset) -> Segment:
    number = int(item.get("SegmentNumber") or 0)
    return Segment(
        number=number,
        name=one_line(item.get("SegmentLabel")) or f"segment {number}",
        category=code_of(item, "SegmentedPropertyCategoryCodeSequence"),
        type=code_of(item, "SegmentedPropertyTypeCodeSequence"),
        algorithm=one_line(item.get("SegmentAlgorithmType")),
    )


def _check_numbers(numbers: Sequence[int], frames: Sequence[Frame], where: str) -> None:
    """Refuse two segments of one number, and frames of a segment that is not described."""
    if len(set(numbers)) < len(numbers):
        raise Refusal(
            "label-damaged",
            f"{where}: expected a SegmentNumber for each segment, found {len(numbers)} segments with "
            f"{len(set(numbers))} numbers",
        )
    if unknown := sorted({frame.segment for frame in frames} - {0, *numbers}):
        raise Refusal(
            "label-damaged", f"{where}: expected frames of the segments in it, found some of segment {unknown[0]}"
        )


def _is_background(segment: Segment, header: Dataset) -> bool:
    """Tell whether a segment is what a label map calls the rest: by its code, or as its number is that of padding.

    Without a declared padding (DICOM supplement 243), a segment 0 that has no code is the rest too.
    """
    if segment.type is not None and (segment.type.value, segment.type.scheme) == BACKGROUND:
        return True
    if str(header.get("SegmentationType") or "") != "LABELMAP":
        return False
    padding = header.get("PixelPaddingValue")
    return segment.number == padding if padding is not None else segment.number == 0 and segment.type is None


def _declared_steps(header: Dataset) -> tuple[float, float]:
    """Return SpacingBetweenSlices and SliceThickness, 0 for one that is not there."""
    shared = item_of(header, "SharedFunctionalGroupsSequence")
    first = item_of(header, "PerFrameFunctionalGroupsSequence")
    measures = item_of(shared, "PixelMeasuresSequence") or item_of(first, "PixelMeasuresSequence") or Dataset()
    between, thickness = (floats_of(measures.get(k)) for k in ("SpacingBetweenSlices", "SliceThickness"))
    return abs(sum(between)), abs(sum(thickness))

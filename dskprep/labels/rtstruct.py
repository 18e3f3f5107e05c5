"""DICOM RTSTRUCT: closed contours, drawn in their own planes (PS3.3 C.8.8.6)."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dskprep.errors import Refusal
from dskprep.labels import contours as contours_of
from dskprep.labels.attributes import code_of, one_line, owner_of, refuse_if_more, uids_below
from dskprep.labels.copies import without_copies
from dskprep.labels.outlines import MAX_ROIS, Outlines, points_of
from dskprep.labels.stack import Plane, Stack, places, slabs
from dskprep.labels.values import Labels, Links, Segment
from dskprep.volume import Grid

CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR", "CLOSED_NONPLANAR"}
"""Geometric types of contours that enclose an area; one is often spelled otherwise than by DICOM."""
OPEN = {"POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"}
"""Those of contours that enclose nothing."""
FAR_SLICES, FAR_MM, FAR_OF_TWO = 3.1, 10.1, 2.1
"""Contours further apart than so many slices, and so many mm, are islands: between them no slices were left out.

Of two contours alone, this holds for the third number of slices.
"""
ALONG = 0.99
"""Cosine of the angle between the normal of contours and that of slices, from which on these are the same."""
FINENESS = 2
"""Pixels per voxel along an axis, for contours in planes that are oblique to the grid."""
MAX_IN_PLANE = 10_000
"""Most contours of an ROI in one plane."""


class RtStruct(Labels):
    """A DICOM RTSTRUCT. An ROI is filled by the even-odd rule in each plane; its contours mark the edge itself."""

    kind = "rtstruct"

    def __init__(self, header: Dataset, outlines: Outlines, where: str) -> None:
        self.where = where
        items = header.get("StructureSetROISequence") or ()
        rois = {int(item.get("ROINumber") or 0): item for item in items}
        if len(rois) < len(items):
            raise Refusal(
                "label-damaged",
                f"{where}: expected a ROINumber for each ROI, found {len(items)} ROIs with {len(rois)} numbers",
            )
        refuse_if_more(len(rois), MAX_ROIS, "ROIs", where)
        observed = {
            int(item.get("ReferencedROINumber") or 0): item for item in header.get("RTROIObservationsSequence") or ()
        }
        images = {number: frozenset(uids - {""}) for number, uids in outlines.images.items()}
        self.segments = tuple(
            _read_roi(number, item, observed.get(number), images.get(number, frozenset()))
            for number, item in rois.items()
        )
        closed = [outline for outline in outlines.found if outline.kind not in OPEN]
        self._contours, self._images, self._refusals = read = points_of(outlines.text, closed, where)
        for outline in closed:
            if outline.kind not in CLOSED and outline.stop > outline.start:
                what = f"expected CLOSED_PLANAR or such in ContourGeometricType, found {one_line(outline.kind)[:40]!r}"
                read.refuse(outline, f"{where}: ROI {outline.roi}: {what}")
        open_ = Counter(outline.roi for outline in outlines.found if outline.kind in OPEN)
        self.n_open = {number: n for number, n in open_.items() if number in self._contours}
        self._add_undescribed(outlines, images)
        self.links = _read_links(header, frozenset().union(*images.values()))
        self._slices: Grid | None = None

    def at(self, slices: Grid) -> RtStruct:
        """Return the ROIs as they lie in an image: contours in one plane alone are as thick as its slices."""
        placed = copy.copy(self)
        placed._slices = slices
        return placed

    def _add_undescribed(self, outlines: Outlines, images: dict[int, frozenset[str]]) -> None:
        """Take contours of an ROI that no item describes for an ROI that is damaged.

        They may be those of an ROI that has none, so each such one is damaged too: nobody knows that it is empty.
        """
        known = {segment.number for segment in self.segments}
        alone = sorted((self._contours.keys() | self._refusals.keys()) - known)
        refuse_if_more(len(known) + len(alone), MAX_ROIS, "ROIs", self.where)
        if not alone:
            return
        found = f"found contours of ROI {alone[0]}, which is none of them"
        for number in (known | set(alone)) - {outline.roi for outline in outlines.found if outline.roi in known}:
            what = f"{self.where}: ROI {number}: expected contours of the ROIs in StructureSetROISequence, {found}"
            self._refusals[number] = Refusal("label-damaged", what)
        self.segments += tuple(Segment(n, f"ROI {n}", instances=images.get(n, frozenset())) for n in alone)

    def stacks(self, segment: Segment, grid: Grid) -> Iterator[Stack]:
        """Yield the planes of an ROI, drawn at the pixels of the grid where they are parallel to it.

        Raises Refusal `label-damaged` if a contour is not flat, or holds numbers that are no points.
        """
        if refusal := self._refusals.get(segment.number):
            raise refusal
        left, images = self._contours.get(segment.number, []), self._images.get(segment.number, [])
        where = f"{self.where}: {segment.name!r}"
        for axis in _axes(grid):
            if left and contours_of.are_flat(left, axis[:, 0]).all():
                yield self._draw(left, images, axis, np.array(grid.affine[:3, 3]), where)
                return
        sizes = [float(np.linalg.norm(contours_of.area(points))) for points in left]
        while left:
            normal = contours_of.normal(left[int(np.argmax(sizes))])
            is_flat = contours_of.are_flat(left, normal)
            if not is_flat.any():
                raise Refusal("label-damaged", f"{where}: expected contours in a plane, found one that is not flat")
            flat = list(itertools.compress(left, is_flat))
            axes = contours_of.basis(normal, min(grid.spacing) / FINENESS)
            yield self._draw(flat, list(itertools.compress(images, is_flat)), axes, np.zeros(3), where)
            left, images = list(itertools.compress(left, ~is_flat)), list(itertools.compress(images, ~is_flat))
            sizes = list(itertools.compress(sizes, ~is_flat))

    def _draw(
        self,
        contours: list[NDArray[np.float64]],
        images: list[frozenset[str]],
        axes: NDArray[np.float64],
        origin: NDArray[np.float64],
        where: str,
    ) -> Stack:
        """Draw parallel contours in pixels of the given axes (see `Stack`), as its planes are asked for."""
        inverse = np.linalg.inv(axes)
        points, begins = contours_of.joined(contours)
        at = (points - origin) @ inverse.T
        middle = np.add.reduceat(at[:, 0], begins) / np.diff([*begins, len(at)])
        placed = np.split(at[:, 1:], begins[1:])
        which, along = contours_of.in_planes(middle, images, self._plane_step(middle, axes[:, 0]))
        low, high = slabs(along, self._step(along, axes[:, 0]))
        pixel_mm = np.linalg.norm(axes[:, 1:], axis=0)
        here: list[list[NDArray[np.float64]]] = [[] for _ in along]
        for k, contour in zip(which.tolist(), placed, strict=True):
            here[k].append(contour)
        refuse_if_more(max(map(len, here)), MAX_IN_PLANE, "contours in a plane", where)
        laid = contours_of.lay([without_copies(each, pixel_mm) for each in here], pixel_mm, where)
        drawn = contours_of.draw(laid, where)
        planes = (Plane(a, b, *pixels) for a, b, pixels in zip(low.tolist(), high.tolist(), drawn, strict=True))
        return Stack(origin, axes, planes, np.column_stack([low, high, laid.first, laid.shapes]), laid.making_bytes)

    def _plane_step(self, middle: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
        """Return the distance of planes by which it is told what is one plane: that of slices if they are nearer."""
        slice_mm = self._slice_mm(normal)
        far_mm = max(FAR_SLICES * slice_mm, FAR_MM)
        own = contours_of.usual_step(middle, far_mm) or contours_of.usual_step(self._all_along(normal), far_mm)
        return min(own, slice_mm) if own and slice_mm else own or slice_mm

    def _all_along(self, normal: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where the contours of all ROIs lie along a direction."""
        return np.array([points.mean(0) @ normal for each in self._contours.values() for points in each])

    def _step(self, along: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
        """Return the usual distance of neighbouring contours of an ROI, or that of the image's slices if it is larger.

        One plane does not tell it, nor do planes that are far apart: then it is that of all contours, if these are
        nearer, or that of the slices.
        """
        slice_mm = self._slice_mm(normal)
        if slice_mm and len(along) == 1:
            return slice_mm
        if len(along) > 1 and (not slice_mm or _are_near(along, slice_mm)):
            return max(slice_mm, float(np.median(np.diff(along))))
        along = places(self._all_along(normal))
        if slice_mm and not _are_near(along, slice_mm):
            return slice_mm
        if len(along) == 1:
            raise Refusal(
                "label-damaged",
                f"{self.where}: expected contours in two planes or more, of which the thickness of a slice follows, "
                "found one plane",
            )
        return max(slice_mm, float(np.median(np.diff(along))))

    def _slice_mm(self, normal: NDArray[np.float64]) -> float:
        """Return the distance of the image's slices, or 0 if that is not known or they have another direction."""
        if self._slices is None:
            return 0.0
        step = self._slices.affine[:3, 0]
        along = float(abs(step @ normal))
        return along if along > ALONG * float(np.linalg.norm(step)) else 0.0


def _are_near(along: NDArray[np.float64], slice_mm: float) -> bool:
    """Tell whether planes are so near that whoever drew them may have left out slices; if not, they are islands."""
    far_mm = max(FAR_SLICES * slice_mm, FAR_MM) if len(along) > 2 else FAR_OF_TWO * slice_mm
    return len(along) > 1 and float(np.median(np.diff(along))) < far_mm


def _read_roi(number: int, item: Dataset, observed: Dataset | None, images: frozenset[str]) -> Segment:
    kind = one_line(observed.get("RTROIInterpretedType")) if observed is not None else ""
    return Segment(
        number=number,
        name=one_line(item.get("ROIName")) or f"ROI {number}",
        category=None,
        type=code_of(observed, "RTROIIdentificationCodeSequence") if observed is not None else None,
        algorithm=one_line(item.get("ROIGenerationAlgorithm")),
        interpreted_type=kind,
        frame_of_reference=str(item.get("ReferencedFrameOfReferenceUID") or ""),
        instances=images,
    )


def _read_links(header: Dataset, images: frozenset[str]) -> Links:
    frames = header.get("ReferencedFrameOfReferenceSequence")
    uids = [str(item.get("FrameOfReferenceUID") or "") for item in frames or ()]
    uids += [str(i.get("ReferencedFrameOfReferenceUID") or "") for i in header.get("StructureSetROISequence") or ()]
    # of several phases that are listed, those count on whose slices contours were drawn
    studies = [study for item in frames or () for study in item.get("RTReferencedStudySequence") or ()]
    no_slices = {str(study.get("ReferencedSOPInstanceUID")) for study in studies}
    instances = images or uids_below(frames, "ReferencedSOPInstanceUID") - no_slices
    series = uids_below(frames, "SeriesInstanceUID")
    if images and len(series) > 1:
        listed = [item for study in studies for item in study.get("RTReferencedSeriesSequence") or ()]
        drawn_on = (item for item in listed if images & uids_below(item, "ReferencedSOPInstanceUID"))
        series = uids_below(list(drawn_on), "SeriesInstanceUID") or series
    return Links(series, instances, frozenset(uids) - {""}, *owner_of(header), are_drawn_on=bool(images))


def _axes(grid: Grid) -> Iterator[NDArray[np.float64]]:
    """Yield the axes of stacks (see `Stack`) that are parallel to a grid and have its pixels, slices first."""
    steps = grid.affine[:3, :3]
    for normal, row, column in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        yield np.stack([steps[:, normal] / np.linalg.norm(steps[:, normal]), steps[:, row], steps[:, column]], axis=1)

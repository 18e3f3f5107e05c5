"""The contours of an RTSTRUCT as they stand in its file: the points of each, and the slices that it was drawn on.

Those of a plain file are found without pydicom, which takes three times as long for them as all the rest.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from dskprep.dicom.elements import IMPLICIT, NotPlain, read_meta, walk
from dskprep.dicom.sequences import items_of, text_of, without
from dskprep.dicom.slices import MAX_POSITION_MM
from dskprep.errors import Refusal
from dskprep.kernels import decimals
from dskprep.labels.attributes import one_line, refuse_if_more

CLASSES = {"1.2.840.10008.5.1.4.1.1.481.3"}
"""SOP class of RT Structure Set."""
MAX_CONTOURS = 200_000
"""Most contours."""
MAX_CONTOUR_POINTS = 100_000
"""Most points of one contour; the outline of a body at a tenth of a millimetre has 15,000."""
MAX_POINTS = 10_000_000
"""Most points of all contours."""
MAX_ROIS = 10_000
"""Most ROIs."""
MAX_DIGITS = 9
"""Most digits of the number of an ROI, or of points."""

CLASS, ROI_CONTOURS, ROI, CONTOURS = 0x0008_0016, 0x3006_0039, 0x3006_0084, 0x3006_0040
KIND, N_POINTS, DATA, IMAGES, IMAGE = 0x3006_0042, 0x3006_0046, 0x3006_0050, 0x3006_0016, 0x0008_1155
"""Tags of SOPClassUID, ROIContourSequence, ReferencedROINumber, ContourSequence; ContourGeometricType,
NumberOfContourPoints, ContourData, ContourImageSequence, ReferencedSOPInstanceUID."""
OF_FILE, OF_ROI, OF_CONTOUR, OF_IMAGE = {CLASS, ROI_CONTOURS}, {ROI, CONTOURS}, {KIND, N_POINTS, DATA, IMAGES}, {IMAGE}


class Outline(NamedTuple):
    """A contour: its ROI, its geometric type in capitals, how many points it says, and where its numbers stand.

    `images` are the UIDs of the slices that it says it was drawn on: one, or none.
    """

    roi: int
    kind: str
    n_points: int
    start: int
    stop: int
    images: frozenset[str]


class RoiContours(NamedTuple):
    """Contours by the number of their ROI, each (n, 3) in LPS mm, and why the other ROIs are damaged.

    `images` are the slices that each of the contours names (see `Outline`), in the same order.
    A damaged contour may be the most of an ROI, so it costs the whole of it, and no other ROI.
    """

    of_roi: dict[int, list[NDArray[np.float64]]]
    images: dict[int, list[frozenset[str]]]
    refusals: dict[int, Refusal]

    def refuse(self, outline: Outline, message: str) -> None:
        """Keep the first damage of the ROI that a contour belongs to."""
        self.refusals.setdefault(outline.roi, Refusal("label-damaged", message))


@dataclass
class Outlines:
    """All contours of a file, whose numbers stand in `text`."""

    text: bytes
    found: list[Outline]

    @property
    def images(self) -> dict[int, set[str]]:
        """The UIDs of the slices that each ROI was drawn on, if its contours name any."""
        images: dict[int, set[str]] = {}
        for outline in self.found:
            if outline.images:
                images.setdefault(outline.roi, set()).update(outline.images)
        return images


def split(content: bytes, where: str) -> tuple[bytes, Outlines] | None:
    """Return a plain RTSTRUCT without its contours, and these; None if it is no RTSTRUCT, or not plain.

    Raises Refusal `label-too-large` for more than MAX_ROIS or MAX_CONTOURS.
    """
    try:
        syntax, start = read_meta(content)
        is_implicit = syntax == IMPLICIT
        top, _ = walk(content, start, OF_FILE, is_implicit=is_implicit)
        sequence = top.get(ROI_CONTOURS)
        if sequence is None or text_of(content, top.get(CLASS), "UI") not in CLASSES:
            return None
        outlines = Outlines(content, [])
        for n, roi in enumerate(items_of(content, sequence, OF_ROI, is_implicit=is_implicit), 1):
            refuse_if_more(n, MAX_ROIS, "ROIs with contours", where)
            number = _whole(text_of(content, roi.get(ROI), "IS"))
            for contour in items_of(content, roi.get(CONTOURS), OF_CONTOUR, is_implicit=is_implicit):
                kind, data = text_of(content, contour.get(KIND), "CS"), contour.get(DATA)
                if kind != kind.strip() or (data and data.vr not in (None, "DS")):
                    return None
                n_points = _whole(text_of(content, contour.get(N_POINTS), "IS"))
                start, stop = (data.start, data.stop) if data else (0, 0)
                items = items_of(content, contour.get(IMAGES), OF_IMAGE, is_implicit=is_implicit)
                images = {text_of(content, image.get(IMAGE), "UI") for image in items}
                outlines.found.append(_outline(number, kind, n_points, start, stop, images))
                refuse_if_more(len(outlines.found), MAX_CONTOURS, "contours", where)
        return without(content, sequence, is_implicit=is_implicit), outlines
    except (NotPlain, struct.error, RecursionError):
        return None


def of_header(header: Dataset) -> Outlines:
    """Return the contours of an RTSTRUCT that pydicom has read."""
    outlines, values, at = Outlines(b"", []), list[bytes](), 0
    for item in header.get("ROIContourSequence") or ():
        number = int(item.get("ReferencedROINumber") or 0)
        for contour in item.get("ContourSequence") or ():
            element = contour.get_item("ContourData") if "ContourData" in contour else None
            if element is None or element.value is None:
                values.append(b"")
            else:
                values.append(bytes(element.value) if isinstance(element, RawDataElement) else b"?")  # of another VR
            end = at + len(values[-1])
            kind, n_points = contour.get("ContourGeometricType"), contour.get("NumberOfContourPoints")
            items = contour.get("ContourImageSequence") or ()
            images = {str(image.get("ReferencedSOPInstanceUID") or "") for image in items}
            outlines.found.append(_outline(number, str(kind or ""), int(n_points or 0), at, end, images))
            at = end
    outlines.text = b"".join(values)
    return outlines


def _whole(text: str) -> int:
    """Return the whole number that a text of digits holds, 0 if it is empty. Raises NotPlain for anything else."""
    text = text.strip(" ") or "0"
    if not text.isdigit() or len(text) > MAX_DIGITS:
        raise NotPlain
    return int(text)


def _outline(roi: int, kind: str, n_points: int, start: int, stop: int, images: set[str]) -> Outline:
    return Outline(roi, (kind.strip() or "CLOSED_PLANAR").upper(), n_points, start, stop, frozenset(images - {""}))


def points_of(text: bytes, outlines: list[Outline], where: str) -> RoiContours:
    """Return the points of contours by ROI. A contour that says that it has no point, and has none, is left out.

    Raises Refusal `label-too-large`.
    """
    letters = np.frombuffer(text, np.uint8)
    starts = np.array([outline.start for outline in outlines], np.int64)
    stops, counts = np.array([outline.stop for outline in outlines], np.int64), np.zeros(len(outlines), np.int64)
    decimals.count_numbers(letters, starts, stops, counts)
    found = RoiContours({}, {}, {})
    said = 3 * np.array([outline.n_points for outline in outlines], np.int64)
    for k in np.flatnonzero((counts > 3 * MAX_CONTOUR_POINTS) | (counts % 3 != 0) | (counts < said)):
        named, n = f"{where}: ROI {outlines[k].roi}", int(counts[k])
        refuse_if_more(n // 3, MAX_CONTOUR_POINTS, "points in a contour", named)
        found.refuse(outlines[k], f"{named}: {_what_is_wrong(outlines[k].n_points, n)}")
    refuse_if_more(int(counts.sum()) // 3, MAX_POINTS, "points of contours", where)
    numbers, ends = np.zeros(counts.sum(), np.float64), np.cumsum(counts)
    each = [numbers[end - n : end] for end, n in zip(ends.tolist(), counts.tolist(), strict=True)]
    for outline, start, stop, out in zip(outlines, starts.tolist(), stops.tolist(), each, strict=True):
        if not decimals.read_numbers(letters, start, stop, decimals.POWERS, out):
            try:
                out[:] = np.loadtxt([text[start:stop].decode("ascii")], delimiter="\\", comments=None, ndmin=1)
            except ValueError as error:
                named = f"{where}: ROI {outline.roi}"
                found.refuse(outline, f"{named}: expected numbers in ContourData: {one_line(error)}")
    wrong = np.flatnonzero(~(np.abs(numbers) <= MAX_POSITION_MM))  # NaN too
    for k in np.unique(np.searchsorted(ends, wrong, side="right")):
        named = f"{where}: ROI {outlines[k].roi}"
        found.refuse(outlines[k], f"{named}: expected places of a patient in mm, found NaN or more than 1 km")
    for outline, points in zip(outlines, each, strict=True):
        if outline.roi not in found.refusals and len(points):
            found.of_roi.setdefault(outline.roi, []).append(points.reshape(-1, 3))
            found.images.setdefault(outline.roi, []).append(outline.images)
    return found


def _what_is_wrong(n_said: int, n_numbers: int) -> str:
    if n_numbers % 3:
        return f"expected x, y, z of points, found {n_numbers} numbers"
    return f"expected a contour of {n_said} points as it says, found {n_numbers // 3}; the rest is cut off"

"""The frames of a DICOM Segmentation: where each lies, whose it is, and what it was drawn on (PS3.3 C.7.6.16)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dskprep.dicom.slices import MAX_POSITION_MM
from dskprep.errors import Refusal
from dskprep.labels.attributes import floats_of, item_of, refuse_if_more, uids_below

MAX_PLACES = 100
"""Most orientations and pixel spacings of the frames; most objects have one of each."""
SAME_DIRECTION = 1e-4
"""Orientations and pixel spacings that differ by less than this are one, as headers round them."""


class Frame(NamedTuple):
    """A frame: its place in the pixel data from 0 on, its segment's number (0 in a label map), and its place.

    `sources` are the UIDs of the slices that it was drawn on, if it says so.
    """

    at: int
    segment: int
    position: NDArray[np.float64]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    sources: frozenset[str]


def read_frames(header: Dataset, n_frames: int, where: str) -> Iterator[Frame]:
    """Yield the frames with their places. Raises Refusal `label-damaged` for one that has none."""
    shared = item_of(header, "SharedFunctionalGroupsSequence") or Dataset()
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != n_frames:
        raise Refusal("label-damaged", f"{where}: expected the place of each of {n_frames} frames, found {len(groups)}")
    is_label_map = str(header.get("SegmentationType") or "") == "LABELMAP"
    known: list[tuple[float, ...]] = []
    of_all = _sources(shared)
    for index, group in enumerate(groups):
        here = f"{where}: frame {index + 1}"
        either = (group, shared)
        position = _numbers(either, "PlanePositionSequence", "ImagePositionPatient", 3, here)
        orientation = _known(_numbers(either, "PlaneOrientationSequence", "ImageOrientationPatient", 6, here), known)
        spacing = _known(_numbers(either, "PixelMeasuresSequence", "PixelSpacing", 2, here), known)
        row, column = _directions(orientation, spacing, here)
        refuse_if_more(len(known), MAX_PLACES, "orientations and pixel spacings", where)
        owners = (item_of(dataset, "SegmentIdentificationSequence") for dataset in either)
        number = next((int(item.get("ReferencedSegmentNumber") or 0) for item in owners if item), 0)
        if not number and not is_label_map:
            raise Refusal("label-damaged", f"{here}: expected the number of its segment, found none")
        place = (np.array(position), (*row, *column), spacing)
        yield Frame(index, 0 if is_label_map else number, *place, _sources(group) or of_all)


def _sources(group: Dataset) -> frozenset[str]:
    """Return the UIDs of the images that a frame was made of (PS3.3 C.7.6.16.2.6)."""
    return uids_below(group.get("DerivationImageSequence"), "ReferencedSOPInstanceUID")


def _numbers(datasets: Sequence[Dataset], sequence: str, keyword: str, n: int, where: str) -> tuple[float, ...]:
    """Return `n` numbers of an attribute in the first of the datasets whose sequence has it."""
    items = (item_of(dataset, sequence) for dataset in datasets)
    found = next((floats_of(item.get(keyword)) for item in items if item), [])
    if len(found) != n or max(map(abs, found)) > MAX_POSITION_MM:
        raise Refusal("label-damaged", f"{where}: expected {n} numbers of mm in {keyword}, found {found or 'none'}")
    return tuple(found)


def _known(found: tuple[float, ...], known: list[tuple[float, ...]]) -> tuple[float, ...]:
    """Return the values, or those known before that differ from them by rounding only."""
    for other in known:
        if len(other) == len(found) and max(abs(a - b) for a, b in zip(other, found, strict=True)) < SAME_DIRECTION:
            return other
    known.append(found)
    return found


def _directions(
    orientation: tuple[float, ...], spacing: tuple[float, ...], where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the directions along a row and down a column, of length 1 as those of slices are. Raises Refusal."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm([row, column], axis=1)
    if abs(lengths - 1).max() > 1e-2 or abs(row @ column) > 1e-2:
        raise Refusal("label-damaged", f"{where}: expected two directions at right angles, found {orientation}")
    if min(spacing) <= 0:
        raise Refusal("label-damaged", f"{where}: expected a pixel spacing above 0, found {spacing}")
    return tuple((row / lengths[0]).tolist()), tuple((column / lengths[1]).tolist())

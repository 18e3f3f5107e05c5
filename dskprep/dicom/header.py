"""Read the attributes of a DICOM file that are on an allow-list. The only user of pydicom's reader."""

from __future__ import annotations

import functools
import io
import itertools
import struct
import warnings
from typing import Any

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dskprep.dicom.elements import IMPLICIT, UNDEFINED_LENGTH, find_elements
from dskprep.dicom.parts import LEAST_BYTES, count_parts, inflated
from dskprep.dicom.pixels import swapped_words

OVERLAY_BITS = [Tag(group, 0x0102) for group in range(0x6000, 0x6020, 2)]
"""OverlayBitPosition: if it is above 0, the overlay lies in unused bits of the pixels (retired in 2004)."""
FEW_PARTS, BYTES_OF_PART = 100_000, 256
"""An image has no more elements and items than the first, and one for each so many bytes; pixels are most of it."""

PIXEL_DATA = (0x7FE0, 0x0010)
ITEMS_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
LEAST_ITEM = 10
"""Fewest bytes of an encapsulated frame: the tag and length of its item, and two more."""

FACTS = {
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "kernel": "ConvolutionKernel",
    "kvp": "KVP",
    "slice_thickness_mm": "SliceThickness",
    "reconstruction_diameter_mm": "ReconstructionDiameter",
    "patient_position": "PatientPosition",
    "body_part": "BodyPartExamined",
}
"""Attributes that go into a record, by their name there; no other attribute leaves the file."""
FACT_GROUPS = {
    "ConvolutionKernel": "CTReconstructionSequence",
    "KVP": "CTXRayDetailsSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "ReconstructionDiameter": "CTReconstructionSequence",
}
"""The functional groups of a frame in which an Enhanced object has some of them (PS3.3 C.7.6.16 and C.8.15.3)."""

FRAME_TAGS = (
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("FrameContentSequence", "AcquisitionNumber"),
    ("FrameContentSequence", "TemporalPositionIdentifier"),
    ("CTReconstructionSequence", "ConvolutionKernel"),
    ("CTXRayDetailsSequence", "KVP"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("", "ImageType"),
    ("", "EchoNumbers"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("", "FilterType"),
    ("CTReconstructionSequence", "ReconstructionDiameter"),
    ("", "ScanOptions"),
    ("", "SeriesNumber"),
    ("", "SeriesDescription"),
    ("", "ImageComments"),
    ("", "TriggerTime"),
    ("", "InstanceCreationTime"),
)
"""Attributes that tell apart stacks at the same positions: acquisition, phase, reconstruction, energy, kind.

The second word is the attribute, the first its sequence in a frame of an Enhanced object. Most telling first; free text
and times never leave the file.
"""
RECONSTRUCTION = tuple(
    FRAME_TAGS.index(tag) for tag in FRAME_TAGS if tag[1] in ("ConvolutionKernel", "KVP", "FrameType", "ImageType")
)
"""Which of them must be equal for two parts to be one stack."""
KINDS = tuple(
    FRAME_TAGS.index(tag) for tag in FRAME_TAGS if tag[1] in ("ConvolutionKernel", "KVP", "SeriesDescription")
)
"""Which of them should not change along one stack."""

FRAME_ORDERS = (
    (("FrameContentSequence", "FrameAcquisitionDateTime"), ("", "ContentTime"), ("", "AcquisitionTime")),
    (("", "InstanceCreationTime"),),
    (("", "InstanceNumber"),),
)
"""When a slice was made: the first of these that is there, for stacks that no tag tells apart; never leaves the file.

One of each group of attributes is taken, and the groups are tried one after another.
"""

IDENTIFIERS = {
    "patient": "PatientID",
    "issuer": "IssuerOfPatientID",
    "study": "StudyInstanceUID",
    "frame_of_reference": "FrameOfReferenceUID",
    "instance": "SOPInstanceUID",
}
"""Attributes that say whose a slice is. They leave the file as keyed digests only."""

_KEYWORDS = {
    *"SOPClassUID SeriesInstanceUID Modality ImageType NumberOfFrames ContrastBolusAgent LossyImageCompression".split(),
    *"SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence".split(),
    *"ImagePositionPatient ImageOrientationPatient PixelSpacing".split(),
    *"RescaleType RescaleSlope RescaleIntercept ModalityLUTSequence PixelPaddingValue PixelPaddingRangeLimit".split(),
    *"SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit".split(),
    *"PixelRepresentation PixelData FloatPixelData DoubleFloatPixelData".split(),
    *FACTS.values(),
    *IDENTIFIERS.values(),
    *(keyword for _, keyword in itertools.chain(FRAME_TAGS, *FRAME_ORDERS)),
}
_READ_TAGS = [*map(Tag, _KEYWORDS), *OVERLAY_BITS]
"""Everything that is read of a file; skipping the rest saves a quarter of the time."""

INSTANCE = Tag("SOPInstanceUID")
"""It differs from slice to slice, so a cache of its values would not help."""
PIXEL_REPRESENTATION = Tag("PixelRepresentation")
CONTEXT_TAGS = (Tag("SpecificCharacterSet"), PIXEL_REPRESENTATION)
"""Elements on which the values of others depend: their character set, and whether numbers are signed."""
MAX_VALUE = 1024
"""Longest value of an attribute in a plain file; none that is read here needs more bytes."""

NO_ELEMENT = bytes(8)
"""No element begins like this: the first of a command set has a value."""

_WANTED = {int(tag): tag for tag in (*_READ_TAGS, *CONTEXT_TAGS)}

Bytes = bytes | memoryview

Attributes = dict[str, Any]
"""Values by keyword; a sequence is a list of Attributes."""


def read_attributes(content: bytes) -> Attributes:
    """Return the values of a file's attributes on the allow-list, and its TransferSyntaxUID.

    Raises whatever a damaged byte leads pydicom to, and ValueError for more than an image can hold.
    """
    content = inflated(content)
    with pydicom.config.disable_value_validation():
        if plain := _plain_attributes(content):
            return plain
        most = FEW_PARTS + len(content) // BYTES_OF_PART
        if len(content) > LEAST_BYTES * most and count_parts(content, most) > most:
            raise ValueError(f"expected at most {most} elements in an image of {len(content)} bytes, found more")
        return _any_attributes(content)


def _plain_attributes(content: bytes) -> Attributes | None:
    """Return the values of a plain file of a CT slice, or None, in a third of the time that `_any_attributes` takes."""
    found = find_elements(content, _WANTED)
    if found is None:
        return None
    syntax, elements = found
    _, start, stop = elements.pop(Tag(PIXEL_DATA), (None, 0, 0))
    sizes = {tag: e.stop - e.start for tag, e in elements.items()}
    if sizes.get(PIXEL_REPRESENTATION) != 2 or max(sizes.values()) > MAX_VALUE or sizes.keys() & OVERLAY_BITS:
        return None
    header: Attributes = {"TransferSyntaxUID": syntax.decode(), "PixelData": memoryview(content)[start:stop]}
    instance = elements.get(INSTANCE)
    if instance and b"\\" not in (value := content[instance.start : instance.stop]):
        header["SOPInstanceUID"] = value.decode("latin-1").rstrip(" \0")
        del elements[INSTANCE]
    raw = {
        tag: RawDataElement(_WANTED[tag], e.vr, sizes[tag], content[e.start : e.stop], 0, syntax == IMPLICIT, True)
        for tag, e in elements.items()
    }
    context = tuple(raw[tag] for tag in CONTEXT_TAGS if tag in raw)
    for element in raw.values():
        header |= _convert(element, context)
    return header if header.get("SOPClassUID") else None


@functools.lru_cache(maxsize=1024)
def _convert(element: RawDataElement, context: tuple[RawDataElement, ...]) -> Attributes:
    """Let pydicom convert one element; cached, because the slices of a series have most elements in common."""
    return _attributes(pydicom.Dataset({e.tag: e for e in (element, *context)}))


def _any_attributes(content: bytes) -> Attributes:
    """Return the values of any file that pydicom can read. Raises whatever a damaged byte leads pydicom to."""
    file = _Elements(content)
    dataset = pydicom.dcmread(file, force=True, specific_tags=_READ_TAGS)
    header = _attributes(dataset)
    pixels = header.get("PixelData") or b""
    if file.zeros and not pixels:
        raise ValueError(file.zeros)
    are_words = not dataset.original_encoding[1] and pixels and dataset["PixelData"].VR == "OW"
    if are_words and header.get("BitsAllocated") == 8 and len(pixels) % 2 == 0:
        header["PixelData"] = swapped_words(memoryview(pixels))  # PS3.5, annex A.3
    header["TransferSyntaxUID"] = _transfer_syntax(dataset)
    if content[128:132] == b"DICM" and not header.get("SOPClassUID"):  # the file is cut, or a DICOMDIR
        header["SOPClassUID"] = dataset.file_meta.get("MediaStorageSOPClassUID")
    return header


class _Elements(io.BytesIO):
    """The bytes of a file. Reading ends where zeros stand for elements, as in a file that was not written to its end.

    pydicom takes each eight of them for an element, and so needs ten seconds for 50 MB.
    """

    zeros = ""  # set where nothing but zeros follow: they may also fill a whole file up to a block
    _last = b""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as BytesIO does; raise ValueError for a second eight zeros, of which one can be a value."""
        last, self._last = self._last, super().read(size)
        if last == self._last == NO_ELEMENT:
            self.zeros = f"zeros stand before byte {self.tell()}, where an element should begin"
            if super().read().strip(b"\0"):
                raise ValueError(self.zeros)
            return b""
        return self._last


def _attributes(dataset: pydicom.Dataset) -> Attributes:
    """Return the values of a dataset, without those that pydicom cannot parse."""
    found: Attributes = {}
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception:  # a NotImplementedError, ValueError...: whatever the bytes lead to
            continue
        if tag in OVERLAY_BITS:
            found["HasOverlayBits"] = found.get("HasOverlayBits", False) or element.value not in (None, 0)
            continue
        is_sequence = element.VR == "SQ"
        found[element.keyword] = [_attributes(item) for item in element.value or ()] if is_sequence else element.value
    return found


def _transfer_syntax(dataset: pydicom.Dataset) -> str:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax:
        return str(syntax)
    is_implicit, is_little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
    return str(ImplicitVRLittleEndian if is_implicit else explicit)


def read_object(content: bytes) -> tuple[pydicom.Dataset, Bytes]:
    """Return all attributes of an object that is no image but its pixel data, and the bytes of those, empty if none.

    Pixel data that is encapsulated goes on to the end of the file. Raises as `read_attributes`.
    """
    content = inflated(content)
    file = _Elements(content)
    with warnings.catch_warnings(action="ignore"), pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        if file.zeros:
            raise ValueError(file.zeros)
        dataset.file_meta.TransferSyntaxUID = UID(_transfer_syntax(dataset))
    start, length = _pixel_data_at(content, file.tell(), dataset) or (len(content), 0)
    pixels = memoryview(content)[start : None if length == UNDEFINED_LENGTH else start + length]
    are_words = not dataset.original_encoding[1] and content[start - 8 : start - 6] == b"OW"
    return dataset, swapped_words(pixels) if are_words and dataset.get("BitsAllocated", 16) < 16 else pixels


def _pixel_data_at(head: bytes, at: int, dataset: pydicom.Dataset) -> tuple[int, int] | None:
    """Return where the value of the pixel data begins whose element is at byte `at`, and its length; None if none."""
    is_implicit, is_little = dataset.original_encoding
    order = "<" if is_little else ">"
    if len(head) < at + 12 or struct.unpack_from(f"{order}HH", head, at) != PIXEL_DATA:
        return None
    start = at + (8 if is_implicit else 12)
    (length,) = struct.unpack_from(f"{order}L", head, start - 4)
    return start, length


def with_blank_pixels(head: bytes, size: int) -> bytes | None:
    """Complete the `head` of a file of `size` bytes with blank pixel data, of the frames and length in its header.

    Returns None if the head ends before the pixels or cannot be parsed: then the whole file must be read.
    """
    file = io.BytesIO(head)
    try:
        with warnings.catch_warnings(action="ignore"):
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
        n_frames = int(dataset.get("NumberOfFrames") or 1)
        found = _pixel_data_at(head, file.tell(), dataset)
    except Exception:  # pydicom raises whatever a damaged byte leads it to
        return None
    if found is None:
        return None
    value, length = found
    if length != UNDEFINED_LENGTH:
        return head[:value] + bytes(max(0, min(length, size - value)))
    if not 1 <= n_frames <= size // LEAST_ITEM:
        return None
    return head[:value] + encapsulate([b"\0\0"] * n_frames, has_bot=False) + ITEMS_END

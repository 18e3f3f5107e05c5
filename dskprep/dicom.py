"""DICOM files to slices: what is a CT slice, and what its header says. The only user of pydicom's reader."""

from __future__ import annotations

import functools
import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dskprep.elements import IMPLICIT, Element, find_elements
from dskprep.errors import Refusal
from dskprep.geometry import Plane
from dskprep.pixels import MAX_EDGE, NATIVE, PixelFormat, check_decodable

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image
}

DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
"""A DICOMDIR: the one other object that belongs to no series."""

NO_SLICE_TYPES = {"LOCALIZER", "SCREEN SAVE", "DOSE_INFO"}
"""Values of ImageType that mark a CT object that is no slice of a volume."""

OTHER_SUFFIXES = {
    *(
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".xml",
        ".md",
        ".html",
        ".htm",
        ".pdf",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".log",
        ".py",
        ".sh",
    ),
    *(".bat", ".db", ".lnk", ".url", ".doc", ".docx", ".xls", ".xlsx", ".rtf", ".png", ".jpg"),
    *(".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".nii", ".gz", ".bz2"),
    *(".xz", ".7z", ".npy", ".npz", ".mha", ".mhd", ".nrrd", ".stl", ".part", ".tmp", ".sha256", ".md5"),
}
OTHER_NAMES = {"DICOMDIR", "DIRFILE", "LICENSE", "README", "VERSION", "SHA256SUMS", "MD5SUMS"}
"""Files named so are no slices that were damaged, whatever they hold."""

OVERLAY_BITS = [Tag(group, 0x0102) for group in range(0x6000, 0x6020, 2)]
"""OverlayBitPosition: above 0 the overlay lies in the unused bits of the pixels (retired in 2004)."""

MAX_PLANE_MM = 2000.0
MIN_PIXEL_MM = 0.01
MAX_POSITION_MM = 1e6
"""Bounds of a slice's width, its pixels and its place; beyond them a header is damaged."""

MAX_INFLATED_BYTES = 1 << 28
MAX_INFLATION = 1032
"""Bound of what one deflated file may hold, and the most that deflation can grow."""

PIXEL_DATA = (0x7FE0, 0x0010)
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEMS_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
LEAST_ITEM = 10
"""Bytes of an encapsulated frame: at least its item's tag and length, and two more."""

META_BYTES = 4096
"""The File Meta Information, with the transfer syntax, lies within so many bytes."""

FACTS = {
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "kernel": "ConvolutionKernel",
    "kvp": "KVP",
    "slice_thickness_mm": "SliceThickness",
    "patient_position": "PatientPosition",
    "body_part": "BodyPartExamined",
}
"""The attributes that go into a record: no other one leaves the file."""

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
)
"""What tells apart stacks that share positions: acquisition, time, reconstruction, energy, kind.

The second word is the attribute; in a frame of an Enhanced object it stands in the first one's sequence.
"""

FRAME_TIMES = (
    ("FrameContentSequence", "FrameAcquisitionDateTime"),
    ("", "ContentTime"),
    ("", "AcquisitionTime"),
)
"""When a slice was made, where no tag tells stacks apart. Never leaves the file."""

_KEYWORDS = {
    *("SOPClassUID", "SeriesInstanceUID", "Modality", "ImageType", "NumberOfFrames", "ContrastBolusAgent"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("RescaleType", "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *(
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
    ),
    *("LossyImageCompression", "PixelData"),
    *FACTS.values(),
    *(keyword for _, keyword in FRAME_TAGS + FRAME_TIMES),
}
_READ_TAGS = [*(Tag(tag) for tag in sorted(filter(None, map(tag_for_keyword, _KEYWORDS)))), *OVERLAY_BITS]
"""All that is read of a file; skipping the rest saves a quarter of the time."""

PIXEL_REPRESENTATION = Tag("PixelRepresentation")
CONTEXT_TAGS = (Tag("SpecificCharacterSet"), PIXEL_REPRESENTATION)
"""What other elements are read by: letters, and whether numbers are signed."""

MAX_VALUE = 1024
"""Bytes of an attribute's value; none that is read here needs more in a plain file."""

_WANTED = frozenset(map(int, (*_READ_TAGS, *CONTEXT_TAGS)))

Bytes = bytes | memoryview

Attributes = dict[str, Any]
"""Values by keyword; a sequence is a list of Attributes."""


class _Stored(NamedTuple):
    """An element as it is stored."""

    tag: int
    vr: str | None
    value: bytes
    is_implicit: bool


class Aside(NamedTuple):
    """A file that is no CT slice, and why: `localizer`, `not-ct` or `not-dicom`."""

    name: str
    kind: str
    detail: str


@dataclass(frozen=True, eq=False)
class Slice:
    """One CT slice: its place, its header, its pixels still encoded.

    HU = stored * slope + intercept; `padding` is the range of stored values declared as padding.
    """

    name: str
    plane: Plane
    layout: PixelFormat
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    is_lossy: bool
    facts: dict[str, str]
    data: Bytes

    def is_copy_of(self, other: Slice) -> bool:
        """Whether pixels, their rescale and their padding are equal."""
        names = ("layout", "slope", "intercept", "padding", "data")
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(eq=False)
class Contents:
    """What a set of files holds: slices and damage by SeriesInstanceUID, and files set aside.

    Damage of a file whose series cannot be read is kept under the empty UID.
    """

    slices: dict[str, list[Slice]] = field(default_factory=dict)
    damage: dict[str, Refusal] = field(default_factory=dict)
    aside: list[Aside] = field(default_factory=list)
    foreign: dict[str, Refusal] = field(default_factory=dict)
    unreadable: Refusal | None = None

    def flaw(self, uid: str) -> Refusal | None:
        """Why the slices of a series cannot be trusted to be all there is.

        Damage in it, or in a file that may belong to it; an object that is no CT image under its UID; a
        file that is no DICOM and not named as something else. Each may have been a slice at its end.
        """
        return self.damage.get(uid) or self.damage.get("") or self.foreign.get(uid) or self.unreadable

    def uids(self) -> list[str]:
        """The series there are. Damage of an unknown one counts for all others; it is one if there is no other."""
        return sorted({*self.slices, *self.damage} - ({""} - {*self.slices})) or sorted(self.damage)

    def add_headers(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Read files, given as name and content, and keep of their slices only what their headers say."""
        for name, content in files:
            self.add(name, content)
            for slices in self.slices.values():
                for i in reversed(range(len(slices))):
                    if not slices[i].data:
                        break  # those before were forgotten already
                    slices[i] = replace(slices[i], data=b"")

    def add(self, name: str, content: bytes) -> None:
        """Read one file. Never raises for bad content: that is what `damage` and `aside` are for."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that break the standard but can be read
            self._add(name, content)

    def _add(self, name: str, content: bytes) -> None:
        header = self._parse(name, content)
        if header is None:
            return
        kind = _no_slice(header)
        if kind:
            self.aside.append(Aside(name, kind, _what(header)))
            if kind == "not-ct":
                message = f"{name}: is no CT image ({_what(header)}), and has the UID of this series"
                self.foreign.setdefault(_text(header, "SeriesInstanceUID"), Refusal("not-ct", message))
            return
        uid = _text(header, "SeriesInstanceUID")
        try:
            slices = list(_slices(header, name))
        except Refusal as refusal:
            self.damage.setdefault(uid, refusal)
        else:
            self.slices.setdefault(uid, []).extend(slices)

    def _parse(self, name: str, content: bytes) -> Attributes | None:
        is_marked = content[128:132] == b"DICM"
        try:
            with pydicom.config.disable_value_validation():
                if _inflates_beyond(content, MAX_INFLATED_BYTES):
                    raise ValueError(f"its {len(content)} bytes inflate to more than {MAX_INFLATED_BYTES >> 20} MiB")
                header = _plain_attributes(content) or _any_attributes(content)
        except Exception as error:  # pydicom raises whatever a damaged byte leads it to
            self._add_unreadable(name, content, is_marked, _one_line(error))
            return None
        sop_class = _text(header, "SOPClassUID")
        if sop_class not in (*CT_CLASSES, DIRECTORY_CLASS) and not header.get("SeriesInstanceUID"):
            self._add_unreadable(name, content, is_marked or bool(sop_class), "it ends before SeriesInstanceUID")
            return None
        return header

    def _add_unreadable(self, name: str, content: bytes, is_marked: bool, detail: str) -> None:
        what = f"cannot be read as DICOM ({detail or 'it has no mark'})" if content else "is empty"
        refusal = Refusal("truncated", f"{name}: {what}")
        if is_marked or not (content or is_named_otherwise(name)):
            self.damage.setdefault("", refusal)
            return
        self.aside.append(Aside(name, "not-dicom", ""))
        if not is_named_otherwise(name):
            self.unreadable = self.unreadable or refusal


def _inflates_beyond(content: bytes, limit: int) -> bool:
    """Whether a file of the deflated transfer syntax holds more than `limit` bytes; pydicom would inflate it whole."""
    if len(content) * MAX_INFLATION < limit or DeflatedExplicitVRLittleEndian.encode() not in content[:META_BYTES]:
        return False
    file = io.BytesIO(content)
    file.seek(132 if content[128:132] == b"DICM" else 0)
    read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    deflated, inflater, n_bytes = file.read(), zlib.decompressobj(-zlib.MAX_WBITS), 0
    while deflated and n_bytes <= limit:
        n_bytes += len(inflater.decompress(deflated, 1 << 20))
        deflated = inflater.unconsumed_tail
    return n_bytes > limit


def with_blank_pixels(head: bytes, size: int) -> bytes | None:
    """A file of `size` bytes that begins with `head`, its pixels blank: as many and as long as its header says.

    None if the head ends before the pixels begin, or is no plain DICOM: then the file is to be read whole.
    """
    file = io.BytesIO(head)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
        is_implicit, is_little = dataset.original_encoding
        n_frames = int(dataset.get("NumberOfFrames") or 1)
        start = file.tell()
        order = "<" if is_little else ">"
        if struct.unpack_from(f"{order}HH", head, start) != PIXEL_DATA:
            return None
        value = start + (8 if is_implicit else 12)
        (length,) = struct.unpack_from(f"{order}L", head, value - 4)
    except Exception:  # pydicom raises whatever a damaged byte leads it to
        return None
    if length != UNDEFINED_LENGTH:
        return head[:value] + bytes(max(0, min(length, size - value)))
    if not 1 <= n_frames <= size // LEAST_ITEM:
        return None
    return head[:value] + encapsulate([b"\0\0"] * n_frames, has_bot=False) + ITEMS_END


def may_be_ct(head: bytes) -> bool:
    """Whether the first bytes of a file could be those of a CT object: they name its class."""
    return any(sop_class.encode() in head for sop_class in CT_CLASSES)


def is_named_otherwise(name: str) -> bool:
    """Whether a file's name says that it is no DICOM file."""
    path = PurePosixPath(name)
    return path.suffix.lower() in OTHER_SUFFIXES or path.name.upper() in OTHER_NAMES


def _plain_attributes(content: bytes) -> Attributes | None:
    """The values of a plain file of a CT slice, or None: a fifth of the time that `_any_attributes` takes."""
    found = find_elements(content, _WANTED)
    if found is None:
        return None
    syntax, elements = found
    _, start, stop = elements.pop(Tag(PIXEL_DATA), (None, 0, 0))
    is_signed = elements.get(PIXEL_REPRESENTATION, Element(None, 0, 0))
    if is_signed.stop - is_signed.start != 2 or any(tag in elements for tag in OVERLAY_BITS):
        return None
    if any(e.stop - e.start > MAX_VALUE for e in elements.values()):
        return None
    header: Attributes = {"TransferSyntaxUID": syntax.decode(), "PixelData": memoryview(content)[start:stop]}
    stored = {tag: _Stored(tag, e.vr, content[e.start : e.stop], syntax == IMPLICIT) for tag, e in elements.items()}
    context = tuple(stored[tag] for tag in CONTEXT_TAGS if tag in stored)
    for element in stored.values():
        header |= _value(element, context)
    return header if header.get("SOPClassUID") else None


@functools.lru_cache(maxsize=1024)
def _value(element: _Stored, context: tuple[_Stored, ...]) -> Attributes:
    """What pydicom makes of one element, by its keyword. The slices of a series have most of theirs in common."""
    return _attributes(
        pydicom.Dataset(
            {
                BaseTag(e.tag): RawDataElement(BaseTag(e.tag), e.vr, len(e.value), e.value, 0, e.is_implicit, True)
                for e in (element, *context)
            }
        )
    )


def _any_attributes(content: bytes) -> Attributes:
    """The values of any file that pydicom can read. Raises whatever a damaged byte leads pydicom to."""
    dataset = pydicom.dcmread(io.BytesIO(content), force=True, specific_tags=_READ_TAGS)
    header = _attributes(dataset)
    header["TransferSyntaxUID"] = _transfer_syntax(dataset)
    if content[128:132] == b"DICM" and not header.get("SOPClassUID"):  # the file is cut, or a DICOMDIR
        header["SOPClassUID"] = dataset.file_meta.get("MediaStorageSOPClassUID")
    return header


def _attributes(dataset: pydicom.Dataset) -> Attributes:
    """The values of a dataset; one that pydicom cannot parse is as good as none."""
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
    if is_implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian)


def _no_slice(header: Attributes) -> str | None:
    """Why this object is no CT slice, or None if it is one."""
    if _text(header, "SOPClassUID") not in CT_CLASSES:
        return "not-ct"
    image_type = header.get("ImageType") or []
    values = {str(v).upper() for v in ([image_type] if isinstance(image_type, str) else image_type)}
    return "localizer" if values & NO_SLICE_TYPES else None


def _slices(header: Attributes, name: str) -> Iterator[Slice]:
    if not header.get("PixelData"):
        raise Refusal("truncated", f"{name}: expected pixel data, found none")
    layout = _layout(header, name)
    n_frames = int(_number(header, "NumberOfFrames", name, default=1.0))
    if n_frames < 1:
        raise Refusal("undecodable-pixels", f"{name}: expected one frame or more, found NumberOfFrames {n_frames}")
    facts = {key: _text(header, keyword)[:64] for key, keyword in FACTS.items()}
    contrast = _text(header, "ContrastBolusAgent").lower() not in ("", "none", "no")
    facts["contrast"] = "yes" if contrast else "no"
    facts["transfer_syntax"] = layout.transfer_syntax
    is_lossy = _text(header, "LossyImageCompression") == "01"
    padding = _padding(header, layout)
    for index, data in enumerate(_encoded_frames(header["PixelData"], layout, n_frames, name)):
        frame = _Frame(header, index, name if n_frames == 1 else f"{name}[{index}]")
        yield Slice(
            name=frame.name,
            plane=frame.plane(layout),
            layout=layout,
            slope=frame.rescale("RescaleSlope"),
            intercept=frame.rescale("RescaleIntercept"),
            padding=padding,
            is_lossy=is_lossy,
            facts=facts,
            data=data,
        )


def _encoded_frames(data: Bytes, layout: PixelFormat, n_frames: int, name: str) -> Iterator[Bytes]:
    if layout.transfer_syntax in NATIVE:
        size = layout.frame_bytes
        if len(data) < size * n_frames:
            raise Refusal("truncated", f"{name}: expected {size * n_frames} bytes of pixels, found {len(data)}")
        if len(data) >= size * n_frames + size // layout.rows:  # a row or more: that is no padding
            message = f"{name}: expected {size * n_frames} bytes of pixels, found {len(data)}"
            raise Refusal("undecodable-pixels", message)
        yield from (data,) if n_frames == 1 else (data[i * size : (i + 1) * size] for i in range(n_frames))
        return
    n_found = 0
    try:
        for frame in generate_frames(bytes(data), number_of_frames=n_frames):
            n_found += bool(frame)
            yield frame
    except (ValueError, IndexError, EOFError, struct.error) as error:
        message = f"{name}: encapsulated pixel data is damaged: {_one_line(error)}"
        raise Refusal("truncated", message) from error
    if n_found != n_frames:
        raise Refusal("truncated", f"{name}: expected {n_frames} encoded frames, found {n_found}")


def _layout(header: Attributes, name: str) -> PixelFormat:
    check_decodable(header["TransferSyntaxUID"], name)
    photometric = _text(header, "PhotometricInterpretation") or "MONOCHROME2"
    if int(_number(header, "SamplesPerPixel", name, default=1.0)) != 1 or not photometric.startswith("MONOCHROME"):
        raise Refusal("not-hu", f"{name}: expected one grey value a pixel, found colour ({photometric:.16})")
    allocated = int(_number(header, "BitsAllocated", name))
    stored = int(_number(header, "BitsStored", name, default=float(allocated)))
    layout = PixelFormat(
        transfer_syntax=header["TransferSyntaxUID"],
        rows=int(_number(header, "Rows", name)),
        columns=int(_number(header, "Columns", name)),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=int(_number(header, "HighBit", name, default=stored - 1.0)),
        is_signed=bool(_number(header, "PixelRepresentation", name)),
        has_overlay=header.get("HasOverlayBits", False),
    )
    is_size_possible = 2 <= layout.rows <= MAX_EDGE and 2 <= layout.columns <= MAX_EDGE
    if not is_size_possible or not 1 <= stored <= layout.high_bit + 1 <= allocated:
        raise Refusal("undecodable-pixels", f"{name}: impossible pixel layout {layout}")
    return layout


def _padding(header: Attributes, layout: PixelFormat) -> tuple[int, int] | None:
    """The declared padding as a range of stored values.

    The two attributes are US or SS by PixelRepresentation, and are often written with the other VR:
    63536 on signed pixels is -2000.
    """
    values = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = header.get(keyword)
        if not isinstance(value, int):
            continue
        wrap = 1 << layout.bits_allocated
        if layout.is_signed and value >= wrap // 2:
            value -= wrap
        elif not layout.is_signed and value < 0:
            value += wrap
        values.append(value)
    return (min(values), max(values)) if isinstance(header.get("PixelPaddingValue"), int) else None


class _Frame:
    """The attributes of one frame: its own functional group's, else the shared one's, else the file's."""

    def __init__(self, header: Attributes, index: int, name: str) -> None:
        self.name = name
        self.levels = [header]
        for keyword, at in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", index)):
            groups = header.get(keyword)
            if isinstance(groups, list) and at < len(groups):  # a damaged header may call it something else
                self.levels.insert(0, groups[at])

    def find(self, sequence: str, keyword: str) -> Any:
        """The attribute's value, or None; at the file's level it lies outside any sequence."""
        for level in self.levels:
            group = level.get(sequence) if sequence else None
            value = group[0].get(keyword) if group and isinstance(group, list) else level.get(keyword)
            if value is not None and value != "":
                return value
        return None

    def rescale(self, keyword: str) -> float:
        rescale_type = self.find("PixelValueTransformationSequence", "RescaleType")
        # HU (PS3.3 C.11.1.1.2), written in full by some ("Houndsfield Unit"); HU_MOD is something else
        if rescale_type is not None and not re.fullmatch("HU|HO.*", str(rescale_type).strip().upper()):
            raise Refusal("not-hu", f"{self.name}: expected RescaleType HU, found {rescale_type!s:.16}")
        value = self.find("PixelValueTransformationSequence", keyword)
        if value is None:
            raise Refusal("not-hu", f"{self.name}: expected {keyword}, found none")
        number = _numbers(value, 1, keyword, self.name, "not-hu")[0]
        if keyword == "RescaleSlope" and number <= 0:
            raise Refusal("not-hu", f"{self.name}: expected a RescaleSlope above 0, found {number}")
        return number

    def plane(self, layout: PixelFormat) -> Plane:
        position = self.numbers("PlanePositionSequence", "ImagePositionPatient", 3)
        orientation = self.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
        pixel_mm = self.numbers("PixelMeasuresSequence", "PixelSpacing", 2)
        row, column = orientation[:3], orientation[3:]
        are_units = all(abs(math.hypot(*direction) - 1) <= 1e-2 for direction in (row, column))
        if not are_units or abs(sum(a * b for a, b in zip(row, column, strict=True))) > 1e-3:
            raise Refusal(
                "mixed-geometry", f"{self.name}: ImageOrientationPatient is no pair of right-angled directions"
            )
        widths = [mm * n for mm, n in zip(pixel_mm, (layout.rows, layout.columns), strict=True)]
        if min(pixel_mm) < MIN_PIXEL_MM or max(widths) > MAX_PLANE_MM:
            raise Refusal("mixed-geometry", f"{self.name}: PixelSpacing {pixel_mm} mm is impossible")
        if max(map(abs, position)) > MAX_POSITION_MM:
            raise Refusal("mixed-geometry", f"{self.name}: ImagePositionPatient {position} mm is impossible")
        return Plane(
            shape=(layout.rows, layout.columns),
            pixel_mm=(pixel_mm[0], pixel_mm[1]),
            position=(position[0], position[1], position[2]),
            row=_unit(row),
            column=_unit(column),
            stack=self.stack_tags(),
            time=next(filter(None, (_as_text(self.find(*tag)) for tag in FRAME_TIMES)), ""),
        )

    def numbers(self, sequence: str, keyword: str, count: int) -> list[float]:
        value = self.find(sequence, keyword)
        if value is None:
            raise Refusal("missing-attribute", f"{self.name}: expected {keyword}, found none")
        return _numbers(value, count, keyword, self.name, "missing-attribute")

    def stack_tags(self) -> tuple[str, ...]:
        """The values of FRAME_TAGS."""
        return tuple(_sortable(self.find(*tag)) for tag in FRAME_TAGS)


def _sortable(value: Any) -> str:
    """A value as text, numbers such that they sort as numbers do."""
    text = _as_text(value)
    try:
        return f"{float(text):020.6f}"
    except ValueError:
        return text


def _unit(direction: list[float]) -> tuple[float, float, float]:
    length = math.hypot(*direction)
    x, y, z = (v / length for v in direction)
    return x, y, z


def _text(header: Attributes, keyword: str) -> str:
    return _as_text(header.get(keyword))


def _as_text(value: Any) -> str:
    if isinstance(value, MultiValue):
        value = "\\".join(map(str, value))
    return "" if value is None else str(value).strip()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _what(header: Attributes) -> str:
    """What kind of object this is, in the standard's words."""
    sop_class = header["SOPClassUID"]
    return str(getattr(sop_class, "name", sop_class))


def _number(header: Attributes, keyword: str, name: str, default: float | None = None) -> float:
    value = header.get(keyword)
    if value is None or value == "":
        if default is None:
            raise Refusal("missing-attribute", f"{name}: expected {keyword}, found none")
        return default
    return _numbers(value, 1, keyword, name, "missing-attribute")[0]


def _numbers(value: Any, count: int, keyword: str, name: str, reason: str) -> list[float]:
    try:
        numbers = [float(v) for v in ([value] if count == 1 else value)]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count or not all(math.isfinite(v) for v in numbers):
        raise Refusal(reason, f"{name}: expected {count} numbers in {keyword}, found {value!s:.64}")
    return numbers

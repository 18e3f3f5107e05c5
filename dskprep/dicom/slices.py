"""Read the slices of a CT object from its attributes: place, pixel format, rescale; or refuse it."""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.encaps import generate_frames

from dskprep.dicom.description import NOBODY, Identity, as_text, describe, identity_of, terms_of, text_of
from dskprep.dicom.header import FACT_GROUPS, FRAME_ORDERS, FRAME_TAGS, Attributes, Bytes
from dskprep.dicom.pixels import MAX_EDGE, NATIVE, PixelFormat, check_decodable
from dskprep.dicom.plane import Plane
from dskprep.errors import Refusal
from dskprep.plain import in_one_line

MAX_PLANE_MM = 2000.0
"""Widest slice; a wider one comes from a damaged header."""
MIN_PIXEL_MM = 0.01
"""Smallest pixel; a smaller one comes from a damaged header."""
MAX_POSITION_MM = 1e6
"""Largest coordinate of a slice; a larger one comes from a damaged header."""
DERIVED_TYPES = frozenset(
    "MIP MINIP MAX_IP MIN_IP MAXIMUM MINIMUM MEAN AVERAGE STD_DEVIATION MPR CURVED_MPR VRT SSD SUBTRACTION "
    "RESAMPLED".split()
) | {"PROJECTION IMAGE", "VOLUME RENDERING", "CSA MIP", "CSA MPR", "CSA RESAMPLED", "MIP THIN", "MIP THICK"}
"""Values of ImageType and FrameType of slices that were computed from others (PS3.3 C.8.16.1, and makers' own)."""
OTHER_QUANTITIES = frozenset("OD MGML Z_EFF ED EDW HU_MOD PCT".split())
"""Values of RescaleType that name a quantity other than HU (PS3.3 C.11.1.1.2); US, unspecified, may be anything."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One CT slice, its pixels still encoded.

    HU = stored * slope + intercept. `padding` is the range of stored values that the header declares as padding.
    `facts` are the attributes for the record. `doubt` says why the header leaves open whether that makes HU, if it
    does; `is_derived`, that the slice was computed from others. `data` is empty in a header-only slice.
    """

    name: str
    plane: Plane
    pixel_format: PixelFormat
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    is_lossy: bool
    facts: dict[str, str]
    data: Bytes
    doubt: str = ""
    is_derived: bool = False
    identity: Identity = NOBODY

    def is_copy_of(self, other: Slice) -> bool:
        """Tell whether pixels, rescale and padding are equal."""
        names = ("pixel_format", "slope", "intercept", "padding", "data")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def read_slices(header: Attributes, name: str) -> Iterator[Slice]:
    """Yield the slices of the CT object in file `name`. Raises Refusal if attributes or pixel data are unusable."""
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in header:
            raise Refusal("undecodable-pixels", f"{name}: expected whole numbers in PixelData, found {keyword}")
    if not header.get("PixelData"):
        raise Refusal("truncated", f"{name}: expected pixel data, found none")
    if not isinstance(header["PixelData"], Bytes):
        raise Refusal("undecodable-pixels", f"{name}: expected bytes in PixelData, found another kind of value")
    pixel_format = _read_format(header, name)
    n_frames = int(_number(header, "NumberOfFrames", name, default=1.0))
    if n_frames < 1:
        raise Refusal("undecodable-pixels", f"{name}: expected one frame or more, found NumberOfFrames {n_frames}")
    identity = identity_of(header)
    is_lossy = text_of(header, "LossyImageCompression") == "01"
    padding = _read_padding(header, pixel_format)
    for index, data in enumerate(_encoded_frames(header["PixelData"], pixel_format, n_frames, name)):
        frame = _Frame(header, index, name if n_frames == 1 else f"{name}[{index}]")
        yield Slice(
            name=frame.name,
            plane=frame.plane(pixel_format),
            pixel_format=pixel_format,
            slope=frame.rescale("RescaleSlope", 1.0),
            intercept=frame.rescale("RescaleIntercept", 0.0),
            padding=padding,
            is_lossy=is_lossy,
            facts=frame.facts() | {"transfer_syntax": pixel_format.transfer_syntax},
            data=data,
            doubt=frame.doubt(),
            is_derived=frame.is_derived(),
            identity=identity,
        )


def facts_in(header: Attributes) -> dict[str, str]:
    """Return what the first frame of an object says of scanner, protocol and contrast (see `describe`)."""
    return _Frame(header, 0, "").facts()


def _encoded_frames(data: Bytes, pixel_format: PixelFormat, n_frames: int, name: str) -> Iterator[Bytes]:
    if pixel_format.transfer_syntax in NATIVE:
        size = pixel_format.frame_bytes
        surplus = len(data) - size * n_frames
        # a row or more is not just padding, unless it is one byte again and again
        if surplus < 0 or (surplus >= size // pixel_format.rows and len(set(data[-surplus:])) > 1):
            message = f"{name}: expected {size * n_frames} bytes of pixels, found {len(data)}"
            raise Refusal("truncated" if surplus < 0 else "undecodable-pixels", message)
        yield from (data,) if n_frames == 1 else (data[i * size : (i + 1) * size] for i in range(n_frames))
        return
    n_found = 0
    try:
        for frame in generate_frames(bytes(data), number_of_frames=n_frames):
            n_found += bool(frame)
            yield frame
    except (ValueError, IndexError, EOFError, struct.error) as error:
        message = f"{name}: encapsulated pixel data is damaged: {in_one_line(error, 200)}"
        raise Refusal("truncated", message) from error
    if n_found != n_frames:
        raise Refusal("truncated", f"{name}: expected {n_frames} encoded frames, found {n_found}")


def _read_format(header: Attributes, name: str) -> PixelFormat:
    check_decodable(header["TransferSyntaxUID"], name)
    photometric = text_of(header, "PhotometricInterpretation") or "MONOCHROME2"
    if int(_number(header, "SamplesPerPixel", name, default=1.0)) != 1 or not photometric.startswith("MONOCHROME"):
        raise Refusal("not-hu", f"{name}: expected one grey value per pixel, found colour ({photometric:.16})")
    allocated = int(_number(header, "BitsAllocated", name))
    stored = int(_number(header, "BitsStored", name, default=float(allocated)))
    representation = int(_number(header, "PixelRepresentation", name))
    if representation not in (0, 1):
        message = f"{name}: expected PixelRepresentation 0 or 1 (signed), found {representation}"
        raise Refusal("undecodable-pixels", message)
    pixel_format = PixelFormat(
        transfer_syntax=header["TransferSyntaxUID"],
        rows=int(_number(header, "Rows", name)),
        columns=int(_number(header, "Columns", name)),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=int(_number(header, "HighBit", name, default=stored - 1.0)),
        is_signed=representation == 1,
        has_overlay=header.get("HasOverlayBits", False),
    )
    is_size_possible = 2 <= pixel_format.rows <= MAX_EDGE and 2 <= pixel_format.columns <= MAX_EDGE
    if not is_size_possible or not 1 <= stored <= pixel_format.high_bit + 1 <= allocated:
        raise Refusal("undecodable-pixels", f"{name}: impossible pixel layout {pixel_format}")
    return pixel_format


def _read_padding(header: Attributes, pixel_format: PixelFormat) -> tuple[int, int] | None:
    """Return the declared padding as a range of stored values.

    The VR of both attributes should follow PixelRepresentation (US or SS) but is often the other one: 63536 on signed
    pixels is -2000.
    """
    if not isinstance(header.get("PixelPaddingValue"), int):
        return None
    found = (header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit"))
    values, wrap = [value for value in found if isinstance(value, int)], 1 << pixel_format.bits_allocated
    if pixel_format.is_signed:
        values = [value - wrap if value >= wrap // 2 else value for value in values]
    else:
        values = [value + wrap if value < 0 else value for value in values]
    return min(values), max(values)


class _Frame:
    """The attributes of one frame: those of its own functional group, else of the shared one, else of the file."""

    def __init__(self, header: Attributes, index: int, name: str) -> None:
        self.name = name
        self.levels = [header]
        for keyword, at in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", index)):
            groups = header.get(keyword)
            if isinstance(groups, list) and at < len(groups):  # in a damaged header it may be anything
                self.levels.insert(0, groups[at])

    def find(self, sequence: str, keyword: str) -> Any:
        """Return the attribute's value, or None; at the file's level it lies outside any sequence."""
        for level in self.levels:
            group = level.get(sequence) if sequence else None
            value = group[0].get(keyword) if group and isinstance(group, list) else level.get(keyword)
            if value is not None and value != "":
                return value
        return None

    def facts(self) -> dict[str, str]:
        """Return what `describe` does; an Enhanced object says some of it in functional groups."""
        header = self.levels[-1]
        if len(self.levels) > 1:
            header = header | {keyword: self.find(sequence, keyword) for keyword, sequence in FACT_GROUPS.items()}
        return describe(header)

    def doubt(self) -> str:
        """Say what the header has in place of RescaleType HU, slope and intercept; nothing if it has these."""
        rescale_type = str(self.find("PixelValueTransformationSequence", "RescaleType") or "").strip().upper()
        if rescale_type in OTHER_QUANTITIES:
            raise Refusal("not-hu", f"{self.name}: expected RescaleType HU, found {rescale_type}, another quantity")
        if self.levels[-1].get("ModalityLUTSequence"):
            raise Refusal(
                "not-hu", f"{self.name}: expected RescaleSlope and RescaleIntercept, found a ModalityLUTSequence"
            )
        for keyword in ("RescaleSlope", "RescaleIntercept"):
            if self.find("PixelValueTransformationSequence", keyword) is None:
                return f"no {keyword}"
        # some write HU in full ("Houndsfield Unit")
        return "" if re.fullmatch("|HU|HO.*", rescale_type) else f"RescaleType {rescale_type:.16}"

    def is_derived(self) -> bool:
        found = self.find("CTImageFrameTypeSequence", "FrameType") or self.find("", "ImageType")
        return not DERIVED_TYPES.isdisjoint(terms_of(found))

    def rescale(self, keyword: str, default: float) -> float:
        if self.find("PixelValueTransformationSequence", keyword) is None:
            return default
        (number,) = self.numbers("PixelValueTransformationSequence", keyword, 1, "not-hu")
        if keyword == "RescaleSlope" and number <= 0:
            raise Refusal("not-hu", f"{self.name}: expected a RescaleSlope above 0, found {number}")
        return number

    def plane(self, pixel_format: PixelFormat) -> Plane:
        position = self.numbers("PlanePositionSequence", "ImagePositionPatient", 3)
        orientation = self.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
        pixel_mm = self.numbers("PixelMeasuresSequence", "PixelSpacing", 2)
        row, column = orientation[:3], orientation[3:]
        are_units = all(abs(math.hypot(*direction) - 1) <= 1e-2 for direction in (row, column))
        if not are_units or abs(sum(a * b for a, b in zip(row, column, strict=True))) > 1e-3:
            message = f"{self.name}: ImageOrientationPatient is no pair of right-angled directions"
            raise Refusal("mixed-geometry", message)
        widths = [mm * n for mm, n in zip(pixel_mm, (pixel_format.rows, pixel_format.columns), strict=True)]
        if min(pixel_mm) < MIN_PIXEL_MM or max(widths) > MAX_PLANE_MM:
            raise Refusal("mixed-geometry", f"{self.name}: PixelSpacing {pixel_mm} mm is impossible")
        if max(map(abs, position)) > MAX_POSITION_MM:
            raise Refusal("mixed-geometry", f"{self.name}: ImagePositionPatient {position} mm is impossible")
        return Plane(
            shape=(pixel_format.rows, pixel_format.columns),
            pixel_mm=(pixel_mm[0], pixel_mm[1]),
            position=(position[0], position[1], position[2]),
            row=_unit(row),
            column=_unit(column),
            stack=tuple(_as_sortable_text(self.find(*tag)) for tag in FRAME_TAGS),
            order=tuple(
                next(filter(None, (_as_sortable_text(self.find(*tag)) for tag in group)), "") for group in FRAME_ORDERS
            ),
        )

    def numbers(self, sequence: str, keyword: str, count: int, reason: str = "missing-attribute") -> list[float]:
        return _to_numbers(self.find(sequence, keyword), count, keyword, self.name, reason)


def _as_sortable_text(value: Any) -> str:
    """Return a value as text; numbers get leading zeros, so that they sort by value."""
    return _sortable(as_text(value))


@functools.lru_cache(maxsize=1024)
def _sortable(text: str) -> str:
    """Return a text; cached, because the slices of a series have most texts in common."""
    if not text[:1].isdigit() and text[:1] not in ("-", "+", "."):
        return text
    try:
        return f"{float(text):020.6f}"
    except ValueError:
        return text


def _unit(direction: list[float]) -> tuple[float, float, float]:
    length = math.hypot(*direction)
    x, y, z = (v / length for v in direction)
    return x, y, z


def _number(header: Attributes, keyword: str, name: str, default: float | None = None) -> float:
    value = header.get(keyword)
    if default is not None and value in (None, ""):
        return default
    return _to_numbers(value, 1, keyword, name, "missing-attribute")[0]


def _to_numbers(value: Any, count: int, keyword: str, name: str, reason: str) -> list[float]:
    if value is None or value == "":
        raise Refusal(reason, f"{name}: expected {keyword}, found none")
    try:
        numbers = [float(v) for v in ([value] if count == 1 else value)]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count or not all(math.isfinite(v) for v in numbers):
        raise Refusal(reason, f"{name}: expected {count} numbers in {keyword}, found {value!s:.64}")
    return numbers

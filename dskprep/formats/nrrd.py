"""The header of NRRD files (.nrrd, .nhdr): lines of text (teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.formats.header import (
    MAX_SKIP,
    UNITS_MM,
    Compression,
    Header,
    affine_of,
    damaged,
    fields_of,
    numbers,
    required,
    sizes,
    three_axes,
    whole,
)

MARK = b"NRRD"
"""How such files begin."""
TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
"""Types of values, by the names that the format has for each."""
SPACES: dict[str, Sequence[float]] = {
    "left-posterior-superior": (1, 1, 1),
    "LPS": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "RAS": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "LAS": (1, -1, 1),
}
"""Signs that turn the coordinates of a space into LPS."""
ENCODINGS: dict[str, Compression] = {"raw": "", "gzip": "deflate", "gz": "deflate", "bzip2": "bz2", "bz2": "bz2"}
UNIT_NAMES = {"meter": "m", "meters": "m", "millimeter": "mm", "millimeters": "mm", "micron": "um", "µm": "um"}
END = re.compile(rb"\r?\n\r?\n")
"""The empty line after the header; a header of its own may end without it."""
SEGMENT_NAME = re.compile(r"(Segment\d{1,6})_Name")
"""The key of a segment's name in a segmentation of 3D Slicer."""
WHOLE = re.compile(r"[0-9]{1,9}")
"""A value of a mask, in text."""
SAME_LENGTH = 1e-3
"""Two lengths are one if they differ by less than this part, as headers round them."""
COLOURS = ("rgb", "rgba", "hsv", "xyz", "2-color", "3-color", "4-color")
"""Kinds of an axis that holds the parts of a colour."""
LAYERED = (["list"], ["vector"])
"""Kinds of the axis of layers, as 3D Slicer and SimpleITK write it."""


def segment_names(head: bytes) -> dict[tuple[int, int], str]:
    """Return the names that 3D Slicer gives to the layers and values of a segmentation (.seg.nrrd), in its order.

    They stand in lines such as `Segment0_Name:=liver`, `Segment0_LabelValue:=1` and, where segments may overlap,
    `Segment0_Layer:=0` (Slicer user guide, file formats). Other files have none.
    """
    pairs = dict(line.split(":=", 1) for line in _lines(head) if ":=" in line)
    names = {}
    for key, name in pairs.items():
        if segment := SEGMENT_NAME.fullmatch(key):
            value = pairs.get(f"{segment[1]}_LabelValue", "").strip()
            layer = pairs.get(f"{segment[1]}_Layer", "0").strip()
            if WHOLE.fullmatch(value) and WHOLE.fullmatch(layer) and name.strip():
                names[int(layer), int(value)] = name.strip()
    return names


def _lines(head: bytes) -> list[str]:
    end = END.search(head)
    return head[: end.start() if end else len(head)].decode("utf-8", "replace").splitlines()


def read(head: bytes, where: str, *, is_mask: bool = False) -> Header:
    """Read the header in the first bytes of a file. A mask may have several layers."""
    end = END.search(head)
    lines = _lines(head)
    pairs = (line.partition(":") for line in lines[1:] if not line.startswith("#") and ":=" not in line)
    fields = fields_of(
        ((name.strip().lower().replace(" ", ""), " ".join(value.split())) for name, _, value in pairs), where
    )
    data_file = fields.get("datafile", "")
    if end is None and not data_file:
        raise Refusal("truncated", f"{where}: expected an empty line after the header, found none")
    if data_file.upper().startswith("LIST") or "%" in data_file:
        raise damaged(where, f"expected one file of voxels, found data file {data_file[:80]!r}")
    n_layers, lengths, directions = _axes(fields, where, is_mask=is_mask and bool(segment_names(head)))
    encoding = required(fields, ["encoding"], where).lower()
    if encoding not in ENCODINGS:
        raise Refusal(
            "undecodable-pixels", f"{where}: expected the encoding raw, gzip or bzip2, found {encoding[:40]!r}"
        )
    if fields.get("lineskip", "0") != "0":
        raise damaged(where, f"expected voxels without lines before them, found line skip {fields['lineskip'][:40]!r}")
    skip = whole(fields.get("byteskip", "0"), "byte skip", where)
    if not -1 <= skip <= MAX_SKIP or (skip == -1 and ENCODINGS[encoding]):
        raise damaged(where, f"expected a number of bytes in byte skip, found {skip}")
    start = end.end() if end and not data_file else 0
    is_raw = not ENCODINGS[encoding]
    return Header(
        where,
        three_axes(lengths, where),
        _affine(fields, directions, where),
        _dtype(fields, where),
        start=None if skip == -1 else start + skip if is_raw else start,
        skip=0 if is_raw else skip,
        compression=ENCODINGS[encoding],
        data_file=data_file,
        layers=n_layers,
        head_bytes=start,
    )


def _axes(fields: dict[str, str], where: str, *, is_mask: bool) -> tuple[int, list[int], list[str]]:
    """Return how many layers there are, and the sizes and the directions of the axes in space.

    The layers of a mask are its first axis. Any other axis may have one voxel only.
    """
    n = whole(required(fields, ["dimension"], where), "dimension", where)
    if not 1 <= n <= 16:
        raise damaged(where, f"expected three axes, found dimension {n}")
    lengths = sizes(required(fields, ["sizes"], where), n, "sizes", where)
    directions = re.findall(r"none|\([^)]*\)", required(fields, ["spacedirections"], where))
    if len(directions) != n:
        raise damaged(where, f"expected {n} space directions, found {len(directions)}")
    kinds = fields.get("kinds", "").lower().split()
    if any(kind.startswith(COLOURS) for kind in kinds):
        raise Refusal("not-hu", f"{where}: expected one grey value per voxel, found colour")
    spatial = [k for k, direction in enumerate(directions) if direction != "none"]
    n_layers = lengths[0] if is_mask and directions[0] == "none" and kinds[:1] in LAYERED else 1
    if len(spatial) != 3 or math.prod(lengths[k] for k in range(n) if k not in spatial) != n_layers:
        raise Refusal("not-3d", f"{where}: expected three axes, found {' x '.join(map(str, lengths))} voxels")
    if "spacings" in fields:
        _check_spacings(numbers(fields["spacings"], n, "spacings", where), directions, where)
    return n_layers, [lengths[k] for k in spatial], [directions[k] for k in spatial]


def _check_spacings(spacings: Sequence[float], directions: Sequence[str], where: str) -> None:
    """Refuse distances that are not the lengths of the directions; NaN says that there is none."""
    for mm, text in zip(spacings, directions, strict=True):
        length = math.nan if text == "none" else math.hypot(*_numbers_of(text, "space directions", where))
        if abs(mm - length) > SAME_LENGTH * length:
            raise damaged(where, f"expected spacings as long as the space directions, found {mm:g} and {length:g}")


def _numbers_of(text: str, name: str, where: str) -> list[float]:
    return numbers(text.strip("() ").replace(",", " "), 3, name, where)


def _affine(fields: dict[str, str], directions: list[str], where: str) -> NDArray[np.float64]:
    space = required(fields, ["space"], where)
    signs = next((signs for name, signs in SPACES.items() if name.lower() == space.lower()), None)
    if signs is None:
        raise Refusal("missing-attribute", f"{where}: expected a space of the patient's axes, found {space[:40]!r}")
    scale = []
    for name in re.findall(r'"([^"]*)"', fields.get("spaceunits", '"mm" "mm" "mm"')):
        unit = UNIT_NAMES.get(name.strip().lower(), name.strip().lower() or "mm")
        if unit not in UNITS_MM:
            raise Refusal("bad-affine", f"{where}: expected m, mm or um in space units, found {name[:40]!r}")
        scale.append(UNITS_MM[unit])
    if len(scale) != 3:
        raise damaged(where, f"expected three space units, found {len(scale)}")

    def vector(text: str, name: str) -> list[float]:
        values = _numbers_of(text, name, where)
        return [float(v * sign * mm) for v, sign, mm in zip(values, signs, scale, strict=True)]

    steps = np.column_stack([vector(text, "space directions") for text in directions])
    return affine_of(steps, vector(required(fields, ["spaceorigin"], where), "space origin"))


def _dtype(fields: dict[str, str], where: str) -> np.dtype[np.generic]:
    name = " ".join(required(fields, ["type"], where).lower().split())
    code = next((code for code, names in TYPES.items() if name in names.split(", ")), None)
    if code is None:
        raise Refusal("undecodable-pixels", f"{where}: expected whole numbers or floats, found type {name[:40]!r}")
    endian = fields.get("endian", "little" if code[1] == "1" else "").lower()
    if endian not in ("little", "big"):
        raise Refusal("missing-attribute", f"{where}: expected little or big in endian, found {endian[:40]!r}")
    return np.dtype(("<" if endian == "little" else ">") + code)

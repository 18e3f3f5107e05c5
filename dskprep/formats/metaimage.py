"""The header of MetaImage files (.mha, .mhd): lines of text."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.formats.header import (
    MAX_SKIP,
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

MARKS = (b"ObjectType", b"NDims", b"Comment")
"""How such files begin."""
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""Types of values; a long has four bytes (metaTypes.h)."""
LAST = re.compile(rb"(?m)^[ \t]*ElementDataFile[ \t]*=([^\r\n]*)(\r?\n|\Z)")
"""The last line of a header."""


def read(head: bytes, where: str) -> Header:
    """Read the header in the first bytes of a file."""
    last = LAST.search(head)
    if last is None:
        raise damaged(where, "expected a line ElementDataFile at the end of the header, found none")
    lines = (line.partition("=") for line in head[: last.start()].decode("latin-1").splitlines())
    pairs = ((name.strip(), " ".join(value.split())) for name, _, value in lines)
    fields = fields_of((pair for pair in pairs if pair[0] != "Comment"), where)
    n = whole(required(fields, ["NDims"], where), "NDims", where)
    if not 1 <= n <= 10:
        raise damaged(where, f"expected three axes, found NDims {n}")
    shape = three_axes(sizes(required(fields, ["DimSize"], where), n, "DimSize", where), where)
    if fields.get("ElementNumberOfChannels", "1") != "1":
        found = fields["ElementNumberOfChannels"][:16]
        raise Refusal("not-hu", f"{where}: expected one grey value per voxel, found {found} channels, such as colour")
    if not _is_true(fields.get("BinaryData", "True")):
        raise Refusal("undecodable-pixels", f"{where}: expected binary voxels, found text (BinaryData = False)")
    _refuse_function(fields, where)
    data_file = last[1].decode("latin-1").strip()
    if not data_file or data_file.upper().startswith("LIST") or "%" in data_file:
        raise damaged(where, f"expected one file of voxels, found ElementDataFile {data_file[:80]!r}")
    is_local = data_file.upper() == "LOCAL"
    is_compressed = _is_true(fields.get("CompressedData", "False"))
    head_bytes = last.end() if is_local else 0
    return Header(
        where,
        shape,
        _affine(fields, n, where),
        _dtype(fields, where),
        start=_start(fields, head_bytes, where, is_compressed=is_compressed),
        compression="deflate" if is_compressed else "",
        data_file="" if is_local else data_file,
        head_bytes=head_bytes,
    )


def _start(fields: dict[str, str], head_bytes: int, where: str, *, is_compressed: bool) -> int | None:
    """Return at which byte of their file the voxels begin, or None if they are its last bytes, as MetaIO has it."""
    start = whole(fields.get("HeaderSize", "0"), "HeaderSize", where)
    if start == -1 and is_compressed:
        raise damaged(where, "expected a HeaderSize of 0 or more before compressed voxels, found -1")
    if start > 0 and head_bytes and not head_bytes <= start <= MAX_SKIP:
        raise damaged(where, f"expected {head_bytes} to {MAX_SKIP} in HeaderSize, after this header, found {start}")
    return None if start == -1 else start if start > 0 else head_bytes


def _is_true(text: str) -> bool:
    return text.lower() in ("true", "1")


def _refuse_function(fields: dict[str, str], where: str) -> None:
    """Refuse values that a header scales: ITK returns them as they are stored, MetaIO can scale them."""
    for name, plain in (("ElementToIntensityFunctionSlope", 1), ("ElementToIntensityFunctionOffset", 0)):
        if name in fields and numbers(fields[name], 1, name, where) != [plain]:
            raise damaged(where, f"expected {plain} in {name}, found {fields[name][:80]!r}; write the values as HU")


def _dtype(fields: dict[str, str], where: str) -> np.dtype[np.generic]:
    name = required(fields, ["ElementType"], where)
    if name not in TYPES:
        raise Refusal("undecodable-pixels", f"{where}: expected whole numbers or floats, found {name[:40]!r}")
    orders = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    is_big = {_is_true(fields[order]) for order in orders if order in fields}
    if len(is_big) > 1:
        found = " and ".join(repr(fields[order][:40]) for order in orders)
        raise damaged(where, f"expected one byte order in {orders[0]} and {orders[1]}, found {found}")
    return np.dtype((">" if True in is_big else "<") + TYPES[name])


def _affine(fields: dict[str, str], n: int, where: str) -> NDArray[np.float64]:
    def find(names: list[str], count: int) -> NDArray[np.float64]:
        required(fields, names, where)
        found = [(name, numbers(fields[name], count, name, where)) for name in names if fields.get(name)]
        fields_of(((names[0], str(values)) for name, values in found if name != "ElementSize"), where)
        return np.array(found[0][1])

    unit = fields.get("DistanceUnits", "mm")
    if unit.lower() not in ("mm", "?"):  # ITK takes all for mm
        raise Refusal("bad-affine", f"{where}: expected mm in DistanceUnits, found {unit[:40]!r}")
    spacing = find(["ElementSpacing", "ElementSize"], n)[:3]
    if (spacing < 0).any():  # as a flip or as a slip it would lie elsewhere
        raise Refusal("bad-affine", f"{where}: expected distances in ElementSpacing, found {spacing.tolist()}")
    origin = find(["Offset", "Position", "Origin"], n)[:3]
    directions = find(["TransformMatrix", "Rotation", "Orientation"], n * n).reshape(n, n)[:3, :3]
    with np.errstate(all="ignore"):  # whether the numbers make sense is judged later
        return affine_of(directions.T * spacing, origin)  # a row for each axis of the file

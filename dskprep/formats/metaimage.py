"""The header of MetaImage files (.mha, .mhd): lines of text."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.formats.header import Header, affine_of, damaged, numbers, required, sizes, three_axes, whole

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
    lines = head[: last.start()].decode("latin-1").splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
    n = whole(required(fields, ["NDims"], where), "NDims", where)
    if not 1 <= n <= 10:
        raise damaged(where, f"expected three axes, found NDims {n}")
    shape = three_axes(sizes(required(fields, ["DimSize"], where), n, "DimSize", where), where)
    if fields.get("ElementNumberOfChannels", "1") != "1":
        found = fields["ElementNumberOfChannels"][:16]
        raise Refusal("not-hu", f"{where}: expected one grey value per voxel, found {found} channels, such as colour")
    if fields.get("BinaryData", "True").lower() not in ("true", "1"):
        raise Refusal("undecodable-pixels", f"{where}: expected binary voxels, found text (BinaryData = False)")
    data_file = last[1].decode("latin-1").strip()
    if not data_file or data_file.upper().startswith("LIST") or "%" in data_file:
        raise damaged(where, f"expected one file of voxels, found ElementDataFile {data_file[:80]!r}")
    is_local = data_file.upper() == "LOCAL"
    before = whole(fields.get("HeaderSize", "0"), "HeaderSize", where)
    is_compressed = fields.get("CompressedData", "False").lower() in ("true", "1")
    if before == -1 and is_compressed:
        raise damaged(where, "expected a HeaderSize of 0 or more before compressed voxels, found -1")
    return Header(
        where,
        shape,
        _affine(fields, n, where),
        _dtype(fields, where),
        start=last.end() if is_local else None if before == -1 else max(before, 0),
        compression="deflate" if is_compressed else "",
        data_file="" if is_local else data_file,
    )


def _dtype(fields: dict[str, str], where: str) -> np.dtype[np.generic]:
    name = required(fields, ["ElementType"], where)
    if name not in TYPES:
        raise Refusal("undecodable-pixels", f"{where}: expected whole numbers or floats, found {name[:40]!r}")
    order = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    return np.dtype((">" if order.lower() in ("true", "1") else "<") + TYPES[name])


def _affine(fields: dict[str, str], n: int, where: str) -> NDArray[np.float64]:
    def find(names: list[str], count: int) -> NDArray[np.float64]:
        return np.array(numbers(required(fields, names, where), count, names[0], where))

    spacing = find(["ElementSpacing", "ElementSize"], n)[:3]
    origin = find(["Offset", "Position", "Origin"], n)[:3]
    directions = find(["TransformMatrix", "Rotation", "Orientation"], n * n).reshape(n, n)[:3, :3]
    with np.errstate(all="ignore"):  # whether the numbers make sense is judged later
        return affine_of(directions.T * spacing, origin)  # a row for each axis of the file

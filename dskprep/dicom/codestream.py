"""What the markers of JPEG, JPEG-LS and JPEG 2000 say of an image, before a codec decodes it."""

from __future__ import annotations

import re
import struct

JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers that begin a frame header (ITU-T T.81 table B.1); 0xF7 is that of JPEG-LS."""
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
"""Second bytes of the markers before the coded values and at the end (ITU-T T.81 table B.1)."""
JPEG_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
"""A marker among coded values, but for those that restart the decoder (0xD0 to 0xD7)."""

JPEG_2000_TILE, JPEG_2000_END = b"\xff\x90\x00\x0a", b"\xff\xd9"
"""The marker before a tile-part, with the length of its segment, and that at the end (ISO 15444-1 A.4.2, A.4.4)."""
TILE_HEAD_BYTES = 12
"""Bytes of the marker segment before a tile-part."""


def jpeg_size(data: bytes) -> tuple[int, int, int]:
    """Read rows, columns and samples from the frame header of JPEG or JPEG-LS (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    at = 2
    while True:
        mark, code, length = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF:
            raise struct.error("no marker")
        if code == 0xFF:  # a fill byte
            at += 1
        elif code in JPEG_FRAMES:
            _, rows, columns, samples = struct.unpack_from(">BHHB", data, at + 4)
            return rows, columns, samples
        else:
            at += 2 + length


def reaches_end(data: bytes) -> bool:
    """Tell whether JPEG or JPEG-LS reaches its end marker, whatever pads it after that (ITU-T T.81 B.1.1, T.87 A)."""
    at = 2
    while at + 2 <= len(data):
        if data[at + 1] == JPEG_END:
            return True
        if data[at] != 0xFF or at + 4 > len(data):
            break
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        is_scan = data[at + 1] == JPEG_SCAN
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if is_scan:  # coded values follow, in which 0xFF stands before a byte that is no marker's
            found = JPEG_MARKER.search(data, at)
            at = found.start() if found else len(data)
    return bytes((0xFF, JPEG_END)) in data[at:]  # damaged before its end: for the decoder to say


def jpeg_2000_size(data: bytes) -> tuple[int, int, int]:
    """Read rows, columns and samples from the SIZ segment of JPEG 2000, in boxes or bare (ISO 15444-1 A.5.1)."""
    at = 0
    while data[at : at + 4] != b"\xff\x4f\xff\x51":
        length, kind = struct.unpack_from(">I4s", data, at)
        if length == 1:
            raise struct.error("a box of more than 4 GiB")
        at += 8 if kind == b"jp2c" else max(length, 8)
    x, y, x0, y0 = struct.unpack_from(">4I", data, at + 8)
    (samples,) = struct.unpack_from(">H", data, at + 40)
    return y - y0, x - x0, samples


def has_all_tiles(data: bytes) -> bool:
    """Tell whether the tile-parts of JPEG 2000 follow one another up to the end marker (ISO 15444-1 A.4.2, A.4.4).

    The end marker may be lacking after the last of them; one whose length is 0 goes on to the marker. What cannot be
    read is for the decoder to say.
    """
    at = data.find(JPEG_2000_TILE)
    while at >= 0 and data[at : at + len(JPEG_2000_TILE)] == JPEG_2000_TILE and at + TILE_HEAD_BYTES <= len(data):
        (length,) = struct.unpack_from(">I", data, at + len(JPEG_2000_TILE) + 2)
        if length == 0:
            return JPEG_2000_END in data[at:]
        at += length
    return at < 0 or at == len(data) or data[at : at + 2] == JPEG_2000_END

"""What the markers of JPEG, JPEG-LS and JPEG 2000 say of an image, before a codec decodes it."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import huffman

JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers that begin a frame header (ITU-T T.81 table B.1); 0xF7 is that of JPEG-LS."""
JPEG_LOSSLESS, JPEG_TABLES, JPEG_INTERVAL = 0xC3, 0xC4, 0xDD
"""Second bytes of the markers of a lossless frame with Huffman codes, their tables, and restarts."""
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
"""Second bytes of the markers before the coded values and at the end (ITU-T T.81 table B.1)."""
SPARE_BITS = 16
"""Fewer bits than this may follow the last value of a lossless JPEG: an encoder fills its last byte. In 907 real slices
there were at most 7."""
JPEG_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
"""A marker among coded values, but for those that restart the decoder (0xD0 to 0xD7)."""

JPEG_2000_TILE, JPEG_2000_END = b"\xff\x90\x00\x0a", b"\xff\xd9"
"""The marker before a tile-part, with the length of its segment, and that at the end (ISO 15444-1 A.4.2, A.4.4)."""
TILE_HEAD_BYTES = 12
"""Bytes of the marker segment before a tile-part."""


def jpeg_bits(data: bytes) -> int:
    """Read the bits of a value from the frame header of JPEG or JPEG-LS."""
    return _jpeg_frame(data)[0]


def jpeg_size(data: bytes) -> tuple[int, int, int]:
    """Read rows, columns and samples from the frame header of JPEG or JPEG-LS."""
    _, rows, columns, samples = _jpeg_frame(data)
    return rows, columns, samples


def _jpeg_frame(data: bytes) -> tuple[int, int, int, int]:
    """Read bits, rows, columns and samples (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    at = 2
    while True:
        mark, code, length = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF:
            raise struct.error("no marker")
        if code == 0xFF:  # a fill byte
            at += 1
        elif code in JPEG_FRAMES:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", data, at + 4)
            return bits, rows, columns, samples
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


class _LosslessScan(NamedTuple):
    """The Huffman codes of one component of lossless JPEG: how many bits each takes, after how many values decoders
    restart (0: never), and the byte at which the codes begin."""

    bits_of: NDArray[np.uint8]
    interval: int
    start: int


def _lossless_scan(data: bytes) -> _LosslessScan | None:
    """Return the first scan of lossless JPEG with Huffman codes; None for other JPEG. May raise IndexError."""
    tables: dict[int, NDArray[np.uint8]] = {}
    at, interval, is_lossless = 2, 0, False
    while at + 4 <= len(data) and data[at] == 0xFF:
        code, stop = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if code == 0xFF:  # a fill byte
            at += 1
            continue
        if code == JPEG_SCAN:
            return _LosslessScan(tables[data[at + 6] >> 4], interval, stop) if is_lossless else None
        if code == JPEG_TABLES:
            at += 4
            while at + 17 <= stop:
                counts = np.frombuffer(data, np.uint8, 16, at + 1)
                n = int(counts.sum())
                tables[data[at]] = huffman.bits_of_values(counts, np.frombuffer(data, np.uint8, n, at + 17))
                at += 17 + n
        elif code == JPEG_INTERVAL:
            interval = int.from_bytes(data[at + 4 : at + 6], "big")
        is_lossless |= code == JPEG_LOSSLESS
        at = stop
    return None


def has_all_values(data: bytes, n_values: int) -> bool:
    """Tell whether lossless JPEG of one component has codes for so many values, and no more (ITU-T T.81 annex H).

    libjpeg decodes what is damaged without an error, and codes that were lost or added move all that follow. JPEG of
    other kinds, and what cannot be read, is for the decoder to say.
    """
    try:
        scan = _lossless_scan(data)
    except (LookupError, ValueError):
        return True
    if scan is None:
        return True
    end = JPEG_MARKER.search(data, scan.start)
    coded = data[scan.start : end.start() if end else None].rstrip(b"\xff")  # fill bytes (T.81 B.1.1.2)
    n_left = huffman.count_left(np.frombuffer(coded, np.uint8), scan.bits_of, n_values, scan.interval)
    return 0 <= n_left < SPARE_BITS


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

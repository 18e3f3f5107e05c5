"""What a DICOM file would become in memory: its elements and items are counted before pydicom makes objects of them.

An empty item has 8 bytes in a file, and 1400 in memory. A file of the deflated transfer syntax is inflated first.
"""

from __future__ import annotations

import struct
import zlib

from dskprep.dicom.elements import EXPLICIT, IMPLICIT, ITEM, LONG_VRS, SEQUENCE_END, SHORT_VRS, UNDEFINED_LENGTH

MAX_INFLATED_BYTES = 1 << 28
"""Most bytes that one deflated file may hold."""
MAX_INFLATION = 1032
"""Largest ratio of inflated to deflated bytes (a property of the format)."""
PART_BYTES = 1000
"""Memory of an element or item that pydicom has read: 850 bytes in a SEG of 30,000 frames."""
LEAST_BYTES = 8
"""Fewest bytes of an element or item in a file."""
BIG_ENDIAN = b"1.2.840.10008.1.2.2"
"""Transfer syntax: explicit VR, big endian (retired)."""
DEFLATED = b"1.2.840.10008.1.2.1.99"
"""Transfer syntax: explicit VR, little endian, all after the File Meta Information deflated."""
META_BYTES = 4096
"""The File Meta Information, with the transfer syntax, lies within this many bytes."""
PIXEL_DATA = 0x7FE0_0010

SYNTAX_ELEMENT = b"\x02\x00\x10\x00UI"


def count_parts(content: bytes, most: int) -> int:
    """Return how many elements and items a file has at all depths; no more than `most` and one are counted.

    Values that begin as an item are taken for sequences, as pydicom does. A length that leads out of the file ends the
    count, as it ends what pydicom reads.
    """
    at, is_implicit, order = _begin(content)
    head, short, long_ = (struct.Struct(order + form).unpack_from for form in ("HHL", "H", "L"))
    item_mark = struct.pack(order + "HH", ITEM >> 16, ITEM & 0xFFFF)
    n_parts, last = 0, len(content) - LEAST_BYTES
    while at <= last and n_parts <= most:
        n_parts += 1
        group, element, length = head(content, at)
        at += 8
        if group == ITEM >> 16:  # an item, or the end of one: what it holds comes next
            continue
        if not (group or element or length):  # zeros: a file that was not written to its end
            break
        if not is_implicit and (vr := content[at - 4 : at - 2]) in LONG_VRS and at + 4 <= len(content):
            (length,), at = long_(content, at), at + 4
        elif not is_implicit and (vr in SHORT_VRS or vr.isalpha()):
            (length,) = short(content, at - 2)
        is_pixels = group << 16 | element == PIXEL_DATA
        if is_pixels and length == UNDEFINED_LENGTH:
            at = _after_fragments(content, at, order)
        elif length != UNDEFINED_LENGTH and (is_pixels or content[at : at + 4] != item_mark):
            at += length
    return n_parts


def inflated(content: bytes) -> bytes:
    """Return a file of the deflated transfer syntax as one of explicit VR, little endian; any other as it is.

    Raises ValueError if it is damaged, or holds more than MAX_INFLATED_BYTES.
    """
    if DEFLATED not in content[:META_BYTES] or content[128:132] != b"DICM":
        return content
    start = _begin(content)[0]
    meta = content[:start].replace(DEFLATED, EXPLICIT.ljust(len(DEFLATED), b"\0"), 1)
    try:
        if _inflates_beyond(content[start:], MAX_INFLATED_BYTES):
            raise ValueError(f"its {len(content)} bytes inflate to more than {MAX_INFLATED_BYTES >> 20} MiB")
        return meta + zlib.decompress(memoryview(content)[start:], -zlib.MAX_WBITS)
    except zlib.error as error:
        raise ValueError(f"it cannot be inflated: {error}") from error


def _inflates_beyond(deflated: bytes, limit: int) -> bool:
    """Tell whether bytes inflate to more, in the memory of one piece."""
    machine, n_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while len(deflated) * MAX_INFLATION > limit - n_bytes and deflated and n_bytes <= limit:
        n_bytes += len(machine.decompress(deflated, 1 << 20))
        deflated = machine.unconsumed_tail
    return n_bytes > limit


def _begin(content: bytes) -> tuple[int, bool, str]:
    """Return where the elements begin, whether their VR is implicit, and their byte order, after the File Meta."""
    if content[128:132] != b"DICM":
        return 0, content[4:6] not in SHORT_VRS | LONG_VRS, "<"
    found = content.find(SYNTAX_ELEMENT, 132, META_BYTES)
    syntax = EXPLICIT
    if found >= 0:
        (n_bytes,) = struct.unpack_from("<H", content, found + 6)
        syntax = content[found + 8 : found + 8 + n_bytes].rstrip(b"\0 ")
    at = 132
    while content[at : at + 2] == b"\2\0" and at + 12 <= len(content):  # always in explicit VR, little endian
        is_long = content[at + 4 : at + 6] in LONG_VRS
        (n_bytes,) = struct.unpack_from("<L" if is_long else "<H", content, at + (8 if is_long else 6))
        at += (12 if is_long else 8) + n_bytes
    return at, syntax == IMPLICIT, ">" if syntax == BIG_ENDIAN else "<"


def _after_fragments(content: bytes, at: int, order: str) -> int:
    """Return where the items of encapsulated pixel data end that begin at `at`."""
    head = struct.Struct(order + "HHL").unpack_from
    while at + 8 <= len(content):
        group, element, length = head(content, at)
        at += 8
        if group << 16 | element == SEQUENCE_END or length == UNDEFINED_LENGTH:
            break
        at += length
    return at

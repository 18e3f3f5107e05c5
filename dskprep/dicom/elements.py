"""The elements of a plain DICOM file, found fast: where a file is anything but plain, nothing is found."""

from __future__ import annotations

import struct
from collections.abc import Container
from typing import NamedTuple

IMPLICIT = b"1.2.840.10008.1.2"
EXPLICIT = b"1.2.840.10008.1.2.1"
"""The two little-endian transfer syntaxes without compression."""

TRANSFER_SYNTAX = 0x0002_0010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
UNDEFINED_LENGTH = 0xFFFFFFFF

SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations with a length of 2 and of 4 bytes (PS3.5 section 7.1.2)."""

MAX_DEPTH = 16
"""Of sequences within one another."""

_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHL")
_LONG = struct.Struct("<L")


class Element(NamedTuple):
    """The VR, if the file tells it, and where in the file the value lies."""

    vr: str | None
    start: int
    stop: int


class _NotPlain(Exception):
    pass


def find_elements(content: bytes, wanted: Container[int]) -> tuple[bytes, dict[int, Element]] | None:
    """The transfer syntax of a file, and its `wanted` elements by tag (group and element in one number).

    None unless the file follows PS3.5 and PS3.10 to the letter from its first byte to its last: marked,
    not compressed, little endian, tags in their order, each length within the file, and no wanted sequence.
    """
    if content[128:132] != b"DICM":
        return None
    try:
        meta, start = _walk(content, 132, (TRANSFER_SYNTAX,), is_implicit=False, is_meta=True)
        if TRANSFER_SYNTAX not in meta:
            return None
        _, first, stop = meta[TRANSFER_SYNTAX]
        syntax = content[first:stop].rstrip(b"\0 ")
        if syntax not in (IMPLICIT, EXPLICIT):
            return None
        if syntax == IMPLICIT and content[start + 4 : start + 6] in SHORT_VRS | LONG_VRS:
            return None  # what it says is not what it does
        found, _ = _walk(content, start, wanted, is_implicit=syntax == IMPLICIT)
    except (_NotPlain, struct.error):
        return None
    return syntax, found


def _walk(
    content: bytes, at: int, wanted: Container[int], *, is_implicit: bool, is_meta: bool = False
) -> tuple[dict[int, Element], int]:
    """The elements from `at` on to the end of the file, or of the group 0002 for `is_meta`; and where they end."""
    found: dict[int, Element] = {}
    last, end = 0, len(content)
    while at < end:
        if is_meta and content[at : at + 2] != b"\2\0":
            break
        tag, vr, length, value = _head(content, at, is_implicit)
        if tag <= last or tag >> 16 == 0xFFFE:
            raise _NotPlain
        last = tag
        if length == UNDEFINED_LENGTH:
            if tag in wanted or vr not in (None, b"SQ"):
                raise _NotPlain
            at = _after_items(content, value, is_implicit, 1)
            continue
        at = value + length
        if at > end:
            raise _NotPlain
        if tag in wanted:
            if vr in (b"SQ", b"UN"):
                raise _NotPlain
            found[tag] = Element(None if vr is None else vr.decode(), value, at)
    return found, at


def _head(content: bytes, at: int, is_implicit: bool) -> tuple[int, bytes | None, int, int]:
    """Tag, VR, length and place of the value of the element at `at`."""
    if is_implicit:
        group, element, length = _IMPLICIT.unpack_from(content, at)
        return group << 16 | element, None, length, at + 8
    group, element, vr, length = _EXPLICIT.unpack_from(content, at)
    if vr in SHORT_VRS:
        return group << 16 | element, vr, length, at + 8
    if vr not in LONG_VRS:
        raise _NotPlain
    return group << 16 | element, vr, _LONG.unpack_from(content, at + 8)[0], at + 12


def _after_items(content: bytes, at: int, is_implicit: bool, depth: int) -> int:
    """Where a sequence of undefined length ends whose first item is at `at`."""
    if depth > MAX_DEPTH:
        raise _NotPlain
    while True:
        group, element, length = _IMPLICIT.unpack_from(content, at)
        tag, at = group << 16 | element, at + 8
        if tag == SEQUENCE_END and length == 0:
            return at
        if tag != ITEM:
            raise _NotPlain
        at = at + length if length != UNDEFINED_LENGTH else _after_item(content, at, is_implicit, depth)


def _after_item(content: bytes, at: int, is_implicit: bool, depth: int) -> int:
    """Where an item of undefined length ends whose first element is at `at`."""
    while content[at : at + 8] != b"\xfe\xff\x0d\xe0\0\0\0\0":
        tag, vr, length, value = _head(content, at, is_implicit)
        if tag >> 16 == 0xFFFE:
            raise _NotPlain
        if length != UNDEFINED_LENGTH:
            at = value + length
        elif vr in (None, b"SQ"):
            at = _after_items(content, value, is_implicit, depth + 1)
        else:
            raise _NotPlain
    return at + 8

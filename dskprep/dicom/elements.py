"""Find the elements of a plain DICOM file, faster than pydicom; in any other file, find nothing.

pydicom's reader makes Python objects of every element before the pixels. This walk reads only tags and lengths, and
`header` lets pydicom convert the few wanted values. CPU seconds for the headers of one patient, medians of 7
(`python benchmarks/headers.py FOLDER ...`):

| series | files | pydicom only | with this walk | saved, of the whole patient |
|---|---:|---:|---:|---:|
| lidc_0001 | 133 | 0.090 | 0.028 | 7 % |
| lidc_0314 | 275 | 0.157 | 0.053 | 11 % |
| crlm_1004 | 42 | 0.040 | 0.012 | 8 % |
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container
from typing import NamedTuple

IMPLICIT = b"1.2.840.10008.1.2"
"""Transfer syntax: implicit VR, little endian, not compressed."""
EXPLICIT = b"1.2.840.10008.1.2.1"
"""Transfer syntax: explicit VR, little endian, not compressed."""

TRANSFER_SYNTAX = 0x0002_0010
ITEM, SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E0DD
META_GROUP, ITEM_GROUP = b"\2\0", b"\xfe\xff"
ITEM_END = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
UNDEFINED_LENGTH = 0xFFFFFFFF

SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations with a length of 2 bytes (PS3.5 section 7.1.2)."""
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations with a length of 4 bytes (PS3.5 section 7.1.2)."""
SEQUENCE_VRS = ("SQ", "UN")
"""Value representations of what may be a sequence."""

_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHL")
_LONG = struct.Struct("<L")


class Element(NamedTuple):
    """The VR, unless it is implicit, and where in the file the value begins and ends.

    One of undefined length is a sequence, SQ, and its value ends behind its delimiter.
    """

    vr: str | None
    start: int
    stop: int


class NotPlain(Exception):
    """A file does not follow PS3.5 to the letter, or has what this walk does not look at."""


def find_elements(content: bytes, wanted: Container[int]) -> tuple[bytes, dict[int, Element]] | None:
    """Return a file's transfer syntax and its `wanted` elements by tag (group and element in one number).

    Returns None unless the file follows PS3.5 and PS3.10 to the letter from its first byte to its last: marked,
    little endian, not compressed, tags in ascending order, every length within the file, no wanted sequence.
    """
    try:
        syntax, start = read_meta(content)
        found, _ = walk(content, start, wanted, is_implicit=syntax == IMPLICIT)
    except (NotPlain, struct.error, RecursionError):
        return None
    return None if any(element.vr in SEQUENCE_VRS for element in found.values()) else (syntax, found)


def read_meta(content: bytes) -> tuple[bytes, int]:
    """Return the transfer syntax of a plain file, and where its elements begin after the File Meta Information.

    Raises NotPlain or struct.error if it is no plain file.
    """
    if content[128:132] != b"DICM":
        raise NotPlain
    meta, start = walk(content, 132, (TRANSFER_SYNTAX,), is_implicit=False, is_past=META_GROUP.__ne__)
    _, first, stop = meta.get(TRANSFER_SYNTAX, (None, 0, 0))
    syntax = content[first:stop].rstrip(b"\0 ")
    if syntax not in (IMPLICIT, EXPLICIT):
        raise NotPlain
    if syntax == IMPLICIT and content[start + 4 : start + 6] in SHORT_VRS | LONG_VRS:
        raise NotPlain  # the elements are explicit, against what the syntax says
    return syntax, start


def walk(
    content: bytes,
    at: int,
    wanted: Container[int],
    *,
    is_implicit: bool,
    is_past: Callable[[bytes], bool] | None = None,
    end: int | None = None,
) -> tuple[dict[int, Element], int]:
    """Find elements from `at` to `end`, or to a group of which `is_past` is true; and where that is.

    `end` is that of the file if it is not given. Raises NotPlain, or struct.error where the file ends within an
    element.
    """
    found: dict[int, Element] = {}
    last, end = 0, len(content) if end is None else end
    while at < end and not (is_past and is_past(content[at : at + 2])):
        tag, vr, length, value = read_head(content, at, is_implicit)
        if tag <= last or tag >> 16 == 0xFFFE:
            raise NotPlain
        last = tag
        if length == UNDEFINED_LENGTH:
            if vr not in (None, b"SQ"):
                raise NotPlain
            vr, at = b"SQ", _skip_sequence(content, value, is_implicit)
        else:
            at = value + length
        if at > end:
            raise NotPlain
        if tag in wanted:
            found[tag] = Element(None if vr is None else vr.decode(), value, at)
    return found, at


def read_head(content: bytes, at: int, is_implicit: bool) -> tuple[int, bytes | None, int, int]:
    """Return tag, VR, length and start of the value of the element at `at`."""
    if is_implicit:
        group, element, length = _IMPLICIT.unpack_from(content, at)
        return group << 16 | element, None, length, at + 8
    group, element, vr, length = _EXPLICIT.unpack_from(content, at)
    if vr in SHORT_VRS:
        return group << 16 | element, vr, length, at + 8
    if vr not in LONG_VRS:
        raise NotPlain
    return group << 16 | element, vr, _LONG.unpack_from(content, at + 8)[0], at + 12


def _skip_sequence(content: bytes, at: int, is_implicit: bool) -> int:
    """Return where a sequence of undefined length ends whose first item is at `at` (PS3.5 section 7.5)."""
    while True:
        tag, _, length, at = read_head(content, at, True)  # items and delimiters have no VR
        if tag == SEQUENCE_END and length == 0:
            return at
        if tag != ITEM:
            raise NotPlain
        if length == UNDEFINED_LENGTH:
            _, at = walk(content, at, (), is_implicit=is_implicit, is_past=ITEM_GROUP.__eq__)
            if content[at : at + 8] != ITEM_END:
                raise NotPlain
            length = len(ITEM_END)
        at += length

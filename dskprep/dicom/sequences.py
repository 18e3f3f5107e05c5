"""The items of a sequence in a plain DICOM file, and their elements, faster than pydicom.

pydicom makes Python objects of every element and item. A structure set of radiotherapy has ten of them for each of some
thousand contours, of which three are needed.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from dskprep.dicom.elements import (
    ITEM,
    ITEM_END,
    ITEM_GROUP,
    SEQUENCE_END,
    UNDEFINED_LENGTH,
    Element,
    NotPlain,
    read_head,
    walk,
)

LONG_HEAD, SHORT_HEAD = 12, 8
"""Bytes before the value of a sequence: in explicit VR, and in implicit."""


def items_of(
    content: bytes, sequence: Element | None, wanted: Container[int], *, is_implicit: bool
) -> Iterator[dict[int, Element]]:
    """Yield the `wanted` elements of each item of a sequence, by tag; none if there is no sequence.

    Raises NotPlain, or struct.error, where it does not follow PS3.5 to the letter.
    """
    if sequence is None:
        return
    if sequence.vr not in (None, "SQ"):
        raise NotPlain
    at = sequence.start
    while at < sequence.stop:
        tag, _, length, at = read_head(content, at, True)  # items and delimiters have no VR
        if tag == SEQUENCE_END and length == 0 and at == sequence.stop:
            return
        if tag != ITEM:
            raise NotPlain
        if length == UNDEFINED_LENGTH:
            found, at = walk(content, at, wanted, is_implicit=is_implicit, is_past=ITEM_GROUP.__eq__)
            if content[at : at + len(ITEM_END)] != ITEM_END:
                raise NotPlain
            at += len(ITEM_END)
        else:
            found, at = walk(content, at, wanted, is_implicit=is_implicit, end=at + length)
        if at > sequence.stop:
            raise NotPlain
        yield found


def text_of(content: bytes, element: Element | None, vr: str) -> str:
    """Return the one value of an element of text, or "" if it is not there. Raises NotPlain for what is not ASCII."""
    if element is None:
        return ""
    value = content[element.start : element.stop].rstrip(b" \0")
    if element.vr not in (None, vr) or b"\\" in value or not value.isascii() or b"\0" in value:
        raise NotPlain
    return value.decode("ascii")


def without(content: bytes, sequence: Element, *, is_implicit: bool) -> bytes:
    """Return a file without one of its sequences."""
    head = SHORT_HEAD if is_implicit else LONG_HEAD
    return content[: sequence.start - head] + content[sequence.stop :]

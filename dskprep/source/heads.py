"""What the name and the first bytes of a file say about it, before it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dskprep import storage
from dskprep.dicom.contents import SEVERAL, SLICE_SUFFIXES, VAGUE_SUFFIXES, is_named_otherwise, shape_of
from dskprep.dicom.sniff import BZ2_HEAD_BYTES, HEAD_BYTES, begins_as_dicom, compression_of, decompressed_head
from dskprep.errors import InfrastructureError
from dskprep.formats import names
from dskprep.storage import Entry

COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz")
"""Names of files that are compressed one by one, such as `1.dcm.gz`."""
GROWTH = 4
"""Bytes for each byte of a compressed file: CT slices shrink to a half or a third, those with much air to less."""
MAX_HEADS = 32
"""Most files that are read to see whether a folder holds DICOM; it is taken to do so if there are more."""


def plain_name(name: str) -> str:
    """Return a file's name as it is without compression."""
    return name[: name.rindex(".")] if name.lower().endswith(COMPRESSED_SUFFIXES) else name


def plain_size(entry: Entry) -> int:
    """Return how many bytes of a file may have to be held: decompressed, but for volumes, which are planes by plane."""
    is_whole = entry.name.lower().endswith(COMPRESSED_SUFFIXES) and not names.is_part(entry.name)
    return entry.size * GROWTH if is_whole else entry.size


def read_plain_head(url: str, n_bytes: int) -> bytes:
    """Return the first bytes of a file, or fewer, decompressed. Raises ObjectChanged if it does not exist any more."""
    head = storage.read_head(url, n_bytes)
    kind = compression_of(head)
    if kind == "bz2":
        head = storage.read_head(url, max(n_bytes, BZ2_HEAD_BYTES))
    return decompressed_head(head, n_bytes) if kind else head


def may_hold_dicom(url: str, entries: Iterable[Entry]) -> bool:
    """Tell whether one of the files of a folder may be DICOM, by its name or else by its first bytes.

    A file that cannot be read may be; so may several whose names differ by numbers alone if nothing is left in them.
    The first that may be ends the search.
    """
    n_read, lost = 0, Counter[str]()
    for entry in entries:
        name = plain_name(entry.name)
        shape = shape_of(name)
        if is_named_otherwise(name) and (shape in lost or not name.lower().endswith(VAGUE_SUFFIXES)):
            continue
        if name.lower().endswith(tuple(SLICE_SUFFIXES)) or n_read == MAX_HEADS:
            return True
        head = b""
        # an empty object has no first bytes; on disk it may be a dead link
        if entry.size or not storage.is_bucket(url):
            n_read += 1
            try:
                head = read_plain_head(storage.join(url, entry.name), HEAD_BYTES)
            except (storage.ObjectChanged, InfrastructureError):
                return True
        lost[shape] += not head.strip(b"\0")
        if begins_as_dicom(head) or lost[shape] >= SEVERAL:
            return True
    return False

"""Tell by the first bytes of a file whether it may be DICOM, and whether it is compressed as a whole."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from typing import Any, Literal

from dskprep.dicom.elements import LONG_VRS, SHORT_VRS

HEAD_BYTES = 1 << 12
"""So many first bytes are enough to tell, but of a file that is compressed by bz2."""
BZ2_HEAD_BYTES = 1 << 20
"""A bz2 file gives nothing before the end of its first block, which holds 900 kB at most."""
MAX_FIRST_VALUE = 256
"""The first element of a file is a length, a character set, a UID or an image type: no longer than this."""
MAX_XZ_BYTES = 1 << 27
"""Most memory for xz; the strongest preset needs 65 MiB, and a crafted file may ask for gigabytes."""

_MARKS = {"gz": re.compile(rb"\x1f\x8b\x08"), "bz2": re.compile(rb"BZh[1-9]"), "xz": re.compile(rb"\xfd7zXZ\0")}
_VRS = SHORT_VRS | LONG_VRS


def begins_as_dicom(head: bytes) -> bool:
    """Tell whether the first bytes of a file, at least HEAD_BYTES of a longer one, are those of a DICOM file.

    It may lack its mark, and it may be compressed by gzip, bz2 or xz.
    """
    if compression_of(head):
        head = decompressed_head(head, HEAD_BYTES)
    return head[128:132] == b"DICM" or _begins_with_element(head, "little") or _begins_with_element(head, "big")


def compression_of(head: bytes) -> str | None:
    """Return `gz`, `bz2` or `xz` if these are the first bytes of such a file, else None."""
    return next((name for name, mark in _MARKS.items() if mark.match(head)), None)


def decompressed_head(head: bytes, n_bytes: int) -> bytes:
    """Return the first `n_bytes` that the beginning of a gzip, bz2 or xz file holds.

    There are fewer, or none, if the file is damaged or too little of it is given, and none of a file of another kind.
    """
    kind = compression_of(head)
    try:
        if kind == "gz":
            return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, n_bytes)
        if kind == "bz2":
            return bz2.BZ2Decompressor().decompress(head, n_bytes)
        if kind == "xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_BYTES).decompress(head, n_bytes)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, MemoryError):
        pass
    return b""


def decompress(content: bytes, max_bytes: int) -> bytes:
    """Return what a gzip, bz2 or xz file holds. Raises ValueError if it is damaged or cut, or holds more."""
    try:
        open_file: Any = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[compression_of(content) or ""]
        with open_file(io.BytesIO(content)) as file:
            whole: bytes = file.read(max_bytes + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, MemoryError) as error:
        raise ValueError(str(error)) from error
    if len(whole) > max_bytes:
        raise ValueError(f"it holds more than {max_bytes >> 20} MiB")
    return whole


def _begins_with_element(head: bytes, order: Literal["little", "big"]) -> bool:
    """Tell whether the bytes begin with a plausible element of the File Meta Information or of the group 0008."""
    group, element = (int.from_bytes(head[at : at + 2], order) for at in (0, 2))
    if len(head) < 8 or group not in (0x0002, 0x0008):
        return False
    if element == 0:  # the length of the group: four bytes, by an explicit VR or an implicit one
        return head[4:8] in (b"UL" + (4).to_bytes(2, order), (4).to_bytes(4, order))
    if head[4:6] in _VRS:
        return True
    # an implicit VR is little endian, and never in group 0002 (PS3.5 section 10.1)
    length = int.from_bytes(head[4:8], "little")
    return (group, order) == (0x0008, "little") and length <= MAX_FIRST_VALUE and length % 2 == 0

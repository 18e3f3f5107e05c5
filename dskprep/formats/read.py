"""Read the header of a volume file of any of the formats, told by its first bytes."""

from __future__ import annotations

import zlib

from dskprep.errors import Refusal
from dskprep.formats import metaimage, nifti, nrrd
from dskprep.formats.header import GZIP, MAX_HEADER_BYTES, Header, damaged


def is_volume(head: bytes) -> bool:
    """Tell whether the first bytes of a file, decompressed, are those of a volume."""
    return nifti.is_nifti(head) or head.startswith((nrrd.MARK, *metaimage.MARKS))


def read_header(head: bytes, where: str, *, is_mask: bool = False) -> Header:
    """Read the header in the first bytes of a file, at least MAX_HEADER_BYTES of a longer one.

    That of a mask may say that it has several layers: a segmentation of 3D Slicer whose segments overlap.

    Raises Refusal: `bad-header`, `truncated`, `missing-attribute`, `not-3d`, `not-hu` for colour,
    `undecodable-pixels` for types and encodings that are not read.
    """
    head = head[:MAX_HEADER_BYTES]
    is_compressed = head.startswith(GZIP)
    if is_compressed:
        try:
            head = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, MAX_HEADER_BYTES)
        except zlib.error as error:
            raise Refusal("truncated", f"{where}: cannot be decompressed: {error}") from error
    if nifti.is_nifti(head):
        return nifti.read(head, where, is_compressed=is_compressed)
    if is_compressed or not is_volume(head):
        what = "found nothing" if not head else "found something else"
        raise damaged(where, f"expected the header of NIfTI, NRRD or MetaImage, {what}")
    is_nrrd = head.startswith(nrrd.MARK)
    return nrrd.read(head, where, is_mask=is_mask) if is_nrrd else metaimage.read(head, where)

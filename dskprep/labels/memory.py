"""How much memory a label object takes, told by its first bytes before it is read."""

from __future__ import annotations

from pydicom.uid import DeflatedExplicitVRLittleEndian

from dskprep.dicom.header import MAX_INFLATED_BYTES
from dskprep.dicom.sniff import begins_as_dicom, compression_of, decompressed_head
from dskprep.errors import Refusal
from dskprep.formats.header import MAX_HEADER_BYTES
from dskprep.formats.read import is_volume, read_header

HEAD_BYTES = MAX_HEADER_BYTES
"""Bytes of a file that tell."""
DICOM_GROWTH = 1.5
"""A DICOM object in memory, with its parsed header and the pixels of one segment, by the bytes of its file.

A SEG of 8000 frames of 512 x 512, 263 MB, took 365 MB with an image of 52 million voxels.
"""
TEXT_GROWTH = 15
"""A table or XML in memory, by the bytes of its file: values are Python strings at first."""
MASK_COPIES = 1.3
"""A mask volume in memory, by the bytes of its voxels: beside them, a plane and the pixels of one value."""


def memory_bytes(head: bytes, n_bytes: int) -> int:
    """Return about the most memory that reading and drawing a label object takes, its file included.

    `head` are its first HEAD_BYTES, or all of fewer. An image that it is drawn on comes on top.
    """
    kind = compression_of(head)
    plain = decompressed_head(head, HEAD_BYTES) if kind else head
    if is_volume(plain):
        try:
            header = read_header(plain, "")
        except Refusal:
            return 2 * n_bytes
        copies = MASK_COPIES + (kind not in (None, "gz") or plain.startswith(b"NRRD"))  # the file, decompressed at once
        if (header.slope, header.intercept) != (1, 0):
            copies += 8 / header.dtype.itemsize
        return int(n_bytes + copies * header.voxel_bytes)
    if begins_as_dicom(plain):
        is_deflated = DeflatedExplicitVRLittleEndian.encode() in plain[:4096]
        return int(DICOM_GROWTH * n_bytes) + (MAX_INFLATED_BYTES if is_deflated or kind else 0)
    return TEXT_GROWTH * n_bytes

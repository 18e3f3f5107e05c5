"""How much memory a label object takes, told by its first bytes before it is read."""

from __future__ import annotations

from dskprep import tables
from dskprep.dicom.parts import DEFLATED, MAX_INFLATED_BYTES, PART_BYTES, count_parts, inflated
from dskprep.dicom.sniff import begins_as_dicom, compression_of, decompress, decompressed_head
from dskprep.errors import Refusal
from dskprep.formats.header import MAX_HEADER_BYTES
from dskprep.formats.nifti import is_nifti
from dskprep.formats.read import is_volume, read_header

HEAD_BYTES = MAX_HEADER_BYTES
"""Bytes of a file that tell."""
DICOM_GROWTH = 1.5
"""A DICOM object in memory, with its parsed header and the pixels of one segment, by the bytes of its file.

A SEG of 8000 frames of 512 x 512, 263 MB, took 365 MB with an image of 52 million voxels.
"""
MOST_PARTS = 1 << 25
"""No more elements and items are counted; they would take 33 GB."""
VALUE_BYTES = 50
"""Memory of one value of a Parquet table, whose file may need next to nothing for it: 40 bytes in 45 million."""
TEXT_GROWTH = 15
"""A table or XML in memory, by the bytes of its file: values are Python strings at first."""
MASK_COPIES = 1.3
"""A mask volume in memory, by the bytes of its voxels: beside them, a plane and the pixels of one value."""


def parsed_bytes(content: bytes) -> int:
    """Return about how much memory the elements and items of a DICOM object, or the values of Parquet, take; else 0.

    Unlike `memory_bytes` it needs the whole object: a small one may hold millions of them.
    """
    if content[:4] == b"PAR1":
        try:
            about = tables.open_parquet(content).metadata
        except ValueError:
            return 0
        return VALUE_BYTES * int(about.num_rows * about.num_columns)
    if not begins_as_dicom(content[:HEAD_BYTES]):
        return 0
    try:
        plain = inflated(decompress(content, MAX_INFLATED_BYTES) if compression_of(content) else content)
    except ValueError:  # which reading it says
        return 0
    return PART_BYTES * count_parts(plain, MOST_PARTS)


def memory_bytes(head: bytes, n_bytes: int) -> int:
    """Return about the most memory that reading and drawing a label object takes, its file included.

    `head` are its first HEAD_BYTES, or all of fewer. An image that it is drawn on comes on top.
    """
    kind = compression_of(head)
    plain = decompressed_head(head, HEAD_BYTES) if kind else head
    if is_volume(plain):
        try:
            header = read_header(plain, "", is_mask=True)
        except Refusal:
            return 2 * n_bytes
        is_unpacked = kind is not None and not (kind == "gz" and is_nifti(plain))
        copies = MASK_COPIES + (is_unpacked or plain.startswith(b"NRRD"))  # the file, decompressed at once
        if (header.slope, header.intercept) != (1, 0):
            copies += 8 / header.dtype.itemsize
        return int(n_bytes + copies * header.voxel_bytes)
    if begins_as_dicom(plain):
        is_deflated = DEFLATED in plain[:4096]
        return int(DICOM_GROWTH * n_bytes) + (MAX_INFLATED_BYTES if is_deflated or kind else 0)
    return TEXT_GROWTH * n_bytes

"""What a DICOM file would become in memory is known before pydicom makes an object of each of its parts."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from builders import ct_dataset, ct_file, enhanced_file, saved
from label_builders import frames_of, grid_of, rtstruct_file, seg_file
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dskprep.dicom.contents import Contents
from dskprep.dicom.parts import count_parts, inflated

PIXELS = np.zeros((4, 6), np.int16)
GRID = grid_of((4, 8, 8))
BOX = np.ones(GRID.shape, np.bool_)
TRIANGLE = [[(0.0, 0.0, z), (9.0, 0.0, z), (9.0, 9.0, z)] for z in (0.0, 2.5)]
ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
FILES = {
    "slice": ct_file(PIXELS),
    "implicit": ct_file(PIXELS, syntax=ImplicitVRLittleEndian),
    "big endian": ct_file(PIXELS, syntax=ExplicitVRBigEndian),
    "enhanced": enhanced_file(np.zeros((3, 4, 6), np.int16), [(0, 0, z) for z in range(3)]),
    "segmentation": seg_file(GRID, frames_of(BOX)),
    "segmentation, implicit": seg_file(GRID, frames_of(BOX), syntax=ImplicitVRLittleEndian),
    "contours": rtstruct_file({"a": TRIANGLE, "b": TRIANGLE}),
}


def parts_of(dataset: Dataset) -> int:
    """Elements before the pixels, and items, at all depths, as pydicom finds them."""
    n = 0
    for element in dataset:
        if element.tag == 0x7FE00010:
            return n + 1
        n += 1
        for item in element.value if element.VR == "SQ" else ():
            n += 1 + parts_of(item)
    return n


@pytest.mark.parametrize("name", FILES)
def test_as_many_parts_are_counted_as_pydicom_finds(name: str) -> None:
    content = FILES[name]
    expected = parts_of(pydicom.dcmread(io.BytesIO(content)))
    ends = content.count(struct.pack("<HHL", 0xFFFE, 0xE00D, 0)) + content.count(struct.pack("<HHL", 0xFFFE, 0xE0DD, 0))
    assert count_parts(content, 10**6) - ends in (expected, expected + 1)  # a byte behind the pixels
    assert count_parts(content, 5) == 6


@pytest.mark.slow
@pytest.mark.parametrize("length", ["defined", "undefined"])
def test_a_slice_of_a_million_items_is_refused_in_little_memory(length: str) -> None:
    items = ITEM * 1_000_000
    per_frame = 0x5200_9230
    n_bytes = len(items) if length == "defined" else 0xFFFF_FFFF
    sequence = struct.pack("<HHL", per_frame >> 16, per_frame & 0xFFFF, n_bytes) + items
    end = b"" if length == "defined" else struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    plain = ct_file(PIXELS, syntax=ImplicitVRLittleEndian)
    at = plain.rindex(struct.pack("<HH", 0x7FE0, 0x0010))
    contents = Contents()
    tracemalloc.start()
    contents.add("bomb.dcm", plain[:at] + sequence + end + plain[at:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000  # of which the file, in several copies, is half
    (damage,) = contents.all_damage()
    assert "expected at most 131" in damage.message
    assert "elements in an image of 8000" in damage.message


def test_a_deflated_file_is_inflated_as_pydicom_does() -> None:
    dataset = ct_dataset(PIXELS, syntax=DeflatedExplicitVRLittleEndian)
    content = saved(dataset)
    plain = pydicom.dcmread(io.BytesIO(inflated(content)))
    assert plain == dataset
    assert plain.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    with pytest.raises(ValueError, match="it cannot be inflated"):
        inflated(content[:-9])
    assert inflated(zlib.compress(content)) == zlib.compress(content)

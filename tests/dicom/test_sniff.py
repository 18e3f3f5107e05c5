"""The first bytes of a file say whether it may be DICOM; what compresses it does not hide that."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
import tiny
from builders import ct_file, distinct
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from dskprep.dicom import sniff

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
STORED = distinct(1, 16, 16)[0]
SLICE = ct_file(STORED)


@pytest.mark.parametrize("compression", ["", *COMPRESS])
@pytest.mark.parametrize("start", [0, 132], ids=["marked", "bare"])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_slice_begins_as_dicom(compression: str, start: int, syntax: str | None) -> None:
    content = ct_file(STORED, **({"syntax": syntax} if syntax else {}))[start:]
    content = COMPRESS[compression](content) if compression else content
    assert sniff.begins_as_dicom(content[: sniff.HEAD_BYTES])


@pytest.mark.parametrize(("order", "explicit"), [("<", True), ("<", False), (">", True)])
def test_a_dataset_without_meta_information_begins_as_dicom(order: str, explicit: bool) -> None:
    for element, vr, value in ((0x0005, b"CS", b"ISO_IR 100"), (0x0000, b"UL", struct.pack(f"{order}L", 300))):
        head = struct.pack(f"{order}HH", 0x0008, element)
        length = struct.pack(f"{order}2sH", vr, len(value)) if explicit else struct.pack(f"{order}L", len(value))
        assert sniff.begins_as_dicom(head + length + value)


OTHERS = {
    "nothing": b"",
    "zeros": bytes(4096),
    "text": b"Notes of this study\n" * 20,
    "two shorts of 2": struct.pack("<4H", 0x0200, 0x0200, 0, 0) * 20,
    "counters": struct.pack("<4q", 8, 2, 8, 2) * 20,
    "floats": np.linspace(0, 8, 500).tobytes(),
    "a header of Analyze": struct.pack("<i", 348) + bytes(344),
    "pickle": pickle.dumps({"a": 1}),
    "avi": b"RIFF\x24\x10\0\0AVI LIST" + bytes(400),
    "zip": tiny.zipped({"1.dcm": SLICE}),
    "tar": tiny.tarred({"1.dcm": SLICE}),
    "a cut group": b"\x08\0\x05\0",
}


@pytest.mark.parametrize("compression", ["", *COMPRESS])
@pytest.mark.parametrize("name", OTHERS)
def test_other_files_do_not_begin_as_dicom(name: str, compression: str) -> None:
    content = COMPRESS[compression](OTHERS[name]) if compression else OTHERS[name]
    assert not sniff.begins_as_dicom(content)


@pytest.mark.parametrize("compression", COMPRESS)
def test_the_head_of_a_cut_file_is_what_it_still_holds(compression: str) -> None:
    content = random.Random(1).randbytes(1 << 16)
    compressed = COMPRESS[compression](content)
    assert sniff.compression_of(compressed) == compression
    assert sniff.decompressed_head(compressed, 1000) == content[:1000]
    assert content.startswith(sniff.decompressed_head(compressed[: len(compressed) // 2], len(content)))
    assert sniff.decompressed_head(compressed[:7], 1000) == b""


@pytest.mark.parametrize("compression", COMPRESS)
def test_the_head_of_a_bomb_has_as_many_bytes_as_were_asked_for(compression: str) -> None:
    assert len(sniff.decompressed_head(COMPRESS[compression](bytes(1 << 24)), 4096)) == 4096


def test_the_first_block_of_bz2_fits_its_head() -> None:
    content = SLICE + random.Random(2).randbytes(1 << 21)
    assert sniff.begins_as_dicom(bz2.compress(content)[: sniff.BZ2_HEAD_BYTES])


def test_xz_that_asks_for_gigabytes_is_not_decompressed() -> None:
    greedy = lzma.compress(SLICE, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28, "mode": lzma.MODE_FAST}])
    assert sniff.decompressed_head(greedy, 100) == b""


@given(st.sampled_from([b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x08\0", b"\x02\0", b""]), st.binary(max_size=300))
def test_no_bytes_raise_anything(mark: bytes, rest: bytes) -> None:
    sniff.begins_as_dicom(mark + rest)

"""Voxels of volume files: every plane, or what is wrong by name; never more memory than a plane needs."""

from __future__ import annotations

import bz2
import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from volume_builders import chest, nifti

from dskprep.errors import Refusal
from dskprep.formats import voxels
from dskprep.formats.header import Header
from dskprep.formats.read import read_header
from dskprep.formats.voxels import FileBytes

VALUES = np.random.default_rng(0).integers(-1000, 1000, (6, 50, 40)).astype("<i2")
HEADER = Header("ct", (6, 50, 40), np.eye(4), VALUES.dtype)
PACKED = replace(HEADER, compression="deflate")
COMPRESS = {"gzip": gzip.compress, "zlib": zlib.compress, "bz2": bz2.compress}


def read(header: Header, content: bytes) -> np.ndarray:
    return np.stack(list(voxels.planes(header, FileBytes.held(content))))


def refusal(header: Header, content: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(header, content)
    return caught.value


@pytest.mark.parametrize("compress", COMPRESS)
@pytest.mark.parametrize("n_blocks", [1, 7, 5000])
def test_compressed_voxels_in_blocks_of_any_size(compress: str, n_blocks: int) -> None:
    packed = b"before" + COMPRESS[compress](b"skip" + VALUES.tobytes())
    kind = "bz2" if compress == "bz2" else "deflate"
    header = replace(HEADER, compression=kind, start=6, skip=4)
    size = -(-len(packed) // n_blocks)
    blocks = lambda start: (packed[k : k + size] for k in range(start, len(packed), size))  # noqa: E731
    assert (np.stack(list(voxels.planes(header, FileBytes(len(packed), blocks)))) == VALUES).all()


def test_voxels_at_the_end_and_files_of_several_gzip_parts() -> None:
    assert (read(replace(HEADER, start=None), b"any header" + VALUES.tobytes()) == VALUES).all()
    data = VALUES.tobytes()
    assert (read(PACKED, gzip.compress(data[:999]) + gzip.compress(data[999:]) + bytes(512)) == VALUES).all()


@pytest.mark.parametrize("compress", [*COMPRESS, ""])
def test_a_file_that_was_cut_is_truncated(compress: str) -> None:
    content = COMPRESS.get(compress, bytes)(VALUES.tobytes())
    header = replace(HEADER, compression={"": "", "bz2": "bz2"}.get(compress, "deflate"))
    for n in (0, 1, 3, len(content) // 2, len(content) - 1):
        assert refusal(header, content[:n]).reason == "truncated"


@pytest.mark.parametrize("compress", COMPRESS)
def test_flipped_bits_of_compressed_voxels_are_found(compress: str) -> None:
    content = bytearray(COMPRESS[compress](VALUES.tobytes()))
    content[len(content) // 2] ^= 16
    header = replace(HEADER, compression="bz2" if compress == "bz2" else "deflate")
    assert refusal(header, bytes(content)).reason in ("truncated", "undecodable-pixels")


def test_a_header_that_promises_fewer_planes_is_not_believed() -> None:
    for header, content in ((HEADER, VALUES.tobytes()), (PACKED, gzip.compress(VALUES.tobytes()))):
        assert refusal(replace(header, shape=(5, 50, 40)), content).reason == "undecodable-pixels"
        assert (read(header, content) == VALUES).all()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_a_bomb_is_never_unpacked(compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(bytes(80 << 20))
    kind = "bz2" if compress is bz2.compress else "deflate"
    small = replace(HEADER, compression=kind)
    huge = replace(small, shape=(30_000, 30_000, 30_000))
    tracemalloc.start()
    assert refusal(small, bomb).reason == "undecodable-pixels"
    assert refusal(huge, bomb).reason == "truncated"
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_planes_are_decompressed_one_by_one() -> None:
    shape = (200, 256, 256)
    content = gzip.compress(nifti(np.zeros(shape, np.float64), np.eye(4)), 1)
    tracemalloc.start()
    n = sum(1 for _ in voxels.planes(read_header(content, "ct"), FileBytes.held(content)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 200
    assert peak < 8 << 20 < np.prod(shape) * 8


def test_a_chest_by_another_program_is_whole() -> None:
    volume = chest()
    content = gzip.compress(nifti(volume.array, volume.affine))
    assert (read(read_header(content, "ct"), content) == volume.array).all()

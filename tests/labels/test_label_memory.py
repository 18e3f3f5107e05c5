"""The memory of a label object is known before it is read."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pyarrow
import pytest
from label_builders import frames_of, grid_of, seg_file
from pyarrow import parquet
from pydicom.uid import ImplicitVRLittleEndian

from dskprep.labels import memory

MEASURE = """
import sys
from pathlib import Path
import tiny
from dskprep.labels import memory, read, draw
from dskprep.dataset import annotations, omezarr
from label_builders import grid_of
content_path = Path(sys.argv[1])
size = content_path.stat().st_size
read.read_labels(b"key,x,y,z\\np,1,2,3\\n", name="warm.csv")
before = tiny.peak_bytes()
labels = read.read_labels(content_path.read_bytes(), name=content_path.name)
grid = grid_of((64, 200, 200), (1.0, 1.0, 1.0), (-100.0, -100.0, 0.0))
for segment in labels.segments[:3]:
    try:
        labels.draw(segment, grid)
    except Exception:
        pass
with content_path.open("rb") as file:
    print(tiny.peak_bytes() - before, memory.memory_bytes(file.read(memory.HEAD_BYTES), size))
"""


def files() -> dict[str, bytes]:
    mask = np.zeros((300, 512, 512), np.uint8)
    mask[100:200, 200:300, 200:300] = 1
    nifti = nibabel.Nifti1Image(mask.T, np.diag([-1, -1, 1, 1])).to_bytes()
    grid = grid_of((200, 256, 256), (1.0, 1.0, 1.0))
    box = np.zeros(grid.shape, np.bool_)
    box[:, 100:150, 100:150] = True
    segments = [frame for number in range(1, 11) for frame in frames_of(box, number)]
    rows = "".join(f"1.3.6.{k % 888},{k % 300}.5,{k % 300},-{k % 300},{k % 2}\n" for k in range(300_000))
    return {
        "mask.nii.gz": gzip.compress(nifti, 1),
        "mask.nii": nifti,
        "mask.nii.bz2": bz2.compress(nifti, 1),
        "seg.dcm": seg_file(grid, segments, names=[f"S{k}" for k in range(1, 11)]),
        "points.csv": f"seriesuid,coordX,coordY,coordZ,class\n{rows}".encode(),
    }


FILES = files()


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_label_object_takes_no_more_memory_than_its_first_bytes_promise(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    words = [sys.executable, "-c", MEASURE, str(tmp_path / name)]
    tests = Path(__file__).parents[1]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tests)
    took, promised = map(int, done.stdout.split())
    assert took <= promised + 60_000_000  # `admission.FIXED_BYTES`
    assert promised < 3 * took + 60_000_000


def test_what_items_take_is_known_before_they_are_read() -> None:
    n_items = 200_000
    implicit = seg_file(grid_of((2, 4, 4)), [], syntax=ImplicitVRLittleEndian)
    sequence = struct.pack("<HHL", 0xFFFC, 0x0001, 8 * n_items) + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * n_items
    bomb = implicit + sequence
    for content in (bomb, gzip.compress(bomb, 1)):
        assert 1000 * n_items < memory.parsed_bytes(content) < 1100 * n_items
    assert memory.parsed_bytes(FILES["mask.nii.gz"]) == memory.parsed_bytes(FILES["points.csv"]) == 0
    ones = pyarrow.table({axis: np.ones(1_000_000) for axis in "xyz"})
    parquet.write_table(ones, file := io.BytesIO())
    assert len(file.getvalue()) < 20_000
    assert 100_000_000 < memory.parsed_bytes(file.getvalue()) < 200_000_000


def test_a_bomb_is_known_by_its_header() -> None:
    mask = np.zeros((700, 1024, 1024), np.uint8)
    bomb = gzip.compress(nibabel.Nifti1Image(mask.T, np.eye(4)).to_bytes(), 9)
    assert len(bomb) < 2_000_000
    assert memory.memory_bytes(bomb[: memory.HEAD_BYTES], len(bomb)) > 700 << 20


def test_a_file_that_is_unpacked_at_once_counts_beside_its_voxels() -> None:
    header = "\n".join(
        (
            "ObjectType = Image",
            "NDims = 3",
            "DimSize = 256 256 400",
            "ElementType = MET_UCHAR",
            "ElementSpacing = 1 1 1",
        )
    )
    header += "\nOffset = 0 0 0\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nElementDataFile = LOCAL\n"
    packed = gzip.compress(header.encode() + bytes(256 * 256 * 400), 9)
    assert memory.memory_bytes(packed[: memory.HEAD_BYTES], len(packed)) > 2 * 256 * 256 * 400

"""Tiny CT series as DICOM files: the smallest thing that becomes a volume. No lungs are found in them."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import secrets
import socket
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import imagecodecs
import msgspec
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dskprep import storage
from dskprep.dataset.record import Record

if TYPE_CHECKING:
    import pytest

IDENTITY = ("Mustermann", "PID-4711", "19501231")
"""The name, number and birth date of every patient: no output may hold them."""

N_SLICES, SIZE = 12, 24

LIMIT_S = 600.0
"""How long a test waits, in seconds, for what comes soon on a free machine: only what never comes may end it."""
NEVER_S = 1e6
"""Longer than any test, in seconds."""
PROGRAM = (
    *(sys.executable, "-c"),
    f"from dskprep.cli import commands, terminal as t; t.TOLD_AFTER_S = t.TOLD_EVERY_S = {NEVER_S};"
    "commands.run_and_exit()",
)
"""The program `dskprep`, which does not tell what it waits for: what it says on standard error is to be read."""


def series(
    seed: int = 0, *, n: int = N_SLICES, z_mm: float = 1.0, series_uid: str | None = None, **attributes: Any
) -> dict[str, bytes]:
    """Names and contents of the files of one series, `n` slices of SIZE x SIZE voxels of 1 mm."""
    uid = f"1.2.3.{seed}" if series_uid is None else series_uid
    return _series(seed, n, z_mm, uid, attributes) if attributes else dict(_plain_series(seed, n, z_mm, uid))


@functools.lru_cache(maxsize=512)
def _plain_series(seed: int, n: int, z_mm: float, uid: str) -> dict[str, bytes]:
    """Most tests ask for the same few series, and to write one costs half as much as a run on it."""
    return _series(seed, n, z_mm, uid, {})


def _series(seed: int, n: int, z_mm: float, uid: str, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 2000, (n, SIZE, SIZE), dtype=np.int16)
    return {f"IM{i:03}.dcm": _slice(stored[i], i, z_mm * i, uid, attributes) for i in range(n)}


def _slice(stored: np.ndarray, number: int, z_mm: float, uid: str, attributes: Mapping[str, Any]) -> bytes:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.4{uid[5:]}.{number}"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = f"{IDENTITY[0]}^Erika", IDENTITY[1], IDENTITY[2]
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = uid, "1.2.90", "1.2.91"
    ds.Modality, ds.ImageType, ds.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], number
    ds.ImagePositionPatient = [-100.123456789, -50.5, 10.25 + z_mm]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [1, 1], 1
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
    ds.PixelData = stored.astype("<i2").tobytes()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def hu(seed: int = 0) -> np.ndarray:
    """The voxels of `series(seed)`, (z, y, x), int16 HU."""
    stored = np.random.default_rng(seed).integers(0, 2000, (N_SLICES, SIZE, SIZE), dtype=np.int16)
    return stored - 1024


def write(url: str | Path, files: Mapping[str, bytes]) -> str:
    """Write files below a folder or prefix."""
    storage.write_many(str(url), dict(files))
    return str(url)


def write_patients(url: str | Path, names: Iterable[str]) -> str:
    """A folder a patient, each another series."""
    for seed, name in enumerate(names):
        write(f"{url}/{name}", series(seed))
    return str(url)


def make_small_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands of this process make synthetic patients of a few voxels, in a moment."""
    from dskprep.synthetic import scanner

    for name, value in {"spacing_mm": (15.0, 6.0, 6.0), "shape": (20, 60, 60)}.items():
        monkeypatch.setitem(scanner.write_patient.__kwdefaults__, name, value)


def zipped(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def tarred(files: Mapping[str, bytes], compression: Literal["", "gz", "bz2", "xz"] = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def free_ports(count: int) -> list[int]:
    """Ports of loopback where nobody listens, below those that the system itself gives to each connection."""
    found = set[int]()
    while len(found) < count:
        port = secrets.randbelow(17_000) + 15_000
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return list(found)


def timeless(entries: Iterable[storage.Entry | None]) -> list[storage.Entry]:
    """Entries without their times: the server tells them by the second, and not always the same one."""
    return [entry._replace(modified_s=0.0) for entry in entries if entry]


def timeless_walk(url: str) -> list[storage.Folder]:
    """All folders below a place in the order of a walk, their entries without their times."""
    return [replace(folder, entries=tuple(timeless(folder.entries))) for folder in storage.walk(url)]


def everything_below(url: str | Path) -> dict[str, bytes]:
    """Every object below a folder or prefix, by its name relative to it."""
    return {e.name: storage.read(f"{url}/{e.name}") for e in storage.listing_below(str(url))}


def forget_peak() -> None:
    """Let `peak_bytes` begin anew, at what this process holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def most_bytes_of(work: Callable[[], object]) -> int:
    """The most memory that this process holds at a time during a call, beyond what it holds before.

    What earlier tests left for the garbage collector does not count: freed meanwhile, it would hide as much.
    """
    gc.collect()
    forget_peak()
    before = peak_bytes()
    work()
    return peak_bytes() - before


def peak_bytes() -> int:
    """The most memory that this process has held. (What the kernel tells a parent counts from before exec.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


THUMBNAIL = bytes(imagecodecs.webp_encode(np.zeros((144, 288, 3), np.uint8), level=60, lossless=False))
"""A picture of the kind and size of all thumbnails."""

AFFINE = [[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
GEOMETRY = {"shape": [1, 1, 1], "spacing_mm": [1.0, 1.0, 1.0], "affine": AFFINE}
SOURCE = {
    "slices": 120,
    "rows": 512,
    "columns": 512,
    "step_mm": 2.5,
    "row_spacing_mm": 0.7,
    "column_spacing_mm": 0.7,
    "first_x_mm": -180.0,
    "first_y_mm": -180.0,
    "first_z_mm": -300.0,
}


def record(key: str, status: str = "written", digest: str = "0" * 16, **more: Any) -> Record:
    """A record with these fields, as they stand in its file, and as few others as it must have."""
    content = {"key": key, "status": status, "input_digest": digest, **more}
    if status == "written":
        content["geometry"] = GEOMETRY | more.get("geometry", {})
        content.setdefault("objects", {name: {"bytes": 0, "sha256": ""} for name in ("zarr.json", "0/zarr.json")})
    if "source" in more:
        content["source"] = SOURCE | more["source"]
    return msgspec.convert(content, Record)

"""Where dskprep, SimpleITK (GDCM) and dcm2niix put the pixels of the same folders, against the headers of the slices.

    python benchmarks/three_readers.py FOLDER

FOLDER is searched for folders of DICOM files. Of each series, every 16th pixel of every slice is looked up in each
reader's volume, at the place that ImagePositionPatient and ImageOrientationPatient give it (DICOM PS3.3 C.7.6.2.1.1,
read by pydicom): `mm` is the largest distance to the nearest voxel centre, `HU` the largest difference of the value
there (padding left out), `lost` the share of pixels that lie outside. Prints a Markdown table. dcm2niix (Debian package
of that name) is left out if it is not installed.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk

import dskprep
from dskprep.errors import Refusal

NIFTI_KINDS = {2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 512: np.uint16}
OUTSIDE_HU = -1024
EVERY = 16


class Truth(NamedTuple):
    """Pixels of a slice: places (n, 3) in LPS mm, and their HU."""

    places: np.ndarray
    hu: np.ndarray


Image = tuple[np.ndarray, np.ndarray]
"""Voxels, and the affine from an index to LPS mm."""


def truths(paths: list[Path]) -> list[Truth]:
    """What the headers say of every slice, read by pydicom."""
    found = []
    for path in paths:
        ds = pydicom.dcmread(path)
        hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        j, i = (v.ravel() for v in np.mgrid[EVERY // 2 : hu.shape[0] : EVERY, EVERY // 2 : hu.shape[1] : EVERY])
        row, column = np.reshape(np.array(ds.ImageOrientationPatient, float), (2, 3))
        down, across = (float(v) for v in ds.PixelSpacing)
        first = np.array(ds.ImagePositionPatient, float)
        found.append(Truth(first + np.outer(j * down, column) + np.outer(i * across, row), hu[j, i]))
    return found


def compare(image: Image, slices: list[Truth]) -> str:
    array, affine = image
    places, hu = np.concatenate([t.places for t in slices]), np.concatenate([t.hu for t in slices])
    index = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    nearest = np.rint(index).astype(int)
    is_inside = ((nearest >= 0) & (nearest < array.shape)).all(axis=1)
    lost = f", lost {1 - is_inside.mean():.0%}" if not is_inside.all() else ""
    if not is_inside.any():
        return f"{array.shape}, lost 100%"
    distance = np.linalg.norm((index - nearest)[is_inside] @ affine[:3, :3].T, axis=1).max()
    values = array[tuple(nearest[is_inside].T)]
    is_value = (values != dskprep.PADDING) & (hu[is_inside] > OUTSIDE_HU)
    difference = np.abs(values - hu[is_inside])[is_value].max(initial=0)
    return f"{'x'.join(map(str, array.shape))}: {distance:.4f} mm, {difference:.3g} HU{lost}"


def by_dskprep(folder: Path, _uid: str) -> Iterator[Image]:
    volume = dskprep.read_series(str(folder), dskprep.PrepConfig(min_slices=3)).decode().volume
    yield volume.array, volume.affine


def by_simpleitk(folder: Path, uid: str) -> Iterator[Image]:
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:3, :3] = affine[:3, 2::-1]
    yield sitk.GetArrayFromImage(image), affine


def by_dcm2niix(folder: Path, _uid: str) -> Iterator[Image]:
    with tempfile.TemporaryDirectory() as out:
        command = ["dcm2niix", "-z", "n", "-b", "n", "-f", "%s_%p", "-o", out, str(folder)]
        subprocess.run(command, check=False, capture_output=True, timeout=300)
        for path in sorted(Path(out).glob("*.nii")):
            print(f"  dcm2niix wrote {path.name}", file=sys.stderr)
            yield nifti(path.read_bytes())


def nifti(content: bytes) -> Image:
    """NIfTI-1 to voxels (its order of axes) and LPS affine: RAS with x and y turned round."""
    nx, ny, nz = struct.unpack_from("<3h", content, 42)
    (kind,) = struct.unpack_from("<h", content, 70)
    offset, slope, intercept = struct.unpack_from("<3f", content, 108)
    affine = np.eye(4)
    affine[:3] = np.reshape(struct.unpack_from("<12f", content, 280), (3, 4))
    affine[:2] *= -1
    values = np.frombuffer(content, NIFTI_KINDS[kind], nx * ny * nz, int(offset))
    return values.reshape(nz, ny, nx).T * (slope or 1) + intercept, affine


def outcome(reader: Callable[[Path, str], Iterator[Image]], folder: Path, uid: str, slices: list[Truth]) -> str:
    try:
        found = [compare(image, slices) for image in reader(folder, uid)]
    except Refusal as refusal:
        return f"refused: {refusal.reason}"
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return f"error: {str(error).splitlines()[-1][:60]}"
    return "<br>".join(found) or "nothing"


def series_in(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """The CT series with pixels of the folder, each under its UID."""
    series = defaultdict(list)
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        if header.get("Modality") == "CT" and {"RescaleSlope", "ImagePositionPatient"} <= set(header.dir()):
            series[str(header.SeriesInstanceUID)].append(path)
    yield from series.items()


def main(root: Path) -> None:
    readers: dict[str, Any] = {"dskprep": by_dskprep, "SimpleITK": by_simpleitk}
    if shutil.which("dcm2niix"):
        readers["dcm2niix"] = by_dcm2niix
    print("| series | slices |", " | ".join(readers), "|\n|---|---|" + "---|" * len(readers), flush=True)
    folders = sorted({path.parent for path in root.rglob("*") if path.is_file()})
    for folder in folders:
        for uid, paths in series_in(folder):
            if len(paths) < 3:
                continue
            with tempfile.TemporaryDirectory() as only:  # the series alone, whatever else lies beside it
                for path in paths:
                    (Path(only) / path.name).symlink_to(path.resolve())
                try:
                    slices = truths(paths)
                except (AttributeError, ValueError, NotImplementedError, RuntimeError) as error:
                    print(f"  {folder}: pydicom: {error}"[:150], file=sys.stderr)
                    continue
                cells = [outcome(reader, Path(only), uid, slices) for reader in readers.values()]
            print(f"| {folder.relative_to(root)} | {len(paths)} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

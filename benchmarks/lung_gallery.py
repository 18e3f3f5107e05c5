"""Draw the lungs that dskprep finds, to be looked at plane by plane.

    python benchmarks/lung_gallery.py FOLDER OUT

Each folder below FOLDER that holds a DICOM series gives OUT/<name>_axial.png and OUT/<name>_upright.png:
twelve axial planes through the lungs from below, and six coronal and six sagittal ones, in the lung window;
the right lung is outlined in orange, the left one in blue. Series are read with SimpleITK, not with
dskprep, so the picture is right even where dskprep's own reader should be wrong.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.image import imsave
from numpy.typing import NDArray

from dskprep.preparation import resample
from dskprep.preparation.lungs.lungs import find_lungs
from dskprep.sides import LEFT, RIGHT
from dskprep.volume import AIR_HU, PADDING, Volume

SPACING_MM = (1.0, 1.0, 1.0)
LUNG_WINDOW_HU = (-1350, 150)
OUTLINES = {RIGHT: (230, 159, 0), LEFT: (86, 180, 233)}
COLUMNS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the lungs that dskprep finds.")
    parser.add_argument("folder", type=Path, help="folder of folders of DICOM series")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path for path in arguments.folder.rglob("*") if path.is_dir()):
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
            files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
            if len(files) >= 10:
                draw(read(files), arguments.out / f"{folder.name}_{len(files)}")


def read(files: tuple[str, ...]) -> Volume:
    """Read a series, turned to the patient's axes, at SPACING_MM."""
    image = sitk.DICOMOrient(sitk.ReadImage(files), "LPS")
    x, y, z = image.GetSpacing()
    affine = np.eye(4)[[2, 1, 0, 3]] @ np.diag([z, y, x, 1.0])
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image)
    array = np.where(array < AIR_HU, PADDING, np.minimum(array, 32767)).astype(np.int16)
    return resample.to_spacing(Volume(array, affine), SPACING_MM)


def draw(volume: Volume, out: Path) -> None:
    find_lungs(volume)  # so that compiling is not timed
    start_s = time.process_time()
    found = find_lungs(volume)
    cpu_s = time.process_time() - start_s
    words = ", ".join(found.warnings) or "no warnings"
    ml = f"right {found.right_ml:.0f} ml, left {found.left_ml:.0f} ml"
    print(f"{out.name}: {ml}, {words}, {cpu_s:.2f} s", flush=True)
    axial = [(0, index) for index in spread(found.mask.array, axis=0, n=12)]
    upright = [(axis, index) for axis in (1, 2) for index in spread(found.mask.array, axis, n=6)]
    for name, planes in (("axial", axial), ("upright", upright)):
        pictures = [picture(volume.array.take(i, axis), found.mask.array.take(i, axis)) for axis, i in planes]
        if name == "upright":
            pictures = [p[::-1] for p in pictures]  # head up
        imsave(f"{out}_{name}.png", sheet(pictures))


def spread(mask: NDArray[np.uint8], axis: int, n: int) -> list[int]:
    """`n` planes over the extent of the lungs, or of the volume if there are none."""
    others = tuple(a for a in range(3) if a != axis)
    where = np.flatnonzero(mask.any(axis=others)) if mask.any() else np.arange(mask.shape[axis])
    return [int(i) for i in np.linspace(where[0], where[-1], n + 2)[1:-1]]


def picture(plane: NDArray[np.int16], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    low, high = LUNG_WINDOW_HU
    grey = np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1) * 255
    colours = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    for label, colour in OUTLINES.items():
        is_lung = np.pad(mask == label, 1)
        inner = is_lung[:-2, 1:-1] & is_lung[2:, 1:-1] & is_lung[1:-1, :-2] & is_lung[1:-1, 2:]
        colours[is_lung[1:-1, 1:-1] & ~inner] = colour
    return colours


def sheet(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures side by side, COLUMNS in a row."""
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    rows = -(-len(pictures) // COLUMNS)
    canvas = np.zeros((rows * height, COLUMNS * width, 3), np.uint8)
    for n, p in enumerate(pictures):
        y, x = n // COLUMNS * height, n % COLUMNS * width
        canvas[y : y + p.shape[0], x : x + p.shape[1]] = p
    return canvas


if __name__ == "__main__":
    main()

"""Real series in other forms, as exports make them, and which of them `duplicates` finds.

    python benchmarks/forms.py SERIES_FOLDER ... [--spacing 2]

Each folder has one uncompressed CT series of a chest. It is written at half its resolution in plane, as it is and in
further forms: in its own frame of reference by other kernels and in thicker slices; and under other names and UIDs.
Two forms are the same patient at another time: turned, stretched, and moved smoothly. See docs/cohort.md.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy import ndimage

import dskprep
from dskprep.reading import duplicates, fingerprint
from dskprep.settings import PrepConfig

Floats = NDArray[np.float32]
INTERCEPT_HU = -1024
"""Of all that is written; lower values become it."""


@dataclass
class Form:
    """HU (z, y, x) of a form, which slices their headers come from, and what else is other than in the series."""

    name: str
    hu: Floats
    first: int = 0
    each: int = 1
    moved_mm: tuple[float, float, float] = (0, 0, 0)
    spacing_mm: tuple[float, float] | None = None
    slope: float = 1
    kernel: str = ""
    is_own_frame: bool = False
    is_own_patient: bool = False


def read(folder: Path) -> tuple[list[pydicom.Dataset], Floats]:
    """Return the headers and HU of a series, from low to high z, at half its resolution in plane."""
    slices = [pydicom.dcmread(path, force=True) for path in sorted(folder.rglob("*")) if path.is_file()]
    slices = sorted((s for s in slices if "PixelData" in s), key=lambda s: float(s.ImagePositionPatient[2]))
    hu = np.stack([s.pixel_array * np.float32(s.RescaleSlope) + np.float32(s.RescaleIntercept) for s in slices])
    n, rows, columns = hu.shape
    half = np.maximum(hu, INTERCEPT_HU)[:, : rows // 2 * 2, : columns // 2 * 2]
    for one in slices:
        one.PixelSpacing = [2 * float(mm) for mm in one.PixelSpacing]
    return slices, half.reshape(n, rows // 2, 2, columns // 2, 2).mean((2, 4), dtype=np.float32)


def thick(hu: Floats, n: int) -> Floats:
    whole = hu[: len(hu) // n * n]
    mean: Floats = whole.reshape(-1, n, *hu.shape[1:]).mean(1, dtype=np.float32)
    return mean


def later(hu: Floats, mm: NDArray[np.float64], degrees: float, stretch: float, sd_mm: float) -> Floats:
    """The same body at another time, with noise of its own."""
    noise = np.random.default_rng(int(degrees))
    middle = (np.array(hu.shape) - 1)[:, None, None, None] / 2
    z, y, x = (np.indices(hu.shape) - middle) * mm[:, None, None, None]
    turn = np.deg2rad(degrees)
    places = np.stack([z * (1 + stretch), y * np.cos(turn) - x * np.sin(turn), y * np.sin(turn) + x * np.cos(turn)])
    for axis in range(3):
        move = ndimage.gaussian_filter(noise.standard_normal(hu.shape), 25 / mm)
        places[axis] += move / move.std() * sd_mm
    moved = ndimage.map_coordinates(hu, places / mm[:, None, None, None] + middle, order=1, mode="nearest")
    return np.asarray(moved + noise.normal(0, 12, hu.shape) * (moved > -1000), np.float32)


def forms(slices: list[pydicom.Dataset], hu: Floats) -> Iterator[Form]:
    n, rows, columns = hu.shape
    y_mm, x_mm = map(float, slices[0].PixelSpacing)
    step_mm = float(slices[1].ImagePositionPatient[2]) - float(slices[0].ImagePositionPatient[2])
    soft: Floats = ndimage.gaussian_filter(hu, (0, 0.9, 0.9))
    yield Form("itself", hu, is_own_frame=True)
    yield Form("other kernel, same frame", soft, kernel="B30f", is_own_frame=True)
    yield Form("sharper kernel, same frame", 2 * hu - soft, kernel="B70f", is_own_frame=True)
    yield Form("twice as thick, same frame", thick(hu, 2), each=2, moved_mm=(0, 0, step_mm / 2), is_own_frame=True)
    yield Form("sent again", hu)
    noise = np.random.default_rng(1).integers(-1, 2, hu.shape)
    yield Form("moved, with noise", hu + noise, moved_mm=(33.3, -12.1, 400.7))
    yield Form("in steps of 3 HU", hu, slope=3)
    yield Form("clipped", hu.clip(-1000, 400))
    yield Form("256 grey values", (hu.clip(-1000, 400) + 1000) / 1400 * 255 // 1 * 1400 / 255 - 1000)
    small = ndimage.zoom(hu, (1, 0.8, 0.8), order=1)
    edges = (rows - 1) / (small.shape[1] - 1), (columns - 1) / (small.shape[2] - 1)
    yield Form("other pixel spacing", small, spacing_mm=(y_mm * edges[0], x_mm * edges[1]))
    yield Form("smoother kernel", soft, kernel="B30f")
    yield Form("sharper kernel", 2 * hu - soft, kernel="B70f")
    yield Form("three times as thick", thick(hu, 3), each=3, moved_mm=(0, 0, step_mm))
    y, x = rows // 10, columns // 10
    yield Form("cut in plane", hu[:, y:-y, x:-x], moved_mm=(x * x_mm, y * y_mm, 0))
    yield Form("cut at both ends", hu[n // 10 : n - n // 10], first=n // 10)
    yield Form("cut at the head", hu[: n - n // 5])
    yield Form("cut at the feet", hu[n // 4 :], first=n // 4)
    yield Form("mirrored", hu[:, :, ::-1])
    yield Form("upside down", hu[::-1])
    mm = np.array([step_mm, y_mm, x_mm])
    for degrees, stretch, sd_mm in ((1, 0.01, 1.5), (2, 0.03, 3)):
        yield Form(f"later by {sd_mm:g} mm", later(hu, mm, degrees, stretch, sd_mm), is_own_patient=True)


def write(folder: Path, series: str, form: Form, slices: list[pydicom.Dataset]) -> None:
    """Write a form as <series>--<form>/<n>.dcm."""
    place = folder / f"{series}--{form.name.replace(' ', '-').replace(',', '')}"
    place.mkdir(parents=True)

    def uid(*words: Any) -> str:
        return f"2.25.{int(hashlib.sha256(repr((series, form.name, *words)).encode()).hexdigest()[:30], 16)}"

    for k, plane in enumerate(form.hu):
        one = copy.deepcopy(slices[form.first + k * form.each])
        for keyword in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
            if keyword in one:
                delattr(one, keyword)
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        stored = np.rint((plane - INTERCEPT_HU) / form.slope).clip(-32000, 32000).astype(np.int16)
        one.PixelData, (one.Rows, one.Columns) = stored.tobytes(), stored.shape
        one["PixelData"].VR = "OW"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleSlope, one.RescaleIntercept = str(form.slope), str(INTERCEPT_HU)
        one.SliceThickness = str(float(one.SliceThickness) * form.each)
        one.ConvolutionKernel = form.kernel or one.get("ConvolutionKernel", "")
        if form.spacing_mm:
            one.PixelSpacing = [f"{mm:.8f}" for mm in form.spacing_mm]
        at = np.array(one.ImagePositionPatient, float)
        one.ImagePositionPatient = [f"{mm:.4f}" for mm in at + form.moved_mm]
        one.InstanceNumber, one.SOPInstanceUID, one.SeriesInstanceUID = k + 1, uid(k), uid()
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        if not form.is_own_frame:
            one.StudyInstanceUID, one.FrameOfReferenceUID = uid("study"), uid("frame")
            one.PatientID = one.PatientID if form.is_own_patient else uid("patient")
        one.save_as(place / f"{k:04}.dcm", enforce_file_format=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", type=Path, nargs="+")
    parser.add_argument("--spacing", type=float, default=2.0, help="of the dataset, in mm")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number, series in enumerate(asked.series):
            slices, hu = read(series)
            for form in forms(slices, hu):
                write(Path(folder) / "in", f"s{number}", form, slices)
        settings = PrepConfig(spacing_mm=(asked.spacing,) * 3)
        dskprep.run(f"{folder}/in", f"{folder}/out", settings=settings)
        tell(dskprep.open_dataset(f"{folder}/out"))


def tell(dataset: dskprep.Dataset) -> None:
    """Print what became of each form, against the series itself; and of all pairs of two patients."""
    pairs = {(row.key, row.other): row.kind for row in dataset.duplicates().pairs.itertuples()}
    looks = duplicates._Looks(dataset.url, {row["key"]: row for row in dataset.rows})
    found, likeness, others = defaultdict(list), defaultdict(list), []
    for one, other in itertools.combinations(sorted(dataset), 2):
        alike = fingerprint.likeness(looks(one), looks(other))
        (series, form), (other_series, other_form) = one.split("--"), other.split("--")
        if series != other_series:
            others.append((alike, (one, other) in pairs))
        elif "itself" in (form, other_form):
            name = other_form if form == "itself" else form
            found[name].append(pairs.get((one, other), ""))
            likeness[name].append(alike)
        elif form.startswith("later") != other_form.startswith("later"):
            found["later, and any form"].append(pairs.get((one, other), ""))
            likeness["later, and any form"].append(alike)
    for name in found:
        n_found = sum(map(bool, found[name]))
        kinds = ", ".join(sorted({kind for kind in found[name] if kind}))
        alike = f"{min(likeness[name]):.2f} to {max(likeness[name]):.2f}"
        print(f"{name:28} {n_found} of {len(found[name])}, alike to {alike}: {kinds}")
    print(f"two patients: {sum(n for _, n in others)} of {len(others)}, alike to {max(others)[0]:.2f} at most")


if __name__ == "__main__":
    main()

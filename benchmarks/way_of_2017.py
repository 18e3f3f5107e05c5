"""The way of 2017, written from its rules: fixed lists, one process each, one GET after another.

Each process takes its list of patients in turn: every slice by a GET of its own, sorted by z, HU, a cubic
zoom to 1 mm, -1000..400 HU to 0..1, minus 0.25, written back as one float64 .npy. The number of processes
is 1.5 a CPU. Nothing is retried, and nothing notes which patients are done.

    python benchmarks/way_of_2017.py SOURCE TARGET        (S3 URLs)
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import time

import numpy as np
import pydicom
import s3fs
from scipy import ndimage


def prepare(slices: list[pydicom.Dataset]) -> np.ndarray:
    """Load, HU, resample, normalise, centre: steps 1 to 5, 12 and 13 of the tutorial."""
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    thickness = abs(slices[0].ImagePositionPatient[2] - slices[1].ImagePositionPatient[2])
    image = np.stack([s.pixel_array for s in slices]).astype(np.int16)
    image[image == -2000] = 0
    for i, s in enumerate(slices):
        if s.RescaleSlope != 1:
            image[i] = (float(s.RescaleSlope) * image[i].astype(np.float64)).astype(np.int16)
        image[i] += np.int16(s.RescaleIntercept)
    spacing = np.array([thickness, *slices[0].PixelSpacing], np.float64)
    factor = np.round(image.shape * spacing) / image.shape
    image = ndimage.zoom(image, factor, mode="nearest")
    return np.clip((image + 1000.0) / 1400.0, 0, 1) - 0.25


def work(patients: list[str], target: str) -> None:
    fs = s3fs.S3FileSystem()
    for patient in patients:
        slices = [pydicom.dcmread(io.BytesIO(fs.cat_file(path))) for path in fs.ls(patient)]
        slices = [s for s in slices if "LOCALIZER" not in s.ImageType]  # the demo's first patient has one
        buffer = io.BytesIO()
        np.save(buffer, prepare(slices))
        fs.pipe_file(f"{target}/{patient.rpartition('/')[2]}.npy", buffer.getvalue())
        print(time.time(), flush=True)


def main() -> None:
    source, target = sys.argv[1:]
    patients = sorted(s3fs.S3FileSystem().ls(source))
    n = int(1.5 * (os.cpu_count() or 1))
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=work, args=(patients[i::n], target)) for i in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()

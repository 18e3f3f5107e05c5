"""Random patches a second, as training reads them: dskprep beside other ways, from a folder and from S3.

    python benchmarks/reading.py [DATASET] [--rounds 5]

Without a dataset, two synthetic patients are prepared at 1 mm. Their volumes are also written as float64 .npy (the
way of 2017, values normalized) and as int16 .nii.gz. Every way draws patches of the same sizes at random
places of the same volumes, the ways by turns, in one process (zarr-python decodes in several threads, PyTorch
and dskprep in one); benchmarks/results/reading.json has medians over the rounds. S3 is SeaweedFS on
loopback, so requests have no latency of their own. TorchIO and MONAI are left out, with a line, where they are not
installed; they read files, so from S3 they are given a copy fetched for each load. "16 a load" takes
sixteen patches from each volume once it is in memory, as their queues do: patches of one batch are then of one patient.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import common
import nibabel as nib
import numpy as np
from numpy.typing import NDArray

import dskprep
from dskprep import storage
from dskprep.synthetic import scanner
from dskprep.synthetic.s3server import S3Server

SIZES = (64, 128)
PATCHES = 16
"""That a way draws in a round; those that load a whole volume for each, SLOW."""
SLOW = 4
PACKAGES = ("dskprep", "zarr", "nibabel", "torchio", "monai")

Box = tuple[str, tuple[slice, slice, slice]]
Way = Callable[[str, list[Box]], list[NDArray[np.generic]]]
"""Patches of the boxes, from the place of that URL."""


def dskprep_patch(url: str, boxes: list[Box]) -> list[NDArray[np.generic]]:
    return [volume(url, key).patch(_size(box), index=_middle(box)).array for key, box in boxes]


def zarr_slice(url: str, boxes: list[Box]) -> list[NDArray[np.generic]]:
    return [np.asarray(volume(url, key).image[box]) for key, box in boxes]


def npy(url: str, boxes: list[Box]) -> list[NDArray[np.generic]]:
    return [np.load(io.BytesIO(storage.read(f"{url}/npy/{key}.npy")))[box] for key, box in boxes]


def npy_mapped(url: str, boxes: list[Box]) -> list[NDArray[np.generic]]:
    return [np.array(np.load(f"{url}/npy/{key}.npy", mmap_mode="r")[box]) for key, box in boxes]


def nifti(url: str, boxes: list[Box]) -> list[NDArray[np.generic]]:
    found = []
    for key, box in boxes:
        with local(url, key) as path:
            found.append(np.asarray(nib.Nifti1Image.from_filename(path).dataobj).T[box].copy())
    return found


def torchio(url: str, boxes: list[Box]) -> list[NDArray[np.generic]]:
    return [patch for one in boxes for patch in torchio_16(url, [one])]


def torchio_16(url: str, boxes: list[Box]) -> list[NDArray[np.generic]]:
    import torchio as tio

    found: list[NDArray[np.generic]] = []
    for key, some in itertools.groupby(boxes, key=lambda box: box[0]):
        with local(url, key) as path:
            subject = tio.Subject(ct=tio.ScalarImage(path))
            subject.load()
            sampler = tio.data.UniformSampler(_size(boxes[0][1])[::-1])
            for _, box in some:
                first = np.array([part.start for part in box][::-1])
                patch = sampler.extract_patch(subject, tuple(int(n) for n in first))
                found.append(patch["ct"].data[0].numpy().T)
    return found


def monai(url: str, boxes: list[Box]) -> list[NDArray[np.generic]]:
    return [patch for one in boxes for patch in monai_16(url, [one])]


def monai_16(url: str, boxes: list[Box]) -> list[NDArray[np.generic]]:
    from monai.transforms import LoadImage, SpatialCrop

    found: list[NDArray[np.generic]] = []
    for key, some in itertools.groupby(boxes, key=lambda box: box[0]):
        with local(url, key) as path:
            image = LoadImage(image_only=True, ensure_channel_first=True, dtype=np.int16)(path)
            for _, box in some:
                crop = SpatialCrop(roi_slices=list(box[::-1]))
                found.append(np.asarray(crop(image)[0]).T)
    return found


WAYS: dict[str, tuple[Way, bool]] = {
    "dskprep, `volume.patch`": (dskprep_patch, True),
    "dskprep's volume by zarr-python, `volume.image[...]`": (zarr_slice, True),
    "float64 `.npy`, whole (2017)": (npy, False),
    "float64 `.npy`, memory-mapped": (npy_mapped, True),
    "int16 `.nii.gz`, nibabel": (nifti, False),
    "TorchIO on `.nii.gz`": (torchio, False),
    "TorchIO on `.nii.gz`, 16 a load": (torchio_16, True),
    "MONAI on `.nii.gz`": (monai, False),
    "MONAI on `.nii.gz`, 16 a load": (monai_16, True),
}
"""Each way, and whether it draws many patches in a round."""

_volumes: dict[tuple[str, str], dskprep.StoredVolume] = {}


def volume(url: str, key: str) -> dskprep.StoredVolume:
    if (url, key) not in _volumes:
        _volumes[url, key] = dskprep.open_dataset(f"{url}/dskprep")[key]
    return _volumes[url, key]


@contextlib.contextmanager
def local(url: str, key: str) -> Iterator[str]:
    """A path of the volume's .nii.gz: itself, or a copy made for this one load."""
    if not url.startswith("s3://"):
        yield f"{url}/nifti/{key}.nii.gz"
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{key}.nii.gz")
        path.write_bytes(storage.read(f"{url}/nifti/{key}.nii.gz"))
        yield str(path)


def _size(box: tuple[slice, slice, slice]) -> tuple[int, int, int]:
    z, y, x = (part.stop - part.start for part in box)
    return z, y, x


def _middle(box: tuple[slice, slice, slice]) -> list[int]:
    return [part.start + (part.stop - part.start) // 2 for part in box]


def boxes_of(dataset: dskprep.Dataset, edge: int, n: int, rng: np.random.Generator) -> list[Box]:
    """Random boxes inside random volumes."""
    found, keys = [], list(dataset)
    for _ in range(n):
        key = keys[rng.integers(len(keys))]
        z, y, x = (int(rng.integers(size - edge + 1)) for size in dataset[key].shape)
        found.append((key, (slice(z, z + edge), slice(y, y + edge), slice(x, x + edge))))
    return found


def write(source: str, folder: str) -> dskprep.Dataset:
    """The volumes of a dataset large enough for a patch, in every form."""
    dataset = dskprep.open_dataset(source).where(lambda row: min(row["n_z"], row["n_y"], row["n_x"]) >= max(SIZES))
    for name in storage.listing_below(source):
        storage.write_many(f"{folder}/dskprep", {name.name: storage.read(f"{source}/{name.name}")})
    for key in dataset:
        buffer = io.BytesIO()
        np.save(buffer, dataset[key].normalized().array.astype(np.float64))
        storage.write_many(f"{folder}/npy", {f"{key}.npy": buffer.getvalue()})
        Path(folder, "nifti").mkdir(exist_ok=True)
        dataset[key].to_nifti().to_filename(f"{folder}/nifti/{key}.nii.gz")
    return dataset


def check(found: list[NDArray[np.generic]], boxes: list[Box], dataset: dskprep.Dataset) -> None:
    """The patches are those asked for, whatever the values' type."""
    for patch, (key, box) in zip(found, boxes, strict=True):
        truth = np.asarray(dataset[key].image[box])
        if patch.dtype == np.float64:
            truth = np.clip((truth + 1000.0) / 1400.0, 0, 1) - 0.25
        np.testing.assert_allclose(patch, truth, atol=1e-5)


def measure(
    report: common.Report, places: dict[str, str], dataset: dskprep.Dataset, ways: list[str], rounds: int
) -> None:
    rng = np.random.default_rng(0)
    rates: dict[tuple[str, str, int], list[float]] = {}
    for turn in range(rounds + 1):
        for (name, url), edge in itertools.product(places.items(), SIZES):
            for way in ways:
                draw, is_fast = WAYS[way]
                if draw is npy_mapped and url.startswith("s3://"):
                    continue
                key = list(dataset)[turn % len(dataset)]
                some = dataset.select([key]) if "a load" in way else dataset
                boxes = boxes_of(some, edge, PATCHES if is_fast else SLOW, rng)
                start = time.perf_counter()
                found = draw(url, boxes)
                seconds = time.perf_counter() - start
                if turn:
                    rates.setdefault((way, name, edge), []).append(len(boxes) / seconds)
                else:  # what is opened, compiled or cached once is so before the first round that counts
                    check(found, boxes, dataset)
    columns = [(name, edge) for name in places for edge in SIZES]
    found = [[rates.get((way, name, edge)) for name, edge in columns] for way in ways]
    cells = [[f"{statistics.median(cell):.3g}" if cell else "-" for cell in row] for row in found]
    header = ["patches per second", *(f"{edge}³, {name}" for name, edge in columns)]
    report.table(header, [[way, *row] for way, row in zip(ways, cells, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    ways = []
    for way in WAYS:
        library = way.split()[0].lower()
        if library in ("torchio", "monai") and not importlib.util.find_spec(library):
            print(f"{library} is not installed: left out", file=sys.stderr)
        else:
            ways.append(way)
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, S3Server() as server:
        source = options.dataset
        if source is None:
            scanner.write_patients(f"{folder}/scans", 2, broken=False)
            dskprep.run(f"{folder}/scans", f"{folder}/prepared")
            source = f"{folder}/prepared"
        dataset = write(storage.absolute(source), f"{folder}/disk")
        os.environ.update(server.environment)
        url = f"{server.make_bucket('bench')}/volumes"
        for entry in storage.listing_below(f"{folder}/disk"):
            storage.write_many(url, {entry.name: storage.read(f"{folder}/disk/{entry.name}")})
        shapes = ", ".join(" x ".join(map(str, dataset[key].shape)) for key in dataset)
        with common.report(options.results / "reading.json", "Reading patches", PACKAGES) as report:
            report.line(f"{len(dataset)} volumes: {shapes}. Medians of {options.rounds} rounds by turns.")
            measure(report, {"disk": f"{folder}/disk", "S3": url}, dataset, ways, options.rounds)


if __name__ == "__main__":
    main()

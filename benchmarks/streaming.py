"""Random patches a second, as a loader feeds a GPU: `stream` beside other loaders, from a folder, S3 and a slow S3.

    python benchmarks/streaming.py [DATASET] [--rounds 3] [--ways stream,tensorstore]

Without a dataset, two synthetic patients are prepared at 1 mm. Every way gives image and lungs of patches, int16
and uint8, around the same places of the same volumes: those that the stream draws, in its order. The ways take turns.
benchmarks/results/streaming.json has the median over the rounds, and the worst one: CPU milliseconds per patch, of this
process with all its threads, and patches per second of wall time. S3 is SeaweedFS on loopback; the slow one lies behind
`lag.py`, which holds each byte back for 30 to 50 ms. Each way is in its best form:

- zarr-python reads by 16 threads, from S3 by obstore.
- tensorstore has 80 reads under way, and 512 MiB for decoded chunks: those of four volumes, which come together.
- TorchIO's queue holds 300 patches, 32 of each volume that it loads; it reads .nii.gz, from S3 by a copy for each load.
- MONAI's CacheDataset holds all volumes decoded in memory, and only cuts: it is loaded before the clock starts.

A library that is not installed is left out, with a line.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np

import dskprep
from dskprep import storage
from dskprep.synthetic import scanner
from dskprep.synthetic.s3server import S3Server

BATCH = 8
PATCHES = {64: 384, 128: 128}
"""Patches of a round, by their edge."""
WINDOW = 128
"""Patches of a window: 32 of each of four volumes."""
MASK = "labels/lungs"


class Box(NamedTuple):
    """A box of a volume, shifted into it where it would reach beyond."""

    key: str
    part: tuple[slice, slice, slice]


Pair = tuple[np.ndarray, np.ndarray]
Way = Callable[[dskprep.Dataset, int], Iterator[Any]]
"""Yields patches without end, those of a dataset with that edge, one by one or several at once (a list)."""


def streamed(dataset: dskprep.Dataset, edge: int, *, normalized: bool = False) -> dskprep.Stream:
    """Windows of four volumes, half as many as by default, in half the memory: a few volumes then are as many are."""
    drawn = dataset.lung_patches(edge, seed=1, normalized=normalized)
    return drawn.stream(BATCH, volumes=4, memory=2**31)


def boxes(dataset: dskprep.Dataset, edge: int) -> Iterator[Box]:
    drawn = streamed(dataset, edge).draws
    shapes = {key: volume.shape for key, volume in dataset.items()}
    for number in itertools.count():
        spot = drawn.spot(number)
        ends = zip(drawn.first(spot.index), shapes[spot.key], strict=True)
        first = [min(max(start, 0), n - edge) for start, n in ends]
        yield Box(spot.key, tuple(slice(start, start + edge) for start in first))  # type: ignore[arg-type]


def stream(dataset: dskprep.Dataset, edge: int) -> Iterator[Any]:
    for batch in streamed(dataset, edge):
        yield list(zip(batch["image"], batch["lungs"], strict=True))


def normalized(dataset: dskprep.Dataset, edge: int) -> Iterator[Any]:
    for batch in streamed(dataset, edge, normalized=True):
        yield list(zip(batch["image"], batch["lungs"], strict=True))


def one_by_one(dataset: dskprep.Dataset, edge: int) -> Iterator[Any]:
    drawn = streamed(dataset, edge).draws
    for number in itertools.count():
        patch = drawn.draw(number)
        yield [(patch.image.array, patch.lungs)]


def zarr_python(dataset: dskprep.Dataset, edge: int) -> Iterator[Any]:
    import zarr
    from obstore.store import LocalStore, S3Store
    from zarr.storage import ObjectStore

    def opened(url: str) -> Any:
        if url.startswith("s3://"):
            bucket, _, path = url.removeprefix("s3://").partition("/")
            options: Any = {"allow_http": True}
            store: Any = S3Store(bucket, prefix=path, endpoint=os.environ["AWS_ENDPOINT_URL"], client_options=options)
        else:
            store = LocalStore(url)
        return zarr.open_group(ObjectStore(store, read_only=True), mode="r")

    groups = {key: opened(volume.url) for key, volume in dataset.items()}
    arrays = {key: (group["0"], group[f"{MASK}/0"]) for key, group in groups.items()}
    with ThreadPoolExecutor(16) as threads:
        yield from ahead(boxes(dataset, edge), 32, lambda box: threads.submit(cut, arrays[box.key], box.part))


def cut(arrays: tuple[Any, Any], part: Any) -> list[Pair]:
    image, lungs = arrays
    return [(np.asarray(image[part]), np.asarray(lungs[part]))]


def ahead(values: Iterator[Any], n: int, submit: Callable[[Any], Any]) -> Iterator[Any]:
    under_way = deque(map(submit, itertools.islice(values, n)))
    for value in values:
        yield under_way.popleft().result()
        under_way.append(submit(value))


def tensorstore(dataset: dskprep.Dataset, edge: int) -> Iterator[Any]:
    import tensorstore as ts

    volumes = dict(dataset.items())

    @functools.lru_cache(64)
    def opened(window: int, key: str, path: str) -> Any:
        """An array; its chunks are not those of an earlier window, as they would not be among many volumes."""
        url = volumes[key].url
        kvstore: dict[str, Any] = {"driver": "file", "path": f"{url}/{path}/"}
        if url.startswith("s3://"):
            bucket, _, below = url.removeprefix("s3://").partition("/")
            kvstore = {"driver": "s3", "bucket": bucket, "path": f"{below}/{path}/", "aws_region": "us-east-1"}
            kvstore["endpoint"] = os.environ["AWS_ENDPOINT_URL"]
        spec = {"driver": "zarr3", "kvstore": kvstore, "recheck_cached_data": False}
        return ts.open(spec, read=True, context=context(window)).result()

    @functools.lru_cache(2)
    def context(window: int) -> Any:
        del window
        return ts.Context({"cache_pool": {"total_bytes_limit": 2**29}})

    def read(numbered: tuple[int, Box]) -> Any:
        number, box = numbered
        image, lungs = (opened(number // WINDOW, box.key, path)[box.part].read() for path in ("0", f"{MASK}/0"))
        return Both(image, lungs)

    yield from ahead(enumerate(boxes(dataset, edge)), 80, read)


class Both(NamedTuple):
    image: Any
    lungs: Any

    def result(self) -> list[Pair]:
        return [(self.image.result(), self.lungs.result())]


def nifti(dataset: dskprep.Dataset, key: str, of: str) -> np.ndarray:
    """The voxels (x, y, z) of a volume's .nii.gz, which lies beside the dataset."""
    import nibabel as nib

    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
        path = f"{dataset.url}/../nifti/{key}-{of}.nii.gz"
        if dataset.url.startswith("s3://"):
            file.write(storage.read(f"{dataset.url.rpartition('/')[0]}/nifti/{key}-{of}.nii.gz"))
            file.flush()
            path = file.name
        return np.asarray(nib.Nifti1Image.from_filename(path).dataobj)


def torchio(dataset: dskprep.Dataset, edge: int) -> Iterator[Any]:
    import torch
    import torchio as tio

    def reader(path: Any) -> Any:
        key, _, of = Path(path).name.rpartition("-")
        return torch.from_numpy(nifti(dataset, key, of)[None]), np.eye(4)

    folder = Path(tempfile.mkdtemp())  # TorchIO wants a file to be there, whoever reads it

    def subject(key: str) -> Any:
        image, lungs = (folder / f"{key}-{of}" for of in ("image", "lungs"))
        image.touch()
        lungs.touch()
        return tio.Subject(ct=tio.ScalarImage(image, reader=reader), lungs=tio.LabelMap(lungs, reader=reader))

    subjects = tio.SubjectsDataset([subject(key) for key in dataset])
    queue = tio.Queue(subjects, 300, 32, tio.data.LabelSampler(edge, "lungs"), num_workers=0)
    while True:
        for item in torch.utils.data.DataLoader(queue, batch_size=BATCH, num_workers=0):
            yield list(zip(item["ct"]["data"].numpy(), item["lungs"]["data"].numpy(), strict=True))


def monai(dataset: dskprep.Dataset, edge: int) -> Iterator[Any]:
    from monai.data import CacheDataset, DataLoader, list_data_collate
    from monai.transforms import Compose, Lambdad, RandCropByPosNegLabeld

    crop = RandCropByPosNegLabeld(["image", "lungs"], "lungs", (edge,) * 3, pos=1, neg=0, num_samples=32)
    load = [Lambdad(of, lambda key, of=of: nifti(dataset, key, of)[None]) for of in ("image", "lungs")]
    items = [{"image": key, "lungs": key} for key in dataset]
    cached = CacheDataset(items, Compose([*load, crop]), num_workers=0, progress=False)
    while True:
        for batch in DataLoader(cached, batch_size=1, shuffle=True, collate_fn=list_data_collate):
            yield list(zip(batch["image"].numpy(), batch["lungs"].numpy(), strict=True))


WAYS: dict[str, tuple[str, Way, int]] = {
    "stream": ("", stream, 1),
    "stream, normalized to float32": ("", normalized, 1),
    "one by one (`draw`)": ("", one_by_one, 4),
    "zarr-python": ("zarr", zarr_python, 4),
    "tensorstore": ("tensorstore", tensorstore, 1),
    "TorchIO queue": ("torchio", torchio, 4),
    "MONAI CacheDataset": ("monai", monai, 1),
}
"""Each way, the library that it needs, and by what its rounds are shorter."""


class Rate(NamedTuple):
    per_s: float
    cpu_ms: float


def write(source: str, folder: str, *, is_nifti_needed: bool) -> None:
    """The dataset, and its volumes as .nii.gz."""
    for entry in storage.listing_below(source):
        storage.write_many(f"{folder}/dskprep", {entry.name: storage.read(f"{source}/{entry.name}")})
    Path(folder, "nifti").mkdir()
    for key, volume in dskprep.open_dataset(source).items() if is_nifti_needed else ():
        for of in ("image", "lungs"):
            volume.to_nifti(of).to_filename(f"{folder}/nifti/{key}-{of}.nii.gz")


def measure(patches: Iterator[Any], n: int) -> Rate:
    start, done = common.now(), 0
    while done < n:
        done += len(next(patches))
    seconds = common.now() - start
    return Rate(done / seconds.wall, 1000 * seconds.cpu / done)


def rates(dataset: dskprep.Dataset, edge: int, ways: list[str], rounds: int) -> dict[str, list[Rate]]:
    """The rates of each way in each round, after twice as many patches, which touch the memory for the first time."""
    found: dict[str, list[Rate]] = {way: [] for way in ways}
    for _, way in itertools.product(range(rounds), ways):
        n = max(2 * BATCH, PATCHES[edge] // WAYS[way][2])
        with contextlib.closing(WAYS[way][1](dataset, edge)) as patches:  # type: ignore[type-var]
            measure(patches, 2 * n)
            found[way].append(measure(patches, n))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="")
    parser.add_argument("--places", default="disk,S3,slow S3")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    options = parser.parse_args()
    ways = [way for way in WAYS if not options.ways or any(way.startswith(w) for w in options.ways.split(","))]
    for way in [way for way in ways if WAYS[way][0] and not importlib.util.find_spec(WAYS[way][0])]:
        print(f"{way} is not installed: left out", file=sys.stderr)
        ways.remove(way)
    with tempfile.TemporaryDirectory() as folder, S3Server() as server:
        source = options.dataset
        if source is None:
            scanner.write_patients(f"{folder}/scans", 2, broken=False)
            dskprep.run(f"{folder}/scans", f"{folder}/prepared")
            source = f"{folder}/prepared"
        is_nifti_needed = any(WAYS[way][1] in (torchio, monai) for way in ways)
        write(storage.absolute(source), f"{folder}/disk", is_nifti_needed=is_nifti_needed)
        os.environ.update(server.environment)
        url = f"{server.make_bucket('bench')}/volumes"
        for entry in storage.listing_below(f"{folder}/disk"):
            storage.write_many(url, {entry.name: storage.read(f"{folder}/disk/{entry.name}")})
        lag = [sys.executable, Path(__file__).with_name("lag.py"), server.endpoint.rpartition(":")[2]]
        packages = ["dskprep", *filter(None, (WAYS[way][0] for way in ways))]
        with (
            subprocess.Popen(lag, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy,
            common.report(options.results / "streaming.json", "Patches for training", packages) as report,
        ):
            assert proxy.stdout is not None
            slow = f"http://127.0.0.1:{proxy.stdout.readline().strip()}"
            found: dict[tuple[str, int], dict[str, list[Rate]]] = {}
            places = {"disk": f"{folder}/disk", "S3": url, "slow S3": url}
            for place in options.places.split(","):
                os.environ["AWS_ENDPOINT_URL"] = slow if place == "slow S3" else server.endpoint
                dataset = dskprep.open_dataset(f"{places[place]}/dskprep")
                for edge in PATCHES:
                    found[place, edge] = rates(dataset, edge, ways, options.rounds)
            shapes = ", ".join(" x ".join(map(str, dataset[key].shape)) for key in dataset)
            proxy.kill()
            report.line(f"{len(dataset)} volumes: {shapes}. Median and worst of {options.rounds} rounds by turns.")
            header = ("", *(f"{edge}^3, {place}" for place, edge in found))
            report.heading("CPU milliseconds per patch, of all threads")
            report.table(header, [[way, *(cpu_of(of[way]) for of in found.values())] for way in ways])
            report.heading("Patches per second of wall time")
            report.table(header, [[way, *(speed_of(of[way]) for of in found.values())] for way in ways])


def cpu_of(found: list[Rate]) -> str:
    cpu_ms = [rate.cpu_ms for rate in found]
    return f"{statistics.median(cpu_ms):.2f} ({max(cpu_ms):.2f})"


def speed_of(found: list[Rate]) -> str:
    per_s = [rate.per_s for rate in found]
    return f"{statistics.median(per_s):.0f} ({min(per_s):.0f})"


if __name__ == "__main__":
    main()

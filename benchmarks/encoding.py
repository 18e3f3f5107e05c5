"""The choice of codec, chunk, shard and writer, and of what is stored: CPU, bytes, dollars and the speed of patches.

    python benchmarks/encoding.py [--quick] [--results FOLDER] [FOLDER_OF_DICOM ...]

Every variant writes the default preset's image of one series to a folder; then zarr-python and, where installed,
zarrs read random patches of 64^3 and 128^3 voxels of it. One CPU, files in the page cache, medians. Without folders:
a synthetic patient, and the volumes below DSKPREP_DATA if it is set. Writes benchmarks/results/encoding.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common

os.environ.update(common.ONE_THREAD)

import numpy as np
import ways
import zarr
from numcodecs import blosc
from scipy import ndimage
from zarr.codecs import BloscCodec, ZstdCodec

from dskprep import settings as config
from dskprep import storage
from dskprep.dataset import omezarr
from dskprep.preparation.prepared import Prepared

PIPELINES = {
    "zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    **({"zarrs": "zarrs.ZarrsCodecPipeline"} if find_spec("zarrs") else {}),
}
DOLLARS_A_GB_MONTH = 0.023
"""S3 Standard, us-east-1."""

DOLLARS_A_CPU_HOUR = 0.05
"""A vCPU of a c4.2xlarge on demand."""

PATCHES = (64, 128)
AIR = -1024


@dataclass(frozen=True)
class Variant:
    """`write` puts an image, whose empty value is `fill`, into a folder; the array is `0` below it."""

    write: Callable[[np.ndarray, int, Path], None]


def dskprep(**settings: Any) -> Variant:
    """As `dskprep run` writes."""

    def write(image: np.ndarray, fill: int, target: Path) -> None:
        whole = config.PrepConfig(**settings)
        storage.write_many(str(target), omezarr.encode(_prepared(image, fill), whole, {}))

    return Variant(write)


def by_zarr(codec: Any, *, pipeline: str = "zarr-python", is_sharded: bool = True, serializer: Any = "auto") -> Variant:
    """As zarr writes, with a codec pipeline; sharded, it is one shard."""
    edge = 64

    def write(image: np.ndarray, fill: int, target: Path) -> None:
        with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of codecs that are not in zarr's specification yet
            array = zarr.create_array(
                str(target / "0"),
                shape=image.shape,
                dtype=image.dtype,
                chunks=(edge,) * 3,
                shards=tuple(edge * -(-n // edge) for n in image.shape) if is_sharded else None,
                compressors=codec,
                serializer=serializer,
                fill_value=fill,
                zarr_format=3,
            )
            array[...] = image

    return Variant(write)


def _blosc(name: str, level: int, shuffle: str = "bitshuffle", block: int = 64**3 * 2) -> BloscCodec:
    return BloscCodec(cname=name, clevel=level, shuffle=shuffle, typesize=2, blocksize=block)  # type: ignore[arg-type]


def variants() -> Iterator[tuple[str, Variant]]:
    """Names and ways to write; the first is the present choice."""
    yield "dskprep: blosc zstd-1 bitshuffle, 64^3, sharded", dskprep()
    for level in (3, 5):
        yield f"dskprep: zstd-{level}", dskprep(zstd_level=level)
    for edge in (32, 128):
        yield f"dskprep: chunks of {edge}^3", dskprep(chunk=edge)
    yield "zarr-python: the present choice", by_zarr(_blosc("zstd", 1))
    yield "zarr-python: the same, no shard", by_zarr(_blosc("zstd", 1), is_sharded=False)
    if "zarrs" in PIPELINES:
        yield "zarrs: the present choice", by_zarr(_blosc("zstd", 1), pipeline="zarrs")
        yield "zarrs: the same, no shard", by_zarr(_blosc("zstd", 1), pipeline="zarrs", is_sharded=False)
    yield "zarr-python: blosc cuts a chunk as it likes", by_zarr(_blosc("zstd", 1, block=0))
    yield "zarr-python: blosc lz4-1 bitshuffle", by_zarr(_blosc("lz4", 1))
    yield "zarr-python: blosc zstd-1 shuffle", by_zarr(_blosc("zstd", 1, "shuffle"))
    yield "zarr-python: zstd-1 alone", by_zarr(ZstdCodec(level=1))
    yield "zarr-python: zstd-3 alone", by_zarr(ZstdCodec(level=3))
    if find_spec("pcodec"):
        from zarr.codecs.numcodecs import PCodec

        for level in (4, 8):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is not in zarr's specification yet
                codec = PCodec(level=level)
            yield f"zarr-python: pcodec {level}", by_zarr(None, serializer=codec)
    yield "zarr-python: not compressed", by_zarr(None)


def contents(image: np.ndarray) -> Iterator[tuple[str, np.ndarray, int]]:
    """What might be stored: name, voxels, and the value of an empty chunk."""
    yield "values as they are", image, AIR
    yield "clipped at -1000 HU", np.maximum(image, np.int16(-1000)), -1000
    outside = ~body(image)
    yield "air outside the body", np.where(outside, np.int16(AIR), image), AIR
    yield "both", np.where(outside, np.int16(-1000), np.maximum(image, np.int16(-1000))), -1000


def body(image: np.ndarray) -> np.ndarray:
    """The largest piece above -400 HU, opened by a voxel against the table, its slices filled and grown by 3 voxels."""
    pieces, _ = ndimage.label(ndimage.binary_opening(image > -400))
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in largest])
    grown: np.ndarray = ndimage.binary_dilation(filled, iterations=3)
    return grown


def _prepared(image: np.ndarray, fill: int) -> Prepared:
    from dskprep.volume import Volume

    return Prepared(Volume(image, np.eye(4)), None, fill=fill)


def write(variant: Variant, image: np.ndarray, fill: int, target: Path) -> float:
    """CPU seconds."""
    shutil.rmtree(target, ignore_errors=True)
    start = common.now()
    variant.write(image, fill, target)
    return (common.now() - start).cpu


def read(target: Path, image: np.ndarray, pipeline: str, edge: int, count: int) -> common.Seconds | None:
    """Seconds of one patch, on average over some at random places; None if the pipeline does not know the codec."""
    rng = np.random.default_rng(0)
    places = [[int(rng.integers(max(1, n - edge + 1))) for n in image.shape] for _ in range(count)]
    with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            array = zarr.open_array(str(target / "0"), mode="r")
            box = tuple(slice(a, a + edge) for a in places[0])
            found = array[box]
        except Exception:
            return None
        np.testing.assert_array_equal(found, image[box])
        start = common.now()
        for z, y, x in places:
            array[z : z + edge, y : y + edge, x : x + edge]
        spent = common.now() - start
    return common.Seconds(spent.cpu / count, spent.wall / count)


def written(variants: Iterable[tuple[str, Variant, np.ndarray, int]], rounds: int, scratch: Path) -> list[list[str]]:
    """Rows of what writing costs, the variants taking turns."""
    seconds: dict[str, list[float]] = {}
    chosen = list(variants)
    for _ in range(rounds):
        for name, variant, image, fill in chosen:
            seconds.setdefault(name, []).append(write(variant, image, fill, scratch / name))
    return [[name, *_cells(statistics.median(cpu), scratch / name)] for name, cpu in seconds.items()]


def patches(names: list[str], image: np.ndarray, rounds: int, count: int, scratch: Path) -> dict[str, list[str]]:
    """Cells of what reading patches costs, the variants taking turns: how many a second, and CPU of each."""
    found: dict[tuple[str, str, int], list[common.Seconds | None]] = {}
    for _ in range(rounds):
        for name in names:
            for pipeline in PIPELINES:
                for edge in PATCHES:
                    each = read(scratch / name, image, pipeline, edge, count)
                    found.setdefault((name, pipeline, edge), []).append(each)
    cells: dict[str, list[str]] = {}
    for (name, _, _), seconds in found.items():
        known = [s for s in seconds if s is not None]
        cpu, wall = (statistics.median(column) for column in zip(*known, strict=True)) if known else (0.0, 0.0)
        cells.setdefault(name, []).append(f"{1 / wall:.0f} ({1000 * cpu:.1f} ms)" if known else "cannot")
    return cells


def one_series(folder: Path, report: common.Report, *, quick: bool) -> None:
    """The tables of one series."""
    rounds, count = (1, 3) if quick else (3, 15)
    prepared, _ = ways.prepared(folder, config.PrepConfig(), ways.Clock())
    image = prepared.image.array
    report.heading(f"{folder.name}: {' x '.join(map(str, image.shape))}, {image.nbytes / 1e6:.1f} MB of int16")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write(dskprep(), image, AIR, scratch / "first")  # compiles
        chosen = list(variants())
        rows = written(((name, variant, image, AIR) for name, variant in chosen), rounds, scratch)
        reads = patches([name for name, _ in chosen], image, rounds, count, scratch)
        header = ["writer and codec", *WRITTEN]
        report.table(
            [*header, *(f"{p}: {n}^3 a second" for p in PIPELINES for n in PATCHES)],
            [[*row, *reads[row[0]]] for row in rows],
        )
        report.line("What is stored, in the present choice (finding the body is not counted):")
        stored = ((name, dskprep(), values, fill) for name, values, fill in contents(image))
        report.table(["", *WRITTEN], written(stored, rounds, scratch))
        if prepared.lungs is not None:
            mask = prepared.lungs.mask.array
            few = [v for v in chosen if v[0].startswith("dskprep") or "present choice" in v[0]]
            report.line(f"The mask, {mask.nbytes / 1e6:.1f} MB of uint8:")
            report.table(["", *WRITTEN], written(((n, v, mask, 0) for n, v in few), rounds, scratch))


WRITTEN = ("write CPU s", "MB", "objects", "$ a month", "$ to write")


def _cells(seconds: float, target: Path) -> list[str]:
    sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file() and path.name != "zarr.json"]
    megabytes, to_write = sum(sizes) / 1e6, 1000 * seconds / 3600 * DOLLARS_A_CPU_HOUR
    a_month = megabytes * DOLLARS_A_GB_MONTH
    return [f"{seconds:.2f}", f"{megabytes:.2f}", str(len(sizes)), f"{a_month:.3f}", f"{to_write:.4f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    args = parser.parse_args()
    blosc.set_nthreads(1)
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    packages = ("zarr", "numcodecs", "zarrs", "pcodec")
    with (
        tempfile.TemporaryDirectory() as scratch,
        common.report(args.results / "encoding.json", "How an image is stored", packages) as report,
    ):
        report.line(
            f"One CPU. Dollars are for 1000 patients like this one: a month on S3 at {DOLLARS_A_GB_MONTH} $ a GB, and "
            f"the CPU to write them at {DOLLARS_A_CPU_HOUR} $ an hour. Patches: how many a second, at random places, "
            "and CPU for each."
        )
        for folder in args.folders or common.series_folders(Path(scratch), quick=args.quick):
            one_series(folder.resolve(), report, quick=args.quick)


if __name__ == "__main__":
    main()

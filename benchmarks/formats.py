"""What a second codec and further levels cost: bytes, CPU to encode image and lungs, CPU of a patch.

    python benchmarks/formats.py [--quick] [--results FOLDER] [FOLDER_OF_DICOM ...]

Image and lungs of the default preset, whole volumes on one CPU, the settings taking turns; medians. `volume.patch` and
zarr-python read the same random boxes of 64^3 voxels from a folder in the page cache. Series as in encoding.py. Writes
benchmarks/results/formats.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import common

os.environ.update(common.ONE_THREAD)

import numpy as np
import ways
import zarr

from dskprep import storage
from dskprep.dataset import omezarr, shards
from dskprep.settings import PrepConfig

SETTINGS = {
    "blosc-zstd, 1 level (the default)": PrepConfig(),
    "zstd, 1 level": PrepConfig(codec="zstd"),
    "blosc-zstd, 3 levels": PrepConfig(levels=3),
    "zstd, 3 levels": PrepConfig(codec="zstd", levels=3),
}
EDGE = 64


def one_series(folder: Path, report: common.Report, *, quick: bool) -> None:
    """The table of one series."""
    prepared, _ = ways.prepared(folder, PrepConfig(), ways.Clock())
    shape = prepared.image.shape
    rng = np.random.default_rng(0)
    places = [tuple(int(rng.integers(max(1, n - EDGE + 1))) for n in shape) for _ in range(3 if quick else 40)]
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(2 if quick else 6):  # the first compiles
            for name, settings in SETTINGS.items():
                start = common.now()
                objects = omezarr.encode(prepared, settings, {})
                spent = {"encode": (common.now() - start).cpu}
                storage.write_many(url := f"{scratch}/{name}", objects)
                sizes[name] = sum(map(len, objects.values()))
                below = {path.removeprefix("0/"): len(c) for path, c in objects.items() if path.startswith("0/")}
                opened, array = shards.open_array(f"{url}/0", below), zarr.open_array(f"{url}/0", mode="r")
                start = common.now()
                found = [opened.read(place, (EDGE,) * 3) for place in places]
                spent["patch"] = (common.now() - start).cpu / len(places)
                start = common.now()
                by_zarr = [array[tuple(slice(a, a + EDGE) for a in place)] for place in places]
                spent["zarr"] = (common.now() - start).cpu / len(places)
                assert all(np.array_equal(a[: b.shape[0]], b) for a, b in zip(found, by_zarr, strict=True))
                for what, cpu in spent.items() if turn else ():
                    seconds[name, what].append(cpu)
    report.heading(f"{folder.name}: {' x '.join(map(str, shape))}")
    cpu = {key: statistics.median(each) for key, each in seconds.items()}
    report.table(
        ["", "MB", "encode CPU s", "64^3 by volume.patch, CPU ms", "by zarr-python, CPU ms"],
        [
            [name, f"{sizes[name] / 1e6:.2f}", f"{cpu[name, 'encode']:.3f}"]
            + [f"{1000 * cpu[name, what]:.2f}" for what in ("patch", "zarr")]
            for name in SETTINGS
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    args = parser.parse_args()
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    with (
        tempfile.TemporaryDirectory() as scratch,
        common.report(
            args.results / "formats.json", "Codecs and levels", ("zarr", "numcodecs", "imagecodecs")
        ) as report,
    ):
        for folder in args.folders or common.series_folders(Path(scratch), quick=args.quick):
            one_series(folder.resolve(), report, quick=args.quick)


if __name__ == "__main__":
    main()

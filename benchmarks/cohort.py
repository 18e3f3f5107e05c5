"""Splits of many volumes, and duplicates: what they cost, and which planted ones are found.

    python benchmarks/cohort.py [--patients 40] [--forms 6] [--scans FOLDER] [--volumes 225000]

Draws synthetic patients, and of the first ones five more forms each, three of them under another name; prepares them,
with the real patients in FOLDER if there are some; and prints which pairs are found that should be, and which should
not. Then it splits an index of so many volumes, and searches a fifth of so many vectors. See docs/cohort.md.
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
from scipy import ndimage

import dskprep
from dskprep import storage
from dskprep.reading import duplicates, fingerprint
from dskprep.synthetic import phantom, scanner
from dskprep.synthetic.phantom import Phantom
from dskprep.volume import Volume

GRID = ((3.0, 1.5, 1.5), (96, 230, 230))
THICK = ((5.0, 1.5, 1.5), (58, 230, 230))


@contextmanager
def timed(what: str) -> Iterator[None]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    yield
    print(f"{what}: {time.perf_counter() - wall_s:.1f} s, {time.process_time() - cpu_s:.1f} s of CPU")


def retouched(content: bytes, **attributes: str) -> bytes:
    header = pydicom.dcmread(io.BytesIO(content))
    for name, value in attributes.items():
        setattr(header, name, value)
    file = io.BytesIO()
    header.save_as(file)
    return file.getvalue()


def write(folder: Path, key: str, volume: Volume, seed: int, edit: Callable[[bytes], bytes] = bytes) -> None:
    files = scanner.series_files(Phantom(volume, volume), name=key[:3], seed=seed)
    storage.write_many(f"{folder}/{key}", {name: edit(content) for name, content in files})


def draw(seed: int, grid: tuple[tuple[float, float, float], tuple[int, int, int]] = GRID) -> Volume:
    return phantom.make_phantom(seed=seed, spacing_mm=grid[0], shape=grid[1]).volume


def write_forms(folder: Path, seed: int) -> None:
    """Another kernel and thickness of a patient, and under another name with noise and moved, cropped, re-scaled."""
    volume = draw(seed)
    inside = np.maximum(volume.array, -1024)
    soft = np.where(
        volume.array < -1500, volume.array, ndimage.gaussian_filter(inside.astype(float), (0, 1, 1)).round()
    )
    uid = f"1.2.9.{seed}"
    write(
        folder,
        f"p{seed:02}-kernel",
        replace(volume, array=soft.astype(np.int16)),
        seed,
        lambda content: retouched(content, ConvolutionKernel="B30f", SeriesInstanceUID=f"{uid}.1"),
    )
    thick = draw(seed, THICK)
    write(folder, f"p{seed:02}-thick", thick, seed, lambda content: retouched(content, SeriesInstanceUID=f"{uid}.2"))
    noise = np.random.default_rng(seed).integers(-1, 2, volume.array.shape, np.int16)
    moved = volume.affine.copy()
    moved[:3, 3] += (37.3, -12.1, 55.5)
    write(folder, f"q{seed:02}-export", Volume(volume.array + noise, moved), 100 + seed)
    corner = volume.affine.copy()
    corner[:3, 3] = volume.to_patient((6, 20, 15))
    write(folder, f"q{seed:02}-crop", Volume(volume.array[6:-4, 20:-10, 15:-12].copy(), corner), 200 + seed)
    small = ndimage.zoom(inside, (1, 0.8, 0.8), order=1)
    affine = volume.affine.copy()
    affine[:3, :3] *= (np.array(volume.array.shape) - 1) / (np.array(small.shape) - 1)
    write(folder, f"q{seed:02}-scale", Volume(small, affine), 300 + seed)


def planted(args: argparse.Namespace, folder: Path) -> None:
    for seed in range(args.patients):
        write(folder / "in", f"p{seed:02}", draw(seed), seed)
    for seed in range(args.forms):
        write_forms(folder / "in", seed)
    if args.scans:
        (folder / "in" / "real").symlink_to(args.scans.resolve())
    with dskprep.local_client() as client:
        dskprep.run(folder / "in", folder / "out", client=client)
    dataset = dskprep.open_dataset(folder / "out")
    with timed(f"duplicates of {len(dataset)} volumes"):
        found = dataset.duplicates()
    print(found.counts)
    drawn = [key for key in dataset if not key.startswith("real")]
    pairs = set(zip(found.pairs["key"], found.pairs["other"], strict=True))
    same = {pair for pair in itertools.combinations(sorted(drawn), 2) if pair[0][1:3] == pair[1][1:3]}
    wrong = {pair for pair in pairs if pair[0] in drawn and pair not in same}
    sizes = Counter(name for key, name in found.groups.items() if key in drawn)
    print(f"planted pairs {len(same)}, found {len(pairs & same)}, wrong {sorted(wrong)}")
    print(f"groups {dict(sizes)}; real pairs {sorted(pair for pair in pairs if pair[0] not in drawn)}")


def many(n: int) -> None:
    rng = random.Random(1)
    rows = {
        "key": [f"1.3.6.1.4.1.14519.5.2.1.7009.9004.{i:012d}" for i in range(n)],
        "patient": [f"{rng.randrange(n // 7):016x}" if rng.random() < 0.99 else None for _ in range(n)],
        "hu_sha256": [f"{rng.randrange(50 * n):064x}" for _ in range(n)],
        "model": [rng.choice("ABC") for _ in range(n)],
    }
    columns = {"status": ["written"] * n, "input_digest": ["0" * 16] * n, "reason": [None] * n}
    dataset = dskprep.Dataset("/nowhere")
    vars(dataset)["_table"] = pa.table(rows | columns)
    for rule in ({}, {"stratify": "model", "shares": (0.8, 0.1, 0.1)}):
        with timed(f"split of {n} volumes, {rule}"):
            print(dataset.split(**rule))
    size = fingerprint.Fingerprint((np.ones((9, 9), np.float32),) * 2).vector.size
    table = np.abs(np.random.default_rng(0).standard_normal((n // 5, size), np.float32))
    with timed(f"search among {n // 5} vectors"):
        list(duplicates._neighbours({str(i): vector for i, vector in enumerate(table)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--forms", type=int, default=6)
    parser.add_argument("--scans", type=Path)
    parser.add_argument("--volumes", type=int, default=225_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        planted(args, Path(folder))
    many(args.volumes)


if __name__ == "__main__":
    main()

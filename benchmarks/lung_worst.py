"""Seconds that the lungs take, on real chests and on what is made of them: is any chest slow?

    python benchmarks/lung_worst.py [--seeds 5] [--rounds 2] [--results FOLDER]

Each case is an image of 1 mm, as the default preset hands it to the search for the lungs: every chest below
DSKPREP_DATA, a few synthetic patients, and changes of each that make the search long: hundreds to thousands of pockets
of gas, emphysema, consolidation, noise, arms, foam, and crops. CPU seconds are the least of `--rounds`.

Writes lung_worst.md to benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import common
import numpy as np
from numpy.typing import NDArray

from dskprep.errors import DskprepError
from dskprep.preparation import prepare, resample
from dskprep.preparation.lungs.lungs import find_lungs
from dskprep.settings import PrepConfig
from dskprep.source.found import find_series
from dskprep.synthetic.phantom import make_phantom
from dskprep.volume import AIR_HU, Volume

Array = NDArray[np.int16]


def real_chests(scratch: Path) -> Iterator[tuple[str, Volume]]:
    """All series below DSKPREP_DATA that become a volume, at 1 mm."""
    data = os.environ.get("DSKPREP_DATA")
    for path in sorted(Path(data).glob("*/*.tar.bz2")) if data else []:
        folder = scratch / path.name.partition(".")[0]
        with tarfile.open(path) as files:
            files.extractall(folder, filter="data")
        try:
            for k, found in enumerate(find_series(folder)):
                image = prepare.prepare(found.made, PrepConfig(lungs=False)).image  # type: ignore[arg-type]
                yield f"{folder.name} {k}" if k else folder.name, image
        except DskprepError:
            continue


def synthetic_chests(n_seeds: int) -> Iterator[tuple[str, Volume]]:
    """Synthetic patients at 1 mm, every other one with dense lung."""
    for seed in range(n_seeds):
        dense = {"consolidation": 0.2, "effusion": 0.1} if seed % 2 else {}
        phantom = make_phantom(seed=seed, spacing_mm=(1.5, 1.4, 1.4), shape=(210, 256, 256), **dense)  # type: ignore[arg-type]
        yield f"phantom {seed}", resample.fill_padding(resample.to_spacing(phantom.volume, (1.0, 1.0, 1.0)))


def with_pockets(n: int, radius: int, hu: int) -> Callable[[Array], Array]:
    """Put `n` balls somewhere into the image."""

    def change(array: Array) -> Array:
        rng = np.random.default_rng(0)
        z, y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1, -radius : radius + 1]
        ball = z * z + y * y + x * x <= radius * radius
        centres = rng.integers(radius, np.subtract(array.shape, radius + 1).clip(radius + 1), (n, 3))
        for k, j, i in centres.tolist():
            part = array[k - radius : k + radius + 1, j - radius : j + radius + 1, i - radius : i + radius + 1]
            part[ball[: part.shape[0], : part.shape[1], : part.shape[2]]] = hu
        return array

    return change


def with_foam(array: Array) -> Array:
    """Fill the back fifth with cells of air, 10 mm wide, with walls between them."""
    back = array[:, array.shape[1] * 4 // 5 :]
    k, j, i = np.ogrid[: back.shape[0], : back.shape[1], : back.shape[2]]
    back[...] = np.where((k % 12 < 2) | (j % 12 < 2) | (i % 12 < 2), -200, AIR_HU)
    return array


def with_arms(array: Array) -> Array:
    """Put a bar of tissue, with a hollow, on either side."""
    middle = array.shape[1] // 2
    for side in (slice(2, 52), slice(-52, -2)):
        array[:, middle - 25 : middle + 25, side] = 40
        array[:, middle - 6 : middle + 6, side] = AIR_HU
    return array


def with_noise(array: Array) -> Array:
    noise = np.random.default_rng(0).normal(0, 120, array.shape)
    return np.clip(array + noise, AIR_HU, 3000).astype(np.int16)


def with_dense_half(array: Array) -> Array:
    """Fill what is lung in the lower half with water."""
    lower = array[: array.shape[0] // 2]
    lower[(lower > -980) & (lower < -400)] = 30
    return array


CHANGES: dict[str, Callable[[Array], Array]] = {
    "as it is": lambda array: array,
    "300 pockets": with_pockets(300, 6, AIR_HU),
    "3000 pockets": with_pockets(3000, 5, AIR_HU),
    "10000 pockets": with_pockets(10000, 4, AIR_HU),
    "2000 cysts": with_pockets(2000, 7, -960),
    "2000 lumps": with_pockets(2000, 7, 40),
    "emphysema": lambda array: np.where((array > -970) & (array < -750), np.int16(-955), array),
    "dense half": with_dense_half,
    "noise": with_noise,
    "arms": with_arms,
    "foam": with_foam,
    "upper half": lambda array: array[array.shape[0] // 2 :],
    "lower half": lambda array: array[: array.shape[0] // 2],
    "left half": lambda array: array[:, :, array.shape[2] // 2 :],
    "inner quarter": lambda array: array[:, array.shape[1] // 4 : -array.shape[1] // 4],
    "upside down": lambda array: array[::-1],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="How long do the lungs take on the worst chests?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    args = parser.parse_args()
    prepare.warm()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for chests in (real_chests(Path(scratch)), synthetic_chests(args.seeds)):
            for name, image in chests:
                for change, apply in CHANGES.items():
                    array = np.ascontiguousarray(apply(image.array.copy()))
                    if min(array.shape) > 1:
                        case = Volume(array, image.affine)
                        least = min(common.seconds_of(lambda c=case: find_lungs(c), args.rounds))
                        seconds[f"{name}, {change}"] = least
                        print(f"{least:.3f} {name}, {change}", file=sys.stderr, flush=True)
    with common.report(args.results / "lung_worst.json", "The lungs of the worst chests", ("numpy", "numba")) as report:
        as_is = [s for name, s in seconds.items() if name.endswith("as it is")]
        report.line(
            f"{len(seconds)} cases: median {statistics.median(seconds.values()):.3f} CPU s, worst "
            f"{max(seconds.values()):.3f}; of the {len(as_is)} that are not changed {max(as_is):.3f}."
        )
        worst = sorted(seconds.items(), key=lambda item: -item[1])
        report.table(("the slowest", "CPU s"), [(name, f"{s:.3f}") for name, s in worst[:20]])


if __name__ == "__main__":
    main()

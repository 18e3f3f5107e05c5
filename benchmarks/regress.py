"""Has dskprep become slower? CPU of the presets, and of the default's stages, over that of a fixed computation.

    python benchmarks/regress.py [--quick] [--store] [--results FOLDER]

The computation (numpy and scipy on fixed arrays) and the presets take turns in one process, so that what else the
machine does befalls all alike. Prints the median ratios, those stored in benchmarks/results/regress.json, and by how
much each has changed; `--store` writes the new ones there. Information only: it never fails, and ratios of another
processor or of other libraries are not those stored.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import common

os.environ.update(common.ONE_THREAD)

import numpy as np
from scipy import ndimage
from ways import Clock, preset_way

PRESETS = ("default", "zuidhof", "luo-2017", "grt123")
PACKAGES = ("numpy", "scipy", "numba", "numcodecs")


def reference(array: np.ndarray) -> None:
    """The fixed computation: interpolates, filters, labels and sorts an int16 array."""
    ndimage.zoom(array, 1.2, order=1)
    ndimage.gaussian_filter(array.astype(np.float32), 1.0)
    ndimage.label(array > 0)
    np.sort(array, axis=None)


def ratios(folder: Path, rounds: int) -> dict[str, list[float]]:
    """CPU seconds over those of the reference in the same round, by preset and by stage of the default."""
    rng = np.random.default_rng(0)
    array = ndimage.gaussian_filter(rng.normal(size=(48, 192, 192)), 2.0)
    array = (array * 1000 / array.std()).astype(np.int16)
    ways = {name: preset_way(name)() for name in PRESETS}
    found: dict[str, list[float]] = {}
    for n in range(rounds + 1):
        start = common.now()
        reference(array)
        unit = (common.now() - start).cpu
        for name, (compute, write) in ways.items():
            clock = Clock()
            with tempfile.TemporaryDirectory() as target:
                start = common.now()
                write(compute(folder, clock), Path(target), clock)
                seconds = {name: (common.now() - start).cpu}
            if name == "default":
                seconds |= {f"default, {stage}": cpu for stage, cpu in clock.cpu.items()}
            for what, cpu in seconds.items():
                if n:  # the first round compiles
                    found.setdefault(what, []).append(cpu / unit)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    args = parser.parse_args()
    path = args.results / "regress.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"ratios": {}}
    with tempfile.TemporaryDirectory() as scratch:
        if args.quick:
            (folder,) = common.series_folders(Path(scratch), quick=True)
        else:
            folder = common.write_phantom(Path(scratch, "phantom"), (2.5, 0.7, 0.7), (120, 512, 512))
        found = ratios(folder, 2 if args.quick else 9)
    print(f"{common.machine()}; {common.versions(PACKAGES)}")
    if stored["ratios"]:
        print(f"stored: {stored['machine']}; {stored['versions']}")
    print(f"{'':24}{'ratio':>8}{'spread':>8}{'stored':>8}{'change':>8}")
    for name, values in found.items():
        ratio, before = statistics.median(values), stored["ratios"].get(name)
        low, _, high = statistics.quantiles(values, n=4)
        change = f"{before:8.3f}{100 * (ratio / before - 1):+7.0f}%" if before else ""
        print(f"{name:24}{ratio:8.3f}{100 * (high - low) / ratio:7.0f}%{change}")
    if args.store:
        medians = {name: round(statistics.median(values), 4) for name, values in found.items()}
        content = {"machine": common.machine(), "versions": common.versions(PACKAGES), "ratios": medians}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""One patient, side by side: dskprep and its presets, the ways of 2017, SimpleITK, MONAI, TorchIO; and the floor.

    python benchmarks/patient.py [--quick] [--rounds 5] [--other-rounds 2] [--results FOLDER] [FOLDER_OF_DICOM ...]

Without folders: a synthetic patient of 200 x 512 x 512, and the volumes below DSKPREP_DATA if it is set. Every
measurement is a process of its own in which each library computes on one CPU; the ways take turns, and the table
has medians. What is imported and compiled is loaded, and the ways that are not slow have done the patient once,
before the clock starts. `compute` is from the files of a folder to image and mask in memory; `whole` also writes
them to a folder; `peak` is the most memory of the process, its imports included. Files are in the page cache.

Writes patient.md and patient.png to benchmarks/results. `--quick` shows that it works, within a minute: a small
patient, one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
import numpy as np
from ways import EQUALS, TUTORIAL, WAYS, Clock, Compute, Found, Write, load_task

PACKAGES = (
    *("numpy", "scipy", "scikit-image", "numba", "numcodecs", "zarr", "pydicom", "imagecodecs"),
    *("SimpleITK", "monai", "torchio", "torch"),
)


FLOOR = "floor"


def measure(name: str, folder: Path, keep: Path | None) -> dict[str, Any]:
    """One run of a way, in this process; its arrays go to `keep`."""
    if name == FLOOR:
        import floor

        return floor.measure(folder)
    from dskprep.errors import Refusal

    way = WAYS[name]
    compute, write = way.load()
    try:
        if not way.is_slow:
            _run(compute, write, folder)
        found, figures = _run(compute, write, folder)
    except Refusal as refusal:
        return {"refused": refusal.reason}
    if found.is_refused:
        return {"refused": "no-lungs"}
    if keep is not None and found.image is not None:
        np.savez(keep, **{"image": found.image} | ({} if found.mask is None else {"mask": found.mask}))
    return figures | {"ml": found.ml}


def _run(compute: Compute, write: Write | None, folder: Path) -> tuple[Found, dict[str, Any]]:
    clock = Clock()
    with tempfile.TemporaryDirectory() as target:
        start = common.now()
        found = compute(folder, clock)
        computed = common.now() - start
        figures: dict[str, Any] = {"compute": computed}
        if write is not None:
            write(found, Path(target), clock)
            figures["whole"] = common.now() - start
            figures["bytes"] = sum(path.stat().st_size for path in Path(target).rglob("*") if path.is_file())
    return found, figures | {"stages": clock.cpu, "peak": common.peak_mib()}


@dataclass
class Measured:
    """One series: the figures of every run of every way, by name, and what differs from the ways of 2017."""

    title: str
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    equality: list[str] = field(default_factory=list)

    def median(self, name: str, *keys: str) -> float | None:
        """Of one figure over the runs of a way; None if there is none."""
        values = []
        for run in self.runs[name]:
            value: Any = run
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else value[int(key)] if value else None
            if value is not None:
                values.append(value)
        return statistics.median(values) if values else None

    def ratio(self, name: str, kind: str) -> float | None:
        """How many times less CPU than the way of 2017 took in the same round: the machine's own speed drifts."""
        if not WAYS[name].against:
            return None
        pairs = zip(self.runs[name], self.runs[WAYS[name].against], strict=False)
        found = [other[kind][0] / own[kind][0] for own, other in pairs if kind in own and kind in other]
        return statistics.median(found) if found else None


def side_by_side(folder: Path, names: list[str], rounds: int, other_rounds: int) -> Measured:
    """Let the ways take turns."""
    measured = Measured(folder.name, {name: [] for name in [*names, FLOOR]})
    compared = {*EQUALS, *(WAYS[name].against for name in EQUALS)}
    with tempfile.TemporaryDirectory() as kept:
        for n in range(rounds):
            for name in [*names, FLOOR]:
                if n >= other_rounds and not name.startswith("dskprep"):
                    continue
                keep = Path(kept, f"{name}.npz") if n == 0 and name in compared else None
                measured.runs[name].append(_in_a_process(name, folder, keep))
                print(folder.name, n, name, measured.runs[name][-1].get("compute", ""), file=sys.stderr, flush=True)
        for name in EQUALS:
            files = [Path(kept, f"{n}.npz") for n in (name, WAYS[name].against)]
            if all(file.exists() for file in files):
                measured.equality.append(f"{name} against {WAYS[name].against}: {_apart(*files)}.")
    return measured


def _in_a_process(name: str, folder: Path, keep: Path | None) -> dict[str, Any]:
    words = [sys.executable, __file__, "--one", name, str(folder), *([str(keep)] if keep else [])]
    done = subprocess.run(words, env=os.environ | common.ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _apart(found: Path, expected: Path) -> str:
    with np.load(found) as a, np.load(expected) as b:
        if a["image"].shape != b["image"].shape:
            return f"image of {a['image'].shape}, not {b['image'].shape}"
        apart = np.abs(a["image"].astype(np.float64) - b["image"].astype(np.float64))
        words = f"image at most {apart.max():.2g} apart, in {100 * np.mean(apart > 0):.4f} % of voxels"
        if "mask" in b:
            words += f"; {np.count_nonzero((a['mask'] > 0) != (b['mask'] > 0))} voxels of the mask differ"
    return words


def tell(report: common.Report, measured: Measured) -> None:
    """The tables of one series."""
    floor = measured.runs[FLOOR][0]
    size = (f"{n[0]} x {n[1]} x {n[2]}" for n in (floor["native"], floor["image"]))
    report.heading(f"{measured.title}: {' to '.join(size)}")
    header = (
        *("", "compute CPU s", "wall s", "times less CPU"),
        *("whole CPU s", "whole wall s", "whole, times less CPU", "peak MiB", "lungs ml"),
    )
    report.table(header, [[name, *_cells(measured, name)] for name in measured.runs if name != FLOOR])
    for line in measured.equality:
        report.line(f"- {line}")
    report.line(
        f"- Written by dskprep default: {floor['compressed'] / 1e6:.1f} MB; "
        f"by the tutorial: {(measured.median(TUTORIAL, 'bytes') or 0) / 1e6:.1f} MB."
    )
    default, lowest = "dskprep default", floor["stages"]
    report.line("Stages of the default preset, CPU seconds:")
    stages = {name: measured.median(default, "stages", name) or 0.0 for name in measured.runs[default][0]["stages"]}
    least = {name: measured.median(FLOOR, "stages", name) or 0.0 for name in lowest}
    rows = [
        [n, f"{s:.3f}", f"{least[n]:.3f}" if n in least else "", f"{s / least[n]:.1f}" if n in least else ""]
        for n, s in stages.items()
    ]
    whole, bottom = measured.median(default, "whole", "0") or 0.0, sum(least.values())
    rows.append(["whole", f"{whole:.3f}", f"{bottom:.3f}", f"{whole / bottom:.1f}"])
    report.table(("stage", "CPU s", "floor", "times the floor"), rows)
    gb = [f"{(measured.median(FLOOR, 'bandwidth', str(n)) or 0) / 1e9:.1f}" for n in range(3)]
    report.line(
        f"Memory, GB/s of one CPU: {gb[0]} read, {gb[1]} written, {gb[2]} written to fresh pages. Not in the "
        f"floor: the SHA-256 of the volume's HU, which a record holds ({measured.median(FLOOR, 'sha256'):.3f} s)."
    )


def _cells(measured: Measured, name: str) -> list[str]:
    refused = measured.runs[name][0].get("refused")
    if refused:
        return [f"refused: {refused}", *[""] * 7]
    cells = []
    for kind in ("compute", "whole"):
        cpu, wall = (measured.median(name, kind, n) for n in "01")
        ratio = measured.ratio(name, kind)
        if cpu is None or (kind == "compute" and WAYS[name].load is load_task):
            cells += [""] * 3
        else:
            cells += [f"{cpu:.2f}", f"{wall:.2f}", f"{ratio:.1f}" if ratio else ""]
    peak, ml = measured.median(name, "peak"), measured.median(name, "ml")
    return [*cells, f"{peak:.0f}", f"{ml:.0f}" if ml else ""]


def draw(measured: Measured, path: Path) -> None:
    """Seconds of every way, and of the default's stages over their floor."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2), layout="constrained")
    names = [name for name in measured.runs if name != FLOOR and measured.median(name, "compute", "0")]
    for row, name in enumerate(reversed(names)):
        colour = "#0072b2" if name.startswith("dskprep") else "#d55e00" if "straight" in name else "#777777"
        compute, whole = (measured.median(name, kind, "0") for kind in ("compute", "whole"))
        if whole:
            left.barh(row, whole, color=colour, alpha=0.45, height=0.7)
        if WAYS[name].load is not load_task:
            left.barh(row, compute or 0, color=colour, height=0.4)
        longest = max(whole or 0, compute or 0)
        ratio = measured.ratio(name, "whole")
        left.text(longest, row, f" {longest:.2f} s" + (f" ({ratio:.0f} x less)" if ratio else ""), va="center")
    left.set_xlim(right=left.get_xlim()[1] * 1.2)
    left.set_yticks(range(len(names)), list(reversed(names)))
    left.set_xlabel("CPU seconds: dark to image and mask in memory, light also written")
    left.set_title(f"One patient ({measured.title}), one CPU")
    stages = list(measured.runs["dskprep default"][0]["stages"])
    for row, name in enumerate(reversed(stages)):
        right.barh(row, measured.median("dskprep default", "stages", name) or 0, color="#0072b2", alpha=0.45)
        right.barh(row, measured.median(FLOOR, "stages", name) or 0, color="black", height=0.3)
    right.set_yticks(range(len(stages)), list(reversed(stages)))
    right.set_xlabel("CPU seconds; black: the floor")
    right.set_title("Stages of the default preset")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        name, folder, *keep = sys.argv[2:]
        print(json.dumps(measure(name, Path(folder), Path(*keep) if keep else None)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--other-rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    args = parser.parse_args()
    rounds, other_rounds = (1, 1) if args.quick else (args.rounds, args.other_rounds)
    missing = [name for name, way in WAYS.items() if way.needs and find_spec(way.needs) is None]
    names = [name for name in WAYS if name not in missing]
    with (
        tempfile.TemporaryDirectory() as scratch,
        common.report(args.results / "patient.json", "One patient, one CPU", PACKAGES) as report,
    ):
        report.line(
            f"Medians of {rounds} alternating rounds ({other_rounds} of what is not dskprep), each run in a process of "
            "its own. `ratio`: times less CPU than its way of 2017 (the tutorial for default and zuidhof) in the same "
            "round."
        )
        for name in missing:
            report.line(f"- not installed: {WAYS[name].needs} ({name})")
        folders = [path.resolve() for path in args.folders] or common.series_folders(Path(scratch), quick=args.quick)
        pictured = None
        for folder in folders:
            for name in names if pictured is None and not args.quick else ():
                if name.startswith("dskprep"):
                    _in_a_process(name, folder, None)  # compiles
            measured = side_by_side(folder, names, rounds, other_rounds)
            tell(report, measured)
            if pictured is None or measured.title == "lidc_0001":
                pictured = measured
                draw(measured, args.results / "patient.png")


if __name__ == "__main__":
    main()

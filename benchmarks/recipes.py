"""The presets against the recipes written straight from their rules, and their masks side by side.

    python benchmarks/recipes.py speed [FOLDER_OF_DICOM]     CPU seconds from files to image and mask in memory
    python benchmarks/recipes.py masks [FOLDER_OF_DICOM ...] Dice, refusals and seconds of the three masks

Without folders: a synthetic patient, or the volumes below DSKPREP_DATA if it is set. `speed` alternates all
ways in one process and gives medians; it takes some minutes, because the straight ways do. `masks` compares
with the truth on synthetic patients, and with the default mask on real ones.
"""

from __future__ import annotations

import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom

from dskprep import comparison, config, geometry, reading, steps
from dskprep.errors import Refusal
from dskprep.kernels import planes
from dskprep.phantom import Phantom, make_phantom, series_files
from dskprep.prepared import Prepared
from dskprep.volume import AIR_HU, PADDING, Volume

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import recipes_2017

REPEATS = 3
RECIPES = ("default", "zuidhof", "grt123")
PHANTOMS = {
    "plain": {},
    "left lung removed": {"remove_lung": "left"},
    "15 % of a lung dense": {"consolidation": 0.15},
    "33 % of a lung dense": {"consolidation": 0.33},
    "table touches the back": {"table_touches_back": True},
}
SPACINGS = {"2.5 mm": ((2.5, 1.0, 1.0), (116, 350, 350)), "5 mm": ((5.0, 1.2, 1.2), (58, 292, 292))}


def preset(name: str, folder: Path) -> Prepared:
    """From files to image and mask."""
    settings = config.preset(name)
    read = reading.read_series(str(folder), recipe=settings.recipe)
    return steps.prepare(read, settings)


def straight(folder: Path, *, padding: int | None) -> tuple[np.ndarray, list[float]]:
    """Steps 1 to 4: HU and spacing."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    thickness = abs(slices[0].ImagePositionPatient[2] - slices[1].ImagePositionPatient[2])
    slopes, intercepts = ([float(s[k].value) for s in slices] for k in ("RescaleSlope", "RescaleIntercept"))
    stored = np.stack([s.pixel_array for s in slices])
    image = recipes_2017.hounsfield(stored, slopes, intercepts, padding=padding)
    return image, [float(thickness), *map(float, slices[0].PixelSpacing)]


def straight_zuidhof(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps 1 to 10 of the tutorial: image and mask."""
    image = recipes_2017.resample(*straight(folder, padding=-2000))
    return image, recipes_2017.segment(image)


def straight_grt123(folder: Path) -> recipes_2017.Grt123:
    found = recipes_2017.grt123(*straight(folder, padding=None))
    assert found is not None
    return found


def speed(folder: Path) -> None:
    """Alternate all ways; print medians of CPU seconds and whether results are equal."""
    ways: dict[str, Callable[[], object]] = {name: lambda name=name: preset(name, folder) for name in RECIPES}
    for way in ways.values():
        way()  # compiles
    ways["tutorial, straight"] = lambda: straight_zuidhof(folder)
    ways["grt123, straight"] = lambda: straight_grt123(folder)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(REPEATS):
        for name, way in ways.items():
            start = time.process_time()
            results[name] = way()
            seconds[name].append(time.process_time() - start)
            print(f"{name}: {seconds[name][-1]:.2f}", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{folder.name}: CPU seconds, medians of {REPEATS}, alternating, from files to image and mask in memory")
    for name, against in zip(RECIPES, ("tutorial, straight", "tutorial, straight", "grt123, straight"), strict=True):
        ratio = medians[against] / medians[name]
        print(f"{name:8} {medians[name]:6.2f}   {against} {medians[against]:6.2f}   {ratio:5.1f} x")
    image, mask = results["tutorial, straight"]  # type: ignore[misc]
    zuidhof, grt123 = results["zuidhof"], results["grt123"]
    _print_equality("zuidhof", zuidhof.image.array, image)  # type: ignore[attr-defined]
    print(f"  mask: {np.count_nonzero(zuidhof.lungs.mask.array != mask)} voxels differ")  # type: ignore[attr-defined]
    _print_equality("grt123", grt123.image.array, results["grt123, straight"].image)  # type: ignore[attr-defined]


def _print_equality(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    apart = np.abs(found.astype(int) - expected.astype(int))
    print(f"{name}: at most {apart.max()} apart, {100 * np.mean(apart > 0):.4f} % of voxels differ")


def masks(folders: list[Path]) -> None:
    """Each way's lungs against the truth of phantoms, and against the default's on real volumes."""
    print(f"{'':46}" + "".join(f"{name:>26}" for name in RECIPES))
    for name in RECIPES:
        steps.prepare(*_as_read(make_phantom(seed=1), name))  # compiles
    for spacing, (spacing_mm, shape) in SPACINGS.items():
        for title, anatomy in PHANTOMS.items():
            cells = []
            for name in RECIPES:
                dices, spent, refusals = [], [], 0
                for seed in (1, 2, 3):
                    phantom = make_phantom(seed=seed, spacing_mm=spacing_mm, shape=shape, **anatomy)
                    start = time.process_time()
                    try:
                        prepared = steps.prepare(*_as_read(phantom, name))
                    except Refusal:
                        refusals += 1
                        continue
                    spent.append(time.process_time() - start)
                    dices.append(_dice(prepared, phantom.lungs))
                cells.append(_cell(dices, spent, refusals))
            print(f"{'phantom, ' + title + ', ' + spacing:46}" + "".join(f"{cell:>26}" for cell in cells), flush=True)
    for folder in folders:
        cells, default = [], None
        for name in RECIPES:
            start = time.process_time()
            try:
                prepared = preset(name, folder)
            except Refusal as refusal:
                cells.append(refusal.reason)
                continue
            spent = time.process_time() - start
            default = default or prepared
            cells.append(_cell([_dice(prepared, default.lungs.mask)], [spent], 0))  # type: ignore[union-attr]
        print(f"{folder.name + ' (Dice with the default)':46}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


def _cell(dices: list[float], seconds: list[float], refusals: int) -> str:
    words = [f"{np.mean(dices):.3f} ({min(dices):.3f}) {np.mean(seconds):.1f} s"] if dices else []
    return ", ".join(words + [f"{refusals} refused"] * bool(refusals))


def _as_read(phantom: Phantom, recipe: str) -> tuple[Volume, config.PrepConfig]:
    """The phantom's volume as dskprep, or the recipe, reads it."""
    volume = phantom.volume
    if recipe == "default":
        array = volume.array.copy()
        for plane in array:
            planes.mark_padding(plane, -32767, AIR_HU - 1)
        assert PADDING in array
        return geometry.to_patient_axes(Volume(array, volume.affine)), config.preset(recipe)
    if recipe == "zuidhof":  # stored -2000 becomes 0 before the rescale
        return volume.with_array(np.where(volume.array == -3024, np.int16(-1024), volume.array)), config.preset(recipe)
    return volume, config.preset(recipe)


def _dice(prepared: Prepared, truth: Volume) -> float:
    """Of both lungs together, on the grid of the truth."""
    assert prepared.lungs is not None
    views = [comparison.View(mask, "own", mask.array) for mask in (truth, prepared.lungs.mask)]
    dice = comparison.compare(*views).difference.dice
    assert dice is not None
    return dice


def _folders(scratch: Path) -> Iterator[Path]:
    data = os.environ.get("DSKPREP_DATA")
    for path in sorted(Path(data, "volumes").glob("*.tar.bz2")) if data else []:
        with tarfile.open(path) as archive:
            archive.extractall(scratch / path.stem, filter="data")
        yield max((p.parent for p in (scratch / path.stem).rglob("*.dcm")), key=lambda d: len(list(d.iterdir())))


def main() -> None:
    if sys.argv[1:2] not in (["speed"], ["masks"]):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(a) for a in sys.argv[2:]] or list(_folders(Path(scratch)))
        if sys.argv[1] == "masks":
            masks(folders)
            return
        if not folders:
            folders = [Path(scratch, "phantom")]
            folders[0].mkdir()
            phantom = make_phantom(seed=1, spacing_mm=(2.5, 0.7, 0.7), shape=(120, 512, 512))
            for name, content in series_files(phantom, name="phantom", seed=1):
                (folders[0] / name).write_bytes(content)
        for folder in folders:
            speed(folder)


if __name__ == "__main__":
    main()

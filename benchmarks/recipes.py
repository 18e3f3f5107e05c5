"""The masks of the presets side by side: Dice, refusals and CPU seconds.

    python benchmarks/recipes.py [FOLDER_OF_DICOM ...]

Compares with the truth on synthetic patients, and with the default mask on real ones: those of the folders, or
the volumes below DSKPREP_DATA if it is set.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import ways

from dskprep import settings
from dskprep.errors import Refusal
from dskprep.kernels import padding
from dskprep.look import comparison
from dskprep.preparation import prepare
from dskprep.preparation.prepared import Prepared
from dskprep.series import upright
from dskprep.synthetic.phantom import Phantom, make_phantom
from dskprep.volume import AIR_HU, PADDING, Volume

RECIPES = ("default", "zuidhof", "grt123")
PHANTOMS = {
    "plain": {},
    "left lung removed": {"remove_lung": "left"},
    "15 % of a lung dense": {"consolidation": 0.15},
    "33 % of a lung dense": {"consolidation": 0.33},
    "table touches the back": {"table_touches_back": True},
}
SPACINGS = {"2.5 mm": ((2.5, 1.0, 1.0), (116, 350, 350)), "5 mm": ((5.0, 1.2, 1.2), (58, 292, 292))}


def masks(folders: list[Path]) -> None:
    """Each way's lungs against the truth of phantoms, and against the default's on real volumes."""
    print(f"{'':46}" + "".join(f"{name:>26}" for name in RECIPES))
    for name in RECIPES:
        prepare.prepare(*_as_read(make_phantom(seed=1), name))  # compiles
    for spacing, (spacing_mm, shape) in SPACINGS.items():
        for title, anatomy in PHANTOMS.items():
            cells = []
            for name in RECIPES:
                dices, spent, refusals = [], [], 0
                for seed in (1, 2, 3):
                    phantom = make_phantom(seed=seed, spacing_mm=spacing_mm, shape=shape, **anatomy)
                    start = time.process_time()
                    try:
                        prepared = prepare.prepare(*_as_read(phantom, name))
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
                prepared, _ = ways.prepared(folder, settings.preset(name), ways.Clock())
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


def _as_read(phantom: Phantom, recipe: str) -> tuple[Volume, settings.PrepConfig]:
    """The phantom's volume as dskprep, or the recipe, reads it."""
    volume = phantom.volume
    if recipe == "default":
        array = volume.array.copy()
        for plane in array:
            padding.mark_padding(plane, -32767, AIR_HU - 1)
        assert PADDING in array
        return upright.to_patient_axes(Volume(array, volume.affine)), settings.preset(recipe)
    if recipe == "zuidhof":  # stored -2000 becomes 0 before the rescale
        return volume.with_array(np.where(volume.array == -3024, np.int16(-1024), volume.array)), settings.preset(
            recipe
        )
    return volume, settings.preset(recipe)


def _dice(prepared: Prepared, truth: Volume) -> float:
    """Of both lungs together, on the grid of the truth."""
    assert prepared.lungs is not None
    masks = [comparison.Preparation(mask, "own", mask.array) for mask in (truth, prepared.lungs.mask)]
    dice = comparison.compare_preparations(*masks).difference.dice
    assert dice is not None
    return dice


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        masks([Path(a) for a in sys.argv[1:]] or list(common.real_folders(Path(scratch))))


if __name__ == "__main__":
    main()

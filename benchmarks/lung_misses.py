"""Draw synthetic patients in which dense lung is missed, or something else is taken for it.

    python benchmarks/lung_misses.py OUT.png

One row per patient, an axial and a coronal plane where most is wrong: the lungs found are blue (right) and orange
(left), what was missed is red, what was added is white. Figures and warnings are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from dskprep import sides
from dskprep.preparation.lungs.lungs import Lungs, find_lungs
from dskprep.synthetic.phantom import Phantom, make_phantom
from dskprep.volume import AIR_HU, Volume

WINDOW_HU = (-1000, 300)
MISSED, ADDED = (220, 40, 40), (255, 255, 255)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw synthetic patients in which dense lung is missed.")
    parser.add_argument("out", type=Path, help="PNG to write")
    rows = []
    out = parser.parse_args().out
    for name, phantom in patients():
        found = find_lungs(phantom.volume)
        truth, mask = phantom.lungs.array > 0, found.mask.array > 0
        missed, added = (np.count_nonzero(part) * phantom.volume.voxel_ml for part in (truth & ~mask, mask & ~truth))
        print(
            f"{name}: missed {missed:.0f} ml, added {added:.0f} ml, {found.missing_place} {', '.join(found.warnings)}"
        )
        rows.append(draw(phantom, found))
    imsave(out, np.concatenate(rows))


def patients() -> Iterator[tuple[str, Phantom]]:
    noise = np.random.default_rng(0).normal(0, 10, (116, 176, 176))
    phantom = make_phantom(seed=6, spacing_mm=(2.5, 2.0, 2.0), shape=noise.shape)
    lungs = phantom.lungs.array
    rows = np.flatnonzero((lungs > 0).any(axis=(0, 2)))
    behind = lungs > 0
    behind[:, : int(rows[0] + 0.7 * (rows[-1] - rows[0]))] = False
    yield "fluid behind both lungs", with_hu(phantom, behind, 10 + noise / 2)
    slices = np.flatnonzero((lungs == sides.RIGHT).any(axis=(1, 2)))
    lower = lungs == sides.RIGHT
    lower[int(slices[0] + 0.35 * (slices[-1] - slices[0])) :] = False
    alike = lower | ((phantom.volume.array > -300) & (phantom.volume.array < 200))
    yield "a right lower lobe with the HU of all other tissue", with_hu(phantom, alike, 50 + noise)
    yield (
        "a thin layer of fluid",
        make_phantom(seed=9, spacing_mm=(2.5, 2.0, 2.0), shape=noise.shape, effusion=0.33, dense_lung="right"),
    )


def with_hu(phantom: Phantom, where: NDArray[np.bool_], hu: NDArray[np.float64]) -> Phantom:
    array = phantom.volume.array.copy()
    array[where] = np.clip(hu[where], AIR_HU, 3000)
    return Phantom(Volume(array, phantom.volume.affine), phantom.lungs)


def draw(phantom: Phantom, found: Lungs) -> NDArray[np.uint8]:
    truth, mask = phantom.lungs.array > 0, found.mask.array
    low, high = WINDOW_HU
    grey = np.clip((phantom.volume.array.astype(np.float32) - low) / (high - low), 0, 1) * 255
    colours = np.repeat(grey[..., None], 3, axis=-1)
    for side in (sides.RIGHT, sides.LEFT):
        colours[mask == side] = 0.6 * colours[mask == side] + 0.4 * np.array(sides.RGB[side])
    colours[truth & (mask == 0)] = MISSED
    colours[(mask > 0) & ~truth] = ADDED
    wrong = truth != (mask > 0)
    axial, coronal = (int(np.argmax(wrong.sum(axis=axes))) for axes in ((1, 2), (0, 2)))
    planes = [colours[axial], colours[::-1, coronal]]
    height = max(plane.shape[0] for plane in planes)
    padded = [np.pad(plane, [(0, height - plane.shape[0]), (0, 0), (0, 0)]) for plane in planes]
    return np.concatenate(padded, axis=1).astype(np.uint8)


if __name__ == "__main__":
    main()

"""Compare the lungs that dskprep finds with reference masks; and with themselves on crops and with painted disease.

    python benchmarks/lung_references.py FOLDER [--crops] [--painted] [--mm 1]

Each folder below FOLDER with `image.nii` and `reference.nii` (or `.nii.gz`, HU and any labels above 0) gives a row:
Dice, the distance that 95 % of the mask's surface and of the reference's keep from each other, what is missing and what
is added in ml, the warnings, and the CPU time at 1 mm.

`--crops` cuts each chest to narrow fields of view (squares and circles of 200 to 300 mm, a quarter off, slabs, the
bases, the apices, one side), and compares with the cut mask of the whole. `--painted` paints disease into its lungs
(consolidation, effusion, an upper lobe, both sides, patches, a rim, density behind both lungs), and compares with the
mask from before.

At the end stands how many of the bad masks (Dice below 0.95; of painted disease that of the affected lung) had no
warning that tells of it, and how many of the good ones had a wrong one; and how many of the warnings `lung-missing`
told the ml within 30 %. What `judge` says of the reference too, such as a lung that is cut off, tells of no bad mask.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.preparation import resample
from dskprep.preparation.lungs.lungs import find_lungs, judge
from dskprep.series import upright
from dskprep.volume import AIR_HU, PADDING, Volume

GOOD_DICE = 0.95
FACTS = frozenset({"lungs-touch-border"})
"""Words that say nothing about whether the mask is right."""
NEVER_WRONG = frozenset({"one-lung", "lung-volume-unlikely", "lungs-unequal"})
"""Words that are right wherever a field of view leaves hardly anything of a lung."""
MIN_MISSING_ML = 60.0
"""Less that is truly missing is a thin edge."""
HU_OF = {"consolidation": 35, "effusion": 10, "upper lobe": 35, "patches": -60, "rim": -250, "dependent": -320}
"""The kinds of painted disease, and their HU."""
PAINTED = [
    *((kind, side, share) for kind in ("consolidation", "effusion") for share in (0.1, 0.25, 0.5) for side in (1, 2)),
    *(("upper lobe", side, share) for share in (0.15, 0.3) for side in (1, 2)),
    *((kind, 0, 0.25) for kind in HU_OF if kind not in ("upper lobe", "dependent")),
    *(("dependent", 0, share) for share in (0.02, 0.04)),
]
"""Kind, side (0: both), and share of the lung."""

Mask = NDArray[np.uint8]


class Judged(NamedTuple):
    """What was found in one case."""

    kind: str
    dice: float
    """Of painted disease, that of the affected lung."""
    is_told: bool
    """A warning tells of the mask."""
    is_wrong: bool
    """A warning would be wrong, were the mask good."""
    told_ml: float
    missing_ml: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the lungs that dskprep finds with reference masks.")
    parser.add_argument("folder", type=Path, help="folder of folders with image.nii and reference.nii")
    parser.add_argument("--crops", action="store_true", help="also narrow fields of view")
    parser.add_argument("--painted", action="store_true", help="also painted disease")
    parser.add_argument("--mm", type=float, default=1.0, help="spacing of the images, 1 or 2")
    arguments = parser.parse_args()
    judged = []
    print("| case | Dice | 95 % of surfaces, mm | missing, ml | added, ml | CPU, s | warnings |")
    print("|---|---|---|---|---|---|---|")
    for image_path in sorted(arguments.folder.rglob("image.nii*")):
        name = image_path.parent.name
        volume = read(image_path, arguments.mm)
        (reference_path,) = image_path.parent.glob("reference.nii*")
        judged.append(report(name, "reference", volume, place(reference_path, volume)))
        whole = find_lungs(volume).mask.array
        if arguments.crops:
            for crop, cut, mask in crops(volume, whole):
                judged.append(report(f"{name}, {crop}", "crops", cut, mask))
        if arguments.painted:
            for kind, side, share in PAINTED:
                words = f"{name}, {kind} {share:.0%} {('both sides', 'right', 'left')[side]}"
                judged.append(report(words, kind, paint(volume, whole, kind, side, share), whole, side))
    sum_up(judged)


def read(path: Path, mm: float) -> Volume:
    """Read an image at a spacing, along the patient's axes."""
    image = nibabel.load(path)
    array = np.clip(np.rint(np.asanyarray(image.dataobj)), AIR_HU, 32767).astype(np.int16).T
    return resample.to_spacing(
        upright.to_patient_axes(Volume(np.ascontiguousarray(array), to_lps(image))), (mm, mm, mm)
    )


def to_lps(image: nibabel.Nifti1Image) -> NDArray[np.float64]:
    """The affine from (z, y, x) to LPS."""
    return (np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)[:, [2, 1, 0, 3]]


def place(path: Path, volume: Volume) -> Mask:
    """The nearest voxels of a reference on the grid of a volume: 1 inside, 0 outside."""
    image = nibabel.load(path)
    labels = np.asanyarray(image.dataobj).T > 0
    matrix = np.linalg.inv(to_lps(image)) @ volume.affine
    return ndimage.affine_transform(labels.astype(np.uint8), matrix, output_shape=volume.shape, order=0)


def report(name: str, kind: str, volume: Volume, reference: Mask, side: int = 0) -> Judged:
    """Print a row about one case. `kind` may be one of painted disease, on this `side` (0: both)."""
    start_s = time.process_time()
    found = find_lungs(volume)
    cpu_s = time.process_time() - start_s
    mask, truth = found.mask.array > 0, reference > 0
    missing, added = (np.count_nonzero(part) * volume.voxel_ml for part in (truth & ~mask, mask & ~truth))
    words = ", ".join(found.warnings)
    distance = f"{surface_distance(mask, truth, volume):.1f}" if mask.any() and truth.any() else ""
    both = dice_of(mask, truth)
    print(f"| {name} | {both:.3f} | {distance} | {missing:.0f} | {added:.0f} | {cpu_s:.2f} | {words} |", flush=True)
    told = set(found.warnings) - FACTS - set(judge(volume.with_array(reference)).warnings)
    wrong = told - NEVER_WRONG - ({"dense-lung"} if kind in HU_OF else set())
    if kind in HU_OF:
        sides = (side,) if side else (1, 2)
        both = min(dice_of(found.mask.array == label, reference == label) for label in sides)
    return Judged(kind, both, bool(told), bool(wrong), found.missing_ml or 0.0, missing)


def dice_of(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    total = np.count_nonzero(mask) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(mask & truth) / total if total else 1.0


def sum_up(judged: Iterable[Judged]) -> None:
    """Print how many bad masks had no warning, and how many good ones a wrong one."""
    kinds = defaultdict(list)
    for case in judged:
        kinds[case.kind].append(case)
        kinds["all"].append(case)
    print("\n| kind | bad | of these silent | good | of these warned | told within 30 % |\n|---|---|---|---|---|---|")
    for kind, cases in kinds.items():
        bad = [case for case in cases if case.dice < GOOD_DICE]
        good = [case for case in cases if case.dice >= GOOD_DICE]
        told = [case for case in cases if case.told_ml and case.missing_ml >= MIN_MISSING_ML]
        near = [case for case in told if abs(case.told_ml - case.missing_ml) <= 0.3 * case.missing_ml]
        silent, wrong = sum(not case.is_told for case in bad), sum(case.is_wrong for case in good)
        print(f"| {kind} | {len(bad)} | {silent} | {len(good)} | {wrong} | {len(near)} of {len(told)} |")


def surface_distance(mask: NDArray[np.bool_], truth: NDArray[np.bool_], volume: Volume) -> float:
    """The 95th percentile of the distances from each surface to the other, in mm."""
    box = ndimage.find_objects((mask | truth).astype(np.uint8))[0]
    surfaces = [part[box] & ~ndimage.binary_erosion(part[box]) for part in (mask, truth)]
    far = [ndimage.distance_transform_edt(~surface, volume.spacing) for surface in surfaces]
    return float(np.percentile(np.concatenate([far[1][surfaces[0]], far[0][surfaces[1]]]), 95))


def crops(volume: Volume, mask: Mask) -> Iterator[tuple[str, Volume, Mask]]:
    """Yield narrow fields of view: their name, the cut volume, the cut mask."""
    box = ndimage.find_objects((mask > 0).astype(np.uint8))[0]
    z0, y0, x0 = (side.start for side in box)
    lz, ly, lx = (side.stop - side.start for side in box)
    cy, cx = y0 + ly // 2, x0 + lx // 2
    nz, ny, nx = volume.shape
    mm = volume.spacing[1]

    def cut(z: tuple[float, float], y: tuple[float, float], x: tuple[float, float]) -> tuple[Volume, Mask]:
        ends = [(max(0, int(a)), min(n, int(b))) for (a, b), n in zip((z, y, x), volume.shape, strict=True)]
        part = tuple(slice(a, b) for a, b in ends)
        return Volume(np.ascontiguousarray(volume.array[part]), volume.affine), np.ascontiguousarray(mask[part])

    for size in (200, 250, 300):
        for place_, shift in (("heart", (-10, 25)), ("middle", (0, 0)), ("right", (0, -60)), ("left", (0, 60))):
            half = size / 2 / mm
            top, left = cy + shift[0] / mm - half, cx + shift[1] / mm - half
            square, cut_mask = cut((0, nz), (top, top + 2 * half), (left, left + 2 * half))
            yield f"square of {size} mm, {place_}", square, cut_mask
            y, x = np.indices(square.shape[1:])
            outside = (y + max(0, top) - top - half) ** 2 + (x + max(0, left) - left - half) ** 2 > half**2
            circle, cut_mask = square.array.copy(), cut_mask.copy()
            circle[:, outside], cut_mask[:, outside] = PADDING, 0
            yield f"circle of {size} mm, {place_}", square.with_array(circle), cut_mask
    everything = (0, nz), (0, ny), (0, nx)
    for name, axis, ends in (
        ("a quarter of the left off", 2, (0, x0 + 0.75 * lx)),
        ("a quarter of the right off", 2, (x0 + 0.25 * lx, nx)),
        ("a quarter of the back off", 1, (0, y0 + 0.75 * ly)),
        ("a quarter of the front off", 1, (y0 + 0.25 * ly, ny)),
        ("a low slab", 0, (z0 + 0.1 * lz, z0 + 0.2 * lz)),
        ("a slab", 0, (z0 + 0.4 * lz, z0 + 0.55 * lz)),
        ("a high slab", 0, (z0 + 0.8 * lz, z0 + 0.9 * lz)),
        ("bases", 0, (0, z0 + 0.2 * lz)),
        ("thin bases", 0, (0, z0 + 0.1 * lz)),
        ("apices", 0, (z0 + 0.75 * lz, nz)),
        ("the right side", 2, (0, cx)),
        ("the left side", 2, (cx, nx)),
    ):
        yield name, *cut(*(ends if a == axis else whole for a, whole in enumerate(everything)))


def paint(volume: Volume, mask: Mask, kind: str, side: int, share: float) -> Volume:
    """Paint disease into a share of one lung, or of both (side 0)."""
    rng = np.random.default_rng(0)
    array = volume.array.copy()
    mm = volume.spacing[1]
    for label in (side,) if side else (1, 2):
        lung = mask == label
        order = order_of(kind, lung, mm, rng)
        sick = lung & (order <= np.quantile(order[lung], share))
        weight = ndimage.gaussian_filter(sick.astype(np.float32), 0.8 / mm)
        rough = {"rim": 120, "dependent": 50, "effusion": 4}.get(kind, 15)
        hu = (
            HU_OF[kind]
            + rough * smooth_noise(rng, lung.shape, 4 / mm)
            + 18 * rng.standard_normal(lung.shape, np.float32)
        )
        blend = array * (1 - weight) + hu * weight
        inside = lung & (weight > 0.02) & ((kind == "effusion") | (array < blend))  # vessels stay in dense lung
        array[inside] = blend[inside]
    return volume.with_array(array)


def order_of(kind: str, lung: NDArray[np.bool_], mm: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Where the lung falls ill first: the lowest values, in mm."""
    z, y = mm * np.arange(lung.shape[0])[:, None, None], mm * np.arange(lung.shape[1])[:, None]
    noise = smooth_noise(rng, lung.shape, (12 if kind == "rim" else 25) / mm)
    if kind == "consolidation":
        return z - 0.5 * y + 12 * noise
    if kind == "effusion":
        return 0.35 * z - y + 2 * noise
    if kind == "dependent":
        depth = np.flip(np.cumsum(np.flip(lung, 1), axis=1), 1) * mm  # lung behind a place
        return depth + 0.1 * z + 2 * noise
    if kind == "upper lobe":
        return 0.2 * y - z + 12 * noise
    return noise if kind == "patches" else mm * ndimage.distance_transform_edt(lung) + 0.08 * z + noise


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], size: float) -> NDArray[np.float32]:
    """Noise of about unit deviation that changes over `size` voxels."""
    coarse = rng.standard_normal([int(n / size) + 3 for n in shape], np.float32)
    grid = np.meshgrid(*(np.arange(n, dtype=np.float32) / size for n in shape), indexing="ij", sparse=True)
    return ndimage.map_coordinates(coarse, np.broadcast_arrays(*grid), order=1, output=np.float32)


if __name__ == "__main__":
    main()

"""What is measured for the choice of a cohort, against what was planted; and what it says of real scans.

    python benchmarks/curation.py [--patients 12] [--scans FOLDER]

Draws synthetic patients with arms up and down, cuts their lungs at each face, plants metal, noise and motion, and
prints how often the answer is right or how far it is off, and what it costs at 1 mm. Then one line for each scan below
FOLDER, and its motion once a step of 4 mm is planted. See docs/cohort.md.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

import dskprep
from dskprep.preparation.curation import FACES, measure
from dskprep.source.cases import cases
from dskprep.synthetic.phantom import PADDING_HU, make_phantom
from dskprep.volume import AIR_HU, PADDING, Volume

GRID = {"spacing_mm": (2.5, 1.6, 1.6), "shape": (124, 300, 300)}
HALF_MM = (2.0, 4.0, 8.0)
"""Half the edges of cubes of metal."""
WAYS = ("sideways", "to the front", "up", "breath")
"""How a patient moves. A breath lifts the front wall, not the back, and lowers the diaphragm, not the apex."""


def patient(seed: int, *, arms_down: bool = False) -> tuple[Volume, Volume]:
    made = make_phantom(seed=seed, arms_down=arms_down, **GRID)
    return made.volume.with_array(np.where(made.volume.array == PADDING_HU, PADDING, made.volume.array)), made.lungs


def cuts(image: Volume, lungs: Volume) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Cut a quarter of the lungs off at each face; yield the face and what is said."""
    for face, (axis, end) in FACES.items():
        rows = np.flatnonzero(lungs.array.any(axis=tuple(a for a in range(3) if a != axis)))
        quarter = (rows[-1] - rows[0]) // 4
        box = [slice(None)] * 3
        box[axis] = slice(rows[0] + quarter, None) if end == 0 else slice(0, rows[-1] - quarter)
        parts = (Volume(np.ascontiguousarray(v.array[tuple(box)]), v.affine) for v in (image, lungs))
        yield face, measure(*parts).lungs_cut


def metal_error(image: Volume, lungs: Volume, half_mm: float) -> float:
    """Plant a cube of metal in the heart; return what is measured over what is there."""
    array, middle = image.array.copy(), [int(n.mean()) for n in np.nonzero(lungs.array)]
    size = [max(1, round(half_mm / s)) for s in image.spacing]
    box = tuple(slice(m - n, m + n + 1) for m, n in zip(middle, size, strict=True))
    array[box] = 3071
    body = np.count_nonzero(ndimage.binary_opening(image.array > -300, iterations=3))
    return measure(image.with_array(array), lungs).metal_share * body / array[box].size


def middle(image: Volume) -> Volume:
    """Return 40 mm of a chest at 1 mm, without its noise."""
    part = dskprep.to_spacing(Volume(np.ascontiguousarray(image.array[50:66, 50:250, 50:250]), image.affine), (1, 1, 1))
    return part.with_array(ndimage.gaussian_filter(part.array.astype(np.float32), 1.5))


def noise(smooth: Volume, sd: float, blur: float) -> float | None:
    """Plant noise in an image without any; return what is measured."""
    field = np.random.default_rng(int(sd)).standard_normal(smooth.shape).astype(np.float32)
    field = ndimage.gaussian_filter(field, (0, blur, blur)) if blur else field
    noisy = np.rint(smooth.array + field * (sd / field.std())).clip(-1024, 3071).astype(np.int16)
    return measure(smooth.with_array(noisy), None).noise_hu


def sample(array: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Return an array at fractional places along an axis."""
    places = places.clip(0, array.shape[axis] - 1)
    low = np.minimum(places.astype(int), array.shape[axis] - 2)
    part = (places - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    return np.take(array, low, axis) * (1 - part) + np.take(array, low + 1, axis) * part


def moved(image: Volume, lungs: Volume, way: str, mm: float, period_mm: float | None) -> float | None:
    """Move a patient by `mm` at half the height of the lungs, or to and fro with a period along z; measure it."""
    (n_z, n_y, n_x), (z_mm, y_mm, x_mm) = image.shape, image.spacing
    z, y, x = np.arange(n_z), np.arange(n_y), np.arange(n_x)
    inside_z, inside_y = (np.flatnonzero(lungs.array.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    half = (inside_z[0] + inside_z[-1]) / 2
    phases = mm * ((z > half) if period_mm is None else 0.5 + 0.5 * np.sin(2 * np.pi * z * z_mm / period_mm))
    front = ((inside_y[-1] - y) / np.ptp(inside_y)).clip(0, 1)
    low = ((inside_z[-1] - z) / np.ptp(inside_z)).clip(0, 1)
    hu = np.where(image.array == PADDING, AIR_HU, image.array).astype(np.float32)
    planes = []
    for volume in (hu, lungs.array.astype(np.float32)):
        rise = {"up": phases, "breath": phases * low}.get(way, 0 * phases) / z_mm
        made = sample(volume, z + rise, 0)
        for k, phase in enumerate(phases):
            if way in ("to the front", "breath"):
                made[k] = sample(made[k], y + phase * (front if way == "breath" else 1) / y_mm, 0)
            if way == "sideways":
                made[k] = sample(made[k], x + phase / x_mm, 1)
        planes.append(made)
    moved_hu, mask = np.rint(planes[0]).astype(np.int16), (planes[1] > 0.5).astype(np.uint8)
    return measure(Volume(moved_hu, image.affine), Volume(mask, image.affine)).motion_step_mm


def still(image: Volume, lungs: Volume) -> Iterator[tuple[str, float | None]]:
    """Measure the motion of a patient who lies still, with noise, by another kernel and in thick slices."""
    hu = np.where(image.array == PADDING, AIR_HU, image.array).astype(np.float32)
    noisy = hu + np.random.default_rng(0).normal(0, 60, hu.shape)
    thick = ndimage.uniform_filter1d(hu, 4, axis=0)[2::4]
    kinds = {"as it is": hu, "60 HU of noise": noisy, "blurred by 1 mm": ndimage.gaussian_filter(hu, (0, 0.6, 0.6))}
    for name, array in kinds.items():
        yield name, measure(image.with_array(np.rint(array).astype(np.int16)), lungs).motion_step_mm
    affine = image.affine @ np.diag([4.0, 1, 1, 1])
    mask = Volume(np.ascontiguousarray(lungs.array[2::4]), affine)
    yield "slices of 10 mm", measure(Volume(np.rint(thick).astype(np.int16), affine), mask).motion_step_mm


def print_motion(scans: list[tuple[Volume, Volume]]) -> None:
    """Plant motion of every kind in scans and print the smallest and the largest answer."""
    for way in WAYS:
        for period_mm in (None, 40.0, 80.0):
            told = []
            for mm in (2.0, 4.0, 8.0):
                found = [m for scan in scans if (m := moved(*scan, way, mm, period_mm)) is not None]
                told.append(f"{mm:g} mm: {min(found, default=0):.2f} to {max(found, default=0):.2f}")
            when = "one step" if period_mm is None else f"a period of {period_mm:g} mm"
            print(f"motion {way}, {when}: {', '.join(told)}")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--patients", type=int, default=12)
    words.add_argument("--scans")
    given = words.parse_args()
    seeds = range(given.patients)
    arms = [[measure(*patient(seed, arms_down=down)).arms for seed in seeds] for down in (False, True)]
    print(f"arms up: {arms[0].count('up')} of {len(seeds)} right; down: {arms[1].count('down')} of {len(seeds)}")
    found = [one for seed in seeds for one in cuts(*patient(seed))]
    print(f"one face cut: {sum(said == (face,) for face, said in found)} of {len(found)} right")
    whole = [measure(*patient(seed)) for seed in seeds]
    print(f"whole: {sum(w.lungs_cut == () and w.body_cut_share == 0 for w in whole)} of {len(seeds)} right")
    for half_mm in HALF_MM:
        ratios = [metal_error(*patient(seed), half_mm) for seed in seeds]
        print(f"metal, a cube of {2 * half_mm:g} mm: {min(ratios):.2f} to {max(ratios):.2f} of what is there")
    smooth = middle(patient(0)[0])
    for blur in (0.0, 0.5, 1.0):
        told = [f"{sd:g}: {noise(smooth, sd, blur)}" for sd in (3, 6, 12, 25, 50)]
        print(f"noise, blurred by {blur} mm: {', '.join(told)}")
    lying = [one for seed in seeds for one in still(*patient(seed))]
    for kind in dict(lying):
        found = [mm for name, mm in lying if name == kind and mm is not None]
        print(f"still, {kind}: motion {min(found):.2f} to {max(found):.2f} mm")
    print_motion([patient(seed) for seed in seeds])
    image = dskprep.to_spacing(patient(0)[0], (1, 1, 1))
    lungs = dskprep.find_lungs(image).mask
    measure(image, lungs)
    started = time.process_time()
    for _ in range(10):
        measure(image, lungs)
    print(f"{100 * (time.process_time() - started):.0f} ms of CPU for {image!r}")
    for case in cases(given.scans) if given.scans else ():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made = dskprep.prepare(dskprep.read_series(case.url))
                print(case.key, made.curation)
                if made.lungs is not None and made.curation and made.curation.motion_step_mm is not None:
                    steps = {way: moved(made.image, made.lungs.mask, way, 4, None) for way in WAYS}
                    print(case.key, "with a step of 4 mm", steps)
            except dskprep.Refusal as refusal:
                print(case.key, refusal.reason)


if __name__ == "__main__":
    main()

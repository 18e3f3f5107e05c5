"""What is measured for the choice of a cohort, against what was planted; and what it says of real scans.

    python benchmarks/curation.py [--patients 12] [--scans FOLDER]

Draws synthetic patients with arms up and down, cuts their lungs at each face, plants metal and noise, and prints how
often the answer is right or how far it is off, and what it costs at 1 mm. Then one line for each scan below FOLDER. See
docs/cohort.md.
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
from dskprep.volume import PADDING, Volume

GRID = {"spacing_mm": (2.5, 1.6, 1.6), "shape": (124, 300, 300)}
HALF_MM = (2.0, 4.0, 8.0)
"""Half the edges of cubes of metal."""


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
                print(case.key, dskprep.prepare(dskprep.read_series(case.url)).curation)
            except dskprep.Refusal as refusal:
                print(case.key, refusal.reason)


if __name__ == "__main__":
    main()

"""What differs between two preparations of one patient: place, HU and lungs."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.dataset import dataset
from dskprep.dataset.dataset import Dataset, StoredVolume
from dskprep.errors import UsageError
from dskprep.preparation import prepare, user_steps
from dskprep.settings import PrepConfig
from dskprep.source.found import read_series
from dskprep.volume import AIR_HU, Triple, Volume

RARE = 0.999
"""The share of voxels that differ by no more than `rare_hu`."""

HU_OF = {
    "HU": (1.0, 0.0, AIR_HU, 32767),
    "normalized": (1400.0, -650.0, -1000, 400),
    "uint8": (1800 / 255, -1200.0, -1200, 600),
}
"""By what an image's values are: factor and offset to HU, and the HU between which they tell tissues apart."""

PAINTED = 170
"""What grt123 paints over what is far from the lungs: no HU."""

HEADER = (
    f"{'index mm':>8} {'overlap':>7} {'mean HU':>7} {'99.9 %':>7} {'max HU':>7} {'at x,y,z mm':>16} "
    f"{'Dice':>7} {'ml':>7}  patient (voxels z y x)"
)


@dataclass(frozen=True, eq=False)
class View:
    """One preparation: an image, what its values are (see prepared.Values), and the lungs on its grid if there are."""

    image: Volume
    values: str
    lungs: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Difference:
    """The second preparation against the first, on the first one's grid and where both are.

    `index_mm` is the largest distance between voxels of the same index, `overlap` the share of the first
    image that the second covers. HU differences are absolute ones, within the HU that both can tell apart
    (below air nothing is); None where an image holds no HU. `max_at_mm` is the LPS place (x, y, z) of the
    largest. `dice` is that of both lungs together, `lungs_ml` by how much the second mask is larger; None
    where there is no mask.
    """

    key: str
    shapes: tuple[tuple[int, int, int], tuple[int, int, int]]
    spacings_mm: tuple[Triple, Triple]
    index_mm: float
    overlap: float
    mean_hu: float | None
    rare_hu: float | None
    max_hu: float | None
    max_at_mm: Triple | None
    dice: float | None
    lungs_ml: float | None

    def as_line(self) -> str:
        """In words, below HEADER."""
        z, y, x = (f"{p:.4f}/{q:.4f}" for p, q in zip(*self.spacings_mm, strict=True))
        hu = [_number(value, 1) for value in (self.mean_hu, self.rare_hu, self.max_hu)]
        at = "-" if self.max_at_mm is None else ",".join(f"{mm:.0f}" for mm in self.max_at_mm)
        return (
            f"{self.index_mm:8.2f} {self.overlap:7.3f} {hu[0]:>7} {hu[1]:>7} {hu[2]:>7} {at:>16} "
            f"{_number(self.dice, 4):>7} {_number(self.lungs_ml, 0):>7}  {self.key} ({z} {y} {x} mm)"
        )

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class Compared:
    """A difference, and what it was found on: the first view, and the second one brought to its grid.

    `apart_hu` is the absolute difference, NaN where the second image is not; it and `second` are None where
    there are no HU.
    """

    difference: Difference
    first: View
    second: Volume | None
    second_lungs: NDArray[np.uint8] | None
    apart_hu: NDArray[np.float32] | None


def compare_datasets(a: str, b: str, only: str = "*") -> Iterator[Compared]:
    """Compare each patient that both datasets hold and whose key matches `only`, in the order of their keys.

    Raises UsageError if there is none.
    """
    first, second = dataset.open_dataset(a), dataset.open_dataset(b)
    shared = [key for key in first if key in second and fnmatch.fnmatchcase(key, only)]
    if not shared:
        raise UsageError(
            f"no patient that matches {only!r} is written both in {a} ({len(first)} are) and in {b} ({len(second)})"
        )
    return (_compare_stored(first, second, key) for key in shared)


def compare_settings(url: str, a: PrepConfig, b: PrepConfig) -> Compared:
    """Compare one series, a folder or archive of DICOM files, prepared in two ways.

    Raises Refusal if either way refuses it.
    """
    return compare(_prepared(url, a), _prepared(url, b), key=url)


def compare(a: View, b: View, *, key: str = "") -> Compared:
    """Compare two preparations of one patient."""
    to_b = np.linalg.inv(b.image.affine) @ a.image.affine
    inside = _sampled(np.ones(b.image.shape, np.uint8), to_b, a.image.shape, order=0)
    second = apart = None
    hu: tuple[float | None, float | None, float | None, Triple | None] = (None, None, None, None)
    if a.values in HU_OF and b.values in HU_OF:
        low, high = (pick(HU_OF[a.values][k], HU_OF[b.values][k]) for pick, k in ((max, 2), (min, 3)))
        second = a.image.with_array(_sampled(to_hu(b), to_b, a.image.shape, order=1))
        apart = np.clip(second.array, low, high)
        apart -= np.clip(to_hu(a), low, high)
        np.abs(apart, out=apart)
        apart[inside == 0] = np.nan
        hu = _of_hu(apart, a.image)
    dice = ml = lungs = None
    if a.lungs is not None and b.lungs is not None:
        lungs = _sampled(b.lungs, to_b, a.image.shape, order=0)
        dice = _dice(a.lungs > 0, lungs > 0)
        ml = np.count_nonzero(b.lungs) * b.image.voxel_ml - np.count_nonzero(a.lungs) * a.image.voxel_ml
    difference = Difference(
        key,
        (a.image.shape, b.image.shape),
        (a.image.spacing, b.image.spacing),
        _index_mm(a.image, b.image),
        float(np.count_nonzero(inside) / inside.size),
        *hu,
        dice,
        ml,
    )
    return Compared(difference, a, second, lungs, apart)


def _compare_stored(first: Dataset, second: Dataset, key: str) -> Compared:
    return compare(_of_stored(first[key]), _of_stored(second[key]), key=key)


def _of_stored(stored: StoredVolume) -> View:
    lungs = None if stored.lungs is None else np.asarray(stored.lungs[...], np.uint8)
    return View(stored.load(), stored.values, lungs)


def _prepared(url: str, config: PrepConfig) -> View:
    user_steps.check(config)
    prepared = prepare.prepare(read_series(url, config), config)
    lungs = None if prepared.lungs is None else prepared.lungs.mask.array
    return View(prepared.image, prepared.values, lungs)


def to_hu(view: View) -> NDArray[np.float32]:
    """The image in HU, as far as its values tell; NaN where they do not."""
    factor, offset, *_ = HU_OF[view.values]
    hu = view.image.array.astype(np.float32) * np.float32(factor) + np.float32(offset)
    if view.values == "uint8":
        hu[view.image.array == PAINTED] = np.nan
    return hu


def _sampled(
    array: NDArray[Any], to_array: NDArray[np.float64], shape: tuple[int, int, int], order: int
) -> NDArray[Any]:
    """An array at the voxels of another grid, whose indices `to_array` maps to its own; 0 outside."""
    sampled: NDArray[Any] = ndimage.affine_transform(
        array, to_array[:3, :3], to_array[:3, 3], shape, order=order, mode="grid-constant"
    )
    return sampled


def _of_hu(apart: NDArray[np.float32], image: Volume) -> tuple[float | None, float | None, float | None, Triple | None]:
    known = apart[~np.isnan(apart)]
    if known.size == 0:
        return None, None, None, None
    x, y, z = image.to_patient(np.unravel_index(int(np.nanargmax(apart)), apart.shape)).tolist()
    return float(known.mean(dtype=np.float64)), float(np.quantile(known, RARE)), float(known.max()), (x, y, z)


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Twice the overlap over the sum; 1 where both are empty."""
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / both) if both else 1.0


def _index_mm(a: Volume, b: Volume) -> float:
    """The largest distance between voxels of one index: at one of the corners that both have."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.minimum(a.shape, b.shape) - 1)
    return float(np.linalg.norm(a.to_patient(corners) - b.to_patient(corners), axis=1).max())


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

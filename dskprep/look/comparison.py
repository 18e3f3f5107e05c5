"""Compare two preparations of one patient: where the voxels lie, their HU, and the lungs."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep import storage
from dskprep.errors import DamagedDataset, UsageError
from dskprep.look.label_comparison import LabelDifference, compare_labels, sample
from dskprep.preparation import prepare, user_steps
from dskprep.preparation.prepared import Prepared
from dskprep.reading import dataset
from dskprep.reading.dataset import Dataset
from dskprep.reading.stored import StoredVolume
from dskprep.settings import PrepConfig
from dskprep.source.cases import only_case
from dskprep.source.found import read_series
from dskprep.volume import AIR_HU, Triple, Volume

RARE = 0.999
"""Share of the voxels whose HU differ by `rare_hu` at most."""
HU_SCALES = {
    "HU": (1.0, 0.0, AIR_HU, 32767),
    "normalized": (1400.0, -650.0, -1000, 400),
    "uint8": (1800 / 255, -1200.0, -1200, 600),
}
"""How each kind of values (see prepared.Values) becomes HU: factor, offset, and the lowest and highest HU it holds."""
N_NAMED = 3
"""Patients named where none can be compared."""
PAINTED = 170
"""Value that grt123 paints over what is far from the lungs."""

LINE = "{:>8} {:>7} {:>7} {:>7} {:>7} {:>16} {:>7} {:>7}  {}"
"""The columns of a table of differences."""
HEADER = LINE.format("index mm", "overlap", "mean HU", "99.9 %", "max HU", "at x,y,z mm", "Dice", "ml", "patient")


@dataclass(frozen=True, eq=False)
class Preparation:
    """One preparation of a patient: the image, the kind of its values (see prepared.Values), the lungs on its grid."""

    image: Volume
    values: str
    lungs: NDArray[np.uint8] | None

    @classmethod
    def of_stored(cls, stored: StoredVolume) -> Preparation:
        lungs = None if stored.lungs is None else np.asarray(stored.lungs[...], np.uint8)
        return cls(stored.load(), stored.values, lungs)

    @classmethod
    def of_prepared(cls, prepared: Prepared) -> Preparation:
        return cls(prepared.image, prepared.values, None if prepared.lungs is None else prepared.lungs.mask.array)


@dataclass(frozen=True)
class Difference:
    """How the second preparation differs from the first, on the grid of the first and where both are.

    `index_mm` is the largest distance between voxels of the same index, `overlap` the share of the first
    image that the second covers. HU differences are absolute, within the HU where both tell tissues apart; they are
    None where an image holds no HU. `max_at_mm` is the LPS place (x, y, z) of the largest. `dice` compares the masks
    of both lungs, `lungs_ml` is how much larger the second mask is; they are None where a mask is missing. `labels` are
    all that a volume of a dataset has.
    """

    key: str
    shapes: tuple[tuple[int, int, int], tuple[int, int, int]]
    spacings_mm: tuple[Triple, Triple]
    index_mm: float
    overlap: float
    mean_hu: float | None = None
    rare_hu: float | None = None
    max_hu: float | None = None
    max_at_mm: Triple | None = None
    dice: float | None = None
    lungs_ml: float | None = None
    labels: tuple[LabelDifference, ...] = ()

    def as_line(self) -> str:
        """Return one line of a table below HEADER."""
        pairs = [(f"{a:.4f}", f"{b:.4f}") for a, b in zip(*self.spacings_mm, strict=True)]
        spacings = f" ({' '.join(map('/'.join, pairs))} mm)" if any(a != b for a, b in pairs) else ""
        return LINE.format(
            f"{self.index_mm:.2f}",
            f"{self.overlap:.3f}",
            *(_number(hu, 1) for hu in (self.mean_hu, self.rare_hu, self.max_hu)),
            ",".join(f"{mm:.0f}" for mm in self.max_at_mm or ()) if self.max_hu else "-",
            _number(self.dice, 4),
            _number(self.lungs_ml, 0),
            f"{self.key}{spacings}",
        )

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"labels": [label._asdict() for label in self.labels]}


@dataclass(frozen=True, eq=False, repr=False)
class Compared:
    """A difference, and what it was found on: the first preparation, and the second one brought to its grid.

    `second` and `apart_hu`, the absolute difference, are in HU; they are None where an image holds no HU. `apart_hu`
    is NaN outside the second image, which `covered` tells.
    """

    difference: Difference
    first: Preparation
    covered: NDArray[np.bool_]
    second: Volume | None
    second_lungs: NDArray[np.uint8] | None
    apart_hu: NDArray[np.float32] | None

    def __repr__(self) -> str:
        apart = self.difference
        dice = "no lungs to compare" if apart.dice is None else f"Dice of the lungs {apart.dice:.4f}"
        hu = "no HU to compare" if apart.max_hu is None else f"HU differ by {apart.max_hu:.1f} at most"
        return f"<Compared: {apart.key}: {hu}, {dice}>"


class Comparison(Iterator[Compared]):
    """The differences of two datasets, one for each volume that both hold, in the order of their keys.

    `n_all` is how many they are. `one_sided` says of each patient that only one side has written what became of it on
    the other. `damaged` has the records that cannot be read, and why, and when all volumes were taken also those
    volumes.
    """

    def __init__(
        self, sides: tuple[Dataset, Dataset], keys: Sequence[str], one_sided: dict[str, str], damaged: dict[str, str]
    ) -> None:
        self.n_all, self.one_sided, self.damaged = len(keys), one_sided, damaged
        self._sides, self._keys = sides, iter(keys)

    def __next__(self) -> Compared:
        for key in self._keys:
            try:
                a, b = (side[key] for side in self._sides)
                found = compare_preparations(Preparation.of_stored(a), Preparation.of_stored(b), key=key)
                difference = dataclasses.replace(found.difference, labels=compare_labels(a, b))
                return dataclasses.replace(found, difference=difference)
            except (DamagedDataset, storage.UnreadableFile) as error:
                self.damaged[key] = str(error)
        raise StopIteration


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str], only: str = "*") -> Comparison:
    """Compare two datasets patient by patient: the place of the voxels, HU and lungs.

    Parameters
    ----------
    a, b
        The datasets, as paths or URLs.
    only
        Compare the volumes whose key matches this pattern, such as ``"LIDC-*"``.

    Yields
    ------
    Compared
        For each volume that both datasets hold, in the order of their keys: the `difference` in numbers, and the
        arrays behind it. A damaged volume is passed over; `damaged` and `one_sided` of the iterator name the patients
        that are not compared.

    Raises
    ------
    UsageError
        If there is no such volume, or no dataset. Raised by the call, before the first volume is read.

    Examples
    --------
    >>> for compared in dskprep.compare("scans-default", "scans-zuidhof"):  # doctest: +SKIP
    ...     print(compared.difference.key, compared.difference.dice)
    """
    first, second = dataset.open_dataset(a), dataset.open_dataset(b)
    shared = [key for key in first if key in second and fnmatch.fnmatchcase(key, only)]
    one_sided = {
        key: f"only in {place}" + (f", {fate} in {other}" if (fate := there.fate(key)) else "")
        for here, there, place, other in ((first, second, a, b), (second, first, b, a))
        for key in here
        if key not in there and fnmatch.fnmatchcase(key, only)
    }
    damaged = {k: why for k, why in (first.damaged | second.damaged).items() if fnmatch.fnmatchcase(k, only)}
    if not shared:
        named = "".join(f"; {key}: {why}" for key, why in [*damaged.items(), *one_sided.items()][:N_NAMED])
        who = "no patient" if only == "*" else f"no patient that matches {only!r}"
        raise UsageError(f"{who} is written both in {a} ({len(first)} are) and in {b} ({len(second)}){named}")
    return Comparison((first, second), shared, one_sided, damaged)


def compare_settings(place: str | os.PathLike[str], a: PrepConfig, b: PrepConfig) -> Compared:
    """Prepare one series with two settings, and compare the results.

    Parameters
    ----------
    place
        A folder or archive that holds the DICOM files of one patient, as a path or URL.
    a, b
        The settings.

    Returns
    -------
    Compared
        The `difference` in numbers, and the arrays behind it.

    Raises
    ------
    UsageError
        If the place holds no patient, or several.
    Refusal
        If the series is refused with either of the settings.

    Examples
    --------
    >>> a, b = dskprep.preset("default"), dskprep.preset("zuidhof")
    >>> dskprep.compare_settings("scans/LIDC-0314", a, b).difference.mean_hu  # doctest: +SKIP
    """
    url = only_case(place).url
    prepared = []
    for config in (a, b):
        user_steps.check(config)
        prepared.append(Preparation.of_prepared(prepare.prepare(read_series(url, config), config)))
    return compare_preparations(*prepared, key=url)


def compare_preparations(a: Preparation, b: Preparation, *, key: str = "") -> Compared:
    """Compare two preparations of one patient."""
    to_b = np.linalg.inv(b.image.affine) @ a.image.affine
    covered = sample(np.ones(b.image.shape, np.bool_), to_b, a.image.shape, order=0)
    second = apart = lungs = None
    found: dict[str, Any] = {}
    if a.values in HU_SCALES and b.values in HU_SCALES:
        (*_, low_a, high_a), (*_, low_b, high_b) = HU_SCALES[a.values], HU_SCALES[b.values]
        low, high = max(low_a, low_b), min(high_a, high_b)
        second = a.image.with_array(sample(to_hu(b.image.array, b.values), to_b, a.image.shape, order=1))
        apart = np.clip(second.array, low, high)
        apart -= np.clip(to_hu(a.image.array, a.values), low, high)
        np.abs(apart, out=apart)
        apart[~covered] = np.nan
        found |= _measure(apart, a.image)
    if a.lungs is not None and b.lungs is not None:
        lungs = sample(b.lungs, to_b, a.image.shape, order=0)
        found["dice"] = _dice(a.lungs > 0, lungs > 0)
        found["lungs_ml"] = np.count_nonzero(b.lungs) * b.image.voxel_ml - np.count_nonzero(a.lungs) * a.image.voxel_ml
    shapes, spacings_mm = (a.image.shape, b.image.shape), (a.image.spacing, b.image.spacing)
    overlap = float(covered.mean())
    difference = Difference(key, shapes, spacings_mm, _index_mm(a.image, b.image), overlap, **found)
    return Compared(difference, a, covered, second, lungs, apart)


def to_hu(array: NDArray[Any], values: str) -> NDArray[np.float32]:
    """Return an array of one of the kinds in HU_SCALES in HU, NaN where they cannot be found."""
    factor, offset, *_ = HU_SCALES[values]
    hu = array.astype(np.float32) * np.float32(factor) + np.float32(offset)
    if values == "uint8":
        hu[array == PAINTED] = np.nan
    return hu


def _measure(apart: NDArray[np.float32], image: Volume) -> dict[str, Any]:
    """Return the fields of Difference that HU give; none where no voxel can be compared."""
    known = apart[~np.isnan(apart)]
    if known.size == 0:
        return {}
    x, y, z = image.to_patient(np.unravel_index(int(np.nanargmax(apart)), apart.shape)).tolist()
    return {
        "mean_hu": float(known.mean(dtype=np.float64)),
        "rare_hu": float(np.quantile(known, RARE)),
        "max_hu": float(known.max()),
        "max_at_mm": (x, y, z),
    }


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks, 1 where both are empty."""
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / both) if both else 1.0


def _index_mm(a: Volume, b: Volume) -> float:
    """Return the largest distance between voxels of the same index, which is at a corner of what both grids have."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.minimum(a.shape, b.shape) - 1)
    return float(np.linalg.norm(a.to_patient(corners) - b.to_patient(corners), axis=1).max())


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

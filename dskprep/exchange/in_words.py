"""What volumes have in common, in words for the descriptions of an export: spacing, axes, and what the values are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from dskprep.counts import n_of
from dskprep.dataset import store
from dskprep.reading.dataset import Dataset

SPACING = ("spacing_z_mm", "spacing_y_mm", "spacing_x_mm")
VALUES = {
    "HU": "HU",
    "normalized": "HU that are scaled and centred (normalized)",
    "uint8": "grey values and no HU, cropped to the lungs and painted over outside them",
    "own": "those of the owner's own steps, maybe no HU",
}
"""What the numbers of an image are, by the word in its record."""
MAX_LEAN_RAD = 1e-3
"""A volume is oblique if one of its axes leans by more than this."""


class Described:
    """What the index says of some volumes of a dataset."""

    def __init__(self, dataset: Dataset, keys: Collection[str]) -> None:
        self._recipe = store.settings_of(dataset.url).recipe
        self._values = dataset[next(iter(keys))].values  # all have the same settings
        self._n, self._n_oblique, self._n_turned = len(keys), 0, 0
        self._least, self._most = np.full(3, np.inf), np.full(3, -np.inf)
        for spacing, axes in _geometries(dataset, keys):
            self._least, self._most = np.minimum(self._least, spacing), np.maximum(self._most, spacing)
            leaning = np.abs(axes / spacing)
            is_oblique = (np.sort(leaning, axis=0)[:-1] > MAX_LEAN_RAD).any()
            self._n_oblique += bool(is_oblique)
            self._n_turned += not is_oblique and not (np.diag(np.fliplr(axes)) > 0).all()

    @property
    def is_of_one_spacing(self) -> bool:
        """Whether all volumes have one spacing, to the digits that are told."""
        return all(f"{least:g}" == f"{most:g}" for least, most in zip(self._least, self._most, strict=True))

    @property
    def spacing(self) -> str:
        """The spacing of all volumes; where they differ, from the least to the largest."""
        pairs = zip(self._least, self._most, strict=True)
        told = " x ".join(f"{a:g}" if f"{a:g}" == f"{b:g}" else f"{a:.4g} to {b:.4g}" for a, b in pairs)
        return f"{told} mm (z, y, x)"

    @property
    def axes(self) -> str:
        """Whether the volumes lie in the patient's axes."""
        others = [
            f"{n_of(self._n_oblique, 'volume')} oblique" if self._n_oblique else "",
            f"{n_of(self._n_turned, 'volume')} with axes that run in another order or direction"
            if self._n_turned
            else "",
        ]
        said = " and ".join(filter(None, others))
        return f"{said} (see affine)" if said else "upright in the patient's axes"

    @property
    def values(self) -> str:
        """What the numbers of the images are."""
        return f"values are {VALUES.get(self._values, self._values)}, by the recipe {self._recipe}"


def _geometries(dataset: Dataset, keys: Collection[str]) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Yield the spacing (z, y, x) and the axes, with LPS x, y, z in rows, of each of the volumes."""
    wanted = set(keys)
    for row in dataset.whole_rows("key", *SPACING, "affine"):
        if row["key"] in wanted:
            yield np.array([row[name] for name in SPACING]), np.reshape(row["affine"], (4, 4))[:3, :3]

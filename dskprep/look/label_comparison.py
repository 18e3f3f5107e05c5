"""How the labels of two volumes of one patient differ."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.dataset.label_record import StoredLabel
from dskprep.reading.stored import StoredVolume

SAME_GRID = 1e-9
"""Grids are one if the matrix from index to index differs from identity by less: a millionth of a voxel after 1000."""


class LabelDifference(NamedTuple):
    """A label in two volumes: the Dice coefficient, and its ml as its author drew it; None where one lacks it."""

    name: str
    dice: float | None
    first_ml: float | None
    second_ml: float | None

    @property
    def words(self) -> str:
        """Return it as a line of text."""
        if self.dice is None:
            return f"label {self.name}: only in {'A' if self.second_ml is None else 'B'}"
        return f"label {self.name}: Dice {self.dice:.4f}, {self.first_ml:.4g} and {self.second_ml:.4g} ml"


def sample(array: NDArray[Any], to_array: NDArray[np.float64], shape: tuple[int, int, int], order: int) -> NDArray[Any]:
    """Return the array at the voxels of another grid, 0 outside; `to_array` maps indices of that grid to its own."""
    sampled: NDArray[Any]
    if np.abs(to_array - np.eye(4)).max() < SAME_GRID:  # as of two runs; sampling takes seconds
        sampled = np.zeros(shape, array.dtype)
        both = tuple(map(slice, np.minimum(shape, array.shape).tolist()))
        sampled[both] = array[both]
        return sampled
    sampled = ndimage.affine_transform(
        array, to_array[:3, :3], to_array[:3, 3], shape, order=order, mode="grid-constant"
    )
    return sampled


def compare_labels(a: StoredVolume, b: StoredVolume) -> tuple[LabelDifference, ...]:
    """Compare the labels of two volumes, by their names, on the grid of the first."""
    first, second = a.labels.about, b.labels.about
    names = sorted({*first, *second})
    is_same_grid = a.shape == b.shape and np.allclose(a.affine, b.affine, atol=1e-4)
    found = []
    for name in names:
        dice = None
        if name in first and name in second:
            dice = _dice_on_grid(a, b, first[name], second[name]) if is_same_grid else _dice(a, b, name)
        ml = [labels[name].ml if name in labels else None for labels in (first, second)]
        found.append(LabelDifference(name, dice, *ml))
    return tuple(found)


def _dice_on_grid(a: StoredVolume, b: StoredVolume, one: StoredLabel, other: StoredLabel) -> float:
    """Return the Dice coefficient of labels on one grid. Only the box that both share is read."""
    boxes = [np.array([label.first or (0, 0, 0), label.shape or (0, 0, 0)]) for label in (one, other)]
    low = np.maximum(boxes[0][0], boxes[1][0])
    high = np.minimum(*(box.sum(axis=0) for box in boxes))
    n_both = 0
    if (high > low).all():
        (z, y, x), (nz, ny, nx) = low.tolist(), (high - low).tolist()
        masks = [v.shards(label.label).read((z, y, x), (nz, ny, nx)) > 0 for v, label in ((a, one), (b, other))]
        n_both = int(np.count_nonzero(masks[0] & masks[1]))
    return 2 * n_both / max(one.voxels + other.voxels, 1)


def _dice(a: StoredVolume, b: StoredVolume, name: str) -> float:
    inside = a.load(name).array > 0
    moved = sample(b.load(name).array, np.linalg.inv(b.affine) @ a.affine, a.shape, order=0)
    n_both = int(np.count_nonzero(inside & (moved > 0)))
    return 2 * n_both / max(1, int(np.count_nonzero(inside)) + int(np.count_nonzero(moved)))

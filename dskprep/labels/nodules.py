"""Which marks of different readers are one nodule."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

FAR_MM = 1e9
"""A distance that is no neighbour's."""


class Placed(NamedTuple):
    """One reader's nodule: the places of its outlines and of its voxels, each (n, 3) in LPS mm."""

    reader: int
    outline_mm: NDArray[np.float64]
    inside_mm: NDArray[np.float64]

    @property
    def centre_mm(self) -> NDArray[np.float64]:
        """The centre of its voxels, or of its outline if it has none."""
        centre: NDArray[np.float64] = (self.inside_mm if len(self.inside_mm) else self.outline_mm).mean(0)
        return centre


def match(marks: Sequence[Placed], tolerance_mm: float) -> list[list[int]]:
    """Return the nodules, each as the indices of its marks, in the order of their places.

    Two marks of different readers belong together if they overlap or come nearer than `tolerance_mm`. The nearest are
    joined first; a nodule never has two marks of one reader.
    """
    near = []
    for i, j in itertools.combinations(range(len(marks)), 2):
        if marks[i].reader != marks[j].reader:
            distance = _distance(marks[i], marks[j], tolerance_mm)
            if distance <= tolerance_mm:
                between = float(np.linalg.norm(marks[i].centre_mm - marks[j].centre_mm))
                near.append((distance, between, i, j))
    nodules = {i: [i] for i in range(len(marks))}
    for _, _, i, j in sorted(near):
        first, second = nodules[i], nodules[j]
        if first is not second and not {marks[k].reader for k in first} & {marks[k].reader for k in second}:
            joined = sorted(first + second)
            nodules.update(dict.fromkeys(joined, joined))
    found = {id(nodule): nodule for nodule in nodules.values()}.values()
    return sorted(found, key=lambda nodule: np.mean([marks[k].centre_mm for k in nodule], axis=0)[::-1].tolist())


def _distance(first: Placed, second: Placed, tolerance_mm: float) -> float:
    """Return the least distance of two marks, 0 if they share a voxel; FAR_MM if it is beyond the tolerance anyway."""
    a, b = first.outline_mm, second.outline_mm
    apart = np.maximum(a.min(0) - b.max(0), b.min(0) - a.max(0))
    if np.linalg.norm(np.maximum(apart, 0)) > tolerance_mm:
        return FAR_MM
    if {*map(tuple, first.inside_mm)} & {*map(tuple, second.inside_mm)}:
        return 0.0
    return float(KDTree(a).query(b)[0].min())

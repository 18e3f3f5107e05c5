"""Which marks of different readers are one nodule."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

FAR_MM = 1e9
"""A distance that is no neighbour's, in mm."""


class Placed(NamedTuple):
    """One reader's nodule: the places of its outlines, (n, 3) in LPS mm, the centre of its voxels, and the voxels.

    These are a mask for each slice, all of one shape, whose first pixel is in the row and column `first`.
    """

    reader: int
    outline_mm: NDArray[np.float64]
    centre_mm: NDArray[np.float64]
    masks: Mapping[int, NDArray[np.bool_]]
    first: tuple[int, int]


def match(marks: Sequence[Placed], tolerance_mm: float) -> list[list[int]]:
    """Return the nodules, each as the indices of its marks, in the order of their places.

    Two marks of different readers belong together if they overlap or come nearer than `tolerance_mm`. The nearest are
    joined first; a nodule never has two marks of one reader.
    """
    outlines: dict[int, KDTree] = {}
    near = []
    for i, j in itertools.combinations(range(len(marks)), 2):
        if marks[i].reader != marks[j].reader:
            distance = FAR_MM
            if not _are_far(marks[i], marks[j], tolerance_mm):
                outlines[i] = outlines.get(i) or KDTree(marks[i].outline_mm)
                share = _share_a_voxel(marks[i], marks[j])
                distance = 0.0 if share else float(outlines[i].query(marks[j].outline_mm)[0].min())
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


def _are_far(first: Placed, second: Placed, tolerance_mm: float) -> bool:
    """Tell whether the boxes round two outlines are further apart than that."""
    a, b = first.outline_mm, second.outline_mm
    apart = np.maximum(a.min(0) - b.max(0), b.min(0) - a.max(0))
    return bool(np.linalg.norm(np.maximum(apart, 0)) > tolerance_mm)


def _share_a_voxel(first: Placed, second: Placed) -> bool:
    row, column = np.maximum(first.first, second.first)
    for k in first.masks.keys() & second.masks.keys():
        a, b = (each.masks[k][row - each.first[0] :, column - each.first[1] :] for each in (first, second))
        rows, columns = np.minimum(a.shape, b.shape)
        if (a[:rows, :columns] & b[:rows, :columns]).any():
            return True
    return False

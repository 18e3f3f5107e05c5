"""The labels of a stored volume as a picture needs them: their names and colours, and where each cuts a plane."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from dskprep.dataset.box import Index, as_index
from dskprep.dataset.label_record import StoredLabel
from dskprep.errors import UsageError
from dskprep.reading.display import describe_label
from dskprep.reading.stored import StoredVolume

MOST_NAMED = 14
"""Labels that a legend names."""
OTHERS = ((154, 99, 36), (250, 128, 114), (220, 190, 255), (0, 128, 128), (128, 128, 0), (128, 0, 0))
"""Brown, salmon, lavender, teal, olive and maroon, which differ well from the colours that labels are stored with.

They are for labels whose colour another one has.
"""
ASKED = 2
"""The rank of a label that was asked for."""


@dataclass(frozen=True, eq=False)
class Outline:
    """One label of a volume.

    `rank` is ASKED of a label that was asked for, 1 of what readers agree on where their own outlines are there too, or
    0. Higher ones are drawn thicker, over the others.
    """

    volume: StoredVolume
    about: StoredLabel
    rgb: tuple[int, int, int]
    rank: int = 0

    @property
    def points(self) -> float:
        """How thick it is drawn."""
        return 1.4 if self.rank else 0.8

    @property
    def colour(self) -> tuple[float, float, float]:
        """The label's colour as matplotlib takes it."""
        red, green, blue = (min(value, 255) / 255 for value in self.rgb)
        return red, green, blue

    @property
    def title(self) -> str:
        """Its name and size."""
        return describe_label(self.about)

    @property
    def box(self) -> tuple[Index, Index]:
        """The first voxel (z, y, x) of the box around it, and its size, at the level of the volume."""
        finest, factor = np.array(self.about.first or (0, 0, 0)), 2**self.volume.at_level
        end = np.minimum(-(-(finest + (self.about.shape or (0, 0, 0))) // factor), self.volume.shape)
        first = np.minimum(finest // factor, end)
        return as_index(first), as_index(end - first)

    def inside(self, axis: int, index: int) -> NDArray[np.bool_]:
        """Return which pixels of a plane of the volume lie in the label. Only the chunks of that plane are read."""
        first, shape = self.box
        start, size = list(first), list(shape)
        plane = np.zeros(np.delete(self.volume.shape, axis), np.bool_)
        if first[axis] <= index < first[axis] + shape[axis]:
            start[axis], size[axis] = index, 1
            (z, y, x), (nz, ny, nx) = start, size
            box = self.volume.shards(self.about.label).read((z, y, x), (nz, ny, nx))
            (row, column), (rows, columns) = np.delete(start, axis), np.delete(size, axis)
            plane[row : row + rows, column : column + columns] = np.take(box, 0, axis) > 0
        return plane


def of_stored(volume: StoredVolume, pattern: str | None = None) -> tuple[Outline, ...]:
    """Return the labels of a volume, in the order of their names; those that match a pattern have the highest rank.

    Each has its own colour, or if an earlier one has that, the next of OTHERS.
    """
    agreed = {name.rpartition("-reader-")[0] for name in volume.labels.about}
    asked = () if pattern is None else volume.labels.about.named(pattern)
    found: list[Outline] = []
    others = itertools.cycle(OTHERS)
    for about in volume.labels.about.values():
        is_taken = any(about.rgb == outline.rgb for outline in found)
        rank = ASKED if about.label in asked else int(about.label in agreed)
        found.append(Outline(volume, about, next(others) if is_taken else about.rgb, rank))
    return tuple(found)


def largest_first(labels: Sequence[Outline]) -> list[Outline]:
    """Return labels from the largest to the smallest, by their ml."""
    return sorted(labels, key=lambda label: label.about.ml or 0.0, reverse=True)


def centre_of(outlines: tuple[Outline, ...], pattern: str | None) -> NDArray[np.float64] | None:
    """Return the middle of the first label that was asked for, or of the first one, in LPS mm; None if there are none.

    A label of just that name comes before others. Raises UsageError if none was found.
    """
    found = [outline.about for outline in outlines if pattern is None or outline.rank == ASKED]
    if pattern is not None and not found:
        known = ", ".join(outline.about.label for outline in outlines) or "(there are none)"
        raise UsageError(f"expected a name or pattern of one of the labels {known}, found {pattern!r}")
    found.sort(key=lambda about: about.label != pattern)
    return np.array(found[0].centroid_mm) if found and found[0].centroid_mm is not None else None


def legend(cut: Sequence[Outline], n_labels: int) -> list[Line2D]:
    """Return a line for each of the labels that are seen, with its name, and how many of all are not."""
    named = cut[:MOST_NAMED]
    lines = [Line2D([], [], color=o.colour, linewidth=1.5, label=o.title.replace("$", r"\$")) for o in named]
    if n_labels > len(named):
        n_others = n_labels - len(named)
        lines.append(Line2D([], [], color="none", label=f"and {n_others} other label{'s' * (n_others > 1)}"))
    return lines

"""Pictures of two preparations of one patient, side by side, and of the difference of their HU."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from dskprep.dataset import thumbnail
from dskprep.errors import UsageError
from dskprep.look import comparison
from dskprep.look.comparison import Compared, Difference
from dskprep.look.panels import PLANES, Inside, draw_plane, to_png

LUNG_WINDOW = thumbnail.WINDOWS["HU"]
"""HU that are black and white in the planes of the two images."""
DIFFERENCE_HU = (0, 300)
"""HU between two preparations that are black and white where their difference is drawn."""
COLOURS = ((0.94, 0.89, 0.26), (0.9, 0.3, 0.8))
"""Yellow goes round the first lungs, magenta round the second ones. Neither is the colour of a side."""
AXES = ("z", "y", "x")
"""The patient's axes that the axes of an array run along."""


def draw_comparison(compared: Compared, names: tuple[str, str]) -> bytes:
    """Draw two preparations as `figure_of` does: a PNG. Raises UsageError for images that hold no HU."""
    return to_png(figure_of(compared, names))


def figure_of(compared: Compared, names: tuple[str, str]) -> Figure:
    """Draw two preparations and the difference of their HU, in an axial and a coronal row.

    Both are on the grid of the first one. Each plane is one that both images cover, where the lungs differ most, or
    the HU where there are no lungs; where nothing differs it goes through the middle of the lungs. The patient's left
    is on the right; up is the front in the axial row, the head in the coronal one. A title says where the plane lies,
    in mm (LPS). The lungs are outlined in the colours of COLOURS, which a legend names. What the second image does not
    cover is black.

    Raises UsageError for images that hold no HU.
    """
    first, apart = compared.first, compared.apart_hu
    if compared.second is None or apart is None:
        raise UsageError("only images that hold HU can be drawn side by side")
    labels = tuple(f"{letter}: {name}".replace("$", r"\$") for letter, name in zip("AB", names, strict=True))
    lungs = [
        (colour, label, mask > 0)
        for colour, label, mask in zip(COLOURS, labels, (first.lungs, compared.second_lungs), strict=True)
        if mask is not None
    ]
    images = (
        (labels[0], comparison.to_hu(first.image.array, first.values), LUNG_WINDOW),
        (labels[1], np.where(compared.covered, compared.second.array, np.nan), LUNG_WINDOW),
        (f"difference, white from {DIFFERENCE_HU[1]} HU", apart, DIFFERENCE_HU),
    )
    figure = Figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(_describe(compared.difference).replace("$", r"\$"), fontsize=10)
    for row, axis, index in zip(figure.subplots(2, 3), (0, 1), planes(compared), strict=False):
        place_mm = first.image.to_patient(np.where(np.arange(3) == axis, index, 0))[2 - axis]
        shown = [Inside(colour, np.take(mask, index, axis)) for colour, _, mask in lungs]
        for ax, (name, array, window) in zip(row, images, strict=True):
            draw_plane(ax, first.image.with_array(array), axis, index, window, shown)
            ax.set_title(f"{name}\n{[*PLANES][axis]} plane at {AXES[axis]} = {place_mm:.0f} mm", fontsize=9)
    if lungs:
        over = ("", " (over those of A)") if len(lungs) == 2 else ("",)
        lines = [
            Line2D([], [], color=colour, linewidth=1.5, label=f"lungs of {label}{more}")
            for (colour, label, _), more in zip(lungs, over, strict=True)
        ]
        figure.legend(handles=lines, loc="outside lower left", ncols=2, fontsize=9, frameon=False)
    return figure


def planes(compared: Compared) -> tuple[int, int]:
    """Return the index along z and the one along y of the planes that show most of a difference (see figure_of).

    A plane counts if the second image covers at least half as much of it as of any other.
    """
    first, covered, second_lungs = compared.first, compared.covered, compared.second_lungs
    if first.lungs is None or second_lungs is None:
        differs: NDArray[np.generic] = np.zeros(covered.shape) if compared.apart_hu is None else compared.apart_hu
        differs = np.nan_to_num(differs)
    else:
        differs = ((first.lungs > 0) != (second_lungs > 0)) & covered
    middle = thumbnail.middle(covered.shape, None if first.lungs is None else first.lungs * covered)
    chosen = []
    for axis in (0, 1):
        across = tuple(a for a in range(3) if a != axis)
        there = covered.sum(axis=across)
        much = np.where(2 * there >= there.max(), differs.sum(axis=across), 0)
        chosen.append(int(much.argmax()) if much.any() else middle[axis])
    return chosen[0], chosen[1]


def _describe(difference: Difference) -> str:
    words = [difference.key]
    if difference.mean_hu is not None:
        words.append(f"HU apart: mean {difference.mean_hu:.1f}, max {difference.max_hu:.0f}")
    if difference.dice is not None:
        words.append(f"lungs: Dice {difference.dice:.4f}, {difference.lungs_ml:+.0f} ml")
    return "; ".join(words)

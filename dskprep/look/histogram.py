"""The histogram of a picture: how much of a volume, and of each lung, has which values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep import sides
from dskprep.look.outlines import OUTLINES, Outline, legend
from dskprep.volume import PADDING, Volume

HISTOGRAM_HU = (-1100, 1500)
"""HU at the ends of a histogram."""
N_BARS = 130
"""Bars of a histogram: 20 HU each."""


def draw_histogram(
    ax: Any,
    volume: Volume,
    mask: NDArray[np.uint8] | None,
    window: tuple[float, float] | None,
    cut: Sequence[Outline],
    n_labels: int,
) -> None:
    """Draw how many ml each bar of HU holds, logarithmically: all of the volume in grey, the lungs in their colours.

    The legend also names the labels that the planes cut.
    """
    low, high = window or HISTOGRAM_HU
    edges = np.linspace(low, high, N_BARS + 1)
    ml = volume.voxel_ml
    array = volume.array
    ax.stairs(ml * np.histogram(array[array != PADDING], edges)[0], edges, fill=True, color="0.75", label="all")
    if mask is not None:
        for label, colour in OUTLINES.items():
            values = array[mask == label]
            if len(values):
                ax.stairs(ml * np.histogram(values, edges)[0], edges, color=colour, label=sides.NAMES[label])
    ax.set_yscale("log")
    ax.set_ylim(bottom=ml)
    ax.set_ylabel(f"ml per bar of {(high - low) / N_BARS:.3g}", fontsize=8)
    ax.tick_params(labelsize=7)
    lines = [*ax.get_legend_handles_labels()[0], *legend(cut, n_labels)]
    ax.legend(handles=lines, fontsize=7, frameon=False, loc="upper right")
    ax.set_title("HU" if window is None else "values", fontsize=9)

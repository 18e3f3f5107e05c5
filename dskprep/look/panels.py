"""The panels of a picture: a plane of a volume with its outlines, a histogram, a legend; and the picture as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from dskprep import sides
from dskprep.look.marks import PLANES, mark_scale, mark_sides
from dskprep.volume import PADDING, Volume

OUTLINES = {side: (red / 255, green / 255, blue / 255) for side, (red, green, blue) in sides.RGB.items()}
"""The colour of each lung as matplotlib takes it."""
HISTOGRAM_HU = (-1100, 1500)
"""HU at the ends of a histogram."""
N_BARS = 130
"""Bars of a histogram: 20 HU each."""

Inside = tuple[tuple[float, float, float], NDArray[np.bool_]]
"""A colour, and which pixels of a plane its outline goes round."""


def draw_plane(
    ax: Any, volume: Volume, axis: int, index: int, window: tuple[float, float], shown: Sequence[Inside]
) -> None:
    """Draw one plane of a volume with outlines in the middle of a square, with the patient's sides and a scale.

    The patient's left is on the right; up is the front in the axial plane (axis 0), the head in the others; the front
    is left in the sagittal one.
    """
    plane = np.take(volume.array, index, axis)
    down_mm, across_mm = np.delete(volume.spacing, axis)
    down, across = plane.shape[0] * down_mm, plane.shape[1] * across_mm
    extent = (0, across, down, 0) if axis == 0 else (0, across, 0, down)
    low, high = window
    ax.imshow(plane, cmap="gray", vmin=low, vmax=high, extent=extent, origin="upper" if axis == 0 else "lower")
    y, x = (np.arange(n) + 0.5 for n in plane.shape)
    for colour, inside in shown:
        if inside.any() and not inside.all() and min(inside.shape) > 1:
            ax.contour(x * across_mm, y * down_mm, inside, [0.5], colors=[colour], linewidths=0.8)
    edge = max(down, across)
    left, bottom, top = (across - edge) / 2, (down + edge) / 2, (down - edge) / 2
    if axis > 0:
        bottom, top = top, bottom
    ax.set(xlim=(left, left + edge), ylim=(bottom, top), xticks=[], yticks=[], facecolor="black")
    mark_sides(ax, [*PLANES.values()][axis])
    mark_scale(ax)


def draw_histogram(ax: Any, volume: Volume, mask: NDArray[np.uint8] | None, window: tuple[float, float] | None) -> None:
    """Draw how many ml each bar of HU holds, logarithmically: all of the volume in grey, the lungs in their colours.

    A volume with a `window` holds other values.
    """
    low, high = window or HISTOGRAM_HU
    edges = np.linspace(low, high, N_BARS + 1)
    ml, array = volume.voxel_ml, volume.array
    ax.stairs(ml * np.histogram(array[array != PADDING], edges)[0], edges, fill=True, color="0.75")
    if mask is not None:
        for side, colour in OUTLINES.items():
            values = array[mask == side]
            if len(values):
                ax.stairs(ml * np.histogram(values, edges)[0], edges, color=colour)
    ax.set_yscale("log")
    ax.set_ylim(bottom=ml)
    ax.set_ylabel(f"ml per bar of {(high - low) / N_BARS:.3g}", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.set_title(f"{'HU' if window is None else 'values'}, grey: of the whole image", fontsize=9)


def lines_of(mask: NDArray[np.uint8] | None) -> list[Line2D]:
    """Return one line for each lung of a mask, with its name, for a legend."""
    found = [] if mask is None else [side for side in OUTLINES if (mask == side).any()]
    names = sides.NAMES | {sides.LUNG: "lungs" if found == [sides.LUNG] else "lung of unknown side"}
    return [Line2D([], [], color=OUTLINES[side], linewidth=1.5, label=names[side]) for side in found]


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()

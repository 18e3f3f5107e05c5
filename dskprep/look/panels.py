"""The panels of a picture: a plane of a volume with outlines, sides and scale, a histogram, a legend; and the PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from dskprep import sides
from dskprep.volume import PADDING, Volume

LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))
"""Where x, y and z (LPS) begin and end: right, left; front (anterior), back (posterior); feet, head."""
PLANES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "H", "F"), "sagittal": ("A", "P", "H", "F")}
"""What lies on the left, on the right, above and below in each plane as it is drawn."""
SCALES_MM = (50, 20, 10, 5, 2, 1)
"""Lengths of a scale bar."""
MAX_SHARE = 0.4
"""The largest part of a panel's width that a scale bar takes."""
EDGES = (
    (0.02, 0.5, "left", "center"),
    (0.98, 0.5, "right", "center"),
    (0.5, 0.98, "center", "top"),
    (0.5, 0.02, "center", "bottom"),
)
"""Place and alignment of the letters: left, right, above, below."""
LETTER_SHARE = 0.065
"""The part of a panel's width or height that a letter takes, with its distance from the edge."""
ON_ANY_GROUND: dict[str, Any] = {"color": "white", "path_effects": [withStroke(linewidth=2, foreground="black")]}
"""Style of what must be read on black and on white."""
OUTLINES = {side: (red / 255, green / 255, blue / 255) for side, (red, green, blue) in sides.RGB.items()}
"""The colour of each lung as matplotlib takes it."""
HISTOGRAM_HU = (-1100, 1500)
"""HU at the ends of a histogram."""
N_BARS = 130
"""Bars of a histogram: 20 HU each."""


class Inside(NamedTuple):
    """A colour, which pixels of a plane its outline goes round, and how thick that is in points."""

    colour: tuple[float, float, float]
    pixels: NDArray[np.bool_]
    points: float = 0.8


def draw_plane(
    ax: Any, volume: Volume, axis: int, index: int, window: tuple[float, float], shown: Sequence[Inside]
) -> None:
    """Draw one plane of a volume in the middle of a square, with the patient's sides and a scale.

    Outlines are drawn in their order, so that a later one lies over an earlier one.

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
    for colour, inside, points in shown:
        if inside.any() and not inside.all() and min(inside.shape) > 1:
            ax.contour(x * across_mm, y * down_mm, inside, [0.5], colors=[colour], linewidths=points)
    edge = max(down, across)
    left, bottom, top = (across - edge) / 2, (down + edge) / 2, (down - edge) / 2
    if axis > 0:
        bottom, top = top, bottom
    ax.set(xlim=(left, left + edge), ylim=(bottom, top), xticks=[], yticks=[], facecolor="black")
    mark_sides(ax, [*PLANES.values()][axis], ((edge - across) / 2 / edge, (edge - down) / 2 / edge))
    mark_scale(ax)


def mark_sides(ax: Any, letters: tuple[str, str, str, str], margins: tuple[float, float] = (0.0, 0.0)) -> None:
    """Write which side of the patient lies on the left, on the right, above and below.

    `margins` are the parts of the panel beside the picture, on each side, and above and below it. A letter stands in
    its margin, or within the picture where the margin is too small for it.
    """
    inwards = [margin if margin < LETTER_SHARE else 0.0 for margin in margins]
    for letter, (x, y, across, upright) in zip(letters, EDGES, strict=True):
        place = np.add((x, y), inwards * np.sign(np.subtract(0.5, (x, y))))
        ax.text(*place, letter, ha=across, va=upright, fontsize=11, transform=ax.transAxes, **ON_ANY_GROUND)


def mark_scale(ax: Any) -> None:
    """Draw a bar with its length into the lower left corner of axes in mm; none where not even the shortest fits."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    fitting = [mm for mm in SCALES_MM if mm <= MAX_SHARE * abs(right - left)]
    if not fitting:
        return
    start, height = left + 0.04 * (right - left), bottom + 0.04 * (top - bottom)
    end = start + (fitting[0] if right > left else -fitting[0])
    ax.plot([start, end], [height, height], linewidth=2, solid_capstyle="butt", **ON_ANY_GROUND)
    above = height + 0.015 * (top - bottom)
    ax.text((start + end) / 2, above, f"{fitting[0]} mm", ha="center", va="bottom", fontsize=8, **ON_ANY_GROUND)
    ax.set(xlim=(left, right), ylim=(bottom, top))


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
    ax.set_ylabel(f"ml per bar of {(high - low) / N_BARS:.3g}{' HU' if window is None else ''}", fontsize=8)
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
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": "dskprep"})
    return buffer.getvalue()

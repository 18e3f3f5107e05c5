"""What is marked on every picture of a plane: the sides of the patient, and the scale."""

from __future__ import annotations

from typing import Any

from matplotlib.patheffects import withStroke

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
ON_ANY_GROUND: dict[str, Any] = {"color": "white", "path_effects": [withStroke(linewidth=2, foreground="black")]}
"""Style of what must be read on black and on white."""


def mark_sides(ax: Any, letters: tuple[str, str, str, str]) -> None:
    """Write which side of the patient lies on the left, on the right, above and below."""
    for letter, (x, y, across, upright) in zip(letters, EDGES, strict=True):
        ax.text(x, y, letter, ha=across, va=upright, fontsize=11, transform=ax.transAxes, **ON_ANY_GROUND)


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

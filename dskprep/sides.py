"""The labels of the two lungs in a mask, their names, and the colours that they are drawn in."""

from __future__ import annotations

RIGHT = 1
"""The patient's right lung."""
LEFT = 2
"""The patient's left lung."""

LUNG = 3
"""A lung whose side is not known, or both where they cannot be told apart."""

NAMES = {RIGHT: "right lung", LEFT: "left lung", LUNG: "lung"}
"""The lungs in words."""
RGB = {RIGHT: (86, 180, 233), LEFT: (230, 159, 0), LUNG: (0, 158, 115)}
"""Okabe and Ito's blue, orange and green, which the colour-blind can tell apart (Color Universal Design, 2008)."""

"""The labels of the two lungs in a mask, their names, and the colours that they are drawn in."""

from __future__ import annotations

RIGHT = 1
"""The patient's right lung; also both lungs where they cannot be told apart."""
LEFT = 2
"""The patient's left lung."""

NAMES = {RIGHT: "right lung", LEFT: "left lung"}
"""The lungs in words."""
RGB = {RIGHT: (86, 180, 233), LEFT: (230, 159, 0)}
"""Okabe and Ito's blue and orange, which the colour-blind can tell apart (Color Universal Design, 2008)."""

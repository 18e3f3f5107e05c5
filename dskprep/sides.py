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


def in_words(right_ml: float, left_ml: float, unsided_ml: float = 0.0) -> str:
    """Say how large lungs are; those that are not told apart have no side.

    >>> in_words(1986, 1768), in_words(0, 0, 3796)
    ('right lung 1986 ml, left lung 1768 ml', 'lungs 3796 ml')
    """
    if not (right_ml or left_ml or unsided_ml):
        return "no lungs"
    if unsided_ml and not (right_ml or left_ml):
        return f"lungs {unsided_ml:.0f} ml"
    unsided = f", lung of unknown side {unsided_ml:.0f} ml" if unsided_ml else ""
    return f"right lung {right_ml:.0f} ml, left lung {left_ml:.0f} ml{unsided}"

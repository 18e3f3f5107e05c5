"""How the figures of the written volumes of a dataset are distributed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from dskprep.stopwatch import STAGES

MEASURES = {
    "slices": ("slices", ""),
    "step_mm": ("slice step", "mm"),
    "pixel_mm": ("pixel spacing", "mm"),
    "height_mm": ("height", "mm"),
    "lungs_ml": ("lung volume", "ml"),
    "right_percent": ("right lung's share", "%"),
    "mean_lung_hu": ("mean HU in the lungs", "HU"),
}
"""Columns of numbers: name and unit of each."""
HISTOGRAMS = ("step_mm", "slices", "lungs_ml", "mean_lung_hu")
"""The columns that are shown as histograms."""
N_BARS = 24
"""Bars of a histogram."""
MIN_COMPARED = 8
"""Fewest values among which one can stand out."""
LEAST_SPREAD = 0.05
"""Least spread of a feature as a share of its median, so that small differences count little among equal values."""
MAX_DEVIATION = 99.0
"""Largest deviation, below that of one doubt about the lungs."""


class Histogram(NamedTuple):
    """Counts in bins of equal width between `edges` (one more than counts)."""

    title: str
    unit: str
    edges: list[float]
    counts: list[int]
    median: float


class Stage(NamedTuple):
    """Seconds that one stage took per patient."""

    name: str
    mean_s: float
    median_s: float
    p95_s: float


def deviations(values: pd.Series[float], least_spread: float) -> pd.Series[float]:
    """Return how far each value lies from the median, in robust standard deviations.

    One is 1.4826 times the median absolute deviation (Rousseeuw and Croux 1993), or the least spread if that is more.
    """
    distance = (values - values.median()).abs()
    spread = max(1.4826 * distance.median(), least_spread)
    return (distance / spread).clip(upper=MAX_DEVIATION)


def histograms(written: pd.DataFrame) -> list[Histogram]:
    """Return how HISTOGRAMS are distributed over written volumes."""
    found = []
    for column in HISTOGRAMS:
        name, unit = MEASURES[column]
        values = written[column].replace([np.inf, -np.inf], np.nan).dropna()
        if len(values):
            low, high = values.min(), values.max()
            # a record may be a stranger's, and numpy takes no range that is next to nothing
            counts, edges = np.histogram(values, N_BARS, (low, max(high, low + 1e-6 * max(1.0, abs(low)))))
            title = name[0].upper() + name[1:]
            found.append(Histogram(title, unit, edges.tolist(), counts.tolist(), float(values.median())))
    return found


def stages(written: pd.DataFrame) -> list[Stage]:
    """Return the seconds per stage of written volumes."""
    seconds = pd.DataFrame({stage: written[f"seconds_{stage}"] for stage in STAGES}).dropna(axis=1, how="all")
    return [Stage(str(name), s.mean(), s.median(), float(s.quantile(0.95))) for name, s in seconds.items()]

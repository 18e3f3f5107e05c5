"""What the page on a dataset says: how volumes and labels are distributed, which stand out, its settings in lines."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dskprep.dataset.annotations import NOT_READ
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
FEATURES = ("step_mm", "pixel_mm", "height_mm", "lungs_ml", "right_percent", "mean_lung_hu")
"""The columns by which a volume can stand out."""
HISTOGRAMS = ("step_mm", "slices", "lungs_ml", "mean_lung_hu")
"""The columns that are shown as histograms."""
LUNGS = "lungs_ml"
"""The column whose 0 means that no lung was found."""
N_BARS = 24
"""Bars of a histogram."""
MIN_COMPARED = 8
"""Fewest values among which one can stand out."""
LEAST_SPREAD = 0.05
"""Least spread of a feature as a share of its median, so that small differences count little among equal values."""
MAX_DEVIATION = 99.0
"""Largest deviation, below that of one doubt about the lungs."""
MAX_LABELS = 100
"""Names of labels that the page lists, the most frequent first."""
LEAST_ML = 1e-6
"""The size that an empty label counts as, since sizes are compared by their ratio."""


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
    """Return how HISTOGRAMS are distributed over written volumes; volumes of lungs over those that have any."""
    found = []
    for column in HISTOGRAMS:
        name, unit = MEASURES[column]
        values = _measured(written, column).replace([np.inf, -np.inf], np.nan).dropna()
        if len(values):
            low, high = values.min(), values.max()
            # a record may be a stranger's, and numpy takes no range that is next to nothing
            counts, edges = np.histogram(values, N_BARS, (low, max(high, low + 1e-6 * max(1.0, abs(low)))))
            title = name[0].upper() + name[1:]
            found.append(Histogram(title, unit, edges.tolist(), counts.tolist(), float(values.median())))
    return found


def _measured(written: pd.DataFrame, column: str) -> pd.Series[float]:
    """Return a measure of volumes; where no lung was found, the volume of lungs is not known rather than 0."""
    values: pd.Series[float] = written[column]
    return values.where(values > 0) if column == LUNGS else values


def _short(value: float) -> str:
    """Return four figures, or all before the point, halves rounded up as browsers do."""
    is_whole = abs(value) >= 1000 and math.isfinite(value)
    return str(math.floor(value + 0.5)) if is_whole else f"{value:.4g}"


def stages(written: pd.DataFrame) -> list[Stage]:
    """Return the seconds per stage of written volumes."""
    seconds = pd.DataFrame({stage: written[f"seconds_{stage}"] for stage in STAGES}).dropna(axis=1, how="all")
    return [Stage(str(name), s.mean(), s.median(), float(s.quantile(0.95))) for name, s in seconds.items()]


class LabelFigures(NamedTuple):
    """In how many volumes a label is, and its smallest, median and largest volume."""

    name: str
    volumes: int
    least_ml: float
    median_ml: float
    most_ml: float


def rank(written: pd.DataFrame) -> pd.DataFrame:
    """Sort written volumes by their `score`, how far each stands out; `unusual` is the feature that it stands out by.

    A feature stands out by its distance from the median in robust standard deviations. Each doubt about the lungs
    counts more than any feature.
    """
    score, unusual = np.zeros(len(written)), np.full(len(written), "", object)
    which = np.full(len(written), -1)
    for n, column in enumerate(FEATURES) if len(written) >= MIN_COMPARED else ():
        values = _measured(written, column)
        deviation = deviations(values, max(LEAST_SPREAD * abs(values.median()), 1e-9)).to_numpy()
        further = deviation > score
        score[further], which[further] = deviation[further], n
    for n in np.unique(which[which >= 0]):
        (name, unit), values = MEASURES[FEATURES[n]], _measured(written, FEATURES[n])
        median = f"{_short(values.median())} {unit}"
        unusual[which == n] = [f"{name} {_short(v)} {unit}, the median is {median}" for v in values[which == n]]
    ranked = written.assign(score=score.round(1) + 100 * written["doubts"].to_numpy(float), unusual=unusual)
    return ranked.sort_values("key").sort_values("score", ascending=False, kind="stable")


def label_figures(table: pd.DataFrame) -> dict[str, Any] | None:
    """Return what the page says of labels: the most frequent ones with their ml, why others are not there, and which
    records cannot be read.

    `table` is that of annotations. None if there is none.
    """
    if table.empty:
        return None
    written = table[table["status"] == "written"]
    labels = written[written["label"].fillna("") != ""]
    by_name = labels.groupby("label")["ml"].agg(["size", "min", "median", "max"])
    most = by_name.sort_values(["size"], ascending=False, kind="stable").head(MAX_LABELS)
    lost = table[table["status"] != "written"]
    return {
        "names": [LabelFigures(str(name), *row) for name, *row in most.itertuples()],
        "n_names": len(by_name),
        "n_labels": len(labels),
        "n_points": len(written) - len(labels),
        "n_volumes": written["key"].nunique(),
        "lost": dict(Counter(lost["status"] + ": " + lost["reason"].fillna("")).most_common()),
        "damaged": [row["message"] for row in lost[lost["reason"].isin(NOT_READ)].to_dict("records")],
    }


def rank_labelled(table: pd.DataFrame, written: pd.DataFrame) -> pd.DataFrame:
    """Return key, digest and `score` of the written volumes that have labels, those first that stand out most.

    `table` is that of annotations. The score of a volume is that of the one of its labels whose ml differs most, as a
    ratio, from what labels of its name have.
    """
    is_label = (table["status"] == "written") & (table["label"].fillna("") != "")
    images = written[["key", "digest"]]
    labels = table[is_label].merge(images, left_on=["key", "image"], right_on=["key", "digest"]).assign(score=0.0)
    log_ml = labels["ml"].astype(float).clip(lower=LEAST_ML).map(math.log)
    for _, same in log_ml.groupby(labels["label"]):
        if len(same) >= MIN_COMPARED:
            labels.loc[same.index, "score"] = deviations(same, LEAST_SPREAD).fillna(0.0)
    volumes = labels.groupby(["key", "digest"])["score"].max().reset_index()
    return volumes.sort_values(["score", "key"], ascending=[False, True])


def as_toml(settings: dict[str, Any], table: str = "") -> list[str]:
    """Return a line per setting, as in a settings file: `select.keep = 1`. TOML writes plain values as JSON does."""
    lines = []
    for name, value in settings.items():
        if isinstance(value, dict):
            lines += as_toml(value, f"{table}{name}.")
        elif value is not None:
            lines.append(f"{table}{name} = {json.dumps(value, ensure_ascii=False)}")
    return lines

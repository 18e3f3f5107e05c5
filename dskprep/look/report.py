"""One self-contained page for a whole dataset: what became of it, how it looks, what stands out."""

from __future__ import annotations

import base64
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from dskprep import storage
from dskprep.dataset import index, store
from dskprep.dataset.record import STATUSES
from dskprep.errors import REASONS, WARNINGS
from dskprep.stopwatch import STAGES

MAX_PICTURES = 5000
"""Volumes that the page shows with a picture, 7 KB each."""

MAX_VOLUMES = 20_000
"""Written volumes that the page shows at all, half a KB each, so that it opens and can be sent whatever the dataset."""

MAX_OF_A_REASON = 1000
"""Series not written that the page shows per reason."""

ROWS_AT_ONCE = 1000
"""Rows of the index that are held as dictionaries at a time."""

MAX_RUNS = 20
"""Latest runs that the page lists."""

LUNG_DOUBTS = {
    "lungs-not-found",
    "lungs-touch-border",
    "one-lung",
    "lung-volume-unlikely",
    "dense-lung",
    "lungs-in-pieces",
    "lung-shape-unlikely",
}
"""Warnings that rank a volume before all without one."""

FEATURES = {
    "slice step": ("step_mm", "mm"),
    "pixel spacing": ("pixel_mm", "mm"),
    "height": ("height_mm", "mm"),
    "lung volume": ("lungs_ml", "ml"),
    "right lung's share": ("right_percent", "%"),
    "mean HU in the lungs": ("mean_lung_hu", "HU"),
}
"""What is compared between volumes: the field of a row and its unit."""

HISTOGRAMS = {
    "Slice step": ("step_mm", "mm"),
    "Slices": ("slices", ""),
    "Lung volume": ("lungs_ml", "ml"),
    "Mean HU in the lungs": ("mean_lung_hu", "HU"),
}
"""What is shown as a histogram: the field of a row and its unit."""

N_BARS = 24
"""Bars of a histogram."""

MIN_COMPARED = 8
"""Fewest written volumes among which one can stand out."""

LEAST_SPREAD = 0.05
"""Least spread of a feature as a share of its median, so that small differences count little among equal values."""

MAX_DEVIATION = 99.0
"""Largest score of a feature, below that of one doubt about the lungs."""

Row = dict[str, Any]


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


def write_for_run(target: str, run_id: str) -> None:
    """Write the page beside the summary of a run."""
    content = report(target, records_at="../..").encode()
    storage.write_many(storage.join(target, "runs", run_id), {"qc.html": content})


def report(target: str | os.PathLike[str], *, records_at: str | None = None) -> str:
    """Return one self-contained HTML page on a whole dataset; it holds pictures of the patients.

    Keys, messages and headers come from the files of strangers: they are escaped, and the page loads nothing.

    Parameters
    ----------
    target
        The dataset, as a path or URL.
    records_at
        Where the links of the page look for the dataset, such as ``"../.."``; by default at its URL.

    Returns
    -------
    str
        The page: how many series have which status and why, distributions, and all volumes, outliers first.

    Raises
    ------
    UsageError
        If there is no dataset.

    Examples
    --------
    >>> html = dskprep.report("s3://bucket/scans-1mm")  # doctest: +SKIP
    >>> Path("report.html").write_text(html, encoding="utf-8")  # doctest: +SKIP
    """
    target = storage.absolute(target)
    store.describe(target)
    rows = _rows(index.current(target))
    written = [row for row in rows if row["status"] == "written"]
    shown = outliers_and_others(written, MAX_VOLUMES)
    pictured = outliers_and_others(shown, MAX_PICTURES)
    lost = _some_of_each_reason(rows)
    pictures = _thumbnails(target, [row["key"] for row in pictured])
    for row in shown:
        row["picture"] = pictures.get(row["key"])
    return _template().render(
        name=target.rpartition("/")[2] or target,
        target=target,
        records_at=target if records_at is None else records_at,
        version=version("dskprep"),
        settings=store.describe(target)["settings"],
        counts={status: sum(row["status"] == status for row in rows) for status in STATUSES},
        reasons=_count(f"{row['status']}: {row['reason']}" for row in rows if row["status"] != "written"),
        warnings=_count(warning for row in rows for warning in row["warnings"]),
        meanings=REASONS | WARNINGS,
        histograms=histograms(written),
        stages=stages(written),
        runs=_runs(target),
        n_written=len(written),
        n_shown=len(shown),
        n_pictured=len(pictured),
        n_lost=len(rows) - len(written),
        max_of_a_reason=MAX_OF_A_REASON,
        rows=[*lost, *shown],
    )


def outliers_and_others(rows: Sequence[Row], n: int) -> list[Row]:
    """Choose `n` of the rows, outliers first: one half from the start, the other spread evenly over the rest."""
    if len(rows) <= n:
        return list(rows)
    return [*rows[: n // 2], *_evenly(rows[n // 2 :], n - n // 2)]


def _evenly(rows: Sequence[Row], n: int) -> list[Row]:
    """Choose `n` rows spread evenly, or all if there are no more."""
    return list(rows) if len(rows) <= n else [rows[i * len(rows) // n] for i in range(n)]


def _some_of_each_reason(rows: Sequence[Row]) -> list[Row]:
    """Choose the series that are not written, at most MAX_OF_A_REASON per reason."""
    by_reason: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["status"] != "written":
            by_reason.setdefault((row["status"], row["reason"]), []).append(row)
    return [row for some in by_reason.values() for row in _evenly(some, MAX_OF_A_REASON)]


def histograms(rows: Sequence[Row]) -> list[Histogram]:
    """Return how HISTOGRAMS are distributed over written volumes."""
    found = []
    for title, (field, unit) in HISTOGRAMS.items():
        values = np.array([row[field] for row in rows if row[field] is not None], np.float64)
        if len(values):
            counts, edges = np.histogram(values, N_BARS)
            found.append(Histogram(title, unit, edges.tolist(), counts.tolist(), float(np.median(values))))
    return found


def stages(rows: Sequence[Row]) -> list[Stage]:
    """Return the seconds per stage of written patients."""
    found = []
    for stage in STAGES:
        seconds = [row["seconds"][stage] for row in rows if stage in row["seconds"]]
        if seconds:
            median, p95 = np.percentile(seconds, [50, 95]).tolist()
            found.append(Stage(stage, float(np.mean(seconds)), median, p95))
    return found


def rank(rows: Sequence[Row]) -> None:
    """Set the `score` of each written volume, how far it stands out, and `unusual`, the feature that it stands out by.

    A feature stands out by its distance from the median in robust standard deviations: 1.4826 times the median
    absolute deviation (Rousseeuw and Croux 1993). Each doubt about the lungs counts more than any feature.
    """
    for row in rows:
        row["score"], row["unusual"] = 0.0, ""
    if len(rows) >= MIN_COMPARED:
        for name, (field, unit) in FEATURES.items():
            values = np.array([math.nan if row[field] is None else row[field] for row in rows], np.float64)
            if np.isnan(values).all():
                continue
            median = np.nanmedian(values)
            spread = max(1.4826 * float(np.nanmedian(np.abs(values - median))), LEAST_SPREAD * abs(median), 1e-9)
            for row, value in zip(rows, values.tolist(), strict=True):
                deviation = min(abs(value - median) / spread, MAX_DEVIATION)
                if deviation > row["score"]:
                    row["score"] = round(deviation, 1)
                    row["unusual"] = f"{name} {value:.4g} {unit}, the median is {median:.4g}"
    for row in rows:
        row["score"] += 100 * len(LUNG_DOUBTS & set(row["warnings"]))


def _rows(table: pd.DataFrame) -> list[Row]:
    """Return a row per series: first those not written, then the written ones, outliers first."""
    parts = (table[start : start + ROWS_AT_ONCE] for start in range(0, len(table), ROWS_AT_ONCE))
    rows = [_row(r) for part in parts for r in part.astype(object).where(part.notna(), None).to_dict("records")]
    written = [row for row in rows if row["status"] == "written"]
    rank(written)
    written.sort(key=lambda row: (-row["score"], row["key"]))
    return [row for row in rows if row["status"] != "written"] + written


def _row(record: dict[Any, Any]) -> Row:
    """Return what the page says of one row of the index, in which nothing is NaN."""
    value: Callable[[str], Any] = record.get
    right, left, n_z, bytes_written = map(value, ("right_lung_ml", "left_lung_ml", "n_z", "bytes_written"))
    both = None if right is None or left is None else right + left
    return {
        "key": value("key"),
        "status": value("status"),
        "digest": value("input_digest") or "",
        "reason": value("reason") or "",
        "message": (value("message") or "")[:1000],
        "warnings": [word for word in (value("warnings") or "").split(",") if word],
        "slices": value("source_slices"),
        "step_mm": value("source_step_mm"),
        "pixel_mm": value("source_row_spacing_mm"),
        "height_mm": None if n_z is None else n_z * value("spacing_z_mm"),
        "lungs_ml": both,
        "right_percent": round(100 * right / both, 1) if both else None,
        "mean_lung_hu": value("mean_lung_hu"),
        "scanner": " ".join(filter(None, map(value, ("source_manufacturer", "source_model")))),
        "kernel": value("source_kernel") or "",
        "seconds": {s: round(value(f"seconds_{s}"), 3) for s in STAGES if value(f"seconds_{s}") is not None},
        "mb_written": None if bytes_written is None else round(bytes_written / 1e6, 1),
    }


def _thumbnails(target: str, keys: Sequence[str]) -> dict[str, str]:
    """Return the thumbnails of these volumes in base64; older datasets have none."""
    wanted = set(keys)
    folder = storage.join(target, "thumbnails")
    entries = [e for e in storage.listing_below(folder) if e.name.removesuffix(".webp") in wanted]
    return {
        name.removesuffix(".webp"): base64.b64encode(content).decode()
        for name, content in storage.read_many(folder, entries)
    }


def _runs(target: str) -> list[dict[str, Any]]:
    """Return the summaries of the latest runs, newest first, without damaged ones."""
    found = []
    folder = storage.join(target, "runs")
    names = sorted(e.name for e in storage.listing_below(folder) if e.name.endswith("/summary.json"))
    for name in reversed(names[-MAX_RUNS:]):
        try:
            run = json.loads(storage.read(storage.join(folder, name)))
            n_new = sum(run["counts"].values()) - sum(run["already"].values())
            found.append(run | {"n_new": n_new, "per_minute": 60 * n_new / run["seconds"] if run["seconds"] else 0.0})
        except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
            continue
    return found


def _count(words: Iterable[str]) -> dict[str, int]:
    """Return how often each word comes, the commonest first, ties by name."""
    return dict(Counter(sorted(words)).most_common())


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dskprep", "look"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")

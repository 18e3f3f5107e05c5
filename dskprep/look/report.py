"""One self-contained page for a whole dataset: what became of it, how it looks, what stands out."""

from __future__ import annotations

import base64
import functools
import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dskprep import sides, storage
from dskprep.counts import n_of
from dskprep.dataset import annotations as annotated
from dskprep.dataset import index, own, store
from dskprep.dataset.past_runs import last_run, past_runs
from dskprep.dataset.record import STATUSES
from dskprep.errors import LABEL_REASONS, REASONS, SET_ASIDE, WARNINGS, InfrastructureError
from dskprep.look.figures import as_toml, histograms, label_figures, rank, rank_labelled, stages
from dskprep.reading.labelled import thumbnails_of
from dskprep.stopwatch import STAGES

if TYPE_CHECKING:
    from dskprep.look.label_pictures import LabelPicture

MAX_PICTURES = 5000
"""Volumes that the page shows with a picture, 7 KB each."""
MAX_VOLUMES = 20_000
"""Written volumes that the page shows at all, half a KB each, so that it opens and can be sent whatever the dataset."""
MAX_LABELLED = 12
"""Volumes that the page shows with outlines of their labels, about 10 KB each."""
MAX_OF_A_REASON = 1000
"""Series not written that the page shows per reason."""
MAX_NAMED = 100
"""Volumes that stand out, those most first, that `figures` names."""

LUNG_DOUBTS = {warning for warning in WARNINGS if "lung" in warning}
"""Warnings that rank a volume before all without one."""
COLUMNS = (
    *("key", "status", "input_digest", "reason", "message", "warnings", "n_z", "spacing_z_mm", "bytes_written"),
    *("right_lung_ml", "left_lung_ml", "unsided_lung_ml", "mean_lung_hu"),
    *(f"source_{name}" for name in ("slices", "step_mm", "row_spacing_mm", "manufacturer", "model", "kernel")),
    *(f"seconds_{stage}" for stage in STAGES),
)
"""The columns of the index that the page is made of."""
NOT_ON_THE_PAGE = {"doubts", *(f"seconds_{stage}" for stage in STAGES)}


def is_written(target: str) -> bool:
    """Tell whether the last run that has done anything has left its page, or nobody can know."""
    try:
        last = last_run(target, of_work=True)
        there = storage.listing_below(storage.join(target, "runs"), follow_links=False)
        return last is not None and any(entry.name == f"{last.run_id}/qc.html" for entry in there)
    except InfrastructureError:
        return True


def write_for_run(target: str, run_id: str) -> None:
    """Write the page beside the summary of a run."""
    content = report(target, records_at="../..").encode(errors="replace")  # a folder may not be called in UTF-8
    storage.write_many(target, {f"runs/{run_id}/qc.html": content})


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
        The page: how many series have which status and why, distributions, labels, and all volumes, outliers first.

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
    settings = store.describe(target)["settings"]
    written, lost = _read(target)
    table = annotated.current(target)
    said = {
        **_counts(written, lost),
        "labels": label_figures(table),
        "histograms": histograms(written),
        "stages": stages(written),
        "n_written": len(written),
        "n_lost": len(lost),
    }
    labelled = rank_labelled(table, written)
    shown = outliers_and_others(written, MAX_VOLUMES)
    reasons = lost.groupby(["status", "reason"], sort=False)
    some_lost = [group.take(_spread(len(group), MAX_OF_A_REASON)) for _, group in reasons]
    del written, lost, reasons  # of all series; the page grows as large meanwhile
    pictured = outliers_and_others(shown, MAX_PICTURES)
    over = thumbnails_of(target, table, dict(zip(pictured["key"], pictured["digest"], strict=True)))
    shown = shown.assign(
        picture=shown["key"].map(_thumbnails(target, pictured["key"].tolist())),
        labels=shown["key"].map(lambda key: over.get(key, [])),
    )
    return _template().render(
        name=target.rpartition("/")[2] or target,
        target=target,
        records_at=target if records_at is None else records_at,
        version=version("dskprep"),
        settings=as_toml(settings),
        **said,
        meanings=REASONS | SET_ASIDE | LABEL_REASONS | WARNINGS,
        n_of=n_of,
        n_labelled=len(labelled),
        label_pictures=_label_pictures(target, labelled),
        runs=past_runs(target),
        n_shown=len(shown),
        n_lost_shown=sum(map(len, some_lost)),
        n_pictured=len(pictured),
        n_with_labels=len(over),
        lungs=sides.NAMES | {sides.LUNG: "lungs that are not told apart"},
        colours=sides.RGB,
        max_of_a_reason=MAX_OF_A_REASON,
        rows=(row for table in (*some_lost, shown) for row in _plain(table)),
    )


def figures(target: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the figures of the page as plain JSON values: counts, distributions, seconds, what stands out most."""
    target = storage.absolute(target)
    store.describe(target)
    written, lost = _read(target)
    unusual = written[written["score"] > 0].head(MAX_NAMED)
    labels = label_figures(annotated.current(target))
    return {
        "target": target,
        **_counts(written, lost),
        "labels": labels and labels | {"names": [label._asdict() for label in labels["names"]]},
        "distributions": [histogram._asdict() for histogram in histograms(written)],
        "stages": [stage._asdict() for stage in stages(written)],
        "unusual": unusual[["key", "score", "unusual", "warnings"]].to_dict("records"),
    }


def _read(target: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what is said of the written volumes, those that stand out first, and of the other series."""
    series = describe(index.current(target, COLUMNS))
    is_written = series["status"] == "written"
    return rank(series[is_written]), series[~is_written]


def _counts(written: pd.DataFrame, lost: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return how many series have each status, reason and warning."""
    statuses = Counter(lost["status"]) | Counter({"written": len(written)})
    return {
        "counts": {status: statuses[status] for status in STATUSES},
        "reasons": _count(lost["status"] + ": " + lost["reason"]),
        "warnings": _count(w for table in (written, lost) for warnings in table["warnings"] for w in warnings),
    }


def describe(table: pd.DataFrame) -> pd.DataFrame:
    """Return what the page says of each row of the index; numbers that are not known are NaN.

    Beside it `doubts`, the number of warnings that doubt the lungs.
    """
    nothing = pd.Series(np.nan, table.index)

    def words(column: str) -> pd.Series[Any]:
        found = table.get(column, nothing)
        return (found if isinstance(found.dtype, pd.StringDtype) else found.astype(object)).fillna("")

    def numbers(column: str) -> pd.Series[float]:
        return table.get(column, nothing).astype(float)

    sided_ml = numbers("right_lung_ml") + numbers("left_lung_ml")
    warnings = words("warnings").astype(object)
    lists = {said: said.split(",") if said else [] for said in warnings.unique()}
    return pd.DataFrame(
        {
            "key": words("key"),
            "status": words("status"),
            "digest": words("input_digest"),
            "reason": words("reason"),
            "message": words("message").str[:1000],
            "warnings": warnings.map(lists),
            "doubts": warnings.map({said: float(len(LUNG_DOUBTS & {*each})) for said, each in lists.items()}),
            "slices": numbers("source_slices"),
            "step_mm": numbers("source_step_mm"),
            "pixel_mm": numbers("source_row_spacing_mm"),
            "height_mm": numbers("n_z") * numbers("spacing_z_mm"),
            "lungs_ml": sided_ml + numbers("unsided_lung_ml"),
            "right_percent": (100 * numbers("right_lung_ml") / sided_ml).round(1),
            "mean_lung_hu": numbers("mean_lung_hu"),
            "scanner": (words("source_manufacturer") + " " + words("source_model")).str.strip(),
            "kernel": words("source_kernel"),
            "mib_written": (numbers("bytes_written") / 2**20).round(1),
            **{f"seconds_{stage}": numbers(f"seconds_{stage}").round(3) for stage in STAGES},
        }
    )


def outliers_and_others(ranked: pd.DataFrame, n: int) -> pd.DataFrame:
    """Choose `n` of the rows, outliers first: one half from the start, the other spread evenly over the rest."""
    first = min(n, len(ranked)) // 2
    return ranked.take(np.r_[:first, first + _spread(len(ranked) - first, n - first)])


def _spread(n_rows: int, n: int) -> NDArray[np.int64]:
    """Return the positions of `n` rows spread evenly over all, or of all if there are no more."""
    n = min(n, n_rows)
    return np.arange(n) * n_rows // max(n, 1)


def _plain(table: pd.DataFrame) -> Iterator[dict[Hashable, Any]]:
    """Yield the rows as JSON has them, None for what is not known; `seconds` of a row are those of its stages."""
    stages = table[[f"seconds_{stage}" for stage in STAGES]].to_numpy()
    seconds = [{s: value for s, value in zip(STAGES, row, strict=True) if value >= 0} for row in stages.tolist()]
    columns = {name: table[name].tolist() for name in table if name not in NOT_ON_THE_PAGE}
    known = {name: [None if value != value else value for value in column] for name, column in columns.items()}  # NaN
    for row in zip(*known.values(), seconds, strict=True):
        yield dict(zip([*known, "seconds"], row, strict=True))


def _thumbnails(target: str, keys: Collection[str]) -> dict[str, str]:
    """Return the thumbnails of these volumes in base64; older datasets have none, and nothing else is taken for one."""
    names = [f"{key}.webp" for key in keys]
    found = storage.read_existing(storage.join(target, "thumbnails"), names, most_bytes=own.THUMBNAIL_BYTES)
    pictures = ((name, content) for name, content in found if own.is_thumbnail(content))
    return {name.removesuffix(".webp"): base64.b64encode(content).decode() for name, content in pictures}


def _label_pictures(target: str, labelled: pd.DataFrame) -> list[LabelPicture]:
    """Draw the labels of some volumes, outliers and others as for thumbnails."""
    if labelled.empty:
        return []
    from dskprep.look.label_pictures import label_picture  # loads matplotlib, which a page without labels does not need

    chosen = outliers_and_others(labelled, MAX_LABELLED)
    return [label_picture(target, key, digest) for key, digest in zip(chosen["key"], chosen["digest"], strict=True)]


def _count(words: Iterable[str]) -> dict[str, int]:
    """Return how often each word comes, the commonest first, ties by name."""
    return dict(Counter(sorted(words)).most_common())


@functools.cache
def _template() -> jinja2.Template:
    """Return the page's template, compiled once in a process: it takes longer than a small run."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dskprep", "look"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")

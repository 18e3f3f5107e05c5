"""What the page on a dataset says of its labels."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from dskprep.dataset.annotations import DAMAGED
from dskprep.look.distributions import LEAST_SPREAD, MIN_COMPARED, deviations

if TYPE_CHECKING:
    import pandas as pd

MAX_LABELS = 100
"""Names of labels that the page lists, the most frequent first."""
LEAST_ML = 1e-6
"""The size that an empty label counts as, since sizes are compared by their ratio."""


class LabelFigures(NamedTuple):
    """In how many volumes a label is, and its smallest, median and largest volume."""

    name: str
    volumes: int
    least_ml: float
    median_ml: float
    most_ml: float


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
        "damaged": [row["message"] for row in lost[lost["reason"] == DAMAGED].to_dict("records")],
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

"""What the page on a dataset says of its labels."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from dskprep.dataset.annotations import DAMAGED

if TYPE_CHECKING:
    import pandas as pd

MAX_LABELS = 100
"""Names of labels that the page lists, the most frequent first."""


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

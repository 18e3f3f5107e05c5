"""Whose data a dataset holds, and what may be done with it."""

from __future__ import annotations

import pandas as pd

from dskprep import storage
from dskprep.attribution import Attribution
from dskprep.dataset import index, store
from dskprep.dataset.record import to_json
from dskprep.errors import UsageError

FIELDS = ["licence", "doi", "citation"]
"""Columns of the index."""


def attribute(target: str, table: pd.DataFrame) -> None:
    """Say in dataset.json whose data the written volumes are, as far as the index knows, and how many they are."""
    written = table[table["status"] == "written"]
    counts = written.groupby(FIELDS, sort=True).size().reset_index(name="series")  # without those of which it is not
    found = counts.to_dict("records")
    if not found:
        return
    content = store.describe(target)
    if content.get("attribution") != found:
        storage.write_many(target, {"dataset.json": to_json(content | {"attribution": found})})


def check_commercial(target: str) -> None:
    """Raise UsageError if a dataset holds a volume whose licence is not known to allow commercial use."""
    rows = index.rows_of(index.current_table(target), ("key", "status", "licence"))
    written = {row["key"]: row["licence"] for row in rows if row["status"] == "written"}
    others = [key for key, licence in written.items() if not Attribution(licence or "").is_commercial]
    if others:
        raise UsageError(
            f"{target}: expected volumes for commercial use only, found {len(others)} of another licence or an unknown "
            f"one, such as {others[0]}; choose another target"
        )

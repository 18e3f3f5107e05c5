"""The labels and points of one volume, out of annotations.parquet, which is held for that, sorted by volume."""

from __future__ import annotations

import functools
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import compute

from dskprep import storage
from dskprep.dataset import annotations as annotated
from dskprep.dataset import label_store
from dskprep.dataset.rows import tag_of


def rows_of_volume(target: str, key: str) -> list[dict[str, Any]]:
    """Return the rows of one volume in the table as it should be, which is made once as long as the file is the same.

    The file alone may lack labels that are there: of an `annotate` that was killed, or is under way.
    """
    entry = storage.entry_of(_file(target))
    if entry is None and next(label_store.list_records(target), None) is None:
        return []
    table, starts, unread = _by_volume(target, tag_of(entry) if entry else "")
    annotated.warn_of_damaged(target, unread)
    start, n = starts.get(key, (0, 0))
    rows: list[dict[str, Any]] = table.slice(start, n).to_pylist()
    return rows


def labels_of_volume(target: str, key: str, image: str) -> set[str]:
    """Return the labels of one volume and this image of it that have a record."""
    table, starts, _ = _by_volume(target, tag_of(entry) if (entry := storage.entry_of(_file(target))) else "")
    rows = table.select(["label", "image"]).slice(*starts.get(key, (0, 0))).to_pylist()
    return {row["label"] for row in rows if row["label"] and row["image"] == image}


def points_of_volume(target: str, key: str, image: str) -> pd.DataFrame:
    """Return the points of one volume and this image of it, without the columns that none of them has."""
    rows = [row for row in rows_of_volume(target, key) if not row["label"] and row["image"] == image]
    if not rows:
        return pd.DataFrame(columns=["key", "x", "y", "z"])
    return pd.DataFrame(rows).drop(columns=[*annotated.NAME, "record_tag", "status"]).dropna(axis=1, how="all")


def _file(target: str) -> str:
    return storage.join(target, annotated.FILE)


@functools.lru_cache(maxsize=2)
def _by_volume(target: str, tag: str) -> tuple[pa.Table, dict[str, tuple[int, int]], dict[str, str]]:
    """Return the table of what is written, sorted by key; first row and number of rows of each volume; `damaged`."""
    del tag
    table = annotated.current_table(target)
    unread = annotated.damaged(table)
    table = annotated.without_repeats(table.filter(compute.equal(table["status"], "written")))
    starts: dict[str, tuple[int, int]] = {}
    for i, key in enumerate(table["key"].to_pylist()):
        start, n = starts.get(key, (i, 0))
        starts[key] = start, n + 1
    return table, starts, unread

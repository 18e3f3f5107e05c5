"""Whose data a dataset holds, and what may be done with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from pyarrow import compute

from dskprep import storage
from dskprep.attribution import Attribution
from dskprep.dataset import index, store
from dskprep.dataset.record import to_json
from dskprep.errors import UsageError

FIELDS = ["licence", "doi", "citation"]
"""Columns of the index."""


def count(written: Iterable[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """Return the licence, DOI and citation of rows of the index, as far as they are known, each with its `series`."""
    all_known = (tuple(row.get(name) for name in FIELDS) for row in written)
    counts = Counter(known for known in all_known if all(isinstance(value, str) for value in known))
    return [{**dict(zip(FIELDS, known, strict=True)), "series": n} for known, n in sorted(counts.items())]


def attribute(target: str, table: pa.Table) -> None:
    """Say in dataset.json whose data the written volumes are, as far as the index knows, and how many they are."""
    names = [name for name in FIELDS if name in table.schema.names]
    found = count(index.rows_of(table.filter(compute.equal(table["status"], "written")), names))
    if not found:
        return
    content = store.describe(target)
    if content.get("attribution") != found:
        storage.write_many(target, {"dataset.json": to_json(content | {"attribution": found})})


def check_commercial(target: str) -> None:
    """Raise UsageError if a dataset holds a volume whose licence is not known to allow commercial use."""
    rows = index.rows_of(index.current_table(target, ("key", "status", "licence")))
    written = {row["key"]: row["licence"] for row in rows if row["status"] == "written"}
    others = [key for key, licence in written.items() if not Attribution(licence or "").is_commercial]
    if others:
        raise UsageError(
            f"{target}: expected volumes for commercial use only, found {len(others)} of another licence or an unknown "
            f"one, such as {others[0]}; choose another target"
        )

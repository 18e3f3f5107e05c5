"""A column of a table in which rows are looked up, not searched for."""

from __future__ import annotations

from typing import Any

import numpy as np


class Lookup:
    """Rows by the digest in a column; several rows may have one."""

    def __init__(self, table: Any, name: str) -> None:
        values = table[name].to_pylist() if name in table.schema.names else [None] * len(table)
        digests = np.array([(value or "").encode() for value in values], "S16")
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]

    def find(self, digest: str) -> list[int]:
        """Return the rows that have this digest."""
        low, high = (int(np.searchsorted(self._sorted, digest.encode(), side)) for side in ("left", "right"))
        rows: list[int] = self._order[low:high].tolist()
        return rows

"""The columns of joined tables in the items that a network is trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dskprep.errors import UsageError

if TYPE_CHECKING:
    from dskprep.reading.draws import AnyPatch, Draws


class ItemColumns:
    """The values of joined columns by the key of a volume. Raises UsageError for a name that items have already.

    What is missing is NaN in a column of numbers, and "" in one of texts: batches are made of equal types.
    """

    def __init__(self, patches: Draws[AnyPatch], *taken: str) -> None:
        self._patches = patches
        self._names = [name for added in patches.dataset.joined for name in added.columns]
        parts, masks = {"image", "key", "center_mm", "is_positive", *taken}, {*patches.masks}
        if clashes := sorted(parts & masks) + sorted((parts | masks | {"lungs"}) & {*self._names}):
            raise UsageError(f"a label or joined column is called {clashes[0]!r}, as a part of each item is; rename it")

    def of(self, key: str) -> dict[str, Any]:
        """Return the values of a volume."""
        return {name: self._missing[name] if value is None else value for name, value in self._joined[key].items()}

    def of_batch(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of some volumes: an array for a column of numbers, a list of texts."""
        rows = [self.of(key) for key in keys] if self._names else []
        found = {name: [row[name] for row in rows] for name in self._names}
        return {name: list(v) if isinstance(self._missing[name], str) else np.array(v) for name, v in found.items()}

    @cached_property
    def _joined(self) -> dict[str, dict[str, Any]]:
        if not self._names:
            return {key: {} for key in self._patches.keys}
        rows = self._patches.dataset.whole_rows("key", *self._names)
        wanted = {*self._patches.keys}
        return {key: row for row in rows if (key := row.pop("key")) in wanted}

    @cached_property
    def _missing(self) -> dict[str, Any]:
        is_text = {name for row in self._joined.values() for name, value in row.items() if isinstance(value, str)}
        return {name: "" if name in is_text else math.nan for row in self._joined.values() for name in row}

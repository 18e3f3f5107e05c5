"""Patches for PyTorch's data loaders. The only user of torch."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from dskprep.errors import UsageError

if TYPE_CHECKING:
    from dskprep.dataset.patches import AnyPatch, Draws


class TorchPatches(torch.utils.data.Dataset[dict[str, Any]]):
    """A dataset of `n` patches per epoch, for a `torch.utils.data.DataLoader`.

    Item i is patch i of the epoch, whichever worker draws it, forked or spawned. So two workers never draw the same
    patch, and their number changes nothing. Call `set_epoch(e)` before each epoch to draw other patches; this works
    with persistent workers too. Without it every epoch has the same patches.
    """

    def __init__(self, patches: Draws[AnyPatch], n: int) -> None:
        self.patches = patches
        self._n = n
        taken, masks = {"image", "key", "center_mm", "is_positive"}, {*patches.masks}
        columns = {name for added in patches.dataset.joined for name in added.columns}
        if clashes := sorted(taken & masks) + sorted((taken | masks | {"lungs"}) & columns):
            raise UsageError(f"a label or joined column is called {clashes[0]!r}, as a part of each item is; rename it")
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self._n

    def set_epoch(self, epoch: int) -> None:
        """From now on, draw the patches of this epoch (0 or more)."""
        self._epoch[0] = epoch

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return `image` and each mask, tensors with one channel (1, z, y, x), `key`, and `center_mm`, LPS (x, y, z).

        The mask is `lungs` for patches in the lungs. For `Dataset.patches` the masks are the labels that were asked
        for, and `is_positive` says whether the patch is around a place. The columns of joined tables are there too, by
        their names. What is missing is NaN in a column of numbers, and "" in one of texts.
        """
        if not 0 <= number < self._n:
            raise IndexError(f"patch {number} of {self._n}")
        patch = self.patches.draw(number, int(self._epoch[0]))
        middle = [n // 2 for n in patch.image.shape]
        item = self._columns_of(patch.key) | {
            "image": torch.from_numpy(patch.image.array)[None],
            "key": patch.key,
            "center_mm": torch.from_numpy(patch.image.to_patient(middle)),
        }
        item |= {name: torch.from_numpy(mask)[None] for name, mask in patch.masks.items()}
        return item | patch.flags

    def _columns_of(self, key: str) -> dict[str, Any]:
        """Return the values of joined columns, none of them None: batches are made of equal types."""
        return {name: self._missing[name] if value is None else value for name, value in self._joined[key].items()}

    @cached_property
    def _joined(self) -> dict[str, dict[str, Any]]:
        dataset = self.patches.dataset
        names = [name for added in dataset.joined for name in added.columns]
        rows = dataset.whole_rows("key", *names) if names else ({"key": key} for key in self.patches.keys)
        wanted = {*self.patches.keys}
        return {key: row for row in rows if (key := row.pop("key")) in wanted}

    @cached_property
    def _missing(self) -> dict[str, Any]:
        is_text = {name for row in self._joined.values() for name, value in row.items() if isinstance(value, str)}
        return {name: "" if name in is_text else math.nan for row in self._joined.values() for name in row}

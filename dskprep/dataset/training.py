"""Patches for PyTorch's data loaders. The only user of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from dskprep.dataset.examples import Examples
    from dskprep.dataset.patches import LungPatches


class TorchPatches(torch.utils.data.Dataset[dict[str, Any]]):
    """A dataset of `n` patches per epoch, for a `torch.utils.data.DataLoader`.

    Item i is patch i of the epoch, whichever worker draws it, forked or spawned. So two workers never draw the same
    patch, and their number changes nothing. Call `set_epoch(e)` before each epoch to draw other patches; this works
    with persistent workers too. Without it every epoch has the same patches.
    """

    def __init__(self, patches: LungPatches | Examples, n: int) -> None:
        self.patches = patches
        self._n = n
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self._n

    def set_epoch(self, epoch: int) -> None:
        """From now on, draw the patches of this epoch (0 or more)."""
        self._epoch[0] = epoch

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return `image` and each mask, tensors with one channel (1, z, y, x), `key`, and `center_mm`, LPS (x, y, z).

        The mask is `lungs` for patches in the lungs. For `Dataset.patches` the masks are the labels that were asked
        for, and `is_positive` says whether the patch is around a place.
        """
        if not 0 <= number < self._n:
            raise IndexError(f"patch {number} of {self._n}")
        patch = self.patches.draw(number, int(self._epoch[0]))
        middle = [n // 2 for n in patch.image.shape]
        item = {
            "image": torch.from_numpy(patch.image.array)[None],
            "key": patch.key,
            "center_mm": torch.from_numpy(patch.image.to_patient(middle)),
        }
        item |= {name: torch.from_numpy(mask)[None] for name, mask in patch.masks.items()}
        return item | patch.flags

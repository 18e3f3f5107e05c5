"""Patches for PyTorch's data loaders. The only user of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from dskprep.dataset.patches import LungPatches


class TorchPatches(torch.utils.data.Dataset[dict[str, Any]]):
    """`n` patches an epoch, as a data set that a `torch.utils.data.DataLoader` shares among its workers.

    Item i is patch i of the epoch, whichever worker draws it: workers never draw the same one, and their number
    changes nothing, forked or spawned. `set_epoch(e)` before each epoch gives other patches, to persistent workers
    too; without it each epoch has the same ones.
    """

    def __init__(self, patches: LungPatches, n: int) -> None:
        self.patches = patches
        self._n = n
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self._n

    def set_epoch(self, epoch: int) -> None:
        """Draw the patches of this epoch (0 or more) from now on."""
        self._epoch[0] = epoch

    def __getitem__(self, number: int) -> dict[str, Any]:
        """`image` and `lungs`, tensors of one channel (1, z, y, x); `key`; `center_mm`, LPS (x, y, z)."""
        if not 0 <= number < self._n:
            raise IndexError(f"patch {number} of {self._n}")
        patch = self.patches.draw(number, int(self._epoch[0]))
        middle = [n // 2 for n in patch.image.shape]
        return {
            "image": torch.from_numpy(patch.image.array)[None],
            "lungs": torch.from_numpy(patch.lungs)[None],
            "key": patch.key,
            "center_mm": torch.from_numpy(patch.image.to_patient(middle)),
        }

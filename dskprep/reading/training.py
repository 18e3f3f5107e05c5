"""Patches for PyTorch's data loaders. The only user of torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from dskprep.errors import UsageError
from dskprep.reading.item_columns import ItemColumns

if TYPE_CHECKING:
    from dskprep.reading.draws import AnyPatch, Draws
    from dskprep.reading.stream import Batch, Stream

MAX_WORKERS = 1024
"""Workers of a data loader whose epochs are counted."""


class TorchPatches(torch.utils.data.Dataset[dict[str, Any]]):
    """A dataset of `n` patches per epoch, for a `torch.utils.data.DataLoader`.

    Item i is patch i, whichever worker draws it, forked or spawned. So two workers never draw the same patch, and
    their number changes nothing. Each time an item is drawn it is that of the next epoch: whoever reads all items again
    gets other patches. After `set_epoch(e)` all items are those of epoch e until it is called again, as a validation
    needs them; this works with persistent workers too. With a `DistributedSampler` call it before each epoch: each
    process counts for itself.
    """

    def __init__(self, patches: Draws[AnyPatch], n: int) -> None:
        self.patches = patches
        self._n = n
        self._columns = ItemColumns(patches)
        self._epoch = torch.full((1,), -1, dtype=torch.int64).share_memory_()  # -1: as often as it was drawn
        self._n_drawn = torch.zeros(n, dtype=torch.int32).share_memory_()

    def __len__(self) -> int:
        return self._n

    def set_epoch(self, epoch: int) -> None:
        """From now on, draw the patches of this epoch (0 or more), however often."""
        self._epoch[0] = epoch

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return `image` and each mask, tensors with one channel (1, z, y, x), `key`, and `center_mm`, LPS (x, y, z).

        The mask is `lungs` for patches in the lungs. For `Dataset.patches` the masks are the labels that were asked
        for, and `is_positive` says whether the patch is around a place. The columns of joined tables are there too, by
        their names. What is missing is NaN in a column of numbers, and "" in one of texts.
        """
        if not 0 <= number < self._n:
            raise IndexError(f"patch {number} of {self._n}")
        patch = self.patches.draw(number, self._epoch_of(number))
        middle = [n // 2 for n in patch.image.shape]
        item = self._columns.of(patch.key) | {
            "image": torch.from_numpy(patch.image.array)[None],
            "key": patch.key,
            "center_mm": torch.from_numpy(patch.image.to_patient(middle)),
        }
        item |= {name: torch.from_numpy(mask)[None] for name, mask in patch.masks.items()}
        return item | patch.flags

    def _epoch_of(self, number: int) -> int:
        if (epoch := int(self._epoch[0])) >= 0:
            return epoch
        self._n_drawn[number] += 1
        return int(self._n_drawn[number]) - 1


class TorchStream(torch.utils.data.IterableDataset["Batch"]):
    """The batches of a stream, `n` per epoch, for a `torch.utils.data.DataLoader` with `batch_size=None`.

    Each epoch goes on where the last one ended, also with persistent workers. Workers and ranks share the windows out,
    and with them the volumes: no two read the same patch. The batches depend on how many there are. The `state` of the
    last batch that was used is that of all workers of a rank.
    """

    def __init__(self, stream: Stream, n: int, rank: int, ranks: int) -> None:
        if n < 1 or not 0 <= rank < ranks:
            raise UsageError(f"expected one batch or more and a rank below {ranks}, found {n} and {rank}")
        self.stream = stream
        self._n, self._rank, self._ranks = n, rank, ranks
        self._kept: dict[tuple[int, int, int], Iterator[Batch]] = {}
        self._n_begun = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()  # epochs, by each worker

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Batch]:
        """Yield a worker's share of the batches of an epoch."""
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        parts = workers * self._ranks
        n_resumed = self.stream.n_done(parts)
        epoch = n_resumed // self._n + int(self._n_begun[worker])
        first = max(n_resumed, epoch * self._n)  # of all workers, after an epoch that was interrupted the next one
        self._n_begun[worker] += 1
        turn = (worker + first) % workers  # loaders ask worker 0 first, but it is another one's turn
        numbers = range(first + worker, (epoch + 1) * self._n, workers)
        n_done = len(range(turn, first, workers))
        part = self._rank * workers + turn
        kept = self._kept.pop((os.getpid(), part, n_done), None)  # what the last epoch has read ahead
        batches = kept or self.stream.batches(n_done, part, parts, workers)
        for number, batch in zip(numbers, batches, strict=False):
            yield batch | {"state": self.stream.state(number + 1, parts)}
        self._kept = {(os.getpid(), part, n_done + len(numbers)): batches}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_kept": {}}

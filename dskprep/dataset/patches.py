"""Random patches inside the lungs, as many of each lung of each volume, the same whoever draws them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dskprep.dataset.shards import Index
from dskprep.errors import UsageError
from dskprep.sides import LEFT, RIGHT
from dskprep.volume import Volume

if TYPE_CHECKING:
    from dskprep.dataset.dataset import Dataset, StoredVolume
    from dskprep.dataset.training import TorchPatches

OPENED = 1000
"""Volumes whose place in the store, and whose lungs' counts, are held in memory."""


@dataclass(frozen=True, eq=False)
class Patch:
    """One patch: `image` with its place in the patient, `lungs` (uint8, the same shape), and where it comes from."""

    image: Volume
    lungs: NDArray[np.uint8]
    key: str
    side: int
    """Which lung the voxel in the middle belongs to: `sides.RIGHT` or `sides.LEFT`."""
    index: Index
    """The voxel (z, y, x) of the volume in the middle of the patch."""


@dataclass(frozen=True, eq=False)
class LungPatches:
    """An endless sequence of patches whose middle is a voxel of a lung, each as likely as the others of that lung.

    Patch number i depends on the seed, the epoch and i alone: however many workers share the numbers, together
    they draw the same patches. Of every 2 n patches in a row, from a multiple of 2 n on, n the number of volumes, each
    volume gives one of its right and one of its left lung, in random order. Where there is only one lung, or the
    two are not told apart, it gives two of that one. May be pickled, and taken along by a fork.
    """

    dataset: Dataset
    keys: tuple[str, ...]
    size: Index
    seed: int
    outside: float | None
    normalized: bool

    def __post_init__(self) -> None:
        if not self.keys:
            raise UsageError("there is no volume with lungs to take patches from")
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        vars(self)["_opened"] = lru_cache(OPENED)(lambda key: _Lungs(self.dataset[key]))
        vars(self)["_order"] = lru_cache(4)(self._shuffled)

    def __getitem__(self, number: int) -> Patch:
        return self.draw(number)

    def __iter__(self) -> Iterator[Patch]:
        number = 0
        while True:
            yield self[number]
            number += 1

    def draw(self, number: int, epoch: int = 0) -> Patch:
        """Patch `number` (0 or more) of an epoch. Raises IndexError if it is negative."""
        if number < 0:
            raise IndexError("patches are numbered from 0 on")
        turn, place = divmod(number, 2 * len(self.keys))
        which, side = divmod(int(vars(self)["_order"](epoch, turn)[place]), 2)
        lungs: _Lungs = vars(self)["_opened"](self.keys[which])
        side, index = lungs.voxel(side + 1, np.random.default_rng([self.seed, epoch, 1, number]))
        volume = lungs.volume
        image = volume.patch(self.size, index=index, outside=self.outside, normalized=self.normalized)
        mask = volume.patch(self.size, index=index, of="lungs")
        return Patch(image, mask.array, volume.key, side, index)

    def as_torch(self, n: int) -> TorchPatches:
        """A `torch.utils.data.Dataset` of `n` patches an epoch. Raises UsageError if torch is not installed."""
        try:
            from dskprep.dataset.training import TorchPatches
        except ImportError as error:
            raise UsageError("torch is not installed: see pytorch.org for the build that fits your machine") from error
        return TorchPatches(self, n)

    def _shuffled(self, epoch: int, turn: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch, 0, turn]).permutation(2 * len(self.keys))


class _Lungs:
    """The lungs of a volume, as the number of voxels of each in each chunk of the mask."""

    def __init__(self, volume: StoredVolume) -> None:
        self.volume = volume
        chunks = volume.shards("lungs").chunks()
        self._starts = [start for start, _ in chunks]
        self._sizes = [chunk.shape for _, chunk in chunks]
        counts = [[np.count_nonzero(chunk == side) for side in (RIGHT, LEFT)] for _, chunk in chunks]
        self._ends = np.cumsum(np.array(counts, np.int64).reshape(-1, 2), axis=0)

    def voxel(self, side: int, rng: np.random.Generator) -> tuple[int, Index]:
        """A voxel of that lung, or of the other if there is none: which lung, and its index."""
        totals: Sequence[int] = self._ends[-1].tolist() if len(self._ends) else (0, 0)
        if not any(totals):
            raise UsageError(f"{self.volume.key}: the index speaks of lungs, but its mask is empty")
        if not totals[side - 1]:
            side = RIGHT + LEFT - side
        ends = self._ends[:, side - 1]
        chosen = int(rng.integers(totals[side - 1]))
        chunk = int(np.searchsorted(ends, chosen, side="right"))
        within = chosen - (int(ends[chunk - 1]) if chunk else 0)
        start, size = self._starts[chunk], self._sizes[chunk]
        mask = self.volume.shards("lungs").read(start, size)
        z, y, x = np.unravel_index(np.flatnonzero(mask == side)[within], size)
        return side, (start[0] + int(z), start[1] + int(y), start[2] + int(x))


def of_rows(
    dataset: Dataset,
    rows: Iterable[dict[str, Any]],
    size: Index,
    *,
    seed: int,
    outside: float | None,
    normalized: bool,
) -> LungPatches:
    """Patches of those volumes of the index whose lungs were found."""
    keys = sorted(row["key"] for row in rows if (row["right_lung_ml"] or 0) + (row["left_lung_ml"] or 0) > 0)
    return LungPatches(dataset, tuple(keys), size, seed, outside, normalized)

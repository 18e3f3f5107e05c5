"""Random patches inside the lungs, equally many from each lung of each volume, whichever process draws them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dskprep.dataset.box import Index, as_index
from dskprep.errors import UsageError
from dskprep.reading.draws import OPENED, Draws, Spot
from dskprep.reading.rounds import Rounds, Windows
from dskprep.sides import LEFT, LUNG, NAMES, RIGHT
from dskprep.volume import Volume, grid_in_words

if TYPE_CHECKING:
    from dskprep.reading.dataset import Dataset
    from dskprep.reading.stored import StoredVolume

SIDES = (RIGHT, LEFT, LUNG)
"""The labels of the lungs in a mask, 1 to 3."""


@dataclass(frozen=True, eq=False, repr=False)
class Patch:
    """A patch of a volume with its lung mask.

    Attributes
    ----------
    image
        The voxels (z, y, x) and their place in the patient.
    lungs
        The mask (z, y, x) on the same grid, uint8: 1 in the right lung, 2 in the left one.
    key
        The volume that the patch was taken from.
    side
        The lung that the middle voxel belongs to: `sides.RIGHT` (1), `sides.LEFT` (2), or `sides.LUNG` (3), of unknown
        side.
    index
        The middle voxel (z, y, x), as an index of the volume.
    """

    image: Volume
    lungs: NDArray[np.uint8]
    key: str
    side: int
    index: Index

    def __repr__(self) -> str:
        grid = grid_in_words(self.image.shape, self.image.spacing)
        return f"<Patch of {self.key} around {self.index}, in the {NAMES[self.side]}: {grid}>"

    @property
    def masks(self) -> dict[str, NDArray[np.uint8]]:
        """What is beside the image on its grid."""
        return {"lungs": self.lungs}

    @property
    def flags(self) -> dict[str, bool]:
        """What a training item says of the patch besides."""
        return {}


@dataclass(frozen=True, eq=False, repr=False)
class LungPatches(Draws[Patch]):
    """An endless sequence of patches. The middle of each is a voxel of a lung, drawn with equal probability.

    The numbers come in rounds of 2 n, where n is the number of volumes. In each round every
    volume gives one patch from its right and one from its left lung, in random order. A volume in which there is
    only one lung, or the two cannot be told apart, gives two patches from that one. See `Draws`.

    Attributes
    ----------
    dataset, keys
        The volumes that patches are taken from; all of them have lungs.
    size, outside, normalized
        As in `StoredVolume.patch`.
    seed
        Decides which patches are drawn, and in which order.

    Examples
    --------
    >>> patches = dataset.lung_patches(64, seed=1)  # doctest: +SKIP
    >>> patches[0].image.array.shape  # doctest: +SKIP
    (64, 64, 64)
    >>> loader = torch.utils.data.DataLoader(patches.as_torch(1000), num_workers=4)  # doctest: +SKIP
    """

    dataset: Dataset
    keys: tuple[str, ...]
    size: Index
    seed: int
    outside: float | None
    normalized: bool
    windows: Windows | None = None

    def __post_init__(self) -> None:
        if not self.keys:
            raise UsageError("there is no volume with lungs to take patches from")

    @property
    def masks(self) -> tuple[str, ...]:
        return ("lungs",)

    def home(self, number: int, epoch: int = 0) -> str:
        return self._rounds.key(number, epoch)

    def spot(self, number: int, epoch: int = 0) -> Spot:
        which, other = divmod(self._rounds.slot(number, epoch), 2)
        rng = np.random.default_rng([self.seed, epoch, 1, number])
        side, index = self._open(self.keys[which]).draw_voxel(LEFT if other else RIGHT, rng)
        return Spot(self.keys[which], index, side)

    def cut(self, spot: Spot) -> Patch:
        volume = self.volume(spot.key)
        image = volume.patch(self.size, index=spot.index, outside=self.outside, normalized=self.normalized)
        mask = volume.patch(self.size, index=spot.index, of="lungs")
        return Patch(image, mask.array, spot.key, spot.side, spot.index)

    def window(self, ordinal: int) -> range:
        return self._rounds.window(ordinal)

    @cached_property
    def _rounds(self) -> Rounds:
        """The lungs in rounds: slot 2 k is the right and 2 k + 1 the left lung of the volume `keys[k]`."""
        return Rounds(tuple(key for key in self.keys for _ in (RIGHT, LEFT)), self.seed, 0, self.windows)

    @cached_property
    def _open(self) -> Callable[[str], LungVoxels]:
        return lru_cache(OPENED)(lambda key: LungVoxels(self.volume(key)))


class LungVoxels:
    """The lungs of a volume: how many voxels of each lie in each chunk of the mask."""

    def __init__(self, volume: StoredVolume) -> None:
        self.volume = volume
        volume.shards("lungs").hold()  # some 60 KB, and each patch needs some of it
        chunks = volume.shards("lungs").chunks()
        self._boxes = [(start, chunk.shape) for start, chunk in chunks]
        counts = [[np.count_nonzero(chunk == side) for side in SIDES] for _, chunk in chunks]
        self._ends = np.cumsum(np.array(counts, np.int64).reshape(-1, len(SIDES)), axis=0)

    def draw_voxel(self, side: int, rng: np.random.Generator) -> tuple[int, Index]:
        """Draw a voxel of one lung, or of the other, or of unknown side, if that has none; return its lung and index.

        All voxels of the lung are numbered, chunk after chunk, and one number is drawn; only the chunk that holds it
        is unpacked.
        """
        totals = self._ends[-1].tolist() if len(self._ends) else [0] * len(SIDES)
        if not any(totals):
            raise UsageError(f"{self.volume.key}: the index speaks of lungs, but its mask is empty")
        side = next(s for s in (side, RIGHT + LEFT - side, LUNG) if totals[s - 1])
        ends = self._ends[:, side - 1]
        chosen = int(rng.integers(totals[side - 1]))
        chunk = int(np.searchsorted(ends, chosen, side="right"))
        within = chosen - (int(ends[chunk - 1]) if chunk else 0)
        start, size = self._boxes[chunk]
        mask = self.volume.shards("lungs").read(start, size)
        place = np.unravel_index(np.flatnonzero(mask == side)[within], size)
        return side, as_index(np.add(start, place))

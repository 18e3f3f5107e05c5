"""Endless sequences of random patches: what all of them can do, whatever their patches are drawn around."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dskprep.counts import n_of
from dskprep.dataset.box import Index, as_index
from dskprep.errors import UsageError
from dskprep.reading.rounds import Windows
from dskprep.volume import Volume

if TYPE_CHECKING:
    from dskprep.reading.dataset import Dataset
    from dskprep.reading.stored import StoredVolume
    from dskprep.reading.stream import Stream
    from dskprep.reading.training import TorchPatches


OPENED = 1000
"""Volumes that stay open in each process, with the lung voxels of each of their chunks counted."""


class AnyPatch(Protocol):
    """What a training item is made of."""

    @property
    def image(self) -> Volume:
        """The voxels (z, y, x) and their place in the patient."""

    @property
    def key(self) -> str:
        """The volume that the patch was taken from."""

    @property
    def masks(self) -> dict[str, NDArray[np.uint8]]:
        """What is beside the image on its grid, by name."""

    @property
    def flags(self) -> dict[str, bool]:
        """What an item says of the patch besides."""


P = TypeVar("P", bound=AnyPatch, covariant=True)


@dataclass(frozen=True, eq=False)
class Spot:
    """Where a patch lies, before any voxel of the image is read.

    `key` is its volume, `index` its middle voxel (z, y, x), `side` the lung that it was drawn in. `row` and
    `is_positive` are as in `Example`.
    """

    key: str
    index: Index
    side: int = 0
    is_positive: bool | None = None
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def flags(self) -> dict[str, bool]:
        """What a training item says of the patch besides."""
        return {} if self.is_positive is None else {"is_positive": self.is_positive}


class Draws(ABC, Generic[P]):
    """An endless sequence of random patches.

    Patch number i depends only on the seed, the epoch and i: however many workers share the numbers, together they
    draw the same patches. A sequence can be pickled and is fork-safe. `keys` are the volumes that patches are taken
    from.
    """

    dataset: Dataset
    keys: tuple[str, ...]
    size: Index
    outside: float | None
    normalized: bool
    windows: Windows | None

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.size))
        return f"<{type(self).__name__} of {size} voxels (z, y, x), from {n_of(len(self.keys), 'volume')}>"

    @property
    @abstractmethod
    def masks(self) -> tuple[str, ...]:
        """The names of what lies beside each image."""

    @abstractmethod
    def home(self, number: int, epoch: int = 0) -> str:
        """Return the volume in which the place of a patch is looked for, without reading anything."""

    @abstractmethod
    def spot(self, number: int, epoch: int = 0) -> Spot:
        """Return where a patch lies. The mask of the lungs is read if that says it."""

    @abstractmethod
    def cut(self, spot: Spot) -> P:
        """Read a patch."""

    @abstractmethod
    def window(self, ordinal: int) -> range:
        """Return the numbers of a window, in which few volumes come often: see `Windows`."""

    def volume(self, key: str) -> StoredVolume:
        """Return a volume, which is kept open."""
        return self._volume(key)

    @cached_property
    def _volume(self) -> Callable[[str], StoredVolume]:
        return lru_cache(OPENED)(lambda key: self.dataset[key])

    def stored_masks(self, volume: StoredVolume) -> dict[str, tuple[str, ...]]:
        """Return the stored labels of which each mask is the union."""
        return {name: self._stored_labels(volume, name) for name in self.masks}

    def _stored_labels(self, volume: StoredVolume, pattern: str) -> tuple[str, ...]:
        if pattern == "lungs":
            return ("lungs",) if volume.has_lungs else ()
        return volume.labels.about.named(pattern)

    def touches(self, volume: StoredVolume, label: str, index: Index) -> bool:
        """Tell whether the patch around a voxel reaches the box in which a stored label is."""
        if label == "lungs":
            return True
        about, first = volume.labels.about[label], self.first(index)
        low, shape = np.array(about.first), np.array(about.shape)
        return bool((low < np.add(first, self.size)).all() and (low + shape > first).all())

    def first(self, index: Index) -> Index:
        """Return the first voxel of the patch around a voxel."""
        return as_index(i - n // 2 for i, n in zip(index, self.size, strict=True))

    def draw(self, number: int, epoch: int = 0) -> P:
        """Draw patch `number` (0 or more) of an epoch (0 or more). Raises IndexError for a negative number."""
        if number < 0:
            raise IndexError("patches are numbered from 0 on")
        return self.cut(self.spot(number, epoch))

    def stream(
        self,
        batch: int,
        *,
        volumes: int = 8,
        per_volume: int = 32,
        memory: int = 2**32,
        resume: Mapping[str, Any] | None = None,
    ) -> Stream:
        """Return these patches in batches, read ahead; those of one volume are read at once: see `Stream`.

        Parameters
        ----------
        batch
            Patches in a batch.
        volumes, per_volume
            The patches of so many volumes are shuffled among each other, on average so many of each.
        memory
            Bytes that patches may take while they are read ahead, all workers together. Fewer decode chunks more often.
        resume
            The `state` of the last batch that was used.

        Raises
        ------
        UsageError
            A number is less than one, or the state is that of another stream.
        """
        from dskprep.reading.stream import Stream

        if min(volumes, per_volume) < 1:
            raise UsageError(f"expected one volume and patch per volume or more, found {volumes} and {per_volume}")
        drawn = replace(self, windows=Windows(volumes, per_volume))  # type: ignore[type-var]
        return Stream(drawn, batch, memory, resume)

    def as_torch(self, n: int) -> TorchPatches:
        """Return a `torch.utils.data.Dataset` of `n` patches per epoch. Raises UsageError if torch is not installed."""
        try:
            from dskprep.reading.training import TorchPatches
        except ImportError as error:
            raise UsageError("torch is not installed: see pytorch.org for the build that fits your machine") from error
        return TorchPatches(self, n)

    def __getitem__(self, number: int) -> P:
        """Draw a patch of epoch 0."""
        return self.draw(number)

    def __iter__(self) -> Iterator[P]:
        return map(self.draw, itertools.count())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

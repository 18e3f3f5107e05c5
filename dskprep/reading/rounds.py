"""In which order patches come: all places equally often, and, where that is asked, those of a few volumes together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Windows(NamedTuple):
    """How patches are brought together to be read at once: those of so many volumes, on average so many of each."""

    volumes: int
    per_volume: int


class Order(NamedTuple):
    """The slots of a round in their order, and where each of its windows ends."""

    slots: NDArray[np.int64]
    ends: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rounds:
    """An endless sequence of slots, in rounds; `keys` has the volume of each slot.

    Without windows each slot comes once in a round. With windows it comes several times, all within one window: a
    round takes the volumes in random order, a few at a time, and shuffles all slots of these.
    """

    keys: tuple[str, ...]
    seed: int
    kind: int
    windows: Windows | None = None

    def slot(self, number: int, epoch: int = 0) -> int:
        """Return the slot of a number."""
        turn, place = divmod(number, len(self.keys) * self._times)
        return int(self._order(epoch, turn).slots[place])

    def key(self, number: int, epoch: int = 0) -> str:
        """Return the volume of a number."""
        return self.keys[self.slot(number, epoch)]

    def window(self, ordinal: int) -> range:
        """Return the numbers of a window of epoch 0. Windows follow one another without gaps."""
        turn, place = divmod(ordinal, self._n_windows)
        start, ends = turn * len(self.keys) * self._times, self._order(0, turn).ends.tolist()
        return range(start + (ends[place - 1] if place else 0), start + ends[place])

    @cached_property
    def _times(self) -> int:
        """How often each slot comes in a round."""
        return max(1, round(self.windows.per_volume * self._n_volumes / len(self.keys))) if self.windows else 1

    @cached_property
    def _n_windows(self) -> int:
        return -(-self._n_volumes // self.windows.volumes) if self.windows else 1

    @cached_property
    def _n_volumes(self) -> int:
        return int(self._volumes.max()) + 1

    @cached_property
    def _volumes(self) -> NDArray[np.intp]:
        """The volume of each slot, as a number from 0 on."""
        return np.unique(np.array(self.keys), return_inverse=True)[1]

    @cached_property
    def _order(self) -> Callable[[int, int], Order]:
        return lru_cache(4)(self._shuffle)

    def _shuffle(self, epoch: int, turn: int) -> Order:
        rng = np.random.default_rng([self.seed, epoch, self.kind, turn])
        if not self.windows:
            return Order(rng.permutation(len(self.keys)), np.array([len(self.keys)]))
        window = rng.permutation(self._n_volumes)[self._volumes] // self.windows.volumes
        slots = rng.permutation(np.repeat(np.arange(len(self.keys)), self._times))
        ends = np.cumsum(np.bincount(window[slots]))
        return Order(slots[np.argsort(window[slots], kind="stable")], ends)

"""Masks of a coarse grid that hold 64 voxels in a word, so that a whole chest is joined, cut and counted in no time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import bits

Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

LOWEST, HIGHEST = -32768, 32767
"""The least and the largest int16."""


@dataclass(frozen=True, eq=False)
class BitMask:
    """A mask (z, y, x). `&`, `|` and `~` are those of sets of voxels."""

    words: NDArray[np.uint64]
    """(z, y, words): bit i of word w of a row is the voxel x = 64 w + i; bits beyond the row are 0."""
    nx: int
    """Voxels of a row."""

    @classmethod
    def of(cls, mask: Mask) -> BitMask:
        """Return a bool mask (z, y, x) in this form."""
        return cls(bits.of_mask(np.ascontiguousarray(mask)), mask.shape[2])

    @classmethod
    def below(cls, values: NDArray[np.int16], limit: float) -> BitMask:
        """Return the voxels with a value of less than the limit."""
        return cls._of_range(values, LOWEST, math.ceil(limit) - 1)

    @classmethod
    def above(cls, values: NDArray[np.int16], limit: float) -> BitMask:
        """Return the voxels with a value of more than the limit."""
        return cls._of_range(values, math.floor(limit) + 1, HIGHEST)

    @classmethod
    def equal(cls, values: NDArray[np.int16], value: int) -> BitMask:
        """Return the voxels with this value."""
        return cls._of_range(values, value, value)

    @classmethod
    def between(cls, values: NDArray[np.int16], low: float, high: float) -> BitMask:
        """Return the voxels with a value of more than `low` and less than `high`."""
        return cls._of_range(values, math.floor(low) + 1, math.ceil(high) - 1)

    @classmethod
    def _of_range(cls, values: NDArray[np.int16], low: int, high: int) -> BitMask:
        nx = values.shape[2]
        if low > HIGHEST or high < LOWEST:
            return cls(np.zeros((*values.shape[:2], (nx + 63) // 64), np.uint64), nx)
        return cls(bits.of_range(values, max(low, LOWEST), min(high, HIGHEST)), nx)

    @classmethod
    def of_columns(cls, shape: Sequence[int], is_in: NDArray[np.bool_]) -> BitMask:
        """Return all voxels of a grid of this shape (z, y, x) whose column has `is_in` (x) set."""
        row = bits.of_mask(is_in[None, None])
        return cls(np.tile(row, (shape[0], shape[1], 1)), is_in.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        nz, ny, _ = self.words.shape
        return nz, ny, self.nx

    @property
    def array(self) -> Mask:
        """The same as a bool array (z, y, x)."""
        found: Mask = bits.to_mask(self.words, self.nx)
        return found

    def __and__(self, other: BitMask) -> BitMask:
        return BitMask(self.words & other.words, self.nx)

    def __or__(self, other: BitMask) -> BitMask:
        return BitMask(self.words | other.words, self.nx)

    def __invert__(self) -> BitMask:
        return BitMask(bits.invert(self.words, self.nx), self.nx)

    def any(self) -> bool:
        """Return whether there is a voxel."""
        return bool(self.words.any())

    def counts(self) -> NDArray[np.int64]:
        """Return the number of voxels of each slice."""
        found: NDArray[np.int64] = np.bitwise_count(self.words).sum(axis=(1, 2), dtype=np.int64)
        return found

    def slices(self, start: int, stop: int | None = None) -> BitMask:
        """Return the voxels in the slices from `start` on, or up to `stop`, as in a Python slice."""
        words = np.zeros_like(self.words)
        words[start:stop] = self.words[start:stop]
        return BitMask(words, self.nx)

    def crop(self, box: Box) -> BitMask:
        """Return the part in a box."""
        z, y, x = box
        return BitMask(bits.columns(np.ascontiguousarray(self.words[z, y]), x.start, x.stop), x.stop - x.start)

    def thin(self, step: tuple[int, int, int]) -> Mask:
        """Return every so many-th voxel along each axis, from the first on, as a bool array."""
        z, y, x = step
        found: Mask = bits.to_mask(np.ascontiguousarray(self.words[::z, ::y]), self.nx)
        return np.ascontiguousarray(found[:, :, ::x])

    def planes(self) -> tuple[Mask, Mask, Mask]:
        """Return whether there is a voxel in each plane across z, across y and across x."""
        across_z = np.asarray(self.words.reshape(self.words.shape[0], -1).any(axis=1))
        plane = np.bitwise_or.reduce(self.words, axis=0)
        row = np.bitwise_or.reduce(plane, axis=0)
        across_x: Mask = bits.to_mask(row[None, None], self.nx)[0, 0]
        return across_z, np.asarray(plane.any(axis=1)), across_x

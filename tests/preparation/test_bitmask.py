"""Masks of 64 voxels a word: against numpy's bool arrays."""

from __future__ import annotations

import numpy as np
import pytest

from dskprep.kernels import masks
from dskprep.preparation.bitmask import BitMask
from dskprep.preparation.morphology import box_of, enlarge

SHAPES = [(5, 7, 130), (4, 3, 64), (3, 5, 63), (2, 1, 65), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sets_of_voxels_are_those_of_numpy(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(shape) < 0.4, rng.random(shape) < 0.4
    first, second = BitMask.of(a), BitMask.of(b)
    assert first.shape == shape
    np.testing.assert_array_equal(first.array, a)
    np.testing.assert_array_equal((first & second).array, a & b)
    np.testing.assert_array_equal((first | second).array, a | b)
    np.testing.assert_array_equal((~first).array, ~a)
    assert first.any() == a.any()
    assert not (first & ~first).any()
    assert first.counts().tolist() == np.count_nonzero(a, axis=(1, 2)).tolist()
    for start, stop in ((0, 1), (-1, None), (1, None), (0, -1)):
        kept = np.zeros_like(a)
        kept[start:stop] = a[start:stop]
        np.testing.assert_array_equal(first.slices(start, stop).array, kept)
    for step in ((1, 1, 1), (2, 2, 3)):
        np.testing.assert_array_equal(first.thin(step), a[:: step[0], :: step[1], :: step[2]])
    is_in = rng.random(shape[2]) < 0.5
    np.testing.assert_array_equal(BitMask.of_columns(shape, is_in).array, np.broadcast_to(is_in, shape))


@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 100, 127, 128])
@pytest.mark.parametrize("n", [1, 2, 64, 65, 100])
def test_a_box_is_cut_out_at_any_column(start: int, n: int) -> None:
    mask = np.random.default_rng(0).random((3, 6, 130)) < 0.5
    box = (slice(0, 2), slice(1, 5), slice(start, min(130, start + n)))
    found = BitMask.of(mask).crop(box)
    np.testing.assert_array_equal(found.array, mask[box])
    np.testing.assert_array_equal((~found).array, ~mask[box])  # nothing is left beyond the end of a row


@pytest.mark.parametrize("limit", [-32769, -32768, -1024, -400.5, 0.0, 0.5, 2.0, 32767, 32768.5])
def test_values_are_compared_as_numpy_compares_them(limit: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, (4, 5, 70)).astype(np.int16)
    values.flat[:6] = (-32768, 32767, -401, -400, -1024, -1025)
    np.testing.assert_array_equal(BitMask.below(values, limit).array, values < limit)
    np.testing.assert_array_equal(BitMask.above(values, limit).array, values > limit)
    np.testing.assert_array_equal(BitMask.between(values, limit, 2.5).array, (values > limit) & (values < 2.5))
    np.testing.assert_array_equal(BitMask.equal(values, 2).array, values == 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6])
def test_the_box_round_a_mask_is_that_of_its_array(shape: tuple[int, int, int], share: float) -> None:
    mask = np.random.default_rng(3).random(shape) < share
    for margin in (0, 2):
        assert box_of(BitMask.of(mask), margin) == box_of(mask, margin)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [(1, 1, 1), (2, 3, 4), (4, 4, 70)])
def test_blocks_are_enlarged_and_counted(shape: tuple[int, int, int], block: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.random([-(-n // b) for n, b in zip(shape, block, strict=True)]) < 0.5
    z, y, x = np.indices(shape)
    of_voxel = z // block[0], y // block[1], x // block[2]
    np.testing.assert_array_equal(enlarge(blocks, block, shape).array, blocks[of_voxel])
    mask, expected = rng.random(shape) < 0.5, np.zeros(blocks.shape, np.int64)
    np.add.at(expected, of_voxel, mask)
    found = masks.block_counts(BitMask.of(mask).words, shape[2], block, blocks)
    np.testing.assert_array_equal(found, expected * blocks)

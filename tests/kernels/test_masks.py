"""Masks in three forms, and what is done with them: against plain twins of numpy and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.kernels import bits, components, distances, drawing, hulls, masks, runs
from dskprep.kernels.polygons import lies_near
from dskprep.kernels.shares import profiles
from dskprep.sides import LEFT
from dskprep.volume import AIR_HU, PADDING, Triple


@pytest.mark.parametrize("shape", [(6, 7, 130), (5, 9, 64), (3, 4, 63), (4, 1, 65), (1, 1, 1)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_runs_and_bits_are_masks(shape: tuple[int, int, int], density: float) -> None:
    mask = np.random.default_rng(0).random(shape) < density
    found = runs.of_mask(mask)

    def painted(some: runs.Runs) -> NDArray[np.bool_]:
        out = np.zeros(shape, np.uint8)
        runs.paint(some, 1, out)
        return out.astype(bool)

    np.testing.assert_array_equal(painted(found), mask)
    np.testing.assert_array_equal(painted(runs.invert(found, shape[2])), ~mask)
    words = runs.to_bits(found, shape)
    np.testing.assert_array_equal(painted(runs.of_bits(words, shape[2])), mask)
    for steps_ in (1, 3):
        grown = painted(runs.of_bits(bits.dilate(words, shape[2], steps_), shape[2]))
        np.testing.assert_array_equal(grown, ndimage.binary_dilation(mask, iterations=steps_))
    shrunk = painted(runs.of_bits(bits.erode(words, shape[2]), shape[2]))
    np.testing.assert_array_equal(shrunk, ndimage.binary_erosion(mask))
    for row, x in ((0, 0), (shape[0] * shape[1] - 1, shape[2] - 1)):
        run = runs.run_at(found, row, x)
        assert (run >= 0) == mask[row // shape[1], row % shape[1], x]


@pytest.mark.parametrize(("joined_by", "rank"), [(components.FACES, 1), (components.EDGES, 2), (components.CORNERS, 3)])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
def test_pieces_are_those_of_scipy(joined_by: int, rank: int, density: float) -> None:
    mask = np.random.default_rng(0).random((9, 11, 13)) < density
    found = runs.of_mask(mask)
    pieces = components.label(found, 11, joined_by)
    labels, n = ndimage.label(mask, ndimage.generate_binary_structure(3, rank))
    names = np.zeros(mask.shape, np.int64)
    for run, piece in enumerate(pieces):
        row = np.searchsorted(found.first, run, side="right") - 1
        names[row // 11, row % 11, found.starts[run] : found.stops[run]] = piece + 1
    assert len({*zip(names[mask], labels[mask], strict=True)}) == n == len(set(pieces))
    sizes = components.sizes(found, pieces)
    np.testing.assert_array_equal(sorted(sizes[sizes > 0]), sorted(np.bincount(labels[mask])[1:]))


@pytest.mark.parametrize("shape", [(20, 31, 70), (3, 5, 64), (1, 1, 1), (9, 8, 200)])
@pytest.mark.parametrize(
    ("limit_mm", "spacing"), [(2.0, (2.0, 2.0, 2.0)), (8.0, (2.5, 2.1, 2.1)), (9.0, (5.0, 1.4, 1.3)), (0.0, (1, 1, 1))]
)
def test_near_is_within_the_limit(shape: tuple[int, int, int], limit_mm: float, spacing: Triple) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.01
    mask[0, 0, -1] = True
    words = bits.of_mask(mask)
    np.testing.assert_array_equal(bits.to_mask(words, shape[2]), mask)
    near = bits.to_mask(bits.dilate_ball(words, shape[2], limit_mm, spacing), shape[2])
    distance = ndimage.distance_transform_edt(~mask, sampling=spacing)
    np.testing.assert_array_equal(near, distance <= limit_mm + 1e-5)


@pytest.mark.parametrize("block", [(2, 2, 2), (1, 1, 1), (3, 1, 4)])
def test_block_means_leave_padding_out(block: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 1000, (5, 6, 11)).astype(np.int16)
    array[0, 0, 0] = -2000
    array[:, :, 7][rng.random((5, 6)) < 0.7] = PADDING
    array[2:4, 2:4, 2:4] = PADDING
    means = masks.block_means(array, block)
    assert means.shape == tuple(-(-n // b) for n, b in zip(array.shape, block, strict=True))
    for place in np.ndindex(means.shape):
        part = array[tuple(slice(i * b, (i + 1) * b) for i, b in zip(place, block, strict=True))]
        measured = np.maximum(part[part != PADDING].astype(float), AIR_HU)
        expected = np.floor(measured.mean() + 0.5) if 2 * measured.size > part.size else PADDING
        assert means[place] == expected


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_counts_and_medians_are_those_of_numpy(share: float) -> None:
    rng = np.random.default_rng(4)
    for shape in ((1, 1, 1), (3, 5, 7), (9, 8, 6)):
        mask = rng.random(shape) < share
        values = rng.integers(-1100, 300, shape, np.int16)
        for axis, counts in enumerate(masks.counts_along(mask)):
            assert counts.tolist() == mask.sum(axis=tuple(a for a in range(3) if a != axis)).tolist()
        assert masks.median_inside(values, bits.of_mask(mask)) == (np.median(values[mask]) if mask.any() else 0)
        if mask.any():
            found, counts = np.unique(values[mask], return_counts=True)
            assert masks.most_common_inside(values, bits.of_mask(mask)) == (found[counts.argmax()], counts.max())


def test_only_dents_to_the_side_and_to_the_back_are_filled() -> None:
    y, x = np.ogrid[:80, :80]
    disc = (y - 40) ** 2 + (x - 40) ** 2 <= 30**2
    for (dent_y, dent_x), is_filled in {(40, 10): True, (70, 40): True, (40, 70): False, (10, 40): False}.items():
        dented = disc & ((y - dent_y) ** 2 + (x - dent_x) ** 2 > 9**2)
        mask = dented[None].copy()
        hulls.fill_wall_dents(mask, -1, (1.0, 1.0, 1.0), 50.0, 5.0, 30.0)
        filled = np.count_nonzero(mask[0] & disc) - np.count_nonzero(dented)
        assert (filled > 0.8 * np.count_nonzero(disc & ~dented)) if is_filled else filled == 0
        assert np.count_nonzero(mask[0] & ~disc) < 10


def test_draw_takes_air_and_what_is_solid() -> None:
    array = np.full((4, 8, 8), 40, np.int16)
    array[:, :, :3] = -850
    array[0, 0, 0] = PADDING
    label = np.full((2, 4, 4), LEFT, np.uint8)
    label[:, 0] = 0
    solid = np.zeros((2, 4, 4), np.bool_)
    solid[:, :, 3] = True
    mask = np.zeros(array.shape, np.uint8)
    counts = drawing.draw(array, -400, label, solid, (2, 2, 2), (0, 0, 0), mask)
    expected = np.zeros(array.shape, np.uint8)
    expected[:, 2:, [0, 1, 2, 6, 7]] = LEFT
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(counts, np.bincount(mask.ravel(), minlength=3))


@pytest.mark.parametrize("block", [(2, 2, 2), (1, 2, 3), (3, 1, 4)])
def test_draw_interpolates_between_the_centres_of_blocks(block: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    shape, first = (11, 14, 23), (1, 2, 1)
    coarse = tuple(-(-n // b) - f for n, b, f in zip(shape, block, first, strict=True))
    array = rng.integers(-500, -300, shape).astype(np.int16)
    array[rng.random(shape) < 0.1] = PADDING
    label, solid = rng.integers(0, 3, coarse).astype(np.uint8), rng.random(coarse) < 0.5
    mask = np.zeros(shape, np.uint8)
    drawing.draw(array, -400, label, solid, block, first, mask)

    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    in_blocks = [(p + 0.5) / b - 0.5 - f for p, b, f in zip(places, block, first, strict=True)]
    weights = ndimage.map_coordinates(solid.astype(float), in_blocks, order=1, mode="nearest")
    k, j, i = (p // b - f for p, b, f in zip(places, block, first, strict=True))
    expected = np.where((k >= 0) & (j >= 0) & (i >= 0), label[k, j, i], 0)
    expected[~(((array < -400) & (array != PADDING)) | (weights > 0.5 - 1e-9))] = 0
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.71)])
def test_each_voxel_goes_to_the_nearer_seed(spacing: Any) -> None:
    rng = np.random.default_rng(0)
    seeds = np.zeros((12, 23, 31), np.uint8)
    for seed in (1, 2):
        seeds[tuple(rng.integers(0, n, 6) for n in seeds.shape)] = seed
    nearer = distances.find_nearer_seed(seeds, spacing)
    first, second = (ndimage.distance_transform_edt(seeds != seed, sampling=spacing) for seed in (1, 2))
    is_clear = np.abs(first - second) > 1e-5
    np.testing.assert_array_equal(nearer[is_clear], np.where(first < second, 1, 2)[is_clear])
    assert is_clear.mean() > 0.9
    if spacing[0] == 1.0:
        np.testing.assert_array_equal(nearer == 0, first == second)


def test_profiles_are_the_sums_of_three_sets() -> None:
    values = np.random.default_rng(8).integers(0, 256, (4, 5, 6000), dtype=np.uint8)
    values[1] = 0
    found = profiles(values, 128, 241)
    for k, set_of in enumerate((values, values >= 128, values >= 241)):
        for sums, axes in zip(found, ((1, 2), (0, 2), (0, 1)), strict=True):
            assert sums[k].tolist() == set_of.sum(axes, dtype=np.int64).tolist()


@pytest.mark.parametrize("n", [3, 40])
def test_a_way_lies_near_itself_and_not_near_another(n: int) -> None:
    angles = np.arange(n) * 2 * np.pi / n
    outline = 50 * np.column_stack([np.sin(angles), np.cos(angles)])
    middles = (outline + np.roll(outline, -1, axis=0)) / 2
    assert lies_near(np.roll(middles, n // 2, axis=0) + 0.06, outline, 0.1)
    assert not lies_near(np.concatenate([middles, middles[:1] * 1.01]), outline, 0.1)

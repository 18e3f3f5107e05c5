"""A label keeps its place and its volume on any grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from label_builders import grid_of
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.labels.draw import Drawn, draw
from dskprep.labels.stack import Plane, Stack, crop, slabs
from dskprep.volume import Grid


def turn(about: tuple[float, float, float]) -> NDArray[np.float64]:
    """A rotation by angles in degrees about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(about)):
        one = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        matrix = one @ matrix
    return matrix


def ball(radius: float, spacing: tuple[float, float, float], turned: NDArray[np.float64], seed: int) -> Stack:
    """A ball sampled on planes about (3, 5, 7) mm, at any phase."""
    rng = np.random.default_rng(seed)
    directions = turned @ np.eye(3)[:, ::-1]
    axes = directions * [1.0, spacing[1], spacing[2]]
    centre = np.array([3.0, 5.0, 7.0]) + rng.random(3)
    n = np.ceil(2 * radius / np.array(spacing)).astype(int) + 4
    along = spacing[0] * (np.arange(n[0]) - n[0] / 2)
    first = -n[1:] / 2 + rng.random(2)
    origin = centre + directions[:, 0] * spacing[0] * rng.random()
    low, high = slabs(along, spacing[0])
    rows, columns = np.indices(n[1:])
    planes = []
    for k, u in enumerate(along):
        places = origin + np.stack([np.full(rows.shape, u), rows + first[0], columns + first[1]], -1) @ axes.T
        box = crop(((places - centre) ** 2).sum(-1) < radius**2)
        if box:
            planes.append(Plane(low[k], high[k], first[0] + box[0], first[1] + box[1], box[2]))
    return Stack(origin, axes, planes)


MM = Grid((64, 66, 68), np.array([[0, 0, 1, -30.2], [0, 1, 0, -27.7], [1, 0, 0, -25.4], [0, 0, 0, 1.0]]))
"""A grid of 1 mm."""


def centre_of(drawn: Drawn) -> NDArray[np.float64]:
    return drawn.grid.to_patient(np.argwhere(drawn.mask) + drawn.first).mean(0)


@pytest.mark.parametrize("radius", [3.0, 6.3, 12.0])
@pytest.mark.parametrize("spacing", [(2.5, 0.7, 0.7), (1.0, 0.6, 0.6), (5.0, 0.9, 0.9), (0.6, 0.6, 0.6)])
@pytest.mark.parametrize("about", [(0, 0, 0), (12, 7, 20)], ids=["axial", "oblique"])
def test_volume_and_centre_are_kept(radius: float, spacing: tuple, about: tuple) -> None:
    for seed in range(4):
        stack = ball(radius, spacing, turn(about), seed)
        volume_mm3 = sum(p.pixels.astype(bool).sum() * (p.high - p.low) for p in stack.planes) * spacing[1] * spacing[2]
        drawn = draw([stack], MM, "ball")
        assert drawn.ml * 1000 == pytest.approx(volume_mm3)
        n = np.count_nonzero(drawn.mask)
        assert abs(n - volume_mm3) <= max(1, 0.01 * volume_mm3)
        assert np.linalg.norm(centre_of(drawn) - drawn.centroid_mm) <= 0.1 if volume_mm3 > 1000 else 0.25
        assert drawn.outside == 0


def share_by_points(stack: Stack, grid: Grid, n: int) -> NDArray[np.float64]:
    """The share of each voxel inside, by n^3 points in each: another way to the same number."""
    total = np.zeros(grid.shape)
    inverse = np.linalg.inv(stack.axes)
    for sub in itertools.product((np.arange(n) + 0.5) / n - 0.5, repeat=3):
        place = (grid.to_patient(np.moveaxis(np.indices(grid.shape), 0, -1) + sub) - stack.origin) @ inverse.T
        for plane in stack.planes:
            i = np.floor(place[..., 1] - plane.row + 0.5).astype(int)
            j = np.floor(place[..., 2] - plane.column + 0.5).astype(int)
            rows, columns = plane.pixels.shape
            is_in = (place[..., 0] >= plane.low) & (place[..., 0] < plane.high)
            is_in &= (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
            total += is_in & (plane.pixels[np.clip(i, 0, rows - 1), np.clip(j, 0, columns - 1)] > 0)
    return total / n**3


@pytest.mark.slow
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("about", [(0, 0, 0), (20, -10, 5)], ids=["parallel", "oblique"])
def test_a_voxel_belongs_to_the_label_if_half_of_it_is_inside(axes: tuple, about: tuple) -> None:
    """For a large label, whose volume the threshold keeps; axes of the grid in any order and direction."""
    stack = ball(7.0, (1.8, 0.7, 0.6), turn(about), 1)
    affine = MM.affine.copy()
    affine[:3, :3] = affine[:3, list(axes)] * [1.5, -1.25, 1.0]
    affine[:3, 3] = np.array([3.5, 5.5, 7.5]) - affine[:3, :3] @ [8, 9, 10]
    grid = Grid((16, 18, 20), affine)
    drawn = draw([stack], grid, "ball").whole() > 0
    share = share_by_points(stack, grid, 5)
    is_clear = abs(share - 0.5) > 0.2
    assert (drawn == (share > 0.5))[is_clear].all()
    assert is_clear[drawn].mean() > 0.6


def test_half_a_voxel_is_inside() -> None:
    """Slabs of 1 mm that end in the middle of a voxel."""
    half = Stack(np.zeros(3), np.eye(3)[:, ::-1], [Plane(0.0, 10.0, 0, 0, np.full((9, 9), 254, np.uint8))])
    grid = Grid((30, 30, 30), np.array([[0, 0, 1, -10], [0, 1, 0, -10], [1, 0, 0, -10.0], [0, 0, 0, 1]]))
    drawn = draw([half], grid, "box")
    assert np.count_nonzero(drawn.mask) == 9 * 9 * 10
    assert drawn.ml == pytest.approx(0.81)
    assert drawn.centroid_mm == pytest.approx((4, 4, 5))


@pytest.mark.parametrize("side", [0.3, 0.01])
@pytest.mark.parametrize("about", [(0, 0, 0), (12, 7, 20)], ids=["parallel", "oblique"])
def test_a_label_smaller_than_a_voxel_is_kept(side: float, about: tuple) -> None:
    axes = turn(about) @ np.eye(3)[:, ::-1] * [1, side, side]
    speck = Stack(np.zeros(3), axes, [Plane(0.0, side, 0, 0, np.full((1, 1), 254, np.uint8))])
    drawn = draw([speck], MM, "speck")
    assert np.count_nonzero(drawn.mask) == 1
    assert np.linalg.norm(centre_of(drawn) - drawn.centroid_mm) < 0.9


def test_what_lies_outside_of_the_image_is_cut_and_counted() -> None:
    box = Stack(np.zeros(3), np.eye(3)[:, ::-1], [Plane(-5.0, 5.0, 0, 0, np.full((10, 10), 254, np.uint8))])
    grid = Grid((10, 20, 20), np.array([[0, 0, 1, -5], [0, 1, 0, -5], [1, 0, 0, 0.5], [0, 0, 0, 1.0]]))
    drawn = draw([box], grid, "box")
    assert drawn.outside == pytest.approx(0.5)
    assert np.count_nonzero(drawn.mask) == 500
    assert drawn.ml == pytest.approx(1.0)
    with pytest.raises(Refusal, match=r"label-outside-volume: box: expected a label inside of the image .* z 100\.0"):
        draw([box], Grid((9, 9, 9), np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 100.5], [0, 0, 0, 1.0]])), "box")


def test_an_empty_label_is_refused() -> None:
    nothing = Stack(np.zeros(3), np.eye(3), [Plane(0.0, 1.0, 0, 0, np.zeros((4, 4), np.uint8))])
    for stacks in ([], [nothing]):
        with pytest.raises(Refusal, match="label-empty"):
            draw(stacks, MM, "nothing")


def test_slabs_meet_and_leave_gaps() -> None:
    low, high = slabs(np.array([0.0, 2.0, 4.5, 10.0]), 2.0)
    assert low.tolist() == [-1, 1, 3.25, 9]
    assert high.tolist() == [1, 3.25, 5.5, 11]


def test_a_shifted_grid_shifts_the_label_by_as_much() -> None:
    """Half a voxel of shift between mask and image is not rounded away."""
    mask = np.zeros((6, 12, 12), np.uint8)
    mask[1:5, 2:9, 3:8] = 254
    grid = grid_of((6, 12, 12), (1, 1, 1), (0, 0, 0))
    for shift in (0.0, 0.5):
        planes = [Plane(k - 0.5, k + 0.5, 0, shift, plane) for k, plane in enumerate(mask)]
        drawn = draw([Stack(np.zeros(3), np.eye(3)[:, ::-1], planes)], grid, "box")
        assert drawn.centroid_mm[0] == pytest.approx(5 + shift)
        assert centre_of(drawn)[0] == pytest.approx(5 + shift, abs=0.1)
        assert np.count_nonzero(drawn.mask) == 140

"""A volume knows where its voxels are."""

from __future__ import annotations

import doctest
from collections.abc import Callable

import numpy as np
import pytest

from dskprep import volume as module
from dskprep.preparation import body
from dskprep.preparation.lungs.lungs import find_lungs
from dskprep.preparation.resample import to_spacing
from dskprep.volume import Grid, Volume

AFFINE = np.array([[0.0, 0.0, 0.5, -10.0], [0.0, -0.75, 0.0, -20.0], [2.0, 0.0, 0.0, 30.0], [0.0, 0.0, 0.0, 1.0]])


def make_volume() -> Volume:
    return Volume(np.zeros((4, 5, 6), np.int16), AFFINE)


def test_spacing_is_the_distance_between_neighbours_along_each_axis() -> None:
    volume = make_volume()
    for axis, expected in enumerate((2.0, 0.75, 0.5)):
        neighbour = np.eye(3)[axis]
        assert np.linalg.norm(volume.to_patient(neighbour) - volume.to_patient((0, 0, 0))) == pytest.approx(expected)
        assert volume.spacing[axis] == pytest.approx(expected)


def test_an_index_maps_to_patient_millimetres() -> None:
    assert make_volume().to_patient((1, 2, 3)).tolist() == [-8.5, -21.5, 32.0]


def test_points_map_to_indices_and_back() -> None:
    volume = make_volume()
    points = np.random.default_rng(0).uniform(-100, 100, (7, 3))
    assert volume.to_patient(volume.to_index(points)) == pytest.approx(points)


def test_a_voxel_has_the_volume_of_its_edges() -> None:
    assert make_volume().voxel_ml == pytest.approx(2.0 * 0.75 * 0.5 / 1000)


def test_another_array_must_fit() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) does not fit \(4, 5, 6\)"):
        make_volume().with_array(np.zeros((1, 2, 3)))
    other = make_volume().with_array(np.ones((4, 5, 6)))
    np.testing.assert_array_equal(other.affine, AFFINE)
    assert other.array.all()


@pytest.mark.parametrize(
    ("array", "affine"),
    [
        (np.zeros((4, 5)), AFFINE),
        (np.zeros((4, 0, 6)), AFFINE),
        (np.zeros((4, 5, 6)), np.diag([0.0, 1.0, 1.0, 1.0])),
        (np.zeros((4, 5, 6)), np.eye(3)),
        (np.zeros((4, 5, 6)), np.full((4, 4), np.nan)),
    ],
)
def test_a_volume_is_never_half_valid(array: np.ndarray, affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a volume has voxels along three axes|an affine is a finite 4 x 4 matrix"):
        Volume(array, affine)


@pytest.mark.parametrize("shape", [(4, 5), (4, 0, 6), (4, 5, 6, 7)])
def test_a_grid_has_voxels_along_three_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a grid has voxels along three axes"):
        Grid(shape, AFFINE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an affine is a finite 4 x 4 matrix"):
        Grid((4, 5, 6), np.diag([0.0, 1.0, 1.0, 1.0]))


def test_the_grid_of_a_volume_is_its_place() -> None:
    volume, grid = make_volume(), make_volume().grid
    assert (grid.shape, grid.spacing, grid.voxel_ml) == (volume.shape, volume.spacing, volume.voxel_ml)
    points = np.random.default_rng(0).uniform(-100, 100, (7, 3))
    np.testing.assert_array_equal(grid.to_index(points), volume.to_index(points))
    np.testing.assert_array_equal(grid.to_patient(points), volume.to_patient(points))


@pytest.mark.parametrize("make", [lambda affine: Volume(np.zeros((4, 5, 6)), affine), lambda a: Grid((4, 5, 6), a)])
def test_an_affine_is_read_only_and_the_callers_stays_its_own(make: Callable[[np.ndarray], Volume | Grid]) -> None:
    own = AFFINE.copy()
    value = make(own)
    own[0, 3] = 99
    np.testing.assert_array_equal(value.affine, AFFINE)
    with pytest.raises(ValueError, match="read-only"):
        value.affine[0, 3] = 1


def test_the_examples_in_the_docstrings_are_true() -> None:
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted >= 3


def test_another_byte_order_becomes_that_of_this_machine() -> None:
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    volume = Volume(array, np.eye(4))
    assert volume.array.dtype == np.dtype("=i2")
    np.testing.assert_array_equal(volume.array, array)


@pytest.mark.parametrize("step", [lambda v: to_spacing(v, (1.0, 1.0, 1.0)), find_lungs, body.only])
def test_values_that_are_no_hu_are_an_error(step: Callable[[Volume], object]) -> None:
    with pytest.raises(TypeError, match="expected int16 HU, found float64"):
        step(Volume(np.zeros((3, 4, 5)), np.eye(4)))

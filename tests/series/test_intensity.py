"""Stored values to Hounsfield units, and which of them are padding."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from dskprep.series.hounsfield import mark_padding, to_hu
from dskprep.volume import PADDING


def exact_hu(stored: int, slope: float, intercept: float) -> int:
    """In exact arithmetic, rounded half to even, as IEEE 754 and numpy do."""
    return round(Fraction(stored) * Fraction(slope) + Fraction(intercept))


@pytest.mark.parametrize(
    ("slope", "intercept"), [(1, -1024), (1, 0), (0.5, -1000), (1.375, -1024.3), (-1, 100), (2, 0)]
)
@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "int32", ">i2", ">u2"])
def test_hu_are_the_exact_values_rounded(dtype: str, slope: float, intercept: float) -> None:
    information = np.iinfo(np.dtype(dtype))
    low, high = max(information.min, -2000), min(information.max, 4095)
    stored = np.random.default_rng(0).integers(low, high, (5, 40)).astype(dtype)
    expected = [[exact_hu(int(v), slope, intercept) for v in row] for row in stored]
    assert to_hu(stored, slope, intercept).tolist() == expected


def test_values_above_3071_are_kept() -> None:
    assert to_hu(np.array([[5000, 32767]], np.uint16), 1, -1024).tolist() == [[3976, 31743]]


@pytest.mark.parametrize("value", [1e9, 1e300, 1e308])
def test_values_beyond_int16_are_clipped_and_never_wrap(value: float) -> None:
    stored = np.array([[-30000, 0, 30000]], np.int16)
    assert to_hu(stored, value, 0).tolist() == [[-32767, 0, 32767]]
    assert to_hu(stored, 1, value).tolist() == [[32767, 32767, 32767]]
    assert to_hu(stored, 1, -value).tolist() == [[-32767, -32767, -32767]]


def test_the_stored_values_are_unchanged() -> None:
    stored = np.array([[1, 2], [3, 4]], np.int16)
    to_hu(stored, 3, 4)
    assert stored.tolist() == [[1, 2], [3, 4]]


N = 64


def body_in_circle(outside: int, *, radius: float = 31.0) -> tuple[np.ndarray, np.ndarray]:
    """A slice of tissue, water and air, `outside` a round field of view; and what lies outside it."""
    y, x = np.mgrid[:N, :N] - (N - 1) / 2
    hu = np.where(np.hypot(y, x) < 20, 40, -1000)
    hu[20:44, 24:40] = 0  # water
    hu[28:36, 28:36] = -1000  # air inside
    is_outside = np.hypot(y, x) > radius
    hu[is_outside] = outside
    return hu.astype(np.int16), is_outside


def padding_of(hu: np.ndarray, declared: tuple[int, int] | None = None) -> np.ndarray:
    marked = hu.copy()
    mark_padding(marked, declared)
    kept = marked != PADDING
    assert (marked[kept] == hu[kept]).all()
    return ~kept


@pytest.mark.parametrize("outside", [-3024, -2048, -2000, -1501, -1200, 31743, 32767, 0, -500])
def test_a_constant_outside_the_round_field_of_view_is_padding(outside: int) -> None:
    hu, is_outside = body_in_circle(outside)
    assert (padding_of(hu) == is_outside).all()


@pytest.mark.parametrize("outside", [-1024, -1000, -950])
def test_air_outside_the_field_of_view_is_no_padding(outside: int) -> None:
    hu, _ = body_in_circle(outside)
    assert not padding_of(hu, (outside, outside)).any()


def test_padding_with_the_value_of_water_spares_the_water_inside() -> None:
    hu, is_outside = body_in_circle(0)
    assert (hu[24:26, 26:38] == 0).all()
    assert (padding_of(hu, (0, 0)) == is_outside).all()


def test_declared_padding_is_found_without_corners() -> None:
    hu, is_outside = body_in_circle(-1300)
    hu[0, 0] = 12  # a burnt-in mark
    is_outside[0, 0] = False
    assert not padding_of(hu).any()
    assert (padding_of(hu, (-1300, -1300)) == is_outside).all()


def test_a_declared_range_is_padding() -> None:
    hu, is_outside = body_in_circle(-1300)
    hu[is_outside & (np.arange(N) % 2 == 0)] = -1250
    assert (padding_of(hu, (-1300, -1200)) == is_outside).all()


def test_declared_padding_that_does_not_occur_changes_nothing() -> None:
    hu, is_outside = body_in_circle(-3024)
    assert (padding_of(hu, (-32767, -32767)) == is_outside).all()
    assert (padding_of(hu, (31743, 31743)) == is_outside).all()


def test_declared_padding_next_to_impossible_values_is_found() -> None:
    hu, is_outside = body_in_circle(50)
    hu[:, :3] = hu[:, -3:] = -3024
    is_outside[:, :3] = is_outside[:, -3:] = True
    assert (padding_of(hu, (50, 50)) == is_outside).all()


def test_kernel_overshoot_in_air_is_no_padding() -> None:
    hu, _ = body_in_circle(-1000)
    hu[32, 32] = -1490
    assert not padding_of(hu).any()


def test_the_background_of_an_image_that_was_made_or_windowed_is_no_padding() -> None:
    y, x = np.mgrid[:N, :N] - (N - 1) / 2
    for background, shape in ((0, np.hypot(y, x) < 20), (0, np.abs(x) < 30), (-160, np.hypot(y / 20, x / 28) < 1)):
        made = np.where(shape, 700, background).astype(np.int16)
        assert not padding_of(made).any()
    assert not padding_of(np.zeros((N, N), np.int16)).any()  # a blank slice; see the warning `blank-slices`

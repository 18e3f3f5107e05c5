"""Resampling keeps the place, the box and the values; padding takes no part."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dskprep.preparation.resample import fill_padding, to_spacing
from dskprep.series.upright import interpolate, shift
from dskprep.volume import PADDING, Triple, Volume

OBLIQUE = np.array([[0.6, -0.48, 0.64], [0.8, 0.36, -0.48], [0.0, 0.8, 0.6]])


def make_volume(
    shape: tuple[int, int, int], spacing: Triple, *, seed: int = 0, axes: NDArray[np.float64] | None = None
) -> Volume:
    """Noise of the whole CT range; every neighbour differs."""
    affine = np.eye(4)
    directions = np.eye(3)[:, ::-1] if axes is None else axes
    affine[:3, :3] = directions * np.array(spacing)
    affine[:3, 3] = -11.5, 20.25, -333.125
    array = np.random.default_rng(seed).integers(-1024, 3072, shape, dtype=np.int16)
    return Volume(array, affine)


def centre_mm(volume: Volume) -> NDArray[np.float64]:
    return volume.to_patient((np.array(volume.shape) - 1) / 2)


GRIDS = [
    ((20, 30, 28), (2.5, 0.7, 0.7), (1.0, 1.0, 1.0)),
    ((20, 30, 28), (2.5, 0.7, 0.7), (2.0, 2.0, 2.0)),
    ((9, 17, 13), (0.625, 0.9765625, 0.8), (1.0, 0.5, 3.0)),
    ((5, 8, 8), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ((1, 16, 16), (5.0, 0.7, 0.7), (1.0, 1.0, 1.0)),
    ((2, 3, 40), (1.0, 1.0, 0.3), (7.0, 7.0, 7.0)),
]


@pytest.mark.parametrize(("shape", "old", "new"), GRIDS)
@pytest.mark.parametrize("smooth", [True, False])
def test_the_box_and_its_centre_stay_and_the_spacing_is_exact(
    shape: tuple[int, int, int], old: Triple, new: Triple, smooth: bool
) -> None:
    volume = make_volume(shape, old, axes=OBLIQUE)
    found = to_spacing(volume, new, smooth=smooth)
    assert found.array.dtype == np.int16
    assert found.spacing == pytest.approx(new, rel=1e-12)
    assert centre_mm(found) == pytest.approx(centre_mm(volume), abs=1e-9)
    assert found.affine[:3, :3] / new == pytest.approx(OBLIQUE)
    for n, s, n_new, s_new in zip(shape, old, found.shape, new, strict=True):
        assert n_new == max(1, round(n * s / s_new))
        if n_new > 1:
            assert abs(n * s - n_new * s_new) / 2 <= s_new / 4 + 1e-9  # how far the outer faces are apart


def test_the_last_bits_of_a_spacing_do_not_decide_the_shape() -> None:
    sizes = {
        to_spacing(make_volume((133, 2, 2), (2.5 * (1 + bits * 2.0**-52), 1, 1)), (1, 1, 1)).shape[0]
        for bits in range(-4, 5)
    }  # 332.5 voxels, more or less
    assert len(sizes) == 1


def test_the_same_spacing_gives_the_same_volume() -> None:
    volume = make_volume((7, 8, 9), (2.5, 0.7, 0.6))
    found = to_spacing(volume, (2.5, 0.7, 0.6))
    assert (found.array == volume.array).all()
    assert found.affine == pytest.approx(volume.affine)


def linear_by_simpleitk(volume: Volume, grid: Volume) -> NDArray[np.float64]:
    """The volume at the voxels of `grid`, linearly interpolated."""

    def image_of(v: Volume, array: NDArray[np.float64]) -> sitk.Image:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(v.spacing[::-1])
        image.SetOrigin(v.affine[:3, 3].tolist())
        image.SetDirection((v.affine[:3, :3] / v.spacing)[:, ::-1].ravel().tolist())
        return image

    reference = image_of(grid, np.zeros(grid.shape))
    image = image_of(volume, volume.array.astype(np.float64))
    resampled: NDArray[np.float64] = sitk.GetArrayFromImage(
        sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear, np.nan)
    )
    return resampled


@pytest.mark.parametrize("axes", [None, OBLIQUE])
@pytest.mark.parametrize(
    ("shape", "old", "new", "smooth"),
    [
        ((10, 12, 14), (2.5, 1.5, 1.25), (1.0, 1.0, 1.0), True),
        ((10, 12, 14), (2.5, 1.5, 1.25), (0.4, 0.9, 1.25), True),
        ((10, 40, 40), (2.5, 0.7, 0.6), (1.0, 1.0, 1.0), False),
        ((30, 40, 40), (0.6, 0.7, 0.6), (2.0, 3.0, 2.5), False),
    ],
)
def test_linear_interpolation_is_that_of_simpleitk(
    shape: tuple[int, int, int], old: Triple, new: Triple, smooth: bool, axes: NDArray[np.float64] | None
) -> None:
    volume = make_volume(shape, old, axes=axes)
    found = to_spacing(volume, new, smooth=smooth)
    expected = linear_by_simpleitk(volume, found)
    is_known = ~np.isnan(expected)
    assert is_known.mean() > 0.7  # the outermost voxels may lie beyond ITK's buffer by a rounding error
    assert np.abs(found.array - expected)[is_known].max() <= 0.51


def by_pillow(array: NDArray[np.int16], axis: int, old: float, new: float) -> NDArray[np.float32]:
    """One axis resized with Pillow's BILINEAR filter, whose tent widens as the axis shrinks."""
    lines = np.moveaxis(array, axis, -1)
    n, n_new = lines.shape[-1], round(lines.shape[-1] * old / new)
    margin = max(0.0, (n - n_new * new / old) / 2)
    flat = Image.fromarray(lines.reshape(-1, n).astype(np.float32))
    box = (margin, 0, n - margin, flat.height)
    resized = np.asarray(flat.resize((n_new, flat.height), Image.Resampling.BILINEAR, box=box))
    return np.moveaxis(resized.reshape(*lines.shape[:-1], n_new), -1, axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("n", "old", "new"), [(60, 0.5, 1.0), (62, 0.7, 1.0), (50, 0.6, 2.5), (40, 0.9, 1.0)])
def test_shrinking_smooths_as_pillow_does(axis: int, n: int, old: float, new: float) -> None:
    shape, spacing, target = [4, 5, 6], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]
    shape[axis], spacing[axis], target[axis] = n, old, new
    volume = make_volume((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]))
    found = to_spacing(volume, (target[0], target[1], target[2]))
    expected = by_pillow(volume.array, axis, old, new)
    assert found.shape == expected.shape
    assert np.abs(found.array - expected).max() <= 0.51


def test_shrinking_three_axes_at_once_is_shrinking_one_after_the_other() -> None:
    volume = make_volume((24, 30, 40), (0.5, 0.7, 0.6))
    found = to_spacing(volume, (1.0, 1.0, 1.0))
    expected: NDArray[np.float32] = volume.array.astype(np.float32)
    for axis, old in enumerate(volume.spacing):
        expected = by_pillow(expected, axis, old, 1.0)  # type: ignore[arg-type]
    assert np.abs(found.array - expected).max() <= 0.51


def test_what_lies_at_a_place_stays_within_a_fifth_of_a_millimetre() -> None:
    volume = make_volume((20, 24, 30), (1.5, 0.8, 0.7))
    ramp = (10 * volume.to_patient(np.indices(volume.shape).transpose(1, 2, 3, 0))).sum(axis=-1)
    found = to_spacing(volume.with_array(np.rint(ramp).astype(np.int16)), (1.0, 1.0, 1.0))
    expected = (10 * found.to_patient(np.indices(found.shape).transpose(1, 2, 3, 0))).sum(axis=-1)
    inside = (slice(2, -2),) * 3
    assert np.abs(found.array - expected)[inside].max() <= 10 * 0.2  # the ramp rises by 10 HU a mm


@pytest.mark.parametrize("value", [-32767, -1024, 0, 1, 3071, 32767])
@pytest.mark.parametrize(("shape", "old", "new"), GRIDS)
def test_a_constant_stays_constant(shape: tuple[int, int, int], old: Triple, new: Triple, value: int) -> None:
    volume = make_volume(shape, old)
    found = to_spacing(volume.with_array(np.full(shape, value, np.int16)), new)
    assert (found.array == value).all()


def test_the_input_is_unchanged() -> None:
    volume = make_volume((5, 6, 7), (2.0, 0.7, 0.7))
    volume.array[:, 0] = PADDING
    array, affine = volume.array.copy(), volume.affine.copy()
    to_spacing(volume, (1.0, 1.0, 1.0))
    assert (volume.array == array).all()
    assert (volume.affine == affine).all()


# Padding


@pytest.mark.parametrize("new", [(1.0, 1.0, 1.0), (0.9, 0.5, 0.4), (3.0, 2.5, 2.0)])
@pytest.mark.parametrize("value", [-1000, 40, 3000])
def test_padding_never_leaks_into_values(value: int, new: Triple) -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    array = np.full((12, 64, 64), value, np.int16)
    for k in range(12):
        array[k, np.hypot(y, x) > 20 + k] = PADDING  # differs from slice to slice
    array[5] = array[11] = PADDING
    array[3, 20:24, 30:33] = PADDING  # a hole
    volume = make_volume((12, 64, 64), (2.5, 0.7, 0.7)).with_array(array)
    found = to_spacing(volume, new)
    assert set(np.unique(found.array)) == {PADDING, value}
    index = np.indices(found.shape).transpose(1, 2, 3, 0).reshape(-1, 3)
    source = volume.to_index(found.to_patient(index))
    is_clear = (np.abs(source - np.floor(source) - 0.5) > 1e-6).all(axis=1)  # no tie between two sources
    nearest = np.clip(np.rint(source).astype(int), 0, np.array(volume.shape) - 1)
    is_padding = array[tuple(nearest.T)] == PADDING
    assert ((found.array.ravel() == PADDING) == is_padding)[is_clear].all()


def test_values_next_to_padding_are_continued_not_mixed() -> None:
    array = np.tile(np.arange(16, dtype=np.int16) * 100, (1, 2, 1))
    array[:, :, :4] = PADDING
    found = to_spacing(make_volume((1, 2, 16), (1.0, 1.0, 1.0)).with_array(array), (1.0, 1.0, 0.5), smooth=False)
    padded, values = found.array[0, 0, :8], found.array[0, 0, 8:]
    assert (padded == PADDING).all()
    assert values.tolist() == [400, 425, *range(475, 1500, 50), 1500]


def test_a_gap_of_padding_does_not_carry_values_across() -> None:
    array = np.repeat(np.array([[[100, PADDING, PADDING, PADDING, 900]]], np.int16), 2, axis=1)
    found = to_spacing(make_volume((1, 2, 5), (1.0, 1.0, 1.0)).with_array(array), (1.0, 1.0, 0.5), smooth=False)
    assert found.array[0, 0].tolist() == [100, 100, *[PADDING] * 6, 900, 900]


def test_a_volume_of_padding_only_stays_padding() -> None:
    volume = make_volume((5, 6, 7), (2.0, 0.7, 0.7))
    found = to_spacing(volume.with_array(np.full((5, 6, 7), PADDING, np.int16)), (1.0, 1.0, 1.0))
    assert (found.array == PADDING).all()


def test_padded_slices_at_the_ends_do_not_change_the_others() -> None:
    volume = make_volume((9, 8, 8), (2.5, 1.0, 1.0))
    blank = volume.array.copy()
    blank[:2] = blank[7:] = PADDING
    core = Volume(volume.array[2:7], volume.affine)
    found = to_spacing(volume.with_array(blank), (2.5, 0.5, 0.5)).array
    assert (found[2:7] == to_spacing(core, (2.5, 0.5, 0.5)).array).all()
    assert (found[:2] == PADDING).all()
    assert (found[7:] == PADDING).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    old=st.tuples(*[st.integers(2, 60).map(lambda v: v / 10)] * 3),
    new=st.tuples(*[st.integers(5, 40).map(lambda v: v / 10)] * 3),
    smooth=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_value_leaves_the_range_of_its_source(
    shape: tuple[int, int, int], old: Triple, new: Triple, smooth: bool, seed: int
) -> None:
    volume = make_volume(shape, old, seed=seed)
    volume.array[np.random.default_rng(seed).random(shape) < 0.3] = PADDING
    found = to_spacing(volume, new, smooth=smooth).array
    measured = volume.array[volume.array != PADDING]
    values = found[found != PADDING]
    if len(values):
        assert measured.min() <= values.min()
        assert values.max() <= measured.max()
    assert ((found == PADDING).all()) or len(measured)


def test_filled_padding_is_air_and_the_rest_stays() -> None:
    volume = make_volume((3, 4, 5), (1, 1, 1))
    array = volume.array.copy()
    array[0, 1] = PADDING
    found = fill_padding(volume.with_array(array)).array
    assert (found[0, 1] == -1024).all()
    assert (found[1:] == array[1:]).all()
    assert (array[0, 1] == PADDING).all()
    assert (fill_padding(volume.with_array(array), 7).array[0, 1] == 7).all()


# Shifting a slice, filling a gap


@pytest.mark.parametrize("offset", [(0, 0), (2, 3), (0.25, 0), (1.5, 0.75), (2.999, 0.001)])
def test_a_shifted_slice_has_the_same_value_at_the_same_place(offset: tuple[float, float]) -> None:
    """Of values that change evenly, linear interpolation is exact."""
    y, x = np.mgrid[:12, :15]
    plane, out = (100 * y - 60 * x).astype(np.int16), np.empty((15, 19), np.int16)
    shift(plane, offset, out)
    v, u = np.mgrid[:15, :19]
    v, u = v - offset[0], u - offset[1]
    is_inside = (v >= -0.5) & (v < 11.5) & (u >= -0.5) & (u < 14.5)
    assert ((out != PADDING) == is_inside).all()
    expected = 100 * np.clip(v, 0, 11) - 60 * np.clip(u, 0, 14)
    assert np.abs(out - expected)[is_inside].max() <= 0.5 + 1e-3


def test_padding_never_mixes_into_a_shifted_slice() -> None:
    y, x = np.mgrid[:40, :40] - 19.5
    is_outside = np.hypot(y, x) > 15
    plane = np.where(is_outside, PADDING, 50).astype(np.int16)
    out = np.empty((43, 42), np.int16)
    shift(plane, (2.4, 1.3), out)
    assert set(np.unique(out)) == {PADDING, 50}
    v, u = np.mgrid[:43, :42] - 19.5
    distance = np.hypot(v - 2.4, u - 1.3)
    assert (out[distance < 14] == 50).all()
    assert (out[distance > 16] == PADDING).all()


def test_a_slice_of_padding_stays_padding() -> None:
    out = np.zeros((6, 6), np.int16)
    shift(np.full((5, 5), PADDING, np.int16), (0.5, 0.5), out)
    assert (out == PADDING).all()


def test_a_gap_is_filled_linearly_and_padding_stays_padding() -> None:
    below, above = np.full((2, 3), -1000, np.int16), np.full((2, 3), 500, np.int16)
    below[0, 0] = above[1, 1] = PADDING
    for share, value in ((1 / 3, -500), (2 / 3, 0)):
        assert interpolate(below, above, share).tolist() == [[PADDING, value, value], [value, PADDING, value]]
    assert (below[0, 1], above[0, 1]) == (-1000, 500)


@pytest.mark.parametrize(
    "spacing", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, float("nan"), 1.0), (1.0, 1.0, float("inf")), (1.0, 1.0), 1.0]
)
def test_a_spacing_that_is_none_is_an_error(spacing: Triple) -> None:
    with pytest.raises(ValueError, match="spacing_mm must be three numbers above 0"):
        to_spacing(Volume(np.zeros((3, 4, 5), np.int16), np.eye(4)), spacing)

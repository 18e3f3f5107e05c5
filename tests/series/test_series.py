"""The slices of one series to a volume: the right one, or a named refusal."""

from __future__ import annotations

import hashlib
import io
import random
import weakref
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from builders import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    File,
    assembled,
    compressed,
    ct_files,
    decoded,
    distinct,
    enhanced_file,
    normal_of,
    read,
)
from conftest import DataFolder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, JPEGLSNearLossless

from dskprep.dicom import pixels
from dskprep.errors import Refusal
from dskprep.series import assembly, hounsfield
from dskprep.series.series import Decoded, Series
from dskprep.series.upright import to_patient_axes
from dskprep.volume import PADDING, Volume, grid_in_words

ORIENTATIONS = {
    "axial": AXIAL,
    "axial, rows upward": (1, 0, 0, 0, -1, 0),
    "feet first, prone": (-1, 0, 0, 0, -1, 0),
    "feet first, supine": (-1, 0, 0, 0, 1, 0),
    "coronal": CORONAL,
    "sagittal": SAGITTAL,
    "oblique": (0.6, 0.8, 0, -0.48, 0.36, -0.8),
}


def refusal_of(files: list[File], **options: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        decoded(files, **options)
    assert "\n" not in caught.value.message
    return caught.value


def files_in(folder: Path) -> list[File]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def places_mm(
    shape: tuple[int, ...], first: ArrayLike, orientation: ArrayLike, step_mm: float, spacing: tuple[float, float]
) -> NDArray[np.float64]:
    """Where the voxels (slice, row, column) lie in the patient: DICOM PS3.3 equation C.7.6.2.1-1."""
    row, column = np.reshape(np.asarray(orientation, float), (2, 3))
    k, j, i = (index[..., None] for index in np.indices(shape))
    return np.asarray(first) + k * step_mm * np.cross(row, column) + j * spacing[0] * column + i * spacing[1] * row


def check_places(found: Decoded, hu: NDArray[Any], places: NDArray[np.float64], *, within_mm: float = 1e-4) -> None:
    """Every acquired voxel is in the volume, at its place, and nothing else is."""
    volume = found.volume
    index = volume.to_index(places.reshape(-1, 3))
    nearest = np.rint(index).astype(int)
    assert np.abs((index - nearest) * volume.spacing).max() < within_mm
    assert len(np.unique(nearest, axis=0)) == volume.array.size == hu.size
    assert (volume.array[tuple(nearest.T)] == hu.ravel()).all()


# The right volume


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_voxel_is_where_it_was_acquired(orientation: tuple[float, ...]) -> None:
    stored, first = distinct(5, 6, 7), (-12.5, 30, -400)
    files = ct_files(stored, first=first, orientation=orientation, step_mm=1.25)
    found = decoded(random.Random(0).sample(files, 5))
    check_places(found, stored - 1024, places_mm(stored.shape, first, orientation, 1.25, (0.75, 0.5)))
    assert found.warnings == ()
    z, y, x = found.volume.affine[:3, :3].T
    assert (z[2] > 0, y[1] > 0, x[0] > 0) == (True, True, True)


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_places_are_those_of_simpleitk(orientation: tuple[float, ...], tmp_path: Path) -> None:
    stored = distinct(5, 6, 7)
    for name, content in ct_files(stored, orientation=orientation, step_mm=2):
        (tmp_path / name).write_bytes(content)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    reference = sitk.GetArrayFromImage(image)
    index = np.indices(reference.shape).reshape(3, -1).T
    places = [image.TransformIndexToPhysicalPoint(i[::-1].tolist()) for i in index]
    check_places(decoded(files_in(tmp_path)), reference, np.array(places), within_mm=1e-3)


@st.composite
def good_series(draw: st.DrawFn) -> dict[str, Any]:
    turn = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)))
    w, x, y, z = turn / np.linalg.norm(turn)
    row = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    column = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    orientation = draw(st.sampled_from([*ORIENTATIONS.values(), (*row, *column)]))
    shape = draw(st.tuples(st.integers(3, 12), st.integers(4, 7), st.integers(4, 7)))
    return {
        "orientation": tuple(round(v, 10) for v in orientation),
        "shape": shape,
        "first": draw(st.tuples(*[st.integers(-50000, 50000).map(lambda v: v / 100)] * 3)),
        "step_mm": draw(st.integers(30, 1000)) / 100,
        "spacing": draw(st.tuples(*[st.integers(20, 200).map(lambda v: v / 100)] * 2)),
        "order": draw(st.permutations(range(shape[0]))),
        "dtype": draw(st.sampled_from(["<i2", "<u2"])),
        "slope": draw(st.sampled_from(["1", "0.5", "2", "1.25"])),
        "intercept": draw(st.sampled_from(["-1024", "0", "-1000.5"])),
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(good_series())
def test_any_good_series_becomes_exactly_its_volume(case: dict[str, Any]) -> None:
    stored = distinct(*case["shape"]).astype(case["dtype"])
    files = ct_files(
        stored,
        first=case["first"],
        orientation=case["orientation"],
        step_mm=case["step_mm"],
        PixelSpacing=list(case["spacing"]),
        RescaleSlope=case["slope"],
        RescaleIntercept=case["intercept"],
    )
    found = decoded([files[i] for i in case["order"]])
    hu = np.rint(stored * float(case["slope"]) + float(case["intercept"]))
    geometry = (case["first"], case["orientation"], case["step_mm"], case["spacing"])
    check_places(found, hu, places_mm(stored.shape, *geometry))
    assert found.hu_sha256 == hashlib.sha256(hu.astype("<i2").tobytes()).hexdigest()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_instance_numbers_that_go_through_the_stack_several_times_separate_nothing(n: int) -> None:
    stored = distinct(30, 6, 7)
    files = [ct_files(stored, InstanceNumber=k % n * 100 + k)[k] for k in range(30)]
    found = decoded(files)
    assert (found.volume.array == stored - 1024).all()
    assert found.warnings == ()


def test_instance_numbers_and_slice_locations_have_no_say() -> None:
    stored = distinct(5, 6, 7)
    truth = decoded(ct_files(stored)).volume.array
    for numbers in ([5, 4, 3, 2, 1], [1, 1, 1, 1, 1], [2, 1, 4, 3, 5]):
        files = [
            ct_files(stored, InstanceNumber=n, SliceLocation=-n, SliceThickness=9)[k] for k, n in enumerate(numbers)
        ]
        assert (decoded(files).volume.array == truth).all()


def test_slope_and_intercept_are_each_slices_own() -> None:
    stored = distinct(4, 5, 6)
    slopes, intercepts = (1, 0.5, 2.25, 1.5), (-1024, 0, -10, 3)
    files = [
        ct_files(stored, RescaleSlope=slopes[k], RescaleIntercept=intercepts[k])[k] for k in range(4)
    ]  # fmt: skip
    expected = [np.rint(plane * s + i) for plane, s, i in zip(stored, slopes, intercepts, strict=True)]
    assert (decoded(files).volume.array == np.stack(expected)).all()


def test_an_enhanced_object_is_the_same_volume_as_single_slices() -> None:
    stored, slopes = distinct(5, 6, 7), [1, 1, 0.5, 2, 1]
    order = [3, 0, 4, 1, 2]
    single = decoded([ct_files(stored, RescaleSlope=slopes[k])[k] for k in order])
    positions = [(-10, -20, -30 + 1.25 * k) for k in order]
    enhanced = decoded([("E", enhanced_file(stored[order], positions, slopes=[slopes[k] for k in order]))])
    assert (enhanced.volume.array == single.volume.array).all()
    assert enhanced.volume.affine == pytest.approx(single.volume.affine)
    assert enhanced.hu_sha256 == single.hu_sha256


def test_a_series_says_what_it_is_and_whether_it_was_decoded() -> None:
    series = assembled(ct_files(distinct(5, 6, 7)))
    grid = f"5 slices, {grid_in_words((5, 6, 7), series.grid.spacing)}"
    assert repr(series) == f"<Series: {grid}>"
    series.decode()
    assert repr(series) == f"<Series: {grid}, decoded>"


def test_padding_is_marked_but_hashed_as_the_scanner_wrote_it() -> None:
    stored = np.full((3, 16, 16), 1024, np.int16)
    stored[:, :, :5] = -2000
    found = decoded(ct_files(stored))
    assert (found.volume.array[:, :, :5] == PADDING).all()
    assert (found.volume.array[:, :, 5:] == 0).all()
    assert found.hu_sha256 == hashlib.sha256((stored - 1024).astype("<i2").tobytes()).hexdigest()
    assert found.warnings == ()


def test_declared_padding_of_a_fractional_slope_is_found() -> None:
    stored = np.full((3, 16, 16), 700, np.int16)
    stored[:, 3:9, :5] = -51
    found = decoded(ct_files(stored, RescaleSlope="1.5", RescaleIntercept="-1000.2", PixelPaddingValue=-51))
    assert (found.volume.array[:, 3:9, :5] == PADDING).all()
    assert (found.volume.array[:, :, 5:] == 50).all()


@pytest.mark.parametrize("declared", [None, 63536])
def test_wrapped_padding_in_unsigned_pixels_is_no_overflow(declared: int | None) -> None:
    stored = np.full((3, 16, 16), 1024, np.uint16)
    stored[:, :, :5] = stored[:, :, -4:] = 63536
    found = decoded(ct_files(stored, **({} if declared is None else {"PixelPaddingValue": declared})))
    assert (found.volume.array[:, :, :5] == PADDING).all()
    assert (found.volume.array[:, :, 5:-4] == 0).all()
    assert found.warnings == ()


def test_padding_below_int16_is_no_overflow() -> None:
    stored = np.full((3, 16, 16), 1024, np.int16)
    stored[:, :, :5] = -32768
    found = decoded(ct_files(stored))
    assert (found.volume.array[:, :, :5] == PADDING).all()
    assert found.warnings == ()


def test_a_declared_range_of_padding_is_found() -> None:
    stored = np.full((3, 16, 16), 1024, np.int16)
    stored[:, 3:9, :5], stored[:, 3:9, -5:] = -120, -60
    found = decoded(ct_files(stored, PixelPaddingValue=-150, PixelPaddingRangeLimit=-50))
    assert ((found.volume.array == PADDING) == (stored < 0)).all()
    assert (found.volume.array[stored > 0] == 0).all()


def test_a_declared_range_from_air_to_water_is_no_padding() -> None:
    stored = np.random.default_rng(0).integers(20, 1100, (3, 16, 16)).astype(np.int16)
    found = decoded(ct_files(stored, PixelPaddingValue=0, PixelPaddingRangeLimit=4095))
    assert (found.volume.array == stored.astype(int) - 1024).all()


def test_metal_beyond_the_usual_scale_is_kept() -> None:
    stored = distinct(3, 16, 16).astype(np.uint16)
    stored[1, 8, 4:8] = 4095, 4096, 20000, 33791
    found = decoded(ct_files(stored, BitsStored=12))
    assert found.volume.array[1, 8, 4:8].tolist() == [3071, 3072, 18976, 32767]


def test_32_bit_values_with_a_small_slope_are_exact() -> None:
    stored = (distinct(3, 16, 16).astype(np.int32) - 384) * 100_000
    found = decoded(ct_files(stored, RescaleSlope="0.00001", RescaleIntercept="-0.25"))
    assert (found.volume.array == np.rint(stored * 0.00001 - 0.25)).all()


def test_overflow_is_clipped_with_a_warning() -> None:
    stored = distinct(3, 16, 16).astype(np.uint16)
    stored[1, 8, 8] = 60000
    found = decoded(ct_files(stored))
    assert found.volume.array[1, 8, 8] == 32767
    assert found.warnings == ("hu-clipped",)


def test_lossy_compression_is_a_warning() -> None:
    stored = distinct(3, 16, 16).astype(np.uint16)

    def jpeg_ls(level: int, syntax: str) -> list[File]:
        data = [compressed(imagecodecs.jpegls_encode(plane, level=level)) for plane in stored]
        return [ct_files(stored, PixelData=pixels, syntax=syntax)[k] for k, pixels in enumerate(data)]

    lossless, lossy = decoded(jpeg_ls(0, JPEGLSLossless)), decoded(jpeg_ls(2, JPEGLSNearLossless))
    assert lossless.warnings == ()
    assert (lossless.volume.array == stored - 1024.0).all()
    assert lossy.warnings == ("lossy-compression",)
    assert 0 < np.abs(lossy.volume.array - (stored - 1024.0)).max() <= 2
    assert decoded(ct_files(stored, LossyImageCompression="01")).warnings == ("lossy-compression",)


def test_the_commonest_value_of_an_attribute_is_the_fact() -> None:
    stored = distinct(5, 6, 7)
    kernels = ["B30f", "B70f", "B70f", "B70f", "B30f"]
    facts = assembled([ct_files(stored, ConvolutionKernel=kernel)[k] for k, kernel in enumerate(kernels)]).facts
    assert facts["kernel"] == "B70f"
    assert (facts["slices"], facts["rows"], facts["columns"], facts["step_mm"]) == (5, 6, 7, 1.25)
    assert (facts["row_spacing_mm"], facts["column_spacing_mm"]) == (0.75, 0.5)
    assert (facts["first_x_mm"], facts["first_y_mm"], facts["first_z_mm"]) == (-10, -20, -30)


# Tilt and gaps


def linear_hu(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """A body whose HU change evenly, so that linear interpolation is exact."""
    return places @ [5.0, -7.0, 3.0] + 100


def tilted_files(orientation: ArrayLike, lean: ArrayLike, n: int = 12) -> tuple[list[File], NDArray[np.float64]]:
    """Slices of that body from a tilted gantry, a border of padding round each; and where their pixels lie."""
    places = places_mm((n, 20, 22), (-10, -20, -30), orientation, 2.5, (0.75, 0.5))
    places = places + np.arange(n)[:, None, None, None] * 2.5 * np.asarray(lean)
    stored = np.rint(linear_hu(places) + 1024).astype(np.int16)
    stored[:, :2], stored[:, -2:], stored[:, :, :3], stored[:, :, -3:] = [-2000] * 4
    return ct_files(stored, orientation=orientation, step_mm=2.5, lean=lean), places


@pytest.mark.parametrize(
    ("orientation", "lean"),
    [
        (AXIAL, (0, np.tan(np.radians(18.5)), 0)),
        (AXIAL, (0, -0.4, 0)),
        (AXIAL, (0.2, 0.3, 0)),
        (CORONAL, (0, 0, 0.26)),
        ((1, 0, 0, 0, 0.8, -0.6), (0, 0.4, -0.3)),
    ],
)
def test_a_tilted_series_becomes_the_body_on_a_right_angled_grid(orientation: ArrayLike, lean: ArrayLike) -> None:
    files, places = tilted_files(orientation, lean)
    series = assembled(random.Random(1).sample(files, len(files)))
    assert series.facts["tilt_degrees"] == pytest.approx(np.degrees(np.arctan(np.linalg.norm(lean))), abs=0.01)
    found = series.decode()
    volume = found.volume
    assert found.warnings == ("tilt-corrected",)
    index = np.indices(volume.shape).reshape(3, -1).T
    is_measured = volume.array.ravel() != PADDING
    expected = linear_hu(volume.to_patient(index))
    # rounded twice; and at the rim the edge value continues for half a pixel
    assert np.abs(volume.array.ravel() - expected)[is_measured].max() <= 1 + 0.5 * 7 * 0.75 + 0.5 * 5 * 0.5
    assert np.percentile(np.abs(volume.array.ravel() - expected)[is_measured], 75) <= 1
    ours = np.rint(volume.to_index(places[:, 2:-2, 3:-3].reshape(-1, 3))).astype(int)
    assert (volume.array[tuple(ours.T)] != PADDING).all()  # no measured pixel is lost
    theirs = np.rint(volume.to_index(places[:, 0].reshape(-1, 3))).astype(int)
    assert (volume.array[tuple(theirs.T)] == PADDING).all()  # and no padding became a value
    axes = volume.affine[:3, :3] / volume.spacing
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-6)


def test_hu_as_acquired_are_hashed_before_a_tilt_is_corrected() -> None:
    stored = distinct(10, 12, 14)
    upright, tilted = decoded(ct_files(stored)), decoded(ct_files(stored, lean=(0, 0.3, 0)))
    assert tilted.hu_sha256 == upright.hu_sha256
    assert tilted.volume.array.size > upright.volume.array.size


def test_the_wider_grid_of_a_tilted_series_is_known_before_it_is_decoded() -> None:
    found = assembled(ct_files(distinct(10, 12, 14), lean=(0, 0.3, 0)))
    assert found.grid.shape == (10, 12 + 5, 14)  # 9 x 1.25 mm x 0.3 / 0.75 mm = 4.5 pixels
    assert found.decode().volume.shape == found.grid.shape


def test_a_tilt_that_is_not_constant_is_refused() -> None:
    stored = distinct(12, 6, 7)
    files = [ct_files(stored, first=(0, 0.05 * k**2, 0), lean=(0, 0.3, 0), step_mm=5)[k] for k in range(12)]
    refusal = refusal_of(files)
    assert (refusal.reason, "expected one tilt" in refusal.message) == ("gantry-tilt", True)


def test_missing_slices_are_interpolated_where_asked_for() -> None:
    files, places = tilted_files(AXIAL, (0, 0, 0), n=20)
    whole = decoded(files)
    refused = refusal_of([f for k, f in enumerate(files) if k not in (4, 11)])
    assert refused.reason == "missing-slices"
    series = assembled([f for k, f in enumerate(files) if k not in (4, 11)], max_gap_slices=1)
    assert series.facts["interpolated_mm"] == "-20.00 -2.50"
    assert series.facts["slices"] == 18
    found = series.decode()
    assert (found.volume.affine == whole.volume.affine).all()
    assert ((found.volume.array == PADDING) == (whole.volume.array == PADDING)).all()
    assert np.abs(found.volume.array - whole.volume.array.astype(int)).max() <= 1
    acquired = [k for k in range(20) if k not in (4, 11)]
    assert (found.volume.array[acquired] == whole.volume.array[acquired]).all()
    hu = np.rint(linear_hu(places)).astype("<i2")
    hu[:, :2], hu[:, -2:], hu[:, :, :3], hu[:, :, -3:] = [-3024] * 4
    assert found.hu_sha256 == hashlib.sha256(hu[acquired].tobytes()).hexdigest()
    assert found.warnings == ("gap-interpolated",)


def test_a_gap_in_a_tilted_series_is_filled_on_the_right_angled_grid() -> None:
    files, _ = tilted_files(AXIAL, (0, 0.3, 0), n=20)
    whole, found = decoded(files), decoded(files[:7] + files[8:], max_gap_slices=1)
    assert found.warnings == ("tilt-corrected", "gap-interpolated")
    assert found.volume.affine == pytest.approx(whole.volume.affine, abs=1e-4)
    both = (found.volume.array[7] != PADDING) & (whole.volume.array[7] != PADDING)
    assert both.mean() > 0.2
    middle = np.abs(found.volume.array[7] - whole.volume.array[7].astype(int))[both]
    assert np.percentile(middle, 75) <= 1


# Several stacks, repeats


def test_identical_duplicates_are_dropped_with_a_warning() -> None:
    stored = distinct(5, 6, 7)
    files = ct_files(stored)
    again = [("again.dcm", files[2][1]), ("other.dcm", ct_files(stored, InstanceNumber=99)[4][1])]
    found = decoded(again + files)
    assert (found.volume.array == stored - 1024).all()
    assert found.warnings == ("identical-duplicates-dropped",)


def test_equal_pixels_with_another_slope_are_no_duplicates() -> None:
    stored = distinct(5, 6, 7)
    refusal = refusal_of(ct_files(stored) + ct_files(stored, RescaleSlope=2)[2:3])
    assert refusal.reason == "duplicate-positions"


@pytest.mark.parametrize(
    "tags", [("AcquisitionNumber", 2, 10), ("ConvolutionKernel", "B30f", "B70f"), ("TemporalPositionIdentifier", 1, 2)]
)
def test_of_two_reconstructions_in_one_series_the_first_is_taken(tags: tuple[str, Any, Any]) -> None:
    keyword, first, second = tags
    stored = distinct(10, 6, 7)
    files = ct_files(stored[:5], **{keyword: first}) + ct_files(stored[5:], **{keyword: second})
    for seed in range(3):
        found = decoded(random.Random(seed).sample(files, 10))
        assert (found.volume.array == stored[:5] - 1024).all()
        assert found.warnings == ("one-of-several-stacks",)


@pytest.mark.parametrize("keyword", ["EchoNumbers", "KVP", "ImageType"])
def test_stacks_are_parted_by_whatever_tag_tells_them_apart(keyword: str) -> None:
    stored = distinct(10, 6, 7)
    values = {"ImageType": (["ORIGINAL", "PRIMARY", "AXIAL"], ["ORIGINAL", "PRIMARY", "AXIAL", "X"])}
    first, second = values.get(keyword, (80, 140))
    # each slice has an acquisition number of its own, as step-and-shoot scanners write it
    files = [ct_files(stored[:5], AcquisitionNumber=k, **{keyword: first})[k] for k in range(5)]
    files += [ct_files(stored[5:], AcquisitionNumber=k, **{keyword: second})[k] for k in range(5)]
    found = decoded(random.Random(0).sample(files, 10))
    assert (found.volume.array == stored[:5] - 1024).all()
    assert found.warnings == ("one-of-several-stacks",)


def timed_files(stored: NDArray[Any], seconds: list[float], **attributes: Any) -> list[File]:
    return [ct_files(stored, ContentTime=f"{s:013.6f}", **attributes)[k] for k, s in enumerate(seconds)]


def test_without_tags_the_stack_that_was_made_first_is_taken() -> None:
    stored = distinct(10, 6, 7)
    files = timed_files(stored[:5], [100, 101, 102, 103, 104]) + timed_files(stored[5:], [114, 113, 112, 111, 110])
    for seed in range(3):
        found = decoded(random.Random(seed).sample(files, 10))
        assert (found.volume.array == stored[:5] - 1024).all()
        assert found.warnings == ("one-of-several-stacks",)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([100, 101, 102, 103, 104], [100, 101, 102, 103, 104]),  # at once
        ([100, 102, 104, 106, 108], [101, 103, 105, 107, 109]),  # by turns
        ([100] * 5, [100] * 5),
    ],
)
def test_stacks_made_at_the_same_time_are_not_told_apart_by_it(first: list[float], second: list[float]) -> None:
    stored = distinct(10, 6, 7)
    assert refusal_of(timed_files(stored[:5], first) + timed_files(stored[5:], second)).reason == "duplicate-positions"


def test_two_reconstructions_half_a_step_apart_are_not_mixed() -> None:
    """Together they lie on an even grid, with a sharp and a smooth slice by turns."""
    stored = distinct(10, 6, 7)
    sharp, smooth = (
        ct_files(stored[k : k + 5], first=(-10, -20, -30 + k / 5), step_mm=2, ConvolutionKernel=kernel)
        for k, kernel in ((0, "B70f"), (5, "B30f"))
    )
    found = decoded(sharp + smooth)
    assert (found.volume.array == stored[5:] - 1024).all()
    assert found.volume.spacing[0] == pytest.approx(2)
    assert found.warnings == ("one-of-several-stacks",)


@pytest.mark.parametrize("keyword", ["ContentTime", "AcquisitionTime"])
def test_two_scans_half_a_step_apart_are_told_apart_by_their_time(keyword: str) -> None:
    stored = distinct(20, 6, 7)
    files = []
    for k in (0, 10):
        where = {"first": (-10, -20, -30 + k / 10), "step_mm": 2}
        files += [ct_files(stored[k:], **where, **{keyword: f"{100 + 5 * k + j:06}"})[j] for j in range(10)]
    found = decoded(random.Random(0).sample(files, 20))
    assert (found.volume.array == stored[:10] - 1024).all()
    assert found.warnings == ("one-of-several-stacks",)


@pytest.mark.parametrize(("keyword", "value"), [("ConvolutionKernel", "B70f"), ("SeriesDescription", "arterial")])
def test_a_kernel_that_changes_along_the_scan_is_said(keyword: str, value: str) -> None:
    stored = distinct(10, 6, 7)
    files = ct_files(stored, **{keyword: "B30f"})[:5] + ct_files(stored, **{keyword: value})[5:]
    assert decoded(files).warnings == ("stacks-joined",)


def test_a_scan_in_two_parts_is_one_volume() -> None:
    stored = distinct(10, 6, 7)
    files = [ct_files(stored, AcquisitionNumber=1 + (k >= 6), ContentTime=f"1000{k:02}")[k] for k in range(10)]
    found = decoded(files)
    assert (found.volume.array == stored - 1024).all()
    assert found.warnings == ()


def test_copies_that_differ_in_what_no_pixel_shows_are_taken_alike_in_any_order() -> None:
    stored = distinct(5, 6, 7)
    files = ct_files(stored) + ct_files(stored, PixelPaddingValue=3)[1:2] + ct_files(stored, KVP=90)[3:4]
    # another padding may be another volume, so that is a different slice
    assert refusal_of(files).reason == "duplicate-positions"
    files = ct_files(stored, KVP=120) + ct_files(stored, KVP=90)
    results = [assembled(random.Random(seed).sample(files, 10)) for seed in range(4)]
    assert {found.facts["kvp"] for found in results} == {results[0].facts["kvp"]}
    assert decoded(files).warnings == ("identical-duplicates-dropped",)


PHASES = [
    ("NominalPercentageOfCardiacPhase", 40.0, 75.0),
    ("TriggerTime", "301", "610"),
    ("ScanOptions", "AXIAL MODE", "HELICAL MODE"),
    ("SeriesDescription", "arterial", "venous"),
    ("SeriesNumber", "3", "4"),
    ("ImageComments", "phase 1", "phase 2"),
    ("FilterType", "BODY FILTER", "HEAD FILTER"),
    ("ReconstructionDiameter", "320", "400"),
    ("InstanceCreationTime", "101500", "101533"),
]


@pytest.mark.parametrize(("keyword", "first", "second"), PHASES)
def test_phases_are_told_apart_by_one_tag_of_any_kind(keyword: str, first: Any, second: Any) -> None:
    stored = distinct(10, 6, 7)
    files = ct_files(stored[:5], **{keyword: first}) + ct_files(stored[5:], **{keyword: second})
    for seed in range(3):
        shuffled = random.Random(seed).sample(files, 10)
        found = decoded(shuffled)
        assert (found.volume.array == stored[:5] - 1024).all()
        assert found.warnings == ("one-of-several-stacks",)
        both = assembly.assemble_all(next(iter(read(shuffled).slices.values())), min_slices=3)
        volumes = [one.decode().volume.array for one in both if isinstance(one, Series)]
        np.testing.assert_array_equal(volumes, [stored[:5] - 1024, stored[5:] - 1024])


def test_repeats_are_told_apart_by_their_numbers_if_by_nothing_else() -> None:
    stored = distinct(10, 6, 7)
    files = [ct_files(stored[5 * (k // 5) :], InstanceNumber=k + 1)[k % 5] for k in range(10)]
    assert (decoded(random.Random(0).sample(files, 10)).volume.array == stored[:5] - 1024).all()


@pytest.mark.parametrize(
    "tags", [{"AcquisitionNumber": 1}, {"ScanOptions": "MONITORING"}, {"SeriesDescription": "Bolus"}]
)
@pytest.mark.parametrize("step", [7, 7.5])  # where a slice is, and between two
def test_images_that_watch_the_bolus_arrive_are_left_out(tags: dict[str, Any], step: float) -> None:
    stored = distinct(42, 6, 7)
    stack = ct_files(stored[:12], AcquisitionNumber=99, ScanOptions="HELICAL", SeriesDescription="Chest")
    watched = ct_files(
        stored[12:], positions_mm=[step * 1.25] * 30, **{"AcquisitionNumber": 99, "ScanOptions": "HELICAL", **tags}
    )
    found = decoded(random.Random(0).sample(stack + watched, 42))
    assert (found.volume.array == stored[:12] - 1024).all()
    assert found.warnings == ("one-of-several-stacks",)


def test_two_parts_of_a_scan_that_overlap_a_little_are_one_stack() -> None:
    stored = distinct(22, 6, 7)
    chest = ct_files(stored[:12], AcquisitionNumber=1)
    abdomen = ct_files(stored[12:], positions_mm=[1.25 * k for k in range(10, 20)], AcquisitionNumber=2)
    found = decoded(random.Random(0).sample(chest + abdomen, 22))
    expected = np.concatenate([stored[:12], stored[14:]])
    assert (found.volume.array == expected - 1024).all()
    assert found.warnings == ("stacks-joined",)


@pytest.mark.parametrize(
    ("second", "tags"),
    [
        ([1.25 * k for k in range(4, 14)], {}),  # half of it lies in the first: another phase
        ([1.25 * k + 0.6 for k in range(10, 20)], {}),  # not on the grid of the first
        ([1.25 * k for k in range(10, 20)], {"ConvolutionKernel": "B70f"}),  # another reconstruction
    ],
)
def test_what_is_no_part_of_the_scan_is_left_out_and_its_extent_is_said(
    second: list[float], tags: dict[str, Any]
) -> None:
    stored = distinct(22, 6, 7)
    first = ct_files(stored[:12], AcquisitionNumber=1, ConvolutionKernel="B30f")
    other = ct_files(stored[12:], positions_mm=second, **{"AcquisitionNumber": 2, "ConvolutionKernel": "B30f", **tags})
    found = assembled(first + other)
    assert found.facts["left_out_mm"] == pytest.approx(second[-1] - 11 * 1.25)
    assert found.warnings == ("one-of-several-stacks", "body-left-out")
    assert (found.decode().volume.array == stored[:12] - 1024).all()


def test_slices_computed_from_others_are_said() -> None:
    files = ct_files(distinct(5, 6, 7), ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"])
    assert decoded(files).warnings == ("derived-slices",)


def chest(n: int = 12, seed: int = 0) -> NDArray[np.int16]:
    """HU of a chest with noise: air, fat, muscle, lungs, bone, in slices of 96 x 96."""
    y, x = np.mgrid[:96, :96] - 47.5
    hu = np.full((n, 96, 96), -1000.0)
    hu[:, np.hypot(y / 34, x / 44) < 1] = -100
    hu[:, np.hypot(y / 30, x / 40) < 1] = 45
    hu[:, np.hypot(y / 18, (np.abs(x) - 18) / 12) < 1] = -850
    hu[:, np.hypot(y - 22, x) < 5] = 600
    noise = np.random.default_rng(seed).normal(0, 15, hu.shape)
    return np.rint(hu + noise).clip(-1024, 3071).astype(np.int16)


WRONG = {
    "no rescale": chest() + 1024,
    "rescaled twice": chest() - 1024,
    "above 2000": chest() + 8192,
    "of the values lie above 2000": ((chest() + 1024) / 2048 * 4095).clip(0, 4095),  # a window in 12 bits
    "nothing but -1024 to -1022": (chest() // 1000) - 1022,
    "an offset": chest() + 500,
    "8-bit": ((chest() + 1024) / 2048 * 255).clip(0, 255),
    "8-bit grey": ((chest() + 1024) / 1500 * 255).clip(0, 255) - 1024,  # with the rescale of before
    "nothing but 0 to 1": (chest() > -500).astype(int),
    "nothing but -1000 to -1000": np.full((12, 64, 64), -1000),
    "below -1500": (chest().astype(int) * 3).clip(-4000, -1200),
}


@pytest.mark.parametrize(("words", "hu"), WRONG.items(), ids=WRONG)
def test_values_that_cannot_be_hu_are_refused_by_what_they_look_like(words: str, hu: NDArray[Any]) -> None:
    files = ct_files(hu.astype(np.int16), RescaleIntercept=0)
    refusal = refusal_of(files)
    assert refusal.reason == "hu-implausible"
    assert words in refusal.message
    assert "check_hu = false" in refusal.message
    accepted = decoded(files, check_hu=False)
    assert "hu-implausible" in accepted.warnings


def test_an_offset_is_found_though_only_the_padding_is_where_air_should_be() -> None:
    hu, (y, x) = chest() + 1024, np.mgrid[:96, :96] - 47.5
    hu[:, np.hypot(y, x) > 48] = -1024
    assert "no rescale" in refusal_of(ct_files(hu, RescaleIntercept=0)).message


def test_a_slope_beyond_all_measure_is_refused() -> None:
    assert refusal_of(ct_files(chest(), RescaleSlope="1e30")).reason == "hu-implausible"


@pytest.mark.parametrize(
    "hu",
    [
        chest(),
        chest()[:, 40:60, 40:56],  # nothing but muscle and lung, no air around
        chest()[:, 66:78, 30:66].repeat(3, 1),  # muscle, bone and fat
        chest().clip(-160, 240),
        chest().clip(-1000, 400),
        chest().clip(0, 80),
        np.where(chest() > -500, chest(), 0),  # a body that was cut out, with 0 around it
        np.random.default_rng(0).normal(0, 20, (12, 96, 96)),  # water alone
        np.random.default_rng(0).normal(0, 4, (12, 96, 96)),  # the same, smoothed
        np.random.default_rng(0).normal(-1000, 20, (12, 96, 96)),  # air alone
        chest() + 1000 * (np.hypot(*(np.mgrid[:96, :96] - 47.5)) < 6),  # a ball of Teflon in it
        np.broadcast_to(np.where(np.arange(96) < 30, 0, 100), (12, 96, 96)),  # made by a program: two values
        np.broadcast_to(np.where(np.hypot(*(np.mgrid[:96, :96] - 47.5)) < 30, 255, 0), (12, 96, 96)),
    ],
)
def test_values_that_can_be_hu_are_not_refused(hu: NDArray[Any]) -> None:
    assert decoded(ct_files(np.rint(hu).astype(np.int16), RescaleIntercept=0)).warnings == ()


@pytest.mark.parametrize("tags", [{"RescaleType": "US"}, {"RescaleSlope": None, "RescaleIntercept": None}])
def test_where_the_header_leaves_it_open_the_values_must_show_hu(tags: dict[str, Any]) -> None:
    good = decoded(ct_files(chest(), **{"RescaleIntercept": 0, **tags}))
    assert (good.volume.array == chest()).all()
    assert good.warnings == ("hu-from-values",)
    for hu in (chest().clip(0, 80), chest()[:, 66:78, 30:66].repeat(3, 1), chest().clip(-160, 240)):
        refusal = refusal_of(ct_files(hu, **{"RescaleIntercept": 0, **tags}))
        assert refusal.reason == "not-hu"
        assert "check_hu = false" in refusal.message


def test_a_rescale_that_some_slices_lack_is_refused() -> None:
    files = ct_files(chest(), RescaleIntercept=0)[:6] + ct_files(chest(), RescaleIntercept=None)[6:]
    assert refusal_of(files).reason == "not-hu"


@pytest.mark.parametrize("n_lost", [3, 6])
def test_a_rescale_that_is_wrong_in_some_slices_is_found(n_lost: int) -> None:
    good, lost = (
        ct_files(chest(), RescaleIntercept=0),
        ct_files(chest() + 1024, RescaleIntercept=0, RescaleSlope="1.001"),
    )
    refusal = refusal_of(good[n_lost:] + lost[:n_lost])
    assert refusal.reason == "hu-implausible"
    assert "slope 1.001 and intercept 0 no rescale" in refusal.message


def test_padding_that_no_header_declares_and_no_corner_shows_is_no_fault() -> None:
    hu, (y, x) = chest(), np.mgrid[:96, :96] - 47.5
    hu[:, np.hypot(y, x + 48) > 60] = -3024  # half of a round field of view
    assert decoded(ct_files(hu[:, :, :60], RescaleIntercept=0)).warnings == ()


def test_blank_slices_are_said() -> None:
    hu = chest()
    hu[-2:] = 0
    assert decoded(ct_files(hu, RescaleIntercept=0)).warnings == ("blank-slices",)


@pytest.mark.parametrize("air", [-1024, -1000])
def test_slices_of_air_are_blank_between_others_and_space_at_the_ends(air: int) -> None:
    hu = chest()
    hu[:2], hu[-3:] = air, air
    assert decoded(ct_files(hu, RescaleIntercept=0)).warnings == ()
    hu[4] = air  # as of a file that was made, and never filled
    assert decoded(ct_files(hu, RescaleIntercept=0)).warnings == ("blank-slices",)


def test_several_stacks_in_one_enhanced_object_give_the_longest() -> None:
    stored = distinct(9, 6, 7)
    positions = [(-10, -20, -30 + 2 * k) for k in (0, 1, 2, 3, 0, 1, 2, 3, 4)]
    content = enhanced_file(stored, positions, stack_ids=["A"] * 4 + ["B"] * 5)
    found = decoded([("E", content)])
    assert (found.volume.array == stored[4:] - 1024).all()
    assert found.warnings == ("one-of-several-stacks",)


def test_an_enhanced_object_and_single_slices_make_one_volume() -> None:
    stored = distinct(6, 6, 7)
    singles = ct_files(stored)
    enhanced = enhanced_file(stored[2:4], [(-10, -20, -30 + 1.25 * k) for k in (2, 3)])
    found = decoded([*singles[4:], ("E", enhanced), *singles[:2]])
    assert (found.volume.array == stored - 1024).all()
    assert found.warnings == ()
    again = decoded([*singles, ("E", enhanced)])
    assert (again.volume.array == stored - 1024).all()
    assert again.warnings == ("identical-duplicates-dropped",)


def test_of_two_reconstructions_the_longer_is_taken() -> None:
    stored = distinct(11, 6, 7)
    files = ct_files(stored[:5], AcquisitionNumber=1) + ct_files(stored[5:], AcquisitionNumber=2)
    assert (decoded(files).volume.array == stored[5:] - 1024).all()


def test_a_scout_in_the_series_is_left_out() -> None:
    stored = distinct(5, 6, 7)
    scout = ct_files(distinct(1, 9, 9), orientation=CORONAL)
    found = decoded(scout + ct_files(stored))
    assert (found.volume.array == stored - 1024).all()
    assert found.warnings == ("one-of-several-stacks",)


# Refusals


@pytest.mark.parametrize(
    ("positions_mm", "reason", "words"),
    [
        ([0, 2, 4, 8, 10, 12], "missing-slices", "1 missing, between -26.00 and -22.00 mm"),
        ([0, 2, 4, 7, 8, 10], "uneven-spacing", "1.000 to 3.000 mm"),
        ([0, 2, 4, 4, 6, 8], "duplicate-positions", "at -26.00 mm"),
        ([0, 0, 0, 0, 2, 2], "too-few-slices", "at least 3 slice positions, found 2 in 6 slices"),
    ],
)
def test_bad_positions_are_refused_by_name_and_place(positions_mm: list[float], reason: str, words: str) -> None:
    refusal = refusal_of(ct_files(distinct(6, 6, 7), positions_mm=positions_mm))
    assert refusal.reason == reason
    assert words in refusal.message


@pytest.mark.parametrize("change", [{"PixelSpacing": [0.8, 0.8]}, {"orientation": CORONAL}])
def test_mixed_geometry_is_refused(change: dict[str, Any]) -> None:
    stored = distinct(6, 6, 7)
    assert refusal_of(ct_files(stored) + ct_files(stored, **change)).reason == "mixed-geometry"


def test_no_slices_are_too_few() -> None:
    with pytest.raises(Refusal, match="too-few-slices"):
        assembly.assemble([])


def test_one_slice_with_cut_pixels_refuses_the_series_by_its_name() -> None:
    stored = distinct(4, 16, 16).astype(np.uint16)
    data = [compressed(imagecodecs.jpegls_encode(plane)) for plane in stored]
    data[2] = compressed(imagecodecs.jpegls_encode(stored[2])[:-40])
    files = [ct_files(stored, PixelData=pixels, syntax=JPEGLSLossless)[k] for k, pixels in enumerate(data)]
    refusal = refusal_of(files)
    assert (refusal.reason, refusal.message[:10]) == ("truncated", "0002.dcm: ")


def test_the_grid_is_known_before_anything_is_decoded() -> None:
    stored = distinct(4, 16, 16)
    garbage = compressed(bytes(64))
    files = ct_files(stored, PixelData=garbage, syntax=JPEGLSLossless, Rows=9000, Columns=9000, PixelSpacing=[0.1, 0.1])
    grid = assembled(files).grid
    assert grid.shape == (4, 9000, 9000)
    assert grid.spacing == pytest.approx((1.25, 0.1, 0.1))
    assert refusal_of(files).reason == "truncated"  # as the garbage is, once it is decoded


def test_encoded_pixels_are_freed_as_they_are_decoded() -> None:
    (slices,) = read(ct_files(distinct(5, 6, 7))).slices.values()
    held = [weakref.ref(s) for s in slices]
    found = assembly.assemble(slices, min_slices=3)
    assert slices == []
    planes = found.decode().planes()
    for n_taken in range(1, 6):
        next(planes)
        assert sum(s() is not None for s in held) == 5 - n_taken


# Decoding


def test_hash_and_warnings_are_an_error_until_all_planes_are_taken() -> None:
    """Once they were, without a word, those of the slices decoded so far."""
    stored = distinct(5, 6, 7)
    found = assembled(ct_files(stored)).decode()
    planes = found.planes()
    for n_left in range(5, 0, -1):
        with pytest.raises(RuntimeError, match=f"take all planes first: {n_left} slices"):
            _ = found.hu_sha256
        with pytest.raises(RuntimeError, match="take all planes first"):
            _ = found.warnings
        next(planes)
    assert found.hu_sha256 == hashlib.sha256((stored - 1024).astype("<i2").tobytes()).hexdigest()
    assert found.warnings == ()


def test_the_hash_of_planes_is_that_of_the_volume() -> None:
    files, _ = tilted_files(AXIAL, (0, 0.3, 0), n=20)
    taken = assembled(files[:7] + files[8:], max_gap_slices=1).decode()
    planes = list(taken.planes())
    held = decoded(files[:7] + files[8:], max_gap_slices=1)
    np.testing.assert_array_equal(np.stack(planes), held.volume.array)
    assert (taken.hu_sha256, taken.warnings) == (held.hu_sha256, held.warnings)


def test_what_cannot_be_decoded_leaves_no_hash() -> None:
    stored = distinct(4, 16, 16)
    found = assembled(ct_files(stored, PixelData=compressed(bytes(64)), syntax=JPEGLSLossless)).decode()
    with pytest.raises(Refusal):
        _ = found.volume
    with pytest.raises(RuntimeError, match="take all planes first: 4 slices"):
        _ = found.hu_sha256


def test_a_series_is_decoded_once_and_its_planes_are_taken_once() -> None:
    series = assembled(ct_files(distinct(5, 6, 7)))
    found = series.decode()
    with pytest.raises(RuntimeError, match="a series can be decoded once"):
        series.decode()
    assert found.volume is found.volume
    with pytest.raises(RuntimeError, match="the planes of a series can be taken once"):
        found.planes()
    again = assembled(ct_files(distinct(5, 6, 7))).decode()
    next(again.planes())
    with pytest.raises(RuntimeError, match="the planes of a series can be taken once"):
        _ = again.volume


def test_series_and_decoded_lie_on_the_acquired_grid() -> None:
    series = assembled(ct_files(distinct(5, 6, 7), orientation=CORONAL))
    found = series.decode()
    assert found.grid is series.grid
    assert (found.grid.shape, found.first_gap_mm) == ((5, 6, 7), series.first_gap_mm)
    np.testing.assert_array_equal(
        to_patient_axes(Volume(np.zeros((5, 6, 7)), found.grid.affine)).affine, found.volume.affine
    )


# Real data


@pytest.mark.parametrize("name", ["lidc_0001", "lidc_0314", "crlm_1004"])
def test_real_volumes_are_as_recorded(data_folder: DataFolder, name: str) -> None:
    folder, expected = data_folder.volumes / name, data_folder.expected_volumes[name]
    files = [file for file in files_in(folder) if not file[0].endswith(".txt")]
    contents = read(files)
    assert contents.all_damage() == []
    acquired = assembly.assemble(contents.slices[expected["series_uid"]])
    found = acquired.decode()
    assert list(found.volume.shape) == expected["shape_zyx"]
    assert found.hu_sha256 == expected["hu_int16le_zyx_sha256"]
    assert found.volume.spacing == pytest.approx((expected["slice_step_mm"], *expected["pixel_spacing_mm"]))
    assert found.volume.to_patient((0, 0, 0)) == pytest.approx(expected["first_ipp_lps"], abs=1e-3)
    assert (found.volume.array == PADDING).sum() == expected["padding_voxels_below_minus1024"]
    assert found.warnings == ()

    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), expected["series_uid"]))
    assert image.GetSize()[::-1] == found.volume.shape
    corners = [(z, y, x) for z in (0, found.volume.shape[0] - 1) for y in (0, 511) for x in (0, 511)]
    places = [image.TransformIndexToPhysicalPoint(corner[::-1]) for corner in corners]
    assert found.volume.to_patient(corners) == pytest.approx(np.array(places), abs=1e-3)

    random.Random(0).shuffle(files)
    other = assembled([(f"{k}", content) for k, (_, content) in enumerate(files)], min_slices=10)
    shuffled = other.decode()
    assert (shuffled.volume.array == found.volume.array).all()
    assert (shuffled.volume.affine == found.volume.affine).all()
    assert (shuffled.hu_sha256, other.facts) == (found.hu_sha256, acquired.facts)


def test_a_real_tilted_series_lies_where_its_headers_say(data_folder: DataFolder) -> None:
    """The first 14 slices of the head, 4 mm apart; the whole series changes to 7 mm, which is refused."""
    files = [file for file in files_in(data_folder.tricky / "tilt_ge_head") if file[0] <= "14.dcm"]
    (slices,) = read(files).slices.values()
    native = {s.name: (s.plane, pixels.stored_values(s.data, s.pixel_format, s.name)) for s in slices}
    acquired = assembly.assemble(slices, min_slices=10)
    assert acquired.facts["tilt_degrees"] == pytest.approx(18.5, abs=0.05)  # as GantryDetectorTilt says, unread
    found = acquired.decode()
    assert found.volume.shape == (14, 512 + 36, 512)
    assert found.warnings == ("tilt-corrected",)
    rng = np.random.default_rng(0)
    for plane, hu in native.values():
        j, i = rng.integers(60, 450, (2, 500))
        place = np.array(plane.position) + plane.pixel_mm[0] * np.outer(j, plane.column)
        index = found.volume.to_index(place + plane.pixel_mm[1] * np.outer(i, plane.row))
        z, y, x = np.floor(index + 1e-3).astype(int).T
        share = index[:, 1] - y
        assert np.abs(index - np.stack([z, index[:, 1], x], axis=1)).max() < 1e-2
        # back from the new grid to the old pixels: between their neighbours, as linear interpolation leaves them
        ours = (1 - share) * found.volume.array[z, y, x] + share * found.volume.array[z, y + 1, x]
        rows = np.stack([hu[j + k, i] for k in (-1, 0, 1)])
        is_body = (rows > -1500).all(axis=0)
        assert is_body.mean() > 0.5
        assert ((rows.min(axis=0) - 1 <= ours) & (ours <= rows.max(axis=0) + 1))[is_body].all()


def test_a_real_gap_in_a_tilted_series_is_interpolated_where_asked_for(data_folder: DataFolder) -> None:
    contents = read(files_in(data_folder.tricky / "tilt_ge_head"))
    (slices,) = contents.slices.values()
    slices[:] = [s for s in slices if s.name <= "14.dcm" and s.name != "06.dcm"]
    found = assembly.assemble(slices, min_slices=10, max_gap_slices=1)
    assert found.facts["interpolated_mm"] == "-13.66"
    taken = found.decode()
    assert taken.volume.shape[0] == 14
    assert taken.warnings == ("tilt-corrected", "gap-interpolated")


def test_a_real_coronal_series_lies_where_simpleitk_has_it(data_folder: DataFolder) -> None:
    folder = data_folder.tricky / "acrin_coronal"
    found = decoded(files_in(folder))
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    reference = sitk.GetArrayFromImage(image)
    rng = np.random.default_rng(0)
    index = rng.integers(0, reference.shape, (2000, 3))
    places = np.array([image.TransformIndexToPhysicalPoint(i[::-1].tolist()) for i in index])
    ours = np.rint(found.volume.to_index(places)).astype(int)
    assert found.volume.to_patient(ours) == pytest.approx(places, abs=1e-2)
    values = found.volume.array[tuple(ours.T)]
    is_measured = values != PADDING
    assert is_measured.mean() > 0.5
    assert (values[is_measured] == reference[tuple(index.T)][is_measured]).all()
    assert found.volume.spacing == pytest.approx((1.680, 1.680, 1.367), abs=1e-3)


@pytest.mark.slow
def test_series_found_in_the_wild_lie_where_simpleitk_has_them_with_its_values(data_folder: DataFolder) -> None:
    folders = [f for f in data_folder.wild.rglob("*") if f.is_dir() and any(p.is_file() for p in f.iterdir())]
    assert len(folders) == 5
    for folder in folders:
        found = decoded(files_in(folder))
        assert found.warnings == ()
        rng = np.random.default_rng(0)
        for path in sorted(folder.iterdir()):
            image = sitk.ReadImage(str(path))
            reference = sitk.GetArrayFromImage(image)
            index = rng.integers(0, reference.shape, (200, 3))
            places = np.array([image.TransformIndexToPhysicalPoint(i[::-1].tolist()) for i in index])
            ours = np.rint(found.volume.to_index(places)).astype(int)
            assert found.volume.to_patient(ours) == pytest.approx(places, abs=1e-2)
            values = found.volume.array[tuple(ours.T)]
            assert ((values == reference[tuple(index.T)]) | (values == PADDING)).all()


# The same real series, as exports and transfers spoil it


def real_files(data_folder: DataFolder, name: str = "no_uids") -> tuple[list[File], NDArray[np.int16]]:
    """The files of a real series of 20 slices, and its volume."""
    (folder,) = {path.parent for path in data_folder.wild.rglob("*") if path.is_file() and name in str(path)}
    files = files_in(folder)
    return files, decoded(files).volume.array


def resaved(content: bytes, **attributes: Any) -> bytes:
    """The file with other attributes, its pixels uncompressed."""
    ds = pydicom.dcmread(io.BytesIO(content))
    ds.PixelData = imagecodecs.jpeg2k_decode(next(generate_frames(ds.PixelData))).astype("<i2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, ds, enforce_file_format=False)
    return file.getvalue()


def test_a_real_series_whose_rescale_type_is_unspecified_is_read(data_folder: DataFolder) -> None:
    files, expected = real_files(data_folder)
    found = decoded([(name, resaved(content, RescaleType="US")) for name, content in files])
    assert found.warnings == ("hu-from-values",)
    assert (found.volume.array == expected).all()


@pytest.mark.parametrize(("intercept", "words"), [(0, "no rescale"), (-2048, "rescaled twice")])
def test_a_real_series_with_a_wrong_rescale_is_refused(data_folder: DataFolder, intercept: int, words: str) -> None:
    files, _ = real_files(data_folder)
    refusal = refusal_of([(name, resaved(content, RescaleIntercept=intercept)) for name, content in files])
    assert (refusal.reason, words in refusal.message) == ("hu-implausible", True)


@pytest.mark.parametrize("stray", [b"", b"x"])
def test_a_stray_file_beside_a_real_series_does_no_harm(data_folder: DataFolder, stray: bytes) -> None:
    files, expected = real_files(data_folder)
    contents = read([*files, ("notes", stray)])
    assert contents.flaw("") is None
    assert (assembly.assemble(contents.slices[""]).decode().volume.array == expected).all()


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("tilt_ge_head", "uneven-spacing", "1.081 to 6.999 mm"),
        ("d2n_failing/sliceincrement/002", "missing-slices", "every 0.750 mm, found 1 missing"),
        ("d2n_failing/notavolume/001", "too-few-slices", "found 1 in 4 slices"),
        ("transfer_syntaxes", "too-few-slices", "found 1 in 16 slices"),
        ("reformats_a/A098752/axial", "too-few-slices", "found 1 in 1 slice"),
    ],
)
def test_real_folders_that_hold_no_volume_are_refused(
    data_folder: DataFolder, name: str, reason: str, words: str
) -> None:
    contents = read([file for file in files_in(data_folder.tricky / name) if not file[0].endswith(".txt")])
    assert contents.all_damage() == []
    for slices in contents.slices.values():
        with pytest.raises(Refusal) as caught:
            assembly.assemble(slices, min_slices=3)
        assert caught.value.reason == reason
        assert words in caught.value.message


def test_a_real_study_without_file_extensions_gives_its_axial_series(data_folder: DataFolder) -> None:
    folder = data_folder.tricky / "mixed_philips_study"
    contents = read([file for name in ("S1000", "S2010", "S4010") for file in files_in(folder / name)])
    assert contents.all_damage() == []
    ((slices),) = contents.slices.values()
    found = assembly.assemble(slices).decode()
    assert found.volume.shape == (28, 512, 512)
    assert found.volume.spacing[0] == pytest.approx(5)
    assert sorted({aside.kind for aside in contents.aside}) == ["localizer", "not-ct"]


@pytest.mark.parametrize(
    "name", ["J2K_pixelrep_mismatch.dcm", "explicit_VR-UN.dcm", "bad_sequence.dcm", "CT_small.dcm"]
)
def test_odd_real_slices_have_the_hu_that_simpleitk_reads(data_folder: DataFolder, name: str) -> None:
    path = data_folder.tricky / "pydicom_misc" / name
    ((one,),) = read([(name, path.read_bytes())]).slices.values()
    reference = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    hu = hounsfield.to_hu(pixels.stored_values(one.data, one.pixel_format, name), one.slope, one.intercept)
    assert (hu == reference).all()


def test_normals_of_the_test_orientations_are_what_they_are_called() -> None:
    assert normal_of(CORONAL).tolist() == [0, 1, 0]
    assert normal_of(SAGITTAL).tolist() == [-1, 0, 0]

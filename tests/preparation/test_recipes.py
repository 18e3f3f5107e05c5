"""The presets of 2017 do what the recipes' rules say, defects included: against a straight transcription."""

from __future__ import annotations

import doctest
import re
from functools import cache
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import recipes_2017
import tiny
from numpy.typing import NDArray

from dskprep import settings as config
from dskprep.dataset.facts import Crop
from dskprep.errors import Refusal, UsageError
from dskprep.kernels import runs
from dskprep.pipeline import run as pipeline
from dskprep.pipeline.prediction import predict
from dskprep.preparation import prepare, zoom
from dskprep.preparation import recipes as recipes_
from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import Native, grt123, grt123_lungs, recipe, tutorial, zuidhof
from dskprep.reading import dataset
from dskprep.series import assembly, upright
from dskprep.sides import LEFT, LUNG, RIGHT
from dskprep.source.cases import choose
from dskprep.source.found import read_series
from dskprep.stopwatch import Stopwatch
from dskprep.synthetic.phantom import make_phantom
from dskprep.synthetic.scanner import series_files
from dskprep.volume import Volume

ROUNDING = 2e-4
"""Share of voxels that float32 sums may round to the other side than float64."""


COARSE_MM = (2.0, 2.0, 2.0)

OF_2017 = ("zuidhof", "luo-2017", "grt123")


def affine_of(spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    return np.diag([*spacing, 1.0])[[2, 1, 0, 3]]


@cache
def chest() -> Volume:
    """A coarse phantom as the recipes of 2017 read it, padding and all."""
    return make_phantom(seed=3, spacing_mm=(4.0, 2.5, 2.5), shape=(72, 140, 140)).volume


def prepared(recipe: str, volume: Volume, **settings: Any) -> Prepared:
    return prepare.prepare(volume, config.PrepConfig(recipe=recipe, **settings))


def test_the_examples_of_the_docstrings_run() -> None:
    for module in (config, prepare):
        found = doctest.testmod(module)
        assert (found.failed, found.attempted > 0) == (0, True)


def prepared_with_first_gap(name: str, volume: Volume, first_gap_mm: float) -> Prepared:
    native = Native(volume, Stopwatch())
    native.first_gap_mm = first_gap_mm
    return recipe(name).prepare(native, config.preset(name), Stopwatch())


def assert_equal_but_for_rounding(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    difference = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    assert difference.max() <= 1
    assert np.mean(difference > 0) <= ROUNDING


# ---------------------------------------------------------------------------------------------------
# The tutorial: zuidhof and luo-2017
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8, np.int32])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (1, -1000.7), (0.7, -3.9), (-2, 10), (30.5, -1024)])
def test_stored_values_become_hu_with_all_that_int16_loses(dtype: Any, slope: float, intercept: float) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (3, 16, 16)).astype(dtype)
    if np.dtype(dtype).itemsize > 1:
        stored[0, 0, :3] = np.array([-2000, -1, 1000]).astype(dtype)
    expected = recipes_2017.hounsfield(stored, [slope] * 3, [intercept] * 3)
    without_padding = recipes_2017.hounsfield(stored, [slope] * 3, [intercept] * 3, padding=None)
    for plane, with_, without in zip(stored, expected, without_padding, strict=True):
        out = np.empty(plane.shape, np.int16)
        tutorial.to_hu(plane, slope, intercept, out)
        np.testing.assert_array_equal(out, with_)
        grt123.to_hu(plane, slope, intercept, out)
        np.testing.assert_array_equal(out, without)


def test_what_int16_cannot_hold_wraps() -> None:
    out = np.empty((1, 3), np.int16)
    tutorial.to_hu(np.array([[32767, -32768, -2000]], np.int16), 1, -1024, out)
    assert out.tolist() == [[31743, 31744, -1024]]


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("shape", [(20, 31, 17), (72, 8, 40), (2, 3, 5), (1, 40, 12)])
@pytest.mark.parametrize("spacing", [(2.5, 0.7, 0.66), (0.6, 1.0, 3.0), (2.0, 1.25, 1.3)])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_zoom_is_that_of_scipy(order: int, shape: tuple[int, int, int], spacing: Any, dtype: Any) -> None:
    low, high = (-3000, 3000) if dtype == np.int16 else (0, 256)
    image = np.random.default_rng(0).integers(low, high, shape).astype(dtype)
    expected = recipes_2017.resample(image, spacing, order=order)
    taps = [zoom.taps(n, n_out, order) for n, n_out in zip(shape, expected.shape, strict=True)]
    found = zoom.zoom(image.__getitem__, *taps, dtype)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    # values at halves are float noise in scipy too: a handful of a small array, and none of the rest
    assert np.count_nonzero(difference) <= 2 + 0.002 * difference.size


def test_a_part_of_a_zoom_is_the_same_as_of_the_whole() -> None:
    image = np.random.default_rng(0).integers(-1000, 1000, (20, 30, 25)).astype(np.int16)
    taps = [zoom.taps(n, n_out, 1) for n, n_out in zip(image.shape, (51, 20, 26), strict=True)]
    box = np.s_[17:40, 3:11, 5:26]
    parts = [t.part(which) for t, which in zip(taps, box, strict=True)]
    whole = zoom.zoom(image.__getitem__, *taps, np.int16)
    np.testing.assert_array_equal(zoom.zoom(image.__getitem__, *parts, np.int16), whole[box])


@pytest.mark.slow
@pytest.mark.parametrize("fill", [True, False])
def test_zuidhof_is_the_tutorial(fill: bool) -> None:
    volume = chest()
    image = recipes_2017.resample(volume.array, volume.spacing, COARSE_MM)
    mask = recipes_2017.segment(image, fill)
    found = prepared("zuidhof", volume, fill_lungs=fill, spacing_mm=COARSE_MM)
    assert_equal_but_for_rounding(found.image.array, image)
    assert found.lungs is not None
    np.testing.assert_array_equal(zuidhof.lung_mask(image, fill=fill), mask)
    assert np.count_nonzero(found.lungs.mask.array != LUNG * mask) <= ROUNDING * np.count_nonzero(mask)
    assert (found.values, found.crop) == ("HU", None)
    assert found.lungs.unsided_ml == pytest.approx(mask.sum() * found.image.voxel_ml, rel=ROUNDING)


@pytest.mark.parametrize(
    ("recipe", "dtype"), [("luo-2017", np.float64), ("luo-2017", np.float32), ("zuidhof", np.float32)]
)
def test_floats_are_normalized_and_centred(recipe: str, dtype: Any) -> None:
    volume = chest()
    found = prepared(recipe, volume, dtype=np.dtype(dtype).name, spacing_mm=COARSE_MM)
    hu = prepared("zuidhof", volume, spacing_mm=COARSE_MM).image.array
    assert found.image.array.dtype == dtype
    np.testing.assert_array_equal(found.image.array, recipes_2017.normalize(hu).astype(dtype))
    assert (found.values, found.fill) == ("normalized", -0.25)
    assert (found.lungs is None) == (recipe == "luo-2017")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fill", [True, False])
def test_the_mask_is_the_tutorials_on_noise_of_all_shapes(seed: int, fill: bool) -> None:
    rng = np.random.default_rng(seed)
    hu = np.where(rng.random((9, 14, 11)) < 0.05 + 0.05 * seed, -800, 40).astype(np.int16)
    expected = recipes_2017.segment(hu, fill)
    if expected.any():
        np.testing.assert_array_equal(zuidhof.lung_mask(hu, fill=fill), expected)
    else:
        with pytest.raises(Refusal, match="no-lungs"):
            zuidhof.lung_mask(hu, fill=fill)


def test_a_chest_that_meets_the_corner_has_the_outside_for_lung() -> None:
    """Defect T12: the background is what the corner voxel is part of."""
    hu = np.full((10, 30, 30), -1000, np.int16)
    hu[:, 5:, 5:] = 40
    hu[2:8, 10:25, 10:25] = -850
    assert zuidhof.lung_mask(hu)[5, 15, 15] == 1
    hu[0, 0, 0] = 40
    np.testing.assert_array_equal(zuidhof.lung_mask(hu, fill=False), recipes_2017.segment(hu, False))
    assert zuidhof.lung_mask(hu, fill=False)[5, 0, 0] == 1


@pytest.mark.parametrize(("hu", "recipe"), [(40, "zuidhof"), (-1000, "zuidhof"), (40, "grt123"), (-1000, "grt123")])
def test_where_a_recipe_finds_no_lung_the_patient_is_refused(hu: int, recipe: str) -> None:
    volume = Volume(np.full((12, 40, 40), hu, np.int16), affine_of((2.0, 2.0, 2.0)))
    with pytest.raises(Refusal, match="no-lungs"):
        prepared(recipe, volume)


@pytest.mark.parametrize("name", OF_2017)
def test_slices_without_thickness_are_refused_not_written_empty(name: str) -> None:
    """Defect T1: an array of depth zero."""
    with pytest.raises(Refusal, match=r"no-thickness.*0 x 350 x 350"):
        prepared_with_first_gap(name, chest(), 0.0)


def test_the_affine_says_where_the_voxels_truly_lie() -> None:
    """Defect T10: away from the ends, where a spline bends, a ramp along an axis reads its own place."""
    shape, spacing = (40, 50, 60), (2.5, 0.7, 1.3)
    for axis in range(3):
        ramp = 40 * np.indices(shape)[axis] - 1000
        image = tutorial.resample(Volume(ramp.astype(np.int16), affine_of(spacing)), spacing[0], (1.0, 1.0, 1.0))
        n = image.shape[axis]
        assert n == round(shape[axis] * spacing[axis])
        np.testing.assert_allclose(image.spacing[axis], spacing[axis] * (shape[axis] - 1) / (n - 1))
        place_mm = np.indices(image.shape)[axis] * image.spacing[axis]
        read_mm = (image.array + 1000) / 40 * spacing[axis]
        inner = np.take(read_mm - place_mm, range(n // 4, 3 * n // 4), axis=axis)
        assert np.abs(inner).max() < 0.03 * spacing[axis]


def test_the_first_two_slices_give_the_thickness_of_all() -> None:
    """Defect T2, as far as slices that are checked for evenness go; the affine stays true."""
    volume = chest()
    found = prepared_with_first_gap("luo-2017", volume, 3.9)
    assert found.image.shape[0] == round(72 * 3.9)
    assert found.image.spacing[0] == pytest.approx(71 * 4.0 / (found.image.shape[0] - 1))


# ---------------------------------------------------------------------------------------------------
# grt123
# ---------------------------------------------------------------------------------------------------


def assert_grt123(volume: Volume) -> Prepared:
    """Masks are equal to the transcription's, grey values but for rounding; returns ours."""
    expected = recipes_2017.grt123(volume.array, volume.spacing)
    assert expected is not None
    found = grt123_lungs.find_lungs(volume.array, volume.spacing)
    for lung, truth in zip(found, expected.lungs, strict=True):
        mask = np.zeros(volume.shape, np.uint8)
        runs.paint(lung, 1, mask)
        np.testing.assert_array_equal(mask, truth)
    result = prepared("grt123", volume)
    assert result.crop is not None
    np.testing.assert_array_equal(result.crop.first, expected.first)
    assert_equal_but_for_rounding(result.image.array, expected.image)
    return result


def test_grt123_is_the_winners_preprocessing() -> None:
    volume = chest()
    result = assert_grt123(volume)
    assert (result.values, result.fill) == ("uint8", 170)
    assert result.lungs is not None
    x = [np.argwhere(result.lungs.mask.array == side)[:, 2].mean() for side in (RIGHT, LEFT)]
    assert x[0] < x[1]


@pytest.mark.slow
def test_an_airway_open_at_the_top_is_cut_until_lungs_are_found() -> None:
    volume = chest()
    array = volume.array.copy()
    array[-7:, 40:100, :] = -1000  # from side to side, and down into both lungs
    array[40:-7, 64:76, 66:74] = -1000
    cut = Volume(array, volume.affine)
    expected = recipes_2017.grt123(array, volume.spacing)
    assert expected is not None
    assert expected.cut > 0
    assert_grt123(cut)


def test_lungs_that_never_part_are_one() -> None:
    n = 60
    z, y, x = np.ogrid[:n, :n, :n]
    array = np.full((n, n, n), 40, np.int16)
    array[(z - 30) ** 2 + (y - 30) ** 2 + (x - 30) ** 2 < 20**2] = -850
    volume = Volume(array, affine_of((4.0, 4.0, 4.0)))
    result = assert_grt123(volume)
    assert result.lungs is not None
    assert result.lungs.left_ml == 0
    assert "one-lung" in result.lungs.warnings


def test_the_crop_can_be_undone() -> None:
    volume = chest()
    result = prepared("grt123", volume)
    assert result.crop is not None
    whole = zoom.zoomed_affine(volume, result.crop.shape)
    np.testing.assert_allclose(
        result.image.to_patient([3, 4, 5]), (whole @ [*(np.array(result.crop.first) + [3, 4, 5]), 1])[:3]
    )
    assert all(
        f >= 0 and f + n <= of
        for f, n, of in zip(result.crop.first, result.image.shape, result.crop.shape, strict=True)
    )


def test_slices_that_are_not_square_are_refused() -> None:
    volume = Volume(chest().array[:, :, :-2].copy(), chest().affine)
    with pytest.raises(Refusal, match=r"not-square.*140 x 138"):
        prepared("grt123", volume)


# ---------------------------------------------------------------------------------------------------
# How the slices come
# ---------------------------------------------------------------------------------------------------

PRONE = (-1, 0, 0, 0, -1, 0)
UPSIDE_DOWN = (1, 0, 0, 0, -1, 0)


@pytest.mark.parametrize("orientation", [builders.AXIAL, PRONE, UPSIDE_DOWN])
def test_slices_stay_as_stored_and_go_from_foot_to_head(orientation: Any) -> None:
    """Defect T16: no turn to the patient's axes. The affine is true all the same."""
    stored = builders.distinct(5, 6, 7)
    stored[2, 0, 0] = -2000
    files = builders.ct_files(stored, orientation=orientation)
    slices = dict(files)
    (found,) = builders.read(files).slices.values()
    result = assembly.assemble(found, min_slices=3, to_hu=tutorial.to_hu).decode()
    order = 1 if builders.normal_of(orientation)[2] > 0 else -1
    expected = recipes_2017.hounsfield(stored, [1] * 5, [-1024] * 5)[::order]
    np.testing.assert_array_equal(result.volume.array, expected)
    assert result.first_gap_mm == pytest.approx(1.25)
    turned = builders.decoded(list(slices.items()))
    np.testing.assert_allclose(upright.to_patient_axes(result.volume).affine, turned.volume.affine, atol=1e-9)
    assert result.hu_sha256 == turned.hu_sha256


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A patient with lungs, and one without."""
    folder = tmp_path_factory.mktemp("source")
    phantom = make_phantom(seed=3, spacing_mm=(4.0, 2.5, 2.5), shape=(72, 140, 140))
    tiny.write(folder / "chest", dict(series_files(phantom, name="chest", seed=3)))
    tiny.write(folder / "noise", tiny.series())
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_2017)
def test_a_preset_makes_a_dataset_and_loses_nobody(source: str, tmp_path: Path, name: str) -> None:
    summary = pipeline.run(source, str(tmp_path / "out"), preset=name)
    assert summary.account.counts.total() == 2
    opened = dataset.open_dataset(str(tmp_path / "out"))
    chest_ = opened["chest"]
    read = read_series(f"{source}/chest", config.preset(name))
    expected = prepare.prepare(read, config.preset(name))
    np.testing.assert_array_equal(chest_.load().array, expected.image.array)
    np.testing.assert_allclose(chest_.affine, expected.image.affine, atol=1e-5)
    assert chest_.values == expected.values
    assert chest_.image.fill_value == expected.fill
    assert (chest_.lungs is None) == (expected.lungs is None)
    crop = chest_.record.geometry.crop
    assert crop == (None if expected.crop is None else Crop(expected.crop.first, (288, 350, 350)))
    if name == "grt123":
        row = opened.index.set_index("key").loc["noise"]
        assert (row["status"], row["reason"]) == ("refused", "no-lungs")


# ---------------------------------------------------------------------------------------------------
# A recipe is one file and one line
# ---------------------------------------------------------------------------------------------------

TOY = '''
"""Recipe `toy-2`: every second voxel of a slice."""

from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import ENCODING_SHARE, Memory, Recipe
from dskprep.volume import Volume


def to_hu(stored, slope, intercept, out):
    out[...] = stored + 7


def prepare(native, config, clock):
    volume = native.volume()
    affine = volume.affine.copy()
    affine[:, 1:3] *= 2
    return Prepared(Volume(volume.array[:, ::2, ::2].astype(config.dtype), affine), None, "own", fill=7)


def memory(n_native, n_output, config):
    return Memory(n_native / 4, ENCODING_SHARE * n_native / 4)


RECIPE = Recipe("toy-2", prepare, memory, to_hu)
'''


@pytest.mark.parametrize("name", config.RECIPES)
def test_every_recipe_of_the_settings_has_its_module(name: str) -> None:
    assert recipe(name).name == name
    assert config.PrepConfig(recipe=name).dtype == "".join(config.RECIPES[name].dtypes[:1])
    assert name in config.presets()


def test_the_recipe_in_the_documentation_works_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    (line,) = re.findall(r'`"plain": (Uses\(.*?\)),`', page)
    (module,) = re.findall(r'```python\n("""Recipe `plain`.*?)```', page, re.DOTALL)
    (tmp_path / "plain.py").write_text(module)
    monkeypatch.setattr(recipes_, "__path__", [*recipes_.__path__, str(tmp_path)])
    monkeypatch.setitem(config.RECIPES, "plain", eval(line, vars(config)))
    tiny.write_patients(tmp_path / "in", ["a"])
    settings = config.PrepConfig(recipe="plain", spacing_mm=(2.0, 1.0, 1.0))
    summary = pipeline.run(str(tmp_path / "in"), str(tmp_path / "out"), settings=settings)
    assert summary.account.counts == {"written": 1}
    written = dataset.open_dataset(str(tmp_path / "out"))["a"].load()
    assert written.spacing == (2.0, 1.0, 1.0)
    assert written.array.min() >= -1024


def test_a_new_recipe_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_2.py").write_text(TOY)
    monkeypatch.setattr(recipes_, "__path__", [*recipes_.__path__, str(tmp_path)])
    monkeypatch.setitem(config.RECIPES, "toy-2", config.Uses(("dtype",), ("float32", "uint8")))
    tiny.write_patients(tmp_path / "in", ["a"])
    settings = config.PrepConfig(recipe="toy-2")
    prepare.warm(settings)
    (case,) = choose(str(tmp_path / "in"))
    (prediction,) = predict(case, settings)
    assert prediction.status == "written"
    summary = pipeline.run(str(tmp_path / "in"), str(tmp_path / "out"), settings=settings)
    assert summary.account.counts == {"written": 1}
    written = dataset.open_dataset(str(tmp_path / "out"))["a"]
    np.testing.assert_array_equal(written.load().array, tiny.hu()[:, ::2, ::2] + 1024 + 7)
    assert (written.image.dtype, written.values, written.image.fill_value) == (np.float32, "own", 7)
    with pytest.raises(UsageError, match="lungs means nothing to the recipe 'toy-2', only to default"):
        config.PrepConfig(recipe="toy-2", lungs=False)


# Real CT
# ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_crop(data_folder: Any) -> Volume:
    """Every second pixel and slice of a real chest, as the recipes read it."""
    whole = read_series(str(data_folder.volumes / "lidc_0001"), config.preset("zuidhof")).decode().volume
    x, y, z = np.linalg.norm(whole.affine[:3, :3], axis=1)
    return Volume(whole.array[::2, ::2, ::2].copy(), affine_of((2 * z, 2 * y, 2 * x)))


@pytest.mark.slow
def test_zuidhof_on_real_ct(real_crop: Volume) -> None:
    image = recipes_2017.resample(real_crop.array, real_crop.spacing, (2, 2, 2))
    mask = recipes_2017.segment(image)
    found = prepared("zuidhof", real_crop, spacing_mm=(2, 2, 2))
    assert_equal_but_for_rounding(found.image.array, image)
    np.testing.assert_array_equal(zuidhof.lung_mask(image), mask)


@pytest.mark.slow
def test_grt123_on_real_ct(real_crop: Volume) -> None:
    assert_grt123(real_crop)

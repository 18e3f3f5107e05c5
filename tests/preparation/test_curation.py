"""What is measured for the choice of a cohort is what was planted in synthetic patients."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import tiny
from scipy import ndimage

import dskprep
from dskprep.preparation.curation import Curation, measure
from dskprep.settings import PrepConfig
from dskprep.synthetic.phantom import PADDING_HU, make_phantom
from dskprep.volume import PADDING, Volume

SPACING = (2.5, 1.6, 1.6)


@functools.cache
def patient(seed: int = 1, *, arms_down: bool = False) -> tuple[Volume, Volume]:
    """A whole chest in a field of view of 480 mm, and its true lungs."""
    made = make_phantom(seed=seed, spacing_mm=SPACING, shape=(124, 300, 300), arms_down=arms_down)
    return Volume(np.where(made.volume.array == PADDING_HU, PADDING, made.volume.array), made.volume.affine), made.lungs


def cut(volumes: tuple[Volume, Volume], *box: slice) -> Curation:
    image, lungs = (Volume(np.ascontiguousarray(v.array[box]), v.affine) for v in volumes)
    return measure(image, lungs)


def test_a_whole_chest_is_cut_nowhere() -> None:
    image, lungs = patient()
    before = image.array.copy()
    found = measure(image, lungs)
    assert (found.lungs_cut, found.arms, found.body_cut_share, found.metal_share) == ((), "up", 0.0, 0.0)
    assert np.array_equal(image.array, before), "nothing is changed"


@pytest.mark.parametrize("face", ["feet", "head", "front", "back", "right", "left"])
def test_the_face_at_which_a_lung_is_cut_is_named(face: str) -> None:
    image, lungs = patient()
    axis = {"feet": 0, "head": 0, "front": 1, "back": 1, "right": 2, "left": 2}[face]
    rows = np.flatnonzero(lungs.array.any(axis=tuple(a for a in range(3) if a != axis)))
    quarter = (rows[-1] - rows[0]) // 4
    box = [slice(None)] * 3
    box[axis] = slice(rows[0] + quarter, None) if face in ("feet", "front", "right") else slice(0, rows[-1] - quarter)
    assert cut((image, lungs), *box).lungs_cut == (face,)


def test_a_round_field_of_view_cuts_lungs_at_its_sides() -> None:
    image, lungs = patient()
    y, x = (np.arange(300) - (n - 1) / 2 for n in (300, 300))
    outside = np.hypot(y[:, None], x) * 1.6 > 115
    array = np.where(outside, PADDING, image.array)
    seen = Volume(np.where(outside, 0, lungs.array).astype(np.uint8), lungs.affine)
    found = measure(Volume(array, image.affine), seen)
    assert {"left", "right"} <= set(found.lungs_cut or ())
    assert found.body_cut_share > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_arms_beside_the_chest_are_seen(seed: int) -> None:
    assert measure(*patient(seed)).arms == "up"
    assert measure(*patient(seed, arms_down=True)).arms == "down"


def test_where_the_field_of_view_is_too_narrow_arms_are_unknown() -> None:
    _, lungs = patient(arms_down=True)
    columns = np.flatnonzero(lungs.array.any(axis=(0, 1)))
    found = cut(patient(arms_down=True), slice(None), slice(None), slice(columns[0] - 4, columns[-1] + 4))
    assert (found.arms, found.lungs_cut) == ("unknown", ())
    assert found.body_cut_share > 0.9
    assert measure(patient()[0], None).arms == "unknown"


def test_of_the_tips_of_lungs_above_an_abdomen_nothing_is_said_of_arms() -> None:
    _, lungs = patient()
    lowest = int(np.flatnonzero(lungs.array.any(axis=(1, 2)))[0])
    found = cut(patient(), slice(0, lowest + 9))
    assert (found.lungs_cut, found.arms) == (("head",), "unknown")


def test_metal_counts_in_the_body_and_not_outside() -> None:
    image, lungs = patient()
    array = image.array.copy()
    z, y, x = np.argwhere(image.array[60] > 0).mean(axis=0).astype(int)[[0, 0, 1]] * (0, 1, 1) + (60, 0, 0)
    ball = np.zeros(array.shape, np.bool_)
    ball[z - 4 : z + 5, y - 6 : y + 7, x - 6 : x + 7] = True
    array[ball] = 3071
    array[:, -40:-36, 100:200] = 3071  # far behind the back
    body = np.count_nonzero(ndimage.binary_opening(image.array > -300, iterations=3))
    share = measure(Volume(array, image.affine), lungs).metal_share
    assert share == pytest.approx(np.count_nonzero(ball) / body, rel=0.2)


@pytest.mark.parametrize("sd", [5, 10, 20, 40])
def test_noise_is_what_was_planted(sd: float) -> None:
    image, lungs = patient()
    smooth = ndimage.gaussian_filter(image.array[30:80].astype(np.float32), 1.5)
    noise = np.random.default_rng(sd).normal(0, sd, smooth.shape)
    noisy = Volume(np.rint(smooth + noise).clip(-1024, 3071).astype(np.int16), image.affine)
    found = measure(noisy, Volume(lungs.array[30:80], lungs.affine)).noise_hu
    assert found == pytest.approx(sd, rel=0.2, abs=1.5)


def test_an_image_of_one_row_has_no_noise_that_could_be_measured() -> None:
    assert cut(patient(), slice(None), slice(150, 151)).noise_hu is None


def moved(mm: tuple[float, float], *, above_mm: float = 140, up_to_mm: float = 1e9) -> Curation:
    """Measure a patient whose slices from one height to another are shifted by whole voxels, towards (y, x)."""
    image, lungs = (v.array.copy() for v in patient())
    part = slice(round(above_mm / SPACING[0]), round(min(up_to_mm, 310) / SPACING[0]))
    for array in (image, lungs):
        array[part] = np.roll(array[part], [round(a / s) for a, s in zip(mm, SPACING[1:], strict=True)], (1, 2))
    return measure(Volume(image, patient()[0].affine), Volume(lungs, patient()[1].affine))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_patient_who_lies_still_shows_no_step(seed: int) -> None:
    motion = measure(*patient(seed)).motion_step_mm
    assert motion is not None
    assert motion < 1


@pytest.mark.parametrize("mm", [(3.2, 0), (-4.8, 0), (8, 0), (0, 3.2), (0, -4.8), (0, 8), (4.8, -4.8)])
def test_a_step_is_as_long_as_it_was_planted(mm: tuple[float, float]) -> None:
    assert moved(mm).motion_step_mm == pytest.approx(np.hypot(*mm), rel=0.2)


def test_a_block_of_slices_that_moved_and_came_back_is_a_step() -> None:
    assert moved((4.8, 0), above_mm=130, up_to_mm=160).motion_step_mm == pytest.approx(4.8, rel=0.25)


@pytest.mark.parametrize("is_moving", [False, True])
def test_noise_and_thick_slices_change_no_step(is_moving: bool) -> None:
    image, lungs = patient()
    array = image.array.copy()
    array[56:] = np.roll(array[56:], 3 * is_moving, 1)
    noisy = array + np.random.default_rng(1).normal(0, 60, array.shape)
    thick = np.repeat((noisy[::2] + noisy[1::2]) / 2, 2, axis=0)
    alike = [noisy, thick, ndimage.gaussian_filter(noisy, (0, 0.8, 0.8))]
    plain = measure(Volume(array, image.affine), lungs).motion_step_mm
    for other in alike:
        hu = np.rint(other).clip(-1024, 3071).astype(np.int16)
        assert measure(Volume(hu, image.affine), lungs).motion_step_mm == pytest.approx(plain, rel=0.2, abs=0.3)


def test_a_breath_that_lifts_the_front_wall_alone_stands_out() -> None:
    image, lungs = patient()
    rows = np.arange(300)
    inside = np.flatnonzero(lungs.array.any(axis=(0, 2)))
    lifted = rows + np.rint(5 * np.clip((inside[-1] - rows) / (inside[-1] - inside[0]), 0, 1)).astype(int)
    volumes = []
    for volume in (image, lungs):
        array = volume.array.copy()
        array[56:] = array[56:, np.minimum(lifted, 299)]
        volumes.append(Volume(array, volume.affine))
    still, breathing = measure(image, lungs).motion_step_mm, measure(*volumes).motion_step_mm
    assert still is not None
    assert breathing is not None
    assert breathing > 2.5 > 2 * still


def test_where_little_of_the_lungs_is_seen_nothing_is_said_of_motion() -> None:
    assert measure(patient()[0], None).motion_step_mm is None
    assert cut(patient(), slice(50, 74)).motion_step_mm is None
    assert cut(patient(), slice(None), slice(150, 151)).motion_step_mm is None
    assert cut(patient(), slice(40, 90)).motion_step_mm is not None


@pytest.mark.parametrize("axis", [None, 1, 2])
def test_an_image_without_edges_or_with_edges_of_one_direction_has_no_wild_step(axis: int | None) -> None:
    image, lungs = patient()
    hu = np.full(image.shape, 40, np.int16)
    if axis:
        hu += (10 * np.sin(np.arange(300) / 9)).astype(np.int16).reshape([1, -1, 1] if axis == 1 else [1, 1, -1])
    hu[60:] += 30
    assert measure(Volume(hu, image.affine), lungs).motion_step_mm == pytest.approx(0, abs=30)


def test_what_was_measured_is_in_record_and_index(tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p"])
    target = tmp_path / "out"
    dskprep.run(source, target, settings=PrepConfig(check_hu=False))
    dataset = dskprep.open_dataset(target)
    found = dataset["p"].record.curation
    assert found is not None
    assert (found.lungs_cut, found.arms) == (None, "unknown")
    row = dataset.index.set_index("key").loc["p"]
    assert (row["arms"], row["body_cut_share"], row["metal_share"]) == ("unknown", found.body_cut_share, 0.0)
    assert row["lungs_cut"] is None
    assert found.motion_step_mm is None
    assert np.isnan(row["motion_step_mm"])
    assert len(dataset.where(lambda row: row["arms"] == "unknown")) == 1


def test_a_recipe_of_2017_measures_nothing(tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p"])
    dskprep.run(source, tmp_path / "out", settings=PrepConfig(recipe="luo-2017", check_hu=False))
    (row,) = dskprep.open_dataset(tmp_path / "out").index.to_dict("records")
    assert (row["status"], row["arms"]) == ("written", None)

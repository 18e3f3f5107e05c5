"""A user's own steps and lungs: they are applied, and what goes wrong in them costs one patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import own_steps
import pytest
import tiny

from dskprep import settings as config
from dskprep.dataset.record import Record
from dskprep.errors import UsageError
from dskprep.pipeline import run
from dskprep.preparation import body, prepare, user_steps
from dskprep.reading import dataset
from dskprep.settings import PrepConfig
from dskprep.source import cases
from dskprep.volume import AIR_HU, PADDING, Volume
from dskprep.worker import patient

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]


@pytest.fixture
def image() -> Volume:
    array = tiny.hu()
    array[0] = PADDING
    return Volume(array, AFFINE)


def test_steps_are_applied_in_their_order(image: Volume) -> None:
    settings = PrepConfig(lungs=False, steps=("own_steps:windowed", "own_steps:doubled"))
    plain = prepare.prepare(image, PrepConfig(lungs=False))
    found = prepare.prepare(image, settings)
    np.testing.assert_array_equal(found.image.array, 2 * own_steps.windowed(plain.image).array)
    assert (found.image.array.dtype, found.values, found.fill) == (np.float32, "own", 0)


def test_a_step_that_keeps_int16_keeps_hu(image: Volume) -> None:
    found = prepare.prepare(image, PrepConfig(lungs=False, steps=("own_steps:lower_half", "own_steps:doubled")))
    assert (found.image.shape, found.values) == ((6, 24, 24), "HU")
    assert (found.image.array[0] == 2 * AIR_HU).all()  # what was never measured comes to steps as air
    np.testing.assert_array_equal(found.image.array[1:], 2 * image.array[1:6])


def test_lungs_of_ones_own_are_judged_and_grown(image: Volume) -> None:
    plain = prepare.prepare(image, PrepConfig(lungs="own_steps:bright"))
    grown = prepare.prepare(image, PrepConfig(lungs="own_steps:bright", lung_margin_mm=1))
    assert plain.lungs is not None
    assert grown.lungs is not None
    np.testing.assert_array_equal(plain.lungs.mask.array, own_steps.bright(image).array)
    assert plain.lungs.mask.array.dtype == np.uint8
    assert plain.lungs.right_ml == np.count_nonzero(plain.lungs.mask.array == 1) / 1000
    doubts = {"lung-volume-unlikely", "lungs-touch-border", "lungs-in-pieces"}
    assert set(plain.lungs.warnings) - {"lungs-disagree"} == doubts
    assert np.count_nonzero(grown.lungs.mask.array) > np.count_nonzero(plain.lungs.mask.array)
    assert grown.lungs.right_ml == plain.lungs.right_ml


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"steps": ("own_steps:broken",)}, "own_steps:broken: ValueError: not today"),
        ({"steps": ("own_steps:panicking",)}, "own_steps:panicking: Panic: index out of bounds"),
        ({"steps": ("own_steps:nothing",)}, "expected a Volume of int16.*found a value of type NoneType"),
        ({"steps": ("own_steps:unset",)}, "own_steps:unset: expected finite numbers, found nan to nan"),
        ({"steps": ("own_steps:endless",)}, "own_steps:endless: expected finite numbers, found inf to inf"),
        ({"lungs": "own_steps:bright", "steps": ("own_steps:lower_half",)}, "expected the grid of its input"),
        ({"lungs": "own_steps:broken"}, "not today"),
        ({"lungs": "own_steps:windowed"}, "expected a mask.*float32"),
        ({"lungs": "own_steps:lower_half"}, r"expected a mask, a Volume of \(12, 24, 24\)"),
        ({"lungs": "own_steps:wrong_labels"}, "expected a mask of 0 to 3, found 7"),
    ],
)
def test_what_goes_wrong_says_where(image: Volume, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(user_steps.StepFailed, match=problem):
        prepare.prepare(image, PrepConfig(**{"lungs": False, **settings}))


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nowhere_to_be_found:step", "No module named 'nowhere_to_be_found'"),
        ("own_steps:absent", "has no attribute 'absent'"),
        ("own_steps:NUMBER", "expected a function, found int"),
    ],
)
def test_a_path_that_cannot_be_imported_stops_the_run_before_it_starts(tmp_path: Path, path: str, problem: str) -> None:
    tiny.write_patients(tmp_path / "in", ["a"])
    with pytest.raises(UsageError, match=problem):
        run.run(str(tmp_path / "in"), str(tmp_path / "out"), settings=PrepConfig(steps=(path,)))
    assert not (tmp_path / "out").exists()


def record_of(tmp_path: Path, settings: PrepConfig) -> Record:
    tiny.write_patients(tmp_path / "in", ["a"])
    (case,) = cases.cases(str(tmp_path / "in"))
    job = patient.Job(case)
    outcome = patient.prepare_patient(job, target=str(tmp_path / "out"), config=settings, memory_bytes=2 * 10**9)
    return outcome.records[-1]


def test_a_documented_step_keeps_its_name_though_its_module_moved(tmp_path: Path) -> None:
    path = tmp_path / "prep.toml"
    path.write_text('steps = ["dskprep.body:only"]\n')
    settings = config.read_config(path)
    assert settings.digest() == "47d98237517d8044"  # as datasets have it that were made before
    assert user_steps.load("dskprep.body:only") is body.only
    tiny.write_patients(tmp_path / "in", ["a"])
    for _ in range(2):  # the second run opens the dataset of the first
        run.run(str(tmp_path / "in"), str(tmp_path / "out"), settings=settings)
    opened = dataset.open_dataset(str(tmp_path / "out"))
    assert opened.settings["steps"] == ["dskprep.body:only"]
    assert opened["a"].values == "HU"


def test_ctrl_c_within_a_step_is_ctrl_c(image: Volume) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(image, PrepConfig(lungs=False, steps=("own_steps:interrupted",)))


def test_a_step_that_raises_costs_its_patient_only(tmp_path: Path) -> None:
    record = record_of(tmp_path, PrepConfig(steps=("own_steps:broken",)))
    assert (record.status, record.reason) == ("failed", "StepFailed")
    assert record.message == "own_steps:broken: ValueError: not today"
    assert "raise ValueError" in record.traceback


def test_a_step_may_refuse_a_patient(tmp_path: Path) -> None:
    record = record_of(tmp_path, PrepConfig(steps=("own_steps:choosy",)))
    assert (record.status, record.reason) == ("refused", "not-ct")


def test_a_run_with_settings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prep.toml"
    path.write_text('lungs = false\nsteps = ["own_steps:windowed"]\n')
    tiny.write_patients(tmp_path / "in", ["a", "b"])
    run.run(str(tmp_path / "in"), str(tmp_path / "out"), settings=config.read_config(path))
    written = dataset.open_dataset(str(tmp_path / "out"))["b"]
    np.testing.assert_allclose(written.load().array, np.clip((tiny.hu(1) + 1000) / 2000, 0, 1), atol=1e-6)
    assert written.values == "own"
    with pytest.raises(UsageError, match="expected HU"):
        written.normalized()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_stored_normalized_is_not_normalized_twice(tmp_path: Path, dtype: str) -> None:
    tiny.write_patients(tmp_path / "in", ["a"])
    settings = PrepConfig(recipe="luo-2017", dtype=dtype)
    run.run(str(tmp_path / "in"), str(tmp_path / "out"), settings=settings)
    written = dataset.open_dataset(str(tmp_path / "out"))["a"]
    assert (written.image.dtype, written.values, written.lungs) == (np.dtype(dtype), "normalized", None)
    np.testing.assert_array_equal(written.normalized().array, written.load().array)
    expected = np.clip((tiny.hu() + 1000) / 1400, 0, 1) - 0.25
    np.testing.assert_allclose(written.load().array, expected, atol=1e-6)

"""Settings are checked when they are made, and their digest says whether two are the same."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from dskprep import config
from dskprep.config import PrepConfig
from dskprep.errors import UsageError


def test_the_default_preset_is_the_default() -> None:
    assert config.preset("default") == PrepConfig()
    assert "default" in config.presets()


@pytest.mark.parametrize("name", config.presets())
def test_every_preset_can_be_read(name: str) -> None:
    assert isinstance(config.preset(name), PrepConfig)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'nope'.*default"):
        config.preset("nope")


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prep.toml"
    path.write_text("spacing_mm = [2, 1, 1.5]\nlungs = false\n")
    assert config.read_config(path) == PrepConfig(spacing_mm=(2.0, 1.0, 1.5), lungs=False)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"spacing = [1, 1, 1]", "did you mean 'spacing_mm'"),
        (b"colour = 3", "unknown setting 'colour'; known are spacing_mm"),
        (b"spacing_mm = [1, 1]", "three numbers"),
        (b"spacing_mm = 1", "three numbers"),
        (b'spacing_mm = ["1", 1, 1]', "three numbers"),
        (b"spacing_mm = [true, 1, 1]", "three numbers"),
        (b"spacing_mm = [nan, 1, 1]", "three numbers"),
        (b"spacing_mm = [0, 1, 1]", "from 0.1 to 10"),
        (b"lungs = 1", "true or false"),
        (b"smooth = 'yes'", "true or false"),
        (b"lung_margin_mm = nan", "from 0 to 100"),
        (b"lung_margin_mm = -1", "from 0 to 100"),
        (b"min_slices = 1", "2 or more"),
        (b"min_slices = 10.0", "whole number"),
        (b"chunk = 8", "from 16 to 256"),
        (b"zstd_level = 0", "from 1 to 9"),
        (b"lungs = ", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_where(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "prep.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=problem) as caught:
        config.read_config(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        config.read_config(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        config.read_config(tmp_path)


def test_the_digest_is_of_the_meaning_not_of_the_writing() -> None:
    assert PrepConfig(spacing_mm=[1, 1, 1], lung_margin_mm=0).digest() == PrepConfig().digest()  # type: ignore[arg-type]
    assert config.from_dict(PrepConfig().as_dict(), "here").digest() == PrepConfig().digest()


OTHERS: list[dict[str, Any]] = [
    {"spacing_mm": (1.0, 1.0, 1.1)},
    {"smooth": False},
    {"lungs": False},
    {"lung_margin_mm": 1.0},
    {"min_slices": 11},
    {"on_gap": "interpolate"},
    {"max_gap_slices": 2},
    {"chunk": 32},
    {"zstd_level": 2},
]


def test_every_setting_counts_in_the_digest() -> None:
    assert {name for other in OTHERS for name in other} == set(PrepConfig().as_dict())
    digests = {PrepConfig(**other).digest() for other in OTHERS} | {PrepConfig().digest()}
    assert len(digests) == len(OTHERS) + 1


def test_a_gap_is_filled_only_where_asked_for() -> None:
    assert PrepConfig(max_gap_slices=3).fillable_slices == 0
    assert PrepConfig(on_gap="interpolate").fillable_slices == 1
    assert PrepConfig(on_gap="interpolate", max_gap_slices=3).fillable_slices == 3


@pytest.mark.parametrize("wrong", [{"on_gap": "skip"}, {"max_gap_slices": 0}, {"max_gap_slices": 6}])
def test_other_ways_with_a_gap_are_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"'refuse' or 'interpolate'|from 1 to 5"):
        PrepConfig(**wrong)


def test_settings_travel_between_processes_and_do_not_change() -> None:
    settings = PrepConfig(spacing_mm=(2, 1, 1))
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert all(math.isfinite(s) for s in settings.spacing_mm)
    with pytest.raises(FrozenInstanceError):
        settings.chunk = 3  # type: ignore[misc]

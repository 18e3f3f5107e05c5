"""Settings are checked when they are made, and their digest says whether two are the same."""

from __future__ import annotations

import math
import os
import pickle
import tomllib
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from dskprep import settings as config
from dskprep.errors import UsageError
from dskprep.settings import PrepConfig


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
        (b"colour = 3", r"unknown setting 'colour' \(known are recipe, spacing_mm"),
        (b"spacing_mm = [1, 1]", "three numbers"),
        (b"ome_zarr = 0.6", "ome_zarr must be '0.5' or '0.6', in quotes, not 0.6"),
        (b"levels = 9", "levels must be a whole number from 1 to 8, not 9"),
        (b"codec = 'lz4'", "codec must be 'blosc-zstd' or 'zstd', not 'lz4'"),
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
        (b"recipe = 'zuidhoff'", "recipe must be one of default, zuidhof, luo-2017, grt123"),
        (b"recipe = 'zuidhof'\nsmooth = true", "smooth means nothing to the recipe 'zuidhof', only to default"),
        (b"recipe = 'grt123'\nspacing_mm = [2, 2, 2]", "spacing_mm means nothing to the recipe 'grt123'"),
        (b"dtype = 'float32'", "dtype means nothing to the recipe 'default', only to zuidhof, luo-2017"),
        (b"recipe = 'luo-2017'\ndtype = 'int16'", "dtype must be one of float64, float32"),
        (b"recipe = 'zuidhof'\nfill_lungs = 1", "fill_lungs must be true or false"),
        (b"lungs = 'mask.py'", "import path of a function"),
        (b"steps = 'a:b'", "a list of import paths"),
        (b"steps = ['a.b']", "a list of import paths"),
        (b"\xff\xfe", "not valid TOML"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_where(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "prep.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=problem) as caught:
        config.read_config(path)
    assert str(caught.value).startswith(str(path))


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "prep.toml"
    path.write_text(
        "spacing = 1\nmin_slice = 5\nspacing_mm = [1, 1, -1]\nchunk = 5\nfill_lungs = false\n[select]\nworst = 1\n"
    )
    with pytest.raises(UsageError) as caught:
        config.read_config(path)
    where, _, problems = str(caught.value).partition(": ")
    assert where == str(path)
    assert problems.split("; ") == [
        "unknown setting 'spacing' (did you mean 'spacing_mm'?)",
        "unknown setting 'min_slice' (did you mean 'min_slices'?)",
        "spacing_mm must be three numbers (z, y, x) from 0.1 to 10, not [1, 1, -1]",
        "fill_lungs means nothing to the recipe 'default', only to zuidhof",
        "leave it out",
        "chunk must be a whole number from 16 to 256, not 5",
        "select must be a table with per, prefer and keep, found the key 'worst'",
    ]


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
    {"lungs": "my.masks:lungs"},
    {"lung_margin_mm": 1.0},
    {"steps": ("my.steps:denoise",)},
    {"min_slices": 11},
    {"stacks": "all"},
    {"check_hu": False},
    {"on_gap": "interpolate"},
    {"max_gap_slices": 2},
    {"chunk": 32},
    {"zstd_level": 2},
    {"codec": "zstd"},
    {"levels": 3},
    {"ome_zarr": "0.6"},
    {"select": {"prefer": ["thinnest"]}},
    {"recipe": "luo-2017"},
    {"recipe": "grt123"},
    {"recipe": "zuidhof"},
    {"recipe": "zuidhof", "fill_lungs": False},
    {"recipe": "zuidhof", "dtype": "float32"},
]


def test_every_setting_that_changes_voxels_counts_in_the_digest() -> None:
    names = {field.name for field in fields(PrepConfig)} - set(config.MEANS)
    assert {name for other in OTHERS for name in other} == names
    digests = {PrepConfig(**other).digest() for other in OTHERS} | {PrepConfig().digest()}
    assert len(digests) == len(OTHERS) + 1


def test_datasets_from_before_a_setting_go_on_without_it() -> None:
    assert PrepConfig().digest() == "906e1665aba16536"


def test_with_what_a_mask_is_found_is_no_part_of_the_dataset() -> None:
    plain = PrepConfig(lungs="my.masks:lungs")
    slots = PrepConfig(lungs="my.masks:lungs", mask_memory="3GiB", mask_slots=2)
    assert slots.digest() == plain.digest()
    assert slots.as_dict() == plain.as_dict()
    assert (slots.mask_bytes, slots.slots_bytes) == (3 * 2**30, 6 * 2**30)


@pytest.mark.parametrize(
    ("size", "n_bytes"), [("1.5GiB", 3 * 2**29), ("500 MiB", 500 * 2**20), ("2GB", 2 * 10**9), ("7MB", 7 * 10**6)]
)
def test_a_size_has_a_unit(size: str, n_bytes: int) -> None:
    assert PrepConfig(lungs="my.masks:lungs", mask_memory=size).mask_bytes == n_bytes


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"mask_memory": "3"}, "mask_memory must be a size such as"),
        ({"mask_memory": "-3GiB"}, "mask_memory must be a size such as"),
        ({"mask_memory": 3}, "mask_memory must be a size such as"),
        ({"mask_memory": "9" * 400 + "GiB"}, "mask_memory must be a size such as"),
        ({"mask_slots": -1, "mask_memory": "3GiB"}, "mask_slots must be a whole number from 0 to 64"),
        ({"mask_slots": True, "mask_memory": "3GiB"}, "mask_slots must be a whole number"),
        ({"mask_slots": 1}, "mask_slots needs mask_memory, the memory of one of these processes"),
        ({"lungs": True, "mask_memory": "3GiB"}, "mean nothing unless lungs names a function; leave them out"),
        ({"lungs": False, "mask_slots": 1}, "mean nothing unless lungs names a function"),
        ({"recipe": "zuidhof", "lungs": True, "mask_slots": 1}, "mask_slots means nothing to the recipe 'zuidhof'"),
    ],
)
def test_slots_and_memory_that_cannot_be_are_errors(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        PrepConfig(**{"lungs": "my.masks:lungs", **wrong})


def test_a_gap_is_filled_only_where_asked_for() -> None:
    assert PrepConfig(max_gap_slices=3).fillable_slices == 0
    assert PrepConfig(on_gap="interpolate").fillable_slices == 1
    assert PrepConfig(on_gap="interpolate", max_gap_slices=3).fillable_slices == 3


@pytest.mark.parametrize("wrong", [{"on_gap": "skip"}, {"max_gap_slices": 0}, {"max_gap_slices": 6}])
def test_other_ways_with_a_gap_are_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"'refuse' or 'interpolate'|from 1 to 5"):
        PrepConfig(**wrong)


@pytest.mark.parametrize("name", config.presets())
def test_a_preset_states_the_settings_that_its_recipe_uses_and_no_others(name: str) -> None:
    settings = config.preset(name)
    assert settings.recipe == name
    path = Path(config.__file__).parent / "presets" / f"{name}.toml"
    assert set(tomllib.loads(path.read_text())) == set(settings.as_dict())


def test_a_setting_that_a_recipe_does_not_use_is_not_accepted() -> None:
    with pytest.raises(UsageError, match="lungs means nothing to the recipe 'luo-2017'"):
        PrepConfig(recipe="luo-2017", lungs=False)


def test_a_recipe_stores_its_own_type_unless_told_otherwise() -> None:
    assert PrepConfig(recipe="luo-2017").dtype == "float64"
    assert PrepConfig(recipe="luo-2017") == PrepConfig(recipe="luo-2017", dtype="float64")
    assert PrepConfig(recipe="zuidhof").dtype == "int16"


def test_settings_travel_between_processes_and_do_not_change() -> None:
    settings = PrepConfig(spacing_mm=(2, 1, 1))
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert all(math.isfinite(s) for s in settings.spacing_mm)
    with pytest.raises(FrozenInstanceError):
        settings.chunk = 3  # type: ignore[misc]


def test_a_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    (tmp_path / "prep.toml").write_bytes("chunk = 32\r\n".encode("utf-8-sig"))
    assert config.read_config(tmp_path / "prep.toml").chunk == 32


@pytest.mark.parametrize("content", [b"#" + b"\n" * (1 << 20), b"steps = " + b"[" * 100_000])
def test_a_file_without_an_end_or_of_endless_brackets_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prep.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"expected settings of at most|not valid TOML"):
        config.read_config(tmp_path / "prep.toml")


def test_settings_may_come_from_a_pipe() -> None:
    """As in bash, by --config <(...)."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as file:
        file.write("chunk = 32\n")
    try:
        assert config.read_config(f"/dev/fd/{reader}").chunk == 32
    finally:
        os.close(reader)

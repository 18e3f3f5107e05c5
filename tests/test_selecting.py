"""The table `[select]`: what is a rule, and what a rule prefers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dskprep.errors import UsageError
from dskprep.selecting import Select
from dskprep.settings import PrepConfig, from_dict, read_config

TABLE = """
min_slices = 40
[select]
per = "patient"
prefer = ["thickness<=1.5", "kernel:soft", "most-slices"]
keep = 2
"""


def test_the_table_is_read_and_comes_back_from_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "prep.toml"
    path.write_text(TABLE)
    config = read_config(path)
    assert config.select == Select("patient", ("thickness<=1.5", "kernel:soft", "most-slices"), 2)
    assert from_dict(config.as_dict(), "dataset.json") == config


def test_datasets_without_it_go_on_and_others_differ() -> None:
    assert "select" not in PrepConfig().as_dict()
    assert from_dict({"select": {}}, "prep.toml") == PrepConfig()
    one, other = ({"prefer": [rule]} for rule in ("thinnest", "most-slices"))
    assert len({PrepConfig(select=select).digest() for select in (None, one, other)}) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prefer": []}, "select.prefer must be a list of rules, one or more"),
        ({"prefer": "thinnest"}, "select.prefer must be a list"),
        ({"prefer": ["thinest"]}, "found 'thinest'"),
        ({"prefer": ["kernel:smooth"]}, "kernel:soft|sharp|unknown"),
        ({"prefer": ["thickness=1"]}, "found 'thickness=1'"),
        ({"prefer": ["mAs<=40"]}, "found 'mAs<=40'"),
        ({"prefer": [3]}, "found 3"),
        ({"prefer": ["thinnest"], "per": "series"}, "select.per must be 'study' or 'patient', not 'series'"),
        ({"prefer": ["thinnest"], "keep": 0}, "select.keep must be a whole number, 1 or more, not 0"),
        ({"prefer": ["thinnest"], "keep": True}, "select.keep must be"),
        ({"prefers": ["thinnest"]}, "found the key 'prefers'"),
        ("thinnest", "select must be a table with per, prefer and keep, found 'thinnest'"),
    ],
)
def test_what_is_no_rule_is_an_error(values: Any, said: str) -> None:
    with pytest.raises(UsageError) as error:
        from_dict({"select": values}, "prep.toml")
    assert said in str(error.value)
    assert str(error.value).startswith("prep.toml: ")


@pytest.mark.parametrize(
    ("rule", "best", "worst"),
    [
        ("thickness<=1.5", {"slice_thickness_mm": "1.5"}, {"slice_thickness_mm": "2"}),
        ("thickness<=1.5", {"slice_thickness_mm": "000.125E+01"}, {"slice_thickness_mm": "0"}),  # 0 mm says nothing
        ("thickness<=1.5", {"slice_thickness_mm": "1"}, {"slice_thickness_mm": "thin"}),
        ("length>=250", {"length_mm": "250.0"}, {"length_mm": "249.9"}),
        ("length>=250", {"length_mm": "300"}, {}),
        ("thickness >= 1", {"slice_thickness_mm": "1"}, {}),
        ("slices>100", {"slices": "101"}, {"slices": "100"}),
        ("kvp<120", {"kvp": "100"}, {"kvp": "120"}),
        ("diameter<=400", {"reconstruction_diameter_mm": "360"}, {"reconstruction_diameter_mm": "500"}),
        ("kernel:soft", {"kernel_class": "soft"}, {"kernel_class": "sharp"}),
        ("contrast:no", {"contrast": "no"}, {"contrast": "unknown"}),
        ("pet-ct:no", {"pet_ct": "no"}, {}),
        ("most-slices", {"slices": "9"}, {"slices": "8"}),
        ("fewest-slices", {"slices": "8"}, {"slices": "9"}),
        ("thinnest", {"slice_thickness_mm": "0.9"}, {"slice_thickness_mm": "1"}),
        ("thinnest", {"slice_thickness_mm": "10"}, {}),
    ],
)
def test_what_a_rule_prefers(rule: str, best: dict[str, str], worst: dict[str, str]) -> None:
    select = Select(prefer=(rule,))
    assert select.scores(best) > select.scores(worst)
    assert select.decided_by(select.scores(best), select.scores(worst)) == rule
    assert select.decided_by(select.scores(worst), select.scores(worst)) == ""


def test_a_later_rule_counts_only_between_equals() -> None:
    select = Select(prefer=("thickness<=1.5", "most-slices"))
    thin, long = {"slice_thickness_mm": "1", "slices": "50"}, {"slice_thickness_mm": "5", "slices": "500"}
    assert select.scores(thin) > select.scores(long)

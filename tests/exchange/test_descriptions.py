"""An export describes what its volumes have: their spacing, their axes and their values, and not what was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny

import dskprep
from dskprep.settings import PrepConfig

pytest.importorskip("nibabel", reason="needs the extra exchange")


def described(target: Path, tmp_path: Path, kind: str) -> str:
    out = tmp_path / kind
    dskprep.export(kind, target, out, **({} if kind == "croissant" else {"labels": ["heart"]}))
    name = {"croissant": "croissant.json", "nnunet": "dataset.json", "monai": "datalist.json"}[kind]
    return str(json.loads((out / name).read_text())["description"])


def dataset(tmp_path: Path, *series: dict[str, bytes], **how: Any) -> Path:
    for i, files in enumerate(series):
        tiny.write(tmp_path / f"in/p{i}", files)
    dskprep.run(tmp_path / "in", tmp_path / "out", **how)
    opened = dskprep.open_dataset(tmp_path / "out")
    for key in opened:
        heart = np.zeros(opened[key].shape, np.uint8)
        heart[4:8, 4:9, 4:9] = 1
        (tmp_path / "labels" / key).mkdir(parents=True)
        dskprep.to_nifti(dskprep.Volume(heart, opened[key].affine)).to_filename(
            tmp_path / "labels" / key / "heart.nii.gz"
        )
    dskprep.annotate(tmp_path / "out", tmp_path / "labels")
    return tmp_path / "out"


def turned(degrees: float) -> list[float]:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return [c, s, 0, -s, c, 0]


PLAIN = PrepConfig(check_hu=False, chunk=16, lungs=False)


@pytest.mark.parametrize("kind", ["croissant", "nnunet", "monai"])
def test_upright_volumes_of_one_spacing(tmp_path: Path, kind: str) -> None:
    said = described(dataset(tmp_path, tiny.series(0), tiny.series(1), settings=PLAIN), tmp_path, kind)
    assert "upright in the patient's axes" in said
    assert "1 x 1 x 1 mm (z, y, x)" in said
    assert "values are HU" in said
    assert ("keep it" in said) == (kind == "nnunet")
    assert "oblique" not in said


@pytest.mark.parametrize("kind", ["croissant", "nnunet", "monai"])
def test_oblique_volumes_are_counted(tmp_path: Path, kind: str) -> None:
    target = dataset(tmp_path, tiny.series(0), tiny.series(1, ImageOrientationPatient=turned(11.0)), settings=PLAIN)
    said = described(target, tmp_path, kind)
    assert "1 volume oblique (see affine)" in said
    assert "upright" not in said
    if kind == "croissant":
        assert said in (tmp_path / kind / "README.md").read_text()


@pytest.mark.parametrize("kind", ["croissant", "nnunet", "monai"])
def test_spacings_that_differ_and_values_that_are_no_hu(tmp_path: Path, kind: str) -> None:
    series = [tiny.series(i, z_mm=z_mm, n=14) for i, z_mm in enumerate((2.4, 2.3))]
    target = dataset(tmp_path, *series, settings=PrepConfig(recipe="luo-2017", check_hu=False))
    opened = dskprep.open_dataset(target)
    low, high = sorted(opened[key].spacing[0] for key in opened)
    assert high - low > 0.001
    said = described(target, tmp_path, kind)
    assert f"{low:.4g} to {high:.4g} x " in said
    assert "normalized" in said
    assert "keep it" not in said
    assert "1 x 1 x 1 mm" not in said


def test_whole_numbers_are_integers_beside_what_was_refused(tmp_path: Path) -> None:
    """In a table with rows that lack them, pandas makes them floats."""
    target = dataset(tmp_path, tiny.series(0), {"notes.txt": b"no scan"}, settings=PLAIN)
    described(target, tmp_path, "croissant")
    content = json.loads((tmp_path / "croissant/croissant.json").read_text())
    kinds = {field["name"]: field["dataType"] for field in content["recordSet"][0]["field"]}
    whole = ("n_z", "n_y", "n_x", "source_slices", "source_rows", "source_columns", "bytes_written")
    assert {kinds[name] for name in whole} == {"sc:Integer"}
    assert kinds["spacing_z_mm"] == "sc:Float"
    table = pd.read_parquet(tmp_path / "croissant/index.parquet")
    assert table["n_z"].to_list() == [tiny.N_SLICES]
    assert {table[name].dtype.kind for name in whole} == {"i"}

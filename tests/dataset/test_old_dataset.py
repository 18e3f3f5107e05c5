"""A dataset that an earlier version wrote opens, resumes, verifies and is made again with the same bytes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny

import dskprep
from dskprep.dataset import index, store

ARCHIVE = Path(__file__).parents[1] / "old" / "dataset-b59048c.tar.xz"
"""Made by tests/old/write_dataset.py."""

WRITTEN = ["a", "b", "two-series", "two-series+aefbe0637184"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_it_opens_and_its_volumes_are_read(old: Path) -> None:
    dataset = dskprep.open_dataset(old / "out")
    assert list(dataset) == WRITTEN
    volume = dataset["a"]
    assert volume.load().shape == tiny.hu().shape
    assert volume.lungs is not None
    assert not volume.lungs[...].any()
    record = volume.record
    assert (record.source.slices, record.lungs.right_ml, record.values) == (12, 0.0, "HU")
    assert record.warnings == ("lungs-not-found",)
    assert len(record.hu_sha256) == 64
    np.testing.assert_allclose(volume.affine[:3, 3], [-100.123457, -50.5, 10.25])
    assert dataset["two-series"].record.further_series == ("written/two-series+aefbe0637184",)


def kept(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What is in `after` of the keys of `before`, level by level."""
    return {k: kept(after[k], v) if isinstance(v, dict) else after.get(k) for k, v in before.items() if k in after}


def test_every_record_says_the_same_when_it_is_read_and_written_again(old: Path) -> None:
    names = list(store.record_names(str(old / "out")))
    assert len(names) == 6
    for name in names:
        before = json.loads((old / "out" / name.path).read_bytes())
        after = json.loads(store.read_record(str(old / "out"), name).to_json())
        assert kept(after, before) == before
        assert {key for key, value in after.items() if value not in ([], {})} <= set(before)


def test_a_run_with_the_same_settings_finds_all_of_it_done(old: Path) -> None:
    settings = dskprep.read_config(old / "prep.toml")
    before = tiny.everything_below(old / "out/volumes")
    summary = dskprep.run(old / "in", old / "out", settings=settings)
    assert summary.account.already == {"written": 3, "refused": 2}
    assert summary.n_new == 0
    assert tiny.everything_below(old / "out/volumes") == before


def test_it_is_verified(old: Path) -> None:
    assert [(finding.key, finding.faults) for finding in dskprep.verify(old / "out")] == [(key, ()) for key in WRITTEN]
    assert sorted(index.current(str(old / "out"))["key"]) == sorted([*WRITTEN, "few-slices", "no-dicom"])


def test_what_is_made_again_has_the_same_bytes(old: Path) -> None:
    settings = dskprep.read_config(old / "prep.toml")
    before = tiny.everything_below(old / "out/volumes")
    shutil.move(old / "out", old / "earlier")
    dskprep.run(old / "in", old / "out", settings=settings)
    after = tiny.everything_below(old / "out/volumes")
    assert {name: content for name, content in after.items() if "/c/" in name} == {
        name: content for name, content in before.items() if "/c/" in name
    }
    for key in WRITTEN:
        first, second = (dskprep.open_dataset(old / place)[key].record for place in ("earlier", "out"))
        assert first.hu_sha256 == second.hu_sha256  # the thumbnails of now have an R
        assert first.settings_digest == second.settings_digest


def test_its_volumes_are_split_and_joined_each_alone_as_it_has_no_digests(old: Path) -> None:
    dataset = dskprep.open_dataset(old / "out")
    split = dataset.split(folds=2, stratify=())
    assert split.alone == tuple(WRITTEN)
    with pytest.raises(dskprep.UsageError, match="no volume has a digest of its PatientID"):
        dataset.join(pd.DataFrame({"PatientID": ["x"], "age": [1]}), on="PatientID")
    assert dataset.duplicates().unseen == ()


def test_it_is_upgraded(old: Path) -> None:
    before = dskprep.open_dataset(old / "out")["b"].load().array
    assert [(finding.key, finding.faults) for finding in dskprep.upgrade(old / "out")] == [(key, ()) for key in WRITTEN]
    assert [finding.faults for finding in dskprep.verify(old / "out")] == [()] * len(WRITTEN)
    np.testing.assert_array_equal(dskprep.open_dataset(old / "out")["b"].load().array, before)
    settings = dataclasses.replace(dskprep.read_config(old / "prep.toml"), ome_zarr="0.6")
    assert dskprep.run(old / "in", old / "out", settings=settings).n_new == 0

"""What users put beside a label stays, whatever becomes of the label, and is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.volume import Grid
from dskprep.worker import annotate as annotating
from dskprep.worker import patient
from dskprep.worker.patient import Job

THEIRS = ("notes.md", "mine/zarr.json", "1/zarr.json", "0/notes.md", "0/c/sketch.png", "zarr.json.orig")
"""Files in the folder of a label; the dataset has one level, so that level 1 is a user's."""


KEYS = ("p1", "p2")


def with_other_voxels(key: str) -> dict[str, bytes]:
    """The series of a patient of `KEYS`, of other voxels: in a copied place its identifiers tell what it is."""
    seed = KEYS.index(key)
    return tiny.series(seed + 77, series_uid=f"1.2.3.{seed}")


def save_mask(path: Path, grid: Grid, rows: int) -> None:
    """A box, as NIfTI: axes (x, y, z), RAS."""
    mask = np.zeros(grid.shape, np.uint8)
    mask[2:6, 4:rows, 4:12] = 1
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine[:, [2, 1, 0, 3]]
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(mask.transpose(2, 1, 0), affine), path)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scans` with p1, `out` with its dataset, in which the label `mask` has a user's own files."""
    folder = tmp_path_factory.mktemp("labels")
    tiny.write_patients(folder / "scans", KEYS)
    dskprep.run(folder / "scans", folder / "out")
    series = dskprep.read_series(folder / "scans/p1")
    for name, rows in (("other", 8), ("mask", 12)):
        save_mask(folder / name / "p1.nii.gz", series.grid, rows)
        assert dskprep.annotate(folder / "out", folder / name, names={1: name}).counts["written"] == 1
    tiny.write(folder / "out/volumes/p1.zarr/labels/mask", dict.fromkeys(THEIRS, b"mine"))
    return folder


@pytest.fixture
def place(tmp_path: Path, original: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "place"))


def left(place: Path) -> dict[str, bytes]:
    label = place / "out/volumes/p1.zarr/labels/mask"
    return {e.name: storage.read(f"{label}/{e.name}") for e in storage.listing_below(str(label))}


def test_they_are_named_by_verify(place: Path) -> None:
    (found,) = [finding for finding in dskprep.verify(place / "out") if finding.additions]
    assert found.faults == ()
    assert set(found.additions) == {f"labels/mask/{name}" for name in THEIRS}


@pytest.mark.parametrize("n_wrong", [1, 3])
def test_wrong_answers_for_the_record_of_a_label_delete_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, n_wrong: int
) -> None:
    before, read, asked = tiny.everything_below(place), storage.read, list[str]()

    def wrong_at_first(url: str) -> bytes:
        if "/labels/written/" in url and len(asked) < n_wrong:
            asked.append(url)
            return b""
        return read(url)

    monkeypatch.setattr(storage, "read", wrong_at_first)
    assert commands.run_command(["verify", str(place / "out"), "--forget"]) == (0 if n_wrong < 3 else 1)
    assert len(asked) == n_wrong
    assert tiny.everything_below(place) == before


def test_they_outlive_a_label_whose_image_is_made_anew(place: Path) -> None:
    tiny.write(place / "scans/p1", with_other_voxels("p1"))
    assert dskprep.run(place / "scans", place / "out").account.counts["written"] == 2
    assert left(place) == dict.fromkeys(THEIRS, b"mine")


def test_they_outlive_a_label_that_no_record_has(place: Path) -> None:
    (record,) = [
        path for path in (place / "out/labels/written").iterdir() if b"labels/mask/zarr.json" in path.read_bytes()
    ]
    record.unlink()
    assert "volumes/p1.zarr/labels/mask/zarr.json" in list(dskprep.clean(place / "out", older_than_s=-60))
    assert left(place) == dict.fromkeys(THEIRS, b"mine")


def test_they_outlive_a_label_that_is_forgotten_or_replaced(place: Path) -> None:
    dskprep.annotate(place / "out", place / "mask", names={1: "mask"})  # the file is known where it lies now
    before = left(place)
    save_mask(place / "mask/p1.nii.gz", dskprep.read_series(place / "scans/p1").grid, 10)
    assert dskprep.annotate(place / "out", place / "mask", names={1: "mask"}).counts["written"] == 1
    assert left(place) != before
    assert left(place).items() >= dict.fromkeys(THEIRS, b"mine").items()
    dskprep.forget_labels(place / "out", "mask")
    assert left(place) == dict.fromkeys(THEIRS, b"mine")


@pytest.mark.parametrize("is_old", [False, True], ids=["now", "earlier"])
@pytest.mark.parametrize("at", ["p1.zarr/labels/corrected", "p1.zarr/labels/renamed", "p2.zarr/labels/mask"])
@pytest.mark.parametrize("is_cleaned", [True, False], ids=["clean", "run"])
def test_a_users_copy_of_a_label_is_the_users(place: Path, at: str, is_old: bool, is_cleaned: bool) -> None:
    """A copy under another name, or in another volume, which somebody corrects; also of what earlier versions wrote."""
    volumes = place / "out/volumes"
    if is_old:
        as_earlier_versions(volumes / "p1.zarr/labels/mask/zarr.json")
    copied = Path(shutil.copytree(volumes / "p1.zarr/labels/mask", volumes / at))
    (copied / "0/c/0/0/0").write_bytes(b"corrected")
    if "renamed" in at and not is_old:  # in its metadata too
        content = json.loads((copied / "zarr.json").read_text())
        content["attributes"]["ome"]["multiscales"][0]["name"] = "renamed"
        (copied / "zarr.json").write_text(json.dumps(content))
    mine = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    if is_cleaned:
        deleted = list(dskprep.clean(place / "out", older_than_s=-60))
        assert not [name for name in deleted if name.startswith("volumes/")]
    else:
        for key in KEYS:
            tiny.write(place / f"scans/{key}", with_other_voxels(key))
        assert dskprep.run(place / "scans", place / "out").account.counts["written"] == 2
        assert not (volumes / "p1.zarr/labels/mask/zarr.json").exists()
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == mine
    assert not [finding for finding in dskprep.verify(place / "out") if finding.is_of_volume and finding.faults]


@pytest.mark.parametrize("is_old", [False, True], ids=["now", "earlier"])
def test_a_label_that_no_record_has_is_cleaned(place: Path, is_old: bool) -> None:
    label = place / "out/volumes/p1.zarr/labels/mask"
    if is_old:
        as_earlier_versions(label / "zarr.json")
    for record in (place / "out/labels/written").iterdir():
        if b"labels/mask/zarr.json" in record.read_bytes():
            record.unlink()
    shutil.copytree(label, label.with_name("corrected"))
    list(dskprep.clean(place / "out", older_than_s=-60))
    assert not (label / "zarr.json").exists()
    assert (label.with_name("corrected") / "zarr.json").exists()


def test_a_list_of_labels_that_somebody_has_written_stays_as_it_is(place: Path) -> None:
    listed = place / "out/volumes/p1.zarr/labels/zarr.json"
    theirs = json.loads(listed.read_text())
    theirs["attributes"]["mine"] = "weeks of work"
    listed.write_text(json.dumps(theirs))
    for record in (place / "out/labels/written").iterdir():
        if b"labels/mask/zarr.json" in record.read_bytes():
            record.unlink()
    assert [name for name in dskprep.clean(place / "out", older_than_s=-60) if "/labels/mask/" in name]
    assert json.loads(listed.read_text()) == theirs


def test_tables_in_the_folder_of_points_are_deleted_only_if_dskprep_wrote_them(place: Path) -> None:
    """Of another name, no table, and corrected by pandas under the name of one that no record has."""
    (place / "points").mkdir()
    x, y, z = dskprep.open_dataset(place / "out")["p1"].affine[:3] @ [3, 5, 5, 1]
    (place / "points/all.csv").write_text(f"key,x,y,z\np1,{x},{y},{z}\n")
    dskprep.annotate(place / "out", place / "points")
    (made,) = (folder := place / "out/labels/points").iterdir()
    stem = made.name.removesuffix(".parquet")
    table = pd.read_parquet(made)
    theirs = {
        folder / "corrected-by-dr-b.parquet": made.read_bytes(),
        folder / f"{stem[:-1]}g.parquet": made.read_bytes(),
        folder / f"{stem[:-1]}{'01'[stem[-1] == '0']}.parquet": b"no table",
        folder / f"{stem[:-1]}{'23'[stem[-1] == '2']}.parquet": table.to_parquet(),
        folder / f"{stem[:-1]}{'45'[stem[-1] == '4']}.parquet": table.drop(columns="image").to_parquet(),
        folder / "notes.txt": b"mine",
    }
    for path, content in theirs.items():
        path.write_bytes(content)
    (place / f"out/labels/written/{stem}.json").unlink()
    assert [name for name in dskprep.clean(place / "out", older_than_s=-60) if "/points/" in name] == [
        f"labels/points/{made.name}"
    ]
    assert {path: path.read_bytes() for path in folder.iterdir()} == theirs


def test_a_first_label_goes_with_its_image_in_a_run_that_began_before_it_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "scans", tmp_path / "out"
    tiny.write_patients(source, ["b1", "b2"])
    dskprep.run(source, target)
    save_mask(tmp_path / "labels/b2.nii.gz", dskprep.read_series(source / "b2").grid, 12)
    tiny.write(source / "a1", tiny.series(7))
    tiny.write(source / "b2", with_other_voxels("p2"))
    write_all, keys = patient._write_all, []

    def annotated(job: Job, *rest: Any) -> Any:
        keys.append(job.case.key)
        if job.case.key == "b2":
            words = [sys.executable, "-m", "dskprep", "annotate", target, tmp_path / "labels", "--scheduler", "sync"]
            subprocess.run(words, check=True, timeout=200)
        return write_all(job, *rest)

    monkeypatch.setattr(patient, "_write_all", annotated)
    assert dskprep.run(source, target).account.counts["written"] == 3
    assert keys == ["a1", "b2"]
    assert not [path for path in (target / "volumes/b2.zarr/labels/mask").rglob("*") if path.is_file()]
    assert json.loads((target / "volumes/b2.zarr/labels/zarr.json").read_text())["attributes"]["ome"]["labels"] == [
        "lungs"
    ]


@pytest.mark.parametrize("is_anew", [True, False], ids=["image made anew", "label done again"])
def test_a_label_that_fails_is_not_told_written_for_what_was_drawn_before(
    place: Path, is_anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, mask = place / "out", place / "out/volumes/p1.zarr/labels/more/0/c/0/0/0"
    save_mask(place / "more/p1.nii.gz", dskprep.read_series(place / "scans/p1").grid, 10)
    asked: dict[str, Any] = {"names": {1: "more"}}
    assert dskprep.annotate(target, place / "more", **asked).counts == {"written": 1}
    if is_anew:
        tiny.write(place / "scans/p1", with_other_voxels("p1"))
        assert dskprep.run(place / "scans", target).account.counts["written"] == 2
        assert not mask.exists()

    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(annotating, "make_labels", broken)
        done = dskprep.annotate(target, place / "more", **asked, retry=None if is_anew else "all")
    assert (done.exit_code, dict(done.counts)) == (1, {"failed": 1})
    failed = list((target / "labels/failed").glob("*.json"))
    assert (len(failed), mask.exists()) == ((1, False) if is_anew else (0, True))
    again = dskprep.annotate(target, place / "more", **asked, retry="failed")
    assert (again.exit_code, mask.exists()) == (0, True)


def as_earlier_versions(group: Path) -> None:
    """Leave out of the metadata of a label what dskprep has written into them only since it tells copies."""
    metadata = json.loads(group.read_bytes())
    metadata["attributes"]["dskprep"].pop("volume", None)
    group.write_text(json.dumps(metadata, indent=2))

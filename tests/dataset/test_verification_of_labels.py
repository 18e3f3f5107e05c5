"""What an `annotate` writes, or has left, is never a fault of the image, and what a record of labels promises is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import label_store

VOLUME = "volumes/p1.zarr"
LIST = f"{VOLUME}/labels/zarr.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`out` is a dataset with a volume p1, its lungs and its label `first`; in `later` lies a mask for `second`."""
    folder = tmp_path_factory.mktemp("labels")
    tiny.write_patients(folder / "scans", ("p1",))
    dskprep.run(folder / "scans", folder / "out")
    grid = dskprep.read_series(folder / "scans/p1").grid
    for name, names in (("earlier", "first"), ("later", "second")):
        mask = np.zeros(grid.shape, np.uint8)
        mask[2:6, 4:12, 4:12] = 1
        (folder / name / "p1").mkdir(parents=True)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine[:, [2, 1, 0, 3]]
        nib.save(nib.Nifti1Image(mask.transpose(2, 1, 0), affine), folder / name / "p1" / f"{names}.nii.gz")
    assert dskprep.annotate(folder / "out", folder / "earlier").counts == {"written": 1}
    return folder


@pytest.fixture
def folder(tmp_path: Path, original: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "place"))


def image(target: Path) -> dict[str, bytes]:
    """The image of p1, its lungs, thumbnail and record."""
    below = tiny.everything_below(target)
    return {
        name: content
        for name, content in below.items()
        if name.startswith(("records/", "thumbnails/", f"{VOLUME}/0/", f"{VOLUME}/labels/lungs/"))
    }


def listed(target: Path) -> list[str]:
    found: list[str] = json.loads((target / LIST).read_text())["attributes"]["ome"]["labels"]
    return found


def faults(target: Path) -> list[tuple[str, str]]:
    return [(finding.key, fault) for finding in dskprep.verify(target) for fault in finding.faults]


def annotate_until(when: str, act: Callable[[], Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Annotate `second`, and act just before it writes the list of labels, or commits its record."""
    real = getattr(label_store, when)

    def act_first(*args: Any) -> Any:
        act()
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(label_store, when, act_first)
        return dskprep.annotate(folder / "out", folder / "later")


def die() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["write_list", "commit"])
def test_what_a_killed_annotate_left_is_no_fault_and_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    target, before = folder / "out", image(folder / "out")
    assert annotate_until(when, die, folder, monkeypatch).is_interrupted
    assert "second" in label_store.label_names(str(target), "p1")
    assert commands.run_command(["verify", str(target), "--forget"]) == 0
    assert "p1: second: without a record; " in capsys.readouterr().out
    assert image(target) == before
    assert dskprep.annotate(target, folder / "later").counts == {"written": 1}
    assert commands.run_command(["verify", str(target)]) == 0
    assert "second" not in capsys.readouterr().out
    assert listed(target) == ["lungs", "first", "second"]


@pytest.mark.parametrize("when", ["write_list", "commit"])
def test_verify_may_forget_what_is_faulty_beside_an_annotate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    target, before = folder / "out", image(folder / "out")
    codes: list[int] = []
    verify = ["verify", str(target), "--forget"]
    summary = annotate_until(when, lambda: codes.append(commands.run_command(verify)), folder, monkeypatch)
    assert set(codes) == {0}
    assert summary.counts == {"written": 1}
    assert image(target) == before
    assert sorted(dskprep.open_dataset(target)["p1"].labels) == ["first", "second"]


def test_verify_may_forget_what_is_faulty_while_labels_are_forgotten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record goes first, then the objects, and at last the name in the list."""
    target, before = folder / "out", image(folder / "out")
    assert commands.run_command(["verify", str(target)]) == 0  # it holds the table of labels from now on
    with monkeypatch.context() as patched:
        patched.setattr(label_store, "write_list", lambda *_: die())
        with pytest.raises(KeyboardInterrupt):
            dskprep.forget_labels(target, "first")
    assert listed(target) == ["lungs", "first"]
    assert commands.run_command(["verify", str(target), "--forget"]) == 0
    label_store.write_list(str(target), "p1")
    assert commands.run_command(["verify", str(target), "--forget"]) == 0
    assert image(target) == before


def test_a_list_without_a_recorded_label_is_a_fault_of_the_label_alone(folder: Path) -> None:
    target, before = folder / "out", image(folder / "out")
    (target / LIST).write_bytes((target / LIST).read_bytes().replace(b'"first"', b'"fjrst"'))
    assert faults(target) == [("p1__first.nii.gz", f"{LIST} does not list first")]
    assert commands.run_command(["verify", str(target), "--forget"]) == 1
    assert image(target) == before
    assert dskprep.annotate(target, folder / "earlier").counts == {"written": 1}
    assert faults(target) == []


@pytest.mark.parametrize("name", ["lungs", "labels"])
def test_a_list_without_the_lungs_or_that_is_none_is_a_fault_of_the_volume(folder: Path, name: str) -> None:
    target = folder / "out"
    (target / LIST).write_bytes((target / LIST).read_bytes().replace(f'"{name}"'.encode(), b'"xxxxx"'))
    assert ("p1", "labels/zarr.json") in [(key, fault.split()[0]) for key, fault in faults(target)]


def test_clean_deletes_what_a_killed_annotate_left_and_lists_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / "out"
    assert annotate_until("commit", die, folder, monkeypatch).is_interrupted
    assert listed(target) == ["lungs", "first", "second"]
    list(dskprep.clean(target, older_than_s=-60, is_trial=True))
    assert listed(target) == ["lungs", "first", "second"]
    deleted = list(dskprep.clean(target, older_than_s=-60))
    assert f"{VOLUME}/labels/second/zarr.json" in deleted
    assert listed(target) == ["lungs", "first"]
    assert storage.exists(f"{target}/{VOLUME}/labels/first/zarr.json")

"""Label files of several folders that have one name: what came of the one stays when the other is annotated."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from label_builders import frames_of, grid_of, seg_dataset, written
from numpy.typing import NDArray

import dskprep
from dskprep.cli import commands
from dskprep.dataset import label_store
from dskprep.settings import PrepConfig

SHAPE = (tiny.N_SLICES, tiny.SIZE, tiny.SIZE)
GRID = grid_of(SHAPE, (1.0, 1.0, 1.0), (-100.123456789, -50.5, 10.25))
BOX = np.zeros(SHAPE, np.bool_)
BOX[2:6, 5:12, 4:15] = True
SYNC = ("--scheduler", "sync")


def seg_of(seed: int, mask: NDArray[np.bool_] = BOX, name: str = "Tumour") -> bytes:
    """A SEG of `tiny.series(seed)`."""
    ds = seg_dataset(GRID, frames_of(mask), names=(name,), FrameOfReferenceUID="1.2.91")
    named = ds.ReferencedSeriesSequence[0]
    named.SeriesInstanceUID = f"1.2.3.{seed}"
    named.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = f"1.2.4.{seed}.0"
    return written(ds)


def prepared(place: Path, keys: str = "folder") -> str:
    """A dataset of the patients p0 and p1; return its URL."""
    tiny.write_patients(place / "in", ["p0", "p1"])
    settings = PrepConfig(check_hu=False, lungs=False, min_slices=4)
    dskprep.run(place / "in", place / "out", settings=settings, keys=keys)
    return str(place / "out")


@pytest.fixture(params=["folder", "hashed"])
def target(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    return prepared(tmp_path, request.param)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def labels_of(target: str) -> list[list[str]]:
    """The names of the labels of each volume."""
    dataset = dskprep.open_dataset(target)
    return sorted(sorted(dataset[key].labels) for key in dataset)


def sources_of(target: str) -> list[str]:
    return sorted(name.source for name, _ in label_store.list_records(target))


@pytest.mark.parametrize("is_single", [False, True])
def test_the_labels_of_one_patient_stay_when_those_of_the_next_have_the_same_file_name(
    target: str, tmp_path: Path, is_single: bool
) -> None:
    files = [put(tmp_path / folder / "1-1.dcm", seg_of(seed)) for seed, folder in enumerate("ab")]
    for file in files:
        os.utime(file, ns=(0, 0))  # of one size and time, as archives may unpack them
        assert dskprep.annotate(target, file if is_single else file.parent).already == {}
    assert labels_of(target) == [["Tumour"], ["Tumour"]]
    assert len(sources_of(target)) == 2
    for file in files:
        assert dskprep.annotate(target, file if is_single else file.parent).already == {"written": 1}
    assert not [f for f in dskprep.verify(target) if f.faults or f.additions]


def test_a_changed_file_replaces_its_own_labels_and_no_others(target: str, tmp_path: Path) -> None:
    files = [put(tmp_path / folder / "1-1.dcm", seg_of(seed)) for seed, folder in enumerate("ab")]
    for file in (*files, *reversed(files)):
        dskprep.annotate(target, file.parent)
    for seed, file in enumerate(files):
        put(file, seg_of(seed, ~BOX, f"New-{seed}"))
        assert dskprep.annotate(target, file.parent).counts == {"written": 1}
    assert labels_of(target) == [["New-0"], ["New-1"]]
    assert len(sources_of(target)) == 2


def test_points_of_two_tables_of_one_name_both_stay(target: str, tmp_path: Path) -> None:
    for seed, folder in enumerate("ab"):
        put(tmp_path / folder / "annotations.csv", f"key,x,y,z\np{seed},-90,-40,1{seed + 2}\n".encode())
        dskprep.annotate(target, tmp_path / folder)
    assert sorted(dskprep.open_dataset(target).annotations["z"]) == [12, 13]


def test_a_changed_file_replaces_what_an_older_version_wrote_with_hashed_keys(tmp_path: Path) -> None:
    """Records of older versions do not say where the file lay, so the only one of its path is the file's own."""
    target = prepared(tmp_path, "hashed")
    file = put(tmp_path / "a/1-1.dcm", seg_of(0))
    dskprep.annotate(target, file.parent)
    (record,) = Path(target, "labels/written").glob("*.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"url": ""}))
    Path(target, "annotations.parquet").unlink()
    assert dskprep.annotate(target, file.parent).already == {"written": 1}
    put(file, seg_of(0, BOX[::-1]))
    assert dskprep.annotate(target, file.parent).counts == {"written": 1}
    assert labels_of(target) == [[], ["Tumour"]]
    (written,) = [dataset[key] for dataset in [dskprep.open_dataset(target)] for key in dataset if dataset[key].labels]
    assert np.array_equal(written.labels["Tumour"][:], BOX[::-1])


def test_a_file_of_another_patient_is_not_the_one_that_lay_elsewhere_before(target: str, tmp_path: Path) -> None:
    """Archives that are unpacked, annotated and deleted one after another: of one name, size and time."""
    for seed, folder in enumerate("ab"):
        file = put(tmp_path / folder / "1-1.dcm", seg_of(seed))
        os.utime(file, ns=(0, 0))
        assert dskprep.annotate(target, file.parent).counts == {"written": 1}
        shutil.rmtree(file.parent)
    assert labels_of(target) == [["Tumour"], ["Tumour"]]


@pytest.mark.parametrize("is_time_kept", [True, False])
def test_files_that_were_moved_are_the_same(target: str, tmp_path: Path, is_time_kept: bool) -> None:
    put(tmp_path / "a/1-1.dcm", seg_of(0))
    put(tmp_path / "a/2-1.dcm", seg_of(1))
    put(tmp_path / "a/points.csv", b"key,x,y,z\np0,-90,-40,12\n")
    dskprep.annotate(target, tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    if not is_time_kept:
        for file in (tmp_path / "b").iterdir():
            os.utime(file, (1, 1))
    assert dskprep.annotate(target, tmp_path / "b").counts == {"written": 3}
    assert dskprep.annotate(target, tmp_path / "b").already == {"written": 3}
    assert labels_of(target) == [["Tumour"], ["Tumour"]]
    assert (len(sources_of(target)), len(dskprep.open_dataset(target).annotations)) == (3, 3)
    assert not [f for f in dskprep.verify(target) if f.faults or f.additions]


@pytest.mark.parametrize("path", ["1-1.dcm", "p0/1-1.dcm"])
def test_a_clash_of_two_files_in_one_volume_has_the_commands_that_replace(tmp_path: Path, path: str) -> None:
    target = prepared(tmp_path)
    put(tmp_path / "first" / path, seg_of(0))
    put(tmp_path / "second" / path, seg_of(0, ~BOX))
    dskprep.annotate(target, tmp_path / "first")
    assert dskprep.annotate(target, tmp_path / "second").reasons == {"refused: label-exists": 1}
    volume = dskprep.open_dataset(target)["p0"]
    assert np.array_equal(volume.labels["Tumour"][:], BOX)
    (record,) = [
        label_store.read_record(target, name)
        for name, _ in label_store.list_records(target)
        if name.status == "refused"
    ]
    for command in re.findall("`(.*?)`", record.message or ""):
        assert CliRunner().invoke(commands.main, [*shlex.split(command)[1:], *SYNC]).exit_code == 0
    volume = dskprep.open_dataset(target)["p0"]
    assert np.array_equal(volume.labels["Tumour"][:], ~BOX)
    assert len(sources_of(target)) == 1


def test_a_mask_of_another_folder_has_the_commands_that_replace_too(tmp_path: Path) -> None:
    target = prepared(tmp_path)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ GRID.affine[:, [2, 1, 0, 3]]
    for folder, mask in (("first", BOX), ("second", ~BOX)):
        (tmp_path / folder / "p0").mkdir(parents=True)
        image = nibabel.Nifti1Image(mask.transpose(2, 1, 0).astype(np.uint8), to_ras)
        nibabel.save(image, tmp_path / folder / "p0" / "mask.nii.gz")
    dskprep.annotate(target, tmp_path / "first", names={1: "liver"})
    assert dskprep.annotate(target, tmp_path / "second", names={1: "liver"}).reasons == {"refused: label-exists": 1}
    refused = next(name for name, _ in label_store.list_records(target) if name.status == "refused")
    for command in re.findall("`(.*?)`", label_store.read_record(target, refused).message or ""):
        assert CliRunner().invoke(commands.main, [*shlex.split(command)[1:], *SYNC]).exit_code == 0
    assert np.array_equal(dskprep.open_dataset(target)["p0"].labels["liver"][:], ~BOX)

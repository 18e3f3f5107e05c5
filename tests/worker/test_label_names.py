"""What a label is stored as: by its author's name, or that of its file, and who is told that it had to be another."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny

import dskprep
from dskprep.cli import commands
from dskprep.labels import mask
from dskprep.sides import LEFT
from dskprep.worker.side_words import side_of


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a patient p1."""
    folder = tmp_path_factory.mktemp("series") / "scans"
    tiny.write_patients(folder, ("p1",))
    return folder


@pytest.fixture
def target(tmp_path: Path, series: Path) -> Path:
    assert dskprep.run(series, tmp_path / "out").exit_code == 0
    return tmp_path / "out"


def save_masks(folder: Path, series: Path, *names: str) -> Path:
    """Masks of p1, as NIfTI, axes (x, y, z), RAS; each has a box of its own."""
    grid = dskprep.read_series(series / "p1").grid
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine[:, [2, 1, 0, 3]]
    (folder / "p1").mkdir(parents=True)
    for k, name in enumerate(names):
        voxels = np.zeros(grid.shape, np.uint8)
        voxels[2:6, 4:12, 4 : 8 + k] = 1
        nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), affine), folder / "p1" / name)
    return folder


def stored(target: Path) -> dict[str, int]:
    labels = dskprep.open_dataset(target)["p1"].labels
    return {name: int(np.count_nonzero(labels[name][:])) for name in labels}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("lung.left.nii.gz", "lung.left"),
        ("GTV.v2.final.nii", "GTV.v2.final"),
        ("p1/GTV.1.NRRD", "GTV.1"),
        ("Seg.1.seg.nrrd", "Seg.1"),
        ("a.b.nhdr", "a.b"),
        ("a.b.mha", "a.b"),
        ("a.b.mhd", "a.b"),
        ("a.seg.nii.gz", "a.seg"),
        ("1.2.840.113.nii.gz", "1.2.840.113"),
        ("a.nrrd.bz2", "a"),
        ("liver", "liver"),
    ],
)
def test_a_mask_is_called_by_its_file_without_the_suffix(file: str, name: str) -> None:
    assert mask.name_by_file(file) == name


def test_masks_with_dots_in_their_names_are_all_stored(tmp_path: Path, series: Path, target: Path) -> None:
    labels = save_masks(tmp_path / "labels", series, "lung.left.nii.gz", "lung.right.nii.gz", "GTV.v2.final.nii.gz")
    assert dskprep.annotate(target, labels).counts == {"written": 3}
    sizes = {"GTV.v2.final": 4 * 8 * 6, "lung.left": 4 * 8 * 4, "lung.right": 4 * 8 * 5}
    assert stored(target) == sizes
    assert side_of("lung.left") == LEFT
    assert dskprep.annotate(target, labels, name_as="{file}-again").counts == {"written": 3}
    assert stored(target) == sizes | {f"{name}-again": n for name, n in sizes.items()}


def test_what_was_stored_up_to_the_first_dot_stays_until_it_is_done_again(
    tmp_path: Path, series: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older version has it: the second file was refused, since the first has its name."""
    labels = save_masks(tmp_path / "labels", series, "lung.left.nii.gz", "lung.right.nii.gz")
    with monkeypatch.context() as older:
        older.setattr(mask, "name_by_file", lambda where: Path(where).name.split(".")[0])
        assert dskprep.annotate(target, labels).reasons == {"refused: label-exists": 1}
    assert stored(target) == {"lung": 4 * 8 * 4}
    assert dskprep.annotate(target, labels).already == {"written": 1, "refused": 1}
    assert stored(target) == {"lung": 4 * 8 * 4}
    assert dskprep.annotate(target, labels, retry="refused").counts == {"written": 2}
    assert stored(target) == {"lung": 4 * 8 * 4, "lung.right": 4 * 8 * 5}
    assert dskprep.annotate(target, labels, retry="all").counts == {"written": 2}
    assert stored(target) == {"lung.left": 4 * 8 * 4, "lung.right": 4 * 8 * 5}
    assert not [finding for finding in dskprep.verify(target) if finding.faults or finding.unrecorded]
    assert list(dskprep.clean(target, older_than_s=-60)) == []


def test_a_name_that_is_taken_is_told(
    tmp_path: Path, series: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = save_masks(tmp_path / "labels", series, "lungs.nii.gz", "GTV 1.nii.gz")
    assert commands.run_command(["annotate", str(target), str(labels), "--scheduler", "sync"]) == 0
    told = capsys.readouterr().out
    assert "  'lungs' in p1 is stored as lungs_: " in told
    assert told.count("is stored as") == 1
    assert "label-renamed" in told
    assert sorted(stored(target)) == ["GTV_1", "lungs_"]
    assert dskprep.status(target).label_warnings == {"label-renamed": 1}
    warnings = dskprep.open_dataset(target).annotations.set_index("label")["source_warnings"]
    assert (warnings["lungs_"], warnings["GTV_1"] or "") == ("label-renamed", "")

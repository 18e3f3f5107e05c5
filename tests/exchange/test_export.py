"""A dataset for nnU-Net, MONAI and catalogues: the voxels where they lie, the same bytes again."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import own_masks
import pandas as pd
import pytest
import tiny
from label_builders import rtstruct_dataset, written

import dskprep
from dskprep import storage
from dskprep.cli import commands, workers
from dskprep.dataset import store
from dskprep.errors import DamagedDataset, InfrastructureError, UsageError
from dskprep.exchange.volume import ExportJob
from dskprep.settings import PrepConfig
from dskprep.synthetic import scanner
from dskprep.worker import annotate, drawing
from dskprep.worker.export import export_volume

nib = pytest.importorskip("nibabel", reason="needs the extra exchange")

KEYS = ["p0", "p1", "p2", "p3"]
LABELS = {"p0": ["GTV-1", "heart"], "p1": ["GTV-1", "GTV-2", "heart"], "p2": ["GTV-2", "heart"], "p3": ["heart"]}
SETTINGS = PrepConfig(check_hu=False, chunk=16, lungs="own_masks:halves")


def masks_of(key: str) -> dict[str, np.ndarray]:
    """Boxes (z, y, x) that overlap, each with another place in each patient."""
    i = KEYS.index(key)
    boxes = {
        "GTV-1": np.s_[2:5, 3 + i : 9, 4:10],
        "GTV-2": np.s_[4:8, 6:12, 8 + i : 15],
        "heart": np.s_[3:10, 10:20, 5:20],
    }
    found = {}
    for name in LABELS[key]:
        found[name] = np.zeros((tiny.N_SLICES, tiny.SIZE, tiny.SIZE), np.uint8)
        found[name][boxes[name]] = 1
    return found


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients with labels."""
    folder = tmp_path_factory.mktemp("export")
    for i, key in enumerate(KEYS):
        tiny.write(folder / "scans" / key, patient_files(i))
    dskprep.run(folder / "scans", folder / "out", settings=SETTINGS)
    dataset = dskprep.open_dataset(folder / "out")
    for key in KEYS:
        (folder / "labels" / key).mkdir(parents=True)
        for name, mask in masks_of(key).items():
            image = dskprep.to_nifti(dskprep.Volume(mask, dataset[key].affine))
            image.to_filename(folder / "labels" / key / f"{name}.nii.gz")
    summary = dskprep.annotate(folder / "out", folder / "labels")
    assert summary.counts == {"written": 8}
    return folder / "out"


def patient_files(i: int) -> dict[str, bytes]:
    """A series of a patient of its own."""
    import io

    import pydicom

    files = {}
    for name, content in tiny.series(i).items():
        header = pydicom.dcmread(io.BytesIO(content))
        header.PatientID, header.StudyInstanceUID, header.FrameOfReferenceUID = f"P{i}", f"1.2.90.{i}", f"1.2.91.{i}"
        file = io.BytesIO()
        header.save_as(file)
        files[name] = file.getvalue()
    return files


@pytest.fixture
def target(tmp_path: Path, original: Path) -> str:
    return str(shutil.copytree(original, tmp_path / "dataset"))


@pytest.fixture
def unchanged(target: str) -> Iterator[None]:
    before = tiny.everything_below(target)
    yield
    assert tiny.everything_below(target) == before


def read(out: str, name: str) -> Any:
    return json.loads(storage.read(f"{out}/{name}"))


def voxels(out: str, name: str, folder: Path) -> Any:
    (folder / "read.nii.gz").write_bytes(storage.read(f"{out}/{name}"))
    image = nib.load(folder / "read.nii.gz")
    return np.asarray(image.dataobj), image.affine


def test_an_altered_record_deletes_nothing_of_others(target: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dskprep.export("monai", target, out)
    (out / "thesis.doc").write_text("mine")
    files = {"thesis.doc": {"bytes": 4, "sha256": ""}}
    for key in ("zz", KEYS[0]):
        (out / f".dskprep/volumes/{key}.json").write_text(json.dumps({"key": key, "digest": "x", "files": files}))
    assert dskprep.export("monai", target, out).counts == {"written": 1, "already": len(KEYS) - 1}
    assert (out / "thesis.doc").read_text() == "mine"


@pytest.mark.parametrize("settings", ['{"spacing_mm": "x"}', '{"spacing_mm": [1, NaN, 1]}', '{"unheard": 1}'])
def test_settings_that_nobody_wrote_are_one_line(target: str, tmp_path: Path, settings: str) -> None:
    place = Path(target, "dataset.json")
    content = json.loads(place.read_text())
    place.write_text(json.dumps(content | {"settings": {}}).replace('"settings": {}', f'"settings": {settings}'))
    for kind in ("nnunet", "croissant"):
        with pytest.raises((UsageError, DamagedDataset)):
            dskprep.export(kind, target, tmp_path / kind)


@pytest.mark.usefixtures("unchanged")
def test_nnunet_gets_the_voxels_where_they_lie(target: str, place: str, tmp_path: Path) -> None:
    out = f"{place}/Dataset007_Chest"
    summary = dskprep.export("nnunet", target, out, labels=["heart", "gtv*"], licence="CC BY 4.0")
    assert summary.counts == {"written": 3, "left-out": 1}
    assert summary.left_out == {"p3": "without gtv*"}
    assert summary.exit_code == 0
    dataset = dskprep.open_dataset(target)
    for key in KEYS[:3]:
        image, affine = voxels(out, f"imagesTr/{key}_0000.nii.gz", tmp_path)
        np.testing.assert_array_equal(image, tiny.hu(KEYS.index(key)).transpose(2, 1, 0))
        mask, same = voxels(out, f"labelsTr/{key}.nii.gz", tmp_path)
        expected = masks_of(key)["heart"]
        for name in ("GTV-1", "GTV-2"):
            expected[masks_of(key).get(name, np.zeros_like(expected)) > 0] = 2
        np.testing.assert_array_equal(mask, expected.transpose(2, 1, 0))
        np.testing.assert_array_equal(affine, same)
        x, y, z = dataset[key].to_patient((5, 7, 9))
        np.testing.assert_allclose(affine @ [9, 7, 5, 1], [-x, -y, z, 1], atol=1e-4)
    content = read(out, "dataset.json")
    assert content["labels"] == {"background": 0, "heart": 1, "gtv*": 2}
    assert (content["numTraining"], content["channel_names"], content["file_ending"]) == (3, {"0": "CT"}, ".nii.gz")
    assert (content["name"], content["licence"]) == ("Dataset007_Chest", "CC BY 4.0")
    assert "1 x 1 x 1 mm" in content["description"]


def test_the_test_part_and_the_folds_are_where_nnunet_looks_for_them(target: str, tmp_path: Path) -> None:
    split = dskprep.open_dataset(target).split(folds=2, shares=(0.75, 0.25), stratify=())
    split.save("v1")
    out = str(tmp_path / "Dataset001_X")
    dskprep.export("nnunet", target, out, labels=["heart"], split="v1")
    test = set(split.part("test"))
    assert {p.name[:2] for p in (tmp_path / "Dataset001_X/imagesTs").iterdir()} == test
    assert {p.name[:2] for p in (tmp_path / "Dataset001_X/labelsTr").iterdir()} == set(KEYS) - test
    listed = read(out, "splits_final.json")
    assert len(listed) == 2
    for fold, lists in enumerate(listed):
        training, validation = split.fold(fold)
        assert (lists["train"], lists["val"]) == (sorted(training), sorted(validation))
    assert read(out, "dataset.json")["numTraining"] == 3


@pytest.mark.usefixtures("unchanged")
def test_a_fold_that_is_left_with_nothing_is_refused(target: str, tmp_path: Path) -> None:
    """Three of the four volumes lack a label: all folds but one have nothing to validate with."""
    dataset = dskprep.open_dataset(target)
    place = dataset.split(folds=4, stratify=()).save(tmp_path / "s.json")
    out = tmp_path / "out"
    said = (
        r"fold 0, fold 1, fold 2, … would lack them: 1 volume of its folds .*\(1 without GTV-1, 1 without GTV-1, GTV-2"
    )
    with pytest.raises(UsageError, match=said):
        dskprep.export("nnunet", target, out, labels=["GTV-1", "GTV-2"], split=place)
    assert not out.exists()
    assert dskprep.export("nnunet", target, out, labels=["heart"], split=place).exit_code == 0
    assert dskprep.export("monai", target, tmp_path / "monai", labels=["GTV-1", "GTV-2"], split=place).exit_code == 0


NEAR = np.array([-100, -50, 10])
"""In the corner of each image, in LPS mm."""
GOOD = [NEAR + [(3, 3, z), (6, 3, z), (6, 6, z)] for z in (4, 5)]
BENT = [NEAR + [(3, 3, 4), (6, 3, 5), (6, 6, 7), (3, 6, 4)]]


def struct_of_p1(rois: dict[str, list[np.ndarray]]) -> bytes:
    """An RTSTRUCT of the series of p1."""
    drawn = rtstruct_dataset(rois)
    drawn.PatientID, drawn.StudyInstanceUID = "P1", "1.2.90.1"
    (frame,) = drawn.ReferencedFrameOfReferenceSequence
    (named,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    named.SeriesInstanceUID, named.ContourImageSequence = "1.2.3.1", []
    frame.FrameOfReferenceUID = "1.2.91.1"
    for roi in drawn.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = "1.2.91.1"
    return written(drawn)


@pytest.mark.parametrize("kind", ["nnunet", "monai"])
def test_a_volume_that_lacks_a_label_because_it_was_refused_is_left_out(target: str, tmp_path: Path, kind: str) -> None:
    """In the mask of its class, what the label is of would be background."""
    (tmp_path / "rs.dcm").write_bytes(struct_of_p1({"GTV-3": GOOD, "GTV 9": BENT}))
    assert dskprep.annotate(target, tmp_path / "rs.dcm").lost_labels == {"label-damaged": 1}
    for classes in (["GTV*"], ["gtv?*", "heart"]):
        summary = dskprep.export(kind, target, tmp_path / f"out-{len(classes)}", labels=classes)
        assert summary.left_out == {"p1": "lacks GTV 9 (label-damaged)", "p3": f"without {classes[0]}"}
    assert dskprep.export(kind, target, tmp_path / "hearts", labels=["heart"]).left_out == {}
    with pytest.raises(UsageError, match=r"the labels GTV\?\[39\]; there are .*; p1 lacks GTV 9 \(label-damaged\)"):
        dskprep.export(kind, target, tmp_path / "none", labels=["GTV?[39]"])


def test_patches_of_volumes_that_lack_a_label_because_it_was_refused_are_told(target: str, tmp_path: Path) -> None:
    (tmp_path / "rs.dcm").write_bytes(struct_of_p1({"GTV-3": GOOD, "GTV 9": BENT}))
    dskprep.annotate(target, tmp_path / "rs.dcm")
    dataset = dskprep.open_dataset(target)
    with pytest.warns(
        UserWarning, match=r"a label of 1 volume was refused or failed, such as GTV 9 \(label-damaged\) of p1"
    ):
        patches = dataset.patches(8, around="GTV*", labels=["GTV*"], positives=1)
    dataset.patches(8, around="GTV*", labels=["heart", "lungs"], positives=1)
    left = dataset.select(dataset.keys() - dataset.lacking(["GTV*"]).keys())
    assert left.patches(8, around="GTV*", labels=["GTV*"], positives=1).keys == ("p0", "p2")
    assert patches.keys == ("p0", "p1", "p2")
    with pytest.raises(UsageError, match=r"labels must be a list"):
        dataset.lacking("GTV*")


def moved(mask: np.ndarray, affine: np.ndarray) -> bytes:
    """A mask half a voxel off the grid."""
    shifted = affine.copy()
    shifted[0, 3] += np.abs(affine[0, :3]).max() / 2
    return dskprep.to_nifti(dskprep.Volume(mask, shifted)).to_bytes()


def test_a_volume_that_lacks_a_label_whose_file_was_refused_is_left_out(target: str, tmp_path: Path) -> None:
    """Of files of one label each, one is off the grid, one is damaged, one has 0 bytes, and one has no volume."""
    affine = dskprep.open_dataset(target)["p1"].affine
    for key in ("p0", "p1", "p2", "elsewhere"):
        (tmp_path / "more" / key).mkdir(parents=True)
    whole = moved(masks_of("p1")["GTV-1"], affine)
    (tmp_path / "more" / "p1" / "GTV-9.nii").write_bytes(whole)
    (tmp_path / "more" / "p2" / "GTV-9.nii").write_bytes(whole[:500])
    (tmp_path / "more" / "p0" / "GTV.9.nii.gz").write_bytes(b"")
    (tmp_path / "more" / "elsewhere" / "GTV-9.nii").write_bytes(whole)
    reasons = dskprep.annotate(target, tmp_path / "more").reasons
    assert reasons == {"refused: label-off-grid": 1, "refused: label-damaged": 2, "refused: label-unlinked": 1}
    assert dskprep.export("monai", target, tmp_path / "hearts", labels=["heart"]).left_out == {}
    with pytest.raises(UsageError, match=r"no volume has the labels GTV\*.*; p0 lacks GTV.9 \(label-damaged\)"):
        dskprep.export("monai", target, tmp_path / "out", labels=["GTV*"])
    assert dskprep.export("monai", target, tmp_path / "second", labels=["GTV-[19]"]).left_out == {
        "p1": "lacks GTV-9 (label-off-grid)",
        "p2": "without GTV-[19]",
        "p3": "without GTV-[19]",
    }


def test_a_volume_that_lacks_a_label_whose_source_failed_is_left_out(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fails before it is read, and has its volume by its path; one while it is drawn; one kills its worker."""
    for key in ("p0", "p2"):
        (tmp_path / "more" / key).mkdir(parents=True)
        (tmp_path / "more" / key / "GTV-9.nii").write_bytes(b"x" * 500)
    (tmp_path / "more" / "rs.dcm").write_bytes(struct_of_p1({"GTV-3": GOOD, "heart-2": GOOD}))

    def fail(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(drawing, "_draw_all", fail)
        patched.setattr(drawing, "_content", lambda url: fail() if "p0" in url else Path(url).read_bytes())
        patched.setattr(
            annotate,
            "annotate_source",
            lambda job, do=annotate.annotate_source, **how: (
                annotate.record_killed(job, target) if "p2" in job.case.url else do(job, **how)
            ),
        )
        assert dskprep.annotate(target, tmp_path / "more").counts == {"failed": 2, "killed": 1}
    assert dskprep.export("monai", target, tmp_path / "hearts", labels=["heart"]).left_out == {}
    with pytest.raises(UsageError, match=r"no volume has the labels GTV\*.*; p0 lacks GTV-9 \(MemoryError\)"):
        dskprep.export("monai", target, tmp_path / "none", labels=["GTV*"])
    left_out = dskprep.export("monai", target, tmp_path / "two", labels=["heart*"]).left_out
    assert left_out == {"p1": "lacks heart-2 (MemoryError)"}
    assert dskprep.annotate(target, tmp_path / "more", retry="failed").counts == {"written": 1, "refused": 2}
    assert dskprep.export("monai", target, tmp_path / "all", labels=["heart*"]).left_out == {}


def test_a_source_that_failed_and_of_which_nobody_knows_the_volumes_is_named(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rs.dcm").write_bytes(struct_of_p1({"GTV-3": GOOD}))
    with monkeypatch.context() as patched:
        patched.setattr(drawing, "_read", None)
        dskprep.annotate(target, tmp_path / "rs.dcm")
    with pytest.warns(UserWarning, match=r"1 label source failed, such as rs\.dcm, and nobody knows whose labels"):
        dskprep.export("monai", target, tmp_path / "out", labels=["heart"])
    dskprep.annotate(target, tmp_path / "rs.dcm", retry="failed")
    dskprep.export("monai", target, tmp_path / "out", labels=["heart"])


def test_a_label_that_is_there_from_the_same_file_is_not_lacking(target: str, tmp_path: Path) -> None:
    (tmp_path / "rs.dcm").write_bytes(struct_of_p1({"GTV-3": GOOD, "GTV-4": GOOD}))
    dskprep.annotate(target, tmp_path / "rs.dcm", only=["GTV-3"])
    assert dskprep.annotate(target, tmp_path / "rs.dcm").lost_labels == {"label-exists": 1}
    assert set(dskprep.export("monai", target, tmp_path / "out", labels=["GTV*"]).left_out) == {"p3"}
    (tmp_path / "other.dcm").write_bytes(struct_of_p1({"GTV-3": GOOD[:1] * 2, "GTV-5": GOOD}))
    assert dskprep.annotate(target, tmp_path / "other.dcm").lost_labels == {"label-exists": 1}
    left_out = dskprep.export("monai", target, tmp_path / "out", labels=["GTV*"]).left_out
    assert left_out == {"p1": "lacks GTV-3 (label-exists)", "p3": "without GTV*"}


@pytest.mark.parametrize("kind", ["nnunet", "monai"])
def test_a_volume_whose_lungs_were_not_found_is_left_out(tmp_path: Path, kind: str) -> None:
    """Its mask has no voxel: it would be trained with as a chest without lungs."""
    tiny.write(tmp_path / "in/air", tiny.series(1, RescaleIntercept=0))  # all of it is denser than lung
    tiny.write(tmp_path / "in/good", tiny.series(0))
    dskprep.run(tmp_path / "in", tmp_path / "ds", settings=SETTINGS)
    summary = dskprep.export(kind, tmp_path / "ds", tmp_path / "out")
    assert summary.counts == {"written": 1, "left-out": 1}
    assert summary.left_out == {"air": "without lungs (lungs-not-found)"}
    assert {path.name[:4] for path in (tmp_path / "out").rglob("*.nii.gz")} == {"good"}


def test_a_place_that_cannot_be_is_said_before_there_are_workers(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "workers_of", None)
    tiny.write(tmp_path / "theirs", {"a.txt": b"mine"})
    tiny.write(tmp_path / "file", {"Dataset001_X": b"mine"})
    for out, said in (("theirs", "or an export, found a.txt"), ("file/Dataset001_X", "expected a folder")):
        for kind in ("nnunet", "croissant"):
            assert commands.run_command(["export", kind, target, f"{tmp_path}/{out}"]) == 2
            line = capsys.readouterr().err
            assert said in line
            assert line.count(str(tmp_path)) == 1, line


@pytest.mark.parametrize("labels", [(), ("lungs",), ("heart",)])
def test_monai_gets_a_datalist(target: str, tmp_path: Path, labels: tuple[str, ...]) -> None:
    split = dskprep.open_dataset(target).split(folds=2, shares=(0.5, 0.25, 0.25), stratify=())
    out = str(tmp_path / "out")
    dskprep.export("monai", target, out, labels=labels, split=split.save(tmp_path / "s.json"))
    content = read(out, "datalist.json")
    parts = {"training": "train", "validation": "validation", "testing": "test"}
    for part, name in parts.items():
        assert [item["image"] for item in content[part]] == [f"images/{key}.nii.gz" for key in sorted(split.part(name))]
        for item in content[part]:
            assert ("label" in item, "fold" in item) == (bool(labels), part != "testing")
            assert all((Path(out) / item[kind]).exists() for kind in ("image", "label") if kind in item)


@pytest.mark.slow
@pytest.mark.cluster
def test_the_same_dataset_gives_the_same_bytes_whoever_writes_them(target: str, tmp_path: Path) -> None:
    dskprep.export("nnunet", target, tmp_path / "a/X", labels=["heart"])
    with dskprep.local_client(2) as client:
        dskprep.export("nnunet", target, tmp_path / "b/X", labels=["heart"], client=client)
    one = tiny.everything_below(tmp_path / "a/X")
    assert one == tiny.everything_below(tmp_path / "b/X")
    assert {content[4:8] for name, content in one.items() if name.endswith(".gz")} == {bytes(4)}  # no time


def test_an_export_of_another_dataset_is_left_alone(target: str, tmp_path: Path) -> None:
    """Its volumes are not in this dataset, and would be deleted; those of equal keys would be written over."""
    out, other = tmp_path / "out", tmp_path / "other"
    dskprep.export("monai", target, out, labels=["heart"])
    before = tiny.everything_below(out)
    tiny.write(tmp_path / "in2/p1", tiny.series(9))
    dskprep.run(tmp_path / "in2", other, settings=SETTINGS)
    mask = np.zeros(dskprep.open_dataset(other)["p1"].shape, np.uint8)
    mask[4:8, 4:9, 4:9] = 1
    image = dskprep.to_nifti(dskprep.Volume(mask, dskprep.open_dataset(other)["p1"].affine))
    (tmp_path / "labels2/p1").mkdir(parents=True)
    image.to_filename(tmp_path / "labels2/p1/heart.nii.gz")
    dskprep.annotate(other, tmp_path / "labels2")
    with pytest.raises(UsageError, match="another export: dataset is"):
        dskprep.export("monai", other, out, labels=["heart"])
    assert tiny.everything_below(out) == before
    moved = shutil.move(target, tmp_path / "moved")
    assert dskprep.export("monai", moved, out, labels=["heart"]).counts["written"] == 0
    begun = json.loads((out / ".dskprep/export.json").read_text())
    del begun["dataset"]
    (out / ".dskprep/export.json").write_text(json.dumps(begun))  # as it was written before
    assert dskprep.export("monai", moved, out, labels=["heart"]).counts["written"] == 0


def test_an_export_whose_first_write_failed_can_be_done_again(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def fail(*_: Any) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "link", fail)
        full.setattr(Path, "replace", fail)
        with pytest.raises(InfrastructureError, match="No space left"):
            dskprep.export("monai", target, out)
    assert [path.name for path in out.iterdir()] == [".dskprep"]
    (out / ".dskprep/export.json.0123456789ab.part").write_text("{")  # as of a process that was killed
    (out / ".dskprep/mine").write_text("mine")
    with pytest.raises(UsageError, match=r"or an export, found \.dskprep"):
        dskprep.export("monai", target, out)
    (out / ".dskprep/mine").unlink()
    assert dskprep.export("monai", target, out).exit_code == 0


def test_an_export_goes_on_where_it_was(target: str, tmp_path: Path) -> None:
    """One volume is damaged: it is named, the export is not whole, and once it is mended only what lacks is written."""
    out = tmp_path / "out"
    (shard,) = Path(target).glob("volumes/p1.zarr/0/c/0/0/0")
    good = shard.read_bytes()
    shard.write_bytes(good[:-1])
    summary = dskprep.export("nnunet", target, out, labels=["heart"])
    assert summary.counts == {"written": 3, "failed": 1}
    assert summary.exit_code == 1
    assert "expected" in summary.failed["p1"]
    assert not (out / "dataset.json").exists()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    shard.write_bytes(good)
    again = dskprep.export("nnunet", target, out, labels=["heart"])
    assert again.counts == {"written": 1, "already": 3}
    assert {path: path.stat().st_mtime_ns for path in times} == times
    dskprep.export("nnunet", target, tmp_path / "at once/out", labels=["heart"])
    assert tiny.everything_below(out) == tiny.everything_below(tmp_path / "at once/out")


def test_nothing_is_left_of_a_process_that_was_killed(target: str, tmp_path: Path) -> None:
    """Not the files that it was writing; but those that another process may be writing now, and those of others."""
    out = tmp_path / "out"
    dskprep.export("nnunet", target, out, labels=["heart"])
    whole = tiny.everything_below(out)
    ours = (
        "imagesTr/p1_0000.nii.gz",
        "labelsTr/p1.nii.gz",
        ".dskprep/export.json",
        ".dskprep/volumes/p1.json",
        "dataset.json",
    )
    for name in ours:
        (out / f"{name}.0123456789ab.part").write_bytes(b"half of it")
        os.utime(out / f"{name}.0123456789ab.part", (1e9, 1e9))
    theirs = {"imagesTr/notes.txt.0123456789ab.part": b"1", "imagesTr/p1_0000.nii.gz.part": b"2"}
    for name, content in theirs.items():
        (out / name).write_bytes(content)
        os.utime(out / name, (1e9, 1e9))
    young = "labelsTr/p2.nii.gz.0123456789ab.part"
    (out / young).write_bytes(b"3")
    os.utime(out / young, (4e9, 4e9))
    (out / "labelsTr/p0.nii.gz").unlink()
    assert dskprep.export("nnunet", target, out, labels=["heart"]).counts == {"written": 1, "already": 3}
    assert tiny.everything_below(out) == whole | theirs | {young: b"3"}


def test_a_volume_that_a_worker_has_no_memory_for_is_named(target: str, tmp_path: Path) -> None:
    name = next(name for name in store.record_names(target) if name.key == "p1")
    job = ExportJob(name, "images/p1.nii.gz", "", (), "0")
    done = export_volume(job, target=target, out=str(tmp_path / "out"), memory_bytes=1)
    assert re.search(r"needs \d+ MiB, and a worker has 0 MiB; export again with --memory-limit \d", done.problem)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_gone_or_cut_is_written_again(target: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dskprep.export("monai", target, out, labels=["heart"])
    before = tiny.everything_below(out)
    (out / "images/p0.nii.gz").unlink()
    (out / "labels/p2.nii.gz").write_bytes(b"cut")
    (out / ".dskprep/volumes/p3.json").write_bytes(b"{")
    record = out / ".dskprep/volumes/p1.json"
    record.rename(f"{record}.0123456789ab.part")  # killed before it got its name
    os.utime(f"{record}.0123456789ab.part", (1e9, 1e9))
    assert dskprep.export("monai", target, out, labels=["heart"]).counts == {"written": 4}
    assert tiny.everything_below(out) == before


def test_a_volume_that_was_made_anew_of_the_same_files_is_exported_anew(
    target: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with another version of a network, whose name in the settings is the same."""
    out = tmp_path / "out"
    dskprep.export("monai", target, out)
    before = tiny.everything_below(out)
    halves = own_masks.halves
    monkeypatch.setattr(own_masks, "halves", lambda image: image.with_array(halves(image).array > 1))
    for name in list(store.record_names(target)):
        if name.key == "p0":
            store.forget(target, [name])
    dskprep.run(original.parent / "scans", target, settings=SETTINGS)
    assert dskprep.export("monai", target, out).counts == {"already": 3, "written": 1}
    after = tiny.everything_below(out)
    assert {name for name in after if after[name] != before[name]} == {"labels/p0.nii.gz", ".dskprep/volumes/p0.json"}


@pytest.mark.parametrize("n", [0, 1, 2])
def test_an_export_that_was_killed_as_it_dropped_a_volume_drops_it_the_next_time(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    out = tmp_path / "out"
    dskprep.export("nnunet", target, out, labels=["heart"])
    for name in list(store.record_names(target)):
        if name.key == "p0":
            store.forget(target, [name])
    delete, deleted = storage.delete, list[str]()

    def killed(url: str, names: Iterable[str]) -> None:
        for name in names:
            if "p0" in name:
                if len(deleted) == n:
                    raise KeyboardInterrupt
                deleted.append(name)
            delete(url, [name])

    with monkeypatch.context() as patched:
        patched.setattr(storage, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            dskprep.export("nnunet", target, out, labels=["heart"])
    assert dskprep.export("nnunet", target, out, labels=["heart"]).exit_code == 0
    assert not [path for path in out.rglob("*") if "p0" in path.name]


def test_a_mask_that_somebody_has_corrected_stays_and_is_named(target: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dskprep.export("monai", target, out, labels=["heart"])
    (out / "labels/p0.nii.gz").write_bytes(gzip.compress(b"corrected"))
    notes: list[str] = []

    class Noted(dskprep.Observer):
        def on_note(self, message: str) -> None:
            notes.append(message)

    again = dskprep.export("monai", target, out, labels=["heart"], observers=[Noted()])
    assert (again.counts, again.exit_code) == ({"already": 4}, 0)
    assert notes == ["labels/p0.nii.gz: somebody has changed it since it was written; it stays"]
    mask = bytearray((out / "labels/p1.nii.gz").read_bytes())
    mask[4] ^= 1  # the time in the header of gzip: of the same size
    (out / "labels/p1.nii.gz").write_bytes(mask)
    theirs = {key: (out / f"labels/{key}.nii.gz").read_bytes() for key in ("p0", "p1")}
    for name in list(store.record_names(target)):
        if name.key in ("p0", "p1", "p2"):
            store.forget(target, [name])
    summary = dskprep.export("monai", target, out, labels=["heart"])
    assert (summary.counts, summary.exit_code) == ({"failed": 2, "already": 1}, 1)
    assert summary.failed["p0"].startswith("labels/p0.nii.gz: somebody has changed it since")
    for key, content in theirs.items():
        assert (out / f"labels/{key}.nii.gz").read_bytes() == content
    assert not (out / "labels/p2.nii.gz").exists()
    for key in theirs:
        (out / f"labels/{key}.nii.gz").unlink()
    assert dskprep.export("monai", target, out, labels=["heart"]).exit_code == 0


@pytest.mark.parametrize(
    ("kind", "path"), [("monai", "datalist.json"), ("nnunet", "dataset.json"), ("croissant", "README.md")]
)
def test_a_description_that_somebody_has_changed_stays_and_is_named(
    target: str, tmp_path: Path, kind: str, path: str
) -> None:
    out, mine, notes = str(tmp_path / "Dataset001_Mine"), tmp_path / "Dataset001_Mine" / path, list[str]()
    asked: dict[str, Any] = {} if kind == "croissant" else {"labels": ["heart"]}

    class Noted(dskprep.Observer):
        def on_note(self, message: str) -> None:
            notes.append(message)

    assert dskprep.export(kind, target, out, **asked).exit_code == 0
    mine.write_text("mine")
    again = dskprep.export(kind, target, out, **asked, observers=[Noted()])
    assert (again.exit_code, mine.read_text()) == (0, "mine")
    assert notes == [f"{path}: somebody has changed it since it was written; it stays"]
    dskprep.forget(target, ["p0"])
    changed = dskprep.export(kind, target, out, **asked)
    assert (changed.exit_code, mine.read_text()) == (1, "mine")
    assert "move it away" in changed.failed[path]
    mine.unlink()
    assert dskprep.export(kind, target, out, **asked).exit_code == 0
    assert mine.read_text() != "mine"


def test_what_the_dataset_has_no_more_goes_and_what_changed_is_made_anew(target: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dskprep.export("monai", target, out, labels=["heart"])
    (out / "notes.txt").write_text("mine")
    for name in list(store.record_names(target)):
        if name.key == "p0":
            store.forget(target, [name])
    dskprep.forget_labels(target, "heart")
    heart = masks_of("p1")["heart"] * 0
    heart[6:8, 2:4, 2:4] = 1
    image = dskprep.to_nifti(dskprep.Volume(heart, dskprep.open_dataset(target)["p1"].affine))
    (tmp_path / "new/p1").mkdir(parents=True)
    image.to_filename(tmp_path / "new/p1/heart.nii.gz")
    dskprep.annotate(target, tmp_path / "new")
    assert dskprep.export("monai", target, out, labels=["heart"]).counts == {"written": 1, "left-out": 2}
    assert {p.name for p in out.rglob("*.nii.gz")} == {"p1.nii.gz"}
    mask, _ = voxels(str(out), "labels/p1.nii.gz", tmp_path)
    np.testing.assert_array_equal(mask, heart.transpose(2, 1, 0))
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("unchanged")
def test_places_and_wishes_that_cannot_be_are_named(target: str, tmp_path: Path) -> None:
    for out in (target, f"{target}/export", str(Path(target).parent)):
        with pytest.raises(UsageError, match="outside of the dataset"):
            dskprep.export("nnunet", target, out)
    tiny.write(tmp_path / "theirs", {"a.txt": b"mine"})
    with pytest.raises(UsageError, match=r"or an export, found a\.txt"):
        dskprep.export("nnunet", target, tmp_path / "theirs")
    with pytest.raises(UsageError, match="no volume has the labels liver; there are the labels GTV-1, GTV-2, heart"):
        dskprep.export("nnunet", target, tmp_path / "out", labels=["liver"])
    with pytest.raises(UsageError, match="must be a list of names"):
        dskprep.export("nnunet", target, tmp_path / "out", labels="heart")
    with pytest.raises(UsageError, match="each once"):
        dskprep.export("nnunet", target, tmp_path / "out", labels=["heart", "heart"])
    for reserved in (["background"], ["ignore", "heart"]):
        with pytest.raises(UsageError, match="the class background for what has no label, and the class ignore"):
            dskprep.export("monai", target, tmp_path / "out", labels=reserved)
    with pytest.raises(UsageError, match="nnunet, monai or croissant, found 'nnUNet'"):
        dskprep.export("nnUNet", target, tmp_path / "out")
    with pytest.raises(UsageError, match="no such split; dskprep split, or"):
        dskprep.export("nnunet", target, tmp_path / "out", split="v9")
    assert not (tmp_path / "out").exists()
    dskprep.export("monai", target, tmp_path / "out", labels=["heart"])
    with pytest.raises(UsageError, match=r"another export: labels is \['heart'\] there and \['lungs'\] here"):
        dskprep.export("monai", target, tmp_path / "out")


@pytest.mark.usefixtures("unchanged")
def test_croissant_describes_every_volume_by_its_bytes(target: str, place: str) -> None:
    out = f"{place}/chests"
    dskprep.export("croissant", target, out, licence="https://creativecommons.org/licenses/by/4.0/")
    content = read(out, "croissant.json")
    index = storage.read(f"{out}/index.parquet")
    assert content["distribution"][0]["sha256"] == hashlib.sha256(index).hexdigest()
    assert content["license"] == "https://creativecommons.org/licenses/by/4.0/"
    import io

    table = pd.read_parquet(io.BytesIO(index)).set_index("key")
    assert list(table.index) == KEYS
    fields = [field["source"]["extract"]["column"] for field in content["recordSet"][0]["field"]]
    assert fields == ["key", *table.columns]
    card = storage.read(f"{out}/README.md").decode()
    assert "| `mean_lung_hu` | Mean HU within the lungs |" in card
    assert "does not write" not in card  # which is said of columns that nobody explained
    for key in KEYS:
        objects = tiny.everything_below(f"{target}/{table.loc[key, 'volume']}")
        own = sorted(name for name in objects if not name.startswith(("labels/GTV", "labels/heart", "labels/zarr")))
        known = dskprep.open_dataset(target)[key].record.objects
        lines = [f"{hashlib.sha256(objects[n]).hexdigest()}  {n}\n" for n in own] if set(own) == set(known) else []
        recorded = [f"{about.sha256}  {n}\n" for n, about in sorted(known.items())]
        assert hashlib.sha256("".join(lines or recorded).encode()).hexdigest() == table.loc[key, "volume_sha256"]
    told = b"".join(tiny.everything_below(out).values())
    for word in (*tiny.IDENTITY, str(Path(target).parent), "series_uid"):
        assert word.encode() not in told
    before = tiny.everything_below(out)
    dskprep.export("croissant", target, out, licence="https://creativecommons.org/licenses/by/4.0/")
    assert tiny.everything_below(out) == before


def test_nnunet_itself_finds_no_fault(tmp_path: Path) -> None:
    verification = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity")
    scanner.write_patients(str(tmp_path / "in"), 3, spacing_mm=(4.0, 3.0, 3.0), shape=(72, 120, 120), broken=False)
    dskprep.run(tmp_path / "in", tmp_path / "ds", settings=PrepConfig(spacing_mm=(4, 3, 3), chunk=16))
    dskprep.export("nnunet", tmp_path / "ds", tmp_path / "Dataset001_Lungs")
    verification.verify_dataset_integrity(str(tmp_path / "Dataset001_Lungs"), 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of rdflib, on which it builds
def test_mlcroissant_finds_no_fault_and_reads_the_records(target: str, tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    split = dskprep.open_dataset(target).split(folds=2, stratify=()).save(tmp_path / "s.json")
    dskprep.export("croissant", target, tmp_path / "out", split=split, licence="CC-BY-4.0")
    described = mlcroissant.Dataset(str(tmp_path / "out/croissant.json"))
    assert not described.metadata.issues.errors
    records = list(described.records("volumes"))
    assert [record["volumes/key"].decode() for record in records] == KEYS
    assert {record["volumes/fold"] for record in records} == {0, 1}


def test_a_name_that_nnunet_does_not_find_is_noted(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, meant in (("lungs", "Dataset001_lungs"), ("Dataset1_a", "Dataset001_a"), ("Dataset002_a", None)):
        for kind in ("nnunet", "monai"):
            words = ["export", kind, target, f"{tmp_path}/{kind}/{name}", "--scheduler", "sync"]
            assert commands.run_command(words) == 0
            said = capsys.readouterr().out
            told = f"note: nnU-Net finds only folders with names such as {meant}; rename {name} before"
            assert (told in said, "nnU-Net" in said) == (kind == "nnunet" and meant is not None,) * 2


def test_the_commands_do_the_same(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("id,grade\n" + "".join(f"{key},{i % 2}\n" for i, key in enumerate(KEYS)))
    words = [
        "split",
        target,
        "v1",
        "--folds",
        "2",
        "--stratify",
        "grade",
        "--join",
        f"{tmp_path}/t.csv",
        "--column",
        "id",
    ]
    assert commands.run_command(words) == 0
    assert "folds of 2, 2 volumes" in capsys.readouterr().out
    assert commands.run_command(["split", target, "v2", "--extend", "v1"]) == 2
    assert "'grade'" in capsys.readouterr().err
    assert commands.run_command(["split", target, "v1", "--folds", "3", "--balanced"]) == 2
    told = capsys.readouterr()
    assert (told.out, "another split of this name" in told.err) == ("", True)
    assert commands.run_command(["split", target, "v2", "--extend", "v1", "--folds", "3"]) == 2
    assert "leave out --folds" in capsys.readouterr().err
    assert commands.run_command(["split", target, "v3", "--shares", "a,b"]) == 2
    assert "--shares must be numbers" in capsys.readouterr().err
    out = f"{tmp_path}/out"
    words = ["export", "monai", target, out, "--labels", "GTV*", "--split", "v1", "--scheduler", "sync"]
    assert commands.run_command(words) == 0  # reading a split takes no column that it was stratified by
    assert commands.run_command(["split", target, "v4", "--folds", "2", "--balanced"]) == 0
    told = capsys.readouterr().out
    assert "written  p0" in told
    assert "monai: 1 left out, 3 written in " in told
    assert "left out: 1 without GTV*: p3" in told
    assert commands.run_command([*words, "--log-json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["counts"] == {"already": 3, "left-out": 1}
    assert commands.run_command(["export", "croissant", target, f"{out}2"]) == 0

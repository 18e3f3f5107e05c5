"""Labels for volumes that are there: linked by what they name, exact or refused by name, never at the image's cost."""

from __future__ import annotations

import contextlib
import copy
import datetime
import gc
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tiny
import zarr
from builders import ct_file, distinct
from click.testing import CliRunner
from distributed import Client, WorkerPlugin
from label_builders import (
    FRAME_OF_REFERENCE,
    IMAGE,
    SERIES,
    frames_of,
    grid_of,
    lidc_file,
    nodule_xml,
    ring,
    rtstruct_dataset,
    rtstruct_file,
    seg_dataset,
    seg_file,
    written,
)
from numpy.typing import NDArray
from pydicom import Dataset

import dskprep
from dskprep import keys, storage, tables
from dskprep.cli import commands
from dskprep.dataset import identity, label_record, label_store, store
from dskprep.errors import DamagedDataset, DskprepError, InfrastructureError, Refusal, UsageError
from dskprep.labels import hold, memory, seg, seg_pixels
from dskprep.pipeline import annotate as pipeline
from dskprep.settings import PrepConfig
from dskprep.synthetic import scanner
from dskprep.worker import admission, drawing, process, side_words

SHAPE = (10, 24, 20)
GRID = grid_of(SHAPE, (1.0, 1.0, 1.0))
"""The grid of the series; that of its volume is the same."""
SETTINGS = PrepConfig(check_hu=False, lungs=False, min_slices=4)
BOX = np.zeros(SHAPE, np.bool_)
BOX[2:6, 5:12, 4:15] = True


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WAIT_S", 0.0)


def write_series(folder: Path, *, series: str = SERIES, seed: int = 0, first: int = 0, **attributes: Any) -> None:
    """A series on GRID, whose slice k is the instance IMAGE.k; slice 0 is IMAGE itself, as labels name it."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.random.default_rng(seed).permutation(distinct(*SHAPE).ravel()).reshape(SHAPE)
    about = {"SeriesInstanceUID": series, "FrameOfReferenceUID": FRAME_OF_REFERENCE, "PixelSpacing": [1, 1]}
    for k, plane in enumerate(stored):
        instance = IMAGE if (k, first) == (0, 0) else f"{series}.{first + k}"
        content = ct_file(plane, GRID.to_patient((k, 0, 0)), **(about | {"SOPInstanceUID": instance} | attributes))
        (folder / f"{k:03}.dcm").write_bytes(content)


def prepare(place: str, *, settings: PrepConfig = SETTINGS, **series: dict[str, Any]) -> str:
    """A dataset at the place of the series `p` of labels, and of others; return its URL."""
    source = Path(os.environ["DSKPREP_TEST_SOURCE"])
    for key, attributes in ({"p": {}} | series).items():
        if not (source / key).exists():
            write_series(source / key, **attributes)
    target = storage.join(place, "out")
    assert dskprep.run(source, target, settings=settings).exit_code == 0
    return target


@pytest.fixture(autouse=True)
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSKPREP_TEST_SOURCE", str(tmp_path / "in"))
    return tmp_path / "in"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    (tmp_path / "labels").mkdir()
    return tmp_path / "labels"


def annotate(target: str, labels: Path | str, **how: Any) -> dskprep.LabelSummary:
    return dskprep.annotate(target, labels, **how)


def test_a_record_that_another_annotate_deletes_while_it_is_read_is_no_traceback(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepare(str(tmp_path))
    for k in range(3):
        (labels / f"{k}.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=(f"Tumour-{k}",)))
    annotate(target, labels)
    Path(target, "annotations.parquet").unlink()
    listing, losses = label_store.list_records, [1, 2]

    def list_and_lose(place: str) -> Iterator[Any]:
        found = list(listing(place))
        if losses:  # between the listing and the reading, as `--forget` and `--retry` do
            losses.pop()
            Path(place, found[0][0].path).unlink()
        return iter(found)

    monkeypatch.setattr(label_store, "list_records", list_and_lose)
    assert len(dskprep.open_dataset(target).annotations) == 1


def test_a_label_that_another_annotate_has_recorded_meanwhile_is_not_taken_for_a_leftover(
    tmp_path: Path, labels: Path
) -> None:
    """Both do one file, under other options; the second began before the first had a record."""
    target = prepare(str(tmp_path))
    (labels / "1.dcm").write_bytes(seg_file(GRID, frames_of(BOX)))
    annotate(target, labels)
    record = only_record(target)
    (label,) = record.written
    volume, before = store.volume_url(target, label.volume), tiny.everything_below(target)
    objects = {path: storage.read(f"{volume}/{path}") + b" " for path in label.objects}
    other = f"{record.source}.0123abcd"
    with pytest.raises(Refusal, match=f"label-exists.*of {record.source}"):
        label_store.write_label(target, label.volume, label.label, objects, other)
    assert tiny.everything_below(target) == before
    Path(target, record.name.path).unlink()  # now it is one
    assert label_store.write_label(target, label.volume, label.label, objects, other).keys() == objects.keys()


def only_record(target: str) -> Any:
    ((name, _),) = label_store.list_records(target)
    return label_store.read_record(target, name)


def content(target: str) -> dict[str, bytes]:
    """All objects of a dataset, by name."""
    return {e.name: storage.read(storage.join(target, e.name)) for e in storage.listing_below(target)}


def test_a_seg_is_in_its_volume_voxel_for_voxel_and_the_image_is_as_it_was(place: str, labels: Path) -> None:
    target = prepare(place)
    before = content(target)
    (labels / "lungs.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    summary = annotate(target, labels)
    assert (summary.counts, summary.labels, summary.exit_code) == ({"written": 1}, 1, 0)
    volume = dskprep.open_dataset(target)["p"]
    assert np.array_equal(volume.labels["Tumour"][:], BOX)
    assert np.array_equal(volume.load("Tumour").array, BOX)
    assert volume.patch((4, 7, 11), index=(4, 8.5, 9.5), of="Tumour").array.all()
    row = dskprep.open_dataset(target).annotations.iloc[0]
    assert (row["key"], row["kind"], row["name"], row["code"]) == ("p", "seg", "Tumour", "39607008")
    assert row["ml"] == pytest.approx(BOX.sum() / 1000)
    middle = GRID.to_patient(np.argwhere(BOX).mean(0))
    assert row[["x", "y", "z"]].to_numpy(float) == pytest.approx(middle, abs=1e-3)
    low, high = GRID.to_patient((2, 5, 4)), GRID.to_patient((5, 11, 14))
    assert row[["x_min", "y_min", "z_min", "x_max", "y_max", "z_max"]].to_list() == pytest.approx([*low, *high])
    after = content(target)
    assert {name: after[name] for name in before if name != "index.parquet"} == {
        name: bytes_ for name, bytes_ in before.items() if name != "index.parquet"
    }


def test_any_reader_of_ome_zarr_finds_the_label(place: str, labels: Path) -> None:
    target = prepare(place, settings=PrepConfig(check_hu=False))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    url = storage.join(store.volume_url(target, "p"), "labels")
    listed = json.loads(storage.read(storage.join(url, "zarr.json")))["attributes"]["ome"]["labels"]
    assert listed == ["lungs", "Tumour"]
    about = json.loads(storage.read(storage.join(url, "Tumour/zarr.json")))["attributes"]["ome"]
    assert about["image-label"]["properties"] == [{"label-value": 1, "name": "Tumour"}]
    if not storage.is_bucket(target):
        assert np.array_equal(zarr.open_group(url, mode="r")["Tumour/0"][:], BOX)  # type: ignore[index]


def test_an_rtstruct_beside_its_slices_is_taken_by_the_run_and_named_by_patterns(place: str, source: Path) -> None:
    square = [(-5, -15, -28), (1, -15, -28), (1, -9, -28), (-5, -9, -28)]
    rois = {"GTV-1": [square], "Lung-Left": [square], "Isocentre": []}
    write_series(source / "p")
    (source / "p" / "RS.1.dcm").write_bytes(rtstruct_file(rois))
    target = storage.join(place, "out")
    summary = dskprep.run(source, target, settings=SETTINGS, labels=["RS.*"])
    assert summary.labels is not None
    assert (summary.account.counts, summary.labels.counts) == ({"written": 1}, {"written": 1})
    assert summary.labels.lost_labels == {"label-empty": 1}
    assert summary.exit_code == 0  # an isocentre is no loss
    volume = dskprep.open_dataset(target)["p"]
    assert sorted(volume.labels) == ["GTV-1", "Lung-Left"]
    assert volume.labels.about["GTV-1"].interpreted_type == "ORGAN"
    assert volume.labels["GTV-1"][:].sum() == 36
    again = dskprep.run(source, target, settings=SETTINGS, labels=["RS.*"])
    assert again.labels is not None
    assert again.labels.already == {"written": 1}


def test_a_source_that_is_empty_is_set_aside_and_one_with_a_damaged_label_beside_it_is_not(
    place: str, labels: Path
) -> None:
    target = prepare(place)
    (labels / "p.nii").write_bytes(nifti(BOX * 0, GRID.affine))
    (labels / "iso.dcm").write_bytes(rtstruct_file({"Isocentre": [], "Couch": []}))
    summary = annotate(target, labels)
    assert (summary.counts, summary.exit_code) == ({"set-aside": 2}, 0)
    assert summary.reasons == {"set-aside: label-empty": 2}
    assert annotate(target, labels).already == {"set-aside": 2}
    status = dskprep.status(target)
    assert (status.label_sources, status.is_clean) == ({"set-aside": 2}, True)
    bent = [(-5, -15, -28), (1, -15, -28), (1, -9, -20), (-5, -9, -28)]
    (labels / "bent.dcm").write_bytes(rtstruct_file({"Isocentre": [], "GTV": [bent]}))
    summary = annotate(target, labels)
    assert (summary.counts, summary.exit_code) == ({"set-aside": 2, "refused": 1}, 1)
    assert summary.reasons["refused: label-damaged"] == 1


def test_a_run_whose_pattern_of_labels_matches_no_file_has_not_done_all(tmp_path: Path, source: Path) -> None:
    write_series(source / "p")
    target = str(tmp_path / "out")
    for _ in range(2):
        summary = dskprep.run(source, target, settings=SETTINGS, labels=["*RTSTRUKT*"])
        assert (summary.account.counts, summary.exit_code) == ({"written": 1}, 1)
    assert dskprep.run(source, target, settings=SETTINGS).exit_code == 0


def test_only_the_labels_that_are_asked_for_are_drawn_and_others_can_follow(place: str, labels: Path) -> None:
    target = prepare(place)
    frames = [*frames_of(BOX, 1), *frames_of(~BOX, 2)]
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames, names=("GTV-1", "Body")))
    annotate(target, labels, only=["gtv*"])
    assert list(dskprep.open_dataset(target)["p"].labels) == ["GTV-1"]
    annotate(target, labels, only=["Body"], name_as="{file}-{name}")
    assert sorted(dskprep.open_dataset(target)["p"].labels) == ["GTV-1", "a-Body"]
    summary = annotate(target, labels, only=["Heart"])
    assert (summary.reasons, summary.exit_code) == ({"set-aside: label-not-asked": 1}, 0)


def test_the_nodules_of_lidc_are_labels_and_points_with_ratings(place: str, labels: Path) -> None:
    target = prepare(place)
    outlines = [(-28.0, ring(12, 10, 4)), (-27.0, ring(12, 10, 4))]
    first = nodule_xml("a", outlines, [3, 1, 6, 3, 4, 1, 2, 5, 4])
    second = nodule_xml("b", outlines, [2, 1, 6, 3, 4, 1, 2, 5, 2])
    (labels / "1.xml").write_bytes(lidc_file(first, second))
    summary = annotate(target, labels)
    assert (summary.labels, summary.points) == (3, 2)
    volume = dskprep.open_dataset(target)["p"]
    truth = np.zeros(SHAPE, np.bool_)
    truth[2:4, 9:16, 7:14] = True
    assert np.array_equal(volume.labels["nodule-1"][:], truth)
    assert volume.points["malignancy"].to_list() == [4, 2]
    about = repr(volume.labels.about["nodule-1"])
    assert about == "<StoredLabel nodule-1 of p: 'nodule-1', 0.098 ml around (0.0, -8.0, -27.5) mm>"
    assert volume.points[["x", "y", "z"]].to_numpy()[0] == pytest.approx(GRID.to_patient((2.5, 12, 10)))


def lidc_of_two(labels: Path) -> None:
    """One nodule whose two readers outline 3 x 3 and 7 x 7 pixels in two slices: 98 voxels as half of them say."""
    marks = [nodule_xml(str(r), [(z, ring(12, 10, r)) for z in (-28.0, -27.0)], [3] * 9) for r in (2, 4)]
    labels.mkdir(exist_ok=True)
    (labels / "1.xml").write_bytes(lidc_file(*marks))


def test_a_pattern_takes_what_each_reader_drew_only_if_it_says_so(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    lidc_of_two(labels)
    annotate(target, labels, consensus=1.0)  # both agree on 3 x 3 pixels
    dataset = dskprep.open_dataset(target)
    sizes = {"nodule-*": 18, "nodule-*-READER-*": 98, "nodule-1-reader-1": 18, "nodule-1-reader-2": 98, "nodule-1": 18}
    patches = dataset.patches(SHAPE, around="nodules", positives=1.0, labels=[*sizes], jitter_mm=0)
    assert {name: int(mask.sum()) for name, mask in patches[0].labels.items()} == sizes
    assert len(dataset.patches(8, around="nodule-*", positives=1.0).places) == 1  # type: ignore[union-attr]
    assert len(dataset.patches(8, around="*reader*", positives=1.0).places) == 2  # type: ignore[union-attr]
    (batch,) = itertools.islice(dataset.stream(SHAPE, 1, around="nodules", positives=1.0, labels=["nodule-?*"]), 1)
    assert int(batch["nodule-?*"].sum()) == 18
    for pattern, n_voxels in sizes.items():
        out = tmp_path / pattern.replace("*", "_") / "Dataset001_X"
        dskprep.export("nnunet", target, out, labels=[pattern])
        assert np.asarray(nibabel.load(out / "labelsTr/p.nii.gz").dataobj).sum() == n_voxels  # type: ignore[attr-defined]
    other = prepare(str(tmp_path / "other"))
    annotate(other, labels, only=["NODULE-*"])
    assert list(dskprep.open_dataset(other)["p"].labels) == ["nodule-1"]
    assert dskprep.forget_labels(target, "nodule-*")  # deletes all that it matches
    assert list(dskprep.open_dataset(target)["p"].labels) == []


@pytest.mark.parametrize("is_one_file", [True, False])
def test_a_refusal_of_another_consensus_has_the_commands_that_change_it(
    tmp_path: Path, labels: Path, is_one_file: bool
) -> None:
    target, run = prepare(str(tmp_path)), CliRunner().invoke
    lidc_of_two(labels / "scan 1")
    assert annotate(target, labels).labels == 3
    asked = ["annotate", target, str(labels / "scan 1/1.xml" if is_one_file else labels), "--consensus", "0.75"]
    done = run(commands.main, [*asked, "--scheduler", "sync"], standalone_mode=False)
    assert (done.return_value, done.stdout.count("'nodule-1'")) == (1, 1)
    assert "0 labels and 0 points written" in done.stdout
    assert "are there from scan_1__1.xml" in done.stdout.replace("\n", " ")
    records = [label_store.read_record(target, name) for name, _ in label_store.list_records(target)]
    (message,) = (record.message for record in records if record.message)
    commands_ = [shlex.split(text) for text in re.findall("`(.*?)`", message)]
    assert [words[:3] for words in commands_] == [["dskprep", "annotate", target]] * 2
    for words in commands_:
        more = [] if "--forget" in words else ["--scheduler", "sync"]
        assert run(commands.main, [*words[1:], *more], standalone_mode=False).return_value == 0
    volume = dskprep.open_dataset(target)["p"]
    assert (len(volume.labels), len(volume.points)) == (3, 2)
    assert volume.labels["nodule-1"][:].sum() == 18  # both agree
    same = annotate(target, asked[2], consensus=0.75)
    assert (same.already, same.exit_code) == ({"written": 1}, 0)


def test_outlines_of_lidc_lie_in_the_slices_of_their_uids(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    by_uid = nodule_xml("a", [(None, ring(12, 10, 4))] * 2, [3] * 9, instances=[f"{SERIES}.2", f"{SERIES}.3"])
    (labels / "1.xml").write_bytes(lidc_file(by_uid))
    wrong = nodule_xml("b", [(-28.0, ring(12, 10, 4))], [3] * 9, instances=[f"{SERIES}.3"])
    (labels / "2.xml").write_bytes(lidc_file(wrong))
    (labels / "3.xml").write_bytes(lidc_file(wrong, nodule_xml("c", [(-28.0, [(10, 12)])])))
    summary = annotate(target, labels)
    assert (summary.reasons, summary.warnings) == ({"refused: label-off-grid": 1}, {"marks-left-out": 1})
    messages = [label_store.read_record(target, name).message for name, _ in label_store.list_records(target)]
    assert any("left out: 'b' of reader 1: expected imageZposition and" in (text or "") for text in messages)
    truth = np.zeros(SHAPE, np.bool_)
    truth[2:4, 9:16, 7:14] = True
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["nodule-1"][:], truth)


def test_a_label_that_names_no_slice_of_a_series_of_two_patients_is_refused(
    tmp_path: Path, source: Path, labels: Path
) -> None:
    for n, who in enumerate("AB"):
        write_series(source / f"p/{who}", seed=n, first=100 * n, PatientID=who)
    target = prepare(str(tmp_path))
    assert len(dskprep.open_dataset(target)) == 2
    ds = seg_dataset(GRID, frames_of(BOX), names=("Tumour",))
    (labels / "1.dcm").write_bytes(written(ds))  # it names a slice of A
    assert annotate(target, labels).counts == {"written": 1}
    for item in ds.ReferencedSeriesSequence:
        item.ReferencedInstanceSequence = []
    (labels / "2.dcm").write_bytes(written(ds))
    assert annotate(target, labels).reasons == {"refused: label-unlinked": 1}
    messages = [label_store.read_record(target, name).message or "" for name, _ in label_store.list_records(target)]
    assert any("the series is of several" in message for message in messages)


def test_a_label_of_another_patient_is_not_given_to_the_series_of_the_same_uid(
    tmp_path: Path, source: Path, labels: Path
) -> None:
    """As where an anonymiser wrote one SeriesInstanceUID for all, and only the other patient is there."""
    write_series(source / "p", PatientID="A", StudyInstanceUID="1.5.1")
    target = prepare(str(tmp_path))
    seg_ds = seg_dataset(GRID, frames_of(BOX), names=("Tumour",))
    seg_ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = "1.9.9.1"
    rt_ds = rtstruct_dataset({"GTV": [[(-8, -15, -26), (-2, -15, -26), (-2, -8, -26)]]})
    study = rt_ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID = "1.9.9.1"
    for ds in (seg_ds, rt_ds):
        for name, patient, study_uid in (("another", "B", "1.5.2"), ("own", "A", "1.5.2"), ("own-study", "B", "1.5.1")):
            ds.PatientID, ds.StudyInstanceUID = patient, study_uid
            (labels / f"{name}-{ds.Modality}.dcm").write_bytes(written(ds))
    by_uid = nodule_xml("a", [(-28.0, ring(12, 10, 4))] * 2, [3] * 9, instances=["1.9.9.1", "1.9.9.2"])
    (labels / "another.xml").write_bytes(lidc_file(by_uid))
    annotate(target, labels, name_as="{name}-{file}")
    found = {name.source: name.status for name, _ in label_store.list_records(target)}
    assert {source: status for source, status in found.items() if "another" in source} == {
        "another-RTSTRUCT.dcm": "refused",
        "another-SEG.dcm": "refused",
        "another.xml": "refused",
    }
    assert [status for source, status in found.items() if "another" not in source] == ["written"] * 4


def test_points_of_a_series_of_two_patients_are_refused_but_not_those_of_copies(
    tmp_path: Path, source: Path, labels: Path
) -> None:
    target = prepare(str(tmp_path), q={"seed": 1, "first": 100, "PatientID": "B"})
    x, y, z = GRID.to_patient((3, 4, 5))
    (labels / "p.csv").write_text(f"seriesuid,coordX,coordY,coordZ\n{SERIES},{x},{y},{z}\n")
    assert annotate(target, labels).reasons == {"refused: label-unlinked": 1}
    assert "found 1 point of series of several" in (only_record(target).message or "")
    write_series(source / "q")
    dskprep.run(source, target, settings=SETTINGS)
    assert annotate(target, labels, retry="unlinked").points == 2


def test_labels_that_go_with_an_image_are_told_and_count_no_more(
    tmp_path: Path, source: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where files come back from a backup with another time, and the labels are not at hand."""
    target = prepare(str(tmp_path), q={"series": "1.2.99"})
    (labels / "1.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    x, y, z = GRID.to_patient((3, 4, 5))
    (labels / "p.csv").write_text(f"key,x,y,z\np,{x},{y},{z}\nq,{x},{y},{z}\n")
    annotate(target, labels)
    assert (dskprep.status(target).labels_gone, dskprep.status(target).points) == (0, 2)
    for file in (source / "p").iterdir():
        os.utime(file, (1e9, 1e9))
    summary = dskprep.run(source, target, settings=SETTINGS)
    assert summary.account.labels_deleted == 1
    assert not [finding for finding in dskprep.verify(target) if finding.is_of_volume and finding.faults]
    assert commands.run_command(["run", str(source), target, "--config", f"{target}/dataset.json"]) == 0
    commands.run_command(["status", target])
    assert "labels and points of images that are no more: 2; dskprep annotate" in capsys.readouterr().out
    found = dskprep.status(target)
    assert (found.labels, found.points, found.labels_gone) == ({}, 1, 2)
    assert "Tumour" not in dskprep.report(target)
    annotate(target, labels)
    found = dskprep.status(target)
    assert (found.labels, found.points, found.labels_gone) == ({"Tumour": 1}, 2, 0)


def test_points_of_a_former_image_are_not_those_of_the_volume(tmp_path: Path, source: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "p.csv").write_text("key,x,y,z\np,-5,-12,-26\n")
    annotate(target, labels)
    assert len(dskprep.open_dataset(target)["p"].points) == 1
    write_series(source / "p", seed=5, PatientID="another")
    dskprep.run(source, target, settings=SETTINGS)
    points = dskprep.open_dataset(target)["p"].points
    assert not len(points)
    assert {"x", "y", "z"} <= {*points.columns}


def test_a_label_that_lost_its_group_is_a_fault_of_the_label_alone(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "1.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    (Path(target) / "volumes/p.zarr/labels/Tumour/zarr.json").unlink()
    found = [finding for finding in dskprep.verify(target) if finding.faults or finding.additions]
    assert [finding.is_of_volume for finding in found] == [False]
    assert "labels/Tumour/zarr.json is missing" in found[0].faults[0]
    assert commands.run_command(["verify", target, "--forget"]) == 1
    assert commands.run_command(["verify", target]) == 0
    assert annotate(target, labels).counts == {"written": 1}
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["Tumour"][:], BOX)


def test_an_annotate_that_is_interrupted_before_its_first_source_does_not_deny_the_file(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = prepare(str(tmp_path))
    (labels / "1.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.work, "annotate_source", interrupted)
    assert commands.run_command(["annotate", target, str(labels), "--scheduler", "sync"]) == 1
    said = capsys.readouterr().out
    assert "no label source was done" in said
    assert "no label file was found" not in said


@pytest.mark.slow
@pytest.mark.parametrize("how", ["segment", "file", "as"])
def test_a_label_that_is_called_image_is_not_written_over_the_image(place: str, labels: Path, how: str) -> None:
    target = prepare(place)
    before = dskprep.open_dataset(target)["p"].load().array
    if how == "file":
        (labels / "p").mkdir()
        mask = dskprep.to_nifti(dskprep.Volume(BOX.astype(np.uint8), dskprep.open_dataset(target)["p"].affine))
        mask.to_filename(labels / "p/image.nii.gz")
    else:
        name = "image" if how == "segment" else "Tumour"
        (labels / "1.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=(name,)))
    assert annotate(target, labels, **({"name_as": "image"} if how == "as" else {})).counts == {"written": 1}
    volume = dskprep.open_dataset(target)["p"]
    assert np.array_equal(volume.load().array, before)
    assert list(volume.labels) == ["image_"]
    assert np.array_equal(volume.labels["image_"][:], BOX)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["forgotten", "failed", "killed"])
def test_labels_of_an_image_that_went_before_go_too(
    place: str, source: Path, labels: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepare(place)
    (labels / "1.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    storage.write_many(target, {"volumes/p.zarr/labels/mine/zarr.json": b"{}"})
    write_series(source / "p", seed=5)
    if fault == "forgotten":
        dskprep.forget(target, ["p"])
    else:  # after the old record was deleted, before anything else was
        with monkeypatch.context() as patched:
            error = KeyboardInterrupt if fault == "killed" else ValueError
            patched.setattr(label_store, "has_labels", lambda *_: (_ for _ in ()).throw(error))
            with contextlib.suppress(KeyboardInterrupt):
                dskprep.run(source, target, settings=SETTINGS)
    assert dskprep.run(source, target, settings=SETTINGS, retry="failed").exit_code == 0
    assert {name.split("/")[3] for name in content(target) if name.startswith("volumes/p.zarr/labels/")} == {
        "mine",
        "zarr.json",
    }
    listed = json.loads(storage.read(f"{target}/volumes/p.zarr/labels/zarr.json"))
    assert listed["attributes"]["ome"]["labels"] == ["mine"]


def test_two_states_of_a_file_that_were_drawn_at_once_are_made_one(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "p.csv").write_text("key,x,y,z\np,-5,-12,-26\np,-4,-12,-26\n")
    annotate(target, labels)
    first = {name: data for name, data in content(target).items() if name.startswith("labels/")}
    (labels / "p.csv").write_text("key,x,y,z\np,-5,-12,-26\np,-4,-12,-26\np,-3,-12,-26\n")
    annotate(target, labels)
    storage.write_many(target, first)  # as one that had listed the file before, and was slower, would
    assert dskprep.status(target).points == 5
    annotate(target, labels)
    assert dskprep.status(target).points == 3
    assert not [finding for finding in dskprep.verify(target) if finding.faults]


@pytest.mark.parametrize("field", ["kind", "linked_by", "url"])
def test_words_of_a_label_record_that_are_no_text_cost_no_command(tmp_path: Path, labels: Path, field: str) -> None:
    target = prepare(str(tmp_path))
    (labels / "p.csv").write_text("key,x,y,z\np,-5,-12,-26\n")
    annotate(target, labels)
    ((name, _),) = label_store.list_records(target)
    record = Path(target) / "labels" / name.path.removeprefix("labels/")
    content = json.loads(record.read_text()) | {field: "\ud800"}
    record.write_text(json.dumps(content))
    (Path(target) / "annotations.parquet").unlink()
    assert dskprep.status(target).series == 1
    assert dskprep.report(target)


@pytest.mark.parametrize("is_link", [True, False])
def test_labels_whose_records_were_moved_or_lost_are_not_deleted(tmp_path: Path, labels: Path, is_link: bool) -> None:
    target = prepare(str(tmp_path))
    (labels / "1.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    (labels / "p.csv").write_text("key,x,y,z\np,-5,-12,-26\n")
    annotate(target, labels)
    for file in Path(target).rglob("*"):
        os.utime(file, (1e9, 1e9))
    records = Path(target) / "labels/written"
    records.rename(tmp_path / "elsewhere")
    if is_link:
        records.symlink_to(tmp_path / "elsewhere")
    before = content(target)
    with pytest.raises(DskprepError, match="labels/written"):
        list(dskprep.clean(target))
    if is_link:
        with pytest.raises(InfrastructureError, match="labels/written"):
            dskprep.status(target)
    assert content(target) == before
    if not is_link:
        assert {name for name in dskprep.clean(target, without_records=True) if "Tumour" in name}


@pytest.mark.parametrize("columns", [["x", "x"], ["source"], ["kind", "status"], ["record_tag", "source_digest"]])
def test_a_table_of_points_that_is_not_as_it_was_written_costs_itself_alone(
    tmp_path: Path, labels: Path, columns: list[str]
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    target = prepare(str(tmp_path))
    (labels / "1.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    (labels / "p.csv").write_text("key,x,y,z\np,-5,-12,-26\n")
    annotate(target, labels)
    (place,) = (Path(target) / "labels/points").iterdir()
    table = parquet.read_table(place)
    for name in columns:
        table = table.append_column(name, pa.array(["\0 of others"] * len(table)))
    parquet.write_table(table, place)
    (Path(target) / "annotations.parquet").unlink()
    assert dskprep.status(target).labels == {"Tumour": 1}
    with warnings.catch_warnings(action="ignore"):  # that it cannot be read
        assert dskprep.report(target)
    assert annotate(target, labels).exit_code in (0, 1)


def test_volumes_that_are_all_gone_are_not_forgotten_one_by_one(tmp_path: Path) -> None:
    target = prepare(str(tmp_path), q={"series": "1.2.99"})
    (Path(target) / "volumes").rename(tmp_path / "unmounted")
    (Path(target) / "volumes").mkdir()
    before = content(target)
    assert commands.run_command(["verify", target, "--forget"]) == 1
    assert content(target) == before


def test_the_study_that_contours_name_is_no_slice(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    square = [(-8, -18), (-2, -18), (-2, -12), (-8, -12)]
    ds = rtstruct_dataset({"GTV": [[(x, y, z) for x, y in square] for z in (-28, -27)]})
    (study,) = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    study.ReferencedSOPInstanceUID = "1.2.3.77"
    del study.RTReferencedSeriesSequence[0].ContourImageSequence
    (labels / "1.dcm").write_bytes(written(ds))
    assert annotate(target, labels).counts == {"written": 1}


def test_copies_of_one_series_have_the_same_labels_and_points(tmp_path: Path, source: Path, labels: Path) -> None:
    write_series(source / "p")
    shutil.copytree(source / "p", source / "q")
    target = prepare(str(tmp_path))
    outlines = [(-28.0, ring(12, 10, 4)), (-27.0, ring(12, 10, 4))]
    (labels / "1.xml").write_bytes(lidc_file(nodule_xml("a", outlines, [3] * 9)))
    summary = annotate(target, labels)
    assert (summary.labels, summary.points) == (4, 2)
    dataset = dskprep.open_dataset(target)
    for volume in dataset.values():
        assert (len(volume.labels), volume.points["malignancy"].to_list()) == (2, [3])


def test_a_copy_of_a_series_that_comes_later_has_its_labels_and_points_too(
    tmp_path: Path, source: Path, labels: Path
) -> None:
    target = prepare(str(tmp_path))
    outlines = [(-28.0, ring(12, 10, 4)), (-27.0, ring(12, 10, 4))]
    (labels / "1.xml").write_bytes(lidc_file(nodule_xml("a", outlines, [3] * 9)))
    (labels / "2.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    (labels / "3.csv").write_text(f"seriesuid,x,y,z\n{SERIES},-5,-15,-28\n")
    (labels / "p.nii").write_bytes(nifti(BOX.astype(np.uint8), GRID.affine))
    assert annotate(target, labels).counts == {"written": 4}
    shutil.copytree(source / "p", source / "q")
    assert dskprep.run(source, target, settings=SETTINGS).exit_code == 0
    summary = annotate(target, labels)
    assert (summary.counts, summary.already) == ({"written": 4}, {"written": 1})  # the mask names its volume
    first, second = dskprep.open_dataset(target).values()
    assert set(first.labels) - set(second.labels) == {"mask"}
    assert set(second.labels) == {"Tumour", "nodule-1", "nodule-1-reader-1"}
    assert np.array_equal(second.labels["Tumour"][:], BOX)
    assert len(first.points) == len(second.points) == 2
    assert annotate(target, labels).already == {"written": 4}


def test_a_reading_without_nodules_is_no_fault(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "none.xml").write_bytes(lidc_file(""))
    (labels / "small.xml").write_bytes(lidc_file(nodule_xml("a", [(-28.0, [(10, 12)])])))
    summary = annotate(target, labels, only=["nodule-*"])
    assert (summary.reasons, summary.exit_code) == ({"set-aside: label-not-asked": 2}, 0)
    summary = annotate(target, labels)
    assert (summary.counts, summary.points, summary.exit_code) == ({"written": 1, "set-aside": 1}, 1, 0)


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_points_go_to_the_volumes_that_they_name_and_keep_their_columns(place: str, labels: Path, name: str) -> None:
    target = prepare(place)
    x, y, z = GRID.to_patient((3, 4, 5))
    lines = [f"{SERIES},{x},{y},{z},6.5,upper", "9.9,1,2,3,4,lower"]
    text = "\n".join(["seriesuid,coordX,coordY,coordZ,diameter_mm,label", *lines]) + "\n"
    if name.endswith("csv"):
        (labels / name).write_text(text)
    else:
        import io

        import pandas as pd

        pd.read_csv(io.StringIO(text), dtype={"seriesuid": str}).to_parquet(labels / name)
    summary = annotate(target, labels)
    assert (summary.points, summary.warnings) == (1, {"points-unlinked": 1})
    volume = dskprep.open_dataset(target)["p"]
    point = volume.points.iloc[0]
    assert point[["x", "y", "z", "diameter_mm"]].to_list() == [x, y, z, 6.5]
    assert point["label_of_source"] == "upper"
    assert len(volume.labels) == 0


def test_a_volume_is_chosen_by_its_labels(place: str, labels: Path) -> None:
    target = prepare(place, q={"series": "1.2.3.20", "seed": 1})
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    dataset = dskprep.open_dataset(target)
    assert list(dataset.annotated()) == ["p"]
    assert list(dataset.annotated(lambda row: row["ml"] > 0.3)) == ["p"]
    assert list(dataset.annotated(lambda row: row["ml"] > 0.4)) == []


def nifti(mask: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    nibabel = pytest.importorskip("nibabel", reason="needs the extra exchange")
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    image: bytes = nibabel.Nifti1Image(mask.T.astype(np.uint8), ras).to_bytes()
    return image


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "values", "stored"),
    [
        ("p.nii", BOX.astype(np.uint8), {"mask"}),
        ("p.nii", BOX + 2 * ~BOX, {"tumour", "label-2"}),
        ("p/liver.nii", BOX.astype(np.uint8), {"liver"}),
        ("segmentations/p/liver.nii", BOX.astype(np.uint8), {"liver"}),
    ],
)
def test_a_mask_belongs_to_the_volume_that_its_path_names(
    place: str, labels: Path, path: str, values: NDArray[Any], stored: set[str]
) -> None:
    target = prepare(place)
    (labels / path).parent.mkdir(parents=True, exist_ok=True)
    (labels / path).write_bytes(nifti(values, GRID.affine))
    annotate(target, labels, names={1: "tumour"} if "tumour" in stored else {})
    volume = dskprep.open_dataset(target)["p"]
    assert set(volume.labels) == stored
    assert np.array_equal(volume.labels[min(stored - {"label-2"})][:], BOX)


def test_a_mask_may_be_drawn_on_the_prepared_volume(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path), settings=PrepConfig(check_hu=False, lungs=False, spacing_mm=(2.0, 2.0, 2.0)))
    volume = dskprep.open_dataset(target)["p"]
    truth = np.zeros(volume.shape, np.bool_)
    truth[1:3, 2:9, 4:6] = True
    (labels / "p.nii").write_bytes(nifti(truth, volume.affine))
    annotate(target, labels)
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["mask"][:], truth)


def test_what_was_read_of_a_label_is_let_go_before_it_is_written(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is free for the next one by then."""
    target = prepare(str(tmp_path))
    (labels / "p.nii").write_bytes(nifti(BOX.astype(np.uint8), GRID.affine))
    read, write, alive = drawing.read_labels, label_store.write_label, []

    def read_and_watch(*arguments: Any, **more: Any) -> Any:
        found = read(*arguments, **more)
        alive.append(weakref.ref(found))
        return found

    def write_and_look(*arguments: Any) -> Any:
        gc.collect()
        assert [each() for each in alive] == [None]
        return write(*arguments)

    monkeypatch.setattr(drawing, "read_labels", read_and_watch)
    monkeypatch.setattr(label_store, "write_label", write_and_look)
    assert annotate(target, labels).counts == {"written": 1}


def refused(target: str, labels: Path) -> tuple[str, str]:
    """The reason for which the only source is refused, and the message."""
    summary = annotate(target, labels)
    assert summary.counts == {"refused": 1}
    record = only_record(target)
    assert "\n" not in record.message
    return record.reason, record.message


def series_of(rtstruct: Dataset) -> Dataset:
    """The item of an RTSTRUCT that names its series and slices."""
    study: Dataset = rtstruct.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    series: Dataset = study.RTReferencedSeriesSequence[0]
    return series


class TestTraps:
    def test_a_label_of_another_series_is_named_with_what_it_asks_for(self, place: str, labels: Path) -> None:
        target = prepare(place)
        other = seg_dataset(GRID, frames_of(BOX), FrameOfReferenceUID="7.8")
        other.ReferencedSeriesSequence[0].SeriesInstanceUID = "5.6"
        (labels / "a.dcm").write_bytes(written(other))
        reason, message = refused(target, labels)
        assert reason == "label-unlinked"
        frame = identity.of(target).digest("frame of reference", "7.8")
        assert f"the series {keys.series_digest('5.6')} and the frame of reference {frame}" in message

    def test_no_uid_that_a_label_names_is_written(self, place: str, labels: Path) -> None:
        """They are identifiers of headers: security.md."""
        target = prepare(place)
        frame, series, of_slice = "7.8.12345678", "5.6.12345678", "9.8.12345678"
        other = seg_dataset(GRID, frames_of(BOX), FrameOfReferenceUID=frame)
        (labels / "frame.dcm").write_bytes(written(other))
        other.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = of_slice
        del other.ReferencedSeriesSequence[0].SeriesInstanceUID
        (labels / "slice.dcm").write_bytes(written(other))
        other.ReferencedSeriesSequence[0].SeriesInstanceUID = series
        (labels / "series.dcm").write_bytes(written(other))
        (labels / "points.csv").write_text(f"seriesuid,x,y,z\n{series},-5,-15,-28\n")
        corners = [[(-5, -15, z), (1, -15, z), (1, -9, z)] for z in (-28, -27)]
        rois = rtstruct_dataset({"A": corners, "B": corners})
        rois.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = frame
        (labels / "rois.dcm").write_bytes(written(rois))
        summary = annotate(target, labels)
        assert summary.reasons["refused: label-unlinked"] >= 4
        assert [s for s in dskprep.audit(target, [frame, series, of_slice, SERIES]) if s.found] == []

    def test_a_series_in_another_frame_of_reference_is_refused(self, place: str, labels: Path) -> None:
        target = prepare(place)
        (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), FrameOfReferenceUID="7.8"))
        reason, message = refused(target, labels)
        frame = identity.of(target).digest("frame of reference", "7.8")
        assert (reason, f"found {frame};" in message) == ("label-unlinked", True)

    def test_slices_without_series_or_frame_are_not_said_to_be_nowhere(self, place: str, labels: Path) -> None:
        """The volume has the slice; by a slice alone no volume is looked for."""
        target = prepare(place)
        other = seg_dataset(GRID, frames_of(BOX))
        del other.ReferencedSeriesSequence[0].SeriesInstanceUID, other.FrameOfReferenceUID
        (labels / "a.dcm").write_bytes(written(other))
        reason, message = refused(target, labels)
        assert reason == "label-unlinked"
        assert "expected the series or frame of reference that it belongs to, found only 1 slice" in message

    def test_a_frame_of_reference_with_one_volume_is_enough_and_said(self, place: str, labels: Path) -> None:
        target = prepare(place)
        other = seg_dataset(GRID, frames_of(BOX))
        other.ReferencedSeriesSequence[0].SeriesInstanceUID = "5.6"
        other.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = "5.6.1"
        (labels / "a.dcm").write_bytes(written(other))
        assert annotate(target, labels).warnings == {"linked-by-frame-of-reference": 1}
        assert only_record(target).linked_by == "frame-of-reference"

    def test_a_frame_of_reference_with_several_volumes_is_no_link(self, place: str, labels: Path) -> None:
        target = prepare(place, q={"series": "1.2.3.20", "seed": 1})
        other = seg_dataset(GRID, frames_of(BOX))
        other.ReferencedSeriesSequence[0].SeriesInstanceUID = "5.6"
        other.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = "5.6.1"
        (labels / "a.dcm").write_bytes(written(other))
        reason, message = refused(target, labels)
        assert (reason, "2 volumes (p, q)" in message) == ("label-unlinked", True)

    def test_each_roi_lies_in_its_own_frame_of_reference_alone(self, place: str, labels: Path) -> None:
        target = prepare(place, q={"series": "1.2.3.20", "seed": 1, "FrameOfReferenceUID": "7.8"})
        corners = [[(-5, -15, z), (1, -15, z), (1, -9, z)] for z in (-28, -27)]
        dataset = rtstruct_dataset({"A": corners, "B": corners, "C": corners})
        second = copy.deepcopy(dataset.ReferencedFrameOfReferenceSequence[0])
        second.FrameOfReferenceUID = "7.8"
        second.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.20"
        dataset.ReferencedFrameOfReferenceSequence.append(second)
        for roi, frame in zip(dataset.StructureSetROISequence[1:], ("7.8", "7.9"), strict=True):
            roi.ReferencedFrameOfReferenceUID = frame
        (labels / "a.dcm").write_bytes(written(dataset))
        annotate(target, labels)
        found = {label.name: (label.volume, label.reason) for label in only_record(target).labels}
        assert found == {"A": ("p", None), "B": ("q", None), "C": ("p", "label-unlinked")}

    def test_a_series_that_is_named_but_lies_in_another_frame_gets_no_label(self, place: str, labels: Path) -> None:
        target = prepare(place, q={"series": "1.2.3.20", "seed": 1, "FrameOfReferenceUID": "7.8"})
        other = seg_dataset(GRID, frames_of(BOX), names=("Tumour",))
        other.ReferencedSeriesSequence.append(copy.deepcopy(other.ReferencedSeriesSequence[0]))
        other.ReferencedSeriesSequence[1].SeriesInstanceUID = "1.2.3.20"
        (labels / "a.dcm").write_bytes(written(other))
        annotate(target, labels)
        assert [label.volume for label in only_record(target).labels] == ["p"]

    def test_the_second_of_two_rois_of_one_name_is_named_too(self, place: str, labels: Path) -> None:
        target = prepare(place)
        there = [[(-5, -15, z), (1, -15, z), (1, -9, z)] for z in (-28, -27)]
        dataset = rtstruct_dataset({"GTV": there, "other": [np.add(c, (0, 0, 2000)) for c in there]})
        dataset.StructureSetROISequence[1].ROIName = "GTV"
        (labels / "a.dcm").write_bytes(written(dataset))
        annotate(target, labels)
        assert [label.reason for label in only_record(target).labels] == [None, "label-outside-volume"]

    def test_a_mask_that_is_called_by_two_volumes_is_refused(self, place: str, labels: Path) -> None:
        nib = pytest.importorskip("nibabel")
        target = prepare(place, q={"series": "1.2.3.20", "seed": 1})
        affine = np.diag([-1.0, -1, 1, 1]) @ GRID.affine[:, [2, 1, 0, 3]]
        image = nib.Nifti1Image(BOX.transpose(2, 1, 0).astype(np.uint8), affine)
        for name in ("p/q.nii", "q/q.nii"):
            (labels / name).parent.mkdir()
            nib.save(image, labels / name)
        annotate(target, labels)
        found = {}
        for name, _ in label_store.list_records(target):
            record = label_store.read_record(target, name)
            found[record.source] = (record.reason, [label.volume for label in record.labels])
        assert found["p__q.nii"] == ("label-unlinked", [])
        assert found["q__q.nii"] == (None, ["q"])

    def test_slices_tell_which_of_several_volumes_it_is(self, place: str, labels: Path) -> None:
        target = prepare(place, q={"series": "1.2.3.20", "seed": 1})
        dataset = rtstruct_dataset({"GTV": [[(-5, -15, -28), (1, -15, -28), (1, -9, -28)]]})
        series = (
            dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
        )
        del series.SeriesInstanceUID
        series.ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3.20.4"
        (labels / "a.dcm").write_bytes(written(dataset))
        annotate(target, labels)
        record = only_record(target)
        assert ([label.volume for label in record.labels], record.linked_by) == (["q"], "instances")

    def test_slices_of_no_volume_are_no_link_even_in_its_frame(self, place: str, labels: Path) -> None:
        target = prepare(place)
        dataset = rtstruct_dataset({"GTV": [[(-5, -15, -28), (1, -15, -28), (1, -9, -28)]]})
        series = (
            dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
        )
        del series.SeriesInstanceUID
        series.ContourImageSequence[0].ReferencedSOPInstanceUID = "9.9"
        (labels / "a.dcm").write_bytes(written(dataset))
        assert refused(target, labels)[0] == "label-unlinked"

    def test_a_mask_mirrored_front_to_back_is_named(self, place: str, labels: Path) -> None:
        target = prepare(place)
        mirrored = GRID.affine.copy()
        mirrored[1] *= -1
        (labels / "p.nii").write_bytes(nifti(BOX, mirrored))
        assert refused(target, labels)[0] == "label-mirrored"

    def test_half_a_voxel_off_the_grid_is_named(self, place: str, labels: Path) -> None:
        target = prepare(place)
        shifted = GRID.affine.copy()
        shifted[0, 3] += 0.5
        (labels / "p.nii").write_bytes(nifti(BOX, shifted))
        assert refused(target, labels)[0] == "label-off-grid"

    def test_frames_that_are_missing_are_empty_and_overlapping_segments_stay_apart(
        self, place: str, labels: Path
    ) -> None:
        target = prepare(place)
        sparse = BOX.copy()
        sparse[[3, 4]] = False
        frames = [*frames_of(sparse, 1), *frames_of(BOX, 2)]
        (labels / "a.dcm").write_bytes(seg_file(GRID, frames, names=("One", "Two")))
        annotate(target, labels)
        found = dskprep.open_dataset(target)["p"].labels
        assert np.array_equal(found["One"][:], sparse)
        assert np.array_equal(found["Two"][:], BOX)

    def test_a_label_that_lies_outside_is_named_and_costs_no_other(self, place: str, labels: Path) -> None:
        target = prepare(place)
        far = [(500, 500, -28), (520, 500, -28), (520, 520, -28)]
        near = [(-5, -15, -28), (1, -15, -28), (1, -9, -28), (-5, -9, -28)]
        (labels / "a.dcm").write_bytes(rtstruct_file({"Far": [far], "Near": [near]}))
        summary = annotate(target, labels)
        assert (summary.lost_labels, summary.exit_code) == ({"label-outside-volume": 1}, 1)
        assert list(dskprep.open_dataset(target)["p"].labels) == ["Near"]

    def test_a_label_that_leaves_the_image_is_cut_and_says_how_much(self, place: str, labels: Path) -> None:
        target = prepare(place)
        half = [(-20, -15, -28), (-0.5, -15, -28), (-0.5, -9, -28), (-20, -9, -28)]
        (labels / "a.dcm").write_bytes(rtstruct_file({"Half": [half]}))
        assert annotate(target, labels).warnings == {"label-cut-off": 1}
        inside = (10.5 - 0.5) / 19.5  # the image begins at x = -10.5
        assert only_record(target).labels[0].outside == pytest.approx(1 - inside, abs=0.01)


def test_a_label_of_the_same_name_from_another_source_is_left_alone(place: str, labels: Path) -> None:
    target = prepare(place)
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    (labels / "b.dcm").write_bytes(seg_file(GRID, frames_of(~BOX), names=("Tumour",)))
    summary = annotate(target, labels)
    assert (summary.reasons, summary.already) == ({"refused: label-exists": 1}, {"written": 1})
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["Tumour"][:], BOX)
    annotate(target, labels / "b.dcm", name_as="{name}-{file}")
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["Tumour-b"][:], ~BOX)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 1, 2)])
def test_of_sources_with_one_name_the_first_has_it_whichever_is_done_first(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch, order: tuple
) -> None:
    """Files come in another order than by name, as workers may do them; d.dcm was there before."""
    target = prepare(str(tmp_path))
    names = ("a.dcm", "b.dcm", "c.dcm")
    masks = [BOX, BOX[::-1], np.roll(BOX, 2, 1)]
    (labels / "d.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Old",)))
    annotate(target, labels)
    for name, mask in zip(names, masks, strict=True):
        frames = [*frames_of(mask), *frames_of(mask, 2), *frames_of(mask, 3)]
        own = f"Own-{name[0]}"
        (labels / name).write_bytes(seg_file(GRID, frames, names=("Tumour", own, "Old")))
    listed = pipeline.label_files

    def in_another_order(*args: Any, **how: Any) -> Iterator[Any]:
        files = list(listed(*args, **how))
        return iter([*(files[k] for k in order), *files[3:]])

    monkeypatch.setattr(pipeline, "label_files", in_another_order)
    summary = annotate(target, labels)
    assert (summary.counts, summary.already, summary.labels) == ({"written": 4}, {"written": 1}, 4)
    assert summary.lost_labels == {"label-exists": 5}
    volume = dskprep.open_dataset(target)["p"]
    assert set(volume.labels) == {"Old", "Own-a", "Own-b", "Own-c", "Tumour"}
    assert np.array_equal(volume.labels["Tumour"][:], BOX)
    assert np.array_equal(volume.labels["Old"][:], BOX)
    records = {name.source: label_store.read_record(target, name) for name, _ in label_store.list_records(target)}
    lost = {name: [label.taken_by[:5] for label in record.labels if label.reason] for name, record in records.items()}
    assert lost == {"a.dcm": ["d.dcm"], "b.dcm": ["a.dcm", "d.dcm"], "c.dcm": ["a.dcm", "d.dcm"], "d.dcm": []}
    assert not [f for f in dskprep.verify(target) if f.faults or f.additions]
    assert annotate(target, labels).already == {"written": 4}


def test_a_source_that_was_moved_keeps_its_labels_when_one_of_them_goes_to_another(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepare(str(tmp_path))
    moved = seg_file(GRID, [*frames_of(~BOX), *frames_of(BOX[::-1], 2)], names=("Tumour", "Own"))
    (tmp_path / "before").mkdir()
    (tmp_path / "before/b.dcm").write_bytes(moved)
    annotate(target, tmp_path / "before")
    (tmp_path / "before/b.dcm").unlink()
    (labels / "b.dcm").write_bytes(moved)
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    listed = pipeline.label_files
    monkeypatch.setattr(pipeline, "label_files", lambda *args, **how: iter([*listed(*args, **how)][::-1]))
    assert annotate(target, labels).counts == {"written": 2}
    volume = dskprep.open_dataset(target)["p"]
    assert set(volume.labels) == {"Tumour", "Own"}
    assert np.array_equal(volume.labels["Tumour"][:], BOX)
    assert np.array_equal(volume.labels["Own"][:], BOX[::-1])
    assert not [f for f in dskprep.verify(target) if f.faults or f.additions]


def test_somebody_elses_label_is_left_alone(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    group = zarr.open_group(store.volume_url(target, "p"), mode="a")
    group.create_array("labels/Tumour/0", data=np.ones((2, 2), np.uint8))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    reason, message = refused(target, labels)
    assert (reason, "not dskprep's" in message) == ("label-exists", True)
    annotate(target, labels, name_as="mine")
    assert dskprep.forget_labels(target, "*")
    assert zarr.open_group(store.volume_url(target, "p"), mode="r")["labels/Tumour/0"][:].all()  # type: ignore[index]


def test_two_labels_of_one_name_in_a_source_are_told_apart(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    frames = [*frames_of(BOX, 1), *frames_of(~BOX, 2)]
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames, names=("GTV", "gtv")))
    annotate(target, labels)
    assert sorted(dskprep.open_dataset(target)["p"].labels) == ["GTV", "gtv-2"]


@pytest.mark.parametrize("name", ["lungs", "../../../outside", "a/b", "", "zarr.json", "x" * 300, ".hidden", "Ä Ö"])
def test_no_name_of_an_author_leaves_its_place_or_takes_anothers(tmp_path: Path, labels: Path, name: str) -> None:
    target = prepare(str(tmp_path), settings=PrepConfig(check_hu=False))
    before = content(target)
    dataset = seg_dataset(GRID, frames_of(BOX), names=("x",))
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SegmentSequence[0].SegmentLabel = name[:64]
    (labels / "a.dcm").write_bytes(written(dataset))
    annotate(target, labels)
    changed = {n for n, c in content(target).items() if before.get(n) != c}
    allowed = ("labels/", "volumes/p.zarr/labels/", "annotations.parquet", "index.parquet")
    assert all(n.startswith(allowed) for n in changed)
    assert not any(n.startswith("volumes/p.zarr/labels/lungs/") for n in changed)


@pytest.mark.parametrize(
    ("name", "stored"), [("Ä Ö", "Ä_Ö"), ("肺がん", "肺がん"), ("e\u0301", "é"), ("CON", "CON_"), ("Lungs", "Lungs_")]
)
def test_a_name_of_any_script_is_kept(tmp_path: Path, labels: Path, name: str, stored: str) -> None:
    target = prepare(str(tmp_path), settings=PrepConfig(check_hu=False))
    dataset = seg_dataset(GRID, frames_of(BOX), names=("x",))
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SegmentSequence[0].SegmentLabel = name
    (labels / "a.dcm").write_bytes(written(dataset))
    annotate(target, labels)
    volume = dskprep.open_dataset(target)["p"]
    assert list(volume.labels) == [stored]
    assert np.array_equal(volume.labels[stored][:], BOX)
    assert not [f for f in dskprep.verify(target) if f.faults or f.additions]


class TestTables:
    """Points that go astray, and tables that disagree."""

    def points(self, target: str, labels: Path, text: str, name: str = "a.csv") -> dskprep.LabelSummary:
        (labels / name).write_text(text)
        return annotate(target, labels / name)

    def test_a_column_of_text_beside_ratings_breaks_nothing(self, tmp_path: Path, labels: Path) -> None:
        target = prepare(str(tmp_path))
        outlines = [(-28.0, ring(12, 10, 4)), (-27.0, ring(12, 10, 4))]
        (labels / "1.xml").write_bytes(lidc_file(nodule_xml("a", outlines, [3] * 9)))
        annotate(target, labels)
        x, y, z = GRID.to_patient((3, 4, 5))
        text = f"key,x,y,z,malignancy,nodule,reader,number,image,voxels\np,{x},{y},{z},high,n,r,x,i,v\n"
        assert self.points(target, labels, text).counts == {"written": 1}
        found = dskprep.open_dataset(target).annotations
        assert set(found["malignancy"].dropna()) == {"3", "high"}
        assert found["image_of_source"].dropna().to_list() == ["i"]
        assert dskprep.status(target).points == 2

    def test_columns_of_types_that_do_not_join_become_text(self, tmp_path: Path, labels: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        target = prepare(str(tmp_path))
        when = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
        kinds = {
            "bool": pa.array([True]),
            "time": pa.array([when]),
            "int": pa.array([2**60 + 1]),
            "float": pa.array([0.5]),
            "text": pa.array(["high"]),
            "list": pa.array([[1, 2]]),
            "struct": pa.array([{"a": 1, "b": [None, "x"]}]),
            "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
            "bytes": pa.array([b"\xff"]),
            "words": pa.array(["low"]).dictionary_encode(),
            "date": pa.array([when.date()]),
            "none": pa.array([None]),
        }
        place = dict(zip("xyz", ([float(v)] for v in GRID.to_patient((3, 4, 5))), strict=True))
        for kind, value in kinds.items():
            table = pa.table({"key": ["p"], **place, "e": value, kind: value})
            parquet.write_table(table, labels / f"{kind}.parquet")
            assert annotate(target, labels / f"{kind}.parquet").counts == {"written": 1}
        assert dskprep.status(target).points == len(kinds)
        found = dskprep.open_dataset(target).annotations
        e = dict(zip(found["source"].str.removesuffix(".parquet"), found["e"], strict=True))
        assert (e["bool"], e["int"], e["text"]) == ("true", "1152921504606846977", "high")
        assert (json.loads(e["list"]), json.loads(e["struct"])) == ([1, 2], {"a": 1, "b": [None, "x"]})
        assert json.loads(found["list"].dropna().item()) == [1, 2]
        assert found["float"].dropna().item() == 0.5
        assert len(dskprep.open_dataset(target)["p"].points) == len(kinds)

    def test_tables_that_an_older_version_stored_can_be_read_whatever_they_hold(
        self, tmp_path: Path, labels: Path
    ) -> None:
        """That version stored lists and times as they are, and was stopped by them ever after."""
        import pyarrow as pa
        from pyarrow import parquet

        target = prepare(str(tmp_path))
        for name in ("a.csv", "b.csv"):
            self.points(target, labels, f"key,x,y,z,e\np,-5,-15,-28,{name}\n", name)
        for path, e in zip(sorted(Path(target, "labels/points").iterdir()), ([True], [[1, 2]]), strict=True):
            table = parquet.read_table(path)
            parquet.write_table(table.drop_columns("e").append_column("e", pa.array(e)), path)
        Path(target, "annotations.parquet").unlink()
        assert dskprep.status(target).points == 2
        assert set(dskprep.open_dataset(target).annotations["e"]) == {"true", "[1, 2]"}

    def test_columns_that_are_called_as_ours_are_told_apart(self, tmp_path: Path, labels: Path) -> None:
        target = prepare(str(tmp_path))
        columns = "key,x,y,z,status,status_of_source,image,image_of_source,source_warnings"
        assert self.points(target, labels, f"{columns}\np,-5,-15,-28,a,b,c,d,e\n").counts == {"written": 1}
        point = dskprep.open_dataset(target)["p"].points.iloc[0]
        renamed = ("status_of_source_2", "status_of_source", "image_of_source_2", "image_of_source")
        assert [*point[[*renamed, "source_warnings_of_source"]]] == list("abcde")

    def test_points_find_the_volumes_of_a_later_run(self, place: str, source: Path) -> None:
        write_series(source / "p")
        write_series(source / "q", series="1.2.3.20", seed=1)
        (source / "points.csv").write_text("key,x,y,z\np,-5,-15,-28\nq,-4,-15,-28\nr,-4,-15,-28\n")
        target = storage.join(place, "out")
        how: dict[str, Any] = {"settings": SETTINGS, "labels": ["*.csv"]}
        dskprep.run(source, target, limit=1, **how)
        found = dskprep.status(target)
        assert (found.points, found.label_warnings) == (1, {"points-unlinked": 1})
        dskprep.run(source, target, **how)
        assert dskprep.open_dataset(target).annotations["key"].to_list() == ["p", "q"]
        write_series(source / "r", series="1.2.3.30", seed=2)
        dskprep.run(source, target, settings=SETTINGS)
        assert annotate(target, source, patterns=["*.csv"]).already == {"written": 1}
        assert annotate(target, source, patterns=["*.csv"], retry="unlinked").points == 3
        assert dskprep.status(target).label_warnings == {}
        assert dskprep.open_dataset(target)["r"].points["x"].to_list() == [-4]

    def test_points_outside_of_the_image_are_left_out_and_counted(self, place: str, labels: Path) -> None:
        target = prepare(place)
        x, y, z = GRID.to_patient((3, 4, 5))
        summary = self.points(target, labels, f"key,x,y,z,diameter_mm\np,{x},{y},{z},3\np,5000,86,-115,6\n")
        assert (summary.points, summary.warnings) == (1, {"points-outside": 1})
        summary = self.points(target, labels, "key,x,y,z\np,5000,86,-115\n", "b.csv")
        assert summary.reasons == {"refused: label-outside-volume": 1}

    def test_a_point_at_the_edge_is_inside(self, tmp_path: Path, labels: Path) -> None:
        target = prepare(str(tmp_path))
        x, y, z = GRID.to_patient((-3, 4, 5))
        assert self.points(target, labels, f"key,x,y,z\np,{x},{y},{z}\n").points == 1

    @pytest.mark.parametrize(
        ("text", "reason", "said"),
        [
            ("key,seriesuid,x,y,z\nq,1.2.3.10,-5,-15,-28\n", "label-unlinked", "of one volume"),
            ("key,x,y,z,diameter_mm\np,-5,-15,-28,-5\n", "label-damaged", "a negative one"),
            ("key,x,x,y,z\np,-5,-5,-15,-28\n", "label-unknown", "'x' twice"),
            ("key;x;y;z\np;-5,5;-15;-28\n", "label-unknown", "parted by commas"),
        ],
    )
    def test_a_table_that_contradicts_itself_is_refused(
        self, tmp_path: Path, labels: Path, text: str, reason: str, said: str
    ) -> None:
        target = prepare(str(tmp_path), q={"series": "1.2.3.20", "seed": 1})
        assert self.points(target, labels, text).reasons == {f"refused: {reason}": 1}
        assert said in only_record(target).message


class TestLost:
    """What must not vanish without a word."""

    @pytest.mark.parametrize("damage", [None, b"", b"junk", b"PAR1"])
    def test_labels_are_found_by_their_records_without_the_table(
        self, place: str, labels: Path, damage: bytes | None
    ) -> None:
        target = prepare(place)
        (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
        annotate(target, labels)
        if damage is None:
            storage.delete(target, ["annotations.parquet"])
        else:
            storage.write_many(target, {"annotations.parquet": damage})
        dataset = dskprep.open_dataset(target)
        assert np.array_equal(dataset["p"].labels["Tumour"][:], BOX)
        assert len(dataset.annotations) == 1

    def test_what_was_made_for_another_image_is_no_annotation_of_this_one(
        self, tmp_path: Path, source: Path, labels: Path
    ) -> None:
        target = prepare(str(tmp_path))
        (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
        annotate(target, labels)
        (source / "p" / "009.dcm").unlink()
        dskprep.run(source, target, settings=SETTINGS)
        dataset = dskprep.open_dataset(target)
        assert len(dataset.annotations) == 0
        assert list(dataset.annotated()) == []

    def test_a_dead_link_or_an_empty_file_costs_itself_only(self, tmp_path: Path, labels: Path) -> None:
        target = prepare(str(tmp_path))
        (labels / "good.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
        (labels / "gone.dcm").symlink_to("nowhere")
        for name in ("empty.dcm", "p.nii.gz", "empty.xml", "empty.csv"):
            (labels / name).write_bytes(b"")
        summary = annotate(target, labels)
        assert summary.counts["written"] == 1
        assert summary.reasons == {"refused: label-damaged": 5}
        assert summary.exit_code == 1

    def test_open_contours_beside_closed_ones_are_told(self, tmp_path: Path, labels: Path) -> None:
        target = prepare(str(tmp_path))
        square = [(-5, -15, -28), (1, -15, -28), (1, -9, -28), (-5, -9, -28)]
        dataset = rtstruct_dataset({"GTV": [square, [(x, y, z + 1) for x, y, z in square]]})
        dataset.ROIContourSequence[0].ContourSequence[1].ContourGeometricType = "OPEN_PLANAR"
        (labels / "a.dcm").write_bytes(written(dataset))
        assert annotate(target, labels).warnings == {"contours-left-out": 1}
        dataset.ROIContourSequence[0].ContourSequence[1].ContourGeometricType = "CLOSED_NONPLANAR"
        (labels / "a.dcm").write_bytes(written(dataset))
        assert annotate(target, labels).warnings == {}
        assert dskprep.open_dataset(target)["p"].labels["GTV"][:].sum() == 72

    def test_axial_and_coronal_contours_are_told(self, tmp_path: Path, labels: Path) -> None:
        target = prepare(str(tmp_path))
        axial = [[(-5, -15, z), (1, -15, z), (1, -9, z), (-5, -9, z)] for z in (-28, -27, -26, -25)]
        coronal = [[(-5, y, -28), (1, y, -28), (1, y, -25), (-5, y, -25)] for y in (-14, -12, -10)]
        (labels / "a.dcm").write_bytes(rtstruct_file({"GTV": [*axial, *coronal], "Heart": axial}))
        assert annotate(target, labels).warnings == {"planes-overlap": 1}

    def test_names_that_differ_in_capitals_are_one_name(self, tmp_path: Path, labels: Path) -> None:
        """So a dataset can be copied to a disk that takes both for one."""
        target = prepare(str(tmp_path))
        square = [(-5, -15, -28), (1, -15, -28), (1, -9, -28), (-5, -9, -28)]
        for number, (file, names) in enumerate({"b.dcm": ("gtv", "Heart"), "a.dcm": ("GTV", "gtv")}.items()):
            dataset = rtstruct_dataset({name: [square] for name in names})
            dataset.SOPInstanceUID = f"1.2.3.{number + 1}"
            (labels / file).write_bytes(written(dataset))
        annotate(target, labels)
        assert sorted(dskprep.open_dataset(target)["p"].labels) == ["GTV", "Heart", "gtv-2"]
        records = [label_store.read_record(target, name) for name, _ in label_store.list_records(target)]
        (refused_one,) = [label for record in records for label in record.labels if not label.is_written]
        assert (refused_one.name, refused_one.reason) == ("gtv", "label-exists")
        dskprep.forget_labels(target, "GTV*")
        assert sorted(dskprep.open_dataset(target)["p"].labels) == ["Heart"]

    def test_a_folder_without_labels_says_what_is_there(self, tmp_path: Path, labels: Path, source: Path) -> None:
        target = prepare(str(tmp_path))
        (source / "p" / "notes.txt").write_text("none")
        notes: list[str] = []

        class Notes:
            def on_note(self, text: str) -> None:
                notes.append(text)

        for place, how in (
            (source, {}),
            (source, {"patterns": ["*RS*"]}),
            (labels, {}),
            (source, {"patterns": ["*.dcm"]}),
        ):
            summary = annotate(target, place, observers=[Notes()], **how)
            assert (summary.exit_code, summary.counts) == (0, {})
        assert "found 10 files with CT slices and 1 file of a kind that holds no labels" in notes[0]
        assert "found 11 files whose name does not match *RS*; correct the pattern, or name the folder" in notes[1]
        assert "found no file" in notes[2]
        assert "found 10 files with CT slices and 1 file whose name does not match *.dcm" in notes[3]

    def test_two_rois_of_one_number_are_refused(self, tmp_path: Path, labels: Path) -> None:
        target = prepare(str(tmp_path))
        dataset = rtstruct_dataset({"A": [[(-5, -15, -28), (1, -15, -28), (1, -9, -28)]], "B": []})
        dataset.StructureSetROISequence[1].ROINumber = 1
        (labels / "a.dcm").write_bytes(written(dataset))
        assert refused(target, labels)[0] == "label-damaged"

    def test_a_label_whose_metadata_were_altered_is_damaged(self, tmp_path: Path, labels: Path) -> None:
        target = prepare(str(tmp_path))
        (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
        annotate(target, labels)
        path = Path(target, "volumes/p.zarr/labels/Tumour/0/zarr.json")
        path.write_text(path.read_text().replace('"fill_value": 0', '"fill_value": 1'))
        volume = dskprep.open_dataset(target)["p"]
        for read in (lambda: volume.labels["Tumour"], lambda: volume.load("Tumour")):
            with pytest.raises(dskprep.DamagedDataset):
                read()

    def test_a_dataset_is_no_source_of_labels_for_itself(self, tmp_path: Path) -> None:
        target = prepare(str(tmp_path))
        for place in (target, f"{target}/volumes"):
            with pytest.raises(UsageError, match=r"is the dataset itself|inside of the dataset"):
                annotate(target, place)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("lung_left", 2),
        ("Lung_R", 1),
        ("LUNG LT", 2),
        ("right lung", 1),
        ("lung_upper_lobe_left", 2),
        ("RUL lobe r", 1),
        ("lung", None),
        ("left atrium", None),
        ("lungs left and right", None),
        ("Lungs", None),
        ("colon right", None),
        *((name, 2) for name in ("LeftLung", "LungL", "Lung_L", "L_Lung", "LLung", "LUNGL", "leftlung", "lungsL")),
        *((name, 1) for name in ("RightLung", "LungR", "lungR", "R-Lung", "RLung", "RLUNG", "lungright", "LUNGRight")),
        *((name, 1) for name in ("RUL", "rml", "RLL lobe", "GTV_RUL", "RULLobe", "lobe RML", "Lung_R_RUL")),
        *((name, 2) for name in ("LUL", "lll", "LLL lobe", "lung_LUL", "LULLobe", "wholelung_L")),
        *(
            (name, 2)
            for name in ("Lunge links", "linke Lunge", "Lungenflügel_links", "pulmo sinister", "Lungenlappen_li_L")
        ),
        *((name, 1) for name in ("Lunge rechts", "rechter Lungenflügel", "Pulmo dexter")),
        # words that hold such letters
        *((name, None) for name in ("LungRoi", "LungROI", "LungLesion", "LungTotal", "lungrid", "Lungren", "Lobel")),
        *(
            (name, None)
            for name in (
                "él_lung",
                "e\u0301l_lung",
                "LML",
                "RUL and LUL",
                "lung RUL left",
                "rulers",
                "full",
                "bull",
                "PlungeR",
            )
        ),
        *(
            (name, None)
            for name in ("liver_lobe_left", "liver LLL", "right thyroid lobe", "Lobe_L Hepatic", "frontal lobe R")
        ),
        *((name, None) for name in ("LAD", "Heart_L", "Rib_L", "pulmonary_artery_left", "LN_R", "left", "L", "")),
    ],
)
def test_the_side_of_a_lung_is_told_by_its_name(name: str, side: int | None) -> None:
    assert side_words.side_of(name) == side


def test_lungs_on_the_wrong_side_are_mirrored_whatever_the_header_says(tmp_path: Path, labels: Path) -> None:
    where = {"spacing_mm": (4.0, 2.2, 2.2), "shape": (72, 160, 160), "broken": False}
    scanner.write_patients(str(tmp_path / "in"), 1, seed=2, **where)
    target = str(tmp_path / "out")
    dskprep.run(tmp_path / "in", target, settings=PrepConfig(spacing_mm=(2.0, 2.0, 2.0)))
    volume = dskprep.open_dataset(target)["phantom-000"]
    lungs = volume.load("lungs").array
    for name, array in (("right", lungs), ("wrong", lungs[:, :, ::-1])):
        folder = labels / name / "phantom-000"
        folder.mkdir(parents=True)
        for side, word in ((1, "lung_right"), (2, "lung_left")):
            (folder / f"{word}.nii").write_bytes(nifti(array == side, volume.affine))
    assert annotate(target, labels / "wrong").reasons == {"refused: label-mirrored": 2}
    assert annotate(target, labels / "right").counts == {"written": 2}


def test_the_same_file_under_two_names_counts_once(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.csv").write_text("key,x,y,z\np,-5,-15,-28\n")
    annotate(target, labels)
    (labels / "b.csv").write_text("key,x,y,z\np,-5,-15,-28\n")
    assert annotate(target, labels).reasons == {"refused: label-exists": 1}
    assert len(dskprep.open_dataset(target)["p"].points) == 1


def test_of_equal_tables_the_first_by_name_stays_whichever_is_done_first(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    for name in ("c.csv", "b.csv", "d.csv"):
        (labels / name).write_text("key,x,y,z\np,-5,-15,-28\n")
    (labels / "a.csv").write_text("key,x,y,z\np,-5,-15,-27\n")
    summary = annotate(target, labels)
    assert (summary.counts, summary.reasons) == ({"written": 2, "refused": 2}, {"refused: label-exists": 2})
    assert summary.points == dskprep.status(target).points == len(dskprep.open_dataset(target)["p"].points) == 2
    records = [label_store.read_record(target, name) for name, _ in label_store.list_records(target)]
    assert {r.source: r.status for r in records if r.source != "a.csv"} == {
        "b.csv": "written",
        "c.csv": "refused",
        "d.csv": "refused",
    }
    assert all("has the content of b.csv" in str(r.message) for r in records if not r.is_written)
    assert annotate(target, labels).already == {"written": 2, "refused": 2}
    assert not [f for f in dskprep.verify(target) if f.faults or f.additions]
    dskprep.forget_labels(target, "b.csv")
    assert annotate(target, labels / "c.csv", retry="refused").counts == {"written": 1}


def test_points_that_two_workers_wrote_of_one_content_are_held_until_all_are_known(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables come in the reverse order."""
    target = prepare(str(tmp_path))
    for name in ("a.csv", "b.csv"):
        (labels / name).write_text("key,x,y,z\np,-5,-15,-28\n")
    found = pipeline.label_files
    monkeypatch.setattr(pipeline, "label_files", lambda *args, **how: reversed([*found(*args, **how)]))
    annotate(target, labels)
    assert dskprep.open_dataset(target).annotations["source"].to_list() == ["a.csv"]


def test_one_file_under_other_options_gives_its_points_and_places_once(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    outlines = [(-28.0, ring(12, 10, 4)), (-27.0, ring(12, 10, 4))]
    (labels / "1.xml").write_bytes(lidc_file(nodule_xml("a", outlines, [3] * 9), nodule_xml("b", outlines, [4] * 9)))
    (labels / "2.csv").write_text("key,x,y,z,diameter_mm\np,-5,-15,-28,3\np,-5,-15,-28,3\n")
    annotate(target, labels)
    once = dskprep.open_dataset(target)
    how: dict[str, Any] = {"around": "nodules", "positives": 1.0}
    places = once.patches(4, **how).places
    points, names = once["p"].points, list(once["p"].labels)
    annotate(target, labels, name_as="all-{name}", consensus=1.0)
    twice = dskprep.open_dataset(target)
    assert sorted(twice["p"].labels) == sorted([*names, *(f"all-{name}" for name in names)])
    assert len(points) == len(twice["p"].points) == dskprep.status(target).points == 4
    assert twice["p"].points["malignancy"].dropna().to_list() == points["malignancy"].dropna().to_list() == [3, 4]
    assert len(twice.patches(4, **how).places) == len(places) == 3
    assert annotate(target, labels, name_as="all-{name}", consensus=1.0).already == {"written": 2}


def test_one_mask_may_belong_to_two_volumes(place: str, labels: Path) -> None:
    target = prepare(place, q={"series": "1.2.3.20", "seed": 1})
    for key in "pq":
        (labels / key).mkdir()
        (labels / key / "GTV.nii").write_bytes(nifti(BOX, GRID.affine))
        assert annotate(target, labels, only=["GTV"]).counts["written"] == 1 + (key == "q")
    assert annotate(target, labels, name_as="other").counts == {"written": 2}
    dataset = dskprep.open_dataset(target)
    assert all(sorted(volume.labels) == ["GTV", "other"] for volume in dataset.values())
    assert len(dataset.patches(4, around="GTV", positives=1.0).places) == 2


def test_what_is_done_is_not_done_again_until_the_file_or_the_image_changes(place: str, labels: Path) -> None:
    target = prepare(place)
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    assert annotate(target, labels).already == {"written": 1}
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(~BOX), names=("Tumour", "Empty")))
    summary = annotate(target, labels)
    assert (summary.already, summary.lost_labels) == ({}, {"label-empty": 1})
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["Tumour"][:], ~BOX)
    assert len(list(label_store.list_records(target))) == 1


def test_labels_of_an_image_that_is_replaced_go_and_come_back(place: str, source: Path, labels: Path) -> None:
    target = prepare(place)
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    write_series(source / "p", seed=5)
    (source / "p" / "009.dcm").unlink()  # one slice less: another grid
    dskprep.run(source, target, settings=SETTINGS)
    volume = dskprep.open_dataset(target)["p"]
    assert (volume.shape[0], list(volume.labels)) == (9, [])
    assert not storage.exists(storage.join(store.volume_url(target, "p"), "labels/Tumour/zarr.json"))
    assert annotate(target, labels).already == {}
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["Tumour"][:], BOX[:9])


def test_a_label_that_came_before_its_image_is_tried_again(place: str, source: Path, labels: Path) -> None:
    target = prepare(place)
    later = seg_dataset(GRID, frames_of(BOX), FrameOfReferenceUID="7.8")
    later.ReferencedSeriesSequence[0].SeriesInstanceUID = "5.6"
    (labels / "a.dcm").write_bytes(written(later))
    annotate(target, labels)
    write_series(source / "q", series="5.6", FrameOfReferenceUID="7.8")
    dskprep.run(source, target, settings=SETTINGS)
    assert annotate(target, labels).already == {"refused": 1}
    assert annotate(target, labels, retry="unlinked").counts == {"written": 1}


def test_verify_finds_what_was_altered_and_forgetting_lets_it_be_made_anew(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    (labels / "b.csv").write_text("key,x,y,z\np,-5,-15,-28\n")
    annotate(target, labels)
    assert not [f for f in dskprep.verify(target) if f.faults or f.additions]
    array = Path(target, "volumes/p.zarr/labels/Tumour/0/c/0/0/0")
    array.write_bytes(array.read_bytes()[:-1] + b"\0")
    (points,) = Path(target, "labels/points").iterdir()
    points.unlink()
    faulty = [f for f in dskprep.verify(target) if f.faults]
    assert [f.key for f in faulty] == ["a.dcm", "b.csv"]
    done = CliRunner().invoke(commands.main, ["verify", target, "--forget"])
    assert "2 label sources, 2 with faults" in done.output
    assert annotate(target, labels).counts == {"written": 2}
    assert not [f for f in dskprep.verify(target) if f.faults]


def test_forgetting_deletes_what_is_named_and_nothing_else(place: str, labels: Path) -> None:
    target = prepare(place)
    before = content(target)
    frames = [*frames_of(BOX, 1), *frames_of(~BOX, 2)]
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames, names=("GTV", "Body")))
    (labels / "b.csv").write_text("key,x,y,z\np,-5,-15,-28\n")
    annotate(target, labels)
    told = dskprep.forget_labels(target, "gtv", is_trial=True)
    assert sorted(dskprep.open_dataset(target)["p"].labels) == ["Body", "GTV"]
    assert dskprep.forget_labels(target, "gtv") == told
    assert all("/labels/GTV/" in name for name in told)
    assert list(dskprep.open_dataset(target)["p"].labels) == ["Body"]
    dskprep.forget_labels(target, "*")
    left = content(target).keys() - before.keys() - {"annotations.parquet"}
    assert left <= {"volumes/p.zarr/labels/zarr.json"}
    with pytest.raises(UsageError, match="no label is named"):
        dskprep.forget_labels(target, "*")
    assert annotate(target, labels).counts == {"written": 2}


def test_what_is_no_label_is_set_aside_and_costs_nothing(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "plan.dcm").write_bytes(written(seg_dataset(GRID, [], SOPClassUID="1.2.840.10008.5.1.4.1.1.481.5")))
    (labels / "clinical.csv").write_text("PatientID,Age\n1,2\n")
    (labels / "other.xml").write_bytes(b"<html/>")
    (labels / "notes.txt").write_text("x")
    (labels / "slice.dcm").write_bytes(ct_file(distinct(8, 8)))
    summary = annotate(target, labels)
    assert (summary.counts, summary.exit_code) == ({"set-aside": 3}, 0)


def test_datasets_are_no_labels(place: str) -> None:
    """On S3 dataset.json comes after all that lies in the folders beside it."""
    target = prepare(storage.join(place, "all/sub"))
    for folder in ("", "labels", "volumes/p.zarr", "records"):
        with pytest.raises(UsageError, match="dataset"):
            annotate(target, storage.join(target, folder) if folder else target)
    seg = seg_file(GRID, frames_of(BOX), names=("Tumour",))
    nnunet = {"dataset.json": b'{"labels": {}}', "labels/a.dcm": seg, "points.csv": b"key,x,y,z\np,-5,-15,-28\n"}
    storage.write_many(storage.join(place, "all/nnunet"), nnunet)
    notes: list[str] = []

    class Seen:
        def on_note(self, text: str) -> None:
            notes.append(text)

        def on_label(self, *_: Any) -> None: ...

    for _ in range(2):  # then the dataset has labels and points of its own
        summary = annotate(target, storage.join(place, "all"), observers=[Seen()])
        assert summary.counts == {"written": 2}
    assert notes == [f"{target}: is a dataset of dskprep, and is passed over"] * 2
    other = prepare(storage.join(place, "other"))
    assert annotate(other, target).counts == {}


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 100_000, b"DICM", b"II*\0" + bytes(500)])
def test_no_bytes_stop_the_others(tmp_path: Path, labels: Path, content: bytes) -> None:
    target = prepare(str(tmp_path))
    for name in ("a.dcm", "a.xml", "a.nii.gz", "a.csv", "a.nrrd", "a.parquet"):
        (labels / name).write_bytes(content)
    (labels / "good.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    summary = annotate(target, labels)
    assert summary.counts["written"] == 1
    assert not {"failed", "killed"} & set(summary.counts)


def test_hostile_headers_are_refused_before_memory_is_asked_for(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(
        seg_file(GRID, frames_of(BOX), Rows=60000, Columns=60000, NumberOfFrames=5000, names=("Tumour",))
    )
    assert refused(target, labels)[0] in ("label-damaged", "label-too-large")


def test_a_label_larger_than_a_worker_is_refused_before_it_is_read(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    monkeypatch.setattr(drawing, "FIXED_BYTES", 1 << 50)
    reason, message = refused(target, labels)
    assert (reason, "--memory-limit" in message) == ("too-large", True)


def test_a_label_whose_items_are_larger_than_a_worker_is_refused_before_they_are_read(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    monkeypatch.setattr(memory, "PART_BYTES", 1 << 50)
    monkeypatch.setattr(drawing, "read_labels", lambda *_, **_more: pytest.fail("it was read"))
    reason, message = refused(target, labels)
    assert (reason, "--memory-limit" in message) == ("too-large", True)


def test_a_label_whose_planes_are_larger_than_a_worker_is_refused_before_they_are_decoded(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    monkeypatch.setattr(seg, "DECODING", 1 << 50)
    monkeypatch.setattr(hold, "MAX_BYTES", 1 << 70)
    monkeypatch.setattr(seg_pixels.Layout, "union", lambda *_: pytest.fail("it was decoded"))
    reason, message = refused(target, labels)
    assert (reason, "--memory-limit" in message) == ("too-large", True)


def test_a_label_that_fits_alone_is_not_refused_for_what_others_take(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up twice, as if others had come, and admitted with its need; that is not added to again."""
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    needs: list[int] = []

    def grow(self: admission.Ledger, ticket: admission.Ticket, need_bytes: int) -> None:  # noqa: ARG001
        needs.append(need_bytes)
        if len(needs) in (3, 6):
            raise admission.Underestimated(need_bytes)

    monkeypatch.setattr(admission.Ledger, "grow", grow)
    assert annotate(target, labels).counts == {"written": 1}
    assert needs == needs[:3] * 3


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"source": 3}', b"\xff" * 50])
def test_a_damaged_record_is_named_and_made_anew(tmp_path: Path, labels: Path, damage: bytes) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    ((name, _),) = label_store.list_records(target)
    Path(target, name.path).write_bytes(damage)
    found = dskprep.status(target)
    assert (found.label_sources, found.label_reasons) == ({"failed": 1}, {"failed: damaged-record": 1})
    assert (list(found.damaged_labels), found.is_clean) == ([name.path], False)
    assert any("damaged" in fault for f in dskprep.verify(target) for fault in f.faults)
    assert annotate(target, labels).counts == {"written": 1}
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["Tumour"][:], BOX)


def test_a_record_of_a_label_without_its_box_is_damaged(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    ((name, _),) = label_store.list_records(target)
    for field in ("first", "shape"):
        record = json.loads(Path(target, name.path).read_bytes())
        del record["labels"][0][field]
        with pytest.raises(DamagedDataset, match="expected the box of each label, found none of Tumour"):
            label_record.parse_label_record(json.dumps(record).encode(), name.path)


def test_what_a_damaged_record_describes_does_not_go_without_a_word(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    (labels / "b.csv").write_text("key,x,y,z\np,-5,-15,-28\n")
    annotate(target, labels)
    path = next(name.path for name, _ in label_store.list_records(target) if name.source == "a.dcm")
    Path(target, path).write_bytes(b"{}")
    with pytest.warns(UserWarning, match=r"a\.dcm"):
        assert list(dskprep.open_dataset(target)["p"].labels) == []
    summary = annotate(target, labels / "b.csv")
    assert (list(summary.damaged_records), summary.exit_code) == ([path], 1)
    with pytest.warns(UserWarning, match=r"a\.dcm"):
        assert list(dskprep.open_dataset(target)["p"].labels) == []
    with pytest.warns(UserWarning, match=r"a\.dcm"):
        assert len(dskprep.open_dataset(target).annotations) == 1
    run = CliRunner().invoke
    for words in (["status", target], ["annotate", target, str(labels / "b.csv"), "--scheduler", "sync"]):
        done = run(commands.main, words, standalone_mode=False)
        assert (path in done.output, done.return_value) == (True, 1)
    assert path in dskprep.report(target)
    assert list(dskprep.clean(target, older_than_s=-5)) == []
    assert all("b.csv" in gone for gone in dskprep.forget_labels(target, "b.csv"))
    assert dskprep.forget_labels(target, "a.dcm") == [path]
    assert annotate(target, labels).exit_code == 0
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["Tumour"][:], BOX)


def test_a_store_that_fails_costs_the_source_only_until_the_next_time(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))

    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(label_store, "write_list", fail)
        assert annotate(target, labels).reasons == {"failed: OSError": 1}
    assert annotate(target, labels, retry="failed").counts == {"written": 1}
    assert not [f for f in dskprep.verify(target) if f.faults or f.additions]


def test_what_a_killed_annotate_leaves_is_cleaned_and_nothing_else(place: str, labels: Path) -> None:
    target = prepare(place)
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    (labels / "b.csv").write_text("key,x,y,z\np,-5,-15,-28\n")
    annotate(target, labels)
    whole = content(target)
    for name, _ in label_store.list_records(target):
        if name.source == "a.dcm":
            storage.delete(target, [name.path])  # as if its process had died before it was written
    mine = "volumes/p.zarr/labels/mine/zarr.json"
    storage.write_many(target, {mine: b'{"zarr_format": 3, "node_type": "group"}'})
    assert list(dskprep.clean(target)) == []  # it is younger than a day
    told = list(dskprep.clean(target, older_than_s=-5, is_trial=True))
    assert sorted(told) == sorted(name for name in whole if "/labels/Tumour/" in name)
    assert list(dskprep.clean(target, older_than_s=-5)) == told
    left = content(target).keys()
    assert left == {
        name for name in whole if "/labels/Tumour/" not in name and not name.startswith("labels/written/a")
    } | {mine}
    assert annotate(target, labels).counts == {"written": 2}
    assert not [f for f in dskprep.verify(target) if f.faults]


@pytest.mark.parametrize("end", [SystemError("the process is killed"), InfrastructureError("the store is lost")])
def test_what_annotate_has_written_before_it_ends_early_is_among_the_labels_of_its_volumes(
    place: str, labels: Path, monkeypatch: pytest.MonkeyPatch, end: Exception
) -> None:
    """Or a mask for training is 0 where a label is. annotations.parquet is written at the start and the end."""
    target = prepare(place)
    (labels / "a.csv").write_text("key,x,y,z\np,-5,-15,-28\n")
    annotate(target, labels)
    (labels / "b.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    (labels / "c.csv").write_text("key,x,y,z\np,-4,-15,-28\n")
    with monkeypatch.context() as patched:
        begun: list[str] = []

        def write(where: str) -> Any:
            begun.append(where)
            if len(begun) > 1 and isinstance(end, SystemError):
                raise end
            return real(where)

        def without_copies(records: Any, _: str) -> Iterator[Any]:
            yield from records
            raise end

        real = pipeline.table.write
        patched.setattr(pipeline.table, "write", write)
        patched.setattr(pipeline.label_order, "without_copies", without_copies)
        with pytest.raises(type(end)):
            annotate(target, labels)
    dataset = dskprep.open_dataset(target)
    assert list(dataset["p"].labels) == ["Tumour"]
    assert len(dataset["p"].points) == 2
    drawn = dataset.patches(SHAPE, around="Tumour", labels=["Tumour"], positives=1.0, jitter_mm=0.0, normalized=False)
    assert np.count_nonzero(drawn[0].labels["Tumour"]) > 0
    written = tables.read_parquet(storage.read(storage.join(target, "annotations.parquet")))
    assert ("Tumour" in written["label"].to_pylist()) == isinstance(end, InfrastructureError)


MINE = [f"volumes/p.zarr/labels/Tumour/{name}" for name in ("notes.md", "mine/zarr.json", "1/zarr.json", "0/x.txt")]
"""What a user put into the folder of a label."""


def prepare_with_mine(place: str, labels: Path) -> str:
    target = prepare(place)
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    storage.write_many(target, dict.fromkeys(MINE, b"{}"))
    assert {f"volumes/p.zarr/{name}" for f in dskprep.verify(target) for name in f.additions} == set(MINE)
    return target


def test_what_a_user_put_into_the_folder_of_a_label_stays_when_its_image_is_replaced(
    place: str, source: Path, labels: Path
) -> None:
    target = prepare_with_mine(place, labels)
    write_series(source / "p", seed=5)
    dskprep.run(source, target, settings=SETTINGS)
    assert sorted(name for name in content(target) if "/labels/Tumour/" in name) == sorted(MINE)
    assert annotate(target, labels).counts == {"written": 1}
    assert content(target).keys() > set(MINE)


def test_what_a_user_put_into_the_folder_of_a_label_stays_when_the_label_is_cleaned_or_written_over(
    place: str, labels: Path
) -> None:
    target = prepare_with_mine(place, labels)
    for name, _ in label_store.list_records(target):
        storage.delete(target, [name.path])
    assert annotate(target, labels, only=["Tum*"]).counts == {"written": 1}
    assert content(target).keys() > set(MINE)
    for name, _ in label_store.list_records(target):
        storage.delete(target, [name.path])
    storage.write_many(target, {"labels/note.txt": b""})  # where `labels/` is empty, no label is looked at
    assert not set(dskprep.clean(target, older_than_s=-5, without_records=True)) & set(MINE)
    assert sorted(name for name in content(target) if "/labels/Tumour/" in name) == sorted(MINE)


def test_what_a_killed_annotate_leaves_is_in_no_ones_way_under_other_options(place: str, labels: Path) -> None:
    target = prepare(place)
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    assert annotate(target, labels, only=["T*"]).reasons == {"refused: label-exists": 1}
    for name, _ in label_store.list_records(target):
        storage.delete(target, [name.path])
    assert annotate(target, labels, only=["Tum*"]).counts == {"written": 1}
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["Tumour"][:], BOX)
    assert not [f for f in dskprep.verify(target) if f.faults or f.additions]


@pytest.mark.parametrize(
    "name",
    [
        "annotations.parquet",
        "labels/written/a.dcm.44136fa3.c42d7a56ed8fec50.json",
        "labels/points/a.csv.44136fa3.c42d7a56ed8fec50.parquet",
        "volumes/p.zarr/labels/GTV-1/0/c/0/0/0",
        "volumes/p.zarr/labels/GTV-1/zarr.json",
    ],
)
def test_unfinished_files_of_labels_are_cleaned(tmp_path: Path, name: str) -> None:
    target = prepare(str(tmp_path))
    folder, _, file = name.rpartition("/")
    part = Path(target, folder, f".0123456789ab{storage.PART_SUFFIX}")
    part = part.with_name(f"{file}{part.name}")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(b"x")
    os.utime(part, (1, 1))
    assert list(dskprep.clean(target)) == [str(part.relative_to(target))]
    assert not part.exists()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with dskprep.local_client(workers=2, memory_limit="1GiB") as client:
        yield client


@pytest.mark.slow
def test_workers_write_what_one_process_writes_and_list_all_labels_of_a_volume(
    tmp_path: Path, labels: Path, client: Client
) -> None:
    targets = [prepare(str(tmp_path / name)) for name in ("one", "two")]
    for k in range(12):
        mask = np.roll(BOX, k, axis=2)
        (labels / f"{k}.dcm").write_bytes(seg_file(GRID, frames_of(mask), names=(f"Tumour-{k}",)))
    assert annotate(targets[0], labels).counts == {"written": 12}
    assert annotate(targets[1], labels, client=client).counts == {"written": 12}
    one, two = (
        {name: c for name, c in content(t).items() if name.startswith("volumes/p.zarr/labels/")} for t in targets
    )
    assert one == two
    listed = json.loads(two["volumes/p.zarr/labels/zarr.json"])["attributes"]["ome"]["labels"]
    assert sorted(listed) == sorted(f"Tumour-{k}" for k in range(12))


class Poison(WorkerPlugin):
    """Kills the worker process that draws `Tumour-1`, until there is a file at the path of the antidote."""

    name = "poison"

    def __init__(self, antidote: Path) -> None:
        self.antidote = antidote

    def setup(self, worker: Any) -> None:  # noqa: ARG002
        from dskprep.dataset.omezarr import LabelEncoder

        encode, antidote = LabelEncoder.encode, self.antidote

        def encode_or_die(self: Any, name: str, *rest: Any) -> dict[str, bytes]:
            if name == "Tumour-1" and not antidote.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(self, name, *rest)

        LabelEncoder.encode = encode_or_die  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_label_that_kills_its_worker_is_recorded_and_the_others_are_written(
    tmp_path: Path, labels: Path, client: Client
) -> None:
    target = prepare(str(tmp_path))
    for k in range(3):
        (labels / f"{k}.dcm").write_bytes(seg_file(GRID, frames_of(np.roll(BOX, k, 2)), names=(f"Tumour-{k}",)))
    client.register_plugin(Poison(tmp_path / "antidote"))
    summary = annotate(target, labels, client=client)
    (tmp_path / "antidote").touch()
    assert summary.counts == {"written": 2, "killed": 1}
    assert annotate(target, labels, retry="failed", client=client).counts == {"written": 3}


def test_the_command_says_what_became_of_each_source(tmp_path: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour", "Empty")))
    run = CliRunner().invoke
    done = run(commands.main, ["annotate", target, str(labels), "--scheduler", "sync"], standalone_mode=False)
    assert "written  a.dcm 1 label in p" in done.output
    assert "without 'Empty' in p: label-empty" in done.output
    assert done.return_value == 0
    again = run(commands.main, ["annotate", target, str(labels), "--scheduler", "sync"], standalone_mode=False)
    assert (f"nothing new: {target}" in again.output, "0 labels" in again.output) == (True, False)
    lines = run(
        commands.main, ["annotate", target, str(labels), "--scheduler", "sync", "--log-json"], standalone_mode=False
    )
    assert json.loads(lines.output.splitlines()[-1])["already"] == {"written": 1}
    status = run(commands.main, ["status", target], standalone_mode=False)
    assert "1 label source; 1 label, 0 points" in status.output
    assert "Tumour in 1" in status.output
    (labels / "none").mkdir()
    none = run(commands.main, ["annotate", target, str(labels / "none"), "--scheduler", "sync"], standalone_mode=False)
    assert (none.return_value, "" in none.stdout.splitlines()) == (1, False)
    assert f"no label file was found, and nothing was done: {target}" in none.stdout
    gone = run(commands.main, ["annotate", target, "--forget", "Tum*"], standalone_mode=False)
    assert "objects deleted" in gone.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give LABELS"),
        (["nowhere"], "no such folder or file"),
        ([".", "--as", "{wrong}"], "expected a name with"),
        ([".", "--as", " "], "expected a name with"),
        ([".", "--as", "{name.__class__}"], "expected a name with"),
        ([".", "--as", "{name[0]}"], "expected a name with"),
        ([".", "--consensus", "0"], "above 0 and at most 1"),
        ([".", "--consensus", "1.01"], "above 0 and at most 1"),
        ([".", "--consensus", "nan"], "above 0 and at most 1"),
        ([".", "--names", "liver"], "a value and a name"),
        ([".", "--names", "²=liver"], "a value and a name"),
        ([".", "--names", f"{'9' * 5000}=liver"], "a value and a name"),
        ([".", "--forget", "x"], "leave out"),
    ],
)
def test_wrong_use_is_said_in_one_line_before_anything_is_done(tmp_path: Path, words: list[str], said: str) -> None:
    target = prepare(str(tmp_path))
    with pytest.raises(DskprepError, match=said):
        commands.main.main(["annotate", target, *words, "--scheduler", "sync"], standalone_mode=False)
    assert not list(label_store.list_records(target))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"only": "GTV*"}, r"only must be a list .* not 'GTV\*'"),
        ({"only": [1]}, "only must be a list"),
        ({"patterns": "*.dcm"}, "patterns must be a list"),
        ({"names": {"1": "liver"}}, "names: expected whole numbers"),
        ({"names": ["liver"]}, "names: expected whole numbers"),
        ({"consensus": "0.5"}, "above 0 and at most 1"),
        ({"name_as": None}, "expected a name with"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_done(
    tmp_path: Path, labels: Path, how: dict[str, Any], said: str
) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    with pytest.raises(UsageError, match=said):
        annotate(target, labels, **how)
    assert not list(label_store.list_records(target))
    if "names" in how:
        with pytest.raises(UsageError, match=said):
            dskprep.read_labels(b"", **how)


def test_a_text_is_no_list_of_patterns(tmp_path: Path, source: Path, labels: Path) -> None:
    target = prepare(str(tmp_path))
    (labels / "a.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    dataset = dskprep.open_dataset(target)
    wrong: Any = ["Tum*"]
    with pytest.raises(UsageError, match="must be a list"):
        dskprep.forget_labels(target, wrong)
    with pytest.raises(UsageError, match="must be a list"):
        dskprep.read_labels(labels / "a.dcm").named(wrong)
    with pytest.raises(UsageError, match="must be a list"):
        dskprep.run(source, target, settings=SETTINGS, labels="*.dcm")
    with pytest.raises(UsageError, match="must be a list"):
        dskprep.export("monai", target, str(tmp_path / "export"), labels="Tumour")
    with pytest.raises(UsageError, match="must be a list"):
        dataset.patches(4, around="Tumour", labels="Tumour", positives=1)
    with pytest.raises(UsageError, match="no volume has a label 'nosuch'; there are the labels Tumour"):
        dataset.patches(4, around="Tumour", labels=["nosuch"], positives=1)
    assert dataset.patches(4, around="Tumour", labels=["tum*", "lungs"], positives=1)[0].labels["tum*"].any()


def test_comparing_two_datasets_tells_how_their_labels_differ(tmp_path: Path, labels: Path) -> None:
    targets = [prepare(str(tmp_path / name)) for name in ("one", "two")]
    coarse = PrepConfig(check_hu=False, lungs=False, min_slices=4, spacing_mm=(2.0, 2.0, 2.0))
    targets.append(prepare(str(tmp_path / "three"), settings=coarse))
    moved = np.roll(BOX, 2, axis=2)
    for target, mask, names in zip(targets, (BOX, moved, BOX), (("T", "x"), ("T", "y"), ("T", "x")), strict=True):
        frames = [*frames_of(mask, 1), *frames_of(BOX, 2)]
        (labels / "a.dcm").write_bytes(seg_file(GRID, frames, names=names))
        annotate(target, labels)
    (compared,) = dskprep.compare(*targets[:2])
    assert {label.name: label.dice for label in compared.difference.labels} == {"T": 9 / 11, "x": None, "y": None}
    (compared,) = dskprep.compare(targets[0], targets[2])
    assert all(label.dice is not None and label.dice > 0.8 for label in compared.difference.labels)
    done = CliRunner().invoke(commands.main, ["compare", *targets[:2]])
    assert "label T: Dice 0.8182, 0.308 and 0.308 ml" in done.output
    assert "label x: only in A" in done.output


def test_labels_cleaned_before_their_record_is_committed_are_written_again(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepare(str(tmp_path))
    (labels / "other.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Other",)))
    annotate(target, labels)
    (labels / "box.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    commit, cleaned = label_store.commit, []

    def clean_first(url: str, record: Any) -> bool:
        if not cleaned:
            cleaned.extend(dskprep.clean(url, older_than_s=-60))
        return commit(url, record)

    monkeypatch.setattr(label_store, "commit", clean_first)
    assert annotate(target, labels).counts == {"written": 2}
    assert any("/labels/Tumour/" in name for name in cleaned)
    assert np.array_equal(dskprep.open_dataset(target)["p"].labels["Tumour"][:], BOX)


def test_the_record_of_labels_committed_while_these_are_cleaned_goes_too(
    tmp_path: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepare(str(tmp_path))
    (labels / "other.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Other",)))
    annotate(target, labels)
    (labels / "box.dcm").write_bytes(seg_file(GRID, frames_of(BOX), names=("Tumour",)))
    annotate(target, labels)
    (name,) = (name for name, _ in label_store.list_records(target) if name.source == "box.dcm")
    lost = storage.read(storage.join(target, name.path))
    storage.delete(target, [name.path])
    delete = storage.delete

    def commit_first(url: str, names: Any) -> None:
        if any("/labels/Tumour/" in each for each in names):
            monkeypatch.setattr(storage, "delete", delete)
            storage.write_many(url, {name.path: lost})
        delete(url, names)

    monkeypatch.setattr(storage, "delete", commit_first)
    assert name.path in list(dskprep.clean(target, older_than_s=-60))
    assert name not in [found for found, _ in label_store.list_records(target)]
    assert annotate(target, labels).counts == {"written": 2}

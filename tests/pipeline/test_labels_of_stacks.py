"""Of several stacks or phases, a label belongs to the one on whose slices it was drawn, or to no volume."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders import ct_file, distinct
from label_builders import (
    FRAME_OF_REFERENCE,
    SERIES,
    frames_of,
    grid_of,
    lidc_file,
    nodule_xml,
    ring,
    rtstruct_dataset,
    seg_dataset,
    written,
)
from pydicom import Dataset

import dskprep
from dskprep.dataset import label_store
from dskprep.dataset.identity import Identities
from dskprep.settings import PrepConfig
from dskprep.worker import drawing

SHAPE = (10, 24, 20)
GRID = grid_of(SHAPE, (1.0, 1.0, 1.0))
SETTINGS = PrepConfig(check_hu=False, lungs=False, min_slices=4)
BOX = np.zeros(SHAPE, np.bool_)
BOX[4, 5:12, 4:15] = True


def write_stack(folder: Path, name: str, n: int, *, mirrored: bool = False, series: str = SERIES) -> None:
    """The first n slices of a phase, as instances SERIES.<name>.<number of the slice>."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(distinct(*SHAPE)[:n]):
        content = ct_file(
            plane[:, ::-1] if mirrored else plane,
            GRID.to_patient((k, 0, 0)),
            SeriesInstanceUID=series,
            FrameOfReferenceUID=FRAME_OF_REFERENCE,
            PixelSpacing=[1, 1],
            AcquisitionNumber=int(name),
            SOPInstanceUID=f"{SERIES}.{name}.{k}",
        )
        (folder / f"{name}-{k:03}.dcm").write_bytes(content)


def drawn_on(kind: str, instance: str) -> bytes:
    """A label in slice 4 that names one slice."""
    if kind == "seg":
        seg = seg_dataset(GRID, frames_of(BOX))
        seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = instance
        return written(seg)
    if kind == "rtstruct":
        struct = rtstruct_dataset({"GTV": [[(-5, -15, -26), (1, -15, -26), (1, -9, -26)]]})
        (study,) = struct.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
        study.RTReferencedSeriesSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID = instance
        return written(struct)
    return lidc_file(nodule_xml("a", [(-26.0, ring(12, 10, 4))], [3] * 9, instances=[instance]))


def annotated(target: Path, labels: Path, content: bytes) -> tuple[str | None, str, set[str]]:
    """The reason and message of the only label source, and the volumes that have a label of it."""
    labels.mkdir(exist_ok=True)
    (labels / "a").write_bytes(content)
    dskprep.annotate(target, labels)
    ((name, _),) = label_store.list_records(str(target))
    record = label_store.read_record(str(target), name)
    return record.reason, record.message or "", {label.volume for label in record.written}


@pytest.mark.parametrize("kind", ["seg", "rtstruct", "xml"])
def test_a_label_of_a_stack_that_was_not_written_is_not_drawn_on_another(tmp_path: Path, kind: str) -> None:
    write_stack(tmp_path / "in" / "p", "1", 10)
    write_stack(tmp_path / "in" / "p", "2", 8, mirrored=True)
    target, labels = tmp_path / "out", tmp_path / "labels"
    dskprep.run(tmp_path / "in", target, settings=SETTINGS)
    assert dskprep.open_dataset(target).index.warnings.tolist() == ["one-of-several-stacks"]
    reason, message, _ = annotated(target, labels, drawn_on(kind, f"{SERIES}.2.4"))
    assert (reason, "drawn on slices that were not written" in message) == ("label-unlinked", True)
    assert SERIES not in message
    assert annotated(target, labels, drawn_on(kind, f"{SERIES}.1.4")) == (None, "", {"p"})


@pytest.mark.parametrize("phase", ["1", "2"])
def test_a_label_belongs_to_the_stack_whose_slices_it_names(tmp_path: Path, phase: str) -> None:
    for name in ("1", "2"):
        write_stack(tmp_path / "in" / f"phase-{name}", name, 8, mirrored=name == "2")
    dskprep.run(tmp_path / "in", tmp_path / "out", settings=SETTINGS)
    found = annotated(tmp_path / "out", tmp_path / "labels", drawn_on("seg", f"{SERIES}.{phase}.4"))
    assert found == (None, "", {f"phase-{phase}"})


def test_a_label_may_name_copies_of_slices_that_were_left_out(tmp_path: Path) -> None:
    write_stack(tmp_path / "in" / "p", "1", 10)
    for path in sorted((tmp_path / "in" / "p").iterdir()):
        copied = pydicom.dcmread(io.BytesIO(path.read_bytes()))
        copied.SOPInstanceUID = copied.file_meta.MediaStorageSOPInstanceUID = copied.SOPInstanceUID + ".7"
        path.with_name(f"z{path.name}").write_bytes(written(copied))
    target, labels = tmp_path / "out", tmp_path / "labels"
    dskprep.run(tmp_path / "in", target, settings=SETTINGS)
    assert dskprep.open_dataset(target).index.warnings.tolist() == ["identical-duplicates-dropped"]
    for end in ("", ".7"):
        assert annotated(target, labels, drawn_on("seg", f"{SERIES}.1.4{end}")) == (None, "", {"p"})


def test_a_series_that_is_written_whole_has_its_labels_though_its_slices_were_named_anew(tmp_path: Path) -> None:
    """As by a program that removes identities and keeps the SeriesInstanceUID."""
    write_stack(tmp_path / "in" / "p", "1", 10)
    dskprep.run(tmp_path / "in", tmp_path / "out", settings=SETTINGS)
    assert annotated(tmp_path / "out", tmp_path / "labels", drawn_on("seg", "1.2.77.4")) == (None, "", {"p"})


def test_a_volume_that_does_not_know_its_slices_has_the_labels_of_its_series(tmp_path: Path) -> None:
    """As older versions wrote them."""
    write_stack(tmp_path / "in" / "p", "1", 10)
    for path in (tmp_path / "in" / "p").iterdir():
        nameless = pydicom.dcmread(io.BytesIO(path.read_bytes()))
        nameless.SOPInstanceUID = ""
        path.write_bytes(written(nameless))
    target = tmp_path / "out"
    dskprep.run(tmp_path / "in", target, settings=SETTINGS)
    assert annotated(target, tmp_path / "labels", drawn_on("seg", f"{SERIES}.2.4")) == (None, "", {"p"})


SQUARE = [(-5, -15, -26), (1, -15, -26), (1, -9, -26)]


def item(**attributes: object) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def of_phases(**phase_of: str) -> bytes:
    """An RTSTRUCT that lists the phases 1, 2 and 3, each a series; each ROI was drawn on slice 4 of its phase."""
    struct = rtstruct_dataset({roi: [SQUARE] for roi in phase_of})
    (study,) = struct.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    study.RTReferencedSeriesSequence = [
        item(
            SeriesInstanceUID=f"{SERIES}.{phase}",
            ContourImageSequence=[item(ReferencedSOPInstanceUID=f"{SERIES}.{phase}.{k}") for k in range(8)],
        )
        for phase in "123"
    ]
    for roi, phase in zip(struct.ROIContourSequence, phase_of.values(), strict=True):
        roi.ContourSequence[0].ContourImageSequence = [item(ReferencedSOPInstanceUID=f"{SERIES}.{phase}.4")]
    return written(struct)


def written_phases(folder: Path, phases: str) -> Path:
    for name in phases:
        write_stack(folder / "in" / f"phase-{name}", name, 8, mirrored=name == "2", series=f"{SERIES}.{name}")
    dskprep.run(folder / "in", folder / "out", settings=SETTINGS)
    return folder / "out"


def test_a_label_that_lists_all_phases_is_not_drawn_on_others_than_its_own(tmp_path: Path) -> None:
    """Its own phase was not written, as where one series of each study is chosen."""
    target = written_phases(tmp_path, "23")
    reason, message, _ = annotated(target, tmp_path / "labels", of_phases(GTV="1"))
    assert (reason, SERIES in message) == ("label-unlinked", False)
    assert annotated(target, tmp_path / "labels", of_phases(GTV="2")) == (None, "", {"phase-2"})


def test_a_phase_that_is_alone_has_a_label_of_another_one_with_a_warning(tmp_path: Path) -> None:
    target = written_phases(tmp_path, "2")
    assert annotated(target, tmp_path / "labels", of_phases(GTV="1")) == (None, "", {"phase-2"})
    assert set(dskprep.open_dataset(target).annotations.source_warnings) == {"linked-by-frame-of-reference"}


def test_each_roi_lies_in_the_phase_that_it_was_drawn_on(tmp_path: Path) -> None:
    target = written_phases(tmp_path, "12")
    annotated(target, tmp_path / "labels", of_phases(early="1", late="2", gone="3"))
    ((name, _),) = label_store.list_records(str(target))
    found = {(each.name, each.volume, each.reason) for each in label_store.read_record(str(target), name).labels}
    assert found == {
        ("early", "phase-1", None),
        ("late", "phase-2", None),
        ("gone", "phase-1", "label-unlinked"),
    }


def seg_that_lists_both(*drawn_on: str) -> bytes:
    """A SEG that lists all slices of both stacks; it has a segment for each of these, drawn on slice 4 of it."""
    seg = seg_dataset(GRID, [frame for n, _ in enumerate(drawn_on, 1) for frame in frames_of(BOX, n)])
    listed = [f"{SERIES}.{name}.{k}" for name in "12" for k in range(8)]
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [item(ReferencedSOPInstanceUID=uid) for uid in listed]
    for group, name in zip(seg.PerFrameFunctionalGroupsSequence, drawn_on, strict=True):
        if name:
            source = item(ReferencedSOPInstanceUID=f"{SERIES}.{name}.4")
            group.DerivationImageSequence = [item(SourceImageSequence=[source])]
    return written(seg)


def test_a_segment_belongs_to_the_stack_on_whose_slices_its_frames_were_drawn(tmp_path: Path) -> None:
    write_stack(tmp_path / "in" / "p", "1", 10)
    write_stack(tmp_path / "in" / "p", "2", 8, mirrored=True)
    longest, both, labels = tmp_path / "longest", tmp_path / "all", tmp_path / "labels"
    dskprep.run(tmp_path / "in", longest, settings=SETTINGS)
    dskprep.run(tmp_path / "in", both, settings=replace(SETTINGS, stacks="all"))
    assert annotated(longest, labels, seg_that_lists_both("2"))[0] == "label-unlinked"
    assert annotated(longest, labels, seg_that_lists_both("1")) == (None, "", {"p"})
    assert set(dskprep.open_dataset(longest).annotations.source_warnings) == {""}
    annotated(both, labels, seg_that_lists_both("1", "2"))
    dataset = dskprep.open_dataset(both)
    of_second = next(key for key in dataset if key != "p")
    assert [list(dataset[key].labels) for key in ("p", of_second)] == [["Lung"], ["Tumour"]]


def test_a_label_that_does_not_say_on_which_stack_it_was_drawn_has_a_warning(tmp_path: Path) -> None:
    write_stack(tmp_path / "in" / "p", "1", 10)
    write_stack(tmp_path / "in" / "p", "2", 8, mirrored=True)
    dskprep.run(tmp_path / "in", tmp_path / "out", settings=SETTINGS)
    assert annotated(tmp_path / "out", tmp_path / "labels", seg_that_lists_both("")) == (None, "", {"p"})
    assert set(dskprep.open_dataset(tmp_path / "out").annotations.source_warnings) == {"stack-not-told"}


def test_a_label_on_interpolated_slices_has_a_warning(tmp_path: Path) -> None:
    write_stack(tmp_path / "in" / "p", "1", 10)
    (tmp_path / "in" / "p" / "1-005.dcm").unlink()
    target = tmp_path / "out"
    dskprep.run(tmp_path / "in", target, settings=replace(SETTINGS, on_gap="interpolate"))
    assert dskprep.open_dataset(target).index.warnings.tolist() == ["gap-interpolated"]
    assert annotated(target, tmp_path / "labels", drawn_on("seg", f"{SERIES}.1.4")) == (None, "", {"p"})
    assert set(dskprep.open_dataset(target).annotations.source_warnings) == {"gap-interpolated"}


def test_rois_that_were_drawn_on_copies_of_slices_lie_in_the_volume_that_has_the_others(tmp_path: Path) -> None:
    write_stack(tmp_path / "in" / "p", "1", 10)
    for path in sorted((tmp_path / "in" / "p").iterdir()):
        copied = pydicom.dcmread(io.BytesIO(path.read_bytes()))
        copied.SOPInstanceUID = copied.file_meta.MediaStorageSOPInstanceUID = copied.SOPInstanceUID + ".7"
        path.with_name(f"z{path.name}").write_bytes(written(copied))
    target = tmp_path / "out"
    dskprep.run(tmp_path / "in", target, settings=SETTINGS)
    struct = rtstruct_dataset({"first": [SQUARE], "copy": [SQUARE]})
    for roi, end in zip(struct.ROIContourSequence, ("", ".7"), strict=True):
        roi.ContourSequence[0].ContourImageSequence = [item(ReferencedSOPInstanceUID=f"{SERIES}.1.4{end}")]
    (study,) = struct.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = SERIES
    annotated(target, tmp_path / "labels", written(struct))
    assert set(dskprep.open_dataset(target)["p"].labels) == {"first", "copy"}


def test_a_volume_lacks_no_label_that_was_drawn_on_another_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file came to nothing as a whole."""
    target = written_phases(tmp_path, "12")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(drawing, "_draw_all", fail)
    assert annotated(target, tmp_path / "labels", of_phases(early="1", late="2"))[0] == "MemoryError"
    lacking = dskprep.open_dataset(target).lacking(["*"])
    assert lacking == {"phase-1": ["early (MemoryError)"], "phase-2": ["late (MemoryError)"]}


def test_the_slices_of_a_file_are_looked_up_once_however_many_rois_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where they were named anew since, so that the volume holds none of them."""
    target = written_phases(tmp_path, "1")
    names, looked_up, instance = [f"roi{n}" for n in range(20)], [], Identities.instance
    monkeypatch.setattr(Identities, "instance", lambda self, uid: looked_up.append(uid) or instance(self, uid))
    struct = pydicom.dcmread(io.BytesIO(of_phases(**dict.fromkeys(names, "1"))))
    for n, roi in enumerate(struct.ROIContourSequence):
        roi.ContourSequence[0].ContourImageSequence = [item(ReferencedSOPInstanceUID=f"1.2.77.{n}")]
    assert annotated(target, tmp_path / "labels", written(struct))[2] == {"phase-1"}
    assert len(looked_up) < 5 * len(names)

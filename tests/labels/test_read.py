"""What is no label is refused by name; what is one is told by its bytes, whatever it is called."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from builders import ct_files, distinct
from label_builders import (
    blobs,
    frames_of,
    grid_of,
    lidc_file,
    nodule_xml,
    ring,
    rtstruct_file,
    seg_dataset,
    seg_file,
    written,
)

import dskprep
from dskprep.errors import LABEL_REASONS, SET_ASIDE, Refusal, UsageError

GRID = grid_of()
FILES = {
    "seg": seg_file(GRID, frames_of(blobs(GRID.shape))),
    "rtstruct": rtstruct_file({"x": [[(0, 0, z), (5, 0, z), (5, 5, z)] for z in (0, 2)]}),
    "lidc": lidc_file(nodule_xml("a", [(0, ring(9, 9, 3))], (1,) * 9)),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_label_is_told_by_its_bytes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "no-suffix").write_bytes(FILES[kind])
    assert dskprep.read_labels(tmp_path / "no-suffix").kind == kind
    assert dskprep.read_labels((tmp_path / "no-suffix").as_uri()).kind == kind


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000), ct_files(distinct(1, 16, 16))[0][1]])
def test_what_is_no_label_is_refused(content: bytes) -> None:
    with pytest.raises(Refusal, match=r"label-unknown|no-label"):
        dskprep.read_labels(content)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for place in ("nope.xml", "no/folder/1.nii", "file/below.csv"):
        with pytest.raises(UsageError, match=f"^{tmp_path}/{place}: there is no such file; check the path$"):
            dskprep.read_labels(place)


def refusal_of(content: bytes) -> Refusal | None:
    """What the first segments are refused for, if they are; any other error is a fault."""
    try:
        labels = dskprep.read_labels(content, name="x").at(GRID)
        for segment in labels.segments[:3]:
            labels.draw(segment, GRID)
    except Refusal as refusal:
        return refusal
    return None


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_damage_anywhere_is_a_refusal_or_does_no_harm(kind: str) -> None:
    chance = random.Random(0)
    for _ in range(150):
        damaged = bytearray(FILES[kind])
        for _ in range(chance.choice((1, 3, 30))):
            damaged[chance.randrange(128, len(damaged))] = chance.randrange(256)
        refused = refusal_of(bytes(damaged))
        assert refused is None or (refused.reason in LABEL_REASONS | SET_ASIDE and str(refused).isprintable())


@pytest.mark.parametrize("kind", FILES)
def test_a_label_that_is_cut_is_a_refusal_or_whole(kind: str) -> None:
    for n in range(150, len(FILES[kind]), max(1, len(FILES[kind]) // 100)):
        refused = refusal_of(FILES[kind][:n])
        assert refused is None or refused.reason in LABEL_REASONS | SET_ASIDE


@pytest.mark.parametrize("kind", ["1.2.840.10008.5.1.4.1.1.66.5", "1.2.840.10008.5.1.4.1.1.66.8"])
def test_a_segmentation_of_a_kind_that_is_not_read_is_a_label_that_is_lost(kind: str) -> None:
    with pytest.raises(Refusal, match="expected a SEG or RTSTRUCT, found an object of class ") as refused:
        dskprep.read_labels(written(seg_dataset(GRID, [], SOPClassUID=kind)))
    assert refused.value.reason == "label-unknown"
    with pytest.raises(Refusal, match="found an object of class") as aside:
        dskprep.read_labels(written(seg_dataset(GRID, [], SOPClassUID="1.2.840.10008.5.1.4.1.1.481.5")))
    assert aside.value.reason == "no-label"

"""The fast way to the contours of an RTSTRUCT finds what pydicom finds, or nothing."""

from __future__ import annotations

import io
import random

import numpy as np
import pydicom
import pytest
from label_builders import rtstruct_dataset, written
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

import dskprep
from dskprep.errors import Refusal
from dskprep.kernels.decimals import POWERS, read_numbers
from dskprep.labels import outlines, read
from dskprep.labels.rtstruct import RtStruct

CASES = 400
PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)


def structure_set(syntax: str = ImplicitVRLittleEndian, *, undefined: bool = False, n_contours: int = 3) -> bytes:
    """A file of two ROIs, whose contours name the slice that they were drawn on."""
    around = np.random.default_rng(5).uniform(-90, 90, (2, n_contours, 6, 3))
    dataset = rtstruct_dataset({"GTV-1": list(around[0]), "Heart": list(around[1])})
    dataset.file_meta.TransferSyntaxUID = syntax
    for k, roi in enumerate(dataset.ROIContourSequence):
        for n, contour in enumerate(roi.ContourSequence):
            image = Dataset()
            image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2", f"1.2.3.{k}.{n}"
            contour.ContourImageSequence = [image]
            contour.add_new(0x30070010, "LO", "private")
    if undefined:
        leave_open(dataset)
    return written(dataset)


def leave_open(dataset: Dataset) -> None:
    """Let all sequences and items below a dataset end with delimiters, their lengths not given."""
    for element in dataset:
        if element.VR == "SQ":
            assert isinstance(element.value, Sequence)
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                leave_open(item)


def with_damage(content: bytes, chance: random.Random) -> bytes:
    """The file with a few bytes changed, moved out or put in, behind its File Meta Information."""
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(400, len(damaged))
        match chance.randrange(4):
            case 0:
                damaged[at] = chance.choice(b"\0 \\059-.eE\xff") if chance.random() < 0.7 else chance.randrange(256)
            case 1:
                damaged[at] ^= 1 << chance.randrange(8)
            case 2:
                del damaged[at : at + chance.choice([1, 2, 8, 40])]
            case _:
                damaged[at:at] = damaged[at : at + chance.choice([1, 2, 8, 40])]
    return bytes(damaged)


def what_it_says(content: bytes) -> str:
    """All that is used of a file, or why it is refused."""
    try:
        labels = dskprep.read_labels(content, name="rs.dcm")
    except Refusal as refusal:
        return refusal.reason
    assert isinstance(labels, RtStruct)
    if not labels.segments:  # pydicom may have stopped at the damage
        return ""
    points = {number: [each.tolist() for each in found] for number, found in labels._contours.items()}
    links = [sorted(uids) for uids in (labels.links.series, labels.links.instances, labels.links.frames)]
    refused = {number: refusal.message for number, refusal in labels._refusals.items()}
    slices = {number: [sorted(uids) for uids in each] for number, each in labels._images.items()}
    return repr((labels.segments, links, labels.n_open, points, slices, refused))


@pytest.mark.parametrize("syntax", PLAIN)
@pytest.mark.parametrize("undefined", [False, True], ids=["lengths", "delimiters"])
def test_points_are_those_that_pydicom_finds(syntax: str, undefined: bool) -> None:
    content = structure_set(syntax, undefined=undefined)
    plain = outlines.split(content, "rs.dcm")
    assert plain is not None
    rest, found = plain
    theirs = pydicom.dcmread(io.BytesIO(content))
    contours = [
        (roi.ReferencedROINumber, contour) for roi in theirs.ROIContourSequence for contour in roi.ContourSequence
    ]
    assert [(o.roi, o.kind) for o in found.found] == [(number, "CLOSED_PLANAR") for number, _ in contours]
    images = [(int(number), c.ContourImageSequence[0].ReferencedSOPInstanceUID) for number, c in contours]
    assert found.images == {number: {uid for n, uid in images if n == number} for number, _ in images}
    of_roi, images_of_roi, refusals = outlines.points_of(found.text, found.found, "rs.dcm")
    assert images_of_roi == {number: [{uid} for n, uid in images if n == number] for number, _ in images}
    assert not refusals
    theirs_of_roi = {int(number): [c.ContourData for n, c in contours if n == number] for number, _ in contours}
    assert {n: [points.ravel().tolist() for points in each] for n, each in of_roi.items()} == theirs_of_roi
    others = pydicom.dcmread(io.BytesIO(rest))
    del theirs.ROIContourSequence
    assert others == theirs


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_what_is_not_plain_is_read_by_pydicom(syntax: str) -> None:
    assert what_it_says(structure_set(syntax)) == what_it_says(structure_set())


def test_a_damaged_file_is_read_as_pydicom_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        structure_set(syntax, undefined=undefined, n_contours=1) for syntax in PLAIN for undefined in (False, True)
    ]
    chance = random.Random(7)
    damaged = [with_damage(files[k % 4], chance) for k in range(CASES)]
    n_plain = sum(outlines.split(content, "") is not None for content in damaged)
    fast = [what_it_says(content) for content in damaged]
    monkeypatch.setattr(outlines, "split", lambda *_: None)
    assert fast == [what_it_says(content) for content in damaged]
    assert n_plain > CASES / 10


def test_endless_empty_items_are_refused_before_pydicom_makes_objects_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = rtstruct_dataset({"GTV-1": []})
    dataset.ROIContourSequence = [Dataset() for _ in range(outlines.MAX_ROIS + 1)]
    content = written(dataset)
    monkeypatch.setattr(read, "read_object", lambda _: pytest.fail("pydicom was asked"))
    with pytest.raises(Refusal) as caught:
        dskprep.read_labels(content, name="rs.dcm")
    assert caught.value.reason == "label-too-large"


def numbers_of(text: str) -> list[float] | None:
    out = np.empty(text.count("\\") + 1)
    letters = np.frombuffer(text.encode(), np.uint8)
    return out.tolist() if read_numbers(letters, 0, letters.size, POWERS, out) else None


def test_numbers_are_those_of_float() -> None:
    """To the last bit, in every form that DICOM allows a decimal string."""
    chance = random.Random(3)
    words = [
        f"{chance.uniform(-1, 1) * 10 ** chance.randint(-9, 9):.{chance.randint(0, 14)}{chance.choice('efg')}}"
        for _ in range(20_000)
    ]
    words = [word for word in words if len(word) <= 16] + ["-0", "+7.", ".5", " 1.25 ", "1E3", "9007199254740992"]
    found = numbers_of("\\".join(words))
    assert found is not None
    assert [v.hex() for v in found] == [float(word).hex() for word in words]


STRANGE = ["", " ", ".", "-", "1e", "1.2.3", "0x1", "1_0", "nan", "inf", "1 2", "1e400", "1,5", "1\n"]


@pytest.mark.parametrize("word", [*STRANGE, "9007199254740993", "12345678901234567890"])
def test_what_is_not_plainly_a_number_is_left_to_others(word: str) -> None:
    assert numbers_of(f"1\\{word}\\2") is None

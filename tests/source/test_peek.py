"""What one header, or the row of a table, says of a series."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import tiny
from builders import ct_file, distinct, enhanced_file, saved
from pydicom.uid import DeflatedExplicitVRLittleEndian, RTStructureSetStorage

from dskprep import storage
from dskprep.source import peek
from dskprep.source.cases import cases

SAID = {"StudyInstanceUID": "1.2.9", "SliceThickness": "1.25", "ConvolutionKernel": "LUNG", "PatientID": "P"}


def of(place: str | Path, files: dict[str, bytes]) -> peek.Peeked | None:
    (case,) = cases(tiny.write(place, files))
    assert peek.may_be_one(case)
    return peek.by_header(case)


def texts(found: peek.Peeked | None) -> tuple[str, str, str, str]:
    assert found is not None
    said = found.texts
    return found.identity.study, said["slice_thickness_mm"], said["kernel_class"], said["slices"]


def test_one_request_per_series(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = cases(tiny.write(f"{place}/in", {f"p/{n}": c for n, c in tiny.series(n=20, **SAID).items()}))
    asked: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(storage, name)

        def count(*args: Any, **more: Any) -> Any:
            asked.append(name)
            return real(*args, **more)

        return count

    for name in ("read", "read_head", "listing", "entry_of", "read_many"):
        monkeypatch.setattr(storage, name, counted(name))
    found = peek.by_header(case)
    assert texts(found) == ("1.2.9", "1.25", "sharp", "20")
    assert found is not None
    assert found.texts["length_mm"] == "25.0"
    assert asked == ["read_head"]


def test_a_length_is_not_rounded_up_to_what_a_rule_asks_for(tmp_path: Path) -> None:
    found = of(tmp_path, tiny.series(n=20, **SAID | {"SliceThickness": "12.499"}))
    assert found is not None
    assert float(found.texts["length_mm"]) < 250


def test_what_lies_beside_the_slices_does_not_speak_for_them(tmp_path: Path) -> None:
    slices = tiny.series(n=12, **SAID)
    contours = ct_file(distinct(4, 4), SOPClassUID=RTStructureSetStorage, PixelData=None)
    beside = {"RS.dcm": contours + bytes(10**6), "notes.pdf": bytes(10**6), "0.txt": b"", "thumb.png": b"x"}
    assert texts(of(tmp_path, slices | beside))[:3] == ("1.2.9", "1.25", "sharp")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("1.dcm", ct_file(distinct(300, 300) % 3000, **SAID, syntax=DeflatedExplicitVRLittleEndian)),
        (
            "1.dcm",
            ct_file(distinct(300, 300) % 3000, **SAID, LongCodeValue="x" * 40_000),
        ),
        ("1.dcm.gz", gzip.compress(ct_file(distinct(300, 300) % 3000, **SAID))),
    ],
    ids=["deflated", "a header longer than its beginning", "gzip"],
)
def test_a_header_that_cannot_be_read_from_its_beginning(tmp_path: Path, name: str, content: bytes) -> None:
    assert texts(of(tmp_path, {name: content})) == ("1.2.9", "1.25", "sharp", "1")


def test_frames_of_an_enhanced_object_count(tmp_path: Path) -> None:
    found = of(
        tmp_path, {"1.dcm": enhanced_file(distinct(15, 8, 8), [(0, 0, z) for z in range(15)], StudyInstanceUID="1.2.9")}
    )
    assert texts(found)[3] == "15"


def test_an_enhanced_object_says_its_thickness_in_a_functional_group(tmp_path: Path) -> None:
    content = enhanced_file(distinct(15, 8, 8), [(0, 0, z) for z in range(15)], StudyInstanceUID="1.2.9")
    whole = pydicom.dcmread(io.BytesIO(content))
    whole.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = "1.5"
    found = of(tmp_path, {"1.dcm": saved(whole)})
    assert texts(found) == ("1.2.9", "1.5", "unknown", "15")


@pytest.mark.parametrize(
    "files",
    [
        {"1.dcm": b""},
        {"1.dcm": b"no DICOM" * 1000},
        {"1.dcm": ct_file(distinct(4, 4), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])},
        {"1.dcm": ct_file(distinct(4, 4), SOPClassUID=RTStructureSetStorage)},
        {"1.dcm.gz": b"\x1f\x8b" + bytes(100)},
        {"1.dcm": bytes(1 << 20)},
    ],
)
def test_what_is_no_slice_is_no_choice(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert of(tmp_path, files) is None


def test_a_file_that_is_gone_is_left_to_the_worker(tmp_path: Path) -> None:
    (case,) = cases(tiny.write(tmp_path, tiny.series()))
    for path in tmp_path.iterdir():
        path.unlink()
    assert peek.by_header(case) is None

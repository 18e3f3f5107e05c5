"""What lies in a source beside the patients makes no patient and stops none; what holds a scan is found."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from builders import ct_file, distinct, enhanced_file

from dskprep import storage
from dskprep.dataset.record import Record
from dskprep.dicom.header import with_blank_pixels
from dskprep.errors import Refusal, UsageError
from dskprep.settings import PrepConfig
from dskprep.source import cases, files, found, heads
from dskprep.source.case import Case
from dskprep.storage import S3_SETTINGS, local
from dskprep.worker import patient
from dskprep.worker.patient import Job

COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
ENHANCED = enhanced_file(distinct(12, 16, 16), [(-10, -20, z) for z in range(12)])
SLICE = ct_file(distinct(1, 16, 16)[0])


def by_key(source: str | Path, **options: Any) -> dict[str, Case]:
    return {case.key: case for case in cases.cases(str(source), **options)}


def keys(source: str | Path, **options: Any) -> list[str]:
    return list(by_key(source, **options))


def record_of(case: Case, target: Path) -> Record:
    outcome = patient.prepare_patient(Job(case), target=str(target), config=PrepConfig(), memory_bytes=1_200_000_000)
    return outcome.records[-1]


# files beside the patients

STRAY = {
    "_SUCCESS": b"",
    "empty": b"",
    "notes": b"the second patient moved",
    "LOCKFILE": b"4711\n",
    "manifest": b"downloadServerUrl=https://example.org\n",
    "x.tcia": b"downloadServerUrl=https://example.org\n",
    "x.mrml": b"<MRML></MRML>",
    "x.mat": b"MATLAB 5.0 MAT-file" + bytes(200),
    "x.hdr": b"\x5c\x01\0\0" + bytes(344),
    "x.cfg": b"[a]\nb = 1\n",
    "x.roi": b"Iout" + bytes(100),
    "x.bak": b"\x80\x04\x95" + bytes(200),
    "x.dat": np.arange(8, 80, dtype="<i8").tobytes(),
    "x.bin": bytes(1000),
    "x.avi": b"RIFF\x24\x10\0\0AVI LIST",
    "x.log.gz": gzip.compress(SLICE),  # by its name no DICOM, whatever it holds
    "x.gz": gzip.compress(b"some text"),
    "x.bz2": bz2.compress(b"some text"),
    "x.xz": lzma.compress(b"some text")[:-10],
    "p1_$folder$": b"",
}


@pytest.mark.parametrize("folder", ["", "study/"], ids=["root", "inner folder"])
def test_stray_files_beside_patients_make_no_patient(place: str, folder: str) -> None:
    tiny.write(place, {f"{folder}p1/1.dcm": SLICE} | {folder + name: content for name, content in STRAY.items()})
    assert [case.url for case in cases.cases(place)] == [f"{storage.absolute(place)}/{folder}p1"]
    assert len(keys(place, patient_folders=True)) == 1


def test_stray_files_beside_archives_make_no_patient(place: str) -> None:
    tiny.write(place, {"a/p1.zip": tiny.zipped({"1.dcm": SLICE})} | {f"a/{name}": b for name, b in STRAY.items()})
    assert keys(place)[0].startswith("a__p1")
    assert len(keys(place)) == 1


def test_a_source_of_stray_files_holds_no_patient(tmp_path: Path) -> None:
    assert keys(tiny.write(tmp_path, STRAY)) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("IM0001", SLICE),
        ("IM0001", SLICE[132:]),
        ("1.2.840.113", SLICE),
        ("IM0001.gz", gzip.compress(SLICE)),
        ("IM0001", bz2.compress(SLICE + random.Random(0).randbytes(1 << 20))),
        ("1.dcm.xz", lzma.compress(SLICE)),
        ("damaged.dcm", bytes(300)),
        ("lost.IMA", b""),
    ],
)
def test_a_slice_beside_folders_and_stray_files_is_a_patient(place: str, name: str, content: bytes) -> None:
    tiny.write(
        place, {"source/p1/1.dcm": SLICE, f"source/{name}": content} | {f"source/{n}": b for n, b in STRAY.items()}
    )
    assert keys(f"{place}/source") == ["source", "p1"]


def test_a_folder_of_very_many_files_is_not_searched_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    read_head = storage.read_head
    monkeypatch.setattr(storage, "read_head", lambda url, n: read.append(url) or read_head(url, n))
    tiny.write(tmp_path / "notes", {f"{i:04}": b"x" for i in range(heads.MAX_HEADS)} | {"p1/1": b"x"})
    tiny.write(tmp_path / "more", {f"{i:04}": b"x" for i in range(4 * heads.MAX_HEADS)})
    tiny.write(tmp_path / "scan", {f"{i:04}": SLICE for i in range(99)})
    assert [keys(tmp_path / name) for name in ("notes", "more", "scan")] == [["p1"], ["more"], ["scan"]]
    assert len(read) == 2 * heads.MAX_HEADS + 1


@pytest.mark.parametrize("content", [b"x" * 200, SLICE])
def test_a_stray_file_that_cannot_be_read_may_be_a_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    tiny.write(tmp_path / "source", {"p1/1.dcm": SLICE, "closed": content})

    def refuse(_: Any, path: str, n_bytes: int) -> bytes:  # noqa: ARG001
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(local, "read_head", refuse)
    assert keys(tmp_path / "source") == ["source", "p1"]


def test_marks_of_folders_are_no_files_of_a_patient(place: str) -> None:
    tiny.write(place, {"p1/1.dcm": b"x", "p1/2.dcm": b"x"})
    without = by_key(place)["p1"]
    tiny.write(place, {"p1_$folder$": b"", "p1/sub_$folder$": b"", "p2/sub_$folder$": b""})
    assert by_key(place) == {"p1": without}
    assert by_key(place, patient_folders=True)["p1"].n_files == 2


@pytest.mark.s3
def test_an_empty_key_that_ends_in_a_slash_is_no_file(s3: str) -> None:
    import fsspec

    tiny.write(f"{s3}/in", {"p1/1.dcm": SLICE})
    fs = fsspec.filesystem("s3", **S3_SETTINGS)
    for folder in ("", "p1/", "p1/lone/", "p2/"):
        fs.call_s3("put_object", Bucket=s3.removeprefix("s3://"), Key=f"in/{folder}", Body=b"")
    for options in ({}, {"patient_folders": True}):
        assert {key: case.n_files for key, case in by_key(f"{s3}/in", **options).items()} == {"p1": 1}


@pytest.mark.parametrize("content", [b"", bytes(5000)])
@pytest.mark.parametrize("suffix", [".dat", ".raw", ".bin", ".roi", ""])
def test_a_slice_of_which_nothing_is_left_is_missed_whatever_the_slices_are_called(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    slices = [*tiny.series().values()]
    files = {f"IM{k:03}{suffix}": slices[k] for k in range(len(slices))} | {"notes.txt": b"", "x.dat": b""}
    for name, more in (("whole", {}), ("cut", {f"IM{len(slices) - 1:03}{suffix}": content})):
        tiny.write(tmp_path / name / "p", files | more | {"sub/notes.txt": b"", "sub/a.dat": b""})
        (case,) = (case for case in cases.cases(str(tmp_path / name)) if case.key == "p")
        record = record_of(case, tmp_path / f"out-{name}")
        assert (name, record.reason) in {("whole", None), ("cut", "truncated")}


@pytest.mark.parametrize("content", [b"", bytes(5000)])
def test_a_patient_of_whose_slices_nothing_is_left_is_counted_beside_a_folder_too(place: str, content: bytes) -> None:
    lost = {f"p1/IM{k:04}": content for k in range(12)}
    beside = {"p1/sub/1.dcm": SLICE, "p2/sub/1.dcm": SLICE, "p2/notes": content, "p2/licence": content}
    tiny.write(place, lost | beside)
    assert by_key(place).keys() == {"p1", "p1__sub", "p2__sub"}


# what a manifest names


def test_a_line_of_a_manifest_that_leads_nowhere_says_so_in_its_record(place: str, tmp_path: Path) -> None:
    tiny.write(place, {"list.csv": b"key,url\np1,absent\np2,absent.zip\np3,absent/1.dcm\n"})
    for case in cases.cases(f"{place}/list.csv"):
        record = record_of(case, tmp_path / "out")
        assert (record.status, record.reason) == ("refused", "no-dicom")
        assert record.message == (
            f"expected a folder or archive at {case.url}, found nothing there; check the manifest"
        )


def test_a_folder_without_files_is_no_wrong_manifest(tmp_path: Path) -> None:
    tiny.write(tmp_path, {"in/p1/.hidden": b"", "list.csv": b"key,url\np1,in/p1\n"})
    (tmp_path / "in/p2").mkdir()
    for case in (*cases.cases(f"{tmp_path}/in"), *cases.cases(f"{tmp_path}/list.csv")):
        record = record_of(case, tmp_path / "out")
        assert (record.reason, record.message.partition(",")[0]) == ("no-dicom", f"expected DICOM files in {case.url}")


# one file


@pytest.mark.parametrize("name", ["scan.dcm", "scan", "scan.DCM.gz", "scan.xz"])
def test_one_dicom_file_is_a_source_and_a_line_of_a_manifest(place: str, name: str) -> None:
    data = COMPRESS.get(Path(name).suffix, bytes)(ENHANCED)
    tiny.write(place, {f"in/{name}": data, "in/other.dcm": SLICE, "list.csv": f"key,url\np,in/{name}\n".encode()})
    (alone,) = cases.cases(f"{place}/in/{name}")
    (line,) = cases.cases(f"{place}/list.csv")
    assert (alone.key, alone.n_files, line.key) == ("scan", 1, "p")
    assert alone.digest == line.digest
    content = [(name, data)]
    for case in (alone, line):
        assert list(files.open_case(case).read(1 << 30)) == content
    assert list(files.open_place(alone.url).read(1 << 30)) == content
    tiny.write(place, {f"in/{name}": data + bytes(9)})
    with pytest.raises(Refusal, match="source-changed"):
        files.open_case(alone)


def test_one_file_becomes_a_volume(tmp_path: Path) -> None:
    tiny.write(tmp_path, {"in/scan.dcm": ENHANCED, "in/notes": b"x"})
    (case,) = cases.cases(f"{tmp_path}/in/scan.dcm")
    record = record_of(case, tmp_path / "out")
    assert (record.key, record.status, record.n_files, record.url) == ("scan", "written", 1, f"{tmp_path}/in/scan.dcm")
    assert found.read_series(record.url).n_slices == 12
    assert cases.only_case(tmp_path / "in/scan.dcm") == case


@pytest.mark.parametrize("name", ["notes.txt", "picture.png", "notes", "x.mat.gz", "_SUCCESS", "scan.pdf"])
def test_one_file_of_another_kind_is_wrong_use(place: str, name: str) -> None:
    tiny.write(place, {name: b"" if name == "_SUCCESS" else b"%PDF no scan"})
    for see in (cases.cases, cases.only_case):
        with pytest.raises(
            UsageError, match=r"expected a folder, an archive .* or a DICOM file, found a file of an"
        ) as e:
            list(see(f"{place}/{name}"))
        assert str(e.value).startswith(f"{storage.absolute(place)}/{name}: ")
        assert "\n" not in str(e.value)


def test_a_line_that_names_a_file_of_another_kind_does_not_stop_the_others(tmp_path: Path) -> None:
    tiny.write(tmp_path, {"notes": b"no scan", "p2/1.dcm": SLICE, "list.csv": b"key,url\np1,notes\np2,p2\n"})
    first, second = cases.cases(f"{tmp_path}/list.csv")
    assert (first.n_files, second.key) == (1, "p2")
    assert record_of(first, tmp_path / "out").reason == "no-dicom"


# hidden folders, and links


def test_what_rsync_has_not_finished_counts_though_it_is_hidden(place: str) -> None:
    tiny.write(
        place, {"p1/IM1.dcm": SLICE, "p1/.IM2.dcm.Ab3xYz": SLICE[:300], "p1/._IM1.dcm": b"", "p1/.IM.txt.Ab3xYz": b""}
    )
    (case,) = cases.cases(place)
    assert case.n_files == 2
    assert [entry.name for entry in cases.files_of(case.url)] == [".IM2.dcm.Ab3xYz", "IM1.dcm"]


def test_a_hidden_folder_does_not_make_its_parent_less_of_a_leaf(place: str) -> None:
    hidden = {"p1/.cache/x/IM1": SLICE, "p2/deep/.cache/IM1": SLICE, ".trash/IM1": SLICE}
    tiny.write(place, {"p1/IM1": b"damaged", "p2/deep/IM1": b"damaged"} | hidden)
    places = [case.url.removeprefix(f"{storage.absolute(place)}/") for case in cases.cases(place)]
    assert places == ["p1", "p2/deep"]


def test_links_are_followed_to_places_outside_the_source(tmp_path: Path) -> None:
    tiny.write(tmp_path / "far", {"p2/1.dcm": SLICE, "3.dcm": SLICE, "p4.zip": tiny.zipped({"1.dcm": SLICE})})
    tiny.write(tmp_path / "in", {"p1/1.dcm": SLICE})
    (tmp_path / "in/p2").symlink_to("../far/p2")
    (tmp_path / "in/p1/3.dcm").symlink_to(tmp_path / "far/3.dcm")
    (tmp_path / "in/p4.zip").symlink_to(tmp_path / "far/p4.zip")
    seen = by_key(tmp_path / "in")
    assert {key: (case.n_files, case.is_archive) for key, case in seen.items()} == {
        "p4": (1, True),
        "p1": (2, False),
        "p2": (1, False),
    }
    assert dict(files.open_case(seen["p1"]).read(1 << 20)) == {"1.dcm": SLICE, "3.dcm": SLICE}


@pytest.mark.parametrize("patient_folders", [False, True])
@pytest.mark.parametrize("to", [".", "..", "../..", "../../..", "/"])
def test_a_link_to_a_folder_that_holds_it_is_not_followed(tmp_path: Path, to: str, patient_folders: bool) -> None:
    for name in ("p1", "p2"):
        tiny.write(tmp_path / "all/in", {f"{name}/1.dcm": SLICE})
    (tmp_path / "all/in/p1/loop").symlink_to(to)
    seen = by_key(tmp_path / "all/in", patient_folders=patient_folders)
    assert {key: case.n_files for key, case in seen.items()} == {"p1": 1, "p2": 1}
    for case in seen.values():  # a worker begins further down, and finds the same
        assert [name for name, _ in files.open_case(case).read(1 << 20)] == ["1.dcm"]


def test_links_in_a_ring_end(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        tiny.write(tmp_path, {f"{name}/1.dcm": SLICE})
    (tmp_path / "p1/next").symlink_to("../p2")
    (tmp_path / "p2/next").symlink_to("../p1")
    places = sorted(case.url.removeprefix(f"{tmp_path}/") for case in cases.cases(str(tmp_path)))
    assert places == ["p1", "p1/next", "p2", "p2/next"]  # a link is one more name of a folder


def test_a_pipe_among_slices_is_named(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series())
    (tmp_path / "in/p1/IM011.dcm").unlink()  # the last one, whose loss leaves no gap
    os.mkfifo(tmp_path / "in/p1/IM011.dcm")
    record = record_of(by_key(tmp_path / "in")["p1"], tmp_path / "out")
    assert (record.status, record.reason) == ("refused", "truncated")
    assert "IM011.dcm: expected a file, found a device, a pipe or a socket" in str(record.message)


@pytest.mark.parametrize("name", ["p1.zip", "p1.nii.gz"])
def test_a_pipe_in_the_place_of_an_archive_or_a_volume_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / name)
    record = record_of(by_key(tmp_path / "in")["p1"], tmp_path / "out")
    assert (record.status, record.reason) == ("refused", "truncated")
    assert f"{name}: expected a file, found a device, a pipe or a socket" in str(record.message)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in", {"p1/1.dcm": SLICE})
    for link in ("p1/lost.dcm", "lost"):
        (tmp_path / "in" / link).symlink_to(tmp_path / "absent")
    records = {key: record_of(case, tmp_path / "out") for key, case in by_key(tmp_path / "in").items()}
    assert {key: (record.reason, record.message.partition(":")[0]) for key, record in records.items()} == {
        "in": ("truncated", "lost"),
        "p1": ("truncated", "lost.dcm"),
    }


# slices that are compressed one by one


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_slice_is_a_file_of_its_folder_and_counts_by_what_it_may_hold(place: str, suffix: str) -> None:
    compressed = COMPRESS[suffix](SLICE)
    tiny.write(
        place, {f"in/p1/1.dcm{suffix}": compressed, f"in/p1/2.dcm{suffix.upper()}": compressed, "in/p1/3.dcm": SLICE}
    )
    case = by_key(f"{place}/in")["p1"]
    opened = files.open_case(case)
    assert (case.n_files, case.n_bytes) == (3, 2 * len(compressed) + len(SLICE))
    assert opened.n_bytes == 2 * heads.GROWTH * len(compressed) + len(SLICE)
    assert opened.largest_bytes == max(heads.GROWTH * len(compressed), len(SLICE))
    assert dict(opened.read(1 << 20))[f"1.dcm{suffix}"] == compressed
    assert opened.guess is None or opened.guess.shape == (3, 16, 16)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("has_suffix", [True, False])
def test_the_header_of_a_compressed_slice_is_never_blanked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, has_suffix: bool
) -> None:
    plain = ct_file(distinct(1, 512, 512)[0])
    compressed = COMPRESS[suffix](plain)
    assert len(compressed) > files.HEADER_BYTES
    tiny.write(tmp_path / "p1", {"1.dcm": plain, "2.dcm" + suffix * has_suffix: compressed})
    monkeypatch.setattr(files, "with_blank_pixels", lambda head, size: with_blank_pixels(head, size) or b"")
    read = dict(files.open_place(str(tmp_path / "p1")).read_headers())
    assert read["2.dcm" + suffix * has_suffix] == compressed
    assert len(read["1.dcm"]) == len(plain)
    assert read["1.dcm"] != plain


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_large_compressed_file_is_read_whole_only_if_it_begins_as_ct(
    place: str, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(files, "LARGE_FILE_BYTES", 1000)
    compress, noise = COMPRESS[suffix], random.Random(0).randbytes(5000)
    content = {"scan.dcm": SLICE + noise, "other.dcm": b"x" * 100 + noise, "mask.mat": SLICE + noise}
    tiny.write(place, {f"p1/{name}{suffix}": compress(data) for name, data in content.items()})
    opened = files.open_place(storage.absolute(f"{place}/p1"))
    assert [entry.name for entry in opened.entries] == [f"scan.dcm{suffix}"]
    assert opened.not_ct == {f"other.dcm{suffix}": content["other.dcm"], f"mask.mat{suffix}": b""}

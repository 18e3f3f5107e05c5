"""What is stored is compared with what the records promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import s3fs
import tiny

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import store
from dskprep.dataset.leftovers import clean
from dskprep.dataset.verification import Finding, verify
from dskprep.errors import UsageError

CHUNK = "0/c/0/0/0"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every object of a dataset of two volumes and a refused patient."""
    folder = tmp_path_factory.mktemp("dataset")
    tiny.write_patients(folder / "scans", ["p1", "p2"])
    tiny.write(folder / "scans/p3", {"notes.txt": b"no scan"})
    dskprep.run(str(folder / "scans"), str(folder / "out"))
    return tiny.everything_below(folder / "out")


@pytest.fixture
def target(place: str, original: dict[str, bytes]) -> str:
    return tiny.write(place, original)


def faults(target: str) -> tuple[str, ...]:
    """Those of p1; p2 must have none."""
    first, second = verify(target)
    assert second == Finding("p2", ())
    assert first.key == "p1"
    return first.faults


def test_a_whole_dataset_has_no_fault(target: str) -> None:
    assert list(verify(target)) == [Finding("p1", ()), Finding("p2", ())]


@pytest.mark.parametrize("name", [CHUNK, "0/zarr.json", "zarr.json"])
def test_a_missing_object_is_found(target: str, name: str) -> None:
    storage.delete(store.volume_url(target, "p1"), [name])
    assert faults(target) == (f"{name} is missing",)


def test_a_short_object_is_found(target: str) -> None:
    content = storage.read(f"{store.volume_url(target, 'p1')}/{CHUNK}")
    tiny.write(store.volume_url(target, "p1"), {CHUNK: content[:-1]})
    assert faults(target) == (f"{CHUNK} has {len(content) - 1} bytes instead of {len(content)}",)


@pytest.mark.parametrize("answer", [b"<Error><Code>InternalError</Code></Error>", None])
def test_one_wrong_answer_of_the_store_is_no_fault(
    target: str, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    read, asked = storage.read, set[str]()

    def wrong_once(url: str) -> bytes:
        if "/volumes/" in url and url not in asked:
            asked.add(url)
            if answer is None:
                raise FileNotFoundError(url)
            return answer
        return read(url)

    monkeypatch.setattr(storage, "read", wrong_once)
    assert list(verify(target)) == [Finding("p1", ()), Finding("p2", ())]
    assert len(asked) > 2


@pytest.mark.parametrize("n_wrong", [1, 3])
@pytest.mark.parametrize("answer", [b"", None])
def test_wrong_answers_for_a_record_delete_no_sound_volume(
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    answer: bytes | None,
    n_wrong: int,
) -> None:
    """One is no fault. Three of them in a row are one, but nothing is deleted without another look."""
    before, read, asked = tiny.everything_below(target), storage.read, list[str]()

    def wrong_at_first(url: str) -> bytes:
        if "/records/written/p1." in url and len(asked) < n_wrong:
            asked.append(url)
            if answer is None:
                raise FileNotFoundError(url)
            return answer
        return read(url)

    monkeypatch.setattr(storage, "read", wrong_at_first)
    assert commands.run_command(["verify", target, "--forget"]) == (0 if n_wrong < 3 else 1)
    assert len(asked) == n_wrong
    assert ("p1: " in capsys.readouterr().out) == (n_wrong == 3)
    assert ("stays: a second reading finds no fault" in caplog.text) == (n_wrong == 3)
    assert tiny.everything_below(target) == before


def test_an_altered_object_is_found(target: str) -> None:
    content = bytearray(storage.read(f"{store.volume_url(target, 'p1')}/{CHUNK}"))
    content[100] ^= 1
    tiny.write(store.volume_url(target, "p1"), {CHUNK: bytes(content)})
    assert faults(target) == (f"{CHUNK} was altered",)


def test_damaged_metadata_is_found_and_the_others_still_checked(target: str) -> None:
    size = len(storage.read(f"{store.volume_url(target, 'p1')}/0/zarr.json"))
    tiny.write(store.volume_url(target, "p1"), {"0/zarr.json": b"\xff" * size})
    assert faults(target) == ("0/zarr.json was altered",)


def test_an_extra_object_is_found(target: str) -> None:
    tiny.write(store.volume_url(target, "p1"), {"0/c/0/0/1": b"stray"})
    assert faults(target) == ("0/c/0/0/1 does not belong there",)


def test_a_volume_that_is_gone_is_found(target: str) -> None:
    store.write_volume(target, "p1", {})
    assert len(faults(target)) == 6


def test_a_shape_that_is_not_the_recorded_one_is_found(target: str) -> None:
    name = next(n for n in store.record_names(target) if n.key == "p1")
    record = json.loads(storage.read(f"{target}/{name.path}"))
    record["geometry"]["shape"][0] = 99
    storage.write_many(target, {name.path: json.dumps(record).encode()})
    assert faults(target) == ("the shape is [12, 24, 24] instead of [99, 24, 24]",)


def test_a_damaged_record_is_found(target: str) -> None:
    name = next(n for n in store.record_names(target) if n.key == "p1")
    tiny.write(target, {name.path: b"{"})
    (fault,) = faults(target)
    assert "this record is damaged" in fault


def test_what_is_no_dataset_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no dskprep dataset here"):
        list(verify(str(tmp_path)))


def test_clean_deletes_what_has_no_record_and_nothing_else(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    (lost,) = [name for name in store.record_names(target) if name.key == "p2"]
    storage.delete(target, [lost.path])
    before = {entry.name for entry in storage.listing_below(target)}
    left = {name for name in before if name.startswith(("volumes/p2.zarr/", "thumbnails/p2."))}
    assert len(left) > 1

    assert commands.run_command(["clean", target]) == 0  # younger than a day: it may belong to a run under way
    assert {entry.name for entry in storage.listing_below(target)} == before
    assert commands.run_command(["clean", target, "--older-than", "0", "--dry-run"]) == 0
    assert {entry.name for entry in storage.listing_below(target)} == before
    capsys.readouterr()
    assert commands.run_command(["clean", target, "--older-than", "0"]) == 0
    assert set(capsys.readouterr().out.splitlines()[:-1]) == left
    assert {entry.name for entry in storage.listing_below(target)} == before - left
    for hours, seen in (("36h", "36 h"), ("90", "90 h"), ("2 d", "48 h"), ("nan", "must be a time such as 30m or 90s")):
        assert commands.run_command(["clean", target, "--older-than", hours]) == (2 if hours == "nan" else 0)
        said = capsys.readouterr()
        assert seen in said.out + said.err
    assert commands.run_command(["verify", target]) == 0


@pytest.mark.s3
def test_clean_leaves_the_uploads_of_other_programs_alone(s3: str, original: dict[str, bytes]) -> None:
    target = tiny.write(f"{s3}/out", original)
    bucket, _, prefix = target.removeprefix("s3://").partition("/")
    fs = s3fs.S3FileSystem()
    fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{prefix}/volumes/p9.zarr/0/c/0/0/0")
    assert list(clean(target, older_than_s=0)) == []
    assert len(fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")["Uploads"]) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"key": "p2"}, "it is the record of p2, written"),
        ({"status": "refused"}, "it is the record of p1, refused"),
        ({"n_files": "many"}, "Expected `int`, got `str` - at `$.n_files`"),
        ({"lungs": [1]}, "got `array` - at `$.lungs`"),
        ({"geometry": {"shape": [1, 1, 1], "spacing_mm": [1, 1, 1], "affine": [[1]]}}, "finite 4 x 4 matrix"),
        ({"cpu_s": float("nan")}, "expected a number, found NaN"),
        ({"geometry": None}, "its status or its geometry is missing"),
    ],
)
def test_a_record_that_cannot_be_true_is_named(target: str, change: dict[str, Any], problem: str) -> None:
    name = next(n for n in store.record_names(target) if n.key == "p1")
    content = json.loads(storage.read(f"{target}/{name.path}"))
    storage.write_many(target, {name.path: json.dumps(content | change).encode()})
    (fault,) = faults(target)
    assert problem in fault
    storage.delete(target, ["index.parquet"])
    assert dskprep.status(target).reasons == {"failed: damaged-record": 1, "refused: no-dicom": 1}

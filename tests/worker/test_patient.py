"""One patient: read, put right, written and committed; whatever goes wrong is in its record."""

from __future__ import annotations

import gzip
import io
import json
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tiny
import zarr
from builders import ct_file, ct_files, distinct, saved
from pydicom.uid import UID, RTDoseStorage, RTStructureSetStorage, SegmentationStorage, XRayRadiationDoseSRStorage

from dskprep import storage
from dskprep.dataset import identity, index, omezarr, store
from dskprep.dataset.record import Record
from dskprep.dataset.verification import verify
from dskprep.dicom.contents import Contents
from dskprep.errors import InfrastructureError, Refusal
from dskprep.pipeline.prediction import predict
from dskprep.series import assembly
from dskprep.settings import PrepConfig
from dskprep.source import archive, cases, files
from dskprep.source.found import read_series
from dskprep.source.volumes import CaseContents
from dskprep.worker import admission, patient, process
from dskprep.worker.patient import Job

MEMORY = 2 << 30


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WAIT_S", 0.0)


def only_job(source: str | Path) -> Job:
    (case,) = cases.cases(str(source))
    return Job(case)


def prepare(job: Job, target: str | Path, memory_bytes: int = MEMORY, **settings: Any) -> list[Record]:
    config = PrepConfig(**settings)
    return list(patient.prepare_patient(job, target=str(target), config=config, memory_bytes=memory_bytes).records)


def fail_times(n: int, error: Exception, function: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """The function, but its first `n` calls raise; and how often it was called."""
    calls = [0]

    def failing(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] <= n:
            raise error
        return function(*args, **options)

    return failing, calls


def test_a_patient_becomes_a_volume_and_a_record(place: str) -> None:
    tiny.write(f"{place}/in/p1", tiny.series())
    (record,) = prepare(only_job(f"{place}/in"), f"{place}/out")
    assert (record.status, record.key, record.n_files) == ("written", "p1", 12)
    assert record.geometry.shape == (12, 24, 24)
    assert record.warnings == ("lungs-not-found",)
    assert record.source.slices == 12
    (name,) = store.record_names(f"{place}/out")
    assert store.read_record(f"{place}/out", name) == record
    there = tiny.everything_below(store.volume_url(f"{place}/out", "p1"))
    assert {n: len(content) for n, content in there.items()} == {
        n: promised.n_bytes for n, promised in record.objects.items()
    }
    np.testing.assert_array_equal(
        zarr.open_array(store.volume_url(f"{place}/out", "p1"), path="0", mode="r")[...], tiny.hu()
    )


@pytest.mark.parametrize("pack", [tiny.zipped, tiny.tarred, lambda files: tiny.tarred(files, "gz")])
def test_an_archive_gives_the_voxels_of_its_folder(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    suffix = ".zip" if pack is tiny.zipped else ".tar"
    files = {f"p1/{name}": content for name, content in tiny.series().items()} | {"p1/read me.txt": b""}
    tiny.write(tmp_path / "in", {f"p1{suffix}": pack(files)})
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert (record.status, record.key) == ("written", "p1")
    np.testing.assert_array_equal(
        zarr.open_array(store.volume_url(f"{tmp_path}/out", "p1"), path="0", mode="r")[...], tiny.hu()
    )


def test_the_series_of_a_folder_get_a_key_each_the_largest_the_folders(tmp_path: Path) -> None:
    small = {f"small-{name}": content for name, content in tiny.series(1).items()}
    short = {f"short-{name}": content for name, content in tiny.series(2, n=3).items()}
    tiny.write(tmp_path / "in/p1", {**tiny.series(0, n=14), **small, **short})
    job = only_job(tmp_path / "in")
    *further, own = prepare(job, tmp_path / "out")
    assert (own.key, own.source.slices) == ("p1", 14)
    assert sorted(r.status for r in further) == ["refused", "written"]
    assert all(r.key.startswith("p1+") for r in further)
    assert all("one-of-several-series" in r.warnings for r in (*further, own) if r.status == "written")
    assert len({r.key for r in (*further, own)}) == len(list(store.record_names(f"{tmp_path}/out"))) == 3


def test_an_input_of_two_patients_is_told(tmp_path: Path) -> None:
    other = {f"other-{name}": content for name, content in tiny.series(1, n=14, PatientID="another").items()}
    again = {f"again-{name}": content for name, content in tiny.series(2, n=12).items()}
    for folder, added in (("two", other), ("one", again)):
        tiny.write(tmp_path / folder, {"p1.zip": tiny.zipped(tiny.series() | added)})
        records = prepare(only_job(tmp_path / folder), tmp_path / f"{folder}-out")
        assert [record.status for record in records] == ["written", "written"]
        told = ["several-patients" in record.warnings for record in records]
        assert told == [folder == "two"] * 2
        on_disk = tiny.everything_below(tmp_path / f"{folder}-out/records/written")
        assert [b"several-patients" in record for record in on_disk.values()] == told


def test_archives_that_are_not_read_are_told(place: str, tmp_path: Path) -> None:
    tiny.write(f"{place}/in/p1/study1", tiny.series(1))
    packed = {f"study{n}.zip": tiny.zipped(tiny.series(n)) for n in (2, 3, 4)}
    tiny.write(f"{place}/in/p1", packed)
    tiny.write(f"{place}/in/p2", packed)
    manifest = f"key,url\np1,{place}/in/p1\np2,{place}/in/p2\nown,{place}/in/p1/study4.zip\n"
    tiny.write(tmp_path, {"list.csv": manifest.encode()})
    p1, p2, own = (prepare(Job(case), f"{place}/out") for case in cases.cases(f"{tmp_path}/list.csv"))
    (first,), (second,) = p1, own
    assert (first.status, first.n_files, second.status) == ("written", 12, "written")
    assert first.aside.counts == {"archive": 2}
    assert first.aside.names == ("study2.zip: archive", "study3.zip: archive")
    assert ["archives-left-out" in record.warnings for record in (first, second)] == [True, False]
    (nothing,) = p2
    assert (nothing.status, nothing.reason) == ("refused", "no-dicom")
    assert "study2.zip" in nothing.message


def test_an_archive_in_an_archive_is_told(tmp_path: Path) -> None:
    inner = tiny.tarred(tiny.series(2), "gz")
    tiny.write(tmp_path / "in", {"p1.tar": tiny.tarred({**tiny.series(1), "sub/inner.tar.gz": inner})})
    tiny.write(tmp_path / "nothing", {"p1.zip": tiny.zipped({"inner.zip": tiny.zipped(tiny.series(1))})})
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert (record.status, record.aside.names) == ("written", ("sub/inner.tar.gz: archive",))
    assert "archives-left-out" in record.warnings
    (record,) = prepare(only_job(tmp_path / "nothing"), tmp_path / "out2")
    assert (record.status, record.reason) == ("refused", "no-dicom")
    assert "unpack" in record.message


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no-dicom"),
        ({"report.txt": b"nothing"}, "no-dicom"),
        ({f"picture{n}.webp": b"RIFF\x12\0\0\0WEBPVP8L" for n in range(9)}, "no-dicom"),
        (tiny.series(n=5), "too-few-slices"),
        ({**tiny.series(), "IM005.dcm": b""}, "truncated"),
        ({**tiny.series(), "IM005.dcm": tiny.series()["IM005.dcm"][:-200]}, "truncated"),
        ({n: c for n, c in tiny.series().items() if n != "IM005.dcm"}, "missing-slices"),
    ],
)
def test_what_makes_no_right_volume_is_refused_and_leaves_nothing(
    tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    (tmp_path / "in/p1").mkdir(parents=True)
    tiny.write(tmp_path / "in/p1", files)
    tiny.write(store.volume_url(f"{tmp_path}/out", "p1"), {"0/c/0/0/0": b"left by a worker that died"})
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert (record.status, record.reason) == ("refused", reason)
    assert record.message
    assert record.objects == {}
    assert list(storage.listing_below(f"{tmp_path}/out/volumes")) == []


def test_a_patient_that_gives_no_volume_any_more_is_refused_beside_a_users_label(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series())
    prepare(only_job(tmp_path / "in"), tmp_path / "out")
    mine = {"labels/mine/zarr.json": b"{}"}
    tiny.write(store.volume_url(f"{tmp_path}/out", "p1"), mine)
    tiny.write(tmp_path / "in/p1", tiny.series(n=4))
    for path in sorted((tmp_path / "in/p1").iterdir())[4:]:
        path.unlink()
    job = only_job(tmp_path / "in")
    (record,) = prepare(replace(job, stale=tuple(store.record_names(f"{tmp_path}/out"))), tmp_path / "out")
    assert (record.status, record.reason) == ("refused", "too-few-slices")
    assert tiny.everything_below(tmp_path / "out/volumes/p1.zarr") == mine


def test_a_bad_archive_is_refused(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in", {"p1.zip": tiny.zipped(tiny.series())[:-100]})
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert (record.status, record.reason) == ("refused", "bad-archive")


def test_a_patient_too_large_for_a_worker_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series())
    tiny.write(tmp_path / "in", {"p2.zip": bytes(50_000_000)})
    read: list[str] = []
    read_many = storage.read_many
    monkeypatch.setattr(storage, "read_many", lambda url, e: (read.extend(x.name for x in e), read_many(url, e))[1])
    monkeypatch.setattr(archive, "members", None)
    for case in cases.cases(f"{tmp_path}/in"):
        (record,) = prepare(Job(case), tmp_path / "out", memory_bytes=1)
        assert (record.status, record.reason) == ("refused", "too-large")
        assert "--memory-limit" in record.message
    assert not read


WIDE = np.random.default_rng(5).integers(0, 2000, (80, 192, 192), np.int16)
SMALL = admission.BASE_BYTES + admission.FIXED_BYTES + 6_600_000
"""Memory of a worker in which the headers of WIDE fit, and its output, but not its 5.9 MB of files beside that."""


def wide_files() -> dict[str, bytes]:
    """A series with a copy of a slice; most of it is pixels."""
    return dict(ct_files(WIDE, PixelSpacing=[0.4, 0.4], SliceThickness=1.25)) | {
        "copy.dcm": dict(ct_files(WIDE, PixelSpacing=[0.4, 0.4], SliceThickness=1.25))["0007.dcm"]
    }


def test_a_series_too_large_to_be_held_is_read_slice_by_slice_and_becomes_the_same(place: str) -> None:
    tiny.write(f"{place}/in/p", wide_files())
    job = only_job(f"{place}/in")
    records = {
        limit: prepare(job, f"{place}/out{limit}", int(limit / admission.USABLE_SHARE)) for limit in (SMALL, MEMORY)
    }
    (small,), (usual,) = records.values()
    assert (small.status, small.objects) == ("written", usual.objects)
    assert (small.hu_sha256, small.warnings) == (usual.hu_sha256, usual.warnings)
    assert "identical-duplicates-dropped" in small.warnings


def test_headers_and_slices_of_a_large_series_are_checked_against_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody swaps two files of one size, and with their times, between the two readings."""
    tiny.write(tmp_path / "in/p", wide_files())
    job = only_job(tmp_path / "in")
    read_many = storage.read_many

    def swapped(url: str, entries: list[storage.Entry]) -> Any:
        other = {"0010.dcm": "0011.dcm", "0011.dcm": "0010.dcm"}
        for name, content in read_many(url, entries):
            yield name, Path(url, other[name]).read_bytes() if name in other else content

    monkeypatch.setattr(storage, "read_many", swapped)
    (record,) = prepare(job, tmp_path / "out", int(SMALL / admission.USABLE_SHARE))
    assert (record.status, record.reason) == ("refused", "source-changed")
    assert "0010.dcm" in record.message


def test_a_source_replaced_after_it_was_listed_is_refused(place: str) -> None:
    tiny.write(f"{place}/in/p1", tiny.series(0))
    job = only_job(f"{place}/in")
    tiny.write(f"{place}/in/p1", {"IM000.dcm": tiny.series(1)["IM000.dcm"] + b"\0\0"})
    (record,) = prepare(job, f"{place}/out")
    assert (record.status, record.reason) == ("refused", "source-changed")


@pytest.mark.parametrize("more", [b"", b"\0\0"], ids=["same size", "longer"])
def test_a_file_replaced_or_removed_while_it_is_read_is_refused(
    place: str, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    tiny.write(f"{place}/in/p1", tiny.series(0))
    job = only_job(f"{place}/in")
    read_many = storage.read_many

    def replace_then_read(*args: Any) -> Any:
        tiny.write(f"{place}/in/p1", {"IM011.dcm": tiny.series(1, series_uid="1.2.3.0")["IM011.dcm"] + more})
        if "://" not in place:
            os.utime(f"{place}/in/p1/IM011.dcm", ns=(1, 1))  # the clock of a file system may be coarse
        return read_many(*args)

    monkeypatch.setattr(storage, "read_many", replace_then_read)
    (record,) = prepare(job, f"{place}/out")
    assert (record.status, record.reason) == ("refused", "source-changed")


@pytest.mark.parametrize("name", ["p1/IM000.dcm", "p1.zip", "ct.nii"])
@pytest.mark.parametrize("how", ["gone", "left empty"])
def test_a_source_that_is_away_is_no_fault_of_its_patients(tmp_path: Path, name: str, how: str) -> None:
    tiny.write(tmp_path / "disk", {name: b"PK" if name == "p1.zip" else tiny.series()["IM000.dcm"]})
    job = only_job(tmp_path / "disk")
    (tmp_path / "disk").rename(tmp_path / "away")
    if how == "left empty":
        (tmp_path / "disk").mkdir()
    (record,) = prepare(job, tmp_path / "out")
    assert (record.status, record.reason) == ("failed", "InfrastructureError")
    assert record.message.startswith(f"{tmp_path}/disk: expected {name.partition('/')[0]} in it, as it was listed, ")
    assert "\n" not in record.message
    (predicted,) = predict(job.case, PrepConfig())
    assert (predicted.status, predicted.reason, predicted.message) == ("failed", record.reason, record.message)


def test_a_source_that_is_away_while_a_patient_is_read_is_no_fault_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "disk/p1", tiny.series())
    job = only_job(tmp_path / "disk")
    opened, n = files.open_case, [0]

    def open_then_lose(*args: Any) -> Any:
        found = opened(*args)
        n[0] += 1
        if n[0] == 1:
            (tmp_path / "disk").rename(tmp_path / "away")
            monkeypatch.setattr(process.time, "sleep", lambda _: (tmp_path / "away").rename(tmp_path / "disk"))
        return found

    monkeypatch.setattr("dskprep.worker.make.open_case", open_then_lose)
    (record,) = prepare(job, tmp_path / "out")
    assert record.status == "written"
    assert n == [2]


def test_a_patient_that_is_deleted_after_it_was_listed_is_refused(place: str) -> None:
    tiny.write(f"{place}/in", {f"p{i}/{name}": content for i in (1, 2) for name, content in tiny.series(i).items()})
    case, _other = cases.cases(f"{place}/in")
    storage.delete(f"{place}/in/p1", tiny.series())
    if "://" not in place:
        Path(place, "in/p1").rmdir()
    (record,) = prepare(Job(case), f"{place}/out")
    assert (record.status, record.reason) == ("refused", "source-changed")


@pytest.mark.parametrize("error", [OSError("broken pipe"), InfrastructureError("S3 is away"), TimeoutError()])
@pytest.mark.parametrize("name", ["write_many", "listing", "read_many"])
def test_a_store_that_fails_twice_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series())
    job = only_job(tmp_path / "in")
    failing, _ = fail_times(2, error, getattr(storage, name))
    monkeypatch.setattr(storage, name, failing)
    (record,) = prepare(job, tmp_path / "out")
    assert record.status == "written"


def test_a_store_that_never_answers_is_a_failure_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series())
    job = only_job(tmp_path / "in")
    failing, calls = fail_times(99, OSError("broken pipe"), storage.read_many)
    monkeypatch.setattr(storage, "read_many", failing)
    (record,) = prepare(job, tmp_path / "out")
    assert (record.status, record.reason, record.message) == ("failed", "OSError", "broken pipe")
    assert "Traceback" in record.traceback
    assert calls == [process.ATTEMPTS]
    assert [n.status for n in store.record_names(f"{tmp_path}/out")] == ["failed"]


def test_a_bug_is_a_failure_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series())
    failing, calls = fail_times(99, ZeroDivisionError("oops"), omezarr.encode)
    monkeypatch.setattr(omezarr, "encode", failing)
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert (record.status, record.reason) == ("failed", "ZeroDivisionError")
    assert "oops" in record.traceback
    assert calls == [1]


def test_a_broken_off_write_is_no_volume_and_the_next_try_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series())
    seen: list[int] = []
    write_volume = store.write_volume

    def break_off_once(target: str, key: str, objects: dict[str, bytes], *done: Any) -> Any:
        if not seen:
            first = dict(list(objects.items())[:2])
            write_volume(target, key, {**first, "0/c/9/9/9": b"half"})
            seen.append(len(list(store.record_names(target))))
            raise OSError("connection reset")
        return write_volume(target, key, objects, *done)

    monkeypatch.setattr(store, "write_volume", break_off_once)
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert seen == [0]
    assert record.status == "written"
    assert set(tiny.everything_below(store.volume_url(f"{tmp_path}/out", "p1"))) == set(record.objects)


def test_what_a_store_has_cut_is_not_recorded_as_written(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a proxy does that keeps what it has of a broken request, and answers that all is well."""
    tiny.write(f"{place}/in/p1", tiny.series())
    store.create(f"{place}/out", PrepConfig())
    job, write_many = only_job(f"{place}/in"), storage.write_many

    def cut(folder: str, objects: dict[str, bytes]) -> None:
        write_many(folder, {name: content[:100] if "/c/" in name else content for name, content in objects.items()})

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_many", cut)
        (record,) = prepare(job, f"{place}/out")
    assert (record.status, "are cut" in record.message) == ("failed", True)
    assert [name.status for name in store.record_names(f"{place}/out")] == ["failed"]
    (record,) = prepare(Job(job.case, (record.name,)), f"{place}/out")
    assert record.status == "written"
    assert not any(finding.faults for finding in verify(f"{place}/out"))


def test_a_record_that_cannot_be_written_is_handed_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series())
    failing, _ = fail_times(99, InfrastructureError("no room"), store.commit)
    monkeypatch.setattr(store, "commit", failing)
    job, target = only_job(tmp_path / "in"), str(tmp_path / "out")
    outcome = patient.prepare_patient(job, target=target, config=PrepConfig(), memory_bytes=MEMORY)
    assert [record.status for record in outcome.records] == ["failed"]
    assert outcome.is_recorded is False


@pytest.mark.parametrize("has_another", [False, True])
def test_where_the_dataset_of_the_run_is_not_nothing_is_done(place: str, *, has_another: bool) -> None:
    """As on a host that has another disk there, or another store: what it says is done may be so there only."""
    tiny.write(f"{place}/in/p1", tiny.series())
    fingerprint = identity.begin(f"{place}/out").fingerprint
    elsewhere, job = f"{place}/elsewhere", only_job(f"{place}/in")
    if has_another:
        identity.begin(elsewhere)
        prepare(job, elsewhere)
    before = tiny.everything_below(elsewhere)
    job = replace(job, run="now", fingerprint=fingerprint)
    outcome = patient.prepare_patient(job, target=elsewhere, config=PrepConfig(), memory_bytes=MEMORY)
    (record,) = outcome.records
    assert (record.status, record.reason, outcome.is_recorded) == ("failed", "InfrastructureError", False)
    assert ("another dataset" if has_another else "no identity.json") in record.message
    assert tiny.everything_below(elsewhere) == before
    (record,) = prepare(job, f"{place}/out")
    assert record.status == "written"


def test_a_folder_that_goes_while_a_patient_is_written_gets_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series())
    target, write_many = tmp_path / "out", storage.write_many
    job = replace(only_job(tmp_path / "in"), fingerprint=identity.begin(str(target)).fingerprint)

    def unmounted(folder: str, objects: dict[str, bytes]) -> None:
        write_many(folder, objects)
        if not Path(f"{target}.away").exists():
            target.rename(f"{target}.away")
            target.mkdir()

    monkeypatch.setattr(storage, "write_many", unmounted)
    outcome = patient.prepare_patient(job, target=str(target), config=PrepConfig(), memory_bytes=MEMORY)
    assert not outcome.is_recorded
    assert "identity.json is not there any more" in outcome.records[-1].message
    assert not list(store.record_names(str(target)))
    assert not list(store.record_names(f"{target}.away"))


@pytest.mark.parametrize("others", [{}, {f"b{n}": c for n, c in tiny.series(3, n=14).items()}])
def test_slices_without_a_series_uid_are_a_series_too(tmp_path: Path, others: dict[str, bytes]) -> None:
    tiny.write(tmp_path / "in/p1", {**tiny.series(series_uid=""), **others})
    records = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert [r.status for r in records] == ["written"] * (2 if others else 1)


def phases(n: int, **tags: str) -> dict[str, bytes]:
    """A series of `n` phases of 12 slices at the same positions, told apart by SeriesDescription."""
    stored = distinct(12 * n, 16, 16)
    return {
        f"{k}-{name}": content
        for k in range(n)
        for name, content in ct_files(stored[12 * k : 12 * k + 12], SeriesDescription=f"phase {k}", **tags)
    }


def test_all_stacks_of_a_series_are_written_where_asked_for(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p1", phases(3))
    (one,) = prepare(only_job(tmp_path / "in"), tmp_path / "one", lungs=False)
    assert (one.key, one.stack, one.warnings) == ("p1", None, ("one-of-several-stacks",))
    *further, own = prepare(only_job(tmp_path / "in"), tmp_path / "all", lungs=False, stacks="all")
    assert (own.key, own.stack, own.hu_sha256) == ("p1", 1, one.hu_sha256)
    assert [(r.key, r.stack) for r in further] == [(f"p1+{own.series_uid_sha256}.{k}", k) for k in (3, 2)]
    assert len({r.hu_sha256 for r in (*further, own)}) == 3
    assert index.split_series(index.current_table(str(tmp_path / "all"))) == []
    read = [read_series(str(tmp_path / "in/p1"), PrepConfig(stacks="all"), stack=r.stack).decode() for r in further]
    assert [(list(d.planes()), d.hu_sha256)[1] for d in read] == [r.hu_sha256 for r in further]


def test_several_damaged_series_are_not_taken_for_slices_with_a_uid_each(tmp_path: Path) -> None:
    bad = {f"{k}.dcm": ct_file(distinct(16, 16), SeriesInstanceUID=f"1.2.{k}", PixelSpacing=None) for k in range(6)}
    tiny.write(tmp_path / "in/p1", bad)
    assert {r.reason for r in prepare(only_job(tmp_path / "in"), tmp_path / "out")} == {"missing-attribute"}


def test_one_bad_stack_does_not_cost_the_others(tmp_path: Path) -> None:
    files = phases(3)
    del files["1-0005.dcm"]
    tiny.write(tmp_path / "in/p1", files)
    records = prepare(only_job(tmp_path / "in"), tmp_path / "out", lungs=False, stacks="all")
    assert sorted((r.status, r.reason or "") for r in records) == [
        ("refused", "missing-slices"),
        ("written", ""),
        ("written", ""),
    ]


@pytest.mark.parametrize(
    "sop_class", [SegmentationStorage, RTStructureSetStorage, RTDoseStorage, XRayRadiationDoseSRStorage]
)
def test_a_folder_without_images_is_set_aside(tmp_path: Path, sop_class: UID) -> None:
    tiny.write(tmp_path / "in/p1", {"1.dcm": ct_file(distinct(4, 4), SOPClassUID=sop_class, PixelData=None)})
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert (record.status, record.reason) == ("set-aside", "no-image")
    assert sop_class.name in record.message


@pytest.mark.parametrize("names", ["IM{}.dcm", "IM{}"])
@pytest.mark.parametrize("content", [b"", b"<html>403 Forbidden", bytes(5000)])
def test_slices_that_are_all_damaged_are_not_set_aside_for_a_label_beside_them(
    tmp_path: Path, names: str, content: bytes
) -> None:
    label = ct_file(distinct(4, 4), SOPClassUID=RTStructureSetStorage, PixelData=None)
    tiny.write(tmp_path / "in/p1", {"rs.dcm": label} | {names.format(k): content for k in range(20)})
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert (record.status, record.reason) == ("refused", "truncated")


def test_slices_with_a_series_uid_of_their_own_each_are_one_refusal_that_says_so(tmp_path: Path) -> None:
    files = ct_files(distinct(12, 16, 16))
    each = {
        name: ct_file(distinct(16, 16), (0, 0, k), SeriesInstanceUID=f"1.2.{k}") for k, (name, _) in enumerate(files)
    }
    tiny.write(tmp_path / "in/p1", each)
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert record.reason == "too-few-slices"
    assert "found 12 slices with one of their own each" in record.message


def test_a_folder_named_like_an_archive_is_a_folder(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p1.zip", tiny.series())
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert record.status == "written"


def test_an_archive_that_is_not_there_is_refused(tmp_path: Path) -> None:
    tiny.write(tmp_path, {"list.csv": b"key,url\np1,absent.zip\n"})
    (record,) = prepare(only_job(tmp_path / "list.csv"), tmp_path / "out")
    assert record.status == "refused"


def test_a_file_larger_than_a_worker_is_not_even_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in/p1").mkdir(parents=True)
    with (tmp_path / "in/p1/1.dcm").open("wb") as file:
        file.truncate(50_000_000)  # a hole: nothing is written
    monkeypatch.setattr(storage, "read_many", None)
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out", memory_bytes=1)
    assert (record.status, record.reason) == ("refused", "too-large")


@pytest.mark.parametrize(("name", "status"), [("scan.mat", "written"), ("core", "written"), ("huge.dcm", "refused")])
def test_a_huge_file_that_is_no_slice_is_not_read_whole(place: str, name: str, status: str) -> None:
    """Named as a slice it may have been one; else it is set aside."""
    tiny.write(f"{place}/in/p1", tiny.series() | {name: bytes(files.LARGE_FILE_BYTES + 1)})
    sizes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        add = Contents.add
        patch.setattr(
            Contents, "add", lambda self, n, content, **how: (sizes.append(len(content)), add(self, n, content, **how))
        )
        (record,) = prepare(only_job(f"{place}/in"), f"{place}/out", memory_bytes=700_000_000)
    assert record.status == status, record
    assert max(sizes) <= files.HEAD_BYTES
    if status == "refused":
        assert f"{name}: cannot be read as DICOM" in record.message


def test_a_tilted_series_with_a_gap_is_written_where_asked_for(tmp_path: Path) -> None:
    files = dict(ct_files(distinct(20, 32, 32) % 2000, lean=(0, 0.3, 0), step_mm=2))
    del files["0007.dcm"]
    tiny.write(tmp_path / "in/p1", files)
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert (record.status, record.reason) == ("refused", "missing-slices")
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out2", on_gap="interpolate")
    assert record.status == "written"
    assert record.warnings[:2] == ("tilt-corrected", "gap-interpolated")
    assert record.source.tilt_degrees == pytest.approx(16.7, abs=0.01)
    assert record.source.interpolated_mm == "-16.00"


def test_memory_that_a_tilt_adds_is_asked_for_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate from one slice knows nothing of a tilt; the patient starts again with what it needs."""
    tiny.write(tmp_path / "in/p1", dict(ct_files(distinct(20, 32, 32) % 2000, lean=(0, 0.6, 0), step_mm=9)))
    needs: list[int] = []
    admit = admission.Ledger.admit
    monkeypatch.setattr(
        admission.Ledger, "admit", lambda self, t, r, need: (needs.append(need), admit(self, t, r, need))[1]
    )
    grow = admission.Ledger.grow

    def grow_once(self: admission.Ledger, ticket: admission.Ticket, need_bytes: int) -> None:
        if len(needs) == 1:
            raise admission.Underestimated(need_bytes)
        grow(self, ticket, need_bytes)

    monkeypatch.setattr(admission.Ledger, "grow", grow_once)
    monkeypatch.setattr(assembly.pixels, "stored_values", _only_after(needs, 2, assembly.pixels.stored_values))
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert record.status == "written"
    first, second = needs
    n_rows = 32 + 137  # 19 x 9 mm x 0.6 / 0.75 mm
    assert second == admission.estimate_bytes((20, n_rows, 32), (9, 0.75, 0.5), PrepConfig()) > first


def test_small_files_that_hold_much_take_no_more_memory_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve slices of 20 MB, nearly all of it zeros, in 300 kB; a worker has 160 MB for them."""
    files = {}
    for name, content in tiny.series(0).items():
        dataset = pydicom.dcmread(io.BytesIO(content))
        dataset.add_new(0xFFFCFFFC, "OB", bytes(20 << 20))
        files[f"{name}.gz"] = gzip.compress(saved(dataset), 9)
    assert sum(map(len, files.values())) < 500_000
    tiny.write(tmp_path / "in/p1", files)
    tiny.write(tmp_path / "in", {"p2.zip": tiny.zipped(files)})
    held: list[int] = []
    add = Contents.add

    def look(self: Contents, *file: Any, **how: Any) -> None:
        add(self, *file, **how)
        kept = [s.data.obj for each in self.slices.values() for s in each if isinstance(s.data, memoryview)]
        held.append(sum(map(len, kept)))

    made: list[weakref.ref[CaseContents]] = []

    def begin() -> CaseContents:
        assert not any(ref() for ref in made), "what an earlier try has read is still held"
        made.append(weakref.ref(contents := CaseContents()))
        return contents

    monkeypatch.setattr(Contents, "add", look)
    monkeypatch.setattr("dskprep.worker.make.CaseContents", begin)
    memory_bytes = int((160_000_000 + admission.BASE_BYTES) / admission.USABLE_SHARE)
    done = {}
    for case in cases.cases(str(tmp_path / "in")):
        (done[case.key],) = prepare(Job(case), tmp_path / "out", memory_bytes=memory_bytes)
    assert done["p1"].status == "written"  # slice by slice
    assert (done["p2"].status, done["p2"].reason) == ("refused", "too-large")
    assert max(held) < 200_000_000


def _only_after(needs: list[int], n: int, function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any) -> Any:
        assert len(needs) >= n, "decoded before its memory was there"
        return function(*args)

    return guarded


def test_stale_records_and_their_volumes_go(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p1", {**tiny.series(0), **{f"b{n}": c for n, c in tiny.series(1).items()}})
    prepare(only_job(tmp_path / "in"), tmp_path / "out")
    before = tuple(store.record_names(f"{tmp_path}/out"))
    storage.delete(f"{tmp_path}/in/p1", [n for n in tiny.everything_below(tmp_path / "in/p1") if n.startswith("b")])
    job = only_job(tmp_path / "in")
    prepare(Job(job.case, before), tmp_path / "out")
    (name,) = store.record_names(f"{tmp_path}/out")
    assert (name.key, name.digest) == ("p1", job.case.digest)
    assert {n.partition("/")[0] for n in tiny.everything_below(tmp_path / "out/volumes")} == {"p1.zarr"}


def test_a_volume_that_another_run_has_made_anew_stays(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series(0))
    prepare(only_job(tmp_path / "in"), tmp_path / "out")
    before = tuple(store.record_names(f"{tmp_path}/out"))
    tiny.write(tmp_path / "in/p1", tiny.series(0, n=14))
    job = Job(only_job(tmp_path / "in").case, before)
    (made,) = prepare(job, tmp_path / "out")
    volume = tiny.everything_below(tmp_path / "out/volumes/p1.zarr")
    assert prepare(job, tmp_path / "out") == [made]  # in a second run, which began before the first made it
    assert tiny.everything_below(tmp_path / "out/volumes/p1.zarr") == volume
    assert volume.keys() == made.objects.keys()


@pytest.mark.parametrize("is_scan", [True, False])
@pytest.mark.parametrize("when", ["before it is read", "before it is committed"])
def test_a_case_that_another_run_recorded_first_is_said_to_be_of_that_run(
    place: str, tmp_path: Path, when: str, *, is_scan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series() if is_scan else {"notes.txt": b""})
    job = only_job(tmp_path / "in")
    told = {"target": place, "config": PrepConfig(), "memory_bytes": MEMORY}
    made: list[patient.Outcome] = []

    def other_is_first(url: str, record: Record) -> bool:
        monkeypatch.setattr(store, "commit", commit)
        other = record.changed(run="first")
        commit(url, other)
        made.append(patient.Outcome((other,)))
        return commit(url, record)

    commit = store.commit
    if when == "before it is committed":
        monkeypatch.setattr(store, "commit", other_is_first)
    else:
        made.append(patient.prepare_patient(replace(job, run="first"), **told))
    second = patient.prepare_patient(replace(job, run="second"), **told)
    (first,) = made
    assert (first.is_of_other, second.is_of_other) == (False, True)
    assert second.records == first.records
    assert [record.run for record in second.records] == ["first"]
    assert not patient.prepare_patient(replace(job, run="first"), **told).is_of_other  # as after its worker died


@pytest.mark.parametrize("z_mm", [1.0, 2.5])
def test_no_identity_leaves_the_source(tmp_path: Path, z_mm: float) -> None:
    files = tiny.series(z_mm=z_mm)
    tiny.write(tmp_path / "in/p1", files)
    tiny.write(tmp_path / "in/p2", {**files, "IM003.dcm": files["IM003.dcm"][:-300]})
    for case in cases.cases(f"{tmp_path}/in"):
        prepare(Job(case), tmp_path / "out")
    written = tiny.everything_below(tmp_path / "out")
    assert len(written) > 5
    for name, content in written.items():
        for secret in tiny.IDENTITY:
            assert secret.encode() in b"".join(files.values())
            assert secret.encode() not in content, name


def test_records_are_strict_json(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series())
    prepare(only_job(tmp_path / "in"), tmp_path / "out")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for name, content in tiny.everything_below(tmp_path / "out/records").items():
        assert json.loads(content, parse_constant=refuse), name


def test_the_volume_is_resampled_as_the_settings_say(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p1", tiny.series(z_mm=2.0))
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out", spacing_mm=(1.0, 2.0, 2.0), lungs=False)
    assert record.geometry.spacing_mm == (1.0, 2.0, 2.0)
    assert record.geometry.shape[0] in (23, 24)
    assert record.geometry.shape[1:] == (12, 12)
    assert record.lungs is None


def test_a_series_is_read_without_a_dataset(place: str) -> None:
    tiny.write(f"{place}/p1", tiny.series())
    tiny.write(place, {"p2.zip": tiny.zipped(tiny.series())})
    for url in (f"{place}/p1", f"{place}/p2.zip"):
        series = read_series(url)
        np.testing.assert_array_equal(series.decode().volume.array, tiny.hu())
    tiny.write(f"{place}/p3", {"x.txt": b""})
    with pytest.raises(Refusal, match="no-dicom"):
        read_series(f"{place}/p3")


def test_a_series_is_read_as_the_settings_say(tmp_path: Path) -> None:
    files = tiny.series()
    del files[sorted(files)[5]]
    url = tiny.write(tmp_path / "gap", files)
    with pytest.raises(Refusal, match="missing-slices"):
        read_series(url)
    series = read_series(url, PrepConfig(on_gap="interpolate"))
    assert series.grid.shape[0] == len(files) + 1
    with pytest.raises(Refusal, match="too-few-slices"):
        read_series(url, PrepConfig(on_gap="interpolate", min_slices=20))


def test_of_several_series_one_is_read_by_the_digest_in_its_record(tmp_path: Path) -> None:
    large, small = tiny.series(), {f"s{name}": data for name, data in tiny.series(1, n=10, series_uid="1.2.9").items()}
    url = tiny.write(tmp_path / "in/p1", large | small)
    records = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert {record.source.slices for record in records} == {10, tiny.N_SLICES}
    for record in records:
        series = read_series(url, uid_sha256=record.series_uid_sha256)
        assert series.grid.shape[0] == record.source.slices
    with pytest.raises(Refusal, match="expected the series of digest 0a0b, found 2 others"):
        read_series(url, uid_sha256="0a0b")


@pytest.mark.parametrize("place_in_stack", ["first", "last"])
@pytest.mark.parametrize("damage", ["cut to 100 bytes", "mark", "class"])
def test_a_damaged_slice_at_an_end_of_the_stack_never_just_vanishes(
    tmp_path: Path, place_in_stack: str, damage: str
) -> None:
    files = tiny.series(n=14)
    name = min(files) if place_in_stack == "first" else max(files)
    content = files[name]
    files[name] = {
        "cut to 100 bytes": content[:100],
        "mark": content.replace(b"DICM", b"DICX", 1),
        "class": content.replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.5.1.4.1.1.4\0"),
    }[damage]
    assert files[name] != content
    tiny.write(tmp_path / "in/p1", files)
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert record.status == "refused" or record.source.slices == 14
    assert record.status == "written" or name in record.message


def test_a_file_named_as_something_else_refuses_nothing(tmp_path: Path) -> None:
    extra = {"notes.txt": b"no scan", "LICENSE": b"free", "preview.png": b"\x89PNG", "labels.csv": b"a,b"}
    tiny.write(tmp_path / "in/p1", {**tiny.series(), **extra})
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out")
    assert record.status == "written"


def test_an_archive_that_outgrows_every_worker_is_too_large(tmp_path: Path) -> None:
    bomb = tiny.zipped({f"{n}.dcm": bytes(50_000_000) for n in range(8)})
    assert len(bomb) < 1_000_000
    tiny.write(tmp_path / "in", {"p1.zip": bomb})
    (record,) = prepare(only_job(tmp_path / "in"), tmp_path / "out", memory_bytes=700_000_000)
    assert (record.status, record.reason) == ("refused", "too-large")

"""One file that cannot be read costs itself alone, wherever it lies; it is named, and never deleted for that."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import other_user
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import index, store
from dskprep.errors import InfrastructureError

BadSector = Callable[[str], None]
Told = Callable[..., tuple[int, str]]
KEYS = ("p1", "p2")
SHARD, THUMBNAIL = "volumes/p1.zarr/0/c/0/0/0", "thumbnails/p1.webp"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`in` with two patients, `out` with their dataset, and a label for each of them."""
    folder = tmp_path_factory.mktemp("original")
    tiny.write_patients(folder / "in", KEYS)
    dskprep.run(folder / "in", folder / "out")
    for key in KEYS:
        mask = np.zeros((tiny.SIZE, tiny.SIZE, tiny.N_SLICES), np.uint8)
        mask[4:12, 4:12, 2:6] = 1
        affine = dskprep.read_series(folder / "in" / key).grid.affine[:, [2, 1, 0, 3]]
        (folder / "masks").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(mask, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine), folder / f"masks/{key}.nii.gz")
    assert dskprep.annotate(folder / "out", folder / "masks", names={1: "lesion"}).counts["written"] == 2
    return folder


@pytest.fixture
def target(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original / "out", tmp_path / "out"))


@pytest.fixture
def bad_sector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BadSector:
    """Let the system answer EIO for those files that have this part in their path, and for none written since.

    Their names and sizes are told as before.
    """
    opened = os.open

    def put(part: str, number: int = errno.EIO) -> None:
        bad = {identity(path) for path in tmp_path.rglob("*") if part in str(path) and path.is_file()}

        def open_or_fail(path: Any, *args: Any, **more: Any) -> int:
            if part in str(path) and identity(Path(path)) in bad:
                raise OSError(number, os.strerror(number), str(path))
            return opened(path, *args, **more)

        monkeypatch.setattr(os, "open", open_or_fail)

    return put


@pytest.fixture
def told_by(capsys: pytest.CaptureFixture[str]) -> Told:
    def told(*words: str | Path) -> tuple[int, str]:
        code = commands.run_command([str(word) for word in words])
        caught = capsys.readouterr()
        assert "Traceback" not in caught.out + caught.err
        return code, caught.out + caught.err

    return told


def identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def record_of(target: Path, key: str) -> Path:
    (name,) = (name for name in store.record_names(str(target)) if name.key == key)
    return target / name.path


@pytest.mark.parametrize("name", [SHARD, THUMBNAIL, "volumes/p1.zarr/0/zarr.json", "volumes/p1.zarr/zarr.json"])
def test_an_object_that_cannot_be_read_is_a_fault_and_stays(
    target: Path, bad_sector: BadSector, told_by: Told, name: str
) -> None:
    before = tiny.everything_below(target)
    bad_sector(f"out/{name}")
    findings = {finding.key: finding for finding in dskprep.verify(target) if finding.labels is None}
    path = name.removeprefix("volumes/p1.zarr/")
    assert findings["p1"].faults == (f"{path} cannot be read: Input/output error",)
    assert (findings["p2"].faults, findings["p1"].is_damaged) == ((), False)
    for more in ((), ("--forget",)):
        code, told = told_by("verify", target, *more)
        assert (code, "2 volumes checked, 1 with faults" in told) == (1, True)
        assert "may be whole, and is not deleted" in told
        assert "make them anew" not in told
    bad_sector("nothing")
    assert tiny.everything_below(target) == before
    assert told_by("verify", target)[0] == 0


def test_a_damaged_volume_of_which_something_cannot_be_read_is_still_forgotten(
    target: Path, bad_sector: BadSector, told_by: Told
) -> None:
    (target / SHARD).unlink()
    bad_sector(f"out/{THUMBNAIL}")
    assert told_by("verify", target, "--forget")[0] == 1
    assert not (target / "volumes/p1.zarr/zarr.json").exists()
    assert list(dskprep.open_dataset(target)) == ["p2"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_record_that_cannot_be_read_is_named_and_its_patient_counts_as_done(
    original: Path, target: Path, tmp_path: Path, bad_sector: BadSector, told_by: Told, number: int
) -> None:
    record = record_of(target, "p1")
    os.utime(record)  # the index, which still speaks of it, is of before
    before = tiny.everything_below(target)
    bad_sector(f"/{record.name}", number)
    code, told = told_by("status", target)
    assert (code, "unreadable-record" in told, str(record) in told, "--retry" in told) == (1, True, True, False)
    code, told = told_by("verify", target, "--forget")
    assert (code, "p1: cannot be read: " in told, "2 volumes checked, 1 with faults" in told) == (1, True, True)
    assert dskprep.forget(target, ["p1"]) == []
    code, told = told_by("compare", original / "out", target)
    assert (code, "p1" in told, "p2" in told) == (1, True, True)
    assert told_by("report", target, "-o", tmp_path / "r.html")[0] == 0
    assert "unreadable-record" in (tmp_path / "r.html").read_text()
    dataset = dskprep.open_dataset(target)
    assert list(dataset) == ["p2"]
    with pytest.raises(KeyError, match="p1: failed, unreadable-record"):
        dataset["p1"]
    source = tmp_path / "in"
    shutil.copytree(original / "in", source)
    tiny.write(source, {f"p3/{name}": content for name, content in tiny.series(7).items()})
    code, told = told_by("run", source, target, "--scheduler", "sync")
    assert "note: records that cannot be read: 1, such as that of p1; their patients count as done" in told
    assert (code, "3 patients: 1 done in" in told, str(record) in told) == (1, True, True)
    bad_sector("nothing")
    after = tiny.everything_below(target)
    assert {name: after[name] for name in before if "/p1." in name} == {n: c for n, c in before.items() if "/p1." in n}
    assert dskprep.status(target).counts == {"written": 3}
    assert dskprep.run(source, target).n_new == 0
    assert dskprep.status(target).is_clean


def test_the_record_of_a_refused_series_is_tried_again_too(
    tmp_path: Path, bad_sector: BadSector, told_by: Told
) -> None:
    """Its row in the index has the status of its record: an old row must not count for it."""
    source, target = tiny.write_patients(tmp_path / "in", ["p1"]), tmp_path / "out"
    tiny.write(source, {"p2/notes.txt": b"no scan"})
    dskprep.run(source, target)
    (target / "index.parquet").unlink()
    bad_sector("records/refused/p2.")
    assert told_by("run", source, target, "--scheduler", "sync")[0] == 1
    assert dskprep.status(target).reasons == {"failed: unreadable-record": 1}
    bad_sector("nothing")
    assert dskprep.status(target).reasons == {"refused: no-dicom": 1}


@pytest.mark.slow
def test_a_volume_whose_former_record_cannot_be_read_is_not_written_over(
    original: Path, target: Path, tmp_path: Path, bad_sector: BadSector
) -> None:
    """It may be that of another source of the same name; the record alone says so."""
    source = tmp_path / "in"
    shutil.copytree(original / "in", source)
    tiny.write(source, {f"p1/{name}": content for name, content in tiny.series(5).items()})
    volume = tiny.everything_below(target / "volumes/p1.zarr")
    record = record_of(target, "p1")
    bad_sector(f"/{record.name}")
    account = dskprep.run(source, target).account
    assert account.counts == {"written": 1, "failed": 1}
    assert tiny.everything_below(target / "volumes/p1.zarr") == volume
    assert record.exists()
    bad_sector("nothing")
    account = dskprep.run(source, target, retry="failed").account
    assert account.counts == {"written": 1, "refused": 1}
    assert account.reasons == {"refused: key-taken": 1}


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_index_that_cannot_be_read_is_made_of_the_records_and_replaced(
    original: Path,
    target: Path,
    bad_sector: BadSector,
    told_by: Told,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_folder: bool,
) -> None:
    if is_folder:
        monkeypatch.setattr("dskprep.dataset.index_files.PART_ROWS", 1)
        (target / "index.parquet").unlink()
        index.write(str(target))
        assert (target / "index.parquet").is_dir()
    bad_sector("out/index.parquet")
    assert list(dskprep.open_dataset(target)) == [*KEYS]
    assert told_by("status", target)[0] == 0
    assert dskprep.annotate(target, original / "masks", names={1: "lesion"}).counts == {"written": 2}
    bad_sector("out/index.parquet")
    assert told_by("run", original / "in", target, "--scheduler", "sync")[0] == 0
    assert index.read(str(target))["key"].tolist() == [*KEYS]


def test_pictures_that_cannot_be_read_are_left_out_with_a_note(
    target: Path, tmp_path: Path, bad_sector: BadSector, told_by: Told, caplog: pytest.LogCaptureFixture
) -> None:
    bad_sector(f"out/{THUMBNAIL}")
    assert told_by("report", target, "-o", tmp_path / "r.html")[0] == 0
    assert f"{target}/{THUMBNAIL}: cannot be read (Input/output error), and is passed over" in caplog.messages
    assert (tmp_path / "r.html").read_text().count("data:image/webp") >= 1
    code, told = told_by("duplicates", target)
    assert (code, "without a picture, compared by pixels only: 1, such as p1" in told) == (0, True)


@pytest.mark.parametrize(("name", "problem"), [(THUMBNAIL, "cannot be read"), (SHARD, "its voxels cannot be read")])
def test_an_audit_names_what_it_could_not_search(target: Path, bad_sector: BadSector, name: str, problem: str) -> None:
    bad_sector(f"out/{name}")
    found = {
        searched.name: searched.problem for searched in dskprep.audit(target, ["Mustermann"]) if not searched.is_clean
    }
    assert found.pop(name) == "cannot be read"
    assert set(found.values()) == ({problem} if name == SHARD else set())


def test_a_label_whose_files_cannot_be_read_costs_its_source(
    original: Path, target: Path, bad_sector: BadSector, told_by: Told
) -> None:
    labels = tiny.everything_below(target / "labels")
    (record,) = target.glob("labels/written/p1.nii.gz.*")
    (of_label, *_) = target.glob("volumes/p1.zarr/labels/lesion/0/c/0/0/0")
    bad_sector(str(of_label))
    code, told = told_by("verify", target, "--forget")
    assert (code, "2 label sources, 1 with faults" in told, of_label.exists()) == (1, True, True)
    (target / "annotations.parquet").unlink()
    bad_sector(str(record))
    code, told = told_by("verify", target, "--forget")
    assert (code, "2 label sources, 1 with faults" in told, record.exists()) == (1, True, True)
    found = dskprep.status(target)
    assert (found.label_reasons, [*found.damaged_labels]) == (
        {"failed: unreadable-record": 1},
        [str(record.relative_to(target))],
    )
    summary = dskprep.annotate(target, original / "masks", names={1: "lesion"})
    assert (summary.counts, summary.already, [*summary.damaged_records]) == (
        {"written": 2},
        {"written": 2},
        [str(record.relative_to(target))],
    )
    bad_sector("nothing")
    assert tiny.everything_below(target / "labels") == labels
    assert dskprep.status(target).label_sources == {"written": 2}


def test_a_disk_that_is_gone_is_one_error_and_no_fault_of_its_files(
    target: Path, bad_sector: BadSector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the server of a mount is lost while its files are read: no folder can be listed any more."""
    bad_sector(f"out/{SHARD}")
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("volumes/p1.zarr/0/c/0/0"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return listed(path)

    entry = storage.entry_of(f"{target}/{SHARD}")
    assert entry is not None
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InfrastructureError, match="Input/output error") as caught:
        storage.read(f"{target}/{SHARD}")
    assert not isinstance(caught.value, storage.UnreadableFile)


@pytest.mark.parametrize("name", [THUMBNAIL, "index.parquet", "record"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_costs_itself_alone(target: Path, told_by: Told, name: str, kind: str) -> None:
    path = record_of(target, "p1") if name == "record" else target / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    code, told = told_by("verify", target)
    assert f"{2 if name != 'record' or kind == 'pipe' else 1} volumes checked" in told.replace(
        "1 volume ", "1 volumes "
    )
    assert code == (0 if name == "index.parquet" or "1 volume " in told else 1)
    assert "p2" in dskprep.open_dataset(target)


@pytest.mark.slow
def test_another_user_who_may_not_read_one_record_and_one_shard(original: Path) -> None:
    """By the rights of the system, as a colleague with the umask 077 leaves them."""
    other_user.skip_without()
    with other_user.shared_folder() as shared:
        target = Path(shutil.copytree(original / "out", shared / "out"))
        for path in (target, *target.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o644)
        for path in (record_of(target, "p1"), target / "index.parquet", target / "volumes/p2.zarr/0/c/0/0/0"):
            path.chmod(0o600)

        def told_to_other(*words: str) -> tuple[int, str]:
            whole = other_user.command([*tiny.PROGRAM, *words], other_user.UIDS[0])
            environment = {**os.environ, "HOME": str(shared), "TMPDIR": str(shared)}
            done = subprocess.run(whole, check=False, capture_output=True, text=True, env=environment, cwd="/")
            return done.returncode, done.stdout + done.stderr

        code, told = told_to_other("status", str(target))
        assert (code, "unreadable-record" in told) == (1, True), told
        code, told = told_to_other("verify", str(target), "--forget", "--json")
        found = {each["key"]: each["faults"] for each in json.loads(told)["findings"] if each["faults"]}
        assert (code, json.loads(told)["deleted"], found.keys()) == (1, [], {"p1", "p2"})
        assert "permission denied" in found["p1"][0]
        assert "0/c/0/0/0 cannot be read: permission denied" in found["p2"][0]

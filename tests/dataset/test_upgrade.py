"""A dataset of OME-Zarr 0.5 becomes one of 0.6: what a run with that setting writes, wherever it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny
from builders import ct_files, distinct

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import claims
from dskprep.errors import InfrastructureError, UsageError
from dskprep.reading import convert
from dskprep.settings import PrepConfig
from dskprep.volume import Volume

OLD, NEW = PrepConfig(check_hu=False, levels=2), PrepConfig(check_hu=False, levels=2, ome_zarr="0.6")
OF_A_RUN = ("seconds", "cpu_s", "run", "worker")
"""What differs between the records of two runs that do the same."""
TURN = np.deg2rad(20)
Objects = dict[str, bytes]


def write_scans(folder: Path) -> None:
    """An upright patient, an oblique one, and one that is refused."""
    tiny.write(folder / "scans/p1", tiny.series())
    oblique = ct_files(distinct(12, 20, 24), orientation=[1, 0, 0, 0, np.cos(TURN), np.sin(TURN)])
    tiny.write(folder / "scans/p2", dict(oblique))
    tiny.write(folder / "scans/p3", {"notes.txt": b"no scan"})


def make(folder: Path, name: str, settings: PrepConfig) -> Objects:
    """Every object of a dataset of these patients, with a label of the first."""
    target = str(folder / name)
    dskprep.run(folder / "scans", target, settings=settings)
    if not (folder / "labels").exists():
        volume = dskprep.open_dataset(target)["p1"]
        mask = np.zeros(volume.shape, np.uint8)
        mask[2:5, 3:9, 4:11] = 1
        tiny.write(folder / "labels", {"p1.nii.gz": convert.to_nifti_gz(Volume(mask, volume.affine))})
    assert dskprep.annotate(target, folder / "labels").exit_code == 0
    return tiny.everything_below(target)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Objects, Objects]:
    """The same patients as a run of either setting writes them."""
    folder = tmp_path_factory.mktemp("both")
    write_scans(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DSKPREP_IDENTITY_KEY", "k" * 40)
        return make(folder, "old", OLD), make(folder, "new", NEW)


@pytest.fixture
def target(place: str, both: tuple[Objects, Objects]) -> str:
    return tiny.write(place, both[0])


def comparable(objects: Objects) -> dict[str, Any]:
    """The objects, of records and dataset.json their content, without what belongs to a run and without tables."""
    found: dict[str, Any] = {}
    for name, content in objects.items():
        place = name.partition("/")[0]
        if place in ("records", "labels", "dataset.json"):
            fields = json.loads(content)
            found[name] = {key: value for key, value in fields.items() if key not in OF_A_RUN}
        elif place in ("volumes", "thumbnails"):
            found[name] = content
    return found


def faults(target: str) -> list[str]:
    return [fault for finding in dskprep.verify(target) for fault in finding.faults]


def stop_after(n: int, patched: pytest.MonkeyPatch) -> None:
    """Let n objects be written, and none after that."""
    write_many, left = storage.write_many, iter(range(n))

    def write_some(url: str, objects: Objects) -> None:
        for name, content in objects.items():
            if next(left, None) is None:
                raise KeyboardInterrupt
            write_many(url, {name: content})

    patched.setattr(storage, "write_many", write_some)


def test_it_becomes_what_a_run_writes_and_no_voxel_is_touched(
    target: str, both: tuple[Objects, Objects], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = both
    assert comparable(old) != comparable(new)
    chunks = {name: content for name, content in old.items() if "/c/" in name}
    written, write_many = set[str](), storage.write_many
    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_many", lambda url, objects: (written.update(objects), write_many(url, objects)))
        findings = list(dskprep.upgrade(target))
    assert [(finding.key, finding.faults) for finding in findings[:2]] == [("p1", ()), ("p2", ())]
    assert len(findings) == 3
    assert findings[2].labels is not None
    after = tiny.everything_below(target)
    assert comparable(after) == comparable(new)
    assert {name: content for name, content in after.items() if "/c/" in name} == chunks
    assert written
    assert not [name for name in written if "c" in name.split("/")]  # nor written anew with the same bytes
    assert faults(target) == []
    assert list(dskprep.upgrade(target)) == []
    assert tiny.everything_below(target) == after
    dataset = dskprep.open_dataset(target)
    assert sorted(dataset) == ["p1", "p2"]
    assert len(dataset["p1"].labels) == 1
    assert dskprep.status(target).counts == {"written": 2, "refused": 1}


def test_a_trial_says_the_same_and_changes_nothing(target: str, both: tuple[Objects, Objects]) -> None:
    said = list(dskprep.upgrade(target, is_trial=True))
    assert tiny.everything_below(target) == both[0]
    assert list(dskprep.upgrade(target)) == said


@pytest.mark.slow
def test_it_may_be_stopped_at_each_write(
    tmp_path: Path, both: tuple[Objects, Objects], monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(200):
        target = tiny.write(tmp_path / f"{n}", both[0])
        with monkeypatch.context() as patched:
            stop_after(n, patched)
            try:
                list(dskprep.upgrade(target))
                break
            except KeyboardInterrupt:
                pass
        assert faults(target) == []
        dskprep.open_dataset(target)["p2"].load()
        list(dskprep.upgrade(target))
        assert faults(target) == []
        assert comparable(tiny.everything_below(target)) == comparable(both[1])
    assert n > 15


KILLED = """
import os, signal, sys
import dskprep
from dskprep.storage import local
write, left = local._write_beside, iter(range(int(sys.argv[2])))
def half(fs, path, content):
    if next(left, None) is None:
        write(fs, path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(fs, path, content)
local._write_beside = half
list(dskprep.upgrade(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("n", [0, 3, 9])
def test_it_may_be_killed_while_it_writes(tmp_path: Path, both: tuple[Objects, Objects], n: int) -> None:
    target = tiny.write(tmp_path / "out", both[0])
    done = subprocess.run([sys.executable, "-c", KILLED, target, str(n)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [e for e in storage.listing_below(target) if e.name.endswith(".part")]
    assert faults(target) == []
    list(dskprep.upgrade(target))
    list(dskprep.clean(target, older_than_s=-60))
    assert faults(target) == []
    assert comparable(tiny.everything_below(target)) == comparable(both[1])


@pytest.mark.slow
def test_a_run_goes_on_with_the_new_setting_alone(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSKPREP_IDENTITY_KEY", "k" * 40)
    scans = tiny.write_patients(tmp_path / "scans", ["p8", "p9"])
    list(dskprep.upgrade(target))
    with pytest.raises(UsageError, match=r"ome_zarr is \"0\.6\" there and not set here"):
        dskprep.run(scans, target, settings=OLD)
    assert dskprep.run(scans, target, settings=NEW).exit_code == 0
    assert sorted(dskprep.open_dataset(target)) == ["p1", "p2", "p8", "p9"]


def test_a_damaged_volume_is_named_and_left(target: str, both: tuple[Objects, Objects]) -> None:
    name = "volumes/p1.zarr/labels/lungs/zarr.json"
    tiny.write(target, {name: both[0][name] + b" "})
    storage.delete(target, ["volumes/p2.zarr/zarr.json"])
    found = {finding.key: finding.faults for finding in dskprep.upgrade(target) if finding.faults}
    assert found.keys() == {"p1", "p2"}
    assert name in found["p1"][0]
    assert "volumes/p2.zarr/zarr.json" in found["p2"][0]
    assert "is gone" in found["p2"][0]
    after = tiny.everything_below(target)
    assert after["volumes/p1.zarr/zarr.json"] == both[0]["volumes/p1.zarr/zarr.json"]
    assert len(faults(target)) == 2


def test_what_others_added_is_left(target: str) -> None:
    theirs = {"volumes/p2.zarr/labels/mine/zarr.json": b"{}", "volumes/p2.zarr/2/zarr.json": b"{}"}
    tiny.write(target, theirs)
    list(dskprep.upgrade(target))
    after = tiny.everything_below(target)
    assert {name: after[name] for name in theirs} == theirs


def test_nothing_is_written_through_a_link(tmp_path: Path, both: tuple[Objects, Objects]) -> None:
    target, outside = tiny.write(tmp_path / "out", both[0]), tmp_path / "outside"
    (tmp_path / "out/volumes/p1.zarr").rename(outside)
    (tmp_path / "out/volumes/p1.zarr").symlink_to(outside)
    before = tiny.everything_below(outside)
    with pytest.raises(InfrastructureError, match=r"p1\.zarr"):
        list(dskprep.upgrade(target))
    assert tiny.everything_below(outside) == before


def test_not_beside_a_run(target: str) -> None:
    lease = claims.Lease("20990101T000000Z-0000", "there", os.getpid(), claims.this_machine(), claims.utc(time.time()))
    tiny.write(target, {f"claims/{lease.run_id}.json": msgspec.json.encode(lease)})
    with pytest.raises(UsageError, match=f"the run {lease.run_id} is under way on there; upgrade when it has ended"):
        list(dskprep.upgrade(target))


def test_the_command_says_how_many(
    tmp_path: Path, both: tuple[Objects, Objects], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tiny.write(tmp_path / "out", both[0])
    assert commands.run_command(["upgrade", target, "--dry-run"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "2 volumes and 1 label source would be upgraded to OME-Zarr 0.6"
    assert last.endswith(f" run SOURCE {target} --config {target}/dataset.json")
    storage.delete(target, ["volumes/p2.zarr/zarr.json"])
    assert commands.run_command(["upgrade", target]) == 1
    *_, fault, last, _ = capsys.readouterr().out.splitlines()
    assert fault.startswith("p2: ")
    assert last == "1 volume and 1 label source were upgraded to OME-Zarr 0.6; left as they are, with faults: 1"
    assert commands.run_command(["upgrade", str(tmp_path)]) == 2

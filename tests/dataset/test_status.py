"""What became of all series of a dataset, in numbers."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import claims, store
from dskprep.dataset.status import Status
from dskprep.errors import UsageError
from dskprep.pipeline.account import RunStopped
from dskprep.pipeline.observer import Observer
from dskprep.settings import PrepConfig


def test_series_are_counted_by_status_reason_and_warning(place: str) -> None:
    source, target = tiny.write_patients(f"{place}/in", ["p1", "p2"]), f"{place}/out"
    tiny.write(source, {"p3/notes.txt": b"", "p4/1.dcm": b""})
    dskprep.run(source, target)
    found = dskprep.status(target)
    assert found.last_run
    assert (found.last_run.inputs, found.last_run.counts) == (4, {"written": 2, "refused": 2})
    assert dataclasses.replace(found, last_run=None) == Status(
        target,
        4,
        {"written": 2, "refused": 2},
        {"refused: no-dicom": 1, "refused: truncated": 1},
        {"lungs-not-found": 2},
        [],
    )
    assert not found.is_clean
    assert found.as_dict() == dataclasses.asdict(found)
    storage.delete(target, ["index.parquet"])  # as after a run that was killed
    assert dskprep.status(target) == found
    assert not storage.exists(f"{target}/index.parquet")


def test_a_dataset_is_clean_if_every_series_is_written_as_a_whole(place: str) -> None:
    dskprep.run(tiny.write_patients(f"{place}/in", ["p1"]), f"{place}/out")
    found = dskprep.status(f"{place}/out")
    assert (found.counts, found.reasons, found.is_clean) == ({"written": 1}, {}, True)
    assert not dataclasses.replace(found, split_series=[["p1", "p2"]]).is_clean
    with pytest.raises(UsageError, match="no dskprep dataset"):
        dskprep.status(f"{place}/in")


def test_a_dataset_whose_first_run_has_only_begun_is_not_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As while its source is listed, before there is a patient; a run that is killed then leaves it so."""
    target = str(tmp_path / "out")
    source = tiny.write_patients(str(tmp_path / "in"), ["p1"])
    dskprep.run(source, target)
    for name in ("records", "volumes", "runs", "thumbnails"):
        shutil.rmtree(tmp_path / "out" / name)
    storage.delete(target, ["index.parquet"])
    assert not dskprep.status(target).is_clean
    assert commands.run_command(["status", target]) == 1
    told = capsys.readouterr().out
    assert "0 series in" in told
    assert "no run has ended here yet" in told
    dskprep.run(source, target)
    assert dskprep.status(target).is_clean


class Interrupts(Observer):
    def on_patient(self, *_: object) -> None:
        raise KeyboardInterrupt


def test_a_run_that_was_interrupted_is_told_until_another_one_has_gone_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tiny.write_patients(str(tmp_path / "in"), ["p1", "p2"]), str(tmp_path / "out")
    first = dskprep.run(source, target, observers=[Interrupts()])
    assert dskprep.status(target).counts == {"written": 1}
    assert commands.run_command(["status", target]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert f"the last run, {first.run_id}, was interrupted when 1 of " in told
    assert ", without what its workers ended after that; the same command goes on" in told
    second = dskprep.run(source, target)
    assert commands.run_command(["status", target]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"the last run, {second.run_id}, found 2 patients, and all had a status when it ended" in told


def test_a_run_that_died_elsewhere_before_a_complete_one_is_no_longer_waited_for(tmp_path: Path) -> None:
    source, target = tiny.write_patients(str(tmp_path / "in"), ["p1"]), str(tmp_path / "out")
    dskprep.run(source, target)
    lease = {"run_id": "20200101T000000Z-aaaa", "host": "elsewhere", "machine": "another", "since": "", "n_done": 0}
    tiny.write(target, {"claims/20200101T000000Z-aaaa.json": json.dumps(lease).encode()})
    assert not dskprep.status(target).is_clean  # it may be at work
    os.utime(tmp_path / "out/claims/20200101T000000Z-aaaa.json", (0, 0))
    found = dskprep.status(target)
    assert ([run.host for run in found.runs], found.is_clean) == (["elsewhere"], True)


def test_a_time_that_no_calendar_has_is_told_as_the_nearest() -> None:
    """A file can have any time, as that of a lease on a file system whose clock is of someone else."""
    told = [claims.utc(seconds) for seconds in (-1e12, 0, 253402214400, 253402214401, 1e300)]
    assert told == ["1970-01-01T00:00:00Z"] * 2 + ["9999-12-31T00:00:00Z"] * 3


def test_the_last_run_is_the_one_that_ended_last(tmp_path: Path) -> None:
    """Of two that shared the work, the one that began first may have done what the other left."""
    target = str(tmp_path / "out")
    dskprep.run(tiny.write_patients(str(tmp_path / "in"), ["p1"]), target)
    summary = {"inputs": 1, "counts": {"written": 1}, "already": {}, "is_listed": True, "number": 2}
    first, second = "29991231T235900Z-aaaa", "29991231T235930Z-bbbb"
    store.write_run(target, first, summary | {"run_id": first, "seconds": 60.0})
    broken_off = summary | {"run_id": second, "counts": {}, "seconds": 1.0, "stopped_by": "no store"}
    store.write_run(target, second, broken_off)
    store.write_run(target, "of a stranger", summary | {"run_id": "of a stranger", "seconds": 1e12})
    found = dskprep.status(target)
    assert found.last_run
    assert (found.last_run.run_id, found.is_clean) == (first, True)
    store.write_run(target, second, broken_off | {"seconds": 90.0})
    found = dskprep.status(target)
    assert found.last_run
    assert (found.last_run.stopped_by, found.is_clean) == ("no store", False)
    assert json.loads(json.dumps(found.as_dict()))["last_run"]["inputs"] == 1


def test_of_runs_that_end_within_a_second_the_later_one_is_the_last(tmp_path: Path) -> None:
    """The second that an id tells is not enough: the first seems to end at 4.4 s, the second at 4.2 s."""
    target = str(tmp_path / "out")
    dskprep.run(tiny.write_patients(str(tmp_path / "in"), ["p1", "p2"]), target)
    first, second = "29991231T235900Z-bbbb", "29991231T235904Z-aaaa"
    both = {"inputs": 2, "already": {}, "is_listed": True, "number": 2}
    ended = {"counts": {"written": 1}, "seconds": 4.4, "is_interrupted": True, "ended": "2999-12-31T23:59:04.300+00:00"}
    store.write_run(target, first, both | ended | {"run_id": first})
    ended = {"counts": {"written": 2}, "seconds": 0.2, "ended": "2999-12-31T23:59:04.900+00:00"}
    store.write_run(target, second, both | ended | {"run_id": second})
    found = dskprep.status(target)
    assert found.last_run
    assert (found.last_run.run_id, found.is_clean) == (second, True)
    for of_a_stranger in ("tomorrow", "2999-12-31", "9999-12-31T23:59:59-12:00"):
        store.write_run(target, first, both | ended | {"run_id": first, "ended": of_a_stranger})
        assert dskprep.status(target).last_run


@pytest.mark.parametrize("hours", [1, -1, 24 * 365])
def test_the_last_run_is_the_last_also_where_clocks_disagree(tmp_path: Path, hours: int) -> None:
    """Two machines, or one whose clock was set back: an interrupted run is not hidden by an earlier, complete one."""
    source, target = tiny.write_patients(str(tmp_path / "in"), ["p1"]), str(tmp_path / "out")
    first = dskprep.run(source, target)
    path = tmp_path / "out/runs" / first.run_id / "summary.json"
    told = json.loads(path.read_text())
    told["ended"] = (datetime.datetime.fromisoformat(told["ended"]) + datetime.timedelta(hours=hours)).isoformat()
    path.write_text(json.dumps(told))
    tiny.write_patients(source, ["p2", "p3"])
    second = dskprep.run(source, target, observers=[Interrupts()])
    found = dskprep.status(target)
    assert found.last_run
    assert (found.last_run.run_id, found.is_clean) == (second.run_id, False)
    third = dskprep.run(source, target)
    found = dskprep.status(shutil.copytree(target, tmp_path / "copy"))  # whose files have other times
    assert found.last_run
    assert (found.last_run.run_id, found.is_clean) == (third.run_id, True)


def test_a_summary_tells_when_the_run_ended(tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    before = datetime.datetime.now(datetime.UTC)
    run = dskprep.run(tiny.write_patients(str(tmp_path / "in"), ["p1"]), target)
    told = json.loads((tmp_path / "out/runs" / run.run_id / "summary.json").read_text())
    ended = datetime.datetime.fromisoformat(told["ended"])
    assert before < ended < datetime.datetime.now(datetime.UTC)
    assert (ended - before).total_seconds() >= told["seconds"] - 0.01


def test_those_that_failed_are_told_with_what_does_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tiny.write_patients(str(tmp_path / "in"), ["p1"]), str(tmp_path / "out")
    tiny.write(source, {"p2/notes.txt": b""})
    (tmp_path / "own.toml").write_text('lungs = false\nsteps = ["own_steps:broken"]\n')
    run = ["run", source, target, "--scheduler", "sync", "--config", str(tmp_path / "own.toml")]
    for command in run, run, ["status", target]:  # failed now, before, and in the dataset
        assert commands.run_command(command) == 1
        told = capsys.readouterr().out
        assert told.count("--retry failed does them again") == 1
        assert f"{target}/records/failed/KEY.*.json" in told
    assert "not today" in json.loads(next((tmp_path / "out/records/failed").glob("p1.*.json")).read_text())["traceback"]
    damaged = next((tmp_path / "out/records/failed").glob("p1.*.json"))
    damaged.write_bytes(b"{}")  # a run does it again in any case
    assert commands.run_command(["status", target]) == 1
    assert "--retry" not in capsys.readouterr().out


def test_what_was_forgotten_after_the_last_run_is_not_said_to_have_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "out")
    dskprep.run(tiny.write_patients(str(tmp_path / "in"), ["p1", "p2"]), target)
    (tmp_path / "out/volumes/p1.zarr/zarr.json").unlink()
    assert commands.run_command(["verify", target, "--forget"]) == 1
    assert len(dskprep.open_dataset(target)) == 1
    capsys.readouterr()
    assert commands.run_command(["status", target]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "found 2 patients, and all had a status when it ended" in told
    assert "without a record now, as after verify --forget: 1 series; run again" in told
    dskprep.run(str(tmp_path / "in"), target)
    assert dskprep.status(target).is_clean


def test_a_further_series_that_was_forgotten_is_missing(tmp_path: Path) -> None:
    source, target = str(tmp_path / "in"), str(tmp_path / "out")
    tiny.write(f"{source}/p1", tiny.series(0))
    tiny.write(f"{source}/p1", {f"s{name}": content for name, content in tiny.series(1).items()})
    dskprep.run(source, target)
    assert (dskprep.status(target).missing, dskprep.status(target).is_clean) == (0, True)
    (further,) = [name.key for name in store.record_names(target) if "+" in name.key]
    dskprep.forget(target, [further])
    assert (dskprep.status(target).missing, dskprep.status(target).is_clean) == (1, False)
    dskprep.run(source, target)
    assert dskprep.status(target).is_clean


def test_records_without_an_account_of_any_run_may_not_be_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a first run that was killed, when its claims have been cleaned."""
    source, target = tiny.write_patients(str(tmp_path / "in"), ["p1", "p2"]), str(tmp_path / "out")
    dskprep.run(source, target)
    shutil.rmtree(tmp_path / "out/runs")
    found = dskprep.status(target)
    assert (found.counts, found.last_run, found.runs, found.is_clean) == ({"written": 2}, None, [], False)
    assert commands.run_command(["status", target]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "no run has left an account here, so it is not known whether these are all patients; run again" in told
    dskprep.run(source, target)
    assert dskprep.status(target).is_clean


@pytest.mark.slow
@pytest.mark.parametrize("is_interrupted", [True, False])
@pytest.mark.parametrize("has_run_before", [True, False])
def test_a_run_that_could_not_write_its_account_is_told_until_another_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_interrupted: bool, has_run_before: bool
) -> None:
    source, target, runs = str(tmp_path / "in"), str(tmp_path / "out"), tmp_path / "out/runs"
    if has_run_before:
        dskprep.run(tiny.write_patients(source, ["p1"]), target)
    tiny.write_patients(source, ["p1", "p2", "p3"])

    class Breaks(Observer):
        def on_patient(self, *_: object) -> None:
            if not runs.is_symlink():
                runs.rename(tmp_path / "kept") if has_run_before else (tmp_path / "kept").mkdir()
                runs.symlink_to(tmp_path / "kept")  # through which nothing is written
            if is_interrupted:
                raise KeyboardInterrupt

    with pytest.raises(RunStopped):
        dskprep.run(source, target, observers=[Breaks()])
    runs.unlink()
    (tmp_path / "kept").rename(runs)
    assert len(list(runs.iterdir())) == has_run_before
    assert not dskprep.status(target).is_clean
    assert commands.run_command(["status", target]) == 1
    assert "was killed, or could not write its account" in capsys.readouterr().out
    dskprep.run(source, target)  # does not wait for what that one had under way, though its process still runs
    found = dskprep.status(target)
    assert (found.counts, found.runs, found.is_clean) == ({"written": 3}, [], True)


@pytest.mark.parametrize("command", ["run SOURCE NEW", "plan SOURCE"])
def test_a_dataset_is_no_source(place: str, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = f"{place}/out"
    store.create(target, PrepConfig())
    words = command.replace("SOURCE", target).replace("NEW", str(tmp_path / "new")).split()
    assert commands.run_command(words) == 2
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert f"{target}: is a dataset of dskprep; SOURCE is the place of the scans" in said.err
    assert not (tmp_path / "new").exists()


def test_a_dataset_somewhere_in_the_source_is_left_to_the_run(tmp_path: Path) -> None:
    source = tiny.write_patients(str(tmp_path / "in"), ["p1"])
    store.create(f"{source}/older", PrepConfig())
    assert dskprep.run(source, str(tmp_path / "out")).account.counts["written"] == 1

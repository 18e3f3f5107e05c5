"""Two runs on one target: each patient is done once, whoever stops, dies, sleeps or lies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.cli.words import describe_summary
from dskprep.dataset import claims, index, leftovers, store
from dskprep.dataset.claims import Claim, Lease
from dskprep.dataset.record import Record, RecordName
from dskprep.errors import InfrastructureError, UsageError
from dskprep.pipeline import others, run, sharing, under_way
from dskprep.pipeline.account import RunStopped, Summary
from dskprep.pipeline.checked import check
from dskprep.source.cases import choose
from dskprep.storage import bucket

KEYS = [f"p{i:02}" for i in range(8)]
OTHER = "20200101T000000Z-abcd"
"""The id of a run that a test plays."""


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another run no patient is claimed ahead, though these take no time."""
    monkeypatch.setattr(sharing, "BESIDE_S", 0.0)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Eight patients; the last two are refused."""
    source = tiny.write_patients(tmp_path / "in", KEYS[:-2])
    return tiny.write(source, {f"{key}/notes.txt": b"" for key in KEYS[-2:]})


@pytest.fixture
def target(any_place: str) -> str:
    return f"{any_place}/out"


class Heard(dskprep.Observer):
    """Keeps what a run does and what it is told."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.notes: list[str] = []

    def on_note(self, message: str) -> None:
        self.notes.append(message)

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
        self.keys.append(records[-1].key)


class InStep(Heard):
    """Lets no run be ahead of another by more than a patient, unless the other has come to its end."""

    def __init__(self, others: list[InStep], turn: threading.Condition) -> None:
        super().__init__()
        self.others, self.turn = others, turn
        self.n_done = 0.0

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:
        super().on_patient(summary, records)
        with self.turn:
            self.n_done += 1
            self.turn.notify_all()
            self.turn.wait_for(lambda: min(other.n_done for other in self.others) >= self.n_done, timeout=tiny.LIMIT_S)

    def on_note(self, message: str) -> None:
        super().on_note(message)
        self._pass()  # it waits for another run

    def on_end(self, summary: Summary) -> None:  # noqa: ARG002
        self._pass()

    def _pass(self) -> None:
        with self.turn:
            self.n_done = float("inf")
            self.turn.notify_all()


def run_in_step(source: str, target: str, n: int = 2, **options: Any) -> tuple[list[Summary], list[InStep]]:
    """Several runs at once, each in a thread of its own."""
    heard: list[InStep] = []
    turn = threading.Condition()
    heard += [InStep(heard, turn) for _ in range(n)]
    summaries: list[Summary] = []
    threads = [
        threading.Thread(target=lambda h=each: summaries.append(dskprep.run(source, target, observers=[h], **options)))
        for each in heard
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return summaries, heard


def others_of(target: str) -> list[str]:
    """The runs under way that are not of this process."""
    return [run.run_id for run in dskprep.status(target).runs if run.pid != os.getpid()]


def play_other(target: str, takes: Sequence[str], *, number: int = 0, **lease: Any) -> Lease:
    """Another run on another machine, which has claimed these patients."""
    other = Lease(OTHER, host="elsewhere", pid=4711, machine="another", since="2020-01-01T00:00:00Z")
    other = msgspec.structs.replace(other, **lease)
    claims.renew(target, other)
    claims.add(target, number, Claim(other.run_id, tuple(takes)))
    return other


def what_is_left(target: str) -> list[str]:
    return sorted(entry.name for entry in storage.listing_below(f"{target}/claims"))


def statuses(target: str) -> dict[str, str]:
    return {name.key: name.status for name in store.record_names(target)}


ALL = dict.fromkeys(KEYS[:-2], "written") | dict.fromkeys(KEYS[-2:], "refused")

# shared


def test_two_runs_do_half_each_and_nothing_twice(source: str, target: str) -> None:
    summaries, heard = run_in_step(source, target)
    assert sorted(heard[0].keys + heard[1].keys) == KEYS
    assert {len(each.keys) for each in heard} <= {3, 4, 5}
    for summary in summaries:
        account = summary.account
        assert account.counts == {"written": 6, "refused": 2}
        assert summary.n_new + account.elsewhere.total() + account.already.total() == account.inputs == 8
        assert (account.is_complete, account.left, summary.exit_code) == (True, 0, 1)
        words = list(describe_summary(summary))
        there = ", ".join(f"{account.elsewhere[s]} {s}" for s in ("written", "refused") if account.elsewhere[s])
        assert f"by another run: {there}" in words
        kept = json.loads(storage.read(f"{target}/runs/{summary.run_id}/summary.json"))
        assert kept == summary.as_dict()
        assert storage.exists(f"{target}/runs/{summary.run_id}/qc.html")
    assert statuses(target) == ALL
    assert sorted(index.read(target)["key"]) == KEYS
    assert [finding for finding in dskprep.verify(target) if finding.faults] == []
    assert what_is_left(target) == []


@pytest.mark.slow
def test_what_is_done_again_is_done_again_once(source: str, target: str) -> None:
    dskprep.run(source, target)
    summaries, heard = run_in_step(source, target, retry="refused")
    assert sorted(heard[0].keys + heard[1].keys) == KEYS[-2:]
    assert all(summary.account.counts == {"written": 6, "refused": 2} for summary in summaries)
    assert what_is_left(target) == []


def test_three_runs_of_different_choice_make_one_dataset(source: str, target: str) -> None:
    first, _ = run_in_step(source, target, only="p0[0-3]")
    summaries, heard = run_in_step(source, target, n=3)
    assert {summary.account.already.total() for summary in summaries} == {4}
    assert sorted(key for each in heard for key in each.keys) == KEYS[4:]
    assert sorted(index.read(target)["key"]) == KEYS
    assert first[0].account.counts == {"written": 4}


def test_status_shows_a_run_under_way_until_it_ends(source: str, target: str, capsys: Any) -> None:
    seen: list[Any] = []

    class Looker(dskprep.Observer):
        def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
            (run,) = dskprep.status(target).runs
            seen.append((run.run_id == summary.run_id, run.pid, run.is_dead))
            commands.run_command(["status", target])

    dskprep.run(source, target, observers=[Looker()], limit=1)
    assert seen == [(True, os.getpid(), False)]
    assert f"process {os.getpid()}" in capsys.readouterr().out
    commands.run_command(["status", target])
    assert "process" not in capsys.readouterr().out
    play_other(target, [])
    assert [(run.run_id, run.host, run.since) for run in dskprep.status(target).runs] == [
        (OTHER, "elsewhere", "2020-01-01T00:00:00Z")
    ]


@pytest.mark.parametrize("select", [None, {"prefer": ["thinnest"]}])
def test_status_shows_a_run_whose_workers_still_start(
    source: str, target: str, select: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(*_: object, **__: object) -> Any:
        seen.append([run.pid for run in dskprep.status(target).runs])
        raise InfrastructureError("not today")

    if select:  # then headers are read before there are workers
        monkeypatch.setattr(under_way, "choose", look)
    with pytest.raises(RunStopped, match="not today"):
        run.execute(check(source, target, settings=dskprep.PrepConfig(select=select)), starts=look)
    assert seen == [[os.getpid()]]
    assert what_is_left(target) == []


def test_others_know_of_a_run_until_all_that_it_writes_is_there(source: str, target: str) -> None:
    seen = []

    def look(target: str, run_id: str) -> None:  # as the report is written, after labels and account
        seen.append([run.run_id == run_id for run in dskprep.status(target).runs])

    dskprep.run(source, target, at_end=[look])
    assert seen == [[True]]
    assert what_is_left(target) == []


# waited for, given up, taken over


class Played(Heard):
    """Calls `then` when the run waits for the other one."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        self.then = then

    def on_note(self, message: str) -> None:
        super().on_note(message)
        if "waiting for it" in message:
            self.then()


def test_a_run_waits_for_the_patients_of_another_and_counts_them(source: str, target: str) -> None:
    made = dskprep.run(source, f"{target}-made")
    tiny.write(target, {n: c for n, c in tiny.everything_below(f"{target}-made").items() if n == "dataset.json"})
    other = play_other(target, ["p01", "p07"])
    files = tiny.everything_below(f"{target}-made")

    def finish() -> None:
        done = {
            n: c for n, c in files.items() if n.startswith(("volumes/p01", "records/written/p01", "thumbnails/p01"))
        }
        done |= {n: c for n, c in files.items() if n.startswith("records/refused/p07")}
        tiny.write(target, done)
        names = [name for name in store.record_names(target) if name.key in ("p01", "p07")]
        claims.add(target, 50, Claim.of(OTHER, [], names))

    played = Played(finish)
    summary = dskprep.run(source, target, observers=[played])
    assert sorted(played.keys) == [key for key in KEYS if key not in ("p01", "p07")]
    assert summary.account.elsewhere == {"written": 1, "refused": 1}
    assert summary.account.counts == made.account.counts
    (note,) = played.notes
    assert f"{OTHER} (elsewhere, process 4711) has 2 patients under way" in note
    left = what_is_left(target)  # the other run may still need to know
    assert (left[0], left[-1]) == ("00000000.json", f"{other.run_id}.json")


def test_what_a_run_gave_back_when_it_ended_is_done(source: str, target: str) -> None:
    store.create(target, dskprep.PrepConfig())
    other = play_other(target, ["p01", "p02"])
    played = Played(lambda: claims.end(target, other))
    summary = dskprep.run(source, target, observers=[played])
    assert sorted(played.keys) == KEYS
    assert played.keys[-2:] == ["p01", "p02"]
    assert len(played.notes) == 1
    assert summary.account.elsewhere == {}
    assert what_is_left(target) == []


def test_a_run_that_is_not_heard_of_any_more_loses_its_patients(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create(target, dskprep.PrepConfig())
    play_other(target, ["p01", "p02"])
    played = Played(lambda: monkeypatch.setattr(others, "STALE_S", 0.0))
    summary = dskprep.run(source, target, observers=[played])
    assert played.keys[-2:] == ["p01", "p02"]
    assert ["waiting" in note for note in played.notes] == [True, False]
    assert "was killed, or has not been heard of" in played.notes[1]
    assert summary.account.counts == {"written": 6, "refused": 2}
    assert what_is_left(target) == []


def test_a_run_whose_process_is_gone_is_not_waited_for(source: str, target: str) -> None:
    store.create(target, dskprep.PrepConfig())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    play_other(target, ["p01", "p02"], pid=gone.pid, machine=claims.this_machine())
    assert [run.is_dead for run in dskprep.status(target).runs] == [True]
    heard = Heard()
    dskprep.run(source, target, observers=[heard])
    assert heard.keys == KEYS
    assert ["was killed" in note for note in heard.notes] == [True]
    assert what_is_left(target) == []


@pytest.mark.slow
def test_a_run_that_was_taken_for_dead_does_no_harm_when_it_wakes_up(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = f"{target}-undisturbed"
    dskprep.run(source, undisturbed)
    second = Heard()

    class Sleeper(Heard):
        def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:
            super().on_patient(summary, records)
            if len(self.keys) == 2:
                with monkeypatch.context() as patched:
                    patched.setattr(others, "STALE_S", 0.0)
                    self.second = dskprep.run(source, target, observers=[second])

    sleeper = Sleeper()
    summary = dskprep.run(source, target, observers=[sleeper])
    assert second.keys == KEYS[2:]
    assert sleeper.keys == KEYS[:2]
    for each in (summary, sleeper.second):
        assert each.account.counts == {"written": 6, "refused": 2}
    assert (summary.n_new, sleeper.second.n_new) == (2, 6)  # none is counted by both
    assert summary.account.elsewhere == {"written": 4, "refused": 2}
    alone = dskprep.run(source, f"{target}-alone").account
    both = (summary.account, sleeper.second.account)
    assert sum(account.bytes_read for account in both) == alone.bytes_read
    assert sum(account.bytes_written for account in both) == alone.bytes_written
    assert ["was killed, or has not been heard of" in note for note in second.notes] == [True]
    assert ["took this one for dead" in note for note in sleeper.notes] == [True]
    assert statuses(target) == ALL
    assert tiny.everything_below(f"{target}/volumes") == tiny.everything_below(f"{undisturbed}/volumes")
    assert [finding for finding in dskprep.verify(target) if finding.faults] == []
    assert what_is_left(target) == []


def test_a_run_that_wakes_up_leaves_what_it_has_not_begun_to_the_other(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Robbed(Played):
        def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:
            super().on_patient(summary, records)
            if len(self.keys) == 2:  # by now, this run alone has claimed all that it has to do
                assert not others_of(target)
                self.other = play_other(target, [KEYS[3], KEYS[5]], number=50)
                monkeypatch.setattr(others, "RENEW_S", 0.0)

    store.create(target, dskprep.PrepConfig())
    robbed = Robbed(lambda: claims.end(target, robbed.other))
    summary = dskprep.run(source, target, observers=[robbed])
    assert robbed.keys == [*KEYS[:3], KEYS[4], *KEYS[6:], KEYS[3], KEYS[5]]
    assert ["took this one for dead" in note for note in robbed.notes] == [True, False]
    assert summary.account.counts == {"written": 6, "refused": 2}
    assert what_is_left(target) == []


def test_an_interrupted_run_gives_back_what_it_has_claimed(source: str, target: str) -> None:
    class Interrupter(dskprep.Observer):
        def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
            assert len(what_is_left(target)) >= 2
            raise KeyboardInterrupt

    assert dskprep.run(source, target, observers=[Interrupter()]).is_interrupted
    assert what_is_left(target) == []
    heard = Heard()
    dskprep.run(source, target, observers=[heard])
    assert heard.keys == KEYS[1:]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT is as Python has it; dask_jobqueue, once imported, has it end the process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_run_that_waits_can_be_interrupted_and_says_what_is_left(
    source: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.create(target, dskprep.PrepConfig())
    play_other(target, ["p01", "p02"])
    played = Played(lambda: signal.raise_signal(signal.SIGINT))
    summary = dskprep.run(source, target, observers=[played])
    assert (summary.is_interrupted, summary.exit_code) == (True, 1)
    assert (summary.account.counts.total(), summary.account.left, summary.account.inputs) == (6, 2, 8)
    assert "by another run: 2 claimed there and not counted" in list(describe_summary(summary))
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.s3
def test_two_commands_share_the_work_and_one_outlives_the_other(source: str, target: str) -> None:
    keys = [f"q{i:02}" for i in range(30)]
    tiny.write_patients(source, keys)
    command = [sys.executable, "-m", "dskprep", "run", source, target, "--scheduler", "sync", "--log-json"]
    command += ["--only", "q*"]
    first, second = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2))
    assert first.stdout is not None
    n_first = 0
    for line in first.stdout:
        n_first += json.loads(line)["event"] == "patient"
        if n_first == 3:
            first.kill()
            break
    first.communicate()
    said, _ = second.communicate(timeout=tiny.LIMIT_S)
    assert second.returncode == 0
    summary = json.loads(said.splitlines()[-1])
    assert summary["counts"] == {"written": 30}
    assert sum(summary["elsewhere"].values()) + sum(summary["already"].values()) <= 30
    assert statuses(target) == dict.fromkeys(keys, "written")
    assert sorted(index.read(target)["key"]) == keys
    assert [finding for finding in dskprep.verify(target) if finding.faults] == []
    assert claims.listing(target) == ({}, {})
    list(dskprep.clean(target, older_than_s=0))  # the file that the first was writing, if it was killed there
    assert what_is_left(target) == []


# damaged, made up, without conditions

HOSTILE: dict[str, bytes] = {
    "00000003.json": b"no JSON",
    "00000004.json": b"[" * 100_000,
    "00000005.json": json.dumps({"run_id": OTHER, "takes": 7}).encode(),
    "00000006.json": json.dumps({"run_id": "../../x", "takes": [*KEYS, "../x", "\x1b[31m"]}).encode(),
    "00000007.json": json.dumps({"run_id": OTHER, "done": ["written/../x.1", "", "written/p01", 3]}).encode(),
    "00000008.json": b"",
    "20200101T000000Z-0001.json": b"\xff",
    "20200101T000000Z-0002.json": json.dumps({"run_id": OTHER, "pid": -1}).encode(),
    "20200101T000000Z-0003.json": json.dumps({"run_id": "20200101T000000Z-0003", "pid": 2**40}).encode(),
}


def test_damaged_and_made_up_claims_cost_nothing(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create(target, dskprep.PrepConfig())
    tiny.write(f"{target}/claims", HOSTILE | {"notes.txt": b"mine", "1.json": b"mine"})
    heard = Heard()
    summary = dskprep.run(source, target, observers=[heard])
    assert heard.keys == KEYS
    assert heard.notes == []
    assert summary.account.counts == {"written": 6, "refused": 2}
    assert [run.host for run in dskprep.status(target).runs] == ["", "", ""]
    monkeypatch.setattr(others, "STALE_S", 0.0)
    assert dskprep.run(source, target).exit_code == 1
    assert what_is_left(target) == ["1.json", "notes.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[99999999], [99999998], [99999997, 99999999], [3, 99999998, 99999999]])
def test_a_made_up_claim_with_the_last_number_does_not_end_the_sharing(
    source: str, target: str, numbers: list[int]
) -> None:
    store.create(target, dskprep.PrepConfig())
    made_up = json.dumps({"run_id": OTHER, "takes": [], "done": []}).encode()
    tiny.write(f"{target}/claims", {f"{number:08}.json": made_up for number in numbers})
    summaries, heard = run_in_step(source, target)
    assert sorted(heard[0].keys + heard[1].keys) == KEYS
    assert sum(summary.account.elsewhere.total() for summary in summaries) == len(KEYS)
    assert statuses(target) == ALL
    assert what_is_left(target) == []


def test_a_claim_that_goes_while_it_is_read_hides_no_other(target: str) -> None:
    for number in range(5):
        claims.add(target, number, Claim(OTHER, (f"p{number}",)))
    listed = claims.listing(target).claims
    claims.delete(target, [0, 2, 4])
    assert claims.read_claims(target, listed.values()) == {n: Claim(OTHER, (f"p{n}",)) for n in (1, 3)}


def test_a_patient_counts_as_done_by_another_run_only_if_it_has_a_record(source: str, target: str) -> None:
    store.create(target, dskprep.PrepConfig())
    other = play_other(target, ["p01"])
    digest = next(case.digest for case in choose(source) if case.key == "p01")

    def lie() -> None:
        claims.add(target, 50, Claim.of(OTHER, [], [RecordName("written", "p01", digest)]))
        claims.end(target, other)

    played = Played(lie)
    summary = dskprep.run(source, target, observers=[played])
    assert played.keys[-1] == "p01"
    assert (summary.account.counts, summary.account.elsewhere) == ({"written": 6, "refused": 2}, {})
    assert statuses(target) == ALL


@pytest.mark.s3
def test_a_store_that_ignores_conditions_lets_each_run_do_all(
    source: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(s3: Any, path: str, content: bytes) -> bool:
        bucket.write_many(s3, {path: content})
        return True

    store.create(f"{s3}/out", dskprep.PrepConfig())
    monkeypatch.setattr(bucket, "create", create)
    heard = Heard()
    summary = dskprep.run(source, f"{s3}/out", observers=[heard])
    assert (heard.keys, summary.account.elsewhere) == (KEYS, {})
    assert ["ignores If-None-Match" in note for note in heard.notes] == [True]
    assert what_is_left(f"{s3}/out") == []


@pytest.mark.s3
def test_a_store_that_ignores_conditions_loses_nothing_that_is_written_once(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(s3: Any, path: str, content: bytes) -> bool:
        bucket.write_many(s3, {path: content})
        return True

    monkeypatch.setattr(bucket, "create", create)
    target, scans = f"{s3}/out", tmp_path / "MUSTERMANN"
    for n in range(4):
        tiny.write(scans / f"p{n}", tiny.series(n, PatientID=f"P{n}", StudyInstanceUID=f"1.2.90.{n}"))
    settings = dskprep.PrepConfig(lungs=False, check_hu=False)
    dskprep.run(scans, target, settings=settings, keys="hashed")
    keys = sorted(dskprep.open_dataset(target))
    dskprep.run(scans, target, settings=settings)
    dataset = dskprep.open_dataset(target)
    assert sorted(dataset) == keys
    first = dataset.split(folds=2, seed=0, stratify=())
    first.save("v1")
    with pytest.raises(UsageError, match="there is another split of this name"):
        dataset.split(folds=2, seed=7, stratify=()).save("v1")
    assert dataset.read_split("v1").sides == first.sides
    theirs = f"volumes/{keys[0]}.zarr/labels/mine/zarr.json"
    storage.write_many(target, {theirs: b"{}"})
    (tmp_path / "labels" / keys[0]).mkdir(parents=True)
    volume = dataset[keys[0]]
    mask = dskprep.to_nifti(dskprep.Volume(np.ones(volume.shape, np.uint8), volume.affine))
    mask.to_filename(tmp_path / "labels" / keys[0] / "mine.nii.gz")
    assert dskprep.annotate(target, tmp_path / "labels").reasons == {"refused: label-exists": 1}
    assert storage.read(storage.join(target, theirs)) == b"{}"
    dskprep.export("monai", target, f"{s3}/export", labels=(), split="v1")
    dataset.split(folds=2, seed=7, stratify=()).save("v2")
    with pytest.raises(UsageError, match="holds another export"):
        dskprep.export("monai", target, f"{s3}/export", labels=(), split="v2")


def test_an_outage_while_claims_are_written_does_not_cost_the_run(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise InfrastructureError("no answer")

    class Breaker(Heard):
        def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:
            super().on_patient(summary, records)
            monkeypatch.setattr(others, "RENEW_S", 0.0)
            monkeypatch.setattr(claims, "add", fail)
            monkeypatch.setattr(claims, "listing", fail)

    store.create(target, dskprep.PrepConfig())
    play_other(target, [])
    heard = Breaker()
    assert dskprep.run(source, target, observers=[heard]).account.counts == {"written": 6, "refused": 2}
    assert heard.keys == KEYS
    assert ["no answer" in note for note in heard.notes] == [True]


# other commands


def test_clean_leaves_the_claims_of_runs_and_deletes_those_of_dead_ones(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "out")
    dskprep.run(source, target, limit=1)
    play_other(target, ["p01"])
    tiny.write(target, {"claims/notes.txt": b"mine"})
    assert list(dskprep.clean(target, older_than_s=0)) == []
    for name in what_is_left(target):
        os.utime(f"{target}/claims/{name}", (1, 1))
    claims.renew(target, Lease(OTHER))  # one that is young is enough
    assert list(dskprep.clean(target)) == []
    monkeypatch.setattr(leftovers, "LEASE_S", 0.0)
    deleted = list(dskprep.clean(target, older_than_s=0))
    assert sorted(deleted) == ["claims/00000000.json", f"claims/{OTHER}.json"]
    assert what_is_left(target) == ["notes.txt"]


def test_a_link_in_place_of_claims_is_not_followed(source: str, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    dskprep.run(source, target, limit=1)
    tiny.write(elsewhere, {"00000000.json": b"mine", f"{OTHER}.json": b"mine"})
    if (target / "claims").exists():
        (target / "claims").rmdir()
    (target / "claims").symlink_to(elsewhere)
    with pytest.raises(InfrastructureError, match="found a link"):
        dskprep.run(source, target)
    assert tiny.everything_below(elsewhere) == {"00000000.json": b"mine", f"{OTHER}.json": b"mine"}


def test_the_index_holds_what_another_run_records_while_it_is_written(source: str, target: str) -> None:
    dskprep.run(source, target, limit=2)
    written = storage.read(f"{target}/index.parquet")
    dskprep.run(source, target)
    tiny.write(target, {"index.parquet": written})
    index.settle(target)
    assert sorted(index.read(target)["key"]) == KEYS


def test_old_claims_of_a_long_run_are_deleted(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "RENEW_S", 0.0)
    monkeypatch.setattr(others, "KEEP_S", 0.0)
    store.create(target, dskprep.PrepConfig())
    play_other(target, [])
    most: list[int] = []

    class Counter(dskprep.Observer):
        def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
            most.append(len(claims.listing(target).claims))

    assert dskprep.run(source, target, observers=[Counter()]).account.counts == {"written": 6, "refused": 2}
    assert len(most) == 8
    assert max(most) <= 4

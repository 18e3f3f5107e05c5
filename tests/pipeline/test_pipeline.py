"""A run: every input accounted for, stopped anywhere and resumed, on one process or on workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tiny
from builders import ct_file, distinct
from distributed import Client, WorkerPlugin, as_completed, wait
from pydicom.uid import SegmentationStorage

import dskprep
from dskprep import storage
from dskprep.dataset import index, store
from dskprep.dataset.record import Record
from dskprep.dataset.verification import Finding
from dskprep.errors import InfrastructureError, UsageError
from dskprep.pipeline import annotate, executor
from dskprep.pipeline.account import RunStopped, Summary
from dskprep.series import assembly
from dskprep.source import cases
from dskprep.worker import patient, process

PATIENTS = ("p1", "p2", "p3", "p4")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WAIT_S", 0.0)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return tiny.write_patients(tmp_path / "in", PATIENTS)


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two worker processes on this machine."""
    with dskprep.local_client(workers=2, memory_limit="1GiB") as client:
        yield client


class Heard(dskprep.Observer):
    """Keeps each event with the inputs and the cases done at that time."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []

    def on_start(self, summary: Summary) -> None:
        self._keep("start", summary)

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:
        self._keep(f"patient {records[-1].key}", summary)

    def on_end(self, summary: Summary) -> None:
        self._keep("end", summary)

    def _keep(self, event: str, summary: Summary) -> None:
        self.summary = summary
        self.events.append((event, summary.account.inputs, summary.account.counts.total()))


class Interrupter(dskprep.Observer):
    """Presses Ctrl-C when so many cases are done."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
        if summary.account.counts.total() == self.after:
            raise KeyboardInterrupt


def statuses(target: str) -> dict[str, str]:
    return {name.key: name.status for name in store.record_names(target)}


def volumes(target: str) -> dict[str, bytes]:
    return tiny.everything_below(f"{target}/volumes")


def changed(source: str, key: str) -> None:
    """Replace a patient by another one."""
    tiny.write(f"{source}/{key}", {f"new-{name}": content for name, content in tiny.series(99).items()})
    storage.delete(f"{source}/{key}", list(tiny.series(0)))


# the account


def test_every_input_is_accounted_for(source: str, target: str) -> None:
    tiny.write(source, {"p5/report.txt": b"", "p6/1.dcm": b"", "p7.zip": b"PK\3\4 damaged", "labels.csv": b"id\n"})
    Path(source, "p8").mkdir()
    summary = dskprep.run(source, target)
    account = summary.account
    assert account.inputs == 8
    assert account.counts == {"written": 4, "refused": 4}
    assert account.reasons == {"refused: no-dicom": 2, "refused: truncated": 1, "refused: bad-archive": 1}
    assert account.is_complete
    assert not account.is_clean
    assert summary.exit_code == 1
    assert statuses(target) == dict.fromkeys(PATIENTS, "written") | dict.fromkeys(["p5", "p6", "p7", "p8"], "refused")
    assert Counter(index.read(target)["status"]) == account.counts


def test_the_account_is_kept_with_the_dataset(source: str, target: str) -> None:
    summary = dskprep.run(source, target)
    kept = json.loads(storage.read(f"{target}/runs/{summary.run_id}/summary.json"))
    assert kept == summary.as_dict()
    assert (kept["inputs"], kept["counts"], kept["is_interrupted"]) == (4, {"written": 4}, False)
    assert kept["bytes_written"] == sum(map(len, volumes(target).values()))
    assert summary.exit_code == 0


def test_an_observer_hears_of_every_patient(source: str, target: str) -> None:
    heard = Heard()
    summary = dskprep.run(source, target, observers=[heard])
    patients = [(f"patient {key}", n) for n, key in enumerate(PATIENTS, start=1)]
    assert [(event, n_done) for event, _, n_done in heard.events] == [("start", 0), *patients, ("end", 4)]
    assert [n_listed >= n_done for _, n_listed, n_done in heard.events] == [True] * 6
    assert heard.summary is summary


def test_the_end_is_heard_when_everything_is_written(source: str, target: str) -> None:
    class Reader(dskprep.Observer):
        def on_end(self, summary: Summary) -> None:  # noqa: ARG002
            (folder,) = Path(target, "runs").iterdir()
            self.files = {path.name for path in folder.iterdir()}
            self.keys = list(index.read(target)["key"])

    reader = Reader()
    dskprep.run(source, target, observers=[reader])
    assert reader.files == {"summary.json", "qc.html"}
    assert reader.keys == list(PATIENTS)


def test_what_follows_a_run_can_be_chosen(source: str, target: str) -> None:
    called: list[tuple[str, str]] = []
    summary = dskprep.run(source, target, at_end=[lambda where, run_id: called.append((where, run_id))])
    assert called == [(target, summary.run_id)]
    assert not list(Path(target).rglob("qc.html"))
    dskprep.run(source, target, at_end=[lambda where, run_id: called.append((where, run_id))])
    assert len(called) == 1  # nothing was new


@pytest.mark.parametrize("event", ["on_start", "on_patient", "on_end"])
@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_an_observer_that_fails_is_logged_and_hears_no_more(
    source: str, target: str, event: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def fail(*_: Any) -> None:
        calls.append(event)
        raise error("a bug of the observer's")

    broken, heard = Heard(), Heard()
    setattr(broken, event, fail)
    summary = dskprep.run(source, target, observers=[broken, heard])
    assert (summary.exit_code, summary.account.counts) == (0, {"written": 4})
    assert json.loads(storage.read(f"{target}/runs/{summary.run_id}/summary.json")) == summary.as_dict()
    assert calls == [event]
    assert [name for name, *_ in heard.events] == ["start", *(f"patient {key}" for key in PATIENTS), "end"]
    (line,) = caplog.records
    assert (line.name, line.levelname) == ("dskprep", "ERROR")
    assert "the observer Heard failed and hears no more" in line.getMessage()
    assert line.exc_info is not None
    assert line.exc_info[0] is error


def test_one_observer_alone_is_wrong_use_and_begins_nothing(source: str, target: str) -> None:
    with pytest.raises(UsageError, match="observers must be a list"):
        dskprep.run(source, target, observers=dskprep.Observer())  # type: ignore[arg-type]
    assert not storage.exists(target)


def test_a_bug_costs_one_patient(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assemble = assembly.assemble

    def fail_for_p2(slices: list[Any], **options: Any) -> Any:
        if any(s.name == "poison.dcm" for s in slices):
            raise ZeroDivisionError("a bug")
        return assemble(slices, **options)

    storage.delete(source, [f"p2/{name}" for name in tiny.series()])
    tiny.write(f"{source}/p2", {name.replace("IM000", "poison"): c for name, c in tiny.series(1).items()})
    monkeypatch.setattr(assembly, "assemble", fail_for_p2)
    summary = dskprep.run(source, target)
    assert summary.account.counts == {"written": 3, "failed": 1}
    assert summary.account.reasons == {"failed: ZeroDivisionError": 1}
    (name,) = [n for n in store.record_names(target) if n.status == "failed"]
    assert "a bug" in str(store.read_record(target, name).traceback)


# resuming


def test_a_second_run_only_lists(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dskprep.run(source, target)
    before = volumes(target)
    touched: list[str] = []

    def spy(name: str, what: Any) -> None:
        real = getattr(storage, name)

        def spying(url: str, *rest: Any) -> Any:
            touched.extend(what(url, *rest))
            return real(url, *rest)

        monkeypatch.setattr(storage, name, spying)

    spy("read", lambda url: [f"read {url}"])
    spy("read_many", lambda url, entries: [f"read {url}/{e.name}" for e in entries])
    spy("write_many", lambda url, objects: [f"write {url}/{name}" for name in objects])
    spy("delete", lambda url, names: [f"delete {url}/{name}" for name in names])
    spy("listing", lambda url: [f"list {url}"])
    summary = dskprep.run(source, target)
    assert summary.account.already == summary.account.counts == {"written": 4}
    assert summary.exit_code == 0
    shown = [line.replace(target, "").replace(source, "SOURCE") for line in touched if "summary.json" not in line]
    assert sorted(shown) == [
        "read /dataset.json",  # before workers are asked for anything
        "read /dataset.json",  # and with them
        "read /identity.json",  # whose key the digests are made with
        "read /index.parquet",  # at the start, to know of damaged records
        "read /index.parquet",  # at the end, to see that it is as the records are, and is left as it is
        "read /index.parquet",  # for the account
        "read SOURCE/dataset.json",  # which a folder of scans does not have
    ]
    assert volumes(target) == before


def test_a_patient_without_a_record_is_done_again_and_leaves_nothing_stray(source: str, target: str) -> None:
    dskprep.run(source, target)
    before = volumes(target)
    (name,) = [n for n in store.record_names(target) if n.key == "p2"]
    storage.delete(target, [name.path])
    tiny.write(store.volume_url(target, "p2"), {"0/c/5/5/5": b"stray", "0/c/0/0/0": b"half"})
    summary = dskprep.run(source, target)
    assert summary.account.already == {"written": 3}
    assert summary.account.counts == {"written": 4}
    assert volumes(target) == before
    assert list(dskprep.verify(target)) == [Finding(key, ()) for key in PATIENTS]


def test_a_changed_source_is_done_again_and_the_old_record_goes(source: str, target: str) -> None:
    dskprep.run(source, target)
    before = {n.key: n.digest for n in store.record_names(target)}
    changed(source, "p3")
    summary = dskprep.run(source, target)
    assert summary.account.already == {"written": 3}
    after = {n.key: n.digest for n in store.record_names(target)}
    assert len(list(store.record_names(target))) == 4
    assert {key for key in PATIENTS if after[key] != before[key]} == {"p3"}
    index = dskprep.open_dataset(target).index
    assert list(index["key"]) == list(PATIENTS)
    assert (dskprep.open_dataset(target)["p3"].image[...] == tiny.hu(99)).all()


def test_an_interrupted_run_gives_its_account_and_goes_on(source: str, target: str) -> None:
    heard = Heard()
    summary = dskprep.run(source, target, observers=[Interrupter(after=2), heard])
    assert summary.is_interrupted
    assert heard.events[-1][::2] == ("end", 2)
    assert summary.exit_code == 1
    assert summary.account.counts == {"written": 2}
    assert len(index.read(target)) == 2
    summary = dskprep.run(source, target)
    assert (summary.account.already, summary.account.counts) == ({"written": 2}, {"written": 4})
    assert summary.exit_code == 0


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT is as Python has it; dask_jobqueue, once imported, has it end the process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_takes_effect_when_all_have_heard_of_a_patient(source: str, target: str) -> None:
    class Presser(dskprep.Observer):
        def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
            signal.raise_signal(signal.SIGINT)

    heard = Heard()
    summary = dskprep.run(source, target, observers=[Presser(), heard])
    assert summary.is_interrupted
    assert [event for event, _, _ in heard.events] == ["start", "patient p1", "end"]
    assert summary.account.counts == {"written": 1}


@pytest.mark.cluster
def test_what_has_ended_when_ctrl_c_comes_is_counted(
    source: str, target: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(as_completed):  # type: ignore[misc]
        def next_batch(self, block: bool = True) -> NoReturn:  # noqa: ARG002
            wait(list(self.futures))
            raise KeyboardInterrupt

    monkeypatch.setattr(executor, "as_completed", Interrupted)
    summary = dskprep.run(source, target, client=client)
    assert summary.is_interrupted
    assert summary.account.counts == {"written": 4}
    assert sorted(index.read(target)["key"]) == list(PATIENTS)


def test_a_run_that_is_interrupted_at_its_start_has_an_end_too(source: str, target: str) -> None:
    class Impatient(Heard):
        def on_start(self, summary: Summary) -> None:  # noqa: ARG002
            raise KeyboardInterrupt

    heard = Impatient()
    summary = dskprep.run(source, target, observers=[heard])
    assert summary.is_interrupted
    assert heard.events == [("end", 0, 0)]
    assert json.loads(storage.read(f"{target}/runs/{summary.run_id}/summary.json"))["is_interrupted"] is True


def test_a_run_that_is_interrupted_as_its_labels_begin_has_an_account(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(annotate, "check", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        dskprep.run(source, target, labels=["*"])
    (run_id,) = {name.partition("/")[0] for name in tiny.everything_below(f"{target}/runs")}
    told = json.loads(storage.read(f"{target}/runs/{run_id}/summary.json"))
    assert told["counts"] == {"written": 4}


def test_other_settings_are_refused_before_anything_is_done(source: str, target: str) -> None:
    dskprep.run(source, target, limit=1)
    before = tiny.everything_below(target)
    with pytest.raises(UsageError, match="lungs is true there and false here"):
        dskprep.run(source, target, settings=dskprep.PrepConfig(lungs=False))
    assert tiny.everything_below(target) == before


@pytest.mark.parametrize(("retry", "redone"), [(None, ""), ("refused", "r"), ("failed", "fk"), ("all", "rfk")])
def test_what_is_done_again_is_said_by_retry(tmp_path: Path, target: str, retry: str | None, redone: str) -> None:
    source = tiny.write_patients(tmp_path / "in", ["w", "r", "f", "k"])
    config = dskprep.PrepConfig()
    store.create(target, config)
    ends = {"r": "refused", "f": "failed", "k": "killed"}
    for case in cases.cases(source):
        if case.key in ends:
            store.commit(target, tiny.record(case.key, ends[case.key], case.digest, reason="no-dicom", message=""))
    summary = dskprep.run(source, target, retry=retry)
    written = {key for key, status in statuses(target).items() if status == "written"}
    assert written == {"w", *redone}
    assert summary.account.counts.total() == summary.account.inputs == len(list(store.record_names(target))) == 4


def test_an_unknown_retry_is_wrong_use(source: str, target: str) -> None:
    with pytest.raises(UsageError, match="refused, failed, set-aside or all"):
        dskprep.run(source, target, retry="everything")


def test_paths_and_settings_may_be_objects_but_not_of_any_kind(source: str, target: str) -> None:
    dskprep.run(Path(source), Path(target), settings=dskprep.preset("default"))
    assert len(dskprep.open_dataset(Path(target))) == len(list(dskprep.verify(Path(target)))) == 4
    assert dskprep.read_series(Path(source) / "p1").grid.shape == tiny.hu().shape
    for call in (
        lambda: dskprep.run(source, target, settings={"spacing_mm": 1}),  # type: ignore[arg-type]
        lambda: dskprep.read_series(source, "default"),  # type: ignore[arg-type]
        lambda: dskprep.open_dataset(3),  # type: ignore[arg-type]
        lambda: dskprep.run(source, target, limit=0),
    ):
        with pytest.raises(UsageError, match=r"(must be|expected) .*(not|found) "):
            call()


def test_limit_and_only_choose_the_patients(source: str, target: str) -> None:
    tiny.write_patients(source, ["q1"])
    assert dskprep.run(source, target, limit=1, only="p*").account.inputs == 1
    assert set(statuses(target)) == {"p1"}
    summary = dskprep.run(source, target, only="p[12]")
    assert (summary.account.inputs, summary.account.already) == (2, {"written": 1})
    assert set(statuses(target)) == {"p1", "p2"}
    assert dskprep.run(source, target, only="q*").account.counts == {"written": 1}
    with pytest.raises(UsageError, match=r"none\*"):
        dskprep.run(source, target, only="none*")


def test_a_folder_of_several_series_counts_once_and_tells_of_the_others(tmp_path: Path, target: str) -> None:
    files = {**tiny.series(0), **{f"b{n}": c for n, c in tiny.series(1, n=14).items()}}
    source = tiny.write(tmp_path / "in", {f"p1/{n}": c for n, c in files.items()})
    for _ in range(2):
        summary = dskprep.run(source, target)
        assert summary.account.counts == {"written": 1}
        assert summary.account.further_series == {"written": 1}
        assert summary.exit_code == 0
    assert summary.account.already == {"written": 1}
    assert len(dskprep.open_dataset(target)) == 2


def test_what_is_set_aside_is_accounted_for_and_no_fault(tmp_path: Path, target: str) -> None:
    label = ct_file(distinct(4, 4), SOPClassUID=SegmentationStorage, PixelData=None)
    source = tiny.write(tmp_path / "in", {f"p1/{n}": c for n, c in tiny.series().items()} | {"seg/1.dcm": label})
    for _ in range(2):
        summary = dskprep.run(source, target)
        assert summary.account.counts == {"written": 1, "set-aside": 1}
        assert summary.exit_code == 0
    assert summary.account.already == {"written": 1, "set-aside": 1}
    with pytest.raises(KeyError, match="seg: was set aside, no-image"):
        dskprep.open_dataset(target)["seg"]
    assert dskprep.plan(source).is_clean


def test_a_patient_committed_by_a_worker_that_then_died_is_not_killed(source: str, target: str) -> None:
    dskprep.run(source, target, limit=1)
    (case,) = [case for case in cases.cases(source) if case.key == "p1"]
    patient.record_killed(patient.Job(case), target, dskprep.PrepConfig())
    assert dskprep.run(source, target, limit=1).account.counts == {"written": 1}
    assert len(index.read(target)) == 1


def test_runs_within_a_second_keep_an_account_each(source: str, target: str) -> None:
    ids = {dskprep.run(source, target).run_id for _ in range(5)}
    assert len(ids) == 5


# wrong use, and infrastructure


@pytest.mark.parametrize("below", ["in/out", "in", "."])
def test_source_and_target_lie_apart(tmp_path: Path, source: str, below: str) -> None:
    with pytest.raises(UsageError, match="lies inside"):
        dskprep.run(source, str(tmp_path / below))
    assert not (tmp_path / below / "dataset.json").exists()


def test_a_source_without_patients_is_wrong_use(tmp_path: Path, target: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match="holds no patients"):
        dskprep.run(f"{tmp_path}/in", target)
    with pytest.raises(UsageError, match="no such folder"):
        dskprep.run(f"{tmp_path}/absent", target)
    assert not Path(target).exists()


@pytest.mark.parametrize("bad", ["source", "target"])
def test_credentials_in_a_url_are_refused(source: str, target: str, bad: str) -> None:
    places = {"source": source, "target": target} | {bad: "s3://AKIA:topsecret@bucket/x"}
    with pytest.raises(UsageError, match="must not hold credentials") as caught:
        dskprep.run(**places)
    assert "topsecret" not in str(caught.value)


def test_a_target_below_a_file_is_wrong_use(source: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="expected a folder as the target"):
        dskprep.run(source, f"{tmp_path}/file/out")


@pytest.mark.s3
def test_a_target_in_an_absent_bucket_is_infrastructure(source: str, s3: str) -> None:
    with pytest.raises(InfrastructureError, match="no such bucket"):
        dskprep.run(source, f"{s3}-absent/out")


def test_a_bad_line_of_a_manifest_starts_nothing(tmp_path: Path, source: str, target: str) -> None:
    (tmp_path / "list.csv").write_text(f"key,url\np1,{source}/p1\np/2,{source}/p2\n")
    with pytest.raises(UsageError, match="cannot name a volume"):
        dskprep.run(f"{tmp_path}/list.csv", target)
    assert not Path(target).exists()


@pytest.mark.parametrize("url", ["", "/out", "/out/volumes"])
def test_a_line_of_a_manifest_with_the_target_in_it_is_refused_for_good(tmp_path: Path, source: str, url: str) -> None:
    target = f"{tmp_path}/all/out"
    tiny.write(f"{tmp_path}/all/scan", tiny.series(1))
    (tmp_path / "list.csv").write_text(f"key,url\nall,{tmp_path}/all{url}\np1,{source}/p1\n")
    for _ in range(2):
        dskprep.run(f"{tmp_path}/list.csv", target)
        assert statuses(target) == {"all": "refused", "p1": "written"}
        (name,) = [name for name in store.record_names(target) if name.key == "all"]
        record = store.read_record(target, name)
        assert record.reason == "no-dicom"
        assert "expected a folder apart from the target" in record.message
        assert "run again" not in record.message


def test_a_store_lost_for_good_ends_the_run_and_the_next_goes_on(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = store.commit

    def lost_after_p1(where: str, record: dict[str, Any]) -> None:
        if record.key != "p1":
            raise InfrastructureError(f"{where}: no room")
        commit(where, record)

    with monkeypatch.context() as patched:
        patched.setattr(store, "commit", lost_after_p1)
        with pytest.raises(RunStopped, match="no room") as stopped:
            dskprep.run(source, target)
    assert statuses(target) == {"p1": "written"}
    assert stopped.value.summary.account.counts == {"written": 1}
    assert list(index.read(target)["key"]) == ["p1"]
    (account,) = [json.loads(storage.read(f"{target}/runs/{e.name}")) for e in storage.listing_below(f"{target}/runs")]
    assert "no room" in account["stopped_by"]
    summary = dskprep.run(source, target)
    assert (summary.account.already, summary.account.counts) == ({"written": 1}, {"written": 4})


# workers


class Poison(WorkerPlugin):
    """Kills the worker process that decodes a file of a given name, or lets it hang, until the poison is taken away.

    It is taken away by a file: a worker that has just been restarted may not have its plugins yet,
    so that they cannot be unregistered at any time.
    """

    def __init__(self, file_name: str, antidote: Path, *, kills: bool = True) -> None:
        self.name = f"poison in {file_name}"
        self.file_name = file_name
        self.antidote = antidote
        self.kills = kills

    def setup(self, worker: Any) -> None:  # noqa: ARG002
        from dskprep.dicom.contents import Contents

        file_name, antidote, kills, add = self.file_name, self.antidote, self.kills, Contents.add

        def add_or_die(contents: Any, name: str, content: bytes, **options: Any) -> None:
            if name == file_name and not antidote.exists():
                if kills:
                    os._exit(1)
                threading.Event().wait()
            add(contents, name, content, **options)

        Contents.add = add_or_die  # type: ignore[method-assign]


def set_environment(environment: dict[str, str]) -> None:
    os.environ.update(environment)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.s3
def test_the_same_input_gives_the_same_bytes_everywhere(source: str, tmp_path: Path, s3: str, client: Client) -> None:
    # the worker processes were started before the server: they are told where it is
    environment = {k: v for k, v in os.environ.items() if k.startswith("AWS_") or k.lower() == "no_proxy"}
    client.run(set_environment, environment)
    written = []
    for place, where in ((str(tmp_path), None), (str(tmp_path), client), (s3, None), (s3, client)):
        target = f"{place}/out-{'cluster' if where else 'sync'}"
        assert dskprep.run(source, target, client=where).exit_code == 0
        written.append(volumes(target))
    assert len(written[0]) == 4 * 6
    assert written[1:] == written[:1] * 3


@pytest.mark.cluster
def test_workers_account_for_every_input(source: str, target: str, client: Client) -> None:
    tiny.write(source, {"p5/report.txt": b"", "p6/1.dcm": b""})
    heard = Heard()
    summary = dskprep.run(source, target, client=client, observers=[heard])
    assert summary.account.counts == {"written": 4, "refused": 2}
    assert [n_done for name, _, n_done in heard.events if name.startswith("patient")] == [1, 2, 3, 4, 5, 6]
    assert len({store.read_record(target, name).worker for name in store.record_names(target)}) == 2
    assert dskprep.run(source, target, client=client).account.already == {"written": 4, "refused": 2}


@pytest.mark.cluster
def test_an_interrupted_run_on_workers_leaves_nothing_under_way(tmp_path: Path, target: str, client: Client) -> None:
    source = tiny.write_patients(tmp_path / "many", [f"p{i:02}" for i in range(20)])
    summary = dskprep.run(source, target, client=client, observers=[Interrupter(after=3)])
    assert summary.is_interrupted
    assert summary.account.counts == {"written": 3}
    assert client.futures == {}
    assert dskprep.run(source, target, client=client).exit_code == 0
    assert len(statuses(target)) == 20


@pytest.mark.cluster
@pytest.mark.slow
def test_a_patient_that_kills_its_worker_is_killed_and_its_neighbours_are_written(
    tmp_path: Path, target: str, client: Client
) -> None:
    source = tiny.write_patients(tmp_path / "in", [f"p{i}" for i in range(8)])
    tiny.write(f"{source}/p3", {"poison.dcm": tiny.series(3)["IM000.dcm"]})
    client.register_plugin(Poison("poison.dcm", tmp_path / "antidote"))
    summary = dskprep.run(source, target, client=client)
    (tmp_path / "antidote").touch()
    assert summary.account.counts == {"written": 7, "killed": 1}
    assert summary.account.reasons == {"killed: worker-died": 1}
    assert summary.exit_code == 1
    assert {key for key, status in statuses(target).items() if status == "killed"} == {"p3"}
    assert [f for f in dskprep.verify(target) if f.faults] == []
    retried = dskprep.run(source, target, client=client, retry="failed")
    assert retried.account.counts == {"written": 8}  # its twin slice is dropped
    assert len(list(store.record_names(target))) == 8


@pytest.mark.slow
@pytest.mark.cluster
def test_a_patient_that_hangs_is_given_up_and_its_neighbours_are_written(
    tmp_path: Path, target: str, client: Client
) -> None:
    source = tiny.write_patients(tmp_path / "in", [f"p{i}" for i in range(8)])
    tiny.write(f"{source}/p3", {"hang.dcm": tiny.series(3)["IM000.dcm"]})
    client.register_plugin(Poison("hang.dcm", tmp_path / "antidote", kills=False))
    summary = dskprep.run(source, target, client=client, time_limit_s=3)
    (tmp_path / "antidote").touch()
    assert summary.account.counts == {"written": 7, "failed": 1}
    (name,) = [n for n in store.record_names(target) if n.status == "failed"]
    record = store.read_record(target, name)
    assert (record.key, record.reason) == ("p3", "time-limit")
    assert re.fullmatch(r"the stage \w+ was not done after \d+ s, the limit is 3 s", str(record.message))
    assert "threading.Event().wait()" in str(record.traceback)
    assert "stuck_worker" not in record.as_dict()
    retried = dskprep.run(source, target, client=client, retry="failed")
    assert retried.account.counts == {"written": 8}
    assert len(list(store.record_names(target))) == 8


@pytest.mark.cluster
def test_many_patients_pass_through_few_slots(tmp_path: Path, target: str, client: Client) -> None:
    source = tiny.write_patients(tmp_path / "in", [f"p{i:02}" for i in range(25)])
    most = [0]
    submit = executor._Line._submit

    def count(self: Any, jobs: list[Any]) -> Any:
        futures = submit(self, jobs)
        most[0] = max(most[0], len(self.under_way))
        return futures

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(executor._Line, "_submit", count)
        assert dskprep.run(source, target, client=client).account.counts == {"written": 25}
    assert most[0] <= 1 + 2 * sum(client.nthreads().values())

"""A run that slept past its lease, while another one took its patient over, whose files had changed by then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.dataset import store
from dskprep.dataset.record import Record
from dskprep.settings import PrepConfig
from dskprep.source import cases
from dskprep.worker import patient, process
from dskprep.worker.patient import Job, Outcome
from dskprep.worker.slots import Slots

SETTINGS = PrepConfig(check_hu=False, lungs=False)
OLD, FIRST, CHANGED = 7, 1, 2
"""Seeds of the series that lie in the folder of `p1` one after another."""


def job_of(place: Path, key: str = "p1") -> Job:
    """What a run that lists the source and the records now would do."""
    (case,) = (case for case in cases.cases(str(place / "in")) if case.key == key)
    names = store.record_names(str(place / "out"))
    return Job(case, tuple(name for name in names if name.key == key and name.digest != case.digest))


def prepare(place: Path, job: Job, memory_bytes: int = 2 << 30) -> Outcome:
    return patient.prepare_patient(job, target=str(place / "out"), config=SETTINGS, memory_bytes=memory_bytes)


def change_and_prepare(place: Path) -> None:
    tiny.write(place / "in/p1", tiny.series(CHANGED))
    prepare_elsewhere(place)


def prepare_elsewhere(place: Path) -> None:
    """Another run, as in a process of its own: with slots and memory of its own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(process, "SLOTS", Slots())
        (record,) = prepare(place, job_of(place), memory_bytes=3 << 30).records
    assert record.is_written


def prepare_while(place: Path, happens: Callable[[], None]) -> Record:
    """Prepare `p1`; something happens when it is made, before it is written."""
    job, make = job_of(place), patient.make_case

    def made_late(*args: Any) -> Any:
        made = make(*args)
        patched.undo()
        happens()
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patient, "make_case", made_late)
        (record,) = prepare(place, job).records
    return record


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`in` with two patients, and `out` with a dataset that has the first of them."""
    monkeypatch.setattr(process, "WAIT_S", 0.0)
    store.create(str(tmp_path / "out"), SETTINGS)
    for key in ("p0", "p1"):
        tiny.write(tmp_path / "in" / key, tiny.series(OLD))
    prepare(tmp_path, job_of(tmp_path, "p0"))
    return tmp_path


def test_what_another_run_has_made_meanwhile_of_the_same_files_is_not_deleted_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wakes then, and is killed as it writes its own, would leave a record without a volume."""
    prepare(place, job_of(place))
    tiny.write(place / "in/p1", tiny.series(CHANGED))

    def overtake() -> None:
        prepare_elsewhere(place)
        monkeypatch.setattr(store, "forget", lambda _, names, **__: pytest.fail("it deletes") if names else [])
        monkeypatch.setattr(store, "write_volume", lambda *_: pytest.fail("it writes"))

    record = prepare_while(place, overtake)
    assert record.is_written
    np.testing.assert_array_equal(dskprep.open_dataset(place / "out")["p1"].load().array, tiny.hu(CHANGED))


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "done-before"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (store, "write_volume"),
        (storage, "write_many"),
        (store, "write_thumbnail"),
        (store, "commit"),
        (store, "withdraw_broken"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_volume_is_left_with_objects_of_two_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, is_there: bool
) -> None:
    """The first run sleeps as it calls a function; of objects that are written together it has written one half."""
    if is_there:
        prepare(place, job_of(place))
    tiny.write(place / "in/p1", tiny.series(FIRST))
    function, has_slept = getattr(module, name), []

    def sleep_once(*args: Any, **options: Any) -> Any:
        if not has_slept:
            has_slept.append(True)
            if name == "write_many":
                function(args[0], dict(list(args[1].items())[: len(args[1]) // 2]))
            change_and_prepare(place)
        return function(*args, **options)

    first = job_of(place)
    monkeypatch.setattr(module, name, sleep_once)
    prepare(place, first)
    monkeypatch.undo()
    assert has_slept
    assert not [finding for finding in dskprep.verify(place / "out") if finding.faults]
    written = [name for name in store.record_names(str(place / "out")) if name.status == "written"]
    assert len({name.key for name in written}) == len(written)
    (record,) = prepare(place, job_of(place)).records  # the next run
    assert record.is_written
    assert np.array_equal(dskprep.open_dataset(place / "out")["p1"].load().array, tiny.hu(CHANGED))
    assert not [finding for finding in dskprep.verify(place / "out") if finding.faults]


@pytest.mark.parametrize("loss", ["failed", "killed"])
def test_a_patient_that_is_lost_while_another_run_does_it_takes_nothing_away(
    place: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    prepare(place, job_of(place))
    tiny.write(place / "in/p1", tiny.series(FIRST))
    first = job_of(place)

    def sleep(*_: Any) -> None:
        change_and_prepare(place)
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched:
        if loss == "failed":
            make = patient.make_case
            patched.setattr(patient, "make_case", lambda *told: sleep() if told[0].case == first.case else make(*told))
            (record,) = prepare(place, first).records
        else:
            change_and_prepare(place)
            (record,) = patient.record_killed(first, str(place / "out"), SETTINGS).records
    assert record.status == loss
    assert np.array_equal(dskprep.open_dataset(place / "out")["p1"].load().array, tiny.hu(CHANGED))
    assert not [finding for finding in dskprep.verify(place / "out") if finding.faults]


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "done-before"])
def test_a_run_that_comes_second_leaves_the_volume_and_says_why(
    place: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    if is_there:
        prepare(place, job_of(place))
    tiny.write(place / "in/p1", tiny.series(FIRST))
    first = job_of(place)
    made = patient.make_case

    def sleep(*args: Any) -> Any:
        found = made(*args)
        monkeypatch.undo()
        change_and_prepare(place)
        return found

    monkeypatch.setattr(patient, "make_case", sleep)
    (record,) = prepare(place, first).records
    assert (record.status, record.reason) == ("refused", "source-changed")
    assert "another run has written the volume" in (record.message or "")
    assert np.array_equal(dskprep.open_dataset(place / "out")["p1"].load().array, tiny.hu(CHANGED))
    assert not [finding for finding in dskprep.verify(place / "out") if finding.faults]


def test_what_is_left_of_a_run_that_was_overtaken_goes_with_the_next(place: Path) -> None:
    prepare(place, job_of(place))
    tiny.write(place / "in/p1", tiny.series(FIRST))
    record = prepare_while(place, lambda: change_and_prepare(place))
    assert record.reason == "source-changed"
    assert dskprep.status(place / "out").counts == {"written": 2, "refused": 1}
    assert dskprep.run(place / "in", place / "out", settings=SETTINGS).exit_code == 0
    assert dskprep.status(place / "out").counts == {"written": 2}

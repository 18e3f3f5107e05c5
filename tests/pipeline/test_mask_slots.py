"""Mask slots in a run: all workers of a host share them, also when one of them dies."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import own_masks
import pytest
import tiny

import dskprep
from dskprep import PrepConfig
from dskprep.errors import InfrastructureError, UsageError
from dskprep.pipeline import cluster, cluster_check
from dskprep.pipeline.account import Summary

GIB = 2**30
PATIENTS = ["a", "b", "c", "d"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the events of own_masks, and a place of its own for the slots of all workers."""
    folder = tmp_path / "log"
    folder.mkdir()
    monkeypatch.setenv("OWN_MASKS_LOG", str(folder))
    with tempfile.TemporaryDirectory() as short:  # the path of a socket is short
        monkeypatch.setenv("TMPDIR", short)
        yield folder


def settings(function: str, slots: int = 1, memory: str = "500MiB") -> PrepConfig:
    return PrepConfig(lungs=f"own_masks:{function}", mask_slots=slots, mask_memory=memory)


def run(tmp_path: Path, config: PrepConfig) -> Summary:
    """Do four patients on two workers."""
    source = tiny.write_patients(tmp_path / "in", PATIENTS)
    with dskprep.local_client(2, "1GiB", config) as client:
        return dskprep.run(source, tmp_path / "out", settings=config, client=client)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(("slots", "meet", "within_s"), [(1, False, "0.3"), (2, True, "200")])
def test_no_more_masks_are_under_way_than_there_are_slots(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int, meet: bool, within_s: str
) -> None:
    monkeypatch.setenv("OWN_MASKS_MEET_S", within_s)
    summary = run(tmp_path, settings("Meeting", slots))
    assert summary.account.counts == {"written": len(PATIENTS)}
    assert bool(own_masks.logged(log, "met")) is meet  # with two, which shows that a meeting would be seen
    assert len(own_masks.logged(log, "loaded")) == slots
    assert own_masks.wait_for_end(own_masks.logged(log, "loaded"))  # with the run


@pytest.mark.slow
@pytest.mark.cluster
def test_a_slot_is_free_again_when_the_worker_that_holds_it_is_killed(log: Path, tmp_path: Path) -> None:
    summary = run(tmp_path, settings("KillsItsWorker"))
    assert summary.account.counts == {"written": len(PATIENTS)}
    loaded = own_masks.logged(log, "loaded")
    assert len(loaded) >= 2
    assert own_masks.wait_for_end(loaded)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(("function", "reason"), [("interrupted", "KeyboardInterrupt"), ("unspeakable", "StepFailed")])
def test_whatever_a_function_raises_in_a_worker_is_an_outcome(
    log: Path, tmp_path: Path, function: str, reason: str
) -> None:
    summary = run(tmp_path, PrepConfig(lungs=f"own_masks:{function}"))
    assert summary.account.counts == {"failed": len(PATIENTS)}
    assert summary.account.reasons == {f"failed: {reason}": len(PATIENTS)}
    assert log.exists()


@pytest.mark.cluster
def test_workers_must_have_the_function_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.write_patients(tmp_path / "in", PATIENTS)
    with dskprep.local_client(1, "1GiB") as client:
        (tmp_path / "later_masks.py").write_text("from own_masks import halves\n")  # where no worker looks
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(
            InfrastructureError, match=r"lacks a function of the settings: later_masks:halves: cannot be"
        ):
            dskprep.run(source, tmp_path / "out", settings=PrepConfig(lungs="later_masks:halves"), client=client)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight CPUs and 15 GiB, as a c4.2xlarge has."""
    monkeypatch.setattr(cluster, "CPU_COUNT", 8)
    monkeypatch.setattr(cluster, "MEMORY_LIMIT", 15 * GIB)


@pytest.mark.usefixtures("machine")
def test_local_workers_leave_the_memory_of_the_slots_free() -> None:
    workers, limit = cluster.worker_sizes(None, None, settings("halves", slots=2, memory="1.5GiB"))
    assert workers == 8
    assert 0.89 * 15 * GIB < workers * limit + 3 * GIB <= 0.9 * 15 * GIB
    with pytest.raises(UsageError, match=r"mask_slots and mask_memory take 14.00 GiB; of the 13.50 GiB"):
        cluster.worker_sizes(None, None, settings("halves", slots=2, memory="7GiB"))


@pytest.mark.cluster
def test_a_cluster_without_room_for_the_slots_is_told_so(tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", PATIENTS)
    with dskprep.local_client(1, "1.5GiB") as client:
        places = (source, str(tmp_path / "out"))
        assert cluster_check.check(client, *places, settings("halves")) == []
        (note,) = cluster_check.check(client, *places, settings("halves", slots=64, memory="900GiB"))
    assert "the processes of mask_slots beside them 56.25 TiB; it has" in note

"""A source that is away for a while, or changes: nothing of it is lost without a word, and running again works."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

import dskprep
from dskprep.dataset import store
from dskprep.dataset.record import Record
from dskprep.errors import InfrastructureError, Refusal
from dskprep.pipeline import executor, listing
from dskprep.pipeline.account import RunStopped, Summary
from dskprep.worker import make, process

SETTINGS = dskprep.PrepConfig(check_hu=False, lungs=False)
N = executor.MAX_FAILURES_IN_A_ROW + 5
"""Patients of a source: enough for a run to give up."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WAIT_S", 0.0)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return Path(tiny.write_patients(tmp_path / "disk", [f"p{i:02}" for i in range(N)]))


def lose_at(disk: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the disk away, mount point and all, when this folder of it is listed."""
    scandir = os.scandir

    def lose_and_scan(path: str) -> Any:
        if path == f"{disk}/{folder}":
            monkeypatch.setattr(os, "scandir", scandir)
            disk.rename(disk.with_name("away"))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", lose_and_scan)


def put_back(disk: Path) -> None:
    disk.with_name("away").rename(disk)


def test_a_source_that_is_lost_while_it_is_listed_ends_the_run_with_an_error(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the patients before, all are done: only those that were not listed could be lost in silence."""
    target = tmp_path / "out"
    dskprep.run(disk, target, settings=SETTINGS, limit=3)
    lose_at(disk, "p03", monkeypatch)
    with pytest.raises(RunStopped, match=f"{disk}: expected the folder that was there") as stopped:
        dskprep.run(disk, target, settings=SETTINGS)
    account = stopped.value.summary.account
    assert (account.already, account.is_listed) == ({"written": 3}, False)
    assert not dskprep.status(target).is_clean
    put_back(disk)
    assert dskprep.run(disk, target, settings=SETTINGS).account.counts == {"written": N}


def test_a_source_that_is_lost_while_it_is_listed_ends_a_plan_with_an_error(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_at(disk, "p03", monkeypatch)
    with pytest.raises(InfrastructureError, match=f"{disk}: expected the folder that was there"):
        dskprep.plan(disk, settings=SETTINGS)


def test_labels_that_are_lost_while_they_are_listed_end_annotate_with_an_error(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dskprep.run(disk, tmp_path / "out", settings=SETTINGS, limit=1)
    labels = tmp_path / "labels"
    tiny.write(labels, {f"{name}/points.csv": b"key,x,y,z\np00,-90,-40,15\n" for name in ("a", "b", "c")})
    lose_at(labels, "b", monkeypatch)
    with pytest.raises(InfrastructureError, match=f"{labels}: expected the folder that was there"):
        dskprep.annotate(tmp_path / "out", labels)
    put_back(labels)
    assert dskprep.annotate(tmp_path / "out", labels).counts.total() == 3


class Unmounter(dskprep.Observer):
    """Takes the disk away when the first patient is done."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
        if self.disk.exists():
            self.disk.rename(self.disk.with_name("away"))


def test_a_source_that_goes_away_ends_the_run_and_the_next_ones_do_its_patients(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, start = tmp_path / "out", listing.Listing.__enter__

    def listed_first(self: listing.Listing) -> listing.Listing:
        start(self)
        self._thread.join(tiny.LIMIT_S)
        return self

    monkeypatch.setattr(listing.Listing, "__enter__", listed_first)
    said = rf"the last 20 patients failed.* {disk}: expected p20 in it.* no such folder; .*--retry failed"
    with pytest.raises(RunStopped, match=said) as stopped:
        dskprep.run(disk, target, settings=SETTINGS, observers=[Unmounter(disk)])
    assert stopped.value.summary.account.counts == {"written": 1, "failed": 20}
    put_back(disk)
    assert dskprep.run(disk, target, settings=SETTINGS, retry="failed").account.counts == {"written": N}


def test_a_patient_whose_files_changed_is_done_again_by_the_next_run(disk: Path, tmp_path: Path) -> None:
    """Also where they are as they were, so that the listing is the same."""
    target = tmp_path / "out"

    class Mover(dskprep.Observer):
        def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
            if not (tmp_path / "p02").exists():
                (disk / "p02").rename(tmp_path / "p02")

    dskprep.run(disk, target, settings=SETTINGS, limit=1)
    with pytest.MonkeyPatch.context() as patch:
        start = listing.Listing.__enter__
        patch.setattr(listing.Listing, "__enter__", lambda self: (start(self), self._thread.join(tiny.LIMIT_S))[0])
        summary = dskprep.run(disk, target, settings=SETTINGS, limit=3, observers=[Mover()])
    assert summary.account.reasons == {"refused: source-changed": 1}
    (tmp_path / "p02").rename(disk / "p02")
    account = dskprep.run(disk, target, settings=SETTINGS, limit=3).account
    assert (account.counts, account.already, account.elsewhere) == ({"written": 3}, {"written": 2}, {})
    assert {name.status for name in store.record_names(str(target))} == {"written"}


def test_a_series_that_changed_beside_a_written_one_is_done_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {**tiny.series(0), **{f"b{n}": c for n, c in tiny.series(1, n=14).items()}}
    source, target = tiny.write(tmp_path / "in", {f"p1/{n}": c for n, c in files.items()}), tmp_path / "out"
    assemble = make.assemble_as

    def change_the_smaller(slices: Any, *more: Any) -> Any:
        return [Refusal("source-changed", "x: changed")] if len(slices) == 12 else assemble(slices, *more)

    with monkeypatch.context() as patch:
        patch.setattr(make, "assemble_as", change_the_smaller)
        account = dskprep.run(source, target, settings=SETTINGS).account
    assert (account.counts, account.further_series) == ({"written": 1}, {"refused": 1})
    account = dskprep.run(source, target, settings=SETTINGS).account
    assert (account.counts, account.further_series) == ({"written": 1}, {"written": 1})
    assert (account.already, account.elsewhere) == ({}, {})
    assert dskprep.status(target).counts == {"written": 2}
    assert dskprep.run(source, target, settings=SETTINGS).account.already == {"written": 1}


@pytest.mark.parametrize("is_other", [False, True], ids=["", "another source's"])
def test_what_was_said_of_a_folder_that_could_not_be_listed_goes_when_it_can(tmp_path: Path, *, is_other: bool) -> None:
    """It is empty, as its patients have not come yet, or nobody may look into it: the walk finds the same."""
    source, target = tmp_path / "in", tmp_path / "out"
    tiny.write(source, {f"site1/a/p1/{name}": content for name, content in tiny.series(1).items()})
    (source / "site2").mkdir()
    first = dskprep.run(source, target, settings=SETTINGS)
    assert first.account.counts == {"written": 1, "refused": 1}
    if is_other:
        source = source.rename(tmp_path / "other")
    tiny.write(source, {f"site2/a/p2/{name}": content for name, content in tiny.series(2).items()})
    summary = dskprep.run(source, target, settings=SETTINGS)
    assert (summary.account.counts, summary.exit_code) == ({"written": 2}, 0)
    assert dskprep.status(target).counts == {"written": 2} | ({"refused": 1} if is_other else {})


def test_a_label_source_that_changed_is_done_again_by_the_next_annotate(disk: Path, tmp_path: Path) -> None:
    dskprep.run(disk, tmp_path / "out", settings=SETTINGS, limit=1)
    file = tmp_path / "labels/points.csv"
    tiny.write(tmp_path / "labels", {"points.csv": b"key,x,y,z\np00,-90,-40,15\n", "notes.txt": b"beside it"})
    with pytest.MonkeyPatch.context() as patch:
        read = dskprep.storage.read

        def move_and_read(url: str) -> bytes:
            if url == str(file):
                file.rename(tmp_path / "points.csv")
            return read(url)

        patch.setattr(dskprep.storage, "read", move_and_read)
        assert dskprep.annotate(tmp_path / "out", file.parent).reasons == {"refused: source-changed": 1}
    (tmp_path / "points.csv").rename(file)
    summary = dskprep.annotate(tmp_path / "out", file.parent)
    assert (summary.counts, summary.already, summary.points) == ({"written": 1}, {}, 1)

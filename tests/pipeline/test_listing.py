"""The source is listed ahead of the work: the total is known early, and what waits lies in a file."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.cli.output import Output
from dskprep.cli.workers import Workers
from dskprep.dataset.index import Names
from dskprep.dataset.listed import Known
from dskprep.dataset.record import RecordName
from dskprep.errors import InfrastructureError
from dskprep.pipeline import listing
from dskprep.pipeline.account import Account, Summary
from dskprep.pipeline.listing import Listing
from dskprep.pipeline.pace import Pace
from dskprep.source.cases import Case


def cases(first: int, last: int) -> Iterator[Case]:
    for i in range(first, last):
        yield Case(f"p{i:06}", f"s3://bucket/p{i:06}", f"{i:016x}", 100, 10**6)


def listed(source: Iterator[Case], *names: RecordName) -> Listing:
    summary = Summary("run", "source", "target", Account(), 0.0)
    known = Known(pa.array([name.path.removeprefix("records/") for name in names], pa.large_string()))
    return Listing(source, summary, (), Names(known, set(), set(), set(), set(), set()))


def keys(jobs: Iterator[Any]) -> list[str]:
    return [job.case.key for job in jobs]


@pytest.mark.parametrize("n", [1, listing.BLOCK, 5 * listing.BLOCK + 7])
def test_all_are_counted_before_the_first_is_done_and_come_in_order(n: int) -> None:
    is_at_end = threading.Event()

    def source() -> Iterator[Case]:
        yield from cases(0, n)
        is_at_end.set()

    with listed(source()) as jobs:
        assert is_at_end.wait(tiny.LIMIT_S)
        account = jobs._summary.account
        assert (account.inputs, account.counts.total()) == (n, 0)
        assert keys(iter(jobs)) == [case.key for case in cases(0, n)]
        assert account.is_listed


def test_a_listing_that_waits_holds_up_none_of_the_patients_that_are_known() -> None:
    may_go_on = threading.Event()

    def source() -> Iterator[Case]:
        yield from cases(0, 3)
        assert may_go_on.wait(tiny.LIMIT_S)
        yield from cases(3, 5)

    with listed(source()) as jobs:
        each = iter(jobs)
        assert keys(itertools.islice(each, 3)) == ["p000000", "p000001", "p000002"]
        account = jobs._summary.account
        figures = account.figures()
        assert (figures["done"], figures["known"], figures["total"], figures["seconds_left"]) == (0, 3, None, None)
        may_go_on.set()
        assert keys(each) == ["p000003", "p000004"]
        assert account.figures()["total"] == 5


def test_those_done_before_are_counted_ahead_too() -> None:
    before = [RecordName("written", case.key, case.digest) for case in cases(10, 30)]
    with listed(cases(0, 40), *before) as jobs:
        assert len(keys(iter(jobs))) == 20
        account = jobs._summary.account
        assert (account.inputs, account.counts, account.already) == (40, {"written": 20}, {"written": 20})


def test_a_source_that_breaks_off_is_an_error_after_what_was_found() -> None:
    def source() -> Iterator[Case]:
        yield from cases(0, 2 * listing.BLOCK)
        raise InfrastructureError("the store does not answer")

    found = list[str]()
    with listed(source()) as jobs, pytest.raises(InfrastructureError, match="does not answer"):
        found.extend(job.case.key for job in jobs)
    assert found == [case.key for case in cases(0, 2 * listing.BLOCK)]
    assert not jobs._summary.account.is_listed


def test_on_a_disk_without_capitals_no_volume_is_written_over_that_of_another_patient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of macOS and of many network shares. The second patient would get the folder of the first."""
    for seed, name in enumerate(("P1", "P2", "p1")):
        tiny.write(tmp_path / "in" / name, tiny.series(seed))
    settings = dskprep.PrepConfig(check_hu=False, lungs=False)
    assert dskprep.run(tmp_path / "in", tmp_path / "out", settings=settings).exit_code == 0
    exists = storage.exists

    def exists_in_any_capitals(url: str) -> bool:
        above, _, name = url.rpartition("/")
        there = [each.name for each in Path(above).iterdir()] if exists(above) else []
        return name.casefold() in [each.casefold() for each in there]

    monkeypatch.setattr(storage, "exists", exists_in_any_capitals)
    with pytest.raises(InfrastructureError, match=r"takes the keys P1 and p1 for one; rename /.*/P1 or /.*/p1"):
        dskprep.run(tmp_path / "in", tmp_path / "mac", settings=settings)
    assert not Path(tmp_path / "mac/volumes/p1.zarr").exists()


def test_a_run_that_ends_early_counts_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "JOIN_S", 0)  # the listing hangs
    is_listing, may_go_on = threading.Event(), threading.Event()

    def source() -> Iterator[Case]:
        yield from cases(0, 2)
        is_listing.set()
        may_go_on.wait(tiny.LIMIT_S)
        yield from cases(2, 4)

    with listed(source()) as jobs:
        assert is_listing.wait(tiny.LIMIT_S)
    may_go_on.set()
    jobs._thread.join(tiny.LIMIT_S)
    assert jobs._summary.account.inputs == 2
    assert not jobs._summary.account.is_listed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w+b", buffering=0) as full:
        monkeypatch.setattr(listing.tempfile, "TemporaryFile", lambda **_: full)
        with listed(cases(0, 2 * listing.BLOCK)) as jobs:
            jobs._thread.join(tiny.LIMIT_S)  # nothing is taken before all is listed, so the file is needed
            with pytest.raises(InfrastructureError, match="set TMPDIR"):
                keys(iter(jobs))


def test_nobody_else_can_open_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing.tempfile, "tempdir", str(tmp_path))
    with listed(cases(0, 2 * listing.BLOCK)) as jobs:
        jobs._thread.join(tiny.LIMIT_S)
        keys(iter(jobs))
        assert not list(tmp_path.iterdir())  # it has no name
        assert jobs._file
        assert os.fstat(jobs._file.fileno()).st_mode & 0o777 == 0o600


class Sentinel(dskprep.Observer):
    """Waits at the first patient until the total is known."""

    def __init__(self) -> None:
        self.known_at_first = 0

    def on_patient(self, summary: Summary, records: Any) -> None:  # noqa: ARG002
        if not self.known_at_first:
            deadline = time.monotonic() + tiny.LIMIT_S
            while not summary.account.is_listed and time.monotonic() < deadline:
                time.sleep(0.01)
            self.known_at_first = summary.account.inputs


def test_a_run_knows_its_total_while_its_first_patient_is_done(tmp_path: Path) -> None:
    source = f"{tmp_path}/in"
    for i in range(70):
        tiny.write(f"{source}/p{i:02}", {"1.txt": b""})
    heard = Sentinel()
    dskprep.run(source, f"{tmp_path}/out", observers=[heard], at_end=())
    assert heard.known_at_first == 70


def test_the_panel_and_the_lines_of_json_tell_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    with listed(cases(0, 8)) as jobs:
        keys(iter(jobs))
        summary = jobs._summary
    summary.account.add([tiny.record("p000000")])
    with Output(as_json=True).observe(Workers()) as lines:
        lines._figures_every_s = 0
        lines.on_patient(summary, [])
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["known"], told["total"]) == (1, 8, 8)


@pytest.mark.parametrize("start_s", [0.0, 4.0, 8.0])
@pytest.mark.parametrize("slots", [1, 8])
def test_the_time_left_settles_after_a_twentieth_of_the_patients(start_s: float, slots: int) -> None:
    """4000 patients of 0.66 s on `slots` CPUs whose workers first need `start_s`; the CPUs end at the same time."""
    now = [0.0]
    account = Account(inputs=4000, is_listed=True, pace=Pace(lambda: now[0]))
    ends_s = [start_s + 0.66 * (i // slots + 1) for i in range(4000)]
    for n, end_s in enumerate(ends_s, start=1):
        now[0] = end_s
        account.add([tiny.record("p")])
        if n >= 200 and n % slots == 0 and n < 4000 - 8 * slots:
            left = account.figures()["seconds_left"]
            assert left == pytest.approx(ends_s[-1] - end_s, rel=0.15), n

"""A worker whose target is another place than the client's: told before any work, and counted by no one's word."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tiny
from distributed import Client, LocalCluster

import dskprep
from dskprep.dataset import identity
from dskprep.dataset.record import Record
from dskprep.errors import InfrastructureError
from dskprep.pipeline import cluster_check, executor
from dskprep.pipeline.account import RunStopped, Summary

KEYS = ["p1", "p2", "p3"]

needs_mounts = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="needs the right to mount",
)


class Workers:
    """A scheduler, and worker processes of which some have another folder where the client has its targets."""

    def __init__(self, client: Client, here: Path, there: Path) -> None:
        self.client, self.here, self.there = client, here, there
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *, is_elsewhere: bool) -> None:
        words = [sys.executable, "-m", "dask", "worker", self.client.scheduler.address, "--no-nanny", "--nthreads", "3"]
        words += ["--local-directory", str(self.there.parent / "scratch"), "--death-timeout", str(tiny.LIMIT_S)]
        if is_elsewhere:
            mount = f'mount --bind "{self.there}" "{self.here}" && exec "$@"'
            words = ["unshare", "--mount", "sh", "-c", mount, "sh", *words]
        log = (self.there.parent / "workers.log").open("ab")
        with log:
            self._running.append(subprocess.Popen(words, stdout=log, stderr=log, cwd="/"))
        self.client.wait_for_workers(len(self._running), timeout=tiny.LIMIT_S)

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as scheduler,
        Client(scheduler) as client,
    ):
        started = Workers(client, tmp_path / "here", tmp_path / "there")
        try:
            yield started
        finally:
            started.stop()


@pytest.fixture
def source(tmp_path: Path) -> str:
    return tiny.write_patients(tmp_path / "in", KEYS)


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for workers that join after the cluster was looked at."""
    monkeypatch.setattr(cluster_check, "check_target", lambda *_: None)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def records_below(target: Path) -> list[str]:
    return [name for name in files_below(target) if name.startswith("records/")]


@pytest.mark.slow
@pytest.mark.cluster
@needs_mounts
@pytest.mark.parametrize("has_another", [False, True], ids=["nothing", "another dataset"])
def test_a_worker_that_has_something_else_at_the_target_is_named_before_any_work(
    workers: Workers, source: str, monkeypatch: pytest.MonkeyPatch, *, has_another: bool
) -> None:
    monkeypatch.setattr(cluster_check, "UNSEEN_S", 0.0)
    if has_another:
        dskprep.run(source, workers.there / "out", limit=1)
    before = files_below(workers.there)
    workers.start(is_elsewhere=False)
    workers.start(is_elsewhere=True)  # of the same host, as containers are
    found = "another dataset" if has_another else r"no identity\.json"
    with pytest.raises(InfrastructureError, match=rf"^the worker tcp://\S+: {workers.here}/out: .* found {found} on"):
        dskprep.run(source, workers.here / "out", client=workers.client)
    assert not records_below(workers.here / "out")
    assert files_below(workers.there) == before


@pytest.mark.cluster
@needs_mounts
def test_labels_are_not_begun_either(workers: Workers, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_check, "UNSEEN_S", 0.0)
    dskprep.run(source, workers.here / "out")
    workers.start(is_elsewhere=True)
    with pytest.raises(InfrastructureError, match=r"found no identity\.json"):
        dskprep.annotate(workers.here / "out", source, client=workers.client)


@pytest.mark.cluster
@needs_mounts
def test_a_dataset_that_other_hosts_see_late_is_waited_for(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, whose clients remember for a while what a folder had."""
    workers.start(is_elsewhere=True)
    submit_to = cluster_check._submit_to

    def seen_late(*asked: object) -> object:
        future = submit_to(*asked)  # type: ignore[arg-type]
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(workers.here / "out", workers.there / "out", dirs_exist_ok=True)
        return future

    monkeypatch.setattr(cluster_check, "_submit_to", seen_late)
    target = str(workers.here / "out")
    fingerprint = identity.begin(target).fingerprint
    cluster_check.check_target(workers.client, target, fingerprint)


@pytest.mark.slow
@pytest.mark.cluster
@needs_mounts
@pytest.mark.usefixtures("unasked")
def test_a_worker_that_joins_later_and_has_no_target_writes_nothing(workers: Workers, source: str) -> None:
    workers.start(is_elsewhere=True)
    summary = dskprep.run(source, workers.here / "out", client=workers.client)
    assert summary.account.counts == {"failed": len(KEYS)}
    assert {each["message"] for each in summary.account.latest} == {
        f"{workers.here}/out: expected the dataset of this run, found no identity.json on the host "
        f"{os.uname().nodename}; mount the same disk there, or give it the same store"
    }
    assert len(records_below(workers.here / "out")) == len(KEYS)
    assert files_below(workers.there) == []


@pytest.mark.slow
@pytest.mark.cluster
@needs_mounts
@pytest.mark.usefixtures("unasked")
def test_a_run_whose_workers_fail_for_want_of_the_target_ends(
    workers: Workers, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "MAX_FAILURES_IN_A_ROW", 2)
    workers.start(is_elsewhere=True)
    with pytest.raises(RunStopped, match=r"the last 2 patients failed, .* found no identity\.json on"):
        dskprep.run(source, workers.here / "out", client=workers.client)


@pytest.mark.cluster
@needs_mounts
def test_what_a_worker_says_another_run_did_counts_only_when_it_is_there(workers: Workers, source: str) -> None:
    """The worker has an old copy of the dataset, in which all is done."""
    here, there = workers.here / "out", workers.there / "out"
    dskprep.run(source, here)
    shutil.copytree(here, there)
    for name in ("p1", "p2"):
        shutil.rmtree(here / "volumes" / f"{name}.zarr")
        (next((here / "records/written").glob(f"{name}.*"))).unlink()
    workers.start(is_elsewhere=True)
    for _ in range(2):
        with pytest.raises(
            RunStopped, match="2 records that were written are not there any more; look whether"
        ) as ended:
            dskprep.run(source, here, client=workers.client)
        assert ended.value.summary.account.elsewhere == {"written": 2}
        now = dskprep.status(here)
        assert now.series == 1
        assert not now.is_clean
        assert now.last_run
        assert "2 records that were written" in now.last_run.stopped_by


class Unmounts(dskprep.Observer):
    """Takes the target away after the first patient, and leaves the empty folder beneath."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
        self.target.rename(f"{self.target}.away")
        self.target.mkdir()


def test_a_target_that_is_unmounted_under_a_run_ends_it(source: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(RunStopped, match=rf"^{target}: identity\.json is not there any more; look whether") as ended:
        dskprep.run(source, target, observers=[Unmounts(target)])
    assert ended.value.summary.account.counts == {"written": 1}
    assert files_below(target) == []
    shutil.rmtree(target)
    Path(f"{target}.away").rename(target)
    assert dskprep.run(source, target).account.counts == {"written": 3}

"""A cluster on this machine is sized for it; somebody else's is used as it is."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import pytest
import tiny
from distributed import Client, LocalCluster, SubprocessCluster, WorkerPlugin
from distributed.comm import CommClosedError
from distributed.config import defaults

import dskprep
from dskprep import storage
from dskprep.cli.output import Output
from dskprep.cli.workers import Workers
from dskprep.dataset.record import Record
from dskprep.errors import InfrastructureError, UsageError
from dskprep.pipeline import cluster, cluster_check, executor, lost
from dskprep.pipeline import run as pipeline
from dskprep.pipeline.account import RunStopped, Summary
from dskprep.source.case import Case
from dskprep.worker.patient import Job, Outcome

GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight CPUs and 15 GiB, as a c4.2xlarge has."""
    monkeypatch.setattr(cluster, "CPU_COUNT", 8)
    monkeypatch.setattr(cluster, "MEMORY_LIMIT", 15 * GIB)


@pytest.mark.usefixtures("machine")
def test_by_default_there_is_one_worker_per_cpu_and_they_share_the_memory() -> None:
    workers, limit = cluster.worker_sizes(None, None)
    assert workers == 8
    assert 0.8 * 15 * GIB < workers * limit <= 0.9 * 15 * GIB


@pytest.mark.usefixtures("machine")
def test_where_memory_is_short_there_are_fewer_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "MEMORY_LIMIT", 4 * GIB)
    workers, limit = cluster.worker_sizes(None, None)
    assert 1 <= workers < 4
    assert limit >= 1_100_000_000
    monkeypatch.setattr(cluster, "MEMORY_LIMIT", GIB // 2)
    assert cluster.worker_sizes(None, None)[0] == 1


@pytest.mark.usefixtures("machine")
def test_numbers_that_are_given_are_kept() -> None:
    assert cluster.worker_sizes(3, "1.5GiB") == (3, int(1.5 * GIB))
    assert cluster.worker_sizes(2, None)[0] == 2
    workers, limit = cluster.worker_sizes(None, "4GiB")
    assert (workers, limit) == (3, 4 * GIB)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("workers", "memory_limit", "problem"),
    [
        (0, None, "workers must be 1 or more, not 0"),
        (-1, None, "1 or more"),
        (2, "much", "a size such as 1.6GiB, not 'much'"),
        (2, "10MB", "too small"),
        (2, "5", "a memory limit of 5 B is too small"),
        (8, "2GiB", "need more than"),
        (None, "20GiB", "need more than"),
    ],
)
def test_numbers_that_cannot_be_are_wrong_use(workers: int | None, memory_limit: str | None, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        cluster.worker_sizes(workers, memory_limit)


def connect(address: str) -> None:
    with cluster.connect(address):
        raise AssertionError("connected")


@pytest.mark.parametrize("address", ["locl", "host:8786", ""])
def test_an_address_that_is_none_is_wrong_use(address: str) -> None:
    with pytest.raises(UsageError, match="expected the address of a scheduler"):
        connect(address)


def test_a_scheduler_that_does_not_answer_is_infrastructure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.3)
    with pytest.raises(InfrastructureError, match="no Dask scheduler answers"):
        connect("tcp://127.0.0.1:9")
    with pytest.raises(InfrastructureError, match="no such scheduler file"):
        connect(f"{tmp_path}/absent.json")
    os.mkfifo(tmp_path / "pipe.json")  # which would be waited for
    with pytest.raises(InfrastructureError, match="no such scheduler file"):
        connect(f"{tmp_path}/pipe.json")


@pytest.mark.parametrize("said", [b"\xff" * 64, b"HTTP/1.1 200 OK\r\n\r\n" + bytes(64)])
def test_what_speaks_another_language_is_no_scheduler(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].sendall(said)

        threading.Thread(target=speak, daemon=True).start()
        with pytest.raises(InfrastructureError, match="no Dask scheduler answers"):
            connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_is_no_scheduler_does_not_hold_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it takes connections, and says nothing
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        (tmp_path / "s.json").write_text(json.dumps({"address": address}))
        for place in (address, f"{tmp_path}/s.json"):
            with pytest.raises(InfrastructureError, match=r"no Dask scheduler answers \(\w"):
                connect(place)


def test_a_scheduler_that_does_not_tell_its_python_gets_no_work(places: tuple[str, str]) -> None:
    """Dask takes what does not know the question for one that did not answer, and goes on."""
    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as there:
        del there.scheduler.handlers["versions"]
        with (
            cluster.connect(there.scheduler_address) as client,
            pytest.raises(InfrastructureError, match="does not tell its version"),
        ):
            pipeline.run(*places, client=client)


def test_an_address_without_tls_where_the_configuration_demands_it_is_infrastructure() -> None:
    with (
        dask.config.set({"distributed.comm.require-encryption": True}),
        pytest.raises(InfrastructureError, match=r"no Dask scheduler answers.*encryption required"),
    ):
        connect("tcp://127.0.0.1:9")


def test_a_scheduler_file_without_an_address_is_infrastructure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.3)
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(InfrastructureError, match=r"empty\.json"):
        connect(f"{tmp_path}/empty.json")


@pytest.mark.parametrize("address", ["nonsense://host", "tcp://", "tcp://127.0.0.1:port"])
def test_a_malformed_address_is_one_line_too(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.3)
    with pytest.raises((InfrastructureError, UsageError)):
        connect(address)


@pytest.mark.cluster
def test_a_local_cluster_is_set_for_the_work_and_listens_on_loopback_only() -> None:
    import psutil

    before = dask.config.get("distributed.worker.memory.target")
    with cluster.local_client(workers=1, memory_limit="1GiB") as client:
        info = cluster.workers_of(client)
        (worker,) = info.values()
        assert (worker["nthreads"], worker["memory_limit"]) == (cluster.SLOTS, GIB)
        assert set(cluster.memory_limits(client)) == {GIB}
        (environment,) = client.run(lambda: dict(os.environ)).values()
        assert {environment[n] for n in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")} == {"1"}
        (settings,) = client.run(lambda: dask.config.get("distributed.worker.memory")).values()
        assert (settings["target"], settings["spill"], settings["pause"]) == (False, False, False)
        us = psutil.Process()
        listening = {
            c.laddr.ip
            for process in (us, *us.children(recursive=True))
            if "weed" not in process.name()
            for c in process.net_connections()
            if c.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
    assert dask.config.get("distributed.worker.memory.target") == before


@pytest.mark.cluster
def test_workers_that_cannot_be_started_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_args: Any, **_options: Any) -> None:
        raise PermissionError(13, "Permission denied", "/dev/shm")

    monkeypatch.setattr("distributed.nanny.AsyncProcess", forbidden)  # as in a container without shared memory
    with (
        pytest.raises(
            InfrastructureError, match=r"could not be started: PermissionError: .*Permission denied.*/dev/shm"
        ),
        cluster.local_client(1),
    ):
        pass


def test_why_workers_cannot_be_started_is_told_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("Cluster failed to start") from OSError("refused\nsig=aGVsbG8%3D")

    monkeypatch.setattr(cluster, "LocalCluster", refuse)
    with (
        pytest.raises(InfrastructureError, match=r"could not be started: OSError: refused sig=\[withheld\]$"),
        cluster.local_client(1),
    ):
        pass


def test_without_a_place_for_temporary_files_no_workers_are_started(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        dask.config.set({"temporary-directory": str(tmp_path / "file" / "below")}),
        pytest.raises(InfrastructureError, match=r"could not be started: no folder for temporary files: .*Not a dir"),
        cluster.local_client(1),
    ):
        pass


@pytest.mark.cluster
def test_a_scheduler_without_workers_is_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WORKERS_S", 0.2)
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as empty,
        Client(empty) as client,
        pytest.raises(InfrastructureError, match="no workers"),
    ):
        cluster.memory_limits(client)


@pytest.mark.cluster
def test_workers_are_seen_while_the_client_renews_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its timer asks for totals without workers, and may do so between a question for them and the answer's use."""
    real = Client._update_scheduler_info

    async def renewed_in_between(self: Client, n_workers: int = 0) -> None:
        await real(self, n_workers=n_workers)
        await real(self)

    monkeypatch.setattr(Client, "_update_scheduler_info", renewed_in_between)
    with cluster.local_client(workers=1, memory_limit="1GiB") as client:
        assert client.scheduler_info()["workers"] == {}
        assert cluster.memory_limits(client) == [GIB]


@pytest.mark.cluster
def test_a_heartbeat_while_the_cluster_closes_is_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    async def beat_without_scheduler(dask_worker: Any) -> None:
        class Closed:
            async def heartbeat_worker(self, **_: Any) -> None:
                raise CommClosedError("Stream is closed")

        real, dask_worker.scheduler = dask_worker.scheduler, Closed()
        try:
            await dask_worker.heartbeat()
        finally:
            dask_worker.scheduler = real
        logging.getLogger("distributed.worker").error("something else")

    with cluster.local_client(workers=1, memory_limit="1GiB") as client:
        client.run(beat_without_scheduler)
    said = capfd.readouterr().err
    assert "something else" in said
    assert "heartbeat" not in said
    assert "Traceback" not in said


def worker_pid(client: Client) -> int:
    (pid,) = client.run(os.getpid).values()
    return int(pid)


@pytest.mark.cluster
def test_a_worker_that_is_slow_to_come_back_comes_back() -> None:
    """Dask would end what restarts it, if it is not there after a time of its own."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}),
        cluster.local_client(workers=1, memory_limit="1GiB") as client,
    ):
        for _ in range(2):
            before = worker_pid(client)
            os.kill(before, signal.SIGKILL)
            while client.nthreads():  # until the scheduler knows
                time.sleep(0.01)
            client.wait_for_workers(1, timeout=tiny.LIMIT_S)
            assert worker_pid(client) != before


class Ends(dskprep.Observer):
    """Ends the workers after the first patient."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
        cluster.kill_workers(self.client)


@pytest.mark.cluster
def test_a_run_whose_workers_are_gone_for_good_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lost, "ASK_EVERY_S", 0.1)
    monkeypatch.setattr(lost, "WORKERLESS_S", 1.0)
    source = tiny.write_patients(tmp_path / "in", [f"p{n}" for n in range(12)])
    with (
        cluster.local_client(workers=1, memory_limit="1GiB") as client,
        pytest.raises(RunStopped, match="the Dask scheduler was lost") as stopped,
    ):
        dskprep.run(source, tmp_path / "out", client=client, observers=[Ends(client)])
    assert stopped.value.summary.account.counts["written"] >= 1
    assert "all workers have been gone for 1 s, and count as lost" in caplog.messages


UNASKED = """
import asyncio, gc
from distributed.client import AllExit
from dskprep import plain

async def fail(error):
    raise error

async def main():
    for error in (AllExit(), ValueError("told")):
        task = asyncio.ensure_future(fail(error))
        await asyncio.sleep(0)
        del task
        gc.collect()
    asyncio.get_running_loop().call_exception_handler({"message": "said without an error"})

plain.escape_what_python_prints()
asyncio.run(main())
"""
"""Tasks whose errors nobody asks for: what Dask's client leaves when it is interrupted as it gathers, and another."""


def test_a_client_that_is_interrupted_while_it_gathers_leaves_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", UNASKED], capture_output=True, text=True, check=True)
    assert "ValueError: told" in done.stderr
    assert "AllExit" not in done.stderr
    assert "said without an error" in done.stderr
    assert "TypeError" not in done.stderr
    assert done.stderr.count("never retrieved") == 1


# somebody else's cluster


@pytest.fixture(scope="module")
def ours() -> Iterator[Client]:
    """A worker process set as dskprep sets its own."""
    with cluster.local_client(workers=1, memory_limit="1.5GiB") as client:
        yield client


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, str]:
    return tiny.write_patients(tmp_path / "in", ["p1"]), str(tmp_path / "out")


@pytest.mark.cluster
def test_there_is_nothing_to_say_of_a_cluster_that_is_set_right(ours: Client, places: tuple[str, str]) -> None:
    assert cluster_check.check(ours, *places) == []


@pytest.mark.cluster
def test_an_answer_that_comes_as_its_time_runs_out_counts(
    ours: Client, places: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the answer and the end of a wait come together."""
    sync, late = Client.sync, list[TimeoutError]()

    def answered_too_late(client: Client, func: Any, *args: Any, callback_timeout: Any = None, **kwargs: Any) -> Any:
        answer = sync(client, func, *args, callback_timeout=callback_timeout, **kwargs)
        waits = func.__name__ in {"_wait", "_result"}
        if waits and not late:
            late.append(TimeoutError("timed out after 2 s."))
            raise late[0]
        return answer

    monkeypatch.setattr(Client, "sync", answered_too_late)
    assert cluster_check.check(ours, *places) == []
    assert late[0].__traceback__  # this, and what it holds, is still there
    ours.sync(asyncio.sleep, 0)  # what was let go is let go by the client's loop
    assert ours.futures == {}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("deaths", [1, 99])
def test_a_worker_that_dies_while_it_looks_is_asked_again(
    tmp_path: Path, places: tuple[str, str], monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    """As one that is killed in the first seconds of a run; its nanny starts it again under another address."""
    (tmp_path / "deadly.py").write_text(
        "import os, pathlib, signal\n"
        f"place = pathlib.Path({str(tmp_path)!r}, 'deaths')\n"
        "n = len(place.read_text()) if place.exists() else 0\n"
        f"if n < {deaths} and os.getpid() != {os.getpid()}:\n"
        "    place.write_text('x' * (n + 1))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def lungs(image): return image\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = dskprep.PrepConfig(lungs="deadly:lungs")
    with cluster.local_client(workers=1, memory_limit="1.5GiB") as client:
        if deaths == 1:
            assert cluster_check.check(client, *places, settings) == []
        else:
            with pytest.raises(InfrastructureError, match="a worker there dies whenever it looks at"):
                cluster_check.check(client, *places, settings)


@pytest.mark.cluster
def test_what_a_foreign_cluster_lacks_is_said_with_its_cost(
    places: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in cluster.SETTINGS["distributed.nanny.pre-spawn-environ"]:
        monkeypatch.delenv(name, raising=False)  # a nanny of this process has set it for good
    as_dask_comes = {name: dask.config.get(name, config=defaults) for name in cluster.SETTINGS}
    with (
        dask.config.set(as_dask_comes),
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="1GB", host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as foreign,
        Client(foreign) as client,
    ):
        assert pipeline.run(*places, client=client).n_new == 1
    notes = "\n".join(record.getMessage() for record in caplog.records if record.name == "dskprep")
    for words in (
        "allowed-failures is 3: a patient that kills its worker kills 4",
        "worker-saturation is 1.1",
        "a worker that is not back 15 s after its process died is given up for good by this LocalCluster",
        "memory.target, spill, pause on",
        "threads of their own",
        "1 threads, not 3",
        "the smallest worker has",
    ):
        assert words in notes


@pytest.mark.cluster
def test_what_is_no_open_client_is_refused(ours: Client, places: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=r"must be a dask\.distributed Client .* not a LocalCluster"):
        pipeline.run(*places, client=ours.cluster)
    other = Client(ours.scheduler.address, security=ours.security)
    other.close()
    with pytest.raises(InfrastructureError, match="the client is closed"):
        pipeline.run(*places, client=other)


@pytest.mark.cluster
def test_workers_without_dskprep_are_refused(
    ours: Client, places: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = ours.get_versions(packages=["dskprep"])
    (address,) = versions["workers"]
    versions["workers"][address]["packages"]["dskprep"] = None
    monkeypatch.setattr(ours, "get_versions", lambda **_: versions)
    with pytest.raises(InfrastructureError, match=rf"{address}: expected dskprep .* found none; install"):
        cluster_check.check(ours, *places)


@pytest.mark.cluster
@pytest.mark.parametrize("who", ["scheduler", "workers"])
def test_another_python_is_refused_before_anything_is_sent(
    ours: Client,
    places: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    who: str,
) -> None:
    versions = ours.get_versions(packages=["dskprep"])
    here = ".".join(map(str, sys.version_info[:2]))
    (address,) = versions["workers"]
    there = versions["scheduler"] if who == "scheduler" else versions["workers"][address]
    there["host"] = {**there["host"], "python": "3.9.18.final.0"}
    monkeypatch.setattr(ours, "get_versions", lambda **_: versions)
    for name in ("submit", "run", "run_on_scheduler", "register_plugin", "compute"):
        monkeypatch.setattr(ours, name, None)
    found = rf"{'the scheduler' if who == 'scheduler' else address}: expected Python {here} as here, found 3\.9; start"
    with pytest.raises(InfrastructureError, match=found) as caught:
        cluster_check.check(ours, *places)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InfrastructureError, match=found), Output().observe(Workers(ours)):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.cluster
def test_nothing_of_ours_is_sent_by_value(
    ours: Client, places: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that is sent by value is code of this Python: it runs on no other, and hides what is sent."""
    by_value: list[str] = []
    reduce_function = cloudpickle.cloudpickle.Pickler._dynamic_function_reduce
    reduce_class = cloudpickle.cloudpickle._dynamic_class_reduce

    def noted_function(self: Any, function: Any) -> Any:
        by_value.append(f"{function.__module__}.{function.__qualname__}")
        return reduce_function(self, function)

    def noted_class(cls: Any) -> Any:
        by_value.append(f"{cls.__module__}.{cls.__qualname__}")
        return reduce_class(cls)

    monkeypatch.setattr(cloudpickle.cloudpickle.Pickler, "_dynamic_function_reduce", noted_function)
    monkeypatch.setattr(cloudpickle.cloudpickle, "_dynamic_class_reduce", noted_class)
    with Output().observe(Workers(ours)) as observer:
        assert pipeline.run(*places, client=ours, observers=[observer]).n_new == 1
    by_dask = {name for name in by_value if name.startswith("distributed.")}  # of its performance report
    assert set(by_value) == by_dask
    by_value.clear()
    ours.submit(lambda: 1).result()
    assert by_value  # it is noted where it happens


@pytest.mark.parametrize("asks", ["get_versions", "nthreads", "run_on_scheduler"])
def test_a_scheduler_that_is_lost_while_the_cluster_is_looked_at_is_one_line(
    places: tuple[str, str], monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    there = LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0")
    with Client(there.scheduler_address) as client:
        client._timeout = 1  # of connecting again
        ask = getattr(Client, asks)

        def ask_too_late(*arguments: Any, **more: Any) -> Any:
            there.close()
            with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
                return ask(*arguments, **more)

        monkeypatch.setattr(Client, asks, ask_too_late)
        with pytest.raises(InfrastructureError, match=r"^the Dask scheduler was lost \("):
            pipeline.run(*places, client=client)


class Freezes(dskprep.Observer):
    """Stops the scheduler's process after the first patient, and then presses Ctrl-C if it is told to."""

    def __init__(self, pid: int, *, presses: bool) -> None:
        self.pid, self.presses = pid, presses

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
        lost.SILENT_S = lost.ENDING_S = 2.0  # from now on: before, one that is slow for others' work must not count
        os.kill(self.pid, signal.SIGSTOP)
        if self.presses:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("presses", [False, True])
def test_a_scheduler_that_no_longer_answers_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, presses: bool
) -> None:
    monkeypatch.setattr(lost, "ASK_EVERY_S", 0.2)
    monkeypatch.setattr(lost, "SILENT_S", lost.SILENT_S)  # as they were, at the end
    monkeypatch.setattr(lost, "ENDING_S", lost.ENDING_S)
    source = tiny.write_patients(tmp_path / "in", [f"p{n}" for n in range(6)])
    with SubprocessCluster(n_workers=1, worker_kwargs={"nthreads": 1}) as there:
        client = Client(there)
        client._timeout = 2  # of connecting again
        pid = client.run_on_scheduler(os.getpid)
        try:
            run = functools.partial(dskprep.run, source, tmp_path / "out", client=client)
            if presses:
                summary = run(observers=[Freezes(pid, presses=True)])
                assert summary.is_interrupted
            else:
                with pytest.raises(RunStopped, match="the Dask scheduler was lost") as stopped:
                    run(observers=[Freezes(pid, presses=False)])
                summary = stopped.value.summary
        finally:
            os.kill(pid, signal.SIGCONT)
            with contextlib.suppress(Exception):
                client.close(timeout=1)
    assert summary.account.counts["written"] >= 1
    assert (tmp_path / "out" / "runs" / summary.run_id / "summary.json").exists()


class Restarts(dskprep.Observer):
    """Restarts the cluster after the first patient, as somebody else may."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def on_patient(self, summary: Summary, records: Sequence[Record]) -> None:  # noqa: ARG002
        self.client.restart(wait_for_workers=False)


@pytest.mark.cluster
def test_a_cluster_that_is_restarted_under_a_run_is_not_called_lost(tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", [f"p{n}" for n in range(12)])
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as there,
        Client(there) as client,
        pytest.raises(RunStopped, match=r"^the cluster was restarted \(\w+\); what is written stays"),
    ):
        dskprep.run(source, tmp_path / "out", client=client, observers=[Restarts(client)])


@pytest.mark.cluster
def test_a_scheduler_that_is_busy_when_a_run_is_done_keeps_what_its_client_holds(
    ours: Client, places: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "ENDING_S", 0.0)  # nobody answers so soon
    mine = ours.submit(int, 7, pure=False)
    assert pipeline.run(*places, client=ours).n_new == 1
    assert mine.result() == 7


def test_a_client_that_cannot_be_closed_does_not_hide_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    close = Client.close

    def close_too_late(client: Client) -> None:  # what Dask raises while it looks for a scheduler that is gone
        close(client)
        raise RuntimeError("ConnectionPool is closed")

    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as there:
        monkeypatch.setattr(Client, "close", close_too_late)
        with (
            pytest.raises(InfrastructureError, match=r"^the Dask scheduler was lost$"),
            cluster.connect(there.scheduler_address) as client,
        ):
            raise InfrastructureError("the Dask scheduler was lost")
        assert client.status == "closed"


class Elsewhere(WorkerPlugin):
    """Makes a worker's host one that lacks a folder, or the right to look into it."""

    name = "elsewhere"

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def setup(self, worker: Any) -> None:  # noqa: ARG002
        self.exists = storage.exists
        storage.exists = self._exists

    def teardown(self, worker: Any) -> None:  # noqa: ARG002
        storage.exists = self.exists

    def _exists(self, url: str) -> bool:  # noqa: ARG002
        if self.error:
            raise self.error
        return False


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (None, "a worker there does not see .*; mount it in the same place on every host"),
        (InfrastructureError("s3://bucket: no credentials"), "a worker there cannot reach the data: s3://bucket: no c"),
    ],
)
def test_a_host_that_does_not_reach_the_data_is_named(
    ours: Client, places: tuple[str, str], error: Exception | None, problem: str
) -> None:
    ours.register_plugin(Elsewhere(error))
    try:
        with pytest.raises(InfrastructureError, match=f"127.0.0.1: {problem}"):
            cluster_check.check(ours, *places)
    finally:
        ours.unregister_worker_plugin("elsewhere")


def needs_two_workers(job: Job, folder: Path) -> Outcome:
    """The first few jobs end at once, the others when two processes have come to one."""
    if int(job.case.key) >= 4:
        (folder / str(os.getpid())).touch()
        end = time.monotonic() + tiny.LIMIT_S
        while len(list(folder.iterdir())) < 2:
            if time.monotonic() > end:
                return Outcome((Record(key=job.case.key, status="alone", input_digest=""),))
            time.sleep(0.05)
    return Outcome((Record(key=job.case.key, status="written", input_digest=""),))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("is_adaptive", [False, True], ids=["late", "adaptive"])
def test_workers_that_come_while_a_run_goes_on_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_adaptive: bool
) -> None:
    monkeypatch.setattr(executor, "RECOUNT_S", 0.1)
    jobs = (Job(Case(str(i), "", "", 0, 0)) for i in range(16))
    work = functools.partial(needs_two_workers, folder=tmp_path)
    with (
        LocalCluster(
            n_workers=0 if is_adaptive else 1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as growing,
        Client(growing) as client,
    ):
        if is_adaptive:
            growing.adapt(minimum=0, maximum=2, interval="100ms", target_duration="10ms")
            assert cluster.memory_limits(client)  # wakes it
        done = []
        for _, outcome in executor.execute(client, jobs, work):
            done += outcome.records if outcome else ()
            if len(done) == 1 and not is_adaptive:  # jobs may end in any order, but the first few wait for nobody
                growing.scale(2)
    assert sorted(int(record.key) for record in done) == list(range(16))
    assert {record.status for record in done} == {"written"}


def ends_at_once(job: Job) -> Outcome:
    return Outcome((Record(key=job.case.key, status="written", input_digest=""),))


@pytest.mark.cluster
def test_a_cluster_without_workers_is_told_and_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lost, "ASK_EVERY_S", 0.1)
    monkeypatch.setattr(lost, "WORKERLESS_S", 1.0)
    said, is_told = list[str](), threading.Event()
    monkeypatch.setattr(lost.log, "warning", lambda line: (said.append(line), is_told.set()))
    jobs = (Job(Case(str(i), "", "", 0, 0)) for i in range(6))
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as there,
        Client(there.scheduler_address) as client,
    ):
        threading.Thread(target=lambda: is_told.wait(tiny.LIMIT_S) and there.scale(1)).start()
        done = [outcome for _, outcome in executor.execute(client, jobs, ends_at_once)]
    assert len(done) == 6
    assert said == ["the cluster has had no worker for 1 s; the run goes on when some come"]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_cluster_with_the_certificates_of_the_script_takes_no_one_without_them(
    tmp_path: Path, places: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl")
    recipes = Path(__file__).parents[2] / "cluster"
    subprocess.run([recipes / "make-certificates", tmp_path / "dask"], check=True, capture_output=True)
    for name in ("tls.yaml", "dask.yaml"):
        (tmp_path / "dask" / name).write_text((recipes / name).read_text().replace("/etc/dask", f"{tmp_path}/dask"))
    file = tmp_path / "scheduler.json"
    environment = os.environ | {"DASK_CONFIG": str(tmp_path / "dask")}
    scheduler = "--protocol tls --host 127.0.0.1 --port 0 --dashboard-address 127.0.0.1:0"
    worker = f"--nthreads 3 --memory-limit 1.5GiB --local-directory {tmp_path} --host 127.0.0.1 --death-timeout 200"
    commands = [f"scheduler {scheduler}", f"worker {worker}"]
    started = []
    try:
        for command in commands:
            words = [sys.executable, "-m", "dask", *command.split(), "--scheduler-file", str(file)]
            started.append(subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL))
            wait_for(file)
        address = json.loads(file.read_text())["address"]
        assert address.startswith("tls://")
        words = [*tiny.PROGRAM, "run", *places, "--scheduler", address]
        run = subprocess.run(words, check=False, env=environment, capture_output=True, text=True, timeout=tiny.LIMIT_S)
        assert (run.returncode, run.stderr) == (0, "")
        assert "note:" not in run.stdout
        monkeypatch.setattr(cluster, "CONNECT_S", 3)
        with pytest.raises(InfrastructureError, match="no Dask scheduler answers"):
            connect(address)
        with pytest.raises(InfrastructureError, match="no Dask scheduler answers"):
            connect(address.replace("tls://", "tcp://"))
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(tiny.LIMIT_S)


def wait_for(path: Path) -> None:
    end = time.monotonic() + tiny.LIMIT_S
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.1)

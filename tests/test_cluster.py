"""A cluster on this machine is sized for it; somebody else's is used as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from dskprep import cluster
from dskprep.errors import InfrastructureError, UsageError

GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight CPUs and 15 GiB, as a c4.2xlarge has."""
    monkeypatch.setattr(cluster, "CPU_COUNT", 8)
    monkeypatch.setattr(cluster, "MEMORY_LIMIT", 15 * GIB)


@pytest.mark.usefixtures("machine")
def test_by_default_there_is_one_worker_a_cpu_that_share_the_memory() -> None:
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
        (0, None, "--workers must be 1 or more, not 0"),
        (-1, None, "1 or more"),
        (2, "much", "a size such as 1.6GiB, not 'much'"),
        (2, "10MB", "too small"),
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
    with pytest.raises(UsageError, match="--scheduler must be"):
        connect(address)


def test_a_scheduler_that_does_not_answer_is_infrastructure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.3)
    with pytest.raises(InfrastructureError, match="no Dask scheduler answers"):
        connect("tcp://127.0.0.1:9")
    with pytest.raises(InfrastructureError, match="no such scheduler file"):
        connect(f"{tmp_path}/absent.json")


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
    import os

    import dask
    import psutil

    before = dask.config.get("distributed.worker.memory.target")
    with cluster.local_client(workers=1, memory_limit="1GiB") as client:
        info = client.scheduler_info(n_workers=-1)["workers"]
        (worker,) = info.values()
        assert (worker["nthreads"], worker["memory_limit"]) == (cluster.SLOTS, GIB)
        assert set(cluster.memory_limits(client)) == {GIB}
        (environment,) = client.run(lambda: dict(os.environ)).values()
        assert {environment[n] for n in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")} == {"1"}
        (settings,) = client.run(lambda: dask.config.get("distributed.worker.memory")).values()
        assert (settings["target"], settings["spill"], settings["pause"]) == (False, False, False)
        with cluster.connect(client.scheduler.address) as second:
            assert len(second.scheduler_info(n_workers=-1)["workers"]) == 1
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
def test_a_scheduler_without_workers_is_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client, LocalCluster

    monkeypatch.setattr(cluster, "CONNECT_S", 0.2)
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as empty,
        Client(empty) as client,
        pytest.raises(InfrastructureError, match="no workers"),
    ):
        cluster.memory_limits(client)

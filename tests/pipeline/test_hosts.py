"""A cluster of several hosts, each a network namespace with an address of its own: cut off, healed, lost, restarted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny

import dskprep
from dskprep.dataset import store
from dskprep.errors import InfrastructureError
from dskprep.synthetic import s3server

PATIENTS = [f"p{i:03}" for i in range(60)]
"""Several rounds for the slots of three workers, so that what happens after the first few happens during the run."""
SOURCE = "s3://scans/stage1"

FOUND = "Registered to"
"""What a worker says when the scheduler has taken it."""

NOTICED_S = 12
"""A host that is silent for so long is taken for lost; Dask's own value is 30 s, the least 11."""

ROOT = Path(__file__).parents[2]

STORE_HOST = """
import json, os, sys, time
from pathlib import Path
import tiny
from dskprep.synthetic import s3server
s3server.HOST = sys.argv[1]
with s3server.S3Server() as server:
    os.environ.update(server.environment)
    server.make_bucket("scans")
    tiny.write_patients(sys.argv[2], json.loads(sys.argv[3]))
    Path(sys.argv[4]).write_text(json.dumps(server.environment))
    time.sleep(3600)
"""
"""An S3 server, with a source in it."""

SCRIPT = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
"""Another program, in the place of Python."""

COPY = """
import sys, fsspec
fsspec.filesystem("s3").get(sys.argv[1], sys.argv[2], recursive=True)
"""

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.s3]


class Hosts:
    """Network namespaces on a bridge that has one of its own, so that this machine's network is not touched."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.addresses = {name: f"10.77.0.{i}" for i, name in enumerate(names, start=10)}
        self.environment: dict[str, str] = {}
        self._tag = f"dp{os.getpid()}"
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Hosts:
        switch = self._of("switch")
        _ip(f"netns add {switch}")
        _ip(f"-n {switch} link add bridge type bridge")
        _ip(f"-n {switch} link set bridge up")
        for name, address in self.addresses.items():
            host = self._of(name)
            _ip(f"netns add {host}")
            _ip(f"-n {switch} link add to-{name} type veth peer name eth0 netns {host}")
            _ip(f"-n {switch} link set to-{name} master bridge up")
            _ip(f"-n {host} addr add {address}/24 dev eth0")
            _ip(f"-n {host} link set lo up")
            _ip(f"-n {host} link set eth0 up")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()
        for name in [*self.addresses, "switch"]:
            _ip(f"netns del {self._of(name)}")

    def start(self, host: str, *words: str) -> subprocess.Popen[str]:
        """A Python program on a host; it ends with this process, at the latest."""
        with (self.folder / f"{host}.log").open("a") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._of(host), "setpriv", "--pdeathsig", "KILL", sys.executable, *words],
                env=os.environ | {"NO_PROXY": "*", "no_proxy": "*"} | self.environment,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def pids(self, host: str) -> list[int]:
        """The processes on a host."""
        found = subprocess.run(["ip", "netns", "pids", self._of(host)], check=True, capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def stop_all(self, keep: int = 0) -> None:
        """End all programs but the first few."""
        for process in self._running[keep:]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        del self._running[keep:]

    def start_cluster(self, *workers: str) -> list[subprocess.Popen[str]]:
        """The scheduler, and a worker on each of these hosts, which have found it."""
        logs = [self.folder / f"{name}.log" for name in workers]
        before = [log.read_text().count(FOUND) if log.exists() else 0 for log in logs]
        at = self.addresses["scheduler"]
        words = f"-m dask scheduler --protocol tls --host {at} --port 8786 --dashboard-address {at}:8787"
        started = [self.start("scheduler", *words.split())]
        for name in workers:
            options = f"--nthreads 3 --memory-limit 1.5GiB --local-directory {self.folder} --death-timeout 300"
            words = f"-m dask worker tls://{at}:8786 --host {self.addresses[name]} --name {name} {options}"
            started.append(self.start(name, *words.split()))
        for log, n, worker in zip(logs, before, started[1:], strict=True):
            wait_until(
                lambda log=log, n=n, worker=worker: log.read_text().count(FOUND) > n or worker.poll() is not None,
                f"the worker of {log}",
            )
            assert worker.poll() is None, log.read_text()[-3000:]
        return started

    def run(self, target: str, protocol: str = "tls") -> subprocess.Popen[str]:
        """dskprep on the client's host, with a log of its own."""
        self.log.write_text("")
        at = f"{protocol}://{self.addresses['scheduler']}:8786"
        return self.start("client", "-m", "dskprep", "run", SOURCE, target, "--scheduler", at)

    @property
    def log(self) -> Path:
        return self.folder / "client.log"

    def n_written(self) -> int:
        return self.log.read_text().count("\nwritten  ")

    def cut(self, name: str) -> None:
        """Pull the cable: packets vanish, and nobody is told."""
        _ip(f"-n {self._of('switch')} link set to-{name} down")

    def heal(self, name: str) -> None:
        _ip(f"-n {self._of('switch')} link set to-{name} up")

    def _of(self, name: str) -> str:
        return f"{self._tag}-{name}"


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The volumes as one process writes them, on this machine."""
    folder = tmp_path_factory.mktemp("one")
    dskprep.run(tiny.write_patients(folder / "in", PATIENTS), str(folder / "out"))
    return tiny.everything_below(f"{folder}/out/volumes")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Hosts with certificates, one of them an S3 server that holds the source."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program in ("ip", "setpriv", "openssl"):
        if not shutil.which(program):
            pytest.skip(f"there is no program {program}")
    try:
        s3server.find_weed()
        _ip("netns add dp-probe")
    except InfrastructureError as error:
        pytest.skip(str(error))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr!r}")
    _ip("netns del dp-probe")
    folder = tmp_path_factory.mktemp("hosts")
    subprocess.run([ROOT / "cluster" / "make-certificates", folder / "dask"], check=True, capture_output=True)
    for name in ("tls.yaml", "dask.yaml"):
        settings = (ROOT / "cluster" / name).read_text()
        (folder / "dask" / name).write_text(settings.replace("/etc/dask", f"{folder}/dask"))
    with Hosts(folder, ["scheduler", "s3", "client", "w1", "w2", "w3"]) as network:
        network.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        ready = folder / "s3.json"
        arguments = (network.addresses["s3"], SOURCE, json.dumps(PATIENTS), str(ready))
        server = network.start("s3", "-c", STORE_HOST, *arguments)
        wait_until(lambda: server.poll() is not None or ready.exists(), "the S3 server")
        network.environment |= json.loads(ready.read_text()) | {
            "NO_PROXY": "*",
            "no_proxy": "*",
            "DASK_CONFIG": str(folder / "dask"),
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{NOTICED_S}s",
        }
        yield network


@pytest.fixture
def hosts(network: Hosts) -> Iterator[Hosts]:
    yield network
    network.stop_all(keep=1)
    network.heal("w1")


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = tiny.LIMIT_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)


def copied(hosts: Hosts, target: str, folder: Path) -> Path:
    """The dataset, out of the S3 server."""
    assert hosts.start("client", "-c", COPY, target, str(folder / "copy")).wait(tiny.LIMIT_S) == 0, (
        hosts.log.read_text()[-2000:]
    )
    return folder / "copy"


def assert_all_written(copy: Path, expected: dict[str, bytes]) -> None:
    names = list(store.record_names(str(copy)))
    assert (len(names), {name.status for name in names}) == (len(PATIENTS), {"written"})
    assert tiny.everything_below(f"{copy}/volumes") == expected


def wait_for_the_first(hosts: Hosts, run: subprocess.Popen[str]) -> None:
    wait_until(lambda: run.poll() is not None or hosts.n_written() > 5, "the first patients")
    assert run.poll() is None, hosts.log.read_text()[-3000:]


@pytest.mark.parametrize("workers", [["w1"], ["w1", "w2", "w3"]], ids=["one", "three"])
def test_one_host_and_three_write_the_same_bytes(
    hosts: Hosts, expected: dict[str, bytes], tmp_path: Path, workers: list[str]
) -> None:
    target = f"s3://scans/{len(workers)}-hosts"
    hosts.start_cluster(*workers)
    assert hosts.run(target).wait(tiny.LIMIT_S) == 0, hosts.log.read_text()[-3000:]
    assert f"dashboard: http://{hosts.addresses['scheduler']}:8787/dskprep\n" in hosts.log.read_text()
    copy = copied(hosts, target, tmp_path)
    assert_all_written(copy, expected)
    addresses = {json.loads(path.read_text())["worker"].partition(":")[2] for path in copy.glob("records/*/*.json")}
    assert len(addresses) == len(workers)  # each host had a part in it


@pytest.mark.parametrize("is_healed", [True, False], ids=["healed", "lost"])
def test_a_host_that_is_cut_off_costs_nothing(
    hosts: Hosts, expected: dict[str, bytes], tmp_path: Path, *, is_healed: bool
) -> None:
    target = f"s3://scans/{'healed' if is_healed else 'lost'}"
    hosts.start_cluster("w1", "w2")
    run = hosts.run(target)
    wait_for_the_first(hosts, run)
    hosts.cut("w1")
    if is_healed:
        n = hosts.n_written()
        wait_until(lambda: hosts.n_written() > n or run.poll() is not None, "patients on the other host")
        hosts.heal("w1")
    assert run.wait(tiny.LIMIT_S) == 0, hosts.log.read_text()[-3000:]
    assert_all_written(copied(hosts, target, tmp_path), expected)


def test_a_scheduler_that_dies_ends_the_run_and_the_same_command_goes_on(
    hosts: Hosts, expected: dict[str, bytes], tmp_path: Path
) -> None:
    target = "s3://scans/restarted"
    cluster = hosts.start_cluster("w1", "w2")
    run = hosts.run(target)
    wait_for_the_first(hosts, run)
    os.killpg(cluster[0].pid, signal.SIGKILL)
    assert run.wait(120) == 3, hosts.log.read_text()[-3000:]
    assert "to go on: dskprep run" in hosts.log.read_text()
    assert 5 < hosts.n_written() < len(PATIENTS)
    for worker in cluster[1:]:
        worker.wait(60)  # of themselves: a supervisor would start them again
    hosts.start_cluster("w1", "w2")
    assert hosts.run(target).wait(tiny.LIMIT_S) == 0, hosts.log.read_text()[-3000:]
    assert "done before" in hosts.log.read_text()
    assert_all_written(copied(hosts, target, tmp_path), expected)


def start_sshd(hosts: Hosts, name: str) -> int:
    """An SSH server on a host, whose users have the S3 server's credentials; its process id."""
    daemon = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert daemon
    wanted = ("PYTHONPATH", "NO_PROXY", "no_proxy", *(key for key in hosts.environment if key.startswith("AWS")))
    given = " ".join(f'"{key}={hosts.environment[key]}"' for key in wanted)
    settings = hosts.folder / f"sshd-{name}"
    settings.write_text(
        f"ListenAddress {hosts.addresses[name]}\nHostKey {hosts.folder}/host-key\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {hosts.folder}/user-key.pub\nPidFile none\nPrintLastLog no\nSetEnv {given}\n"
    )
    process = hosts.start(name, "-c", SCRIPT, daemon, "-D", "-e", "-f", str(settings))
    log = hosts.folder / f"{name}.log"
    wait_until(lambda: process.poll() is not None or "Server listening" in log.read_text(), "sshd")
    assert process.poll() is None, log.read_text()[-2000:]
    return process.pid


def test_hosts_by_ssh_write_the_same_bytes_and_their_workers_end_with_the_script(
    hosts: Hosts, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("sshd", "ssh", "ssh-keygen"):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
            pytest.skip(f"there is no program {program}")
    for key in ("host-key", "user-key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", hosts.folder / key]
        subprocess.run(words, check=True, input="y", text=True, capture_output=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # where it wants an empty folder
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f"#!/bin/sh\nexec {shutil.which('ssh')} -F none -i {hosts.folder}/user-key -o StrictHostKeyChecking=no "
        '-o UserKnownHostsFile=/dev/null "$@"\n'
    )
    ssh.chmod(0o755)
    monkeypatch.setitem(hosts.environment, "PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setitem(hosts.environment, "PYTHON", sys.executable)
    monkeypatch.setitem(hosts.environment, "DASK_CONFIG", str(ROOT / "cluster" / "dask.yaml"))
    daemons = {name: start_sshd(hosts, name) for name in ("w1", "w2")}
    addresses = [hosts.addresses[name] for name in daemons]
    script = hosts.start("scheduler", "-c", SCRIPT, "bash", str(ROOT / "cluster" / "ssh-hosts"), *addresses)
    log = hosts.folder / "scheduler.log"
    wait_until(lambda: script.poll() is not None or log.read_text().count(FOUND) >= 2, "workers by SSH")
    assert script.poll() is None, log.read_text()[-3000:]

    assert hosts.run("s3://scans/ssh", protocol="tcp").wait(tiny.LIMIT_S) == 0, hosts.log.read_text()[-3000:]
    assert "note:" not in hosts.log.read_text()
    at = hosts.addresses["scheduler"]  # whose dashboard listens on loopback
    assert f"dashboard: http://{at}:8787/dskprep (it does not answer here; perhaps by ssh -L" in hosts.log.read_text()
    assert_all_written(copied(hosts, "s3://scans/ssh", tmp_path), expected)
    script.terminate()
    assert script.wait(30) != 0
    for name, daemon in daemons.items():
        wait_until(lambda name=name, daemon=daemon: hosts.pids(name) == [daemon], f"the end of the workers on {name}")

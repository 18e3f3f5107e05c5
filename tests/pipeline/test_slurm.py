"""SLURM's own daemons on this machine: dask-jobqueue submits the workers, and a run goes over them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny

import dskprep

pytest.importorskip("dask_jobqueue")

ROOT = Path(__file__).parents[2]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo", "squeue", "scancel", "setpriv", "openssl")

CONFIGURATION = """
ClusterName=test
MessageTimeout=100
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4500 State=UNKNOWN
PartitionName=compute Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""One node of two CPUs, whatever this machine has."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: that of a socket has 108 characters at most, whatever TMPDIR is."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as made:
        yield Path(made)


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A SLURM of one node; its logs lie in the folder."""
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons need root")
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge)")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, ports=tiny.free_ports(2)))
    monkeypatch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for words in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-N", host],
        ):
            with (folder / f"{words[0]}.log").open("wb") as log:
                words = ["setpriv", "--pdeathsig", "KILL", *words]  # they end with this process, at the latest
                running.append(subprocess.Popen(words, stdout=log, stderr=log))
            if len(running) == 1:
                wait_until((folder / "munge.socket").exists, lambda: "munged did not start")
        wait_until(
            lambda: said("sinfo", "--noheader", "--format=%T") == "idle",
            lambda: (folder / "slurmctld.log").read_text()[-2000:] + (folder / "slurmd.log").read_text()[-2000:],
        )
        yield folder
    finally:
        subprocess.run(["scancel", "--user=root"], check=False, capture_output=True, timeout=tiny.LIMIT_S)
        for process in reversed(running):
            process.terminate()
        for process in reversed(running):
            process.wait(tiny.LIMIT_S)


def said(*words: str) -> str:
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=tiny.LIMIT_S).stdout.strip()


def wait_until(condition: Callable[[], bool], problem: Callable[[], str], timeout_s: float = tiny.LIMIT_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, problem()
        time.sleep(0.1)


@pytest.mark.cluster
@pytest.mark.slow
def test_the_recipe_for_slurm_submits_its_workers_and_writes_every_patient(slurm: Path, tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", [f"p{i}" for i in range(12)])
    dskprep.run(source, str(tmp_path / "here"))
    recipes, settings = ROOT / "cluster", tmp_path / "dask"
    subprocess.run([recipes / "make-certificates", settings], check=True, capture_output=True)
    for name in ("tls.yaml", "dask.yaml"):
        (settings / name).write_text((recipes / name).read_text().replace("/etc/dask", str(settings)))
    run = subprocess.run(
        [sys.executable, str(recipes / "slurm.py"), source, str(tmp_path / "out")],
        check=False,
        capture_output=True,
        text=True,
        timeout=2 * tiny.LIMIT_S,
        cwd=tmp_path,
        env=os.environ | {"DASK_CONFIG": str(settings), "CPUS": "2", "JOBS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:] + (slurm / "slurmd.log").read_text()[-2000:]
    assert run.stdout.splitlines() == ["{'written': 12}"]
    assert tiny.everything_below(f"{tmp_path}/out/volumes") == tiny.everything_below(f"{tmp_path}/here/volumes")
    wait_until(lambda: said("squeue", "--noheader") == "", lambda: f"jobs are left: {said('squeue')}")

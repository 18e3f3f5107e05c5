"""Patients a minute from S3 to S3 behind a lagging, capped network, against the way of 2017, in one run.

    python benchmarks/throughput.py [--patients 40] [--mbit 400] [--low-mbit 60] [--runs 0123]

Starts SeaweedFS and `lag.py` on loopback, writes synthetic patients, and runs, one after another: dskprep;
dskprep with one thread a worker, so without overlap; the way of 2017 on a few of the patients; dskprep again where
the network is the limit. For each: patients a minute; the share of the available CPU that its processes used
(theirs over theirs plus idle, so what the server, the proxy and neighbours take does not count), in steady state:
while the patients from a fifth to nine tenths of all were finished; the share of the bandwidth cap in the same time,
which holds for each direction by itself; and the summed peak memory of its workers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from dskprep import storage
from dskprep.synthetic import scanner
from dskprep.synthetic.s3server import S3Server

HERE = Path(__file__).parent
DSKPREP = """
import sys, time
from dskprep.dataset import index
from dskprep.pipeline import cluster, run
from dskprep.pipeline.observer import Observer
cluster.SLOTS = int(sys.argv[3])
class Clock(Observer):
    def on_patient(self, summary, records):
        print(time.time(), flush=True)
if __name__ == "__main__":
    with cluster.local_client() as client:
        summary = run.run(sys.argv[1], sys.argv[2], client=client, observers=[Clock()])
    assert set(summary.account.counts) == {"written"}, summary.account
    table = index.read(sys.argv[2])
    seconds = table.filter(like="seconds_").mean()
    print("out_bytes", table["bytes_written"].mean())
    print("network", (seconds["seconds_read"] + seconds["seconds_write"]) / seconds.sum())
"""
STEADY = (0.2, 0.9)


@dataclass
class Sample:
    """What a process tree had used at a time, and its workers' memory."""

    time_s: float
    cpu_s: float
    idle_s: float
    memory_bytes: int


def measured(command: list[str]) -> tuple[list[Sample], list[str]]:
    """Run a command and sample its process tree, its first process left out of the memory."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    root = psutil.Process(process.pid)
    cpu: dict[int, float] = {}
    samples: list[Sample] = []

    def sample() -> None:
        while process.poll() is None:
            memory = 0
            for p in [root, *root.children(recursive=True)]:
                try:
                    times = p.cpu_times()
                    cpu[p.pid] = times.user + times.system
                    memory += p.memory_info().rss if p is not root else 0
                except psutil.NoSuchProcess:
                    continue
            now = psutil.cpu_times()
            samples.append(Sample(time.time(), sum(cpu.values()), now.idle + now.iowait, memory))
            time.sleep(0.1)

    sampler = threading.Thread(target=sample)
    sampler.start()
    output, _ = process.communicate()
    sampler.join()
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return samples, output.splitlines()


def figures(samples: list[Sample], lines: list[str], in_bytes: float, mbit: float) -> dict[str, float]:
    """The figures of a run that printed when each of its patients was finished; `in_bytes` are a patient's."""
    said = {word: float(value) for word, value in (line.split() for line in lines if line[0].isalpha())}
    ends = [float(line) for line in lines if line[0].isdigit()]
    first, last = (int(share * (len(ends) - 1)) for share in STEADY)
    steady = [s for s in samples if ends[first] <= s.time_s <= ends[last]]
    used, idle = steady[-1].cpu_s - steady[0].cpu_s, steady[-1].idle_s - steady[0].idle_s
    per_s = (last - first) / (ends[last] - ends[first])
    found = {
        "patients a minute": 60 * per_s,
        "with its start": 60 * len(ends) / (ends[-1] - samples[0].time_s),
        "share of available CPU": used / (used + idle),
        "share of the cap in": per_s * in_bytes * 8 / 1e6 / mbit,
        "share of the cap out": per_s * said.get("out_bytes", 0) * 8 / 1e6 / mbit,
        "CPU s a patient": samples[-1].cpu_s / len(ends),
        "peak MiB": max(s.memory_bytes for s in samples) / 2**20,
    }
    return found | said


@contextmanager
def lagging(endpoint: str, mbit: float) -> Iterator[str]:
    command = [sys.executable, str(HERE / "lag.py"), str(urlsplit(endpoint).port), str(mbit)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        yield f"http://127.0.0.1:{int(proxy.stdout.readline())}"
        proxy.kill()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--patients", type=int, default=40)
    options.add_argument("--mbit", type=float, default=400)
    options.add_argument("--low-mbit", type=float, default=60)
    options.add_argument("--runs", default="0123", help="which of the four runs")
    o = options.parse_args()
    with S3Server() as server:
        os.environ.update(server.environment)
        server.make_bucket("scans")
        server.make_bucket("out")
        scanner.write_patients("s3://scans/all", o.patients, broken=False)
        some = max(6, o.patients // 5)
        for i in range(some):
            folder = f"phantom-{i:03}"
            files = dict(storage.read_many(f"s3://scans/all/{folder}", storage.listing(f"s3://scans/all/{folder}")))
            storage.write_many(f"s3://scans/some/{folder}", files)
        n_bytes = sum(e.size for e in storage.listing_below("s3://scans/all"))
        print(f"{o.patients} patients, {n_bytes / 1e6:.0f} MB, {os.cpu_count()} CPUs, 30-50 ms, {o.mbit:.0f} Mbit/s")
        ours = [sys.executable, "-c", DSKPREP]
        rows = {
            "dskprep": (o.mbit, [*ours, "s3://scans/all", "s3://out/lines", "3"]),
            "one thread a worker": (o.mbit, [*ours, "s3://scans/all", "s3://out/plain", "1"]),
            "2017": (o.mbit, [sys.executable, str(HERE / "way_of_2017.py"), "s3://scans/some", "s3://out/2017"]),
            f"dskprep, {o.low_mbit:.0f} Mbit/s": (o.low_mbit, [*ours, "s3://scans/all", "s3://out/low", "3"]),
        }
        for name, (mbit, command) in [list(rows.items())[int(k)] for k in o.runs]:
            with lagging(server.endpoint, mbit) as endpoint:
                os.environ["AWS_ENDPOINT_URL"] = endpoint
                samples, lines = measured(command)
            found = figures(samples, lines, n_bytes / o.patients, mbit)
            print(name, json.dumps({what: round(value, 3) for what, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()

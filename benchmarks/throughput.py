"""Patients a minute from S3 to S3 behind a lagging, capped network, against the way of 2017, in one run.

    python benchmarks/throughput.py [--patients 16] [--mbit 300]

Starts SeaweedFS and `lag.py` on loopback, writes synthetic patients, and runs, one after another: dskprep;
dskprep with one thread a worker, so without overlap; the way of 2017 on a third of the patients. For each:
patients a minute, the share of the available CPU that its processes used (theirs over theirs plus idle, so
what the server, the proxy and neighbours take does not count), and the summed peak memory of its workers.
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

from dskprep import phantom, storage
from dskprep.s3server import S3Server

HERE = Path(__file__).parent
DSKPREP = """
import sys
from dskprep import cluster, pipeline
cluster.SLOTS = int(sys.argv[3])
if __name__ == "__main__":
    with cluster.local_client() as client:
        summary = pipeline.run(sys.argv[1], sys.argv[2], client=client)
    assert set(summary.account.counts) == {"written"}, summary.account
    print(summary.seconds)
"""


@dataclass
class Usage:
    """What a process tree used, sampled while it ran."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    idle_s: float = 0.0
    peak_bytes: int = 0


def measured(command: list[str]) -> tuple[Usage, str]:
    """Run a command and sample the CPU and memory of its process tree, its first process left out of the memory."""
    usage, idle, start = Usage(), psutil.cpu_times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    root = psutil.Process(process.pid)
    cpu: dict[int, float] = {}

    def sample() -> None:
        while process.poll() is None:
            total = 0
            for p in [root, *root.children(recursive=True)]:
                try:
                    times = p.cpu_times()
                    cpu[p.pid] = times.user + times.system
                    total += p.memory_info().rss if p is not root else 0
                except psutil.NoSuchProcess:
                    continue
            usage.peak_bytes = max(usage.peak_bytes, total)
            time.sleep(0.2)

    sampler = threading.Thread(target=sample)
    sampler.start()
    output, _ = process.communicate()
    sampler.join()
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    now = psutil.cpu_times()
    usage.seconds, usage.cpu_s = time.perf_counter() - start, sum(cpu.values())
    usage.idle_s = now.idle + now.iowait - idle.idle - idle.iowait
    return usage, output


@contextmanager
def lagging(endpoint: str, mbit: float) -> Iterator[str]:
    command = [sys.executable, str(HERE / "lag.py"), str(urlsplit(endpoint).port), str(mbit)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        yield f"http://127.0.0.1:{int(proxy.stdout.readline())}"
        proxy.kill()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--patients", type=int, default=16)
    options.add_argument("--mbit", type=float, default=300)
    o = options.parse_args()
    with S3Server() as server:
        os.environ.update(server.environment)
        server.make_bucket("scans")
        server.make_bucket("out")
        phantom.write_patients("s3://scans/all", o.patients, broken=False)
        some = max(3, o.patients // 3)
        for i in range(some):
            folder = f"phantom-{i:03}"
            files = dict(storage.read_many(f"s3://scans/all/{folder}", storage.listing(f"s3://scans/all/{folder}")))
            storage.write_many(f"s3://scans/some/{folder}", files)
        n_bytes = sum(e.size for e in storage.listing_below("s3://scans/all"))
        print(f"{o.patients} patients, {n_bytes / 1e6:.0f} MB, {os.cpu_count()} CPUs, {o.mbit:.0f} Mbit/s, 30-50 ms")
        with lagging(server.endpoint, o.mbit) as endpoint:
            os.environ["AWS_ENDPOINT_URL"] = endpoint
            rows = {
                "dskprep": (o.patients, [sys.executable, "-c", DSKPREP, "s3://scans/all", "s3://out/lines", "3"]),
                "one thread": (o.patients, [sys.executable, "-c", DSKPREP, "s3://scans/all", "s3://out/plain", "1"]),
                "2017": (some, [sys.executable, str(HERE / "way_of_2017.py"), "s3://scans/some", "s3://out/2017"]),
            }
            results = {}
            for name, (count, command) in rows.items():
                usage, output = measured(command)
                seconds = float(output.split()[-1]) if output.split() else usage.seconds
                share = usage.cpu_s / (usage.cpu_s + usage.idle_s)
                results[name] = {
                    "patients a minute": round(60 * count / seconds, 2),
                    "share of available CPU": round(share, 3),
                    "CPU s a patient": round(usage.cpu_s / count, 2),
                    "peak MiB": round(usage.peak_bytes / 2**20),
                }
                print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()

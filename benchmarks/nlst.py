"""A run the shape of NLST: series drawn from the real numbers of slices, every volume scaled down.

    DSKPREP_DATA=/folder python benchmarks/nlst.py [SERIES]

Reads the table of the NCI Imaging Data Commons in DSKPREP_DATA/idc (224,941 series; 203,111 of them NLST, a third
of which are scouts of three slices or fewer), draws series from NLST, and writes for each as many slices as the real
one has, of 32 x 32 pixels, to SeaweedFS on loopback. Runs dskprep from S3 to S3 on this machine; the run is sent
SIGTERM when a third is done, and started again. Prints the account, which must be right, what a series costs, and
the memory of the client and of the workers as the run goes on.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
import pandas as pd
import psutil
from obstore.store import S3Store

from dskprep.dataset import index
from dskprep.synthetic import phantom, scanner
from dskprep.synthetic.s3server import S3Server

TABLE = "idc/idc_v25_chest_ct_series.parquet"
EDGE, FIELD_MM, LENGTH_MM = 32, 360.0, 320.0
SETTINGS = "spacing_mm = [5.0, 10.0, 10.0]\nchunk = 16\n"
MIN_SLICES = 10


def draw(count: int) -> list[int]:
    """Numbers of slices of series drawn from NLST."""
    table = pd.read_parquet(Path(os.environ["DSKPREP_DATA"], TABLE))
    slices = table.loc[table["collection_id"] == "nlst", "n_slices"].to_numpy()
    return [int(n) for n in np.random.default_rng(0).choice(slices, count, replace=False)]


def scaled_down(n_slices: int) -> list[bytes]:
    """The files of a chest of that many slices."""
    pixel_mm = FIELD_MM / EDGE
    made = phantom.make_phantom(
        seed=n_slices, spacing_mm=(LENGTH_MM / n_slices, pixel_mm, pixel_mm), shape=(n_slices, EDGE, EDGE)
    )
    return [content for _, content in scanner.series_files(made, name="NLST", seed=n_slices)]


def fill(store: S3Store, numbers: list[int]) -> None:
    series = {n: scaled_down(n) for n in sorted(set(numbers))}
    with ThreadPoolExecutor(16) as threads:
        for i, n in enumerate(numbers):
            files = {f"nlst/{i:06}/{k:04}.dcm": content for k, content in enumerate(series[n])}
            list(threads.map(lambda item: obstore.put(store, *item), files.items()))


class Watch:
    """Runs dskprep, and notes the memory of its processes while it goes."""

    def __init__(self, words: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dskprep", "run", *words], stdout=subprocess.PIPE, text=True
        )
        self.done = 0
        self.client_mib: list[float] = []
        self.workers_mib: list[float] = []
        self.cpu: dict[int, float] = {}
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.done += line.startswith(("written ", "refused ", "failed ", "killed "))

    def wait(self, until: int | None = None) -> int:
        """Until it ends, or `until` series are done: then it is told to stop."""
        root = psutil.Process(self.process.pid)
        while self.process.poll() is None:
            try:
                workers = [p.memory_info().rss for p in root.children(recursive=True)]
                self.client_mib.append(root.memory_info().rss / 2**20)
                self.workers_mib.append(sum(workers) / 2**20)
                for p in [root, *root.children(recursive=True)]:
                    times = p.cpu_times()
                    self.cpu[p.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                pass
            if until is not None and self.done >= until:
                self.process.send_signal(signal.SIGTERM)
                until = None
            time.sleep(0.5)
        self.reader.join()
        return self.process.returncode


def main() -> None:
    numbers = draw(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
    with S3Server() as server, tempfile.TemporaryDirectory() as folder:
        os.environ.update(server.environment)
        for name in ("scans", "out"):
            server.make_bucket(name)
        started = time.perf_counter()
        fill(
            S3Store(
                "scans",
                endpoint=server.endpoint,
                access_key_id=server.environment["AWS_ACCESS_KEY_ID"],
                secret_access_key=server.environment["AWS_SECRET_ACCESS_KEY"],
                region=server.environment["AWS_DEFAULT_REGION"],
                client_options={"allow_http": True},
            ),
            numbers,
        )
        print(
            f"{len(numbers)} series, {sum(numbers)} slices, filled in {time.perf_counter() - started:.0f} s", flush=True
        )
        config = Path(folder, "nlst.toml")
        config.write_text(SETTINGS)
        words = ["s3://scans/nlst", "s3://out/nlst", "--config", str(config)]
        for until in (len(numbers) // 3, None):
            started = time.perf_counter()
            watch = Watch(words)
            code = watch.wait(until)
            seconds = time.perf_counter() - started
            third = max(1, len(watch.client_mib) // 3)
            print(
                f"exit code {code}, {watch.done} series in {seconds:.0f} s, "
                f"{1000 * sum(watch.cpu.values()) / watch.done:.0f} ms CPU a series; client "
                f"{statistics.median(watch.client_mib[third : 2 * third]):.0f} -> "
                f"{statistics.median(watch.client_mib[-third:]):.0f} MiB, workers "
                f"{statistics.median(watch.workers_mib[third : 2 * third]):.0f} -> "
                f"{statistics.median(watch.workers_mib[-third:]):.0f} MiB",
                flush=True,
            )
        table = index.read("s3://out/nlst")
        found = Counter(table["status"])
        print(json.dumps({"found": found, "reasons": Counter(table["reason"].dropna())}))
        expected = Counter("written" if n >= MIN_SLICES else "refused" for n in numbers)
        assert found == expected, f"expected {expected}"
        assert table["key"].is_unique


if __name__ == "__main__":
    main()

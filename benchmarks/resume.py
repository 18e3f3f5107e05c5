"""Resuming a run whose patients are all finished: LIST requests only.

    python benchmarks/resume.py [PATIENTS]

Starts SeaweedFS on loopback and fills it with a source of that many patients (three small objects each) and a
dataset that holds a record of each. Runs dskprep over it twice: the first time there is no index.parquet, so it is
made from the records; the second time there is. Prints seconds, CPU and peak memory of each in a fresh process.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import obstore
from obstore.store import S3Store

from dskprep import settings, storage
from dskprep.dataset import store
from dskprep.dataset.record import to_json
from dskprep.pipeline import run
from dskprep.source import cases
from dskprep.synthetic.s3server import S3Server

FILES = 3
OBJECTS = (
    "zarr.json",
    "0/zarr.json",
    "0/c/0/0/0",
    "labels/zarr.json",
    "labels/lungs/zarr.json",
    "labels/lungs/0/c/0/0/0",
)
SOURCE, TARGET = "s3://scans/stage1", "s3://out/dataset"


def resume() -> None:
    """In a process of its own."""
    started = time.perf_counter()
    summary = run.run(SOURCE, TARGET)
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert summary.account.counts == summary.account.already
    print(
        f"{summary.account.inputs} patients: {time.perf_counter() - started:6.1f} s, "
        f"{used.ru_utime + used.ru_stime:6.1f} s CPU, peak {used.ru_maxrss / 1024:.0f} MiB",
        flush=True,
    )


def main() -> None:
    if sys.argv[1:] == ["resume"]:
        resume()
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with S3Server() as server, ThreadPoolExecutor(16) as threads:
        os.environ.update(server.environment)
        buckets = {}
        for name in ("scans", "out"):
            server.make_bucket(name)
            buckets[name] = S3Store(
                name,
                endpoint=server.endpoint,
                access_key_id=server.environment["AWS_ACCESS_KEY_ID"],
                secret_access_key=server.environment["AWS_SECRET_ACCESS_KEY"],
                region=server.environment["AWS_DEFAULT_REGION"],
                client_options={"allow_http": True},
            )
        started = time.perf_counter()
        keys = [f"stage1/patient-{i:06}/{n}.dcm" for i in range(count) for n in range(FILES)]
        list(threads.map(lambda key: obstore.put(buckets["scans"], key, key.encode()), keys))
        store.create(TARGET, settings.preset("default"))
        records = (
            {
                "key": case.key,
                "status": "written",
                "input_digest": case.digest,
                "url": case.url,
                "warnings": [],
                "geometry": {"shape": [300, 350, 350], "spacing_mm": [1.0, 1.0, 1.0], "affine": np.eye(4).tolist()},
                "seconds": {"read": 1.0, "resample": 1.0, "lungs": 1.0, "encode": 1.0, "write": 1.0},
                "objects": {name: {"bytes": 20_000_000, "sha256": "0" * 64} for name in OBJECTS},
            }
            for case in cases.cases(SOURCE)
        )
        items = ((f"dataset/records/written/{r['key']}.{r['input_digest']}.json", to_json(r)) for r in records)
        list(threads.map(lambda item: obstore.put(buckets["out"], *item), items))
        print(f"filled in {time.perf_counter() - started:.0f} s")
        for what in ("without index.parquet", "with index.parquet"):
            print(what, end=": ", flush=True)
            subprocess.run([sys.executable, __file__, "resume"], check=True)
        assert storage.exists(f"{TARGET}/index.parquet")


if __name__ == "__main__":
    main()

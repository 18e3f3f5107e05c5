"""The run loop's own cost: patients that do nothing, through the real loop on two worker processes.

    python benchmarks/run_loop.py [PATIENTS] [--s3]

The patients are claimed in a folder, or in a bucket of SeaweedFS, as by a run that is alone. Prints milliseconds per
patient, and the memory of the client (which holds the scheduler) as it goes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator

import distributed
import psutil

from dskprep import storage
from dskprep.dataset.record import Record, RecordName
from dskprep.pipeline import cluster, sharing, watch
from dskprep.pipeline.account import Account, Summary
from dskprep.source.case import Case
from dskprep.stopwatch import Stopwatch
from dskprep.synthetic.s3server import S3Server
from dskprep.worker import process
from dskprep.worker.patient import Job, Outcome


def do_nothing(job: Job) -> Outcome:
    """Passes through the slots, and tells of it, as a patient does."""
    process.SLOTS.tell_through(distributed.get_worker(), process.ledger(2**30))
    clock = Stopwatch()
    for slot, stages in (
        ("read", ["read"]),
        ("compute", ["decode", "resample", "lungs", "encode"]),
        ("write", ["write"]),
    ):
        with process.SLOTS(slot, job.case.key, clock):
            for stage in stages:
                with clock(stage):
                    pass
    return Outcome((Record(key=job.case.key, status="written", input_digest=job.case.digest, bytes_read=1),))


def jobs(count: int) -> Iterator[Job]:
    for i in range(count):
        yield Job(Case(f"patient-{i:06}", f"s3://bucket/scans/patient-{i:06}", f"{i:016x}", 200, 100_000_000))


@contextlib.contextmanager
def target_of(words: list[str]) -> Iterator[str]:
    """Where claims are written."""
    if "--s3" not in words:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    with S3Server() as server:
        os.environ.update(server.environment)
        yield server.make_bucket("target")


def main() -> None:
    count = int(([word for word in sys.argv[1:] if word.isdigit()] or ["2000"])[0])
    process = psutil.Process()
    account = Account()
    with target_of(sys.argv) as target, cluster.local_client(workers=2) as client:
        summary = Summary("run", "source", target, account, 0.0)
        observers, _ = watch.begin(client)
        for observer in observers:
            observer.on_start(summary)
        list(storage.listing_below(f"{target}/records"))  # a run has opened the store before
        storage.exists(f"{target}/dataset.json")
        start, cpu = time.perf_counter(), process.cpu_times()
        shared = sharing.Sharing(target, "20200101T000000Z-0000", account, print)
        for n, (job, outcome) in enumerate(shared.execute(client, jobs(count), do_nothing), start=1):
            account.add(outcome.records if outcome else ())
            shared.finish(RecordName("written", job.case.key, job.case.digest))
            if n % max(1, count // 10) == 0:
                wall = time.perf_counter() - start
                used = process.cpu_times()
                seconds = used.user + used.system - cpu.user - cpu.system
                print(
                    f"{n:8} patients  {1000 * wall / n:6.2f} ms wall  {1000 * seconds / n:6.2f} ms CPU of client and "
                    f"scheduler per patient  {process.memory_info().rss / 2**20:6.0f} MiB"
                )
        shared.close()
        for observer in observers:
            observer.on_end(summary)


if __name__ == "__main__":
    main()

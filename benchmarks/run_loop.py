"""The run loop's own cost: patients that do nothing, through the real loop on two worker processes.

    python benchmarks/run_loop.py [PATIENTS] [--s3] [--work SECONDS]

The patients are claimed in a folder, or in a bucket of SeaweedFS, as by a run that is alone. Their source is a folder
with a small file for each, listed ahead as in a run. With `--work` each waits so long in the slot for computing.
benchmarks/results/run_loop.json has milliseconds per patient, the memory of the client (which holds the scheduler), and
what a run tells of its time left.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import common
import psutil
from no_work import do_nothing

from dskprep import storage
from dskprep.dataset import index
from dskprep.dataset.record import RecordName
from dskprep.pipeline import cluster, sharing, watch
from dskprep.pipeline.account import Account, Summary
from dskprep.pipeline.crew import Crew
from dskprep.pipeline.listing import Listing
from dskprep.pipeline.observer import Observer
from dskprep.source.cases import cases
from dskprep.synthetic.s3server import S3Server

MARKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""After which parts of the patients figures are printed."""


def make_source(folder: str, count: int) -> str:
    """Make a folder of one small file per patient."""
    for i in range(count):
        place = Path(folder, f"patient-{i:06}")
        place.mkdir()
        Path(place, "1.dcm").touch()
    return folder


@contextlib.contextmanager
def target_of(*, is_s3: bool) -> Iterator[str]:
    """Where claims are written."""
    if not is_s3:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    with S3Server() as server:
        os.environ.update(server.environment)
        yield server.make_bucket("target")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("patients", nargs="?", type=int, default=2000)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--work", type=float, default=0.0)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()
    count, marks = asked.patients, [max(1, round(part * asked.patients)) for part in MARKS]
    process = psutil.Process()
    told: list[tuple[int, float, int, float | None]] = []
    costs: list[list[str]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        target_of(is_s3=asked.s3) as target,
        cluster.local_client(workers=2) as client,
    ):
        source = make_source(folder, count)
        account = Account()
        summary = Summary("run", source, target, account, 0.0)
        observers: list[Observer] = []
        watch.begin(Crew(client, None, lambda _: []), summary, observers)
        found = index.record_names(target)  # a run has opened the store before
        storage.exists(f"{target}/dataset.json")
        start, cpu = time.perf_counter(), process.cpu_times()
        shared = sharing.Sharing(target, "20200101T000000Z-0000", account, print)
        shared.begin()
        work = functools.partial(do_nothing, work_s=asked.work)
        with Listing(cases(source), summary, (), found) as jobs:
            for n, (job, outcome) in enumerate(shared.execute(client, iter(jobs), work), start=1):
                account.add(outcome.records if outcome else ())
                shared.finish(RecordName("written", job.case.key, job.case.digest))
                if n in marks:
                    wall = time.perf_counter() - start
                    used = process.cpu_times()
                    seconds = used.user + used.system - cpu.user - cpu.system
                    figures = account.figures()
                    told.append((n, wall, figures["known"], figures["seconds_left"]))
                    costs.append([f"{1000 * wall / n:.2f}", f"{1000 * seconds / n:.2f}"])
                    costs[-1].append(f"{process.memory_info().rss / 2**20:.0f}")
        shared.has_account = True
        shared.has_account = True
        shared.close()
        for observer in observers:
            observer.on_end(summary)
    end_s = told[-1][1]
    with common.report(asked.results / "run_loop.json", "The run loop", ("distributed", "dask")) as report:
        what = f"{count} patients that wait {asked.work} s" if asked.work else f"{count} patients that do nothing"
        report.line(f"{what}, on two workers, claimed in a {'bucket' if asked.s3 else 'folder'}.")
        header = ("after", "wall ms per patient", "CPU ms per patient, client and scheduler", "client's MiB")
        header += ("known then", "told: s left", "in truth", "off, %")
        report.table(
            header,
            [
                [f"{n} patients", *cost, f"{known}", *of_time(left, end_s - wall)]
                for (n, wall, known, left), cost in zip(told, costs, strict=True)
            ],
        )


def of_time(told_s: float | None, true_s: float) -> tuple[str, str, str]:
    if told_s is None:
        return "", f"{true_s:.1f}", ""
    off = f"{100 * (told_s / true_s - 1):+.1f}" if true_s > 0 else ""
    return f"{told_s:.1f}", f"{true_s:.1f}", off


if __name__ == "__main__":
    main()

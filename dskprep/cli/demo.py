"""The whole thing on one machine: synthetic patients, a real S3 server on loopback, S3 to S3."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from distributed import as_completed

from dskprep import storage
from dskprep.cli import terminal
from dskprep.cli.exits import EXIT_CLEAN, EXIT_SOME_NOT_WRITTEN
from dskprep.cli.output import Output
from dskprep.cli.workers import told_that_workers_stop, workers_of
from dskprep.counts import n_of
from dskprep.errors import UsageError
from dskprep.look.views import show
from dskprep.pipeline import run
from dskprep.reading.dataset import open_dataset
from dskprep.synthetic import scanner
from dskprep.synthetic.s3server import S3Server

SOURCE, TARGET = "s3://scans/stage1", "s3://scans-1mm/stage1"
"""Where the patients and the dataset are, in the server."""


def play(patients: int, folder: Path, output: Output) -> int:
    """Write `patients` phantoms into the server, run, and say what to look at. Return the exit code.

    The dataset and a picture are copied into `folder`, since the server ends with the demo.

    Raises UsageError before anything starts if there is something in `folder`.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder}: is not empty; choose another folder with -o, or delete it yourself")
    terminal.wait_for("starting an S3 server on this machine")
    with S3Server() as server:
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(server.environment)
        for url in (SOURCE, TARGET):
            server.make_bucket(url.split("/")[2])
        output.say(f"an S3 server listens on {server.endpoint}")
        with workers_of("local", None, None) as workers:
            with told_that_workers_stop():
                client = workers.start()
            started = time.monotonic()
            output.say(f"making {n_of(patients, 'synthetic patient')} in {SOURCE}")
            doing = "making synthetic patients"
            terminal.wait_for(f"{doing}; each worker first loads code for it", f"0 of {patients}")
            broken = [i == patients - 1 for i in range(patients)]
            with told_that_workers_stop():
                write = [client.submit(scanner.write_patient, i, SOURCE, broken=broken[i]) for i in range(patients)]
                made_s: list[float] = []
                for _ in as_completed(write, raise_errors=True):
                    made_s.append(time.monotonic())
                    terminal.wait_for(doing, how_far(made_s, patients, len(client.nthreads())))
                client.gather(write)
            seconds = time.monotonic() - started
            output.say(f"made them in {seconds:.0f} s, one of them broken on purpose")
            output.say("", f"What follows is what this prints: dskprep run {SOURCE} {TARGET}")
            with output.observe(workers) as observer:
                summary = run.run(SOURCE, TARGET, client=client, observers=[observer])
        if not summary.account.counts["written"] or summary.is_interrupted:
            return EXIT_SOME_NOT_WRITTEN
        terminal.wait_for(f"copying the dataset into {folder}")
        _copy(TARGET, folder / "dataset")
    key = next(iter(open_dataset(folder / "dataset")))
    picture = folder / f"{key}.png"
    terminal.wait_for("drawing a picture")
    picture.write_bytes(show(folder / "dataset", key))
    (report,) = folder.glob("dataset/runs/*/qc.html")
    program = terminal.program()
    places = {
        f"{folder}/dataset": "a copy of the dataset: OME-Zarr volumes, records, index.parquet",
        f"{picture}": "one patient: three planes with the outline of the lungs",
        f"{report}": "all of them on one page, for a browser",
    }
    width = max(map(len, places))
    where = f"""
Where to look, now that the server has ended
{chr(10).join(f"  {place:{width}}   {what}" for place, what in places.items())}
  {program} status {folder}/dataset
  {program} show {folder}/dataset {key} --3d lungs -o {folder}/lungs.png

On your own scans
  {program} run /data/scans /data/scans-1mm
  {program} run s3://your-bucket/scans s3://your-bucket/scans-1mm   (AWS credentials of the environment or a profile)

In Python ({sys.executable})
  import dskprep
  dataset = dskprep.open_dataset("{folder}/dataset")
  dataset["{key}"].image[100:164, 100:164, 100:164]"""
    output.say(*where.split("\n"))
    return EXIT_CLEAN


def how_far(made_s: Sequence[float], n_all: int, n_at_once: int) -> str:
    """Return how many patients are made, and about how long the others take.

    `made_s` are the times when they were made, `n_at_once` at a time. The first of each worker also waited for code, so
    they say nothing of the others: there is no estimate before as many have followed.

    >>> how_far([60, 61], 6, 2), how_far([60, 61, 64, 65], 6, 2)
    ('2 of 6', '4 of 6, about 4 s left')
    """
    n = len(made_s)
    if not 2 * n_at_once <= n < n_all:
        return f"{n} of {n_all}"
    each_s = (made_s[-1] - made_s[n_at_once - 1]) / (n - n_at_once)
    return f"{n} of {n_all}, about {each_s * (n_all - n):.0f} s left"


def _copy(url: str, folder: Path) -> None:
    for name, content in storage.read_many(url, list(storage.listing_below(url))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

"""The whole thing on one machine: synthetic patients, a real S3 server on loopback, S3 to S3."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from distributed import as_completed

from dskprep import storage
from dskprep.cli import terminal
from dskprep.cli.options import open_client
from dskprep.cli.output import Output
from dskprep.counts import n_of
from dskprep.dataset.dataset import open_dataset
from dskprep.errors import UsageError
from dskprep.look.views import show
from dskprep.pipeline import run
from dskprep.synthetic import scanner
from dskprep.synthetic.s3server import S3Server

SOURCE, TARGET = "s3://scans/stage1", "s3://scans-1mm/stage1"
"""Where the patients and the dataset are, in the server."""
COMPILE_S, PATIENT_S = 10, 4
"""About how long it takes to make patients: until the first one begins, and for each one per worker."""


def play(patients: int, folder: Path, output: Output) -> None:
    """Write `patients` phantoms into the server, run, and say what to look at.

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
        with open_client("local", None, None) as client:
            assert client is not None
            started = time.monotonic()
            seconds = COMPILE_S + PATIENT_S * patients / len(client.nthreads())
            some = n_of(patients, "synthetic patient")
            output.say(f"making {some} in {SOURCE}, about {seconds:.0f} s, or twice that on a slow machine")
            terminal.wait_for(f"making synthetic patients: 0 of {patients}")
            write = [client.submit(scanner.write_patient, i, SOURCE, broken=i == patients - 1) for i in range(patients)]
            for n, _ in enumerate(as_completed(write, raise_errors=True), 1):
                terminal.wait_for(f"making synthetic patients: {n} of {patients}")
            client.gather(write)
            seconds = time.monotonic() - started
            output.say(f"made them in {seconds:.0f} s, one of them broken on purpose")
            output.say("", f"What follows is what this prints: dskprep run {SOURCE} {TARGET}")
            with output.observe(client) as observer:
                summary = run.run(SOURCE, TARGET, client=client, observers=[observer])
        if not summary.account.counts["written"] or summary.is_interrupted:
            return
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


def _copy(url: str, folder: Path) -> None:
    for name, content in storage.read_many(url, list(storage.listing_below(url))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

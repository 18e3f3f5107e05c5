"""The whole thing on one machine: synthetic patients, a real S3 server on loopback, S3 to S3."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from dskprep import storage
from dskprep.cli import printed
from dskprep.dataset import dataset
from dskprep.look import picture
from dskprep.pipeline import cluster, run
from dskprep.synthetic import scanner
from dskprep.synthetic.s3server import S3Server

SOURCE, TARGET = "s3://scans/stage1", "s3://scans-1mm/stage1"


def play(patients: int, output: Path) -> None:
    """Write `patients` phantoms into the server, run, verify nothing is lost, and keep the result.

    The dataset and a picture are copied into the folder `output`, since the server ends with the demo.
    """
    say = printed.console.print
    with S3Server() as server:
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(server.environment)
        for url in (SOURCE, TARGET):
            server.make_bucket(url.split("/")[2])
        say(f"an S3 server listens on {server.endpoint}")
        with cluster.local_client() as client:
            printed.quiet_dask()
            printed.print_workers(client)
            started = time.monotonic()
            write = [client.submit(scanner.write_patient, i, SOURCE, broken=i == patients - 1) for i in range(patients)]
            client.gather(write)
            seconds = time.monotonic() - started
            say(f"{patients} synthetic patients written to {SOURCE} in {seconds:.0f} s, one of them broken")
            say(f"\n$ dskprep run {SOURCE} {TARGET}")
            with printed.shown_progress(client) as progress:
                summary = run.run(SOURCE, TARGET, client=client, observers=[progress])
        printed.print_summary(summary)
        if output.exists():
            shutil.rmtree(output)
        _copy(TARGET, output / "dataset")
    pictured = _draw(output)
    say(
        f"""
Where to look
  {output}/dataset            the dataset: OME-Zarr volumes, records, index.parquet
  {pictured}   one patient: three planes with the outline of the lungs
  dskprep status {output}/dataset
  dskprep show {output}/dataset {pictured.stem}

On your own scans
  dskprep run s3://your-bucket/scans s3://your-bucket/scans-1mm      (AWS credentials from the environment or a profile)
  dskprep run /data/scans /data/scans-1mm

In Python
  import dskprep
  dataset = dskprep.open_dataset("{output}/dataset")
  dataset["{pictured.stem}"].image[100:164, 100:164, 100:164]""",
        markup=False,
    )


def _copy(url: str, folder: Path) -> None:
    for name, content in storage.read_many(url, list(storage.listing_below(url))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _draw(output: Path) -> Path:
    opened = dataset.open_dataset(str(output / "dataset"))
    key = next(iter(opened))
    path = output / f"{key}.png"
    path.write_bytes(picture.draw(key, picture.of_stored(opened[key])))
    return path

"""CPU of the client per GET of a whole object of 512 KiB: by obstore, and by s3fs, which reads after a fork.

    python benchmarks/reads.py [ROUNDS]

Starts SeaweedFS on loopback, writes three patients of 200 objects, and reads them again and again, the
libraries by turns. Prints the medians over the rounds. That is why obstore reads: see docs/runs.md.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

import psutil

from dskprep import storage
from dskprep.storage import connection
from dskprep.synthetic.s3server import S3Server

PATIENTS, SLICES, BYTES = 3, 200, 512 * 1024


def read_all(folders: dict[str, list[storage.Entry]]) -> tuple[float, float]:
    """Return CPU and wall time per object, in milliseconds."""
    process = psutil.Process()
    start, before = time.perf_counter(), process.cpu_times()
    count = sum(len(content) == BYTES for url, entries in folders.items() for _, content in read(url, entries))
    after, end = process.cpu_times(), time.perf_counter()
    assert count == PATIENTS * SLICES
    cpu_s = after.user + after.system - before.user - before.system
    return 1000 * cpu_s / count, 1000 * (end - start) / count


def read(url: str, entries: list[storage.Entry]) -> list[tuple[str, bytes]]:
    return list(storage.read_many(url, entries))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with S3Server() as server:
        os.environ.update(server.environment)
        server.make_bucket("scans")
        urls = [f"s3://scans/patient-{i}" for i in range(PATIENTS)]
        for url in urls:
            storage.write_many(url, {f"{i:04}.dcm": os.urandom(BYTES) for i in range(SLICES)})
        folders = {url: storage.listing(url) for url in urls}
        figures: dict[str, list[tuple[float, float]]] = {"obstore": [], "s3fs": []}
        for _ in range(rounds):
            for reader, seen in figures.items():
                connection.fork.is_obstore_lost = reader == "s3fs"  # as in a process that was forked after it read
                seen.append(read_all(folders))
        for reader, seen in figures.items():
            cpu_ms, wall_ms = (statistics.median(column) for column in zip(*seen, strict=True))
            mb_s = BYTES / 1e3 / wall_ms
            print(f"{reader:8} {cpu_ms:5.2f} ms CPU of the client per GET of 512 KiB, {mb_s:4.0f} MB/s")


if __name__ == "__main__":
    main()

"""One worker process from its start: what it imports, its memory, and the CPU seconds until the first patient is done.

    python benchmarks/worker.py [--patients 10] [--cold] [--results FOLDER] FOLDER_OF_DICOM

A Dask worker of a local cluster, as `dskprep run` starts it, does the same patient several times. Memory is resident
(RSS), its peak is the kernel's. `--cold` first measures how long it takes to compile the kernels of the default preset
into an empty cache; otherwise they are compiled before the worker starts. Writes worker.md to benchmarks/results.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

WARM = "from dskprep.preparation import prepare; prepare.warm()"


def rss_mib() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def state(module: str = "", *, warm: bool = False) -> tuple[str, str, str, str]:
    """Import a module, or load the kernels, in a worker; return its memory, peak, CPU seconds and number of modules."""
    if module:
        importlib.import_module(module)
    if warm:
        from dskprep.preparation import prepare

        prepare.warm()
    return f"{rss_mib():.0f}", f"{common.peak_mib():.0f}", f"{time.process_time():.2f}", f"{len(sys.modules)}"


def compile_all() -> tuple[float, float]:
    """Return the CPU and wall seconds of compiling the kernels of the default preset into an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", WARM], env=os.environ | {"NUMBA_CACHE_DIR": cache}, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - start


def measure(folder: Path, n_patients: int) -> list[tuple[str, ...]]:
    """Return a line of figures for each step of a worker's first minute."""
    from dskprep.pipeline import cluster
    from dskprep.settings import PrepConfig
    from dskprep.source import cases
    from dskprep.worker import patient

    (case,) = (c for c in cases.cases(str(folder.parent)) if Path(c.url) == folder)
    lines: list[tuple[str, ...]] = []
    with cluster.local_client(1, "1.6GiB") as client, tempfile.TemporaryDirectory() as target:

        def note(words: str, function: Callable[..., Any] = state, *args: Any) -> None:
            (figures,) = client.run(function, *args).values()
            lines.append((words, *figures))

        client.upload_file(__file__)
        note("a worker of Dask")
        note("with what a patient needs imported", state, "dskprep.worker.patient")
        note("with all kernels loaded", functools.partial(state, warm=True))
        for n in range(1, n_patients + 1):
            job = patient.Job(case)
            how = {"config": PrepConfig(), "memory_bytes": 1 << 31, "limit_s": 600.0}
            done = client.submit(patient.prepare_patient, job, target=f"{target}/{n}", pure=False, **how).result()
            assert done.records[0].is_written, done
            if n in (1, n_patients):
                note(f"after {n} patient{'s' * (n > 1)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="The first minute of a worker process.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=10)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    args = parser.parse_args()
    packages = ("numba", "llvmlite", "numpy", "distributed", "pydicom")
    with common.report(args.results / "worker.json", "One worker process from its start", packages) as report:
        if args.cold:
            cpu, wall = compile_all()
            report.line(f"All kernels of the default preset compiled: {cpu:.1f} CPU s, {wall:.1f} s of wall time.")
        report.table(("", "MiB", "peak MiB", "CPU s", "modules"), measure(args.folder.resolve(), args.patients))


if __name__ == "__main__":
    main()

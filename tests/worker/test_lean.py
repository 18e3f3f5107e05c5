"""A worker process holds what one patient needs, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from dskprep.preparation import prepare
from dskprep.synthetic.phantom import make_phantom
from dskprep.synthetic.scanner import series_files

NEEDLESS = {
    *("pandas", "pyarrow", "zarr", "matplotlib", "bokeh", "nibabel", "rich", "duckdb"),  # for tables and pictures
    *("s3fs", "aiobotocore", "botocore", "aiohttp"),  # for buckets
    *("scipy.ndimage", "scipy.linalg", "scipy.special"),
    *("numba.np.linalg", "numba.np.random.generator_core", "numba.typed.typeddict"),  # for what has to be compiled
}

PROGRAM = """
import json, sys
from dskprep.kernels import planes
from dskprep.settings import PrepConfig
from dskprep.source import cases
from dskprep.worker import patient

if sys.argv[3:]:
    from dskprep.preparation import prepare
    prepare.warm()

def n_compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("dskprep.kernels.")]
    kernels = {id(k): k for module in modules for k in vars(module).values() if hasattr(k, "py_func")}
    return sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels.values())

before = n_compiled()
(case,) = cases.cases(sys.argv[1])
outcome = patient.prepare_patient(patient.Job(case), target=sys.argv[2], config=PrepConfig(), memory_bytes=2 << 30)
(record,) = outcome.records
print(json.dumps([record.status, n_compiled() - before, sorted(sys.modules)]))
"""


def run(*words: object, **environment: str) -> tuple[str, int, set[str]]:
    """Do one patient in a fresh process; return its status, how many kernels it compiled, and the loaded modules."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    status, n_compiled, modules = json.loads(done.stdout.splitlines()[-1])
    return status, n_compiled, set(modules)


def test_a_worker_imports_nothing_that_a_patient_does_not_need(tmp_path: Path) -> None:
    prepare.warm()
    tiny.write_patients(tmp_path / "in", ["p"])
    run(tmp_path / "in", tmp_path / "first")  # compiles what so small a volume alone needs
    status, n_compiled, modules = run(tmp_path / "in", tmp_path / "second")
    assert (status, n_compiled) == ("written", 0)
    assert modules & NEEDLESS == set()
    assert {"numba", "pydicom", "distributed"} <= modules


@pytest.mark.slow
def test_the_first_patient_finds_all_that_it_needs_compiled(tmp_path: Path) -> None:
    phantom = make_phantom(seed=1, spacing_mm=(3.0, 2.0, 2.0), shape=(100, 180, 180))
    tiny.write(tmp_path / "in/p", dict(series_files(phantom, name="p", seed=1)))
    status, n_compiled, _ = run(tmp_path / "in", tmp_path / "out", "warm", NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert (status, n_compiled) == ("written", 0)

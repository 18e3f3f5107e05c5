"""CPU seconds that `dskprep.dicom.elements` saves beside pydicom alone, of a patient's headers and of a whole patient.

    python benchmarks/headers.py FOLDER_OF_DICOM ...

The two ways take turns, seven times each; figures are medians. `headers` is from the bytes of the files to slices
that are still encoded; `patient` is all that a worker does with the default preset. One CPU.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import common

ROUNDS = 7


def measure(folder: Path) -> dict[str, float]:
    """Medians of CPU seconds, by what was done and how."""
    from dskprep import settings
    from dskprep.dicom import header
    from dskprep.dicom.contents import Contents
    from dskprep.preparation import prepare
    from dskprep.source import cases
    from dskprep.worker import patient

    default = settings.preset("default")
    prepare.warm(default)
    (case,) = cases.cases(str(folder))
    files = [(path.name, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]
    find_plain = header._plain_attributes
    ways = {"pydicom only": lambda _content: None, "with elements": find_plain}
    took: dict[str, list[float]] = defaultdict(list)
    for round_ in range(ROUNDS + 1):
        for way, find in ways.items():
            header._plain_attributes = find
            header._convert.cache_clear()
            contents, start = Contents(), time.process_time()
            for name, content in files:
                contents.add(name, content)
            headers_s = time.process_time() - start
            header._convert.cache_clear()
            with tempfile.TemporaryDirectory() as target:
                start = time.process_time()
                records = patient.prepare_patient(
                    patient.Job(case), target=target, config=default, memory_bytes=4 << 30
                )
                patient_s = time.process_time() - start
            assert records[-1]["status"] == "written", records
            if round_:  # the first one only warms up
                took[f"headers, {way}"].append(headers_s)
                took[f"patient, {way}"].append(patient_s)
    header._plain_attributes = find_plain
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def main() -> None:
    print("| series | files | headers, pydicom only | with elements | saved, of a patient with pydicom only |")
    print("|---|---:|---:|---:|---:|")
    for folder in map(Path, sys.argv[1:]):
        took = measure(folder)
        plain, fast = took["headers, pydicom only"], took["headers, with elements"]
        share = (plain - fast) / took["patient, pydicom only"]
        n_files = sum(path.is_file() for path in folder.rglob("*"))
        print(f"| {folder.name} | {n_files} | {plain:.3f} | {fast:.3f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    if os.environ.get("NUMBA_NUM_THREADS") != "1":  # libraries read their threads when they are imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | common.ONE_THREAD)
    main()

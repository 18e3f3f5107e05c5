"""CPU and wall seconds and peak memory of one patient, stage by stage, in a fresh process.

    python benchmarks/patient.py [FOLDER_OF_DICOM ...]

Without arguments: a synthetic patient of 200 x 512 x 512, and the volumes below DSKPREP_DATA if it is set.
Medians of five runs after one that compiles; the other CPUs' load is not controlled: compare rows of one run only.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

REPEATS = 5


def measure(folder: Path) -> dict[str, float]:
    """Median CPU seconds by stage for the DICOM files of one folder, and the peak RSS in MiB."""
    from dskprep import dicom, lungs, omezarr, resample, series
    from dskprep.config import PrepConfig
    from dskprep.prepared import Prepared

    config = PrepConfig()
    rows: list[dict[str, float]] = []
    for _ in range(REPEATS + 1):
        row: dict[str, float] = {}
        wall = time.perf_counter()
        last = time.process_time()

        def lap(stage: str, row: dict[str, float] = row) -> None:
            nonlocal last
            now = time.process_time()
            row[stage] = now - last
            last = now

        contents = dicom.Contents()
        for path in sorted(folder.iterdir()):
            contents.add(path.name, path.read_bytes())
        lap("headers")
        native = series.assemble(max(contents.slices.values(), key=len)).volume
        lap("decode")
        image = resample.to_spacing(native, config.spacing_mm, smooth=config.smooth)
        lap("resample")
        found = lungs.find_lungs(image)
        lap("lungs")
        omezarr.encode(Prepared(resample.fill_padding(image), found), config, {})
        lap("encode")
        row["all"] = sum(row.values())
        row["wall"] = time.perf_counter() - wall
        rows.append(row)
    medians = {stage: statistics.median(row[stage] for row in rows[1:]) for stage in rows[0]}
    return medians | {"peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(a) for a in sys.argv[1:]] or list(_folders(Path(scratch)))
        for n, folder in enumerate(folders):
            output = subprocess.run([sys.executable, __file__, "--one", str(folder)], check=True, capture_output=True)
            row = json.loads(output.stdout)
            if n == 0:
                print(f"{'patient':24}" + "".join(f"{name:>10}" for name in row))
            print(f"{folder.name[:23]:24}" + "".join(f"{value:10.3f}" for value in row.values()))


def _folders(scratch: Path):  # type: ignore[no-untyped-def]
    from dskprep.phantom import make_phantom, series_files

    folder = scratch / "phantom"
    folder.mkdir()
    phantom = make_phantom(seed=1, spacing_mm=(1.5, 0.7, 0.7), shape=(200, 512, 512))
    for name, content in series_files(phantom, name="phantom", seed=1):
        (folder / name).write_bytes(content)
    yield folder
    data = os.environ.get("DSKPREP_DATA")
    for path in sorted(Path(data, "volumes").glob("*.tar.bz2")) if data else []:
        with tarfile.open(path) as archive:
            archive.extractall(scratch / path.stem, filter="data")
        yield max((p.parent for p in (scratch / path.stem).rglob("*.dcm")), key=lambda d: len(list(d.iterdir())))


if __name__ == "__main__":
    main()

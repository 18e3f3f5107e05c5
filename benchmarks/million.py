"""A run with nothing to do over very many series in a folder: seconds, CPU and peak memory, imports included.

    python benchmarks/million.py [SERIES] [--folder FOLDER]

The source has a folder with one file for each series, the dataset a record and a row of the index for each, and no
volumes. All files are hard links to a few, so that a million fit on any disk; the rows are as long as real ones. Prints
the same of `status`, and which bytes of the index are written when one series more is done.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from dskprep import settings, storage
from dskprep.dataset import index_files, rows, store
from dskprep.dataset.record import parse_record, to_json
from dskprep.source import cases

LINKS = 60_000
"""Names that a file may have on any file system."""
MODIFIED_NS = 1_700_000_000_000_000_000
AT_SCALE = Path(__file__).with_name("at_scale.py")


def link_all(model: bytes, names: list[str], folder: Path) -> None:
    """Give files of one content and one time all these names."""
    for i, name in enumerate(names):
        if i % LINKS == 0:
            first = folder / f"model-{len(model)}-{i}"
            first.write_bytes(model)
            os.utime(first, ns=(MODIFIED_NS, MODIFIED_NS))
        os.link(first, name)


def key_of(i: int) -> str:
    return f"patient-{i:07}"


def fill(folder: Path, count: int) -> None:
    source, target = folder / "source", folder / "target"
    source.mkdir()
    for i in range(count):
        os.mkdir(f"{source}/{key_of(i)}")  # noqa: PTH102
    link_all(b"", [f"{source}/{key_of(i)}/1.dcm" for i in range(count)], folder)
    store.create(str(target), settings.preset("default"))
    case = next(cases.cases(str(source)))
    record = model_record(case.key, case.digest)
    place = target / "records/written"
    place.mkdir(parents=True)
    link_all(to_json(record), [f"{place}/{key_of(i)}.{case.digest}.json" for i in range(count)], folder)
    row = rows.to_row(parse_record(to_json(record), f"written/{case.key}.{case.digest}.json"))
    tag = rows.tag_of(next(e for _, e in store.list_records(str(target))))
    index_files.update(str(target), {}, tables(row, tag, count), count)


def model_record(key: str, digest: str) -> dict[str, object]:
    """A record as long as those of real series."""
    sha256 = "0" * 64
    names = ("zarr.json", "0/zarr.json", "0/c/0/0/0", "labels/zarr.json", "labels/lungs/zarr.json", "labels/lungs/0/c")
    source: dict[str, object] = {"slices": 158, "rows": 512, "columns": 512, "step_mm": 2.5, "kernel": "STANDARD"}
    source |= {"row_spacing_mm": 0.7, "column_spacing_mm": 0.7, "manufacturer": "GE MEDICAL SYSTEMS"}
    source |= dict.fromkeys(("first_x_mm", "first_y_mm", "first_z_mm"), -180.0)
    return {
        "key": key,
        "status": "written",
        "input_digest": digest,
        "url": f"/data/scans/{key}",
        "bytes_read": 83_000_000,
        "geometry": {
            "shape": [300, 350, 350],
            "spacing_mm": [1.0, 1.0, 1.0],
            "affine": [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]],
        },
        "lungs": {"right_ml": 2500.5, "left_ml": 2200.5, "mean_hu": -820.5, "dense_share": 0.0125},
        "source": source,
        "seconds": dict.fromkeys(("read", "decode", "resample", "lungs", "encode", "write"), 0.125),
        "series_uid_sha256": sha256[:12],
        "hu_sha256": sha256,
        "objects": {name: {"bytes": 6_000_000, "sha256": sha256} for name in names},
    }


def tables(row: rows.Row, tag: str, count: int) -> Iterator[pa.Table]:
    """Rows of all series, no two alike."""
    for start in range(0, count, 5000):
        some = []
        for i in range(start, min(start + 5000, count)):
            sha256 = hashlib.sha256(str(i).encode()).hexdigest()
            own = {"key": key_of(i), "url": f"/data/scans/{key_of(i)}", "hu_sha256": sha256}
            some.append(row | own | {"series_uid_sha256": sha256[:12], rows.TAG: tag})
        yield rows.to_table(some)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("series", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        (folder / "prep.toml").touch()
        if not (folder / "source").exists():
            started = time.perf_counter()
            fill(folder, options.series)
            print(f"{options.series} series, filled in {time.perf_counter() - started:.0f} s", flush=True)
        for work in ("run, all done", "status"):
            subprocess.run([sys.executable, AT_SCALE, "measure", work, str(folder)], check=True, cwd=folder)
        before = {e.name: e.tag for e in storage.listing(f"{folder}/target/index.parquet")}
        digest = next(cases.cases(f"{folder}/source")).digest
        path = folder / f"target/records/refused/further.{digest}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(to_json({"key": "further", "status": "refused", "input_digest": digest, "reason": "not-ct"}))
        subprocess.run([sys.executable, AT_SCALE, "measure", "index current", str(folder)], check=True, cwd=folder)
        after = storage.listing(f"{folder}/target/index.parquet")
        written = [e for e in after if before.get(e.name) != e.tag]
        megabytes = [sum(e.size for e in some) / 1e6 for some in (written, after)]
        print(f"one more: {megabytes[0]:.1f} of {megabytes[1]:.1f} MB written, {len(written)} of {len(after)} parts")
        path.unlink()


if __name__ == "__main__":
    main()

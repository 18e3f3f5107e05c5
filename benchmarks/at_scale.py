"""Every command on a dataset of very many series: wall and CPU seconds, peak memory, megabytes of what it writes.

    python benchmarks/at_scale.py [--series 100000] [--lean] [--s3] [--folder FOLDER] [WORK ...]

Makes a source and a dataset below FOLDER (temporary by default; one that is filled already is used as it is) or, with
--s3, in a SeaweedFS on loopback whose objects lie there. A volume of 3 x 24 x 24 is written by a run, the others are
copies under other keys, each with a record and a thumbnail; a twentieth were refused. With --lean there are no volumes
and the source has one file per series: enough for `run`, `status` and `report`. With DSKPREP_DATA set, the records have
the numbers of slices of real series. Each work is done in a process of its own, imports included.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from common import peak_mib

import dskprep
from dskprep import settings, storage
from dskprep.cli import commands
from dskprep.dataset import index, store
from dskprep.dataset.record import to_json
from dskprep.look import report
from dskprep.source import cases
from dskprep.source.case import Case

FILES = 3
TOML = "min_slices = 3\n"
SETTINGS = dataclasses.replace(settings.preset("default"), min_slices=FILES)
Put = Callable[[str, bytes], None]


def command(*words: str) -> Callable[[str], str]:
    """A command line; SOURCE, TARGET and FOLDER stand for places."""

    def work(place: str) -> str:
        places = {"SOURCE": f"{place}/source", "TARGET": f"{place}/target", "OTHER": f"{place}/other"}
        code = commands.run_command([places.get(word, word) for word in words])
        return f"exit code {code}"

    return work


def of_report(place: str) -> str:
    page = report.report(f"{place}/target")
    Path("report.html").write_text(page)
    return f"{len(page.encode()) / 1e6:.1f} MB"


def of_run_end(place: str) -> str:
    report.write_for_run(f"{place}/target", "measured")
    return f"{storage.entry_of(f'{place}/target/runs/measured/qc.html').size / 1e6:.1f} MB"  # type: ignore[union-attr]


def of_index(place: str) -> str:
    index.write(f"{place}/target")
    return f"{len(index.read_table(f'{place}/target', ['key']))} rows"


def of_lost_index(place: str) -> str:
    names = [f"index.parquet/{entry.name}" for entry in storage.listing_below(f"{place}/target/index.parquet")]
    storage.delete(f"{place}/target", names or ["index.parquet"])
    found = of_index(place)
    n_bytes = sum(entry.size for entry in storage.listing_below(f"{place}/target/index.parquet"))
    return f"{found}, {n_bytes / 1e6:.1f} MB"


def of_opening(place: str) -> str:
    dataset = dskprep.open_dataset(f"{place}/target")
    key = list(dataset)[len(dataset) // 2]
    return f"{len(dataset)} volumes, {key} of {dataset[key].shape}"


def of_frame(place: str) -> str:
    return f"{len(dskprep.open_dataset(f'{place}/target').index)} rows"


def of_where(place: str) -> str:
    dataset = dskprep.open_dataset(f"{place}/target").where(lambda row: row["source_step_mm"] <= 1.25)
    return f"{len(dataset)} chosen"


def of_patches(place: str) -> str:
    import pickle

    dataset = dskprep.open_dataset(f"{place}/target").where(lambda row: row["source_step_mm"] <= 1.25)
    patches = dataset.lung_patches(8)
    return f"{len(patches.keys)} volumes, pickled {len(pickle.dumps(patches)) / 1e6:.1f} MB"


WORKS: dict[str, Callable[[str], str]] = {
    "nothing": lambda _: "",
    "index lost": of_lost_index,
    "index current": of_index,
    "status": command("status", "TARGET"),
    "open": of_opening,
    "index": of_frame,
    "where": of_where,
    "lung_patches": of_patches,
    "report": of_report,
    "page of a run": of_run_end,
    "run, all done": command("run", "SOURCE", "TARGET", "--scheduler", "sync", "--config", "prep.toml"),
    "run --only": command(
        "run", "SOURCE", "TARGET", "--scheduler", "sync", "--config", "prep.toml", "--only", "patient-000777"
    ),
    "plan": command("plan", "SOURCE", "--config", "prep.toml"),
    "plan --against": command("plan", "SOURCE", "--config", "prep.toml", "--against", "TARGET"),
    "clean": command("clean", "TARGET"),
    "compare": command("compare", "TARGET", "TARGET", "--only", "patient-00[01]*"),
    "verify": command("verify", "TARGET"),
}


def measure(name: str, place: str) -> None:
    """In a process of its own."""
    started = time.perf_counter()
    with Path("output.txt").open("w") as output:
        there = os.dup(1)
        os.dup2(output.fileno(), 1)
        found = WORKS[name](place)
        sys.stdout.flush()
        os.dup2(there, 1)
    used = resource.getrusage(resource.RUSAGE_SELF)
    last = (Path("output.txt").read_text().splitlines() or [""])[-1]
    print(
        f"{name:16} {time.perf_counter() - started:8.1f} s {used.ru_utime + used.ru_stime:8.1f} s CPU "
        f"{peak_mib():7.0f} MiB  {found}  {last[:60]}",
        flush=True,
    )


def fill(place: str, count: int, put: Put, copy_of: Callable[[str, str], None], *, is_lean: bool) -> None:
    """The source's files first, since their listing makes the digests of the records."""
    from dskprep.synthetic import phantom, scanner

    made = phantom.make_phantom(seed=1, spacing_mm=(1.0, 1.0, 1.0), shape=(FILES, 24, 24))
    model = f"{place}/model"
    storage.write_many(f"{model}/in/p", dict(scanner.series_files(made, name="p", seed=1)))
    dskprep.run(f"{model}/in", f"{model}/out", settings=SETTINGS)
    names = sorted(e.name for e in storage.listing_below(f"{model}/in"))
    files = sorted(e.name for e in storage.listing_below(f"{model}/out/volumes/p.zarr"))
    record = store.find_written(f"{model}/out", "p", next(cases.cases(f"{model}/in")).digest)[-1].as_dict()
    store.create(f"{place}/target", SETTINGS)
    thumbnail = os.urandom(4500)  # as large as one is, and no smaller when it is compressed
    put("model/p.webp", thumbnail)
    slices = real_slices()
    with ThreadPoolExecutor(16) as threads:

        def all_of(work: Callable[[int], None]) -> None:
            for start in range(0, count, 1000):
                list(threads.map(work, range(start, min(start + 1000, count))))

        def source(i: int) -> None:
            for n, name in enumerate(names[:1] if is_lean else names):
                copy_of(f"model/in/{name}", f"source/{key_of(i)}/{n}.dcm")

        def volume(i: int) -> None:
            if not is_refused(i):
                for name in () if is_lean else files:
                    copy_of(f"model/out/volumes/p.zarr/{name}", f"target/volumes/{key_of(i)}.zarr/{name}")
                copy_of("model/p.webp", f"target/thumbnails/{key_of(i)}.webp")

        all_of(source)
        all_of(volume)
        promise = {"bytes": len(thumbnail), "sha256": hashlib.sha256(thumbnail).hexdigest()}
        records = (
            record_of(i, case, record, promise, slices[i % len(slices)])
            for i, case in enumerate(cases.cases(f"{place}/source"))
        )
        while some := list(itertools.islice(records, 1000)):
            list(
                threads.map(
                    lambda r: put(f"target/records/{r['status']}/{r['key']}.{r['input_digest']}.json", to_json(r)), some
                )
            )


def real_slices() -> list[int]:
    """Numbers of slices of the 224,941 real series in DSKPREP_DATA; of chests of 100 to 600 without it."""
    if data := os.environ.get("DSKPREP_DATA"):
        table = Path(data, "idc/idc_v25_chest_ct_series.parquet")
        return [int(n) for n in pd.read_parquet(table, columns=["n_slices"])["n_slices"]]
    return random.Random(0).choices(range(100, 600), k=1000)


def key_of(i: int) -> str:
    return f"patient-{i:06}"


def is_refused(i: int) -> bool:
    return i % 20 == 7


def record_of(i: int, case: Case, model: dict[str, Any], thumbnail: dict[str, Any], n_slices: int) -> dict[str, Any]:
    """As a run would have written it, and no two alike."""
    sha256 = hashlib.sha256(str(i).encode()).hexdigest()
    record = model | {"source": {**model["source"]}} | {"key": case.key, "input_digest": case.digest, "url": case.url}
    record |= {"series_uid_sha256": sha256[:12], "hu_sha256": sha256, "thumbnail": thumbnail}
    r = random.Random(i)
    if is_refused(i):
        for name in ("geometry", "lungs", "values", "hu_sha256", "thumbnail"):
            record.pop(name, None)
        reason = r.choice(["too-few-slices", "missing-slices", "localizer-only", "not-hu"])
        message = f"expected slices 2.5 mm apart, found a gap of 5 mm after slice {i % 100} at z = -{i} mm"
        return record | {"status": "refused", "reason": reason, "message": message, "objects": {}}
    record["lungs"] = {
        "right_ml": round(r.gauss(2500, 500), 1),
        "left_ml": round(r.gauss(2200, 500), 1),
        "mean_hu": round(r.gauss(-820, 30), 1),
        "dense_share": round(r.random() / 20, 4),
    }
    record["warnings"] = ["lungs-touch-border"] if r.random() < 0.03 else ["tilt-corrected"] if r.random() < 0.1 else []
    record["source"] |= {"step_mm": r.choice([0.625, 1.0, 1.25, 2.5]), "kernel": r.choice(["B30f", "STANDARD", "LUNG"])}
    record["source"] |= {"manufacturer": "GE MEDICAL SYSTEMS", "model": "LightSpeed VCT", "slices": n_slices}
    record["seconds"] = {s: round(r.random(), 4) for s in ("read", "decode", "resample", "lungs", "encode", "write")}
    return record


def fill_folder(place: Path, count: int, *, is_lean: bool) -> None:
    def put(name: str, content: bytes) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def link(model: str, name: str) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(place / model, path)
        except OSError:  # a file may have so many names and no more
            shutil.copy2(place / model, path)

    fill(str(place), count, put, link, is_lean=is_lean)


def fill_bucket(count: int, *, is_lean: bool) -> None:
    import obstore
    from obstore.store import S3Store

    bucket = S3Store("scale", client_options={"allow_http": True})

    def put(name: str, content: bytes) -> None:
        obstore.put(bucket, name, content, use_multipart=False)

    contents: dict[str, bytes] = {}

    def copy_of(model: str, name: str) -> None:
        if model not in contents:
            contents[model] = storage.read(f"s3://scale/{model}")
        put(name, contents[model])

    fill("s3://scale", count, put, copy_of, is_lean=is_lean)


def prepared_place(folder: Path, count: int, *, is_s3: bool, is_lean: bool) -> Iterator[str]:
    (folder / "prep.toml").write_text(TOML)
    started = time.perf_counter()
    if not is_s3:
        if not (folder / "target").exists():
            fill_folder(folder, count, is_lean=is_lean)
            print(f"filled in {time.perf_counter() - started:.0f} s", flush=True)
        yield str(folder)
        return
    from dskprep.synthetic.s3server import S3Server

    with S3Server(folder / "s3") as server:
        os.environ.update(server.environment)
        server.make_bucket("scale")
        if not storage.exists("s3://scale/target/dataset.json"):
            fill_bucket(count, is_lean=is_lean)
            print(f"filled in {time.perf_counter() - started:.0f} s", flush=True)
        yield "s3://scale"


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--lean", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("works", nargs="*", default=[*WORKS])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for place in prepared_place(folder, options.series, is_s3=options.s3, is_lean=options.lean):
            print(f"{options.series} series, {place}", flush=True)
            for work in options.works:
                words = [sys.executable, str(Path(__file__).resolve()), "measure", work, place]
                subprocess.run(words, check=False, cwd=folder)


if __name__ == "__main__":
    main()

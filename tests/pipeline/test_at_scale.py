"""What a large dataset may cost: requests, rows on a page, what is held and sent. (Seconds: benchmarks/at_scale.py.)"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import subprocess
import sys
import time
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
import tiny
from faulty_s3 import FaultyS3

import dskprep
from dskprep.dataset import index, leftovers, omezarr, store, verification
from dskprep.dataset.record import parse_record, to_json
from dskprep.dataset.rows import to_row, to_table
from dskprep.look import report
from dskprep.preparation.prepared import Prepared
from dskprep.settings import PrepConfig
from dskprep.synthetic.s3server import S3Server
from dskprep.volume import Volume

OBJECTS = {
    "zarr.json": b"{}",
    "0/zarr.json": b'{"shape": [1, 1, 1]}',
    "0/c/0/0/0": b"voxels",
    "labels/zarr.json": b"{}",
}


def promise(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def record(n: int, status: str = "written", **more: Any) -> dict[str, Any]:
    """A record as large as a real one."""
    return {
        "key": f"p{n:05}",
        "status": status,
        "input_digest": f"{n:016x}",
        "url": f"s3://bucket/scans/p{n:05}",
        "bytes_read": 100_000_000,
        "geometry": {"shape": [1, 1, 1], "spacing_mm": [1.0, 1.0, 1.0], "affine": tiny.AFFINE},
        "lungs": {
            "right_ml": 2500.0 + n,
            "left_ml": 2300.0,
            "mean_hu": -820.0 if n % 50 else -500.0,
            "dense_share": 0.01,
        },
        "source": tiny.SOURCE | {"slices": 100 + n, "manufacturer": "GE", "kernel": "B30f"},
        "seconds": dict.fromkeys(("read", "decode", "resample", "lungs", "encode", "write"), 0.5),
        "series_uid_sha256": f"{n:012x}",
        "hu_sha256": f"{n:064x}",
        "objects": {name: promise(content) for name, content in OBJECTS.items()},
        **more,
    }


def path_of(made: dict[str, Any]) -> str:
    return f"records/{made['status']}/{made['key']}.{made['input_digest']}.json"


def dataset_of(target: str, n_volumes: int) -> str:
    """So many volumes, each of a few tiny objects."""
    store.create(target, PrepConfig())
    files = {}
    for n in range(n_volumes):
        made = record(n)
        files[path_of(made)] = to_json(made)
        files |= {f"volumes/{made['key']}.zarr/{name}": content for name, content in OBJECTS.items()}
    return tiny.write(target, files)


# Requests to a bucket


@pytest.fixture
def proxy(s3_server: S3Server, s3_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:  # noqa: ARG001
    """Whatever opens an S3 URL goes through it; it counts."""
    with FaultyS3(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy


@pytest.fixture
def bucket(s3_server: S3Server, proxy: FaultyS3) -> str:  # noqa: ARG001
    return f"{s3_server.make_bucket('scale')}/{uuid.uuid4().hex}"


def kinds(proxy: FaultyS3) -> Counter[str]:
    """Requests so far, by what they ask for."""
    return Counter("LIST" if "list-type" in each["query"] else each["method"] for each in proxy.log)


@pytest.mark.s3
def test_verifying_asks_for_each_object_once_and_lists_each_volume_once(bucket: str, proxy: FaultyS3) -> None:
    target = dataset_of(bucket, 10)
    proxy.forget()
    assert [finding.faults for finding in verification.verify(target)] == [()] * 10
    found = kinds(proxy)
    assert found["LIST"] == 10 + 2  # the records, and those of labels
    assert found["GET"] == 10 * (1 + len(OBJECTS)) + 1  # each record and what it promises; dataset.json


@pytest.mark.s3
def test_a_slow_volume_does_not_hold_up_the_verification_of_others(bucket: str, proxy: FaultyS3) -> None:
    target = dataset_of(bucket, 5)
    proxy.script("hold", "p00000.zarr/0/c/0/0/0")
    checked = verification.verify(target)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(next, checked)
        deadline = time.monotonic() + tiny.LIMIT_S
        while not [e for e in proxy.log if e["method"] == "GET" and "p00004.zarr/zarr.json" in e["path"]]:
            assert time.monotonic() < deadline
        assert proxy.n_held == 1
        assert not first.done()
        proxy.release()
        assert [first.result().key, *(finding.key for finding in checked)] == [f"p{n:05}" for n in range(5)]


@pytest.mark.s3
def test_cleaning_a_bucket_asks_nothing_of_volumes_that_have_a_record(bucket: str, proxy: FaultyS3) -> None:
    target = dataset_of(bucket, 10)
    image = Prepared(Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)), None)
    lost = {f"volumes/lost.zarr/{name}": b for name, b in omezarr.encode(image, PrepConfig(), {}).items()}
    lost["thumbnails/lost.webp"] = tiny.THUMBNAIL
    tiny.write(target, lost)
    proxy.forget()
    found = list(leftovers.clean(target, older_than_s=-60))
    assert sorted(found) == sorted(lost)
    assert not [each for each in proxy.log if "p0000" in each["path"] + each["query"]]
    assert kinds(proxy)["LIST"] <= 8
    assert {f.faults for f in verification.verify(target)} == {()}


# What is held and sent


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """2000 volumes and 300 series that were refused for the same reason, one for another; records only."""
    target = str(tmp_path_factory.mktemp("large") / "dataset")
    store.create(target, PrepConfig())
    lost = {"geometry": None, "lungs": None, "message": "expected 10 slices, found 3"}
    records = [record(n) for n in range(2000)]
    records += [record(n, "refused", reason="too-few-slices", **lost) for n in range(2000, 2300)]
    records += [record(2300, "failed", reason="OSError", **lost)]
    for each in records:
        path = Path(target, path_of(each))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_json(each))
    index.write(target)
    return target


def test_what_a_loaders_worker_is_sent_does_not_hold_the_index(large: str) -> None:
    chosen = dskprep.open_dataset(large).where(lambda row: row["source_slices"] >= 100)
    patches = chosen.lung_patches(8)
    assert len(chosen) == len(chosen.rows) == len(chosen.index) == len(patches.keys) == 2000
    sent = pickle.dumps(patches)
    assert len(sent) / 2000 < 150  # a key and a digest; a row of the index has 40 values
    copy = pickle.loads(sent)
    assert (copy.keys, copy.dataset.keys()) == (patches.keys, chosen.keys())
    assert copy.dataset["p00007"].record.lungs.right_ml == 2507.0
    assert len(copy.dataset.rows) == 2000


def test_choosing_volumes_holds_few_rows_at_a_time(large: str) -> None:
    def peak_of(work: Any) -> int:
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    dskprep.open_dataset(large).where(lambda _: False)  # what is imported then does not count
    choosing = peak_of(lambda: dskprep.open_dataset(large).where(lambda row: row["key"] < "p01000"))
    holding = peak_of(lambda: dskprep.open_dataset(large).rows)
    assert choosing < 0.7 * holding


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_reading_the_index_leaves_no_thread_that_could_abort_a_program_at_its_end(large: str) -> None:
    program = f"""if True:
        import os
        from dskprep.dataset import index
        n_before = len(os.listdir("/proc/self/task"))
        assert len(index.read({large!r})) == len(list(index.rows_of(index.current_table({large!r}), ["key"]))) == 2301
        print(len(os.listdir("/proc/self/task")) - n_before)
    """
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True).stdout == "0\n"


def test_series_that_seem_split_are_found_among_many() -> None:
    records = [record(n) for n in range(50)]
    part = {"series_uid_sha256": "a" * 12, "study": "5" * 16}
    records += [record(n, **part) for n in (60, 59)]  # other voxels
    records += [record(61, **part | {"study": "6" * 16})]  # another patient, whose UIDs somebody has made the same
    records += [record(n, series_uid_sha256="b" * 12, study="5" * 16, hu_sha256="c" * 64) for n in (70, 71)]  # copies
    records += [record(80, "refused", reason="not-hu", **part)]
    records += [record(n, series_uid_sha256="d" * 12) for n in (90, 91)]  # image.nii of two patients
    table = to_table([to_row(parse_record(to_json(each), path_of(each))) for each in records])
    assert index.split_series(table) == [["p00059", "p00060"]]
    assert index.split_series(table.slice(0, 50)) == []


def test_the_page_shows_outliers_an_even_share_and_some_of_each_reason(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MAX_VOLUMES": 100, "MAX_PICTURES": 10, "MAX_OF_A_REASON": 20}.items():
        monkeypatch.setattr(report, name, value)
    asked: list[str] = []
    monkeypatch.setattr(report, "_thumbnails", lambda _, keys: asked.extend(keys) or {})
    page = report.report(large)
    rows = json.loads(re.search(r'id="rows">(.*?)</script>', page, re.DOTALL)[1])["rows"]  # type: ignore[index]
    written = [int(row["key"][1:]) for row in rows if row["status"] == "written"]
    assert len(written) == len(set(written)) == 100
    assert set(range(0, 2000, 50)) <= set(written)  # their lungs are dense
    others = {n // 200 for n in written if n % 50}
    assert others == set(range(10))
    assert Counter(row["reason"] for row in rows if row["status"] != "written") == {"too-few-slices": 20, "OSError": 1}
    assert len(asked) == 10
    text = re.sub(r"<[^>]*>", "", page)
    assert "100 of the 2000 written volumes, 10 with a picture" in text
    assert "21 of the 301 series not written, at most 20 per reason" in text
    assert re.search(r"<b class=\"refused\">300</b>", page)  # what is counted is all


def test_a_small_dataset_is_on_its_page_as_a_whole(tmp_path: Path) -> None:
    target = dataset_of(str(tmp_path / "small"), 12)
    page = report.report(target)
    assert all(f'"key": "p{n:05}"' in page for n in range(12))
    assert "would be slow to open" not in page

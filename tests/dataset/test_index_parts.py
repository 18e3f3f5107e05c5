"""A large index lies in parts: rows are appended, and what a killed writer leaves out is noticed and read again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from pyarrow import parquet
from tiny import record

from dskprep import storage
from dskprep.dataset import index, index_files, leftovers, store
from dskprep.dataset.record import RecordName
from dskprep.dataset.rows import to_row, to_table
from dskprep.errors import DamagedDataset, InfrastructureError
from dskprep.settings import PrepConfig
from dskprep.storage import local

KEYS = [f"p{n:02}" for n in range(23)]
LATE = {"source": {"kernel": "B30f"}, "seconds": {"read": 0.1}}
"""What a written series has and a refused one lacks."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "PART_ROWS", 5)


def dataset_of(place: str, keys: list[str]) -> str:
    store.create(place, PrepConfig())
    commit(place, keys)
    return place


def commit(place: str, keys: list[str]) -> None:
    for key in keys:
        store.commit(place, record(key, "refused", reason="not-ct") if key < "p03" else record(key, **LATE))


def parts(place: str) -> dict[str, str]:
    """What lies there of the index, and the SHA-256 of each."""
    below = {name: content for name, content in tiny.everything_below(place).items() if name.startswith("index.parq")}
    return {name: hashlib.sha256(content).hexdigest() for name, content in below.items()}


def keys_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the records that are read from now on."""
    read: list[str] = []
    read_many = storage.read_many

    def spying(url: str, entries: list[storage.Entry]) -> Iterator[tuple[str, bytes]]:
        if url.endswith("/records"):
            read.extend(entry.name for entry in entries)
        return read_many(url, entries)

    monkeypatch.setattr(storage, "read_many", spying)
    return read


def write_and_be_killed(place: str, n_writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the index, and be killed after so many writes, if it takes more."""
    write_many, written = storage.write_many, []

    def die(url: str, objects: dict[str, bytes]) -> None:
        if len(written) == n_writes:
            raise KeyboardInterrupt
        written.extend(objects)
        write_many(url, objects)

    with monkeypatch.context() as killed:
        killed.setattr(storage, "write_many", die)
        with contextlib.suppress(KeyboardInterrupt):
            index.write(place)


def test_a_small_index_is_a_file_and_a_large_one_a_folder_that_pandas_reads_alike(place: str) -> None:
    dataset_of(place, KEYS[:5])
    index.write(place)
    assert list(parts(place)) == ["index.parquet"]
    commit(place, KEYS[5:])
    assert index.write(place)
    assert list(parts(place)) == [f"index.parquet/part-{n:05}.parquet" for n in range(5)]
    table = index.read(place)
    assert list(table["key"]) == KEYS
    assert table["source_kernel"].tolist()[2:4] == [None, "B30f"] or pd.isna(table["source_kernel"][2])
    if not storage.is_bucket(place):
        beside = pd.read_parquet(f"{place}/index.parquet")
        assert sorted(beside["key"]) == KEYS
        assert dict(zip(beside["key"], beside["source_kernel"], strict=True))["p22"] == "B30f"


def test_new_rows_leave_full_parts_untouched(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset_of(place, KEYS[:12])
    index.write(place)
    before = parts(place)
    read = keys_read(monkeypatch)
    commit(place, KEYS[12:20])
    fresh = to_table([to_row(record(key, **LATE)) for key in KEYS[12:20]])
    assert index.write(place, [fresh])
    after = parts(place)
    full = [f"index.parquet/part-{n:05}.parquet" for n in range(2)]
    assert {name: after[name] for name in full} == {name: before[name] for name in full}
    assert (len(before), len(after), read) == (3, 4, [])
    assert list(index.read(place)["key"]) == KEYS[:20]
    assert not index.write(place)
    assert parts(place) == after


def test_a_record_that_changes_or_goes_changes_its_part_alone(place: str) -> None:
    dataset_of(place, KEYS)
    index.write(place)
    before = parts(place)
    store.forget(place, [RecordName("written", "p06", "0" * 16), RecordName("written", "p07", "0" * 16)])
    store.commit(place, record("p06", "failed", reason="OSError"))
    index.write(place)
    changed = {name for name, digest in parts(place).items() if before[name] != digest}
    assert changed == {"index.parquet/part-00001.parquet", "index.parquet/part-00004.parquet"}
    table = index.read(place).set_index("key")
    assert table.loc["p06", "status"] == "failed"
    assert sorted(table.index) == [key for key in KEYS if key != "p07"]


def test_a_part_that_is_damaged_costs_its_own_rows_alone(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset_of(place, KEYS)
    index.write(place)
    tiny.write(place, {"index.parquet/part-00001.parquet": b"no parquet"})
    with pytest.raises(DamagedDataset, match=r"part-00001\.parquet is damaged"):
        index.read(place)
    read = keys_read(monkeypatch)
    assert list(index.current(place)["key"]) == KEYS
    assert read == [f"written/{key}.{'0' * 16}.json" for key in KEYS[5:10]]
    index.write(place)
    assert list(index.read(place)["key"]) == KEYS


@pytest.mark.parametrize("n_writes", range(5))
def test_a_writer_that_is_killed_between_parts_loses_nothing_and_is_noticed(
    place: str, n_writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(place, KEYS[:7])
    index.write(place)
    commit(place, KEYS[7:])
    store.forget(place, [RecordName("written", "p03", "0" * 16)])
    write_and_be_killed(place, n_writes, monkeypatch)
    expected = [key for key in KEYS if key != "p03"]
    assert list(index.current(place)["key"]) == expected
    assert index.record_names(place).damaged == set()  # as a run does at its start
    assert list(index.read(place)["key"]) == expected
    assert not index.write(place)


@pytest.mark.parametrize("n_writes", range(4))
def test_an_old_file_opens_as_before_and_becomes_parts_when_rows_are_added(
    place: str, n_writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older dskprep wrote one file of any length; killed at any moment, the way to parts loses nothing."""
    dataset_of(place, KEYS[:17])
    table = index.current_table(place)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    tiny.write(place, {"index.parquet": buffer.getvalue()})
    read = keys_read(monkeypatch)
    assert list(index.read(place)["key"]) == list(index.current(place)["key"]) == KEYS[:17]
    assert not index.write(place)
    assert (list(parts(place)), read) == (["index.parquet"], [])
    commit(place, KEYS[17:])
    write_and_be_killed(place, n_writes, monkeypatch)
    assert list(index.current(place)["key"]) == KEYS
    index.write(place)
    assert list(parts(place)) == [f"index.parquet/part-{n:05}.parquet" for n in range(5)]
    assert list(index.read(place)["key"]) == KEYS


def test_what_a_killed_writer_left_of_a_part_is_no_part_and_clean_takes_it(tmp_path: Path) -> None:
    place = dataset_of(str(tmp_path), KEYS)
    index.write(place)
    half = "index.parquet/part-00001.parquet.0123456789ab.part"
    tiny.write(place, {half: b"half"})
    assert list(index.read(place)["key"]) == KEYS
    assert list(leftovers.clean(place, older_than_s=-60)) == [half]


@pytest.mark.parametrize("n_rows", [7, 12], ids=["few rows", "many rows"])
@pytest.mark.parametrize("left", [(), ("notes.txt",)])
def test_a_folder_without_parts_is_filled(tmp_path: Path, n_rows: int, left: tuple[str, ...]) -> None:
    place = dataset_of(str(tmp_path), KEYS[:n_rows])
    (tmp_path / "index.parquet").mkdir()
    tiny.write(place, {f"index.parquet/{name}": b"mine" for name in left})
    assert list(index.current(place)["key"]) == KEYS[:n_rows]
    assert index.write(place)
    assert list(index.read(place)["key"]) == KEYS[:n_rows]
    commit(place, KEYS[n_rows:])
    assert index.write(place)
    assert list(index.read(place)["key"]) == KEYS


def test_a_disk_that_is_full_while_the_index_becomes_a_folder_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = dataset_of(str(tmp_path), KEYS[:4])
    index.write(place)
    commit(place, KEYS[4:])

    def full(_: Any, path: str, __: bytes) -> str:
        Path(path).parent.mkdir(exist_ok=True)  # there is still room for that
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with monkeypatch.context() as patched:
        patched.setattr(local, "_write_beside", full)
        with pytest.raises(InfrastructureError, match="No space left"):
            index.write(place)
    assert index.write(place)
    assert list(index.read(place)["key"]) == KEYS


@pytest.mark.s3
def test_files_of_others_among_the_parts_stay_and_do_not_count(place: str) -> None:
    dataset_of(place, KEYS[:12])
    index.write(place)
    whole = index.read(place)
    others = {f"index.parquet/{name}": b"mine" for name in ("notes.parquet", "part-1.parquet", "part-00000.csv")}
    tiny.write(place, others)
    pd.testing.assert_frame_equal(index.read(place), whole)
    commit(place, KEYS[12:])
    index.write(place)
    assert list(index.read(place)["key"]) == KEYS
    assert others.items() <= tiny.everything_below(place).items()


def test_a_bucket_that_goes_from_a_file_to_parts_keeps_what_others_put_there(s3: str) -> None:
    dataset_of(s3, KEYS[:4])
    index.write(s3)
    left = {"index.parquet/notes.parquet": b"mine", "index.parquet/part-00009.parquet": b"of a writer that was killed"}
    tiny.write(s3, left)
    commit(s3, KEYS[4:])
    index.write(s3)
    assert list(index.read(s3)["key"]) == KEYS
    assert [*parts(s3)] == ["index.parquet/notes.parquet", *(f"index.parquet/part-{n:05}.parquet" for n in range(5))]


def test_a_file_that_an_older_version_writes_beside_parts_counts(s3: str) -> None:
    dataset_of(s3, KEYS[:12])
    index.write(s3)
    commit(s3, KEYS[12:])
    buffer = io.BytesIO()
    parquet.write_table(index.current_table(s3), buffer)
    tiny.write(s3, {"index.parquet": buffer.getvalue()})
    assert list(index.read(s3)["key"]) == KEYS
    store.forget(s3, [RecordName("written", "p09", "0" * 16)])
    index.write(s3)
    assert list(parts(s3)) == [f"index.parquet/part-{n:05}.parquet" for n in range(5)]
    assert list(index.read(s3)["key"]) == [key for key in KEYS if key != "p09"]


def test_a_run_of_many_writes_full_parts_as_it_goes(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was added is not held for the whole of a run, however fast its patients are."""
    monkeypatch.setattr(index, "ROWS_AT_ONCE", 5)
    dataset_of(place, [])
    sent: list[int] = []
    write = index.write

    def counted(target: str, fresh: list[Any]) -> bool:
        sent.append(sum(map(len, fresh)))
        return write(target, fresh)

    monkeypatch.setattr(index, "write", counted)
    writer = index.Writer(place)
    for key in KEYS[3:]:
        made = record(key, **LATE)
        store.commit(place, made)
        writer.add([made])
        if writer._under_way:
            writer._under_way.result()
    writer.close()
    assert sent == [5, 5, 5, 5, 0]
    assert list(index.read(place)["key"]) == KEYS[3:]

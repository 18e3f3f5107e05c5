"""A dataset on disk or in a bucket: one settings digest, records as commits, an index made from them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny
from tiny import record

import dskprep
from dskprep import storage
from dskprep.cli import run_commands
from dskprep.dataset import columns, index, status, store, target_place
from dskprep.dataset.facts import StoredObject
from dskprep.dataset.record import RecordName
from dskprep.dataset.rows import to_row, to_table
from dskprep.errors import DamagedDataset, InfrastructureError, UsageError
from dskprep.settings import PrepConfig


@pytest.fixture
def place(any_place: str) -> str:
    return any_place


def test_a_dataset_is_begun_once_and_joined_by_the_same_settings(place: str) -> None:
    store.create(place, PrepConfig())
    before = storage.read(f"{place}/dataset.json") + b"\n"
    tiny.write(place, {"dataset.json": before})
    store.create(place, PrepConfig())
    assert storage.read(f"{place}/dataset.json") == before
    assert store.describe(place)["settings"] == PrepConfig().as_dict()


def test_other_settings_are_refused_with_the_difference(place: str) -> None:
    store.create(place, PrepConfig(spacing_mm=(2, 1, 1), chunk=32))
    with pytest.raises(UsageError) as caught:
        store.create(place, PrepConfig())
    message = str(caught.value)
    assert "chunk is 32 there and 64 here" in message
    assert "spacing_mm is [2.0, 1.0, 1.0] there and [1.0, 1.0, 1.0] here" in message
    assert "lungs" not in message
    assert message.endswith("; go on with its settings (--config takes its dataset.json), or choose another target")
    assert store.describe(place)["settings"]["chunk"] == 32


def test_three_of_many_other_settings_are_named_and_the_preset_that_has_them(tmp_path: Path) -> None:
    store.create(str(tmp_path), PrepConfig())
    with pytest.raises(UsageError) as caught:
        store.create(str(tmp_path), PrepConfig(chunk=32, levels=2, lungs=False, min_slices=5, zstd_level=3))
    names = re.findall(r"(\w+) is (?:not set|\S+) there", str(caught.value))
    assert names == ["chunk", "levels", "lungs"]
    assert str(caught.value).endswith(", and 2 more; go on with the preset default, or choose another target")


@pytest.mark.parametrize("below", ["volumes", "another/dataset"])
def test_a_dataset_does_not_begin_inside_another_one(place: str, below: str) -> None:
    store.create(place, PrepConfig())
    inner = f"{place}/{below}"
    with pytest.raises(UsageError) as caught:
        store.create(inner, PrepConfig())
    assert str(caught.value) == f"{inner}: lies inside the dataset {place}; choose a place outside it"
    store.create(f"{place}-beside", PrepConfig())


def test_phantoms_are_not_written_into_a_dataset(tmp_path: Path) -> None:
    store.create(str(tmp_path / "out"), PrepConfig())
    with pytest.raises(UsageError, match="lies inside the dataset"):
        run_commands.phantom.main([str(tmp_path / "out/volumes/new"), "--patients", "1"], standalone_mode=False)
    assert not (tmp_path / "out/volumes").exists()


def test_what_lies_inside_a_dataset_of_others_or_already_there_goes_on(place: str) -> None:
    inner = f"{place}/inner"
    store.create(inner, PrepConfig())
    tiny.write(place, {"dataset.json": b'{"name": "as nnU-Net has it", "numTraining": 3}'})
    store.create(f"{place}/other", PrepConfig())
    storage.delete(place, ["dataset.json"])
    tiny.write(place, {"dataset.json": storage.read(f"{inner}/dataset.json")})
    store.create(inner, PrepConfig())


def test_the_folders_above_a_place_end_at_its_bucket() -> None:
    assert storage.above("s3://bucket/a/b") == ["s3://bucket/a", "s3://bucket"]
    assert storage.above("s3://bucket") == []
    assert storage.above("/data/a/b") == ["/data/a", "/data", "/"]


@pytest.mark.parametrize("linked", ["records", "records/written"])
@pytest.mark.parametrize("read", [lambda url: list(store.record_names(url)), index.current, status.status])
def test_a_linked_folder_of_records_is_not_taken_for_an_empty_one(
    tmp_path: Path, linked: str, read: Callable[[str], object]
) -> None:
    target = tmp_path / "out"
    store.create(str(target), PrepConfig())
    store.commit(str(target), record("p"))
    (target / linked).rename(tmp_path / "moved")
    (target / linked).symlink_to(tmp_path / "moved")
    with pytest.raises(InfrastructureError, match=f"{linked}: expected a folder, found a link"):
        read(str(target))


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"{", "damaged"), (b'{"format": 99}', "format 99"), (b"{}", "format None"), (b"[]", "format None")],
)
def test_what_is_no_dataset_of_ours_says_so(place: str, content: bytes, problem: str) -> None:
    with pytest.raises(UsageError, match=r"there is no such folder"):
        store.describe(place)
    tiny.write(place, {"dataset.json": content})
    with pytest.raises(DamagedDataset if problem == "damaged" else UsageError, match=problem):
        store.describe(place)


def test_the_name_of_a_record_says_what_resuming_needs(place: str) -> None:
    records = [record("p.1"), record("p.1+ab", "refused", "1" * 16), record("q", "killed"), record("q", "failed")]
    for each in records:
        store.commit(place, each)
    tiny.write(f"{place}/records", {"written/x.json.123.part": b"", "other/y.0.json": b"", "README": b""})
    assert sorted(store.record_names(place)) == [
        RecordName("failed", "q", "0" * 16),
        RecordName("killed", "q", "0" * 16),
        RecordName("refused", "p.1+ab", "1" * 16),
        RecordName("written", "p.1", "0" * 16),
    ]
    assert store.read_record(place, RecordName("written", "p.1", "0" * 16)) == records[0]


def test_a_record_that_is_no_strict_json_is_not_written(place: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.commit(place, record("p").changed(seconds={"read": float("nan")}))
    assert list(store.record_names(place)) == []


def test_a_record_of_a_path_that_is_not_utf8_is_read_again(place: str) -> None:
    given = record("p", "refused", url="/in/caf\udce9", reason="not-ct", message="/in/caf\udce9: found MR")
    store.commit(place, given)
    assert store.read_record(place, given.name) == given
    assert index.current(place)["url"].tolist() == ["/in/caf\\udce9"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"key": "\xff"}', b'{"status": 3}'])
def test_what_is_no_record_is_damaged(place: str, content: bytes) -> None:
    name = RecordName("written", "p", "0" * 16)
    tiny.write(place, {name.path: content})
    with pytest.raises(DamagedDataset, match=r"p\.0{16}\.json: this record is damaged"):
        store.read_record(place, name)
    assert index.current(place)["reason"].tolist() == ["damaged-record"]


def test_nothing_but_the_new_objects_is_left_of_a_volume(place: str) -> None:
    store.write_volume(place, "p", {"zarr.json": b"old", "0/c/0/0/1": b"old"})
    store.write_volume(place, "p2", {"zarr.json": b"neighbour"})
    tiny.write(store.volume_url(place, "p"), {"0/c/0/0/0.0123456789ab.part": b"stray", "labels/lungs/0/c/0/0/9": b"x"})
    promised = store.write_volume(place, "p", {"zarr.json": b"new", "0/c/0/0/0": b"chunk"})
    assert tiny.everything_below(f"{place}/volumes") == {
        "p.zarr/zarr.json": b"new",
        "p.zarr/0/c/0/0/0": b"chunk",
        "p2.zarr/zarr.json": b"neighbour",
    }
    assert promised["zarr.json"] == StoredObject(3, hashlib.sha256(b"new").hexdigest())


def test_a_forgotten_record_takes_its_volume_with_it(place: str) -> None:
    for key in ("p", "q"):
        store.write_volume(place, key, {"zarr.json": b"x"})
        store.commit(place, record(key))
    store.commit(place, record("r", "refused"))
    store.forget(place, [n for n in store.record_names(place) if n.key in ("p", "r")])
    assert [n.key for n in store.record_names(place)] == ["q"]
    assert list(tiny.everything_below(f"{place}/volumes")) == ["q.zarr/zarr.json"]


def test_the_record_goes_before_its_volume(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_volume(place, "p", {"zarr.json": b"x"})
    store.commit(place, record("p"))

    def break_off(*_: object) -> None:
        raise InfrastructureError("gone")

    monkeypatch.setattr(store, "volume_objects", break_off)
    with pytest.raises(InfrastructureError):
        store.forget(place, list(store.record_names(place)))
    assert list(store.record_names(place)) == []


# the index

GEOMETRY = {
    "shape": [3, 4, 5],
    "spacing_mm": [1.0, 1.0, 1.0],
    "affine": [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]],
}
WRITTEN = {
    "geometry": GEOMETRY,
    "lungs": {"right_ml": 2000.5, "left_ml": 1800.0},
    "warnings": ["one-lung", "hu-clipped"],
    "source": {"slices": 3, "kernel": "B30f"},
    "seconds": {"read": 0.1},
    "objects": {"zarr.json": {"bytes": 7, "sha256": ""}, "0/zarr.json": {"bytes": 3, "sha256": ""}},
}


def test_the_index_has_one_flat_row_a_record(place: str) -> None:
    store.commit(place, record("p", **WRITTEN))
    store.commit(place, record("q", "refused", reason="not-ct", message="m"))
    index.write(place)
    table = index.read(place).set_index("key")
    assert list(table.index) == ["p", "q"]
    row = table.loc["p"]
    assert (row["n_z"], row["n_x"], row["bytes_written"], row["warnings"]) == (3, 5, 10, "one-lung,hu-clipped")
    assert (row["right_lung_ml"], row["source_kernel"], row["seconds_read"]) == (2000.5, "B30f", 0.1)
    assert list(row["affine"]) == [v for line in GEOMETRY["affine"] for v in line]
    assert table.loc["q", "reason"] == "not-ct"


def test_the_index_follows_the_records_and_reads_only_new_ones(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in "abc":
        store.commit(place, record(key, **WRITTEN))
    index.write(place)
    store.forget(place, [RecordName("written", "b", "0" * 16)])
    store.commit(place, record("d", "refused", reason="not-ct", message=""))
    store.commit(place, record("e", **WRITTEN))
    read: list[str] = []
    read_many = storage.read_many
    monkeypatch.setattr(
        storage, "read_many", lambda url, entries: (read.extend(e.name for e in entries), read_many(url, entries))[1]
    )
    assert index.write(place, [to_table([to_row(record("e", **WRITTEN))])])
    assert read == [f"refused/d.{'0' * 16}.json"]
    assert list(index.read(place)["key"]) == ["a", "c", "d", "e"]
    assert not index.write(place)


def test_a_record_that_was_written_and_is_gone_is_said(place: str) -> None:
    store.commit(place, record("a", **WRITTEN))
    with pytest.raises(InfrastructureError, match="1 records that were written are not there any more"):
        index.write(place, [to_table([to_row(record(key, **WRITTEN)) for key in ("a", "gone")])])


def test_records_that_go_while_they_are_read_are_listed_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in "ab":
        store.commit(place, record(key, **WRITTEN))
    read_many = storage.read_many

    def remove_first(url: str, entries: list[storage.Entry]) -> Any:
        store.forget(place, [RecordName("written", "b", "0" * 16)])
        return read_many(url, entries)

    monkeypatch.setattr(storage, "read_many", remove_first)
    index.write(place)
    assert list(index.read(place)["key"]) == ["a"]


def test_an_index_of_other_columns_is_made_anew(place: str) -> None:
    store.commit(place, record("a", **WRITTEN))
    buffer = io.BytesIO()
    index.current(place).assign(n_z="many", key="a").to_parquet(buffer)
    tiny.write(place, {"index.parquet": buffer.getvalue()})
    store.commit(place, record("b", **WRITTEN))
    index.write(place)
    assert index.read(place)["n_z"].tolist() == [3, 3]


def test_a_long_run_writes_the_index_beside_it(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WRITE_EVERY_S", 0)
    written = threading.Event()
    write = index.write
    monkeypatch.setattr(index, "write", lambda *arguments: (write(*arguments), written.set()))
    writer = index.Writer(place)
    for key in "ab":
        store.commit(place, record(key, **WRITTEN))
        writer.add([record(key, **WRITTEN)])
    assert written.wait(tiny.LIMIT_S)
    assert "a" in index.read(place)["key"].tolist()
    writer.close()
    assert list(index.read(place)["key"]) == ["a", "b"]


def test_rows_that_did_not_reach_the_index_are_kept_for_the_next(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WRITE_EVERY_S", 0)
    write, seen = index.write, []

    def break_off_first(target: str, tables: list[pa.Table]) -> None:
        seen.append([key for table in tables for key in table["key"].to_pylist()])
        if len(seen) == 1:
            raise InfrastructureError("no network")
        write(target, tables)

    monkeypatch.setattr(index, "write", break_off_first)
    writer = index.Writer(place)
    store.commit(place, record("a", **WRITTEN))
    writer.add([record("a", **WRITTEN)])
    writer.close()
    assert seen == [["a"], ["a"]]
    assert list(index.read(place)["key"]) == ["a"]


def test_an_index_of_nothing_can_be_written_and_read(place: str) -> None:
    index.write(place)
    assert len(index.read(place)) == 0


def test_an_index_has_each_column_that_the_docs_list(tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1"])
    dskprep.run(source, tmp_path / "out", settings=dskprep.PrepConfig(lungs=False, check_hu=False))
    found = dskprep.open_dataset(tmp_path / "out")
    assert found.index.columns.to_list()[:3] == ["key", "status", "input_digest"]
    assert set(columns.DESCRIBED) <= {*found.index.columns}
    assert found.index["source_tilt_degrees"].isna().all()
    assert len(found.where(lambda row: not row["source_tilt_degrees"])) == 1


def test_an_index_of_refusals_alone_can_be_extended_by_volumes(place: str) -> None:
    store.commit(place, record("a", "refused", reason="not-ct", message=""))
    index.write(place)
    store.commit(place, record("b", **WRITTEN))
    index.write(place)
    assert index.read(place)["n_z"].tolist()[1] == 3


def test_a_damaged_index_is_made_anew(place: str) -> None:
    store.commit(place, record("a", **WRITTEN))
    index.write(place)
    whole = storage.read(f"{place}/index.parquet")
    for content in (b"no parquet", whole[:-200] + b"\xff" * 192 + whole[-8:], b"PAR1" + bytes(500) + whole[504:]):
        tiny.write(place, {"index.parquet": content})
        with pytest.raises(DamagedDataset, match="damaged"):
            index.read(place)
    index.write(place)
    assert list(index.read(place)["key"]) == ["a"]


def test_an_absent_index_says_when_there_will_be_one(place: str) -> None:
    with pytest.raises(UsageError, match="a run writes it at its end"):
        index.read(place)


def test_the_account_of_a_run_is_kept(place: str) -> None:
    store.write_run(place, "20260101T000000Z", {"counts": {"written": 1}})
    assert json.loads(storage.read(f"{place}/runs/20260101T000000Z/summary.json")) == {"counts": {"written": 1}}


def test_a_file_of_holes_in_a_folder_above_is_not_read(tmp_path: Path) -> None:
    """In /tmp another user may have put it there, at no cost."""
    with (tmp_path / "dataset.json").open("wb") as file:
        file.truncate(1 << 29)
    tracemalloc.start()
    try:
        target_place.check(str(tmp_path / "out"))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()

"""A record that is not what was written costs that record: every command names it, and goes on with the others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pytest
import tiny
from pyarrow import parquet

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import index, seen, store
from dskprep.dataset.facts import Source
from dskprep.errors import InfrastructureError, UsageError


def altered(*path: str, to: Any) -> Callable[[dict[str, Any]], bytes]:
    """Replace one value of a record."""

    def alter(content: dict[str, Any]) -> bytes:
        *above, last = path
        place = content
        for name in above:
            place = place[name]
        place[last] = to
        return json.dumps(content).encode()

    return alter


def lacking(name: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda content: json.dumps({k: v for k, v in content.items() if k != name}).encode()


def raw(content: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda _: content


MUTATIONS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "empty": raw(b""),
    "cut": lambda content: json.dumps(content).encode()[:-40],
    "zeros": raw(bytes(2000)),
    "no UTF-8": raw(b'{"key": "\xff\xfe"}'),
    "a list": raw(b"[]"),
    "a number": raw(b"7"),
    "null": raw(b"null"),
    "a string": raw(b'"written"'),
    "an object of nothing": raw(b"{}"),
    "a list of records": lambda content: json.dumps([content]).encode(),
    "deeper than any record": raw(b"[" * 200_000),
    "a number of 10,000 digits": lambda c: (
        json.dumps(c).replace('"n_files": 12', '"n_files": ' + "9" * 10_000).encode()
    ),
    "NaN": altered("lungs", "right_ml", to=float("nan")),
    "infinity": altered("lungs", "left_ml", to=float("inf")),
    "infinity by its digits": lambda c: json.dumps(c).replace('"step_mm": 1.0', '"step_mm": 1e999').encode(),
    "no status": lacking("status"),
    "no key": lacking("key"),
    "no geometry": lacking("geometry"),
    "no objects": lacking("objects"),
    "the key of another": altered("key", to="p2"),
    "a key with control characters": altered("key", to="p1\x1b[2J\n"),
    "the status of another folder": altered("status", to="refused"),
    "a status that there is not": altered("status", to="done"),
    "another digest": altered("input_digest", to="0" * 16),
    "a list for an object": altered("geometry", to=[1, 2, 3]),
    "an object for a list": altered("warnings", to={"one-lung": 1}),
    "a number for a string": altered("url", to=5),
    "words in place of numbers": altered("source", "slices", to="twelve"),
    "warnings with control characters": altered("warnings", to=["one\x00lung", "a,b"]),
    "a stage with a lone surrogate": altered("seconds", to={"read\udcff": 1.0}),
    "a huge number of slices": altered("source", "slices", to=10**30),
    "a huge shape": altered("geometry", "shape", to=[2**40, 2**40, 2**40]),
    "a negative shape": altered("geometry", "shape", to=[-1, 24, 24]),
    "a shape of two axes": altered("geometry", "shape", to=[24, 24]),
    "spacing of nothing": altered("geometry", "spacing_mm", to=[0, 1, 1]),
    "a flat affine": altered("geometry", "affine", to=[[0.0] * 4] * 4),
    "a ragged affine": altered("geometry", "affine", to=[[1.0], [1.0, 2.0], [], [0.0]]),
    "huge millimetres": altered("lungs", "right_ml", to=1e308),
    "huge bytes": altered("bytes_read", to=2**200),
    "digests of slices that are no base64": altered("instances", to="A"),
    "objects of negative size": altered("objects", "zarr.json", "bytes", to=-5),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of two patients and a finished dataset of it."""
    folder = tmp_path_factory.mktemp("original")
    dskprep.run(tiny.write_patients(folder / "in", ["p1", "p2"]), str(folder / "out"))
    return folder


def record_of(target: Path | str, key: str) -> Path:
    (name,) = (name for name in store.record_names(str(target)) if name.key == key)
    return Path(target, name.path)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_malformed_record_costs_itself_alone(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mutation: str
) -> None:
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)  # with the index of before
    path = record_of(target, "p1")
    path.write_bytes(MUTATIONS[mutation](json.loads(path.read_bytes())))

    def told_by(*words: str | Path) -> tuple[int, str]:
        code = commands.run_command([str(word) for word in words])
        caught = capsys.readouterr()
        assert "Traceback" not in caught.out + caught.err
        return code, caught.out + caught.err

    code, told = told_by("status", target)
    assert (code, "damaged-record" in told, "p1" in told) == (1, True, True)
    code, told = told_by("verify", target)
    assert (code, "p1: " in told, "2 volumes checked, 1 with faults" in told) == (1, True, True)
    code, told = told_by("compare", original / "out", target)
    assert (code, "p1" in told, "p2" in told) == (1, True, True)
    code, told = told_by("show", target, "p1", "-o", tmp_path / "x.png")
    assert (code, "damaged-record" in told) == (2, True)
    assert told_by("report", target, "-o", tmp_path / "r.html")[0] == 0
    assert "damaged-record" in (tmp_path / "r.html").read_text()
    dataset = dskprep.open_dataset(target)
    assert list(dataset) == ["p2"]
    assert dataset["p2"].load().shape == (12, 24, 24)
    with pytest.raises(KeyError, match="p1: failed, damaged-record"):
        dataset["p1"]
    volume = tiny.everything_below(target / "volumes")
    code, told = told_by("run", original / "in", target, "--scheduler", "sync")
    assert "note: damaged records: 1, such as that of p1; a run does these patients again" in told
    assert (code, "2 patients: 1 done in" in told, "damaged-record" in told) == (0, True, False)
    assert [(each.key, each.faults) for each in dskprep.verify(target)] == [("p1", ()), ("p2", ())]
    assert tiny.everything_below(target / "volumes") == volume


def test_a_damaged_record_of_a_further_series_has_its_folder_done_again(place: str, tmp_path: Path) -> None:
    files = {**tiny.series(5), **{f"b{n}": c for n, c in tiny.series(6, n=14).items()}}
    source, target = tiny.write(tmp_path / "in", {f"p1/{name}": c for name, c in files.items()}), place
    dskprep.run(source, target)
    before = tiny.everything_below(f"{target}/volumes")
    (further,) = (name for name in store.record_names(target) if name.key != "p1")
    tiny.write(target, {further.path: b"{}"})
    assert dskprep.run(source, target).n_new == 1
    assert dskprep.status(target).counts == {"written": 2}
    assert tiny.everything_below(f"{target}/volumes") == before
    assert dskprep.run(source, target).n_new == 0


@pytest.mark.parametrize("fault", ["an object", "the record"])
def test_a_further_series_that_is_forgotten_is_made_again(place: str, tmp_path: Path, fault: str) -> None:
    """The record of the first series of the folder says that it is done, and holds."""
    files = {**tiny.series(5), **{f"b{n}": c for n, c in tiny.series(6, n=14).items()}}
    source, target = tiny.write(tmp_path / "in", {f"p1/{name}": c for name, c in files.items()}), place
    dskprep.run(source, target)
    before = tiny.everything_below(f"{target}/volumes")
    (further,) = (name for name in store.record_names(target) if name.key != "p1")
    tiny.write(target, {further.path if fault == "the record" else f"volumes/{further.key}.zarr/zarr.json": b"{}"})
    assert commands.run_command(["verify", target, "--forget"]) == 1
    assert [name.key for name in store.record_names(target)] == ["p1"]
    assert (dskprep.run(source, target).n_new, dskprep.run(source, target).n_new) == (1, 0)
    assert dskprep.status(target).counts == {"written": 2}
    assert tiny.everything_below(f"{target}/volumes") == before


def test_a_damaged_record_of_a_patient_that_is_not_asked_for_stays_and_is_named(original: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    path = record_of(target, "p1")
    path.write_bytes(b"{}")
    summary = dskprep.run(original / "in", target, only="p2")
    assert (summary.n_new, summary.account.damaged_records.keys(), path.read_bytes()) == (0, {"p1"}, b"{}")
    dskprep.run(original / "in", target, limit=1)
    assert dskprep.status(target).damaged_records == {}


def test_a_record_that_is_damaged_while_its_patient_is_done_is_not_taken_for_whole(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    path, content = record_of(target, "p1"), record_of(target, "p1").read_bytes()
    path.unlink()
    find_written = store.find_written

    def damaged_first(*arguments: Any) -> Any:
        path.write_bytes(b"{}")
        return find_written(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(store, "find_written", damaged_first)
        summary = dskprep.run(original / "in", target)
    assert summary.account.counts == {"written": 1, "failed": 1}
    assert dskprep.run(original / "in", target).n_new == 1
    assert dskprep.status(target).counts == {"written": 2}
    assert json.loads(path.read_bytes())["objects"] == json.loads(content)["objects"]


@pytest.mark.parametrize("status", ["written", "refused"])
def test_what_is_damaged_is_forgotten_and_made_again(original: Path, tmp_path: Path, status: str) -> None:
    shutil.copytree(original / "in", tmp_path / "in")
    tiny.write(tmp_path / "in", {"p1/one.txt": b"", "p3/notes.txt": b"no scan"})
    target = tmp_path / "out"
    dskprep.run(tmp_path / "in", target)
    key = {"written": "p2", "refused": "p3"}[status]
    record_of(target, key).write_bytes(b"{}")
    assert [finding.key for finding in dskprep.verify(target) if finding.faults] == [key]
    dskprep.forget(target, [key])
    summary = dskprep.run(tmp_path / "in", target)
    assert (summary.n_new, summary.account.damaged_records) == (1, {})
    assert dskprep.status(target).damaged_records == {}


def test_one_text_is_no_list_of_keys_to_be_forgotten(tmp_path: Path) -> None:
    """Of a text, every part is in it: `1` and `10` in `100`."""
    target = str(tmp_path / "out")
    dskprep.run(tiny.write_patients(tmp_path / "in", ["1", "10", "100"]), target)
    with pytest.raises(UsageError, match=r"keys must be a list of keys, such as \['100'\], not one text"):
        dskprep.forget(target, "100")
    assert len(dskprep.open_dataset(target)) == 3
    dskprep.forget(target, (key for key in ["100", "1"]))
    assert list(dskprep.open_dataset(target)) == ["10"]


@pytest.mark.parametrize("name", ["refused/p1.aaaaaaaaaaaaaaaa", "written/p1.aaaaaaaaaaaaaaaa"])
@pytest.mark.parametrize("is_sound", [True, False])
def test_a_damaged_record_beside_a_sound_volume_goes_alone(
    place: str, original: Path, name: str, *, is_sound: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.everything_below(original / "out")
    target = tiny.write(place, before)
    tiny.write(target, {f"records/{name}.json": b"{}"})
    if not is_sound:
        storage.delete(target, ["volumes/p1.zarr/0/c/0/0/0"])
    assert commands.run_command(["verify", target]) == 1
    n_faulty = 1 if "written" in name or not is_sound else 0
    assert f"2 volumes checked, {n_faulty} with faults" in capsys.readouterr().out
    assert commands.run_command(["verify", target, "--forget"]) == 1
    of_p1 = ("volumes/p1.", "thumbnails/p1.", "records/written/p1.")
    left = {n: c for n, c in before.items() if is_sound or not n.startswith(of_p1)}
    assert tiny.everything_below(target) == left
    assert commands.run_command(["verify", target]) == 0
    assert f"{'2 volumes' if is_sound else '1 volume'} checked, 0 with faults" in capsys.readouterr().out


def test_a_file_whose_name_is_like_that_of_a_record_is_not_ours(original: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    names = ["p1.notes", "a.b", "p1.AAAAAAAAAAAAAAAA", "p1.0123456789abcde", "p1.0123456789abcdef0"]
    mine = {f"records/{status}/{name}.json": b"mine" for status in ("written", "refused") for name in names}
    tiny.write(target, mine)
    assert dskprep.status(target).counts == {"written": 2}
    assert [finding.faults for finding in dskprep.verify(target)] == [(), ()]
    dskprep.forget(target, ["p1", "a"])
    assert dskprep.run(original / "in", target).n_new == 1
    assert {name: c for name, c in tiny.everything_below(target).items() if c == b"mine"} == mine


def test_a_record_that_changed_since_the_index_is_read_anew(place: str, original: Path) -> None:
    target = tiny.write(place, tiny.everything_below(original / "out"))
    index.write(target)
    before = dskprep.status(target).counts
    (name,) = (name for name in store.record_names(target) if name.key == "p1")
    content = storage.read(f"{target}/{name.path}").replace(b'"written"', b'"wrjtten"')
    tiny.write(target, {name.path: content})  # of the same size
    if "://" not in place:
        os.utime(Path(target, name.path), ns=(1, 1))
    assert (before, dskprep.status(target).counts) == ({"written": 2}, {"written": 1, "failed": 1})


def test_a_volume_that_is_damaged_does_not_end_a_comparison(original: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    (target / "volumes/p1.zarr/0/c/0/0/0").unlink()
    found = dskprep.compare(original / "out", target)
    assert [compared.difference.key for compared in found] == ["p2"]
    assert list(found.damaged) == ["p1"]
    assert "is gone" in found.damaged["p1"]


def test_a_comparison_of_nothing_names_what_is_damaged(original: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    record_of(target, "p1").write_bytes(b"{}")
    with pytest.raises(UsageError, match=r"no patient that matches 'p1'.*p1: .*this record is damaged"):
        dskprep.compare(original / "out", target, only="p1")


# what is not as dskprep writes it, in other files than records

DATASETS = {
    "deep": "[" * 100_000,
    "deep settings": '{"format": 1, "digest": "x", "settings": ' + '{"a":' * 50_000 + "1" + "}" * 50_001,
    "a list of settings": '{"format": 1, "settings": [1, 2], "digest": "x"}',
    "no settings": '{"format": 1, "settings": null, "digest": null}',
    "a digest that is none": '{"format": 1, "settings": {}, "digest": []}',
}


@pytest.mark.parametrize("content", DATASETS)
def test_a_damaged_description_of_the_dataset_is_said_in_one_line(
    original: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    (target / "dataset.json").write_text(DATASETS[content])
    for words in (["status"], ["verify"], ["report", "-o", tmp_path / "r.html"], ["clean"], ["run", original / "in"]):
        options = ["--scheduler", "sync"] if words[0] == "run" else []
        assert commands.run_command([*map(str, words), str(target), *options]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{target}: dataset.json is damaged" in line


@pytest.mark.parametrize("content", [b"[]", b"hello", b"{}", b"null", b"[" * 100_000, b'{"shape": 7}'])
def test_metadata_that_are_none_are_a_fault_also_where_the_record_promises_them(
    original: Path, tmp_path: Path, content: bytes
) -> None:
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    path = record_of(target, "p1")
    record = json.loads(path.read_bytes())
    record["objects"]["0/zarr.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    tiny.write(target, {f"records/written/{path.name}": json.dumps(record).encode()})
    tiny.write(target, {"volumes/p1.zarr/0/zarr.json": content})
    first, second = dskprep.verify(target)
    assert (first.key, len(first.faults), second.key, second.faults) == ("p1", 1, "p2", ())
    assert "the shape is" in first.faults[0]


VALUES = {"numbers": 5, "fractions": 0.5, "words": "../../x", "lists": [1, 2], "truths": True}
COLUMNS = ["key", "status", "message", "warnings", "n_z"]
MORE = ["reason", "right_lung_ml", "hu_sha256", "series_uid_sha256", "record_tag", "affine", "source_step_mm"]
MORE += ["seconds_read", "added"]


@pytest.mark.slow
@pytest.mark.parametrize("column", [*COLUMNS, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE)])
def test_an_index_with_another_column_counts_for_nothing(
    original: Path, tmp_path: Path, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    file = target / "index.parquet"
    right = index.read(str(target))
    for value in (*VALUES.values(), None):
        table = right.drop(columns=[column], errors="ignore")
        if value is not None:
            table[column] = [value] * len(table)
        if column in right and value is not None and isinstance(right[column].tolist()[0], type(value)):
            continue
        table.to_parquet(file)
        told = [["status", target], ["report", target, "-o", tmp_path / "r.html"]]
        told += [["run", original / "in", target, "--scheduler", "sync"]]
        for words in told:
            assert commands.run_command([str(word) for word in words]) == 0, (words, value)
        assert capsys.readouterr().err == ""
        found = dskprep.open_dataset(target)
        pd.testing.assert_frame_equal(found.index, right, check_like=True)
        assert list(found.where(lambda row: row["n_z"] > 0)) == ["p1", "p2"]


@pytest.mark.parametrize("column", ["key", "status", "input_digest", "n_z", "affine"])
def test_an_index_that_lacks_what_every_row_has_counts_for_nothing(
    original: Path, tmp_path: Path, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    right = index.read(str(target))
    table = parquet.read_table(target / "index.parquet")
    at = table.schema.get_field_index(column)
    nothing = pa.nulls(len(table), table.schema.field(column).type)
    parquet.write_table(table.set_column(at, column, nothing), target / "index.parquet")
    for words in (["status", target], ["report", target, "-o", tmp_path / "r.html"], ["duplicates", target]):
        assert commands.run_command([str(word) for word in words]) == 0, words
    assert capsys.readouterr().err == ""
    pd.testing.assert_frame_equal(dskprep.open_dataset(target).index, right, check_like=True)


def test_a_record_of_all_that_there_can_be_has_a_row_that_is_kept(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The types of the columns are those of the record's fields."""
    store.create(place, dskprep.PrepConfig())
    texts = ("manufacturer", "model", "kernel", "kvp", "slice_thickness_mm", "patient_position", "body_part")
    words = ("contrast", "contrast_phase", "kernel_class", "scanner", "pet_ct", "reconstruction_diameter_mm")
    source = dict.fromkeys((*texts, *words, "transfer_syntax", "interpolated_mm"), "x")
    source |= {"tilt_degrees": 1, "left_out_mm": 2, "thickness_ratio": 1, "diameter_ratio": 1}
    lungs = {"right_ml": 1, "left_ml": 2, "mean_hu": -800, "dense_share": 0, "missing_ml": 0}
    more = {"source": source, "lungs": lungs, "stack": 1, "hu_sha256": "x", "series_uid_sha256": "x", "message": "x"}
    more["chosen"] = "x"
    full = tiny.record("p1", **more, reason="x", seconds={"read": 1}, bytes_read=5, url="x", warnings=["one-lung"])
    assert {f.name for f in msgspec.structs.fields(Source)} <= full.as_dict()["source"].keys()
    store.commit(place, full)
    index.write(place)
    monkeypatch.setattr(storage, "read_many", lambda *_: pytest.fail("the record is read"))
    assert index.current(place)["key"].tolist() == ["p1"]


# an index that is out of date


def test_a_dataset_is_read_as_its_records_are(place: str, original: Path) -> None:
    everything = tiny.everything_below(original / "out")
    some = {name: content for name, content in everything.items() if name != "index.parquet"}
    target = tiny.write(place, some)
    assert list(dskprep.open_dataset(target)) == ["p1", "p2"]  # there is no index yet
    assert dskprep.open_dataset(target).index["key"].tolist() == ["p1", "p2"]
    index.write(target)
    dskprep.forget(target, ["p1"])
    opened = dskprep.open_dataset(target)
    assert list(opened) == [row["key"] for row in opened.rows] == opened.index["key"].tolist() == ["p2"]
    index.write(target)
    tiny.write(target, some)  # as after a run that was killed before it wrote the index
    opened = dskprep.open_dataset(target)
    assert list(opened) == [row["key"] for row in opened.rows] == opened.index["key"].tolist() == ["p1", "p2"]
    assert list(opened.where(lambda row: row["key"] == "p1")) == ["p1"]
    assert index.read(target)["key"].tolist() == ["p2"]  # reading writes nothing


def test_a_listing_is_all_that_an_index_up_to_date_needs(
    place: str, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny.write(place, tiny.everything_below(original / "out"))
    index.write(target)
    read: list[str] = []
    monkeypatch.setattr(storage, "read_many", lambda _, entries: iter(read.extend(e.name for e in entries) or ()))
    opened = dskprep.open_dataset(target)
    assert (len(opened.where(lambda _: True)), len(opened.index), read) == (2, 2, [])


def test_threads_that_read_the_first_records_of_a_process_do_not_meet_in_msgspec() -> None:
    """msgspec looks at a type when it is first asked for it; two threads that ask first can crash the process."""
    program = """
import sys
from dskprep.dataset import claims, label_record, layout, record
from dskprep.exchange import place
from dskprep.reading import split_file
looked_at = []
sys.setprofile(lambda frame, event, _: looked_at.append(frame.f_code.co_name) if event == "call" else None)
for convert in (
    record._to_record, label_record._to_record, claims._to_lease, claims._to_claim, layout._to_metadata,
    layout._to_sharding, split_file._to_content, place._to_record,
):
    try:
        convert({})
    except ValueError:
        pass
sys.setprofile(None)
print(looked_at.count("get_class_annotations"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0", done.stdout + done.stderr


def test_a_link_that_leads_nowhere_costs_itself_alone(original: Path, tmp_path: Path) -> None:
    """In place of a record, or of a picture: no command ends in it, and the record is named."""
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    for place in (record_of(target, "p1"), target / "thumbnails/p2.webp"):
        place.unlink()
        place.symlink_to(tmp_path / "absent")
    (target / "index.parquet").unlink()
    assert dskprep.status(target).counts == {"written": 1, "failed": 1}
    assert "damaged-record" in dskprep.report(target)
    assert dskprep.open_dataset(target).duplicates().unseen == ("p2",)
    dskprep.run(original / "in", target)
    assert dskprep.status(target).counts == {"written": 2}


@pytest.mark.parametrize("name", ["dataset.json", "record", "thumbnails/p2.webp"])
def test_a_file_of_terabytes_is_not_read(original: Path, tmp_path: Path, name: str) -> None:
    """A file with holes costs whoever sends it nothing, and would cost the reader all memory."""
    target = tmp_path / "out"
    shutil.copytree(original / "out", target)
    place = record_of(target, "p1") if name == "record" else target / name
    os.truncate(place, 1 << 42)
    (target / "index.parquet").unlink()
    if name == "dataset.json":
        with pytest.raises(InfrastructureError, match=r"dataset\.json: expected a description of at most"):
            dskprep.status(target)
        return
    n_failed = {"record": 1}.get(name, 0)
    assert dskprep.status(target).counts == {"written": 2 - n_failed} | ({"failed": 1} if n_failed else {})
    assert dskprep.report(target)


def test_a_table_of_terabytes_counts_as_damaged_and_an_object_as_a_fault(original: Path, tmp_path: Path) -> None:
    """Of files with holes: what can be made anew is, and `verify` says that an object has another size."""
    target, labels = tmp_path / "out", tmp_path / "labels"
    shutil.copytree(original / "out", target)
    labels.mkdir()
    (labels / "p.csv").write_text("key,x,y,z\np1,-90,-40,15\n")
    dskprep.annotate(target, labels)
    before = dskprep.open_dataset(target).annotations
    for name in ("index.parquet", "annotations.parquet"):
        os.truncate(target / name, 1 << 42)
    (target / "headers.jsonl.gz").touch()
    os.truncate(target / "headers.jsonl.gz", 1 << 42)
    assert dskprep.status(target).counts == {"written": 2}
    assert list(seen.read(str(target))) == []
    after = dskprep.open_dataset(target).annotations
    pd.testing.assert_frame_equal(after, before)
    dskprep.run(original / "in", target)
    assert (target / "index.parquet").stat().st_size < 1 << 20
    (points,) = (target / "labels/points").iterdir()
    for place in (points, target / "volumes/p1.zarr/0/zarr.json"):
        os.truncate(place, 1 << 42)
    faults = {finding.key: finding.faults for finding in dskprep.verify(target) if finding.faults}
    assert set(faults) == {"p1", "p.csv"}
    assert all(f"has {1 << 42} bytes instead of" in fault for (fault,) in faults.values())

"""What is not dskprep's is neither deleted nor written over: files of the user's, links, names that lead elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import index, leftovers, own, store, verification
from dskprep.dataset.record import RecordName
from dskprep.errors import DamagedDataset, InfrastructureError, UsageError
from dskprep.settings import PrepConfig
from dskprep.worker import process

THEIRS = {
    "volumes/notes.txt": b"mine",
    "volumes/theirs.zarr/zarr.json": b'{"zarr_format": 3, "node_type": "group", "attributes": {"ome": {}}}',
    "volumes/theirs.zarr/0/c/0/0/0": b"mine",
    "volumes/array.zarr/0/c/0/0/0": b"mine",
    "volumes/array.zarr/readme.txt": b"mine",
    "volumes/report.part": b"mine",
    "volumes/scan/0/zarr.json": b"mine",
    "volumes/.hidden.zarr/0/c/0/0/0": b"mine",
    "thumbnails/holiday.webp": b"RIFF....WEBPVP8X",
    "thumbnails/holiday.png": b"mine",
    "runs/letter.part": b"mine",
    "records/written/draft.part": b"mine",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scans` with the patients p1 and p2, and `out` with the dataset of them."""
    folder = tmp_path_factory.mktemp("dataset")
    tiny.write_patients(folder / "scans", ["p1", "p2"])
    dskprep.run(folder / "scans", folder / "out")
    return folder


@pytest.fixture
def target(place: str, original: Path) -> str:
    return tiny.write(place, tiny.everything_below(original / "out"))


@pytest.fixture
def folder(tmp_path: Path, original: Path) -> Path:
    return Path(shutil.copytree(original / "out", tmp_path / "out"))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Files that look like dskprep's, in no dataset."""
    names = ["zarr.json", "0/zarr.json", "0/c/0/0/0", "p1.webp", f"p1.{'0' * 16}.json", "p1.zarr/0/c/0/0/0"]
    return Path(tiny.write(tmp_path / "elsewhere", dict.fromkeys(names, b"mine")))


def lose(target: str, key: str) -> RecordName:
    """Delete the record of a volume, as if the run had died before it."""
    (name,) = [name for name in store.record_names(target) if name.key == key]
    storage.delete(target, [name.path])
    return name


def link(place: Path, to: Path) -> None:
    """Put a link in place of what is there."""
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(to)


# A place that is no dataset


@pytest.mark.parametrize("name", ["thesis.txt", "volumes/p9.zarr/zarr.json", f"records/written/p.{'0' * 16}.json"])
def test_a_run_leaves_a_place_with_other_things_alone(
    place: str, original: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write(place, {name: b"mine"})
    assert commands.run_command(["run", str(original / "scans"), place, "--scheduler", "sync"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{place}: expected an empty or a new place, or a dataset; found {name.partition('/')[0]}" in line
    assert tiny.everything_below(place) == {name: b"mine"}


def test_empty_and_hidden_things_are_no_hindrance(tmp_path: Path, original: Path) -> None:
    tiny.write(tmp_path / "out", {".DS_Store": b"", "dataset.json.0123456789ab.part": b"{"})
    dskprep.run(original / "scans", tmp_path / "out")
    assert len(dskprep.open_dataset(tmp_path / "out")) == 2


def test_a_hidden_folder_is_a_hindrance(tmp_path: Path) -> None:
    tiny.write(tmp_path / "out", {".git/HEAD": b""})
    with pytest.raises(UsageError, match=r"found \.git and no dataset\.json"):
        store.create(str(tmp_path / "out"), PrepConfig())


def test_a_file_is_no_target(tmp_path: Path) -> None:
    tiny.write(tmp_path, {"out": b"mine"})
    with pytest.raises(UsageError, match="found a file"):
        store.create(str(tmp_path / "out"), PrepConfig())


def test_a_run_joins_one_that_began_while_it_looked(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = storage.listing

    def other_begins(url: str) -> list[storage.Entry]:
        monkeypatch.setattr(storage, "listing", listing)
        store.create(place, PrepConfig())
        store.commit(place, tiny.record("p"))
        return listing(url)

    monkeypatch.setattr(storage, "listing", other_begins)
    store.create(place, PrepConfig())
    assert store.describe(place)["digest"] == PrepConfig().digest()


# What clean and forget take


def test_clean_leaves_what_it_did_not_write(target: str) -> None:
    lost = lose(target, "p2")
    mine = {f"volumes/p2.zarr/{name}": b"mine" for name in ("labels/mine/0/c/0/0/0", "README.md")}
    before = tiny.everything_below(target)
    tiny.write(target, THEIRS | mine)
    found = list(leftovers.clean(target, older_than_s=-60, is_trial=True))
    assert sorted(leftovers.clean(target, older_than_s=-60)) == sorted(found)
    assert {name.split(".")[0] for name in found} == {f"volumes/{lost.key}", f"thumbnails/{lost.key}"}
    assert tiny.everything_below(target) == {k: v for k, v in before.items() if k not in found} | THEIRS | mine


def array(**change: Any) -> bytes:
    """Metadata of an array as dskprep writes them, but for a change."""
    blosc = {"typesize": 2, "cname": change.pop("cname", "zstd"), "clevel": 1, "shuffle": "bitshuffle", "blocksize": 0}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": change.pop("chunk", [64, 64, 64]),
        "codecs": [little, {"name": "blosc", "configuration": blosc}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [100, 300, 300],
        "data_type": "int16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": change.pop("shard", [128, 320, 320])}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": -1024,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["z", "y", "x"],
    }
    return json.dumps(metadata | change).encode()


STRANGERS: dict[str, bytes | None] = {
    "no metadata": None,
    "no JSON": b"mine",
    "a list": b"[]",
    "deep": b"[" * 200_000,
    "another type": array(data_type="uint16"),
    "attributes": array(attributes={"title": "mine"}),
    "no names of axes": array(dimension_names=None),
    "other codecs": array(codecs=[{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]),
    "other settings of a codec": array(cname="lz4"),
    "chunks that are no cubes": array(chunk=[32, 64, 64]),
    "other shards": array(shard=[64, 320, 320]),
}


@pytest.mark.parametrize("metadata", STRANGERS)
@pytest.mark.parametrize("path", ["0", "labels/lungs/0"])
@pytest.mark.parametrize("has_group", [False, True])
def test_an_array_of_others_where_dskpreps_would_be_is_left_and_named(
    folder: Path, metadata: str, path: str, has_group: bool, caplog: pytest.LogCaptureFixture
) -> None:
    files = {f"{path}/c/0/0/0": b"mine"}
    if (content := STRANGERS[metadata]) is not None:
        files[f"{path}/zarr.json"] = content
    if has_group:  # of another program's
        files["zarr.json"] = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
    tiny.write(folder / "volumes/mine.zarr", files)
    before = tiny.everything_below(folder)
    assert list(leftovers.clean(folder, older_than_s=-60)) == []
    assert tiny.everything_below(folder) == before
    assert ["volumes/mine.zarr stays" in message for message in caplog.messages] == [True]


def test_a_volume_whose_array_was_replaced_by_another_program_is_left(
    target: str, caplog: pytest.LogCaptureFixture
) -> None:
    lose(target, "p2")
    tiny.write(target, {"volumes/p2.zarr/0/zarr.json": STRANGERS["another type"] or b""})
    before = tiny.everything_below(target)
    assert list(leftovers.clean(target, older_than_s=-60)) == []
    assert tiny.everything_below(target) == before
    assert ["volumes/p2.zarr stays" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize("n_written", range(1, 5))
def test_what_a_killed_worker_wrote_of_a_volume_is_cleaned(
    folder: Path, n_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies after the first `n_written` files."""
    lost = lose(str(folder), "p2")
    objects = tiny.everything_below(folder / "volumes/p2.zarr")
    shutil.rmtree(folder / "volumes/p2.zarr")
    write_many = storage.write_many

    def die(url: str, contents: dict[str, bytes]) -> None:
        write_many(url, dict([*contents.items()][:n_written]))

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_many", die)
        store.write_volume(str(folder), lost.key, dict(sorted(objects.items())))
    written = {f"volumes/p2.zarr/{name}" for name in tiny.everything_below(folder / "volumes/p2.zarr")}
    assert len(written) == n_written
    assert written <= {*leftovers.clean(folder, older_than_s=-60)}


def test_an_array_as_dskprep_writes_it_is_cleaned_without_its_group(folder: Path) -> None:
    files = {"volumes/p9.zarr/0/c/0/0/0": b"half", "volumes/p9.zarr/0/zarr.json": array()}
    tiny.write(folder, files)
    assert {*leftovers.clean(folder, older_than_s=-60)} == files.keys()


def test_clean_takes_unfinished_files_by_their_names(folder: Path) -> None:
    mark = "0123456789ab.part"
    (name,) = [name for name in store.record_names(str(folder)) if name.key == "p1"]
    places = [name.path, "volumes/p1.zarr/0/c/0/0/0", "thumbnails/p1.webp", "runs/x/qc.html", "index.parquet"]
    unfinished = {f"{place}.{mark}" for place in places}
    tiny.write(folder, dict.fromkeys(unfinished, b"half"))
    before = tiny.everything_below(folder)
    assert set(leftovers.clean(folder, older_than_s=-60)) == unfinished
    assert tiny.everything_below(folder) == {k: v for k, v in before.items() if k not in unfinished}


def test_clean_waits_for_a_volume_that_is_being_written_over_an_old_one(folder: Path) -> None:
    lose(str(folder), "p2")
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    tiny.write(folder, {"volumes/p2.zarr/0/c/0/0/0": b"new"})
    assert list(leftovers.clean(folder)) == []


def test_clean_stops_where_it_cannot_see_the_records(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("records/written"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InfrastructureError, match="records/written: permission denied"):
        list(leftovers.clean(folder, older_than_s=-60))


@pytest.mark.parametrize("lost", ["records", "records/written", "every record"])
def test_without_a_record_of_any_volume_nothing_is_cleaned_unless_asked_for(
    target: str, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write(target, {f"records/refused/p3.{'0' * 16}.json": tiny.record("p3", "refused", reason="x").to_json()})
    everything = tiny.everything_below(target)
    folder = "records" if lost == "every record" else lost
    storage.delete(target, [name for name in everything if name.startswith(f"{folder}/")])
    if lost == "every record" and not storage.is_bucket(target):
        assert (Path(target) / "records/written").is_dir()  # empty
    before = tiny.everything_below(target)
    for words in (["clean", "--older-than", "0"], ["clean", "--older-than", "0", "--dry-run"], ["verify"]):
        assert commands.run_command([*words, target]) == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert "expected a record of each volume, found volumes such as p1 and no record of any" in said
        assert "run again" in said
        assert "clean --without-records deletes them" in said
    with pytest.raises(DamagedDataset, match="put it back"):
        dskprep.forget(target, [finding.key for finding in dskprep.verify(target)])
    assert tiny.everything_below(target) == before
    gone = set(leftovers.clean(target, older_than_s=-60, without_records=True))
    assert gone == {name for name in before if name.startswith(("volumes/", "thumbnails/"))}


def test_a_dataset_without_records_is_whole_again_after_the_same_run(folder: Path, original: Path) -> None:
    before = tiny.everything_below(folder / "volumes")
    shutil.rmtree(folder / "records")
    assert dskprep.run(original / "scans", folder).account.counts == {"written": 2}
    assert [finding.faults for finding in dskprep.verify(folder)] == [(), ()]
    assert list(dskprep.clean(folder, older_than_s=-60)) == []
    assert tiny.everything_below(folder / "volumes") == before


def test_what_others_put_into_volumes_does_not_count_as_a_volume(tmp_path: Path) -> None:
    store.create(str(tmp_path / "out"), PrepConfig())
    tiny.write(tmp_path / "out", THEIRS)
    assert list(dskprep.clean(tmp_path / "out", older_than_s=-60)) == []
    assert list(dskprep.verify(tmp_path / "out")) == []


def test_a_record_committed_while_its_volume_is_cleaned_goes_too(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tiny.everything_below(target)
    lost = lose(target, "p2")
    delete = storage.delete

    def commit_first(url: str, names: Any) -> None:
        monkeypatch.setattr(storage, "delete", delete)
        tiny.write(target, {lost.path: content[lost.path]})
        delete(url, names)

    monkeypatch.setattr(storage, "delete", commit_first)
    assert lost.path in list(leftovers.clean(target, older_than_s=-60))
    assert [finding.key for finding in verification.verify(target)] == ["p1"]


def test_a_volume_cleaned_before_its_record_is_committed_is_written_again(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "out")
    monkeypatch.setattr(process, "WAIT_S", 0)
    commit, n_cleaned = store.commit, []

    def clean_first(url: str, record: Any) -> None:
        if not n_cleaned:
            n_cleaned.append(len(list(leftovers.clean(url, older_than_s=-60, without_records=True))))
        commit(url, record)

    monkeypatch.setattr(store, "commit", clean_first)
    assert dskprep.run(original / "scans", target).account.counts == {"written": 2}
    assert n_cleaned > [1]
    assert [finding.faults for finding in verification.verify(target)] == [(), ()]


def test_forgetting_says_beforehand_what_goes(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage.delete(store.volume_url(target, "p1"), ["0/c/0/0/0"])
    tiny.write(target, {"volumes/p1.zarr/README.md": b"mine"})
    before = tiny.everything_below(target)
    assert commands.run_command(["verify", target, "--dry-run"]) == 2
    capsys.readouterr()
    assert commands.run_command(["verify", target, "--forget", "--dry-run"]) == 1
    foretold = capsys.readouterr().out.splitlines()
    assert tiny.everything_below(target) == before
    assert commands.run_command(["verify", target, "--forget"]) == 1
    done = capsys.readouterr().out.splitlines()
    gone = before.keys() - tiny.everything_below(target).keys()
    assert gone == {name for name in before if "/p1." in name and "README" not in name}
    assert set(foretold) & before.keys() == set(done) & before.keys() == gone


@pytest.mark.parametrize(
    ("lost", "said"),
    [("thumbnails", "expected 2 pictures in thumbnails/"), ("volumes", "expected 2 volumes in volumes/")],
)
def test_what_is_lost_of_all_volumes_is_no_reason_to_forget_them(
    target: str, lost: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a copy without pictures, or volumes on a disk that is not mounted."""
    everything = tiny.everything_below(target)
    storage.delete(target, [name for name in everything if name.startswith(f"{lost}/")])
    if not storage.is_bucket(target):
        shutil.rmtree(Path(target, lost))
    left = tiny.everything_below(target)
    assert commands.run_command(["verify", target, "--forget"]) == 1
    assert said in capsys.readouterr().err
    assert tiny.everything_below(target) == left


def test_additions_to_a_volume_survive_and_are_named(target: str, original: Path) -> None:
    mine = {f"volumes/p1.zarr/{name}": b"mine" for name in ("labels/mine/zarr.json", "labels/mine/0/c/0", "README.md")}
    tiny.write(target, mine)
    first, _ = verification.verify(target)
    assert (first.faults, {f"volumes/p1.zarr/{name}" for name in first.additions}) == ((), mine.keys())
    verification.forget(target, ["p1"])
    dskprep.run(original / "scans", target)
    everything = tiny.everything_below(target)
    assert {name: everything[name] for name in mine} == mine
    assert [finding.faults for finding in verification.verify(target)] == [(), ()]


def test_a_list_of_labels_in_a_volume_without_lungs_is_the_users() -> None:
    assert own.of_volume(["zarr.json", "labels/zarr.json", "0/zarr.json"]) == ["0/zarr.json", "zarr.json"]
    names = ["zarr.json", "labels/zarr.json", "labels/lungs/zarr.json"]
    assert own.of_volume(names) == ["labels/zarr.json", "labels/lungs/zarr.json", "zarr.json"]


def test_all_that_is_written_is_known_as_dskpreps(original: Path) -> None:
    for key in ("p1", "p2"):
        names = [entry.name for entry in storage.listing_below(f"{original}/out/volumes/{key}.zarr")]
        assert sorted(own.of_volume(names)) == sorted(names)
        assert own.is_thumbnail((original / f"out/thumbnails/{key}.webp").read_bytes()[: own.THUMBNAIL_HEAD_BYTES])


# Links


PLACES = ["volumes", "volumes/p1.zarr", "volumes/p1.zarr/0", "volumes/p1.zarr/0/c/0", "thumbnails", "records/written"]


@pytest.mark.parametrize("name", PLACES)
def test_nothing_behind_a_link_to_a_folder_is_touched(
    folder: Path, elsewhere: Path, original: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WAIT_S", 0)
    before = tiny.everything_below(elsewhere)
    (record,) = [n for n in store.record_names(str(folder)) if n.key == "p1"]
    link(folder / name, elsewhere)
    acts = [
        lambda: verification.forget(folder, ["p1"]),
        lambda: store.forget(str(folder), [record]),
        lambda: list(leftovers.clean(folder, older_than_s=-60)),
        lambda: dskprep.run(original / "scans", folder),
    ]
    said = []
    for act in acts:
        try:
            act()
        except InfrastructureError as error:
            said.append(str(error))
        assert (folder / name).is_symlink()
        assert tiny.everything_below(elsewhere) == before
    if not name.startswith("records/"):  # without them nothing can be said of the patients
        said += [str(message) for message in index.current(str(folder))["message"].dropna()]
    assert any(f"{name}: expected a folder, found a link" in message for message in said)


@pytest.mark.parametrize("name", ["volumes/p1.zarr/0/c/0/0/0", "thumbnails/p1.webp"])
@pytest.mark.parametrize("to", ["zarr.json", "0", "nowhere"])
def test_a_link_to_a_file_is_replaced_and_not_what_it_leads_to(
    folder: Path, elsewhere: Path, original: Path, name: str, to: str
) -> None:
    before = tiny.everything_below(elsewhere)
    content = (folder / name).read_bytes()
    verification.forget(folder, ["p1"])
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    link(folder / name, elsewhere / to)
    dskprep.run(original / "scans", folder)
    assert tiny.everything_below(elsewhere) == before
    assert not (folder / name).is_symlink()
    assert (folder / name).read_bytes() == content


def test_the_target_itself_may_be_a_link(tmp_path: Path, original: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    dskprep.run(original / "scans", tmp_path / "out")
    lose(str(tmp_path / "out"), "p1")
    assert list(leftovers.clean(tmp_path / "out", older_than_s=-60))
    assert [finding.key for finding in verification.verify(tmp_path / "out")] == ["p2"]


@pytest.mark.parametrize("act", [storage.delete, lambda url, names: storage.write_many(url, dict.fromkeys(names, b""))])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, act: Any) -> None:
    tiny.write(tmp_path, {"x": b"mine", "in/y": b""})
    with pytest.raises(InfrastructureError, match="found a way out of it"):
        act(str(tmp_path / "in"), ["../x"])
    assert (tmp_path / "x").read_bytes() == b"mine"


# Names that lead elsewhere

ELSEWHERE = ["../../outside/pwn", "/outside/pwn", "", ".", "..", "a\\b", "a\0b", "a/b", ".hidden", "+1"]


@pytest.mark.parametrize("key", ELSEWHERE)
def test_a_key_that_leads_elsewhere_is_never_a_path(tmp_path: Path, key: str) -> None:
    name = RecordName("written", key, "0" * 16)
    for make in (lambda: name.path, lambda: store.volume_url("t", key), lambda: store.thumbnail_name(key)):
        with pytest.raises(DamagedDataset, match="expected the"):
            make()
    with pytest.raises(DamagedDataset):
        store.forget(str(tmp_path), [name])


@pytest.mark.parametrize("change", [{"key": k} for k in ELSEWHERE] + [{"input_digest": "../x"}, {"status": "../x"}])
def test_a_name_in_the_index_that_leads_elsewhere_is_never_followed(folder: Path, change: dict[str, str]) -> None:
    table = pd.read_parquet(folder / "index.parquet")
    for column, value in change.items():
        table.loc[0, column] = value
    table.to_parquet(folder / "index.parquet")
    dataset = dskprep.open_dataset(folder)
    assert list(dataset) == ["p1", "p2"]  # by the records, of which there is none of that name
    if "key" in change:
        with pytest.raises(KeyError, match="no volume"):
            dataset[change["key"]]


@pytest.mark.parametrize(
    "change",
    [{"objects": {n: {"bytes": 1, "sha256": ""}}} for n in ("../x", "/x", "", "a//b", "0/../../x", "a\\b", "a\0b", ".")]
    + [{"further_series": [f"written/{key}"]} for key in ELSEWHERE]
    + [{"further_series": ["../../x/y"]}, {"further_series": ["y"]}],
)
def test_a_record_with_a_name_that_leads_elsewhere_is_damaged(folder: Path, change: dict[str, Any]) -> None:
    (name,) = [n for n in store.record_names(str(folder)) if n.key == "p1"]
    content = json.loads((folder / name.path).read_bytes())
    tiny.write(folder, {name.path: json.dumps(content | change).encode()})
    with pytest.raises(KeyError, match="this record is damaged"):
        dskprep.open_dataset(folder)["p1"]
    with pytest.raises(DamagedDataset):
        store.find_written(str(folder), name.key, name.digest)
    (fault,), _ = (finding.faults for finding in verification.verify(folder))
    assert "this record is damaged" in fault


def test_a_file_that_no_record_can_be_is_passed_over(place: str) -> None:
    names = ["written/._p." + "0" * 16, "written/a/b." + "0" * 16, "written/p.x!", "written/a b." + "0" * 16]
    tiny.write(f"{place}/records", {f"{name}.json": b"{}" for name in names})
    assert list(store.record_names(place)) == []

"""Hashed keys: nothing of a run tells what the folders are called, and the same patients get the same keys."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from click.testing import CliRunner

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import label_store, store
from dskprep.errors import InfrastructureError, UsageError
from dskprep.pipeline import hashed_keys
from dskprep.selecting import Select
from dskprep.settings import PrepConfig
from dskprep.source import cases
from dskprep.worker import process

SETTINGS = PrepConfig(check_hu=False, lungs=False)
NAMES = ("Kowalska^Anna", "Kowalska^Jan")
WORDS = ("kowalska", "nurse-note", "lost-slice")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WAIT_S", 0.0)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Two patients, one refused, one archive; folders, members and stray files have names that nobody may see."""
    folder = str(tmp_path / "in")
    tiny.write_patients(folder, NAMES)
    tiny.write(f"{folder}/{NAMES[0]}", {"nurse-note.txt": b"x"})
    files = tiny.series(5)
    tiny.write(f"{folder}/Kowalska-cut", {f"lost-slice{n}": c[:-9] for n, c in files.items()})
    tiny.write(folder, {"Kowalska_Ewa.zip": tiny.zipped({f"Kowalska/{n}": c for n, c in tiny.series(6).items()})})
    return folder


def named_in(target: str) -> set[str]:
    """The objects of a dataset that hold one of WORDS, in their name or content, as it is."""
    found = tiny.everything_below(target).items()
    return {name for name, content in found for word in WORDS if word.encode() in (name.encode() + content).lower()}


def run(source: str, target: str, **how: Any) -> dskprep.Summary:
    return dskprep.run(source, target, **({"settings": SETTINGS, "keys": "hashed"} | how))


def mapping_in(place: str) -> dict[str, str]:
    rows = csv.DictReader(io.StringIO(storage.read(place).decode()))
    return {row["source"].rpartition("/")[2]: row["key"] for row in rows}


def test_a_dataset_with_hashed_keys_names_no_folder_and_no_file(place: str, source: str, tmp_path: Path) -> None:
    target, mapping = storage.join(place, "out"), str(tmp_path / "who.csv")
    summary = run(source, target, mapping=mapping)
    assert summary.account.counts == {"written": 3, "refused": 1}
    assert named_in(target) == set()
    assert Path(mapping).stat().st_mode & 0o777 == 0o600
    keys = mapping_in(mapping)
    assert set(keys) == {*NAMES, "Kowalska-cut", "Kowalska_Ewa.zip"}
    dataset = dskprep.open_dataset(target)
    assert np.array_equal(dataset[keys[NAMES[1]]].image[:], tiny.hu(1))
    (refused,) = [name for name in store.record_names(target) if name.status == "refused"]
    record = store.read_record(target, refused)
    assert (record.key, record.reason, record.url) == (keys["Kowalska-cut"], "truncated", "")
    assert re.fullmatch("[0-9a-f]{16}", record.place or "")
    assert record.message is not None
    assert "dskprep show" in record.message


def test_a_dataset_with_keys_of_folders_is_as_it_was(tmp_path: Path, source: str) -> None:
    target = str(tmp_path / "out")
    dskprep.run(source, target, settings=SETTINGS)
    assert "keys" not in store.describe(target)
    assert len(named_in(target)) > 4


def test_a_stopped_run_goes_on_and_later_runs_follow_the_dataset(tmp_path: Path, source: str) -> None:
    target, mapping = str(tmp_path / "out"), str(tmp_path / "who.csv")
    run(source, target, limit=2, mapping=mapping)
    first = {name.key for name in store.record_names(target)}
    assert set(mapping_in(mapping).values()) == first
    summary = dskprep.run(source, target, settings=SETTINGS, mapping=mapping)  # does not say that keys are hashed
    assert summary.account.already.total() == 2
    assert {name.key for name in store.record_names(target)} > first
    assert len(mapping_in(mapping)) == 4
    assert named_in(target) == set()
    again = str(tmp_path / "again")
    run(source, again)
    assert {n.key for n in store.record_names(again)}.isdisjoint(first), "another dataset has another key"


def test_nobody_else_reads_the_mapping_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has opened it once keeps it, whatever its mode is later."""
    modes = set()
    rename, mapping = Path.replace, hashed_keys.Mapping(tmp_path / "who.csv", "/source", "/target")

    def look(self: Path, to: str) -> Path:
        modes.add(self.stat().st_mode & 0o777)
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", look)
    mapping.add("0123", "/source/Smith^John")
    before = os.umask(0)
    try:
        mapping.write()
    finally:
        os.umask(before)
    assert modes == {0o600}
    assert list(tmp_path.iterdir()) == [tmp_path / "who.csv"]


def test_the_mapping_keeps_whose_a_key_is_when_another_source_has_a_folder_of_that_name(tmp_path: Path) -> None:
    mapping, target = str(tmp_path / "who.csv"), str(tmp_path / "out")
    sources = [tiny.write(tmp_path / name / "p1", tiny.series(seed)) for seed, name in enumerate(("one", "two"))]
    for source in sources:
        run(source.rpartition("/")[0], target, mapping=mapping)
    lines = list(csv.DictReader(io.StringIO(storage.read(mapping).decode())))
    assert [line["source"] for line in lines] == sources
    assert {line["key"] for line in lines} == set(dskprep.open_dataset(target))


def test_two_runs_at_once_keep_what_each_has_noted(tmp_path: Path) -> None:
    place, target = tmp_path / "who.csv", str(tmp_path / "out")
    one, two = (hashed_keys.Mapping(place, str(tmp_path / name), target) for name in ("one", "two"))
    with hashed_keys.kept(one), hashed_keys.kept(two):
        one.add("k1", "one/p")
        two.add("k2", "two/p")
    assert mapping_in(str(place)) == {"p": "k2"}
    assert place.read_text().split() == ["key,source", "k1,one/p", "k2,two/p"]


def test_two_runs_that_end_at_once_lose_no_line_of_the_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read the file before either writes it."""
    place = str(tmp_path / "who.csv")
    first, second = (hashed_keys.Mapping(place, "/source", "/target") for _ in range(2))
    first.add("k1", "/source/a")
    second.add("k2", "/source/b")
    write, other = storage.write_private, threading.Thread(target=second.write)

    def overtaken(where: str, content: bytes) -> None:
        monkeypatch.setattr(storage, "write_private", write)
        other.start()
        other.join(1.0)  # it waits, as it should, until the first has written
        write(where, content)

    monkeypatch.setattr(storage, "write_private", overtaken)
    first.write()
    other.join()
    assert mapping_in(place) == {"a": "k1", "b": "k2"}


def test_a_lock_of_others_on_the_folder_stops_no_mapping(tmp_path: Path) -> None:
    """As `flock FOLDER` of whoever may read it."""
    place = str(tmp_path / "who.csv")
    mapping = hashed_keys.Mapping(place, "/source", "/target")
    mapping.add("k1", "/source/a")
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    mapping.write()
    os.close(folder)
    assert mapping_in(place) == {"a": "k1"}
    assert [path.name for path in tmp_path.iterdir()] == ["who.csv"]


def test_a_mapping_makes_its_folder(tmp_path: Path) -> None:
    place = tmp_path / "new/who.csv"
    mapping = hashed_keys.Mapping(str(place), "/source", "/target")
    mapping.add("k1", "/source/a")
    mapping.write()
    assert mapping_in(str(place)) == {"a": "k1"}


@pytest.mark.parametrize(("content", "mode"), [(b"mine", 0o600), (b"", 0o666)])
def test_a_file_of_others_is_neither_taken_for_the_lock_nor_deleted(tmp_path: Path, content: bytes, mode: int) -> None:
    mine = tmp_path / ".who.csv.dskprep-lock"
    mine.write_bytes(content)
    mine.chmod(mode)
    mapping = hashed_keys.Mapping(str(tmp_path / "who.csv"), "/source", "/target")
    mapping.add("k1", "/source/a")
    with pytest.raises(UsageError, match="move it away"):
        mapping.write()
    assert mine.read_bytes() == content


def test_a_lock_that_is_never_given_up_ends_the_run_and_one_of_a_dead_run_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hashed_keys, "LOCK_S", 0.2)
    place = str(tmp_path / "who.csv")
    mapping = hashed_keys.Mapping(place, "/source", "/target")
    mapping.add("k1", "/source/a")
    lock = os.open(tmp_path / ".who.csv.dskprep-lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(InfrastructureError, match=r"who.csv: another program has kept .*who.csv.dskprep-lock locked"):
        mapping.write()
    assert [record.message for record in caplog.records] == [f"waiting for another run that writes {place}"]
    os.close(lock)  # as when its process dies; the file stays
    mapping.write()
    assert mapping_in(place) == {"a": "k1"}
    assert [path.name for path in tmp_path.iterdir()] == ["who.csv"]


@pytest.mark.parametrize("keys", ["folder", "hashed"])
def test_names_of_folders_choose_patients_also_where_one_series_of_each_is_chosen(tmp_path: Path, keys: str) -> None:
    for n in range(4):
        who = {"PatientID": f"P{n // 2}", "StudyInstanceUID": f"1.2.90.{n // 2}"}
        tiny.write(tmp_path / f"in/10{n}", tiny.series(n, n=12 + n, **who))
    select = Select(prefer=("most-slices",))
    settings = PrepConfig(lungs=False, check_hu=False, select=select)
    target = tmp_path / "out"
    summary = dskprep.run(tmp_path / "in", target, settings=settings, keys=keys, only="10[23]")
    assert (summary.account.inputs, summary.account.counts) == (2, {"written": 1, "set-aside": 1})
    with pytest.raises(UsageError, match=r"no patient matches 'a\*'"):
        dskprep.run(tmp_path / "in", target, settings=settings, only="a*")
    plan = dskprep.plan(tmp_path / "in", settings=settings, only="10[23]")
    assert plan.n_patients == 2


def test_a_mapping_is_not_written_over_what_came_in_its_place(tmp_path: Path) -> None:
    place = tmp_path / "who.csv"
    mapping = hashed_keys.Mapping(place, str(tmp_path / "in"), str(tmp_path / "out"))
    mapping.add("k1", "one/p")
    place.write_text("mine")
    with pytest.raises(InfrastructureError, match="found others"):
        mapping.write()
    assert place.read_text() == "mine"


def test_a_mapping_of_names_that_are_no_utf_8_is_read_again(tmp_path: Path) -> None:
    mapping, target, folder = (
        str(tmp_path / "who.csv"),
        str(tmp_path / "out"),
        tmp_path / "in" / os.fsdecode(b"M\xfcller"),
    )
    tiny.write(str(folder), tiny.series(1))
    run(str(tmp_path / "in"), target, mapping=mapping)
    before = Path(mapping).read_bytes()
    assert b"M\xfcller" in before
    assert run(str(tmp_path / "in"), target, mapping=mapping).account.already == {"written": 1}
    assert Path(mapping).read_bytes() == before


def test_a_run_that_is_interrupted_leaves_a_mapping_of_what_it_did(tmp_path: Path, source: str) -> None:
    class Interrupts(dskprep.Observer):
        def on_patient(self, *_: Any) -> None:
            raise KeyboardInterrupt

    target, mapping = str(tmp_path / "out"), str(tmp_path / "who.csv")
    assert run(source, target, mapping=mapping, observers=[Interrupts()]).is_interrupted
    done = {name.key for name in store.record_names(target)}
    assert done
    assert done <= set(mapping_in(mapping).values())


def test_what_keys_are_is_settled_once(tmp_path: Path, source: str) -> None:
    hashed, plain = str(tmp_path / "hashed"), str(tmp_path / "plain")
    run(source, hashed, limit=1)
    dskprep.run(source, plain, settings=SETTINGS, limit=1)
    with pytest.raises(UsageError, match="holds a dataset with hashed keys, and folder ones are asked for"):
        run(source, hashed, keys="folder")
    with pytest.raises(UsageError, match="holds a dataset with folder keys, and hashed ones are asked for"):
        run(source, plain)
    with pytest.raises(UsageError, match="holds a dataset with folder keys, and hashed ones are asked for"):
        dskprep.run(source, plain, settings=SETTINGS, mapping=tmp_path / "m.csv")
    with pytest.raises(UsageError, match="a mapping says which hashed key is whose"):
        run(source, plain, keys="folder", mapping=tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()
    with pytest.raises(UsageError, match="keys must be folder or hashed"):
        run(source, plain, keys="md5")


def test_the_mapping_lies_neither_in_the_dataset_nor_in_the_source(tmp_path: Path, source: str) -> None:
    target = str(tmp_path / "out")
    for where in (f"{target}/who.csv", f"{target}/../out/who.csv", f"{source}/who.csv"):
        with pytest.raises(UsageError, match="expected a file outside of the"):
            run(source, target, mapping=where)
        assert not Path(where).exists()
        assert not Path(target).exists(), "nothing is begun"
    other = tmp_path / "labels.csv"
    other.write_text("id,cancer\n1,0\n")
    with pytest.raises(UsageError, match="expected the columns key,source"):
        run(source, target, mapping=str(other))
    assert other.read_text() == "id,cancer\n1,0\n"


def test_without_a_mapping_a_line_says_so(tmp_path: Path, source: str, caplog: pytest.LogCaptureFixture) -> None:
    run(source, str(tmp_path / "out"))
    assert "no --mapping is given" in caplog.text


@pytest.mark.cluster
def test_what_a_run_says_names_nobody(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of a run, in words and in JSON, Dask's report, and all commands that look at the dataset."""
    target, mapping, config = str(tmp_path / "out"), str(tmp_path / "who.csv"), tmp_path / "p.toml"
    monkeypatch.chdir(tmp_path)  # where the report goes
    config.write_text("check_hu = false\nlungs = false\n")
    words = ["run", source, target, "--config", str(config), "--keys", "hashed", "--mapping", mapping, "--workers", "1"]
    done = CliRunner().invoke(commands.main, [*words, "--log-json"], standalone_mode=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["status"] for line in lines if line["event"] == "patient"].count("written") == 3
    said = done.output
    for command in ("status", "verify", "report", "duplicates"):
        said += CliRunner().invoke(commands.main, [command, target], standalone_mode=False).output
    said += (tmp_path / "report.html").read_text()
    assert not any(word in said.lower() for word in WORDS)
    assert any(name.endswith("performance.html") for name in tiny.everything_below(target))
    assert named_in(target) == set()


def test_a_source_that_cannot_be_listed_is_not_named(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "out")
    listed = cases.choose

    def fails(*words: Any, **how: Any) -> Iterator[Any]:
        yield next(listed(*words, **how))
        raise InfrastructureError(f"{source}/Kowalska^Ewa: permission denied")

    monkeypatch.setattr(cases, "choose", fails)
    with pytest.raises(dskprep.RunStopped, match="cannot be listed to its end") as stopped:
        run(source, target)
    assert "Kowalska" not in str(stopped.value)
    assert named_in(target) == set()


@pytest.mark.parametrize("n_patients", [3, 20])
def test_headers_that_cannot_be_read_are_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_patients: int
) -> None:
    """Those by which [select] chooses: of some of them a note tells, and 20 in a row end the run."""
    source = tiny.write_patients(tmp_path / "in", [f"Kowalska^{i}" for i in range(n_patients)])
    notes: list[str] = []

    class Hears(dskprep.Observer):
        def on_note(self, message: str) -> None:
            notes.append(message)

    def fails(url: str, n_bytes: int) -> bytes:
        raise InfrastructureError(f"{url}: permission denied, {n_bytes}")

    settings = PrepConfig(check_hu=False, lungs=False, select={"prefer": ["most-slices"]})
    target = str(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(storage, "read_head", fails)
        try:
            run(source, target, settings=settings, observers=[Hears()])
        except dskprep.RunStopped as stopped:
            notes.append(str(stopped))
    assert any("header cannot be read (InfrastructureError)" in note for note in notes)
    assert not any("kowalska" in note.lower() for note in notes)
    assert named_in(target) == set()


def test_label_files_that_cannot_be_listed_are_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tiny.write_patients(tmp_path / "in", NAMES), str(tmp_path / "out")

    def fails(*_: Any, **__: Any) -> Iterator[Any]:
        raise InfrastructureError(f"{source}/Kowalska^Ewa: permission denied")
        yield

    monkeypatch.setattr("dskprep.pipeline.annotate.label_files", fails)
    with pytest.raises(dskprep.RunStopped, match="cannot be listed to its end") as stopped:
        run(source, target, labels=["*"])
    assert "Kowalska" not in str(stopped.value)
    assert named_in(target) == set()


def test_what_fails_is_not_named(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = str(tmp_path / "out")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("Kowalska^Anna/nurse-note.txt\nKowalska is there")

    monkeypatch.setattr("dskprep.worker.patient.make_case", fails)
    assert run(source, target).account.counts == {"failed": 4}
    record = store.read_record(target, next(iter(store.record_names(target))))
    assert record.reason == "RuntimeError"
    assert "worker/patient.py" in (record.traceback or "")
    assert named_in(target) == set()


def test_labels_are_linked_by_the_names_of_folders_and_do_not_keep_them(tmp_path: Path, source: str) -> None:
    pytest.importorskip("nibabel")
    import nibabel

    target, mapping, labels = str(tmp_path / "out"), str(tmp_path / "who.csv"), tmp_path / "labels"
    run(source, target, mapping=mapping)
    labels.mkdir()
    (key,) = [key for name, key in mapping_in(mapping).items() if name == NAMES[0]]
    volume = dskprep.open_dataset(target)[key]
    box = np.zeros(volume.image.shape, np.uint8)
    box[2:6, 4:9, 5:12] = 1
    folder_key = next(c.key for c in cases.cases(source) if c.url.endswith(NAMES[0]))
    image = nibabel.Nifti1Image(box.T, np.diag([-1, -1, 1, 1]) @ _xyz(volume.affine))
    nibabel.save(image, labels / f"{folder_key}.nii")
    x, y, z = volume.to_patient((5, 6, 7))
    (labels / "kowalska.csv").write_text(f"key,x,y,z,diameter_mm,reader\n{folder_key},{x},{y},{z},4,Kowalska\n")
    (labels / "kowalska-lost.csv").write_text("key,x,y,z\nkowalska-who,1,1,1\n")
    summary = dskprep.annotate(target, labels)
    assert summary.counts == {"written": 2, "refused": 1}
    assert np.array_equal(volume.labels["mask"][:], box)
    assert dskprep.open_dataset(target)[key].points["diameter_mm"].tolist() == [4.0]
    assert named_in(target) == set()
    assert all(len(name.source) == 16 for name, _ in label_store.list_records(target))


@pytest.mark.parametrize("path", ["Kowalska.Maria", "Kowalska/Maria", "Kowalska/Kowalska_Maria", "ward/Kowalska.Maria"])
def test_a_mask_that_is_called_as_its_volume_was_does_not_keep_the_name(tmp_path: Path, path: str) -> None:
    """Nor does one that cannot be read, or is refused."""
    source, target, labels = tmp_path / "in", str(tmp_path / "out"), tmp_path / "labels"
    run(tiny.write(source, {f"{path}/{name}": content for name, content in tiny.series(0).items()}), target)
    (key,) = dskprep.open_dataset(target)
    volume = dskprep.open_dataset(target)[key]
    box = np.ones(volume.image.shape, np.uint8)
    files = {"": box, "-moved": np.roll(box, 1), "-damaged": None}
    for kind, mask in files.items():
        place = labels.with_name(f"labels{kind}") / f"{path}.nii"
        place.parent.mkdir(parents=True)
        affine = volume.affine.copy()
        affine[:3, 3] += 0.5 * (kind == "-moved")
        place.write_bytes(b"x" * 500 if mask is None else dskprep.to_nifti(dskprep.Volume(mask, affine)).to_bytes())
        counts = dskprep.annotate(target, place.parents[path.count("/")]).counts
        assert counts == ({"refused": 1} if kind else {"written": 1})
    assert list(dskprep.open_dataset(target)[key].labels) == ["mask"]
    told = {name for name in named_in(target) if not name.startswith("runs/")}
    assert told == set()
    assert dskprep.open_dataset(target).lacking(["mask"]).keys() == {key}


@pytest.mark.parametrize(
    ("path", "file", "label"),
    [
        ("Kowalska.Maria", "Kowalska.Maria_seg", "seg"),
        ("Kowalska.Maria", "lung.left.Kowalska.Maria", "lung.left"),
        ("Kowalska_Maria", "Kowalska_Maria_lung_left", "lung_left"),
        ("Kowalska_Maria", "GTV-KOWALSKAMARIA", "GTV"),
        ("Kowalska_Maria", "maria kowalska lung", "lung"),
        ("Kowalska_Maria", "kowalska_seg", "seg"),
        ("Kowalska_Maria", "segkowalskamaria", "mask"),
        ("Kowalska_Maria", "seg_of_kowalska_born_1970", "mask"),
        ("Kowalska_Maria", "Kowalska_Maria_2", "mask"),
        ("Kowalska_Maria", "lesion_2", "lesion_2"),
        ("Kowalska/Maria", "Maria_seg", "seg"),
        ("Kowalska/Maria", "seg KOWALSKA", "seg"),
        ("Kowalska2", "Kowalska_lung", "lung"),
    ],
)
def test_a_mask_is_not_called_by_the_name_of_its_folder(tmp_path: Path, path: str, file: str, label: str) -> None:
    """Nor is one that cannot be read; what else its file is called stays."""
    source, target, labels = tmp_path / "in", str(tmp_path / "out"), tmp_path / "labels"
    run(tiny.write(source, {f"{path}/{name}": content for name, content in tiny.series(0).items()}), target)
    (key,) = dskprep.open_dataset(target)
    volume = dskprep.open_dataset(target)[key]
    mask = dskprep.Volume(np.ones(volume.image.shape, np.uint8), volume.affine)
    for kind, content in (("", dskprep.to_nifti(mask).to_bytes()), ("-damaged", b"x" * 500)):
        place = labels.with_name(f"labels{kind}") / path / f"{file}.nii"
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
        counts = dskprep.annotate(target, labels.with_name(f"labels{kind}")).counts
        assert counts == ({"refused": 1} if kind else {"written": 1})
    assert list(dskprep.open_dataset(target)[key].labels) == [label]
    assert dskprep.open_dataset(target).lacking([label]).keys() == {key}
    assert {name for name in named_in(target) if not name.startswith("runs/")} == set()


def test_no_label_is_called_by_its_file(tmp_path: Path, source: str) -> None:
    target = str(tmp_path / "out")
    run(source, target, limit=1)
    with pytest.raises(
        UsageError, match=r"has hashed keys, .* and '\{name\}-\{file\}' would write .*; leave \{file\} out"
    ):
        dskprep.annotate(target, source, name_as="{name}-{file}")


def _xyz(affine: np.ndarray) -> np.ndarray:
    """An affine of indices (x, y, z)."""
    return affine[:, [2, 1, 0, 3]]


def test_pictures_say_that_the_source_is_not_known(tmp_path: Path, source: str) -> None:
    target = str(tmp_path / "out")
    run(source, target)
    by_status = {name.status: name.key for name in store.record_names(target)}
    assert dskprep.show(target, by_status["refused"]).startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="has hashed keys, and does not say where"):
        dskprep.show(target, by_status["written"], with_source=True)


def test_a_plan_is_compared_with_the_dataset(tmp_path: Path, source: str) -> None:
    target = str(tmp_path / "out")
    run(source, target)
    compared = dskprep.plan(source, settings=SETTINGS).compare(target)
    assert compared.n_right + len(compared.differences) == 4

"""Labels in archives are not read: how many archives were not looked into is told once, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.pipeline.observer import Observer
from dskprep.settings import PrepConfig

SETTINGS = PrepConfig(check_hu=False, lungs=False, min_slices=4)
LABEL = b"key,x,y,z\np0,-95,-45,12\n"


class Heard(Observer):
    """Hears of notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def prepared(place: str, **how: str) -> str:
    tiny.write(f"{place}/in", {"p1.zip": tiny.zipped(tiny.series(1))})
    tiny.write(f"{place}/in/p0", tiny.series(0))
    dskprep.run(f"{place}/in", f"{place}/out", settings=SETTINGS, **how)  # type: ignore[arg-type]
    return f"{place}/out"


def annotate(target: str, labels: str, **how: object) -> tuple[dict[str, int], list[str]]:
    heard = Heard()
    summary = dskprep.annotate(target, labels, observers=[heard], **how)  # type: ignore[arg-type]
    return dict(summary.counts), heard.notes


def test_archives_beside_labels_are_told_once(place: str) -> None:
    target, labels = prepared(place), f"{storage.absolute(place)}/labels"
    tiny.write(labels, {"a.csv": LABEL, "z/more.7z": b"7z", "b/more.zip": b"PK", ".x.zip": b"PK"})
    told = (
        "archives, such as b/more.zip, are not looked into for labels; unpack what holds some: label files are read as "
        "files"
    )
    assert annotate(target, labels) == ({"written": 1}, [f"{labels}: 2 {told}"])
    assert annotate(target, labels, patterns=["*.csv"]) == ({"written": 1}, [f"{labels}: 2 {told}"])


@pytest.mark.parametrize("alone", [False, True], ids=["folder", "file"])
def test_where_there_is_nothing_but_archives_it_says_so(place: str, alone: bool) -> None:
    target, labels = prepared(place), f"{storage.absolute(place)}/labels"
    tiny.write(labels, {"more.zip": tiny.zipped({"a.csv": LABEL})})
    counts, (note,) = annotate(target, f"{labels}/more.zip" if alone else labels)
    assert counts == {}
    assert "expected label files" in note
    assert "found 1 archive (more.zip), not looked into; unpack what holds labels" in note
    assert "no file" not in note
    assert dskprep.open_dataset(target).annotations.empty


def test_a_run_with_labels_tells_of_its_archives(tmp_path: Path) -> None:
    source, target, heard = tmp_path / "in", tmp_path / "out", Heard()
    tiny.write(source, {"p1.zip": tiny.zipped(tiny.series(1))})
    tiny.write(source / "p0", tiny.series(0))
    tiny.write(source / "p0", {"points.csv": LABEL})
    summary = dskprep.run(source, target, settings=SETTINGS, labels=["points*"], observers=[heard])
    assert summary.labels is not None
    assert summary.labels.counts == {"written": 1}
    (note,) = (note for note in heard.notes if "label" in note)
    assert note.startswith(
        f"{source}: 1 archive, such as p1.zip, is not looked into for labels; unpack what holds some"
    )


def test_a_dataset_with_hashed_keys_hears_no_name_of_an_archive(tmp_path: Path) -> None:
    target = prepared(str(tmp_path), keys="hashed")
    tiny.write(tmp_path / "labels", {"a.csv": LABEL, "Smith.zip": b"PK"})
    for labels in ("labels", "labels/Smith.zip"):
        _, (note,) = annotate(target, f"{tmp_path}/{labels}")
        assert "1 archive" in note
        assert "Smith" not in note.replace(f"{tmp_path}/{labels}", "")

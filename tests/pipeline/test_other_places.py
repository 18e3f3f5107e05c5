"""Patients that count as done, though their records were made from another place, are said."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

import dskprep


class Heard(dskprep.Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, message: str) -> None:
        self.notes.append(message)


def source(folder: Path, names: Sequence[str], seed: int) -> Path:
    """Patients whose files have the same names, sizes and times as those of another seed."""
    for i, name in enumerate(names):
        tiny.write(folder / name, tiny.series(seed + i, series_uid=f"1.2.3.{seed + i}"))
    for path in folder.rglob("*.dcm"):
        os.utime(path, (0, 0))
    return folder


def notes_of(source: Path, target: Path, **more: Any) -> list[str]:
    heard = Heard()
    dskprep.run(source, target, observers=[heard], **more)
    return [note for note in heard.notes if "another place" in note]


def test_a_patient_of_another_source_with_equal_files_is_said(tmp_path: Path) -> None:
    first, second = source(tmp_path / "A", ["p1", "p2"], 10), source(tmp_path / "B", ["p1", "p2", "p3"], 20)
    target = tmp_path / "out"
    assert notes_of(first, target) == []
    assert notes_of(first, target) == []
    (note,) = notes_of(second, target)
    assert "2 patients done before from another place, such as p1" in note
    assert f"made from {first}/p1, and found in {second}/p1" in note
    assert "other keys" in note
    assert notes_of(second, target, only="p3") == []
    assert notes_of(first, target) == []


@pytest.mark.parametrize("is_moved", [True, False])
def test_with_hashed_keys_no_name_is_said(tmp_path: Path, is_moved: bool) -> None:
    target = tmp_path / "out"
    assert notes_of(source(tmp_path / "A", ["Smith"], 10), target, keys="hashed") == []
    second = source(tmp_path / "Jones", ["Smith"], 20) if is_moved else tmp_path / "A"
    notes = notes_of(second, target)
    assert len(notes) == is_moved
    assert not any(name in note for note in notes for name in ("Smith", "Jones", str(tmp_path)))

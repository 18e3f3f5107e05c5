"""A picture or a page is never written over something else."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import pytest
import tiny

from dskprep.cli import commands
from dskprep.pipeline import run

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("left")
    run.run(tiny.write_patients(folder / "in", ["p1"]), str(folder / "out"))
    return str(folder / "out")


COMMANDS = {
    "show DATASET p1": "p1.png",
    "report DATASET": "report.html",
    "compare DATASET DATASET --pictures .": "p1.png",
}


@pytest.mark.parametrize(("line", "name"), COMMANDS.items())
class TestWhatACommandLeaves:
    def words(self, line: str, dataset: str) -> list[str]:
        return line.replace("DATASET", dataset).split()

    def test_may_be_written_again(
        self, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            assert commands.run_command(self.words(line, dataset)) == 0
        assert (tmp_path / name).stat().st_size > 1000

    @pytest.mark.parametrize(
        "content",
        [
            b"mine",
            PNG + b"drawn by another program",
            PNG + b"\0\0\0\x0dtEXtTitle\0dskprep",
            b"<!doctype html><p>my page",
            b"<!doctype html><title>My notes on a run of dskprep</title>",
            b'<!doctype html><meta name="generator" content="pandoc"><title>dskprep</title>',
        ],
    )
    def test_never_takes_the_place_of_another_file(
        self, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str, content: bytes
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / name).write_bytes(content)
        assert commands.run_command(self.words(line, dataset)) == 2
        assert (tmp_path / name).read_bytes() == content

    @pytest.mark.parametrize("leads_to", ["precious", "absent"])
    def test_is_not_written_through_a_link(
        self, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str, leads_to: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "precious").write_bytes(b"mine")
        (tmp_path / name).symlink_to(leads_to)
        assert commands.run_command(self.words(line, dataset)) == 2
        assert (tmp_path / "precious").read_bytes() == b"mine"
        assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("show {dataset} p1 -o {there}/mine.png", "mine.png"),
        ("report {dataset} -o {there}/mine.html", "mine.html"),
        ("compare {dataset} {dataset} --pictures {there}/mine", "mine"),
    ],
)
def test_a_folder_that_may_not_be_written_is_told_before_anything_is_made(
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    name: str,
) -> None:
    there = tmp_path / "of-another-user"
    there.mkdir()
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, how: Path(path) != there and may(path, how))  # root may all
    assert commands.run_command(words.format(dataset=dataset, there=there).split()) == 3
    said = capsys.readouterr()
    assert f"{there}/{name}: Permission denied; check the path's rights" in said.err
    assert said.out == ""


@pytest.mark.parametrize("words", ["show DATASET p1 -o no/where/a.png", "report DATASET -o no/where/a.html"])
def test_a_folder_that_is_not_there_is_named(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    line = words.replace("DATASET", dataset).split()
    assert commands.run_command(line) == 2
    (told,) = capsys.readouterr().err.splitlines()
    name = Path(line[-1]).name
    assert told == (
        f"dskprep: no/where: expected a folder to write {name} to, found none; create it, or choose another place"
    )
    (tmp_path / "no").write_bytes(b"a file")
    assert commands.run_command(line) == 2
    assert (tmp_path / "no").read_bytes() == b"a file"


def test_a_folder_for_pictures_is_made_but_not_in_a_file(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["compare", dataset, dataset, "--pictures"]
    assert commands.run_command([*words, "new/below"]) == 0
    assert (tmp_path / "new" / "below" / "p1.png").stat().st_size > 1000
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("nowhere")
    capsys.readouterr()
    for place, what in {"file/below": "file", "link": "link", "link/below": "link"}.items():
        assert commands.run_command([*words, place]) == 2
        assert f"{what}: expected a folder, found something else" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_on_a_full_disk_the_page_of_before_stays_whole(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert commands.run_command(["report", dataset]) == 0
    before = (tmp_path / "report.html").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # a write fails there, as on a full disk
    try:
        codes = [commands.run_command(["report", dataset, *more]) for more in ([], ["-o", "new.html"])]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 not in codes
    told = capsys.readouterr().err
    assert "dskprep: report.html: File too large" in told
    assert "dskprep: new.html: File too large" in told
    assert (tmp_path / "report.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_may_be_written_to_a_pipe(dataset: str, tmp_path: Path) -> None:
    words = [*tiny.PROGRAM, "report", dataset, "-o", "/dev/stdout"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.startswith(b"<!doctype html>")
    assert not [*tmp_path.iterdir()]


def test_a_page_does_not_replace_what_makes_a_dataset_one(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path(dataset) / "dataset.json"
    before = place.read_bytes()
    assert commands.run_command(["report", dataset, "-o", str(place)]) == 2
    assert "found another file" in capsys.readouterr().err
    assert place.read_bytes() == before


def test_a_device_is_written(dataset: str) -> None:
    assert commands.run_command(["report", dataset, "-o", "/dev/null"]) == 0

"""The benchmarks run, in their quick form, and say what they promise; how fast this machine is does not matter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parent.parent / "benchmarks"


def run(program: str, results: Path) -> str:
    """What a program writes, in Markdown, when it is told to be quick."""
    environment = {name: value for name, value in os.environ.items() if name != "DSKPREP_DATA"}
    words = [sys.executable, PROGRAMS / f"{program}.py", "--quick", "--results", results]
    done = subprocess.run(words, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return (results / f"{program}.md").read_text(encoding="utf-8")


def said(program: str, *words: str | Path) -> str:
    """What a program prints that is asked for a few patients."""
    done = subprocess.run(
        [sys.executable, PROGRAMS / f"{program}.py", *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows(markdown: str) -> dict[str, list[str]]:
    """The rows of all its tables, by their first cell."""
    lines = [line.strip("| ").split("|") for line in markdown.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def test_one_patient_side_by_side(tmp_path: Path) -> None:
    markdown = run("patient", tmp_path)
    table = rows(markdown)
    for preset in ("default", "zuidhof", "luo-2017", "grt123"):
        compute, _, ratio, *_ = table[f"dskprep {preset}"]
        assert float(compute) > 0
        assert float(ratio) > 0
    assert "0 voxels of the mask differ" in markdown
    assert {"read", "decode", "resample", "lungs", "encode", "write", "whole"} <= set(table)
    assert 0 < (tmp_path / "patient.png").stat().st_size < 150_000


def test_how_an_image_is_stored(tmp_path: Path) -> None:
    table = rows(run("encoding", tmp_path))
    present, larger = (table[name] for name in ("dskprep: blosc zstd-1 bitshuffle, 64^3, sharded", "dskprep: zstd-5"))
    assert float(larger[1]) < float(present[1]) < float(table["zarr-python: not compressed"][1])
    assert {"clipped at -1000 HU", "air outside the body"} <= set(table)


def test_decoders(tmp_path: Path) -> None:
    markdown = run("decoders", tmp_path)
    for syntax in ("native", "RLE", "JPEG lossless (SV1)", "JPEG-LS", "JPEG 2000", "HTJ2K"):
        assert f"| {syntax}, " in markdown
    assert markdown.count("dskprep.pixels.stored_values") == 6
    assert "DIFFERENT" not in markdown


def test_ratios_are_stored_and_compared(tmp_path: Path) -> None:
    words = [sys.executable, PROGRAMS / "regress.py", "--quick", "--results", tmp_path]
    subprocess.run([*words, "--store"], check=True, capture_output=True, timeout=600)
    printed = subprocess.run(words, check=True, capture_output=True, text=True, timeout=600).stdout
    (line,) = (line for line in printed.splitlines() if line.startswith("default, lungs"))
    ratio, _, stored, change = line.removeprefix("default, lungs").split()
    assert float(ratio) > 0
    assert float(stored) > 0
    assert change.endswith("%")


def test_codecs_and_levels(tmp_path: Path) -> None:
    table = rows(run("formats", tmp_path))
    assert float(table["zstd, 1 level"][0]) > float(table["blosc-zstd, 1 level (the default)"][0])
    assert float(table["blosc-zstd, 3 levels"][0]) > float(table["blosc-zstd, 1 level (the default)"][0])


def test_the_run_loop(tmp_path: Path) -> None:
    printed = said("run_loop", "40", "--results", tmp_path)
    assert "do not share" not in printed
    table = rows(printed)
    wall_ms, cpu_ms, *_ = table["40 patients"]
    assert float(wall_ms) > 0
    assert float(cpu_ms) > 0
    assert (tmp_path / "run_loop.json").exists()


def test_a_run_with_nothing_to_do() -> None:
    lines = said("million", "300").splitlines()
    (run_line,) = (line for line in lines if line.startswith("run, all done"))
    assert "exit code 0" in run_line
    assert any(line.startswith("index current") and "301 rows" in line for line in lines)


@pytest.mark.s3
def test_going_on_where_all_is_done() -> None:
    printed = said("resume", "30")
    assert "without index.parquet: 30 patients" in printed
    assert "with index.parquet: 30 patients" in printed

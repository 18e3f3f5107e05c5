"""A full or broken disk: the line names the file, and the exit code is not that of wrong use."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from dskprep.cli import left_files, terminal
from dskprep.cli.exits import describe_error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_broken_disk_is_no_wrong_use(number: int) -> None:
    assert describe_error(OSError(number, "said", "a.png")) == ("a.png: said", 3)
    assert describe_error(OSError(errno.ENOTDIR, "said", "a.png")) == ("a.png: said", 2)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_place_that_may_not_be_written_is_no_wrong_use(number: int) -> None:
    line, code = describe_error(OSError(number, "said", "a.png"))
    assert (line, code) == ("a.png: said; check the path's rights, or choose another place", 3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_behind_standard_output_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as full:  # which is full when it is closed, too
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space") as caught:
            terminal.say("x")
        assert describe_error(caught.value) == ("standard output: No space left on device", 3)
        with pytest.raises(OSError, match="No space") as caught:
            left_files.leave(Path("/dev/full"), b"x")
        assert describe_error(caught.value) == ("/dev/full: No space left on device", 3)


@pytest.mark.parametrize(
    ("variable", "name", "content"),
    [
        ("DASK_CONFIG", "dask.yaml", "distributed: [\nsecret: wJalrXUtnFEMI: x"),
        ("DASK_CONFIG", "dask.yaml", "- a list"),
        ("FSSPEC_CONFIG_DIR", "s3.json", '{"s3": {"secret": "wJalrXUtnFEMI",,}}'),
    ],
)
def test_a_damaged_configuration_of_a_library_is_one_line(
    tmp_path: Path, variable: str, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    words = [*tiny.PROGRAM, "status", str(tmp_path)]
    done = subprocess.run(
        words, env=os.environ | {variable: str(tmp_path)}, capture_output=True, text=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert re.match(r"dskprep: the configuration of (Dask|fsspec) cannot be used \(\w+\); correct ", line)
    assert variable in line or str(tmp_path / name) in line
    assert "wJal" not in line

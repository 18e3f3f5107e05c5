"""A full or broken disk: the line names the file, and the exit code is not that of wrong use."""

from __future__ import annotations

import contextlib
import errno
import sys
from pathlib import Path

import pytest

from dskprep.cli import left_files, terminal
from dskprep.cli.exits import describe_error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_broken_disk_is_no_wrong_use(number: int) -> None:
    assert describe_error(OSError(number, "said", "a.png")) == ("a.png: said", 3)
    assert describe_error(OSError(errno.ENOTDIR, "said", "a.png")) == ("a.png: said", 2)


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

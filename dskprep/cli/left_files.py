"""Pictures and pages that a command leaves where the user works: never in the place of something else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dskprep.cli.exits import naming
from dskprep.errors import UsageError

MARKS = {
    b"\x89PNG": b"tEXtSoftware\0dskprep",
    b"<!doctype html>": b'<meta name="generator" content="dskprep">',
}
"""How the files begin that a command leaves, and what stands in the first bytes of each."""
HEAD = 1 << 12


def check(path: Path) -> None:
    """Raise UsageError if something is in the place of a file that dskprep has not left. Devices may be written.

    Raises PermissionError if a file in this place may not be written.
    """
    there = next((place for place in (path, *path.parents) if place.exists()), path)
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if path.is_symlink() and (path.is_file() or not path.exists()):
        found = "a link"
    elif path.is_file() and not _is_ours(path):
        found = "another file"
    else:
        return
    raise UsageError(
        f"{path}: expected no file, or a picture or page that dskprep has left there; found {found}; "
        "choose another place, or move it away"
    )


def leave(path: Path, content: bytes) -> None:
    """Write a file, or write over one that was left before. Raises UsageError as `check`."""
    check(path)
    with naming(str(path)):
        path.write_bytes(content)


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD).lstrip()
    return not head or any(head.startswith(beginning) and mark in head for beginning, mark in MARKS.items())

"""Pictures and pages that a command leaves where the user works: never in the place of something else."""

from __future__ import annotations

import errno
import os
import secrets
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
    """Raise UsageError if no file can be left here: there is no folder, or something that dskprep has not left.

    Devices may be written. Raises PermissionError if a file in this place may not be written.
    """
    if not path.parent.is_dir():
        raise UsageError(
            f"{path.parent}: expected a folder to write {path.name} to, found none; create it, or choose another place"
        )
    if path.is_symlink() and not _is_device(path):
        found = "a link"
    elif path.is_file() and not _is_ours(path):
        found = "another file"
    else:
        _check_rights(path, *([] if _is_device(path) else [path.parent]))
        return
    raise UsageError(
        f"{path}: expected no file, or a picture or page that dskprep has left there; found {found}; "
        "choose another place, or move it away"
    )


def check_folder(path: Path) -> None:
    """Raise UsageError if this is no folder and none can be made here, PermissionError if nothing may be written."""
    there = next((place for place in (path, *path.parents) if place.exists() or place.is_symlink()), path)
    if not there.is_dir():
        raise UsageError(f"{there}: expected a folder, found something else; choose another place, or move it away")
    _check_rights(path, there)


def leave(path: Path, content: bytes) -> None:
    """Write a file, or in place of one that was left before: nobody sees a part of it. Raises UsageError as `check`."""
    check(path)
    is_whole = _is_device(path)
    beside = path if is_whole else path.with_name(f".dskprep-{secrets.token_hex(6)}.part")
    try:
        with naming(str(path)):
            beside.write_bytes(content)
            if not is_whole:
                beside.replace(path)
                is_whole = True
    finally:
        if not is_whole:  # as where the disk is full
            beside.unlink(missing_ok=True)


def _check_rights(path: Path, *places: Path) -> None:
    """Raise PermissionError, which names the path, if one of the places may not be written."""
    if not all(os.access(place, os.W_OK) for place in (path, *places) if place.exists()):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _is_device(path: Path) -> bool:
    """Tell whether a pipe, a device or a folder is there, also behind a link, as /dev/stdout is one."""
    return path.exists() and not path.is_file()


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD).lstrip()
    return not head or any(head.startswith(beginning) and mark in head for beginning, mark in MARKS.items())

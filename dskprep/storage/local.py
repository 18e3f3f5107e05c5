"""Folders on disk: listing (`local_listing`), reading, and writes that leave no half file behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dskprep.storage.local_listing import Entry as Entry
from dskprep.storage.local_listing import Folder as Folder
from dskprep.storage.local_listing import list_below as list_below
from dskprep.storage.local_listing import list_folder as list_folder
from dskprep.storage.local_listing import to_entry
from dskprep.storage.local_listing import walk as walk

PART_SUFFIX = ".part"
"""Ends the name of a file that is still being written, or that a killed process left half written."""


class ObjectChanged(Exception):
    """A file or object was replaced or removed after it was listed."""


class DeadLink(ObjectChanged):
    """What was listed as a file is a link that leads nowhere."""


def exists(fs: Any, path: str) -> bool:
    return bool(fs.exists(path))


def is_folder(fs: Any, path: str) -> bool:
    return bool(fs.isdir(path))


def entry_of(fs: Any, path: str) -> Entry | None:
    """Return the file at the path, or None if there is none."""
    try:
        info = fs.info(path)
    except FileNotFoundError:
        return None
    return to_entry(info, path.rpartition("/")[2]) if info["type"] == "file" else None


def read(fs: Any, path: str) -> bytes:
    refuse_devices(path)
    return bytes(fs.cat_file(path))


def read_head(fs: Any, path: str, n_bytes: int) -> bytes:
    refuse_devices(path)
    return bytes(fs.cat_file(path, start=0, end=n_bytes))


def refuse_devices(path: str) -> None:
    """Raise OSError for what is there and is no file: reading a pipe may wait for ever, and a device may never end."""
    mode = os.stat(path).st_mode  # noqa: PTH116
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(f"{path}: expected a file, found a device, a pipe or a socket")


def read_ranges(fs: Any, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read the parts of a file from each start to before each end."""
    refuse_devices(path)
    parts = []
    with fs.open(path, "rb") as file:
        for start, end in ranges:
            file.seek(start)
            parts.append(file.read(end - start))
    if [len(part) for part in parts] != [end - start for start, end in ranges]:
        raise OSError(f"{path}: is shorter than expected")
    return parts


def read_many(fs: Any, path: str, entries: Sequence[Entry]) -> Iterator[bytes]:
    """Yield the content of files below a folder. Raises ObjectChanged if one has not the size that was listed."""
    for entry in entries:
        content = read(fs, f"{path}/{entry.name}")
        if len(content) != entry.size:
            raise ObjectChanged(f"{entry.name}: was listed with {entry.size} bytes, now has {len(content)}")
        yield content


def read_existing(fs: Any, path: str, names: Iterable[str], *, most_bytes: int) -> Iterator[bytes | None]:
    """Yield the content of each file in a folder, None for one that is not there, or is larger."""
    is_link = Path(path).is_symlink()
    for name in names:
        file = Path(path, name)
        is_there = not is_link and file.is_file() and file.stat().st_size <= most_bytes
        yield read(fs, str(file)) if is_there else None


def refuse_links(path: str, names: Iterable[str]) -> None:
    """Raise OSError if a folder between `path` and one of the files below it is a link, or a name leads out of it."""
    folders = {name.rpartition("/")[0] for name in names}
    folders |= {above.as_posix() for folder in folders for above in PurePosixPath(folder).parents if above.name}
    for folder in sorted(folders):
        if ".." in folder.split("/"):
            raise OSError(f"{folder}: expected a folder below {path}, found a way out of it; nothing was changed")
        if folder and Path(path, folder).is_symlink():
            raise OSError(
                f"{folder}: expected a folder, found a link, and what it leads to is left alone; put the folder itself "
                "there, or remove the link"
            )


def write_many(fs: Any, objects: dict[str, bytes]) -> None:
    """Write files by path. Each is written beside, then renamed: a reader sees the old file or the whole new one."""
    for path, content in objects.items():
        Path(_write_beside(fs, path, content)).replace(path)  # fsspec would move into what a link leads to


def create(fs: Any, path: str, content: bytes) -> bool:
    """Write a file unless it exists; return whether it was written.

    It is written beside, then linked: whoever comes second finds the whole file of the first.
    """
    beside = _write_beside(fs, path, content)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: two runs may both write there, but never half a file
        if fs.exists(path):
            return False
        Path(beside).replace(path)
    finally:
        delete(fs, [beside])
    return True


def _write_beside(fs: Any, path: str, content: bytes) -> str:
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    beside = f"{path}.{secrets.token_hex(6)}{PART_SUFFIX}"  # random, for others may write the same file now
    fs.pipe_file(beside, content)
    return beside


def delete(fs: Any, paths: Iterable[str]) -> None:
    """Delete files; those that do not exist are passed over."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)

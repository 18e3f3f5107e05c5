"""Folders on disk: listing (`local_listing`), reading, and writes that leave no half file behind."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import psutil

from dskprep.plain import in_one_line
from dskprep.storage.local_listing import Entry as Entry
from dskprep.storage.local_listing import Folder as Folder
from dskprep.storage.local_listing import entry_as, to_entry
from dskprep.storage.local_listing import list_below as list_below
from dskprep.storage.local_listing import list_folder as list_folder
from dskprep.storage.local_listing import walk as walk

log = logging.getLogger("dskprep")

PART_SUFFIX = ".part"
"""Ends the name of a file that is still being written, or that a killed process left half written."""
UNFINISHED = rf"\.[0-9a-f]{{12}}{re.escape(PART_SUFFIX)}"
"""All that such a file has after the name that it is to have, as a regular expression."""
OF_ONE_FILE = (errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EBADMSG, errno.EISDIR)
"""Errors that may concern one file alone: bad sectors, rights, a handle of NFS, a wrong checksum, a folder."""
MUCH_BYTES = 1 << 30
"""Before a larger file is read as a whole, the free memory is looked at: a file of holes costs nobody anything."""


class ObjectChanged(Exception):
    """A file or object was replaced or removed after it was listed."""


class NoFile(ObjectChanged):
    """What was listed as a file is a link that leads nowhere, a pipe, a device or a socket."""


class OneFile(OSError):
    """One file or object cannot be read, while the place that it lies in can be listed: the others are in order."""


class _Device(OneFile):
    """A pipe, a device or a socket stands where a file should be."""


def exists(fs: Any, path: str) -> bool:
    return bool(fs.exists(path))


def is_folder(fs: Any, path: str) -> bool:
    return bool(fs.isdir(path))


def entry_of(fs: Any, path: str) -> Entry | None:
    """Return the file at the path, or None if there is none. A pipe counts as in a listing: reading it fails."""
    try:
        info = fs.info(path)
    except FileNotFoundError:
        return None
    return to_entry(info, path.rpartition("/")[2]) if info["type"] != "directory" else None


def read(_: Any, path: str) -> bytes:
    with _opened(path) as (file, n_bytes):
        if n_bytes > MUCH_BYTES and n_bytes > (free := psutil.virtual_memory().available):
            raise OSError(f"expected a file that fits into memory, of which {free} bytes are free, found {n_bytes}")
        return file.read()


def read_head(_: Any, path: str, n_bytes: int) -> bytes:
    with _opened(path) as (file, _size):
        return file.read(n_bytes)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file to be read, and tell its size. Raises OneFile if nothing but this file cannot be read."""
    try:
        with _opened_file(path) as opened:
            yield opened
    except OSError as error:
        if error.errno in OF_ONE_FILE and _can_be_listed(path.rpartition("/")[0]):
            raise OneFile(error.errno, error.strerror, path) from error
        raise


def _can_be_listed(folder: str) -> bool:
    """Tell whether a folder can be looked into now: not where a disk, or a server, is gone with all that it has."""
    try:
        with os.scandir(folder or "/") as found:
            next(found, None)
    except OSError:
        return False
    return os.access(folder or "/", os.X_OK)


@contextlib.contextmanager
def _opened_file(path: str) -> Iterator[tuple[BinaryIO, int]]:
    """Do what `_opened` does, and raise what the system raises.

    Raises OSError for what is none: reading a pipe may wait for ever, and a device may never end. What stands there may
    be replaced by a pipe at any time, so opening it does not wait either.
    """
    try:
        _refuse_devices(path, os.stat(path).st_mode)  # noqa: PTH116  (to open some devices has effects)
    except NotADirectoryError as error:  # nothing lies below a file
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        _refuse_devices(path, found.st_mode)
        file = os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise
    with file:
        yield file, found.st_size


def _refuse_devices(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise _Device(f"{Path(path).name}: expected a file, found a device, a pipe or a socket")


def changed(error: OSError) -> ObjectChanged | None:
    """Return what became of a listed file that could not be read, if it changed since, or never was one."""
    if isinstance(error, _Device):
        return NoFile(str(error))
    if isinstance(error, OneFile):
        return None
    if isinstance(error.filename, str) and (file := Path(error.filename)).is_symlink():
        return NoFile(f"{file.name}: expected a file, found a link that leads nowhere")
    if isinstance(error, FileNotFoundError):
        return ObjectChanged(f"a file that was listed is not there any more: {in_one_line(error)}")
    return None


def read_ranges(_: Any, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read the parts of a file from each start to before each end."""
    parts = []
    with _opened(path) as (file, _size):
        for start, end in ranges:
            file.seek(start)
            parts.append(file.read(end - start))
    if [len(part) for part in parts] != [end - start for start, end in ranges]:
        raise OSError(f"{path}: is shorter than expected")
    return parts


def read_many(_: Any, path: str, entries: Sequence[Entry]) -> Iterator[bytes]:
    """Yield the content of files below a folder. Raises ObjectChanged if one is not of the size and time as listed.

    No more than that is read: a file may grow without end.
    """
    for entry in entries:
        with _opened(f"{path}/{entry.name}") as (file, _size):
            content = file.read(entry.size)
            now = entry_as(entry.name, os.fstat(file.fileno()))  # after it was read: it may be written over meanwhile
        if not len(content) == now.size == entry.size:
            raise ObjectChanged(f"{entry.name}: was listed with {entry.size} bytes, now has {now.size}")
        if now.tag != entry.tag:
            raise ObjectChanged(f"{entry.name}: was written again after it was listed")
        yield content


@functools.lru_cache(1000)
def _tell_passed_over(path: str, why: str) -> None:
    """Say so once in a process: leases are read every few seconds."""
    log.warning(f"{path}: cannot be read ({why}), and is passed over")


def read_existing(fs: Any, path: str, names: Iterable[str], *, most_bytes: int) -> Iterator[bytes | None]:
    """Yield the content of each file in a folder, None for one that is not there, is a link or larger.

    One that cannot be read is None too, and told.
    """
    is_link = Path(path).is_symlink()
    for name in names:
        file = Path(path, name)
        try:
            is_there = not (is_link or file.is_symlink()) and file.is_file() and file.stat().st_size <= most_bytes
            content = read(fs, str(file)) if is_there else None
        except FileNotFoundError:  # it was deleted just now
            content = None
        except OneFile as error:
            content = None
            _tell_passed_over(str(file), error.strerror)
        yield content


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


def write_private(fs: Any, path: str, content: bytes) -> None:
    """Write one file as `write_many` does, of mode 0600 from its first byte on."""
    Path(_write_beside(fs, path, content, is_private=True)).replace(path)


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


def _write_beside(fs: Any, path: str, content: bytes, *, is_private: bool = False) -> str:
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    beside = f"{path}.{secrets.token_hex(6)}{PART_SUFFIX}"  # random, for others may write the same file now
    try:
        if is_private:
            Path(beside).touch(0o600, exist_ok=False)
        fs.pipe_file(beside, content)
    except OSError:  # as where a disk is full
        with contextlib.suppress(OSError):
            delete(fs, [beside])
        raise
    return beside


def delete(fs: Any, paths: Iterable[str]) -> None:
    """Delete files; those that do not exist are passed over."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)

"""Folders on disk: listing, following links, and writes that leave no half file behind.

Also the values of which a listing consists, on disk and on S3.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

PART_SUFFIX = ".part"
"""Ends the name of a file that is still being written, or that a killed process left half written."""


MAX_LINKS = 3
"""Links to folders on the way from a source to a folder. Without a limit, a few dozen links make millions of ways."""


class ObjectChanged(Exception):
    """A file or object was replaced or removed after it was listed."""


class DeadLink(ObjectChanged):
    """What was listed as a file is a link that leads nowhere."""


class Entry(NamedTuple):
    """One file or object of a listing."""

    name: str
    """Relative to the folder that was listed; may contain slashes."""
    size: int
    """In bytes."""
    tag: str
    """Changes with the content: the ETag on S3, the time of the last change on disk."""
    modified_s: float = 0.0
    """When it was written, in seconds since 1970; 0 if the store does not say."""


@dataclass(frozen=True)
class Folder:
    """One folder found by `walk`: its path relative to the start, and what lies directly in it.

    `has_subfolders` does not count hidden ones.
    """

    path: str
    entries: tuple[Entry, ...]
    has_subfolders: bool


def to_entry(info: dict[str, Any], name: str) -> Entry:
    """Make an entry of what an fsspec file system says about a file."""
    tag = info.get("ETag") or info.get("mtime") or info.get("etag") or ""
    modified = info.get("LastModified")
    modified_s = modified.timestamp() if modified else float(info.get("mtime") or 0)
    return Entry(name, int(info["size"] or 0), str(tag).strip('"'), modified_s)


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


def list_folder(fs: Any, path: str) -> tuple[list[str], list[Entry]]:
    """Return the folders (by name) and the files directly in a folder, sorted. A link counts as what it points to."""
    start = len(path.rstrip("/")) + 1
    folders, entries = [], []
    for info in fs.ls(path, detail=True):
        if info.get("islink"):
            try:
                info = fs.info(info["name"])  # of what it points to
            except OSError:
                info["type"] = "file"  # it points nowhere: reading it fails, which is better than leaving it out
        name = info["name"][start:].rstrip("/")
        if name and info["type"] == "directory":
            folders.append(name)
        elif name and info["type"] == "file":
            entries.append(to_entry(info, name))
    return sorted(folders), sorted(entries)


def has_visible(folders: Iterable[str]) -> bool:
    """Tell whether a folder is not hidden, by their names."""
    return not all(name.startswith(".") for name in folders)


def walk(fs: Any, path: str, *, is_whole: bool = False, follow_links: bool = True) -> Iterator[Folder]:
    """Yield every folder, depth first, in a stable order. A link to a folder that it lies in is not followed.

    That also holds for the folders above the first, so a walk that begins further down finds the same. Without
    `follow_links` no link to a folder is followed, the first included; a link to a file is an entry in any case. A
    folder that may not be read counts as empty; with `is_whole`, or if it is the first, it raises PermissionError.
    Raises OSError for a folder behind more than MAX_LINKS links: left out, it would be lost in silence.
    """
    if not follow_links and Path(path).is_symlink():
        return
    first = Path(path)
    n_above = sum(place.is_symlink() for place in (first, *first.parents))
    pending = [(path, n_above, tuple(os.path.realpath(place) for place in (first, *first.parents)))]
    while pending:
        place, n_links, above = pending.pop()
        try:
            folders, entries = list_folder(fs, place)
        except FileNotFoundError:
            continue
        except PermissionError:
            if is_whole or place == path:
                raise
            folders, entries = [], []  # this patient fails when it is read; the others do not
        yield Folder(place[len(path.rstrip("/")) + 1 :], tuple(entries), has_visible(folders))
        for name in reversed(folders):
            below = f"{place.rstrip('/')}/{name}"
            is_link = Path(below).is_symlink()
            if is_link and not follow_links:
                continue
            real = os.path.realpath(below)
            if not any(f"{each}/".startswith(f"{real.rstrip('/')}/") for each in above):
                if n_links + is_link > MAX_LINKS:
                    raise OSError(
                        f"{below}: expected at most {MAX_LINKS} links to folders on the way to a folder, found more; "
                        "remove one, or put the folder itself there"
                    )
                pending.append((below, n_links + is_link, (*above, real)))


def list_below(fs: Any, path: str, *, follow_links: bool = True) -> Iterator[Entry]:
    """Yield every file below a folder; names are relative to it."""
    for folder in walk(fs, path, is_whole=True, follow_links=follow_links):
        prefix = f"{folder.path}/" if folder.path else ""
        yield from (entry._replace(name=prefix + entry.name) for entry in folder.entries)


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

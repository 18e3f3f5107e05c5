"""Listing of folders on disk, links followed; and the values of which a listing consists, there and on S3."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

MAX_LINKS = 3
"""Links to folders on the way from a source to a folder. Without a limit, a few dozen links make millions of ways."""


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


def entry_as(name: str, found: os.stat_result) -> Entry:
    """Make an entry of what the operating system says about a file."""
    return Entry(name, found.st_size, str(found.st_mtime or ""), found.st_mtime)


def list_folder(_: Any, path: str) -> tuple[list[str], list[Entry]]:
    """Return the folders (by name) and the files directly in a folder, sorted. A link counts as what it points to."""
    folders, names, _links = _scan(path)
    return folders, list(_stat_each(path, names))


def _scan(path: str) -> tuple[list[str], list[str], set[str]]:
    """Return the names of the folders and of the files in a folder, sorted, and those of them that are links.

    Only links are looked at. What is neither a file nor a folder counts as a file: reading it fails, which is better
    than leaving it out. A slice may stand there, or may have stood there.
    """
    folders, names, links = list[str](), list[str](), set[str]()
    with contextlib.suppress(NotADirectoryError), os.scandir(path) as found:
        for entry in found:
            if is_link := entry.is_symlink():
                links.add(entry.name)
            is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()  # noqa: PTH112  (a dead link is none)
            (folders if is_folder else names).append(entry.name)
    if (folders or names) and not os.access(path, os.X_OK):  # nothing in it can be read, only its names
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return sorted(folders), sorted(names), links


def _stat_each(path: str, names: Iterable[str], below: str = "") -> Iterator[Entry]:
    """Yield the entries of files in a folder, each name preceded by `below`. One that is gone by now is left out."""
    prefix = f"{path.rstrip('/')}/"
    for name in names:
        try:
            yield entry_as(below + name, os.stat(prefix + name))  # noqa: PTH116  (a Path costs as much as the question)
        except OSError:  # it is gone, or a link that leads nowhere
            with contextlib.suppress(FileNotFoundError):
                yield entry_as(below + name, os.lstat(prefix + name))._replace(size=0)


def has_visible(folders: Iterable[str]) -> bool:
    """Tell whether a folder is not hidden, by their names."""
    return not all(name.startswith(".") for name in folders)


def walk(_: Any, path: str, *, is_whole: bool = False, follow_links: bool = True) -> Iterator[Folder]:
    """Yield every folder, depth first, in a stable order. A link to a folder that it lies in is not followed.

    That also holds for the folders above the first, so a walk that begins further down finds the same. Without
    `follow_links` no link to a folder is followed, the first included; a link to a file is an entry in any case. A
    folder that may not be read counts as empty; with `is_whole`, or if it is the first, it raises PermissionError.
    One that was deleted meanwhile is passed over. Raises OSError for what would else be lost in silence: a folder
    behind more than MAX_LINKS links, and the rest of a folder that is gone, or another one, while it is listed.
    """
    for place, below, names, has_subfolders in _places(path, is_whole=is_whole, follow_links=follow_links):
        yield Folder(below, tuple(_stat_each(place, names)), has_subfolders)


def list_below(_: Any, path: str, *, follow_links: bool = True) -> Iterator[Entry]:
    """Yield every file below a folder; names are relative to it. Of each folder only the names are held."""
    for place, below, names, _has in _places(path, is_whole=True, follow_links=follow_links):
        yield from _stat_each(place, names, f"{below}/" if below else "")


def _places(path: str, *, is_whole: bool, follow_links: bool) -> Iterator[tuple[str, str, list[str], bool]]:
    """Walk as `walk` does; yield each folder: its path, the same relative to the first, its files, `has_subfolders`."""
    first = Path(path)
    if not follow_links and first.is_symlink():
        return
    n_above = sum(place.is_symlink() for place in (first, *first.parents))
    ways = [iter([(path, n_above, tuple(os.path.realpath(place) for place in (*first.parents, first)))])]
    begun: list[tuple[str, os.stat_result]] = []  # the folders that the walk is in
    while ways:  # one for the first folder, and one for each of these
        place, n_links, above = next(ways[-1], ("", 0, ()))
        if not place:
            ways.pop()
            if len(ways) == 1:  # all is listed; the last files may have been looked at in vain
                _check_same(begun)
            del begun[len(ways) - 1 :]
            continue
        below = place[len(path.rstrip("/")) + 1 :]
        try:
            found = os.stat(place)  # noqa: PTH116  (a Path costs as much as the question)
            folders, names, links = _scan(place)
        except (FileNotFoundError, NotADirectoryError):
            _check_same(begun)
            continue
        except PermissionError:
            if is_whole or place == path:
                raise
            yield place, below, [], False  # this patient fails when it is read; the others do not
            continue
        yield place, below, names, has_visible(folders)
        followed = folders if follow_links else [name for name in folders if name not in links]
        ways.append(_ways_down(place, followed, links, n_links, above))
        begun.append((place, found))


def _check_same(begun: Iterable[tuple[str, os.stat_result]]) -> None:
    """Raise OSError if one of these folders is gone, or another one, as where its disk was unmounted."""
    for place, before in begun:
        try:
            is_same = os.path.samestat(before, os.stat(place))  # noqa: PTH116  (as above)
        except (FileNotFoundError, NotADirectoryError):
            is_same = False
        if not is_same:
            raise OSError(
                errno.ESTALE,
                "expected the folder that was there when its listing began, found none or another one; mount it or put "
                "it back, and run again",
                place,
            )


def _ways_down(
    place: str, folders: list[str], links: set[str], n_links: int, above: tuple[str, ...]
) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Yield for each folder in a folder its path, the links on the way to it, and the true places above it.

    These are the places that links led to, and last its own. A folder that is no link is not looked at: it cannot be
    one that it lies in.
    """
    for name in folders:
        below = f"{place.rstrip('/')}/{name}"
        if name not in links:
            yield below, n_links, (*above[:-1], f"{above[-1].rstrip('/')}/{name}")
            continue
        real = os.path.realpath(below)
        if not any(f"{each}/".startswith(f"{real.rstrip('/')}/") for each in above):
            if n_links == MAX_LINKS:
                raise OSError(
                    f"{below}: expected at most {MAX_LINKS} links to folders on the way to a folder, found more; "
                    "remove one, or put the folder itself there"
                )
            yield below, n_links + 1, (*above, real)

"""What lies in a bucket: single objects, and listings.

On S3 s3fs looks at single objects and lists, as it shows whether an answer can be believed (`s3_pages`). obstore lists
many small folders at once, and all of Azure.
`bucket` says why, and what a path and the errors are.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import obstore

from dskprep.storage.answers import Hopeless
from dskprep.storage.connection import NOT_BY_OBSTORE, THREADS, Connection, S3Connection, fork
from dskprep.storage.local_listing import Entry, Folder, has_visible, to_entry
from dskprep.storage.s3_pages import pages
from dskprep.storage.threads import Threads

LISTED_AHEAD = 32
"""Listings that may be under way, or wait to be used, at once."""
LISTED_AT_ONCE = 5000
"""Most objects of one folder in a listing; the subfolders of a larger one are listed one by one."""
PLAIN = re.compile(r"[\w.=@,+-]+", re.ASCII)
"""Names of folders that stand in a key as they are."""
FIRST_GROUP, LEAST_IN_GROUP, MOST_IN_GROUP = 4, 10, 1000
"""Folders that are listed together at first, and then at least and at most: each group reads a little too far."""
GROUP_OBJECTS, MOST_OBJECTS = 3000, 10_000
"""Objects that folders listed together should have, and may have at most."""


def exists(s3: Connection, path: str) -> bool:
    """Tell whether there is such an object, anything below it, or such a bucket."""
    try:
        return bool(_info(s3, path))
    except FileNotFoundError:
        return False


def is_folder(s3: Connection, path: str) -> bool:
    """Tell whether anything lies below the path, or it is a bucket."""
    bucket, _, folder = path.partition("/")
    try:
        return s3.has_any(bucket, prefix_of(folder)) or not folder
    except FileNotFoundError:
        return False


def entry_of(s3: Connection, path: str) -> Entry | None:
    """Return the object at the path, or None if there is none."""
    try:
        info = _info(s3, path)
    except FileNotFoundError:
        return None
    return to_entry(info, path.rpartition("/")[2]) if info["type"] == "file" else None


def _info(s3: Connection, path: str) -> dict[str, Any]:
    bucket, _, key = path.partition("/")
    found: dict[str, Any] = s3.by_head(bucket, key, lambda: s3.fs.info(path))
    return found


def list_folder(s3: Connection, path: str) -> tuple[list[str], list[Entry]]:
    """Return the folders (by name) and the objects directly in a folder, sorted."""
    folders, entries = _list_folder(s3, path)
    return [name for name in folders if name], entries


def _list_folder(s3: Connection, path: str) -> tuple[list[str], list[Entry]]:
    """Do so; a folder without a name, as in `a//b`, is among them."""
    bucket, _, folder = path.partition("/")
    top = prefix_of(folder)
    if not isinstance(s3, S3Connection):
        found = s3.read(lambda: obstore.list_with_delimiter(s3.store(bucket), folder or None), path, math.inf)
        names = [key.removeprefix(top) for key in found["common_prefixes"]]
        return sorted(names), sorted(_to_entries(found["objects"], folder))
    folders: list[str] = []
    entries: list[Entry] = []
    for page in pages(s3, path, Delimiter="/"):
        folders += [each["Prefix"].removeprefix(top)[:-1] for each in page.get("CommonPrefixes", [])]
        entries += _to_files(page, top)
    return sorted(folders), sorted(entries)


def list_below(s3: Connection, path: str, limit: int = sys.maxsize) -> list[Entry] | None:
    """Return every object below a folder, sorted by its whole name; None if there are more than `limit`."""
    if not isinstance(s3, S3Connection):
        return _list_below_by_obstore(s3, path, limit)
    found = list(itertools.islice(_each_below(s3, path), limit + 1 if limit < sys.maxsize else None))
    return None if len(found) > limit else found


def _each_below(s3: S3Connection, path: str) -> Iterator[Entry]:
    """Yield every object below a folder, in the order of their keys."""
    top = prefix_of(path.partition("/")[2])
    for page in pages(s3, path):
        yield from _to_files(page, top)


def _list_below_by_obstore(azure: Connection, path: str, limit: int) -> list[Entry] | None:
    """As `list_below`. Raises Hopeless if the same blob is listed twice: the listing would never come to an end."""
    container, _, folder = path.partition("/")

    def get() -> list[Entry] | None:
        found: list[Entry] = []
        names: set[str] = set()
        for page in obstore.list(azure.store(container), folder, chunk_size=1000):
            entries = _to_entries(page, folder)
            found += entries
            names.update(entry.name for entry in entries)
            if len(names) < len(found):
                raise Hopeless("found one blob twice in a listing; the server would list the same without end")
            if len(found) > limit:
                return None
        return found

    listed = azure.read(get, path, math.inf)
    return None if listed is None else _without_markers(azure, path, listed)


def walk(s3: Connection, path: str) -> Iterator[Folder]:
    """Yield every folder that holds objects. Each folder directly in the first is listed whole, several at once."""
    with Threads(THREADS, "s3list") as threads:
        try:
            yield from _walk(s3, path, "", threads)
        finally:
            threads.shutdown(cancel_futures=True)


def _walk(s3: Connection, path: str, above: str, threads: Threads) -> Iterator[Folder]:
    """Yield a folder, which the walk knows as `above`, and those below it.

    A subfolder of more than LISTED_AT_ONCE objects is walked in the same way, so little is held in memory.
    """
    folders, entries = _list_folder(s3, path)
    if isinstance(s3, S3Connection) and "" in folders:  # no path leads into it
        yield from _to_folders(_each_below(s3, path), above)
        return
    if entries:
        yield Folder(above, tuple(entries), has_visible(folders))
    for name, found in _list_each(s3, path, folders, threads):
        below = prefix_of(above) + name
        yield from _walk(s3, f"{path}/{name}", below, threads) if found is None else _to_folders(found, below)


def _list_each(
    s3: Connection, path: str, folders: list[str], threads: Threads
) -> Iterator[tuple[str, list[Entry] | None]]:
    """Yield each of the folders in a folder with all objects below it, or None if there are more than LISTED_AT_ONCE.

    A request answers with up to a thousand objects, so folders of few objects are listed together: as many as fill
    some answers, by what those before them held.
    """
    listings: deque[tuple[list[str], Future[dict[str, list[Entry] | None]]]] = deque()
    can_group = _are_in_order(s3, folders)
    at, n_at_once, n_folders, n_objects = 0, FIRST_GROUP if can_group else 1, 0, 0
    while at < len(folders) or listings:
        while at < len(folders) and len(listings) < (LISTED_AHEAD if n_folders or not can_group else 1):
            names, before = folders[at : at + n_at_once], folders[at - 1] if at else None
            listings.append((names, threads.submit(_list_group, s3, path, names, before)))
            at += len(names)
        names, listing = listings.popleft()
        found = listing.result()
        n_folders, n_objects = n_folders + len(found), n_objects + sum(len(each or ()) for each in found.values())
        can_group &= bool(n_folders)
        if can_group:
            n_at_once = min(GROUP_OBJECTS * n_folders // max(n_objects, n_folders), MOST_IN_GROUP)
            n_at_once = n_at_once if n_at_once >= LEAST_IN_GROUP else 1
        else:
            n_at_once = 1
        for name in names:
            yield name, found[name] if name in found else list_below(s3, f"{path}/{name}", LISTED_AT_ONCE)


def _are_in_order(s3: Connection, folders: list[str]) -> bool:
    """Tell whether what lies below the folders is listed in their order, and a listing can begin anywhere in it."""
    if not isinstance(s3, S3Connection):
        return False  # they are asked for all, and the first are left out here
    return (
        not fork.is_obstore_lost
        and all(map(PLAIN.fullmatch, folders))
        and folders == sorted(folders, key=lambda name: f"{name}/")
    )


def _list_group(s3: Connection, path: str, names: list[str], before: str | None) -> dict[str, list[Entry] | None]:
    """Return what lies below folders of a folder that follow one another and the one `before`, as `list_below` does.

    Those are left out that come after very many objects, and those of which nothing was listed: they hold something.
    So is one that may hold more than was listed.
    """
    if len(names) == 1:
        return {names[0]: list_below(s3, f"{path}/{names[0]}", LISTED_AT_ONCE)}
    bucket, _, folder = path.partition("/")
    top = prefix_of(folder)

    def get() -> dict[str, list[Entry] | None]:
        found: dict[str, list[Entry]] = {name: [] for name in names}
        keys: set[str] = set()
        n_read, name = 0, ""
        # SeaweedFS leaves out a folder whose name is where the listing begins; so it begins behind the one before
        offset = f"{top}{before}/~" if before else None
        for page in obstore.list(s3.store(bucket), folder or None, offset=offset, chunk_size=1000):
            for entry in _to_entries(page, folder):
                name, slash, rest = entry.name.partition("/")
                if f"{name}/" > f"{names[-1]}/":
                    return {**found}
                if entry.name in keys:
                    return {}  # pages come again and again, which `list_below` says
                keys.add(entry.name)
                if slash and name in found:  # others are files beside the folders, or have come since
                    found[name].append(entry._replace(name=rest))
            n_read += len(page)
            if n_read > MOST_OBJECTS:
                return {each: found[each] for each in names if f"{each}/" < f"{name}/"}
        found.pop(name, None)  # obstore takes an answer that does not say where it goes on for the last one
        return {**found}

    try:
        listed = s3.read(get, path, math.inf)
    except NOT_BY_OBSTORE:
        return {}
    return {name: _without_markers(s3, f"{path}/{name}", found) for name, found in listed.items() if found}


def _without_markers(s3: Connection, path: str, found: list[Entry]) -> list[Entry]:
    return [e for e, after in itertools.zip_longest(found, found[1:]) if not _is_marker(s3, path, e, after)]


def _to_folders(entries: Iterable[Entry], above: str) -> Iterator[Folder]:
    """Sort objects, which come in the order of their keys, into folders; only unfinished folders are held."""
    top = prefix_of(above)
    unfinished: dict[str, list[Entry]] = {}  # by prefix, which ends with a slash or is empty
    parents = set()
    for entry in entries:
        name = entry.name.rpartition("/")[2]
        prefix = top + entry.name.removesuffix(name)
        for done in [p for p in unfinished if not prefix.startswith(p)]:
            yield Folder(_path_of(done), tuple(unfinished.pop(done)), done in parents)
            parents.discard(done)
        unfinished.setdefault(prefix, []).append(entry._replace(name=name))
        while prefix != top:
            parent = prefix[: prefix.rfind("/", 0, -1) + 1]
            if has_visible([prefix.removeprefix(parent)]):
                parents.add(parent)
            prefix = parent
    for prefix, found in sorted(unfinished.items()):
        yield Folder(_path_of(prefix), tuple(found), prefix in parents)


def _path_of(prefix: str) -> str:
    """Return the path of a folder; one without a name ends in a slash, also directly below the first."""
    return prefix if prefix == "/" else prefix[:-1]


def _to_files(page: dict[str, Any], top: str) -> list[Entry]:
    """Convert a page of botocore's, leaving out what marks folders."""
    found = [each for each in page.get("Contents", []) if not each["Key"].endswith("/")]
    return [to_entry(each | {"size": each["Size"]}, each["Key"].removeprefix(top)) for each in found]


def _to_entries(objects: Iterable[Any], folder: str) -> list[Entry]:
    """Convert obstore's listing of a folder, leaving out the folder's own marker."""
    start = len(prefix_of(folder))
    return [
        Entry(o["path"][start:], o["size"], (o["e_tag"] or "").strip('"'), o["last_modified"].timestamp())
        for o in objects
        if o["path"] != folder
    ]


def _is_marker(s3: Connection, path: str, entry: Entry, after: Entry | None) -> bool:
    """Tell whether this is the empty object `folder/` by which consoles mark a folder; obstore drops the slash."""
    if entry.size:
        return False
    if after and after.name.startswith(f"{entry.name}/"):
        return True
    bucket, _, key = f"{path}/{entry.name}".partition("/")
    return not s3.has_object(bucket, key)


def prefix_of(folder: str) -> str:
    """Return what the keys below a folder begin with."""
    return f"{folder}/" if folder else ""

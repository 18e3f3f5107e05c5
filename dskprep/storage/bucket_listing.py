"""What lies in a bucket: single objects, and listings. obstore lists, s3fs looks at single objects.

`bucket` says why, and what a path and the errors are.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import obstore

from dskprep.storage import local
from dskprep.storage.connection import NOT_BY_OBSTORE, THREADS, Connection
from dskprep.storage.local import Entry, Folder, has_visible, to_entry

LISTED_AHEAD = 32
"""Folders whose listings may be under way, or wait to be used, at once."""
LISTED_AT_ONCE = 5000
"""Most objects of one folder in a listing; the subfolders of a larger one are listed one by one."""


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
    try:
        return _list_folder(s3, path)
    except NOT_BY_OBSTORE:
        return s3.send(lambda: local.list_folder(s3.fs, path))


def _list_folder(s3: Connection, path: str) -> tuple[list[str], list[Entry]]:
    """Do so by obstore. May raise NOT_BY_OBSTORE."""
    bucket, _, folder = path.partition("/")

    def get() -> tuple[list[str], list[Entry]]:
        found = obstore.list_with_delimiter(s3.store(bucket), folder or None)
        folders = sorted(key.removeprefix(prefix_of(folder)) for key in found["common_prefixes"])
        return folders, sorted(_to_entries(found["objects"], folder))

    return s3.read(get, path, math.inf)


def list_below(s3: Connection, path: str, limit: int = sys.maxsize) -> list[Entry] | None:
    """Return every object below a folder, sorted by its whole name; None if there are more than `limit`."""
    bucket, _, folder = path.partition("/")

    def get() -> list[Entry] | None:
        found: list[Entry] = []
        for page in obstore.list(s3.store(bucket), folder, chunk_size=1000):
            found += _to_entries(page, folder)
            if len(found) > limit:
                return None
        return [e for e, after in itertools.zip_longest(found, found[1:]) if not _is_marker(s3, path, e, after)]

    try:
        return s3.read(get, path, math.inf)
    except NOT_BY_OBSTORE:
        return list(_list_by_s3fs(s3, path))


def walk(s3: Connection, path: str) -> Iterator[Folder]:
    """Yield every folder that holds objects. Each folder directly in the first is listed whole, several at once."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="s3list") as threads:
        try:
            yield from _walk(s3, path, "", threads)
        finally:
            threads.shutdown(cancel_futures=True)


def _walk(s3: Connection, path: str, above: str, threads: ThreadPoolExecutor) -> Iterator[Folder]:
    """Yield a folder, which the walk knows as `above`, and those below it.

    A subfolder of more than LISTED_AT_ONCE objects is walked in the same way, so little is held in memory.
    """
    try:
        folders, entries = _list_folder(s3, path)
    except NOT_BY_OBSTORE:
        yield from _to_folders(_list_by_s3fs(s3, path), above)
        return
    if entries:
        yield Folder(above, tuple(entries), has_visible(folders))
    listings: deque[tuple[str, Future[list[Entry] | None]]] = deque()
    waiting = iter(folders)
    while True:
        for name in itertools.islice(waiting, LISTED_AHEAD - len(listings)):
            listings.append((name, threads.submit(list_below, s3, f"{path}/{name}", LISTED_AT_ONCE)))
        if not listings:
            return
        name, listing = listings.popleft()
        found, below = listing.result(), prefix_of(above) + name
        yield from _walk(s3, f"{path}/{name}", below, threads) if found is None else _to_folders(found, below)


def _to_folders(entries: Iterable[Entry], above: str) -> Iterator[Folder]:
    """Sort objects, which come in the order of their keys, into folders; only unfinished folders are held."""
    top = prefix_of(above)
    unfinished: dict[str, list[Entry]] = {}  # by prefix, which ends with a slash or is empty
    parents = set()
    for entry in entries:
        name = entry.name.rpartition("/")[2]
        prefix = top + entry.name.removesuffix(name)
        for done in [p for p in unfinished if not prefix.startswith(p)]:
            yield Folder(done[:-1], tuple(unfinished.pop(done)), done in parents)
            parents.discard(done)
        unfinished.setdefault(prefix, []).append(entry._replace(name=name))
        while prefix != top:
            parent = prefix[: prefix.rfind("/", 0, -1) + 1]
            if has_visible([prefix.removeprefix(parent)]):
                parents.add(parent)
            prefix = parent
    for prefix, found in sorted(unfinished.items()):
        yield Folder(prefix[:-1], tuple(found), prefix in parents)


def _list_by_s3fs(s3: Connection, path: str) -> Iterator[Entry]:
    """Yield every object below a folder, sorted by its whole name."""
    bucket, _, folder = path.partition("/")
    request = {"Bucket": bucket, "Prefix": prefix_of(folder)}
    while True:
        page = s3.call("list_objects_v2", **request)
        for found in page.get("Contents", []):
            if not found["Key"].endswith("/"):  # that marks a folder
                yield to_entry(found | {"size": found["Size"]}, found["Key"].removeprefix(request["Prefix"]))
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


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

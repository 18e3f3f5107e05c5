"""Buckets on S3: obstore reads and lists, s3fs writes.

obstore needs a fraction of the CPU that s3fs needs: a third per GET of 512 KiB (`benchmarks/reads.py`), a fifteenth per
key in a listing. What it saves is left for preprocessing. Its calls release the GIL, so plain threads are enough.

obstore cannot do two things, which s3fs then does in a minimal way: name a key that is no path (`a//b`), and work
in a process that was forked after obstore was used (its threads do not survive a fork, and it hangs).

A `path` is a bucket's name and a key: `bucket/folder/name`. What reads or lists raises FileNotFoundError,
PermissionError, or another OSError.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import fsspec.asyn
import obstore

from dskprep.storage import connection
from dskprep.storage.connection import NOT_BY_OBSTORE
from dskprep.storage.local import Entry, Folder, ObjectChanged, has_visible, to_entry

THREADS = 16
"""Requests under way at once per call."""
PUT_BYTES = 2 << 30
"""s3fs writes what is smaller than twice this in one PUT, so a killed process leaves no parts of a multipart upload."""
MAX_DELETED_AT_ONCE = 1000
"""Most keys per DeleteObjects request; S3's limit."""
LISTED_AHEAD = 32
"""Folders whose listings may be under way, or wait to be used, at once."""
LISTED_AT_ONCE = 5000
"""Most objects of one folder in a listing; the subfolders of a larger one are listed one by one."""


def read(fs: Any, path: str) -> bytes:
    bucket, _, key = path.partition("/")
    return connection.retry(lambda: _get(fs, bucket, key), key)


def read_many(fs: Any, path: str, entries: Sequence[Entry]) -> Iterator[bytes]:
    """Yield the content of objects below a folder, several read at once.

    Raises ObjectChanged if one was replaced or removed since it was listed.
    """
    bucket, _, folder = path.partition("/")
    deadline = time.monotonic() + connection.DEADLINE_S

    def read_listed(entry: Entry) -> bytes:
        key = _prefix(folder) + entry.name
        try:
            return connection.retry(lambda: _get(fs, bucket, key, entry), key, deadline)
        except FileNotFoundError as error:
            raise ObjectChanged(f"{key}: is not there any more as it was listed") from error

    with ThreadPoolExecutor(THREADS, thread_name_prefix="s3read") as threads:
        yield from threads.map(read_listed, entries)


def read_ranges(fs: Any, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read the parts of an object from each start to before each end; parts that lie close in one request."""
    bucket, _, key = path.partition("/")
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]

    def get() -> list[bytes]:
        try:
            store = connection.store(fs, bucket)
            parts = [bytes(part) for part in obstore.get_ranges(store, key, starts=starts, ends=ends)]
        except NOT_BY_OBSTORE:
            parts = _get_by_s3fs(fs, bucket, key, *({"Range": f"bytes={s}-{e - 1}"} for s, e in ranges))
        if [len(part) for part in parts] != [end - start for start, end in ranges]:
            raise OSError("is shorter than expected")
        return parts

    return connection.retry(get, key)


def _get(fs: Any, bucket: str, key: str, listed: Entry | None = None) -> bytes:
    """Return one object, if it has the ETag and the size that were listed, where a listing is given."""
    match = f'"{listed.tag}"' if listed and listed.tag else ""
    try:
        store = connection.store(fs, bucket)
        content = bytes(obstore.get(store, key, options={"if_match": match} if match else None).bytes())
    except NOT_BY_OBSTORE:
        (content,) = _get_by_s3fs(fs, bucket, key, {"IfMatch": match} if match else {})
    if listed and len(content) != listed.size:
        raise OSError(f"expected {listed.size} bytes, received {len(content)}")
    return content


def _get_by_s3fs(fs: Any, bucket: str, key: str, *conditions: dict[str, str]) -> list[bytes]:
    """Get an object once for each of the conditions, at once. s3fs's own `cat` cannot ask for an ETag."""

    async def get(condition: dict[str, str]) -> bytes:
        client = await fs.set_session()
        answer = await client.get_object(Bucket=bucket, Key=key, **fs.req_kw, **condition)
        async with answer["Body"] as body:
            return bytes(await body.read())

    async def get_all() -> list[bytes]:
        return await asyncio.gather(*map(get, conditions))

    found: list[bytes] = fsspec.asyn.sync(fs.loop, get_all)
    return found


def list_folder(fs: Any, path: str) -> tuple[list[str], list[Entry]]:
    """Return the folders (by name) and the objects directly in a folder, sorted. May raise NOT_BY_OBSTORE."""
    bucket, _, folder = path.partition("/")

    def get() -> tuple[list[str], list[Entry]]:
        found = obstore.list_with_delimiter(connection.store(fs, bucket), folder or None)
        folders = sorted(key.removeprefix(_prefix(folder)) for key in found["common_prefixes"])
        return folders, sorted(_to_entries(found["objects"], folder))

    return connection.retry(get, path, math.inf)


def list_below(fs: Any, path: str, limit: int = sys.maxsize) -> list[Entry] | None:
    """Return every object below a folder, sorted by its whole name; None if there are more than `limit`."""
    bucket, _, folder = path.partition("/")

    def get() -> list[Entry] | None:
        found: list[Entry] = []
        for page in obstore.list(connection.store(fs, bucket), folder, chunk_size=1000):
            found += _to_entries(page, folder)
            if len(found) > limit:
                return None
        return [e for e, after in itertools.zip_longest(found, found[1:]) if not _is_marker(fs, path, e, after)]

    try:
        return connection.retry(get, path, math.inf)
    except NOT_BY_OBSTORE:
        return list(_list_by_s3fs(fs, path))


def walk(fs: Any, path: str) -> Iterator[Folder]:
    """Yield every folder that holds objects. Each folder directly in the first is listed whole, several at once."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="s3list") as threads:
        try:
            yield from _walk(fs, path, "", threads)
        finally:
            threads.shutdown(cancel_futures=True)


def _walk(fs: Any, path: str, above: str, threads: ThreadPoolExecutor) -> Iterator[Folder]:
    """Yield a folder, which the walk knows as `above`, and those below it.

    A subfolder of more than LISTED_AT_ONCE objects is walked in the same way, so little is held in memory.
    """
    try:
        folders, entries = list_folder(fs, path)
    except NOT_BY_OBSTORE:
        yield from _to_folders(_list_by_s3fs(fs, path), above)
        return
    if entries:
        yield Folder(above, tuple(entries), has_visible(folders))
    listings: deque[tuple[str, Future[list[Entry] | None]]] = deque()
    waiting = iter(folders)
    while True:
        for name in itertools.islice(waiting, LISTED_AHEAD - len(listings)):
            listings.append((name, threads.submit(list_below, fs, f"{path}/{name}", LISTED_AT_ONCE)))
        if not listings:
            return
        name, listing = listings.popleft()
        found, below = listing.result(), _prefix(above) + name
        yield from _walk(fs, f"{path}/{name}", below, threads) if found is None else _to_folders(found, below)


def _to_folders(entries: Iterable[Entry], above: str) -> Iterator[Folder]:
    """Sort objects, which come in the order of their keys, into folders; only unfinished folders are held."""
    top = _prefix(above)
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


def _list_by_s3fs(fs: Any, path: str) -> Iterator[Entry]:
    """Yield every object below a folder, sorted by its whole name."""
    bucket, _, folder = path.partition("/")
    request = {"Bucket": bucket, "Prefix": _prefix(folder)}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        for found in page.get("Contents", []):
            if not found["Key"].endswith("/"):  # that marks a folder
                yield to_entry(found | {"size": found["Size"]}, found["Key"].removeprefix(request["Prefix"]))
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _to_entries(objects: Iterable[Any], folder: str) -> list[Entry]:
    """Convert obstore's listing of a folder, leaving out the folder's own marker."""
    start = len(_prefix(folder))
    return [
        Entry(o["path"][start:], o["size"], (o["e_tag"] or "").strip('"'), o["last_modified"].timestamp())
        for o in objects
        if o["path"] != folder
    ]


def _is_marker(fs: Any, path: str, entry: Entry, after: Entry | None) -> bool:
    """Tell whether this is the empty object `folder/` by which consoles mark a folder; obstore drops the slash."""
    if entry.size:
        return False
    if after and after.name.startswith(f"{entry.name}/"):
        return True
    bucket, _, key = f"{path}/{entry.name}".partition("/")
    try:
        fs.call_s3("head_object", Bucket=bucket, Key=key)
    except FileNotFoundError:
        return True
    return False


def _prefix(folder: str) -> str:
    """Return what the keys below a folder begin with."""
    return f"{folder}/" if folder else ""


def write_many(fs: Any, objects: dict[str, bytes]) -> None:
    """Write objects by path, several at once; each is whole or absent."""
    fs.pipe(objects, chunksize=PUT_BYTES)


def create(fs: Any, path: str, content: bytes) -> bool:
    """Write an object unless it exists; return whether this call is known to have written it."""
    try:
        fs.pipe_file(path, content, chunksize=PUT_BYTES, mode="create")
    except FileExistsError:
        return False
    except OSError:
        if fs.exists(path):  # some servers answer a lost race with another error than AWS
            return False
        raise
    return True


def delete(fs: Any, paths: Sequence[str]) -> None:
    """Delete objects of one bucket; those that do not exist are passed over. s3fs's own `rm` hides failures."""
    for start in range(0, len(paths), MAX_DELETED_AT_ONCE):
        keys = [path.partition("/")[2] for path in paths[start : start + MAX_DELETED_AT_ONCE]]
        bucket = paths[0].partition("/")[0]
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        for error in fs.call_s3("delete_objects", Bucket=bucket, Delete=objects).get("Errors", []):
            raise OSError(f"{bucket}/{error['Key']}: cannot be deleted: {error.get('Code')} {error.get('Message')}")

"""Buckets on S3: obstore reads and lists, s3fs writes.

obstore needs a fraction of the CPU that s3fs needs: a third per GET of 512 KiB (`benchmarks/reads.py`), a fifteenth per
key in a listing. What it saves is left for preprocessing. Its calls release the GIL, so plain threads are enough.

obstore cannot do two things, which s3fs then does in a minimal way: name a key that is no path (`a//b`), and work
in a process that was forked after obstore was used (its threads do not survive a fork, and it hangs).

A `path` is a bucket's name and a key: `bucket/folder/name`. All raise FileNotFoundError, PermissionError, or another
OSError, which says all that is known.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Iterator, Sequence

import fsspec.asyn
import obstore

from dskprep.storage.bucket_listing import entry_of as entry_of
from dskprep.storage.bucket_listing import exists as exists
from dskprep.storage.bucket_listing import is_folder as is_folder
from dskprep.storage.bucket_listing import list_below as list_below
from dskprep.storage.bucket_listing import list_folder as list_folder
from dskprep.storage.bucket_listing import prefix_of
from dskprep.storage.bucket_listing import walk as walk
from dskprep.storage.connection import DEADLINE_S, NOT_BY_OBSTORE, THREADS, Connection
from dskprep.storage.local import Entry, ObjectChanged
from dskprep.storage.threads import Threads

PUT_BYTES = 2 << 30
"""s3fs writes what is smaller than twice this in one PUT, so a killed process leaves no parts of a multipart upload."""
MAX_GAP_BYTES = 1 << 20
"""Parts of an object that lie closer are read in one request: a request costs more than so many bytes."""
MAX_DELETED_AT_ONCE = 1000
"""Most keys per DeleteObjects request; S3's limit."""


def read(s3: Connection, path: str) -> bytes:
    bucket, _, key = path.partition("/")
    return s3.read(lambda: _get(s3, bucket, key), key)


def read_many(s3: Connection, path: str, entries: Sequence[Entry]) -> Iterator[bytes]:
    """Yield the content of objects below a folder, several read at once.

    Raises ObjectChanged if one was replaced or removed since it was listed.
    """
    bucket, _, folder = path.partition("/")
    deadline = time.monotonic() + DEADLINE_S

    def read_listed(entry: Entry) -> bytes:
        key = prefix_of(folder) + entry.name
        try:
            return s3.read(lambda: _get(s3, bucket, key, entry), key, deadline)
        except FileNotFoundError as error:
            raise ObjectChanged(f"{key}: is not there any more as it was listed") from error

    with Threads(THREADS, "s3read") as threads:
        yield from threads.map(read_listed, entries)


def read_existing(s3: Connection, path: str, names: Sequence[str]) -> Iterator[bytes | None]:
    """Yield the content of each object in a folder, several read at once; None for one that is not there."""
    bucket, _, folder = path.partition("/")

    def read_one(name: str) -> bytes | None:
        key = prefix_of(folder) + name
        try:
            return s3.read(lambda: _get(s3, bucket, key), key)
        except FileNotFoundError:
            return None

    with Threads(THREADS, "s3read") as threads:
        yield from threads.map(read_one, names)


def read_head(s3: Connection, path: str, n_bytes: int) -> bytes:
    """Read the first bytes of an object, or fewer."""
    return bytes(s3.send(lambda: s3.fs.cat_file(path, start=0, end=n_bytes)))


def read_ranges(s3: Connection, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read the parts of an object from each start to before each end; parts that lie close in one request."""
    bucket, _, key = path.partition("/")
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]

    def get() -> list[bytes]:
        try:
            store = s3.store(bucket)
            parts = [bytes(part) for part in obstore.get_ranges(store, key, starts=starts, ends=ends)]
        except NOT_BY_OBSTORE:
            parts = _get_ranges_by_s3fs(s3, bucket, key, ranges)
        if [len(part) for part in parts] != [end - start for start, end in ranges]:
            raise OSError("is shorter than expected")
        return parts

    return s3.read(get, key)


def _get_ranges_by_s3fs(s3: Connection, bucket: str, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return the parts of an object; those less than MAX_GAP_BYTES apart come in one request, as obstore does it."""
    requests: list[list[int]] = []
    for start, end in sorted(ranges):
        if requests and start <= requests[-1][1] + MAX_GAP_BYTES:
            requests[-1][1] = max(requests[-1][1], end)
        else:
            requests.append([start, end])
    contents = _get_by_s3fs(s3, bucket, key, *({"Range": f"bytes={start}-{end - 1}"} for start, end in requests))
    firsts = [start for start, _ in requests]
    parts = []
    for start, end in ranges:
        n = bisect.bisect(firsts, start) - 1
        parts.append(contents[n][start - firsts[n] : end - firsts[n]])
    return parts


def _get(s3: Connection, bucket: str, key: str, listed: Entry | None = None) -> bytes:
    """Return one object, if it has the ETag and the size that were listed, where a listing is given."""
    match = f'"{listed.tag}"' if listed and listed.tag else ""
    try:
        store = s3.store(bucket)
        content = bytes(obstore.get(store, key, options={"if_match": match} if match else None).bytes())
    except NOT_BY_OBSTORE:
        (content,) = _get_by_s3fs(s3, bucket, key, {"IfMatch": match} if match else {})
    if listed and len(content) != listed.size:
        raise OSError(f"expected {listed.size} bytes, received {len(content)}")
    return content


def _get_by_s3fs(s3: Connection, bucket: str, key: str, *conditions: dict[str, str]) -> list[bytes]:
    """Get an object once for each of the conditions, at once. s3fs's own `cat` cannot ask for an ETag."""
    fs = s3.fs

    async def get(condition: dict[str, str]) -> bytes:
        client = await fs.set_session()
        answer = await client.get_object(Bucket=bucket, Key=key, **fs.req_kw, **condition)
        async with answer["Body"] as body:
            return bytes(await body.read())

    async def get_all() -> list[bytes]:
        return await asyncio.gather(*map(get, conditions))

    found: list[bytes] = fsspec.asyn.sync(fs.loop, get_all)
    return found


def write_many(s3: Connection, objects: dict[str, bytes]) -> None:
    """Write objects by path, several at once; each is whole or absent."""
    s3.send(lambda: s3.fs.pipe(objects, chunksize=PUT_BYTES))


def create(s3: Connection, path: str, content: bytes) -> bool:
    """Write an object unless it exists; return whether this call is known to have written it."""
    try:
        s3.send(lambda: s3.fs.pipe_file(path, content, chunksize=PUT_BYTES, mode="create"))
    except FileExistsError:
        return False
    except OSError:
        if exists(s3, path):  # some servers answer a lost race with another error than AWS
            return False
        raise
    return True


def delete(s3: Connection, paths: Sequence[str]) -> None:
    """Delete objects of one bucket; those that do not exist are passed over. s3fs's own `rm` hides failures."""
    for start in range(0, len(paths), MAX_DELETED_AT_ONCE):
        keys = [path.partition("/")[2] for path in paths[start : start + MAX_DELETED_AT_ONCE]]
        bucket = paths[0].partition("/")[0]
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = s3.call("delete_objects", Bucket=bucket, Delete=objects)
        for error in answer.get("Errors", []):
            raise OSError(f"{bucket}/{error['Key']}: cannot be deleted: {error.get('Code')} {error.get('Message')}")

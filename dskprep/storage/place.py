"""Folders and buckets by fsspec URL: list, read, write. The home of fsspec and s3fs.

URLs travel between processes, open file systems never do. Credentials, endpoint and region come from
the environment or the profile of the process that opens the store.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import secrets
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ProfileNotFound

from dskprep.errors import InfrastructureError, UsageError
from dskprep.storage import bucket as s3read
from dskprep.storage.bucket import Listed

S3_SETTINGS: dict[str, Any] = {
    "use_listings_cache": False,  # the cache never expires and remembers absence
    "config_kwargs": {
        "retries": {"max_attempts": 4, "mode": "standard"},
        "max_pool_connections": 32,
        "connect_timeout": 5,
        "read_timeout": 30,
    },
}

S3_ROUNDS = 3
"""Tries of s3fs around botocore's own: the waits of both multiply."""

ObjectChanged = s3read.ObjectChanged

PART_SUFFIX = ".part"
"""Ends the name of a local file that is not whole yet."""

MAX_DELETED_AT_ONCE = 1000

LISTED_AHEAD = 32
"""Folders whose listing is under way or waits to be taken."""

LISTED_AT_ONCE = 5000
"""Objects of a folder beyond which its own folders are listed one by one."""


class DeadLink(ObjectChanged):
    """What was listed as a file is a link that leads nowhere."""


class Entry(NamedTuple):
    """One object: name relative to its folder, size in bytes, a tag that changes with its content, and when
    it was written (seconds since 1970; 0 where the store does not say)."""

    name: str
    size: int
    tag: str
    modified_s: float = 0.0


@dataclass(frozen=True)
class Folder:
    """A folder found by `walk`: its path relative to the start, and what lies directly in it."""

    path: str
    entries: tuple[Entry, ...]
    has_subfolders: bool


def absolute(url: str | os.PathLike[str]) -> str:
    """The URL, or path, in a form that means the same in every process (relative paths made absolute).

    Raises UsageError if it holds credentials (URLs go into tasks, records and messages), or no place.
    """
    if not isinstance(url, (str, os.PathLike)):
        raise UsageError(f"expected a path or a URL, found {url!r}")
    url = os.fspath(url)
    if not url or url.rstrip("/") in ("s3:", "s3a:", "file:"):
        raise UsageError(f"{url!r} names no place; expected a path, or a URL such as s3://bucket/prefix")
    url = url.removeprefix("file://").rstrip("/") or "/"
    if "://" not in url:
        return Path(url).expanduser().resolve().as_posix()
    scheme, _, place = url.partition("://")
    scheme = scheme.replace("s3a", "s3")
    bucket = place.partition("/")[0]
    # a secret may hold a slash; no bucket's name but an access point's holds a colon
    if "@" in bucket or (scheme == "s3" and ":" in bucket.removeprefix("arn:") and not bucket.startswith("arn:")):
        raise UsageError("a URL must not hold credentials; set them in the environment or a profile")
    return f"{scheme}://{place}"


def join(url: str, *names: str) -> str:
    return "/".join([url.rstrip("/"), *names])


def is_within(url: str, other: str) -> bool:
    """Whether `url` is `other` or lies below it."""
    url, other = (absolute(u).rstrip("/") + "/" for u in (url, other))
    return url.startswith(other)


def is_bucket(url: str) -> bool:
    """Whether objects there are whole or absent, whatever died while it wrote."""
    return _is_s3(url)


def exists(url: str) -> bool:
    with _translated(url):
        fs, path = _open(url)
        return bool(fs.exists(path))


def is_folder(url: str) -> bool:
    """Whether anything lies below the URL (or it is an empty local folder)."""
    with _translated(url):
        fs, path = _open(url)
        return bool(fs.isdir(path))


def listing(url: str) -> list[Entry]:
    """The objects directly in a folder, sorted by name. Empty where there is no such folder."""
    with _translated(url):
        fs, path = _open(url)
        try:
            return _contents(fs, path)[0]
        except (FileNotFoundError, NotADirectoryError):
            return []


def folders(url: str) -> list[str]:
    """The names of the folders directly in a folder, sorted. Empty where there is no such folder."""
    with _translated(url):
        fs, path = _open(url)
        if _is_s3(url) and s3read.uses_obstore():
            bucket, _, place = path.partition("/")
            with contextlib.suppress(s3read.OddKeys):
                return [name.rpartition("/")[2] for name in s3read.list_folder(fs, bucket, place)[0]]
        try:
            return _contents(fs, path)[1]
        except (FileNotFoundError, NotADirectoryError):
            return []


def listing_below(url: str) -> Iterator[Entry]:
    """Every object below a folder, by pages on S3; names are relative to it."""
    if _is_s3(url):
        yield from _listing_below_bucket(url)
        return
    for folder in walk(url):
        prefix = f"{folder.path}/" if folder.path else ""
        yield from (entry._replace(name=prefix + entry.name) for entry in folder.entries)


def entry_of(url: str) -> Entry | None:
    """The one object at the URL, or None."""
    with _translated(url):
        fs, path = _open(url)
        try:
            return _entry(fs.info(path), path.rfind("/") + 1)
        except FileNotFoundError:
            return None


def walk(url: str) -> Iterator[Folder]:
    """Every folder below the URL that holds objects, and every empty local one.

    On S3 each folder directly below is listed with all that it holds, several of them at once.
    """
    with _translated(url):
        fs, path = _open(url)
        yield from _walk_bucket(fs, path) if _is_s3(url) else _walk_folders(fs, path)


def read(url: str) -> bytes:
    """One object whole. Raises FileNotFoundError if it is not there."""
    with _translated(url):
        fs, path = _open(url)
        if _is_s3(url):
            bucket, _, key = path.partition("/")
            return s3read.read_object(fs, bucket, key)
        return bytes(fs.cat_file(path))


def read_head(url: str, n_bytes: int) -> bytes:
    """The first bytes of one object."""
    with _translated(url), _gone_is_changed():
        fs, path = _open(url)
        return bytes(fs.cat_file(path, start=0, end=n_bytes))


def read_ranges(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of one object, each from its first byte to before its last. Raises FileNotFoundError if it is not there."""
    with _translated(url):
        fs, path = _open(url)
        if _is_s3(url):
            bucket, _, key = path.partition("/")
            return s3read.read_ranges(fs, bucket, key, ranges)
        parts = []
        with fs.open(path, "rb") as file:
            for start, end in ranges:
                file.seek(start)
                parts.append(file.read(end - start))
        if [len(part) for part in parts] != [end - start for start, end in ranges]:
            raise OSError(f"{path}: is shorter than expected")
        return parts


def read_many(url: str, entries: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
    """Name and content of objects below a folder, whole, several at once; in the order of `entries`.

    Raises ObjectChanged if one is not as it was listed (on S3 by its ETag, elsewhere by its size).
    """
    with _translated(url), _gone_is_changed():
        fs, path = _open(url)
        if _is_s3(url):
            bucket, _, prefix = path.partition("/")
            objects = [(join(prefix, e.name) if prefix else e.name, e.size, e.tag) for e in entries]
            names = (entry.name for entry in entries)
            yield from zip(names, s3read.read_objects(fs, bucket, objects), strict=True)
            return
        for entry in entries:
            content = bytes(fs.cat_file(join(path, entry.name)))
            if len(content) != entry.size:
                raise ObjectChanged(f"{entry.name}: was listed with {entry.size} bytes, now has {len(content)}")
            yield entry.name, content


def write_many(url: str, objects: dict[str, bytes]) -> None:
    """Write objects below a folder, several at once; each is whole or absent on S3."""
    with _translated(url):
        fs, path = _open(url)
        if _is_s3(url):
            fs.pipe({join(path, name): content for name, content in objects.items()})
            return
        for name, content in objects.items():
            _replace_file(fs, join(path, name), content)


def create(url: str, content: bytes) -> bool:
    """Write an object unless it exists.

    Returns whether this call is known to have written it: if S3's answer is lost, the object exists,
    and the retry sees it as another's.
    """
    with _translated(url):
        fs, path = _open(url)
        if not _is_s3(url):
            return _create_file(fs, path, content)
        try:
            fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except OSError:
            # some servers answer a lost race with another error than AWS's
            if fs.exists(path):
                return False
            raise
        return True


def delete(url: str, names: Iterable[str]) -> None:
    """Delete objects below a folder; those that are gone already are no error."""
    with _translated(url):
        fs, path = _open(url)
        paths = [join(path, name) for name in names]
        if _is_s3(url):
            for start in range(0, len(paths), MAX_DELETED_AT_ONCE):
                _delete_keys(fs, paths[start : start + MAX_DELETED_AT_ONCE])
            return
        for place in paths:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(place)


def abort_uploads(url: str, before_s: float) -> int:
    """Abort multipart uploads below an S3 URL that were begun before a time; returns how many.

    A process that is killed in the middle of one leaves its parts: invisible, and paid for.
    """
    if not _is_s3(url):
        return 0
    with _translated(url):
        fs, path = _open(url)
        bucket, _, prefix = path.partition("/")
        found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
        old = [u for u in found.get("Uploads", []) if u["Initiated"].timestamp() < before_s]
        for upload in old:
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        return len(old)


def _open(url: str) -> tuple[Any, str]:
    settings = S3_SETTINGS if _is_s3(url) else {}
    try:
        fs, path = fsspec.core.url_to_fs(url, **settings)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{url}: not a URL that can be opened: {error}") from error
    if _is_s3(url):
        fs.retries = S3_ROUNDS
        _s3fs().set_custom_error_handler(_is_throttled)
    return fs, str(path)


def _s3fs() -> Any:
    """s3fs.core, imported when S3 is first used."""
    return importlib.import_module("s3fs.core")


def _is_throttled(error: Exception) -> bool:
    """What s3fs should try again besides what it knows."""
    code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
    return code in ("429", "TooManyRequests", "Throttling", "ThrottlingException", "RequestLimitExceeded")


def _forget_credentials(url: str) -> None:
    """Look credentials up again at the next use: they may have been renewed."""
    if _is_s3(url):
        _s3fs().S3FileSystem.clear_instance_cache()


def _is_s3(url: str) -> bool:
    return url.startswith("s3://")


def _entry(info: dict[str, Any], start: int) -> Entry:
    tag = info.get("ETag") or info.get("mtime") or info.get("etag") or ""
    modified = info.get("LastModified")
    modified_s = modified.timestamp() if modified else float(info.get("mtime") or 0)
    return Entry(info["name"][start:], int(info["size"] or 0), str(tag).strip('"'), modified_s)


def _contents(fs: Any, path: str) -> tuple[list[Entry], list[str]]:
    """Objects and folders directly in a folder, sorted; a local link counts as what it leads to."""
    start = len(path.rstrip("/")) + 1
    entries, folders = [], []
    for info in fs.ls(path, detail=True):
        if info.get("islink"):
            info = _behind(fs, info)
        name = info["name"][start:].rstrip("/")
        if name and info["type"] == "directory":
            folders.append(name)
        elif name and info["type"] == "file":
            entries.append(_entry(info, start))
    return sorted(entries), sorted(folders)


def _behind(fs: Any, link: dict[str, Any]) -> dict[str, Any]:
    try:
        return {**fs.info(os.path.realpath(link["name"])), "name": link["name"]}
    except OSError:
        return {**link, "type": "file"}  # leads nowhere: it fails when it is read, rather than be left out


def _walk_folders(fs: Any, path: str) -> Iterator[Folder]:
    """Depth first, in a stable order. A link that leads back to a folder it lies in is not followed."""
    pending: list[tuple[str, tuple[str, ...]]] = [(path, (os.path.realpath(path),))]
    while pending:
        place, above = pending.pop()
        try:
            entries, folders = _contents(fs, place)
        except FileNotFoundError:
            continue
        except PermissionError:
            if place == path:
                raise
            entries, folders = [], []  # it fails when it is read, and the others do not
        yield Folder(place[len(path.rstrip("/")) + 1 :], tuple(entries), bool(folders))
        for name in reversed(folders):
            real = os.path.realpath(join(place, name))
            if real not in above:
                pending.append((join(place, name), (*above, real)))


def _walk_bucket(fs: Any, path: str) -> Iterator[Folder]:
    bucket, _, place = path.partition("/")
    place = place.rstrip("/")
    if not s3read.uses_obstore():
        yield from _folders(_paged(fs, bucket, place), place)
        return
    with ThreadPoolExecutor(s3read.THREADS, thread_name_prefix="s3list") as threads:
        try:
            yield from _walk_level(fs, bucket, place, place, threads)
        finally:
            threads.shutdown(cancel_futures=True)


def _listing_below_bucket(url: str) -> Iterator[Entry]:
    """A request for each thousand, whatever folders they lie in."""
    with _translated(url):
        fs, path = _open(url)
        bucket, _, place = path.partition("/")
        place = place.rstrip("/")
        try:
            found = s3read.list_below(fs, bucket, place, sys.maxsize) if s3read.uses_obstore() else None
        except s3read.OddKeys:
            found = None
        start = len(place) + 1 if place else 0
        for key, size, tag, modified_s in _paged(fs, bucket, place) if found is None else found:
            if not key.endswith("/"):  # the marker of a folder
                yield Entry(key[start:], size, tag, modified_s)


def _walk_level(fs: Any, bucket: str, place: str, top: str, threads: ThreadPoolExecutor) -> Iterator[Folder]:
    """The folders below `place`, named from `top`: each of its folders in one listing, several at once.

    One that holds very much is gone through in the same way, so that little is held in memory.
    """
    try:
        below, objects = s3read.list_folder(fs, bucket, place)
    except s3read.OddKeys:
        yield from _folders(_paged(fs, bucket, place), top)
        return
    yield from _folders(objects, top, parents={place} if below else set())
    listings: deque[tuple[str, Future[list[Listed] | None]]] = deque()
    waiting = iter(below)
    while True:
        for name in itertools.islice(waiting, LISTED_AHEAD - len(listings)):
            listings.append((name, threads.submit(s3read.list_below, fs, bucket, name, LISTED_AT_ONCE)))
        if not listings:
            return
        name, listing = listings.popleft()
        try:
            found = listing.result()
        except s3read.OddKeys:
            found = list(_paged(fs, bucket, name))
        if found is None:
            yield from _walk_level(fs, bucket, name, top, threads)
        else:
            yield from _folders(found, top)


def _folders(objects: Iterable[Listed], top: str, parents: Iterable[str] = ()) -> Iterator[Folder]:
    """The folders of objects that come sorted by key; only those that are not yet complete are held."""
    start = len(top) + 1 if top else 0
    open_folders: dict[str, list[Entry]] = {}
    parents = {parent[start:] for parent in parents}
    for key, size, tag, modified_s in objects:
        folder, _, name = key[start:].rpartition("/")
        for done in [f for f in open_folders if f and f != folder and not folder.startswith(f"{f}/")]:
            yield Folder(done, tuple(open_folders.pop(done)), done in parents)
            parents.discard(done)
        if name:
            open_folders.setdefault(folder, []).append(Entry(name, size, tag, modified_s))
        while folder:
            folder = folder.rpartition("/")[0]
            parents.add(folder)
    for folder, entries in sorted(open_folders.items()):
        yield Folder(folder, tuple(entries), folder in parents)


def _paged(fs: Any, bucket: str, place: str) -> Iterator[Listed]:
    """Every object below a place by s3fs, page by page."""
    more: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{place}/" if place else "", **more)
        for item in page.get("Contents", []):
            yield Listed(item["Key"], item["Size"], item["ETag"].strip('"'), item["LastModified"].timestamp())
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


@contextlib.contextmanager
def _gone_is_changed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and (file := Path(error.filename)).is_symlink():
            raise DeadLink(f"{file.name}: expected a file, found a link that leads nowhere") from error
        if isinstance(error, FileNotFoundError):
            raise ObjectChanged(f"a file that was listed is not there any more: {_short(error)}") from error
        raise


def _delete_keys(fs: Any, paths: list[str]) -> None:
    """Delete up to 1000 objects of one bucket. s3fs's own `rm` hides what could not be deleted."""
    bucket = paths[0].partition("/")[0]
    keys = [{"Key": path.partition("/")[2]} for path in paths]
    answer = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    for error in answer.get("Errors", []):
        place = f"s3://{bucket}/{error.get('Key')}"
        raise InfrastructureError(f"{place}: cannot be deleted: {error.get('Code')} {error.get('Message')}")


def _create_file(fs: Any, path: str, content: bytes) -> bool:
    """Write beside, then link: whoever comes second sees the whole file of the first."""
    beside = _write_beside(fs, path, content)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: a race between two runs is possible there, a cut file is not
        if fs.exists(path):
            return False
        fs.copy(beside, f"{beside}.copy{PART_SUFFIX}")
        fs.mv(f"{beside}.copy{PART_SUFFIX}", path)
    finally:
        fs.rm_file(beside)
    return True


def _replace_file(fs: Any, path: str, content: bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the whole new one."""
    fs.mv(_write_beside(fs, path, content), path)


def _write_beside(fs: Any, path: str, content: bytes) -> str:
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    beside = f"{path}.{secrets.token_hex(6)}{PART_SUFFIX}"  # a name of its own, whoever else writes
    fs.pipe_file(beside, content)
    return beside


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn what a store cannot do into one line that names it; leave errors about single objects alone."""
    try:
        yield
    except (NoCredentialsError, ProfileNotFound) as error:
        raise InfrastructureError(
            f"{url}: {error}; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except PermissionError as error:
        _forget_credentials(url)
        raise InfrastructureError(
            f"{url}: permission denied ({_short(error)}); check the credentials and the path's rights"
        ) from error
    except (BotoCoreError, ClientError) as error:
        raise InfrastructureError(
            f"{url}: {_short(error)}; check the endpoint (AWS_ENDPOINT_URL), region and network"
        ) from error
    except FileNotFoundError as error:
        if _is_s3(url) and any(words in str(error) for words in ("bucket does not exist", "NoSuchBucket")):
            raise InfrastructureError(f"{url}: there is no such bucket; create it, or correct the name") from error
        raise
    except OSError as error:
        raise InfrastructureError(f"{url}: {_short(error)}") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

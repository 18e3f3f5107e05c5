"""Folders and buckets by URL.

In: a URL or a path. Out: listings and bytes. Door: the functions below, as in `storage.read(url)`. They do the same for
a bucket (`bucket`, for `s3://`, and `gs://` of public ones), a container of Azure (`blobs`, for `az://`) and a folder
(`local`), which have the same functions; no other room opens a file system of its own. What buckets need is imported
when the first one is opened.
URLs travel between processes, open file systems never do. Credentials, endpoint and region come from the environment
or the profile of the process that opens the store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec

from dskprep.errors import InfrastructureError
from dskprep.storage import failures, local, public
from dskprep.storage.failures import UnreadableFile as UnreadableFile
from dskprep.storage.local import PART_SUFFIX as PART_SUFFIX
from dskprep.storage.local import UNFINISHED as UNFINISHED
from dskprep.storage.local import Entry as Entry
from dskprep.storage.local import Folder as Folder
from dskprep.storage.local import NoFile as NoFile
from dskprep.storage.local import ObjectChanged as ObjectChanged
from dskprep.storage.public import PUBLIC_BUCKETS as PUBLIC_BUCKETS
from dskprep.storage.s3_settings import S3_SETTINGS as S3_SETTINGS
from dskprep.storage.urls import CREDENTIALS as CREDENTIALS
from dskprep.storage.urls import MAX_CHARACTERS as MAX_CHARACTERS
from dskprep.storage.urls import above as above
from dskprep.storage.urls import absolute as absolute
from dskprep.storage.urls import check_scheme
from dskprep.storage.urls import holds_credentials as holds_credentials
from dskprep.storage.urls import is_bucket as is_bucket
from dskprep.storage.urls import is_within as is_within
from dskprep.storage.urls import join as join

METADATA_BYTES = 1 << 28
"""No file that describes a dataset, or one volume of it, is larger."""
NO_BUCKET = ("bucket does not exist", "NoSuchBucket", "ContainerNotFound")
"""What is said of a bucket, or a container, that is not there."""


def is_public(url: str) -> bool:
    """Tell whether a URL lies in a bucket that anybody may read, and whose owner pays for the requests."""
    return public.store_of(url) is not None


def meet(url: str) -> None:
    """Raise InfrastructureError, within half a minute, if the store of a URL cannot be used at all."""
    with _opened(url):
        pass


def exists(url: str) -> bool:
    with _opened(url) as (store, fs, path):
        return bool(store.exists(fs, path))


def is_folder(url: str) -> bool:
    """Tell whether anything lies below the URL, or it is an empty local folder."""
    with _opened(url) as (store, fs, path):
        return bool(store.is_folder(fs, path))


def listing(url: str) -> list[Entry]:
    """Return the files directly in a folder, sorted by name; none where there is no such folder."""
    return _list_folder(url)[1]


def folders(url: str) -> list[str]:
    """Return the names of the folders directly in a folder, sorted; none where there is no such folder."""
    return _list_folder(url)[0]


def _list_folder(url: str) -> tuple[list[str], list[Entry]]:
    with _opened(url) as (store, fs, path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folders, entries = store.list_folder(fs, path)
        return folders, entries
    return [], []


def listing_below(url: str, *, follow_links: bool = True) -> Iterator[Entry]:
    """Yield every file below a folder, its name relative to the folder; `follow_links` as in `walk`."""
    with _opened(url) as (store, fs, path):
        if is_bucket(url):
            yield from store.list_below(fs, path)
        else:
            yield from store.list_below(fs, path, follow_links=follow_links)


def entry_of(url: str) -> Entry | None:
    """Return the one file at the URL, or None if there is none, or a folder."""
    with _opened(url) as (store, fs, path):
        found: Entry | None = store.entry_of(fs, path)
        return found


def walk(url: str, *, follow_links: bool = True) -> Iterator[Folder]:
    """Yield every folder below the URL that holds files, and every empty local one.

    On S3 each folder directly below is listed with all that it holds, several of them at once. Without `follow_links`,
    what lies behind a link to a folder is left out: whoever deletes or writes must not see it.
    """
    with _opened(url) as (store, fs, path):
        yield from store.walk(fs, path) if is_bucket(url) else store.walk(fs, path, follow_links=follow_links)


def read(url: str) -> bytes:
    """Return the content of one file. Raises FileNotFoundError if it does not exist."""
    with _opened(url) as (store, fs, path):
        return bytes(store.read(fs, path))


def read_metadata(url: str) -> bytes:
    """Read what describes a dataset. As `read`, but raises InfrastructureError for a file that is too large for that.

    On a disk a file of terabytes costs whoever sends it nothing.
    """
    if (n_bytes := _bytes_on_disk(url)) > METADATA_BYTES:
        raise InfrastructureError(f"{url}: expected a description of at most {METADATA_BYTES} bytes, found {n_bytes}")
    return read(url)


def read_small(url: str, most_bytes: int = METADATA_BYTES) -> bytes:
    """Read what counts for nothing if it is damaged. As `read`, but a file on a disk that is larger is empty."""
    return b"" if _bytes_on_disk(url) > most_bytes else read(url)


def _bytes_on_disk(url: str) -> int:
    """Return the size of a file; 0 for an object in a bucket, which costs its owner what it holds."""
    if not is_bucket(url):
        with _opened(url) as (_, _, path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return Path(path).stat().st_size
    return 0


def read_head(url: str, n_bytes: int) -> bytes:
    """Return the first bytes of a file that was listed. Raises ObjectChanged if it does not exist any more."""
    with _opened(url) as (store, fs, path), _changes_raised():
        return bytes(store.read_head(fs, path, n_bytes))


def read_ranges(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return parts of a file, each from its start to before its end.

    Raises FileNotFoundError if it does not exist, InfrastructureError if it is too short.
    """
    with _opened(url) as (store, fs, path):
        return list(store.read_ranges(fs, path, ranges))


def read_many(url: str, entries: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of files below a folder, in the order of `entries`; on S3 several are read at once.

    Raises ObjectChanged if one is not as it was listed (on S3 by its ETag, on disk by its size and time).
    """
    with _opened(url) as (store, fs, path), _changes_raised():
        yield from zip((entry.name for entry in entries), store.read_many(fs, path, entries), strict=True)


def read_each(url: str, entries: Sequence[Entry]) -> Iterator[tuple[str, bytes | UnreadableFile]]:
    """Read what describes a dataset. As `read_many`, but what is too large for that, and a NoFile, are empty.

    A file that cannot be read, where others may be, is told in place of its content.
    """
    if is_bucket(url) and all(entry.size <= METADATA_BYTES for entry in entries):
        n_read, n_at_once = 0, len(entries)
        while n_read < len(entries):
            try:
                for found in read_many(url, entries[n_read : n_read + n_at_once]):
                    n_read += 1
                    yield found
                n_at_once *= 2
            except UnreadableFile as error:
                yield entries[n_read].name, error
                n_read, n_at_once = n_read + 1, 1  # others beside it may be so too: few are asked for in vain
        return
    for entry in entries:
        try:
            yield from read_many(url, [entry]) if entry.size <= METADATA_BYTES else [(entry.name, b"")]
        except NoFile:
            yield entry.name, b""
        except UnreadableFile as error:
            yield entry.name, error


def read_many_metadata(url: str, entries: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
    """Do the same for what counts for nothing if it is damaged: what cannot be read is empty, too."""
    for name, content in read_each(url, entries):
        yield name, b"" if isinstance(content, UnreadableFile) else content


def read_existing(url: str, names: Sequence[str], *, most_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of those files directly in a folder that exist; in a bucket several are read at once.

    There are none in a folder that is a link. On a disk what is a link, or larger than `most_bytes`, does not count.
    """
    with _opened(url) as (store, fs, path):
        more = {} if is_bucket(url) else {"most_bytes": most_bytes}
        found = zip(names, store.read_existing(fs, path, names, **more), strict=True)
        yield from ((name, content) for name, content in found if content is not None)


def write_many(url: str, objects: dict[str, bytes]) -> None:
    """Write files below a folder, by name. A reader sees each whole, or as it was before.

    The folder may be reached by links. Below it none is followed: raises InfrastructureError as `refuse_links` does.
    """
    refuse_links(url, objects)
    one = list(objects) if len(objects) == 1 and is_bucket(url) else []  # which an error is to name
    with _opened(join(url, *one)) as (store, fs, path):
        store.write_many(fs, {path if one else join(path, name): content for name, content in objects.items()})


def write_private(url: str, content: bytes) -> None:
    """Write one file as `write_many` does. On a disk nobody else can read it, also while it is being written."""
    with _opened(url) as (store, fs, path):
        if is_bucket(url):
            store.write_many(fs, {path: content})
        else:
            store.write_private(fs, path, content)


def create(url: str, content: bytes) -> bool:
    """Write a file unless it exists; return whether this call is known to have written it.

    If S3's answer is lost, the object exists, and the retry takes it for another's.
    """
    with _opened(url) as (store, fs, path):
        return bool(store.create(fs, path, content))


def create_if_absent(url: str, content: bytes) -> bool:
    """Do what `create` does, also in a store that ignores `If-None-Match`, unless two do it at the same moment.

    It costs one request more: for what is written once, and of which another's must never be lost.
    """
    return not exists(url) and create(url, content)


def delete(url: str, names: Iterable[str]) -> None:
    """Delete files below a folder; those that do not exist are passed over. Links as in `write_many`."""
    names = list(names)
    refuse_links(url, names)
    with _opened(url) as (store, fs, path):
        store.delete(fs, [join(path, name) for name in names])


def refuse_links(url: str, names: Iterable[str]) -> None:
    """Raise InfrastructureError if the way from a folder to one of these files below it goes through a link."""
    with _opened(url) as (_, _, path):
        if url.startswith("/"):
            local.refuse_links(path, names)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[tuple[Any, Any, str]]:
    """Yield the module for the store of a URL, its file system, or the connection to S3, and the path in it.

    What a store cannot do becomes one line that names the URL. A missing file stays a FileNotFoundError.
    """
    try:
        yield _open(url)
    except FileNotFoundError as error:
        if is_bucket(url) and any(words in str(error) for words in NO_BUCKET):
            raise InfrastructureError(f"{url}: there is no such bucket; create it, or correct the name") from error
        raise
    except OSError as error:
        raise failures.of_store(url, error) from error


def _open(url: str) -> tuple[Any, Any, str]:
    """Open what `absolute` has made of a URL, and nothing else. `fsspec.url_to_fs` would open chains of URLs too."""
    if is_bucket(url):
        from dskprep.storage import azure, blobs, bucket, connection  # 25 MiB of memory, which folders do not need

        scheme, _, path = url.rstrip("/").partition("://")
        opened = azure.connect() if scheme == "az" else connection.connect(public.store_of(url))
        opened.meet(path.partition("/")[0])
        return blobs if scheme == "az" else bucket, opened, path
    check_scheme(url)
    return local, fsspec.filesystem("file"), url.rstrip("/") or "/"


@contextlib.contextmanager
def _changes_raised() -> Iterator[None]:
    """Raise ObjectChanged for a listed file that does not exist any more, NoFile for one that never was one."""
    try:
        yield
    except OSError as error:
        if change := local.changed(error):
            raise change from error
        raise

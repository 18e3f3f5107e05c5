"""Containers of Azure Blob Storage: obstore does all.

What obstore does for S3 too is in `bucket` and `bucket_listing`. A `path` is a container's name and that of a blob, and
the errors are those of `bucket`.
"""

from __future__ import annotations

from collections.abc import Sequence

import obstore

from dskprep.storage.bucket import read as read
from dskprep.storage.bucket import read_existing as read_existing
from dskprep.storage.bucket import read_many as read_many
from dskprep.storage.bucket import read_ranges as read_ranges
from dskprep.storage.bucket_listing import is_folder as is_folder
from dskprep.storage.bucket_listing import list_below as list_below
from dskprep.storage.bucket_listing import list_folder as list_folder
from dskprep.storage.bucket_listing import walk as walk
from dskprep.storage.connection import THREADS, Connection
from dskprep.storage.local import Entry
from dskprep.storage.threads import Threads


def exists(azure: Connection, path: str) -> bool:
    """Tell whether there is such a blob, anything below it, or such a container."""
    return entry_of(azure, path) is not None or is_folder(azure, path)


def entry_of(azure: Connection, path: str) -> Entry | None:
    """Return the blob at the path, or None if there is none.

    In an account with a hierarchy of folders (ADLS Gen2) a folder looks like an empty blob with something below it.
    """
    container, _, name = path.partition("/")
    if not name:
        return None
    store = azure.store(container)
    try:
        found = azure.by_head(container, name, lambda: obstore.head(store, name))
    except FileNotFoundError:
        return None
    if not found["size"] and is_folder(azure, path):
        return None
    tag = (found["e_tag"] or "").strip('"')
    return Entry(name.rpartition("/")[2], found["size"], tag, found["last_modified"].timestamp())


def read_head(azure: Connection, path: str, n_bytes: int) -> bytes:
    """Read the first bytes of a blob, or fewer."""
    container, _, name = path.partition("/")
    store = azure.store(container)
    try:
        return azure.send(lambda: bytes(obstore.get_range(store, name, start=0, end=n_bytes)))
    except OSError as error:
        if isinstance(error, FileNotFoundError) or not _is_empty(azure, path):  # of an empty one there is no range
            raise
        return b""


def _is_empty(azure: Connection, path: str) -> bool:
    found = entry_of(azure, path)
    return found is not None and not found.size


def write_many(azure: Connection, blobs: dict[str, bytes]) -> None:
    """Write blobs by path, several at once. Each is one request, so it is whole or absent, and leaves no parts."""
    with Threads(THREADS, "azwrite") as threads:
        list(threads.map(lambda path: _put(azure, path, blobs[path]), blobs))


def _put(azure: Connection, path: str, content: bytes) -> None:
    container, _, name = path.partition("/")
    store = azure.store(container)
    azure.send(lambda: obstore.put(store, name, content, use_multipart=False))


def create(azure: Connection, path: str, content: bytes) -> bool:
    """Write a blob unless it exists; return whether this call is known to have written it."""
    container, _, name = path.partition("/")
    store = azure.store(container)
    try:
        azure.send(lambda: obstore.put(store, name, content, mode="create", use_multipart=False))
    except FileExistsError:
        return False
    return True


def delete(azure: Connection, paths: Sequence[str]) -> None:
    """Delete blobs; those that do not exist are passed over."""
    with Threads(THREADS, "azdelete") as threads:
        list(threads.map(lambda path: _delete(azure, path), paths))


def _delete(azure: Connection, path: str) -> None:
    container, _, name = path.partition("/")
    store = azure.store(container)
    try:
        azure.send(lambda: obstore.delete(store, name))
    except FileNotFoundError as error:
        if "ContainerNotFound" in str(error):
            raise

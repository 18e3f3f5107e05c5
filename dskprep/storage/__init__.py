"""Folders and buckets by URL.

In: a URL or a path. Out: listings and bytes. Door: the functions below, as in `storage.read(url)`. They do
the same for a folder (`local`) and a bucket (`bucket`); no other room opens a file system of its own.
"""

from dskprep.storage.place import (
    PART_SUFFIX,
    DeadLink,
    Entry,
    Folder,
    ObjectChanged,
    abort_uploads,
    absolute,
    create,
    delete,
    entry_of,
    exists,
    folders,
    is_bucket,
    is_folder,
    is_within,
    join,
    listing,
    listing_below,
    read,
    read_head,
    read_many,
    read_ranges,
    walk,
    write_many,
)

__all__ = [
    "PART_SUFFIX",
    "DeadLink",
    "Entry",
    "Folder",
    "ObjectChanged",
    "abort_uploads",
    "absolute",
    "create",
    "delete",
    "entry_of",
    "exists",
    "folders",
    "is_bucket",
    "is_folder",
    "is_within",
    "join",
    "listing",
    "listing_below",
    "read",
    "read_head",
    "read_many",
    "read_ranges",
    "walk",
    "write_many",
]

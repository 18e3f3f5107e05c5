"""Folders and buckets by URL.

In: a URL or a path. Out: listings and bytes. Door: the functions below, as in `storage.read(url)`. They do
the same for a folder (`local`) and a bucket (`bucket`); no other room opens a file system of its own.
"""

from dskprep.storage.local import PART_SUFFIX as PART_SUFFIX
from dskprep.storage.local import DeadLink as DeadLink
from dskprep.storage.local import Entry as Entry
from dskprep.storage.local import Folder as Folder
from dskprep.storage.local import ObjectChanged as ObjectChanged
from dskprep.storage.place import absolute as absolute
from dskprep.storage.place import create as create
from dskprep.storage.place import delete as delete
from dskprep.storage.place import entry_of as entry_of
from dskprep.storage.place import exists as exists
from dskprep.storage.place import folders as folders
from dskprep.storage.place import is_bucket as is_bucket
from dskprep.storage.place import is_folder as is_folder
from dskprep.storage.place import is_within as is_within
from dskprep.storage.place import join as join
from dskprep.storage.place import listing as listing
from dskprep.storage.place import listing_below as listing_below
from dskprep.storage.place import read as read
from dskprep.storage.place import read_head as read_head
from dskprep.storage.place import read_many as read_many
from dskprep.storage.place import read_ranges as read_ranges
from dskprep.storage.place import walk as walk
from dskprep.storage.place import write_many as write_many

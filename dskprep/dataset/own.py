"""What dskprep can have written of a dataset, by its name and its content. Nothing else is ever deleted."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from dskprep import storage
from dskprep.dataset import layout
from dskprep.dataset.record import STATUSES

_ARRAY = r"(?P<level>\d)/(?:zarr\.json|c/\d+/\d+/\d+)"
_OBJECT = rf"(?:(?:labels/lungs/)?(?:zarr\.json|{_ARRAY})|labels/zarr\.json)"
"""What `omezarr.encode` writes below a volume."""
_KEY = r"(?!\.)[A-Za-z0-9._=@,+-]+"
_LABEL_OBJECT = r"labels/[^/]+/(?:zarr\.json|\d/zarr\.json|\d/c/\d+/\d+/\d+)"
"""What `label_store` writes of a label."""
_LABEL_RECORD = rf"(?:(?:{'|'.join(STATUSES)})/{_KEY}\.json|points/{_KEY}\.parquet)"
_CLAIM = r"(?:\d{8}|\d{8}T\d{6}Z-[0-9a-f]{4}(?:[0-9a-f]{4})?)\.json"
"""The number of a claim, or the id of a run (see `claims`): half as long in older versions."""

_OF_LABEL = re.compile(rf"labels/[^/]+/(?:zarr\.json|{_ARRAY})(?:{storage.UNFINISHED})?")
_OF_VOLUME = re.compile(rf"{_OBJECT}(?:{storage.UNFINISHED})?")
_UNFINISHED_FILE = re.compile(
    rf"(?:dataset\.json|identity\.json|index\.parquet(?:/part-\d{{5}}\.parquet)?|annotations\.parquet|labels/{_LABEL_RECORD}|records/(?:{'|'.join(STATUSES)})/{_KEY}\.json|thumbnails/{_KEY}\.webp"
    rf"|claims/{_CLAIM}|splits/{_KEY}\.json|volumes/{_KEY}\.zarr/(?:{_OBJECT}|{_LABEL_OBJECT})|runs/[^/]+/(?:summary\.json|qc\.html|performance\.html)){storage.UNFINISHED}"
)

THUMBNAIL_HEAD_BYTES = 30
"""Bytes of a WebP that say its size."""
THUMBNAIL_BYTES = 1 << 17
"""More than any thumbnail has: its pixels without compression."""
THUMBNAIL_SIZE = (288, 144)
"""Width and height of all thumbnails: two squares of `thumbnail.EDGE` pixels."""


def is_unfinished(path: str) -> bool:
    """Tell whether a path below a dataset is that of a file whose writing was broken off."""
    return bool(_UNFINISHED_FILE.fullmatch(path))


def is_claim(name: str) -> bool:
    """Tell whether a file of this name in `claims` is a lease or a claim."""
    return bool(re.fullmatch(_CLAIM, name, re.ASCII))


def of_volume(names: Collection[str], n_levels: int = 1) -> list[str]:
    """Return those objects of a volume that dskprep writes or began to write, in the order to delete them in.

    Levels beyond those of the dataset are the user's. So is a list of labels without the lungs: dskprep writes the two
    together. The object by which a volume is known as dskprep's goes last, so that what a killed process left of it is
    known too.
    """
    theirs = "" if "labels/lungs/zarr.json" in names else "labels/zarr.json"
    matches = {name: match for name in names if name != theirs and (match := _OF_VOLUME.fullmatch(name))}
    found = [name for name, match in matches.items() if int(match["level"] or 0) < n_levels]
    return sorted(found, key=lambda name: (name == "zarr.json", name != "labels/zarr.json", name))


def of_labels(names: Collection[str], n_levels: int) -> list[str]:
    """Return those objects of labels in a volume that dskprep writes or began to write, in the order to delete them in.

    The group of a label, by which it is known as dskprep's, goes last. What else lies in its folder is the user's.
    """
    matches = {name: match for name in names if (match := _OF_LABEL.fullmatch(name))}
    found = [name for name, match in matches.items() if int(match["level"] or 0) < n_levels]
    return sorted(found, key=lambda name: (-name.count("/"), name))


def is_thumbnail(head: bytes) -> bool:
    """Tell whether these are the first bytes of a thumbnail: a lossy WebP of their size (RFC 9649)."""
    size = tuple(int.from_bytes(head[i : i + 2], "little") & 0x3FFF for i in (26, 28))
    return (head[:4], head[8:16]) == (b"RIFF", b"WEBPVP8 ") and size == THUMBNAIL_SIZE


def is_label_thumbnail(head: bytes) -> bool:
    """Tell whether these are the first bytes of the thumbnail of a label: a lossless WebP of their size (RFC 9649)."""
    bits = int.from_bytes(head[21:25], "little")
    size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return (head[:4], head[8:16], head[20:21]) == (b"RIFF", b"WEBPVP8L", b"\x2f") and size == THUMBNAIL_SIZE


def is_volume(url: str, names: Collection[str], ours: Collection[str]) -> bool:
    """Tell whether dskprep wrote a volume: the metadata of its arrays are of its kind, and so are those of the volume.

    The latter may not be there yet, if nothing of others is. Without any metadata nobody knows whose the volume is.
    """
    arrays = [name.removesuffix("/zarr.json") for name in ours if re.fullmatch(r"(?:.*/)?\d/zarr\.json", name)]
    if not all(layout.is_ours(storage.join(url, path)) for path in arrays):
        return False
    if "zarr.json" not in names:
        return bool(arrays) and len(names) == len(ours)
    try:
        return isinstance(json.loads(storage.read_small(storage.join(url, "zarr.json")))["attributes"]["dskprep"], dict)
    except (ValueError, KeyError, TypeError, RecursionError, FileNotFoundError, storage.UnreadableFile):
        return False


def is_thumbnail_at(url: str) -> bool:
    """Tell whether dskprep wrote the thumbnail at this URL."""
    try:
        return is_thumbnail(storage.read_head(url, THUMBNAIL_HEAD_BYTES))
    except (storage.ObjectChanged, storage.UnreadableFile):
        return False

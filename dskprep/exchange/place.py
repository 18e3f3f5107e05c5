"""Where an export is written: what was asked of it, and a record of each volume, which is its last write.

.dskprep/export.json           what was asked: written first, once
.dskprep/volumes/<key>.json    the files of a volume, and a digest of what they were made of
.dskprep/described.json        the files beside the volumes, as they were written last
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from dskprep import keys, storage
from dskprep.dataset.facts import StoredObject
from dskprep.dataset.record import to_json
from dskprep.errors import InfrastructureError, UsageError
from dskprep.typed import converter

BLOCK_BYTES = 1 << 20
"""Bytes of a compressed file that are unpacked at once, to see whether it is whole."""
OWN = ".dskprep"
BEGIN = f"{OWN}/export.json"
FOLDER = f"{OWN}/volumes"
DESCRIBED = f"{OWN}/described.json"
PATHS = (
    *("imagesTr/{key}_0000.nii.gz", "labelsTr/{key}.nii.gz", "imagesTs/{key}_0000.nii.gz", "labelsTs/{key}.nii.gz"),
    *("images/{key}.nii.gz", "labels/{key}.nii.gz"),
)
"""What the files of a volume are called: by nnU-Net, and for MONAI."""


class VolumeRecord(msgspec.Struct, frozen=True):
    """The files that were written of a volume, by their path; `digest` is that of what they were made of."""

    key: str
    digest: str
    files: dict[str, StoredObject]


_to_record = converter(VolumeRecord)
_to_described = converter(dict[str, StoredObject])
_UNFINISHED = re.compile(rf"export\.json{storage.UNFINISHED}")


def begin(out: str, asked: dict[str, Any]) -> None:
    """Begin an export, or go on with one that was asked for the same.

    Raises UsageError if something else is there.
    """
    url = storage.join(out, BEGIN)
    if not storage.exists(url):
        names = [entry.name for entry in storage.listing(out) if not entry.name.startswith(".")]
        names += [name for name in storage.folders(out) if name != OWN or not _is_unfinished(out)]
        if names:
            raise UsageError(f"{out}: expected an empty or a new place, or an export, found {names[0]}; choose another")
    storage.refuse_links(out, [BEGIN])
    if storage.create_if_absent(url, to_json(asked)):
        return
    try:
        there = json.loads(storage.read_small(url))
        there = {"dataset": asked.get("dataset"), **there}  # exports that were begun earlier do not say it
        differences = [name for name in sorted({*there, *asked}) if there.get(name) != asked.get(name)]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{url}: is damaged; delete {out}, and export again") from error
    if differences:
        name = differences[0]
        raise UsageError(
            f"{out}: holds another export: {name} is {there.get(name)!r:.100} there and {asked.get(name)!r:.100} here; "
            "choose another place"
        )


def _is_unfinished(out: str) -> bool:
    """Tell whether the folder of an export holds no more than its first write, which failed, as on a full disk."""
    below = storage.listing_below(storage.join(out, OWN), follow_links=False)
    return all(_UNFINISHED.fullmatch(entry.name) for entry in below)


class There(NamedTuple):
    """The records of the volumes that are there, by key: those that are whole, and those of which a file is missing.

    `altered` has the path of a file that is not as it was written, by key: somebody has changed it since.
    """

    whole: dict[str, VolumeRecord]
    partial: dict[str, VolumeRecord]
    altered: dict[str, str]


def records(out: str) -> There:
    """Return what is there. Damaged records count for nothing, and a file that was cut is missing."""
    url = storage.join(out, FOLDER)
    there = {entry.name: entry.size for entry in storage.listing_below(out, follow_links=False)}
    found = There({}, {}, {})
    try:
        entries = [entry for entry in storage.listing(url) if entry.name.endswith(".json")]  # others are unfinished
        contents = [*storage.read_many_metadata(url, entries)]
    except storage.ObjectChanged as error:
        raise InfrastructureError(f"{out}: another export changes it now ({error}); export again") from error
    for name, content in contents:
        try:
            record = _to_record(json.loads(content))
        except (ValueError, RecursionError, msgspec.ValidationError):
            continue
        if name != f"{record.key}.json" or not _is_ours(record):
            continue
        others = [path for path, about in record.files.items() if there.get(path, about.n_bytes) != about.n_bytes]
        theirs = [path for path in others if _is_whole(storage.join(out, path))]
        if theirs:
            found.altered[record.key] = theirs[0]
        is_whole = record.files.keys() <= there.keys() and others == theirs
        (found.whole if is_whole else found.partial)[record.key] = record
    return found


def _is_whole(url: str) -> bool:
    """Tell whether a compressed file can be read to its end: then somebody has written it, and it was not cut."""
    try:
        with gzip.open(io.BytesIO(storage.read(url))) as file:
            while file.read(BLOCK_BYTES):  # whatever it unpacks to
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True


def altered_mask(out: str, record: VolumeRecord) -> str:
    """Return the path of a mask of a volume that somebody has changed without changing its size, or ""."""
    masks = {path.format(key=record.key) for path in PATHS if path.startswith("labels")}
    for path in sorted(masks & record.files.keys()):
        try:
            content = storage.read(storage.join(out, path))
        except FileNotFoundError:
            continue
        if StoredObject.of(content) != record.files[path] and _is_whole(storage.join(out, path)):
            return path
    return ""


def write(out: str, record: VolumeRecord, files: dict[str, bytes]) -> None:
    """Write the files of a volume, and then its record."""
    storage.write_many(out, files)
    storage.write_many(out, {f"{FOLDER}/{record.key}.json": to_json(msgspec.to_builtins(record))})


def described(out: str) -> dict[str, StoredObject]:
    """Return the files beside the volumes as they were written last; none where that is not known."""
    try:
        return _to_described(json.loads(storage.read_small(storage.join(out, DESCRIBED))))
    except (FileNotFoundError, ValueError, RecursionError, msgspec.ValidationError):
        return {}


def altered_files(out: str, files: dict[str, bytes]) -> dict[str, StoredObject]:
    """Return the files beside the volumes that somebody has changed since, as they were written."""
    found = {}
    for path, written in described(out).items():
        if path in files:
            with contextlib.suppress(FileNotFoundError):
                there = storage.read(storage.join(out, path))
                if StoredObject.of(there) != written and there != files[path]:
                    found[path] = written
    return found


def describe(out: str, files: dict[str, bytes]) -> None:
    """Write files beside the volumes, and then what they are."""
    storage.write_many(out, files)
    written = described(out) | {path: StoredObject.of(content) for path, content in files.items()}
    storage.write_many(out, {DESCRIBED: to_json(msgspec.to_builtins(written))})


def tidy(out: str, described: Iterable[str], before_s: float) -> None:
    """Delete what a killed process has left of files of an export that it was writing then, in seconds since 1970.

    `described` are the names of the files beside the volumes. What is younger may be another process's.
    """
    if storage.is_bucket(out):  # which never holds unfinished files
        return
    names = "|".join(re.escape(path).replace(r"\{key\}", r"[^/]+") for path in (BEGIN, DESCRIBED, *described, *PATHS))
    unfinished = re.compile(rf"(?:{names}|{re.escape(FOLDER)}/[^/]+\.json){storage.UNFINISHED}")
    files = storage.listing_below(out, follow_links=False)
    storage.delete(out, [e.name for e in files if 0 < e.modified_s < before_s and unfinished.fullmatch(e.name)])


def _is_ours(record: VolumeRecord) -> bool:
    """Tell whether an export names its files so; a record may be a stranger's, and what it names may be deleted."""
    names = {path.format(key=record.key) for path in PATHS}
    return keys.is_of_series(record.key) and names >= record.files.keys()


def drop(out: str, stale: Iterable[VolumeRecord]) -> None:
    """Delete volumes of which the export has no more: the files that their records name, and then these."""
    for record in stale:
        storage.delete(out, record.files)
        storage.delete(out, [f"{FOLDER}/{record.key}.json"])

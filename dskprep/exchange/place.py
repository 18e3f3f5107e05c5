"""Where an export is written: what was asked of it, and a record of each volume, which is its last write.

.dskprep/export.json           what was asked: written first, once
.dskprep/volumes/<key>.json    the files of a volume, and a digest of what they were made of
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from dskprep import keys, storage
from dskprep.dataset.facts import StoredObject
from dskprep.dataset.record import is_object_name, to_json
from dskprep.errors import UsageError

BEGIN = ".dskprep/export.json"
FOLDER = ".dskprep/volumes"


class VolumeRecord(msgspec.Struct, frozen=True):
    """The files that were written of a volume, by their path; `digest` is that of what they were made of."""

    key: str
    digest: str
    files: dict[str, StoredObject]


def begin(out: str, asked: dict[str, Any]) -> None:
    """Begin an export, or go on with one that was asked for the same.

    Raises UsageError if something else is there.
    """
    url = storage.join(out, BEGIN)
    if not storage.exists(url):
        names = [entry.name for entry in storage.listing(out) if not entry.name.startswith(".")] + storage.folders(out)
        if names:
            raise UsageError(f"{out}: expected an empty or a new place, or an export, found {names[0]}; choose another")
    storage.refuse_links(out, [BEGIN])
    if storage.create(url, to_json(asked)):
        return
    try:
        there = json.loads(storage.read(url))
        differences = [name for name in sorted({*there, *asked}) if there.get(name) != asked.get(name)]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{url}: is damaged; delete {out}, and export again") from error
    if differences:
        name = differences[0]
        raise UsageError(
            f"{out}: holds another export: {name} is {there.get(name)!r:.100} there and {asked.get(name)!r:.100} here; "
            "choose another place"
        )


def records(out: str) -> dict[str, VolumeRecord]:
    """Return the records of the volumes of which all files are there, whole, by key. Damaged ones count for nothing."""
    url = storage.join(out, FOLDER)
    there = {entry.name: entry.size for entry in storage.listing_below(out, follow_links=False)}
    found = {}
    for _, content in storage.read_many(url, storage.listing(url)):
        try:
            record = msgspec.convert(json.loads(content), VolumeRecord)
        except (ValueError, RecursionError, msgspec.ValidationError):
            continue
        is_sound = keys.is_of_series(record.key) and all(map(is_object_name, record.files))
        if is_sound and all(there.get(name) == about.n_bytes for name, about in record.files.items()):
            found[record.key] = record
    return found


def write(out: str, record: VolumeRecord, files: dict[str, bytes]) -> None:
    """Write the files of a volume, and then its record."""
    storage.write_many(out, files)
    storage.write_many(out, {f"{FOLDER}/{record.key}.json": to_json(msgspec.to_builtins(record))})


def drop(out: str, stale: Iterable[VolumeRecord]) -> None:
    """Delete volumes of which the export has no more: their records, and the files that these name."""
    for record in stale:
        storage.delete(out, [f"{FOLDER}/{record.key}.json", *record.files])

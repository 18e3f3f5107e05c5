"""Write and list what a dataset holds: its settings, its records and the objects of its volumes.

dataset.json                                    settings and their digest: written first, once
records/<status>/<key>.<input digest>.json      the record of a series, written after all else of it: the commit
volumes/<key>.zarr/                             the volume that a `written` record describes
thumbnails/<key>.webp                           a small picture of it
index.parquet                                   one row per series, made from the records (see `index`)
runs/<run id>/summary.json                      the account of one run
runs/<run id>/qc.html                           the report on the dataset at the end of the run (see `look.report`)
runs/<run id>/performance.html                  Dask's performance report, if the run had a dashboard
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from dskprep import storage
from dskprep.dataset.record import STATUSES, Record, RecordName, StoredObject, parse_record, to_json
from dskprep.errors import DamagedDataset, UsageError
from dskprep.settings import PrepConfig
from dskprep.storage import Entry

FORMAT = 1
"""Version of the layout of dataset.json and of the records."""


def create(target: str, config: PrepConfig) -> None:
    """Begin a dataset, or join one that has the same settings.

    Raises UsageError if the target holds a dataset with other settings (the message lists the differences),
    InfrastructureError if it cannot be written.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "settings": config.as_dict(),
        "digest": config.digest(),
        "dskprep": version("dskprep"),
    }
    url = storage.join(target, "dataset.json")
    if not storage.exists(url) and next(record_names(target), None) is not None:
        raise UsageError(
            f"{target}: holds records but no dataset.json, so their settings are unknown; choose another target"
        )
    if storage.create(url, to_json(content)):
        return
    there = describe(target)
    if there["digest"] == config.digest():
        return
    names = sorted({*there["settings"], *content["settings"]}, key=lambda name: (name != "recipe", name))
    here = content["settings"]
    differences = [
        f"{name} is {there['settings'].get(name, 'at its default')} there and {here.get(name, 'at its default')} here"
        for name in names
        if there["settings"].get(name) != here.get(name)
    ]
    raise UsageError(f"{target}: holds a dataset of other settings ({'; '.join(differences)}); choose another target")


def describe(target: str) -> dict[str, Any]:
    """Return the content of dataset.json.

    Raises UsageError if the target is not a dataset, or one of another format; DamagedDataset if the file is damaged.
    """
    try:
        read = storage.read(storage.join(target, "dataset.json"))
    except FileNotFoundError as error:
        raise UsageError(f"{target}: there is no dskprep dataset here (no dataset.json)") from error
    try:
        content: dict[str, Any] = json.loads(read)
    except ValueError as error:
        raise DamagedDataset(f"{target}: dataset.json is damaged: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UsageError(f"{target}: a dataset of format {found}; this dskprep reads format {FORMAT}")
    if not {"settings", "digest"} <= set(content):
        raise DamagedDataset(f"{target}: dataset.json is damaged: it lacks the settings or their digest")
    return content


def record_names(target: str) -> Iterator[RecordName]:
    """Yield the names of all records. Only lists, reads none of them."""
    return (name for name, _ in list_records(target))


def list_records(target: str) -> Iterator[tuple[RecordName, Entry]]:
    """Yield the name of each record and its entry in the listing. Only lists, reads none of them."""
    for entry in storage.listing_below(storage.join(target, "records")):
        status, _, name = entry.name.partition("/")
        key, _, digest = name.removesuffix(".json").rpartition(".")
        if status in STATUSES and name.endswith(".json") and key:
            yield RecordName(status, key, digest), entry


def read_record(target: str, name: RecordName) -> Record:
    """Read a record. Raises DamagedDataset if it is damaged."""
    url = storage.join(target, name.path)
    return parse_record(storage.read(url), url)


def find_written(target: str, key: str, digest: str) -> list[Record]:
    """Return the `written` record of this input, preceded by those of its further series; empty if one is not there."""
    try:
        record = read_record(target, RecordName("written", key, digest))
        further = [name.partition("/") for name in record.further_series]
        return [read_record(target, RecordName(s, k, digest)) for s, _, k in further] + [record]
    except FileNotFoundError:
        return []


def volume_url(target: str, key: str) -> str:
    return storage.join(target, "volumes", f"{key}.zarr")


def write_volume(target: str, key: str, objects: dict[str, bytes]) -> dict[str, StoredObject]:
    """Write the objects of a volume, delete all others under its key, and return the size and SHA-256 of each."""
    url = volume_url(target, key)
    leftover = [e.name for e in storage.listing_below(url) if e.name not in objects]
    storage.delete(url, leftover)
    storage.write_many(url, objects)
    return {name: StoredObject.of(content) for name, content in objects.items()}


def thumbnail_name(key: str) -> str:
    """Return where a volume's thumbnail lies below the dataset."""
    return f"thumbnails/{key}.webp"


def write_thumbnail(target: str, key: str, content: bytes) -> StoredObject:
    """Write the thumbnail of a volume, and return its size and SHA-256."""
    storage.write_many(target, {thumbnail_name(key): content})
    return StoredObject.of(content)


def commit(target: str, record: Record) -> None:
    """Write a record, which marks its series as done. If another run has written the record already, that one stays."""
    storage.create(storage.join(target, record.name.path), record.to_json())


def forget(target: str, names: Iterable[RecordName]) -> None:
    """Delete records, so that their series count as not done, and then the volumes that they describe."""
    names = list(names)
    storage.delete(target, [name.path for name in names])
    for name in names:
        if name.status == "written":
            write_volume(target, name.key, {})
            storage.delete(target, [thumbnail_name(name.key)])


def write_run(target: str, run_id: str, summary: dict[str, Any], performance: bytes = b"") -> None:
    """Write the account of a run and, if there is one, Dask's performance report."""
    files = {"summary.json": to_json(summary)} | ({"performance.html": performance} if performance else {})
    storage.write_many(storage.join(target, "runs", run_id), files)

"""A dataset on disk or in a bucket: its settings and its records.

dataset.json                                    settings and their digest: written first, once
records/<status>/<key>.<input digest>.json      the record of a series; its last write, and the commit
volumes/<key>.zarr/                             the volume that a `written` record speaks of
thumbnails/<key>.webp                           a small picture of it
index.parquet                                   one row a series, made from the records (see index.py)
runs/<run id>/summary.json                      the account of one run
runs/<run id>/qc.html                           the page of the dataset at its end (see report.py)
runs/<run id>/performance.html                  Dask's report on it, if there was a dashboard
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

from dskprep import storage
from dskprep.errors import UsageError
from dskprep.settings import PrepConfig
from dskprep.storage import Entry

STATUSES = ("written", "refused", "failed", "killed")
FORMAT = 1
FURTHER = "+"
"""Parts the key of a folder from the tag of a further series found in it."""

Record = dict[str, Any]


class RecordName(NamedTuple):
    """What the name of a record says."""

    status: str
    key: str
    digest: str

    @property
    def path(self) -> str:
        """The record's place below the dataset."""
        return f"records/{self.status}/{self.key}.{self.digest}.json"


def create(target: str, config: PrepConfig) -> None:
    """Begin a dataset, or join one of the same settings.

    Raises UsageError if the target holds a dataset of other settings (the difference is in the
    message), InfrastructureError if it cannot be written.
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
    differences = [
        f"{name} is {there['settings'].get(name)} there and {content['settings'].get(name)} here"
        for name in names
        if there["settings"].get(name) != content["settings"].get(name)
    ]
    raise UsageError(f"{target}: holds a dataset of other settings ({'; '.join(differences)}); choose another target")


def describe(target: str) -> dict[str, Any]:
    """The content of dataset.json. Raises UsageError if the target is no dataset of this format."""
    try:
        content: dict[str, Any] = json.loads(storage.read(storage.join(target, "dataset.json")))
    except FileNotFoundError as error:
        raise UsageError(f"{target}: there is no dskprep dataset here (no dataset.json)") from error
    except ValueError as error:
        raise UsageError(f"{target}: dataset.json is damaged: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UsageError(f"{target}: a dataset of format {found}; this dskprep reads format {FORMAT}")
    if not {"settings", "digest"} <= set(content):
        raise UsageError(f"{target}: dataset.json is damaged: it lacks the settings or their digest")
    return content


def record_names(target: str) -> Iterator[RecordName]:
    """The names of all records, by LIST requests only."""
    return (name for name, _ in list_records(target))


def list_records(target: str) -> Iterator[tuple[RecordName, Entry]]:
    """Name and listing of all records, by LIST requests only."""
    for entry in storage.listing_below(storage.join(target, "records")):
        status, _, name = entry.name.partition("/")
        key, _, digest = name.removesuffix(".json").rpartition(".")
        if status in STATUSES and name.endswith(".json") and key:
            yield RecordName(status, key, digest), entry


def read_record(target: str, name: RecordName) -> Record:
    """A record's content. Raises UsageError if it is damaged."""
    url = storage.join(target, name.path)
    return parse_record(storage.read(url), url)


def parse_record(content: bytes, where: str) -> Record:
    """The record in the bytes of a file. Raises UsageError if it is damaged."""
    try:
        record: Record = json.loads(content)
    except ValueError as error:
        raise UsageError(f"{where}: this record is damaged ({error}); delete it and run again") from error
    expected = {"key", "status", "input_digest"}
    if not isinstance(record, dict) or not expected <= set(record):
        raise UsageError(f"{where}: this record is damaged (it lacks its key or status); delete it and run again")
    return record


def find_written(target: str, key: str, digest: str) -> list[Record]:
    """The `written` record of this input, after those of its further series; empty if there is none."""
    try:
        record = read_record(target, RecordName("written", key, digest))
        further = [name.partition("/") for name in record.get("further_series", [])]
        return [read_record(target, RecordName(s, k, digest)) for s, _, k in further] + [record]
    except FileNotFoundError:
        return []


def volume_url(target: str, key: str) -> str:
    return storage.join(target, "volumes", f"{key}.zarr")


def write_volume(target: str, key: str, objects: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Write a volume's objects, and nothing else of that key survives. Returns size and SHA-256 of each."""
    url = volume_url(target, key)
    leftover = [e.name for e in storage.listing_below(url) if e.name not in objects]
    storage.delete(url, leftover)
    storage.write_many(url, objects)
    return {name: _promise(content) for name, content in objects.items()}


def thumbnail_name(key: str) -> str:
    """The place of a volume's small picture below the dataset."""
    return f"thumbnails/{key}.webp"


def write_thumbnail(target: str, key: str, content: bytes) -> dict[str, Any]:
    """Write the small picture of a volume. Returns its size and SHA-256."""
    storage.write_many(target, {thumbnail_name(key): content})
    return _promise(content)


def _promise(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def commit(target: str, record: Record) -> None:
    """Write a record; with it, the series is done. One that another run has written first stays."""
    storage.create(storage.join(target, name_of(record).path), to_json(record))


def forget(target: str, names: Iterable[RecordName]) -> None:
    """Delete records, so that their series count as not done, and then the volumes they spoke of."""
    names = list(names)
    storage.delete(target, [name.path for name in names])
    for name in names:
        if name.status == "written":
            write_volume(target, name.key, {})
            storage.delete(target, [thumbnail_name(name.key)])


def write_run(target: str, run_id: str, summary: dict[str, Any], performance: bytes = b"") -> None:
    """Write the account of a run and, if there is one, Dask's performance report on it."""
    files = {"summary.json": to_json(summary)} | ({"performance.html": performance} if performance else {})
    storage.write_many(storage.join(target, "runs", run_id), files)


def name_of(record: Record) -> RecordName:
    return RecordName(record["status"], record["key"], record["input_digest"])


def to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

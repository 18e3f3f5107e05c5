"""Compare what is stored with what the records promise."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dskprep import omezarr, storage, store
from dskprep.errors import UsageError


@dataclass(frozen=True)
class Finding:
    """The outcome for one written series: no `faults` if all is well."""

    key: str
    faults: tuple[str, ...]


def verify(target: str) -> Iterator[Finding]:
    """Re-read every object of every written series, and its thumbnail: size, SHA-256, shape, and nothing beside it."""
    target = storage.absolute(target)
    store.describe(target)
    for name in sorted(store.record_names(target)):
        if name.status == "written":
            yield Finding(name.key, tuple(_faults(target, name)))


def forget(target: str, keys: set[str]) -> None:
    """Delete the records of these volumes, so that the next run makes them anew."""
    target = storage.absolute(target)
    store.forget(target, [n for n in store.record_names(target) if n.status == "written" and n.key in keys])


def clean(target: str, *, older_than_s: float, is_trial: bool = False) -> Iterator[str]:
    """Delete what runs that died have left, and yield each name (in a trial, only yield).

    That is: what volumes without a `written` record have, unfinished local files, and multipart uploads.
    What is younger than `older_than_s` may belong to a run under way, and stays.
    """
    target = storage.absolute(target)
    store.describe(target)
    before_s = time.time() - older_than_s
    written = {name.key for name in store.record_names(target) if name.status == "written"}
    for part in ("volumes", "thumbnails", "records", "runs"):
        url = storage.join(target, part)
        for folder in storage.walk(url):
            old = [e.name for e in folder.entries if e.modified_s < before_s and _is_left(part, folder, e, written)]
            yield from ("/".join(filter(None, [part, folder.path, name])) for name in old)
            if not is_trial:
                storage.delete(storage.join(url, folder.path) if folder.path else url, old)
    if not is_trial:
        n_aborted = storage.abort_uploads(target, before_s)
        yield from [f"{n_aborted} multipart uploads"] if n_aborted else []


def _is_left(part: str, folder: storage.Folder, entry: storage.Entry, written: set[str]) -> bool:
    if entry.name.endswith(storage.PART_SUFFIX):
        return True
    if part == "thumbnails":
        return entry.name.removesuffix(".webp") not in written
    return part == "volumes" and folder.path.partition("/")[0].removesuffix(".zarr") not in written


def _faults(target: str, name: store.RecordName) -> Iterator[str]:
    try:
        record = store.read_record(target, name)
    except UsageError as error:
        yield str(error)
        return
    if not {"objects", "geometry"} <= set(record):
        yield "its record is damaged: it does not say what was written"
        return
    url = store.volume_url(target, name.key)
    there = {entry.name for entry in storage.listing_below(url)}
    sound = set()
    for path, promised in sorted(record["objects"].items()):
        if path not in there:
            yield f"{path} is missing"
            continue
        fault = _fault(storage.join(url, path), promised)
        if fault:
            yield f"{path} {fault}"
        else:
            sound.add(path)
    yield from (f"{path} does not belong there" for path in sorted(there - set(record["objects"])))
    if "thumbnail" in record:
        path = store.thumbnail_name(name.key)
        fault = _fault(storage.join(target, path), record["thumbnail"])
        yield from [f"{path} {fault}"] if fault else []
    if "0/zarr.json" in sound:
        shape = list(omezarr.open_array(url, "0").shape)
        if shape != record["geometry"]["shape"]:
            yield f"the shape is {shape} instead of {record['geometry']['shape']}"


def _fault(url: str, promised: dict[str, Any]) -> str | None:
    """What is wrong with an object, if anything."""
    try:
        content = storage.read(url)
    except FileNotFoundError:
        return "is missing"
    if len(content) != promised["bytes"]:
        return f"has {len(content)} bytes instead of {promised['bytes']}"
    return None if hashlib.sha256(content).hexdigest() == promised["sha256"] else "was altered"

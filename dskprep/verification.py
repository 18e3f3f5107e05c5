"""Compare what is stored with what the records promise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from dskprep import omezarr, storage, store
from dskprep.errors import UsageError


@dataclass(frozen=True)
class Finding:
    """The outcome for one written series: no `faults` if all is well."""

    key: str
    faults: tuple[str, ...]


def verify(target: str) -> Iterator[Finding]:
    """Re-read every object of every written series: size, SHA-256, shape, and nothing beside it."""
    target = storage.absolute(target)
    store.describe(target)
    for name in sorted(store.record_names(target)):
        if name.status == "written":
            yield Finding(name.key, tuple(_faults(target, name)))


def _faults(target: str, name: store.RecordName) -> Iterator[str]:
    try:
        record = store.read_record(target, name)
    except UsageError as error:
        yield str(error)
        return
    url = store.volume_url(target, name.key)
    there = {entry.name for entry in storage.listing_below(url)}
    sound = set()
    for path, promised in sorted(record["objects"].items()):
        if path not in there:
            yield f"{path} is missing"
            continue
        content = storage.read(storage.join(url, path))
        if len(content) != promised["bytes"]:
            yield f"{path} has {len(content)} bytes instead of {promised['bytes']}"
        elif hashlib.sha256(content).hexdigest() != promised["sha256"]:
            yield f"{path} was altered"
        else:
            sound.add(path)
    yield from (f"{path} does not belong there" for path in sorted(there - set(record["objects"])))
    if "0/zarr.json" in sound:
        shape = list(omezarr.open_array(url, "0").shape)
        if shape != record["geometry"]["shape"]:
            yield f"the shape is {shape} instead of {record['geometry']['shape']}"

"""Two runs that write one volume from different files: how the one that comes second finds out.

That happens when a run slept past its lease: another one has taken its patients over, and their files have changed.
The metadata of a volume, `zarr.json`, are created first, and only if there are none; they have the SHA-256 of its HU.
So a run looks for another one's record only where it finds what it did not write: before it writes, and after its own
commit, which costs one small request for each volume. What is not seen is a sleep in the moment between the look at a
stale record and the deletion of its volume, if another run does all of the patient in that moment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dskprep import storage
from dskprep.dataset import store
from dskprep.dataset.facts import StoredObject
from dskprep.dataset.record import Record, RecordName
from dskprep.errors import Refusal

FIRST = "zarr.json"
"""The object of a volume that is written before all others."""


def refuse_forgotten(target: str, key: str, digest: str, stale: Collection[RecordName]) -> None:
    """Raise Refusal if another run has deleted one of these records, and has written volumes of the key since."""
    written = [name for name in stale if name.status == "written"]
    if not all(storage.exists(storage.join(target, name.path)) for name in written):
        _refuse_others(target, {key, *(name.key for name in written)}, digest, stale)


def begin(target: str, key: str, objects: dict[str, bytes], digest: str, stale: Collection[RecordName]) -> list[str]:
    """Write the first object of a volume, of the input `digest`, unless there is one; return the names of what is done.

    Raises Refusal if that is of a volume with a record of another input, which is none of `stale`. A series that gives
    no volume has no objects.
    """
    path = f"{store.volume_name(key)}/{FIRST}"
    storage.refuse_links(target, [path])
    content = objects.get(FIRST)
    if content is not None and storage.create(storage.join(target, path), content):
        return [FIRST]
    if _first_of(target, key) not in (None, StoredObject.of(content or b"")):
        _refuse_others(target, {key}, digest, stale)
    return []


def withdraw_mixed(target: str, records: Iterable[Record]) -> list[str]:
    """Delete those records over whose volume another run has written, and what that run has recorded of it.

    Nobody knows which objects are whose. Without its first object the volume is broken for that run too, should it
    commit only now: both look after they have written. A record that is gone was seen by that run before it wrote, and
    its volume stays. Returns the keys.
    """
    mixed = [
        record
        for record in records
        if record.is_written
        and _first_of(target, record.key) not in (None, record.objects[FIRST])
        and storage.exists(storage.join(target, record.name.path))
    ]
    keys = {record.key for record in mixed}
    if keys:
        storage.delete(target, [f"{store.volume_name(key)}/{FIRST}" for key in keys])
        storage.delete(target, [record.name.path for record in mixed] + [n.path for n in _written(target, keys)])
    return sorted(keys)


def _first_of(target: str, key: str) -> StoredObject | None:
    try:
        return StoredObject.of(storage.read_metadata(storage.join(store.volume_url(target, key), FIRST)))
    except FileNotFoundError:
        return None


def _refuse_others(target: str, keys: Collection[str], digest: str, stale: Collection[RecordName]) -> None:
    for name in _written(target, keys):
        if name.digest != digest and name not in stale:
            raise Refusal(
                "source-changed",
                f"{name.key}: expected the files as they were listed, found that another run has written the volume "
                "of other files meanwhile; that one stays",
            )


def _written(target: str, keys: Collection[str]) -> list[RecordName]:
    return [name for name in store.record_names(target) if name.status == "written" and name.key in keys]

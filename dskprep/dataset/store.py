"""Write and list what a dataset holds: its settings, its records and the objects of its volumes.

dataset.json                                    settings and their digest: written first
records/<status>/<key>.<input digest>.json      the record of a series, written after all else of it: the commit
volumes/<key>.zarr/                             the volume that a `written` record describes
thumbnails/<key>.webp                           a small picture of it
index.parquet                                   one row per series, made from the records; if large, a folder of parts
claims/                                         while runs are under way, who does what (see `claims`)
runs/<run id>/summary.json                      the account of one run
runs/<run id>/qc.html                           the report on the dataset at the end of the run (see `look.report`)
runs/<run id>/performance.html                  Dask's performance report, if the run had a dashboard
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from importlib.metadata import version
from typing import Any

from dskprep import storage
from dskprep.dataset import layout, ome, own, target_place
from dskprep.dataset.facts import StoredObject
from dskprep.dataset.record import (
    STATUSES,
    Record,
    RecordName,
    check_key,
    parse_record,
    refuse_constant,
    to_json,
)
from dskprep.errors import DamagedDataset, UsageError
from dskprep.settings import PrepConfig, from_dict, preset, presets
from dskprep.storage import Entry

FORMAT = 1
"""Version of the layout of dataset.json and of the records."""
N_NAMED = 3
"""Settings that are named where those of a run are not those of the dataset."""


def create(target: str, config: PrepConfig, *, keys: str | None = None) -> dict[str, Any]:
    """Begin a dataset, or join one that has the same settings. Returns the content of its dataset.json.

    `keys` are `folder` or `hashed`; with None they are those of the dataset, and `folder` in a new one. Raises
    UsageError if the target holds a dataset with other settings (the message names three of them), other keys, or
    something else; InfrastructureError if it cannot be written, or has a link in place of a folder.
    """
    target_place.check(target)
    refuse_links(target)
    content: dict[str, Any] = {
        "format": FORMAT,
        "settings": config.as_dict(),
        "digest": config.digest(),
        "dskprep": version("dskprep"),
        **({"keys": "hashed"} if keys == "hashed" else {}),
    }
    if storage.create_if_absent(storage.join(target, "dataset.json"), to_json(content)):
        return content
    return _compare_settings(target, config, keys)


def check_settings(target: str, config: PrepConfig, keys: str | None = None) -> None:
    """Raise UsageError if no dataset of these settings and keys can begin or go on at the target (see `create`)."""
    target_place.check(target)
    if storage.exists(storage.join(target, "dataset.json")):
        _compare_settings(target, config, keys)


def _as_set(settings: dict[str, Any], name: str) -> str:
    """Return a setting as a settings file has it."""
    return f"{json.dumps(settings[name]):.60}" if name in settings else "not set"


def _compare_settings(target: str, config: PrepConfig, keys: str | None) -> dict[str, Any]:
    there, here = describe(target), config.as_dict()
    if keys not in (None, found := there.get("keys", "folder")):
        raise UsageError(
            f"{target}: holds a dataset with {found} keys, and {keys} ones are asked for; leave --keys out to go on "
            "with it, or choose another target"
        )
    if there["digest"] == config.digest():
        return there
    names = sorted({*there["settings"], *here}, key=lambda name: (name != "recipe", name))
    differences = [
        f"{name} is {_as_set(there['settings'], name)} there and {_as_set(here, name)} here"
        for name in names
        if there["settings"].get(name) != here.get(name)
    ]
    n_more = len(differences) - N_NAMED
    more = f", and {n_more} more" if n_more > 0 else ""
    same = next((name for name in presets() if preset(name).digest() == there["digest"]), None)
    advice = f"go on with the preset {same}" if same else "go on with its settings (--config takes its dataset.json)"
    raise UsageError(
        f"{target}: holds a dataset of other settings: {', '.join(differences[:N_NAMED])}{more}; "
        f"{advice}, or choose another target"
    )


def refuse_links(target: str) -> None:
    """Raise InfrastructureError if a folder of a dataset is a link, through which nothing is written or deleted."""
    folders = ["volumes", "thumbnails", "runs", "claims", *(f"records/{status}" for status in STATUSES)]
    storage.refuse_links(target, [f"{folder}/any" for folder in folders])


def describe(target: str) -> dict[str, Any]:
    """Return the content of dataset.json.

    Raises UsageError if the target is not a dataset, or one of another format; DamagedDataset if the file is damaged.
    """
    try:
        read = storage.read_metadata(storage.join(target, "dataset.json"))
    except FileNotFoundError as error:
        what = "no dataset.json" if storage.exists(target) else "there is no such folder"
        raise UsageError(f"{target}: there is no dskprep dataset here ({what}); name the target of a run") from error
    try:
        content: dict[str, Any] = json.loads(read, parse_constant=refuse_constant)
        json.dumps(content, ensure_ascii=False).encode()  # not every text that JSON can hold can be written again
    except (ValueError, RecursionError) as error:
        raise DamagedDataset(f"{target}: dataset.json is damaged: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UsageError(f"{target}: a dataset of format {found!s:.80}; this dskprep reads format {FORMAT}")
    if not (isinstance(content.get("settings"), dict) and isinstance(content.get("digest"), str)):
        raise DamagedDataset(f"{target}: dataset.json is damaged: it lacks the settings or their digest")
    return content


def settings_of(target: str) -> PrepConfig:
    """Return the settings of a dataset, with the defaults of those that it does not name.

    Raises as `describe` does, and UsageError if there is one that this dskprep does not know.
    """
    return from_dict(describe(target)["settings"], target)


def n_levels(target: str) -> int:
    """Return how many levels the volumes of a dataset have: 1 if nothing says more. Raises as `describe` does."""
    there = storage.exists(storage.join(target, "dataset.json"))
    found = describe(target)["settings"].get("levels", 1) if there else 1
    return found if isinstance(found, int) else 1


def has_hashed_keys(target: str) -> bool:
    """Tell whether the keys of a dataset are keyed digests of what the patients' folders are called."""
    return are_hashed(describe(target))


def are_hashed(description: dict[str, Any]) -> bool:
    """Tell the same of the content of a dataset.json."""
    return description.get("keys") == "hashed"


def record_names(target: str) -> Iterator[RecordName]:
    """Yield the names of all records. Only lists, reads none of them."""
    return (name for name, _ in list_records(target))


def list_records(target: str) -> Iterator[tuple[RecordName, Entry]]:
    """Yield the name of each record and its entry in the listing. Only lists, reads none of them.

    A file whose name no record can have is none: others' files are passed over, and so is a key that leads elsewhere.
    Raises InfrastructureError if the folder of the records, or one in it, is a link: what it leads to is not seen.
    """
    storage.refuse_links(target, [f"records/{status}/any" for status in STATUSES])
    for entry in storage.listing_below(storage.join(target, "records"), follow_links=False):
        if found := RecordName.of(entry.name):
            yield found, entry


def status_of(names: Iterable[RecordName], key: str, digest: str) -> tuple[str | None, list[str]]:
    """Return what became of a case, None if it is not done, and of the further series in its folder."""
    current = [name for name in names if name.digest == digest]
    status = min((name.status for name in current if name.key == key), key=STATUSES.index, default=None)
    return status, [name.status for name in current if name.key != key]


def written_keys(target: str) -> set[str]:
    """Return the keys of all written volumes. Raises InfrastructureError if their records cannot be listed."""
    if not storage.is_bucket(target):  # a folder that cannot be listed is an error here, and below passed over
        storage.listing(storage.join(target, "records/written"))
    return {name.key for name in record_names(target) if name.status == "written"}


def read_record(target: str, name: RecordName) -> Record:
    """Read a record. Raises DamagedDataset if it is damaged."""
    url = storage.join(target, name.path)
    return parse_record(storage.read_metadata(url), url)


def find_written(target: str, key: str, digest: str) -> list[Record]:
    """Return the `written` record of this input, preceded by those of its further series; empty if one is not there."""
    try:
        record = read_record(target, RecordName("written", key, digest))
        further = [name.partition("/") for name in record.further_series]
        return [read_record(target, RecordName(s, k, digest)) for s, _, k in further] + [record]
    except FileNotFoundError:
        return []


def volume_url(target: str, key: str) -> str:
    return storage.join(target, volume_name(key))


def volume_name(key: str) -> str:
    """Return where a volume lies below the dataset. Raises DamagedDataset if no series can have this key."""
    return f"volumes/{check_key(key)}.zarr"


def write_volume(target: str, key: str, objects: dict[str, bytes], done: Iterable[str] = ()) -> dict[str, StoredObject]:
    """Write the objects of a volume but those that are `done`, and return the size and SHA-256 of each.

    What dskprep wrote under this key before is deleted. Labels, and what others put there, stay.
    """
    folder, there = volume_name(key), volume_objects(target, key)
    if objects and (labels := {label for name in there if (label := layout.label_of(name)) not in ("", "lungs")}):
        labels |= {"lungs"} if "labels/lungs/zarr.json" in objects else set()
        objects = objects | {"labels/zarr.json": ome.labels_json(labels, ome.version_of(objects["zarr.json"]))}
    ours = own.of_volume(there, layout.n_levels(objects))
    storage.delete(target, [f"{folder}/{name}" for name in ours if name not in objects])
    left = sorted(objects.keys() - set(done), key=lambda name: (name != "zarr.json", name))  # by it a rest is known
    storage.write_many(target, {f"{folder}/{name}": objects[name] for name in left})
    return {name: StoredObject.of(content) for name, content in objects.items()}


def volume_objects(target: str, key: str) -> set[str]:
    """Return the names of all objects below a volume, those behind links to folders excepted.

    Raises InfrastructureError if the volume itself is a link.
    """
    storage.refuse_links(target, [f"{volume_name(key)}/any"])
    return {entry.name for entry in storage.listing_below(volume_url(target, key), follow_links=False)}


def thumbnail_name(key: str) -> str:
    """Return where a volume's thumbnail lies below the dataset. Raises DamagedDataset as `volume_name` does."""
    return f"thumbnails/{check_key(key)}.webp"


def write_thumbnail(target: str, key: str, content: bytes) -> StoredObject:
    """Write the thumbnail of a volume, and return its size and SHA-256."""
    storage.write_many(target, {thumbnail_name(key): content})
    return StoredObject.of(content)


def commit(target: str, record: Record) -> bool:
    """Write a record, which marks its series as done. If another run has written the record already, that one stays.

    Returns whether this call is known to have written it.
    """
    storage.refuse_links(target, [record.name.path])
    return storage.create(storage.join(target, record.name.path), record.to_json())


def withdraw_broken(target: str, records: Iterable[Record]) -> list[str]:
    """Delete those records of which an object is not there, or is cut, and return their paths.

    Who deletes and who commits at the same time both look afterwards, so that one of them sees what the other did.
    """
    broken = [record.name.path for record in records if record.is_written and _lacks_objects(target, record)]
    storage.delete(target, broken)
    return broken


def _lacks_objects(target: str, record: Record) -> bool:
    there = {e.name: e.size for e in storage.listing_below(volume_url(target, record.key), follow_links=False)}
    has_thumbnail = record.thumbnail is None or storage.exists(storage.join(target, thumbnail_name(record.key)))
    sizes = {name: each.n_bytes for name, each in record.objects.items() if name != "labels/zarr.json"}
    return not (has_thumbnail and sizes.items() <= there.items())


def forget(
    target: str, names: Collection[RecordName], *, kept: Collection[RecordName] = (), is_trial: bool = False
) -> list[str]:
    """Delete records, so that their series count as not done, and then the volumes that they describe.

    A volume that one of the records `kept` describes stays. Of the others only what dskprep writes is deleted, and in
    a trial nothing. Returns the names of what is deleted.
    """
    records = [name.path for name in names]
    sound = {name.key for name in kept if name.status == "written"}
    written = [name.key for name in names if name.status == "written" and name.key not in sound]
    storage.refuse_links(target, [*records, *(f"{volume_name(key)}/any" for key in written)])
    if not is_trial:
        storage.delete(target, records)
    deleted, levels = records, n_levels(target) if written else 1
    for key in dict.fromkeys(written):
        found = [f"{volume_name(key)}/{name}" for name in own.of_volume(volume_objects(target, key), levels)]
        if storage.exists(storage.join(target, thumbnail_name(key))):
            found.append(thumbnail_name(key))
        if not is_trial:
            storage.delete(target, found)
        deleted += found
    return deleted


def write_run(target: str, run_id: str, summary: dict[str, Any]) -> None:
    """Write the account of a run."""
    storage.write_many(target, {f"runs/{run_id}/summary.json": to_json(summary)})

"""Write and list what a dataset holds of labels: their objects, the tables of points, and the records of sources.

labels/<status>/<source>.<options>.<digest>.json   the record of a label source, written after all else of it
labels/points/<source>.<options>.<digest>.parquet  its points
volumes/<key>.zarr/labels/<name>/                  a label that a `written` record describes
annotations.parquet                                one row per label and point, made from these (see `annotations`)
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from dskprep import storage
from dskprep.dataset import layout, ome, own, store
from dskprep.dataset.facts import StoredObject
from dskprep.dataset.label_record import LabelRecord, LabelRecordName, StoredLabel, name_of, parse_label_record
from dskprep.dataset.record import STATUSES
from dskprep.errors import DamagedDataset, InfrastructureError, Refusal
from dskprep.patterns import matches
from dskprep.storage import Entry

MOST_LISTINGS = 20
"""How often the list of a volume's labels is written, while other workers add to it, before this is an error."""


def list_records(target: str) -> Iterator[tuple[LabelRecordName, Entry]]:
    """Yield the name of each label source's record and its entry in the listing, whose name is below `labels`.

    Raises InfrastructureError if the folder of the records, or one in it, is a link: what it leads to is not seen.
    """
    storage.refuse_links(target, [f"labels/{folder}/any" for folder in (*STATUSES, "points")])
    for entry in storage.listing_below(storage.join(target, "labels"), follow_links=False):
        if name := name_of(entry.name):
            yield name, entry


def read_record(target: str, name: LabelRecordName) -> LabelRecord:
    """Read a record. Raises DamagedDataset if it is damaged, FileNotFoundError if there is none."""
    url = storage.join(target, name.path)
    return parse_label_record(storage.read_metadata(url), url)


def write_label(
    target: str, key: str, label: str, objects: dict[str, bytes], owner: str, recorded: Collection[str] = ()
) -> dict[str, StoredObject]:
    """Write the objects of a label, and return the size and SHA-256 of each.

    `owner` is the source's name with its options, as it stands in the label's metadata, and `recorded` has all owners
    of the same source that have a record. Raises Refusal `label-exists` if another source, or somebody else, has put a
    label of this name there. One that a killed process has left of the same source is written over.
    """
    folder, group = store.volume_name(key), f"labels/{label}/zarr.json"
    if others := [name for name in objects if not name.startswith(f"labels/{label}/")]:
        raise ValueError(f"expected names of objects below labels/{label}, found {others[0]}")
    storage.refuse_links(target, [f"{folder}/{group}"])
    there = name_like(target, key, label)
    if there != label and not _is_left(target, owner_of(target, key, there), owner, recorded):
        raise Refusal(
            "label-exists",
            f"{key}: expected no label {label!r}, found {there!r}, and some disks take both names for one; give this "
            "one another name with --as, such as '{name}-{file}'",
        )
    # the label's metadata are created first, and only once: so of two workers that write one name, one is refused
    if not storage.create_if_absent(storage.join(target, folder, group), objects[group]):
        found = owner_of(target, key, label)
        if not _is_left(target, found, owner, recorded):
            source = found.rpartition(".")[0]
            theirs = f"of {source} (--forget {source} deletes all of that)" if found else "that is not dskprep's"
            raise Refusal(
                "label-exists",
                f"{key}: expected no label {label!r}, found one {theirs}; give this one another name with --as, such "
                "as '{name}-{file}'",
            )
        _delete_objects(target, key, label, kept=objects)
    storage.write_many(target, {f"{folder}/{name}": content for name, content in sorted(objects.items())})
    return {name: StoredObject.of(content) for name, content in sorted(objects.items())}


def _is_left(target: str, found: str, owner: str, recorded: Collection[str]) -> bool:
    """Tell whether a label of owner `found` is one that `owner` may write over (see `write_label`).

    Since `recorded` was made, another `annotate` may have written the same source under other options.
    """
    is_of_source = found.rpartition(".")[0] == owner.rpartition(".")[0]
    return found == owner or (is_of_source and found not in recorded and not _is_recorded(target, found))


def _is_recorded(target: str, owner: str) -> bool:
    names = (name for name, _ in list_records(target) if name.status == "written")
    return any(f"{name.source}.{name.options}" == owner for name in names)


def name_like(target: str, key: str, label: str) -> str:
    """Return the name of a label that is there under this name but for capitals, or the name itself if none is."""
    url = storage.join(store.volume_url(target, key), "labels")
    alike = [name for name in storage.folders(url) if name.casefold() == label.casefold() and name != label]
    return next((name for name in alike if storage.exists(storage.join(url, name, "zarr.json"))), label)


def owner_of(target: str, key: str, label: str, images: Collection[str] = ()) -> str:
    """Return the source, with its options, that wrote a label; "" if dskprep did not write it under this name here.

    A user's copy has the metadata of what it is a copy of, so these must name this label and this volume. Those of
    older versions do not name the volume, but its image: if `images` are given, it must be one of these digests.
    """
    return _written_by(target, key, label, images)[0]


def _written_by(target: str, key: str, label: str, images: Collection[str]) -> tuple[str, str | None]:
    """Return the owner of a label (see `owner_of`), and the digest of the image that it was drawn on, if it says."""
    try:
        place = storage.join(store.volume_url(target, key), "labels", label, "zarr.json")
        attributes = json.loads(storage.read_small(place))["attributes"]
        name, about = attributes["ome"]["multiscales"][0]["name"], attributes["dskprep"]
        owner, image = about["owner"], about.get("image")
        is_here = (
            about["volume"] == key and about.get("label", label) == label
            if "volume" in about
            else not images or image in images
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return "", None
    return (owner if isinstance(owner, str) and name == label and is_here else ""), image


def write_list(target: str, key: str) -> None:
    """Write which labels a volume has, so that readers of OME-Zarr find them; others' labels stay in it.

    Whoever adds a label writes the list and then looks whether it is still right. So whichever worker is the last to
    write has seen all labels. Nothing is written where there is no label.
    """
    url = storage.join(store.volume_name(key), "labels/zarr.json")
    version = _version(target, key)
    for _ in range(MOST_LISTINGS):
        names = label_names(target, key)
        content = ome.labels_json(names, version)
        try:
            is_right = storage.read_small(storage.join(target, url)) == content
        except FileNotFoundError:
            is_right = not names
        if is_right:
            return
        storage.write_many(target, {url: content})
    raise InfrastructureError(f"{target}: the labels of {key} change while they are listed; annotate again")


def _version(target: str, key: str) -> str:
    """Return the version of OME-Zarr that a volume has."""
    try:
        return ome.version_of(storage.read_small(storage.join(store.volume_url(target, key), "zarr.json")))
    except FileNotFoundError:
        return ome.VERSIONS[0]


def label_names(target: str, key: str) -> list[str]:
    """Return the names of all labels of a volume, also of those that others put there."""
    url = storage.join(store.volume_url(target, key), "labels")
    return [name for name in storage.folders(url) if storage.exists(storage.join(url, name, "zarr.json"))]


def write_points(target: str, name: LabelRecordName, content: bytes) -> StoredObject:
    """Write the table of a source's points."""
    storage.write_many(target, {name.points_path: content})
    return StoredObject.of(content)


def commit(target: str, record: LabelRecord) -> bool:
    """Write a record, which marks its source as done; return whether this call is known to have written it."""
    storage.refuse_links(target, [record.name.path])
    return storage.create(storage.join(target, record.name.path), record.to_json())


def withdraw_broken(target: str, records: Iterable[LabelRecord]) -> list[str]:
    """Delete those records of which an object is not there, and return their paths (see `store.withdraw_broken`)."""
    broken = [record.name.path for record in records if record.is_written and lacks_objects(target, record)]
    storage.delete(target, broken)
    return broken


def lacks_objects(target: str, record: LabelRecord) -> bool:
    """Tell whether an object that a record promises is not there; labels go with an image that is made anew."""
    if record.points and not storage.exists(storage.join(target, record.name.points_path)):
        return True
    promised: dict[str, set[str]] = defaultdict(set)
    for label in record.written:
        promised[label.volume] |= label.objects.keys()
    for key, names in promised.items():
        url = storage.join(store.volume_url(target, key), "labels")
        there = {f"labels/{entry.name}" for entry in storage.listing_below(url, follow_links=False)}
        if not there >= names:
            return True
    return False


def forget(target: str, names: Collection[LabelRecordName], *, is_trial: bool = False) -> list[str]:
    """Delete records of label sources, and then their labels and points. Returns the names of what is deleted.

    A label that has meanwhile been written by another source stays, and so does what others put beside it.
    """
    deleted: list[str] = []
    for name in names:
        try:
            record = read_record(target, name)
        except FileNotFoundError:
            continue
        except DamagedDataset:  # nobody knows what it described; its labels know their owner, who writes over them
            deleted.append(name.path)
            if not is_trial:
                storage.delete(target, [name.path])
            continue
        paths = [name.path, *([name.points_path] if record.points else [])]
        if not is_trial:
            storage.delete(target, paths)
        deleted += paths + delete_labels(target, record, record.written, is_trial=is_trial)
    return deleted


def forget_matching(target: str, patterns: Collection[str], *, is_trial: bool = False) -> list[str]:
    """Delete the labels whose stored name matches a pattern, and whole sources whose name does.

    Returns the names of what is deleted.
    """
    deleted: list[str] = []
    for name in sorted(name for name, _ in list_records(target)):
        is_whole = matches(name.source, patterns)
        try:
            record = read_record(target, name)
        except DamagedDataset:  # nobody knows its labels; the source has a name
            deleted += forget(target, [name], is_trial=is_trial) if is_whole else []
            continue
        gone = [label for label in record.written if is_whole or matches(label.label, patterns)]
        left = [label for label in record.labels if label not in gone]
        if is_whole or (gone and not (any(label.is_written for label in left) or record.points)):
            deleted += forget(target, [name], is_trial=is_trial)
        elif gone:
            if not is_trial:
                storage.write_many(target, {name.path: record.changed(labels=tuple(left)).to_json()})
            deleted += delete_labels(target, record, gone, is_trial=is_trial)
    return deleted


def has_labels(target: str) -> bool:
    """Tell whether anything was ever annotated in a dataset."""
    return any(storage.folders(storage.join(target, "labels")))


def drop(target: str, key: str, image: str, former: Collection[str]) -> int:
    """Delete the labels of a volume that dskprep wrote on another image than the one of this digest, which comes now.

    Those of older versions do not name the volume: theirs must be one of the `former` images. Returns how many there
    were.
    """
    there = store.volume_objects(target, key)
    ours = own.of_labels(there, store.n_levels(target))
    found = {*filter(None, map(layout.label_of, there))} - {"lungs"}
    of_image = {label: _written_by(target, key, label, former or [""]) for label in sorted(found)}
    dropped = [label for label, (owner, drawn_on) in of_image.items() if owner and drawn_on != image]
    for label in dropped:
        names = [name for name in ours if name.startswith(f"labels/{label}/")]
        storage.delete(target, [f"{store.volume_name(key)}/{name}" for name in names])
    if dropped:
        write_list(target, key)
    return len(dropped)


def delete_labels(
    target: str, record: LabelRecord, labels: Iterable[StoredLabel], *, is_trial: bool = False
) -> list[str]:
    """Delete labels of a record from their volumes. Returns the names of the objects."""
    deleted: list[str] = []
    by_volume: dict[str, list[StoredLabel]] = defaultdict(list)
    for label in labels:
        if owner_of(target, label.volume, label.label) == f"{record.source}.{record.options}":
            by_volume[label.volume].append(label)
    for key, found in by_volume.items():
        there = store.volume_objects(target, key)
        paths = [f"{store.volume_name(key)}/{p}" for label in found for p in sorted(label.objects) if p in there]
        paths.sort(key=lambda path: path.count("/"), reverse=True)  # the group by which it is known goes last
        deleted += paths
        if not is_trial:
            storage.delete(target, paths)
            write_list(target, key)
    return deleted


def _delete_objects(target: str, key: str, label: str, kept: dict[str, Any]) -> None:
    """Delete what an earlier writing of a label left that this one does not write."""
    folder = f"labels/{label}"
    listed = storage.listing_below(storage.join(store.volume_url(target, key), folder), follow_links=False)
    there = [f"{folder}/{entry.name}" for entry in listed]
    old = [name for name in own.of_labels(there, store.n_levels(target)) if name not in kept]
    storage.delete(target, [f"{store.volume_name(key)}/{name}" for name in old])

"""Compare a dataset with what its records promise, and delete what is faulty."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dskprep import storage
from dskprep.dataset import label_store, layout, leftovers, ome, own, store, volume_rows
from dskprep.dataset.ahead import ahead
from dskprep.dataset.label_record import LabelRecordName, StoredLabel
from dskprep.dataset.promised import CANNOT_BE_READ, TRIES, read_object, read_record
from dskprep.dataset.record import Record, RecordName
from dskprep.errors import DamagedDataset, UsageError
from dskprep.storage.threads import Threads

AT_ONCE = 8
"""Volumes that are verified at the same time; each has one object in memory, of less than 100 MB."""

AHEAD = 64
"""Volumes that may be under way or finished while an earlier one, whose finding comes first, is still being read."""

SOUND = "a second reading finds no fault"

log = logging.getLogger("dskprep")


@dataclass(frozen=True)
class Finding:
    """The result for one written series: its faults, none if all is well.

    `additions` are the objects in its folder that are not dskprep's: no fault, and never deleted. `is_of_volume` is
    False for a damaged record of a series that was not written, and for a label source, whose name is `labels`.
    `unread` are those of the faults that say no more than that an object on a disk cannot be read now. `unrecorded` are
    labels of dskprep that no record has: an `annotate` writes them now, or was broken off. They are no fault.
    """

    key: str
    faults: tuple[str, ...]
    additions: tuple[str, ...] = ()
    is_of_volume: bool = True
    labels: LabelRecordName | None = None
    unread: tuple[str, ...] = ()
    unrecorded: tuple[str, ...] = ()

    @property
    def is_damaged(self) -> bool:
        """Whether it is known to be faulty; what cannot be read may be whole."""
        return len(self.faults) > len(self.unread)


def verify(target: str | os.PathLike[str]) -> Iterator[Finding]:
    """Read every object of every written volume again, and compare it with what was recorded when it was written.

    Parameters
    ----------
    target
        The dataset, as a path or URL.

    Yields
    ------
    Finding
        For each written volume, in the order of the keys: what is wrong with its objects and its thumbnail, or
        nothing. An object that is missing, has another size or SHA-256, or would be one of the volume and does not
        belong there is a fault, and so is another shape, and a file on a disk that cannot be read. What others added
        is named, and no fault. Then for each other record that is damaged, and for each label source.

    Raises
    ------
    UsageError
        If there is no dataset.
    DamagedDataset
        If there are volumes, and no record of any.

    Examples
    --------
    >>> damaged = {finding.key for finding in dskprep.verify("scans-1mm") if finding.is_damaged}  # doctest: +SKIP
    >>> dskprep.forget("scans-1mm", damaged)  # doctest: +SKIP
    """
    target = storage.absolute(target)
    store.describe(target)
    names = sorted(store.record_names(target), key=lambda name: (name.status != "written", name))
    if not names or names[0].status != "written":
        leftovers.refuse_volumes(target, "clean --without-records deletes them")
    with Threads(AT_ONCE, "verify") as threads:
        try:
            yield from filter(None, ahead(names, lambda name: threads.submit(_check_any, target, name), AHEAD))
        finally:
            threads.shutdown(cancel_futures=True)
    for name, _ in sorted(label_store.list_records(target)):
        yield _check_labels(target, name)


def forget(target: str | os.PathLike[str], keys: Collection[str], *, is_trial: bool = False) -> list[str]:
    """Delete the records of these written volumes, and those that are damaged, so that the next run makes them again.

    What dskprep wrote of the volumes is deleted too. What others added to them stays, and so does a record that cannot
    be read, with its volume; a warning of the logger `dskprep` names it.

    Parameters
    ----------
    target
        The dataset, as a path or URL.
    keys
        The keys of the volumes; one that is not written is passed over. Where a record of a key is damaged and its
        volume has another one, the volume is read: it stays unless it is damaged.
    is_trial
        Delete nothing.

    Returns
    -------
    list of str
        The name of each object that is deleted, or in a trial would be.

    Raises
    ------
    UsageError
        If `keys` is one text: each key that is a part of it would be meant.
    InfrastructureError
        If the volume, or a folder of the dataset, is a link. Then nothing is deleted.

    Examples
    --------
    >>> dskprep.forget("scans-1mm", ["LIDC-0314"])  # doctest: +SKIP
    """
    if isinstance(keys, str):
        raise UsageError(f"keys must be a list of keys, such as [{keys!r:.100}], not one text; nothing was deleted")
    return _forget(storage.absolute(target), frozenset(keys), is_trial=is_trial)


def forget_damaged(
    target: str, keys: Collection[str], labels: Collection[LabelRecordName], *, is_trial: bool = False
) -> list[str]:
    """Forget what `verify` found damaged: volumes and label sources. What a second reading finds sound stays."""
    target, still = storage.absolute(target), []
    for name in labels:
        if _check_labels(target, name).is_damaged:
            still.append(name)
        else:
            log.warning(f"{name.path} stays: {SOUND}")
    names = _forget(target, frozenset(keys), is_trial=is_trial, keeps_sound=True)
    return names + label_store.forget(target, still, is_trial=is_trial)


def _forget(target: str, keys: Collection[str], *, is_trial: bool, keeps_sound: bool = False) -> list[str]:
    names = [name for name in store.record_names(target) if name.key in keys]
    read = {name: read_record(target, name, store.read_record) for name in names}
    damaged = {name for name, record in read.items() if isinstance(record, str)}
    unread = {name for name, record in read.items() if isinstance(record, storage.UnreadableFile)}
    for name in sorted(unread):
        log.warning(f"{name.path} stays: it cannot be read")
    keys_of_damaged = {name.key for name in damaged}
    written = {name for name in names if name.status == "written"} - damaged - unread
    doubted = {name for name in written if keeps_sound or name.key in keys_of_damaged}
    sound = {name for name in doubted if not _check(target, name).is_damaged}
    for name in sorted(sound) if keeps_sound else ():
        log.warning(f"{name.path} stays: {SOUND}")
    return store.forget(target, sorted(damaged | (written - sound)), kept=sound | unread, is_trial=is_trial)


def refuse_if_all_are_gone(target: str, volumes: Collection[str], findings: Iterable[Finding]) -> None:
    """Raise DamagedDataset if several volumes are all gone, or all their thumbnails: they were not lost one by one."""
    pictures = {f.key for f in findings if f.faults == (f"{store.thumbnail_name(f.key)} is missing",)}
    if len(volumes) > 1 and pictures >= set(volumes):
        raise DamagedDataset(
            f"{target}: expected {len(volumes)} pictures in thumbnails/, found none, and deleted no volume for that; "
            "put them back; if they are lost, dskprep.forget of the keys lets the next run make all anew"
        )
    there = storage.listing_below(storage.join(target, "volumes"), follow_links=False)
    if len(volumes) > 1 and next(iter(there), None) is None:  # not folders: some stores keep empty ones
        raise DamagedDataset(
            f"{target}: expected {len(volumes)} volumes in volumes/, found none, and deleted nothing; if they lie "
            "elsewhere, as on a disk that is not mounted, put them back; if they are lost, delete records/, then run"
        )


def _check_any(target: str, name: RecordName) -> Finding | None:
    """Return the finding of a record; None if it is of a series that was not written, and is whole."""
    finding = _check(target, name)
    return finding if finding.is_of_volume or finding.faults else None


def _check(target: str, name: RecordName) -> Finding:
    record, is_of_volume = read_record(target, name, store.read_record), name.status == "written"
    try:
        if isinstance(record, storage.UnreadableFile):
            raise record
        if isinstance(record, str):
            return Finding(name.key, (record,), is_of_volume=is_of_volume)
        return _check_volume(target, name, record) if is_of_volume else Finding(name.key, (), is_of_volume=False)
    except storage.UnreadableFile as error:  # its record, or what is needed to know whose an object is
        unread = (f"{CANNOT_BE_READ}{error}",)
        return Finding(name.key, unread, is_of_volume=is_of_volume, unread=unread)


def _check_volume(target: str, name: RecordName, record: Record) -> Finding:
    volume, thumbnail = store.volume_url(target, name.key), store.thumbnail_name(name.key)
    there = {entry.name for entry in storage.listing_below(volume, follow_links=False)}
    faults = [f"{path} is missing" for path in sorted(record.objects.keys() - there)]
    promised_labels = _promised_labels(target, record, there)
    unrecorded = {
        label
        for label in {*filter(None, map(layout.label_of, there))} - promised_labels - {"lungs"}
        if label_store.owner_of(target, name.key, label)
    }
    mine = promised_labels | unrecorded
    n_levels = layout.n_levels(record.objects)
    extra, ours = there - record.objects.keys(), own.of_volume(there, n_levels)
    extra -= {n for n in own.of_labels(extra, n_levels) if n.split("/")[1] in mine}
    if ome.LIST in extra and mine and _lists(target, name.key, set()):
        extra.remove(ome.LIST)
    extra -= {n for n in extra if own.is_unfinished(f"{store.volume_name(name.key)}/{n}")}
    faults += [f"{path} does not belong there" for path in sorted(extra.intersection(ours))]
    labels_of_run = {"lungs"} & set(map(layout.label_of, record.objects))
    promised = [(path, storage.join(volume, path), each) for path, each in record.objects.items() if path in there]
    if record.thumbnail is not None:
        promised.append((thumbnail, storage.join(target, thumbnail), record.thumbnail))
    for path, url, expected in promised:
        content, fault = read_object(url, expected, (record.pending or {}).get(path))
        if fault and not (path == ome.LIST and _lists(target, name.key, labels_of_run)):
            faults.append(f"{path} {fault}")
        elif path == "0/zarr.json" and record.geometry:
            shape, recorded = _shape(content), list(record.geometry.shape)
            if shape != recorded:
                faults.append(f"the shape is {shape} instead of {recorded}")
    additions = tuple(sorted(extra.difference(ours)))
    return Finding(name.key, tuple(faults), additions, unread=_unread(faults), unrecorded=tuple(sorted(unrecorded)))


def _promised_labels(target: str, record: Record, there: Collection[str]) -> set[str]:
    """Return the labels of a volume that have a record; where it has none, the records are not looked at."""
    of_labels = {path.split("/")[1] for path in there if path.startswith("labels/")} - {"lungs", "zarr.json"}
    return volume_rows.labels_of_volume(target, record.key, record.input_digest) if of_labels else set()


def _unread(faults: Iterable[str]) -> tuple[str, ...]:
    return tuple(fault for fault in faults if f" {CANNOT_BE_READ}" in fault)


def _lists(target: str, key: str, labels: Collection[str]) -> bool:
    """Tell whether the list of a volume's labels is one that dskprep writes, and has these.

    It may have others: a user's, or those that an `annotate` adds or forgets just now.
    """
    for _ in range(TRIES):
        with contextlib.suppress(FileNotFoundError):
            listed = ome.listed_labels(storage.read_small(storage.join(store.volume_url(target, key), ome.LIST)))
            if listed is not None and listed.issuperset(labels):
                return True
    return False


def _check_labels(target: str, name: LabelRecordName) -> Finding:
    """Return what is wrong with the labels and points of a source."""
    record = read_record(target, name, label_store.read_record)
    if isinstance(record, str):
        return Finding(name.source, (record,), is_of_volume=False, labels=name)
    if isinstance(record, storage.UnreadableFile):
        unread = (f"{CANNOT_BE_READ}{record}",)
        return Finding(name.source, unread, is_of_volume=False, labels=name, unread=unread)
    promised = [
        (f"{store.volume_name(label.volume)}/{path}", each, label.pending.get(path))
        for label in record.written
        for path, each in label.objects.items()
    ]
    promised += [(name.points_path, record.points, None)] if record.points else []
    read = ((path, read_object(storage.join(target, path), each, pending)[1]) for path, each, pending in promised)
    faults = [f"{path} {fault}" for path, fault in read if fault]
    faults += [fault for label in record.written if (fault := _fault_of_list(target, label))]
    return Finding(name.source, tuple(faults), is_of_volume=False, labels=name, unread=_unread(faults))


def _fault_of_list(target: str, label: StoredLabel) -> str:
    """Return what is wrong with the list of labels of the volume of a label, if that lacks it."""
    path = f"{store.volume_name(label.volume)}/{ome.LIST}"
    try:
        return "" if _lists(target, label.volume, {label.label}) else f"{path} does not list {label.label}"
    except storage.UnreadableFile as error:
        return f"{path} {CANNOT_BE_READ}{error}"


def _shape(content: bytes) -> Any:
    """Return the shape in the metadata of an array; None if there is none."""
    try:
        return json.loads(content)["shape"]
    except (ValueError, KeyError, TypeError, RecursionError):  # as recorded, but the record may be a stranger's
        return None

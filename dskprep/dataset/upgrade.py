"""Bring the metadata of a dataset to OME-Zarr 0.6, without touching a voxel.

An object that is about to change is first promised in the record, beside the one that is there. Then it is written, and
at last the record keeps the new promise alone. So whenever this is stopped, every volume is as its record says, and the
next call goes on where it was stopped. What comes of it is what a run with `ome_zarr = "0.6"` writes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dskprep import storage
from dskprep.dataset import annotations as annotated
from dskprep.dataset import claims, index, label_store, leftovers, ome, status, store
from dskprep.dataset.facts import StoredObject
from dskprep.dataset.label_record import LabelRecordName, StoredLabel
from dskprep.dataset.record import Record, RecordName, to_json
from dskprep.dataset.verification import Finding
from dskprep.errors import DamagedDataset, UsageError
from dskprep.settings import from_dict
from dskprep.storage.threads import Threads

AT_ONCE = 8
"""Volumes that are upgraded at the same time."""
GROUPS = ("zarr.json", ome.LIST, "labels/lungs/zarr.json")
"""The objects of a volume that say where it lies. Those of its arrays stay as they are."""


def upgrade(target: str | os.PathLike[str], *, is_trial: bool = False) -> Iterator[Finding]:
    """Bring the metadata of all volumes and labels of a dataset to OME-Zarr 0.6. No object with voxels is touched.

    It may be stopped at any time and called again; `verify` finds no fault before, meanwhile and after. The setting
    `ome_zarr` of the dataset becomes 0.6 first, so that a run goes on with settings that say so.

    Parameters
    ----------
    target
        The dataset, as a path or URL.
    is_trial
        Change nothing.

    Yields
    ------
    Finding
        For each volume, and each label source, that is upgraded, or in a trial would be. If it has faults it is
        left as it is: one of these objects is missing, or not as it was recorded.

    Raises
    ------
    UsageError
        If there is no dataset, or a run is under way on it.

    Examples
    --------
    >>> [finding.key for finding in dskprep.upgrade("scans-1mm") if finding.faults]  # doctest: +SKIP
    []
    """
    target = storage.absolute(target)
    described = store.describe(target)
    for run in status.runs(target):
        if not run.is_dead and run.heard_at > claims.utc(time.time() - leftovers.LEASE_S):
            raise UsageError(f"{target}: the run {run.run_id} is under way on {run.host}; upgrade when it has ended")
    config = dataclasses.replace(from_dict(described["settings"], f"{target}: dataset.json"), ome_zarr="0.6")
    if not is_trial and described["digest"] != config.digest():
        changed = described | {"settings": config.as_dict(), "digest": config.digest()}
        storage.write_many(target, {"dataset.json": to_json(changed)})
    with Threads(AT_ONCE, "upgrade") as threads:
        try:
            volume = functools.partial(_upgrade_volume, target, config.digest(), is_trial)
            yield from filter(None, threads.map(volume, sorted(store.record_names(target))))
            source = functools.partial(_upgrade_labels, target, is_trial)
            names = sorted(name for name, _ in label_store.list_records(target) if name.status == "written")
            yield from filter(None, threads.map(source, names))
        finally:
            threads.shutdown(cancel_futures=True)
    if not is_trial:
        index.write(target)
        annotated.write(target)


def _upgrade_volume(target: str, digest: str, is_trial: bool, name: RecordName) -> Finding | None:
    """Upgrade a volume and its record; of a series that was not written, only the latter, which is no finding."""
    try:
        record = store.read_record(target, name)
        if record.settings_digest == digest and not record.pending:
            return None
        new = _groups_of(target, record, digest) if record.is_written else {}
    except (DamagedDataset, FileNotFoundError, storage.UnreadableFile) as error:
        return Finding(name.key, (_in_words(error),), is_of_volume=name.status == "written")
    if not is_trial:
        promised = _promised(record, new)
        if promised and promised != record.pending:
            record = record.changed(pending=promised)
            storage.write_many(target, {name.path: record.to_json()})
        storage.write_many(target, {f"{store.volume_name(name.key)}/{path}": content for path, content in new.items()})
        record = record.changed(objects=record.objects | promised, pending=None, settings_digest=digest)
        storage.write_many(target, {name.path: record.to_json()})
    return Finding(name.key, ()) if record.is_written else None


def _groups_of(target: str, record: Record, digest: str) -> dict[str, bytes]:
    """Return the upgraded metadata of a volume, by their path below it. Raises DamagedDataset."""
    volume, new = store.volume_url(target, record.key), {}
    affine = _affine_of(record)
    for path in GROUPS:
        try:
            content = storage.read_small(storage.join(volume, path))
        except FileNotFoundError:
            if path in record.objects:
                raise
            continue
        known = (record.objects.get(path), (record.pending or {}).get(path))
        if path == ome.LIST and ome.listed_labels(content) is None:
            continue
        if path != ome.LIST and StoredObject.of(content) not in known:
            raise DamagedDataset(f"{storage.join(volume, path)}: was altered; `dskprep verify --forget`, and run again")
        new[path] = _convert(storage.join(volume, path), content, affine, digest if path == "zarr.json" else "")
    return new


def _promised(record: Record, new: dict[str, bytes]) -> dict[str, StoredObject]:
    """Return what the record will say of upgraded objects: of the list of labels, what a run has written."""
    contents = new | ({ome.LIST: ome.labels_json(["lungs"], "0.6")} if ome.LIST in record.objects else {})
    return {path: StoredObject.of(content) for path, content in contents.items() if path in record.objects}


def _upgrade_labels(target: str, is_trial: bool, name: LabelRecordName) -> Finding | None:
    """Upgrade the labels of one source, and its record."""
    new: dict[str, bytes] = {}
    try:
        record = label_store.read_record(target, name)
        labels = [_promise_label(target, label, new) if label.is_written else label for label in record.labels]
    except (DamagedDataset, FileNotFoundError, storage.UnreadableFile) as error:
        return Finding(name.source, (_in_words(error),), is_of_volume=False, labels=name)
    if all(label.pending.items() <= label.objects.items() for label in labels):
        return None
    if not is_trial:
        storage.write_many(target, {name.path: record.changed(labels=tuple(labels)).to_json()})
        storage.write_many(target, new)
        labels = [label.changed(objects=label.objects | label.pending, pending={}) for label in labels]
        storage.write_many(target, {name.path: record.changed(labels=tuple(labels)).to_json()})
    return Finding(name.source, (), is_of_volume=False, labels=name)


def _promise_label(target: str, label: StoredLabel, new: dict[str, bytes]) -> StoredLabel:
    """Return a label that promises its upgraded group, and add that to `new`. Raises DamagedDataset."""
    group = f"labels/{label.label}/zarr.json"
    path = f"{store.volume_name(label.volume)}/{group}"
    content = storage.read_small(storage.join(target, path))
    if StoredObject.of(content) not in (label.objects.get(group), label.pending.get(group)):
        raise DamagedDataset(
            f"{storage.join(target, path)}: was altered; `dskprep verify --forget`, and annotate again"
        )
    affine = _affine_of(store.read_record(target, RecordName("written", label.volume, label.image)))
    new[path] = _convert(storage.join(target, path), content, affine)
    return label.changed(pending={group: StoredObject.of(new[path])})


def _in_words(error: Exception) -> str:
    return f"{error}: is gone" if isinstance(error, FileNotFoundError) else str(error)


def _affine_of(record: Record) -> NDArray[np.float64]:
    if record.geometry is None:
        raise DamagedDataset(f"{record.key}: its record does not say where the volume lies")
    return record.geometry.matrix()


def _convert(url: str, content: bytes, affine: NDArray[np.float64], digest: str = "") -> bytes:
    """Return the metadata of a group in version 0.6, with the digest of the settings if there is one."""
    try:
        attributes = json.loads(content)["attributes"]
        attributes["ome"] = ome.to_06(attributes["ome"], affine)
        if digest:
            attributes["dskprep"]["settings_digest"] = digest
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DamagedDataset(f"{url}: is damaged; `dskprep verify` finds all such volumes") from error
    return ome.group_json(attributes)

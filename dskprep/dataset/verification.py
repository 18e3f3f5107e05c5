"""Compare a dataset with what its records promise, and delete what no record speaks of."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dskprep import keys, storage
from dskprep.dataset import claims, own, store
from dskprep.dataset.record import Record, RecordName, StoredObject
from dskprep.errors import DamagedDataset

AT_ONCE = 8
"""Volumes that are verified at the same time; each has one object in memory, of less than 100 MB."""

AHEAD = 64
"""Volumes that may be under way or finished while an earlier one, whose finding comes first, is still being read."""

CLEAN_OLDER_THAN_S = 24 * 3600.0
"""Leftovers that are deleted are at least a day old by default: longer than a patient takes, retries included."""


LEASE_S = 300.0
"""A run whose lease is younger may be under way, whatever is asked for. Leases are renewed every ten seconds."""


@dataclass(frozen=True)
class Finding:
    """The result for one written series: its faults, none if all is well.

    `additions` are the objects in its folder that are not dskprep's: no fault, and never deleted.
    """

    key: str
    faults: tuple[str, ...]
    additions: tuple[str, ...] = ()


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
        belong there is a fault, and so is another shape. What others added is named, and no fault. Then for each
        other record that is damaged.

    Raises
    ------
    UsageError
        If there is no dataset.

    Examples
    --------
    >>> faulty = {finding.key for finding in dskprep.verify("scans-1mm") if finding.faults}  # doctest: +SKIP
    >>> dskprep.forget("scans-1mm", faulty)  # doctest: +SKIP
    """
    target = storage.absolute(target)
    store.describe(target)
    names = sorted(store.record_names(target), key=lambda name: (name.status != "written", name))
    under_way: deque[Future[Finding | None]] = deque()
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="verify") as threads:
        try:
            for name in names:
                under_way.append(threads.submit(_check, target, name))
                if len(under_way) == AHEAD and (finding := under_way.popleft().result()):
                    yield finding
            while under_way:
                if finding := under_way.popleft().result():
                    yield finding
        finally:
            threads.shutdown(cancel_futures=True)


def forget(target: str | os.PathLike[str], keys: Collection[str], *, is_trial: bool = False) -> list[str]:
    """Delete the records of these written volumes, and those that are damaged, so that the next run makes them again.

    What dskprep wrote of the volumes is deleted too. What others added to them stays.

    Parameters
    ----------
    target
        The dataset, as a path or URL.
    keys
        The keys of the volumes; one that is not written is passed over.
    is_trial
        Delete nothing.

    Returns
    -------
    list of str
        The name of each object that is deleted, or in a trial would be.

    Raises
    ------
    InfrastructureError
        If the volume, or a folder of the dataset, is a link. Then nothing is deleted.

    Examples
    --------
    >>> dskprep.forget("scans-1mm", ["LIDC-0314"])  # doctest: +SKIP
    """
    target = storage.absolute(target)
    names = [name for name in store.record_names(target) if name.key in keys]
    lost = [name for name in names if name.status == "written" or isinstance(_read_record(target, name), str)]
    return store.forget(target, lost, is_trial=is_trial)


def clean(
    target: str | os.PathLike[str], *, older_than_s: float = CLEAN_OLDER_THAN_S, is_trial: bool = False
) -> Iterator[str]:
    """Delete what runs that died have left behind.

    That is: what dskprep wrote of volumes without a `written` record, their thumbnails, unfinished local files, and
    claims if no run is under way. What else lies there stays, and so does what is behind a link. Safe during a run:
    should a run commit a volume just while it is deleted, its record goes too, and a run makes it again.

    Parameters
    ----------
    target
        The dataset, as a path or URL.
    older_than_s
        A volume of which something is younger may belong to a run under way, and stays; in seconds.
    is_trial
        Delete nothing.

    Yields
    ------
    str
        The name of each object that is deleted, or in a trial would be. Objects are deleted while the names are
        taken, not by the call.

    Raises
    ------
    UsageError
        If there is no dataset.
    InfrastructureError
        If a folder of the dataset is a link, or cannot be listed.

    Examples
    --------
    >>> list(dskprep.clean("scans-1mm", is_trial=True))  # doctest: +SKIP
    """
    target = storage.absolute(target)
    store.describe(target)
    store.refuse_links(target)
    before_s = time.time() - older_than_s
    written = store.written_keys(target)
    cleaned: set[str] = set()
    try:
        for key, names in _leftovers(target, written, before_s):
            if not is_trial:
                cleaned.add(key)
                storage.delete(target, names)
            yield from names
    finally:
        harmed = _withdraw(target, cleaned - {""})
    yield from harmed


def _leftovers(target: str, written: set[str], before_s: float) -> Iterator[tuple[str, list[str]]]:
    """Yield names below the target that are left over, with the key that they belong to; unfinished files have none.

    A volume of which anything is younger may be under way as a whole: a run writes over what an earlier one left.
    """

    def is_old(entry: storage.Entry) -> bool:
        return 0 < entry.modified_s < before_s  # 0: the store does not say

    if not storage.is_bucket(target):  # a bucket never holds unfinished files
        yield from (("", [path for path, e in files if is_old(e)]) for files in _unfinished(target))
    yield "", _dead_claims(target, before_s)
    under_way = set()
    for key, folder in _keys(storage.folders(storage.join(target, "volumes")), ".zarr", written):
        url = storage.join(target, "volumes", folder)
        entries = {entry.name: entry for entry in storage.listing_below(url, follow_links=False)}
        ours = own.of_volume(entries)
        if not all(is_old(entries[name]) for name in ours):
            under_way.add(key)
        elif _is_volume(url, entries.keys(), ours):
            yield key, [path for name in ours if not own.is_unfinished(path := f"volumes/{folder}/{name}")]
    thumbnails = {entry.name: entry for entry in storage.listing(storage.join(target, "thumbnails"))}
    for key, name in _keys(thumbnails, ".webp", written | under_way):
        path = f"thumbnails/{name}"
        if is_old(thumbnails[name]) and _is_thumbnail(storage.join(target, path)):
            yield key, [path]


def _dead_claims(target: str, before_s: float) -> list[str]:
    """Return the names of all leases and claims below the target, if no run is under way."""
    entries = [entry for part in claims.listing(target) for entry in part.values()]
    are_old = all(0 < e.modified_s < min(before_s, time.time() - LEASE_S) for e in entries)
    return [f"claims/{entry.name}" for entry in entries] if are_old else []


def _keys(names: Iterable[str], suffix: str, others: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the key in each name, and the name, if it is that of a series and not one of the others."""
    for name in names:
        key = name.removesuffix(suffix)
        if key != name and key not in others and keys.is_of_series(key):
            yield key, name


def _unfinished(target: str) -> Iterator[list[tuple[str, storage.Entry]]]:
    """Yield the unfinished files of each folder that dskprep writes into, by their path below the target."""
    yield [(e.name, e) for e in storage.listing(target) if own.is_unfinished(e.name)]
    for place in ("claims", "records", "runs", "thumbnails", "volumes"):
        for folder in storage.walk(storage.join(target, place), follow_links=False):
            path = f"{place}/{folder.path}" if folder.path else place
            yield [(p, e) for e in folder.entries if own.is_unfinished(p := f"{path}/{e.name}")]


def _is_volume(url: str, names: Collection[str], ours: Collection[str]) -> bool:
    """Tell whether dskprep wrote a volume: its metadata say so, or it has none yet and holds nothing else."""
    if "zarr.json" not in names:
        return len(names) == len(ours)
    try:
        return isinstance(json.loads(storage.read(storage.join(url, "zarr.json")))["attributes"]["dskprep"], dict)
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return False


def _is_thumbnail(url: str) -> bool:
    try:
        return own.is_thumbnail(storage.read_head(url, own.THUMBNAIL_HEAD_BYTES))
    except storage.ObjectChanged:
        return False


def _withdraw(target: str, cleaned: Collection[str]) -> list[str]:
    """Delete the records that were committed while the objects of their volumes were deleted; return their names."""
    records = []
    for name in store.record_names(target) if cleaned else ():
        if name.status == "written" and name.key in cleaned:
            with contextlib.suppress(FileNotFoundError, DamagedDataset):
                records.append(store.read_record(target, name))
    return store.withdraw_broken(target, records)


def _read_record(target: str, name: RecordName) -> Record | str:
    """Return a record, or why it cannot be read."""
    try:
        return store.read_record(target, name)
    except DamagedDataset as error:
        return str(error)
    except FileNotFoundError:
        return f"{name.path} is missing"


def _check(target: str, name: RecordName) -> Finding | None:
    """Return the finding of a volume; of a series that was not written, only one that its record is damaged."""
    record = _read_record(target, name)
    if isinstance(record, str):
        return Finding(name.key, (record,))
    if not record.is_written:
        return None
    volume, thumbnail = store.volume_url(target, name.key), store.thumbnail_name(name.key)
    there = {entry.name for entry in storage.listing_below(volume)}
    faults = [f"{path} is missing" for path in sorted(record.objects.keys() - there)]
    extra, ours = there - record.objects.keys(), own.of_volume(there)
    faults += [f"{path} does not belong there" for path in sorted(extra.intersection(ours))]
    promised = [(path, storage.join(volume, path), each) for path, each in record.objects.items() if path in there]
    if record.thumbnail is not None:
        promised.append((thumbnail, storage.join(target, thumbnail), record.thumbnail))
    for path, url, expected in promised:
        content, fault = _read(url, expected)
        if fault:
            faults.append(f"{path} {fault}")
        elif path == "0/zarr.json" and record.geometry:
            shape, recorded = json.loads(content)["shape"], list(record.geometry.shape)
            if shape != recorded:
                faults.append(f"the shape is {shape} instead of {recorded}")
    return Finding(name.key, tuple(faults), tuple(sorted(extra.difference(ours))))


def _read(url: str, expected: StoredObject) -> tuple[bytes, str]:
    """Read an object; return its content, and what is wrong with it, or ""."""
    try:
        content = storage.read(url)
    except FileNotFoundError:
        return b"", "is missing"
    found = StoredObject.of(content)
    if found.n_bytes != expected.n_bytes:
        return content, f"has {found.n_bytes} bytes instead of {expected.n_bytes}"
    return content, "" if found == expected else "was altered"

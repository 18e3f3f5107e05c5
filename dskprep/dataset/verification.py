"""Compare a dataset with what its records promise, and delete what no record speaks of."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dskprep import storage
from dskprep.dataset import store
from dskprep.dataset.record import Record, RecordName, StoredObject
from dskprep.errors import DamagedDataset

AT_ONCE = 8
"""Volumes that are verified at the same time; each has one object in memory, of less than 100 MB."""

AHEAD = 64
"""Volumes that may be under way or finished while an earlier one, whose finding comes first, is still being read."""

CLEAN_OLDER_THAN_S = 24 * 3600.0
"""Leftovers that are deleted are at least a day old by default: longer than a patient takes, retries included."""


@dataclass(frozen=True)
class Finding:
    """The result for one written series: its faults, none if all is well."""

    key: str
    faults: tuple[str, ...]


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
        nothing. An object that is missing, has another size or SHA-256, or does not belong there is a fault, and
        so is another shape. Then for each other record that is damaged.

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


def forget(target: str | os.PathLike[str], keys: Collection[str]) -> None:
    """Delete the records of these written volumes, and those that are damaged, so that the next run makes them again.

    Parameters
    ----------
    target
        The dataset, as a path or URL.
    keys
        The keys of the volumes; one that is not written is passed over.

    Examples
    --------
    >>> dskprep.forget("scans-1mm", ["LIDC-0314"])  # doctest: +SKIP
    """
    target = storage.absolute(target)
    names = [name for name in store.record_names(target) if name.key in keys]
    store.forget(
        target, [name for name in names if name.status == "written" or isinstance(_read_record(target, name), str)]
    )


def clean(
    target: str | os.PathLike[str], *, older_than_s: float = CLEAN_OLDER_THAN_S, is_trial: bool = False
) -> Iterator[str]:
    """Delete what runs that died have left behind.

    That is: the objects of volumes without a `written` record, and unfinished local files.

    Parameters
    ----------
    target
        The dataset, as a path or URL.
    older_than_s
        What is younger may belong to a run under way, and stays; in seconds.
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

    Examples
    --------
    >>> list(dskprep.clean("scans-1mm", is_trial=True))  # doctest: +SKIP
    """
    target = storage.absolute(target)
    store.describe(target)
    before_s = time.time() - older_than_s
    written = {name.key for name in store.record_names(target) if name.status == "written"}
    for place in _places(target, written):
        for folder in storage.walk(storage.join(target, place)):
            path = f"{place}/{folder.path}" if folder.path else place
            old = [e.name for e in folder.entries if e.modified_s < before_s and _is_leftover(path, e, written)]
            yield from (f"{path}/{name}" for name in old)
            if not is_trial:
                storage.delete(storage.join(target, path), old)


def _places(target: str, written: set[str]) -> list[str]:
    """Return the folders that may hold leftovers. A bucket never holds unfinished files, so there they are fewer."""
    if not storage.is_bucket(target):
        return ["volumes", "thumbnails", "records", "runs"]
    volumes = storage.folders(storage.join(target, "volumes"))
    return [f"volumes/{name}" for name in volumes if name.removesuffix(".zarr") not in written] + ["thumbnails"]


def _is_leftover(folder: str, entry: storage.Entry, written: set[str]) -> bool:
    if entry.name.endswith(storage.PART_SUFFIX):
        return True
    part, _, below = folder.partition("/")
    if part == "thumbnails":
        return entry.name.removesuffix(".webp") not in written
    return part == "volumes" and below.partition("/")[0].removesuffix(".zarr") not in written


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
    faults += [f"{path} does not belong there" for path in sorted(there - record.objects.keys())]
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
    return Finding(name.key, tuple(faults))


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

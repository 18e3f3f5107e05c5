"""Delete what no record of a dataset speaks of: what runs that died left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator

from dskprep import keys, storage
from dskprep.dataset import annotation_columns, claims, label_store, layout, ome, own, store
from dskprep.dataset import annotations as annotations_of
from dskprep.dataset.label_record import name_of, points_name_of
from dskprep.errors import DamagedDataset

log = logging.getLogger("dskprep")

CLEAN_OLDER_THAN_S = 24 * 3600.0
"""Leftovers that are deleted are at least a day old by default: longer than a patient takes, retries included."""


LEASE_S = 300.0
"""A run whose lease is younger may be under way, whatever is asked for. Leases are renewed every ten seconds."""


def clean(
    target: str | os.PathLike[str],
    *,
    older_than_s: float = CLEAN_OLDER_THAN_S,
    is_trial: bool = False,
    without_records: bool = False,
) -> Iterator[str]:
    """Delete what runs that died have left behind.

    That is: what dskprep wrote of volumes without a `written` record, their thumbnails, labels and points that no
    record of a label source has, unfinished local files, and claims if no run is under way. What else lies there stays,
    and so does what is behind a link. A volume without a record that is not known as dskprep's is named in a warning of
    the logger `dskprep`. Safe during a run: should a run commit a volume just while it is deleted, its record goes too,
    and a run makes it again.

    Parameters
    ----------
    target
        The dataset, as a path or URL.
    older_than_s
        A volume of which something is younger may belong to a run under way, and stays; in seconds.
    is_trial
        Delete nothing.
    without_records
        Delete volumes also if no volume has a record, and labels if no label has one. Without records all of them look
        like leftovers.

    Yields
    ------
    str
        The name of each object that is deleted, or in a trial would be. Objects are deleted while the names are
        taken, not by the call.

    Raises
    ------
    UsageError
        If there is no dataset.
    DamagedDataset
        If there are volumes, and no record of any: `records/` may have been lost. Nothing is deleted. If there are
        labels or points, and no record of any: these stay.
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
    if not (written or without_records):
        refuse_volumes(target, "clean --without-records deletes them")
    cleaned: set[str] = set()
    try:
        for owner, names in _leftovers(target, written, before_s, without_records=without_records):
            if not is_trial:
                cleaned.add(owner)
                storage.delete(target, names)
                _list_labels(target, names)
            yield from names
    finally:
        harmed = _withdraw(target, cleaned - {""})
    yield from harmed


def _list_labels(target: str, deleted: Iterable[str]) -> None:
    """Write the list of labels of the volume of a label whose objects were deleted, if it has one of dskprep's."""
    for path in deleted:
        folder, _, name = path.removeprefix("volumes/").partition("/")
        if layout.label_of(name) not in ("", "lungs"):
            with contextlib.suppress(FileNotFoundError):
                listed = storage.read_small(storage.join(target, "volumes", folder, ome.LIST))
                if ome.listed_labels(listed) is not None:
                    label_store.write_list(target, folder.removesuffix(".zarr"))


def refuse_volumes(target: str, way_on: str) -> None:
    """Raise DamagedDataset if there is a volume. Called where none has a record, as after a loss of `records/`."""
    levels = store.n_levels(target)
    for key, folder in _keys(storage.folders(storage.join(target, "volumes")), ".zarr", set()):
        url = storage.join(target, "volumes", folder)
        names = {entry.name for entry in storage.listing_below(url, follow_links=False)}
        ours = own.of_volume(names, levels)
        if ours and own.is_volume(url, names, ours):
            raise DamagedDataset(
                f"{target}: expected a record of each volume, found volumes such as {key} and no record of any; if "
                "records/ was lost, put it back, or run again, which makes the volumes anew; if they are what a run "
                f"left that died at its start, {way_on}"
            )


def _leftovers(
    target: str, written: set[str], before_s: float, *, without_records: bool
) -> Iterator[tuple[str, list[str]]]:
    """Yield names below the target that are left over, with what they belong to.

    That is a key, or a label source with its options; unfinished files have "".

    A volume of which anything is younger may be under way as a whole: a run writes over what an earlier one left.
    """

    def is_old(entry: storage.Entry) -> bool:
        return 0 < entry.modified_s < before_s  # 0: the store does not say

    if not storage.is_bucket(target):  # a bucket never holds unfinished files
        yield from (("", [path for path, e in files if is_old(e)]) for files in _unfinished(target))
    yield "", _dead_claims(target, before_s)
    under_way, levels = set(), store.n_levels(target)  # the former may also not be dskprep's
    for key, folder in _keys(storage.folders(storage.join(target, "volumes")), ".zarr", written):
        url = storage.join(target, "volumes", folder)
        entries = {entry.name: entry for entry in storage.listing_below(url, follow_links=False)}
        ours = own.of_volume(entries, levels)
        if not all(is_old(entries[name]) for name in ours):
            under_way.add(key)
        elif own.is_volume(url, entries.keys(), ours):
            yield key, [path for name in ours if not own.is_unfinished(path := f"volumes/{folder}/{name}")]
        elif any(not own.is_unfinished(f"volumes/{folder}/{name}") for name in ours):
            under_way.add(key)
            log.warning(f"volumes/{folder} stays: it has no record, and its metadata are not those that dskprep writes")
    thumbnails = {entry.name: entry for entry in storage.listing(storage.join(target, "thumbnails"))}
    for key, name in _keys(thumbnails, ".webp", written | under_way):
        path = f"thumbnails/{name}"
        if is_old(thumbnails[name]) and own.is_thumbnail_at(storage.join(target, path)):
            yield key, [path]
    of_labels = _of_labels(target, is_old)
    if (found := next(of_labels, None)) is None:
        return
    if not (without_records or any(name.status == "written" for name, _ in label_store.list_records(target))):
        raise DamagedDataset(
            f"{target}: expected a record of each label, found {found[1][0]} and no record of any; if labels/written "
            "was lost, put it back, or annotate again; if this is what an annotate left that died at its start, clean "
            "--without-records deletes it"
        )
    yield found
    yield from of_labels


def _of_labels(target: str, is_old: Callable[[storage.Entry], bool]) -> Iterator[tuple[str, list[str]]]:
    """Yield the names of labels and tables of points that dskprep wrote and no record of a label source has.

    With them come the source and its options.

    The objects of all volumes are listed for that, unless `labels/` holds nothing.
    """
    entries = list(storage.listing_below(storage.join(target, "labels"), follow_links=False))
    if not entries:
        return
    known = {record.points_path for entry in entries if (record := name_of(entry.name))}
    for entry in entries:
        record_name, path = points_name_of(entry.name), f"labels/{entry.name}"
        if record_name and path not in known and is_old(entry) and _are_points(storage.join(target, path)):
            yield f"{record_name.source}.{record_name.options}", [path]
    rows = annotations_of.current_table(target)
    unread = {name_of(path.removeprefix("labels/")) for path in annotations_of.damaged(rows)}
    kept = {f"{name.source}.{name.options}" for name in unread if name}  # nobody knows what such a record describes
    described = set(zip(rows["key"].to_pylist(), rows["label"].to_pylist(), strict=True))
    found: dict[tuple[str, str], dict[str, storage.Entry]] = defaultdict(dict)
    for entry in storage.listing_below(storage.join(target, "volumes"), follow_links=False):
        folder, _, name = entry.name.partition("/")
        parts = name.split("/")
        if parts[0] == "labels" and len(parts) > 2 and parts[1] != "lungs" and folder.endswith(".zarr"):
            found[folder.removesuffix(".zarr"), parts[1]][name] = entry
    n_levels, images = store.n_levels(target), defaultdict(list)
    for series in store.record_names(target):
        images[series.key].append(series.digest)
    for (key, label), objects in found.items():
        ours = own.of_labels(objects, n_levels)
        is_old_label = all(is_old(objects[name]) for name in ours)
        is_left = (key, label) not in described and keys.is_of_series(key) and is_old_label
        if is_left and (owner := label_store.owner_of(target, key, label, images[key])) and owner not in kept:
            paths = [f"{store.volume_name(key)}/{name}" for name in ours]
            yield owner, [path for path in paths if not own.is_unfinished(path)]


def _are_points(url: str) -> bool:
    """Tell whether dskprep wrote the table of points at this URL."""
    try:
        return annotation_columns.are_ours(storage.read_small(url, annotations_of.MOST_BYTES))
    except (FileNotFoundError, storage.ObjectChanged, storage.UnreadableFile):
        return False


def _dead_claims(target: str, before_s: float) -> list[str]:
    """Return the names of all leases and claims below the target, if no run is under way."""
    entries = [entry for part in claims.listing(target) for entry in part.values()]
    are_old = all(0 < e.modified_s < min(before_s, time.time() - LEASE_S) for e in entries)
    return [f"claims/{entry.name}" for entry in entries] if are_old else []


def _unfinished(target: str) -> Iterator[list[tuple[str, storage.Entry]]]:
    """Yield the unfinished files of each folder that dskprep writes into, by their path below the target."""
    yield [(e.name, e) for e in storage.listing(target) if own.is_unfinished(e.name)]
    for place in ("claims", "index.parquet", "labels", "records", "runs", "splits", "thumbnails", "volumes"):
        for folder in storage.walk(storage.join(target, place), follow_links=False):
            path = f"{place}/{folder.path}" if folder.path else place
            yield [(p, e) for e in folder.entries if own.is_unfinished(p := f"{path}/{e.name}")]


def _withdraw(target: str, cleaned: Collection[str]) -> list[str]:
    """Delete the records that were committed while objects of theirs were deleted; return their names.

    `cleaned` are keys of volumes, and label sources with their options.
    """
    records, of_labels = [], []
    for name in store.record_names(target) if cleaned else ():
        if name.status == "written" and name.key in cleaned:
            with contextlib.suppress(FileNotFoundError, DamagedDataset):
                records.append(store.read_record(target, name))
    for source, _ in label_store.list_records(target) if cleaned else ():
        if source.status == "written" and f"{source.source}.{source.options}" in cleaned:
            with contextlib.suppress(FileNotFoundError, DamagedDataset):
                of_labels.append(label_store.read_record(target, source))
    return store.withdraw_broken(target, records) + label_store.withdraw_broken(target, of_labels)


def _keys(names: Iterable[str], suffix: str, others: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the key in each name, and the name, if it is that of a series and not one of the others."""
    for name in names:
        key = name.removesuffix(suffix)
        if key != name and key not in others and keys.is_of_series(key):
            yield key, name

"""The labels of a stored volume, as annotations.parquet has them."""

from __future__ import annotations

import base64
import functools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dskprep import storage
from dskprep.dataset import label_store, own
from dskprep.dataset.annotations import NAME
from dskprep.dataset.label_classes import first_names, matches_stored
from dskprep.dataset.label_record import LabelRecordName, StoredLabel, parse_label_record
from dskprep.dataset.record import Record
from dskprep.dataset.undisturbed import undisturbed
from dskprep.dataset.volume_rows import rows_of_volume
from dskprep.errors import DamagedDataset

if TYPE_CHECKING:
    import pandas as pd
    import zarr

    from dskprep.reading.stored import StoredVolume


MOST_THUMBNAILS = 12
"""Labels of a volume that are drawn over its thumbnail."""


class VolumeLabels(Mapping[str, "zarr.Array[Any]"]):
    """The labels of one volume: a mapping from name to array (z, y, x), uint8, 1 inside; opened when it is asked for.

    `about` has what is known of each: its author's name, code, ml, place (see `StoredLabel`).
    """

    def __init__(self, volume: StoredVolume, about: StoredLabels) -> None:
        self._volume, self.about = volume, about

    def __getitem__(self, name: str) -> zarr.Array[Any]:
        if name not in self.about:
            known = ", ".join(self.about) or "none"
            raise KeyError(f"{self._volume.key}: has no label {name!r}; its labels: {known}")
        return self._volume.array(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.about)

    def __len__(self) -> int:
        return len(self.about)

    def __repr__(self) -> str:
        return f"<labels of {self._volume.key}: {', '.join(self.about) or 'none'}>"


def thumbnails(labels: Iterable[StoredLabel]) -> list[str]:
    """Return the thumbnails of labels in base64, at most MOST_THUMBNAILS, those of the largest labels first.

    Labels that an older version wrote have none. Those that are none, in the record of a stranger, are left out.
    """
    found = []
    for label in sorted(labels, key=lambda each: -(each.ml or 0.0)):
        try:
            content = base64.b64decode(label.thumbnail, validate=True)
        except ValueError:
            continue
        if own.is_label_thumbnail(content):
            found.append(label.thumbnail)
    return found[:MOST_THUMBNAILS]


def thumbnails_of(target: str, table: pd.DataFrame, digests: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the thumbnails of the labels of many volumes, by key (see `thumbnails`).

    `table` is that of annotations, `digests` has the input digest of each volume. Damaged records are left out.
    """
    rows = table[table["key"].isin(list(digests)) & (table["label"].fillna("") != "")]
    names = {LabelRecordName(*row) for row in rows[list(NAME)].itertuples(index=False)}
    labels = undisturbed(target, functools.partial(_labels_of, target, names, digests)) if names else {}
    return {key: thumbnails(found) for key, found in labels.items()}


def _labels_of(
    target: str, names: Collection[LabelRecordName], digests: Mapping[str, str]
) -> dict[str, list[StoredLabel]]:
    """Return the labels in these records that were drawn for the images of these digests, by volume."""
    entries = [entry for name, entry in label_store.list_records(target) if name in names]
    labels: dict[str, list[StoredLabel]] = defaultdict(list)
    for where, content in storage.read_many_metadata(storage.join(target, "labels"), entries):
        try:
            written = parse_label_record(content, f"labels/{where}").written
        except DamagedDataset:
            continue
        for label in written:
            if digests.get(label.volume) == label.image:
                labels[label.volume].append(label)
    return labels


class StoredLabels(dict[str, StoredLabel]):
    """The labels of a volume by the names under which they are stored, sorted.

    `first_names` has those of `label_classes.first_names`.
    """

    def __init__(self, labels: Mapping[str, StoredLabel], first_names: Mapping[str, str]) -> None:
        super().__init__(sorted(labels.items()))
        self.first_names = first_names

    def named(self, pattern: str) -> tuple[str, ...]:
        """Return the labels that a name or pattern takes."""
        return tuple(label for label in self if matches_stored(label, self.first_names.get(label, ""), [pattern]))


def stored_labels(target: str, record: Record) -> StoredLabels:
    """Return the labels of a volume by the names under which they are stored, sorted.

    Labels that were drawn for another image of the same key are left out: `annotate` draws them anew. Raises
    DamagedDataset if a record of a label source is damaged or gone.
    """
    rows = [row for row in rows_of_volume(target, record.key) if row["label"]]
    found: dict[str, StoredLabel] = {}
    numbered: dict[str, str] = {}
    for name in sorted({LabelRecordName(*(row[part] for part in NAME)) for row in rows}):
        try:
            source = label_store.read_record(target, name)
        except FileNotFoundError as error:
            raise DamagedDataset(f"{target}: {name.path} is gone; annotate again") from error
        names = (("", each.label if each.is_written else "", each.name, each.asked_as) for each in source.labels)
        firsts = first_names(names)
        for label in source.written:
            if label.volume == record.key and label.image == record.input_digest:
                found[label.label] = label
                numbered[label.label] = firsts.get(("", label.label), "")
    return StoredLabels(found, numbered)

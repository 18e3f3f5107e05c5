"""How a dataset and its volumes show themselves: one line in Python, and in a notebook with small pictures."""

from __future__ import annotations

import base64
import html
import itertools
from collections import Counter
from typing import TYPE_CHECKING

from dskprep import sides, storage
from dskprep.counts import n_of
from dskprep.dataset import layout, own, store
from dskprep.dataset.record import Record
from dskprep.errors import DamagedDataset
from dskprep.reading import labelled
from dskprep.volume import grid_in_words

if TYPE_CHECKING:
    from dskprep.dataset.label_record import StoredLabel
    from dskprep.reading.selection import Selection

N_LABELS = 12
"""Labels of a volume that a notebook names."""
N_PICTURES = 6
"""Volumes of a dataset that a notebook shows with a picture."""
STYLE = "display:inline-block; vertical-align:top; margin:0 12px 8px 0; width:288px; overflow-wrap:anywhere"
"""Style of a volume in a notebook."""


class VolumeDisplay:
    """Shows a stored volume by its record, its thumbnail and the records of its labels; no voxel is read."""

    key: str
    url: str
    record: Record
    at_level: int

    def __repr__(self) -> str:
        level = f" at level {self.at_level}" if self.at_level else ""
        return f"<StoredVolume {self.key}{level}: {describe(self.record, self.at_level)}>"

    def _repr_html_(self) -> str:
        target = self.url.rpartition("/volumes/")[0]
        labels, fault = _labels_of(target, self.record)
        level = f", level {self.at_level}" if self.at_level else ""
        return (
            f'<div style="{STYLE}">{_picture(target, self.key, labels)}<b>{html.escape(self.key)}</b>{level}<br>'
            f"{html.escape(describe(self.record, self.at_level))}{_in_words(labels, fault)}</div>"
        )


def describe(record: Record, level: int = 0) -> str:
    """Say in one line what a written volume is, read at a level."""
    geometry, lungs, values = record.geometry, record.lungs, record.values or "HU"
    z, y, x = (2**level * mm for mm in geometry.spacing_mm) if geometry else (0.0, 0.0, 0.0)
    parts = [grid_in_words(layout.level_shape(geometry.shape, level), (z, y, x))] if geometry else []
    parts += [values if values == "HU" else f"{values} values"]
    parts += [sides.in_words(lungs.right_ml, lungs.left_ml, lungs.unsided_ml)] if lungs else []
    return "; ".join([", ".join(parts), *([", ".join(record.warnings)] if record.warnings else [])])


def describe_label(about: StoredLabel) -> str:
    """Say what a label is called, and its size."""
    if about.ml is None:
        return about.name
    return f"{about.name}, {about.ml:.0f} ml" if about.ml >= 100 else f"{about.name}, {about.ml:#.3g} ml"


def dataset_in_html(dataset: Selection) -> str:
    """Show how many series a dataset has by status, and its first volumes."""
    if dataset.chosen is None:
        counts = Counter(dataset.index["status"].tolist())
        words = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    else:
        words = n_of(len(dataset), "selected volume")
    shown = [dataset[key]._repr_html_() for key in itertools.islice(dataset, N_PICTURES)]
    n_more = len(dataset) - len(shown)
    more = f"<p>and {n_of(n_more, 'more volume')}</p>" if n_more else ""
    return f"<p><b>{html.escape(dataset.url)}</b>: {words or 'no series'}</p>{''.join(shown)}{more}"


def _labels_of(target: str, record: Record) -> tuple[list[StoredLabel], str]:
    """Return the labels of a volume, or none and why they are not known."""
    try:
        return list(labelled.stored_labels(target, record).values()), ""
    except (DamagedDataset, OSError) as error:
        return [], str(error)


def _in_words(labels: list[StoredLabel], fault: str) -> str:
    """Return a line with the labels of a volume, or why they are not known; nothing if it has none."""
    if fault:
        return f"<br><i>labels: {html.escape(fault)}</i>"
    if not labels:
        return ""
    more = [f"and {len(labels) - N_LABELS} more"] if len(labels) > N_LABELS else []
    return f"<br>labels: {html.escape('; '.join([*map(describe_label, labels[:N_LABELS]), *more]))}"


def _picture(target: str, key: str, labels: list[StoredLabel]) -> str:
    """Return a volume's thumbnail with those of its labels over it, or why there is none."""
    try:
        content = storage.read_small(storage.join(target, store.thumbnail_name(key)))
    except OSError as error:  # an older dataset has none, or its store does not answer
        why = "it has no thumbnail" if isinstance(error, FileNotFoundError) else str(error)
        return f"<i>no picture: {html.escape(why)}</i><br>"
    if not own.is_thumbnail(content):
        return "<i>no picture: its thumbnail is damaged</i><br>"
    alt = html.escape(f"Axial and coronal plane of {key}")
    image = f'<img src="data:image/webp;base64,{base64.b64encode(content).decode()}" alt="{alt}">'
    over = [
        f'<img style="position:absolute; top:0; left:0; background:none" src="data:image/webp;base64,{small}" alt="">'
        for small in labelled.thumbnails(labels)
    ]
    return f'<div style="position:relative">{image}{"".join(over)}</div>' if over else f"{image}<br>"

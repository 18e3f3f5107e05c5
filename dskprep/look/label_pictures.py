"""Small pictures of labels for the page: an axial plane through the largest label of a volume, and a close-up of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dskprep import storage
from dskprep.dataset import store
from dskprep.dataset.record import RecordName
from dskprep.dataset.undisturbed import record_of
from dskprep.errors import DamagedDataset, UsageError
from dskprep.look import outlines, picture
from dskprep.look.comparison import Preparation
from dskprep.look.outlines import Outline
from dskprep.look.panels import Inside, draw_plane
from dskprep.reading.stored import StoredVolume
from dskprep.volume import Volume

EDGE = 280
"""Pixels along each side of the two squares of a picture."""
DPI = 140
"""Pixels per inch of lines and letters: the page shows a picture at two thirds of its size or more."""
QUALITY = 75
"""Quality of the WebP, from 0 to 100; 75 makes about 10 KB per picture."""
MARGIN_MM = 15
"""What is seen around the label in its close-up."""
LEAST_MM = 60
"""Least edge of the close-up, so that what lies around a small label is seen."""

Cut = tuple[Outline, NDArray[np.bool_]]
"""A label, and which pixels of a plane lie in it."""


class LabelPicture(NamedTuple):
    """A volume with outlines of labels: a WebP in base64, or "" if it cannot be drawn, and the words beside it.

    `shown` are name and size of each label that is outlined, the largest first, with its colour. `n_others` counts the
    labels that are not. `faults` say what could not be read.
    """

    key: str
    webp: str
    place: str
    shown: tuple[tuple[str, tuple[int, int, int]], ...]
    n_others: int
    faults: tuple[str, ...]


def label_picture(target: str, key: str, digest: str) -> LabelPicture:
    """Draw the largest label of a written volume, and others that its axial plane cuts, at most MOST_NAMED of them.

    Only the chunks of that plane are read. What is damaged or gone costs itself alone: a label its outline, an image
    the picture.
    """
    faults: list[str] = []
    try:
        volume = _open(target, key, digest)
        labels = outlines.largest_first(outlines.of_stored(volume))
        z, cut = _cut(labels, faults)
        webp = _draw(volume, z, cut) if cut else b""
    except (DamagedDataset, UsageError, storage.UnreadableFile) as error:
        return LabelPicture(key, "", "", (), 0, (*faults, str(error)))
    return LabelPicture(
        key,
        base64.b64encode(webp).decode(),
        f"axial plane {z + 1} of {volume.shape[0]}, z = {volume.to_patient((z, 0, 0))[2]:.0f} mm",
        tuple((label.title, label.rgb) for label, _ in cut),
        len(labels) - len(cut) - len(faults),
        tuple(faults),
    )


def _open(target: str, key: str, digest: str) -> StoredVolume:
    record = record_of(target, RecordName("written", key, digest))
    return StoredVolume(key, store.volume_url(target, key), record)


def _cut(labels: Sequence[Outline], faults: list[str]) -> tuple[int, list[Cut]]:
    """Return the plane through the first label that can be read, and the labels that it cuts.

    What cannot be read is added to `faults`.
    """
    z, cut = -1, list[Cut]()
    for label in labels:
        try:
            z = z if cut else _plane_through(label)
            inside = label.inside(0, z)
        except (DamagedDataset, UsageError, storage.UnreadableFile) as error:
            faults.append(str(error))
            continue
        if inside.any():
            cut.append((label, inside))
        if len(cut) == outlines.MOST_NAMED:
            break
    return z, cut


def _plane_through(label: Outline) -> int:
    """Return the axial plane through the middle of a label.

    One that passes between its parts is replaced by that with most of it in the chunks at its lower end.
    """
    volume, name = label.volume, label.about.label
    first, shape = label.box
    if label.about.centroid_mm is not None:
        middle = round(float(volume.to_index(label.about.centroid_mm)[0]))
        if label.inside(0, middle).any():
            return middle
    array = volume.shards(name)
    layer = array.read(first, (min(array.chunk[0], shape[0]), *shape[1:]))
    if not layer.any():
        raise DamagedDataset(f"{volume.key}: the label {name} is empty where its record says it lies; annotate again")
    return first[0] + int(np.count_nonzero(layer, (1, 2)).argmax())


def _draw(volume: StoredVolume, z: int, cut: Sequence[Cut]) -> bytes:
    """Draw an axial plane with outlines in the window for soft tissue, and the first label closer: a WebP.

    The close-up is in the window for lung if the label would be black.
    """
    plane = Volume(volume.shards().read((z, 0, 0), (1, *volume.shape[1:])), volume.affine)
    view = picture.view_of("", Preparation(plane, volume.values, None), [])
    first = cut[0][1]
    is_black = view.volume.array[0, first].mean() < picture.SOFT_WINDOW[0]
    panels = (
        (0.0, (slice(None), slice(None)), picture.SOFT_WINDOW),
        (0.5, _around(first, volume.spacing[1:]), picture.LUNG_WINDOW if is_black else picture.SOFT_WINDOW),
    )
    in_order = sorted(cut, key=lambda each: each[0].rank)
    figure = Figure(figsize=(2 * EDGE / DPI, EDGE / DPI), facecolor="black")
    for left, part, window in panels:
        seen = Volume(view.volume.array[:, *part], volume.affine)
        shown = [Inside(label.colour, inside[part], label.points) for label, inside in in_order]
        draw_plane(figure.add_axes((left, 0, 0.5, 1)), seen, 0, 0, view.window or window, shown)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=DPI, pil_kwargs={"quality": QUALITY})
    return buffer.getvalue()


def _around(inside: NDArray[np.bool_], pixel_mm: Sequence[float]) -> tuple[slice, slice]:
    """Return the rows and columns of a square around the pixels of a label, cut off at the end of the plane."""
    ends = [(int(where.min()), int(where.max()) + 1) for where in np.nonzero(inside)]
    widths_mm = [(end - first) * mm for (first, end), mm in zip(ends, pixel_mm, strict=True)]
    half_mm = max(LEAST_MM, max(widths_mm) + 2 * MARGIN_MM) / 2
    rows, columns = (
        slice(max(0, round((first + end) / 2 - half_mm / mm)), round((first + end) / 2 + half_mm / mm))
        for (first, end), mm in zip(ends, pixel_mm, strict=True)
    )
    return rows, columns

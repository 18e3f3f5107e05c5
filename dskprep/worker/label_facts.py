"""What is recorded of a label that was drawn: its size and place, and a small picture."""

from __future__ import annotations

import base64
import itertools

import numpy as np

from dskprep.dataset import thumbnail
from dskprep.dataset.label_record import StoredLabel
from dskprep.labels.draw import Drawn


def describe(stored: StoredLabel, label: str, drawn: Drawn) -> StoredLabel:
    """Return the record of a label, begun before, with what was drawn under its name in the dataset."""
    corners = [drawn.first, np.add(drawn.first, drawn.mask.shape) - 1]
    indices = [[corners[k][axis] for axis, k in enumerate(which)] for which in itertools.product((0, 1), repeat=3)]
    places = drawn.grid.to_patient(indices)
    x, y, z = (round(float(v), 4) for v in drawn.centroid_mm)
    small = thumbnail.draw_label(drawn.mask, drawn.first, drawn.grid.shape, drawn.grid.spacing, stored.rgb)
    return stored.changed(
        label=label,
        voxels=int(np.count_nonzero(drawn.mask)),
        ml=round(float(drawn.ml), 6),
        first=drawn.first,
        shape=drawn.mask.shape,
        centroid_mm=(x, y, z),
        box_mm=tuple(np.concatenate([places.min(0), places.max(0)]).round(4).tolist()),
        outside=round(float(drawn.outside), 6),
        thumbnail=base64.b64encode(small).decode(),
    )

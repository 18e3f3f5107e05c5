"""Whether labels of lungs lie on the side that they are called by: the image's own anatomy tells left from right."""

from __future__ import annotations

import re

import numpy as np

from dskprep.dataset import store
from dskprep.dataset.record import Record
from dskprep.dataset.stored import StoredVolume
from dskprep.errors import Refusal
from dskprep.labels.draw import Drawn
from dskprep.sides import LEFT, RIGHT

LUNG = re.compile(r"lung|lobe", re.IGNORECASE)
SIDE = {
    RIGHT: re.compile(r"(?:^|[^a-z])(?:right|rt|r)(?:$|[^a-z])", re.IGNORECASE),
    LEFT: re.compile(r"(?:^|[^a-z])(?:left|lt|l)(?:$|[^a-z])", re.IGNORECASE),
}
"""Words of a name that tell a side, by the label of that lung."""
SURE_SHARE = 5
"""So many times as many voxels of a label must lie in the other lung, before it is called mirrored."""
LEAST_VOXELS = 1000
"""Fewest voxels of a label in the lungs that tell."""


def side_of(name: str) -> int | None:
    """Return the lung that a label is called by, `RIGHT` or `LEFT`; None if its name does not tell."""
    found = [side for side, words in SIDE.items() if words.search(name)]
    return found[0] if LUNG.search(name) and len(found) == 1 else None


def check_side(name: str, drawn: Drawn, volume: Record, target: str, where: str) -> None:
    """Raise Refusal `label-mirrored` if a label that is called by one lung lies in the other.

    Nothing is checked where the volume has no lungs, or their sides are not known.
    """
    side, lungs = side_of(name), volume.lungs
    if side is None or lungs is None or min(lungs.right_ml, lungs.left_ml) == 0:
        return
    stored = StoredVolume(volume.key, store.volume_url(target, volume.key), volume)
    z, y, x = drawn.mask.shape
    mask = stored.shards("lungs").read(drawn.first, (z, y, x))
    n_own, n_other = (int(np.count_nonzero(drawn.mask & (mask == s))) for s in (side, RIGHT + LEFT - side))
    if n_own + n_other >= LEAST_VOXELS and n_other > SURE_SHARE * n_own:
        words = {RIGHT: "right", LEFT: "left"}
        raise Refusal(
            "label-mirrored",
            f"{where}: expected {name!r} in the {words[side]} lung, found {n_other} of its voxels in the "
            f"{words[RIGHT + LEFT - side]} one and {n_own} in its own; the file, or its voxels, are mirrored",
        )

"""Patches around annotated places, and others away from them, whichever process draws them."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dskprep.dataset.box import Index, as_index
from dskprep.dataset.label_classes import labels_of, matches_stored
from dskprep.errors import UsageError
from dskprep.patterns import as_patterns, matches_label
from dskprep.reading.draws import OPENED, Draws, Spot
from dskprep.reading.patches import LungVoxels
from dskprep.reading.rounds import Rounds, Windows
from dskprep.sides import LEFT, RIGHT
from dskprep.volume import Triple, Volume, grid_in_words

if TYPE_CHECKING:
    from dskprep.reading.dataset import Dataset
    from dskprep.reading.stored import StoredVolume

Row = dict[str, Any]
Which = str | Callable[[Row], bool]
"""Which rows of `annotations`: a word, a pattern of their label, name or kind, or a function of a row."""

TRIES = 50
"""Places in the lungs of a volume that are tried for one away from all annotated places."""
OTHERS = 20
"""Other volumes in which such a place is looked for, if one has none."""


@dataclass(frozen=True, eq=False)
class Place:
    """An annotated place: its volume, its middle in LPS mm, and its row of `annotations`."""

    key: str
    center_mm: Triple
    row: Row = field(repr=False)

    def box(self, volume: StoredVolume) -> NDArray[np.float64]:
        """Return the lowest and highest index (z, y, x) of what is annotated, (2, 3)."""
        ends = [(self.row.get(f"{axis}_min"), self.row.get(f"{axis}_max")) for axis in "xyz"]
        if any(low is None or not math.isfinite(low) for low, _ in ends):  # a point, which may have a diameter
            radius = (self.row.get("diameter_mm") or 0.0) / 2
            radius = radius if math.isfinite(radius) else 0.0
            ends = [(middle - radius, middle + radius) for middle in self.center_mm]
        corners = volume.to_index(np.array(list(itertools.product(*ends)), np.float64))
        return np.stack([corners.min(0), corners.max(0)])


@dataclass(frozen=True, eq=False, repr=False)
class Example:
    """A patch of a volume with its labels.

    Attributes
    ----------
    image
        The voxels (z, y, x) and their place in the patient.
    labels
        The labels that were asked for, by name, on the same grid: uint8 (z, y, x). One that the volume has not is 0.
    key
        The volume that the patch was taken from.
    is_positive
        Whether it was drawn around an annotated place.
    row
        The row of `annotations` of that place, or of the candidate that it was drawn around; empty in the lungs.
    """

    image: Volume
    labels: dict[str, NDArray[np.uint8]]
    key: str
    is_positive: bool
    row: Row

    def __repr__(self) -> str:
        labels = ", ".join(f"{name} in {np.count_nonzero(mask)} voxels" for name, mask in self.labels.items())
        kind, grid = "positive" if self.is_positive else "negative", grid_in_words(self.image.shape, self.image.spacing)
        return f"<Example of {self.key}, {kind}: {grid}; {labels or 'no labels'}>"

    @property
    def masks(self) -> dict[str, NDArray[np.uint8]]:
        """What is beside the image on its grid."""
        return self.labels

    @property
    def flags(self) -> dict[str, bool]:
        """What a training item says of the patch besides."""
        return {"is_positive": self.is_positive}


@dataclass(frozen=True, eq=False, repr=False)
class Examples(Draws[Example]):
    """An endless sequence of patches around annotated places and away from them.

    Of any row of numbers the share `positives` is drawn around places. Places come in rounds, each place once in a
    round, in random order; so do negatives, by candidate or by volume. See `Draws`.

    Attributes
    ----------
    dataset
        The volumes that patches are taken from.
    places, candidates
        What positives and negatives are drawn around. Without candidates a negative is a place in a lung whose
        patch holds nothing of what is annotated in `places`; where a volume has none, another one gives it.
    size, labels, positives, jitter_mm, seed, outside, normalized
        As in `Dataset.patches`.

    Examples
    --------
    >>> patches = dataset.patches(64, around="nodules", labels=["nodule-*"])  # doctest: +SKIP
    >>> example = patches[0]  # doctest: +SKIP
    >>> example.image.array.shape, example.labels["nodule-*"].sum()  # doctest: +SKIP
    """

    dataset: Dataset
    places: tuple[Place, ...]
    candidates: tuple[Place, ...]
    size: Index
    labels: tuple[str, ...]
    positives: float
    jitter_mm: float
    seed: int
    outside: float | None
    normalized: bool
    windows: Windows | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.positives <= 1 or not 0 <= self.jitter_mm < math.inf:
            raise UsageError(
                f"expected a share of positives from 0 to 1 and a jitter of 0 mm or more, found {self.positives} and "
                f"{self.jitter_mm}"
            )
        if not self.places and self.positives > 0:
            raise UsageError("no annotation is around what patches are asked for; `dataset.annotations` has all")
        if not self.candidates and self.positives < 1 and not self._lung_keys:
            raise UsageError("there is no volume with lungs to take negatives from; give candidates by `negatives`")

    def home(self, number: int, epoch: int = 0) -> str:
        rounds, n = self._lane(number)
        return rounds.key(n, epoch)

    def spot(self, number: int, epoch: int = 0) -> Spot:
        rng = np.random.default_rng([self.seed, epoch, 3, number])
        rounds, n = self._lane(number)
        is_positive = rounds is self._positives
        if places := self.places if is_positive else self.candidates:
            return self._around(places[rounds.slot(n, epoch)], rng, is_positive=is_positive)
        return self._away(rounds.key(n, epoch), rng)

    def window(self, ordinal: int) -> range:
        if not self.positives:
            return self._negatives.window(ordinal)
        places = self._positives.window(ordinal)  # negatives are taken along, from volumes of their own
        return range(math.ceil(places.start / self.positives), math.ceil(places.stop / self.positives))

    def _lane(self, number: int) -> tuple[Rounds, int]:
        """Return the rounds that a number belongs to, of positives or of negatives, and which of theirs it is."""
        n_before = math.floor(number * self.positives)
        if math.floor((number + 1) * self.positives) > n_before:
            return self._positives, n_before
        return self._negatives, number - n_before

    def _around(self, place: Place, rng: np.random.Generator, *, is_positive: bool) -> Spot:
        volume = self.volume(place.key)
        half = np.array(self.size) / 2 - 1
        most = np.minimum(self.jitter_mm / np.array(volume.spacing), np.maximum(half, 0))
        index = volume.to_index(place.center_mm) + rng.uniform(-most, most)
        index = np.clip(index, 0, np.array(volume.shape) - 1)  # a place may lie outside of what was imaged
        return Spot(place.key, as_index(np.rint(index)), is_positive=is_positive, row=place.row)

    def _away(self, first: str, rng: np.random.Generator) -> Spot:
        """Find a place away from all others in this volume; or, if there is none, in another one."""
        for key in itertools.chain([first], self._others(rng)):
            lungs = self._lungs(key)
            taken = np.array([place.box(lungs.volume) for place in self._of_volume[key]]).reshape(-1, 2, 3)
            for _ in range(TRIES):
                _, index = lungs.draw_voxel(int(rng.choice([RIGHT, LEFT])), rng)
                corner = np.ceil(np.array(index) - np.array(self.size) / 2)
                if not ((taken[:, 0] < corner + self.size) & (taken[:, 1] > corner - 1)).all(1).any():
                    return Spot(key, index, is_positive=False)
        raise UsageError(
            f"expected a place in the lungs whose patch of {list(self.size)} voxels holds nothing annotated, found "
            f"none in {TRIES} tries in {first} and in each of up to {OTHERS} others; take a smaller size, or "
            "negatives='candidates'"
        )

    def _others(self, rng: np.random.Generator) -> Iterator[str]:
        yield from (self._lung_keys[i] for i in rng.permutation(len(self._lung_keys))[:OTHERS])

    def cut(self, spot: Spot) -> Example:
        volume = self.volume(spot.key)
        image = volume.patch(self.size, index=spot.index, outside=self.outside, normalized=self.normalized)
        masks = {name: self._mask(volume, of, spot.index) for name, of in self.stored_masks(volume).items()}
        return Example(image, masks, spot.key, bool(spot.is_positive), spot.row)

    def _mask(self, volume: StoredVolume, labels: Iterable[str], index: Index) -> NDArray[np.uint8]:
        """Return the union of labels; the lungs have their values."""
        mask = np.zeros(self.size, np.uint8)
        for name in labels:
            if self.touches(volume, name, index):
                mask |= volume.patch(self.size, index=index, of=name).array
        return mask

    @property
    def masks(self) -> tuple[str, ...]:
        return self.labels

    @cached_property
    def keys(self) -> tuple[str, ...]:  # type: ignore[override]
        """The volumes that patches are taken from."""
        others = self._lung_keys if self.positives < 1 and not self.candidates else ()
        return tuple(sorted({place.key for place in (*self.places, *self.candidates)} | {*others}))

    @cached_property
    def _lung_keys(self) -> tuple[str, ...]:
        return self.dataset.keys_with_lungs()

    @cached_property
    def _of_volume(self) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = defaultdict(list)
        for place in self.places:
            found[place.key].append(place)
        return found

    @cached_property
    def _positives(self) -> Rounds:
        return Rounds(tuple(place.key for place in self.places), self.seed, 4, self.windows)

    @cached_property
    def _negatives(self) -> Rounds:
        keys = tuple(place.key for place in self.candidates) or self._lung_keys
        return Rounds(keys, self.seed, 5, self.windows)

    @cached_property
    def _lungs(self) -> Callable[[str], LungVoxels]:
        return lru_cache(OPENED)(lambda key: LungVoxels(self.volume(key)))


def find_places(rows: Iterable[Row], which: Which) -> tuple[Place, ...]:
    """Return the places of the rows that are meant, in their order. Rows without a place are left out.

    A label that was drawn of one file under several options is one place.
    """
    is_meant = which if callable(which) else NAMED.get(which) or _matcher(which)
    found: dict[Any, Row] = {}
    for number, row in enumerate(rows):
        if row["x"] is not None and math.isfinite(row["x"]) and is_meant(row):
            found.setdefault(_origin(row) or number, row)
    return tuple(Place(row["key"], (row["x"], row["y"], row["z"]), row) for row in found.values())


def _origin(row: Row) -> tuple[Any, ...] | None:
    """Return what a label was drawn of; None for a point."""
    parts = ("key", "source_sha256", "kind", "number", "name")
    return tuple(row[part] for part in parts) if _text(row["label"]) and row["source_sha256"] else None


def check_labels(rows: list[Row], given: Iterable[str]) -> tuple[str, ...]:
    """Return patterns of labels. Raises UsageError for one that no label of the rows matches, but for `lungs`."""
    patterns = as_patterns(given, "labels")
    there = labels_of(rows)
    for pattern in patterns:
        if pattern != "lungs" and not any(matches_stored(*label, [pattern]) for label in there):
            known = ", ".join(dict.fromkeys(label for label, _ in there)) or "(none)"
            raise UsageError(f"no volume has a label {pattern!r}; there are the labels {known:.300}")
    return patterns


def _is_nodule(row: Row) -> bool:
    """Tell whether a row is a nodule: one that readers agree on, or a point with a diameter."""
    if row["kind"] == "lidc":
        return bool(re.fullmatch(r"nodule-\d+", _text(row["name"])))
    return row["kind"] == "points" and (row["diameter_mm"] or 0) > 0


def _is_candidate(row: Row) -> bool:
    """Tell whether a row is a candidate that is no nodule: the class of LUNA16's tables is 0."""
    return row["kind"] == "points" and str(row.get("class")) in ("0", "0.0")


NAMED: dict[str, Callable[[Row], bool]] = {"nodules": _is_nodule, "candidates": _is_candidate}
"""What places can be called; see `find_places`."""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""  # pandas has NaN where there is none


def _matcher(pattern: str) -> Callable[[Row], bool]:
    names = ("label", "name", "kind")
    return lambda row: any(matches_label(_text(row[name]), [pattern]) for name in names)

"""Volumes that are the same, or nearly: the same pixels, or the same acquisition in another form. Nothing is merged."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dskprep import storage
from dskprep.counts import n_of
from dskprep.errors import InfrastructureError
from dskprep.reading import fingerprint
from dskprep.reading.fingerprint import Fingerprint
from dskprep.reading.groups import join_groups

if TYPE_CHECKING:
    from dskprep.reading.dataset import Dataset

ALIKE = 0.92
"""Least likeness of two volumes that are one acquisition, whoever they are said to be of."""
ALIKE_CROPPED = 0.8
"""The same where one may be a crop of the other, as its extent differs and the lungs agree: a crop has its middle
elsewhere, so other planes are compared. Not for two scans of one patient, which are alike to 0.8 by themselves."""
ALIKE_IN_FRAME = 0.7
"""The same where both have one frame of reference."""
LUNG_SHARE, LUNG_HU = 0.03, 2.0
"""Lungs agree if neither's volume differs by more than this share, nor the mean of both by more than these HU."""
ALIKE_VECTORS = 0.45
"""Least correlation of the vectors of two volumes that are looked at: crops reach 0.47, most patients do not."""
NEIGHBOURS = 20
"""How many volumes each one is compared with, the most alike by their vectors."""
MOST_IN_FRAME = 30
"""Volumes of one frame of reference that are all compared with each other; in larger ones only neighbours are."""
AT_ONCE = 1024
"""Volumes whose thumbnails are read, or whose vectors are compared, together."""
SAME_SHARE = 0.03
"""Sizes in mm that differ by less than this share are the same."""
COLUMNS = (
    "key hu_sha256 patient study frame_of_reference n_z n_y n_x spacing_z_mm spacing_y_mm spacing_x_mm "
    "right_lung_ml left_lung_ml mean_lung_hu"
).split()
OF_SOURCE = "source_kernel source_slice_thickness_mm source_step_mm source_row_spacing_mm".split()
"""What tells the kinds apart; an index may lack them."""

Row = Mapping[str, Any]
Report = Callable[[int, int], None]
"""Hears how many volumes are looked at, and of how many."""


@dataclass(frozen=True, eq=False, repr=False)
class Duplicates:
    """Pairs of volumes that are the same, or nearly.

    Attributes
    ----------
    pairs
        One row per pair: `key`, `other`, `kind`, `likeness` (0 to 1), and `patient`, `study` and `frame_of_reference`:
        `same`, `other`, or `unknown` where one has none.
    unseen
        Volumes without a thumbnail, which were compared by their pixels' digest only.

    `kind` is `identical` (the same pixels as acquired), `re-exported` (nothing known differs), or what differs:
    `other-kernel`, `other-thickness`, `re-scaled` (another pixel spacing), `cropped` (another extent), joined by `+`.
    """

    pairs: pd.DataFrame
    unseen: tuple[str, ...] = ()

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {kind}" for kind, n in self.counts.items())
        return f"<Duplicates: {n_of(len(self.pairs), 'pair')}{counts and f': {counts}'}>"

    @property
    def counts(self) -> dict[str, int]:
        """The number of pairs of each kind."""
        return dict(sorted(Counter(self.pairs["kind"]).items()))

    @property
    def groups(self) -> dict[str, str]:
        """The volumes that are alike, each with the first key of its group: `by` of `Dataset.split`."""
        ends = [*self.pairs["key"], *self.pairs["other"]]
        numbers = join_groups([ends, [*self.pairs.index, *self.pairs.index]]).tolist() if ends else []
        of_key = dict(zip(ends, numbers, strict=True))
        first: dict[int, str] = {}
        return {name: first.setdefault(of_key[name], name) for name in sorted(of_key)}


def find(dataset: Dataset, *, near: bool, report: Report = lambda _n, _all: None) -> Duplicates:
    """Find duplicates; see `Dataset.duplicates`."""
    known = [name for name in (*COLUMNS, *OF_SOURCE) if name in dataset.columns]
    rows = {row["key"]: row for row in dataset.whole_rows(*known) if row["key"] in dataset}
    found = dict.fromkeys(_same_pixels(rows), ("identical", 1.0))
    unseen: list[str] = []
    if near:
        look = _Looks(dataset.url, rows)
        vectors = dict(look.vectors(report))
        unseen = sorted(rows.keys() - vectors.keys())
        for one, other in sorted({*_in_one_frame(rows, vectors), *_neighbours(vectors)} - found.keys()):
            if _compare(rows[one], rows[other], "hu_sha256") == "same":
                continue  # it is told of each of them with the first of its group
            likeness = fingerprint.likeness(look(one), look(other))
            if likeness >= _least(rows[one], rows[other]):
                found[one, other] = (kind_of(rows[one], rows[other]), round(likeness, 3))
    table = [
        (one, other, kind, likeness, *(_compare(rows[one], rows[other], name) for name in COLUMNS[2:5]))
        for (one, other), (kind, likeness) in sorted(found.items())
    ]
    return Duplicates(pd.DataFrame(table, columns=["key", "other", "kind", "likeness", *COLUMNS[2:5]]), tuple(unseen))


class _Looks:
    """The fingerprints of volumes, from their thumbnails."""

    def __init__(self, target: str, rows: Mapping[str, Row]) -> None:
        self._url, self._rows = storage.join(target, "thumbnails"), rows
        self._kept = functools.lru_cache(AT_ONCE)(self._read)

    def __call__(self, key: str) -> Fingerprint:
        return self._kept(key)

    def vectors(self, report: Report) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the vector of each volume that has a thumbnail; damaged ones are passed over."""
        entries = [e for e in storage.listing(self._url) if e.name.removesuffix(".webp") in self._rows]
        try:
            for n_done, (name, picture) in enumerate(storage.read_many_metadata(self._url, entries), 1):
                key = name.removesuffix(".webp")
                with contextlib.suppress(ValueError):
                    yield key, self._of(key, picture).vector
                report(n_done, len(entries))
        except storage.ObjectChanged as error:
            raise InfrastructureError(f"{self._url}: changes while it is read: {error}; try again") from error

    def _read(self, key: str) -> Fingerprint:
        return self._of(key, storage.read_small(storage.join(self._url, f"{key}.webp")))

    def _of(self, key: str, picture: bytes) -> Fingerprint:
        row = self._rows[key]
        spacing_mm = row["spacing_z_mm"], row["spacing_y_mm"], row["spacing_x_mm"]
        return fingerprint.of(picture, (row["n_z"], row["n_y"], row["n_x"]), spacing_mm)


def _same_pixels(rows: Mapping[str, Row]) -> Iterator[tuple[str, str]]:
    """Yield pairs with equal pixels: the first of each group with each of the others."""
    for (_, *others), first in _groups(rows, "hu_sha256"):
        yield from ((first, other) for other in others)


def _in_one_frame(rows: Mapping[str, Row], seen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for keys, _ in _groups({key: row for key, row in rows.items() if key in seen}, "frame_of_reference"):
        if len(keys) <= MOST_IN_FRAME:
            yield from itertools.combinations(keys, 2)


def _groups(rows: Mapping[str, Row], column: str) -> Iterator[tuple[list[str], str]]:
    """Yield the keys that share a value, sorted, and the first of them."""
    found = defaultdict(list)
    for key in sorted(rows):
        if rows[key][column] is not None:
            found[rows[key][column]].append(key)
    yield from ((keys, keys[0]) for keys in found.values())


def _neighbours(vectors: Mapping[str, NDArray[np.float32]]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of each volume and those that are most alike by their vectors."""
    if len(vectors) < 2:
        return
    keys = sorted(vectors)
    table = np.stack([vectors[key] for key in keys])
    table -= table.mean(axis=0)  # what all chests have in common
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-6)
    for start in range(0, len(keys), AT_ONCE):
        alike = table[start : start + AT_ONCE] @ table.T
        own = np.arange(len(alike))
        alike[own, start + own] = -np.inf
        rows, others = np.nonzero(alike >= ALIKE_VECTORS)
        order = np.lexsort((-alike[rows, others], rows))
        rank = np.arange(len(order)) - np.searchsorted(rows[order], rows[order])
        for i, j in zip(
            rows[order][rank < NEIGHBOURS].tolist(), others[order][rank < NEIGHBOURS].tolist(), strict=True
        ):
            one, other = sorted((keys[start + i], keys[j]))
            yield one, other


def _least(one: Row, other: Row) -> float:
    """Return the least likeness of two volumes that are one acquisition, by what else is known of them."""
    if _compare(one, other, "frame_of_reference") == "same":
        return ALIKE_IN_FRAME
    if not _is_cropped(one, other) or _compare(one, other, "patient") == "same":
        return ALIKE
    sizes = [[row[f"{side}_lung_ml"] or 0.0 for side in ("right", "left")] for row in (one, other)]
    hu = [row["mean_lung_hu"] for row in (one, other)]
    if None in hu or abs(hu[0] - hu[1]) > LUNG_HU:
        return ALIKE
    is_same = all(abs(a - b) <= LUNG_SHARE * max(a, b) for a, b in zip(*sizes, strict=True))
    return ALIKE_CROPPED if is_same else ALIKE


def kind_of(one: Row, other: Row) -> str:
    """Return what differs between two forms of one acquisition."""

    def differs(name: str) -> bool:
        return _compare(one, other, name) == "other"

    is_cropped = _is_cropped(one, other)
    words = {
        "other-kernel": differs("source_kernel"),
        "other-thickness": differs("source_slice_thickness_mm") or differs("source_step_mm"),
        "re-scaled": differs("source_row_spacing_mm") and not is_cropped,
        "cropped": is_cropped,
    }
    return "+".join(word for word, is_so in words.items() if is_so) or "re-exported"


def _is_cropped(one: Row, other: Row) -> bool:
    """Tell whether two volumes differ in their extent."""
    sizes = ([row[f"n_{axis}"] * row[f"spacing_{axis}_mm"] for axis in "zyx"] for row in (one, other))
    return any(abs(a - b) > SAME_SHARE * max(a, b) for a, b in zip(*sizes, strict=True))


def _compare(one: Row, other: Row, name: str) -> str:
    values: Sequence[Any] = [row.get(name) for row in (one, other)]
    if any(value in (None, "") for value in values):
        return "unknown"
    if all(isinstance(value, float) for value in values):
        return "same" if abs(values[0] - values[1]) <= SAME_SHARE * max(map(abs, values)) else "other"
    return "same" if values[0] == values[1] else "other"

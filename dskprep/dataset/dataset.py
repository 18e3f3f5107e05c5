"""A finished dataset, opened for reading: its settings, its index and its volumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dskprep import storage
from dskprep.dataset import annotations as annotated
from dskprep.dataset import display, index, store
from dskprep.dataset.examples import Examples, Which, find_places
from dskprep.dataset.patches import LungPatches
from dskprep.dataset.record import RecordName
from dskprep.dataset.shards import Index
from dskprep.dataset.stored import StoredVolume, as_size
from dskprep.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Dataset(Mapping[str, StoredVolume]):
    """The written volumes of a dataset, or a selection of them: a mapping from key to volume, sorted by key.

    It shows the dataset as its records are when it is first asked, also where index.parquet is out of date or not there
    yet, and never writes. Open it again to see what a run has added since. It can be pickled.

    Attributes
    ----------
    url
        Where the dataset lies.
    chosen
        The keys of a selection; None for the whole dataset. See `where` and `select`.

    Examples
    --------
    >>> dataset = dskprep.open_dataset("s3://bucket/prepared")  # doctest: +SKIP
    >>> for key, volume in dataset.items():  # doctest: +SKIP
    ...     print(key, volume.shape, volume.spacing)
    >>> dataset.get("patient-7")  # None if it is not written  # doctest: +SKIP
    >>> dataset.where(lambda row: row["spacing_z_mm"] <= 1.25).lung_patches(64)  # doctest: +SKIP
    """

    url: str
    chosen: frozenset[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("index", "rows", "annotations", "_fates", "_table")
        }

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that all volumes were prepared with, as in dataset.json."""
        settings: dict[str, Any] = store.describe(self.url)["settings"]
        return settings

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row per series, with those that were not written; for a selection, one row per selected volume."""
        table = index.to_frame(self._table)
        return table if self.chosen is None else table[table["key"].isin(self._names)]

    @cached_property
    def annotations(self) -> pd.DataFrame:
        """One row per label and point of the (selected) volumes: see docs/labels.md for the columns."""
        table = annotated.to_frame(annotated.current_table(self.url))
        return table[(table["status"] == "written") & table["key"].isin(self._names)].reset_index(drop=True)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the index for the (selected) written volumes, sorted by key, as plain dictionaries."""
        return list(self._rows())

    def where(self, is_wanted: Callable[[dict[str, Any]], bool]) -> Dataset:
        """Select the volumes for whose row of the index `is_wanted(row)` is true."""
        return self._selection(row["key"] for row in self._rows() if is_wanted(row))

    def annotated(self, is_wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> Dataset:
        """Select the volumes with a label or point for whose row of `annotations` `is_wanted(row)` is true."""
        rows = self.annotations.to_dict("records")
        return self._selection({row["key"] for row in rows if is_wanted({str(k): v for k, v in row.items()})})

    def select(self, keys: Iterable[str]) -> Dataset:
        """Select the volumes of these keys. Raises KeyError if one is not written."""
        chosen = frozenset(keys)
        if missing := sorted(chosen - self._names.keys()):
            raise KeyError(self._explain(missing[0]))
        return self._selection(chosen)

    def lung_patches(
        self, size: int | Index, *, seed: int = 0, outside: float | None = None, normalized: bool = True
    ) -> LungPatches:
        """Draw random patches inside the lungs, equally many from each volume and each lung: see `LungPatches`.

        Parameters
        ----------
        size, outside, normalized
            As in `StoredVolume.patch`.
        seed
            Another seed gives other patches, in another order.

        Raises
        ------
        UsageError
            No volume has lungs (volumes without lungs are left out), or the size is less than one voxel.
        """
        return LungPatches(self, self.keys_with_lungs(), as_size(size), seed, outside, normalized)

    def patches(
        self,
        size: int | Index,
        *,
        around: Which = "nodules",
        negatives: Which = "lungs",
        positives: float = 0.5,
        jitter_mm: float = 8.0,
        labels: Sequence[str] = (),
        seed: int = 0,
        outside: float | None = None,
        normalized: bool = True,
    ) -> Examples:
        """Draw patches around annotated places, and others away from them: see `Examples`.

        Parameters
        ----------
        size, outside, normalized
            As in `StoredVolume.patch`.
        around
            What places: `nodules` (of LIDC-IDRI those that readers agree on, of tables the points with a diameter), a
            pattern of the label, name or kind of an annotation, or a function of its row.
        negatives
            Where the other patches are: somewhere in the `lungs`, at `candidates` (points of class 0), or what
            `around` takes.
        positives
            The share of patches around places, 0 to 1.
        jitter_mm
            The middle of a patch lies up to so far from the place along each axis, but the place stays in the patch.
        labels
            Patterns of labels to return beside the image, each as one mask; `lungs` are the lungs.
        seed
            Another seed gives other patches, in another order.

        Raises
        ------
        UsageError
            There is no such place, or no volume with lungs for the negatives.
        """
        rows = [{str(name): value for name, value in row.items()} for row in self.annotations.to_dict("records")]
        others = () if negatives == "lungs" else find_places(rows, negatives)
        if negatives != "lungs" and not others and positives < 1:
            raise UsageError(f"no annotation is what negatives are asked for, {negatives!r}")
        return Examples(
            self,
            find_places(rows, around),
            others,
            as_size(size),
            tuple(labels),
            positives,
            jitter_mm,
            seed,
            outside,
            normalized,
        )

    def keys_with_lungs(self) -> tuple[str, ...]:
        """Return the keys of the (selected) volumes in which lungs were found, sorted."""
        columns = ("right_lung_ml", "left_lung_ml", "unsided_lung_ml")
        rows = self._rows(*columns)
        return tuple(sorted(row["key"] for row in rows if any((row[column] or 0) > 0 for column in columns)))

    def _selection(self, keys: Iterable[str]) -> Dataset:
        selected = Dataset(self.url, frozenset(keys))
        vars(selected)["_table"] = self._table  # what was chosen from, so that nothing is listed again
        return selected

    @cached_property
    def _table(self) -> Any:
        """The index as it should be: index.parquet, compared with a listing of the records."""
        return index.current_table(self.url)

    @cached_property
    def _names(self) -> dict[str, RecordName]:
        return {row["key"]: RecordName(*(row[part] for part in index.NAME)) for row in self._rows(*index.NAME)}

    def _rows(self, *columns: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of the (selected) written volumes one by one; if columns are named, with only those."""
        for row in index.rows_of(self._table, [*{"status", "key", *columns}] if columns else None):
            if row["status"] == "written" and (self.chosen is None or row["key"] in self.chosen):
                yield row

    def fate(self, key: str) -> str:
        """Return what became of a series that was not written, as its record says; "" if there is none of this key."""
        return self._fates.get(key, "")

    @property
    def damaged(self) -> dict[str, str]:
        """The keys of the records, of the whole dataset, that cannot be read, and why."""
        rows = index.rows_of(self._table, ["key", "reason", "message"])
        return {row["key"]: row["message"] for row in rows if row["reason"] == index.DAMAGED}

    def names_of(self, *statuses: str) -> dict[str, RecordName]:
        """Return the names of the records of these statuses, by key, of the whole dataset."""
        names = (RecordName(*(row[part] for part in index.NAME)) for row in index.rows_of(self._table, index.NAME))
        return {name.key: name for name in names if name.status in statuses}

    @cached_property
    def _fates(self) -> dict[str, str]:
        """What became of each series that was not written; kept because `get` asks again for each missing key."""
        rows = index.rows_of(self._table, ["key", "status", "reason", "message"])
        return {
            row["key"]: f"was {row['status']}, {row['reason']}: {row['message']}"
            for row in rows
            if row["status"] != "written"
        }

    def _explain(self, key: object) -> str:
        """Return why there is no volume of this key."""
        if fate := self._fates.get(str(key)):
            return f"{key}: {fate}"
        if self.chosen is not None and key not in self.chosen:
            return f"{key}: is not one of the {len(self)} selected volumes"
        return f"{self.url}: no volume {key!r} is written; there are {len(self)}, such as {list(self)[:3]}"

    def __repr__(self) -> str:
        """Say where it lies. Its volumes are counted if they are known already: that takes requests."""
        is_known = "_names" in vars(self)
        n = f": {len(self)} {'volumes' if self.chosen is None else 'selected volumes'}" if is_known else ""
        return f"<Dataset {self.url}{n}>"

    def _repr_html_(self) -> str:
        return display.dataset_in_html(self)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def __getitem__(self, key: str) -> StoredVolume:
        """Return a volume. Raises KeyError if no volume of that key is written; the error says what became of it."""
        if key not in self._names:
            raise KeyError(self._explain(key))
        return StoredVolume(key, store.volume_url(self.url, key), store.read_record(self.url, self._names[key]))


def open_dataset(url: str | os.PathLike[str]) -> Dataset:
    """Open a dataset for reading.

    The first look at its volumes reads index.parquet and lists the records, one LIST request for each 1000 on S3;
    only records that the index lacks, or that changed since, are read. A dataset under way can be opened too.

    Raises UsageError if there is none at the URL, or it is of another format; DamagedDataset if its dataset.json is
    damaged; InfrastructureError if the store cannot be used.
    """
    dataset = Dataset(storage.absolute(url))
    store.describe(dataset.url)
    return dataset

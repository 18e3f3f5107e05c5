"""A finished dataset, opened for reading: what is made of its volumes, as splits and patches for training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dskprep import storage
from dskprep.counts import n_of
from dskprep.dataset import lacking, store
from dskprep.dataset.box import Index, as_size
from dskprep.errors import UsageError
from dskprep.reading import duplicates, splits
from dskprep.reading.duplicates import Duplicates
from dskprep.reading.examples import Examples, Which, check_labels, find_places
from dskprep.reading.patches import LungPatches
from dskprep.reading.selection import Selection
from dskprep.reading.splits import Split

if TYPE_CHECKING:
    from dskprep.reading.stream import Stream


@dataclass(frozen=True, repr=False)
class Dataset(Selection):
    """The written volumes of a dataset, or a selection of them: a mapping from key to volume, sorted by key.

    It shows the dataset as its records are when it is first asked, also where index.parquet is out of date or not there
    yet, and never writes. Open it again to see what a run has added since. It can be pickled.

    Attributes
    ----------
    url
        Where the dataset lies.
    chosen
        The keys of a selection; None for the whole dataset. See `where` and `select`.
    joined
        The tables that add columns to its rows. See `join`.

    Examples
    --------
    >>> dataset = dskprep.open_dataset("s3://bucket/prepared")  # doctest: +SKIP
    >>> for key, volume in dataset.items():  # doctest: +SKIP
    ...     print(key, volume.shape, volume.spacing)
    >>> dataset.get("patient-7")  # None if it is not written  # doctest: +SKIP
    >>> dataset.where(lambda row: row["spacing_z_mm"] <= 1.25).lung_patches(64)  # doctest: +SKIP
    """

    def split(
        self,
        by: str | Sequence[str] | Mapping[str, Any] = "patient",
        *,
        folds: int = 5,
        seed: int = 0,
        stratify: str | Sequence[str] | None = None,
        shares: Sequence[float] | None = None,
    ) -> Split:
        """Split the (selected) volumes into folds, and into parts, with no patient on two sides: see docs/cohort.md.

        Volumes of one patient are on one side, and so are volumes with the same pixels, whoever they are said to be of.
        The split is the same on every machine. `save` writes it beside the dataset.

        Parameters
        ----------
        by
            Columns of the index or of a joined table whose equal values belong together too, such as a site; or your
            own groups, as a mapping from keys.
        folds
            The number of folds. Volumes of the part `test` are in none.
        seed
            Another seed gives another split.
        stratify
            A column, or several, whose values each side has in the same proportion. Sides are then balanced; without
            it each group is placed by itself, so that nobody moves when patients are added, at the price of shares that
            are not exact. With `()` only the numbers of volumes are balanced.
        shares
            The shares of `train` and `test`, or of `train`, `validation` and `test`.

        Raises
        ------
        UsageError
            There is no such column, the numbers are none that can be, or a part or fold would be empty.

        Examples
        --------
        >>> split = dataset.split(folds=5, shares=(0.8, 0.1, 0.1))  # doctest: +SKIP
        >>> split.part("test"), split.fold(0)  # doctest: +SKIP
        """
        return splits.make(self, by, folds, seed, stratify, shares)

    def read_split(self, place: str | os.PathLike[str]) -> Split:
        """Read a split that was saved beside the dataset, by its name, or one at a path or URL.

        Raises UsageError if there is none, or it does not fit the dataset: volumes are gone, or volumes of two sides
        turned out to belong together. Raises DamagedDataset if it was altered.
        """
        return splits.read(self, place)

    def extend_split(self, place: str | os.PathLike[str] | Split, by: Mapping[str, Any] | None = None) -> Split:
        """Return a saved split with the volumes that were added since; all others stay on their side.

        What belongs to a group that has a side goes there. The rest is placed as the split was made; `by` are your
        groups of the new volumes, if it was made with a mapping. Save it under another name. Raises as `read_split`
        does, but not where volumes are gone.
        """
        return splits.extend(self, place, by)

    def duplicates(self, *, near: bool = True, report: Callable[[int, int], None] | None = None) -> Duplicates:
        """Find (selected) volumes that are the same, or the same acquisition in another form; nothing is merged.

        Volumes with the same pixels are `identical`. With `near`, thumbnails are compared too: all within one frame of
        reference, and each with those most like it, whoever they are said to be of. `report` hears how many are looked
        at, and of how many.

        Examples
        --------
        >>> found = dataset.duplicates()  # doctest: +SKIP
        >>> found.counts, found.pairs  # doctest: +SKIP
        >>> dataset.split(by=found.groups)  # so that near-duplicates are on one side  # doctest: +SKIP
        """
        return duplicates.find(self, near=near, report=report or (lambda _done, _all: None))

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
            No volume is selected or has lungs (those without are left out), or the size is less than one voxel.
        """
        self.check_any()
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
            Patterns of labels to return beside the image, each as one mask; `lungs` are the lungs. A reader's own
            outline of a nodule is taken only by a pattern that says `reader`: not by `nodule-*`, but by
            `nodule-*-reader-*`.
        seed
            Another seed gives other patches, in another order.

        Raises
        ------
        UsageError
            There is no such place or label, no volume is selected, or none has lungs for the negatives.

        Warns
        -----
        UserWarning
            Volumes lack one of `labels`, since it was refused or failed. Where it would be, their masks are 0. Or they
            lack one that patches are `around`, so that negatives in their lungs may show it.
        """
        self.check_any()
        rows = [{str(name): value for name, value in row.items()} for row in self.annotations.to_dict("records")]
        others = () if negatives == "lungs" else find_places(rows, negatives)
        if negatives != "lungs" and not others and positives < 1:
            raise UsageError(f"no annotation is what negatives are asked for, {negatives!r}")
        places = find_places(rows, around)
        if not places and positives > 0:
            has = "`dataset.annotations` lists all" if rows else "the dataset has no annotations yet: see `annotate`"
            raise UsageError(f"around: expected annotations to draw patches around, found none for {around!r}; {has}")
        patterns = check_labels(rows, labels)
        wanted = [pattern for pattern in patterns if pattern != "lungs"]
        if isinstance(around, str) and negatives == "lungs" and positives < 1:
            wanted.append(lacking.OF_NODULES if around == "nodules" else around)
        if lost := self.lacking(wanted) if wanted else {}:
            key, (why, *_) = next(iter(lost.items()))
            warnings.warn(
                f"{self.url}: a label of {n_of(len(lost), 'volume')} was refused or failed, such as {why} of {key}; "
                "where it would be, the masks are 0, and negatives may lie: leave such volumes out, as by select",
                stacklevel=2,
            )
        return Examples(
            self,
            places,
            others,
            as_size(size),
            patterns,
            positives,
            jitter_mm,
            seed,
            outside,
            normalized,
        )

    def stream(
        self,
        size: int | Index,
        batch: int,
        *,
        around: Which | None = None,
        positives: float = 0.5,
        labels: Sequence[str] = (),
        seed: int = 0,
        resume: Mapping[str, Any] | None = None,
    ) -> Stream:
        """Return batches of random patches, read ahead from a disk or S3 by threads: the fastest way to train.

        They are `lung_patches(size, seed=seed)`, or with `around` those of `patches`, each as its `stream` gives them:
        call that for further options.

        Parameters
        ----------
        size, around, positives, labels, seed
            As in `patches`.
        batch, resume
            As in `Draws.stream`.

        Raises
        ------
        UsageError
            As `lung_patches` or `patches` does, or the state is that of another stream.
        """
        if around is None:
            if labels:
                raise UsageError("labels are returned with patches around places: say what places, by `around`")
            return self.lung_patches(size, seed=seed).stream(batch, resume=resume)
        drawn = self.patches(size, around=around, positives=positives, labels=labels, seed=seed)
        return drawn.stream(batch, resume=resume)


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

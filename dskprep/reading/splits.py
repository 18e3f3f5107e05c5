"""A split of a dataset into parts and folds, by patient: made, grown, written beside the dataset and read again."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd

from dskprep.counts import n_of, some_of
from dskprep.errors import UsageError
from dskprep.reading import dealing, split_file, split_rule
from dskprep.reading.groups import Members
from dskprep.reading.split_file import FORMAT, Content, Side
from dskprep.reading.split_rule import Rule

if TYPE_CHECKING:
    from dskprep.reading.dataset import Dataset

BALANCED = "--balanced (in Python, stratify=()) balances them"
MOST_STRATA = 20
"""Combinations of values that may be stratified by, or one for each ten groups."""


@dataclass(frozen=True, eq=False)
class Split:
    """The volumes of a dataset in parts and folds, with no patient, and no two equal volumes, on two sides.

    Attributes
    ----------
    rule
        What it was made by: `by`, `folds`, `seed`, `stratify`, `shares`.
    sides
        `part` and `fold` of each volume, by its key.
    alone
        Volumes whose header names no patient: nothing but their study, equal pixels and your own groups joins them to
        others.
    left_out
        Volumes of the dataset that the split does not have, as they were added later: `Dataset.extend_split` adds them.
    of_several
        The volumes of each group that joins several patients, by equal pixels or a group of yours: one person of two
        names, or a scan that was filed twice. Groups with a volume in `left_out` are not among them.

    Examples
    --------
    >>> split = dataset.split(folds=5)  # doctest: +SKIP
    >>> training, validation = split.fold(0)  # doctest: +SKIP
    >>> training.lung_patches(64, seed=1)  # doctest: +SKIP
    """

    dataset: Dataset
    rule: Rule
    sides: Mapping[str, Side]
    alone: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    of_several: tuple[tuple[str, ...], ...] = ()
    _groups: Mapping[str, str] = field(default_factory=dict, repr=False)
    _all_sides: Mapping[str, Side] = field(default_factory=dict, repr=False)  # also of what a selection leaves out

    def __repr__(self) -> str:
        return f"<split of {len(self.sides)} volumes: {self.describe()}>"

    def part(self, name: str) -> Dataset:
        """Return the volumes of a part: `train`, `validation` or `test`. Raises UsageError if there is none."""
        if name not in self.rule.parts:
            has = ", ".join(self.rule.parts) or "none; give split() shares, such as (0.8, 0.1, 0.1)"
            raise UsageError(f"expected a part of the split, found {name!r}; it has {has}")
        return self._select(key for key, side in self.sides.items() if side.part == name)

    def fold(self, number: int) -> tuple[Dataset, Dataset]:
        """Return the volumes to train with and those to validate with; the part `test` is in neither.

        Raises UsageError if there is no such fold.
        """
        if number not in range(self.rule.folds):
            raise UsageError(f"expected a fold from 0 to {self.rule.folds - 1}, found {number!r}")
        used = {key: side.fold for key, side in self.sides.items() if side.fold is not None}
        training = self._select(key for key, fold in used.items() if fold != number)
        return training, self._select(key for key, fold in used.items() if fold == number)

    @property
    def table(self) -> pd.DataFrame:
        """One row per volume: `key`, `part`, `fold`."""
        rows = [(key, side.part, side.fold) for key, side in sorted(self.sides.items())]
        return pd.DataFrame(rows, columns=["key", "part", "fold"]).astype({"fold": "Int64"})

    def describe(self) -> str:
        """Return one line: how many volumes are in each part and fold, and what is to be known of it."""
        parts = Counter(side.part for side in self.sides.values())
        folds = Counter(side.fold for side in self.sides.values())
        words = [", ".join(f"{name} {parts[name]}" for name in self.rule.parts)] if self.rule.parts else []
        sizes = [folds[fold] for fold in range(self.rule.folds)]
        volumes = f"{', '.join(map(str, sizes))} volumes"
        words.append(f"besides, all but test in folds of {volumes}" if self.rule.parts else f"folds of {volumes}")
        if self.rule.stratify is None and max(sizes) > 2 * min(sizes):
            words.append(f"uneven, as the rule does not look at sizes: {BALANCED}")
        if self.alone:
            words.append(
                f"{n_of(len(self.alone), 'volume')} of no known patient, which only equal pixels, or a study that both "
                "name, put with others: --by (in Python, by=) takes a column that tells patients"
            )
        if self.of_several:
            some = some_of(map(some_of, self.of_several), "; ")
            words.append(f"{n_of(len(self.of_several), 'group')} of several patients ({some})")
        if self.left_out:
            words.append(f"{len(self.left_out)} added later and not in it")
        return "; ".join(words)

    def save(self, place: str | os.PathLike[str]) -> str:
        """Write the split once: beside the dataset, as `splits/<name>.json`, or to a path or URL. Return where it lies.

        Warns (UserWarning) if one beside the dataset was made by the same rule, and volumes are on another side there.
        Raises UsageError if there is another one of that name; the same one may be written again.
        """
        url = split_file.write(self.dataset.url, place, self._content)
        for other, moved in split_file.moved(self.dataset.url, self._content):
            warnings.warn(
                f"{n_of(len(moved), 'volume')}, such as {some_of(moved)}, moved: in {other}, made by the same rule, "
                "another side has them; extend_split, or --extend, moves nobody",
                stacklevel=2,
            )
        return url

    @property
    def digest(self) -> str:
        """The SHA-256 of what it was made by, and of all sides."""
        return self._content.sealed().sha256

    @property
    def _content(self) -> Content:
        return Content(FORMAT, self.rule, dict(sorted(self.sides.items())), dict(self._groups))

    def _select(self, chosen: Iterable[str]) -> Dataset:
        return self.dataset.select(key for key in chosen if key in self.dataset)


def make(
    dataset: Dataset,
    by: str | Sequence[str] | Mapping[str, Any],
    folds: int,
    seed: int,
    stratify: str | Sequence[str] | None,
    shares: Sequence[float] | None,
) -> Split:
    """Make a split; see `Dataset.split`."""
    rule, groups = split_rule.rule_of(by, folds, seed, stratify, shares)
    _refuse_unknown(dataset, groups)
    return _place(dataset, rule, {}, groups)


def read(dataset: Dataset, place: str | os.PathLike[str]) -> Split:
    """Read a split again; see `Dataset.read_split`."""
    content, url = split_file.read(dataset.url, place)
    if gone := sorted(content.sides.keys() - _written(dataset)):
        raise UsageError(
            f"{url}: does not fit the dataset: {len(gone)} of its volumes are not written, such as {some_of(gone)}; "
            "extend_split makes a new one with the others where they are"
        )
    by = tuple(name for name in content.rule.by if name in dataset.columns)  # another may be of a table not joined here
    members = Members(dataset, msgspec.structs.replace(content.rule, by=by, stratify=()), content.groups)
    members.sides_of_groups(content.sides)
    sides = {key: side for key, side in content.sides.items() if key in dataset}
    alone = tuple(key for key in members.alone if key in sides)
    left_out = tuple(key for key in dataset if key not in content.sides)
    of_several = tuple(keys for keys in members.of_several if content.sides.keys() >= set(keys))
    return Split(dataset, content.rule, sides, alone, left_out, of_several, content.groups, content.sides)


def extend(dataset: Dataset, place: str | os.PathLike[str] | Split, by: Mapping[str, Any] | None) -> Split:
    """Return a split with the volumes that were added since; see `Dataset.extend_split`."""
    if isinstance(place, Split):
        rule, sides, groups = place.rule, place._all_sides or place.sides, dict(place._groups)
    else:
        content, _ = split_file.read(dataset.url, place)
        rule, sides, groups = content.rule, content.sides, content.groups
    added = split_rule.groups_of({} if by is None else by)
    _refuse_unknown(dataset, added)
    groups |= added
    return _place(dataset, rule, sides, groups)


def _refuse_unknown(dataset: Dataset, groups: Mapping[str, str]) -> None:
    """Raise UsageError if one of the keys that have a group is not that of a volume."""
    if unknown := sorted(groups.keys() - _written(dataset)):
        raise UsageError(f"by: expected the keys of volumes, found {len(unknown)} others, such as {some_of(unknown)}")


def _written(dataset: Dataset) -> set[str]:
    """Return the keys of all written volumes, also of those that a selection leaves out."""
    return {row["key"] for row in dataset.whole_rows("key")}


def _place(dataset: Dataset, rule: Rule, known: Mapping[str, Side], given: Mapping[str, str]) -> Split:
    """Give each volume its side, those that are `known` the one they have."""
    members = Members(dataset, rule, given)
    _refuse_continuous(rule, members)
    has_side = members.sides_of_groups(known)
    new = [group for group in members.groups if group not in has_side]
    shares: Mapping[Any, float] = dict(zip(rule.parts, rule.shares, strict=True))
    parts = dict(zip(new, _sides(rule, members, new, shares, "part", has_side), strict=True)) if shares else {}
    parts |= {group: side.part for group, side in has_side.items()}
    folded = [group for group in new if parts.get(group) != "test"]
    equal: Mapping[Any, float] = dict.fromkeys(range(rule.folds), 1 / rule.folds)
    folds = dict(zip(folded, _sides(rule, members, folded, equal, "fold", has_side), strict=True))
    folds |= {group: side.fold for group, side in has_side.items()}
    sides = {
        key: Side(parts.get(group), folds.get(group)) for group, chosen in members.groups.items() for key in chosen
    }
    _refuse_empty(rule, sides, members)
    return Split(dataset, rule, sides, members.alone, (), members.of_several, dict(given))


def _sides(
    rule: Rule, members: Members, new: Sequence[int], shares: Mapping[Any, float], what: str, known: Mapping[int, Side]
) -> list[Any]:
    groups = [members.describe(group) for group in new]
    if rule.stratify is None:
        return dealing.place_alone(groups, shares, rule.seed, what)
    there = [(members.describe(group), getattr(side, what)) for group, side in known.items()]
    return dealing.deal(groups, shares, rule.seed, what, [each for each in there if each[1] is not None])


def _refuse_continuous(rule: Rule, members: Members) -> None:
    """Raise UsageError where nearly each group has a stratum of its own, as by an age in days."""
    n_strata = len({members.describe(group).stratum for group in members.groups}) if rule.stratify else 0
    if n_strata > max(MOST_STRATA, len(members.groups) // 10):
        raise UsageError(
            f"stratify: expected columns with few values, found {n_strata} combinations in {len(members.groups)} "
            "groups of volumes; make classes of them first, as by pandas.cut"
        )


def _refuse_empty(rule: Rule, sides: Mapping[str, Side], members: Members) -> None:
    """Raise UsageError if a part or a fold has no volume."""
    parts, folds = {side.part for side in sides.values()}, {side.fold for side in sides.values()}
    empty = [name for name in rule.parts if name not in parts]
    empty += [f"fold {number}" for number in range(rule.folds) if number not in folds]
    if empty:
        n_groups, n_volumes = len(members.groups), len(sides)
        largest = max(map(len, members.groups.values()), default=0)
        what = f"{some_of(empty)} of the split would be empty: there "
        if not n_groups:
            raise UsageError(f"{what}is no volume to split")
        if n_groups == 1:
            raise UsageError(
                f"{what}is one group of volumes, all {n_volumes}: a patient, or what else joins them; if headers do "
                "not tell patients apart, join a table that does, and give its column to --by (in Python, by=)"
            )
        groups = f"{n_groups} groups of volumes (patients, as far as known), the largest with {largest} of {n_volumes}"
        if n_groups < rule.folds:
            raise UsageError(f"{what}are {groups}; ask for {n_groups} folds at most (--folds {n_groups})")
        if rule.stratify is not None:
            raise UsageError(f"{what}are {groups}")
        raise UsageError(f"{what}are {groups}, each placed by chance; {BALANCED}")

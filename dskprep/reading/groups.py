"""Which volumes belong together: those that share a patient, their pixels, or a group of the user's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from dskprep.errors import UsageError
from dskprep.reading import dealing
from dskprep.reading.dealing import Group
from dskprep.reading.split_file import Side
from dskprep.reading.split_rule import ALWAYS, PATIENT, PIXELS, Rule, joins

if TYPE_CHECKING:
    from dskprep.reading.dataset import Dataset


def join_groups(columns: Sequence[Sequence[Hashable | None]]) -> NDArray[np.int32]:
    """Return the number of the group of each row. Rows with one value in a column are of one group, and so on from
    row to row; None joins nothing.

    Examples
    --------
    >>> join_groups([["a", "a", "b", None], [None, 1, 2, 2]]).tolist()
    [0, 0, 1, 1]
    """
    n_rows = len(columns[0])
    rows: list[int] = []
    values: list[int] = []
    numbers: dict[tuple[int, Hashable], int] = {}
    for which, column in enumerate(columns):
        for row, value in enumerate(column):
            if value is not None:
                rows.append(row)
                values.append(n_rows + numbers.setdefault((which, value), len(numbers)))
    n_nodes = n_rows + len(numbers)
    links = sparse.coo_matrix((np.ones(len(rows), np.int8), (rows, values)), shape=(n_nodes, n_nodes))
    _, groups = csgraph.connected_components(links, directed=False)
    found: NDArray[np.int32] = groups[:n_rows]
    return found


class Members:
    """The groups of a dataset: `groups` has the chosen volumes of each, by its number, sorted.

    All written volumes join groups, also those that a selection leaves out, so that selections agree.
    """

    def __init__(self, dataset: Dataset, rule: Rule, given: Mapping[str, str]) -> None:
        written = set(dataset)
        rows = list(
            dataset.whole_rows("key", "study", "patient_without_issuer", *ALWAYS, *rule.by, *(rule.stratify or ()))
        )
        self._columns = [*rule.by, PATIENT, "study", PIXELS]
        self._given, self._stratify, self._seed = given, rule.stratify or (), rule.seed
        for name in {*rule.by, *self._stratify}:
            if any(isinstance(row[name], (list, dict)) for row in rows):
                raise UsageError(f"expected a column with one value per volume to split by, found lists in {name!r}")
        joining = [[row[name] if joins(row[name]) else None for row in rows] for name in (*rule.by, PIXELS)]
        joining += [[given.get(row["key"]) for row in rows], _owners(rows)]
        numbers = join_groups(joining).tolist() if rows else []
        self._by_number: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row, number in zip(rows, numbers, strict=True):
            self._by_number[number].append(row)
        self.groups: dict[int, list[str]] = {}
        for number, found in self._by_number.items():
            if chosen := sorted({row["key"] for row in found} & written):
                self.groups[number] = chosen
        self.number_of = {row["key"]: number for row, number in zip(rows, numbers, strict=True)}
        self.alone = tuple(sorted({row["key"] for row in rows if row["patient"] is None} & written))
        patient_of = {row["key"]: row["patient"] for row in rows}
        self.of_several = tuple(
            tuple(keys) for keys in sorted(self.groups.values()) if len({patient_of[key] for key in keys} - {None}) > 1
        )
        """The volumes of each group that joins several patients."""

    def describe(self, number: int) -> Group:
        """Return a group as it is dealt out."""
        rows = self._by_number[number]
        found = {row["key"]: tuple(row[name] for name in self._stratify) for row in rows}
        strata = {found[key] for key in self.groups.get(number, found)}
        return Group(self._name(rows), len(self.groups.get(number, ())), tuple(sorted(strata, key=repr)))

    def _name(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Return the name of a group, which stays when a volume of a known patient (or user's group) joins it."""
        of_users = {self._given[row["key"]] for row in rows if row["key"] in self._given}
        for column, values in [
            ("", of_users),
            *((c, {row[c] for row in rows if joins(row[c])}) for c in self._columns),
            ("key", {row["key"] for row in rows}),
        ]:
            if values:
                return dealing.name_of([f"{column} {value}" for value in values], self._seed)
        raise AssertionError("a volume has a key")

    def sides_of_groups(self, sides: Mapping[str, Side]) -> dict[int, Side]:
        """Return the side of each group that has one. Raises UsageError if the volumes of one are on two sides."""
        found: dict[int, dict[Side, str]] = defaultdict(dict)
        for key, side in sides.items():
            if key in self.number_of:
                found[self.number_of[key]].setdefault(side, key)
        for keys_of_sides in found.values():
            if len(keys_of_sides) > 1:
                first, second = list(keys_of_sides.items())[:2]
                raise UsageError(
                    f"the split does not fit the dataset: {first[1]} ({_words(first[0])}) and {second[1]} "
                    f"({_words(second[0])}) belong together now, by patient, study, pixels or group; make another"
                )
        return {number: next(iter(keys_of_sides)) for number, keys_of_sides in found.items()}


def _owners(rows: Sequence[Mapping[str, Any]]) -> list[Hashable | None]:
    """Return the patient of each row: where a header names none, the one patient of its study, else the study itself.

    So reconstructions of one scan of which PatientID was removed are not taken for those of several patients. Nor are
    scans of one PatientID of which some headers name no issuer.
    """
    there = {row["patient"] for row in rows} - {None}
    patients = [row["patient_without_issuer"] for row in rows]
    patients = [one if one in there else row["patient"] for one, row in zip(patients, rows, strict=True)]
    of_study: dict[str, set[str]] = defaultdict(set)
    for patient, row in zip(patients, rows, strict=True):
        if patient is not None and row["study"] is not None:
            of_study[row["study"]].add(patient)

    def owner(patient: str | None, study: str | None) -> Hashable | None:
        if patient is not None or study is None:
            return patient
        found = of_study.get(study, set())
        return min(found) if len(found) == 1 else ("study", study)

    return [owner(patient, row["study"]) for patient, row in zip(patients, rows, strict=True)]


def _words(side: Side) -> str:
    return ", ".join([*([side.part] if side.part else []), *([f"fold {side.fold}"] if side.fold is not None else [])])

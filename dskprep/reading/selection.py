"""The volumes of a dataset, all that are written or a selection: a mapping from key to volume, and a row for each."""

from __future__ import annotations

import bisect
import difflib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from dskprep.counts import n_of, some_of
from dskprep.dataset import annotations as annotated
from dskprep.dataset import index, lacking, store, undisturbed
from dskprep.dataset.record import RecordName
from dskprep.errors import UsageError
from dskprep.patterns import as_patterns
from dskprep.reading import display, joined
from dskprep.reading.joined import Joined
from dskprep.reading.stored import StoredVolume

if TYPE_CHECKING:
    import pandas as pd

IDENTITIES = ("patient", "patient_without_issuer", "study", "frame_of_reference")
"""Columns that an index of an older version lacks."""
EXAMPLES = ("patient", "study", "source_scanner", "arms")  # columns by which one may split or stratify
FATES = {"refused": "was refused", "set-aside": "was set aside", "failed": "failed", "killed": "was killed"}
"""What became of a series that was not written, in words."""
NEAR = 50
"""Keys before and after one that is not there, in their order, among which the one that was meant is looked for."""


class _Row(dict[str, Any]):
    """A row of the index, which knows its columns."""

    def __missing__(self, column: str) -> Any:
        like = difflib.get_close_matches(str(column), self, n=3) or self
        raise KeyError(f"no column {column!r}; there is {some_of(like, ' or ')}")


@dataclass(frozen=True, repr=False)
class Selection(Mapping[str, StoredVolume]):
    """The written volumes of a dataset, or some of them, by key; their rows of the index; and how some are selected.

    What is made of them is in `Dataset`, where the fields are described.
    """

    url: str
    chosen: frozenset[str] | None = None
    joined: tuple[Joined, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("index", "rows", "annotations", "_annotated", "_fates", "_table")
        }

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that all volumes were prepared with, as in dataset.json."""
        settings: dict[str, Any] = store.describe(self.url)["settings"]
        return settings

    @cached_property
    def attribution(self) -> list[dict[str, Any]]:
        """Whose data the volumes are, as far as that is known: `licence`, `doi`, `citation`, and how many `series`.

        As in dataset.json, where the last run has left it. Empty for other data than those of catalogues.
        """
        found: list[dict[str, Any]] = store.describe(self.url).get("attribution", [])
        return found

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row per series, with those that were not written; for a selection, one row per selected volume."""
        table = index.to_frame(self._table)
        for added in self.joined:
            table = added.add_to(table)
        return table if self.chosen is None else table[table["key"].isin(self._names)]

    @cached_property
    def annotations(self) -> pd.DataFrame:
        """One row per label and point of the (selected) volumes: see docs/labels.md for the columns.

        What was made for another image of the same key is left out: `annotate` makes it anew.
        """
        annotated.warn_of_damaged(self.url, annotated.damaged(self._annotated))
        table = annotated.to_frame(annotated.without_repeats(self._annotated))
        images = table["key"].map({key: name.digest for key, name in self._names.items()})
        return table[(table["status"] == "written") & (table["image"] == images)].reset_index(drop=True)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the index for the (selected) written volumes, sorted by key, as plain dictionaries."""
        return list(self._rows())

    def where(self, is_wanted: Callable[[dict[str, Any]], bool]) -> Self:
        """Select the volumes for whose row of the index `is_wanted(row)` is true.

        Raises KeyError, which names the columns that are meant, if it asks for one that there is not.
        """
        return self._selection(row["key"] for row in self._rows() if is_wanted(_Row(row)))

    def annotated(self, is_wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> Self:
        """Select the volumes with a label or point for whose row of `annotations` `is_wanted(row)` is true."""
        rows = self.annotations.to_dict("records")
        return self._selection({row["key"] for row in rows if is_wanted({str(k): v for k, v in row.items()})})

    def select(self, keys: Iterable[str]) -> Self:
        """Select the volumes of these keys. Raises KeyError if one is not written, UsageError if it is one text."""
        if isinstance(keys, (str, bytes)):
            raise UsageError(f"expected a list of keys, found one text, {keys!r:.100}; write [{keys!r:.100}]")
        chosen = frozenset(keys)
        if missing := sorted(chosen - self._names.keys()):
            raise KeyError(self._explain(missing[0]))
        return self._selection(chosen)

    def join(
        self,
        table: str | os.PathLike[str] | pd.DataFrame,
        on: str = "key",
        *,
        column: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Self:
        """Add the columns of a table: to the rows that `where` sees, to `index`, `split` and the items of `as_torch`.

        What has no counterpart is counted and named in a warning (UserWarning) and in `joined`. Values match if they
        are equal, character by character.

        Parameters
        ----------
        table
            A CSV or Parquet file, by path or URL, or a pandas table.
        on
            The column of the index that says which row is a volume's. `PatientID`, `StudyInstanceUID` and
            `SeriesInstanceUID` of a table are digested as those of the headers were, and are not kept.
        column
            The column of the table, if it has another name there.
        columns
            Which columns to add; by default all others.

        Raises
        ------
        UsageError
            The table cannot be read, lacks the column, has one value in two rows or none in one, has columns that the
            dataset has already, or no row of any volume.

        Examples
        --------
        >>> labelled = dataset.join("stage1_labels.csv", on="key", column="id")  # doctest: +SKIP
        >>> labelled.where(lambda row: row["cancer"] == 1)  # doctest: +SKIP
        """
        by = joined.IDENTIFIERS.get(on, on)
        of_volume = {row["key"]: row[by] for row in self.whole_rows("key", by)}
        found = joined.join(self.url, table, of_volume, on=on, column=column or on, columns=columns, known=self.columns)
        if said := found.describe():
            warnings.warn(said, stacklevel=2)
        return self._with(self.chosen, (*self.joined, found))

    def keys_with_lungs(self) -> tuple[str, ...]:
        """Return the keys of the (selected) volumes in which lungs were found, sorted."""
        columns = ("right_lung_ml", "left_lung_ml", "unsided_lung_ml")
        rows = self._rows(*columns)
        return tuple(sorted(row["key"] for row in rows if any((row[column] or 0) > 0 for column in columns)))

    def check_any(self) -> None:
        """Raise UsageError if there is no (selected) volume, so that nothing can be drawn from any."""
        if next(self._rows("key"), None) is None:
            selected = "0 volumes are selected; `index` of the whole dataset has what one may select by"
            none = "no volume is written; `dskprep status` says why" if self.chosen is None else selected
            raise UsageError(f"{self.url}: expected volumes to take patches from, but {none}")

    def _selection(self, keys: Iterable[str]) -> Self:
        return self._with(frozenset(keys), self.joined)

    def _with(self, chosen: frozenset[str] | None, joined: tuple[Joined, ...]) -> Self:
        selected = type(self)(self.url, chosen, joined)
        vars(selected)["_table"] = self._table  # what was chosen from, so that nothing is listed again
        return selected

    @cached_property
    def _table(self) -> Any:
        """The index as it should be: index.parquet, compared with a listing of the records."""
        return index.current_table(self.url)

    @cached_property
    def _annotated(self) -> Any:
        """annotations.parquet as it should be, with what was refused."""
        return annotated.current_table(self.url)

    def lacking(self, labels: Sequence[str]) -> dict[str, list[str]]:
        """Return by key which labels of these names or patterns (selected) volumes lack since they were refused."""
        labels = as_patterns(labels, "labels")
        lost = lacking.lost_labels(self._annotated)
        found = {key: lacking.of_volume(lost, key, name.digest, labels) for key, name in self._names.items()}
        return {key: why for key, why in sorted(found.items()) if why}

    @cached_property
    def _names(self) -> dict[str, RecordName]:
        return {row["key"]: RecordName(*(row[part] for part in index.NAME)) for row in self._rows(*index.NAME)}

    def _rows(self, *columns: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of the (selected) written volumes one by one; if columns are named, with only those."""
        for row in index.rows_of(self._table, [*{"status", "key", *columns}] if columns else None):
            if row["status"] == "written" and (self.chosen is None or row["key"] in self.chosen):
                yield row if columns else self._add_joined(row)

    def _add_joined(self, row: dict[str, Any]) -> dict[str, Any]:
        for added in self.joined:
            row |= added.values(row)
        return row

    def whole_rows(self, *names: str) -> Iterator[dict[str, Any]]:
        """Yield these columns of all written volumes, also of those that a selection leaves out.

        Raises UsageError if there is no such column.
        """
        if unknown := [name for name in names if name not in self.columns]:
            near = difflib.get_close_matches(unknown[0], self.columns, n=3, cutoff=0.7)
            some = some_of([*(name for added in self.joined for name in added.columns), *EXAMPLES])
            hint = f"did you mean {' or '.join(near)}?" if near else f"there is {some}; `dataset.index` has all"
            raise UsageError(
                f"expected a column of the index, or of a table that is joined (--join FILE; in Python, join), found "
                f"{unknown[0]!r}; {hint}"
            )
        needed = {"status", "key", *names, *(added.on for added in self.joined)}
        for row in index.rows_of(self._table, sorted(needed & {*self._table.schema.names})):
            if row["status"] == "written":
                row = self._add_joined(dict.fromkeys(IDENTITIES) | row)
                yield {name: row[name] for name in names}

    @property
    def columns(self) -> set[str]:
        """The names of the columns of the index, with those of joined tables."""
        return {*self._table.schema.names, *IDENTITIES, *(name for added in self.joined for name in added.columns)}

    def fate(self, key: str) -> str:
        """Return what became of a series that was not written, as its record says; "" if there is none of this key."""
        return self._fates.get(key, "")

    @property
    def damaged(self) -> dict[str, str]:
        """The keys of the records, of the whole dataset, that cannot be read, and why."""
        return index.damaged(self._table)

    def names_of(self, *statuses: str) -> dict[str, RecordName]:
        """Return the names of the records of these statuses, by key, of the whole dataset."""
        names = (RecordName(*(row[part] for part in index.NAME)) for row in index.rows_of(self._table, index.NAME))
        return {name.key: name for name in names if name.status in statuses}

    @cached_property
    def _fates(self) -> dict[str, str]:
        """What became of each series that was not written; kept because `get` asks again for each missing key."""
        rows = index.rows_of(self._table, ["key", "status", "reason", "message"])
        return {
            row["key"]: f"{FATES[row['status']]}, {row['reason']}: {row['message']}"
            for row in rows
            if row["status"] != "written"
        }

    def _explain(self, key: object) -> str:
        """Return why there is no volume of this key."""
        if fate := self._fates.get(str(key)):
            return f"{key}: {fate}"
        if self.chosen is not None and key not in self.chosen:
            return f"{key}: is not in this selection of {n_of(len(self), 'volume')}"
        there = list(self)
        at = bisect.bisect_left(there, str(key))
        near = difflib.get_close_matches(str(key), there[max(at - NEAR, 0) : at + NEAR])
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f", such as {', '.join(there[:3])}"
        return f"{self.url}: no volume {key!r} is written; there are {len(there)}{hint}"

    def __repr__(self) -> str:
        """Say where it lies, and how many volumes it has, if that is known already: to count them takes requests."""
        if self.chosen is not None:
            return f"<Dataset {self.url}: {n_of(len(self.chosen), 'selected volume')}>"
        return f"<Dataset {self.url}{': ' + n_of(len(self), 'volume') if '_names' in vars(self) else ''}>"

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
        return StoredVolume(key, store.volume_url(self.url, key), undisturbed.record_of(self.url, self._names[key]))

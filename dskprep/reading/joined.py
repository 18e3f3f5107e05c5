"""Columns that a table of the user's adds to a dataset: labels, outcomes, sites, whatever is known of a volume."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from dskprep import keys, storage, tables
from dskprep.counts import n_of, some_of
from dskprep.dataset import identity
from dskprep.errors import DamagedDataset, UsageError
from dskprep.plain import in_one_line

IDENTIFIERS = {
    "PatientID": "patient",
    "StudyInstanceUID": "study",
    "SeriesInstanceUID": "series_uid_sha256",
}
"""Identifiers that a table may have, and the column of the index that holds their digests."""
NO_VALUE = frozenset(
    "NA N/A n/a #N/A #NA <NA> NaN nan -NaN -nan NULL null None 1.#IND -1.#IND 1.#QNAN -1.#QNAN".split()
) | {"#N/A N/A"}
"""What stands for a missing number in CSV tables, as `pandas.read_csv` has it."""
TABLE = "the table"
"""What a table without a file is called."""


@dataclass(frozen=True, eq=False)
class Joined:
    """A table that was joined to a dataset.

    Attributes
    ----------
    table
        Where it was read from.
    on
        The column of the index that its rows were found by.
    columns
        The columns that it adds.
    without_row
        The keys of the volumes that have no row; their values are None.
    without_volume
        The rows that no volume has: what identifies them, or for identifiers of DICOM their numbers.
    """

    table: str
    on: str
    columns: tuple[str, ...]
    without_row: tuple[str, ...] = ()
    without_volume: tuple[str, ...] = ()
    _rows: Mapping[Any, tuple[Any, ...]] = field(default_factory=dict, repr=False)

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that a row of the index gets."""
        found = self._rows.get(row[self.on]) or (None,) * len(self.columns)
        return dict(zip(self.columns, found, strict=True))

    def add_to(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the index with the columns added."""
        found = [self._rows.get(value) for value in table[self.on]]
        added = {
            name: pd.Series([None if row is None else row[i] for row in found], index=table.index).infer_objects()
            for i, name in enumerate(self.columns)
        }
        return table.assign(**added)

    def describe(self) -> str:
        """Return one line that names what did not find its counterpart; "" if everything did."""
        missing = []
        if self.without_row:
            missing.append(f"{n_of(len(self.without_row), 'volume')} without a row, such as {_some(self.without_row)}")
        if self.without_volume:
            some = _some(self.without_volume)
            missing.append(f"{n_of(len(self.without_volume), 'row')} without a volume, such as {some}")
        return f"{self.table}: {'; '.join(missing)}" if missing else ""


def join(
    target: str,
    table: str | os.PathLike[str] | pd.DataFrame,
    of_volume: Mapping[str, Any],
    *,
    on: str,
    column: str,
    columns: Sequence[str] | None,
    known: Collection[str],
) -> Joined:
    """Find the row of each volume in a table, by what `of_volume` has for its key. See `Dataset.join`.

    `known` are the columns that the dataset has.
    """
    found_by = IDENTIFIERS.get(on, on)
    frame, where = _read(table, column)
    _check_names(frame, where, column)
    owners: list[Any] = _owners(frame, where, column)
    if on in IDENTIFIERS:
        owners = [owner.strip() for owner in owners]  # as those of headers are before they are digested
    names = [f"row {i}" for i in range(1, len(owners) + 1)] if on in IDENTIFIERS else owners  # identifiers are not told
    there = set(of_volume.values()) - {None}
    if there and all(isinstance(value, (int, float)) for value in there):
        owners = [_number(owner) for owner in owners]
    _check_once(owners, names, where, column)
    chosen = _choose(frame, where, column, columns, known)
    _check_plain(frame[chosen], where)
    digests = _digests(target, on, owners, there)
    rows = {d: row for d, row in zip(digests, _plain_rows(frame[chosen]), strict=True) if d is not None and d in there}
    without_row = tuple(sorted(key for key, value in of_volume.items() if value not in rows))
    without_volume = tuple(name for name, digest in zip(names, digests, strict=True) if digest not in there)
    if not rows:
        raise UsageError(
            f"{where}: expected rows with the {found_by!r} of volumes, such as {_some(sorted(there))}, found none; the "
            f"first rows have {_some(names)} in {column!r}"
        )
    return Joined(where, found_by, tuple(map(str, chosen)), without_row, without_volume, rows)


def _read(table: str | os.PathLike[str] | pd.DataFrame, column: str) -> tuple[pd.DataFrame, str]:
    """Return a table and what to call it. The column that identifies its rows is read as the text that stands there."""
    if isinstance(table, pd.DataFrame):
        return table, TABLE
    url = storage.absolute(table)
    try:
        content = storage.read(url)
        if content[:4] == b"PAR1":
            return tables.from_parquet(content), url
        return _read_csv(content, column), url
    except FileNotFoundError as error:
        raise UsageError(f"{url}: there is no such file") from error
    except ValueError as error:
        why = in_one_line(error, 200)
        raise UsageError(f"{url}: cannot be read as a CSV or Parquet table: {why}") from error


def _read_csv(content: bytes, column: str) -> pd.DataFrame:
    """Read a CSV table in which only an empty field is missing: `NA` may be North America, or a name.

    In a column of numbers, or of true and false, it can be no value, and is missing as pandas has it.
    """
    frame = tables.from_csv(content, converters={column: str}, low_memory=False, keep_default_na=False, na_values=[""])
    doubtful = [name for name in frame if name != column and frame[name].isin(NO_VALUE).any()]
    if doubtful:
        found = tables.from_csv(content, usecols=doubtful, low_memory=False)
        for name in doubtful:
            is_text = pd.api.types.infer_dtype(found[name], skipna=True) not in ("integer", "floating", "boolean")
            if not is_text and found[name].notna().any():
                frame[name] = found[name]
    return frame


def _check_names(frame: pd.DataFrame, where: str, column: str) -> None:
    if column not in frame.columns:
        found = ", ".join(repr(name) for name in frame.columns)
        raise UsageError(
            f"{where}: expected the column {column!r}, found {found:.200}; if another one says which volume a row "
            "belongs to, name it with --column (in Python, column=)"
        )
    if twice := [str(name) for name, n in Counter(frame.columns).items() if n > 1]:
        raise UsageError(f"{where}: the column {twice[0]!r} is there twice; rename one")


def _owners(frame: pd.DataFrame, where: str, column: str) -> list[str]:
    """Return what identifies each row, as text. Raises UsageError where it is missing."""
    values = frame[column]
    is_empty = (values.isna() | (values.astype(str) == "")).to_numpy()
    if is_empty.any():
        raise UsageError(f"{where}: expected {column!r} in every row, found none in row {int(is_empty.argmax()) + 1}")
    return [value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value) for value in values]


def _number(owner: str) -> Any:
    """Return what a text says as a number; the text if it says none."""
    try:
        return float(owner)
    except ValueError:
        return owner


def _check_once(owners: Sequence[Any], names: Sequence[str], where: str, column: str) -> None:
    counts = Counter(owners)
    if twice := list(dict.fromkeys(name for name, owner in zip(names, owners, strict=True) if counts[owner] > 1)):
        raise UsageError(
            f"{where}: expected each {column!r} in one row, found some in more: {_some(twice)}; keep one row of each"
        )


def _choose(
    frame: pd.DataFrame, where: str, column: str, columns: Sequence[str] | None, known: Collection[str]
) -> list[Any]:
    """Return the columns to add. Raises UsageError if one is not there, or the dataset has one of that name."""
    chosen = [name for name in frame.columns if name != column] if columns is None else list(dict.fromkeys(columns))
    if missing := [name for name in chosen if name not in frame.columns]:
        raise UsageError(f"{where}: there is no column {missing[0]!r}")
    if clashes := sorted(str(name) for name in chosen if str(name) in known):
        raise UsageError(
            f"{where}: the dataset has columns {_some(clashes)} already; rename them in the table, or name with "
            "columns= those that you want"
        )
    return chosen


def _check_plain(frame: pd.DataFrame, where: str) -> None:
    """Raise UsageError for a column that does not hold numbers, texts or the like."""
    for name in frame:
        if frame[name].dtype == object and any(pd.api.types.is_list_like(value) for value in frame[name]):
            raise UsageError(
                f"{where}: expected numbers or texts in the column {str(name)!r:.100}, found lists; leave it out with "
                "columns="
            )


def _digests(target: str, on: str, owners: Sequence[Any], there: Collection[Any]) -> list[Any]:
    """Return what stands in the index for each owner: itself, or for an identifier its digest."""
    if on == "SeriesInstanceUID":
        return [keys.series_digest(owner) for owner in owners]
    if on not in IDENTIFIERS:
        return list(owners)
    if not there:
        raise UsageError(f"{target}: no volume has a digest of its {on}; it was prepared before there were any")
    if not storage.exists(storage.join(target, identity.FILE)):
        raise DamagedDataset(f"{target}: {identity.FILE} is gone, by which identifiers are digested; put it back")
    digest = identity.of(target).digest
    if on == "PatientID":
        return [digest("patient", owner, "") for owner in owners]  # of patients whose issuer is not given
    return [digest("study", owner) for owner in owners]


def _plain_rows(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Return the rows as plain values, None where there is none."""
    columns = (frame[name].convert_dtypes().astype(object) for name in frame.columns)
    plain = [[None if is_empty else v for v, is_empty in zip(c, c.isna(), strict=True)] for c in columns]
    return list(zip(*plain, strict=True)) if plain else [()] * len(frame)


def _some(names: Iterable[str]) -> str:
    return some_of(map(repr, names))

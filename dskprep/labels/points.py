"""Tables of points: LUNA16's annotations and candidates, and any CSV or Parquet file with x, y and z."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from dskprep import tables
from dskprep.dicom.slices import MAX_POSITION_MM
from dskprep.errors import Refusal, UsageError
from dskprep.labels.attributes import one_line, refuse_if_more
from dskprep.labels.stack import Stack
from dskprep.labels.values import Labels, Links, Segment
from dskprep.volume import Grid

OWNERS = ("key", "seriesuid")
"""Columns that say to which volume a point belongs; one of them is enough."""
AXES = {"x": ("x", "coordx"), "y": ("y", "coordy"), "z": ("z", "coordz")}
"""The coordinates in LPS mm, and the names that columns may have, without regard to case."""
DIAMETER = "diameter_mm"
"""Column that LUNA16 has for the diameter; kept under this name."""
MAX_ROWS = 10_000_000
"""Most points; LUNA16 has 754,975 candidates."""
MAX_COLUMNS = 1000
"""Most columns."""
MAX_BYTES = 1 << 30
"""Longest file, and the most memory of a Parquet file once it is read."""


class Points(Labels):
    """A table of points, mostly of many volumes. `points` has `key` or `seriesuid`, `x`, `y`, `z`, and all the rest."""

    kind = "points"

    def __init__(self, content: bytes, where: str) -> None:
        self.where = where
        refuse_if_more(len(content), MAX_BYTES, "bytes", where)
        self._table = _check(_read(content, where), where)
        series = self._table["seriesuid"].unique() if "seriesuid" in self._table else ()
        self.links = Links(frozenset(map(str, series)))

    def stacks(self, segment: Segment, grid: Grid) -> Iterable[Stack]:
        """Raises UsageError: a point has no extent."""
        del segment, grid
        raise UsageError(f"{self.where}: a table of points has nothing to draw; use its points")

    @property
    def points(self) -> pd.DataFrame:
        """The rows of the table, in their order, as a copy."""
        return self._table.copy()


def _read(content: bytes, where: str) -> pd.DataFrame:
    try:
        if content[:4] == b"PAR1":
            return _read_parquet(content, where)
        if b"\0" in content:
            raise ValueError("it holds zero bytes")
        _check_header(tables.header_of(content), where)
        return tables.from_csv(content, dtype=str, keep_default_na=False, nrows=MAX_ROWS + 1, skipinitialspace=True)
    except ValueError as error:
        raise Refusal("label-damaged", f"{where}: cannot be read as a table: {one_line(error)}") from error


def _check_header(header: list[str], where: str) -> None:
    """Refuse a table whose columns are not parted by commas, or of which two have one name."""
    refuse_if_more(len(header), MAX_COLUMNS, "columns", where)
    names = [name.casefold() for name in header]
    if len(names) == 1 and ("\t" in names[0] or ";" in names[0]):
        raise Refusal("label-unknown", f"{where}: expected columns parted by commas, found {header[0][:60]!r}")
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Refusal("label-unknown", f"{where}: expected each column once, found {twice!r:.60} twice")


def _read_parquet(content: bytes, where: str) -> pd.DataFrame:
    file = tables.open_parquet(content)
    refuse_if_more(file.metadata.num_rows, MAX_ROWS, "rows", where)
    refuse_if_more(file.metadata.num_columns, MAX_COLUMNS, "columns", where)
    groups = (file.metadata.row_group(k) for k in range(file.metadata.num_row_groups))
    refuse_if_more(sum(group.total_byte_size for group in groups), MAX_BYTES, "bytes", where)
    return tables.from_parquet(content)


def _check(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the table with columns by their names here, the coordinates as float64. Raises Refusal."""
    refuse_if_more(len(table), MAX_ROWS, "rows", where)
    names = {str(column).strip().lower(): column for column in table.columns}
    for known in AXES.values():
        if len(both := [str(names[n]) for n in known if n in names]) > 1:
            what = one_line(" and ".join(both))[:60]
            raise Refusal("label-unknown", f"{where}: expected one column of a coordinate, found {what}; leave one")
    found = {axis: next((names[n] for n in known if n in names), None) for axis, known in AXES.items()}
    owners = {owner: names[owner] for owner in OWNERS if owner in names}
    if None in found.values() or not owners or len(names) < len(table.columns):
        is_of_other_things = not owners and not any(found.values())
        raise Refusal(
            "no-label" if is_of_other_things else "label-unknown",
            f"{where}: expected the columns x, y, z (or coordX, coordY, coordZ) and key or seriesuid, each once, found "
            f"{one_line(', '.join(map(str, table.columns)))[:100]}",
        )
    if not len(table):
        raise Refusal("label-empty", f"{where}: expected points, found a table without rows")
    table = table.rename(columns={old: new for new, old in (found | owners).items()})
    for axis in AXES:
        table[axis] = _numbers(table[axis], where, f"{axis} in LPS mm", MAX_POSITION_MM)
    if DIAMETER in table:
        table[DIAMETER] = _numbers(table[DIAMETER], where, "a diameter in mm", MAX_POSITION_MM)
        if (table[DIAMETER] < 0).any():
            row = int((table[DIAMETER] < 0).to_numpy().argmax()) + 1
            raise Refusal("label-damaged", f"{where}: row {row}: expected a diameter in mm, found a negative one")
    for owner in owners:
        is_null = table[owner].isna()
        table[owner] = table[owner].astype(str).str.strip()
        is_empty = (is_null | (table[owner] == "")).to_numpy()
        if is_empty.any():
            row = int(is_empty.argmax()) + 1
            raise Refusal("label-damaged", f"{where}: expected a {owner} in every row, found none in row {row}")
    return table


def _numbers(column: pd.Series, where: str, what: str, most: float) -> pd.Series:
    values = pd.to_numeric(column, errors="coerce").astype(np.float64)
    is_bad = ~(values.abs() <= most).to_numpy()  # also for NaN
    is_bad |= column.dtype.kind in "bmM"  # true, false and times, which pandas makes numbers of
    if is_bad.any():
        row = int(is_bad.argmax())
        raise Refusal(
            "label-damaged", f"{where}: row {row + 1}: expected {what}, found {one_line(column.iloc[row])[:40]!r}"
        )
    return values

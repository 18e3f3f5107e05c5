"""A manifest: a table, as CSV or Parquet, that lists cases by key and URL, or series of the Imaging Data Commons."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dskprep import storage
from dskprep.errors import UsageError
from dskprep.plain import in_one_line
from dskprep.source import catalogue

if TYPE_CHECKING:
    import pandas as pd


class Cohort(NamedTuple):
    """Series of the Imaging Data Commons, by their names in one of `catalogue.ID_COLUMNS`."""

    column: str
    names: list[str]


class Line(NamedTuple):
    """One case: its key, its URL, and what further columns say of the attributes of its series."""

    key: str
    url: str
    header: tuple[tuple[str, str], ...] = ()


HEADER = (
    "PatientID StudyInstanceUID SeriesInstanceUID Manufacturer ManufacturerModelName SeriesDescription SliceThickness "
    "ConvolutionKernel KVP ReconstructionDiameter ContrastBolusAgent"
).split()
"""Columns of attributes, by which series are chosen without a request for their headers."""


def read(source: str) -> list[Line] | Cohort:
    """Return key, URL and attributes of each line, as they stand there; or what names series of IDC.

    What is not UTF-8 stays as in the names of files. Raises UsageError if the file is no such table, if a key or URL is
    empty, if one holds credentials, which is not repeated, or if a key stands there twice.
    """
    from dskprep import tables  # a worker needs none

    try:
        content = storage.read(source)
        if source.lower().endswith(".csv"):
            table = tables.from_csv(content, dtype=object, keep_default_na=False, encoding_errors="surrogateescape")
        else:
            table = tables.from_parquet(content)
    except FileNotFoundError as error:
        raise UsageError(f"{source}: there is no such file") from error
    except ValueError as error:
        raise UsageError(f"{source}: cannot be read as a manifest: {in_one_line(error, 200)}") from error
    if not {"key", "url"} <= set(table.columns):
        if any(storage.holds_credentials(str(column)) for column in table.columns):  # as where the header is missing
            raise UsageError(f"{source}: expected the columns 'key' and 'url'; {storage.CREDENTIALS}")
        if column := catalogue.id_column(table.columns):
            _check_filled(table, source, [column])
            names = [_text(name) for name in table[column]]
            if any(map(storage.holds_credentials, names)):
                raise UsageError(f"{source}: {storage.CREDENTIALS}")
            return Cohort(column, names)
        found = ", ".join(repr(column) for column in table.columns)
        raise UsageError(f"{source}: expected the columns 'key' and 'url', found {found[:200]}")
    _check_filled(table, source, ["key", "url"])
    known_columns = [name for name in HEADER if name in table.columns]
    texts = [table[name].astype(object).where(table[name].notna(), "").map(_text) for name in known_columns]
    headers = [tuple(zip(known_columns, row, strict=True)) for row in zip(*texts, strict=True)] or [()] * len(table)
    lines = [
        Line(_text(key), _text(url), header)
        for key, url, header in zip(table["key"], table["url"], headers, strict=True)
    ]
    known: set[str] = set()
    for row, (key, url, _) in enumerate(lines, start=1):
        if storage.holds_credentials(key) or storage.holds_credentials(url):
            raise UsageError(f"{source}, row {row}: {storage.CREDENTIALS}")
        if key in known:
            raise UsageError(f"{source}: the key {key!r} stands in more than one line")
        known.add(key)
    return lines


def _check_filled(table: pd.DataFrame, source: str, columns: list[str]) -> None:
    is_empty = (table[columns].isna() | (table[columns] == "")).any(axis=1).to_numpy()
    if is_empty.any():
        raise UsageError(
            f"{source}: expected a {' and a '.join(columns)} in every row, "
            f"found one empty in row {is_empty.argmax() + 1}"
        )


def _text(value: object) -> str:
    """Return a value as text; some programs write bytes."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)

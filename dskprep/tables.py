"""Tables: CSV and Parquet of the users' own, or of strangers, read in one way; and Parquet as it is written here."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import pyarrow
from pyarrow import compute, parquet, types

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""How a text in UTF-16 begins, as some programs write one."""
FIRST_BYTES = 64
"""Text in UTF-16 has a zero byte among so many first ones, if any letter of them is Latin."""
MOST_BYTES = 1 << 32
"""Most bytes of a Parquet table in memory; the index of a million series has a fifth of it."""
OTHER_BEGINNINGS = {
    b"PK\x03\x04": "a workbook or an archive; save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "a workbook; save the sheet as CSV",
    b"\x1f\x8b": "gzip; decompress it",
}
"""How files begin that are taken for a CSV table, and what to do with them."""
OTHER_SEPARATORS = ";\t|"
"""What stands between fields where it is not a comma: in CSV of Excel's, where commas are decimal; in TSV."""
MAX_HEADER_BYTES = 1 << 22
"""The names of a table's columns end within so many bytes."""


def from_csv(content: bytes, **options: Any) -> pd.DataFrame:
    """Read a CSV table in UTF-8; the options are those of `pandas.read_csv`.

    Raises ValueError for what is none, as where a row has more fields than the header, or two columns one name.
    """
    for beginning, found in OTHER_BEGINNINGS.items():
        if content.startswith(beginning):
            raise ValueError(f"expected text, found {found}")
    if content.startswith(UTF_16) or b"\0" in content[:FIRST_BYTES]:
        raise ValueError("expected text in UTF-8, found bytes as those of UTF-16; save it as UTF-8")
    names = header_of(content)
    if len(names) == 1 and (other := [mark for mark in OTHER_SEPARATORS if mark in names[0]]):
        raise ValueError(f"expected commas between fields, found {other[0]!r}; save it as CSV with commas")
    if twice := [name for name, n_times in Counter(names).items() if name and n_times > 1]:
        raise ValueError(f"the column {twice[0]!r:.100} is there twice; rename one")
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # of rows that are too long
            frame: pd.DataFrame = pd.read_csv(io.BytesIO(content), index_col=False, **options)
    except (pd.errors.ParserWarning, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return frame


def header_of(content: bytes) -> list[str]:
    """Return the names in the first line of a CSV table, whichever way lines end. Raises ValueError if it is none."""
    line = re.split(rb"[\r\n]", content[:MAX_HEADER_BYTES], maxsplit=1)[0]
    try:
        return [name.strip() for name in next(csv.reader([line.decode("utf-8-sig", errors="surrogateescape")]), [])]
    except csv.Error as error:
        raise ValueError(str(error)) from error


def open_parquet(content: bytes) -> parquet.ParquetFile:
    """Open a Parquet file, of which nothing but its metadata is read yet. Raises ValueError for what is none."""
    try:
        # in this thread: those of pyarrow release a Python file late, which aborts a program that is just ending
        return parquet.ParquetFile(pyarrow.BufferReader(content), pre_buffer=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(str(error)) from error


def read_parquet(content: bytes, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Read a Parquet file, or some of its columns.

    Raises ValueError if it is damaged, or takes more than MOST_BYTES: a value that many rows have is stored once, so a
    kilobyte can stand for a terabyte. Texts are kept as they are stored until it is known how long they are together.
    """
    fields = list(open_parquet(content).schema_arrow)
    try:
        source = pyarrow.BufferReader(content)
        file = parquet.ParquetFile(source, pre_buffer=False, read_dictionary=texts_of(fields))
        _check_size(_claimed_bytes(file))
        table = file.read(columns=columns, use_threads=False)
        _check_size(table.nbytes + sum(_text_bytes(column) for column in table.columns))
        if columns is not None:
            fields = [field for name in table.schema.names for field in fields if field.name == name]
        return table.cast(pyarrow.schema(fields))
    except (OSError, TypeError, OverflowError, pyarrow.ArrowException) as error:
        raise ValueError(str(error)) from error


def texts_of(fields: Iterable[pyarrow.Field]) -> list[str]:
    """Return the names of the columns of text or bytes, which can be read as they are stored, each value once."""
    kinds = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return [field.name for field in fields if any(is_of(field.type) for is_of in kinds)]


def _check_size(n_bytes: int) -> None:
    if n_bytes > MOST_BYTES:
        raise ValueError(f"expected a table of at most {MOST_BYTES} bytes, found one of {n_bytes}")


def _claimed_bytes(file: parquet.ParquetFile) -> int:
    """Return what the values of a file take at least; within lists, at most, as texts there are not kept as stored."""
    about, leaves = file.metadata, [file.schema.column(n) for n in range(file.metadata.num_columns)]
    groups = [about.row_group(n) for n in range(about.num_row_groups)]
    n_bytes = 0
    for n, leaf in enumerate(leaves):
        for found in (group.column(n) for group in groups):
            is_text = leaf.physical_type == "BYTE_ARRAY"
            each = found.total_uncompressed_size if is_text and "." in leaf.path else max(leaf.length, 8)
            n_bytes += max(found.num_values * each, found.total_uncompressed_size)
    return n_bytes


def _text_bytes(column: pyarrow.ChunkedArray) -> int:
    """Return the bytes of the texts of a column that is kept as it is stored."""
    if not types.is_dictionary(column.type):
        return 0
    lengths = ((compute.binary_length(chunk.dictionary), chunk.indices) for chunk in column.chunks)
    return sum(compute.sum(of_each.take(which)).as_py() or 0 for of_each, which in lengths)


def from_parquet(content: bytes) -> pd.DataFrame:
    """Read a Parquet file. What pandas has written about it is not followed. Raises ValueError as `read_parquet`."""
    try:
        table = read_parquet(content).replace_schema_metadata(None)
        frame: pd.DataFrame = table.to_pandas(use_threads=False)
    except (OSError, TypeError, OverflowError, pyarrow.ArrowException) as error:
        raise ValueError(str(error)) from error
    return frame


def to_parquet(table: pyarrow.Table) -> bytes:
    """Return a table as the content of a Parquet file."""
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()

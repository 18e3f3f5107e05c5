"""Tables: CSV and Parquet of the users' own, or of strangers, read in one way; and Parquet as it is written here."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import Counter
from typing import Any

import pandas as pd
import pyarrow
from pyarrow import parquet

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""How a text in UTF-16 begins, as some programs write one."""
FIRST_BYTES = 64
"""Text in UTF-16 has a zero byte among so many first ones, if any letter of them is Latin."""
MAX_HEADER_BYTES = 1 << 22
"""The names of a table's columns end within so many bytes."""


def from_csv(content: bytes, **options: Any) -> pd.DataFrame:
    """Read a CSV table in UTF-8; the options are those of `pandas.read_csv`.

    Raises ValueError for what is none, as where a row has more fields than the header, or two columns one name.
    """
    if content.startswith(UTF_16) or b"\0" in content[:FIRST_BYTES]:
        raise ValueError("expected text in UTF-8, found bytes as those of UTF-16; save it as UTF-8")
    names = header_of(content)
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


def from_parquet(file: parquet.ParquetFile) -> pd.DataFrame:
    """Read a Parquet file. What pandas has written about it is not followed. Raises ValueError if it is damaged."""
    try:
        table: pd.DataFrame = file.read(use_threads=False).replace_schema_metadata(None).to_pandas(use_threads=False)
    except (OSError, TypeError, OverflowError, pyarrow.ArrowException) as error:
        raise ValueError(str(error)) from error
    return table


def to_parquet(table: pyarrow.Table) -> bytes:
    """Return a table as the content of a Parquet file."""
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()

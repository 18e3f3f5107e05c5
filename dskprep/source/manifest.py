"""A manifest: a table, as CSV or Parquet, that lists cases by key and URL."""

from __future__ import annotations

import io

import pandas as pd

from dskprep import storage
from dskprep.errors import InfrastructureError, UsageError


def read(source: str) -> list[tuple[str, str]]:
    """Return key and URL of each line, as they stand there.

    Raises UsageError if the file is no such table, if a key or URL is empty, or if a key stands there twice.
    """
    try:
        content = io.BytesIO(storage.read(source))
        is_csv = source.lower().endswith(".csv")
        table = pd.read_csv(content, dtype=str, keep_default_na=False) if is_csv else pd.read_parquet(content)
    except FileNotFoundError as error:
        raise UsageError(f"{source}: there is no such file") from error
    except InfrastructureError:
        raise
    except (ValueError, OSError) as error:
        raise UsageError(f"{source}: cannot be read as a manifest: {error}") from error
    if not {"key", "url"} <= set(table.columns):
        found = ", ".join(repr(column) for column in table.columns)
        raise UsageError(f"{source}: expected the columns 'key' and 'url', found {found[:200]}")
    is_empty = (table[["key", "url"]].isna() | (table[["key", "url"]] == "")).any(axis=1).to_numpy()
    if is_empty.any():
        raise UsageError(
            f"{source}: expected a key and a url in every row, found one empty in row {is_empty.argmax() + 1}"
        )
    keys = table["key"].astype(str)
    repeated = keys[keys.duplicated()]
    if len(repeated):
        raise UsageError(f"{source}: the key {repeated.iloc[0]!r} stands in more than one line")
    return list(zip(keys, table["url"].astype(str), strict=True))

"""Parquet tables of strangers: what they hold comes out as it is, and no small file becomes a large table."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dskprep import tables


def encoded(table: pa.Table, **how: object) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, **how)
    return buffer.getvalue()


def test_tables_of_any_types_are_read_as_pyarrow_reads_them() -> None:
    columns = {
        "text": pa.array(["a", None, "bb"]),
        "long": pa.array(["a", None, "bb"], pa.large_string()),
        "bytes": pa.array([b"a", None, b"bb"]),
        "number": pa.array([1, 2, None]),
        "list": pa.array([["x"], None, ["y", "z"]]),
        "coded": pa.array(["a", "b", "a"]).dictionary_encode(),
        "record": pa.array([{"a": 1, "b": "q"}] * 3),
        "fixed": pa.array([b"abcd"] * 3, pa.binary(4)),
        "nothing": pa.nulls(3),
    }
    table = pa.table(columns)
    for each in (table, table.slice(0, 0)):
        content = encoded(each)
        assert tables.read_parquet(content).equals(each)
        some = parquet.ParquetFile(io.BytesIO(content)).read(columns=["number", "text"])
        assert tables.read_parquet(content, ["number", "text"]).equals(some)


def test_a_text_that_many_rows_have_is_no_table_of_gigabytes() -> None:
    """It is stored once: this file of a few hundred bytes would be 90 GB."""
    text = pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), ["x" * 900_000])
    content = encoded(
        pa.table({"key": text}),
        compression="zstd",
        store_schema=False,
        write_statistics=False,
        dictionary_pagesize_limit=1 << 30,
    )
    assert len(content) < 2000
    with pytest.raises(ValueError, match="expected a table of at most 4294967296 bytes, found one of 9000"):
        tables.from_parquet(content)


def test_rows_without_end_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(pa.table({"key": pa.nulls(1_000_000, pa.int64())}), compression="zstd")
    assert len(content) < 5000
    assert len(tables.read_parquet(content)) == 1_000_000
    monkeypatch.setattr(tables, "MOST_BYTES", 7_000_000)
    monkeypatch.setattr(parquet.ParquetFile, "read", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="expected a table of at most 7000000 bytes"):
        tables.read_parquet(content)


def test_texts_within_lists_count_as_if_each_were_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array(["x" * 10_000]).take(pa.array(np.zeros(1000, np.int32)))
    table = pa.table({"names": pa.ListArray.from_arrays(np.arange(1001, dtype=np.int32), texts)})
    content = encoded(table, store_schema=False)
    assert tables.read_parquet(content).equals(table.cast(tables.read_parquet(content).schema))
    monkeypatch.setattr(tables, "MOST_BYTES", 9_000_000)
    with pytest.raises(ValueError, match="expected a table of at most 9000000 bytes"):
        tables.read_parquet(content)

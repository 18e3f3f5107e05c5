"""The columns of annotations.parquet: those that every table has, and those that tables of points bring."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dskprep import tables as parquet
from dskprep.dataset.label_record import POINTS

TEXTS = (
    "key image kind name label asked_as status reason message code code_scheme code_meaning category algorithm "
    "interpreted_type source source_status source_options source_digest source_sha256 source_warnings record_tag "
    "linked_by url"
).split()
"""Columns of text that every table has."""
NUMBERS = "ml diameter_mm x y z x_min y_min z_min x_max y_max z_max outside".split()
"""Columns of numbers; places are in LPS mm."""
COUNTS = ("number", "voxels")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in TEXTS]
    + [(name, pa.float64()) for name in NUMBERS]
    + [(name, pa.int64()) for name in COUNTS]
)
"""The columns of every table. Those of points have more, as their sources have."""
LATER = ("asked_as",)
"""Those that a table of an older version may lack, as the records that it was made of do."""


def free_column(name: str, taken: Collection[str]) -> str:
    """Return what a column is called that has the name of another one: `<name>_of_source`, with a number if need be."""
    names = (f"{name}_of_source{f'_{number}' if number > 1 else ''}" for number in itertools.count(1))
    return next(free for free in names if free not in taken)


def points_to_parquet(tables: Sequence[pd.DataFrame], *, ours: Collection[str]) -> bytes:
    """Return tables of points, of a volume each, as the content of one Parquet file.

    The columns `ours` have the meaning that they have in annotations.parquet. Other columns that are called as one
    there get another name (see `free_column`). Lists and other nested values become JSON.
    """
    points = pd.concat(tables, ignore_index=True)
    names = {*points.columns, *SCHEMA.names}
    columns = {}
    for name in points.columns:
        values = _to_arrow(points[name])
        if name in ours:
            columns[name] = values.cast(SCHEMA.field(name).type) if name in SCHEMA.names else values
        else:
            columns[free_column(name, names) if name in SCHEMA.names else str(name)] = values
    return parquet.to_parquet(pa.table(columns))


def are_ours(content: bytes) -> bool:
    """Tell whether this is a table of points as dskprep writes it: pandas writes about itself into those of others."""
    try:
        schema = parquet.open_parquet(content).schema_arrow
    except ValueError:
        return False
    return not schema.metadata and set(POINTS) <= set(schema.names)


def with_equal_types(parts: list[pa.Table]) -> list[pa.Table]:
    """Return the tables with columns that can be joined: those whose types cannot become text."""
    with_column: dict[str, list[pa.Table]] = defaultdict(list)
    for part in parts:
        for name in part.column_names:
            with_column[name].append(part)
    mixed = {name for name, found in with_column.items() if not _can_be_joined(name, found)}
    return [
        pa.table({name: _to_text(part[name]) if name in mixed else part[name] for name in part.column_names})
        for part in parts
    ]


def _can_be_joined(name: str, parts: list[pa.Table]) -> bool:
    types = {part.schema.field(name).type for part in parts}
    if len(types) == 1:
        return True
    try:  # not the types alone: 2**60 is no float
        joined = pa.concat_tables([part.select([name]) for part in parts], promote_options="permissive")
    except pa.ArrowException:
        return False
    return not _is_for_text(joined.schema.field(name).type)


def _is_for_text(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_nested,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
        )
    )


def _to_arrow(values: pd.Series) -> pa.Array:
    """Return a column of pandas, as text where one of Parquet would hold nested values or bytes."""
    try:
        array = pa.Array.from_pandas(values)
    except pa.ArrowException:  # pairs of a map
        return _to_json(values)
    return _to_text(array) if _is_for_text(array.type) else array


def _to_text(column: pa.Array) -> pa.Array:
    """Return a column as text; what has no other form becomes JSON."""
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return _to_json(column.to_pylist())


def _to_json(values: Iterable[Any]) -> pa.Array:
    return pa.array([None if value is None else json.dumps(value, default=_plain) for value in values], pa.string())


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)

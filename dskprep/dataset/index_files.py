"""How the index lies in a dataset: `index.parquet`, a file, or once it has many rows a folder of parts of that name.

Pandas and dask read either by the same name. New rows go to the last part, and to new ones: a part that is full is
written again only if one of its records has changed. A reader sees each part whole, or as it was before. A writer that
is killed between two parts leaves out rows whose records are there: whoever compares the two reads these again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from dskprep import storage, tables
from dskprep.dataset import rows
from dskprep.errors import DamagedDataset, UsageError

FILE = "index.parquet"
PART_ROWS = 20_000
"""Rows of a part, and the most that the index has as one file."""

PART_NAME = re.compile(r"part-\d{5}\.parquet", re.ASCII)
"""Names of the parts in their folder."""

Held = dict[str, NDArray[np.bool_] | None]
"""By the name of a part, which of its rows are right; None for a part that is damaged."""


def parts(target: str, names: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table | None]]:
    """Yield the name of each part, and its rows with all columns or those of `names` that it has; None if damaged.

    Raises UsageError if there is no index yet, ObjectChanged if it is written just now.
    """
    for name, content in _contents(target):
        yield name, _decode(content, names)


def damage(target: str, name: str) -> DamagedDataset:
    """Return the error for a part that cannot be read."""
    return DamagedDataset(
        f"{target}: {name} is damaged, or has not the columns of an index; the next run writes it anew"
    )


def update(target: str, held: Held, added: Iterable[pa.Table], n_added: int) -> None:
    """Leave out of the parts what is not right, and append rows."""
    names = sorted(held)
    n_kept = sum(int(mask.sum()) for mask in held.values() if mask is not None)
    if not _is_folder(names):
        if n_kept + n_added <= PART_ROWS and not _is_begun(target):
            table = join([*_kept(target, held), *added])
            storage.write_many(target, {FILE: tables.to_parquet(table)})
            return
        _begin_folder(target, held, added)
        return
    last, n_full = names[-1], len(names) - 1
    for name in names[:-1]:
        mask = held[name]
        if mask is None or not mask.all():
            storage.write_many(target, {name: _encode_part(join([*_kept(target, {name: mask})]))})
    mask = held[last]
    if mask is not None and mask.all() and (len(mask) >= PART_ROWS or not n_added):
        tail: Iterable[pa.Table] = added
        n_full += 1
    else:
        tail = itertools.chain(_kept(target, {last: mask}), added)
    for n, table in enumerate(_in_parts(tail), start=n_full):
        storage.write_many(target, {_part(n): _encode_part(table)})


def _begin_folder(target: str, held: Held, added: Iterable[pa.Table]) -> None:
    """Write a folder of parts in place of the file. A folder on disk cannot have the name of a file that is there.

    So there the file is deleted first. If this is killed then, or the disk is full, the records are read again.
    """
    tail = itertools.chain(_kept(target, held), added)
    there: set[str] = set()
    if storage.is_bucket(target):
        there = {f"{FILE}/{entry.name}" for entry in _listed_parts(storage.join(target, FILE))}
    written = set()
    for n, table in enumerate(_in_parts(tail)):
        if n == 0 and not storage.is_bucket(target) and not _is_begun(target):
            storage.delete(target, [FILE])
        storage.write_many(target, {_part(n): _encode_part(table)})
        written.add(_part(n))
    if storage.is_bucket(target):  # the file last: as long as it is there it is the index
        storage.delete(target, [*sorted(there - written)])
        storage.delete(target, [FILE])


def _is_begun(target: str) -> bool:
    """Tell whether there is a folder for the parts on disk, which may hold none yet."""
    return not storage.is_bucket(target) and storage.is_folder(storage.join(target, FILE))


def _part(n: int) -> str:
    return f"{FILE}/part-{n:05}.parquet"


def _listed_parts(url: str) -> list[storage.Entry]:
    """List the parts in the folder of the index; other files in it are not ours."""
    return [entry for entry in storage.listing(url) if PART_NAME.fullmatch(entry.name)]


def _is_folder(names: Iterable[str]) -> bool:
    return any("/" in name for name in names)


def _contents(target: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each part. In a bucket an older dskprep may have written a file beside them.

    That one has all rows, as it was before.
    """
    url = storage.join(target, FILE)
    if not _is_begun(target):
        try:
            content = storage.read_small(url)  # one that is made to be large counts as damaged
        except FileNotFoundError:
            pass
        except storage.UnreadableFile:
            yield FILE, b""  # counts as damaged, too
            return
        else:
            yield FILE, content
            return
    entries = _listed_parts(url)
    if not entries:
        raise UsageError(f"{target}: no {FILE} yet; a run writes it at its end")
    yield from ((f"{FILE}/{name}", content) for name, content in storage.read_many_metadata(url, entries))


def _open(content: bytes) -> parquet.ParquetFile | None:
    """Open a part; None if it is damaged or has other columns than an index."""
    try:
        file = tables.open_parquet(content)
        schema = file.schema_arrow
    except (ValueError, KeyError, OSError):  # pyarrow raises OSError for bytes in memory, too
        return None
    is_ours = rows.are_ours({field.name: str(field.type) for field in schema})
    return file if is_ours and len({*schema.names}) == len(schema.names) else None


def _decode(content: bytes, names: Sequence[str] | None) -> pa.Table | None:
    if (file := _open(content)) is None:
        return None
    some = None if names is None else [name for name in dict.fromkeys(names) if name in file.schema_arrow.names]
    try:
        table = tables.read_parquet(content, some)
    except (ValueError, KeyError, OSError):
        return None
    return table if rows.are_whole(table) else None


def _kept(target: str, held: Held) -> Iterator[pa.Table]:
    """Yield the rows of some parts that are right, few at a time."""
    masks = {name: mask for name, mask in held.items() if mask is not None}
    for name, mask in masks.items():
        try:
            content = storage.read_small(storage.join(target, name))
        except FileNotFoundError as error:
            raise storage.ObjectChanged(f"{name} was deleted by another process") from error
        if (file := _open(content)) is None or file.metadata.num_rows != len(mask):
            raise storage.ObjectChanged(f"{name} was written by another process")
        start = 0
        for batch in file.iter_batches(PART_ROWS, use_threads=False):
            table = pa.Table.from_batches([batch])
            yield table.filter(pa.array(mask[start : start + len(table)]))
            start += len(table)


def _in_parts(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join tables to such of PART_ROWS rows; the last has fewer, and is empty only if it is the first."""
    waiting: list[pa.Table] = []
    n_waiting, n_yielded = 0, 0
    for table in tables:
        waiting.append(table)
        n_waiting += len(table)
        while n_waiting >= PART_ROWS:
            joined = _concat(waiting)
            yield joined.slice(0, PART_ROWS)
            n_yielded += 1
            waiting = [joined.slice(PART_ROWS)]
            n_waiting -= PART_ROWS
    if n_waiting or not n_yielded:
        yield _concat(waiting)


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of several tables as one, in order."""
    return rows.in_order(_concat(tables))


def _concat(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables or [rows.to_table([])], promote_options="permissive")


def _encode_part(table: pa.Table) -> bytes:
    """Return the bytes of a part. All have the same columns and types, as those who read them together expect."""
    fields = {field.name: field for field in rows.schema(table.schema.names)}
    found = {
        name: compute.cast(table[name], field.type) if name in table.schema.names else pa.nulls(len(table), field.type)
        for name, field in fields.items()
    }
    return tables.to_parquet(rows.in_order(pa.table(found)))

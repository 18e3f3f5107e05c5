"""annotations.parquet: one row per label and point of a dataset, and one per label source that gave none.

It is made from the records of label sources and their tables of points, as index.parquet is from the other records.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import compute

from dskprep import storage, tables
from dskprep.counts import n_of
from dskprep.dataset import index, label_store
from dskprep.dataset.annotation_columns import LATER, SCHEMA, with_equal_types
from dskprep.dataset.label_record import LabelRecord, LabelRecordName, StoredLabel, parse_label_record
from dskprep.dataset.rows import DAMAGED as DAMAGED
from dskprep.dataset.rows import NOT_READ as NOT_READ
from dskprep.dataset.rows import UNREADABLE, are_unread, tag_of
from dskprep.dataset.undisturbed import undisturbed
from dskprep.errors import DamagedDataset
from dskprep.plain import as_utf8
from dskprep.storage import Entry

FILE = "annotations.parquet"
NAME = ("source_status", "source", "source_options", "source_digest")
"""The columns that make up a `LabelRecordName`, in its order."""
AT_ONCE = 2000
"""Records that are read together."""
MOST_BYTES = 1 << 30
"""A larger table on a disk counts as damaged: a file with holes costs whoever sends it nothing."""


def current(target: str) -> pd.DataFrame:
    """Return what counts of the table as it should be: labels and points of the images that the dataset has now.

    The records are listed, and those read that annotations.parquet lacks.
    """
    images = images_in(index.current_table(target, ("key", "status", "input_digest")))
    return to_frame(part_by_images(without_repeats(current_table(target)), images)[0])


def current_table(target: str) -> pa.Table:
    """Do what `current` does, and return a table of pyarrow."""
    return undisturbed(target, lambda: _combine(target, dict(label_store.list_records(target))))


def write(target: str) -> pa.Table:
    """Bring annotations.parquet up to date with the records, and return it. Without a record nothing is written."""
    table = current_table(target)
    url = storage.join(target, FILE)
    if len(table) or storage.exists(url):
        storage.write_many(target, {FILE: tables.to_parquet(table)})
    return table


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Return a table as pandas has it."""
    frame: pd.DataFrame = table.to_pandas(use_threads=False)
    return frame


def by_source(table: pa.Table) -> dict[LabelRecordName, list[dict[str, Any]]]:
    """Return some columns of the rows of each source, of its volumes and its file, each combination once."""
    columns = [*NAME, "key", "image", "reason", "linked_by", "source_warnings", "url", "source_sha256"]
    found: dict[LabelRecordName, list[dict[str, Any]]] = {}
    for row in table.select(columns).group_by(columns, use_threads=False).aggregate([]).to_pylist():
        found.setdefault(LabelRecordName(*(row[column] for column in NAME)), []).append(row)
    return found


def damaged(table: pa.Table) -> dict[str, str]:
    """Return the records that cannot be read, by their path in the dataset, and why."""
    rows = table.filter(are_unread(table)).select([*NAME, "message"]).to_pylist()
    return {LabelRecordName(*(row[column] for column in NAME)).path: row["message"] for row in rows}


def warn_of_damaged(target: str, found: dict[str, str]) -> None:
    """Warn that what damaged records describe is left out."""
    if found:
        path, why = next(iter(found.items()))
        what = f"{n_of(len(found), 'record')} of label sources cannot be read, such as {path} ({why})"
        warnings.warn(f"{target}: {what}; their labels and points are left out", stacklevel=3)


def warn_of_lost(target: str, table: pa.Table) -> None:
    """Warn of label sources that failed, and of which nobody knows the volumes: these may lack what they hold."""
    is_lost = compute.is_in(table["source_status"], pa.array(["failed", "killed"]))
    is_read = compute.invert(are_unread(table))
    is_of_nobody = compute.and_(compute.equal(table["key"], ""), is_read)
    if names := sorted({*table.filter(compute.and_(is_lost, is_of_nobody))["source"].to_pylist()}):
        what = f"{n_of(len(names), 'label source')} failed, such as {names[0]}, and nobody knows whose labels they hold"
        warnings.warn(f"{target}: {what}: a volume may lack them; annotate again with --retry failed", stacklevel=3)


def images_in(volumes: pa.Table) -> pa.Array:
    """Return the images of the written volumes of an index, in one text each."""
    written = volumes.filter(compute.equal(volumes["status"], "written"))
    return _images(written["key"], written["input_digest"])


def part_by_images(table: pa.Table, images: pa.Array) -> tuple[pa.Table, pa.Table]:
    """Part the table into rows that count, and those of labels and points of images that are not among these.

    They were drawn on an image whose files have changed since, and that was made anew, or that was forgotten.
    """
    of_image = compute.and_(compute.equal(table["status"], "written"), compute.not_equal(table["key"], ""))
    is_there = compute.is_in(_images(table["key"], table["image"]), images)
    is_gone = compute.and_(of_image, compute.invert(is_there)).fill_null(False)
    return table.filter(compute.invert(is_gone)), table.filter(is_gone)


def _images(keys: pa.ChunkedArray, digests: pa.ChunkedArray) -> pa.Array:
    parts = [part.combine_chunks().cast(pa.large_string()).fill_null("") for part in (keys, digests)]
    return compute.binary_join_element_wise(*parts, pa.scalar("\0", pa.large_string()))


def without_repeats(table: pa.Table) -> pa.Table:
    """Return the table without points that it has of another source of the same content, or of other options of it.

    They count once in each volume: those of the first source and options by name. Labels have names of their own.
    """
    columns = ["source_sha256", "source", "source_options"]
    sources = table.group_by(columns, use_threads=False).aggregate([])
    repeated = {content for content, n in Counter(sources["source_sha256"].to_pylist()).items() if content and n > 1}
    if not repeated:
        return table
    rows = list(zip(*(table[name].to_pylist() for name in (*columns, "key", "label", "status")), strict=True))
    found = defaultdict(set)
    for content, *source, key, label, status in rows:
        if content in repeated and status == "written" and not label:
            found[content, key].add(tuple(source))
    first = {which: min(several) for which, several in found.items()}
    kept = [
        bool(label) or status != "written" or first.get((content, key), (source, options)) == (source, options)
        for content, source, options, key, label, status in rows
    ]
    return table.filter(pa.array(kept, pa.bool_()))


@functools.lru_cache(maxsize=1)
def known_contents(target: str, run: str) -> dict[tuple[str, str], str]:
    """Return the sources that are written, by the SHA-256 of their content and what was asked for; once for a run."""
    del run
    table = _read(target)
    if table is None:
        return {}
    written = table.filter(compute.equal(table["source_status"], "written"))
    columns = [written[name].to_pylist() for name in ("source_sha256", "source_options", "source")]
    return {(content, options): source for content, options, source in zip(*columns, strict=True)}


def _combine(target: str, records: dict[LabelRecordName, Entry]) -> pa.Table:
    """Join the known rows whose record is as it was, and rows made of the other records."""
    parts = [SCHEMA.empty_table()]
    missing = dict(records)
    known = _read(target)
    if known is not None:
        tags = {name: tag_of(entry) for name, entry in records.items()}
        columns = (*NAME, "record_tag")
        rows = zip(*(known[column].to_pylist() for column in columns), strict=True)
        is_kept = [tags.get(LabelRecordName(*row[:4])) == row[4] for row in rows]
        kept = known.filter(pa.array(is_kept, pa.bool_()))
        parts.append(kept)
        for name in by_source(kept):
            missing.pop(name, None)
    names = sorted(missing)
    for i in range(0, len(names), AT_ONCE):
        some = names[i : i + AT_ONCE]
        contents = storage.read_each(storage.join(target, "labels"), [missing[name] for name in some])
        for name, (where, content) in zip(some, contents, strict=True):
            parts += _parts(target, name, content, where, tag_of(missing[name]))
    table = pa.concat_tables(with_equal_types(parts), promote_options="permissive")
    order = [(column, "ascending") for column in ("key", "kind", "label", "name", "source", "source_options", "number")]
    return table.take(compute.sort_indices(table, sort_keys=order))


def _parts(
    target: str, name: LabelRecordName, content: bytes | storage.UnreadableFile, where: str, tag: str
) -> Iterator[pa.Table]:
    """Yield the rows of one source: of its labels, and of its points."""
    always: dict[str, Any] = dict(zip(NAME, name, strict=True))
    always["record_tag"] = tag
    try:
        if isinstance(content, storage.UnreadableFile):
            raise content
        record = parse_label_record(content, f"labels/{where}")
        points = _points(target, record) if record.points else None
    except storage.UnreadableFile as error:  # without a tag, the row holds for no record: it is tried again each time
        row = {"status": "failed", "reason": UNREADABLE, "message": str(error), "key": "", "record_tag": ""}
        yield _to_table([always | row])
        return
    except (DamagedDataset, FileNotFoundError) as error:
        row = {"status": "failed", "reason": DAMAGED, "message": str(error), "key": ""}
        yield _to_table([always | row])
        return
    always |= {
        "kind": record.kind,
        "linked_by": record.linked_by or "",
        "url": record.url,
        "source_sha256": record.sha256,
        "source_warnings": ",".join(record.warnings),
    }
    always = {name: as_utf8(value) if isinstance(value, str) else value for name, value in always.items()}
    lost = "refused" if record.is_written else record.status
    rows = [always | _label_row(label, "written" if label.is_written else lost) for label in record.labels]
    if not rows and points is None:
        rows = [always | {"status": record.status, "reason": record.reason, "message": record.message, "key": ""}]
    yield _to_table(rows)
    if points is not None:
        n = len(points)
        added = {name: pa.array([value] * n, pa.string()) for name, value in (always | {"status": "written"}).items()}
        points = points.drop_columns([column for column in points.schema.names if column in added])
        for column, values in added.items():
            points = points.append_column(column, values)
        yield points


def _points(target: str, record: LabelRecord) -> pa.Table:
    where = storage.join(target, record.name.points_path)
    try:
        table = tables.read_parquet(storage.read_small(where, MOST_BYTES))
        if len(set(table.schema.names)) < len(table.schema.names):
            raise ValueError("two columns of one name")
        fixed = [SCHEMA.field(f.name) if f.name in SCHEMA.names else f for f in table.schema]
        return table.cast(pa.schema(fixed))
    except storage.UnreadableFile:
        raise
    except (ValueError, KeyError, OSError, pa.ArrowException) as error:
        raise DamagedDataset(f"{where}: cannot be read ({error}); annotate again with --retry all") from error


def _label_row(label: StoredLabel, status: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": label.volume,
        "status": status,
        "diameter_mm": None if label.ml is None else (6000 * label.ml / math.pi) ** (1 / 3),
    }
    names = "image name label asked_as reason message number code code_scheme code_meaning category algorithm".split()
    row |= {name: getattr(label, name) for name in (*names, "interpreted_type", "voxels", "ml", "outside")}
    row |= dict(zip("xyz", label.centroid_mm or (None,) * 3, strict=True))
    ends = [f"{axis}_{end}" for end in ("min", "max") for axis in "xyz"]
    return row | dict(zip(ends, label.box_mm or (None,) * 6, strict=True))


def _to_table(rows: list[dict[str, Any]]) -> pa.Table:
    texts = [{name: as_utf8(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows]
    return pa.Table.from_pylist(texts, SCHEMA)


def _read(target: str) -> pa.Table | None:
    """Return annotations.parquet, or None if there is none that can be used."""
    try:
        table = tables.read_parquet(storage.read_small(storage.join(target, FILE), MOST_BYTES))
    except (FileNotFoundError, ValueError, KeyError, OSError):
        return None
    for name in LATER:
        if name not in table.schema.names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    types = {field.name: field.type for field in table.schema}
    is_ours = len(types) == len(table.schema) and all(types.get(f.name) == f.type for f in SCHEMA)
    return table if is_ours and not any(table[name].null_count for name in ("key", "status", *NAME)) else None

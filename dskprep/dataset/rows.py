"""The rows of the index: their columns and types, and how they are made of records. See `index`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import compute

from dskprep import storage
from dskprep.dataset.columns import DESCRIBED
from dskprep.dataset.record import Record, RecordName, parse_record
from dskprep.errors import DamagedDataset
from dskprep.plain import as_utf8, to_number
from dskprep.stopwatch import STAGES

NAME = ("status", "key", "input_digest")
"""The columns that make up a `RecordName`, in its order."""

OF_RECORD = (
    *("chosen", "patient", "patient_without_issuer", "study", "frame_of_reference", "series_uid_sha256", "stack"),
    *("hu_sha256", "bytes_read", "bytes_written", "volume_digest"),
)
"""Columns that are fields of a record."""

TAG = "record_tag"
"""The column that says which state of a record its row was made of: its size and tag in the listing."""

DAMAGED = "damaged-record"
"""The reason in the row of a record that is not what was written."""

UNREADABLE = "unreadable-record"
"""The reason in the row of a record that the disk does not give: it may be sound, and is tried again each time."""

NOT_READ = (DAMAGED, UNREADABLE)
"""Both."""

GRID = ("n_z", "n_y", "n_x", "spacing_z_mm", "spacing_y_mm", "spacing_x_mm", "affine")
"""The columns that every volume has."""

Row = dict[str, Any]

_ALWAYS = {
    **dict.fromkeys(("key", "status", "input_digest", "record_tag", "reason", "message", "url", "warnings"), "string"),
    **dict.fromkeys(("n_z", "n_y", "n_x"), "int64"),
    **dict.fromkeys(("spacing_z_mm", "spacing_y_mm", "spacing_x_mm"), "double"),
    "affine": "list<element: double>",
    **dict.fromkeys(("right_lung_ml", "left_lung_ml", "unsided_lung_ml", "mean_lung_hu", "dense_lung_share"), "double"),
    **dict.fromkeys(("series_uid_sha256", "hu_sha256"), "string"),
    **dict.fromkeys(("stack", "bytes_read", "bytes_written"), "int64"),
}
_LATER = {
    **dict.fromkeys(("patient", "study", "frame_of_reference", "licence", "doi", "citation", "chosen"), "string"),
    "patient_without_issuer": "string",
    **dict.fromkeys(("further_series", "volume_digest"), "string"),
    "disagreed_lung_ml": "double",
    "missing_lung_ml": "double",
    "missing_lung_place": "string",
    **dict.fromkeys(("lungs_cut", "arms"), "string"),
    **dict.fromkeys(("body_cut_share", "metal_share", "noise_hu", "motion_step_mm"), "double"),
}
"""Columns that came after the first datasets, whose index may lack them."""
_OF_SOURCE = {
    **dict.fromkeys(("slices", "rows", "columns"), "int64"),
    **dict.fromkeys(("step_mm", "row_spacing_mm", "column_spacing_mm", "first_x_mm", "first_y_mm"), "double"),
    **dict.fromkeys(("first_z_mm", "tilt_degrees", "left_out_mm"), "double"),
    **dict.fromkeys(("kvp", "slice_thickness_mm", "reconstruction_diameter_mm"), "double"),
    **dict.fromkeys(("thickness_ratio", "diameter_ratio"), "double"),
    **dict.fromkeys(("contrast_phase", "kernel_class", "scanner", "pet_ct"), "string"),
    **dict.fromkeys(("manufacturer", "model", "kernel", "patient_position"), "string"),
    **dict.fromkeys(("body_part", "contrast", "transfer_syntax", "interpolated_mm"), "string"),
}

INTEGERS = {
    name for name, kind in {**_ALWAYS, **{f"source_{n}": k for n, k in _OF_SOURCE.items()}}.items() if kind == "int64"
}
"""The columns of whole numbers."""

_ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "list<element: double>": pa.list_(pa.field("element", pa.float64())),
}


def to_row(record: Record) -> Row:
    """Return a record as one flat row: the names of nested values are joined by `_`, warnings by commas."""
    row: Row = {name: getattr(record, name) for name in ("key", "status", "reason", "input_digest")}
    row["message"], row["url"] = record.message, record.url
    row["warnings"] = ",".join(record.warnings)
    geometry, lungs = record.geometry, record.lungs
    for axis, name in enumerate("zyx"):
        row[f"n_{name}"] = geometry and geometry.shape[axis]
        row[f"spacing_{name}_mm"] = geometry and geometry.spacing_mm[axis]
    row["affine"] = geometry and [value for line in geometry.affine for value in line]
    for name in "right_ml left_ml unsided_ml mean_hu dense_share disagreed_ml missing_ml missing_place".split():
        what, unit = name.split("_")
        row[f"{what}_lung_{unit}"] = lungs and getattr(lungs, name)
    looked = record.curation
    row["lungs_cut"] = None if looked is None or looked.lungs_cut is None else ",".join(looked.lungs_cut)
    for name in ("arms", "body_cut_share", "metal_share", "noise_hu", "motion_step_mm"):
        row[name] = looked and getattr(looked, name)
    origin = record.attribution
    row["licence"], row["doi"] = origin and origin.licence, origin and origin.doi
    row["citation"] = origin and origin.citation
    source = record.source_values()
    row.update({f"source_{name}": as_number(name, value) for name, value in source.items()})
    row.update({f"seconds_{stage}": value for stage, value in record.seconds.items()})
    for name in OF_RECORD:
        row[name] = getattr(record, name)
    row["further_series"] = " ".join(record.further_series)
    row = dict.fromkeys(DESCRIBED) | row
    return {name: as_utf8(value) if isinstance(value, str) else value for name, value in row.items()}


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Return rows as a table; without any, an empty one that has the columns of every record."""
    some = rows or [to_row(Record(key="", status="failed", input_digest="")) | {TAG: ""}]
    return pa.table(
        {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in some for name in row)}
    )


def are_unread(table: pa.Table) -> pa.ChunkedArray:
    """Tell of each row whether its record is damaged, or cannot be read."""
    damaged, unreadable = (compute.equal(table["reason"], reason) for reason in NOT_READ)
    return compute.or_(damaged, unreadable)


def tag_of(entry: storage.Entry) -> str:
    """Return what TAG holds of a record that is listed."""
    return f"{entry.size} {entry.tag}"


def paths_of(table: pa.Table) -> pa.Array:
    """Return the path of each row's record below `records`."""
    parts = [table[name].combine_chunks().cast(pa.large_string()) for name in NAME]
    status, key, digest = (part.fill_null("") for part in parts)
    slash, point, end, nothing = (pa.scalar(text, pa.large_string()) for text in ("/", ".", ".json", ""))
    return compute.binary_join_element_wise(status, slash, key, point, digest, end, nothing)


def in_order(table: pa.Table) -> pa.Table:
    """Return the table sorted by key, and those of one key by input digest and status."""
    order = [(column, "ascending") for column in ("key", "input_digest", "status")]
    return table.take(compute.sort_indices(table, sort_keys=order))  # not sort_by(): that starts threads


def parse_row(name: RecordName, where: str, content: bytes | storage.UnreadableFile) -> Row:
    """Return the row of a record that was just read; one that is damaged or cannot be read has a row too."""
    try:
        if isinstance(content, bytes):
            return to_row(parse_record(content, where))
        reason, message = UNREADABLE, str(content)
    except DamagedDataset as error:
        reason, message = DAMAGED, str(error)
    return to_row(Record(key=name.key, status="failed", input_digest=name.digest, reason=reason, message=message))


def select(table: pa.Table, names: Sequence[str] | None) -> pa.Table:
    """Return a table of these columns, empty ones where it lacks them, or with `names` None all of it."""
    if names is None:
        return table
    there = table.schema.names
    return pa.table({n: table[n] if n in there else pa.nulls(len(table)) for n in dict.fromkeys(names)})


def are_ours(types: Mapping[str, str]) -> bool:
    """Tell whether columns are those that dskprep writes. One without any value has the type `null`."""
    return _ALWAYS.keys() <= types.keys() and all(found in ("null", _type(name)) for name, found in types.items())


def are_whole(table: pa.Table) -> bool:
    """Tell whether no row lacks what every row has, nor one of a volume its grid, in the columns that are there."""
    names = {*table.schema.names}
    written = table.filter(compute.equal(table["status"], "written")) if "status" in names else table.slice(0, 0)
    always = [table[name] for name in names.intersection(NAME)] + [written[name] for name in names.intersection(GRID)]
    return not any(column.null_count for column in always)


def schema(names: Iterable[str]) -> Any:
    """Return the columns that every part of a large index has, and further ones of these names, with their types."""
    fixed = [*(_ALWAYS | _LATER), *(f"source_{name}" for name in _OF_SOURCE), *(f"seconds_{name}" for name in STAGES)]
    return pa.schema([pa.field(name, _ARROW[_type(name) or "string"]) for name in dict.fromkeys([*fixed, *names])])


def is_number(name: str) -> bool:
    """Tell whether a column holds numbers."""
    return _type(name) in ("double", "int64")


def as_number(name: str, value: Any) -> Any:
    """Return a value of a record's source as its column has it: the text of a number as a number.

    A text that is no number becomes None.
    """
    return to_number(value) if isinstance(value, str) and is_number(f"source_{name}") else value


def _type(name: str) -> str | None:
    if name.startswith("seconds_"):
        return "double"
    return _OF_SOURCE.get(name.removeprefix("source_")) if name.startswith("source_") else (_ALWAYS | _LATER).get(name)

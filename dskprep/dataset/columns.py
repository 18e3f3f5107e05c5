"""The columns of index.parquet and their types, by the names that Arrow gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from dskprep.plain import to_number
from dskprep.stopwatch import STAGES

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

_ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "list<element: double>": pa.list_(pa.field("element", pa.float64())),
}


def are_ours(types: Mapping[str, str]) -> bool:
    """Tell whether columns are those that dskprep writes. One without any value has the type `null`."""
    return _ALWAYS.keys() <= types.keys() and all(found in ("null", _type(name)) for name, found in types.items())


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

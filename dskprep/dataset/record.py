"""The record of one series: what became of it, and why. Written as JSON, read back and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from dskprep.errors import DamagedDataset
from dskprep.volume import Triple

STATUSES = ("written", "refused", "failed", "killed")
"""What can become of a series; of two records of one input, the status that comes first here counts."""

FURTHER = "+"
"""In a key, separates the key of the folder from the digest of a further series that was found in it."""


class RecordName(NamedTuple):
    """What the name of a record's file says."""

    status: str
    key: str
    digest: str

    @property
    def path(self) -> str:
        """The record's place below the dataset."""
        return f"records/{self.status}/{self.key}.{self.digest}.json"


class StoredObject(msgspec.Struct, frozen=True, rename={"n_bytes": "bytes"}):
    """One object that was written: its size and its SHA-256."""

    n_bytes: int
    sha256: str


class Aside(msgspec.Struct, frozen=True):
    """Files that are no CT slices: how many of each kind, and the names of the first of them."""

    counts: dict[str, int] = {}
    names: tuple[str, ...] = ()


class Source(msgspec.Struct, frozen=True):
    """The series as it was acquired: its scanner, and where its slices lie (LPS, mm)."""

    slices: int
    rows: int
    columns: int
    step_mm: float
    row_spacing_mm: float
    column_spacing_mm: float
    first_x_mm: float
    first_y_mm: float
    first_z_mm: float
    manufacturer: str = ""
    model: str = ""
    kernel: str = ""
    kvp: str = ""
    slice_thickness_mm: str = ""
    patient_position: str = ""
    body_part: str = ""
    contrast: str = ""
    transfer_syntax: str = ""
    tilt_degrees: float | None = None
    interpolated_mm: str | None = None


class Crop(msgspec.Struct, frozen=True):
    """The box of a larger grid that was written: its first voxel, and the shape of that grid (z, y, x)."""

    first: tuple[int, int, int]
    of_shape: tuple[int, int, int]


class Geometry(msgspec.Struct, frozen=True):
    """The grid of the written volume: shape and spacing (z, y, x), and the affine as rows (see `Volume`)."""

    shape: tuple[int, int, int]
    spacing_mm: Triple
    affine: tuple[tuple[float, ...], ...]
    crop: Crop | None = None

    def matrix(self) -> NDArray[np.float64]:
        """Return the affine as a new array (4 x 4)."""
        return np.array(self.affine, np.float64)


class LungFigures(msgspec.Struct, frozen=True):
    """Volumes of the lungs in ml, their mean HU, and the share of the denser lung that is dense; None if not known."""

    right_ml: float
    left_ml: float
    mean_hu: float | None = None
    dense_share: float | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one series. For a written one it is the last object written, and the commit.

    `reason` and `message` say why a series was not written; `warnings` are words of `errors.WARNINGS`. `objects` are
    those of the volume, by their names below it. `further_series` are the other series of the same folder, as
    `<status>/<key>`. `seconds` are wall seconds by stage, `cpu_s` CPU seconds of the whole case.
    """

    key: str
    status: str
    input_digest: str
    url: str = ""
    n_files: int = 0
    bytes_read: int = 0
    settings_digest: str = ""
    dskprep: str = ""
    worker: str = ""
    reason: str | None = None
    message: str | None = None
    traceback: str | None = None
    warnings: tuple[str, ...] = ()
    aside: Aside | None = None
    series_uid_sha256: str | None = None
    hu_sha256: str | None = None
    source: Source | None = None
    geometry: Geometry | None = None
    lungs: LungFigures | None = None
    values: str | None = None
    need_bytes: int | None = None
    seconds: dict[str, float] = {}
    cpu_s: float | None = None
    objects: dict[str, StoredObject] = {}
    thumbnail: StoredObject | None = None
    further_series: tuple[str, ...] = ()

    @property
    def name(self) -> RecordName:
        """The name of the record's file."""
        return RecordName(self.status, self.key, self.input_digest)

    @property
    def is_written(self) -> bool:
        """Whether a volume was written."""
        return self.status == "written"

    @property
    def bytes_written(self) -> int:
        """Bytes of all objects of the volume."""
        return sum(written.n_bytes for written in self.objects.values())

    def changed(self, **changes: Any) -> Record:
        """Return this record with other values of some fields."""
        return msgspec.structs.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; fields that are not known are left out."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        for part in ("source", "geometry"):
            if content[part] is not None:
                content[part] = _without_none(content[part])
        return _without_none(content)

    def to_json(self) -> bytes:
        """Return the content of the record's file."""
        return to_json(self.as_dict())


def further_key(key: str, uid_sha256: str | None) -> str:
    """Return the key of a further series that was found in the folder of `key`."""
    return f"{key}{FURTHER}{uid_sha256 or ''}"


def source_of(facts: Mapping[str, Any]) -> Source:
    """Make the part `source` of the facts of a series."""
    return Source(**facts)


def parse_record(content: bytes, where: str) -> Record:
    """Read the content of a record's file. Raises DamagedDataset where it is no record; `where` names the file."""
    try:
        # json, since names of files need not be UTF-8: msgspec's own reader takes no lone surrogates
        record = msgspec.convert(json.loads(content), Record)
    except (ValueError, msgspec.ValidationError) as error:
        raise DamagedDataset(f"{where}: this record is damaged ({error}); delete it and run again") from error
    if record.status not in STATUSES or (record.is_written and record.geometry is None):
        raise DamagedDataset(
            f"{where}: this record is damaged (its status or its geometry is missing); delete it and run again"
        )
    return record


def to_json(content: dict[str, Any]) -> bytes:
    """Return JSON text whose bytes depend on the content alone. Raises ValueError for NaN and infinity."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _without_none(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value is not None}

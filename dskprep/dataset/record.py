"""The record of one series: what became of it, and why. Written as JSON; checked when it is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from dskprep import keys
from dskprep.errors import DamagedDataset
from dskprep.keys import FURTHER as FURTHER
from dskprep.volume import Grid

STATUSES = ("written", "set-aside", "refused", "failed", "killed")
"""What can become of a series. If one input has two records, the status that comes first here counts."""
GOOD = frozenset({"written", "set-aside"})
"""The statuses with which nothing is wrong; a run in which all series have them ends with 0."""


class RecordName(NamedTuple):
    """The parts of the name of a record's file."""

    status: str
    key: str
    digest: str

    @property
    def is_possible(self) -> bool:
        """Whether dskprep gives such names; what others wrote into a record or the index may be a path to anywhere."""
        is_digest = re.fullmatch(r"[0-9a-f]{16}", self.digest)
        return self.status in STATUSES and keys.is_of_series(self.key) and bool(is_digest)

    @property
    def path(self) -> str:
        """Where the record lies below the dataset. Raises DamagedDataset if no record can have this name."""
        if not self.is_possible:
            raise DamagedDataset(
                f"expected the name of a record, found {tuple(self)!r:.200}; a record or index.parquet was altered: "
                "delete it and run again"
            )
        return f"records/{self.status}/{self.key}.{self.digest}.json"


Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
"""A number of slices, rows, voxels along an axis, or files."""
LARGEST_BYTES = 2**53
"""Any larger number, and sums of such, would not be exact everywhere."""
Bytes = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_BYTES)]
"""A size."""
Number = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
"""Millimetres, millilitres, HU or seconds: so many that no sum or square of them is beyond what a program can hold."""
Millimetres = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
"""A distance between voxels."""
_WORD = re.compile(r"[\w.+-]{1,80}", re.ASCII)
"""A reason, a warning, the name of a stage."""


class StoredObject(msgspec.Struct, frozen=True, rename={"n_bytes": "bytes"}):
    """The size and SHA-256 of an object that was written."""

    n_bytes: Bytes
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> StoredObject:
        """Return the size and SHA-256 of these bytes."""
        return cls(len(content), hashlib.sha256(content).hexdigest())


class Aside(msgspec.Struct, frozen=True):
    """The files of a series' folder that are not CT slices: how many of each kind, and the names of the first ones."""

    counts: dict[str, Count] = {}
    names: tuple[str, ...] = ()


class Source(msgspec.Struct, frozen=True):
    """The series as it was acquired: its slices and where the first one lies (LPS, mm), its scanner and protocol."""

    slices: Count
    rows: Count
    columns: Count
    step_mm: Number
    row_spacing_mm: Number
    column_spacing_mm: Number
    first_x_mm: Number
    first_y_mm: Number
    first_z_mm: Number
    manufacturer: str = ""
    model: str = ""
    kernel: str = ""
    kvp: str = ""
    slice_thickness_mm: str = ""
    patient_position: str = ""
    body_part: str = ""
    contrast: str = ""
    transfer_syntax: str = ""
    tilt_degrees: Number | None = None
    interpolated_mm: str | None = None
    left_out_mm: Number | None = None


class Crop(msgspec.Struct, frozen=True):
    """Where the written volume was cut out of a larger grid: its first voxel, and the shape of that grid (z, y, x)."""

    first: tuple[Count, Count, Count]
    of_shape: tuple[Count, Count, Count]


class Geometry(msgspec.Struct, frozen=True):
    """The grid of the written volume: shape and spacing along (z, y, x), and the rows of its affine (see `Volume`)."""

    shape: tuple[Count, Count, Count]
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres]
    affine: tuple[tuple[Number, ...], ...]
    crop: Crop | None = None

    def matrix(self) -> NDArray[np.float64]:
        """Return the affine as a new array, 4 x 4."""
        return np.array(self.affine, np.float64)


class LungFigures(msgspec.Struct, frozen=True):
    """The volume of each lung in ml, the mean HU of both, and which share of the denser lung is dense (0 to 1).

    `unsided_ml` is lung whose side is not known. `missing_ml` is about what should be lung and was not found, and
    `missing_place` where, as in "right lower"; None and "" where that was not measured.
    """

    right_ml: Number
    left_ml: Number
    unsided_ml: Number = 0.0
    mean_hu: Number | None = None
    dense_share: Number | None = None
    missing_ml: Number | None = None
    missing_place: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one series. Writing it is the commit: it is the last object that is written of a series.

    `reason` and `message` say why a series was not written; `stack` is the number of the stack in a series that holds
    several, if all were asked for; `warnings` are words of `errors.WARNINGS`. `run` is the id of the run that wrote the
    record, if there was one. `objects` are the objects of the volume, by their path below it. `further_series` are
    the other series of the same folder, as `<status>/<key>`. `seconds` holds wall seconds by stage, `cpu_s` CPU seconds
    of all series of the folder.
    """

    key: str
    status: str
    input_digest: str
    url: str = ""
    n_files: Count = 0
    bytes_read: Bytes = 0
    settings_digest: str = ""
    dskprep: str = ""
    run: str | None = None
    worker: str = ""
    reason: str | None = None
    message: str | None = None
    traceback: str | None = None
    warnings: tuple[str, ...] = ()
    aside: Aside | None = None
    series_uid_sha256: str | None = None
    stack: Count | None = None
    hu_sha256: str | None = None
    source: Source | None = None
    geometry: Geometry | None = None
    lungs: LungFigures | None = None
    values: str | None = None
    need_bytes: int | None = None
    seconds: dict[str, Number] = {}
    cpu_s: Number | None = None
    objects: dict[str, StoredObject] = {}
    thumbnail: StoredObject | None = None
    further_series: tuple[str, ...] = ()

    @property
    def name(self) -> RecordName:
        """The name of the record's file."""
        return RecordName(self.status, self.key, self.input_digest)

    @property
    def is_written(self) -> bool:
        """Whether the series was written as a volume."""
        return self.status == "written"

    @property
    def bytes_written(self) -> int:
        """The size of the volume's objects together."""
        return sum(written.n_bytes for written in self.objects.values())

    def changed(self, **changes: Any) -> Record:
        """Return a copy of this record with some fields replaced."""
        return msgspec.structs.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the fields that are None. Those of `lungs` stay, as null."""
        content = _without_none(msgspec.to_builtins(self))
        return content | {part: _without_none(content[part]) for part in ("source", "geometry") if part in content}

    def to_json(self) -> bytes:
        """Return the content of the record's file."""
        return to_json(self.as_dict())


def further_key(key: str, uid_sha256: str | None, stack: int | None = None) -> str:
    """Return the key of a further series, or stack of a series, that was found in the folder of `key`."""
    return f"{key}{FURTHER}{uid_sha256 or ''}{'' if stack is None else f'.{stack}'}"


def source_of(facts: Mapping[str, Any]) -> Source:
    """Make the part `source` of the facts of a series."""
    return Source(**facts)


def parse_record(content: bytes, where: str) -> Record:
    """Read the content of a record's file, named by `where`. Raises DamagedDataset if it is not a whole record."""
    try:
        # not msgspec's own decoder: it refuses the lone surrogates by which a path that is not UTF-8 is written
        record = msgspec.convert(json.loads(content, parse_constant=_refuse_constant), type=Record)
        _check(record, where)
    except (ValueError, OverflowError, RecursionError, msgspec.ValidationError) as error:
        why = " ".join(str(error).split())[:300].encode(errors="backslashreplace").decode()
        raise DamagedDataset(
            f"{where}: this record is damaged ({why}); run again, and its series is made anew"
        ) from error
    return record


def _check(record: Record, where: str) -> None:
    """Raise ValueError for what the types of the fields do not say."""
    if record.status not in STATUSES or (record.is_written and record.geometry is None):
        raise ValueError("its status or its geometry is missing")
    if record.is_written and "zarr.json" not in record.objects:
        raise ValueError("the objects of its volume are missing")
    further = [RecordName(*name.partition("/")[::2], record.input_digest) for name in record.further_series]
    if bad := [tuple(name) for name in (record.name, *further) if not name.is_possible]:
        raise ValueError(f"expected names of series, found {bad[0]!r:.200}")
    if bad_objects := [name for name in record.objects if not is_object_name(name)]:
        raise ValueError(f"expected names of objects below the volume, found {bad_objects[0]!r:.200}")
    if not f"/{where}".endswith(record.name.path.removeprefix("records")):
        raise ValueError(f"it is the record of {record.key}, {record.status}")
    if not record.is_written and not record.reason:
        raise ValueError("its reason is missing")
    for word in (record.reason, *record.warnings, *record.seconds):
        if word is not None and not _WORD.fullmatch(word):
            raise ValueError(f"expected a word, found {word!r:.100}")
    if record.bytes_written > LARGEST_BYTES:
        raise ValueError(f"expected at most {LARGEST_BYTES} bytes, found {record.bytes_written}")
    if record.geometry is not None:
        Grid(record.geometry.shape, record.geometry.matrix())


def is_object_name(name: str) -> bool:
    """Tell whether a name stays below the volume, wherever it is stored."""
    return not any(part in ("", ".", "..") for part in name.split("/")) and not any(c in name for c in "\\\0")


def check_key(key: str) -> str:
    """Return a key that is to become a path. Raises DamagedDataset if no series can have it."""
    if not keys.is_of_series(key):
        raise DamagedDataset(
            f"expected the key of a series, found {key!r:.200}; a record or index.parquet was altered: "
            "delete it and run again"
        )
    return key


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"expected a number, found {constant}")


def to_json(content: dict[str, Any]) -> bytes:
    """Return JSON whose bytes depend only on the content. Raises ValueError for NaN and infinity."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _without_none(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value is not None}

"""The record of one label source: which volumes it was linked to, and what became of each of its labels."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, NamedTuple

import msgspec

from dskprep import keys
from dskprep.dataset.facts import Bytes, Count, Number, StoredObject
from dskprep.dataset.record import STATUSES, is_object_name, to_json
from dskprep.errors import DamagedDataset
from dskprep.plain import as_utf8, in_one_line
from dskprep.typed import converter

MAX_NAME = 80
"""Longest name under which a label is stored, in bytes of UTF-8."""
LABEL_NAME = re.compile(r"[\w=@,-][\w.=@,-]*")
"""What a label can be stored as."""
DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names that are no files on Windows."""
POINTS = ("key", "image", "x", "y", "z")
"""Columns that each table of points has itself; the others are added as the tables are joined."""


def safe_name(name: str) -> str:
    """Return a name of a label without what some file system does not take; "" if nothing is left of it."""
    safe = re.sub(r"_+", "_", re.sub(r"[^\w.=@,-]", "_", unicodedata.normalize("NFC", name))).strip("._")
    return safe.encode()[:MAX_NAME].decode(errors="ignore")


class LabelRecordName(NamedTuple):
    """The parts of the name of a label source's record.

    `options` is a digest of what was asked for of the source, so that the same source can be asked for two things.
    """

    status: str
    source: str
    options: str
    digest: str

    @property
    def is_possible(self) -> bool:
        """Whether dskprep gives such names."""
        digests = re.fullmatch(r"[0-9a-f]{8}\.[0-9a-f]{16}", f"{self.options}.{self.digest}")
        return self.status in STATUSES and keys.is_plain(self.source) and bool(digests)

    @property
    def stem(self) -> str:
        """The name without its status: what the record and the table of its points are called."""
        return f"{self.source}.{self.options}.{self.digest}"

    @property
    def path(self) -> str:
        """Where the record lies below the dataset. Raises DamagedDataset if no record can have this name."""
        return self._checked(f"labels/{self.status}/{self.stem}.json")

    @property
    def points_path(self) -> str:
        """Where the table of the points of this source lies below the dataset."""
        return self._checked(f"labels/points/{self.stem}.parquet")

    def _checked(self, path: str) -> str:
        if not self.is_possible:
            raise DamagedDataset(f"expected the name of a label's record, found {tuple(self)!r:.200}; delete it")
        return path


def name_of(path: str) -> LabelRecordName | None:
    """Return the name of the record at a path below `labels`, None if no record can lie there."""
    status, _, file = path.partition("/")
    parts = file.removesuffix(".json").rsplit(".", 2)
    if not file.endswith(".json") or len(parts) != 3:
        return None
    name = LabelRecordName(status, *parts)
    return name if name.is_possible else None


def points_name_of(path: str) -> LabelRecordName | None:
    """Return the name of the written record whose points lie at a path below `labels`, None if no points can."""
    folder, _, file = path.partition("/")
    is_table = folder == "points" and file.endswith(".parquet")
    return name_of(f"written/{file.removesuffix('.parquet')}.json") if is_table else None


class StoredLabel(msgspec.Struct, frozen=True, kw_only=True):
    """One label of a source in one volume, or why it is not there.

    `image` is the `input_digest` of the volume on whose grid it lies. `name` is the author's, `label` the name under
    which it is stored; `asked_as` is the one that was asked for, also of a label that is not there, without the number
    that `label` has if the source has others of that name ("" in records of older versions). `taken_by` is the owner of
    another label that has the name. `first` and `shape` are the box round it (z, y, x), `box_mm` its lowest and highest
    x, y, z. `ml` and `centroid_mm` (LPS) are those of the label as it was drawn by its author, `outside` is the share
    of it that the image does not hold. `thumbnail` is that of `thumbnail.draw_label`, in base64. `objects` and
    `pending` are as in `Record`.
    """

    volume: str
    image: str
    name: str
    label: str = ""
    asked_as: str = ""
    reason: str | None = None
    message: str | None = None
    taken_by: str = ""
    number: int = 0
    code: str = ""
    code_scheme: str = ""
    code_meaning: str = ""
    category: str = ""
    algorithm: str = ""
    interpreted_type: str = ""
    rgb: tuple[Count, Count, Count] = (255, 255, 255)
    voxels: Bytes = 0
    ml: Number | None = None
    first: tuple[Count, Count, Count] | None = None
    shape: tuple[Count, Count, Count] | None = None
    centroid_mm: tuple[Number, Number, Number] | None = None
    box_mm: tuple[Number, Number, Number, Number, Number, Number] | None = None
    outside: Number = 0.0
    thumbnail: str = ""
    objects: dict[str, StoredObject] = {}
    pending: dict[str, StoredObject] = {}

    @property
    def is_written(self) -> bool:
        """Whether the label is in its volume."""
        return self.reason is None

    def __repr__(self) -> str:
        if not self.is_written:
            return f"<StoredLabel {self.name!r} of {self.volume}: not written, {self.reason}: {self.message}>"
        size = "" if self.ml is None else f", {self.ml:.3g} ml"
        middle = "" if self.centroid_mm is None else f" around {tuple(round(mm, 1) for mm in self.centroid_mm)} mm"
        return f"<StoredLabel {self.label} of {self.volume}: {self.name!r}{size}{middle}>"

    @property
    def is_renamed(self) -> bool:
        """Whether it is stored with `_` behind its name, since no label can have that name (see `is_label_name`)."""
        name = self.asked_as.removesuffix("_")
        return name != self.asked_as != self.name and not is_label_name(name)

    def changed(self, **changes: Any) -> StoredLabel:
        """Return a copy with some fields replaced."""
        return msgspec.structs.replace(self, **changes)


class LabelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one label source. It is the last object that is written of it.

    `linked_by` says by what it found its volumes: `series`, `instances`, `frame-of-reference` or `key`. `asked` is what
    was asked for of it. A source of which some labels are written, and others are not, is written.
    """

    source: str
    status: str
    options: str
    digest: str
    url: str = ""
    bytes_read: Bytes = 0
    sha256: str = ""
    asked: dict[str, Any] = {}
    dskprep: str = ""
    run: str | None = None
    worker: str = ""
    kind: str = ""
    linked_by: str | None = None
    reason: str | None = None
    message: str | None = None
    traceback: str | None = None
    need_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    labels: tuple[StoredLabel, ...] = ()
    points: StoredObject | None = None
    n_points: Count = 0
    seconds: dict[str, Number] = {}
    cpu_s: Number | None = None

    def __repr__(self) -> str:
        why = f", {self.reason}: {self.message}" if self.reason else ""
        return f"<LabelRecord of {self.source}: {self.status}{why}>"

    @property
    def name(self) -> LabelRecordName:
        """The name of the record's file."""
        return LabelRecordName(self.status, self.source, self.options, self.digest)

    @property
    def is_written(self) -> bool:
        """Whether anything of the source is in the dataset."""
        return self.status == "written"

    @property
    def written(self) -> tuple[StoredLabel, ...]:
        """The labels that are in their volumes."""
        return tuple(label for label in self.labels if label.is_written)

    def changed(self, **changes: Any) -> LabelRecord:
        """Return a copy of this record with some fields replaced."""
        return msgspec.structs.replace(self, **changes)

    def to_json(self) -> bytes:
        """Return the content of the record's file."""
        content = _without_empty(msgspec.to_builtins(self))
        content["labels"] = [_without_empty(label) for label in content.get("labels", ())]
        return to_json(content)


_to_record = converter(LabelRecord)


def parse_label_record(content: bytes, where: str) -> LabelRecord:
    """Read the content of a record's file, named by `where`. Raises DamagedDataset if it is not a whole record."""
    try:
        record = _to_record(json.loads(content))
        _check(record, where)
    except (ValueError, OverflowError, RecursionError, msgspec.ValidationError) as error:
        why = as_utf8(in_one_line(error, 300))
        raise DamagedDataset(f"{where}: this record is damaged ({why}); delete it, and annotate again") from error
    return record


def _check(record: LabelRecord, where: str) -> None:
    """Raise ValueError for what the types of the fields do not say."""
    if not record.name.is_possible or not f"/{where}".endswith(f"/{record.name.path}"):
        raise ValueError(f"it is the record of {record.source!r:.100}, {record.status!r:.20}")
    if not record.is_written and not record.reason:
        raise ValueError("its reason is missing")
    for label in record.labels:
        if not keys.is_of_series(label.volume):
            raise ValueError(f"expected the key of a series, found {label.volume!r:.100}")
        if label.is_written and not is_label_name(label.label):
            raise ValueError(f"expected the name of a label, found {label.label!r:.100}")
        if label.is_written and (label.first is None or label.shape is None):
            raise ValueError(f"expected the box of each label, found none of {label.label}")
        folder = f"labels/{label.label}/"
        if bad := [name for name in label.objects if not (is_object_name(name) and name.startswith(folder))]:
            raise ValueError(f"expected names of objects below {folder}, found {bad[0]!r:.100}")


def is_label_name(text: str) -> bool:
    """Tell whether a label can be stored under a name: letters of any script, digits and . _ = @ , -

    Those of the image, of the lungs and of metadata are taken; so are names that Windows keeps for devices.
    """
    is_plain = bool(LABEL_NAME.fullmatch(text)) and unicodedata.normalize("NFC", text) == text
    is_taken = text == "image" or text.casefold() in ("lungs", "zarr.json") or bool(DEVICE.fullmatch(text))
    return is_plain and len(text.encode()) <= MAX_NAME and not is_taken


def _without_empty(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value not in (None, "", [], (), {})}

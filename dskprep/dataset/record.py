"""The record of one series: what became of it, and why. Written as JSON; checked when it is read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from dskprep import keys
from dskprep.attribution import Attribution
from dskprep.dataset.facts import (
    LARGEST_BYTES,
    Acquired,
    Aside,
    Bytes,
    Count,
    Curation,
    Geometry,
    LungFigures,
    Number,
    Source,
    StoredObject,
)
from dskprep.errors import DamagedDataset
from dskprep.keys import FURTHER as FURTHER
from dskprep.plain import as_utf8, in_one_line
from dskprep.typed import converter
from dskprep.volume import Grid

STATUSES = ("written", "set-aside", "refused", "failed", "killed")
"""What can become of a series. If one input has two records, the status that comes first here counts."""
GOOD = frozenset({"written", "set-aside"})
"""The statuses with which nothing is wrong; a run in which all series have them ends with 0."""


_DIGEST = re.compile(r"[0-9a-f]{16}")
_PATH = re.compile(rf"({'|'.join(STATUSES)})/(.+)\.({_DIGEST.pattern})\.json")


class RecordName(NamedTuple):
    """The parts of the name of a record's file."""

    status: str
    key: str
    digest: str

    @classmethod
    def of(cls, path: str) -> RecordName | None:
        """Return the name of a record by its path below `records`; None if no record can lie there."""
        parts = _PATH.fullmatch(path)
        return cls(*parts.groups()) if parts and keys.is_of_series(parts[2]) else None

    @property
    def is_possible(self) -> bool:
        """Whether dskprep gives such names; what others wrote into a record or the index may be a path to anywhere."""
        is_digest = _DIGEST.fullmatch(self.digest)
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


_WORD = re.compile(r"[\w.+-]{1,80}", re.ASCII)
"""A reason, a warning, the name of a stage."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one series. Writing it is the commit: it is the last object that is written of a series.

    `reason` and `message` say why a series was not written; `stack` is the number of the stack in a series that holds
    several, if all were asked for; `warnings` are words of docs/reasons.md. `run` is the id of the run that wrote the
    record, if there was one. `objects` are the objects of the volume, by their path below it, and `pending` those that
    `upgrade` is about to write over: until it has, either is right. `further_series` are
    the other series of the same folder, as `<status>/<key>`. `seconds` holds wall seconds by stage, `cpu_s` CPU seconds
    of all series of the folder. `patient`, `study`, `frame_of_reference` and `instances` are keyed digests (see
    `identity`), None where the header lacks them; `patient` is that of PatientID and its issuer, if there is one, and
    `patient_without_issuer` then what it would be without. `chosen` says why the series was chosen among others.
    `attribution` is known of series of the Imaging Data Commons. `place` is a keyed digest of where the files lay, in a
    dataset with hashed keys, where `url` is empty.
    """

    key: str
    status: str
    input_digest: str
    url: str = ""
    place: str | None = None
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
    patient: str | None = None
    patient_without_issuer: str | None = None
    study: str | None = None
    frame_of_reference: str | None = None
    instances: str | None = None
    chosen: str | None = None
    attribution: Attribution | None = None
    hu_sha256: str | None = None
    source: Source | None = None
    acquired: Acquired | None = None
    geometry: Geometry | None = None
    lungs: LungFigures | None = None
    curation: Curation | None = None
    values: str | None = None
    need_bytes: int | None = None
    seconds: dict[str, Number] = {}
    cpu_s: Number | None = None
    objects: dict[str, StoredObject] = {}
    pending: dict[str, StoredObject] | None = None
    thumbnail: StoredObject | None = None
    further_series: tuple[str, ...] = ()

    def __repr__(self) -> str:
        why = "" if self.is_written else f", {self.reason}: {self.message}"
        return f"<Record of {self.key}: {self.status}{why}>"

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

    @property
    def volume_digest(self) -> str | None:
        """Digest of the volume's objects, as 16 hexadecimal digits; None if there are none."""
        parts = sorted(f"{name}\0{written.sha256}" for name, written in self.objects.items())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] if parts else None

    def changed(self, **changes: Any) -> Record:
        """Return a copy of this record with some fields replaced."""
        return msgspec.structs.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the fields that are None. Those of `lungs` stay, as null."""
        content = _without_none(msgspec.to_builtins(self))
        parts = [part for part in ("source", "geometry", "curation") if part in content]
        return content | {part: _without_none(content[part]) for part in parts}

    def source_values(self) -> dict[str, Any]:
        """Return what `source` says as plain JSON values, without what is not known."""
        return _without_none(msgspec.to_builtins(self.source)) if self.source else {}

    def to_json(self) -> bytes:
        """Return the content of the record's file."""
        return to_json(self.as_dict())


def in_words(counts: Mapping[str, int]) -> str:
    """Return numbers by status, such as `11 written, 1 set aside`, in the order of STATUSES."""
    return ", ".join(f"{counts[status]} {status.replace('-', ' ')}" for status in STATUSES if counts.get(status))


def further_key(key: str, uid_sha256: str | None, stack: int | None = None) -> str:
    """Return the key of a further series, or stack of a series, that was found in the folder of `key`."""
    return f"{key}{FURTHER}{uid_sha256 or ''}{'' if stack is None else f'.{stack}'}"


_to_record = converter(Record)


def parse_record(content: bytes, where: str) -> Record:
    """Read the content of a record's file, named by `where`. Raises DamagedDataset if it is not a whole record."""
    try:
        # not msgspec's own decoder: it refuses the lone surrogates by which a path that is not UTF-8 is written
        record = _to_record(json.loads(content, parse_constant=refuse_constant))
        _check(record, where)
    except (ValueError, OverflowError, RecursionError, msgspec.ValidationError) as error:
        why = as_utf8(in_one_line(error, 300))
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
    if record.acquired is not None:
        record.acquired.grid()
    base64.b64decode(record.instances or "", validate=True)


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


def refuse_constant(constant: str) -> None:
    """Raise ValueError for NaN and the like, which are no JSON."""
    raise ValueError(f"expected a number, found {constant}")


def to_json(content: dict[str, Any]) -> bytes:
    """Return JSON whose bytes depend only on the content. Raises ValueError for NaN and infinity."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _without_none(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value is not None}

"""One label source that is to be done, and how its record begins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from dskprep.dataset.label_record import LabelRecord, LabelRecordName
from dskprep.source.label_files import Asked, LabelFile


@dataclass(frozen=True)
class LabelJob:
    """A label source to be done.

    `stale` are the names of its records that no longer hold, `recorded` all owners with a record (see `owner`).
    `elsewhere` are the records of other files of this path, as in another folder, each with the SHA-256 of its file.
    """

    case: LabelFile
    asked: Asked
    run: str
    stale: tuple[LabelRecordName, ...] = ()
    recorded: tuple[str, ...] = ()
    elsewhere: tuple[tuple[str, LabelRecordName], ...] = ()

    @property
    def owner(self) -> str:
        """What labels that come of it say of their source."""
        return f"{self.case.key}.{self.asked.digest}"

    def same_elsewhere(self, sha256: str) -> list[LabelRecordName]:
        """Return the records of the same content and options at other places: the file was moved, or copied."""
        return [name for content, name in self.elsewhere if content == sha256 and name.options == self.asked.digest]


def begin_label_record(job: LabelJob, status: str, **more: Any) -> LabelRecord:
    """Begin the record of a label source with what every such record says."""
    return LabelRecord(
        source=job.case.key,
        status=status,
        options=job.asked.digest,
        digest=job.case.digest,
        url=job.case.place,
        bytes_read=job.case.n_bytes,
        asked=job.asked.as_dict(),
        dskprep=version("dskprep"),
        run=job.run,
        worker=f"{os.uname().nodename}:{os.getpid()}",
        **more,
    )

"""The labels that volumes lack since their source came to nothing: it was refused, failed, or killed its worker."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from dskprep.dataset import linking
from dskprep.dataset.label_record import LabelRecord, StoredLabel
from dskprep.dataset.lacking import NODULE
from dskprep.dataset.record import Record
from dskprep.errors import SET_ASIDE, Refusal
from dskprep.formats.names import is_volume
from dskprep.labels.lidc import Lidc
from dskprep.labels.mask import Mask
from dskprep.labels.values import Labels, Links, Segment
from dskprep.worker.label_job import LabelJob
from dskprep.worker.label_names import begin_label, name_by_file, stored_name
from dskprep.worker.nameless import segments_without_key


@dataclass(eq=False)
class Progress:
    """What is known of a source while it is made: what its labels are called, and the volumes that it belongs to.

    `segments` are those that are asked for, None if it is not read or has none; `is_lone` says that it is a mask volume
    with one label. The labels themselves are let go once they are drawn: they may take as much memory as a volume.
    """

    links: Links = field(default_factory=Links)
    segments: tuple[Segment, ...] | None = None
    is_lone: bool = False
    volumes: list[Record] = field(default_factory=list)

    def note(self, labels: Labels, only: Sequence[str]) -> None:
        """Note what was read, of which these names or patterns are asked for, all if there are none."""
        self.links = labels.links
        if labels.segments:
            self.segments = labels.named(*only) if only else labels.segments
            self.is_lone = isinstance(labels, Mask) and len(labels.segments) == 1
        elif isinstance(labels, Lidc):  # which marks are one nodule is not known yet
            self.segments = (Segment(0, NODULE),)


def lost_labels(
    job: LabelJob, target: str, seen: Progress, reason: str, message: str | None
) -> tuple[StoredLabel, ...]:
    """Return the labels that the volumes of a source lack since it came to nothing as a whole.

    A mask has its volume by its path. If it was not read it has one label, that is called as the file is, or by the
    names that were asked for. Nothing is returned where no volume is known.
    """
    volumes = seen.volumes
    if not (volumes or is_volume(job.case.url)):
        return ()
    linker = linking.of(target, job.run)
    if not volumes:
        with contextlib.suppress(Refusal):
            volumes = [linker.link_key(job.case.path, job.case.url)[0]]
    segments, is_lone = (_unread(job), True) if seen.segments is None else (seen.segments, seen.is_lone)
    is_mask = is_volume(job.case.url) if seen.segments is None else is_lone
    lost = []
    for volume in volumes:
        is_called_so = linker.is_called(volume, job.case.path)
        if job.case.is_hashed:
            folders = linker.folders_of(volume, job.case.path)
            segments = segments_without_key(segments, job.case, folders, is_mask=is_mask)
        here = linker.belonging(volume, seen.links, segments)
        for number, segment in enumerate(here):
            name = stored_name(job.asked, job.case, segment, is_nameless=is_lone and is_called_so)
            lost.append(begin_label(volume, segment, number, name).changed(reason=reason, message=message))
    return tuple(lost)


def without_any(record: LabelRecord) -> LabelRecord:
    """Return the record of a source of which no label is written: refused, or set aside if all are empty."""
    label = next((label for label in record.labels if label.reason not in SET_ASIDE), record.labels[0])
    status = "set-aside" if label.reason in SET_ASIDE else "refused"
    return record.changed(status=status, reason=label.reason, message=label.message)


def _unread(job: LabelJob) -> tuple[Segment, ...]:
    """Return what a file may hold that was not read, by the names that it would have."""
    return tuple(Segment(0, name) for name in (name_by_file(job.case), *job.asked.names.values()))

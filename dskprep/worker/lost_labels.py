"""The labels that volumes lack since their source came to nothing: it was refused, failed, or killed its worker."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from dskprep.dataset import linking
from dskprep.dataset.label_record import LabelRecord, StoredLabel
from dskprep.dataset.record import Record
from dskprep.errors import SET_ASIDE, Refusal
from dskprep.formats.names import is_volume
from dskprep.labels.values import Labels, Links, Segment
from dskprep.worker.label_job import LabelJob
from dskprep.worker.label_names import begin_label
from dskprep.worker.nameless import segments_without_key


@dataclass(eq=False)
class Progress:
    """What is known of a source while it is made: what its labels are called, and the volumes that it belongs to.

    `segments` are those that are asked for, None if it is not read or has none. The labels themselves are let go once
    they are drawn: they may take as much memory as a volume.
    """

    links: Links = field(default_factory=Links)
    segments: tuple[Segment, ...] | None = None
    volumes: list[Record] = field(default_factory=list)

    def note(self, labels: Labels, only: Sequence[str]) -> None:
        """Note what was read, of which these names or patterns are asked for, all if there are none."""
        self.links = labels.links
        if labels.segments:
            self.segments = labels.named(*only) if only else labels.segments


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
    segments = _unread(job) if seen.segments is None else seen.segments
    lost = []
    for volume in volumes:
        if job.case.is_hashed and linker.is_named(volume, job.case.file):
            segments = segments_without_key(segments, job.case.file)
        here = linker.belonging(volume, seen.links, segments)
        begun = [begin_label(volume, segment, number) for number, segment in enumerate(here)]
        lost += [label.changed(reason=reason, message=message) for label in begun]
    return tuple(lost)


def without_any(record: LabelRecord) -> LabelRecord:
    """Return the record of a source of which no label is written: refused, or set aside if all are empty."""
    label = next((label for label in record.labels if label.reason not in SET_ASIDE), record.labels[0])
    status = "set-aside" if label.reason in SET_ASIDE else "refused"
    return record.changed(status=status, reason=label.reason, message=label.message)


def _unread(job: LabelJob) -> tuple[Segment, ...]:
    """Return what a file may hold that was not read, by the names that it would have."""
    return tuple(Segment(0, name) for name in (job.case.file.split(".")[0], *job.asked.names.values()))

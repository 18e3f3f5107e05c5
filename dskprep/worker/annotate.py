"""One label source on one worker: make its labels, write them, commit; and what becomes of it if any of these fails."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, replace

from dskprep.dataset import label_store
from dskprep.dataset.annotation_columns import points_to_parquet
from dskprep.dataset.label_record import LabelRecord, LabelRecordName
from dskprep.errors import DamagedDataset, InfrastructureError, Refusal
from dskprep.settings import PrepConfig
from dskprep.stopwatch import Stopwatch
from dskprep.worker import process
from dskprep.worker.admission import Ledger, Underestimated
from dskprep.worker.drawing import MadeLabels, make_labels
from dskprep.worker.label_checks import refuse_taken
from dskprep.worker.label_job import LabelJob, begin_label_record
from dskprep.worker.lost_labels import Progress, lost_labels, without_any
from dskprep.worker.nameless import label_without_names
from dskprep.worker.process import Loss


@dataclass(frozen=True)
class LabelOutcome:
    """What became of a label source. `is_recorded` and `stuck_worker` are as in `patient.Outcome`."""

    record: LabelRecord
    is_recorded: bool = True
    stuck_worker: str = ""


def annotate_source(
    job: LabelJob, *, target: str, config: PrepConfig, memory_bytes: int, limit_s: float | None = None
) -> LabelOutcome:
    """Do one label source, in a process that may use `memory_bytes`. Never raises: what goes wrong is in the record.

    `limit_s` is the time limit of one stage (see `process.do`).
    """
    seen = Progress()
    work = functools.partial(_annotate, job, target, config, seen)
    lost = functools.partial(_record_failure, job, target, seen)
    return process.do(work, lost, memory_bytes=memory_bytes, limit_s=limit_s)


def record_killed(job: LabelJob, target: str) -> LabelOutcome:
    """Record a label source that killed its worker twice, the second time running alone."""
    message = "its worker process died twice while it held this label: most likely it needs more memory than there is"
    killed = begin_label_record(job, "killed", reason="worker-died", message=message)
    return _record_loss(job, target, _with_lost(job, target, Progress(), killed))


def _annotate(
    job: LabelJob, target: str, config: PrepConfig, seen: Progress, ledger: Ledger, clock: Stopwatch
) -> LabelOutcome:
    need_bytes = 0
    while True:
        try:
            with ledger.ticket() as ticket:
                made = make_labels(job, target, config, ledger, ticket, clock, need_bytes, seen)
                return LabelOutcome(_write(job, target, made, clock))
        except Underestimated as error:
            need_bytes = error.need_bytes


def _write(job: LabelJob, target: str, made: MadeLabels, clock: Stopwatch) -> LabelRecord:
    """Write the labels, the list of them in each volume, the points, and at last the record."""
    record = made.record
    with process.SLOTS("write", job.case.key, clock):
        with clock("write"):
            moved = job.same_elsewhere(record.sha256)
            label_store.forget(target, [*job.stale, *(n for n in moved if record.is_written or n.status != "written")])
            if record.is_written:
                record = _write_labels(job, target, made)
            if record.is_written and made.points:
                content = points_to_parquet(made.points, ours=made.ours)
                record = record.changed(points=label_store.write_points(target, record.name, content))
        seconds = {stage: round(s, 4) for stage, s in clock.seconds.items()}
        record = record.changed(seconds=seconds, cpu_s=round(process.CPU.since_last(), 3))
        record = label_without_names(record) if job.case.is_hashed else record
        clock.check()
        label_store.commit(target, record)
        if broken := label_store.withdraw_broken(target, [record]):
            raise InfrastructureError(
                f"{target}: {broken[0]} promised objects that are not there; something deletes in the dataset now"
            )
    return record


def _write_labels(job: LabelJob, target: str, made: MadeLabels) -> LabelRecord:
    labels = []
    for label, objects in zip(made.record.labels, made.objects, strict=True):
        if label.is_written:
            try:
                stored = label_store.write_label(target, label.volume, label.label, objects, job.owner, job.recorded)
                label = label.changed(objects=stored)
            except Refusal as refusal:
                there = label_store.name_like(target, label.volume, label.label)
                owner = label_store.owner_of(target, label.volume, there)
                label = label.changed(label="", reason=refusal.reason, message=refusal.message, taken_by=owner)
        labels.append(label)
    for key in dict.fromkeys(label.volume for label in labels if label.is_written):
        label_store.write_list(target, key)
    record = made.record.changed(labels=tuple(labels))
    if refused := refuse_taken(record, job, target):
        return refused
    if record.written or made.points:
        return record
    return without_any(record)


def _record_failure(job: LabelJob, target: str, seen: Progress, loss: Loss, clock: Stopwatch) -> LabelOutcome:
    said = {"reason": loss.reason, "message": loss.message, "traceback": loss.stack}
    failed = begin_label_record(job, "failed", seconds=dict(clock.seconds), **said)
    failed = _with_lost(job, target, seen, failed)
    return replace(_record_loss(job, target, failed), stuck_worker=loss.stuck_worker)


def _with_lost(job: LabelJob, target: str, seen: Progress, record: LabelRecord) -> LabelRecord:
    """Return the record of a source that was lost with the labels that its volumes lack, as far as that is known."""
    with contextlib.suppress(Exception):  # what has failed may fail again, and the loss is recorded all the same
        return record.changed(labels=lost_labels(job, target, seen, str(record.reason), record.message))
    return record


def _record_loss(job: LabelJob, target: str, record: LabelRecord) -> LabelOutcome:
    """Commit the record of a source that was lost, if the target can be written at all.

    Labels that an earlier `annotate` has drawn of it stay, with their record, as long as all of them are there.
    """
    record = label_without_names(record) if job.case.is_hashed else record
    try:
        done = _read_if_there(target, record.name._replace(status="written"))
        if done and (done.run == job.run or done.name not in job.stale):
            return LabelOutcome(done)  # its worker died after the commit, or another annotate has done it
        if done is None or label_store.lacks_objects(target, done):
            label_store.forget(target, job.stale)
            label_store.commit(target, record)
    except (OSError, DamagedDataset):
        return LabelOutcome(record, is_recorded=False)
    return LabelOutcome(record)


def _read_if_there(target: str, name: LabelRecordName) -> LabelRecord | None:
    try:
        return label_store.read_record(target, name)
    except FileNotFoundError:
        return None

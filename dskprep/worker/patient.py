"""One patient on one worker: read, prepare, write, commit; and what becomes of it if any of these fails.

A worker process has three slots, for reading, computing and writing, with one patient in each: while one patient is
computed, the next one is read and the previous one is written.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dskprep.dataset import identity, label_store, overtaken, store
from dskprep.dataset.record import Record, RecordName
from dskprep.errors import CHANGED, DamagedDataset, InfrastructureError, Refusal
from dskprep.settings import PrepConfig
from dskprep.source import away
from dskprep.source.case import Case
from dskprep.stopwatch import Stopwatch
from dskprep.storage import UnreadableFile
from dskprep.worker import process, taken
from dskprep.worker.admission import Ledger, Underestimated
from dskprep.worker.make import Line, Made, begin_record, make_case
from dskprep.worker.nameless import without_names
from dskprep.worker.process import Loss


@dataclass(frozen=True)
class Job:
    """A case to be done by a run. `stale` are the names of its records that no longer hold.

    `fingerprint` is that of the key of the dataset (see `identity`). A process that sees another one at the target, or
    none, does nothing there.
    """

    case: Case
    stale: tuple[RecordName, ...] = ()
    run: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a case: the records of its series, the main one's last.

    `is_recorded` is False if the target could not be written, so that the run has to commit the record. `is_of_other`
    is True if another run had recorded the case. `stuck_worker` is the address of a process that hangs and has to be
    restarted. `labels_deleted` counts the labels that went with images whose files have changed.
    """

    records: tuple[Record, ...]
    is_recorded: bool = True
    is_of_other: bool = False
    stuck_worker: str = ""
    labels_deleted: int = 0


def prepare_patient(
    job: Job, *, target: str, config: PrepConfig, memory_bytes: int, limit_s: float | None = None
) -> Outcome:
    """Do one case, in a process that may use `memory_bytes`.

    Never raises: what goes wrong is in the record, as `refused`, or as `failed` with its traceback. `limit_s` is the
    time limit of one stage (see `process.do`).
    """
    work = functools.partial(_prepare, job, target, config)
    lost = functools.partial(_record_failure, job, target, config)
    return process.do(work, lost, memory_bytes=memory_bytes, limit_s=limit_s)


def record_killed(job: Job, target: str, config: PrepConfig) -> Outcome:
    """Record a patient that killed its worker twice, the second time running alone."""
    message = (
        "its worker process died twice while it held this patient, the second time alone: "
        "most likely it needs more memory than the worker's limit"
    )
    return _record_loss(
        job, target, begin_record(job.case, config, status="killed", reason="worker-died", message=message)
    )


def _outcome(job: Job, records: Sequence[Record]) -> Outcome:
    return Outcome(tuple(records), is_of_other=records[-1].run != job.run)


def _prepare(job: Job, target: str, config: PrepConfig, ledger: Ledger, clock: Stopwatch) -> Outcome:
    """Try once; read a second time if the patient turns out larger than its largest file promised."""
    _check_there(job, target)
    done = _find_done(job, target)
    if done:  # by another run, or by a worker that died before it could say so
        kept = [record.name for record in done]
        store.forget(target, [name for name in job.stale if name not in kept], kept=kept)
        return _outcome(job, done)
    need: Underestimated | None = None
    while True:
        try:
            with ledger.ticket() as ticket:
                identities = identity.for_run(target, job.run, job.fingerprint)
                made = make_case(Line(job.case, config, process.SLOTS, ledger, ticket, clock, identities), need)
                if any(each.record.reason == CHANGED for each in made):
                    away.check(job.case.url)
                if job.stale and (done := _find_done(job, target)):  # by another run meanwhile: that stays
                    return _outcome(job, done)
                records, labels_deleted = _commit(job, target, config, made, clock)
                return replace(_outcome(job, records), labels_deleted=labels_deleted)
        except Underestimated as error:
            need = Underestimated(error.need_bytes, is_held=error.is_held)  # an error holds on to what was read


def _check_there(job: Job, target: str) -> None:
    """Raise InfrastructureError if the dataset of the run is not what this process sees at the target now."""
    if job.fingerprint:
        identity.for_run(target, job.run, job.fingerprint)
        identity.check_there(target)


def _find_done(job: Job, target: str) -> list[Record]:
    try:
        found = store.find_written(target, job.case.key, job.case.digest)
    except DamagedDataset:
        if any(name.digest == job.case.digest for name in job.stale):  # known, and deleted before the commit
            return []
        raise
    return [] if any(record.reason == CHANGED for record in found) else found


def _commit(job: Job, target: str, config: PrepConfig, made: list[Made], clock: Stopwatch) -> tuple[list[Record], int]:
    """Write the volumes, then the records. Returns these, and how many labels of former images were deleted."""
    labels_deleted = 0
    with process.SLOTS("write", job.case.key, clock):
        _check_there(job, target)
        with clock("write"):
            foreign = taken.of_another_source(target, job.case, job.stale, [each.record for each in made])
            try:
                records, labels_deleted = _write_all(job, target, made, foreign)
            except Refusal as refusal:  # another run or another source was here; what it has written stays
                store.forget(target, [n for n in job.stale if n.status != "written" and n not in foreign])
                said = {"status": refusal.status, "reason": refusal.reason, "message": refusal.message}
                records = [begin_record(job.case, config, **said)]
        if job.case.is_hashed:
            records = [without_names(record) for record in records]
        seconds = {stage: round(s, 4) for stage, s in clock.seconds.items()}
        records = [record.changed(run=job.run, seconds=seconds) for record in records]
        records[-1] = records[-1].changed(cpu_s=round(process.CPU.since_last(), 3))
        _check_there(job, target)
        for record in records:
            clock.check()
            is_new = store.commit(target, record)
        if mixed := overtaken.withdraw_mixed(target, records):
            raise InfrastructureError(
                f"{target}: another run has written {mixed[0]} at the same time, from other files; the records of both "
                "are deleted, and the next run makes it anew"
            )
        if broken := store.withdraw_broken(target, records):
            raise InfrastructureError(
                f"{target}: {broken[0]} promised objects that are not there, or are cut; something deletes in the "
                "dataset now, or the store does not keep what it is sent"
            )
    # if it stood there, it may be of this run after all: S3's answer to the commit was lost
    records = records if is_new else [*records[:-1], store.read_record(target, records[-1].name)]
    return records, labels_deleted


@functools.lru_cache(maxsize=1)
def _had_labels(target: str, run: str | None) -> bool:
    """Tell whether anything had ever been annotated in a dataset when this process first looked in a run."""
    del run  # before another one, something may have been
    return label_store.has_labels(target)


def _write_all(
    job: Job, target: str, made: list[Made], foreign: Mapping[RecordName, Record]
) -> tuple[list[Record], int]:
    """Write the volumes in place of those of stale records, but for those that are `foreign`: of another source.

    Returns the records, and how many labels of former images were deleted. Raises Refusal if another run has written
    them since, or another source has volumes of their names.
    """
    if job.case.problem:  # what was made of a line of a manifest before is kept while that line cannot be listed
        store.forget(target, job.stale)
        return [each.record for each in made], 0
    overtaken.refuse_forgotten(target, job.case.key, job.case.digest, job.stale)
    if foreign and any(each.objects for each in made):
        raise taken.refusal(foreign)
    stale = [name for name in job.stale if name not in foreign]
    store.forget(target, stale)
    theirs, labels_deleted = {name.key for name in foreign}, 0
    # labels of a new patient are those of an image that went before this attempt
    if label_store.has_labels(target) if stale else _had_labels(target, job.run):
        former = [name.digest for name in stale]
        for key in ({name.key for name in stale} | {each.record.key for each in made}) - theirs:
            labels_deleted += label_store.drop(target, key, job.case.digest, former)
    return [e.record if e.record.key in theirs else _write(job, target, e) for e in made], labels_deleted


def _write(job: Job, target: str, made: Made) -> Record:
    """Write a volume and its thumbnail. Returns the record, which now says what was written."""
    record = made.record
    if record.reason == CHANGED:
        return record  # the volume of this key may be that of the changed source, written by another run
    done = overtaken.begin(target, record.key, made.objects, record.input_digest, job.stale)
    objects = store.write_volume(target, record.key, made.objects, done)
    small = store.write_thumbnail(target, record.key, made.thumbnail) if made.thumbnail else None
    return record.changed(objects=objects, thumbnail=small)


def _record_failure(job: Job, target: str, config: PrepConfig, loss: Loss, clock: Stopwatch) -> Outcome:
    said = {"reason": loss.reason, "message": loss.message, "traceback": loss.stack}
    failed = begin_record(job.case, config, status="failed", **said)
    failed = failed.changed(seconds=dict(clock.seconds), cpu_s=round(process.CPU.since_last(), 3))
    return replace(_record_loss(job, target, failed), stuck_worker=loss.stuck_worker)


def _record_loss(job: Job, target: str, record: Record) -> Outcome:
    """Commit the record of a patient that was lost, if the target can be written at all."""
    record = (without_names(record) if job.case.is_hashed else record).changed(run=job.run)
    try:
        _check_there(job, target)
        done = store.find_written(target, record.key, record.input_digest)
        if done:  # its worker died after the commit
            return _outcome(job, done[-1:])
        store.forget(target, _still_stale(job, target))
        if not store.commit(target, record):
            record = store.read_record(target, record.name)
    except (OSError, DamagedDataset):  # an InfrastructureError, or one of the operating system's; a record was altered
        return Outcome((record,), is_recorded=False)
    return _outcome(job, [record])


def _still_stale(job: Job, target: str) -> list[RecordName]:
    """Return the stale records that may go with their volumes: not those of another source or of another run since."""
    try:
        overtaken.refuse_forgotten(target, job.case.key, job.case.digest, job.stale)
        foreign = taken.of_another_source(target, job.case, job.stale, [])
    except (Refusal, UnreadableFile):  # of a record that cannot be read nobody knows whose it is
        return [name for name in job.stale if name.status != "written"]
    return [name for name in job.stale if name not in foreign]

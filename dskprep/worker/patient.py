"""One patient on one worker: read, put right, prepare, write, commit.

A worker process has three slots, for reading, computing and writing, and one patient in each: while
one is computed, the next is read and the last is written.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import distributed

from dskprep.dataset import omezarr, store, thumbnail
from dskprep.dataset.record import Aside, Crop, Geometry, LungFigures, Record, RecordName, further_key, source_of
from dskprep.dicom.contents import Contents
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.preparation.prepare import prepare
from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import recipe
from dskprep.series.series import Reread
from dskprep.settings import PrepConfig
from dskprep.source.archive import Outgrown
from dskprep.source.cases import Case
from dskprep.source.files import File, open_case
from dskprep.source.found import aside_counts, assemble_as, each_series, rank
from dskprep.stopwatch import Stopwatch
from dskprep.volume import Triple
from dskprep.worker import admission
from dskprep.worker.admission import Ledger, Ticket, Underestimated
from dskprep.worker.slots import Slots
from dskprep.worker.time_limit import CpuMeter, Overdue, within

ATTEMPTS = 3
"""Tries of a patient whose store did not answer; the store's own retries come on top."""

WAIT_S = 2.0
"""Before the second try; doubled before each further one."""

DEADLINE_S = 600.0
"""After this time a patient is not tried again."""

MAX_NAMES = 20
"""File names that a record lists of those set aside."""

_LEDGERS: dict[int, Ledger] = {}
_LEDGERS_LOCK = threading.Lock()
_SLOTS = Slots()
_CPU = CpuMeter()


@dataclass(frozen=True)
class Job:
    """A case to be done. `stale` are records of it that no longer hold."""

    case: Case
    stale: tuple[RecordName, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a case: the records of its series, its own last.

    `is_recorded` is False if the target could not be written, so that the run must commit the record. `stuck_worker` is
    the address of a process that hangs, and is to be restarted.
    """

    records: tuple[Record, ...]
    is_recorded: bool = True
    stuck_worker: str = ""


@dataclass(frozen=True, eq=False)
class _Line:
    """What the stages of one patient share."""

    case: Case
    config: PrepConfig
    ledger: Ledger
    ticket: Ticket
    clock: Stopwatch

    def reserve(self, shape: tuple[int, int, int], spacing_mm: Triple) -> None:
        """Ask for the memory of a series before it is decoded."""
        need_bytes = admission.estimate_bytes(shape, spacing_mm, self.config, is_held=self.ticket.is_held)
        if need_bytes > self.ledger.total_bytes and self.ticket.is_held and recipe(self.config.recipe).streams:
            raise Underestimated(need_bytes)  # its files need not be held
        self.ledger.check(need_bytes)
        self.ledger.grow(self.ticket, need_bytes)


@dataclass(frozen=True, eq=False)
class _Made:
    """What was made of one series: its record, and its objects and thumbnail (none if it became no volume)."""

    record: Record
    objects: dict[str, bytes] = field(default_factory=dict)
    thumbnail: bytes = b""

    @property
    def rank(self) -> tuple[bool, int, str]:
        source = self.record.source
        n_slices = source.slices if source else 0
        return rank(self.record.series_uid_sha256 or "", n_slices, is_written=self.record.is_written)


def prepare_patient(
    job: Job, *, target: str, config: PrepConfig, memory_bytes: int, limit_s: float | None = None
) -> Outcome:
    """Do one case, in a process that may use `memory_bytes`.

    Never raises: what goes wrong is in the record (`refused`, or `failed` with its traceback). A stage that takes
    longer than `limit_s` is given up, and with it this process.
    """
    clock = Stopwatch()
    if limit_s is None:
        return _prepare(job, target, config, memory_bytes, clock)
    worker = distributed.get_worker()
    # one that came late may have less than those that were asked
    memory_bytes = min(memory_bytes, worker.memory_manager.memory_limit or memory_bytes)
    _SLOTS.tell_through(worker, _ledger(memory_bytes))
    try:
        return within(limit_s, clock, functools.partial(_prepare, job, target, config, memory_bytes, clock))
    except Overdue as overdue:
        failed = _failed(job, config, clock, reason="time-limit", message=str(overdue), traceback=overdue.stack)
        outcome = record_loss(target, failed, job.stale)
        return Outcome(outcome.records, outcome.is_recorded, stuck_worker=worker.address)


def _prepare(job: Job, target: str, config: PrepConfig, memory_bytes: int, clock: Stopwatch) -> Outcome:
    started = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return Outcome(tuple(_attempt(job, target, config, _ledger(memory_bytes), clock)))
        except OSError as error:  # an InfrastructureError, or one of the system's own
            failure: BaseException = error
            if attempt == ATTEMPTS or time.monotonic() - started > DEADLINE_S:
                break
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        except Exception as error:  # a bug, or memory: it costs this patient only
            failure = error
            break
    stack = "".join(traceback.format_exception(failure))
    reason, message = type(failure).__name__, str(failure)[:500]
    failed = _failed(job, config, clock, reason=reason, message=message, traceback=stack)
    return record_loss(target, failed, job.stale)


def _failed(job: Job, config: PrepConfig, clock: Stopwatch, *, reason: str, message: str, traceback: str) -> Record:
    seconds, cpu_s = dict(clock.seconds), round(_CPU.since_last(), 3)
    why: dict[str, Any] = {"reason": reason, "message": message, "traceback": traceback}
    return _record(job.case, config, status="failed", seconds=seconds, cpu_s=cpu_s, **why)


def record_loss(target: str, record: Record, stale: tuple[RecordName, ...]) -> Outcome:
    """Commit the record of a patient that was lost, if the target can be written at all."""
    try:
        done = store.find_written(target, record.key, record.input_digest)
        if done:  # its worker died after the commit
            return Outcome((done[-1],))
        store.forget(target, stale)
        store.commit(target, record)
    except OSError:  # an InfrastructureError, or one of the system's own
        return Outcome((record,), is_recorded=False)
    return Outcome((record,))


def killed_record(case: Case, config: PrepConfig) -> Record:
    """Return the record of a patient that killed its worker twice, the second time running alone."""
    return _record(
        case,
        config,
        status="killed",
        reason="worker-died",
        message="its worker process died twice while it held this patient, the second time alone: "
        "most likely it needs more memory than the worker's limit",
    )


def _ledger(limit_bytes: int) -> Ledger:
    """Return the ledger of this process."""
    with _LEDGERS_LOCK:
        return _LEDGERS.setdefault(limit_bytes, Ledger(admission.usable_bytes(limit_bytes)))


def _attempt(job: Job, target: str, config: PrepConfig, ledger: Ledger, clock: Stopwatch) -> list[Record]:
    """Try once; read a second time if the patient turns out larger than its first slice promised."""
    done = store.find_written(target, job.case.key, job.case.digest)
    if done:  # by another run, or by a worker that died before it could say so
        store.forget(target, [name for name in job.stale if name not in [record.name for record in done]])
        return done
    need: Underestimated | None = None
    while True:
        try:
            with ledger.ticket() as ticket:
                return _commit(job, target, _made(_Line(job.case, config, ledger, ticket, clock), need), clock)
        except Underestimated as error:
            need = error


def _made(line: _Line, need: Underestimated | None) -> list[_Made]:
    """Read and compute what a case holds, its main series last."""
    contents = Contents()
    held: list[File] = []
    reread: Reread | None = None
    try:
        with _SLOTS("read", line.case.key, line.clock), line.clock("read"):
            files = open_case(line.case)
            admission.admit(files, line.config, line.ledger, line.ticket, need)
            if line.ticket.is_held:
                held = list(files.read(max_bytes=line.ticket.need_bytes - files.n_bytes))
            else:
                contents.add_headers(files.read_headers())
                reread = files.reread
        with _SLOTS("compute", line.case.key, line.clock):
            made = list(_compute(line, contents, held, reread))
    except Outgrown as error:
        raise Underestimated(2 * line.ticket.need_bytes) from error
    except Refusal as refusal:
        made = [_refused(_record(line.case, line.config, status="refused"), refusal)]
    line.ledger.finish(line.ticket, sum(len(content) for each in made for content in each.objects.values()))
    return _named(made, line.case.key)


def _named(made: list[_Made], key: str) -> list[_Made]:
    """Sort the series, the main one last, and give each of the others a key of its own."""
    *others, main = sorted(made, key=lambda each: each.rank)
    named = [
        _Made(each.record.changed(key=further_key(key, each.record.series_uid_sha256)), each.objects, each.thumbnail)
        for each in others
    ]
    further = tuple(f"{each.record.status}/{each.record.key}" for each in named)
    return [*named, _Made(main.record.changed(further_series=further), main.objects, main.thumbnail)]


def _commit(job: Job, target: str, made: list[_Made], clock: Stopwatch) -> list[Record]:
    """Write the volumes, then the records."""
    with _SLOTS("write", job.case.key, clock):
        with clock("write"):
            store.forget(target, job.stale)
            records = [_write(target, each) for each in made]
        seconds = {stage: round(s, 4) for stage, s in clock.seconds.items()}
        records = [record.changed(seconds=seconds) for record in records]
        records[-1] = records[-1].changed(cpu_s=round(_CPU.since_last(), 3))
        for record in records:
            clock.check()
            store.commit(target, record)
    return records


def _write(target: str, made: _Made) -> Record:
    """Write a volume and its thumbnail. Returns its record, which says what was written."""
    record = made.record
    if record.reason == "source-changed":
        return record  # the key's volume may be that of the changed source, written by another run
    objects = store.write_volume(target, record.key, made.objects)
    small = store.write_thumbnail(target, record.key, made.thumbnail) if made.thumbnail else None
    return record.changed(objects=objects, thumbnail=small)


def _compute(line: _Line, contents: Contents, files: list[File], reread: Reread | None) -> Iterator[_Made]:
    """Make a volume, or a refusal, of each CT series in the contents, and in the files. Empties `files` as it goes."""
    with line.clock("decode"):
        files.reverse()
        while files:
            contents.add(*files.pop())
    counts, n_series = aside_counts(contents), len(contents.uids())
    names = tuple(f"{a.name}: {a.kind} {a.detail}".strip() for a in contents.aside[:MAX_NAMES])
    warnings = ["localizer-skipped"] * ("localizer" in counts) + ["one-of-several-series"] * (n_series > 1)
    begun = _record(line.case, line.config, status="refused", aside=Aside(counts, names))
    prepare_series = functools.partial(_prepare_series, line, begun, warnings, reread=reread)
    for uid_sha256, made in each_series(contents, prepare_series):
        if isinstance(made, Refusal):
            made = _refused(begun, made)
        yield _Made(made.record.changed(series_uid_sha256=uid_sha256), made.objects, made.thumbnail)


def _prepare_series(
    line: _Line, begun: Record, warnings: list[str], slices: list[Slice], *, reread: Reread | None
) -> _Made:
    with line.clock("decode"):
        found = assemble_as(slices, line.config, reserve=line.reserve, reread=reread)
    source, decoded = source_of(found.facts), found.decode()
    prepared = prepare(decoded, line.config, line.clock)
    hu_sha256, warnings = decoded.hu_sha256, [*warnings, *decoded.warnings]
    del found, decoded
    lungs = None
    if prepared.lungs is not None:
        warnings += prepared.lungs.warnings
        with line.clock("lungs"):
            lungs = _lung_figures(prepared)
    record = begun.changed(
        status="written",
        warnings=tuple(warnings),
        hu_sha256=hu_sha256,
        source=source,
        geometry=_geometry(prepared),
        values=prepared.values,
        lungs=lungs,
    )
    provenance = {name: getattr(record, name) for name in ("settings_digest", "hu_sha256", "dskprep")}
    with line.clock("encode"):
        return _Made(record, omezarr.encode(prepared, line.config, provenance), thumbnail.draw(prepared))


def _refused(begun: Record, refusal: Refusal) -> _Made:
    return _Made(begun.changed(status="refused", reason=refusal.reason, message=refusal.message, **refusal.facts))


def _record(case: Case, config: PrepConfig, *, status: str, **more: Any) -> Record:
    """Begin the record of a case with what every record says."""
    return Record(
        key=case.key,
        status=status,
        input_digest=case.digest,
        url=case.url,
        n_files=case.n_files,
        bytes_read=case.n_bytes,
        settings_digest=config.digest(),
        dskprep=version("dskprep"),
        worker=f"{os.uname().nodename}:{os.getpid()}",
        **more,
    )


def _geometry(prepared: Prepared) -> Geometry:
    z, y, x = (round(s, 6) for s in prepared.image.spacing)
    affine = tuple(tuple(row) for row in prepared.image.affine.round(6).tolist())
    crop = None if prepared.crop is None else Crop(prepared.crop.first, prepared.crop.shape)
    return Geometry(prepared.image.shape, (z, y, x), affine, crop)


def _lung_figures(prepared: Prepared) -> LungFigures | None:
    if prepared.lungs is None:
        return None
    mean_hu, dense_share = prepared.mean_lung_hu(), prepared.lungs.dense_share
    return LungFigures(
        right_ml=round(float(prepared.lungs.right_ml), 1),
        left_ml=round(float(prepared.lungs.left_ml), 1),
        mean_hu=None if mean_hu is None else round(float(mean_hu), 1),
        dense_share=None if dense_share is None else round(float(dense_share), 4),
    )

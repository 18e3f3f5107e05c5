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
from dskprep.dataset.store import Record, RecordName
from dskprep.dicom.contents import Contents
from dskprep.dicom.slices import Slice
from dskprep.errors import InfrastructureError, Refusal
from dskprep.preparation.prepare import RECIPE_HU, prepare
from dskprep.preparation.prepared import Prepared
from dskprep.series import series
from dskprep.settings import PrepConfig
from dskprep.source import cases
from dskprep.source import files as reading
from dskprep.stopwatch import CpuMeter, Overdue, Stopwatch, within
from dskprep.volume import Triple
from dskprep.worker import admission
from dskprep.worker.admission import Ledger
from dskprep.worker.slots import Slots

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

    case: cases.Case
    stale: tuple[RecordName, ...] = ()


@dataclass(frozen=True, eq=False)
class _Line:
    """What the stages of one patient share."""

    case: cases.Case
    config: PrepConfig
    ledger: Ledger
    ticket: admission.Ticket
    clock: Stopwatch

    def reserve(self, shape: tuple[int, int, int], spacing_mm: Triple) -> None:
        """Ask for the memory of a series before it is decoded."""
        need_bytes = admission.estimate_bytes(shape, spacing_mm, self.config, is_held=self.ticket.is_held)
        if need_bytes > self.ledger.total_bytes and self.ticket.is_held and self.config.may_stream:
            raise admission.Underestimated(need_bytes)  # its files need not be held
        self.ledger.check(need_bytes)
        self.ledger.grow(self.ticket, need_bytes)


@dataclass(eq=False)
class _Outcome:
    """A series' record in the making, and its objects and thumbnail (none if it became no volume)."""

    record: Record
    objects: dict[str, bytes] = field(default_factory=dict)
    thumbnail: bytes = b""


def prepare_patient(
    job: Job, *, target: str, config: PrepConfig, memory_bytes: int, limit_s: float | None = None
) -> list[Record]:
    """Do one case, in a process that may use `memory_bytes`, and return its records, its own last.

    Never raises: what goes wrong is in the record (`refused`, or `failed` with its traceback). A record
    that could not be written has `"is_recorded": False`. A stage that takes longer than `limit_s` is given
    up: the record names the `"stuck_worker"` then, a process that is to be restarted.
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
        failure = {"reason": "time-limit", "message": str(overdue), "traceback": overdue.stack}
        record = record_loss(target, _failed(job, config, clock) | failure, job.stale)
        return [record | {"stuck_worker": worker.address}]


def _prepare(job: Job, target: str, config: PrepConfig, memory_bytes: int, clock: Stopwatch) -> list[Record]:
    started = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _attempt(job, target, config, _ledger(memory_bytes), clock)
        except (InfrastructureError, OSError) as error:
            failure: BaseException = error
            if attempt == ATTEMPTS or time.monotonic() - started > DEADLINE_S:
                break
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        except Exception as error:  # a bug, or memory: it costs this patient only
            failure = error
            break
    record = _failed(job, config, clock) | {
        "reason": type(failure).__name__,
        "message": str(failure)[:500],
        "traceback": "".join(traceback.format_exception(failure)),
    }
    return [record_loss(target, record, job.stale)]


def _failed(job: Job, config: PrepConfig, clock: Stopwatch) -> Record:
    return _base(job.case, config) | {
        "status": "failed",
        "seconds": clock.seconds,
        "cpu_s": round(_CPU.since_last(), 3),
    }


def record_loss(target: str, record: Record, stale: tuple[RecordName, ...]) -> Record:
    """Commit the record of a patient that was lost, if the target can be written at all."""
    try:
        done = store.find_written(target, record["key"], record["input_digest"])
        if done:  # its worker died after the commit
            return done[-1]
        store.forget(target, stale)
        store.commit(target, record)
    except (InfrastructureError, OSError):
        record["is_recorded"] = False
    return record


def killed_record(case: cases.Case, config: PrepConfig) -> Record:
    """The record of a patient whose worker died with it, alone, twice."""
    return _base(case, config) | {
        "status": "killed",
        "reason": "worker-died",
        "message": "its worker process died twice while it held this patient, the second time alone: "
        "most likely it needs more memory than the worker's limit",
    }


def _ledger(limit_bytes: int) -> Ledger:
    """The ledger of this process."""
    with _LEDGERS_LOCK:
        return _LEDGERS.setdefault(limit_bytes, Ledger(admission.usable_bytes(limit_bytes)))


def _attempt(job: Job, target: str, config: PrepConfig, ledger: Ledger, clock: Stopwatch) -> list[Record]:
    """One try; a second reading if the patient turns out larger than its first slice promised."""
    done = store.find_written(target, job.case.key, job.case.digest)
    if done:  # by another run, or by a worker that died before it could say so
        store.forget(target, [name for name in job.stale if name not in map(store.name_of, done)])
        return done
    need: admission.Underestimated | None = None
    while True:
        try:
            with ledger.ticket() as ticket:
                outcomes = _outcomes(_Line(job.case, config, ledger, ticket, clock), need)
                return _commit(job, target, outcomes, clock)
        except admission.Underestimated as error:
            need = error


def _outcomes(line: _Line, need: admission.Underestimated | None) -> list[_Outcome]:
    """Read and compute; the case's own series last."""
    contents = Contents()
    held: list[tuple[str, bytes]] = []
    try:
        with _SLOTS("read", line.case.key, line.clock), line.clock("read"):
            files = reading.read_case(line.case, line.config, line.ledger, line.ticket, need)
            if files.reread is None:
                held = list(files.contents)
            else:
                contents.add_headers(files.contents)
        with _SLOTS("compute", line.case.key, line.clock):
            outcomes = list(_compute(line, contents, held, files.reread))
    except Refusal as refusal:
        outcomes = [_refused(_base(line.case, line.config), refusal)]
    line.ledger.finish(line.ticket, sum(len(c) for o in outcomes for c in o.objects.values()))
    _name(outcomes, line.case.key)
    further = [(o.record["status"], o.record["key"]) for o in outcomes[:-1]]
    outcomes[-1].record["further_series"] = [f"{status}/{key}" for status, key in further]
    return outcomes


def _commit(job: Job, target: str, outcomes: list[_Outcome], clock: Stopwatch) -> list[Record]:
    """Write the volumes, then the records."""
    with _SLOTS("write", job.case.key, clock):
        with clock("write"):
            store.forget(target, job.stale)
            for outcome in outcomes:
                if outcome.record.get("reason") == "source-changed":
                    continue  # the key's volume may be that of the changed source, written by another run
                outcome.record["objects"] = store.write_volume(target, outcome.record["key"], outcome.objects)
                if outcome.thumbnail:
                    outcome.record["thumbnail"] = store.write_thumbnail(
                        target, outcome.record["key"], outcome.thumbnail
                    )
        outcomes[-1].record["cpu_s"] = round(_CPU.since_last(), 3)
        for outcome in outcomes:
            outcome.record["seconds"] = {stage: round(s, 4) for stage, s in clock.seconds.items()}
            clock.check()
            store.commit(target, outcome.record)
    return [outcome.record for outcome in outcomes]


def _compute(
    line: _Line, contents: Contents, files: list[tuple[str, bytes]], reread: series.Reread | None
) -> Iterator[_Outcome]:
    """An outcome for each CT series in the contents, and in the files. Empties `files` as it goes."""
    with line.clock("decode"):
        files.reverse()
        while files:
            contents.add(*files.pop())
    uids = contents.uids()
    if not uids:
        raise reading.nothing_found(contents)
    counts = reading.aside_counts(contents)
    names = [f"{a.name}: {a.kind} {a.detail}".strip() for a in contents.aside[:MAX_NAMES]]
    for uid in uids:
        record = _base(line.case, line.config) | {"aside": {"counts": counts, "names": names}}
        record["series_uid_sha256"] = series.uid_digest(uid)
        warnings = ["localizer-skipped"] if "localizer" in counts else []
        if len(uids) > 1:
            warnings.append("one-of-several-series")
        damage = contents.flaw(uid)
        try:
            if damage is not None:
                raise damage
            yield _written(line, record, warnings, contents.slices.pop(uid), reread)
        except Refusal as refusal:
            yield _refused(record, refusal)


def _written(
    line: _Line, record: Record, warnings: list[str], slices: list[Slice], reread: series.Reread | None
) -> _Outcome:
    config = line.config
    with line.clock("decode"):
        found = series.assemble(
            slices,
            min_slices=config.min_slices,
            max_gap_slices=config.fillable_slices,
            to_hu=RECIPE_HU.get(config.recipe),
            reserve=line.reserve,
            reread=reread,
        )
    record["source"] = found.facts
    decoded = found.decode()
    prepared = prepare(decoded, config, line.clock)
    warnings = warnings + list(decoded.warnings)
    record |= {"status": "written", "hu_sha256": decoded.hu_sha256}
    del found, decoded
    record["geometry"] = _geometry(prepared)
    record["values"] = prepared.values
    if prepared.lungs is not None:
        warnings += prepared.lungs.warnings
        with line.clock("lungs"):
            mean_hu, dense_share = prepared.mean_lung_hu(), prepared.lungs.dense_share
        record["lungs"] = {
            "right_ml": round(prepared.lungs.right_ml, 1),
            "left_ml": round(prepared.lungs.left_ml, 1),
            "mean_hu": None if mean_hu is None else round(mean_hu, 1),
            "dense_share": None if dense_share is None else round(dense_share, 4),
        }
    record["warnings"] = warnings
    provenance = {name: record[name] for name in ("settings_digest", "hu_sha256", "dskprep")}
    with line.clock("encode"):
        return _Outcome(record, omezarr.encode(prepared, config, provenance), thumbnail.draw(prepared))


def _refused(record: Record, refusal: Refusal) -> _Outcome:
    refused = {"status": "refused", "reason": refusal.reason, "message": refusal.message}
    return _Outcome(record | refused | refusal.facts)


def _name(outcomes: list[_Outcome], key: str) -> None:
    """Give the case's own key to its main series, and put that last.

    The main series is a written one before a refused one, then that with the most slices. The others
    have the key with a part of their UID's digest.
    """

    outcomes.sort(key=lambda outcome: rank(outcome.record))
    for outcome in outcomes[:-1]:
        outcome.record["key"] = further_key(key, outcome.record)


def rank(record: Record) -> tuple[bool, int, str]:
    """Orders the series of one folder: the main one is last."""
    n_slices = record.get("source", {}).get("slices", 0)
    return record["status"] == "written", n_slices, record.get("series_uid_sha256", "")


def further_key(key: str, record: Record) -> str:
    """The key of a further series found in the folder of that key."""
    return f"{key}{store.FURTHER}{record['series_uid_sha256']}"


def _base(case: cases.Case, config: PrepConfig) -> Record:
    """What every record says."""
    return {
        "key": case.key,
        "input_digest": case.digest,
        "url": case.url,
        "n_files": case.n_files,
        "bytes_read": case.n_bytes,
        "settings_digest": config.digest(),
        "dskprep": version("dskprep"),
        "worker": f"{os.uname().nodename}:{os.getpid()}",
    }


def _geometry(prepared: Prepared) -> dict[str, Any]:
    image = prepared.image
    geometry = {
        "shape": list(image.shape),
        "spacing_mm": [round(s, 6) for s in image.spacing],
        "affine": image.affine.round(6).tolist(),
    }
    if prepared.crop is not None:
        geometry["crop"] = {"first": list(prepared.crop.first), "of_shape": list(prepared.crop.shape)}
    return geometry

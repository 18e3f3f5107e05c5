"""One volume of an export on one worker: read, compress, write; and what becomes of it if any of these fails."""

from __future__ import annotations

from dataclasses import dataclass

from dskprep.errors import DskprepError, UsageError
from dskprep.exchange import volume
from dskprep.exchange.volume import ExportJob
from dskprep.stopwatch import Stopwatch
from dskprep.worker import admission, process


@dataclass(frozen=True)
class Exported:
    """What became of a volume: the bytes that were written, or why it failed."""

    key: str
    n_bytes: int = 0
    problem: str = ""
    stuck_worker: str = ""


def export_volume(job: ExportJob, *, target: str, out: str, memory_bytes: int) -> Exported:
    """Write the files of one volume, in a process that may use `memory_bytes`. Never raises."""
    try:
        return process.patiently(lambda: _try(job, target, out, memory_bytes))
    except DskprepError as error:
        return Exported(job.key, problem=str(error))
    except Exception as failure:  # a bug, or memory: it costs this volume only
        return Exported(job.key, problem=f"{type(failure).__name__}: {failure}"[:2000])


def _try(job: ExportJob, target: str, out: str, memory_bytes: int) -> Exported:
    ledger, clock = process.ledger(memory_bytes), Stopwatch()
    record = volume.read_record(target, job)
    need_bytes = volume.need_bytes(record)
    if need_bytes > ledger.total_bytes:
        raise UsageError(
            f"needs {need_bytes} bytes, and a worker has {ledger.total_bytes}; export again with --memory-limit "
            f"{admission.limit_for(need_bytes)} and as many --workers as that allows"
        )
    with ledger.ticket() as ticket:
        ledger.admit(ticket, 0, need_bytes)
        with process.SLOTS("compute", job.key, clock), clock("export"):
            written = volume.write(target, out, job, record)
    return Exported(job.key, sum(about.n_bytes for about in written.files.values()))

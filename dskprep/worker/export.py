"""One volume of an export on one worker: read, compress, write; and what becomes of it if any of these fails."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from dskprep.dataset import store
from dskprep.errors import UsageError
from dskprep.exchange import volume
from dskprep.exchange.volume import ExportJob
from dskprep.stopwatch import Stopwatch
from dskprep.worker import admission, process
from dskprep.worker.admission import Ledger
from dskprep.worker.process import Loss


@dataclass(frozen=True)
class Exported:
    """What became of a volume: the bytes that were written, or why it failed."""

    key: str
    n_bytes: int = 0
    problem: str = ""
    stuck_worker: str = ""


def export_volume(
    job: ExportJob, *, target: str, out: str, memory_bytes: int, limit_s: float | None = None
) -> Exported:
    """Write the files of one volume, in a process that may use `memory_bytes`. Never raises.

    `limit_s` is the time limit of a volume (see `process.do`).
    """

    def lost(loss: Loss, _: Stopwatch) -> Exported:
        problem = f"{loss.reason}: {loss.message}" if loss.is_bug else loss.message
        return Exported(job.key, problem=problem, stuck_worker=loss.stuck_worker)

    return process.do(functools.partial(_write, job, target, out), lost, memory_bytes=memory_bytes, limit_s=limit_s)


def _write(job: ExportJob, target: str, out: str, ledger: Ledger, clock: Stopwatch) -> Exported:
    record = store.read_record(target, job.record)
    need_bytes = volume.need_bytes(record)
    if need_bytes > ledger.total_bytes:
        raise UsageError(
            f"needs {admission.mib(need_bytes)}, and a worker has {admission.mib(ledger.total_bytes)}; export again "
            f"with --memory-limit {admission.limit_for(need_bytes)} and as many --workers as that allows"
        )
    with ledger.ticket() as ticket:
        ledger.admit(ticket, 0, need_bytes)
        with process.SLOTS("compute", job.key, clock), clock("export"):
            written = volume.write(target, out, job, record)
    return Exported(job.key, sum(about.n_bytes for about in written.files.values()))

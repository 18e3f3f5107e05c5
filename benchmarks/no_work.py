"""The work of patients that do nothing, for `run_loop.py`.

It lies in a module of its own, so that it goes to the workers by its name, as `worker.patient.prepare_patient` does. A
function of the program itself would go by value with each patient: half of all that is measured.
"""

from __future__ import annotations

import time

import distributed

from dskprep.dataset.record import Record
from dskprep.stopwatch import Stopwatch
from dskprep.worker import process
from dskprep.worker.patient import Job, Outcome


def do_nothing(job: Job, work_s: float) -> Outcome:
    """Passes through the slots, and tells of it, as a patient does."""
    process.SLOTS.tell_through(distributed.get_worker(), process._ledger(2**30))
    clock = Stopwatch()
    for slot, stages in (
        ("read", ["read"]),
        ("compute", ["decode", "resample", "lungs", "encode"]),
        ("write", ["write"]),
    ):
        with process.SLOTS(slot, job.case.key, clock):
            for stage in stages:
                with clock(stage):
                    time.sleep(work_s if stage == "lungs" else 0)
    return Outcome((Record(key=job.case.key, status="written", input_digest=job.case.digest, bytes_read=1),))

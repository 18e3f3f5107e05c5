"""Prepare one patient in a fresh process, and tell how much memory that took.

python tests/peak_memory.py SOURCE TARGET LIMIT_BYTES
"""

from __future__ import annotations

import sys

import tiny

from dskprep.preparation import prepare
from dskprep.settings import PrepConfig
from dskprep.source import cases
from dskprep.source.files import open_case
from dskprep.worker import admission, patient


def main() -> None:
    config = PrepConfig()
    prepare.warm(config)
    (case,) = cases.cases(sys.argv[1])
    job = patient.Job(case)
    (record,) = patient.prepare_patient(job, target=sys.argv[2], config=config, memory_bytes=int(sys.argv[3])).records
    assert record.status == "written", record
    assert record.lungs.right_ml > 500, record
    source = record.source
    shape = (source.slices, source.rows, source.columns)
    spacing_mm = (source.step_mm, source.row_spacing_mm, source.column_spacing_mm)
    files, usable = open_case(case), admission.usable_bytes(int(sys.argv[3]))

    def need_bytes(*, is_held: bool) -> int:
        if files.is_volume:
            return admission.least_bytes(files, config, is_held=is_held)
        return admission.estimate_bytes(shape, spacing_mm, config, is_held=is_held)

    print(tiny.peak_bytes(), admission.BASE_BYTES + need_bytes(is_held=need_bytes(is_held=True) <= usable))


if __name__ == "__main__":
    main()

"""One patient on one worker: read, prepare, write, commit.

In: a job (a case). Out: its records. Door: `patient.prepare_patient`, which a run maps over the cases.
"""

"""What a run would do with a source as a whole: the door to the predictions of `plan`."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dskprep import settings as config
from dskprep import storage
from dskprep.errors import UsageError
from dskprep.pipeline import cluster
from dskprep.pipeline import plan as parts
from dskprep.pipeline.plan import Calibration, Comparison, Estimate, Prediction
from dskprep.settings import PrepConfig
from dskprep.worker import admission


@dataclass(frozen=True)
class Plan:
    """What a run would do with a source, by the headers of `n_sampled` of its `n_patients` patients.

    `predictions` has every series of the patients in the sample. `calibration` is what one of them took on this
    machine, `estimate` what all patients would take; both are None if none of the sample could be prepared.
    """

    source: str
    n_patients: int
    n_sampled: int
    predictions: tuple[Prediction, ...]
    calibration: Calibration | None
    estimate: Estimate | None

    @property
    def is_clean(self) -> bool:
        """Whether every series in the sample would be written."""
        return all(p.is_written for p in self.predictions)

    def in_numbers(self) -> tuple[Counter[str], Counter[str], Counter[str]]:
        """Return how many series of the sample have each status, each reason and each warning."""
        return parts.in_numbers(self.predictions)

    def compare(self, target: str | os.PathLike[str]) -> Comparison:
        """Compare the predictions with what became of the same series in a dataset.

        Raises UsageError if there is no dataset.
        """
        return parts.compare(self.predictions, storage.absolute(target))

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {
            "source": self.source,
            "patients": self.n_patients,
            "sampled": self.n_sampled,
            "predictions": [dataclasses.asdict(p) for p in self.predictions],
            "calibration": dataclasses.asdict(self.calibration) if self.calibration else None,
            "estimate": dataclasses.asdict(self.estimate) if self.estimate else None,
            "hours": {m.name: self.estimate.hours_on(m) for m in parts.MACHINES} if self.estimate else {},
        }


def plan(
    source: str | os.PathLike[str],
    *,
    preset: str = "default",
    settings: PrepConfig | None = None,
    sample: int = 100,
    only: str | None = None,
    patient_folders: bool = False,
    memory_limit: str | int | None = None,
    on_patient: Callable[[int, int], None] = lambda _n_done, _n_all: None,
) -> Plan:
    """Say what a run would do with a source: what is written and refused, memory, size, hours and dollars.

    Only headers are read, but one patient is prepared on this machine to see how long it takes. Nothing is written.

    Parameters
    ----------
    source
        A folder or bucket of patients, archives or a manifest, as for `run`.
    preset, settings
        The name of a preset, or settings in its place.
    sample
        Read the headers of this many patients, spread evenly over the source; 0 for all of them.
    only
        Take the patients whose key matches this pattern, such as ``"LIDC-*"``.
    patient_folders
        Each folder directly in the source is one patient, with all below it.
    memory_limit
        Memory of each worker, such as ``"1.6GiB"`` or in bytes; by default what a local run would give it here.
    on_patient
        Called after the headers of each patient with the number of patients done and of all in the sample.

    Returns
    -------
    Plan
        Predictions for the sample, and an estimate for all patients.

    Raises
    ------
    UsageError
        If the source holds no patients, or an argument cannot be used.
    InfrastructureError
        If the source cannot be read.

    Examples
    --------
    >>> plan = dskprep.plan("s3://bucket/scans", sample=20)  # doctest: +SKIP
    >>> [(p.key, p.reason) for p in plan.predictions if not p.is_written]  # doctest: +SKIP
    [('LIDC-0107', 'missing-slices')]
    """
    if sample < 0:
        raise UsageError(f"sample must be 0 (all patients) or more, not {sample}")
    settings = config.preset(preset) if settings is None else config.given(settings)
    usable_bytes = admission.usable_bytes(cluster.worker_sizes(None, memory_limit)[1])
    cases = parts.cases(storage.absolute(source), only, patient_folders=patient_folders)
    sampled = parts.sample(cases, sample)
    predictions, mains = [], []
    for n_done, case in enumerate(sampled, 1):
        found = parts.predict(case, settings, usable_bytes)
        predictions += found
        mains.append((case, found[-1]))
        on_patient(n_done, len(sampled))
    took = parts.calibrate(mains, settings)
    estimate = parts.estimate(cases, predictions, len(sampled), took)
    return Plan(os.fspath(source), len(cases), len(sampled), tuple(predictions), took, estimate)

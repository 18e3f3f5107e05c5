"""What a run would do with a source: predictions from headers, and what it would take."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dskprep import settings as config
from dskprep import storage
from dskprep.counts import n_of
from dskprep.dataset import identity, index, store, target_place
from dskprep.dataset.record import GOOD, in_words
from dskprep.errors import InfrastructureError, UsageError
from dskprep.pipeline import cluster
from dskprep.pipeline.choice import choose, is_lost
from dskprep.pipeline.cost import Calibration, Estimate, calibrate, estimate
from dskprep.pipeline.executor import MAX_FAILURES_IN_A_ROW
from dskprep.pipeline.machines import MACHINES, Machine
from dskprep.pipeline.observer import log
from dskprep.pipeline.prediction import Prediction, predict
from dskprep.pipeline.survey import Asked, marked
from dskprep.preparation import user_steps
from dskprep.settings import PrepConfig
from dskprep.source import cases as discover
from dskprep.source import idc
from dskprep.source.case import Case
from dskprep.worker import admission


class Comparison(NamedTuple):
    """How many series became what was predicted, and a line for each that did not."""

    n_right: int
    differences: list[str]


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        read = "all" if self.n_sampled == self.n_patients else str(self.n_sampled)
        series = f"their series would be {in_words(self.in_numbers()[0])}"
        return f"<Plan: {n_of(self.n_patients, 'patient')}, by the headers of {read} {series}; {self.source}>"

    @property
    def is_clean(self) -> bool:
        """Whether every series in the sample would be written or set aside."""
        return all(p.status in GOOD for p in self.predictions)

    def in_numbers(self) -> tuple[Counter[str], Counter[str], Counter[str]]:
        """Return how many series of the sample have each status, each reason and each warning."""
        reasons = (f"{p.status}: {p.reason}" for p in self.predictions if not p.is_written)
        warnings = (warning for p in self.predictions for warning in p.warnings)
        return Counter(p.status for p in self.predictions), Counter(reasons), Counter(warnings)

    def n_too_large(self, machine: Machine) -> int:
        """Count the series of the sample that are too large for a machine with one worker per CPU."""
        share_bytes = int(cluster.MEMORY_SHARE * machine.memory_gib * 2**30) // machine.n_cpus
        return sum(p.is_written and p.need_bytes > admission.usable_bytes(share_bytes) for p in self.predictions)

    def compare(self, target: str | os.PathLike[str]) -> Comparison:
        """Compare the predictions with what became of the same series in a dataset. Keys that it lacks do not count.

        Raises UsageError if there is no dataset.
        """
        target = storage.absolute(target)
        key_of = identity.of(target).hashed_key if store.has_hashed_keys(target) else str
        table = index.current(target, ("key", "status", "reason"))
        said = (table["status"] + " " + table["reason"].fillna("")).str.strip()
        found = dict(zip(table["key"], said, strict=True))
        expected = {key_of(p.key): f"{p.status} {p.reason}".strip() for p in self.predictions}
        both = [(key, words, found[key]) for key, words in expected.items() if key in found]
        differences = [f"{key}: expected {words}, found {other}" for key, words, other in both if words != other]
        return Comparison(len(both) - len(differences), differences)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {
            "source": self.source,
            "patients": self.n_patients,
            "sampled": self.n_sampled,
            "predictions": [dataclasses.asdict(p) for p in self.predictions],
            "calibration": dataclasses.asdict(self.calibration) if self.calibration else None,
            "estimate": dataclasses.asdict(self.estimate) if self.estimate else None,
            "hours": {m.name: self.estimate.hours_on(m) for m in MACHINES} if self.estimate else {},
            "limit": {m.name: self.estimate.limit_on(m) for m in MACHINES} if self.estimate else {},
        }


def plan(
    source: str | os.PathLike[str],
    *,
    preset: str = "default",
    settings: PrepConfig | None = None,
    sample: int = 100,
    only: str | None = None,
    patient_folders: bool = False,
    licence: str | None = None,
    memory_limit: str | int | None = None,
    on_case: Callable[[int], None] = lambda _n: None,
    on_patient: Callable[[int, int], None] = lambda _n_done, _n_all: None,
    on_note: Callable[[str], None] = log.warning,
) -> Plan:
    """Say what a run would do with a source: what is written and refused, memory, size, hours and dollars.

    Only headers are read, but one patient is prepared on this machine, twice, to see how long it takes: the first time
    also loads code, or compiles it, and does not count. Nothing is written.

    Parameters
    ----------
    source
        A folder or bucket of patients, archives, a manifest, or words for the Imaging Data Commons, as for `run`.
    preset, settings
        The name of a preset, or settings in its place.
    sample
        Read the headers of this many patients, spread evenly over the source; 0 for all of them.
    only
        Take the patients whose key matches this pattern, such as ``"LIDC-*"``.
    patient_folders
        Each folder directly in the source is one patient, with all below it.
    licence
        As for `run`.
    memory_limit
        Memory of each worker, such as ``"1.6GiB"`` or in bytes; by default what a local run would give it here.
    on_case
        Called for each patient that is found in the source, with their number so far.
    on_patient
        Called with the number of patients whose headers are read and of all in the sample: before the first one, and
        after each.
    on_note
        Called with what the user should know before headers are read for `[select]`; by default a warning is logged.

    Returns
    -------
    Plan
        Predictions for the sample, and an estimate for all patients.

    Raises
    ------
    UsageError
        If the source holds no patients, or an argument cannot be used, also a function of the settings that cannot be
        imported: then nothing was listed.
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
    user_steps.check(settings)
    usable_bytes = admission.usable_bytes(cluster.worker_sizes(None, memory_limit, settings)[1])
    place = str(source) if idc.is_in_words(source) else discover.where(source)
    if not idc.is_in_words(source):
        target_place.refuse_as_source(place)
    choice = None
    if settings.select and not patient_folders:
        every = marked(_told(discover.choose(place, licence=licence), on_case), only)
        choice = choose(every, Asked(only), settings, on_note)
        cases = choice.everything()
    else:
        found_cases = discover.choose(place, only=only, patient_folders=patient_folders, licence=licence)
        cases = list(_told(found_cases, on_case))
    sampled = spread(cases, sample)
    on_patient(0, len(sampled))
    predictions: dict[str, Prediction] = {}
    mains, n_in_a_row = [], 0
    unpack_cpu_s: dict[str, float] = {}
    for n_done, case in enumerate(sampled, 1):
        started = time.process_time()
        found = predict(case, settings, usable_bytes)
        if case.is_archive:
            unpack_cpu_s[case.key] = time.process_time() - started
        predictions |= {p.key: p for p in found if p.key not in predictions}
        last = found[-1]
        while choice and is_lost(last.status, last.reason) and (following := choice.instead_of(last.key)):
            *_, last = instead = predict(following, settings, usable_bytes)
            predictions |= {p.key: p for p in instead}
            mains.append((following, last))
        n_in_a_row = n_in_a_row + 1 if found[-1].reason == InfrastructureError.__name__ else 0
        if n_in_a_row in (MAX_FAILURES_IN_A_ROW, len(sampled)):
            last_ones = n_of(n_in_a_row, "patient")
            raise InfrastructureError(f"{last_ones} in a row cannot be read, the last one: {found[-1].message}")
        mains.append((case, found[-1]))
        on_patient(n_done, len(sampled))
    took = calibrate(mains, settings, unpack_cpu_s)
    found = list(predictions.values())
    estimated = estimate(cases, found, len(sampled), took, sum(unpack_cpu_s.values())) if took else None
    return Plan(os.fspath(source), len(cases), len(sampled), tuple(found), took, estimated)


def _told(cases: Iterable[Case], on_case: Callable[[int], None]) -> Iterator[Case]:
    """Yield the cases, and tell of each with their number so far."""
    for n, case in enumerate(cases, 1):
        on_case(n)
        yield case


def spread(cases: Sequence[Case], n: int) -> list[Case]:
    """Return `n` of the cases, evenly spaced in their order; all of them if `n` is 0 or there are fewer."""
    n = min(n or len(cases), len(cases))
    return [cases[i * len(cases) // n] for i in range(n)]

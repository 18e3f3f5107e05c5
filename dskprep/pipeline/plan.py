"""What a run would write and refuse, from headers; and its cost, calibrated by preparing one patient."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import psutil

from dskprep import storage
from dskprep.dataset import index, omezarr, store, thumbnail
from dskprep.dataset.record import further_key
from dskprep.dicom import pixels
from dskprep.dicom.contents import Contents
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal, UsageError
from dskprep.preparation import prepare
from dskprep.preparation.recipes import recipe
from dskprep.series import series
from dskprep.series.series import Reread
from dskprep.settings import PrepConfig
from dskprep.source import cases as discover
from dskprep.source.cases import Case
from dskprep.source.files import open_case
from dskprep.source.found import each_series, rank, read_series
from dskprep.stopwatch import Stopwatch
from dskprep.worker import admission
from dskprep.worker.admission import Ledger


class Machine(NamedTuple):
    """A type of EC2 instance: its size, its price, and the network rate that it can sustain."""

    name: str
    n_cpus: int
    memory_gib: float
    dollars_per_hour: float
    gbit_s: float


MACHINES = (
    Machine("c4.2xlarge", 8, 15, 0.398, 1.0),
    Machine("c5.2xlarge", 8, 16, 0.34, 2.5),
    Machine("c7i.2xlarge", 8, 16, 0.357, 3.1),
    Machine("m7i.2xlarge", 8, 32, 0.403, 3.1),
    Machine("c7i.8xlarge", 32, 64, 1.428, 12.5),
)
"""Prices on demand, Linux, us-east-1, in 2025. The network rate of c4 is a cautious guess."""

MACHINE_SHARE = 0.9
"""Share of a machine's memory for all workers together, as in `cluster`."""

DOLLARS_PER_GET, DOLLARS_PER_PUT = 0.4e-6, 5e-6
"""Price of a request to S3 Standard, us-east-1."""

PUTS_PER_PATIENT = 9
"""Objects written per patient, and the listing of what was there before, which costs the same."""


@dataclass(frozen=True)
class Prediction:
    """What would become of one series: `status` and `reason` as in its record.

    `need_bytes` is the memory that a worker would reserve. `native_voxels` and `output_voxels` count the volume as
    acquired and as written; they are 0 for a series that would be refused.
    """

    key: str
    status: str
    reason: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()
    n_slices: int = 0
    need_bytes: int = 0
    native_voxels: int = 0
    output_voxels: int = 0

    @property
    def is_written(self) -> bool:
        """Whether a volume would be written."""
        return self.status == "written"


@dataclass(frozen=True)
class Calibration:
    """What one patient took on this machine: CPU seconds to read and decode it, and for the rest; bytes written.

    Voxels are those of its prediction, which does not know that a recipe crops the image to the lungs.
    """

    key: str
    read_cpu_s: float
    prepare_cpu_s: float
    native_voxels: int
    output_voxels: int
    bytes_written: int


@dataclass(frozen=True)
class Estimate:
    """What all patients together would take. `cpu_s` are seconds on a CPU like that of this machine."""

    cpu_s: float
    bytes_read: int
    bytes_written: int
    requests_dollars: float

    def hours_on(self, machine: Machine) -> float:
        """Return the hours on a machine with CPUs as fast as here. Its CPUs or its network are the limit."""
        network_s = 8e-9 * (self.bytes_read + self.bytes_written) / machine.gbit_s
        return max(self.cpu_s / machine.n_cpus, network_s) / 3600


def cases(source: str, only: str | None = None, *, patient_folders: bool = False) -> list[Case]:
    """Return the cases of a source whose key matches the pattern `only`. Raises UsageError if there are none."""
    every = discover.cases(source, patient_folders=patient_folders)
    found = [case for case in every if only is None or fnmatch.fnmatchcase(case.key, only)]
    if not found:
        raise UsageError(f"{source}: holds no patients{f' that match {only!r}' if only else ''}; check the path")
    return found


def sample(cases: Sequence[Case], n: int) -> list[Case]:
    """Return `n` of the cases, evenly spaced in their order; all of them if `n` is 0 or there are fewer."""
    if n == 0 or n >= len(cases):
        return list(cases)
    return [cases[i * len(cases) // n] for i in range(n)]


def predict(case: Case, config: PrepConfig, usable_bytes: int = sys.maxsize) -> list[Prediction]:
    """Predict what becomes of the series of a case, its main one last, on workers with `usable_bytes` for patients.

    Applies the code of a run to the headers. So it is exact but for what only pixels show: damaged pixel data, and
    patients in whom the recipes of 2017 find no lungs. Slices that share a position are read with their pixel data,
    to see which are copies.
    """
    ledger = Ledger(usable_bytes)
    try:
        files = open_case(case)
        is_held = not admission.may_reread(files, config)
        need_bytes = admission.least_bytes(files, config, is_held=is_held)
        ledger.check(need_bytes)
        contents = Contents()
        if files.is_archive:
            for name, content in files.read(psutil.virtual_memory().available):
                contents.add(name, content)
        else:
            contents.add_headers(files.read_headers())
        reread = None if files.is_archive else files.reread
        predicted = functools.partial(_predicted, config=config, ledger=ledger, is_held=is_held, reread=reread)
        found = dict(each_series(contents, predicted))
    except Refusal as refusal:
        return [_refused(case.key, refusal, need_bytes=0)]
    predictions = {
        uid: _refused("", made, need_bytes=need_bytes)
        if isinstance(made, Refusal)
        else dataclasses.replace(made, need_bytes=max(need_bytes, made.need_bytes))
        for uid, made in found.items()
    }
    *others, main = sorted(
        predictions, key=lambda uid: rank(uid, predictions[uid].n_slices, is_written=predictions[uid].is_written)
    )
    further = [dataclasses.replace(predictions[uid], key=further_key(case.key, uid)) for uid in others]
    return [*further, dataclasses.replace(predictions[main], key=case.key)]


def _predicted(
    slices: list[Slice], *, config: PrepConfig, ledger: Ledger, is_held: bool, reread: Reread | None
) -> Prediction:
    """Return the prediction of a series that would be written, without its key. Raises Refusal if it would not be."""
    stack = series.stack_up(
        slices,
        min_slices=config.min_slices,
        max_gap_slices=config.fillable_slices,
        may_tilt=recipe(config.recipe).to_hu is None,
        reread=reread,
    )
    grid = stack.layout.grid
    need_bytes = admission.estimate_bytes(grid.shape, grid.spacing, config, is_held=is_held)
    ledger.check(need_bytes)
    for pixel_format, name in {slices[i].pixel_format: slices[i].name for i in stack.order}.items():
        pixels.check_format(pixel_format, name)
    output = (
        max(1, round(n * old / new)) for n, old, new in zip(grid.shape, grid.spacing, config.spacing_mm, strict=True)
    )
    return Prediction(
        "",
        "written",
        warnings=stack.warnings,
        n_slices=len(stack.order),
        need_bytes=need_bytes,
        native_voxels=math.prod(grid.shape),
        output_voxels=math.prod(output),
    )


def _refused(key: str, refusal: Refusal, need_bytes: int) -> Prediction:
    need_bytes = refusal.facts.get("need_bytes", need_bytes)
    return Prediction(key, "refused", refusal.reason, refusal.message, need_bytes=need_bytes)


def calibrate(done: Sequence[tuple[Case, Prediction]], config: PrepConfig) -> Calibration | None:
    """Prepare one patient on this machine, without writing it: the one of median size among those not refused.

    Times are CPU seconds, so that other work on this machine counts little. If its pixel data are damaged, the next
    larger patient is taken. Return None if all would be refused.
    """
    written = sorted(((case, p) for case, p in done if p.status == "written"), key=lambda pair: pair[1].output_voxels)
    if not written:
        return None
    prepare.warm(config)
    for case, prediction in written[len(written) // 2 :]:
        try:
            return _calibrate_by(case, prediction, config)
        except Refusal:
            continue
    return None


def _calibrate_by(case: Case, prediction: Prediction, config: PrepConfig) -> Calibration:
    started = time.process_time()
    found = read_series(case.url, config)
    read_cpu_s = time.process_time() - started
    clock = Stopwatch()
    prepared = prepare.prepare(found, config, clock)
    read_cpu_s += clock.seconds["decode"]  # wall seconds, but of one thread that never waits
    objects = omezarr.encode(prepared, config, {})
    thumbnail.draw(prepared)
    prepare_cpu_s = time.process_time() - started - read_cpu_s
    n_bytes = sum(map(len, objects.values()))
    return Calibration(case.key, read_cpu_s, prepare_cpu_s, prediction.native_voxels, prediction.output_voxels, n_bytes)


def estimate(
    cases: Sequence[Case], predictions: Sequence[Prediction], n_sampled: int, took: Calibration | None
) -> Estimate | None:
    """Estimate what all the cases would take, from the predictions of `n_sampled` of them and what one patient took."""
    if took is None:
        return None
    scale = len(cases) / n_sampled
    native = scale * sum(p.native_voxels for p in predictions)
    output = scale * sum(p.output_voxels for p in predictions)
    n_written = scale * sum(p.status == "written" for p in predictions)
    n_files = sum(case.n_files for case in cases)
    return Estimate(
        cpu_s=took.read_cpu_s * native / took.native_voxels + took.prepare_cpu_s * output / took.output_voxels,
        bytes_read=sum(case.n_bytes for case in cases),
        bytes_written=round(took.bytes_written * output / took.output_voxels),
        requests_dollars=n_files * DOLLARS_PER_GET + n_written * PUTS_PER_PATIENT * DOLLARS_PER_PUT,
    )


def n_too_large(predictions: Iterable[Prediction], machine: Machine) -> int:
    """Count the series that are too large for a machine with one worker per CPU."""
    usable = admission.usable_bytes(int(MACHINE_SHARE * machine.memory_gib * 2**30) // machine.n_cpus)
    return sum(p.need_bytes > usable for p in predictions if p.status == "written")


class Comparison(NamedTuple):
    """How many series became what was predicted, and a line for each that did not."""

    n_right: int
    differences: list[str]


def compare(predictions: Sequence[Prediction], target: str) -> Comparison:
    """Compare predictions with what a dataset says of the same keys. Keys that it lacks do not count.

    Raises UsageError if there is no dataset.
    """
    target = storage.absolute(target)
    store.describe(target)
    table = index.current(target)
    happened = dict(zip(table["key"], zip(table["status"], table["reason"].fillna(""), strict=True), strict=True))
    n_right, differences = 0, []
    for p in predictions:
        if p.key not in happened:
            continue
        status, reason = happened[p.key]
        found, expected = (f"{s} {r}".strip() for s, r in ((status, reason), (p.status, p.reason)))
        if found == expected:
            n_right += 1
        else:
            differences.append(f"{p.key}: expected {expected}, found {found}")
    return Comparison(n_right, differences)


def in_numbers(predictions: Sequence[Prediction]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Count the statuses, the reasons and the warnings."""
    reasons = (f"{p.status}: {p.reason}" for p in predictions if p.status != "written")
    warnings = (warning for p in predictions for warning in p.warnings)
    return Counter(p.status for p in predictions), Counter(reasons), Counter(warnings)

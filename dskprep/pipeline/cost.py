"""What a run would take, scaled from what one patient takes on this machine."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dskprep import storage
from dskprep.dataset import omezarr, thumbnail
from dskprep.errors import Refusal
from dskprep.pipeline.machines import DOLLARS_PER_PUT, Machine
from dskprep.pipeline.prediction import Prediction
from dskprep.pipeline.survey import DOLLARS_PER_GET
from dskprep.preparation import prepare
from dskprep.settings import PrepConfig
from dskprep.source.case import Case
from dskprep.source.found import find_series, made_of
from dskprep.stopwatch import Stopwatch

PUTS_PER_PATIENT = 9
"""Objects written per patient, and the listing of what was there before, which costs the same."""
TRIES = 5
"""Patients that are tried, at most, to see how long one takes."""


@dataclass(frozen=True)
class Calibration:
    """What one patient took on this machine: CPU seconds to read and decode it, and for the rest; bytes written.

    They are those of the second time. The first time also loads code, or compiles it, as a worker does only once.
    What it took to unpack it, if it is an archive, is left out: that is measured of each archive in the sample. Voxels
    are those of its prediction, which does not know that a recipe crops the image to the lungs.
    """

    key: str
    read_cpu_s: float
    prepare_cpu_s: float
    native_voxels: int
    output_voxels: int
    bytes_written: int


@dataclass(frozen=True)
class Estimate:
    """What all patients together would take. `cpu_s` are seconds on a CPU like that of this machine.

    `unpack_cpu_s` of these go into unpacking archives.
    """

    cpu_s: float
    bytes_read: int
    bytes_written: int
    requests_dollars: float
    unpack_cpu_s: float = 0.0

    def hours_on(self, machine: Machine) -> float:
        """Return the hours on a machine with CPUs as fast as here. Its CPUs or its network are the limit."""
        return max(self._seconds_on(machine)) / 3600

    def limit_on(self, machine: Machine) -> str:
        """Return what a machine with CPUs as fast as here waits for: `CPU` or `network`."""
        cpu_s, network_s = self._seconds_on(machine)
        return "CPU" if cpu_s >= network_s else "network"

    def _seconds_on(self, machine: Machine) -> tuple[float, float]:
        """Return how long the CPUs of a machine are busy, and its network."""
        return self.cpu_s / machine.n_cpus, 8e-9 * (self.bytes_read + self.bytes_written) / machine.gbit_s


def calibrate(
    done: Sequence[tuple[Case, Prediction]], config: PrepConfig, unpack_cpu_s: Mapping[str, float]
) -> Calibration | None:
    """Prepare one patient on this machine, without writing it: of those not refused, that in the middle of all voxels.

    Half of the voxels are in smaller patients, so what it takes is scaled up by little: what is the same for each
    patient, or was measured badly, would grow with the factor. Times are CPU seconds, so that other work on this
    machine counts little; what it took to unpack archives, by key, is taken off. If it makes no volume, as a mask or
    damaged pixels, the next larger patients are tried, then smaller ones: TRIES in all. Return None if none makes one.
    """
    written = sorted((pair for pair in done if pair[1].is_written), key=lambda pair: pair[1].voxels)
    if not written:
        return None
    prepare.warm(config)
    up_to = [*itertools.accumulate(prediction.voxels for _, prediction in written)]
    middle = bisect.bisect_left(up_to, up_to[-1] / 2)
    for case, prediction in [*written[middle:], *written[:middle][::-1]][:TRIES]:
        with contextlib.suppress(Refusal, OSError):
            _calibrate_by(case, prediction, config)
            return _calibrate_by(case, prediction, config, unpack_cpu_s.get(case.key, 0.0))
    return None


def _calibrate_by(case: Case, prediction: Prediction, config: PrepConfig, unpack_cpu_s: float = 0.0) -> Calibration:
    started = time.process_time()
    found = made_of(find_series(case.url, config)[0])
    found_cpu_s = time.process_time() - started
    read_cpu_s = max(0.0, found_cpu_s - unpack_cpu_s)
    clock = Stopwatch(time.process_time)  # wall seconds would count what else runs on this machine
    prepared = prepare.prepare(found, config, clock)
    read_cpu_s += clock.seconds["decode"]
    objects = omezarr.encode(prepared, config, {})
    thumbnail.draw(prepared)
    prepare_cpu_s = time.process_time() - started - found_cpu_s - clock.seconds["decode"]
    n_bytes = sum(map(len, objects.values()))
    return Calibration(case.key, read_cpu_s, prepare_cpu_s, prediction.native_voxels, prediction.output_voxels, n_bytes)


def estimate(
    cases: Sequence[Case],
    predictions: Sequence[Prediction],
    n_sampled: int,
    took: Calibration,
    unpack_cpu_s: float = 0.0,
) -> Estimate:
    """Estimate what all the cases would take, from the predictions of `n_sampled` of them and what one patient took.

    `unpack_cpu_s` is what it took to unpack the archives among the sampled cases.
    """
    scale = len(cases) / n_sampled
    native = scale * sum(p.native_voxels for p in predictions) / took.native_voxels
    output = scale * sum(p.output_voxels for p in predictions) / took.output_voxels
    n_puts = scale * sum(p.is_written for p in predictions) * PUTS_PER_PATIENT
    n_paid = sum(case.n_files for case in cases if not storage.is_public(case.url))
    return Estimate(
        cpu_s=took.read_cpu_s * native + took.prepare_cpu_s * output + scale * unpack_cpu_s,
        unpack_cpu_s=scale * unpack_cpu_s,
        bytes_read=sum(case.n_bytes for case in cases),
        bytes_written=round(took.bytes_written * output),
        requests_dollars=n_paid * DOLLARS_PER_GET + n_puts * DOLLARS_PER_PUT,
    )

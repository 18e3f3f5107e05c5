"""The figures of a run for Prometheus, at the dashboard's /metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dskprep.dataset.record import STATUSES
from dskprep.worker.slots import SLOTS


def collect(run: dict[str, Any], workers: Sequence[dict[str, Any]]) -> Iterator[Any]:
    """Yield metrics of a run (`Account.figures`) and of its workers (`Slots.state`), without keys of patients."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, words, label, values in (
        ("patients", "Patients of the run so far", "status", {s: run["counts"].get(s, 0) for s in STATUSES}),
        ("not_written", "Patients not written", "reason", run["reasons"]),
        ("stage_seconds", "Seconds of the patients", "stage", run["stage_seconds"]),
    ):
        family = CounterMetricFamily(f"dskprep_{name}", words, labels=[label])
        for value, n in values.items():
            family.add_metric([value], n)
        yield family
    yield CounterMetricFamily("dskprep_read_bytes", "Read from the source", run["bytes_read"])
    yield CounterMetricFamily("dskprep_written_bytes", "Written to the target", run["bytes_written"])
    yield CounterMetricFamily("dskprep_cpu_seconds", "CPU seconds of the workers", run["cpu_seconds"])
    yield GaugeMetricFamily("dskprep_inputs", "Patients found in the source so far", run["inputs"])
    yield GaugeMetricFamily("dskprep_listed", "1 when all patients of the source are found", int(run["is_listed"]))
    busy = GaugeMetricFamily("dskprep_busy_slots", "Slots of the workers that hold a patient", labels=["slot"])
    for slot in SLOTS:
        busy.add_metric([slot], sum(slot in worker["slots"] for worker in workers))
    yield busy
    for name, words in (("taken", "given to patients"), ("total", "that patients may have")):
        n_bytes = sum(worker[f"{name}_bytes"] for worker in workers)
        yield GaugeMetricFamily(f"dskprep_memory_{name}_bytes", f"Memory of the workers {words}", n_bytes)

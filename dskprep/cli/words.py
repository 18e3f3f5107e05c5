"""A run, a dataset and a plan in words: what is printed of a summary, a status and a plan."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from dskprep.counts import format_bytes, n_of
from dskprep.dataset.record import STATUSES, Record, in_words
from dskprep.pipeline.account import MAX_MESSAGE, time_in_words

if TYPE_CHECKING:
    from dskprep.dataset.label_record import LabelRecord
    from dskprep.dataset.past_runs import PastRun
    from dskprep.dataset.status import Status
    from dskprep.pipeline.account import Summary
    from dskprep.pipeline.export import ExportSummary
    from dskprep.pipeline.label_account import LabelSummary
    from dskprep.pipeline.plan import Plan
    from dskprep.pipeline.prediction import Prediction

N_DAMAGED = 20
"""How many damaged records are named."""
N_LABELS = 12
"""How many labels are named, those of most volumes first."""
N_NAMED = 3
"""How many of the slowest and of the largest patients a summary names."""


def describe_series(series: Record | Prediction) -> str:
    """Return the line of a series that was prepared, or of one whose outcome is predicted."""
    why = "" if series.is_written else f" {series.reason}: {series.message}"
    why += f" (warnings: {', '.join(series.warnings)})" if series.warnings else ""
    return f"{series.status:8} {series.key}{why}"


def describe_summary(summary: Summary) -> Iterator[RenderableType]:
    """Yield the account at the end of a run."""
    account, n_new = summary.account, summary.n_new
    if summary.is_interrupted or summary.stopped_by:
        yield f"{'interrupted' if summary.is_interrupted else 'stopped'}: what is written stays; there is no report"
        yield "  patients under way are not counted here; if a worker still finishes one, it is done"
        yield "  a volume without a record is unfinished; dskprep clean deletes it after a day"
    pace = f", {60 * n_new / summary.seconds:.1f} per minute" if n_new and summary.seconds else ""
    before = account.already.total()
    found = n_of(account.inputs, "patient") + ("" if account.is_listed else " found by then")
    took = f" in {time_in_words(summary.seconds)}" if n_new else ""
    yield f"{found}: {n_new} done{took}{pace}, {before} done before"
    if not (account.is_complete or summary.is_interrupted or summary.stopped_by):
        yield f"NOT ACCOUNTED FOR: {account.inputs - account.counts.total()}"
    reasons = account.reasons | Counter({f"{status}: done before": n for status, n in account.already.items()})
    reasons |= Counter({f"{status}: by another run": n for status, n in account.elsewhere.items()})
    if account.further_series:
        yield from _tabulate(account.counts, reasons, {})
        further, in_all = account.further_series, account.counts + account.further_series
        yield f"further series in their folders: {in_words(further)}; with these, {in_words(in_all)}"
        if account.warnings:
            yield "warnings of all series:"
            yield from _tabulate({}, {}, account.warnings)
    else:
        yield from _tabulate(account.counts, reasons, account.warnings)
    yield from _describe_failed(account.counts + account.further_series, summary.target)
    if before - account.already["written"]:
        yield "  (reasons and warnings are those of this run; dskprep status has all)"
    if account.elsewhere or account.left:
        there = [in_words(account.elsewhere)] if account.elsewhere else []
        there += [f"{account.left} claimed there and not counted"] if account.left else []
        yield f"by another run: {', '.join(there)}"
    yield from _describe_split(account.split_series)
    yield from _describe_damaged(account.damaged_records)
    if account.labels_deleted:
        n = n_of(account.labels_deleted, "label")
        yield f"{n} deleted with images whose files had changed: dskprep annotate gives them again"
    if n_new:
        yield "slowest: " + ", ".join(f"{key} {seconds:.1f} s" for seconds, key in account.slowest[:N_NAMED])
        yield "largest: " + ", ".join(f"{key} {format_bytes(n_bytes)}" for n_bytes, key in account.largest[:N_NAMED])
        yield f"cost: {time_in_words(account.cpu_s)} of CPU, {account.cpu_s / n_new:.1f} s per patient"
        yield f"read {format_bytes(account.bytes_read)}, written {format_bytes(account.bytes_written)}"
    yield f"dataset: {summary.target}"
    if n_new and not (summary.is_interrupted or summary.stopped_by):
        yield f"report:  {summary.target}/runs/{summary.run_id}/qc.html"


def describe_label_source(record: LabelRecord) -> Iterator[str]:
    """Yield the line of a label source, and one for each of its labels that is not written, or has another name."""
    counts = ((len(record.written), "label"), (record.n_points, "point"))
    found = [n_of(n, noun) for n, noun in counts if n]
    where = sorted({label.volume for label in record.written})
    what = f" {', '.join(found)}{f' in {where[0]}' if len(where) == 1 else ''}" if record.is_written else ""
    said = (record.message or "").removeprefix(f"{record.source}: ")
    why = f" {record.reason}: {said}" if record.reason else f" ({said})" if said else ""
    yield f"{record.status:8} {record.source}{what}{why}"
    if record.is_written:
        for label in record.labels:
            if not label.is_written:
                yield f"  without {label.name!r} in {label.volume}: {label.reason}: {label.message}"
            elif label.is_renamed:
                yield f"  {label.name!r} in {label.volume} is stored as {label.label}: its name is taken"


def describe_export(summary: ExportSummary) -> Iterator[str]:
    """Yield the account of an export at its end."""
    if summary.is_interrupted:
        yield "interrupted"
    took = f"{summary.seconds:.1f} s, {format_bytes(summary.bytes_written)}"
    yield f"{summary.kind}: {summary.in_words()} in {took}: {summary.out}"
    for reason, n in sorted(Counter(summary.left_out.values()).items()):
        some = [key for key, why in summary.left_out.items() if why == reason][:N_NAMED]
        yield f"  left out: {n} {reason}{':' if n <= N_NAMED else ', such as'} {', '.join(some)}"
    if summary.exit_code:
        yield "not whole: the files that describe it are missing; export again to go on"


def describe_labels(summary: LabelSummary) -> Iterator[RenderableType]:
    """Yield the account of label sources at the end."""
    if summary.is_interrupted:
        yield "interrupted"
    n_new = summary.counts.total() - summary.already.total()
    took = f" in {time_in_words(summary.seconds)}" if n_new else ""
    if summary.counts:
        yield (
            f"{n_of(summary.counts.total(), 'label source')}: {n_new} done{took}, {summary.already.total()} done before"
        )
        yield from _tabulate(summary.counts, summary.reasons, summary.warnings)
    for reason, n in sorted(summary.lost_labels.items()):
        yield f"  labels of written sources that are not written: {n} {reason}"
    yield from _describe_damaged(summary.damaged_records)
    if summary.already["refused"]:
        some = "--retry unlinked only those of which something found no volume"
        yield f"  {summary.already['refused']} were refused before: --retry refused tries them again, {some}"
    written = f"{n_of(summary.labels, 'label')} and {n_of(summary.points, 'point')} written"
    nothing = "no label source was done" if summary.is_interrupted else "no label file was found, and nothing was done"
    yield f"{written if n_new else 'nothing new' if summary.counts else nothing}: {summary.target}"


def describe_status(status: Status) -> Iterator[RenderableType]:
    """Yield the account of a dataset."""
    yield f"{status.series} series in {status.target}"
    yield from _tabulate(status.counts, status.reasons, status.warnings)
    # a run does the former again in any case, and the latter never
    damaged = Counter(failed=sum(status.reasons.get(f"failed: {word}-record", 0) for word in ("damaged", "unreadable")))
    yield from _describe_failed(Counter(status.counts) - damaged, status.target)
    yield from _describe_split(status.split_series)
    yield from _describe_damaged(status.damaged_records)
    if status.label_sources:
        n_sources, n_labels = sum(status.label_sources.values()), sum(status.labels.values())
        yield f"{n_of(n_sources, 'label source')}; {n_of(n_labels, 'label')}, {n_of(status.points, 'point')}"
        yield from _tabulate(status.label_sources, {}, status.label_warnings)
        for why, n in sorted(status.label_reasons.items()):
            yield f"  labels that are not written, and sources without any: {n} {why.partition(': ')[2]}"
        if status.labels_gone:
            n = status.labels_gone
            yield f"  labels and points of images that are no more: {n}; dskprep annotate gives them again"
        most = itertools.islice(status.labels.items(), N_LABELS)
        rest = f", and {len(status.labels) - N_LABELS} more" if len(status.labels) > N_LABELS else ""
        yield f"  {', '.join(f'{name} in {n}' for name, n in most)}{rest}"
        yield from _describe_damaged(status.damaged_labels)
    if status.last_run:
        yield _describe_last_run(status.last_run)
        if status.missing:
            yield f"  without a record now, as after verify --forget: {status.missing} series; run again"
    elif status.series:
        yield "no run has left an account here, so it is not known whether these are all patients; run again"
    elif not status.runs:
        yield "no run has ended here yet; one may be starting, or was killed as it started"
    for run in status.runs:
        state = "was killed, or could not write its account" if run.is_dead else "under way"
        yield (
            f"run {run.run_id} {state}: {run.host or 'unknown host'}, process {run.pid}, since {run.since}, "
            f"{n_of(run.done, 'patient')} done when it was last heard of, at {run.heard_at}"
        )


def _describe_last_run(run: PastRun) -> str:
    """Say what the run that ended last has left, if anything."""
    found = n_of(run.inputs, "patient")
    if run.is_complete:
        return f"the last run, {run.run_id}, found {found}, and all had a status when it ended"
    why = f" ({run.stopped_by[:MAX_MESSAGE]})" if run.stopped_by else ""
    how = "was interrupted" if run.is_interrupted else "was stopped" if why else "ended"
    later = ", without what its workers ended after that" if run.is_interrupted else ""
    done = f"{run.n_done} of {found}{'' if run.is_listed else ' found by then'} had a status"
    return f"the last run, {run.run_id}, {how}{why} when {done}{later}; the same command goes on"


def describe_plan(plan: Plan) -> Iterator[RenderableType]:
    """Yield what would be refused, the numbers, and what a run would take."""
    yield from (describe_series(p) for p in plan.predictions if not p.is_written)
    what = "all," if plan.n_sampled == plan.n_patients else f"{plan.n_sampled} of them, spread evenly,"
    yield f"{n_of(plan.n_patients, 'patient')} in {plan.source}; by the headers of {what} these series would be"
    yield from _tabulate(*plan.in_numbers())
    yield (
        "(headers do not show damaged pixels, values that cannot be HU, and volume files that are masks; a run does)"
    )
    yield from _describe_estimate(plan)


def _figure(number: float) -> str:
    return "< 0.01" if number < 0.01 else f"{number:.2g}"


def _describe_estimate(plan: Plan) -> Iterator[RenderableType]:
    """Yield size, memory, hours and dollars of a run."""
    from dskprep.pipeline.machines import MACHINES
    from dskprep.worker import admission

    took, estimate = plan.calibration, plan.estimate
    if took is None or estimate is None:
        if any(p.is_written for p in plan.predictions):
            yield "no estimate of memory, time and size: none of those that were tried here made a volume"
        return
    largest = max((p for p in plan.predictions if p.is_written), key=lambda p: p.need_bytes)
    ratio = sum(p.voxels for p in plan.predictions) / (took.native_voxels + took.output_voxels)
    ratio *= plan.n_patients / plan.n_sampled
    unpack_s = round(estimate.unpack_cpu_s)
    sum_up = f"; with {time_in_words(unpack_s)} to unpack archives they take" if unpack_s else ", and so take"
    yield f"read {format_bytes(estimate.bytes_read)}, written about {format_bytes(estimate.bytes_written)}"
    yield (
        f"memory: the largest, {largest.key}, needs {format_bytes(largest.need_bytes)}; "
        f"workers with --memory-limit {admission.limit_for(largest.need_bytes)} take them all"
    )
    yield (
        f"time: {took.key} took {took.read_cpu_s + took.prepare_cpu_s:.1f} s of CPU here, the second time. All have "
        f"{ratio:{',.0f' if ratio >= 10 else '.1f'}} times its voxels{sum_up} about {time_in_words(estimate.cpu_s)} of "
        "CPU. Roughly, if a CPU there is as fast as one here, and other programs leave it alone:"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("  EC2 type", "CPUs", "GiB", "Gbit/s", "hours", "limit", "dollars", "too large there"):
        table.add_column(heading, justify="left" if heading in ("  EC2 type", "limit") else "right")
    for machine in MACHINES:
        hours = estimate.hours_on(machine)
        dollars = hours * machine.dollars_per_hour + estimate.requests_dollars
        size = (machine.n_cpus, f"{machine.memory_gib:g}", f"{machine.gbit_s:g}")
        numbers = (*size, _figure(hours), estimate.limit_on(machine), _figure(dollars))
        table.add_row(f"  {machine.name}", *map(str, numbers), str(plan.n_too_large(machine)))
    yield table


def _tabulate(counts: Mapping[str, int], reasons: Mapping[str, int], warnings: Mapping[str, int]) -> Iterator[Table]:
    """Yield a table of the statuses, the reasons of each, and the warnings, if there are any."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for status in STATUSES:
        if counts.get(status):
            table.add_row(f"  {status}", str(counts[status]))
            for reason, n in sorted(reasons.items()):
                if reason.startswith(f"{status}:"):
                    table.add_row(f"    {reason.partition(': ')[2]}", str(n), style="dim")
    for warning, n in sorted(warnings.items()):
        table.add_row(f"  warning: {warning}", str(n), style="dim")
    if table.row_count:
        yield table


def _describe_failed(counts: Mapping[str, int], target: str) -> Iterator[str]:
    """Yield a line on how those that failed are done again, if there are any, and where their tracebacks are."""
    if there := [status for status in ("failed", "killed") if counts.get(status)]:
        where = f"; tracebacks: {target}/records/failed/KEY.*.json" if "failed" in there else ""
        yield f"  {' and '.join(there)}: once the cause is mended, run with --retry failed does them again{where}"


def _describe_damaged(damaged: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each record that cannot be read."""
    yield from (f"damaged-record {key}: {message}" for key, message in itertools.islice(damaged.items(), N_DAMAGED))
    if len(damaged) > N_DAMAGED:
        yield f"and {n_of(len(damaged) - N_DAMAGED, 'more damaged record')}"


def _describe_split(groups: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a line if volumes seem to be parts of one series, each read from a folder of its own."""
    if groups:
        seem = "seems" if len(groups) == 1 else "seem"
        some = " and ".join(groups[0][:3])
        yield (
            f"{len(groups)} series {seem} to be split over folders, such as {some}: a volume was made of each part; "
            "read each patient's folder as a whole (--patient-folders) into another target"
        )

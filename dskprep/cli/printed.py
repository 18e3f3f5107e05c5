"""What the commands print: workers, accounts and forecasts."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from distributed import Client

    from dskprep.pipeline.account import Summary
    from dskprep.pipeline.plan import Calibration, Estimate, Prediction

N_NAMED = 3
"""Slowest and largest patients in the summary."""

console = Console(highlight=False, soft_wrap=True)


def quiet_dask() -> None:
    """Keep Dask's own log out of the terminal, but with --debug: what goes wrong is said in one line."""
    if "--debug" not in sys.argv:
        for name in ("distributed", "distributed.client", "distributed.comm", "tornado.application"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def print_workers(client: Client) -> None:
    """Where to watch the workers, and how many there are."""
    from dskprep.cli import terminal
    from dskprep.pipeline import cluster, page

    if not client.nthreads():
        console.print("no workers yet, waiting for some")
    limits = cluster.memory_limits(client)
    problem = page.install(client)
    has_dashboard = "dashboard" in client.scheduler_info()["services"]
    where = page.link(client) if not problem else client.dashboard_link if has_dashboard else "none"
    advice = page.way_in(client) if has_dashboard else ""
    console.print(f"dashboard: {where}{advice and f' ({advice})'}")
    console.print(f"{len(limits)} workers, {size_in_words(sum(limits))}")
    if console.quiet:
        terminal.write_json("start", {"dashboard": where, "workers": len(limits), "memory_bytes": sum(limits)})


def shown_progress(client: Client | None, *, as_json: bool = False) -> contextlib.AbstractContextManager[Any]:
    """A live panel in a terminal, lines elsewhere."""
    from dskprep.cli import terminal

    return terminal.shown_progress(console, client, as_json=as_json)


def print_summary(summary: Summary, *, as_json: bool = False) -> None:
    """The account at the end of a run."""
    if as_json:
        from dskprep.cli import terminal

        terminal.write_json("summary", summary.as_dict())
        return
    account = summary.account
    n_new = summary.n_new
    pace = f", {60 * n_new / summary.seconds:.1f} a minute" if n_new and summary.seconds else ""
    before = account.already.total()
    title = f"{account.inputs} patients: {n_new} done in {summary.seconds:.1f} s{pace}, {before} done before"
    if summary.is_interrupted:
        title = f"interrupted\n{title}"
    elif summary.stopped_by:
        title = f"stopped\n{title}"
    elif not account.is_complete:
        title += f"\nNOT ACCOUNTED FOR: {account.inputs - account.counts.total()}"
    print_counts(title, account.counts, account.reasons, account.warnings)
    if account.further_series:
        console.print(f"further series in their folders: {in_words(account.further_series)}")
    print_split(account.split_series)
    if n_new:
        slowest = ", ".join(f"{key} {seconds:.1f} s" for seconds, key in account.slowest[:N_NAMED])
        largest = ", ".join(f"{key} {size_in_words(n_bytes)}" for n_bytes, key in account.largest[:N_NAMED])
        console.print(f"slowest: {slowest}\nlargest: {largest}", markup=False)
        console.print(f"cost: {account.cpu_s / 3600:.3f} CPU hours, {account.cpu_s / n_new:.1f} s a patient")
    console.print(
        f"read {size_in_words(account.bytes_read)}, written {size_in_words(account.bytes_written)}: {summary.target}"
    )


def print_split(groups: list[list[str]]) -> None:
    """Volumes that seem to be parts of one series, each read from a folder of its own."""
    if groups:
        console.print(
            f"{len(groups)} series seem to be split over folders, such as {' and '.join(groups[0][:3])}: a volume was "
            "made of each part; read each patient's folder as a whole (--patient-folders) into another target",
            markup=False,
        )


def print_counts(title: str, counts: dict[str, int], reasons: dict[str, int], warnings: dict[str, int]) -> None:
    console.print(title)
    table = Table(box=None, pad_edge=False, show_header=False)
    for status_ in ("written", "refused", "failed", "killed"):
        if counts.get(status_):
            table.add_row(f"  {status_}", str(counts[status_]))
            for reason, n in sorted(reasons.items()):
                if reason.startswith(f"{status_}:"):
                    table.add_row(f"    {reason.partition(': ')[2]}", str(n), style="dim")
    for warning, n in sorted(warnings.items()):
        table.add_row(f"  warning: {warning}", str(n), style="dim")
    console.print(table)


def print_forecast(predictions: Sequence[Prediction], took: Calibration, forecast: Estimate) -> None:
    """Size, memory, hours and dollars of a run."""
    from dskprep.pipeline import plan
    from dskprep.worker import admission

    largest = max((p for p in predictions if p.status == "written"), key=lambda p: p.need_bytes)
    console.print(f"read {size_in_words(forecast.bytes_read)}, written about {size_in_words(forecast.bytes_written)}")
    console.print(
        f"memory: the largest, {largest.key}, needs {size_in_words(largest.need_bytes)}; "
        f"workers of {admission.limit_for(largest.need_bytes)} take them all"
    )
    console.print(
        f"time: {took.key} took {took.read_cpu_s + took.prepare_cpu_s:.1f} s of CPU here; all, about "
        f"{forecast.cpu_s / 3600:.2g} CPU hours. Roughly, if a CPU there is as fast as one here:"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("  EC2 type", "CPUs", "GiB", "hours", "dollars", "too large there"):
        table.add_column(heading, justify="left" if "EC2" in heading else "right")
    for machine in plan.MACHINES:
        hours = forecast.hours_on(machine)
        dollars = hours * machine.dollars_per_hour + forecast.requests_dollars
        n_too_large = plan.n_too_large(predictions, machine)
        size = f"{machine.memory_gib:g}"
        table.add_row(
            f"  {machine.name}", str(machine.n_cpus), size, f"{hours:.2g}", f"{dollars:.2g}", str(n_too_large)
        )
    console.print(table)


def in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {status_}" for status_, n in counts.items())


def size_in_words(n_bytes: int) -> str:
    from dask.utils import format_bytes

    return str(format_bytes(n_bytes))

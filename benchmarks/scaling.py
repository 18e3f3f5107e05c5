"""How the pace grows with the workers, on patients that are bound by the CPU: from local disk to local disk.

    python benchmarks/scaling.py [--workers 1 2 4 8] [--patients 12] [--runs 2] [--cpu-share 0.2] [-o FILE]

Writes synthetic patients, and does `--patients` a worker with each number of workers, in rounds, so that a busy
neighbour slows all alike. The pace is taken over the middle: from a fifth to nine tenths of the patients done; in MB
of DICOM a second, as patients are not of one size. The efficiency of n workers is their pace, the best of the rounds,
over n times that of one. Only numbers of workers up to that of the CPUs mean anything; others are left out. The other
load of the machine in each run is told beside it.

With `--cpu-share`, each worker is held to this share of a CPU by a control group (Linux, cgroup v1, as root), so that
more workers can be seen than there are CPUs: all of dskprep and Dask is then as with so many CPUs, only slower; what
workers share of the hardware, memory bandwidth and cache, is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib.figure
import psutil

from dskprep.pipeline import cluster
from dskprep.synthetic import scanner

CONTROL_GROUPS = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 100_000

RUN = """
import os, sys, time, psutil
from pathlib import Path
from dskprep.pipeline import cluster, run
from dskprep.pipeline.observer import Observer
class Clock(Observer):
    def on_patient(self, summary, records):
        cpus, account = psutil.cpu_times(), summary.account
        print(time.perf_counter(), cpus.user + cpus.nice + cpus.system, account.cpu_s, account.bytes_read, flush=True)
if __name__ == "__main__":
    with cluster.local_client(workers=int(sys.argv[3])) as client:
        for group, pid in zip(sys.argv[5:], client.run(os.getpid).values()):
            Path(group, "cgroup.procs").write_text(str(pid))
        summary = run.run(sys.argv[1], sys.argv[2], client=client, limit=int(sys.argv[4]), observers=[Clock()])
    assert set(summary.account.counts) == {"written"}, summary.account
"""
STEADY = (0.2, 0.9)


@contextlib.contextmanager
def control_groups(n: int, cpu_share: float | None) -> Iterator[list[Path]]:
    """A control group for each of `n` workers, none without a share."""
    groups = [CONTROL_GROUPS / f"dskprep-{os.getpid()}-{i}" for i in range(n if cpu_share else 0)]
    try:
        for group in groups:
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(round(PERIOD_US * (cpu_share or 1))))
        yield groups
    finally:
        for group in groups:
            group.rmdir()


def paced(source: Path, target: Path, workers: int, patients: int, cpu_share: float | None) -> tuple[float, float]:
    """MB a second in steady state, and how many CPUs other processes kept busy meanwhile."""
    words = [sys.executable, "-c", RUN, str(source), str(target), str(workers), str(patients)]
    with control_groups(workers, cpu_share) as groups:
        said = subprocess.run([*words, *groups], check=True, capture_output=True, text=True).stdout.splitlines()
    first, last = (int(share * len(said)) for share in STEADY)
    start, end = ([float(word) for word in said[n].split()] for n in (first, last))
    seconds, busy_s, ours_s, n_bytes = (b - a for a, b in zip(start, end, strict=True))
    return n_bytes / 1e6 / seconds, max(0.0, (busy_s - ours_s) / seconds)


def drawn(rows: list[dict[str, float]], words: str) -> matplotlib.figure.Figure:
    figure = matplotlib.figure.Figure((6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="workers", ylabel="MB of DICOM a second")
    axes.set_title(words, fontsize=10)
    workers, paces = [row["workers"] for row in rows], [row["mb_a_second"] for row in rows]
    axes.plot([0, max(workers)], [0, max(workers) * paces[0] / workers[0]], "--", color="#999999", label="ideal")
    axes.plot(workers, paces, "o-", color="#2b5d8a", label="measured")
    for row in rows:
        axes.annotate(f"{row['efficiency']:.0%}", (row["workers"], row["mb_a_second"]), (6, -12),
                      textcoords="offset points")  # fmt: skip
    axes.set(xlim=(0, 1.12 * max(workers)), ylim=(0, None), xticks=workers)
    axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--patients", type=int, default=12, help="for each worker")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--cpu-share", type=float, help="of one CPU, for each worker")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "scaling")
    chosen = parser.parse_args()
    numbers = [n for n in sorted(chosen.workers) if n * (chosen.cpu_share or 1) <= cluster.CPU_COUNT]
    best: dict[int, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        with cluster.local_client() as client:
            count = chosen.patients * max(numbers)
            client.gather(
                [client.submit(scanner.write_patient, i, str(source), broken=False, pure=False) for i in range(count)]
            )
        for round_ in range(chosen.runs):
            for n in numbers:
                pace, others = paced(source, target, n, chosen.patients * n, chosen.cpu_share)
                print(
                    f"round {round_ + 1}: {n} workers {pace:.1f} MB a second, others {others:.2f} CPUs",
                    flush=True,
                )
                best[n] = max(best.get(n, (0.0, 0.0)), (pace, others))
                shutil.rmtree(target)
    one = best[numbers[0]][0] / numbers[0]
    rows = [
        {"workers": n, "mb_a_second": pace, "efficiency": pace / (n * one), "others_cpus": others}
        for n, (pace, others) in best.items()
    ]
    print("| workers | MB a second | efficiency | other load, CPUs |\n|--:|--:|--:|--:|")
    for row in rows:
        pace, share = row["mb_a_second"], row["efficiency"]
        print(f"| {row['workers']} | {pace:.1f} | {share:.0%} | {row['others_cpus']:.2f} |")
    machine = f"{platform.machine()}, {cluster.CPU_COUNT} CPUs, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    if chosen.cpu_share:
        machine += f", each worker held to {chosen.cpu_share:g} of a CPU"
    content = {"machine": machine, "patients_a_worker": chosen.patients, "runs": chosen.runs, "rows": rows}
    chosen.output.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    drawn(rows, f"scaling on {machine}").savefig(chosen.output.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()

"""What the benchmarks share: series to measure on, the machine in words, seconds and memory of this process, tables."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import figures
import numpy as np

RESULTS = Path(__file__).parent / "results"

ONE_THREAD = dict.fromkeys(
    (
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"),
        *("BLOSC_NTHREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"),
    ),
    "1",
) | {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}
"""Environment in which every library computes on one CPU, and memory is given back as by dskprep's workers."""


def series_folders(scratch: Path, *, quick: bool = False) -> Iterator[Path]:
    """A folder of DICOM files for each series to measure on, made below `scratch` when it is asked for.

    A synthetic patient of 200 x 512 x 512; where DSKPREP_DATA is set the volumes there. With `quick`, only a
    synthetic patient of six tenths of a man's size.
    """
    if quick:
        yield write_phantom(scratch / "small-phantom", (5.0, 2.4, 2.4), (58, 146, 146), scale=0.6)
        return
    yield write_phantom(scratch / "phantom", (1.5, 0.7, 0.7), (200, 512, 512))
    yield from real_folders(scratch)


def real_folders(scratch: Path) -> Iterator[Path]:
    """A folder for each of the volumes below DSKPREP_DATA, unpacked when it is asked for."""
    data = os.environ.get("DSKPREP_DATA")
    for path in sorted(Path(data, "volumes").glob("*.tar.bz2")) if data else []:
        with tarfile.open(path) as files:
            files.extractall(scratch / path.name.partition(".")[0], filter="data")
        below = (scratch / path.name.partition(".")[0]).rglob("*.dcm")
        yield max((path.parent for path in below), key=lambda folder: len(list(folder.iterdir())))


def slice_files(folder: Path) -> list[Path]:
    """Its files by name: those called *.dcm, or all where none is."""
    return sorted(folder.glob("*.dcm")) or sorted(folder.iterdir())


def write_phantom(
    folder: Path, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int], *, scale: float = 1.0
) -> Path:
    """A synthetic patient's files, its size in the headers times `scale`."""
    from dskprep.synthetic.phantom import make_phantom
    from dskprep.synthetic.scanner import series_files
    from dskprep.volume import Volume

    phantom = make_phantom(seed=1, spacing_mm=spacing_mm, shape=shape)
    volume = Volume(phantom.volume.array, phantom.volume.affine @ np.diag([scale, scale, scale, 1.0]))
    folder.mkdir(parents=True)
    for name, content in series_files(dataclasses.replace(phantom, volume=volume), name=folder.name, seed=1):
        (folder / name).write_bytes(content)
    return folder


class Seconds(NamedTuple):
    """CPU seconds of this process, all its threads, and wall seconds."""

    cpu: float
    wall: float

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.cpu - other.cpu, self.wall - other.wall)


def now() -> Seconds:
    return Seconds(time.process_time(), time.perf_counter())


def cpu_of(work: Callable[[], object], repeats: int = 5) -> float:
    """Median CPU seconds of doing it, after once unmeasured."""
    work()
    return statistics.median(seconds_of(work, repeats))


def seconds_of(work: Callable[[], object], repeats: int) -> list[float]:
    """CPU seconds of doing it, each time."""
    seconds = []
    for _ in range(repeats):
        start = now()
        work()
        seconds.append((now() - start).cpu)
    return seconds


def peak_mib() -> float:
    """The most memory this process has had at once, its imports included; 0 where there is no /proc.

    Not ru_maxrss: a process begins with that of the one that started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


class Bandwidth(NamedTuple):
    """Bytes a second of one CPU: reading memory, writing it, writing it for the first time since it was got."""

    read: float
    write: float
    fresh: float


def bandwidth(n_bytes: int = 1 << 27) -> Bandwidth:
    """Measured on an array too large for any cache."""
    array = np.ones(n_bytes // 8)
    return Bandwidth(
        n_bytes / cpu_of(array.max),
        n_bytes / cpu_of(lambda: array.fill(1)),
        n_bytes / cpu_of(lambda: np.full(n_bytes // 8, 1.0)),
    )


def machine() -> str:
    """Processor, CPUs, memory, system and Python, and how busy it is."""
    processor = platform.processor() or platform.machine()
    memory = ""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), processor)
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB, "
    return (
        f"{processor}, {os.cpu_count()} CPUs, {memory}{platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def versions(names: Iterable[str]) -> str:
    """Those that are installed, of these packages."""
    words = []
    for name in names:
        try:
            words.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            words.append(f"{name} not installed")
    return ", ".join(words)


class Report:
    """The results of a benchmark in the making. Each part is printed and stored at once: a run cut short leaves it.

    They are stored as JSON, of which `figures.py` makes Markdown, a page, and the figures that the docs quote.
    """

    def __init__(self, path: Path, title: str, packages: Iterable[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        words = (Path(word).name if Path(word).is_dir() else word for word in sys.argv[1:])
        self._result: dict[str, Any] = {
            "title": title,
            "command": f"python {' '.join([f'benchmarks/{Path(sys.argv[0]).name}', *words])}",
            "made": f"on {time.strftime('%Y-%m-%d')}: {machine()}; {versions(packages)}. Load at the start: {_load()}.",
            "blocks": [],
        }
        print(title)

    def heading(self, text: str) -> None:
        self._add({"heading": text})

    def line(self, text: str) -> None:
        self._add({"text": text})

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """The first column is words, the others are figures."""
        self._add({"header": list(header), "rows": [list(row) for row in rows]})

    def close(self) -> None:
        self.line(f"Load at the end: {_load()}.")

    def _add(self, block: dict[str, Any]) -> None:
        self._result["blocks"].append(block)
        print(figures.markdown_of([block]), flush=True)
        self._path.write_text(json.dumps(self._result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self._path.with_suffix(".md").write_text(figures.markdown(self._result), encoding="utf-8")


@contextmanager
def report(path: Path, title: str, packages: Iterable[str]) -> Iterator[Report]:
    """A report that is closed at the end."""
    made = Report(path, title, packages)
    try:
        yield made
    finally:
        made.close()


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"

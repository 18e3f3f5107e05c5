"""Memory is known before it is used, and shared without patients waiting for one another."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import tiny
import volume_builders

from dskprep.errors import Refusal
from dskprep.pipeline import cluster
from dskprep.preparation import prepare
from dskprep.settings import PrepConfig
from dskprep.worker.admission import Ledger, Underestimated, estimate_bytes, usable_bytes

CHEST = (133, 512, 512)
CHEST_SPACING_MM = (2.5, 0.703, 0.703)


def test_estimate_covers_native_and_resampled_volume():
    native = 2 * 133 * 512 * 512
    output = native * 2.5 * 0.703**2
    assert estimate_bytes(CHEST, CHEST_SPACING_MM, PrepConfig()) > native + output


def test_finer_output_needs_more_memory():
    coarse, fine = PrepConfig(spacing_mm=(2, 2, 2)), PrepConfig(spacing_mm=(0.5, 0.5, 0.5))
    assert estimate_bytes(CHEST, CHEST_SPACING_MM, fine) > 4 * estimate_bytes(CHEST, CHEST_SPACING_MM, coarse)


def test_floats_and_the_masks_of_grt123_need_more_memory():
    output = 133 * 2.5 * (512 * 0.703) ** 2
    needs = {
        dtype: estimate_bytes(CHEST, CHEST_SPACING_MM, PrepConfig(recipe="zuidhof", dtype=dtype))
        for dtype in ("int16", "float32", "float64")
    }
    assert needs["int16"] >= estimate_bytes(CHEST, CHEST_SPACING_MM, PrepConfig())
    assert needs["int16"] < needs["float32"] < needs["float64"]
    assert needs["float64"] > 2 * 8 * output  # the image and its objects
    assert estimate_bytes(CHEST, CHEST_SPACING_MM, PrepConfig(recipe="grt123")) > 5 * 133 * 512 * 512


def test_a_c4_2xlarge_worker_takes_an_ordinary_chest():
    limit = int(15 * 2**30 * 0.9 / 8)
    assert estimate_bytes((600, 512, 512), (0.7, 0.7, 0.7), PrepConfig()) < usable_bytes(limit)


def test_a_network_in_the_worker_counts_with_what_it_needs_and_one_in_a_slot_does_not() -> None:
    def need(**how: Any) -> int:
        return estimate_bytes(CHEST, CHEST_SPACING_MM, PrepConfig(lungs="my.masks:lungs", **how))

    assert need(mask_memory="10GiB") - need(mask_memory="7GiB") == 3 * 2**30
    in_slot = need(mask_memory="10GiB", mask_slots=1)
    assert in_slot == need(mask_memory="7GiB", mask_slots=1) < need()  # here it has a copy of the image too
    with pytest.raises(Refusal, match="too-large: needs"):
        Ledger(usable_bytes(2 * 2**30)).check(need(mask_memory="3GiB"))


def test_patient_that_never_fits_is_refused_with_the_bytes_it_needs():
    ledger = Ledger(1000)
    with ledger.ticket() as ticket, pytest.raises(Refusal, match=r"needs 1 MiB.*--memory-limit") as caught:
        ledger.admit(ticket, 10, 1001)
    assert caught.value.reason == "too-large"


def test_second_patient_waits_until_the_first_is_computed():
    ledger = Ledger(1000)
    admitted = threading.Event()

    def second():
        with ledger.ticket() as ticket:
            ledger.admit(ticket, 400, 700)
            admitted.set()

    with ledger.ticket() as first:
        ledger.admit(first, 400, 700)
        thread = threading.Thread(target=second)
        thread.start()
        assert not admitted.wait(0.2)
        ledger.finish(first, 100)
        assert admitted.wait(tiny.LIMIT_S)
        thread.join()


def test_ticket_is_given_back_when_its_patient_fails():
    ledger = Ledger(1000)
    with contextlib.suppress(ZeroDivisionError), ledger.ticket() as ticket:
        ledger.admit(ticket, 900, 900)
        raise ZeroDivisionError
    with ledger.ticket() as ticket:
        ledger.admit(ticket, 900, 900)


def test_patient_larger_than_promised_comes_again_if_others_hold_the_memory():
    ledger = Ledger(1000)
    with ledger.ticket() as other, ledger.ticket() as ticket:
        ledger.admit(other, 300, 300)
        ledger.admit(ticket, 300, 400)
        ledger.grow(ticket, 700)
        with pytest.raises(Underestimated) as caught:
            ledger.grow(ticket, 701)
    assert caught.value.need_bytes == 701


def test_patients_in_any_order_never_hold_more_than_there_is():
    ledger = Ledger(1000)
    held, peak, lock = [0], [0], threading.Lock()
    computing = threading.Lock()

    def patient(files: int, need: int) -> None:
        with ledger.ticket() as ticket:
            ledger.admit(ticket, files, need)
            with lock:
                held[0] += files
                peak[0] = max(peak[0], held[0])
            with computing:
                with lock:
                    held[0] += need - files
                    peak[0] = max(peak[0], held[0])
                    held[0] -= need - files // 2
                ledger.finish(ticket, files // 2)
            with lock:
                held[0] -= files // 2

    sizes = [(100, 300), (400, 900), (50, 60), (300, 1000), (200, 500), (10, 990)] * 5
    threads = [threading.Thread(target=patient, args=size) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(tiny.LIMIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert held[0] == 0
    assert 900 <= peak[0] <= 1000


def write_chest(folder: Path, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> None:
    """A body with two lungs and noise, in as many slices; every slice is one of twelve, at its place."""
    n, rows, columns = shape
    y, x = (np.mgrid[:rows, :columns] - np.array(shape[1:])[:, None, None] / 2) / (rows / 2)
    noise = np.random.default_rng(0).normal(0, 25, (rows, columns))
    folder.mkdir(parents=True)
    marks = "111.111", "222.222", "333.333"
    files = []
    for k in range(12):
        size = np.sqrt(1 - ((k + 0.5) / 6 - 1) ** 2)
        hu = np.where((x / 0.85) ** 2 + (y / 0.6) ** 2 < 1, 40, -1000)
        for side in (-0.4, 0.4):
            hu[((x - side) / 0.3) ** 2 + (y / 0.42) ** 2 < size**2] = -850
        stored = (hu + noise + 1024).astype(np.int16)
        stored[x**2 + y**2 > 1] = -2000
        ds = builders.ct_dataset(stored, PixelSpacing=list(spacing_mm[1:]), SliceThickness=spacing_mm[0])
        ds.ImagePositionPatient = list(marks)
        files.append(builders.saved(ds))
    for k in range(n):
        place = "\\".join((*marks[:2], f"{k * spacing_mm[0]:07.2f}"))
        content = files[12 * k // n].replace("\\".join(marks).encode(), place.encode(), 1)
        (folder / f"{k:04}.dcm").write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "spacing_mm", "limit_gib", "most_mib"),
    [
        ((40, 512, 512), (5.0, 0.7, 0.7), 2, 400),
        ((300, 512, 512), (1.0, 0.7, 0.7), 2, 520),
        ((1200, 1024, 1024), (0.25, 0.35, 0.35), 1.2, 1200),
    ],
    ids=["small", "thin", "large, read slice by slice"],
)
def test_the_estimate_bounds_the_measured_peak_of_a_fresh_process(
    tmp_path: Path,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    limit_gib: float,
    most_mib: int,
) -> None:
    prepare.warm(PrepConfig())  # what is compiled is a worker's share, not a patient's
    write_chest(tmp_path / "in/p", shape, spacing_mm)
    assert_estimate_bounds_peak(tmp_path, limit_gib, most_mib)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "limit_gib", "most_mib"),
    [(".nii.gz", 2, 620), (".nii", 2, 1200), (".nii", 1, 600)],
    ids=["compressed", "held", "read piece by piece"],
)
def test_the_estimate_bounds_the_measured_peak_of_a_volume_of_floats(
    tmp_path: Path, kind: str, limit_gib: float, most_mib: int
) -> None:
    """300 slices as float64: 629 MB, of which one slice at a time is decompressed, or 8 MB are read."""
    prepare.warm(PrepConfig())
    twelfth = volume_builders.chest((12, 512, 512), (25, 0.7, 0.7))
    affine = twelfth.affine.copy()
    affine[:, 0] /= 25
    content = volume_builders.nifti(twelfth.array.astype(np.float64).repeat(25, axis=0), affine)
    (tmp_path / "in").mkdir()
    (tmp_path / f"in/ct{kind}").write_bytes(gzip.compress(content, 1) if kind.endswith("gz") else content)
    assert_estimate_bounds_peak(tmp_path, limit_gib, most_mib)


def assert_estimate_bounds_peak(tmp_path: Path, limit_gib: float, most_mib: int) -> None:
    """The one patient in `in`, prepared in a process of its own."""
    script = Path(__file__).parents[1] / "peak_memory.py"
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), str(int(limit_gib * 2**30))]
    environment = {name: str(value) for name, value in cluster.SETTINGS["distributed.nanny.pre-spawn-environ"].items()}
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(tmp_path / "in")  # gigabytes
    peak_bytes, estimate_bytes = map(int, done.stdout.split())
    assert peak_bytes <= estimate_bytes <= 1.5 * peak_bytes
    assert peak_bytes <= most_mib << 20

"""Damaged files give a right volume or a named refusal: some hundreds of cases, and whether the judge would notice."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mutations
import numpy as np
import pytest
from builders import assembled, decoded
from conftest import DataFolder


def run(*arguments: str) -> str:
    """In a process of its own: a codec that crashes would take the tests with it."""
    script = Path(mutations.__file__)
    path = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_mutated_series_give_a_right_volume_or_a_named_refusal() -> None:
    out = run("--cases", "600", "--seed", "1")
    assert "600 cases, 0 failures" in out
    assert " right\n" in out
    assert "refused: truncated" in out


@pytest.mark.slow
def test_mutated_real_slices_give_a_right_volume_or_a_named_refusal(data_folder: DataFolder) -> None:
    assert "40 cases, 0 failures" in run("--cases", "40", "--seed", "2", str(data_folder.volumes / "lidc_0001"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["explicit", "coronal", "JPEG 2000", "Enhanced"])
def test_the_judge_sees_a_wrong_voxel_a_lost_slice_and_a_shift(name: str) -> None:
    files = mutations.bases([])[name]
    found, n_slices = decoded(list(files.items())), int(assembled(list(files.items())).facts["slices"])
    assert mutations.judge(files, found, n_slices, 0) == "right"
    z, y, x = np.argwhere(found.volume.array > 0)[5]
    found.volume.array[z, y, x] += 1
    assert mutations.judge(files, found, n_slices, 0).startswith("WRONG")
    found.volume.array[z, y, x] -= 1
    assert mutations.judge(files, found, n_slices, 0) == "right"
    shifted = found.volume.affine.copy()
    shifted[2, 3] += 1
    vars(found)["volume"] = replace(found.volume, affine=shifted)
    assert mutations.judge(files, found, n_slices, 0).startswith("WRONG")
    found = decoded(list(files.items()))
    assert mutations.judge(files | {"more": next(iter(files.values()))}, found, n_slices, 0).startswith("WRONG")

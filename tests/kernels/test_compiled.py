"""Where compiled code is kept."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dskprep

PROGRAM = """
import subprocess, sys
import numpy as np
from dskprep.kernels import padding

plane = np.arange(6, dtype=np.int16).reshape(2, 3)
padding.mark_padding(plane, 2, 3)
print(plane.tolist(), sum(padding.mark_padding.stats.cache_hits.values()), flush=True)
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""


@pytest.mark.slow
def test_without_a_place_to_write_compiled_code_lasts_as_long_as_the_program(tmp_path: Path) -> None:
    package = Path(dskprep.__file__).parent
    shutil.copytree(package, tmp_path / "dskprep", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("dskprep", "dskprep/kernels"):
        (tmp_path / folder / "__pycache__").touch()  # a file: no folder can be made there, not even by root
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "tmp").mkdir()
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), "/dev/null/nowhere")
    environment = os.environ | nowhere | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    plane = [[0, 1, -32768], [-32768, 4, 5]]
    assert (done.stdout, done.stderr) == (f"{plane} 0\n{plane} 1\n", "")  # the child compiled nothing anew
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_folder_that_others_can_write_to_is_told_once(tmp_path: Path) -> None:
    for name in ("cache", "tmp"):
        (tmp_path / name).mkdir()
    tmp_path.chmod(0o777)
    places = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    words = [sys.executable, "-c", "from dskprep.preparation import prepare"]  # has kernels in several modules
    done = subprocess.run(words, env=os.environ | places, check=True, capture_output=True, text=True)
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"{tmp_path}: expected a folder that no other user can write to")


class Planted:
    """What another user left in place of compiled code: a pickle that makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["writable", "writable above", "owned by another", "behind a link of another's"])
def test_code_that_another_user_could_have_planted_is_not_run(tmp_path: Path, fault: str) -> None:
    if "another" in fault and os.getuid():
        pytest.skip("only root can give a folder away")
    package = Path(dskprep.__file__).parent
    shutil.copytree(package, tmp_path / "dskprep", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("dskprep", "dskprep/kernels"):
        (tmp_path / folder / "__pycache__").touch()
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "tmp").mkdir()
    cache = tmp_path / "cache"
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(tmp_path)}
    cache.mkdir()
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "link").symlink_to(cache)
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path / "share" / "link" if "link" in fault else cache)}

    def run() -> tuple[list[str], list[str]]:
        words = [sys.executable, str(tmp_path / "program.py")]
        done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
        return [line.rpartition(" ")[2] for line in done.stdout.splitlines()], done.stderr.splitlines()

    assert run() == (["0", "1"], [])  # compiled, and found again by the child
    assert run() == (["1", "1"], [])  # and by the next program, since the folder is ours alone
    (below,) = cache.iterdir()
    mark = tmp_path / "mark"
    for kept in below.glob("*.nbi"):
        kept.write_bytes(pickle.dumps(Planted(mark)))
    if fault == "owned by another":
        os.chown(below, 54321, 54321)
    elif "link" in fault:  # its owner can lead it elsewhere at any time
        os.chown(tmp_path / "share", 54321, 54321)
    else:
        (below if fault == "writable" else cache).chmod(0o777)
    hits, (said,) = run()
    assert hits == ["0", "1"]
    assert "expected a folder that no other user can write to" in said
    assert "set NUMBA_CACHE_DIR to a folder of your own" in said
    assert not mark.exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    cache.chmod(0o755)
    below.chmod(0o755)
    for folder in (below, tmp_path / "share"):
        os.chown(folder, os.getuid(), os.getgid())
    run()
    assert mark.exists()  # that is what is kept out

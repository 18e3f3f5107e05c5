"""Where compiled code is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dskprep

PROGRAM = """
import subprocess, sys
import numpy as np
from dskprep.kernels import planes

plane = np.arange(6, dtype=np.int16).reshape(2, 3)
planes.mark_padding(plane, 2, 3)
print(plane.tolist(), sum(planes.mark_padding.stats.cache_hits.values()), flush=True)
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""


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

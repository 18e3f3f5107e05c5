"""Write the small dataset that shows whether today's dskprep still reads what an earlier commit wrote.

    python tests/old/write_dataset.py COMMIT OUT.tar.xz

Runs that commit on synthetic patients of a few voxels: three series written, one refused for its few slices,
one folder without DICOM. Needs root, for places whose names say nothing of this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACE = Path("/srv/example")
SETTINGS = 'spacing_mm = [1.0, 1.0, 1.0]\nlung_margin_mm = 2.0\nsteps = ["dskprep.body:only"]\nchunk = 16\n'


def main(commit: str, out: str) -> None:
    if PLACE.exists():
        sys.exit(f"{PLACE}: exists already; this script writes there and deletes it at the end, so move it away first")
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["git", "-C", str(HERE), "worktree", "add", "--detach", f"{scratch}/old", commit], check=True)
        try:
            (PLACE / "in").mkdir(parents=True)
            (PLACE / "prep.toml").write_text(SETTINGS)
            environment = {**os.environ, "PYTHONPATH": f"{scratch}/old:{scratch}/old/tests"}
            run = ["unshare", "--uts", "sh", "-c", 'hostname example && exec "$@"', "sh", sys.executable]
            subprocess.run([*run, "-c", PATIENTS], env=environment, cwd=PLACE, check=True)
            words = ["-m", "dskprep", "run", "in", "out", "--config", "prep.toml", "--scheduler", "sync"]
            subprocess.run([*run, *words], env=environment, cwd=PLACE, check=False)
            packed = ["-cJf", str(Path(out).resolve()), "-C", str(PLACE)]
            subprocess.run(["tar", "--format=pax", *packed, "in", "out", "prep.toml"], check=True)
        finally:
            shutil.rmtree(PLACE, ignore_errors=True)
            subprocess.run(["git", "-C", str(HERE), "worktree", "remove", "--force", f"{scratch}/old"], check=True)


PATIENTS = """
import tiny
tiny.write_patients("in", ["a", "b"])
tiny.write("in/two-series", {**tiny.series(7), **{f"s{n}": c for n, c in tiny.series(8, n=10).items()}})
tiny.write("in/few-slices", tiny.series(3, n=4))
tiny.write("in/no-dicom", {"notes.dcm": b"nothing"})
"""

if __name__ == "__main__":
    main(*sys.argv[1:])

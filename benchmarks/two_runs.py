"""One run against two at once on the same patients and target, each with one worker.

    python benchmarks/two_runs.py [--patients 40] [--seconds 1] [--s3]

Each patient takes about `--seconds` of its worker, as a step that waits and uses no CPU, so that the two runs do not
slow each other down on a small machine. Prints the seconds of each run from its first patient to its last, what
the two take of the one, how many patients each did, and how many were done twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dskprep.synthetic.s3server import S3Server
from dskprep.volume import Volume

HERE = Path(__file__).parent


def wait(image: Volume) -> Volume:
    """A step of a user's own."""
    time.sleep(float(os.environ["TWO_RUNS_S"]))
    return image


def start(source: str, target: str, config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dskprep", "run", source, target, "--workers", "1", "--memory-limit", "1GiB"]
    return subprocess.Popen([*command, "--config", str(config), "--log-json"], stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[float, list[str]]:
    """Wait for a run; return its seconds and the patients that it did."""
    said = [json.loads(line) for line in process.communicate()[0].splitlines()]
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}: {said[-1]}")
    return said[-1]["seconds"], [line["key"] for line in said if line["event"] == "patient"]


@contextlib.contextmanager
def place(*, is_s3: bool) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        if not is_s3:
            yield folder
            return
        with S3Server() as server:
            os.environ.update(server.environment)
            yield server.make_bucket("runs")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--patients", type=int, default=40)
    options.add_argument("--seconds", type=float, default=1.0)
    options.add_argument("--s3", action="store_true")
    o = options.parse_args()
    os.environ["TWO_RUNS_S"] = str(o.seconds)
    paths = [str(HERE), str(HERE.parent / "tests"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    sys.path.insert(0, str(HERE.parent / "tests"))
    with place(is_s3=o.s3) as where, tempfile.TemporaryDirectory() as folder:
        import tiny

        source = tiny.write_patients(f"{where}/in", [f"p{i:03}" for i in range(o.patients)])
        config = Path(folder, "prep.toml")
        config.write_text('steps = ["two_runs:wait"]\n')
        one_s, _ = end(start(source, f"{where}/one", config))
        both = [start(source, f"{where}/two", config) for _ in range(2)]
        ended = [end(process) for process in both]
    n_done = Counter(key for _, keys in ended for key in keys)
    print(f"one run {one_s:.1f} s; two at once", ", ".join(f"{s:.1f} s ({s / one_s:.2f})" for s, _ in ended), end="; ")
    print("patients", " and ".join(str(len(keys)) for _, keys in ended), end="; ")
    print(f"done twice {sum(n > 1 for n in n_done.values())}, not done {o.patients - len(n_done)}")


if __name__ == "__main__":
    main()

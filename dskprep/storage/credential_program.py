"""Runs the program of `credential_process` for botocore, within a limit, and keeps what it says to itself.

botocore waits for it without a limit, and repeats in its error what the program wrote to standard error, which can hold
secrets. So the setting gets this file in front, which Python runs by itself: it imports nothing of dskprep.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

LIMIT_S = 60.0
"""How long such a program may take, in seconds: somebody may have to confirm it on a telephone."""


def within_limit(program: str) -> str:
    """Return the setting `credential_process` that runs the program of this one within the limit."""
    return f"{shlex.join([sys.executable, '-I', __file__, str(LIMIT_S)])} {program}"


def run(limit_s: float, words: list[str]) -> str:
    """Run a program. Return what went wrong, or ""; what it printed is then on standard output."""
    name = Path(words[0]).name
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        return f"{name} cannot be started ({error.strerror})"
    try:
        printed, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"{name} did not end within {limit_s:g} s"
    if process.returncode:
        return f"{name} ended with {process.returncode}; run it yourself to see what it says"
    sys.stdout.buffer.write(printed)
    sys.stdout.flush()
    return ""


if __name__ == "__main__":
    problem = run(float(sys.argv[1]), sys.argv[2:])
    sys.stderr.write(problem)
    sys.stderr.flush()
    os._exit(1 if problem else 0)  # at once: what the program started may hold its output open

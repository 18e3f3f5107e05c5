"""A second user of this machine: commands that run as somebody who is neither root nor us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

UIDS = (54321, 54322)
"""Users who own nothing here."""

SHOW = 'mount --bind "$1" /mnt && mount -t tmpfs -o mode=755 none "$2" && mkdir -p "$1" && mount --bind /mnt "$1"'
"""Makes a folder visible that lies in the home of root, in the mounts of one process alone."""


def command(words: Sequence[str], uid: int) -> list[str]:
    """The command that runs these words as another user, who can read Python wherever it is installed."""
    as_user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", *words]
    hidden = next((p for p in reversed(Path(sys.base_prefix).parents) if not p.stat().st_mode & 0o001), None)
    if hidden is None:
        return as_user
    return [
        "unshare",
        "--mount",
        "sh",
        "-ec",
        f'{SHOW}; shift 2; exec "$@"',
        "sh",
        sys.base_prefix,
        str(hidden),
        *as_user,
    ]


def skip_without(uid: int = UIDS[0]) -> None:
    """Skip the test where nobody can become another user, or where that user cannot run this Python."""
    words = command([sys.executable, "-c", "import dskprep, distributed"], uid)
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become another user, by setpriv")
    if (done := subprocess.run(words, check=False, capture_output=True, text=True)).returncode:
        pytest.skip(f"another user cannot run this Python: {done.stderr[-200:]}")


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder as /tmp is, which all users can look into."""
    folder = Path(tempfile.mkdtemp(prefix="shared-"))
    folder.chmod(0o1777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)

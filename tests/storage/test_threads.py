"""Threads that were used for requests are gone when they are joined, and nothing of theirs is inherited by a fork."""

from __future__ import annotations

import hashlib
import sys
import threading
from pathlib import Path

import pytest

from dskprep.storage.threads import Threads

TASKS = Path("/proc/self/task")


@pytest.mark.skipif(not TASKS.is_dir(), reason=f"{sys.platform} does not list threads")
def test_joined_threads_are_gone_for_the_system_too() -> None:
    left = set[str]()
    for _ in range(50):
        meeting = threading.Barrier(16)

        def work(_: int, meeting: threading.Barrier = meeting) -> int:
            meeting.wait()
            hashlib.sha256(b"x").digest()  # OpenSSL tidies up after it when the thread ends
            return threading.get_native_id()

        with Threads(16, "test") as threads:
            used = {str(number) for number in threads.map(work, range(16))}
        left |= used & {task.name for task in TASKS.iterdir()}
        assert len(used) == 16
    assert not left

"""The guard of a mask slot's process, which ends it with the worker that started it, whatever it does by then.

A thread of its own could not: a function that holds Python's lock, or is stopped, lets no thread of its process go on.
So this module is imported, and `begin` called, before anything of dskprep's that is large.
"""

from __future__ import annotations

import os
import select
import signal


def begin() -> None:
    """Fork the guard. It kills the group of this process when its standard input ends, and ends when this process does.

    What the starter writes to standard input must have been read by then.
    """
    is_over, never_written = os.pipe()
    if os.fork():
        os.close(is_over)
        return  # the other end is closed by the system, however this process ends
    os.close(never_written)
    ready, _, _ = select.select([0, is_over], [], [])
    if 0 in ready:
        os.killpg(0, signal.SIGKILL)
    os._exit(0)

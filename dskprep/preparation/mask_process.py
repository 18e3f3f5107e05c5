"""The process of a mask slot: it loads the function that finds the lungs once, and calls it for one worker at a time.

It ends with the worker that started it (module `mask_guard`), so that no model is left behind; and when a worker that
waits for an answer is gone, so that no mask is computed for nobody while the slot is given to another one.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import DskprepError
from dskprep.plain import traceback_of
from dskprep.preparation import user_steps
from dskprep.volume import Volume

READY = b"ready\n"
"""What is written to standard output, once, when the process listens; and to each who connects."""


def serve(address: str, path: str) -> None:
    """Listen at `address`, the path of a socket, and call the function of that import path for all who ask.

    Who connects hears READY. A question is the affine and the voxels of an image. The answer is an error, or None and
    the voxels of the mask.
    """
    tell = os.dup(1)
    os.dup2(2, 1)  # what a network prints must not get between the lines of a program that it knows nothing of
    with suppress(OSError):  # where memory is short, the system ends this process and not a worker with its patients
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with Listener(address, "AF_UNIX", backlog=8) as listener:
        os.write(tell, READY)
        os.close(tell)
        while True:
            with suppress(EOFError, OSError), listener.accept() as connection:  # who asked may be gone
                _answer(connection, path)


def _answer(connection: Any, path: str) -> None:
    connection.send(READY)
    image = Volume(affine=connection.recv(), array=receive_array(connection))
    is_done = threading.Event()
    watch = threading.Thread(target=_end_with_the_asker, args=(connection, is_done), daemon=True)
    watch.start()
    problem = None
    try:
        mask = user_steps.find_lungs(path, image)
    except DskprepError as error:
        error.add_note(traceback_of(error))
        problem = error
    is_done.set()
    try:
        connection.send(problem)
        if problem is None:
            send_array(connection, mask.array)
    finally:
        if isinstance(problem, user_steps.OutOfMemory):  # a new process has its memory for itself again
            _end()
    watch.join()


def send_array(connection: Any, array: NDArray[Any]) -> None:
    """Send an array without a copy of it, which a pickle would make."""
    connection.send((array.shape, array.dtype.str))
    connection.send_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def receive_array(connection: Any) -> NDArray[Any]:
    """Return an array that `send_array` sends at the other end."""
    array = np.empty(*connection.recv())
    connection.recv_bytes_into(array.reshape(-1).view(np.uint8))
    return array


def _end_with_the_asker(connection: Connection, is_done: threading.Event) -> None:
    wait([connection])  # nothing more is sent: it is closed at the other end
    if not is_done.is_set():
        _end()


def _end() -> None:
    """End this process and those that the function started: they are a group."""
    os.killpg(os.getpgrp(), signal.SIGKILL)

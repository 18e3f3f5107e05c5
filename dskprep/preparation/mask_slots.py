"""The mask slots of a host: so many processes that find lungs, which all workers of one user there share.

A slot is a locked file, which the system unlocks when its holder dies, however it dies. The holder of a slot alone
talks to the slot's process (module `mask_process`), and starts it if there is none. So there are never more models in
memory than slots, nor more masks under way, and each model is loaded once.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any, NamedTuple

from dask.system import CPU_COUNT

from dskprep.errors import InfrastructureError
from dskprep.preparation import mask_process, user_steps
from dskprep.volume import Volume

POLL_S = 0.05
"""How often a worker looks for a free slot, in seconds."""
END_S = 10.0
"""How long a process may take to end that has closed its connection, in seconds."""
LONGEST_ADDRESS = 100
"""Bytes that the path of a socket may have."""
START = (
    "import json, sys; sys.path[:], *words = json.loads(sys.stdin.readline()); "
    "from dskprep.preparation import mask_guard; mask_guard.begin(); "
    "from dskprep.preparation.mask_process import serve; serve(*words)"
)
"""The program of a slot's process. It gets the places of modules in a line, as they may be set in Python only."""
HELLO_S = 30.0
"""How long a slot's process may take to say that it is there, in seconds: nobody else asks it then."""

_PROCESSES: dict[str, subprocess.Popen[bytes]] = {}
"""The processes that this one started and that are not known to have ended, by their address."""


class Slot(NamedTuple):
    """A slot that is held."""

    path: str
    """The import path of the function."""
    address: str
    """The socket at which the slot's process listens."""
    environment: dict[str, str]
    """What that process is to find in its environment beside what is there."""

    def find_lungs(self, image: Volume) -> Volume:
        """Return the mask that the slot's process finds. Raises what `user_steps.find_lungs` does."""
        try:
            connection = Client(self.address, "AF_UNIX")
        except OSError:  # there is no process, or it has ended
            return self._find_by_new_process(image)
        if not connection.poll(HELLO_S):  # it still does what somebody asked who is gone
            _kill_peer(connection)
            return self._find_by_new_process(image)
        try:
            return _ask(connection, image)
        except (EOFError, OSError):  # it ended, most likely with the worker that had started it
            return self._find_by_new_process(image)

    def _find_by_new_process(self, image: Volume) -> Volume:
        process = self._start()
        try:
            return _ask(Client(self.address, "AF_UNIX"), image)
        except (EOFError, OSError) as error:
            code = _exit_code(process)
            _end(self.address)
            if code == -signal.SIGKILL:
                raise user_steps.OutOfMemory(f"{self.path}: the system killed its process {process.pid}") from error
            raise user_steps.StepFailed(f"{self.path}: its process {process.pid} ended with {code}") from error

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the slot's process, and wait until it listens. Raises InfrastructureError if it does not."""
        _end(self.address)
        Path(self.address).unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", START],  # -P: no modules from the current folder unless the worker has it
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | self.environment,
            start_new_session=True,  # no Ctrl-C of the terminal
        )
        _PROCESSES[self.address] = process
        assert process.stdin
        assert process.stdout
        words = [[place or str(Path.cwd()) for place in sys.path], self.address, self.path]
        with suppress(BrokenPipeError):  # what is read next says so
            process.stdin.write(json.dumps(words).encode() + b"\n")
            process.stdin.flush()
        with process.stdout:
            if process.stdout.readline() != mask_process.READY:
                code = _exit_code(process)
                _end(self.address)
                raise InfrastructureError(
                    f"{self.path}: the process of its mask slot did not start: it ended with {code}"
                )
        return process


@contextmanager
def take(path: str, n_slots: int) -> Iterator[Slot]:
    """Wait until one of `n_slots` slots for the function of that import path is free, and hold it.

    Raises UsageError if there is no such function, InfrastructureError if there is no safe place for the slots.
    """
    user_steps.load(path)
    names = [f"{_pool_of(path)}-{number}" for number in range(n_slots)]
    folder = _folder()
    while True:
        for number, name in enumerate(names):
            with _locked(folder / f"{name}.lock") as is_locked:
                if is_locked:
                    yield Slot(path, str(folder / name), _environment(number, n_slots))
                    return
        time.sleep(POLL_S)


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Lock a file, if nobody else has. It is unlocked at the end of the block, or of this process."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _folder() -> Path:
    """Return the folder of the slots. It is of this user alone: who could write to it could answer for them."""
    folder = Path(tempfile.gettempdir()) / f"dskprep-masks-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise InfrastructureError(
            f"{folder}: expected a folder of your own that nobody else can enter, found {stat.filemode(found.st_mode)} "
            f"of user {found.st_uid}; remove it, or set TMPDIR to a folder of your own"
        )
    if len(os.fsencode(folder)) > LONGEST_ADDRESS - 20:
        raise InfrastructureError(f"{folder}: its path is too long for a socket; set TMPDIR to a shorter one")
    return folder


def _pool_of(path: str) -> str:
    """Return a name for those who may share a process: the same host, function, Python and GPUs.

    A module that has changed since is another one.
    """
    file = None
    with suppress(ImportError, ValueError):  # a module without a file, such as that of a notebook
        spec = importlib.util.find_spec(path.partition(":")[0])
        file = spec and spec.origin
    changed_ns = Path(file).stat().st_mtime_ns if file and Path(file).exists() else None
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    parts = [platform.node(), path, file, changed_ns, sys.prefix, gpus]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _environment(number: int, n_slots: int) -> dict[str, str]:
    """Return what a slot's process finds: its number, and its share of the CPUs. A worker has one, and waits for it."""
    threads = str(max(1, CPU_COUNT // n_slots))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {"DSKPREP_MASK_SLOT": str(number), **dict.fromkeys(names, threads)}


def _ask(connection: Any, image: Volume) -> Volume:
    """Ask a slot's process for the lungs. Raises EOFError or OSError if it ends before it answers."""
    with connection:
        connection.recv()
        connection.send(image.affine)
        mask_process.send_array(connection, image.array)
        problem: Exception | None = connection.recv()
        if problem is not None:
            raise problem
        return image.with_array(mask_process.receive_array(connection))


def _kill_peer(connection: Any) -> None:
    """Kill the process that listens at the other end, with all that it started, where the system names it (Linux)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return
    with connection, socket.socket(fileno=os.dup(connection.fileno())) as to_it:
        pid, *_ = struct.unpack("3i", to_it.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    with suppress(ProcessLookupError):
        if pid:  # 0 of one in another namespace, as of a container: that would be the own group here
            os.killpg(pid, signal.SIGKILL)


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Return with what a process ended that has closed its connection; None if it goes on all the same."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(END_S)
    return None


def _end(address: str) -> None:
    """End the process that was started here for that address, if any, with all that it started."""
    process = _PROCESSES.pop(address, None)
    if process:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin
        with suppress(BrokenPipeError):
            process.stdin.close()


@atexit.register
def _end_all() -> None:
    for address in [*_PROCESSES]:
        _end(address)

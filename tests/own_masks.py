"""Functions of a user's own that find lungs, as the tests' settings name them, and what they leave in a log.

The log is the folder in the variable OWN_MASKS_LOG: a file per event, named `<event>-<process>-<number>`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import psutil

from dskprep.errors import Refusal
from dskprep.volume import Volume


def log(event: str) -> Path:
    path = Path(os.environ["OWN_MASKS_LOG"]) / f"{event}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    path.touch()
    return path


def logged(folder: Path, event: str) -> list[int]:
    """The processes that left an event in the log."""
    return [int(path.name.split("-")[1]) for path in folder.glob(f"{event}-*")]


def halves(image: Volume) -> Volume:
    """The right half of the array as the right lung, where the HU are those of lung."""
    is_left = np.arange(image.shape[2]) >= image.shape[2] // 2
    is_lung = (image.array > -950) & (image.array < -500)
    return image.with_array(is_lung * np.where(is_left, 2, 1))


def clipped(image: Volume) -> Volume:
    """The same, by a function that clips its input in place, as networks do to their window of HU."""
    np.clip(image.array, -1000, -300, out=image.array)
    return halves(image)


def written_over(image: Volume) -> Volume:
    """The same, written over its input."""
    image.array[...] = halves(image).array
    return image


class Loaded:
    """Says when it is loaded."""

    def __init__(self) -> None:
        log("loaded")
        print("a line of a network's on standard output")

    def __call__(self, image: Volume) -> Volume:
        return halves(image)


def wait_for_end(processes: list[int]) -> bool:
    """Whether these processes have ended, or do so soon."""
    there = []
    for pid in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            there.append(psutil.Process(pid))
    return not psutil.wait_procs(there, timeout=600)[1]


class Meeting(Loaded):
    """Waits for another call to join it, for OWN_MASKS_MEET_S at most; `met` in the log says that one did."""

    def __call__(self, image: Volume) -> Volume:
        mine = log("inside")
        until = time.monotonic() + float(os.environ["OWN_MASKS_MEET_S"])
        while time.monotonic() < until and not logged(mine.parent, "met"):
            if len(logged(mine.parent, "inside")) > 1:
                log("met")
            time.sleep(0.01)
        mine.unlink()
        return super().__call__(image)


class KillsItsWorker(Loaded):
    """In the first process that loads it: kills the worker that asks, and never answers."""

    def __call__(self, image: Volume) -> Volume:
        if set(logged(Path(os.environ["OWN_MASKS_LOG"]), "loaded")) == {os.getpid()}:
            os.kill(os.getppid(), signal.SIGKILL)
            threading.Event().wait()
        return super().__call__(image)


class HoldsPython(Loaded):
    """In the first process that loads it: says so, and then never lets another thread of its process go on."""

    def __call__(self, image: Volume) -> Volume:
        if set(logged(Path(os.environ["OWN_MASKS_LOG"]), "loaded")) == {os.getpid()}:
            log("holds")
            re.match(r"(a+)+$", "a" * 60 + "b")
        return super().__call__(image)


class Unspeakable(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise Unspeakable


def unspeakable(_image: Volume) -> Volume:
    raise Unspeakable


def interrupted(_image: Volume) -> Volume:
    raise KeyboardInterrupt


class Dies(Loaded):
    """Ends its process in the way of the variable OWN_MASKS_END: the number of a signal."""

    def __call__(self, _image: Volume) -> Volume:
        os.kill(os.getpid(), int(os.environ["OWN_MASKS_END"]))
        raise AssertionError


class OutOfMemoryError(RuntimeError):
    """As PyTorch's, which is known by its name."""


class CudaError(OutOfMemoryError):
    pass


def without_memory(_image: Volume) -> Volume:
    raise MemoryError("Unable to allocate 9 GiB")


def without_gpu_memory(_image: Volume) -> Volume:
    raise CudaError("CUDA out of memory. Tried to allocate 20.00 MiB")


def swapped(image: Volume) -> Volume:
    mask = halves(image).array
    return image.with_array(np.choose(mask, [0, 2, 1]))


def unsided(image: Volume) -> Volume:
    return image.with_array((halves(image).array > 0) * np.uint8(3))


def moved(image: Volume) -> Volume:
    affine = image.affine.copy()
    affine[0, 3] += 10
    return Volume(halves(image).array, affine)


def leaves(_image: Volume) -> Volume:
    sys.exit("no licence")


def refuses(_image: Volume) -> Volume:
    raise Refusal("not-ct", "not to my liking")


def environment(image: Volume) -> Volume:
    log("slot" + os.environ["DSKPREP_MASK_SLOT"])
    log("threads" + os.environ["OMP_NUM_THREADS"])
    return halves(image)


class Uncallable:
    pass

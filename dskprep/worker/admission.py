"""How much memory a patient needs, and whether a worker has it: known before it is used."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dskprep.errors import Refusal
from dskprep.preparation.recipes import recipe
from dskprep.series.series import Series
from dskprep.settings import PrepConfig
from dskprep.source.files import BLOCK_BYTES, HEADER_BYTES, READ_AHEAD, CaseFiles
from dskprep.volume import Triple

BASE_BYTES = 260_000_000
"""Memory of a worker process that has imported and compiled everything, before its first patient."""
USABLE_SHARE = 0.9
"""Share of a worker's limit that is planned with: Dask kills a worker at 0.95."""
FIXED_BYTES = 60_000_000
"""Memory that a patient of any size needs: the coarse grid of the lungs, planes in float, codecs."""
LEVELS_SHARE = 8 / 7
"""What all levels of an image take of what the first one takes: each has an eighth of the voxels of the one before."""
ARCHIVE_GROWTH = 3
"""An archive is estimated to need this many times its size, until its first series is decoded."""


def usable_bytes(limit_bytes: int) -> int:
    """Return what the patients of a worker with that memory limit may use together."""
    return max(0, int(limit_bytes * USABLE_SHARE) - BASE_BYTES)


def estimate_bytes(
    shape: tuple[int, int, int],
    spacing_mm: Triple,
    config: PrepConfig,
    *,
    is_held: bool = True,
    encoded_bytes: int | None = None,
) -> int:
    """Return the peak memory of preparing a series of that shape (z, y, x) and spacing.

    Its files are included, all of them or, unless they are held at once (`is_held`), their headers and those few that
    are read ahead. Those of a volume file, of which `encoded_bytes` are held, stay until the last plane is decoded.
    """
    n_native = math.prod(shape)
    n_output = n_native * math.prod(old / new for old, new in zip(spacing_mm, config.spacing_mm, strict=True))
    native = 2 * n_native if is_held else shape[0] * HEADER_BYTES + 4 * READ_AHEAD * n_native // shape[0]
    if encoded_bytes is not None:
        native = encoded_bytes + 2 * BLOCK_BYTES + (0 if recipe(config.recipe).streams else 2 * n_native)
    need = recipe(config.recipe).memory(n_native, n_output, config)
    return FIXED_BYTES + int(max(native + need.computing, need.encoding * (LEVELS_SHARE if config.levels > 1 else 1)))


def series_bytes(found: Series, config: PrepConfig, *, is_held: bool) -> int:
    """Return the peak memory of preparing a series that was found (see `estimate_bytes`)."""
    grid, encoded_bytes = found.grid, found.encoded_bytes
    return estimate_bytes(grid.shape, grid.spacing, config, is_held=is_held, encoded_bytes=encoded_bytes)


class Underestimated(Exception):
    """A patient turned out to need more than it was admitted with, and more than is free now.

    `need_bytes` is its new need; `is_held` says whether that holds all of its files at once.
    """

    def __init__(self, need_bytes: int, *, is_held: bool = True) -> None:
        super().__init__(need_bytes)
        self.need_bytes, self.is_held = need_bytes, is_held


@dataclass(eq=False)
class Ticket:
    """The memory of one admitted patient.

    `held_bytes` are held all the time: its files, or with `is_held` false only their headers, and once it is computed
    its encoded objects. `need_bytes` are used while it is computed.
    """

    need_bytes: int = 0
    held_bytes: int = 0
    is_held: bool = True


class Ledger:
    """The memory of one worker process, shared by the patients in its slots.

    A patient is admitted once, before its files are read, and never waits again, so patients cannot wait for one
    another. It is admitted if everything that is held fits beside the largest need of any one patient, since only one
    is computed at a time.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._tickets: list[Ticket] = []
        self._changed = threading.Condition()

    @property
    def taken_bytes(self) -> int:
        """The most that the admitted patients use at any one time."""
        with self._changed:
            return self._taken_bytes(self._tickets)

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """Yield a ticket for one patient; its memory is given back at the end."""
        ticket = Ticket()
        try:
            yield ticket
        finally:
            with self._changed:
                if ticket in self._tickets:
                    self._tickets.remove(ticket)
                self._changed.notify_all()

    def admit(self, ticket: Ticket, read_bytes: int, need_bytes: int) -> None:
        """Wait until a patient fits. Raises Refusal `too-large` if it never will."""
        need_bytes = max(need_bytes, read_bytes)
        self.check(need_bytes)
        ticket.need_bytes, ticket.held_bytes = need_bytes, read_bytes
        with self._changed:
            self._changed.wait_for(lambda: self._taken_bytes([*self._tickets, ticket]) <= self.total_bytes)
            self._tickets.append(ticket)

    def check(self, need_bytes: int) -> None:
        """Raise Refusal `too-large` if a patient with that need will never fit."""
        if need_bytes > self.total_bytes:
            raise self.refusal(need_bytes)

    def refusal(self, need_bytes: int) -> Refusal:
        """Return the refusal of a patient with that need."""
        return Refusal(
            "too-large",
            f"needs {mib(need_bytes)}, and a worker has {mib(self.total_bytes)} for patients; run again with "
            f"--retry refused --memory-limit {limit_for(need_bytes)} and as many --workers as that allows",
            need_bytes=need_bytes,
        )

    def grow(self, ticket: Ticket, need_bytes: int) -> None:
        """Raise the need of an admitted patient.

        Raises Underestimated if that does not fit beside the others now. The patient must then give up its ticket and
        be admitted again with that need; if it waited here, two patients could wait for each other.
        """
        with self._changed:
            others = [t for t in self._tickets if t is not ticket]
            if need_bytes > ticket.need_bytes and sum(t.held_bytes for t in others) + need_bytes > self.total_bytes:
                raise Underestimated(need_bytes, is_held=ticket.is_held)
            ticket.need_bytes = max(ticket.need_bytes, need_bytes)

    def finish(self, ticket: Ticket, held_bytes: int) -> None:
        """Note that a patient is computed: from now on it holds its encoded objects only."""
        with self._changed:
            ticket.need_bytes = ticket.held_bytes = held_bytes
            self._changed.notify_all()

    @staticmethod
    def _taken_bytes(tickets: list[Ticket]) -> int:
        beyond_files = max((t.need_bytes - t.held_bytes for t in tickets), default=0)
        return sum(t.held_bytes for t in tickets) + beyond_files


def admit(files: CaseFiles, config: PrepConfig, ledger: Ledger, ticket: Ticket, need: Underestimated | None) -> None:
    """Wait until the files of a case may be read: all held at once if there can be memory for that, else one by one.

    `ticket.is_held` says which of the two. The case is admitted with the `need` of an earlier try, else with an
    estimate made from its largest file. Raises Refusal `too-large` if it never fits.
    """
    if not (files.is_archive or files.is_volume) and FIXED_BYTES + files.largest_bytes > ledger.total_bytes:
        raise ledger.refusal(FIXED_BYTES + files.n_bytes)
    if need is None or need.is_held:
        need_bytes = max(files.n_bytes, need.need_bytes if need else least_bytes(files, config, is_held=True))
        if need_bytes <= ledger.total_bytes or not may_reread(files, config):
            ledger.admit(ticket, files.n_bytes, need_bytes)
            return
        need_bytes = least_bytes(files, config, is_held=False)
    else:
        need_bytes = need.need_bytes
    ticket.is_held = False
    ledger.admit(ticket, min(need_bytes, len(files.entries) * HEADER_BYTES), need_bytes)


def least_bytes(files: CaseFiles, config: PrepConfig, *, is_held: bool) -> int:
    """Return what a case is estimated to need, before its files are read."""
    if files.is_archive:
        return ARCHIVE_GROWTH * files.n_bytes + FIXED_BYTES
    if files.guess is None:
        return 0
    encoded_bytes = None if not files.is_volume else files.n_bytes if is_held else 0
    return estimate_bytes(*files.guess, config, is_held=is_held, encoded_bytes=encoded_bytes)


def may_reread(files: CaseFiles, config: PrepConfig) -> bool:
    """Whether the files need not be held: the recipe is done with a slice once it is resampled.

    Slices are read again one by one, a volume file piece by piece.
    """
    return not files.is_archive and recipe(config.recipe).streams and (files.is_volume or files.is_one_slice_each)


def mib(n_bytes: int) -> str:
    """Return a number of bytes in MiB, rounded up."""
    return f"{math.ceil(n_bytes / 2**20)} MiB"


def limit_for(need_bytes: int) -> str:
    """Return the memory limit that a worker needs for such a patient, as Dask and the command line take it."""
    return f"{(need_bytes + BASE_BYTES) / USABLE_SHARE / 2**30 + 0.1:.1f}GiB"

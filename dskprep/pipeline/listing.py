"""The jobs of a run, listed ahead of the work by a thread, so that their total is known early.

The source is listed once. What is found waits in memory, and beyond one block in a temporary file without a name, so
that memory stays flat however many patients there are.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import IO, Self

from dskprep import storage
from dskprep.dataset import store
from dskprep.dataset.index import Names
from dskprep.dataset.record import GOOD
from dskprep.errors import DamagedDataset, InfrastructureError
from dskprep.pipeline.account import Summary
from dskprep.source.case import Case, digest, key_of, shorter_key
from dskprep.worker.patient import Job

BLOCK = 512
"""Jobs that wait in memory. When there are more, they go to the file."""
JOIN_S = 5.0
"""How long a request that hangs may hold up the end of a run, in seconds."""


class Listing:
    """The cases of a source that are to be done, as jobs. Iterate over it, within its context, once.

    The others are done before, and counted as such. A case is done if it has a record with a status other than those
    of `again`. It is not if one of its records is undone, nor if it was not chosen before and is chosen now: `found`
    are the records of the dataset. `is_counted` says that the account has its cases already. If the source cannot be
    listed to its end, the iteration raises the error after the jobs that were found. `hear_before` is called with each
    case that is done, and its status.
    """

    def __init__(
        self,
        cases: Iterator[Case],
        summary: Summary,
        again: tuple[str, ...],
        found: Names,
        *,
        is_counted: bool = False,
        hear_before: Callable[[Case, str], None] | None = None,
    ) -> None:
        self._cases, self._summary, self._again = cases, summary, again
        self._found, self._undone, self._is_counted = found, found.undone, is_counted
        self._hear_before = hear_before
        self._empty = {name.key: name for name in found.known.of_input(digest([])) if name.status not in GOOD}
        self._changed = threading.Condition()  # guards all that follows
        self._latest: list[Job] = []
        self._file: IO[bytes] | None = None
        self._n_in_file, self._read_at = 0, 0
        self._error: Exception | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._list, name="listing", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listing. From here on nothing more is counted."""
        with self._changed:
            self._is_over = True
            if self._file:
                self._file.close()
        self._thread.join(JOIN_S)

    def __iter__(self) -> Iterator[Job]:
        while block := self._next_block():
            yield from block
        if self._error:
            raise self._error

    def _next_block(self) -> list[Job]:
        """Return the jobs that were listed first of those that wait; wait for one if there is none. [] at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._n_in_file or self._latest or self._is_over)
            if not (self._file and self._n_in_file):
                latest, self._latest = self._latest, []
                return latest
            self._file.seek(self._read_at)
            block: list[Job] = pickle.loads(zlib.decompress(pickle.load(self._file)))
            self._read_at = self._file.tell()
            self._n_in_file -= 1
            return block

    def _list(self) -> None:
        """List the source; the thread."""
        error: Exception | None = None
        try:
            for case in self._cases:
                with self._changed:
                    if self._is_over:
                        return
                    self._add(case)
        except Exception as raised:
            error = raised
        with self._changed:
            if not self._is_over:
                self._summary.account.is_listed = error is None
            self._error, self._is_over = error, True
            self._changed.notify()

    def _add(self, case: Case) -> None:
        account, case = self._summary.account, case.bare()
        account.inputs -= self._is_counted
        self._forget_empty(case.url)
        case = self._as_before(case)
        names = self._found.known.get(case.key)
        status, further = store.status_of(names, case.key, case.digest)
        is_undone = any((n.key, n.digest) in self._undone for n in names if n.digest == case.digest)
        was_passed_over = status == "set-aside" and (case.key, case.digest) in self._found.not_chosen
        is_runner_up = status == "set-aside" and case.chosen is not None and case.chosen.is_runner_up
        is_promoted = is_runner_up or (was_passed_over and case.chosen is not None)
        if status is None or status in self._again or is_undone or is_promoted:
            account.inputs += 1
            # what was made of a line before is kept while that cannot be listed
            stale = () if case.problem else tuple(names)
            self._latest.append(Job(case, stale, self._summary.run_id, self._summary.fingerprint))
            if len(self._latest) == BLOCK:
                self._to_file()
            self._changed.notify()
        else:
            others = [n for n in names if n.digest != case.digest and n.status not in GOOD]
            leftover = [n for n in others if n.digest == digest([]) or (n.key, n.digest) in self._found.changed]
            if leftover:  # of the time when it could not be listed, or when its files changed under a run that slept
                store.forget(self._summary.target, leftover)
            account.add_before(status, further)
            if self._hear_before:
                self._hear_before(case, status)

    def _forget_empty(self, url: str) -> None:
        """Delete what was recorded of the folders above a case while they were empty, or could not be listed."""
        source, target = self._summary.source.rstrip("/"), self._summary.target
        above = storage.above(url) if self._empty and url.startswith(f"{source}/") else []
        for folder in above[: len(url.split("/")) - len(source.split("/")) - 1]:
            if name := self._empty.get(key_of(folder[len(source) + 1 :])):
                with suppress(FileNotFoundError, DamagedDataset):
                    if store.read_record(target, name).url == folder:
                        store.forget(target, [name])
                        del self._empty[name.key]

    def _as_before(self, case: Case) -> Case:
        """Return a case under the key under which it is written, if it now has a longer one.

        So it is where another input of its stem came later and is listed first, as P1.tar beside P1.zip.
        """
        plain = shorter_key(case)
        names = self._found.known.get(plain) if plain and not self._found.known.get(case.key) else []
        status, _ = store.status_of(names, plain, case.digest)
        return replace(case, key=plain) if status == "written" and status not in self._again else case

    def _to_file(self) -> None:
        try:
            self._file = self._file or tempfile.TemporaryFile(prefix="dskprep-")  # noqa: SIM115  (closed by __exit__)
            self._file.seek(0, os.SEEK_END)
            pickle.dump(zlib.compress(pickle.dumps(self._latest), 1), self._file)
            self._file.flush()
        except OSError as error:
            where = tempfile.tempdir or "the temporary folder"
            raise InfrastructureError(
                f"the list of patients does not fit into {where} ({error.strerror}); make room there, or set TMPDIR to "
                "another folder"
            ) from error
        self._latest = []
        self._n_in_file += 1

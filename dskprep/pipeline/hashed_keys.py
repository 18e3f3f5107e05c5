"""Keys that do not tell what the patients' folders are called: keyed digests, and the file that says which is whose.

A key is made of the key that the case would have otherwise, so the same patients get the same keys from any copy of
the source, and a run that was stopped goes on. Who has the key of the dataset and a list of names can make them too.
"""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import io
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dskprep import storage
from dskprep.dataset.identity import Identities
from dskprep.errors import DskprepError, InfrastructureError, UsageError
from dskprep.source.case import Case
from dskprep.source.label_files import LabelFile

KEYS = (None, "folder", "hashed")
"""What may be asked for: what the dataset has, the names of folders, or keyed digests."""
COLUMNS = ["key", "source"]
"""Columns of the mapping."""
LOCK_S = 10.0
"""How long to wait for the lock of the mapping."""
LISTED = "the source cannot be listed to its end"
NO_MAPPING = (
    "the keys are hashed and no --mapping is given: this run does not write which key is whose; the same command with "
    "--mapping FILE does, later too, and does no patient again"
)


log = logging.getLogger("dskprep")


class Mapping:
    """The CSV file, outside of the dataset, that says of which source each key is. It grows from run to run.

    A key has a line for each place that it was made of: after a move, or where two sources have a folder of one name,
    of which one is refused. No run takes away what an earlier one has noted.
    """

    def __init__(self, place: str | os.PathLike[str], source: str, target: str) -> None:
        """Read what is there. Raises UsageError if the file lies in the dataset or source, or is of another kind."""
        self._place = storage.absolute(place)
        for name, other in (("dataset", target), ("source", source)):
            if storage.is_within(self._place, other):
                raise UsageError(f"--mapping: expected a file outside of the {name} {other}, found {place}; move it")
        self._lines = self._read()
        self._is_changed = not self._lines

    def _read(self) -> set[tuple[str, str]]:
        place = self._place
        try:
            lines = list(csv.reader(io.StringIO(storage.read(place).decode(errors="surrogateescape"), newline="")))
        except FileNotFoundError:
            return set()
        except (ValueError, csv.Error) as error:
            raise UsageError(f"--mapping: {place}: is no CSV file of UTF-8 ({error}); choose another name") from error
        if lines[:1] != [COLUMNS] or any(len(line) != 2 for line in lines):
            raise UsageError(f"--mapping: {place}: expected the columns key,source, found others; choose another name")
        return {(key, where) for key, where in lines[1:]}

    def add(self, key: str, where: str) -> None:
        """Note of which source a key is."""
        if (key, where) not in self._lines:
            self._lines.add((key, where))
            self._is_changed = True

    def write(self) -> None:
        """Write the file, if there is anything new, with what another run has noted in it since."""
        if not self._is_changed:
            return
        with _alone(self._place):
            try:
                self._lines |= self._read()
            except UsageError as error:  # another file came in its place
                raise InfrastructureError(str(error)) from error
            text = io.StringIO(newline="")
            csv.writer(text).writerows([COLUMNS, *sorted(self._lines)])
            storage.write_private(self._place, text.getvalue().encode(errors="surrogateescape"))
        self._is_changed = False


@contextmanager
def _alone(place: str) -> Iterator[None]:
    """Let no other run of this machine write the file meanwhile; its folder is locked, so that no file is left.

    A run holds the lock for less than a second. Whoever may read the folder can lock it too, and does not stop a run.
    """
    folder = -1
    if not storage.is_bucket(place):
        with suppress(OSError):  # there is none yet, or it cannot be locked, as on some network file systems
            folder = os.open(Path(place).parent, os.O_RDONLY)
            if not _locked(folder):
                log.warning(f"{place}: is written, though another program keeps its folder locked")
    try:
        yield
    finally:
        if folder >= 0:
            os.close(folder)


def _locked(folder: int) -> bool:
    """Lock an open folder. Returns False if another program has it for LOCK_S."""
    until = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        else:
            return True


@contextmanager
def kept(mapping: Mapping | None) -> Iterator[None]:
    """Write the mapping, if there is one, after the block, and before it: what cannot be written is said at once."""
    if mapping:
        mapping.write()
    try:
        yield
    finally:
        if mapping:
            mapping.write()


def hash_keys(cases: Iterator[Case], identities: Identities, mapping: Mapping | None) -> Iterator[Case]:
    """Give each case a hashed key, and note it. Raises InfrastructureError, without any name, if listing fails."""
    try:
        for case in cases:
            key, place = identities.hashed_key(case.key), identities.digest("place", case.url)
            if mapping:
                mapping.add(key, case.url)
            yield dataclasses.replace(case, key=key, place=str(place), is_hashed=True)
    except DskprepError as error:
        raise without_names(error, LISTED) from None


def without_names(error: DskprepError, what: str) -> InfrastructureError:
    """Return what is told of an error of a source, which names folders and files; `what` could not be done."""
    return InfrastructureError(f"{what} ({type(error).__name__}); `dskprep plan` says where and why")


def hash_sources(files: Iterator[LabelFile], identities: Identities) -> Iterator[LabelFile]:
    """Give each label file a hashed key, and a digest of where it lies, by which its record knows it again.

    Raises InfrastructureError, without any name, if listing fails.
    """
    try:
        for file in files:
            key, place = identities.digest("label", file.key), identities.digest("label-place", file.url)
            yield dataclasses.replace(file, key=str(key), place=str(place), is_hashed=True)
    except DskprepError as error:
        raise without_names(error, LISTED) from None

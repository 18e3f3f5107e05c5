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
import stat
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
LOCK_S = 60.0
"""How long to wait for another run that writes the mapping; it takes less than a second."""
LOCK_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
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
    """Let no other run of this machine write the file meanwhile.

    A file beside it is locked, which nobody else may open: who may read the folder could lock that. It is deleted
    while it is locked. Raises InfrastructureError if another program keeps it locked.
    """
    folder, _, name = place.rpartition("/")
    lock = f"{folder}/.{name}.dskprep-lock"
    held = -1 if storage.is_bucket(place) else _locked(place, lock)
    try:
        yield
    finally:
        if held >= 0:
            with suppress(OSError):
                Path(lock).unlink()
            os.close(held)


def _locked(place: str, lock: str) -> int:
    """Lock a file, and return it open; -1 where no file can be made or locked, as on some network file systems."""
    until, is_told = time.monotonic() + LOCK_S, False
    while True:
        is_new = not os.path.lexists(lock)
        try:
            opened = os.open(lock, LOCK_FLAGS | (os.O_CREAT | os.O_EXCL if is_new else 0), 0o600)
        except OSError as error:
            if isinstance(error, FileExistsError if is_new else FileNotFoundError):
                continue  # another run has just made or deleted it
            return -1
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(opened)
            if not (is_new or _is_ours(found)):  # some disks give all files one mode
                os.close(opened)
                raise UsageError(f"{place}: expected an empty file of yours at {lock}, found another; move it away")
            if os.path.samestat(found, Path(lock).stat()):
                return opened
        except (BlockingIOError, FileNotFoundError):  # another run has it, or has just deleted it
            pass
        except OSError:
            os.close(opened)
            return -1
        os.close(opened)
        if time.monotonic() > until:
            raise InfrastructureError(f"{place}: another program has kept {lock} locked for {LOCK_S:.0f} s; end it")
        if not is_told:
            log.warning(f"waiting for another run that writes {place}")
            is_told = True
        time.sleep(0.05)


def _is_ours(found: os.stat_result) -> bool:
    """Tell whether this is a lock that a run of this user has made."""
    is_private = stat.S_ISREG(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    return is_private and found.st_size == 0 and found.st_uid == os.geteuid()


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

"""Read what should be in a dataset, and tell what is wrong with it. A store may give one wrong answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dskprep import storage
from dskprep.dataset.facts import StoredObject
from dskprep.dataset.label_record import LabelRecordName
from dskprep.dataset.record import RecordName
from dskprep.errors import DamagedDataset

Name = TypeVar("Name", RecordName, LabelRecordName)
Found = TypeVar("Found")

TRIES = 3
"""Times that something is read before it counts as damaged: that deletes it."""

CANNOT_BE_READ = "cannot be read: "
"""Begins what is said of such an object, after its name."""


def read_record(target: str, name: Name, read: Callable[[str, Name], Found]) -> Found | str | storage.UnreadableFile:
    """Return a record, what is wrong with it in all of TRIES, or the error if it cannot be read."""
    fault: str | storage.UnreadableFile = ""
    for _ in range(TRIES):
        try:
            return read(target, name)
        except DamagedDataset as error:
            fault = str(error)
        except FileNotFoundError:
            fault = f"{name.path} is missing"
        except storage.UnreadableFile as error:
            fault = error
    return fault


def read_object(url: str, expected: StoredObject, pending: StoredObject | None = None) -> tuple[bytes, str]:
    """Read an object; return its content, and what is wrong with it in all of TRIES, or ""."""
    for _ in range(TRIES):
        content, fault = _read_once(url, expected, pending)
        if not fault:
            break
    return content, fault


def _read_once(url: str, expected: StoredObject, pending: StoredObject | None) -> tuple[bytes, str]:
    """Do so once. It may be as an upgrade writes it. On a disk one of another size is not read: it may be all holes."""
    entry = None if storage.is_bucket(url) else storage.entry_of(url)
    if entry and entry.size not in (expected.n_bytes, pending and pending.n_bytes):
        return b"", f"has {entry.size} bytes instead of {expected.n_bytes}"
    try:
        content = storage.read(url)
    except FileNotFoundError:
        return b"", "is missing"
    except storage.UnreadableFile as error:
        return b"", CANNOT_BE_READ + str(error).removeprefix(f"{url}: ")
    if (found := StoredObject.of(content)) == pending:
        return content, ""
    if found.n_bytes != expected.n_bytes:
        return content, f"has {found.n_bytes} bytes instead of {expected.n_bytes}"
    return content, "" if found == expected else "was altered"

"""Work on the records of a dataset while other processes may change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dskprep import storage
from dskprep.dataset import store
from dskprep.dataset.record import Record, RecordName
from dskprep.errors import DamagedDataset, InfrastructureError

LISTINGS = 3
"""How often the records are listed and read, if another process changes them meanwhile, before this is an error."""

R = TypeVar("R")


def undisturbed(target: str, work: Callable[[], R]) -> R:
    """List and read records, again if another process changes them meanwhile.

    Raises InfrastructureError if they change each time.
    """
    changed = None
    for _ in range(LISTINGS):
        try:
            return work()
        except storage.ObjectChanged as error:
            changed = error
    raise InfrastructureError(f"{target}: its records change while they are read: {changed}") from changed


def record_of(target: str, name: RecordName) -> Record:
    """Read a record that was listed. Raises DamagedDataset if it is damaged, or was deleted since."""
    try:
        return store.read_record(target, name)
    except FileNotFoundError as error:
        gone = f"the record of {name.key} is gone since this dataset was opened"
        raise DamagedDataset(f"{target}: {gone}; open it again") from error

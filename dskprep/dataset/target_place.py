"""Where a dataset may begin: in an empty place, never within another one, and not of what is one."""

from __future__ import annotations

import json

from dskprep import storage
from dskprep.dataset import own
from dskprep.errors import UsageError


def refuse_inside(place: str) -> None:
    """Raise UsageError if a place lies inside a dataset, where nothing but the dataset is written."""
    for above in storage.above(place):
        if _is_dataset(above):
            raise UsageError(f"{place}: lies inside the dataset {above}; choose a place outside it")


def refuse_as_source(place: str) -> None:
    """Raise UsageError if a place is a dataset, whose chunks are no scans. One that only holds a dataset is none."""
    if _is_dataset(place):
        raise UsageError(
            f"{place}: is a dataset of dskprep; SOURCE is the place of the scans that it is made of, TARGET the dataset"
        )


def refuse_file(place: str, what: str) -> None:
    """Raise UsageError if a place on a disk, or what it would lie in, is no folder; `what` it is to be."""
    places = [] if storage.is_bucket(place) else [place, *storage.above(place)]
    there = next((each for each in places if storage.exists(each)), None)
    if there and not storage.is_folder(there):
        raise UsageError(f"{there}: expected a folder as the {what}, found a file or device; choose another {what}")


def check(target: str) -> None:
    """Raise UsageError unless the target is a dataset, or an empty or an absent place where one can begin.

    In a folder, hidden files count for nothing: an operating system leaves some (`.DS_Store`), and so does a run that
    died while it began. No dataset begins within another one, which would take it for its own.
    """
    url = storage.join(target, "dataset.json")
    if storage.exists(url):
        return
    refuse_inside(target)
    files, is_local = storage.listing(target), not storage.is_bucket(target)
    names = [e.name for e in files if not (is_local and (e.name.startswith(".") or own.is_unfinished(e.name)))]
    names += storage.folders(target)
    refuse_file(target, "target")
    if names and not storage.exists(url):  # asked again: another run may have begun the dataset before the listing
        raise UsageError(
            f"{target}: expected an empty or a new place, or a dataset; found {names[0]} and no dataset.json; choose "
            "another target, such as a new folder in it"
        )


def mixes_capitals(target: str) -> bool:
    """Tell whether a dataset lies on a disk that takes capitals and small letters for one, as those of macOS do."""
    return not storage.is_bucket(target) and storage.exists(storage.join(target, "DATASET.JSON"))


def _is_dataset(place: str) -> bool:
    """Tell whether a place holds a dataset of any format, or a damaged one. One that may not be read does not count."""
    try:
        content = json.loads(storage.read_metadata(storage.join(place, "dataset.json")))
    except (ValueError, RecursionError):
        return storage.is_folder(storage.join(place, "records"))
    except OSError:  # of rights to a part of a bucket the folders above are no part
        return False
    return isinstance(content, dict) and content.keys() >= {"format", "settings", "digest"}

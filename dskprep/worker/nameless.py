"""Records of a dataset with hashed keys: without names of files and folders, and without text that may hold some."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dskprep.dataset.facts import Aside
from dskprep.dataset.label_record import LabelRecord
from dskprep.dataset.record import Record
from dskprep.errors import LABEL_REASONS, REASONS, SET_ASIDE
from dskprep.labels.values import Segment
from dskprep.source.label_files import LabelFile
from dskprep.worker.folder_words import without_folder
from dskprep.worker.label_names import name_by_file

if TYPE_CHECKING:
    import pandas as pd

WHERE_MORE_IS = "`dskprep show` of its source says more"
"""Ends what such a record says; which source that is stands in the file of --mapping."""
KEPT = ("written", "killed")
"""Statuses whose messages hold counts alone, or always the same words."""

_PLACE = re.compile(r'  File "[^"\n]+\.py", line \d+, in [\w<>.]+')
"""A line of a traceback that says where; the others hold code, or what the error says."""


def without_names(record: Record) -> Record:
    """Return the record of a series without its source, and with its reason in general words."""
    aside = record.aside and Aside(record.aside.counts)
    message = record.message if record.status in KEPT else _in_general(record.reason)
    return record.changed(url="", aside=aside, traceback=_places(record.traceback), message=message)


def label_without_names(record: LabelRecord) -> LabelRecord:
    """Return the record of a label source with all reasons in general words. Its place is a keyed digest already."""
    labels = tuple(
        label if label.is_written else label.changed(message=_in_general(label.reason)) for label in record.labels
    )
    message = record.message if record.status in KEPT else _in_general(record.reason)
    return record.changed(labels=labels, traceback=_places(record.traceback), message=message)


def segments_without_key(
    segments: Sequence[Segment], file: LabelFile, folders: Sequence[str], *, is_mask: bool
) -> tuple[Segment, ...]:
    """Return the segments of a file without the name of its volume in those that are called as the file is.

    `folders` are those that the volume was called by; without any it was by the file itself, and such a segment is
    called mask. In a folder, only a mask volume is called as its file is; its own name has what the folders leave.
    """
    if folders and not is_mask:
        return tuple(segments)
    names = (file.file, name_by_file(file))

    def nameless(name: str) -> str:
        return (without_folder(name, folders) if folders else "") or "mask"

    return tuple(replace(each, name=nameless(each.name)) if each.name in names else each for each in segments)


def points_without_names(points: pd.DataFrame) -> pd.DataFrame:
    """Return points with the columns that are known to hold numbers; what others hold is not known."""
    kept = points[[name for name in ("key", "image", "x", "y", "z", "diameter_mm") if name in points]]
    if "class" not in points:
        return kept
    return kept.assign(**{"class": points["class"].where(points["class"].astype(str).str.fullmatch(r"\d{1,2}"))})


def _in_general(reason: str | None) -> str:
    known = (REASONS | SET_ASIDE | LABEL_REASONS).get(reason or "", f"failed ({reason})")
    return f"{known}; {WHERE_MORE_IS}"


def _places(traceback: str | None) -> str | None:
    """Return the lines of a traceback that say where."""
    return traceback and "\n".join(line for line in traceback.splitlines() if _PLACE.fullmatch(line))

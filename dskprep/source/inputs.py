"""Which files of a listing may be read as those of a patient, which are archives, and which do not count, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dskprep.storage import Entry

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Names of files that hold the files of one case."""
MARKER_SUFFIX = "_$folder$"
"""Ends the names of the empty objects by which Hadoop and EMR mark a folder."""

_UNFINISHED = re.compile(r"\..+\.(dcm|dicom|ima)\.(\w{6}|part|partial|tmp|filepart|download)", re.IGNORECASE)
"""The hidden name under which rsync and others receive a file: it may be a slice that never came to its end."""


def inputs(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries that may be DICOM or volume files: not hidden, no archives, and no marks of folders."""
    return [e for e in entries if not (is_hidden(e.name) or is_archive(e.name) or is_marker(e.name))]


def archives(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries that are archives, and not hidden."""
    return [e for e in entries if is_archive(e.name) and not is_hidden(e.name)]


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def is_marker(name: str) -> bool:
    return name.endswith(MARKER_SUFFIX)


def is_hidden(path: str) -> bool:
    folder, _, name = f"/{path}".rpartition("/")
    is_in_hidden = (
        "/." in f"{folder}/" or "/__MACOSX/" in f"{folder}/"
    )  # what macOS puts into archives beside the files
    return is_in_hidden or (name.startswith(".") and not _UNFINISHED.fullmatch(name))

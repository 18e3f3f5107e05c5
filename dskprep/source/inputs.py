"""Which files of a listing may be read as those of a patient, which are archives, and which do not count, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dskprep import storage
from dskprep.storage import Entry

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
"""Names of files that hold the files of one case."""
OTHER_ARCHIVE_SUFFIXES = tuple(
    ".7z .7z.001 .rar .zip.001 .zipx .tar.zst .tzst .tar.z .taz .tar.lz4 .tar.lz .tlz .tar.lzma .tar.lzo .tzo .tar.br "
    ".lzh .lha .arj .ace .cab .iso".split()
)
"""Names of archives of kinds that are not read: each is a case that is refused."""
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
    """Tell whether a name is that of an archive, also of a kind that is not read."""
    return name.lower().endswith(ARCHIVE_SUFFIXES + OTHER_ARCHIVE_SUFFIXES)


def is_packed(url: str) -> bool:
    """Tell whether a URL is called as archives are, also those that are not read, and is no folder of that name."""
    return is_archive(url) and not storage.is_folder(url)


def why_not_read(archive: str) -> str:
    """Say of an archive of a kind that is not read what is; "" of one that is read."""
    if archive.lower().endswith(ARCHIVE_SUFFIXES):
        return ""
    return (
        f"{archive}: expected an archive of a kind that is read ({' '.join(ARCHIVE_SUFFIXES)}), found one of another "
        "kind; unpack it, or pack it anew as one of these"
    )


def stem(path: str) -> str:
    """Return the path of an archive without the suffix that says so."""
    suffix = max((s for s in ARCHIVE_SUFFIXES + OTHER_ARCHIVE_SUFFIXES if path.lower().endswith(s)), key=len)
    return path[: -len(suffix)]


def is_marker(name: str) -> bool:
    return name.endswith(MARKER_SUFFIX)


def is_hidden(path: str) -> bool:
    folder, _, name = f"/{path}".rpartition("/")
    is_in_hidden = (
        "/." in f"{folder}/" or "/__MACOSX/" in f"{folder}/"
    )  # what macOS puts into archives beside the files
    return is_in_hidden or (name.startswith(".") and not _UNFINISHED.fullmatch(name))

"""The volume files of a folder: which files make one volume, and their voxels."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dskprep import storage
from dskprep.errors import Refusal
from dskprep.formats import names
from dskprep.formats.header import MAX_HEADER_BYTES, Header, damaged
from dskprep.formats.read import read_header
from dskprep.formats.voxels import FileBytes
from dskprep.storage import Entry


class Found(NamedTuple):
    """A volume file, first in `files`, with those that may hold its voxels if it is only a header."""

    files: tuple[Entry, ...]

    @property
    def name(self) -> str:
        return self.files[0].name


def split(url: str, entries: Iterable[Entry]) -> tuple[list[Found], list[Entry]]:
    """Part the files of a folder into volumes and all others; each volume with the files that may hold its voxels.

    These are called as their header is. A header is read only if there is none of that name.
    """
    entries = list(entries)
    data = [e for e in entries if names.is_part(e.name) and not names.is_volume(e.name)]
    found = [Found((e, *_data_of(url, e, data))) for e in entries if names.is_volume(e.name)]
    used = {e for volume in found for e in volume.files}
    return found, [e for e in entries if e not in used]


def files_at(url: str) -> list[Entry]:
    """Return the header of a volume and the files beside it that may hold its voxels; none if it is not there."""
    folder, _, name = url.rpartition("/")
    found, _ = split(folder, storage.listing(folder))
    return next((list(volume.files) for volume in found if volume.name == name), [])


def _data_of(url: str, header: Entry, data: list[Entry]) -> list[Entry]:
    if not names.has_own_header(header.name) or not data:
        return []
    stem = names.stem(header.name)
    beside = [e for e in data if names.stem(e.name) == stem]
    if beside:
        return beside
    try:
        head = storage.read_head(storage.join(url, header.name), MAX_HEADER_BYTES) if header.size else b""
        place = names.beside(header.name, read_header(head, header.name).data_file)
    except (Refusal, OSError, storage.ObjectChanged):  # it is met again when the volume is read
        return []
    return [e for e in data if e.name == place]


def open_volume(name: str, files: Mapping[str, FileBytes]) -> tuple[Header, FileBytes]:
    """Read the header of a volume, and find the file of its voxels among those of a case.

    Raises Refusal as `read_header` does; `bad-header` if the voxels should be in a file that is not there.
    """
    header = read_header(files[name].head(MAX_HEADER_BYTES), posixpath.basename(name))
    if not header.data_file:
        return header, files[name]
    place = names.beside(name, header.data_file)
    if place in files:
        return header, files[place]
    other = "a file elsewhere" if not place else "no such file here"
    raise damaged(
        header.where,
        f"expected its voxels in a file beside it ({' '.join(names.DATA_SUFFIXES)}), found {header.data_file[:80]!r}, "
        f"{other}; put the file there, and its name into the header",
    )

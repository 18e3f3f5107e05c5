"""The volume files of a folder: which files make one volume, and their voxels."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping

from dskprep import storage
from dskprep.errors import Refusal
from dskprep.formats import names
from dskprep.formats.header import MAX_HEADER_BYTES, Header, damaged
from dskprep.formats.read import read_header
from dskprep.formats.voxels import FileBytes
from dskprep.storage import Entry

Volume = tuple[Entry, ...]
"""A volume file, and after it those that may hold its voxels if it is only a header."""


def split(url: str, entries: Iterable[Entry]) -> tuple[list[Volume], list[Entry]]:
    """Part the files of a folder into volumes and all others."""
    entries = list(entries)
    data = _voxel_files(entries)
    found = [(e, *_voxels_of(url, e, data)) for e in entries if names.is_volume(e.name)]
    used = {e for volume in found for e in volume}
    return found, [e for e in entries if e not in used]


def files_at(url: str) -> list[Entry]:
    """Return the header of a volume and the files beside it that may hold its voxels; none if it is not there."""
    folder, _, name = url.rpartition("/")
    entries = storage.listing(folder)
    header = next((e for e in entries if e.name == name), None)
    return [header, *_voxels_of(folder, header, _voxel_files(entries))] if header else []


def _voxel_files(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Return the files that may hold voxels, by their names without suffix."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for e in entries:
        if names.is_part(e.name) and not names.is_volume(e.name):
            found[names.stem(e.name)].append(e)
    return found


def _voxels_of(url: str, header: Entry, data: Mapping[str, list[Entry]]) -> list[Entry]:
    """Return the files called as a header is; only if there are none, it is read to see which one it names."""
    beside = data.get(names.stem(header.name))
    if not data or not names.has_own_header(header.name):
        return []
    if beside:
        return beside
    try:
        head = storage.read_head(storage.join(url, header.name), MAX_HEADER_BYTES) if header.size else b""
        place = names.beside(header.name, read_header(head, header.name).data_file)
    except (Refusal, OSError, storage.ObjectChanged):  # it is met again when the volume is read
        return []
    return [e for e in data.get(names.stem(place), []) if e.name == place]


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

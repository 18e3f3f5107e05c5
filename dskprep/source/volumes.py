"""The volume files of a case: which files make one volume, their voxels, and how they are sorted beside DICOM files."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dskprep import storage
from dskprep.dicom.contents import Aside, Contents
from dskprep.dicom.sniff import begins_as_dicom
from dskprep.errors import Refusal
from dskprep.formats import names
from dskprep.formats.header import MAX_HEADER_BYTES, Header, damaged
from dskprep.formats.read import read_header
from dskprep.formats.voxels import FileBytes
from dskprep.source.inputs import is_archive
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


@dataclass(eq=False)
class CaseContents(Contents):
    """The contents of a case. `parts` are its volume files, and those that may hold the voxels of one, by name."""

    parts: dict[str, FileBytes] = field(default_factory=dict)

    def add(self, name: str, content: bytes, *, with_pixels: bool = True) -> None:
        """Keep a volume file as it is; read any other as DICOM (see `Contents.add`), but for archives in archives."""
        if is_archive(name) and not begins_as_dicom(content):
            self.leave_out(name)
        elif names.is_part(name) and not begins_as_dicom(content):
            self.parts[name] = FileBytes.held(content)
            if not names.is_volume(name):
                self.strays[name] = Refusal("truncated", f"{name}: cannot be read as DICOM, but is named as slices are")
        else:
            super().add(name, content, with_pixels=with_pixels)

    def leave_out(self, name: str) -> None:
        """Note an archive that is not unpacked."""
        self.aside.append(Aside(name, "archive", ""))

    def volumes(self) -> list[str]:
        """Return the names of the volumes, sorted."""
        return sorted(filter(names.is_volume, self.parts))

    def pop_volume(self, name: str) -> tuple[Header, FileBytes, int]:
        """Read the header of a volume, find its voxels, and let go what no other volume can need.

        Returns the header, the file of the voxels, and the bytes that all files held until now.
        """
        held_bytes = sum(part.n_bytes for part in self.parts.values() if part.is_held)
        header, file = open_volume(name, self.parts)
        del self.parts[name]
        if not any(map(names.has_own_header, self.parts)):
            self.parts = {other: part for other, part in self.parts.items() if names.is_volume(other)}
        return header, file, held_bytes

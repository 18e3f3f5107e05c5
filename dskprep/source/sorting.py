"""Sort the files of a case: DICOM slices by series, and volume files by name."""

from __future__ import annotations

from dataclasses import dataclass, field

from dskprep.dicom.contents import Contents
from dskprep.dicom.sniff import begins_as_dicom
from dskprep.formats import names
from dskprep.formats.header import Header
from dskprep.formats.voxels import FileBytes
from dskprep.source.volumes import open_volume


@dataclass(eq=False)
class CaseContents(Contents):
    """The contents of a case. `parts` are its volume files, and those that may hold the voxels of one, by name."""

    parts: dict[str, FileBytes] = field(default_factory=dict)

    def add(self, name: str, content: bytes, *, with_pixels: bool = True) -> None:
        """Keep a volume file as it is; read any other as DICOM (see `Contents.add`)."""
        if names.is_part(name) and not begins_as_dicom(content):
            self.parts[name] = FileBytes.held(content)
        else:
            super().add(name, content, with_pixels=with_pixels)

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

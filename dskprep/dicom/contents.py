"""DICOM files to what they hold: CT slices and damage by series, and files set aside."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import NamedTuple

from dskprep.dicom.header import Attributes, read_attributes
from dskprep.dicom.slices import Slice, one_line, slices_of, text_of
from dskprep.errors import Refusal

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image
}

DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
"""A DICOMDIR: the one other object that belongs to no series."""

NO_SLICE_TYPES = {"LOCALIZER", "SCREEN SAVE", "DOSE_INFO"}
"""Values of ImageType that mark a CT object that is no slice of a volume."""

OTHER_SUFFIXES = {
    *(
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".xml",
        ".md",
        ".html",
        ".htm",
        ".pdf",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".log",
        ".py",
        ".sh",
    ),
    *(".bat", ".db", ".lnk", ".url", ".doc", ".docx", ".xls", ".xlsx", ".rtf", ".png", ".jpg"),
    *(".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".nii", ".gz", ".bz2"),
    *(".xz", ".7z", ".npy", ".npz", ".mha", ".mhd", ".nrrd", ".stl", ".part", ".tmp", ".sha256", ".md5"),
}
OTHER_NAMES = {"DICOMDIR", "DIRFILE", "LICENSE", "README", "VERSION", "SHA256SUMS", "MD5SUMS"}
"""Files named so are no slices that were damaged, whatever they hold."""


class Aside(NamedTuple):
    """A file that is no CT slice, and why: `localizer`, `not-ct` or `not-dicom`."""

    name: str
    kind: str
    detail: str


@dataclass(eq=False)
class Contents:
    """What a set of files holds: slices and damage by SeriesInstanceUID, and files set aside.

    Damage of a file whose series cannot be read is kept under the empty UID.
    """

    slices: dict[str, list[Slice]] = field(default_factory=dict)
    damage: dict[str, Refusal] = field(default_factory=dict)
    aside: list[Aside] = field(default_factory=list)
    foreign: dict[str, Refusal] = field(default_factory=dict)
    unreadable: Refusal | None = None

    def flaw(self, uid: str) -> Refusal | None:
        """Why the slices of a series cannot be trusted to be all there is.

        Damage in it, or in a file that may belong to it; an object that is no CT image under its UID; a
        file that is no DICOM and not named as something else. Each may have been a slice at its end.
        """
        return self.damage.get(uid) or self.damage.get("") or self.foreign.get(uid) or self.unreadable

    def uids(self) -> list[str]:
        """The series there are. Damage of an unknown one counts for all others; it is one if there is no other."""
        return sorted({*self.slices, *self.damage} - ({""} - {*self.slices})) or sorted(self.damage)

    def add_headers(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Read files, given as name and content, and keep of their slices only what their headers say."""
        for name, content in files:
            self.add(name, content)
            for slices in self.slices.values():
                for i in reversed(range(len(slices))):
                    if not slices[i].data:
                        break  # those before were forgotten already
                    slices[i] = replace(slices[i], data=b"")

    def add(self, name: str, content: bytes) -> None:
        """Read one file. Never raises for bad content: that is what `damage` and `aside` are for."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that break the standard but can be read
            self._add(name, content)

    def _add(self, name: str, content: bytes) -> None:
        header = self._parse(name, content)
        if header is None:
            return
        kind = _no_slice(header)
        if kind:
            self.aside.append(Aside(name, kind, _what(header)))
            if kind == "not-ct":
                message = f"{name}: is no CT image ({_what(header)}), and has the UID of this series"
                self.foreign.setdefault(text_of(header, "SeriesInstanceUID"), Refusal("not-ct", message))
            return
        uid = text_of(header, "SeriesInstanceUID")
        try:
            slices = list(slices_of(header, name))
        except Refusal as refusal:
            self.damage.setdefault(uid, refusal)
        else:
            self.slices.setdefault(uid, []).extend(slices)

    def _parse(self, name: str, content: bytes) -> Attributes | None:
        is_marked = content[128:132] == b"DICM"
        try:
            header = read_attributes(content)
        except Exception as error:  # pydicom raises whatever a damaged byte leads it to
            self._add_unreadable(name, content, is_marked, one_line(error))
            return None
        sop_class = text_of(header, "SOPClassUID")
        if sop_class not in (*CT_CLASSES, DIRECTORY_CLASS) and not header.get("SeriesInstanceUID"):
            self._add_unreadable(name, content, is_marked or bool(sop_class), "it ends before SeriesInstanceUID")
            return None
        return header

    def _add_unreadable(self, name: str, content: bytes, is_marked: bool, detail: str) -> None:
        what = f"cannot be read as DICOM ({detail or 'it has no mark'})" if content else "is empty"
        refusal = Refusal("truncated", f"{name}: {what}")
        if is_marked or not (content or is_named_otherwise(name)):
            self.damage.setdefault("", refusal)
            return
        self.aside.append(Aside(name, "not-dicom", ""))
        if not is_named_otherwise(name):
            self.unreadable = self.unreadable or refusal


def may_be_ct(head: bytes) -> bool:
    """Whether the first bytes of a file could be those of a CT object: they name its class."""
    return any(sop_class.encode() in head for sop_class in CT_CLASSES)


def is_named_otherwise(name: str) -> bool:
    """Whether a file's name says that it is no DICOM file."""
    path = PurePosixPath(name)
    return path.suffix.lower() in OTHER_SUFFIXES or path.name.upper() in OTHER_NAMES


def _no_slice(header: Attributes) -> str | None:
    """Why this object is no CT slice, or None if it is one."""
    if text_of(header, "SOPClassUID") not in CT_CLASSES:
        return "not-ct"
    image_type = header.get("ImageType") or []
    values = {str(v).upper() for v in ([image_type] if isinstance(image_type, str) else image_type)}
    return "localizer" if values & NO_SLICE_TYPES else None


def _what(header: Attributes) -> str:
    """What kind of object this is, in the standard's words."""
    sop_class = header["SOPClassUID"]
    return str(getattr(sop_class, "name", sop_class))

"""Sort DICOM files: CT slices and damage by series, and files set aside."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import NamedTuple

from dskprep.dicom.header import Attributes, read_attributes
from dskprep.dicom.slices import Slice, read_slices, text_of, to_one_line
from dskprep.errors import Refusal

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image
}
"""SOP classes of the objects that are read (PS3.4 B.5)."""
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR, the one other object that needs no SeriesInstanceUID."""
NO_SLICE_TYPES = {"LOCALIZER", "SCREEN SAVE", "DOSE_INFO"}
"""Values of ImageType that mark a CT object as no slice of a volume."""

OTHER_SUFFIXES = frozenset(
    ".txt .csv .tsv .json .jsonl .xml .md .html .htm .pdf .yaml .yml .toml .ini .log .py .sh .bat .db .lnk .url .doc "
    ".docx .xls .xlsx .rtf .png .jpg .jpeg .gif .bmp .tif .tiff .nii .gz .bz2 .xz .7z .npy .npz .mha .mhd .nrrd .stl "
    ".part .tmp .sha256 .md5".split()
)
"""Suffixes of files that are no damaged slices, whatever they hold."""
OTHER_NAMES = frozenset("DICOMDIR DIRFILE LICENSE README VERSION SHA256SUMS MD5SUMS".split())
"""Names, in capitals, of files that are no damaged slices, whatever they hold."""


class Aside(NamedTuple):
    """A file that is no CT slice; `kind` is `localizer`, `not-ct` or `not-dicom`."""

    name: str
    kind: str
    detail: str


@dataclass(eq=False)
class Contents:
    """Slices and damage by SeriesInstanceUID, and files set aside.

    Damage is under the empty UID where the file's series cannot be read. `foreign` has an object that is no CT image,
    by SeriesInstanceUID; `unreadable` is the first file that is no DICOM and is not named as something else.
    """

    slices: dict[str, list[Slice]] = field(default_factory=dict)
    damage: dict[str, Refusal] = field(default_factory=dict)
    aside: list[Aside] = field(default_factory=list)
    foreign: dict[str, Refusal] = field(default_factory=dict)
    unreadable: Refusal | None = None

    def flaw(self, uid: str) -> Refusal | None:
        """Return the reason why slices of a series may be missing, or None: each may have been one at its end."""
        return self.damage.get(uid) or self.damage.get("") or self.foreign.get(uid) or self.unreadable

    def uids(self) -> list[str]:
        """Return the UIDs of all series, sorted; damage under the empty UID is a series only if there is no other."""
        found = {*self.slices, *self.damage}
        if len(found) > 1 and "" not in self.slices:
            found.discard("")
        return sorted(found)

    def add_all(self, files: Iterable[tuple[str, bytes]], *, with_pixels: bool = True) -> None:
        """Read files, given as name and content (see `add`)."""
        for name, content in files:
            self.add(name, content, with_pixels=with_pixels)

    def add(self, name: str, content: bytes, *, with_pixels: bool = True) -> None:
        """Read one file. Bad content raises nothing; it is kept in `damage` or `aside`.

        Without pixels, the slices are header-only, but damaged pixel data are still found.
        """
        with warnings.catch_warnings(action="ignore"):  # pydicom warns of values that break the standard
            header = self._parse(name, content)
            if header is not None:
                self._add(name, header, with_pixels)

    def _add(self, name: str, header: Attributes, with_pixels: bool) -> None:
        uid, kind = text_of(header, "SeriesInstanceUID"), _find_kind(header)
        if kind:
            sop_class = header["SOPClassUID"]
            detail = str(getattr(sop_class, "name", sop_class))  # the name in the standard
            self.aside.append(Aside(name, kind, detail))
            if kind == "not-ct":
                message = f"{name}: is no CT image ({detail}), and has the UID of this series"
                self.foreign.setdefault(uid, Refusal("not-ct", message))
            return
        try:
            slices = [s if with_pixels else replace(s, data=b"") for s in read_slices(header, name)]
        except Refusal as refusal:
            self.damage.setdefault(uid, refusal)
        else:
            self.slices.setdefault(uid, []).extend(slices)

    def _parse(self, name: str, content: bytes) -> Attributes | None:
        is_marked = content[128:132] == b"DICM"
        try:
            header = read_attributes(content)
        except Exception as error:  # pydicom raises whatever a damaged byte leads it to
            self._add_unreadable(name, content, is_marked, to_one_line(error))
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
    """Tell whether the first bytes of a file name the SOP class of a CT object."""
    return any(sop_class.encode() in head for sop_class in CT_CLASSES)


def is_named_otherwise(name: str) -> bool:
    """Tell whether a file's name says that it is no DICOM file."""
    path = PurePosixPath(name)
    return path.suffix.lower() in OTHER_SUFFIXES or path.name.upper() in OTHER_NAMES


def _find_kind(header: Attributes) -> str | None:
    """Return the kind of an object to be set aside (see `Aside`), or None for a CT slice."""
    if text_of(header, "SOPClassUID") not in CT_CLASSES:
        return "not-ct"
    image_type = header.get("ImageType") or []
    values = {str(v).upper() for v in ([image_type] if isinstance(image_type, str) else image_type)}
    return "localizer" if values & NO_SLICE_TYPES else None

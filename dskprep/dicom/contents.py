"""Sort DICOM files: CT slices and damage by series, and files set aside."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import NamedTuple

from dskprep.dicom import sniff
from dskprep.dicom.description import terms_of, text_of
from dskprep.dicom.header import Attributes, read_attributes
from dskprep.dicom.owners import part_by_owner
from dskprep.dicom.slices import Slice, read_slices
from dskprep.errors import Refusal
from dskprep.plain import in_one_line

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

NO_IMAGE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(66|481\.[2-9]|88|104|11|9)(\..*)?")
"""SOP classes of objects that are no images: segmentations, registrations, raw data; contours, doses, plans; reports;
documents; presentation states; waveforms (PS3.4 B.5)."""

SOP_CLASS = re.compile(rb"(?:\x02\x00\x02\x00UI|\x08\x00\x16\x00(?:UI|..))..([0-9.]+)", re.DOTALL)
"""MediaStorageSOPClassUID or SOPClassUID in little endian, with or without its VR, and the value."""

OTHER_SUFFIXES = frozenset(
    ".txt .csv .tsv .json .jsonl .xml .md .html .htm .pdf .yaml .yml .toml .ini .log .py .sh .bat .db .lnk .url .doc "
    ".docx .xls .xlsx .rtf .png .jpg .jpeg .gif .bmp .tif .tiff .webp .svg .nii .7z .npy .npz .mha .mhd .nrrd .nhdr "
    ".raw .zraw .stl .sha256 .md5 .tcia .mrml .mat .hdr .cfg .roi .bak .dat .bin .avi .mp4 .pkl .h5 .vtk".split()
)
"""Suffixes of files that are no damaged slices, unless they begin as DICOM."""
VAGUE_SUFFIXES = (".dat", ".raw", ".bin", ".bak", ".roi")
"""Those of them that are slices in some folders: the first bytes of a file tell."""
OTHER_NAMES = frozenset("DICOMDIR DIRFILE LICENSE README VERSION SHA256SUMS MD5SUMS _SUCCESS LOCKFILE".split())
"""Names, in capitals, of files that are no damaged slices, unless they begin as DICOM."""
SLICE_SUFFIXES = frozenset(".dcm .dicom .ima".split())
"""Suffixes that say that a file is a slice."""
ADDED_SUFFIXES = frozenset(".gz .bz2 .xz .zst .part .partial .tmp .temp .filepart .crdownload .download".split())
"""Suffixes that compressing a file, or an unfinished transfer, adds to its name."""
SEVERAL = 3
"""So many files whose names differ by numbers alone may be slices, whatever they hold."""
MAX_FILE_BYTES = 1 << 28
"""Most bytes that one compressed file may hold."""


class Aside(NamedTuple):
    """A file that is no CT slice; `kind` is `localizer`, `not-ct`, `no-image`, `archive` or `not-dicom`."""

    name: str
    kind: str
    detail: str


@dataclass(eq=False)
class Contents:
    """Slices and damage by SeriesInstanceUID, and files set aside.

    Damage is under the empty UID where the file's series cannot be read. `cut` has damage of files that end soon after
    their SeriesInstanceUID, of which there may be the beginning alone. `foreign` has an object that is no CT image,
    by SeriesInstanceUID; `strays` are files that are no DICOM, by name. `held_bytes` is the memory that the slices
    keep: of files that are compressed as a whole, what they hold.
    """

    slices: dict[str, list[Slice]] = field(default_factory=dict)
    damage: dict[str, Refusal] = field(default_factory=dict)
    cut: dict[str, Refusal] = field(default_factory=dict)
    aside: list[Aside] = field(default_factory=list)
    foreign: dict[str, Refusal] = field(default_factory=dict)
    strays: dict[str, Refusal] = field(default_factory=dict)
    held_bytes: int = 0

    def flaw(self, uid: str) -> Refusal | None:
        """Return the reason why slices of a series may be missing, or None: each may have been one at its end.

        A file that is no DICOM may have been a slice if it is named as one, or as those of the series are. Where these
        have nothing in common, as numbers of hexadecimal digits, any file with their suffix is.
        """
        cut = next((refusal for start, refusal in self.cut.items() if uid.startswith(start)), None)
        found = self.damage.get(uid) or self.damage.get("") or cut or self.foreign.get(uid)
        if found or not self.strays:
            return found
        slices = [s.name for s in self.slices.get(uid, ())]
        shapes = {shape_of(name) for name in slices}
        suffixes = {_suffix(name) for name in slices if 2 * len(shapes) > len(slices) >= SEVERAL}
        for name, refusal in self.strays.items():
            is_like_any = _suffix(name) in suffixes and not is_named_otherwise(name)
            if is_like_any or _is_named_as_slice(name) or shape_of(name) in shapes:
                return refusal
        return None

    def lone_stray(self) -> Refusal | None:
        """Return why a file cannot be read that may be a slice by its name, for files among which there is no slice."""
        strays = [name for name in self.strays if not is_named_otherwise(name)]
        shapes = Counter(map(shape_of, strays))
        named = (n for n in strays if _is_named_as_slice(n) or shapes[shape_of(n)] >= SEVERAL)
        return self.strays.get(next(named, ""))

    def all_damage(self) -> list[Refusal]:
        """Return what is wrong with files of slices, one refusal per series."""
        return [*self.damage.values(), *self.cut.values()]

    def uids(self) -> list[str]:
        """Return the UIDs of all series, sorted; damage under the empty UID is a series only if there is no other."""
        whole = {*self.slices, *self.damage}
        found = whole | {start for start in self.cut if not any(uid.startswith(start) for uid in whole)}
        if len(found) > 1 and "" not in self.slices:
            found.discard("")
        return sorted(found)

    def n_series(self) -> int:
        """Count the series; of one UID there are several if its slices are of several owners (see `owners`)."""
        return sum(len(part_by_owner(self.slices.get(uid, ()))) for uid in self.uids())

    def add_all(self, files: Iterable[tuple[str, bytes]], *, with_pixels: bool = True) -> None:
        """Read files, given as name and content (see `add`)."""
        for name, content in files:
            self.add(name, content, with_pixels=with_pixels)

    def add(self, name: str, content: bytes, *, with_pixels: bool = True) -> None:
        """Read one file, which may be compressed as a whole.

        Bad content raises nothing; it is kept in `damage`, `strays` or `aside`. Without pixels, the slices are
        header-only, but damaged pixel data are still found.
        """
        if sniff.compression_of(content):
            try:
                content = sniff.decompress(content, MAX_FILE_BYTES) if sniff.begins_as_dicom(content) else content
            except ValueError as error:
                self.damage.setdefault("", Refusal("truncated", f"{name}: cannot be decompressed ({error})"))
                return
        with warnings.catch_warnings(action="ignore"):  # pydicom warns of values that break the standard
            header = self._parse(name, content)
            if header is not None:
                self._add(name, header, with_pixels)

    def _add(self, name: str, header: Attributes, with_pixels: bool) -> None:
        uid, kind = text_of(header, "SeriesInstanceUID"), find_kind(header)
        if kind:
            sop_class = header.get("SOPClassUID") or "no SOP class"
            detail = str(getattr(sop_class, "name", sop_class))  # the name in the standard
            self.aside.append(Aside(name, kind, detail))
            is_other = kind == "not-ct" and sop_class != DIRECTORY_CLASS  # a directory has no UID of a series
            if is_other or (kind == "no-image" and "PixelData" in header):
                message = f"{name}: is no CT image ({detail}), and has the UID of this series"
                self.foreign.setdefault(uid, Refusal("not-ct", message))
            return
        try:
            slices = [s if with_pixels else replace(s, data=b"") for s in read_slices(header, name)]
        except Refusal as refusal:
            is_cut = "Rows" not in header and "PixelData" not in header
            (self.cut if is_cut else self.damage).setdefault(uid, refusal)
        else:
            self.slices.setdefault(uid, []).extend(slices)
            self.held_bytes += _bytes_held(slices)

    def _parse(self, name: str, content: bytes) -> Attributes | None:
        try:
            header = read_attributes(content)
        except RecursionError:
            self._add_unreadable(name, content, "its sequences are nested too deeply")
            return None
        except Exception as error:  # pydicom raises whatever a damaged byte leads it to
            self._add_unreadable(name, content, in_one_line(error, 200))
            return None
        sop_class = text_of(header, "SOPClassUID")
        if _is_ct(header) or sop_class == DIRECTORY_CLASS or header.get("SeriesInstanceUID"):
            return header
        self._add_unreadable(name, content, "it ends before SeriesInstanceUID", is_dicom=bool(sop_class))
        return None

    def _add_unreadable(self, name: str, content: bytes, detail: str, *, is_dicom: bool = False) -> None:
        what = f"cannot be read as DICOM ({detail or 'it has no mark'})" if content else "is empty"
        refusal = Refusal("truncated", f"{name}: {what}")
        if is_dicom or sniff.begins_as_dicom(content):
            self.damage.setdefault("", refusal)
            return
        self.aside.append(Aside(name, "not-dicom", ""))
        self.strays[name] = refusal


def _bytes_held(slices: list[Slice]) -> int:
    """Return the bytes that slices keep in memory: all of a file in which their pixels lie as they are."""
    kept = [s.data.obj if isinstance(s.data, memoryview) else s.data for s in slices]
    return sum({id(each): memoryview(each).nbytes for each in kept}.values())


def may_be_ct(head: bytes) -> bool:
    """Tell whether the first bytes of a file name the SOP class of a CT object."""
    return any(sop_class.encode() in head for sop_class in CT_CLASSES)


def sop_class_in(head: bytes) -> str:
    """Return the SOP class of an object by the first bytes of its file, without parsing it; "" if they do not tell.

    References to other objects stand later in a file than its own class, so the first one found is that.
    """
    found = SOP_CLASS.search(head)
    return found[1].decode() if found else ""


def is_named_otherwise(name: str) -> bool:
    """Tell whether a file's name says that it is no DICOM file."""
    path = PurePosixPath(name)
    return path.suffix.lower() in OTHER_SUFFIXES or path.name.upper() in OTHER_NAMES


def _is_named_as_slice(name: str) -> bool:
    """Tell whether a name ends in a suffix of slices, whatever a transfer has added to it, such as `1.dcm.6eF9Bd2a`."""
    return not SLICE_SUFFIXES.isdisjoint(suffix.lower() for suffix in PurePosixPath(name).suffixes)


def _suffix(name: str) -> str:
    return PurePosixPath(name.lower()).suffix


def shape_of(name: str) -> str:
    """Return what the names of the slices of a series have in common: the last part of the path without its numbers.

    >>> shape_of("scan/IM0012.dcm.part"), shape_of("IM0001.dcm"), shape_of("notes")
    ('im0', 'im0', 'notes')
    """
    path = PurePosixPath(name.lower())
    while path.suffix in ADDED_SUFFIXES:
        path = path.with_suffix("")
    stem = path.stem if path.suffix in SLICE_SUFFIXES else path.name
    return re.sub(r"[0-9a-f]{12,}|[0-9]+", "0", stem)


def _is_ct(header: Attributes) -> bool:
    """Tell whether an object is a CT image by its class, or, if it has lost that, by its modality."""
    sop_class = text_of(header, "SOPClassUID")
    return sop_class in CT_CLASSES or (not sop_class and text_of(header, "Modality") == "CT" and "PixelData" in header)


def find_kind(header: Attributes) -> str | None:
    """Return the kind of an object to be set aside (see `Aside`), or None for a CT slice."""
    if not _is_ct(header):
        return "no-image" if NO_IMAGE.fullmatch(text_of(header, "SOPClassUID")) else "not-ct"
    return None if NO_SLICE_TYPES.isdisjoint(terms_of(header.get("ImageType"))) else "localizer"

"""What is known of a series before its files are read: from a table, or from the header of one file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from dskprep import storage
from dskprep.dicom import sniff
from dskprep.dicom.contents import MAX_FILE_BYTES, find_kind
from dskprep.dicom.description import Identity, identity_of, text_of
from dskprep.dicom.header import Attributes, read_attributes
from dskprep.dicom.slices import facts_in
from dskprep.errors import Refusal
from dskprep.formats import names
from dskprep.keys import series_digest
from dskprep.plain import to_number
from dskprep.selecting import LENGTH, SLICES, Select
from dskprep.source import cases
from dskprep.source.case import Case
from dskprep.source.files import HEADER_BYTES, LARGE_FILE_BYTES

KEYWORDS = {
    "slice_thickness_mm": "SliceThickness",
    LENGTH: "SliceThickness",
    "reconstruction_diameter_mm": "ReconstructionDiameter",
    "kvp": "KVP",
    "kernel_class": "ConvolutionKernel",
    "contrast": "ContrastBolusAgent",
    "pet_ct": "ManufacturerModelName",
}
"""The attribute that a table must tell so that a rule of that column needs no header."""


class Peeked(NamedTuple):
    """A series among others: whose it is, the digest of its UID, and the texts that rules look at."""

    identity: Identity
    uid_sha256: str
    texts: Mapping[str, str]


def may_be_one(case: Case) -> bool:
    """Tell whether a case is one series among others, as far as its listing tells.

    A volume file names no study, an archive would have to be read whole, and what is refused is no choice.
    """
    is_volume = case.is_single and names.is_volume(case.url)
    return not (case.is_archive or is_volume or case.problem or case.refusal) and case.n_files > 0


def by_table(case: Case) -> Peeked | None:
    """Return what a table says of a series; None if it names no study, patient or series."""
    header = dict(case.header)
    if not {"PatientID", "StudyInstanceUID", "SeriesInstanceUID"} <= header.keys():
        return None
    return _peeked(header, case.n_files)


def is_enough(case: Case, columns: Collection[str]) -> bool:
    """Tell whether a table says of a series what rules on these columns look at."""
    header = dict(case.header)
    return all(header.get(KEYWORDS[column]) for column in columns if column != SLICES)


def by_header(case: Case) -> Peeked | None:
    """Return what the header of one file says of a series, read by one request (two if it was not listed).

    Returns None if that is no slice of a CT series, or cannot be read: then it is read in its turn, and refused.
    """
    try:
        entry = case.sample or cases.typical(cases.files_of(case.url, is_deep=case.is_deep, is_single=case.is_single))
        if entry is None:
            return None
        place = case.url if case.is_single else storage.join(case.url, entry.name)
        header = _read(place, entry)
    except (storage.ObjectChanged, FileNotFoundError, PermissionError, Refusal):
        return None
    if header is None or find_kind(header):
        return None
    try:
        n_frames = int(text_of(header, "NumberOfFrames") or 1)
    except ValueError:
        return None
    return _peeked(header, case.n_files * n_frames)


def of_slices(identity: Identity, uid: str, texts: Mapping[str, str], n_slices: int) -> Peeked:
    """Return the same of a series all of whose headers are read."""
    thickness = to_number(texts.get("slice_thickness_mm", ""))
    length = "" if thickness is None else str(round(n_slices * thickness, 3))
    return Peeked(identity, series_digest(uid), {**texts, SLICES: str(n_slices), LENGTH: length})


def group_of(peeked: Peeked, select: Select) -> tuple[str, ...]:
    """Return the identifiers of what series are chosen per, () if a header lacks them.

    A study is one of a patient: some programs that remove identities give several patients one StudyInstanceUID. The
    issuer of a PatientID does not part a study: some of its series may not say it.
    """
    who = peeked.identity
    if select.per == "patient":
        return (who.patient, who.issuer) if who.patient else ()
    return (who.study, who.patient) if who.study else ()


def _peeked(header: Attributes, n_slices: int) -> Peeked:
    return of_slices(identity_of(header), text_of(header, "SeriesInstanceUID"), facts_in(header), n_slices)


def _read(place: str, entry: storage.Entry) -> Attributes | None:
    """Read the header in the first bytes of a file; in all of it, if it is compressed or its header is longer."""
    if not entry.size:
        return None
    head = storage.read_head(place, HEADER_BYTES)
    if not sniff.begins_as_dicom(head):
        return None
    header = None if sniff.compression_of(head) else _parse(head)
    if header is None or not (header.get("SeriesInstanceUID") and "Rows" in header):
        if entry.size > LARGE_FILE_BYTES:
            return None
        content = storage.read(place)
        try:
            content = sniff.decompress(content, MAX_FILE_BYTES) if sniff.compression_of(content) else content
        except ValueError:
            return None
        header = _parse(content)
    return header


def _parse(content: bytes) -> Attributes | None:
    try:
        return read_attributes(content)
    except Exception:  # pydicom raises whatever a damaged, or a cut, file leads it to
        return None

"""Series of the Imaging Data Commons (IDC): by collection, by SQL, by a manifest for s5cmd, by the table of a cohort.

Whatever is asked for, it only chooses rows of the table of IDC. From there come keys, URLs, sizes and licences. So
nothing is listed before a series is read, and no manifest leads anywhere else.
"""

from __future__ import annotations

import functools
import hashlib
import html
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping

from dskprep import storage
from dskprep.attribution import Attribution
from dskprep.errors import UsageError
from dskprep.source.case import Case, digest, key_of
from dskprep.source.catalogue import Catalogue, Series

SCHEMES = {"idc": "s3", "idc+gs": "gs"}
"""What a source in words begins with, before a colon, and the scheme of the buckets that it is read from."""
NO_IMAGES = frozenset({"ANN", "KO", "M3D", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "RWV", "SEG", "SR"})
"""Modalities of what is no image, so that nothing is wrong when no volume is made of it."""
NLST = ("ConvolutionKernel", "ReconstructionDiameter", "SliceThickness", "KVP")
"""The attributes from the fifth word on in a description of a series of NLST."""
NOT_KNOWN = frozenset({"", "na", "null", "unk", "unkn"})
"""Words in such a description for what is not known."""
_GOOGLES = dict(zip(storage.PUBLIC_BUCKETS["s3"], storage.PUBLIC_BUCKETS["gs"], strict=False))
"""The bucket at Google that holds the same as one at Amazon."""
S5CMD_SUFFIX = ".s5cmd"
"""Of a manifest for s5cmd, as the portal of IDC and idc-index write it. It is only read."""
_ONLY_GOOGLES = frozenset(storage.PUBLIC_BUCKETS["gs"]) - frozenset(storage.PUBLIC_BUCKETS["s3"])
_GOOGLES_ENDPOINT = "storage.googleapis.com"
"""In a comment of a manifest for Google's buckets, whose URLs begin with `s3://` too."""
_SERIES = re.compile(r"(s3|gs)://([a-z0-9-]+)/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/\*")
_FLAGS = frozenset({"--show-progress", "-sp"})
"""Options that say nothing about which files are copied."""


def is_in_words(source: object) -> bool:
    """Tell whether a source is none by its place, but in words: `idc:` and what is wanted."""
    return isinstance(source, str) and ":" in source and source.partition(":")[0] in SCHEMES


def bucket_of(source: str) -> str:
    """Return the URL of the bucket that most series of a source in words are read from."""
    scheme = SCHEMES[source.partition(":")[0]]
    return f"{scheme}://{storage.PUBLIC_BUCKETS[scheme][0]}"


def is_manifest(source: object) -> bool:
    """Tell whether a source is a manifest for s5cmd by its name."""
    return str(source).lower().endswith(S5CMD_SUFFIX)


def in_words(source: str) -> Iterator[Case]:
    """Return the cases of `idc:COLLECTION`, of several with commas between, or of `idc:SELECT …`.

    Of a collection, the CT series are taken. Raises UsageError if it does not exist, or the SQL cannot be done.
    """
    prefix, _, words = source.partition(":")
    scheme, catalogue = SCHEMES[prefix], Catalogue(source)
    if re.fullmatch(r"[\w,-]+", words):
        names = [name.lower().replace("-", "_") for name in words.split(",")]  # LIDC-IDRI, as TCIA writes it
        return (_to_case(series, scheme) for series in catalogue.ct_of(names))
    column, names = catalogue.select(words)
    return _named(catalogue, column, dict.fromkeys(names, scheme), source)


def in_manifest(source: str) -> Iterator[Case]:
    """Return the cases of a manifest for s5cmd. Raises UsageError if it is none, or no line names a series of IDC."""
    return _named(Catalogue(source), "crdc_series_uuid", _read_manifest(source), source)


def in_cohort(source: str, column: str, names: Iterable[str]) -> Iterator[Case]:
    """Return the cases of the table of a cohort, which names its series in a column of `catalogue.ID_COLUMNS`."""
    return _named(Catalogue(source), column, dict.fromkeys(names, "s3"), source)


def commercial_only(found: Iterable[Case], source: str) -> Iterator[Case]:
    """Yield the cases; refused are those whose licence is not known to allow commercial use."""
    for case in found:
        licence = case.attribution
        if licence is None and not case.problem:
            raise UsageError(
                f"{source:.200}: --licence needs a source whose licences are known, such as idc:COLLECTION or a "
                "manifest of the Imaging Data Commons"
            )
        if licence and not licence.is_commercial and not case.refusal:
            message = (
                f"expected a licence for commercial use, such as CC BY 4.0, found {licence.licence!r:.100}; see "
                f"https://doi.org/{licence.doi}, or run without --licence"
            )
            case = case.set_aside("licence", message)
        yield case


def _named(catalogue: Catalogue, column: str, schemes: Mapping[str, str], source: str) -> Iterator[Case]:
    """Return the cases of series by their names, each with the scheme of its bucket; those that are not found last."""
    found = {series.named_by(column): series for series in catalogue.named(column, list(schemes))}
    if not found:
        example = next((f", such as {name!r:.100}" for name in schemes), "")
        raise UsageError(
            f"{source:.200}: expected series of {catalogue.release}, found none{example}; make the manifest anew, or "
            "upgrade idc-index-data"
        )
    lost = [name for name in schemes if name not in found]
    return iter(
        [_to_case(series, schemes[name]) for name, series in found.items()]
        + [_to_lost_case(name, catalogue.release) for name in lost]
    )


def _read_manifest(source: str) -> dict[str, str]:
    """Return the UUID of each series, in the order of the lines, and the scheme of the bucket that it is copied from.

    A series that stands in several lines is one. Raises UsageError if a line is anything but the plain copy of one
    series out of a bucket of IDC.
    """
    try:
        lines = storage.read(source).decode().splitlines()
    except FileNotFoundError as error:
        raise UsageError(f"{source}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: expected a manifest for s5cmd in UTF-8, found other bytes") from error
    is_googles = any(_GOOGLES_ENDPOINT in line for line in lines if line.lstrip().startswith("#"))
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            scheme, uuid = _read_line(line, f"{source}, line {number}")
            found.setdefault(uuid, "gs" if is_googles else scheme)
    return found


def _read_line(line: str, where: str) -> tuple[str, str]:
    """Return the scheme of the bucket that a line copies from, and the UUID of its series."""
    if storage.holds_credentials(line):
        raise UsageError(f"{where}: {storage.CREDENTIALS}")
    try:
        command, *words = shlex.split(line)
    except ValueError:
        command, words = "", []
    places = [word for word in words if word not in _FLAGS]
    named = _SERIES.fullmatch(places[0]) if places else None
    is_copy = command in ("cp", "sync") and len(places) == 2 and not re.match(r"-|\w+://", places[1])
    if not named or not is_copy:
        raise UsageError(
            f"{where}: expected the copy of one series, as cp s3://{storage.PUBLIC_BUCKETS['s3'][0]}/<uuid>/* ., "
            f"found {line!r:.100}; no other line is read"
        )
    scheme, bucket, uuid = named.groups()
    scheme = "gs" if bucket in _ONLY_GOOGLES else scheme
    if bucket not in storage.PUBLIC_BUCKETS[scheme]:
        raise UsageError(f"{where}: expected a bucket of the Imaging Data Commons, found {bucket!r:.80}; leave it out")
    return scheme, uuid


def _to_case(series: Series, scheme: str) -> Case:
    bucket = series.bucket if scheme == "s3" else _GOOGLES.get(series.bucket)
    if bucket is None:
        raise UsageError(f"expected one of the buckets {', '.join(_GOOGLES)}, found {series.bucket}; upgrade dskprep")
    case = Case(
        key_of("/".join((series.collection, series.patient, series.study, series.uid))),
        f"{scheme}://{bucket}/{series.uuid}",
        hashlib.sha256(series.uuid.encode()).hexdigest()[:16],  # that of one version, which never changes
        series.n_files,
        series.n_bytes,
        attribution=_attribution(series.licence, series.doi, series.citation),
        is_catalogued=True,
        header=_header_of(series),
    )
    if series.modality == "CT":
        return case
    reason = "no-image" if series.modality in NO_IMAGES else "not-ct"
    found = f"{series.modality} in the table of the Imaging Data Commons"
    return case.set_aside(reason, f"expected CT, found {found}; its files were not read")


def _header_of(series: Series) -> tuple[tuple[str, str], ...]:
    """Return the attributes of a series that its row tells. Those of NLST stand in its descriptions, made by its rule.

    A description is such as `1,OPA,GE,LSPLUS,STANDARD,320,2.5,140,40,0,1.5`: year, axial, maker, model, kernel,
    diameter of reconstruction, thickness, kVp, and more.
    """
    found = {
        "PatientID": series.patient,
        "StudyInstanceUID": series.study,
        "SeriesInstanceUID": series.uid,
        "Manufacturer": series.manufacturer,
        "ManufacturerModelName": series.model,
        "SeriesDescription": series.description,
    }
    words = series.description.split(",")
    if series.collection == "nlst" and len(words) >= 4 + len(NLST) and words[1] == "OPA":
        found |= {name: word for name, word in zip(NLST, words[4:], strict=False) if word.lower() not in NOT_KNOWN}
    return tuple(found.items())


def _to_lost_case(name: str, release: str) -> Case:
    problem = (
        f"expected a series of {release}, found {name!r:.100}, which is of another release, or no series; take its "
        "present version, or upgrade idc-index-data"
    )
    return Case(key_of(name.removesuffix("/*")), "", digest([]), 0, 0, problem=problem)


@functools.lru_cache(maxsize=1000)
def _attribution(licence: str, doi: str, citation: str) -> Attribution:
    return Attribution(licence, doi, " ".join(html.unescape(re.sub(r"</?\w+>", "", citation)).split()))

"""Series of the Imaging Data Commons (IDC): by collection, by SQL, by a manifest for s5cmd, by the table of a cohort.

Whatever is asked for, it only chooses rows of the table of IDC. From there come keys, URLs, sizes and licences. So
nothing is listed before a series is read, and no manifest leads anywhere else.
"""

from __future__ import annotations

import functools
import hashlib
import html
import re
from collections.abc import Iterable, Iterator, Mapping

from dskprep import storage
from dskprep.attribution import Attribution
from dskprep.errors import UsageError
from dskprep.source import s5cmd
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


def is_in_words(source: object) -> bool:
    """Tell whether a source is none by its place, but in words: `idc:` and what is wanted."""
    return isinstance(source, str) and ":" in source and source.partition(":")[0] in SCHEMES


def bucket_of(source: str) -> str:
    """Return the URL of the bucket that most series of a source in words are read from."""
    scheme = SCHEMES[source.partition(":")[0]]
    return f"{scheme}://{storage.PUBLIC_BUCKETS[scheme][0]}"


def is_manifest(source: object) -> bool:
    """Tell whether a source is a manifest for s5cmd by its name."""
    return str(source).lower().endswith(s5cmd.SUFFIX)


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
    return _named(Catalogue(source), "crdc_series_uuid", s5cmd.read(source), source)


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

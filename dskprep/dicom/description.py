"""What a header says of a series as a whole: whose it is, scanner and protocol, and what follows for a cohort."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any, NamedTuple

from dskprep.dicom.curation import curation_columns
from dskprep.dicom.header import FACTS, IDENTIFIERS, Attributes


class Identity(NamedTuple):
    """Whose a slice is: the values of `header.IDENTIFIERS`, which must not leave the file as they are."""

    patient: str = ""
    issuer: str = ""
    study: str = ""
    frame_of_reference: str = ""
    instance: str = ""


NOBODY = Identity()


def describe(header: Attributes) -> dict[str, str]:
    """Return what a header says of scanner, protocol and contrast: the attributes for the record, and what follows."""
    facts = {key: text_of(header, keyword)[:64] for key, keyword in FACTS.items()}
    free = (text_of(header, "ContrastBolusAgent")[:256], text_of(header, "SeriesDescription")[:256])
    return facts | dict(curation_columns(facts["kernel"], facts["manufacturer"], facts["model"], *free))


def identity_of(header: Attributes) -> Identity:
    """Return whose an object is."""
    return Identity(**{name: text_of(header, keyword)[:256] for name, keyword in IDENTIFIERS.items()})


def text_of(header: Attributes, keyword: str) -> str:
    return as_text(header.get(keyword))


def as_text(value: Any) -> str:
    if isinstance(value, MutableSequence):
        value = "\\".join(map(str, value))
    return "" if value is None else str(value).strip()

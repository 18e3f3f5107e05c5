"""Values of DICOM attributes as plain Python, whatever a stranger's file holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pydicom import Dataset

from dskprep.errors import Refusal
from dskprep.labels.values import Code
from dskprep.plain import escape

MAX_TEXT = 256
"""Most characters that are kept of a name."""


def one_line(value: Any) -> str:
    """Return a text in one printable line, at most MAX_TEXT characters of it."""
    return escape(str(value if value is not None else "").strip()[:MAX_TEXT])


def item_of(dataset: Dataset | None, keyword: str) -> Dataset | None:
    """Return the first item of a sequence, or None if there is none."""
    items = dataset.get(keyword) if dataset is not None else None
    return items[0] if items else None


def floats_of(value: Any) -> list[float]:
    """Return finite numbers, none if one of them is something else."""
    if value is None or isinstance(value, str | bytes):
        return []
    try:
        found = [float(v) for v in (value if isinstance(value, Iterable) else [value])]
    except (TypeError, ValueError, OverflowError):
        return []
    return found if np.isfinite(found).all() else []


def code_of(dataset: Dataset, keyword: str) -> Code | None:
    """Return the coded term of a code sequence, or None."""
    item = item_of(dataset, keyword)
    if item is None:
        return None
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
    return Code(one_line(value), one_line(item.get("CodingSchemeDesignator")), one_line(item.get("CodeMeaning")))


def owner_of(header: Dataset) -> tuple[str, str]:
    """Return the PatientID and the StudyInstanceUID of an object; each may be ""."""
    patient, study = (str(header.get(keyword) or "").strip() for keyword in ("PatientID", "StudyInstanceUID"))
    return patient, study


def uids_below(found: Any, keyword: str) -> frozenset[str]:
    """Return all values of a UID attribute in a dataset or sequence, at any depth."""
    uids: set[str] = set()
    waiting = [found] if found is not None else []
    while waiting:
        dataset = waiting.pop()
        if not isinstance(dataset, Dataset):
            waiting += list(dataset)
            continue
        for element in dataset:
            if element.VR == "SQ":
                waiting.append(element.value)
            elif element.keyword == keyword and element.value:
                uids.add(str(element.value))
    return frozenset(uids)


def refuse_if_more(n: int, most: int, what: str, where: str) -> None:
    """Raise Refusal `label-too-large` if there are more than a label can have."""
    if n > most:
        raise Refusal("label-too-large", f"{where}: expected {most} {what} at most, found {n}")

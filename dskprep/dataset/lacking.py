"""Labels that a volume lacks since they were refused, or failed: where its masks are 0, there may be something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dskprep.dataset.label_record import safe_name
from dskprep.patterns import matches_label

HIDES_NOTHING = {"label-empty", "label-outside-volume", "label-unlinked"}
"""Reasons of a label that was refused where the image does not show what it is of, so its mask needs no voxel of it."""


OF_NODULES = "nodule-*"
"""The labels of nodules of LIDC-IDRI, as its readers agree on them."""
MARKS = "marks-left-out"
"""The warning of an XML of LIDC-IDRI of which marks are in no label."""
OF_MARK = ("nodule-0", "nodule-0-reader-0")
"""What stands for the names that the nodule of such a mark would have, by all readers and by its own."""


class Lost(NamedTuple):
    """A label that was refused: the name that its author gave, that with the reason, and the image that it lies on."""

    name: str
    why: str
    image: str


def lost_labels(table: Any) -> dict[str, list[Lost]]:
    """Return the labels that were refused, by volume; `table` is that of annotations.

    One that is there from the same file under other options is not among them. A mark of LIDC-IDRI that was left out,
    as nobody knows its slice, is.
    """
    names = "key status name reason source_sha256 number image".split()
    rows = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    stored = {(key, image, of, number) for key, status, *_, of, number, image in rows if status == "written"}
    found: dict[str, list[Lost]] = {}
    marks = (table[name].to_pylist() for name in ("key", "image", "status", "source_warnings"))
    for key, image, status, said in dict.fromkeys(zip(*marks, strict=True)):
        if status == "written" and MARKS in (said or "").split(","):
            found[key] = [*found.get(key, ()), *(Lost(name, f"a mark ({MARKS})", image) for name in OF_MARK)]
    for key, status, name, reason, content, number, image in rows:
        is_there = reason == "label-exists" and (key, image, content, number) in stored
        if status != "written" and key and name and reason not in HIDES_NOTHING and not is_there:
            found.setdefault(key, []).append(Lost(name, f"{name} ({reason})", image))
    return found


def of_volume(lost: Mapping[str, Sequence[Lost]], key: str, image: str, labels: Sequence[str]) -> list[str]:
    """Return what of these labels a volume lacks, and why; `labels` are names or patterns."""
    return [each.why for each in lost.get(key, ()) if each.image == image and _is_of(each.name, labels)]


def _is_of(name: str, labels: Sequence[str]) -> bool:
    """Tell whether a label that its author calls so would be one of these, if it were stored."""
    return matches_label(name, labels) or matches_label(safe_name(name), labels)

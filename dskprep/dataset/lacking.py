"""Labels that a volume lacks since they were refused, or failed: where its masks are 0, there may be something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dskprep.dataset.label_record import safe_name
from dskprep.patterns import matches_label

HIDES_NOTHING = {"label-empty", "label-outside-volume", "label-unlinked"}
"""Reasons of a label that was refused where the image does not show what it is of, so its mask needs no voxel of it."""


class Lost(NamedTuple):
    """A label that was refused: the name that its author gave, that with the reason, and the image that it lies on."""

    name: str
    why: str
    image: str


def lost_labels(table: Any) -> dict[str, list[Lost]]:
    """Return the labels that were refused, by volume; `table` is that of annotations.

    One that is there from the same file under other options is not among them.
    """
    names = "key status name reason source_sha256 number image".split()
    rows = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    stored = {(key, image, of, number) for key, status, *_, of, number, image in rows if status == "written"}
    found: dict[str, list[Lost]] = {}
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

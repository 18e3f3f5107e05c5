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
NODULE = "nodule-0"
"""What stands for the name of a nodule of LIDC-IDRI that was not made, as the readers would agree on it."""
OF_READER = f"{NODULE}-reader-0"
"""What stands for that of one reader's own outline of it."""


class Lost(NamedTuple):
    """A label that was refused: what it would be called, what its author calls it and why, and the image it lies on.

    Where records do not say what it would be called, as those of older versions, it is by its author.
    """

    names: tuple[str, ...]
    why: str
    image: str


def lost_labels(table: Any) -> dict[str, list[Lost]]:
    """Return the labels that were refused, by volume; `table` is that of annotations.

    One that is there from the same file under other options is not among them. A mark of LIDC-IDRI that was left out,
    as nobody knows its slice, is.
    """
    names = "key status name asked_as reason source_sha256 number image".split()
    rows = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    stored = {(key, image, of, number) for key, status, *_, of, number, image in rows if status == "written"}
    found: dict[str, list[Lost]] = {}
    for key, image, called in _marks(table):
        found.setdefault(key, []).append(Lost(called, f"a mark ({MARKS})", image))
    for key, status, name, asked_as, reason, content, number, image in rows:
        is_there = reason == "label-exists" and (key, image, content, number) in stored
        if status != "written" and key and name and reason not in HIDES_NOTHING and not is_there:
            called = (asked_as,) if asked_as else (name, safe_name(name))
            called += (called[0].replace(NODULE, OF_READER),) if name == NODULE else ()
            found.setdefault(key, []).append(Lost(called, f"{name} ({reason})", image))
    return found


def _marks(table: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return the volume, the image and the possible names of the marks of each file of LIDC-IDRI that are left out.

    Nobody has named them. So they are called as such nodules are by default, and as the others of the file are, where
    that is another name than their author's.
    """
    columns = "key image source source_options status source_warnings name asked_as".split()
    called: dict[tuple[Any, ...], dict[str, None]] = {}
    for *which, status, said, name, asked_as in zip(*(table[name].to_pylist() for name in columns), strict=True):
        if status == "written" and MARKS in (said or "").split(","):
            others = called.setdefault(tuple(which), dict.fromkeys((NODULE, OF_READER)))
            if asked_as and asked_as != name:
                others[asked_as] = None
    return [(key, image, tuple(names)) for (key, image, *_), names in called.items()]


def of_volume(lost: Mapping[str, Sequence[Lost]], key: str, image: str, labels: Sequence[str]) -> list[str]:
    """Return what of these labels a volume lacks, and why; `labels` are names or patterns."""
    here = (each for each in lost.get(key, ()) if each.image == image)
    return [each.why for each in here if any(matches_label(name, labels) for name in each.names)]

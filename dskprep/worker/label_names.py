"""What a label is stored as: its name, its colour, and what its author says of it."""

from __future__ import annotations

import itertools
from pathlib import PurePosixPath

from dskprep.dataset.label_record import MAX_NAME, StoredLabel, is_label_name, safe_name
from dskprep.dataset.record import Record
from dskprep.errors import Refusal
from dskprep.formats.names import is_volume
from dskprep.labels import mask
from dskprep.labels.attributes import one_line
from dskprep.labels.values import Segment
from dskprep.source.label_files import Asked, LabelFile

COLOURS = (
    (230, 25, 75),
    (60, 180, 75),
    (240, 50, 230),
    (0, 130, 200),
    (170, 255, 195),
    (145, 30, 180),
    (70, 240, 240),
    (255, 225, 25),
    (210, 245, 60),
    (250, 190, 212),
)
"""Colours that differ well from one another on grey, and from those of the lungs.

A label has the one of its place in its source.
"""


def begin_label(volume: Record, segment: Segment, number: int, asked_as: str) -> StoredLabel:
    """Begin what is recorded of the label of this number in its source, with what its author says of it.

    `asked_as` is the name under which it is to be stored (see `stored_name`).
    """
    return StoredLabel(
        volume=volume.key,
        image=volume.input_digest,
        name=segment.name,
        asked_as=asked_as,
        number=segment.number,
        algorithm=segment.algorithm,
        interpreted_type=segment.interpreted_type,
        rgb=COLOURS[number % len(COLOURS)],
        category=segment.category.meaning if segment.category else "",
        code=segment.type.value if segment.type else "",
        code_scheme=segment.type.scheme if segment.type else "",
        code_meaning=segment.type.meaning if segment.type else "",
    )


def name_by_file(file: LabelFile) -> str:
    """Return what the only label of a mask volume is called if nobody has named it (see `Mask`)."""
    return mask.name_by_file(one_line(PurePosixPath(file.url).name))


def stored_name(asked: Asked, file: LabelFile, segment: Segment, *, is_nameless: bool) -> str:
    """Return the name under which a label is to be stored: the author's, made safe for any file system.

    `is_nameless` says that it is the only one of a mask volume whose file is called as its volume is.
    """
    own = "mask" if is_nameless and segment.name == name_by_file(file) else segment.name
    of_file = name_by_file(file) if is_volume(file.url) else PurePosixPath(file.file).stem
    name = asked.stored_name(own, of_file, segment.number)
    safe = safe_name(name) or f"label-{segment.number}"
    return safe if is_label_name(safe) else f"{safe}_"  # one that is taken in every volume, or on some systems


def free_name(name: str, taken: set[str], where: str) -> str:
    """Return the name, with a number behind it if the source has had another label of this name."""
    for number in itertools.count(1):
        free = name if number == 1 else f"{name.encode()[: MAX_NAME - 6].decode(errors='ignore')}-{number}"
        if free.casefold() not in taken:
            break
    if not is_label_name(free):
        raise Refusal("label-exists", f"{where}: the name {free!r} is taken in every volume; give another with --as")
    taken.add(free.casefold())
    return free

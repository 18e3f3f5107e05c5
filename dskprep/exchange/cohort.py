"""What an export is made of: which volumes, in which part and fold, with which labels."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dskprep.dataset import annotations as annotated
from dskprep.dataset import lacking
from dskprep.dataset.label_classes import first_names, matches_stored
from dskprep.dataset.lacking import Lost
from dskprep.dataset.record import RecordName, to_json
from dskprep.errors import UsageError
from dskprep.exchange.volume import ExportJob
from dskprep.reading.dataset import Dataset
from dskprep.reading.split_file import Side
from dskprep.reading.splits import Split

VERSION = 1
"""Of what is written; another one makes all volumes anew."""
NOWHERE = Side(None, None)
LUNGS = "lungs"
LUNGS_ML = ("right_lung_ml", "left_lung_ml", "unsided_lung_ml")
MOST_CLASSES = 255
LACKS = "lacks"


class _There(NamedTuple):
    """A label of a volume: its name, that without a number, what it was made of, the image it lies on."""

    label: str
    first_name: str
    made_of: str
    image: str


@dataclass(frozen=True)
class Member:
    """A volume of an export: its side of the split, and what is written of it."""

    job: ExportJob
    side: Side


@dataclass(frozen=True)
class Cohort:
    """The volumes of an export, sorted by key, and those that are left out, with the reason.

    `labels` are the names of the classes 1, 2, … of the masks.
    """

    dataset: Dataset
    members: tuple[Member, ...]
    left_out: dict[str, str]
    labels: tuple[str, ...]
    split: Split | None

    @property
    def values(self) -> str:
        """What the numbers of the images are, by the record of the first: all have the same settings."""
        return self.dataset[self.members[0].job.key].values

    def of_part(self, *parts: str | None) -> list[Member]:
        """Return the members of these parts; those of no part are in None."""
        return [member for member in self.members if member.side.part in parts]

    def folds(self) -> list[tuple[list[str], list[str]]]:
        """Return the keys to train and to validate with in each fold.

        A split with a part `validation` has this one fold.
        """
        if self.split is None:
            return []
        if "validation" in self.split.rule.parts:
            return [([m.job.key for m in self.of_part("train")], [m.job.key for m in self.of_part("validation")])]
        used = [member for member in self.members if member.side.fold is not None]
        return [
            ([m.job.key for m in used if m.side.fold != fold], [m.job.key for m in used if m.side.fold == fold])
            for fold in range(self.split.rule.folds)
        ]


def choose(
    dataset: Dataset, labels: Sequence[str], split: Split | None, image: str, mask: str, test: tuple[str, str]
) -> Cohort:
    """Choose what is exported.

    Parameters
    ----------
    labels
        The classes: a name or a pattern (see `label_classes.matches_stored`), whose labels together are one class. The
        lungs that dskprep has found are called `lungs`, and no pattern takes them. A volume without a label of each is
        left out: nobody has said that it has none. So is one whose mask of lungs is empty, and one that lacks a label
        of a class because it was refused: in the mask it would be background.
    image, mask
        Paths of the files, with `{key}`; `test` are those of the part `test`.

    Raises
    ------
    UsageError
        There are more classes than a mask can have, or no volume has the labels.
    """
    if len(labels) > MOST_CLASSES or len({label.casefold() for label in labels}) < len(labels):
        raise UsageError(f"labels: expected at most {MOST_CLASSES} names, each once, found {', '.join(labels):.200}")
    if "background" in labels or "ignore" in labels[:-1]:
        raise UsageError(
            "labels: the readers of an export take the class background for what has no label, and the class ignore, "
            "which must be the last one, for what is not trained with; use a pattern, such as '[b]ackground', to have "
            "the label as a class of its own"
        )
    drawn = [label for label in labels if label != LUNGS]
    names, refused = _labels_of(dataset) if drawn else ({}, {})
    members, left_out, known = [], {}, set[str]()
    for row in dataset.whole_rows("key", "status", "input_digest", "hu_sha256", "volume_digest", *LUNGS_ML):
        key = row["key"]
        if key not in dataset:
            continue
        if split is not None and key not in split.sides:
            left_out[key] = "not-in-split"
            continue
        here = [each for each in names.get(key, ()) if each.image == row["input_digest"]]
        there = {each.label: each.made_of for each in here}
        if any((row[name] or 0) > 0 for name in LUNGS_ML):
            there[LUNGS] = ""
        known |= there.keys()
        found = itertools.product(enumerate(labels, 1), sorted((each.label, each.first_name) for each in here))
        classes = [(number, name) for (number, label), (name, first) in found if matches_stored(name, first, [label])]
        classes += [(labels.index(LUNGS) + 1, LUNGS)] if LUNGS in labels and LUNGS in there else []
        classes.sort()
        missing = [label for i, label in enumerate(labels, 1) if i not in {number for number, _ in classes}]
        if missing:
            is_empty = row["right_lung_ml"] is not None and LUNGS not in there and LUNGS in missing
            left_out[key] = f"without {', '.join(missing)}{' (lungs-not-found)' if is_empty else ''}"
            continue
        if lost := lacking.of_volume(refused, key, row["input_digest"], drawn):
            left_out[key] = f"{LACKS} {lost[0]}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}"
            continue
        side = split.sides[key] if split else NOWHERE
        paths = [path.format(key=key) if path else "" for path in (test if side.part == "test" else (image, mask))]
        volume = [row[name] for name in ("input_digest", "hu_sha256", "volume_digest")]
        made_of = [VERSION, *volume, paths, classes, [there[name] for _, name in classes]]
        digest = hashlib.sha256(to_json({"made of": made_of})).hexdigest()
        name = RecordName(row["status"], key, row["input_digest"])
        members.append(Member(ExportJob(name, paths[0], paths[1] if labels else "", tuple(classes), digest), side))
    if not members:
        in_split = " and is in the split" if split else ""
        also = next((f"; {key} {why}" for key, why in left_out.items() if why.startswith(LACKS)), "")
        raise UsageError(
            f"{dataset.url}: no volume has the labels {', '.join(labels) or '(none)'}{in_split}; there are the labels "
            f"{', '.join(sorted(known)) or '(none)':.300}{also}"
        )
    members.sort(key=lambda member: member.job.key)
    return Cohort(dataset, tuple(members), dict(sorted(left_out.items())), tuple(labels), split)


def _labels_of(dataset: Dataset) -> tuple[dict[str, list[_There]], dict[str, list[Lost]]]:
    """Return the labels of each volume, and those that were refused."""
    found: dict[str, list[_There]] = {}
    current = annotated.current_table(dataset.url)
    annotated.warn_of_damaged(dataset.url, annotated.damaged(current))
    annotated.warn_of_lost(dataset.url, current)
    table = annotated.to_frame(annotated.without_repeats(current))
    columns = "source source_options label name asked_as key status source_sha256 number image".split()
    rows = list(zip(*(table[column].tolist() for column in columns), strict=True))
    firsts = first_names(((row[0], row[1]), *row[2:5]) for row in rows)
    for source, options, label, _, _, key, status, content, number, image in rows:
        if status == "written" and isinstance(label, str) and label:
            first = firsts.get(((source, options), label), "")
            found.setdefault(key, []).append(_There(label, first, f"{content} {options} {number}", image))
    return found, lacking.lost_labels(current)

"""The list of files that MONAI reads, `load_decathlon_datalist`, and the images and masks that it names."""

from __future__ import annotations

from typing import Any

from dskprep.dataset.record import to_json
from dskprep.exchange.cohort import Cohort, Member
from dskprep.exchange.in_words import Described
from dskprep.exchange.place import PATHS

IMAGE, MASK = TEST = PATHS[4:]


def describe(cohort: Cohort, name: str, licence: str) -> dict[str, bytes]:
    """Return `datalist.json`: `training`, `validation` and `testing`, with `fold` where there are folds."""
    lists = {
        "training": cohort.of_part(None, "train"),
        "validation": cohort.of_part("validation"),
        "testing": cohort.of_part("test"),
    }
    found = Described(cohort.dataset, [member.job.key for member in cohort.members])
    content = {
        "name": name,
        "description": f"Chest CT prepared by dskprep: {found.axes}, {found.spacing}; {found.values}",
        "licence": licence,
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(number): label for number, label in enumerate(cohort.labels, 1)}},
        "numTraining": len(lists["training"]),
        "numTest": len(lists["testing"]),
    }
    return {"datalist.json": to_json(content | {part: [_item(m) for m in found] for part, found in lists.items()})}


def _item(member: Member) -> dict[str, Any]:
    item: dict[str, Any] = {"image": member.job.image}
    if member.job.mask:
        item["label"] = member.job.mask
    if member.side.fold is not None:
        item["fold"] = member.side.fold
    return item

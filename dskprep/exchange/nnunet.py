"""The folder of raw data that nnU-Net v2 reads: imagesTr, labelsTr, imagesTs, dataset.json, splits_final.json."""

from __future__ import annotations

import json
import re
from collections import Counter

from dskprep.counts import n_of, some_of
from dskprep.dataset.record import to_json
from dskprep.errors import UsageError
from dskprep.exchange.cohort import Cohort
from dskprep.exchange.in_words import Described
from dskprep.exchange.place import PATHS

(IMAGE, MASK), TEST = PATHS[:2], PATHS[2:4]
FOLDER = re.compile(r"Dataset\d{3,}_.+")
"""How nnU-Net v2 names the folder of a dataset."""


def check(cohort: Cohort) -> None:
    """Raise UsageError if a fold has nothing to train or to validate with: nnU-Net fails there."""
    folds = cohort.folds()
    bad = [f"fold {fold}" for fold, (training, validation) in enumerate(folds) if not training or not validation]
    if not bad:
        return
    n_left = len({key for fold in folds for keys in fold for key in keys})
    reasons = ", ".join(f"{n} {why}" for why, n in sorted(Counter(cohort.left_out.values()).items()))
    left_out = f" ({reasons}, such as {some_of(cohort.left_out)}, left out)" if cohort.left_out else ""
    raise UsageError(
        f"{cohort.dataset.url}: expected volumes to train and to validate with in every fold of the split, and "
        f"{some_of(bad)} would lack them: {n_of(n_left, 'volume')} of its folds can be exported{left_out}; name other "
        "--labels, or a split with fewer folds or another seed; without a split, nnU-Net makes folds of its own, which "
        "know no patients"
    )


def note_of(name: str) -> str | None:
    """Return what is to be known of the name of an export, None if nothing is: nnU-Net finds its folders by it."""
    if FOLDER.fullmatch(name):
        return None
    word = re.sub(r"Dataset\d*_?", "", name) or "NAME"
    return f"nnU-Net finds only folders with names such as Dataset001_{word}; rename {name} before it is to find it"


def describe(cohort: Cohort, name: str, licence: str) -> dict[str, bytes]:
    """Return the files beside the volumes.

    nnU-Net looks for `splits_final.json` in its folder of preprocessed data: copy it there after planning.
    """
    training = cohort.of_part(None, "train", "validation")
    found = Described(cohort.dataset, [member.job.key for member in cohort.members])
    if found.is_of_one_spacing:
        spacing = f"All volumes have the spacing {found.spacing}: keep it, so that nothing is resampled twice."
    else:
        spacing = f"The volumes differ in their spacing, {found.spacing}: nnU-Net resamples them to one."
    content = {
        "name": name,
        "description": f"Chest CT prepared by dskprep: {found.axes}; {found.values}. {spacing}",
        "licence": licence,
        "channel_names": {"0": "CT" if cohort.values == "HU" else "noNorm"},
        "labels": {"background": 0, **{label: number for number, label in enumerate(cohort.labels, 1)}},
        "numTraining": len(training),
        "file_ending": ".nii.gz",
    }
    files = {"dataset.json": to_json(content)}
    if folds := cohort.folds():
        listed = [{"train": train, "val": validation} for train, validation in folds]
        files["splits_final.json"] = (json.dumps(listed, indent=1) + "\n").encode()
    return files

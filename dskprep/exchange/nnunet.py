"""The folder of raw data that nnU-Net v2 reads: imagesTr, labelsTr, imagesTs, dataset.json, splits_final.json."""

from __future__ import annotations

import json

from dskprep.dataset import store
from dskprep.dataset.record import to_json
from dskprep.exchange.cohort import Cohort
from dskprep.exchange.place import PATHS

(IMAGE, MASK), TEST = PATHS[:2], PATHS[2:4]


def describe(cohort: Cohort, name: str, licence: str) -> dict[str, bytes]:
    """Return the files beside the volumes.

    nnU-Net looks for `splits_final.json` in its folder of preprocessed data: copy it there after planning.
    """
    training = cohort.of_part(None, "train", "validation")
    spacing = " x ".join(f"{mm:g}" for mm in store.settings_of(cohort.dataset.url).spacing_mm)
    content = {
        "name": name,
        "description": f"Chest CT prepared by dskprep. All volumes have the spacing {spacing} mm (z, y, x): keep it, "
        "so that nothing is resampled twice.",
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

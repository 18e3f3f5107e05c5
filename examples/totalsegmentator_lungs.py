"""Lungs by TotalSegmentator's task `total`, its five lobes merged into two lungs. For TotalSegmentator 2.18.0.

In the settings file:

    lungs = "totalsegmentator_lungs:find_lungs"
    mask_memory = "12GiB"
    mask_slots = 1

It loads its network for every image by itself, so this is a function and not a class.
"""

from __future__ import annotations

import os

import numpy as np

from dskprep import AIR_HU, Volume, to_nifti

LOBES = {
    "lung_upper_lobe_right": 1,
    "lung_middle_lobe_right": 1,
    "lung_lower_lobe_right": 1,
    "lung_upper_lobe_left": 2,
    "lung_lower_lobe_left": 2,
}
"""The lung that each lobe belongs to."""


def find_lungs(image: Volume) -> Volume:
    """Return the mask of both lungs, on the grid of the image."""
    import torch
    from totalsegmentator.map_to_binary import class_map
    from totalsegmentator.python_api import totalsegmentator

    n_gpus = torch.cuda.device_count()
    slot = int(os.environ.get("DSKPREP_MASK_SLOT", "0"))
    found = totalsegmentator(
        to_nifti(image.with_array(np.maximum(image.array, AIR_HU))),  # no PADDING
        None,
        ml=True,
        roi_subset=list(LOBES),
        device=f"gpu:{slot % n_gpus}" if n_gpus else "cpu",
        quiet=True,
    )
    labels = np.asarray(found.dataobj).T  # (x, y, z) to (z, y, x)
    mask = np.zeros(image.shape, np.uint8)
    for number, name in class_map["total"].items():
        if name in LOBES:
            mask[labels == number] = LOBES[name]
    return image.with_array(mask)

"""Lungs by lungmask's U-Net R231, whose labels are those of dskprep: 1 right, 2 left. For lungmask 0.2.22.

In the settings file:

    lungs = "lungmask_lungs:LungMask"
    mask_memory = "4GiB"
    mask_slots = 1
"""

from __future__ import annotations

import os

from dskprep import Volume


class LungMask:
    """A network that is loaded once, and called for each image."""

    def __init__(self) -> None:
        import torch
        from lungmask import LMInferer

        if torch.cuda.is_available():  # the slots take turns in the GPUs
            torch.cuda.set_device(int(os.environ.get("DSKPREP_MASK_SLOT", "0")) % torch.cuda.device_count())
        self._inferer = LMInferer(modelname="R231", batch_size=20, tqdm_disable=True)

    def __call__(self, image: Volume) -> Volume:
        # (z, y to the back, x to the left), as lungmask takes arrays; it cuts PADDING to -1024 HU itself
        return image.with_array(self._inferer.apply(image.array))

"""The class of lungmask 0.2.22, which takes an array (z, y to the back, x to the left)."""

import numpy as np
import torch


class LMInferer:
    def __init__(
        self,
        modelname="R231",
        modelpath=None,
        fillmodel=None,
        fillmodel_path=None,
        force_cpu=False,
        batch_size=20,
        volume_postprocessing=True,
        tqdm_disable=False,
    ):
        assert (modelname, force_cpu, torch.used) == ("R231", False, [0])
        print("No GPU found, using CPU instead")

    def apply(self, image):
        assert isinstance(image, np.ndarray)
        hu = np.clip(image.copy(), -1024, 600)
        is_lung = (hu > -950) & (hu < -500)
        is_left = np.arange(hu.shape[2]) >= hu.shape[2] // 2
        return (is_lung * np.where(is_left, 2, 1)).astype(np.uint8)

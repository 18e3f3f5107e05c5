"""Lungs by a network of your own in an ONNX file. For onnxruntime 1.32.0 (in a clone: pip install '.[onnx]').

In the settings file:

    lungs = "onnx_lungs:Lungs"
    mask_memory = "2GiB"
    mask_slots = 1

The file's path is in the environment variable LUNGS_ONNX, here and on every worker. The network gets axial slices,
float32 (n, 1, height, width), and returns scores (n, 3, height, width): outside, right lung, left lung. Change
`_to_input` to what yours was trained on.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dskprep import Volume

BATCH = 16
"""Slices that go through the network together."""
LOW_HU, HIGH_HU = -1024, 600
"""The HU that become 0 and 1."""


class Lungs:
    """A network that is loaded once, and called for each image."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # 0: as many as there are cores
        providers = [p for p in onnxruntime.get_available_providers() if p != "AzureExecutionProvider"]
        self._session = onnxruntime.InferenceSession(os.environ["LUNGS_ONNX"], options, providers)
        (self._input,) = self._session.get_inputs()

    def __call__(self, image: Volume) -> Volume:
        mask = np.empty(image.shape, np.uint8)
        for first in range(0, len(mask), BATCH):
            slices = image.array[first : first + BATCH]
            try:
                (scores,) = self._session.run(None, {self._input.name: self._to_input(slices)})
            except Exception as error:
                if "allocate memory" in str(error):  # onnxruntime has no exception of its own for it
                    raise MemoryError(str(error)) from error
                raise
            labels = scores.argmax(axis=1).astype(np.uint8)
            mask[first : first + BATCH] = _resize(labels, slices.shape, order=0)
        return image.with_array(mask)

    def _to_input(self, slices: NDArray[np.int16]) -> NDArray[np.float32]:
        height, width = self._input.shape[2:]  # numbers, or names where the network takes any size
        size = (height, width) if isinstance(height, int) else slices.shape[1:]
        scaled = (np.clip(slices, LOW_HU, HIGH_HU).astype(np.float32) - LOW_HU) / (HIGH_HU - LOW_HU)
        return _resize(scaled, (len(slices), *size), order=1)[:, None]


def _resize(slices: NDArray, shape: tuple[int, ...], order: int) -> NDArray:
    """Resize slices (n, y, x): the outer edges of the first and the last pixel stay where they are."""
    factors = [new / old for new, old in zip(shape, slices.shape, strict=True)]
    return ndimage.zoom(slices, factors, order=order, grid_mode=True, mode="nearest")

"""The steps that zuidhof and luo-2017 share: those of Kaggle's 'Full Preprocessing Tutorial' (G. Zuidhof, 2017)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.kernels import values
from dskprep.preparation import zoom
from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import ENCODING_SHARE, Memory
from dskprep.settings import PrepConfig
from dskprep.volume import Triple, Volume

STORED_PADDING = -2000
"""What one vendor stores outside the round field of view (T7)."""
MIN_HU, MAX_HU = -1000.0, 400.0
"""HU that become 0 and 1; what is beyond is clipped."""
PIXEL_MEAN = 0.25
"""The mean that is subtracted; the tutorial's, of its data set."""
ORDER = 3
"""The order of the spline: cubic (T9)."""
COMPUTING_SHARE = 1.5
"""Bytes per byte of the int16 image while the lungs are found: itself and its mask (0.5)."""
FLOAT_SHARE = 2.1
"""Bytes per byte of floats while they are encoded: themselves and the encoded objects (up to 0.8), and a margin."""


def to_hu(stored: NDArray[np.generic], slope: float, intercept: float, out: NDArray[np.int16]) -> None:
    """Write the HU of a slice of stored values (y, x) into `out`: steps 3 and 4.

    Padding becomes 0 before the rescale (T7). Products and intercept lose their fractions, and int16 wraps (T8).
    """
    out[...] = stored
    out[out == STORED_PADDING] = 0
    rescale(out, slope, intercept)


def rescale(values: NDArray[np.int16], slope: float, intercept: float) -> None:
    """Turn stored values into HU, in place: step 4."""
    with np.errstate(invalid="ignore"):  # what int16 cannot hold wraps
        if slope != 1:
            values[...] = (slope * values.astype(np.float64)).astype(np.int64).astype(np.int16)
        values += np.float64(intercept).astype(np.int64).astype(np.int16)


def new_shape(volume: Volume, first_gap_mm: float, spacing_mm: Triple = (1.0, 1.0, 1.0)) -> tuple[int, int, int]:
    """Return the shape at `spacing_mm` (z, y, x): step 5. The distance of the first two slices counts for all (T2).

    Raises Refusal `no-thickness` if that leaves no voxels.
    """
    old = (first_gap_mm, *volume.spacing[1:])
    z, y, x = (int(n) for n in np.round(np.array(volume.shape) * np.array(old) / np.array(spacing_mm)))
    if min(z, y, x) < 1:
        raise Refusal(
            "no-thickness",
            f"expected the first two slices some way apart along the patient, found {first_gap_mm:g} mm, which the "
            f"recipe takes for the thickness of all: an image of {z} x {y} x {x} voxels",
        )
    return z, y, x


def resample(volume: Volume, first_gap_mm: float, spacing_mm: Triple) -> Volume:
    """Resample int16 HU (z, y, x) with a cubic spline: step 5.

    The spline rings (T9), first and last voxels stay in place (T10), and nothing is smoothed (T11). The affine says
    where the voxels truly lie.
    """
    shape = new_shape(volume, first_gap_mm, spacing_mm)
    z, y, x = (zoom.taps(n, n_out, ORDER) for n, n_out in zip(volume.shape, shape, strict=True))
    array = zoom.zoom(volume.array.__getitem__, z, y, x, np.int16)
    return Volume(array, zoom.zoomed_affine(volume, shape))


def normalize(image: Volume, dtype: str) -> Prepared:
    """Store int16 HU as they are (the tip of step 14), or as floats, normalized and centred (steps 12 and 13)."""
    if dtype == "int16":
        return Prepared(image, None)
    every_hu = np.arange(-32768, 32768, dtype=np.float64)
    table = (np.clip((every_hu - MIN_HU) / (MAX_HU - MIN_HU), 0.0, 1.0) - PIXEL_MEAN).astype(dtype)
    array = np.empty(image.shape, dtype)
    for plane, out in zip(image.array, array, strict=True):
        values.look_up(plane, table, out)
    return Prepared(image.with_array(array), None, values="normalized", fill=-PIXEL_MEAN)


def memory(n_native: int, n_output: float, config: PrepConfig) -> Memory:  # noqa: ARG001
    """Return the memory of zuidhof and luo-2017: floats stand beside the HU that they are made of."""
    hu = 2 * n_output
    if config.dtype == "int16":
        return Memory(COMPUTING_SHARE * hu, ENCODING_SHARE * hu)
    floats = np.dtype(config.dtype).itemsize * n_output
    return Memory(COMPUTING_SHARE * hu + floats, hu / 2 + FLOAT_SHARE * floats)

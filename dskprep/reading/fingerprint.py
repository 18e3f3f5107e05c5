"""How alike two volumes are, by their thumbnails: the same acquisition under another name, kernel, thickness or crop.

A thumbnail has an axial and a coronal plane through the middle of the lungs, so it shows about the same planes of every
reconstruction of an acquisition, and reading it costs 4 KB. Edges of 2 to 10 mm are kept: vessels, bronchi, bones, the
skin. Two planes are moved over each other, in millimetres, and compared where they overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from dskprep.dataset import thumbnail
from dskprep.volume import Triple

PIXEL_MM = 3.0
"""Edge of the pixels in which planes are compared."""
EDGE = 160
"""Pixels along each side: 480 mm. What lies beyond is cut off."""
MOST_MM = 3000.0
"""Longest edge of a volume that is looked at."""
LEAST_MM = 0.01
"""Shortest distance of a picture's pixels that is looked at: blurs are so many pixels wide."""
FINE_MM, COARSE_MM = 1.5, 5.0
"""Standard deviations of the two blurs whose difference keeps the edges."""
COLOURED = 40
"""Least difference of red, green and blue where the outline of a lung is drawn."""
FILL_MM = 4.0
"""What is under an outline is taken from this far."""
LEAST_OVERLAP = 0.6
"""Share of the smaller plane that must lie on the other one."""
LEAST_ENERGY = 0.2
"""Share of the energy of each plane's edges that must lie on the other plane."""
LEAST_EDGE = 1e-3
"""Root mean square of edges, in shares of the window from black to white, below which a plane shows nothing."""
BAND = 14
"""Frequencies, from 0 on, that a vector keeps along each axis."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The edges of the axial and the coronal plane, each (rows, columns) in pixels of PIXEL_MM."""

    planes: tuple[Floats, Floats]

    @property
    def vector(self) -> Floats:
        """What is compared to find volumes that may be alike: it does not change when a plane is moved."""
        parts = []
        for plane in self.planes:
            strength = np.sqrt(np.abs(fft.rfft2(plane, s=(EDGE, EDGE), workers=1)))
            parts += [strength[:BAND, :BAND].ravel(), strength[-BAND:, :BAND].ravel()]
        vector = np.concatenate(parts).astype(np.float32)
        unit: Floats = vector / max(float(np.linalg.norm(vector)), 1e-6)
        return unit


def of(picture: bytes, shape: tuple[int, int, int], spacing_mm: Triple) -> Fingerprint:
    """Make the fingerprint of a volume of that shape and spacing (z, y, x). Raises ValueError if it cannot be."""
    if not all(mm > 0 for mm in spacing_mm):  # nor a number that is none
        raise ValueError(f"expected a spacing above 0 mm, found {spacing_mm}")
    axial, coronal = thumbnail.read(picture, shape, spacing_mm)
    (z_mm, y_mm, x_mm), (n_z, n_y, n_x) = spacing_mm, shape
    return Fingerprint(
        (_edges(axial, (n_y * y_mm, n_x * x_mm)), _edges(coronal, (n_z * z_mm, n_x * x_mm))),
    )


def likeness(one: Fingerprint, other: Fingerprint) -> float:
    """Return how alike two volumes are: 1 if they are the same, mostly below 0.4 if they are two patients."""
    return sum(_likeness(a, b) for a, b in zip(one.planes, other.planes, strict=True)) / len(one.planes)


def _edges(colours: NDArray[np.uint8], size_mm: tuple[float, float]) -> Floats:
    """Return the edges of a plane, given in colours (rows, columns, 3), without the outlines of the lungs."""
    if max(size_mm) > MOST_MM:
        raise ValueError(f"expected a volume of at most {MOST_MM:.0f} mm, found {max(size_mm):.0f} mm")
    mm = np.divide(size_mm, colours.shape[:2])
    if min(mm) < LEAST_MM:
        raise ValueError(f"expected pixels of {LEAST_MM} mm or more, found {min(mm):g} mm")
    grey = colours.mean(axis=2, dtype=np.float32) / 255
    is_outline = ndimage.binary_dilation(np.ptp(colours, axis=2) > COLOURED)
    weight = np.where(is_outline, np.float32(0), np.float32(1))
    around = ndimage.gaussian_filter(grey * weight, FILL_MM / mm) / np.maximum(
        ndimage.gaussian_filter(weight, FILL_MM / mm), 1e-3
    )
    grey = np.where(is_outline, around, grey)
    edges = ndimage.gaussian_filter(grey, FINE_MM / mm) - ndimage.gaussian_filter(grey, COARSE_MM / mm)
    scaled: Floats = ndimage.zoom(edges, mm / PIXEL_MM, order=1)[:EDGE, :EDGE].astype(np.float32)
    return scaled


def _likeness(one: Floats, other: Floats) -> float:
    """Return the largest correlation of two planes that are moved over each other, where they overlap enough.

    Where hardly any edges of one of them lie on the other, there is nothing to compare, and the transforms' rounding
    errors would decide.
    """
    size = [fft.next_fast_len(a + b - 1, real=True) for a, b in zip(one.shape, other.shape, strict=True)]

    def together(a: Floats, b: Floats) -> Floats:
        product = fft.rfft2(a, s=size, workers=1) * np.conj(fft.rfft2(b, s=size, workers=1))
        moved: Floats = fft.irfft2(product, s=size, workers=1)
        return moved

    here, there = np.ones_like(one), np.ones_like(other)
    energies = together(one * one, there), together(here, other * other)
    is_enough = together(here, there) >= LEAST_OVERLAP * min(one.size, other.size)
    for energy, plane in zip(energies, (one, other), strict=True):
        is_enough &= energy >= max(LEAST_ENERGY * float((plane * plane).sum()), LEAST_EDGE**2 * plane.size)
    if not is_enough.any():
        return 0.0
    alike = together(one, other)[is_enough] / np.sqrt(energies[0][is_enough] * energies[1][is_enough])
    return min(1.0, float(alike.max(initial=0.0)))

"""Pictures of a volume and its lungs. The only user of matplotlib."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dskprep import comparison
from dskprep.comparison import Compared, Difference
from dskprep.dataset import StoredVolume
from dskprep.errors import UsageError
from dskprep.volume import Volume

LUNG_WINDOW_HU = (-1350, 150)
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}
DIFFERENCE_HU = (0, 300)
OUTLINES = {1: "#56b4e9", 2: "#e69f00"}


def of_stored(stored: StoredVolume) -> bytes:
    """A PNG of a written volume."""
    geometry = stored.record["geometry"]
    title = (
        f"{stored.key}: {' x '.join(map(str, geometry['shape']))} voxels of {' x '.join(map(str, stored.spacing))} mm"
    )
    if stored.lungs is None:
        return three_planes(stored.load(), None, title)
    found = stored.record["lungs"]
    title += f"; right lung {found['right_ml']:.0f} ml, left lung {found['left_ml']:.0f} ml"
    return three_planes(stored.load(), np.asarray(stored.lungs[...]), title)


def three_planes(volume: Volume, mask: NDArray[np.uint8] | None, title: str) -> bytes:
    """A PNG of the axial, coronal and sagittal plane through the lungs, with their outline.

    The sagittal plane goes through the middle of the right lung. The patient's left is on the right of
    the picture, the front is up or left, the head is up.
    """
    centre = _centre(volume, mask)
    z_mm, y_mm, x_mm = volume.spacing
    shape_mm = np.multiply(volume.shape, volume.spacing)
    widths = [shape_mm[2], shape_mm[2], shape_mm[1]]
    figure = Figure(figsize=(13, 13 * max(shape_mm[0], shape_mm[1]) / sum(widths) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, 3, width_ratios=widths)
    for ax, (name, axis), aspect in zip(axes, PLANES.items(), (y_mm / x_mm, z_mm / x_mm, z_mm / y_mm), strict=True):
        _draw(ax, np.take(volume.array, centre[axis], axis), LUNG_WINDOW_HU, aspect, is_upright=axis > 0)
        if mask is not None:
            plane = np.take(mask, centre[axis], axis)
            for label, colour in OUTLINES.items():
                if (plane == label).any():
                    ax.contour(plane == label, [0.5], colors=colour, linewidths=0.8)
        ax.set_title(f"{name}, {'zyx'[axis]} = {centre[axis]}", fontsize=9)
    return _png(figure)


def of_comparison(compared: Compared, names: tuple[str, str]) -> bytes:
    """A PNG of two preparations in HU and what is between them, axial and coronal, on the first one's grid.

    The planes go through the largest difference of the lungs, or of the HU where there are no lungs; the
    first lungs are outlined in blue, the second ones in orange.
    """
    first, apart = compared.first, compared.apart_hu
    if compared.second is None or apart is None:
        raise UsageError("only images that hold HU can be drawn side by side")
    lungs = (first.lungs, compared.second_lungs)
    differs = np.nan_to_num(apart) if lungs[1] is None or lungs[0] is None else (lungs[0] > 0) != (lungs[1] > 0)
    images = {names[0]: comparison.to_hu(first), names[1]: compared.second.array, "difference": apart}
    z_mm, y_mm, x_mm = first.image.spacing
    figure = Figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(_in_words(compared.difference), fontsize=10)
    axes = figure.subplots(2, 3)
    for row, (axis, aspect) in zip(axes, ((0, y_mm / x_mm), (1, z_mm / x_mm)), strict=True):
        index = int(differs.sum(axis=tuple(a for a in range(3) if a != axis)).argmax())
        for ax, (name, array) in zip(row, images.items(), strict=True):
            window = DIFFERENCE_HU if name == "difference" else LUNG_WINDOW_HU
            _draw(ax, np.take(array, index, axis), window, aspect, is_upright=axis > 0)
            for mask, colour in zip(lungs, OUTLINES.values(), strict=True):
                plane = None if mask is None else np.take(mask, index, axis) > 0
                if plane is not None and plane.any():
                    ax.contour(plane, [0.5], colors=colour, linewidths=0.8)
            ax.set_title(f"{name}, {'zyx'[axis]} = {index}", fontsize=9)
    return _png(figure)


def _in_words(difference: Difference) -> str:
    words = [difference.key]
    if difference.mean_hu is not None:
        words.append(f"HU apart: mean {difference.mean_hu:.1f}, max {difference.max_hu:.0f}")
    if difference.dice is not None:
        words.append(f"lungs: Dice {difference.dice:.4f}, {difference.lungs_ml:+.0f} ml")
    return "; ".join(words)


def _centre(volume: Volume, mask: NDArray[np.uint8] | None) -> list[int]:
    """The planes to show: through the middle of the lungs, else of the volume."""
    if mask is None or not mask.any():
        return [n // 2 for n in volume.shape]
    right = mask == 1 if (mask == 1).any() else mask > 0
    z, y = (_middle(mask > 0, axis) for axis in (0, 1))
    return [z, y, _middle(right, 2)]


def _middle(mask: NDArray[np.bool_], axis: int) -> int:
    """Where half of the mask lies to either side along an axis."""
    along = mask.sum(axis=tuple(a for a in range(3) if a != axis)).cumsum()
    return int(np.searchsorted(along, along[-1] / 2))


def _draw(ax: Any, plane: NDArray[Any], window_hu: tuple[int, int], aspect: float, *, is_upright: bool) -> None:
    low, high = window_hu
    ax.imshow(plane, cmap="gray", vmin=low, vmax=high, aspect=aspect, origin="lower" if is_upright else "upper")
    ax.set_axis_off()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()

"""Pictures of a volume and its lungs: planes, histogram and words. The only user of matplotlib."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dskprep.dataset import thumbnail
from dskprep.dataset.dataset import StoredVolume
from dskprep.dataset.record import Geometry, LungFigures, Source, source_of
from dskprep.errors import WARNINGS, UsageError
from dskprep.look import comparison, surface
from dskprep.look.comparison import Compared, Difference
from dskprep.preparation.prepared import Prepared
from dskprep.series.series import Series
from dskprep.volume import AIR_HU, PADDING, Volume

LUNG_WINDOW = thumbnail.WINDOWS["HU"]
DIFFERENCE_HU = (0, 300)
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}
OUTLINES = {label: f"#{red:02x}{green:02x}{blue:02x}" for label, (red, green, blue) in thumbnail.OUTLINE_RGB.items()}
SIDES = {1: "right lung", 2: "left lung"}

HISTOGRAM_HU = (-1100, 1500)
N_BARS = 130

SCALE_MM = 50
"""Length of the line in each plane."""

TURNS = (0, 40, -40)
"""Degrees by which the patient is turned in the three views of a surface."""

EDGE_INCHES = 4.0
"""Of a panel."""


@dataclass(frozen=True, eq=False)
class View:
    """A row of a picture: a volume in int16 HU, its lungs on the same grid if they are known, and what to say.

    With a `window`, what is black and what is white, the volume holds other values than HU.
    """

    title: str
    volume: Volume
    mask: NDArray[np.uint8] | None
    words: list[str]
    window: tuple[float, float] | None = None


def of_stored(stored: StoredVolume) -> View:
    """A written volume."""
    record = stored.record
    mask = None if stored.lungs is None else np.asarray(stored.lungs[...])
    words = in_words(record.source, record.geometry, record.lungs, record.warnings)
    return _view("as written", stored.load(), mask, stored.values, words)


def _view(title: str, image: Volume, mask: NDArray[np.uint8] | None, values: str, words: list[str]) -> View:
    """An image of any values, in HU if it tells them."""
    if values == "HU":
        return View(title, image, mask, words)
    if values in comparison.HU_OF:
        hu = np.nan_to_num(comparison.to_hu(comparison.View(image, values, None)), nan=AIR_HU)
        return View(title, image.with_array(np.rint(hu).astype(np.int16)), mask, words)
    return View(title, image, mask, words, (float(image.array.min()), float(image.array.max()) + 1e-6))


def of_series(series: Series) -> View:
    """A series as it was acquired, before any resampling."""
    decoded = series.decode()
    volume = decoded.volume
    return View("as acquired", volume, None, in_words(source_of(series.facts), warnings=decoded.warnings))


def of_prepared(prepared: Prepared) -> View:
    """A volume as a run would write it."""
    lungs, image = prepared.lungs, prepared.image
    figures = None if lungs is None else LungFigures(lungs.right_ml, lungs.left_ml, prepared.mean_lung_hu())
    geometry = Geometry(image.shape, image.spacing, ())
    words = in_words(None, geometry, figures, () if lungs is None else lungs.warnings)
    mask = None if lungs is None else lungs.mask.array
    return _view("as a run would write it", image, mask, prepared.values, words)


def in_words(
    source: Source | None = None,
    geometry: Geometry | None = None,
    lungs: LungFigures | None = None,
    warnings: Sequence[str] = (),
) -> list[str]:
    """Say in a few lines what is known of a volume: its series, its grid, its lungs, and doubts."""
    words = []
    if source:
        rows, columns = source.row_spacing_mm, source.column_spacing_mm
        pixels = f"{rows:.3g}" if abs(rows - columns) < 1e-6 else f"{rows:.3g} x {columns:.3g}"
        words.append(
            f"{source.slices} slices of {source.rows} x {source.columns}, every {source.step_mm:.4g} mm, "
            f"pixels of {pixels} mm"
        )
        scanner = " ".join(filter(None, (source.manufacturer, source.model)))
        how = [scanner, f"kernel {source.kernel}" if source.kernel else ""]
        how += [f"{source.kvp} kV" if source.kvp else "", "with contrast" * (source.contrast == "yes")]
        words.append(", ".join(filter(None, how)))
        if source.tilt_degrees:
            words.append(f"gantry tilted by {source.tilt_degrees:.1f} degrees")
    if geometry:
        shape = " x ".join(map(str, geometry.shape))
        words.append(f"{shape} voxels of {' x '.join(f'{mm:.4g}' for mm in geometry.spacing_mm)} mm (z, y, x)")
    if lungs:
        mean = "" if lungs.mean_hu is None else f", mean {lungs.mean_hu:.0f} HU"
        words.append(f"right lung {lungs.right_ml:.0f} ml, left lung {lungs.left_ml:.0f} ml{mean}")
    words += [f"{warning}: {WARNINGS[warning]}" for warning in warnings if warning in WARNINGS]
    return [line for line in words if line]


def draw(title: str, *views: View) -> bytes:
    """A PNG: a row for each view, of the axial, coronal and sagittal plane through the lungs, a histogram, and words.

    The sagittal plane goes through the middle of the right lung. The patient's left is on the right of
    the picture, the front is up or left, the head is up. Each plane fills its panel, whatever its shape:
    the line is SCALE_MM long.
    """
    last = views[-1]
    centre_mm = last.volume.to_patient(thumbnail.middle(last.volume.shape, last.mask))
    words = ["\n".join(textwrap.wrap("   |   ".join(view.words), 230)) for view in views]
    heights = [height for text in words for height in (EDGE_INCHES, 0.2 + 0.18 * (1 + text.count("\n")))]
    figure = Figure(figsize=(4 * EDGE_INCHES, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=12)
    grid = figure.add_gridspec(2 * len(views), 4, height_ratios=heights)
    for row, (view, text) in enumerate(zip(views, words, strict=True)):
        panels = [figure.add_subplot(grid[2 * row, column]) for column in range(4)]
        _draw_planes(panels[:3], view, centre_mm)
        _draw_histogram(panels[3], view)
        line = figure.add_subplot(grid[2 * row + 1, :])
        line.set_axis_off()
        line.text(0.01, 0.9, text.replace("$", r"\$"), va="top", fontsize=9)
    return _png(figure)


def draw_surface(title: str, view: View, kind: str) -> bytes:
    """A PNG of a surface, lit, from three sides: `lungs` (of the mask), `bone` or `tissue`.

    Raises UsageError for bone or tissue of a volume that holds no HU.
    """
    if kind != "lungs" and view.window is not None:
        raise UsageError(f"{title}: holds no HU, so {kind} cannot be found; its lungs can be drawn")
    figure = Figure(figsize=(3 * EDGE_INCHES, EDGE_INCHES + 0.4), layout="constrained", facecolor="black")
    figure.suptitle(f"{title}: {kind}", fontsize=11, color="white")
    for ax, degrees in zip(figure.subplots(1, 3), TURNS, strict=True):
        if kind == "lungs":
            mask = np.zeros(view.volume.shape, np.uint8) if view.mask is None else view.mask
            picture = surface.of_mask(view.volume.with_array(mask), degrees)
        else:
            picture = surface.of_hu(view.volume, kind, degrees)
        ax.imshow(_cropped(picture), interpolation="bilinear")
        ax.set_axis_off()
    return _png(figure)


def _cropped(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """A picture without the black beside what it shows."""
    lit: NDArray[np.bool_] = np.max(picture, axis=2) > 0
    if not lit.any():
        return picture
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


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
    figure.suptitle(_difference_in_words(compared.difference), fontsize=10)
    axes = figure.subplots(2, 3)
    for row, (axis, aspect) in zip(axes, ((0, y_mm / x_mm), (1, z_mm / x_mm)), strict=True):
        index = int(differs.sum(axis=tuple(a for a in range(3) if a != axis)).argmax())
        for ax, (name, array) in zip(row, images.items(), strict=True):
            window = DIFFERENCE_HU if name == "difference" else LUNG_WINDOW
            _draw(ax, np.take(array, index, axis), window, aspect, is_upright=axis > 0)
            for mask, colour in zip(lungs, OUTLINES.values(), strict=True):
                plane = None if mask is None else np.take(mask, index, axis) > 0
                if plane is not None and plane.any():
                    ax.contour(plane, [0.5], colors=colour, linewidths=0.8)
            ax.set_title(f"{name}, {'zyx'[axis]} = {index}", fontsize=9)
    return _png(figure)


def _difference_in_words(difference: Difference) -> str:
    words = [difference.key]
    if difference.mean_hu is not None:
        words.append(f"HU apart: mean {difference.mean_hu:.1f}, max {difference.max_hu:.0f}")
    if difference.dice is not None:
        words.append(f"lungs: Dice {difference.dice:.4f}, {difference.lungs_ml:+.0f} ml")
    return "; ".join(words)


def _draw_planes(axes: Any, view: View, centre_mm: NDArray[np.float64]) -> None:
    low, high = view.window or LUNG_WINDOW
    index = np.rint(view.volume.to_index(centre_mm)).astype(int)
    centre = np.clip(index, 0, np.array(view.volume.shape) - 1).tolist()
    z_mm, y_mm, x_mm = view.volume.spacing
    for ax, (name, axis), (down_mm, across_mm) in zip(
        axes, PLANES.items(), ((y_mm, x_mm), (z_mm, x_mm), (z_mm, y_mm)), strict=True
    ):
        plane = np.take(view.volume.array, centre[axis], axis)
        down, across = plane.shape[0] * down_mm, plane.shape[1] * across_mm
        extent = (0, across, down, 0) if axis == 0 else (0, across, 0, down)
        ax.imshow(plane, cmap="gray", vmin=low, vmax=high, extent=extent, origin="upper" if axis == 0 else "lower")
        if view.mask is not None:
            labels = np.take(view.mask, centre[axis], axis)
            x, y = (np.arange(n) + 0.5 for n in (plane.shape[1], plane.shape[0]))
            for label, colour in OUTLINES.items():
                if (labels == label).any() and min(labels.shape) > 1:
                    ax.contour(x * across_mm, y * down_mm, labels == label, [0.5], colors=colour, linewidths=0.8)
        side = max(down, across)
        bottom, top = (down + side) / 2, (down - side) / 2
        ax.set(xlim=((across - side) / 2, (across + side) / 2), ylim=(bottom, top) if axis == 0 else (top, bottom))
        ax.set(xticks=[], yticks=[], facecolor="black")
        left, edge = (across - side) / 2 + 0.04 * side, (bottom if axis == 0 else top)
        at = edge + (-0.04 if axis == 0 else 0.04) * side
        ax.plot([left, left + SCALE_MM], [at, at], color="white", linewidth=2, solid_capstyle="butt")
        ax.set_title(f"{view.title}: {name}" if axis == 0 else name, fontsize=9)


def _draw_histogram(ax: Any, view: View) -> None:
    """Litres of each HU, by logarithm: all of the volume in grey, the lungs in their colours."""
    low, high = view.window or HISTOGRAM_HU
    edges = np.linspace(low, high, N_BARS + 1)
    ml = view.volume.voxel_ml
    array = view.volume.array
    ax.stairs(ml * np.histogram(array[array != PADDING], edges)[0], edges, fill=True, color="0.75", label="all")
    if view.mask is not None:
        for label, colour in OUTLINES.items():
            values = array[view.mask == label]
            if len(values):
                ax.stairs(ml * np.histogram(values, edges)[0], edges, color=colour, label=SIDES[label])
    ax.set_yscale("log")
    ax.set_ylim(bottom=ml)
    ax.set_ylabel(f"ml a bar of {(high - low) / N_BARS:.3g}", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.legend(fontsize=7, frameon=False, loc="upper right")
    ax.set_title("HU" if view.window is None else "values", fontsize=9)


def _draw(ax: Any, plane: NDArray[Any], window_hu: tuple[float, float], aspect: float, *, is_upright: bool) -> None:
    low, high = window_hu
    ax.imshow(plane, cmap="gray", vmin=low, vmax=high, aspect=aspect, origin="lower" if is_upright else "upper")
    ax.set_axis_off()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()

"""Pictures of a volume and its lungs: planes, a histogram, surfaces, and what is known of it in words."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dskprep import sides
from dskprep.dataset import thumbnail
from dskprep.dataset.facts import Geometry, LungFigures, Source, source_of
from dskprep.dataset.stored import StoredVolume
from dskprep.errors import WARNINGS, UsageError
from dskprep.look import comparison, outlines, surface
from dskprep.look.comparison import Compared, Difference, Preparation
from dskprep.look.histogram import draw_histogram
from dskprep.look.outlines import OUTLINES, Outline
from dskprep.preparation.prepared import Prepared
from dskprep.series.series import Series
from dskprep.volume import AIR_HU, Volume

LUNG_WINDOW = thumbnail.WINDOWS["HU"]
"""HU that are black and white in a plane."""
DIFFERENCE_HU = (0, 300)
"""HU between two preparations that are black and white where their difference is drawn."""
SCALE_MM = 50
"""Length of the line that shows the scale of a plane."""
TURNS = (0, 40, -40)
"""Degrees by which the patient is turned in the three views of a surface."""
EDGE_INCHES = 4.0
"""Edge of a panel, at 100 pixels per inch."""


@dataclass(frozen=True, eq=False)
class View:
    """One row of a picture: a volume (z, y, x), its lungs on the same grid if they are known, and lines of text.

    The volume holds int16 HU; with a `window`, the values that are black and white, it holds other values. `labels` are
    on its grid too. Planes cross in `middle_mm` (LPS), or in the middle of the lungs.
    """

    title: str
    volume: Volume
    mask: NDArray[np.uint8] | None
    words: list[str]
    window: tuple[float, float] | None = None
    labels: tuple[Outline, ...] = ()
    middle_mm: NDArray[np.float64] | None = None


def of_stored(stored: StoredVolume, label: str | None = None) -> View:
    """Return the view of a written volume with its labels, through the middle of one of them, by default the first.

    Raises UsageError if there is no such label.
    """
    record, labels = stored.record, outlines.of_stored(stored)
    words = in_words(record.source, record.geometry, record.lungs, record.warnings)
    view = _view("as written", Preparation.of_stored(stored), words)
    return replace(view, labels=labels, middle_mm=outlines.centre_of(labels, label))


def of_prepared(prepared: Prepared) -> View:
    """Return the view of a volume as a run would write it."""
    lungs, image = prepared.lungs, prepared.image
    figures = None
    if lungs:
        figures = LungFigures(
            lungs.right_ml,
            lungs.left_ml,
            lungs.unsided_ml,
            prepared.mean_lung_hu(),
            missing_ml=lungs.missing_ml,
            missing_place=lungs.missing_place,
        )
    words = in_words(None, Geometry(image.shape, image.spacing, ()), figures, lungs.warnings if lungs else ())
    return _view("as a run would write it", Preparation.of_prepared(prepared), words)


def of_series(series: Series) -> View:
    """Return the view of a series as it was acquired, before any resampling."""
    decoded = series.decode()
    return View("as acquired", decoded.volume, None, in_words(source_of(series.facts), warnings=decoded.warnings))


def _view(title: str, shown: Preparation, words: list[str]) -> View:
    """Return the view of an image of any values, brought to HU where they can be."""
    image, window = shown.image, None
    if shown.values not in comparison.HU_SCALES:
        window = (float(image.array.min()), float(image.array.max()) + 1e-6)
    elif shown.values != "HU":
        hu = np.nan_to_num(comparison.to_hu(image.array, shown.values), nan=AIR_HU)
        image = image.with_array(np.rint(hu).astype(np.int16))
    return View(title, image, shown.lungs, words, window)


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
        kernel, voltage = source.kernel and f"kernel {source.kernel}", source.kvp and f"{source.kvp} kV"
        contrast = "with contrast" if source.contrast == "yes" else ""
        words.append(", ".join(filter(None, (scanner, kernel, voltage, contrast))))
        if source.tilt_degrees:
            words.append(f"gantry tilted by {source.tilt_degrees:.1f} degrees")
    if geometry:
        shape = " x ".join(map(str, geometry.shape))
        words.append(f"{shape} voxels of {' x '.join(f'{mm:.4g}' for mm in geometry.spacing_mm)} mm (z, y, x)")
    if lungs:
        mean = "" if lungs.mean_hu is None else f", mean {lungs.mean_hu:.0f} HU"
        sides_ml = f"right lung {lungs.right_ml:.0f} ml, left lung {lungs.left_ml:.0f} ml"
        words.append((f"lungs of unknown side {lungs.unsided_ml:.0f} ml" if lungs.unsided_ml else sides_ml) + mean)
        if lungs.missing_ml:
            words.append(f"missing lung: about {lungs.missing_ml:.0f} ml, {lungs.missing_place}")
    words += [f"{warning}: {WARNINGS[warning]}" for warning in warnings if warning in WARNINGS]
    return [line for line in words if line]


def draw(title: str, *views: View) -> bytes:
    """Draw planes through the lungs: a PNG with one row per view.

    A row holds the axial, coronal and sagittal plane, a histogram, and below them the words. The planes cross in the
    middle of a label of the last view, if it has any, or of its lungs, the sagittal one then in the right lung. The
    patient's left is on the right; up is the front in the axial plane, the head in the others; the front is left in the
    sagittal one. Outlines are the lungs, blue the right one, orange the left one, and labels in colours of their own.
    Each plane fills its panel whatever its size: the white line is SCALE_MM long.
    """
    last = views[-1]
    centre_mm = last.middle_mm
    if centre_mm is None:
        centre_mm = last.volume.to_patient(thumbnail.middle(last.volume.shape, last.mask))
    words = [textwrap.wrap("   |   ".join(view.words).replace("$", r"\$"), 230) for view in views]
    heights = [EDGE_INCHES + 0.2 + 0.18 * max(1, len(lines)) for lines in words]
    figure = Figure(figsize=(4 * EDGE_INCHES, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=12)
    rows = figure.subfigures(len(views), height_ratios=heights, squeeze=False)[:, 0]
    for row, view, lines in zip(rows, views, words, strict=True):
        *planes, histogram = row.subplots(1, 4)
        draw_histogram(
            histogram, view.volume, view.mask, view.window, _draw_planes(planes, view, centre_mm), len(view.labels)
        )
        row.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9)
    return _png(figure)


def draw_surface(title: str, view: View, kind: str) -> bytes:
    """Draw the surface of the `lungs` (of the mask), the `bone` or the `tissue` (of the HU): a PNG with three panels.

    The patient is seen from the front, then turned by each of TURNS about the long axis. The head is up.

    Raises UsageError for bone or tissue of a volume that holds no HU.
    """
    if kind != "lungs" and view.window is not None:
        raise UsageError(f"{title}: holds no HU, so {kind} cannot be found; its lungs can be drawn")
    figure = Figure(figsize=(3 * EDGE_INCHES, EDGE_INCHES + 0.4), layout="constrained", facecolor="black")
    figure.suptitle(f"{title}: {kind}", fontsize=11, color="white")
    if kind != "lungs":
        found = surface.of_hu(view.volume, kind)
    else:
        found = [] if view.mask is None else surface.of_mask(view.volume.with_array(view.mask))
    for ax, degrees in zip(figure.subplots(1, 3), TURNS, strict=True):
        ax.imshow(surface.draw(found, degrees), interpolation="bilinear")
        ax.set_axis_off()
    return _png(figure)


def draw_comparison(compared: Compared, names: tuple[str, str]) -> bytes:
    """Draw two preparations and the difference of their HU: a PNG with an axial and a coronal row.

    Both are on the grid of the first one. The planes go through the largest difference of the lungs, or of the HU
    where there are no lungs. The patient's left is on the right; up is the front in the axial row, the head in the
    coronal one. The first lungs are outlined in blue, the second ones in orange.

    Raises UsageError for images that hold no HU.
    """
    first, apart, lungs = compared.first, compared.apart_hu, (compared.first.lungs, compared.second_lungs)
    if compared.second is None or apart is None:
        raise UsageError("only images that hold HU can be drawn side by side")
    differs = np.nan_to_num(apart) if lungs[0] is None or lungs[1] is None else (lungs[0] > 0) != (lungs[1] > 0)
    images = (
        (names[0], comparison.to_hu(first.image.array, first.values), LUNG_WINDOW),
        (names[1], compared.second.array, LUNG_WINDOW),
        ("difference", apart, DIFFERENCE_HU),
    )
    figure = Figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(_describe(compared.difference), fontsize=10)
    for row, axis in zip(figure.subplots(2, 3), (0, 1), strict=True):
        index = int(differs.sum(axis=tuple(a for a in range(3) if a != axis)).argmax())
        shown = [
            (colour, np.take(mask, index, axis) > 0)
            for colour, mask in zip((OUTLINES[sides.RIGHT], OUTLINES[sides.LEFT]), lungs, strict=True)
            if mask is not None
        ]
        for ax, (name, array, window) in zip(row, images, strict=True):
            _draw_plane(ax, first.image.with_array(array), axis, index, window, shown)
            ax.set_axis_off()
            ax.set_title(f"{name}, {'zyx'[axis]} = {index}", fontsize=9)
    return _png(figure)


def _describe(difference: Difference) -> str:
    words = [difference.key]
    if difference.mean_hu is not None:
        words.append(f"HU apart: mean {difference.mean_hu:.1f}, max {difference.max_hu:.0f}")
    if difference.dice is not None:
        words.append(f"lungs: Dice {difference.dice:.4f}, {difference.lungs_ml:+.0f} ml")
    return "; ".join(words)


def _draw_planes(axes: Any, view: View, centre_mm: NDArray[np.float64]) -> list[Outline]:
    """Draw the three planes of a view through a place (x, y, z) of the patient, each in the middle of its square.

    Returns the labels that these planes cut.
    """
    cut: dict[str, Outline] = {}
    index = np.rint(view.volume.to_index(centre_mm)).astype(int)
    centre = np.clip(index, 0, np.array(view.volume.shape) - 1).tolist()
    for axis, (ax, name) in enumerate(zip(axes, ("axial", "coronal", "sagittal"), strict=True)):
        labels = None if view.mask is None else np.take(view.mask, centre[axis], axis)
        shown = [] if labels is None else [(colour, labels == side) for side, colour in OUTLINES.items()]
        for label in view.labels:
            inside = label.inside(axis, centre[axis])
            if inside.any():
                shown.append((label.colour, inside))
                cut[label.about.label] = label
        down, across = _draw_plane(ax, view.volume, axis, centre[axis], view.window or LUNG_WINDOW, shown)
        edge = max(down, across)
        left, bottom, top = (across - edge) / 2, (down + edge) / 2, (down - edge) / 2
        if axis > 0:
            bottom, top = top, bottom
        ax.set(xlim=(left, left + edge), ylim=(bottom, top), xticks=[], yticks=[], facecolor="black")
        start, height = left + 0.04 * edge, bottom + 0.04 * (top - bottom)
        ax.plot([start, start + SCALE_MM], [height, height], color="white", linewidth=2, solid_capstyle="butt")
        ax.set_title(f"{view.title}: {name}" if axis == 0 else name, fontsize=9)
    return [label for label in view.labels if label.about.label in cut]


def _draw_plane(
    ax: Any,
    volume: Volume,
    axis: int,
    index: int,
    window: tuple[float, float],
    shown: list[tuple[tuple[float, float, float], NDArray[np.bool_]]],
) -> tuple[float, float]:
    """Draw one plane of a volume with outlines (colour, what is inside) in mm; return its height and its width.

    Index 0 is at the top of an axial plane (axis 0) and at the bottom of others.
    """
    plane = np.take(volume.array, index, axis)
    down_mm, across_mm = np.delete(volume.spacing, axis)
    down, across = plane.shape[0] * down_mm, plane.shape[1] * across_mm
    extent = (0, across, down, 0) if axis == 0 else (0, across, 0, down)
    low, high = window
    ax.imshow(plane, cmap="gray", vmin=low, vmax=high, extent=extent, origin="upper" if axis == 0 else "lower")
    y, x = (np.arange(n) + 0.5 for n in plane.shape)
    for colour, inside in shown:
        if inside.any() and not inside.all() and min(inside.shape) > 1:
            ax.contour(x * across_mm, y * down_mm, inside, [0.5], colors=[colour], linewidths=0.8)
    return down, across


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()

"""Pictures of a volume and its lungs: planes, a histogram, surfaces, and what is known of it in words."""

from __future__ import annotations

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
from dskprep.errors import WARNINGS, UsageError
from dskprep.look import comparison, outlines, surface
from dskprep.look.comparison import Preparation
from dskprep.look.outlines import Outline
from dskprep.look.panels import (
    OUTLINES,
    PLANES,
    Inside,
    draw_histogram,
    draw_plane,
    lines_of,
    mark_scale,
    mark_sides,
    to_png,
)
from dskprep.preparation.prepared import Prepared
from dskprep.reading.stored import StoredVolume
from dskprep.series.series import Series
from dskprep.volume import AIR_HU, Volume, grid_in_words

LUNG_WINDOW = thumbnail.WINDOWS["HU"]
SOFT_WINDOW = (-160, 240)
"""HU that are black and white in a plane: for lung, and for soft tissue."""
NAMES = ("lung", "soft tissue")
"""What the windows are for."""
TURNS = {"from the front": 0, "from the front and 40° from the left": 40, "from the front and 40° from the right": -40}
"""The three views of a surface: degrees by which the patient's left side is turned towards the viewer."""
EDGE_INCHES = 4.0
"""Edge of a panel, at 100 pixels per inch."""
LINE, LONG = 220, 110
"""Most characters of a line below a picture, and of a phrase that is kept in one line."""
NO_BREAK = "\u00a0"
"""A space at which no line breaks."""


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

    `label` is a name or pattern, whose first match it is. Raises UsageError if none matches.
    """
    stored = _as_fine_as_pixels(stored)
    record, labels = stored.record, outlines.of_stored(stored, label)
    words = in_words(record.source, record.geometry, record.lungs, record.warnings)
    view = view_of("as written", Preparation.of_stored(stored), words)
    return replace(view, labels=labels, middle_mm=outlines.centre_of(labels, label))


def _as_fine_as_pixels(stored: StoredVolume) -> StoredVolume:
    """Return a volume at the coarsest level whose voxels are no larger than the pixels of a panel; else as it is."""
    pixel_mm = np.multiply(stored.shape, stored.spacing).max() / (100 * EDGE_INCHES)
    levels = [level for level in range(stored.n_levels) if 2**level * max(stored.spacing) <= pixel_mm]
    return stored.level(max(levels, default=0))


def of_prepared(prepared: Prepared) -> View:
    """Return the view of a volume as a run would write it."""
    lungs, image = prepared.lungs, prepared.image
    figures = LungFigures.of(lungs, prepared.mean_lung_hu()) if lungs else None
    words = in_words(None, Geometry(image.shape, image.spacing, ()), figures, lungs.warnings if lungs else ())
    return view_of("as a run would write it", Preparation.of_prepared(prepared), words)


def of_series(series: Series) -> View:
    """Return the view of a series as it was acquired, before any resampling."""
    decoded = series.decode()
    return View("as acquired", decoded.volume, None, in_words(source_of(series.facts), warnings=decoded.warnings))


def view_of(title: str, shown: Preparation, words: list[str]) -> View:
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
        words.append(grid_in_words(geometry.shape, geometry.spacing_mm))
    if lungs:
        mean = "" if lungs.mean_hu is None else f", mean {lungs.mean_hu:.0f} HU"
        words.append(sides.in_words(lungs.right_ml, lungs.left_ml, lungs.unsided_ml) + mean)
        if lungs.missing_ml:
            words.append(f"missing lung: about {lungs.missing_ml:.0f} ml, {lungs.missing_place}")
    words += [f"{warning}: {WARNINGS[warning]}" for warning in warnings if warning in WARNINGS]
    return [line for line in words if line]


def draw(title: str, *views: View) -> bytes:
    """Draw planes through the lungs: a PNG with one row per view.

    A row holds the axial, coronal and sagittal plane in the lung window, below them in that for soft tissue, a
    histogram, a legend and the words. A volume that holds no HU has one window. The planes cross in the middle of a
    label of the last view, if it has any, or of its lungs, the sagittal one then in the right lung. Letters say which
    side of the patient is where: right and left, front (A) and back (P), head and feet. Outlines are the lungs, blue
    the right one, orange the left one, green where they are not told apart, and labels in colours of their own: the one
    that was asked for, and what readers agree on, thicker and over the others. Each plane fills its panel
    whatever its size: the length of the white bar stands above it.
    """
    last = views[-1]
    centre_mm = last.middle_mm
    if centre_mm is None:
        centre_mm = last.volume.to_patient(thumbnail.middle(last.volume.shape, last.mask))
    words = [in_lines(view.words) for view in views]
    heights = [
        (EDGE_INCHES + 0.2) * (2 if view.window is None else 1) + 0.18 * max(1, len(lines))
        for view, lines in zip(views, words, strict=True)
    ]
    figure = Figure(figsize=(4 * EDGE_INCHES, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=12)
    rows = figure.subfigures(len(views), height_ratios=heights, squeeze=False)[:, 0]
    for row, view, lines in zip(rows, views, words, strict=True):
        _draw_view(row, view, centre_mm)
        row.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9)
    return to_png(figure)


def draw_surface(title: str, view: View, kind: str) -> bytes:
    """Draw the surface of the `lungs` (of the mask), the `bone` or the `tissue` (of the HU): a PNG with three panels.

    The patient is seen from the front, then turned about the long axis, as TURNS says. The head is up.

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
    for ax, (name, degrees) in zip(figure.subplots(1, 3), TURNS.items(), strict=True):
        drawn = surface.draw(found, degrees)
        rows, columns = (n * surface.PIXEL_MM for n in drawn.shape[:2])
        ax.imshow(drawn, interpolation="bilinear", extent=(0, columns, rows, 0))
        ax.set_axis_off()
        ax.set_title(name, fontsize=9, color="white")
        if found:
            mark_sides(ax, PLANES["coronal"])
            mark_scale(ax)
    return to_png(figure)


def in_lines(words: list[str]) -> list[str]:
    """Set phrases side by side in lines, which break between them, or within those that are long."""
    kept = [phrase if len(phrase) > LONG else phrase.replace(" ", NO_BREAK) for phrase in words]
    lines = textwrap.wrap(f" {NO_BREAK * 2}|{NO_BREAK * 2} ".join(kept), LINE, break_on_hyphens=False)
    return [line.strip(f" {NO_BREAK}|").replace("$", r"\$") for line in lines]


def _draw_view(row: Any, view: View, centre_mm: NDArray[np.float64]) -> None:
    """Draw the planes of a view through a place (x, y, z) of the patient, its histogram and its legend.

    The lungs are outlined in the lung window, and the labels in both.
    """
    windows = [LUNG_WINDOW, SOFT_WINDOW] if view.window is None else [view.window]
    panels = row.subplots(len(windows), 4, squeeze=False)
    index = np.rint(view.volume.to_index(centre_mm)).astype(int)
    centre = np.clip(index, 0, np.array(view.volume.shape) - 1).tolist()
    cut: dict[str, outlines.Outline] = {}
    for axis, name in enumerate(PLANES):
        lungs = None if view.mask is None else np.take(view.mask, centre[axis], axis)
        insides = {label: label.inside(axis, centre[axis]) for label in view.labels}
        in_order = sorted(insides.items(), key=lambda each: each[0].rank)
        labels = [Inside(label.colour, inside, label.points) for label, inside in in_order if inside.any()]
        cut |= {label.about.label: label for label, inside in insides.items() if inside.any()}
        for number, window in enumerate(windows):
            ax = panels[number, axis]
            shown = labels
            if lungs is not None and not number:
                shown = [*(Inside(colour, lungs == side) for side, colour in OUTLINES.items()), *labels]
            draw_plane(ax, view.volume, axis, centre[axis], window, shown)
            ax.set_title(f"{view.title}: {name}" if axis == number == 0 else name, fontsize=9)
            if axis == 0 and view.window is None:
                ax.set_ylabel(f"{NAMES[number]}: {_in_hu(window)}", fontsize=9)
    draw_histogram(panels[0, 3], view.volume, view.mask, view.window)
    if len(windows) > 1:
        panels[1, 3].set_axis_off()
    lines = [*lines_of(view.mask), *outlines.legend(list(cut.values()), len(view.labels))]
    if lines:
        at = "upper left" if len(windows) > 1 else "upper right"
        panels[-1, 3].legend(handles=lines, fontsize=9 if len(windows) > 1 else 7, frameon=False, loc=at)


def _in_hu(window: tuple[float, float]) -> str:
    low, high = window
    return f"level {(low + high) / 2:g}, width {high - low:g} HU"

"""The picture of a series that is refused or set aside: the reason on a band, and below what can be drawn."""

from __future__ import annotations

import functools
import io
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from dskprep.dataset import thumbnail
from dskprep.errors import SET_ASIDE
from dskprep.look.panels import LETTERS, mark_scale, mark_sides
from dskprep.look.remains import FAR_MM, Floats, Remains, Trust

WARNING = "#f5a623"
"""The colour of the band of a refused series, and of blank places in a cut."""
CALM = "#c3ccd6"
"""The colour of the band where nothing is wrong."""
GAP, REPEATED = "#d62728", "#1f77b4"
"""The colours that mark, beside a cut, where slices are missing, and where more than one lies."""
WIDE = 1.5
"""Slices this many usual steps apart have a gap between them."""
PERCENTILES = (1, 99)
"""Which values are black and white where they are not HU."""
FLATTEST = 1 / 3
"""A cut is drawn at least this high for its width; a flatter one is stretched, so that its slices can be seen."""

DPI = 100
WIDTH, MARGIN, SLOT, PANEL = 12.6, 0.15, 4.15, 3.2
"""Inches: the picture, its margin, the room of a panel with its ticks and title, and the panel itself."""
SIDES = ("sagittal", "coronal", "axial")
"""The name of a plane whose normal lies along x, y and z."""

Style = tuple[float, str]
"""Size and weight of a font."""
TITLE, REASON, MESSAGE, WORDS = (12, "normal"), (13, "bold"), (10, "normal"), (9, "normal")


def draw(title: str, reason: str, message: str, remains: Remains | None, words: Sequence[str] = ()) -> bytes:
    """Draw a series that no volume is made of: a PNG with the reason and its whole message on a band, and below what
    can be drawn. The band is amber if it is refused, and grey if it is set aside, as nothing is wrong with it.

    That is the middle slice, and two cuts through the middle of all slices. In a cut each slice lies at its own
    position, and places that no slice covers are blank, in amber. The ticks beside it are the positions of the slices.
    Slices of one position only, or of none, are drawn one beside another.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a file's name may hold letters that the font lacks
        return _draw(title, reason, message, remains, words)


def _draw(title: str, reason: str, message: str, remains: Remains | None, words: Sequence[str]) -> bytes:
    figure = Figure(dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    head = _lines(canvas, [(title, TITLE)])
    word, colour = ("set aside", CALM) if reason in SET_ASIDE else ("refused", WARNING)
    band = _lines(canvas, [(f"{word}: {reason}", REASON), (message, MESSAGE)])
    told = [*(_describe(remains) if remains else ["no slice of it can be drawn"]), *words]
    foot = _lines(canvas, [(line, WORDS) for line in told])
    heights = [_height(head), _height(band), SLOT if remains else 0.0, _height(foot)]
    total = sum(heights)
    figure.set_size_inches(WIDTH, total)
    tops = total - np.cumsum([0.0, *heights[:-1]])
    corner, height = (0, (tops[1] - heights[1]) / total), heights[1] / total
    figure.add_artist(Rectangle(corner, 1, height, color=colour, linewidth=0, transform=figure.transFigure))
    for lines, top in ((head, tops[0]), (band, tops[1]), (foot, tops[3])):
        _write(figure, lines, top, total)
    if remains:
        panels = _panels(remains)
        left = (WIDTH - len(panels) * SLOT) / 2
        for number, panel in enumerate(panels):
            x, y = left + number * SLOT + 0.55, tops[2] - SLOT + 0.35
            panel(figure.add_axes((x / WIDTH, y / total, PANEL / WIDTH, PANEL / total)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": "dskprep"})
    return buffer.getvalue()


def wrap(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """Break a text into lines that measure no more than `width`: at spaces, and within words that are too long."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if measure(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and measure(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def measure_with(canvas: FigureCanvasAgg, style: Style) -> Callable[[str], float]:
    """Return what measures a text of a style, in inches."""
    font = FontProperties(size=style[0], weight=style[1])
    renderer: Any = canvas.get_renderer()  # type: ignore[no-untyped-call]
    return lambda text: float(renderer.get_text_width_height_descent(text, font, False)[0]) / DPI


def _lines(canvas: FigureCanvasAgg, texts: list[tuple[str, Style]]) -> list[tuple[str, Style]]:
    """Wrap texts to the width of the picture."""
    printable = [(text.encode(errors="backslashreplace").decode(), style) for text, style in texts]  # odd file names
    return [
        (line, style)
        for text, style in printable
        for line in wrap(text, WIDTH - 2 * MARGIN, measure_with(canvas, style))
    ]


def _height(lines: list[tuple[str, Style]]) -> float:
    return 0.16 + sum(_line_height(style) for _, style in lines)


def _line_height(style: Style) -> float:
    return 1.35 * style[0] / 72


def _write(figure: Figure, lines: list[tuple[str, Style]], top: float, total: float) -> None:
    y = top - 0.08
    for line, style in lines:
        size, weight = style
        figure.text(MARGIN / WIDTH, y / total, line, size=size, weight=weight, va="top", parse_math=False)
        y -= _line_height(style)


def _describe(remains: Remains) -> list[str]:
    """Say in a few lines what is drawn."""
    n_drawn, what = len(remains.along_mm), "localizer" if remains.is_localizer else "slice"
    is_part = n_drawn < remains.n_slices and not remains.is_localizer
    near = f"lie within {FAR_MM / 1000:g} m"
    which = f": those that decode, share size, pixel spacing and orientation, and {near}" if is_part else ""
    rows, columns = remains.plane.shape
    some = f"{n_drawn} of the {remains.n_slices}" if n_drawn < remains.n_slices else f"all {n_drawn}"
    drawn = f"the only {what} that is there" if remains.n_slices == 1 else f"{some} {what}s that are there"
    words = [f"{drawn}{which}; {rows} x {columns} pixels"]
    if n_drawn > len(remains.slices) and not _has_cuts(remains):
        words.append("drawn are the first, the middle and the last of them")
    if remains.problem:
        words.append(f"reading ended before the last file: {remains.problem}")
    if _has_cuts(remains):
        words.append(
            f"usual step {remains.step_mm:.4g} mm; ticks are positions of slices in mm along their normal; "
            "red beside them: a gap; blue: more than one slice at one position; amber: no slice is near"
        )
    if remains.trust == Trust.NOTHING:
        words.append("the header says neither where the slices lie nor how large their pixels are")
    if not remains.is_hu:
        words.append(
            "the values are not HU: percentiles {} and {}, without the lowest value, are black and white".format(
                *PERCENTILES
            )
        )
    return words


def _has_cuts(remains: Remains) -> bool:
    return remains.step_mm > 0 and remains.trust != Trust.NOTHING


def _panels(remains: Remains) -> list[Callable[[Any], None]]:
    """Return what draws each panel into its axes."""
    window = _window(remains)
    if not _has_cuts(remains):
        return [functools.partial(_draw_slice, remains=remains, values=each, window=window) for each in remains.slices]
    middle = remains.slices[len(remains.slices) // 2]
    return [
        lambda ax: _draw_slice(ax, remains, middle, window),
        lambda ax: _draw_cut(ax, remains, 1, window),
        lambda ax: _draw_cut(ax, remains, 0, window),
    ]


def _window(remains: Remains) -> tuple[float, float]:
    if remains.is_hu:
        return thumbnail.WINDOWS["HU"]
    values = np.concatenate([part.ravel() for part in (*remains.slices, *remains.lines)])
    values = values[values > values.min()]  # the lowest is what fills the margins
    low, high = np.percentile(values, PERCENTILES).tolist() if len(values) else (0.0, 1.0)
    return low, max(high, low + 1e-6)


def _draw_slice(ax: Any, remains: Remains, values: Floats, window: tuple[float, float]) -> None:
    plane = remains.plane
    axes = [np.array(plane.column), np.array(plane.row)]
    edges = [(0.0, n * mm) for n, mm in zip(plane.shape, plane.pixel_mm, strict=True)]
    name, _, letters = _draw_upright(ax, values, axes, edges, window)
    ax.set(xticks=[], yticks=[])
    ax.set_title("localizer" if remains.is_localizer else f"{name}: a slice", fontsize=9)
    if remains.trust == Trust.NOTHING:
        ax.set_title("a slice", fontsize=9)
        return
    mark_sides(ax, letters)
    mark_scale(ax)


def _draw_cut(ax: Any, remains: Remains, across: int, window: tuple[float, float]) -> None:
    """Draw the cut across all slices along their rows (`across` 1) or their columns (0)."""
    plane, cut = remains.plane, remains.cut(across)
    axes = [plane.normal, np.array((plane.column, plane.row)[across])]
    edges = [(cut.low_mm, cut.high_mm), (0.0, cut.wide_mm)]
    name, is_upright, letters = _draw_upright(ax, cut.array, axes, edges, window)
    mark_sides(ax, letters)
    high, wide = (abs(b - a) for a, b in (ax.get_ylim(), ax.get_xlim()))
    shape = float(np.clip(high / wide, FLATTEST, 1 / FLATTEST))
    ax.set_aspect(shape * wide / high)
    is_true = abs(shape - high / wide) < 1e-6
    pad = 6 if is_upright else 8 + 0.08 * PANEL * 72  # the marks stand between the cut and its title
    ax.set_title(name if is_true else f"{name}, not to scale", fontsize=9, pad=pad)
    ax.set(**{"xticks" if is_upright else "yticks": []})
    ax.tick_params(labelsize=7)
    _mark_positions(ax, remains, is_upright=is_upright)


def _mark_positions(ax: Any, remains: Remains, *, is_upright: bool) -> None:
    """Draw a tick beside the cut at the position of each slice, and mark gaps and repeated positions."""
    mm, limits = remains.along_mm, (ax.get_xlim(), ax.get_ylim())
    across, along = (ax.hlines, ax.vlines) if is_upright else (ax.vlines, ax.hlines)
    beside = ax.get_yaxis_transform() if is_upright else ax.get_xaxis_transform()
    style: dict[str, Any] = {"transform": beside, "clip_on": False}
    across(mm, 1.01, 1.04, color="black", linewidth=0.6, **style)
    across(remains.repeated_mm, 1.01, 1.08, color=REPEATED, linewidth=1.5, **style)
    for low, high in itertools.pairwise(mm):
        if high - low > WIDE * remains.step_mm:
            along(1.06, low, high, color=GAP, linewidth=3, **style)
    ax.set(xlim=limits[0], ylim=limits[1])


def _draw_upright(
    ax: Any,
    values: Floats,
    axes: list[NDArray[np.float64]],
    edges: list[tuple[float, float]],
    window: tuple[float, float],
) -> tuple[str, bool, tuple[str, str, str, str]]:
    """Draw a plane as the patient is seen: left on the right, front or head up, the front on the left from the side.

    `axes` are the directions of its two axes, `edges` where they begin and end. Returns the name of the plane, whether
    its first axis stands upright, and which sides of the patient lie on its left, on its right, above and below.
    """
    down, across = (int(np.abs(axis).argmax()) for axis in axes)
    is_upright = down >= across
    if not is_upright:
        values, axes, edges = values.T, axes[::-1], edges[::-1]
        down, across = across, down
    (top, bottom), (left, right) = edges
    if (axes[0][down] < 0) == (down == 1):  # y grows downwards, z upwards
        values, top, bottom = values[::-1], bottom, top
    if axes[1][across] < 0:
        values, left, right = values[:, ::-1], right, left
    ax.imshow(
        values,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        extent=(left, right, bottom, top),
        interpolation="nearest",
    )
    ax.set_facecolor(WARNING)
    above = LETTERS[down] if down == 1 else LETTERS[down][::-1]
    return SIDES[int(np.abs(np.cross(axes[0], axes[1])).argmax())], is_upright, (*LETTERS[across], *above)

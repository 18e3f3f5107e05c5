"""Letters lie where that side of the patient is drawn, and a scale bar is as long as it says."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dskprep import sides
from dskprep.dataset.facts import LungFigures
from dskprep.look import picture, refused
from dskprep.look.panels import draw_plane, lines_of
from dskprep.look.picture import View
from dskprep.volume import Volume

AFFINE = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
OF_LPS = {0: ("R", "L"), 1: ("A", "P"), 2: ("F", "H")}
"""What the standard says of the two ends of x, y and z (DICOM PS3.3, C.7.6.1.1.1)."""


def drawn(figure: Figure) -> NDArray[np.int64]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def nearest_letters(figure: Figure, colour: tuple[int, int, int] = (255, 255, 255)) -> set[str]:
    """Of the letters left and right, and of those above and below, the one nearer to the blob of the picture."""
    ax = figure.axes[0]
    letters = {text.get_text(): text for text in ax.texts if len(text.get_text()) == 1}
    places = {name: ax.transAxes.transform(text.get_position()) for name, text in letters.items()}
    for text in letters.values():
        text.set_visible(False)
    rows, columns = np.nonzero((drawn(figure) == colour).all(axis=2))
    x, y = np.median(columns), drawn(figure).shape[0] - np.median(rows)
    left, right, above, below = letters
    across = min((left, right), key=lambda name: abs(places[name][0] - x))
    return {across, min((above, below), key=lambda name: abs(places[name][1] - y))}


def figure_with_axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4, 4), facecolor="gray")
    return figure, figure.add_axes((0.1, 0.1, 0.8, 0.8))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("ends", list(itertools.product([0, 1], repeat=3)))
def test_what_lies_on_a_side_of_the_patient_is_drawn_at_its_letter(axis: int, ends: tuple[int, int, int]) -> None:
    array = np.full((24, 24, 24), -1000, np.int16)
    x, y, z = (slice(16, 21) if end else slice(3, 8) for end in ends)
    array[z, y, x] = 1000
    figure, ax = figure_with_axes()
    draw_plane(ax, Volume(array, AFFINE), axis, (5, 18)[ends[2 - axis]], (0, 100), ())
    for line in ax.lines:  # the scale bar is white too
        line.set_visible(False)
    seen = {OF_LPS[lps][ends[lps]] for lps in range(3) if lps != 2 - axis}
    assert nearest_letters(figure) == seen


@pytest.mark.parametrize("flips", list(itertools.product([1, -1], repeat=2)))
@pytest.mark.parametrize("pair", list(itertools.permutations(range(3), 2)))
def test_a_refused_slice_of_any_orientation_has_its_letters(pair: tuple[int, int], flips: tuple[int, int]) -> None:
    """The blob lies at the first row and column: at the low end of an axis that points to higher LPS."""
    values = np.zeros((20, 20))
    values[2:6, 2:6] = 100
    axes = [np.eye(3)[lps] * sign for lps, sign in zip(pair, flips, strict=True)]
    figure, ax = figure_with_axes()
    *_, letters = refused._draw_upright(ax, values, axes, [(0.0, 20.0), (0.0, 20.0)], (0, 100))
    refused.mark_sides(ax, letters)
    seen = {OF_LPS[lps][0 if sign > 0 else 1] for lps, sign in zip(pair, flips, strict=True)}
    assert nearest_letters(figure) == seen


@pytest.mark.parametrize("rows", range(72, 101, 2))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_letter_lies_across_the_edge_of_the_picture(axis: int, rows: int) -> None:
    """Whatever the share of the margin: a letter half on white and half on black is hard to read."""
    shape = [100, 100, 100]
    shape[0 if axis else 1] = rows
    figure = Figure(figsize=(picture.EDGE_INCHES, picture.EDGE_INCHES), dpi=100)
    ax = figure.add_axes((0.03, 0.03, 0.94, 0.94))
    draw_plane(ax, Volume(np.zeros(shape, np.int16), AFFINE), axis, 5, (-1, 1), ())
    drawn(figure)
    left, right, first, last = ax.images[0].get_extent()
    (x0, y0), (x1, y1) = np.sort(ax.transData.transform([(left, first), (right, last)]), axis=0)
    letters = [text for text in ax.texts if len(text.get_text()) == 1]
    for text in letters:
        box = text.get_window_extent()
        is_inside = x0 <= box.x0 and box.x1 <= x1 and y0 <= box.y0 and box.y1 <= y1
        assert is_inside or box.y0 >= y1 or box.y1 <= y0, (text.get_text(), box, (y0, y1))
    assert len(letters) == 4


@pytest.mark.parametrize(("edge", "mm"), [(360, 50), (100, 20), (24, 5), (4, 1)])
def test_a_scale_bar_is_as_long_as_it_says_and_fits(edge: int, mm: int) -> None:
    figure, ax = figure_with_axes()
    draw_plane(ax, Volume(np.zeros((4, edge, edge), np.int16), AFFINE), 0, 1, (0, 100), ())
    (bar,) = ax.lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(mm)
    assert f"{mm} mm" in [text.get_text() for text in figure.axes[0].texts]


def test_soft_tissue_can_be_told_apart_in_a_window_of_its_own() -> None:
    """Fat and muscle are both white in the lung window."""
    array = np.full((40, 40, 40), -100, np.int16)
    array[:, :, 20:] = 60
    png = picture.draw("", View("as written", Volume(array, AFFINE), None, []))
    pixels = _pixels(png)
    middle = pixels.shape[0] // 4
    lung, soft = pixels[middle - 50 : middle + 50], pixels[3 * middle - 50 : 3 * middle + 50]
    shades = [set(np.unique(part[:, 60:340])) for part in (lung, soft)]
    assert {38, 140} & shades[1] == {38, 140}  # of 255: (-100 + 160) / 400, (60 + 160) / 400
    assert not {38, 140} & shades[0]


def test_lungs_that_are_not_told_apart_are_no_right_lung() -> None:
    assert picture.in_words(lungs=LungFigures(0, 0, 3796.2, -820.0)) == ["lungs 3796 ml, mean -820 HU"]
    assert picture.in_words(lungs=LungFigures(1500, 0, 90, None)) == [
        "right lung 1500 ml, left lung 0 ml, lung of unknown side 90 ml"
    ]
    both = np.array([[[sides.RIGHT, sides.LUNG]]], np.uint8)
    assert [line.get_label() for line in lines_of(np.full((2, 2, 2), sides.LUNG, np.uint8))] == ["lungs"]
    assert [line.get_label() for line in lines_of(both)] == ["right lung", "lung of unknown side"]


def _pixels(png: bytes) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(png)) as opened:
        return np.asarray(opened.convert("L")).astype(int)

"""No more of a label is held than what reaches the grid, and how much that is, is known before it is drawn."""

from __future__ import annotations

import itertools
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from label_builders import DEFLATED_FRAMES, grid_of, rtstruct_file, seg_dataset, seg_file, written
from numpy.typing import NDArray
from pydicom import Dataset
from test_draw import turn

import dskprep
from dskprep.errors import Refusal
from dskprep.labels import hold
from dskprep.labels.draw import draw
from dskprep.labels.seg_pixels import Layout
from dskprep.labels.stack import Plane, Stack
from dskprep.volume import Grid

GRID = grid_of((12, 30, 28), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def deflate(part: bytes) -> bytes:
    packed = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packed.compress(part) + packed.flush()


def peak_bytes(work: Callable[[], object]) -> int:
    work()  # compiles and imports what it needs
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_frames_of_one_place_are_one_from_the_first_on() -> None:
    """Each of 150 frames has a row of its own set; together they are the square."""
    grid, rows = grid_of((1, 150, 300), (1.0, 0.1, 0.1), (0.0, 0.0, 5.0)), np.arange(150)
    frames = [(1, 0, np.repeat(rows[:, None] == row, 300, axis=1)) for row in rows]
    labels = dskprep.read_labels(seg_file(grid, frames, names=("x",), syntax=DEFLATED_FRAMES, encode=deflate))
    found = []
    peak = peak_bytes(lambda: found.append(labels.draw(labels.segments[0], GRID)))
    assert found[0].ml == pytest.approx(150 * 300 * 0.1 * 0.1 / 1000)
    assert peak < 20 * 150 * 300


def squares(half_mm: float, turned: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Contours of squares round the middle of GRID, in slices all through it and as far again on both sides."""
    corners = itertools.product((14 - half_mm, 14 + half_mm), repeat=2)
    (a, b, c, d), middle = corners, np.array([14.0, 15.0, 6.0])
    return [(np.array([(x, y, z) for x, y in (a, b, d, c)]) - middle) @ turned.T + middle for z in range(-12, 24)]


@pytest.mark.parametrize("about", [(0, 0, 0), (20, 15, 10)], ids=["parallel", "oblique"])
def test_contours_beyond_the_image_take_no_memory_and_count_all_the_same(about: tuple) -> None:
    labels = dskprep.read_labels(rtstruct_file({"body": squares(400, turn(about))}))
    found = []
    peak = peak_bytes(lambda: found.append(labels.draw(labels.segments[0], GRID)))
    assert found[0].ml == pytest.approx(36 * 800 * 800 / 1000)
    assert found[0].centroid_mm == pytest.approx((14, 15, 6) + turn(about) @ (0, -1, -0.5))
    assert found[0].outside == pytest.approx(1 - 12 * 30 * 28 / (36 * 800 * 800), abs=1e-5)
    assert found[0].whole().all()
    pixel_mm = 1.0 if not any(about) else 0.5
    assert peak < 36 * (800 / pixel_mm) ** 2 / 10


@pytest.mark.parametrize("about", [(0, 0, 0), (20, 15, 10)], ids=["parallel", "oblique"])
def test_a_plane_that_is_cropped_gives_the_same_voxels(about: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random pixels of 0.7 x 0.6 mm on all sides of the grid and beyond it."""
    rng = np.random.default_rng(1)
    axes = turn(about) @ np.eye(3)[:, ::-1] * [1, 0.7, 0.6]
    pixels = np.where(rng.random((30, 90, 110)) < 0.5, np.uint8(254), np.uint8(0))
    planes = [Plane(-9 + k, -8 + k, -20.25, -30.5, plane) for k, plane in enumerate(pixels)]
    stack = Stack(np.zeros(3), axes, planes)
    held = next(hold.hold([stack], GRID, "noise"))
    n_held = sum(plane.pixels.size for plane in held.planes)
    cropped = draw([stack], GRID, "noise")
    monkeypatch.setattr(hold, "MARGIN", 10_000)
    assert sum(plane.pixels.size for plane in next(hold.hold([stack], GRID, "noise")).planes) > 1.5 * n_held
    whole = draw([stack], GRID, "noise")
    assert 0 < np.count_nonzero(whole.mask) < whole.mask.size
    assert (cropped.first, cropped.ml, cropped.outside) == (whole.first, whole.ml, whole.outside)
    assert np.array_equal(cropped.mask, whole.mask)


BOX = np.zeros((10, 30, 28), np.bool_)
BOX[2:8, 5:20, 5:20] = True
SEG = seg_file(grid_of((10, 30, 28), (1.0, 1.0, 1.0)), [(1, k, plane) for k, plane in enumerate(BOX)], names=("x",))


@pytest.mark.parametrize(
    ("content", "grid"),
    [
        (rtstruct_file({"x": squares(10, turn((0, 0, 0)))}), GRID),
        (rtstruct_file({"x": squares(300, turn((20, 15, 10)))}), GRID),
        (SEG, grid_of((10, 30, 28), (1.0, 1.0, 1.0))),
        (SEG, Grid((10, 30, 28), np.array([[0.1, 0, 1, -10], [0, 1, 0, -20], [1, 0, 0.1, -30.0], [0, 0, 0, 1]]))),
    ],
    ids=["rtstruct", "rtstruct-oblique", "seg", "seg-oblique"],
)
def test_what_planes_take_is_told_before_they_are_made(content: bytes, grid: Grid) -> None:
    labels, told = dskprep.read_labels(content), []
    (segment,) = labels.segments
    held = list(hold.hold(labels.stacks(segment, grid), grid, "x", told.append))
    assert len(told) == len(held) == 1
    assert sum(plane.pixels.size for plane in held[0].planes) <= told[0] < 4_000_000


def test_nothing_is_decoded_or_drawn_that_is_not_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layout, "union", lambda *_: pytest.fail("a frame was decoded"))
    labels = dskprep.read_labels(SEG)

    def refuse(n_bytes: int) -> None:
        raise MemoryError(n_bytes)

    with pytest.raises(MemoryError):
        labels.draw(labels.segments[0], GRID, refuse)
    monkeypatch.setattr(hold, "MAX_BYTES", 100)
    with pytest.raises(Refusal, match=r"label-too-large: the bytes: 'x': expected planes of 100 bytes at most"):
        labels.draw(labels.segments[0], GRID)


def many_ways(kind: str, n: int) -> bytes:
    """A label of squares round the middle of GRID, each in a direction of its own."""
    turns = [turn((0.5 + k, 30, 2 * k)) for k in range(n)]
    if kind == "rtstruct":
        return rtstruct_file({"body": [squares(4, turned)[k] for turned in turns for k in (17, 18)]})
    ds = seg_dataset(GRID, [(1, 6, np.ones(GRID.shape[1:], np.bool_))] * n, names=("body",))
    for frame, turned in zip(ds.PerFrameFunctionalGroupsSequence, turns, strict=True):
        orientation = Dataset()
        orientation.ImageOrientationPatient = [f"{v:.9f}" for v in turned.T[:2].ravel()]
        frame.PlaneOrientationSequence = [orientation]
    return written(ds)


@pytest.mark.parametrize("kind", ["rtstruct", "seg"])
def test_planes_of_hundreds_of_directions_are_refused(kind: str) -> None:
    """Each direction may be sampled in the whole image, so a small file would keep a worker for hours."""
    few, many = (dskprep.read_labels(many_ways(kind, n)) for n in (3, hold.MAX_DIRECTIONS + 1))
    assert few.draw(few.segments[0], GRID).mask.any()
    with pytest.raises(Refusal, match=r"label-too-large.*directions"):
        many.draw(many.segments[0], GRID)


def test_frames_of_hundreds_of_directions_are_refused_as_they_are_read() -> None:
    with pytest.raises(Refusal, match=r"label-too-large.*orientations"):
        dskprep.read_labels(many_ways("seg", 150))

"""The small picture of a volume: the right planes, the right way up, the same bytes each time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from builders import prepared
from PIL import Image

from dskprep.dataset import own, thumbnail
from dskprep.preparation.prepare import Prepared
from dskprep.volume import Volume


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "WEBP"
        return np.asarray(picture.convert("RGB")).astype(int)


def is_bone(pixel: np.ndarray) -> bool:
    return bool(pixel.min() > 200)


def test_head_is_up_front_is_up_and_the_patients_left_is_on_the_right() -> None:
    picture = pixels(thumbnail.draw(prepared()))
    assert picture.shape == (144, 288, 3)
    axial, coronal = picture[:, :144], picture[:, 144:]
    assert is_bone(axial[40, 110])
    assert not any(is_bone(axial[y, x]) for y, x in ((40, 30), (120, 30), (120, 110)))
    assert is_bone(coronal[50, 80])
    assert not any(is_bone(coronal[z, x]) for z, x in ((50, 30), (110, 30), (110, 80)))


def test_each_lung_has_its_outline_on_its_side() -> None:
    axial = pixels(thumbnail.draw(prepared()))[:, :144]
    red_over_blue = axial[:, :, 0] - axial[:, :, 2]
    assert np.argwhere(red_over_blue < -60)[:, 1].max() < 72  # blue: the right lung, on the left of the picture
    assert np.argwhere(red_over_blue > 60)[:, 1].min() > 72


@pytest.mark.parametrize("spacing", [(5.0, 1.0, 1.0), (1.0, 1.0, 4.0)])
def test_millimetres_are_alike_along_both_axes(spacing: tuple[float, float, float]) -> None:
    shape = (40, 80, 80)
    volume = Volume(np.full(shape, 1000, np.int16), np.diag([*spacing[::-1], 1.0])[[0, 1, 2, 3]][:, [2, 1, 0, 3]])
    picture = pixels(thumbnail.draw(Prepared(volume, None)))
    for plane, (vertical, horizontal) in ((picture[:, :144], (1, 2)), (picture[:, 144:], (0, 2))):
        plane[60:84, :12] = plane[60:84, 12:13]  # without the R
        bright = np.argwhere(plane.min(axis=2) > 128)
        height, width = np.ptp(bright, axis=0) + 1
        extents = shape[vertical] * spacing[vertical], shape[horizontal] * spacing[horizontal]
        assert height / width == pytest.approx(extents[0] / extents[1], rel=0.05)


def test_the_same_volume_gives_the_same_bytes_and_few_of_them() -> None:
    first, second = thumbnail.draw(prepared()), thumbnail.draw(prepared())
    assert first == second
    assert len(first) < 8000


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 500), (300, 4, 4)])
def test_any_shape_can_be_drawn(shape: tuple[int, int, int]) -> None:
    volume = Volume(np.zeros(shape, np.int16), np.eye(4))
    assert pixels(thumbnail.draw(Prepared(volume, None))).shape == (144, 288, 3)


def test_the_middle_lies_in_the_lungs_and_of_the_right_one() -> None:
    mask = np.zeros((200, 210, 220), np.uint8)
    mask[100:140, 60:80, 20:60] = 1
    mask[100:140, 60:80, 150:200] = 2
    z, y, x = thumbnail.middle((200, 210, 220), mask)
    assert (z, y, x) == pytest.approx((120, 70, 40), abs=4)
    assert thumbnail.middle((200, 210, 220), np.zeros((200, 210, 220), np.uint8)) == (100, 105, 110)


def test_an_r_marks_the_right_side_of_each_square() -> None:
    air = Volume(np.full((40, 40, 40), -1350, np.int16), prepared().image.affine)
    bright = pixels(thumbnail.draw(Prepared(air, None))).min(axis=2) > 128
    for square in (bright[:, :144], bright[:, 144:]):
        rows, columns = np.nonzero(square)
        assert columns.max() < 12
        assert np.ptp(rows) >= 6
        assert abs(rows.mean() - 72) < 3


def shadow(mask: np.ndarray, first: tuple[int, int, int], shape: tuple[int, int, int]) -> np.ndarray:
    content = thumbnail.draw_label(mask, first, shape, (1.0, 1.0, 1.0), (230, 25, 75))
    assert own.is_label_thumbnail(content)
    assert not own.is_thumbnail(content)
    assert len(content) < 500
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGBA")).astype(int)


def test_the_outline_of_a_label_lies_over_the_thumbnail_where_the_label_is() -> None:
    """A bone in front, on the left and near the head, as in the thumbnail of the image."""
    image = np.full((96, 96, 96), -1000, np.int16)
    image[60:80, 10:40, 55:90] = 400
    volume = Volume(image, np.eye(4)[:, [2, 1, 0, 3]])
    bone = (pixels(thumbnail.draw(Prepared(volume, None)))[:, :144].min(2) > 200) & (np.arange(144) > 15)
    picture = shadow(image[60:80, 10:40, 55:90] > 0, (60, 10, 55), image.shape)
    is_drawn = picture[:, :, 3] > 0
    assert set(map(tuple, picture[is_drawn])) == {(230, 25, 75, 255)}
    axial, coronal = np.argwhere(is_drawn[:, :144]), np.argwhere(is_drawn[:, 144:])
    assert (axial.min(0).tolist(), axial.max(0).tolist()) == ([15, 83], [59, 134])
    assert (coronal.min(0).tolist(), coronal.max(0).tolist()) == ([24, 83], [53, 134])  # z runs to the head
    assert not bone.any() or (np.argwhere(bone).min(0) >= axial.min(0) - 1).all()


@pytest.mark.parametrize("shape", [(40, 60, 50), (300, 400, 500)])
def test_a_label_of_one_voxel_is_seen(shape: tuple[int, int, int]) -> None:
    is_drawn = shadow(np.ones((1, 1, 1), np.bool_), (shape[0] - 1, 3, 2), shape)[:, :, 3] > 0
    assert is_drawn[:, :144].any()
    assert is_drawn[:, 144:].any()

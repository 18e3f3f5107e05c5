"""The body only: nothing of it is lost, table and air are gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from dskprep import settings
from dskprep.dataset import omezarr
from dskprep.preparation import body, prepare
from dskprep.preparation.prepared import Prepared
from dskprep.settings import PrepConfig
from dskprep.synthetic.phantom import make_phantom
from dskprep.volume import AIR_HU, Volume

SHAPE = (58, 220, 220)
SPACING = (5.0, 1.6, 1.6)
WHOLE: dict[str, Any] = {"spacing_mm": SPACING, "shape": SHAPE}
CUT: dict[str, Any] = {"spacing_mm": SPACING, "shape": (58, 220, 150)}  # the field of view opens both lungs


def scanned(**anatomy: Any) -> tuple[Volume, NDArray[np.bool_]]:
    """What a step gets of a phantom, and its lungs."""
    phantom = make_phantom(**anatomy)
    return phantom.volume.with_array(np.maximum(phantom.volume.array, AIR_HU)), phantom.lungs.array > 0


def inside(image: NDArray[np.int16]) -> NDArray[np.bool_]:
    """The body by another way: the largest piece of tissue, the holes of its slices filled."""
    pieces, _ = ndimage.label(ndimage.binary_opening(image > -400, iterations=2))
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    return np.stack([ndimage.binary_fill_holes(plane) for plane in largest])


@pytest.mark.parametrize("scan", [{"seed": 1}, {"seed": 2, "table_touches_back": True}, {"seed": 3, "prone": True}])
def test_table_and_air_are_gone_and_the_body_stays(scan: dict[str, Any]) -> None:
    image, _ = scanned(**scan, **WHOLE)
    found = body.only(image)
    truth = inside(image.array)
    np.testing.assert_array_equal(found.array[truth], image.array[truth])
    np.testing.assert_array_equal(found.affine, image.affine)
    to_body = ndimage.distance_transform_edt(~truth, sampling=SPACING)
    assert (image.array[to_body > 20] > AIR_HU + 100).any()
    assert (found.array[to_body > 20] == AIR_HU).all()
    changed = found.array != image.array
    assert (found.array[changed] == AIR_HU).all()


def test_lungs_that_the_field_of_view_cuts_stay() -> None:
    image, lungs = scanned(seed=1, **CUT)
    assert lungs[:, :, [0, -1]].any()
    np.testing.assert_array_equal(body.only(image).array[lungs], image.array[lungs])


@pytest.mark.parametrize("share", [0.3, 0.4, 0.5])
def test_lungs_that_a_round_field_of_view_cuts_stay(share: float) -> None:
    image, lungs = scanned(seed=1, **WHOLE)
    _, y, x = (index.mean() for index in np.nonzero(lungs))
    rows, columns = np.ogrid[: SHAPE[1], : SHAPE[2]]
    radius = share * np.ptp(np.nonzero(lungs)[2])
    is_seen = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    cut = image.with_array(np.where(is_seen, image.array, np.int16(AIR_HU)))
    seen = lungs & is_seen
    np.testing.assert_array_equal(body.only(cut).array[seen], cut.array[seen])


def test_as_a_step_it_saves_a_fifth_and_leaves_the_lungs() -> None:
    volume = make_phantom(seed=1, **WHOLE).volume
    plain, only = (prepare.prepare(volume, PrepConfig(steps=names)) for names in ((), ("dskprep.body:only",)))
    assert plain.lungs is not None
    assert only.lungs is not None
    np.testing.assert_array_equal(only.lungs.mask.array, plain.lungs.mask.array)
    assert only.values == "HU"
    assert size_of(only) < 0.8 * size_of(plain)


def size_of(prepared: Prepared) -> int:
    return sum(len(content) for content in omezarr.encode(prepared, settings.preset("default"), {}).values())


def test_where_there_is_no_body_all_stays() -> None:
    noise = np.random.default_rng(0).normal(-1000, 10, (20, 40, 40)).astype(np.int16)
    image = Volume(noise, np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]])
    np.testing.assert_array_equal(body.only(image).array, noise)


def test_emphysema_that_the_field_of_view_cuts_stays() -> None:
    image, lungs = scanned(seed=1, **CUT)
    array = np.where(lungs & (image.array < -600), np.int16(-955), image.array)  # hardly a vessel is left
    kept = body.only(image.with_array(array)).array
    assert np.mean(kept[lungs] == array[lungs]) >= 0.99
    assert np.mean(kept == AIR_HU) >= 0.1

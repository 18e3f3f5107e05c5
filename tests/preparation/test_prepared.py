"""The result of preparing a series."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dskprep.errors import UsageError
from dskprep.preparation.lungs.lungs import Lungs
from dskprep.preparation.prepare import prepare
from dskprep.preparation.prepared import Prepared
from dskprep.volume import Volume


@pytest.fixture
def prepared() -> Prepared:
    rng = np.random.default_rng(0)
    image = Volume(rng.integers(-32767, 32767, (5, 40, 60)).astype(np.int16), np.eye(4))
    mask = image.with_array(rng.integers(0, 3, image.shape).astype(np.uint8))
    return Prepared(image, Lungs(mask, 1.0, 1.0, ()))


def test_the_mean_inside_the_lungs_is_exact(prepared: Prepared) -> None:
    assert prepared.lungs is not None
    values = [int(v) for v in prepared.image.array[prepared.lungs.mask.array > 0]]
    assert prepared.mean_lung_hu() == sum(values) / len(values)


def test_without_lungs_or_hu_there_is_no_mean(prepared: Prepared) -> None:
    empty = prepared.image.with_array(np.zeros(prepared.image.shape, np.uint8))
    assert dataclasses.replace(prepared, lungs=Lungs(empty, 0.0, 0.0, ())).mean_lung_hu() is None
    assert dataclasses.replace(prepared, lungs=None).mean_lung_hu() is None
    assert dataclasses.replace(prepared, values="own").mean_lung_hu() is None


def test_what_cannot_be_prepared_says_so() -> None:
    with pytest.raises(UsageError, match="expected a Volume, or a series as read_series gives it, found 'scans/p1'"):
        prepare("scans/p1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a Volume of int16 HU, found float32"):
        prepare(Volume(np.zeros((4, 4, 4), np.float32), np.eye(4)))
    with pytest.raises(UsageError, match="settings must be a PrepConfig"):
        prepare(Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)), "default")  # type: ignore[arg-type]

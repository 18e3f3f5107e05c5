"""Functions of a user's own, as the tests' settings name them."""

from __future__ import annotations

import numpy as np

from dskprep.errors import Refusal
from dskprep.volume import Volume

NUMBER = 3


def windowed(image: Volume) -> Volume:
    """-1000..1000 HU to 0..1, in float32."""
    return image.with_array(np.clip((image.array.astype(np.float32) + 1000) / 2000, 0, 1))


def doubled(image: Volume) -> Volume:
    return image.with_array(image.array * image.array.dtype.type(2))


def lower_half(image: Volume) -> Volume:
    return Volume(image.array[: image.shape[0] // 2], image.affine)


def broken(_image: Volume) -> Volume:
    raise ValueError("not today")


def choosy(_image: Volume) -> Volume:
    raise Refusal("not-ct", "not to my liking")


def nothing(_image: Volume) -> None:
    return None


def bright(image: Volume) -> Volume:
    """A mask: the left half of the array right, the other left, where it is bright."""
    side = np.where(np.arange(image.shape[2]) < image.shape[2] // 2, 1, 2)
    return image.with_array((image.array > 0) * side)


def wrong_labels(image: Volume) -> Volume:
    return image.with_array(np.full(image.shape, 7, np.uint8))


def unset(image: Volume) -> Volume:
    array = image.array.astype(np.float32)
    array[0, 0, 0] = np.nan
    return image.with_array(array)


def endless(image: Volume) -> Volume:
    return image.with_array(np.full(image.shape, np.inf))


class Panic(BaseException):
    """As libraries written in Rust raise it."""


def panicking(_image: Volume) -> Volume:
    raise Panic("index out of bounds")


def interrupted(_image: Volume) -> Volume:
    raise KeyboardInterrupt

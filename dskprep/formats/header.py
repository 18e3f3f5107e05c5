"""What the header of a volume file says, in one form for all formats."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dskprep.errors import Refusal

MAX_HEADER_BYTES = 1 << 18
"""A header ends within so many bytes."""
MAX_SKIP = 1 << 24
"""Most bytes before the voxels: a header and its extensions."""
GZIP = b"\x1f\x8b"
"""How a gzip file begins."""
UNITS_MM = {"m": 1e3, "mm": 1.0, "um": 1e-3}
"""Units of length that headers name, in mm."""
RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
"""Signs that turn patient axes of NIfTI (x to the right, y to the front) into those of DICOM."""

Compression = Literal["", "deflate", "bz2"]
"""Of voxels: none; gzip or zlib; bzip2."""


@dataclass(frozen=True, eq=False)
class Header:
    """Place, type and whereabouts of the voxels of one volume.

    `shape` counts them along (z, y, x) of the file, x being the axis whose neighbours lie side by side. `affine` maps
    an index (z, y, x, 1) to LPS mm; it may be anything finite or not, since nobody has judged it yet. A value is
    stored * slope + intercept.

    A voxel has as many values side by side as there are `layers`: one, but in segmentations that may overlap.

    The voxels begin at byte `start` of their file, or are its last bytes if that is None. Once decompressed, `skip`
    bytes come before them. They lie in `data_file`, as the header names it, or with "" in the header's own file, of
    which the header takes the first `head_bytes`.
    """

    where: str
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    slope: float = 1.0
    intercept: float = 0.0
    start: int | None = 0
    skip: int = 0
    compression: Compression = ""
    data_file: str = ""
    layers: int = 1
    head_bytes: int = 0

    @property
    def plane_bytes(self) -> int:
        """Bytes of one plane (y, x) of stored values."""
        return self.shape[1] * self.shape[2] * self.layers * self.dtype.itemsize

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all stored values."""
        return self.shape[0] * self.plane_bytes

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (z, y, x), in mm."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return z, y, x


def damaged(where: str, what: object) -> Refusal:
    """Return the refusal of a header that cannot be read."""
    return Refusal("bad-header", f"{where}: {' '.join(str(what).split())[:300]}")


def three_axes(sizes: Sequence[int], where: str) -> tuple[int, int, int]:
    """Return a shape (z, y, x) of sizes (x, y, z, ...). Axes beyond the third may have one voxel only."""
    if any(n < 1 for n in sizes):
        raise damaged(where, f"expected one voxel or more along each axis, found {tuple(sizes)}")
    if len(sizes) < 3 or math.prod(sizes[3:]) != 1:
        raise Refusal("not-3d", f"{where}: expected three axes, found {' x '.join(map(str, sizes))} voxels")
    x, y, z = map(int, sizes[:3])
    return z, y, x


def affine_of(steps: ArrayLike, origin: ArrayLike) -> NDArray[np.float64]:
    """Return an affine for (z, y, x, 1) of the steps (3 x 3) along the x, y and z of a file, in columns, and an origin.

    Both are in LPS mm.
    """
    affine: NDArray[np.float64] = np.eye(4)
    affine[:3, :3] = np.asarray(steps, np.float64)[:, ::-1]
    affine[:3, 3] = origin
    return affine


def numbers(text: str, count: int, name: str, where: str) -> list[float]:
    """Return so many numbers of a text, separated by blanks. Raises Refusal `bad-header`."""
    try:
        found = [float(word) for word in text.split()]
    except ValueError:
        found = []
    if len(found) != count:
        raise damaged(where, f"expected {count} numbers in {name}, found {text[:80]!r}")
    return found


def sizes(text: str, count: int, name: str, where: str) -> list[int]:
    """Return so many whole numbers of a text. Raises Refusal `bad-header`."""
    words = text.split()
    if len(words) != count:
        raise damaged(where, f"expected {count} whole numbers in {name}, found {text[:80]!r}")
    return [whole(word, name, where) for word in words]


def whole(text: str, name: str, where: str) -> int:
    """Return the whole number that a text holds. Raises Refusal `bad-header`."""
    if not re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text, re.ASCII):  # no file needs more digits
        raise damaged(where, f"expected a whole number in {name}, found {text[:80]!r}")
    return int(text)


def fields_of(pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Return the fields of a header by name. Raises Refusal `bad-header` for one that has two values.

    Programs differ in which of the two they take.
    """
    fields: dict[str, str] = {}
    for name, value in pairs:
        if fields.setdefault(name, value) != value:
            raise damaged(where, f"expected one {name[:40]}, found {fields[name][:80]!r} and {value[:80]!r}")
    return fields


def required(fields: Mapping[str, str], names: Sequence[str], where: str) -> str:
    """Return the first of these fields that the header has. Raises Refusal `missing-attribute`."""
    for name in names:
        if fields.get(name):
            return fields[name]
    raise Refusal("missing-attribute", f"{where}: expected {names[0]} in the header, found none")

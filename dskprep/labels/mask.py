"""Mask volumes: NIfTI, NRRD and MetaImage, one value per label."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.dicom.sniff import compression_of, decompress, decompressed_head
from dskprep.errors import LABEL_REASONS, Refusal, UsageError
from dskprep.formats import nifti, nrrd, voxels
from dskprep.formats.header import MAX_HEADER_BYTES
from dskprep.formats.read import read_header
from dskprep.formats.voxels import FileBytes
from dskprep.labels.attributes import one_line, refuse_if_more
from dskprep.labels.stack import Plane, Stack, axes_of, crop
from dskprep.labels.values import Labels, Links, Segment
from dskprep.volume import Grid

MAX_BYTES = 1 << 30
"""Most bytes of the voxels, and of the file once it is decompressed: 1000 slices of 512 x 512 as float32."""
NIFTI_BYTES = 544
"""A header of NIfTI, of either version, in whole; a file of it may stay compressed until its planes are read."""
MAX_VALUES = 10_000
"""Most different values of a mask; more are those of an image."""
MOVED = 0.1
"""A mask is on a grid if no corner lies off it by more than this part of a voxel."""
MIRRORS = {
    "left and right": (0,),
    "front and back": (1,),
    "head and foot": (2,),
    "left and right, front and back": (0, 1),
}
"""Patient axes (x, y, z) that other programs mix up."""


def check_names(names: Mapping[int, str]) -> None:
    """Raise UsageError if these are no names of values of a mask volume."""
    is_good = isinstance(names, Mapping) and all(
        isinstance(value, numbers.Integral) and isinstance(name, str) and name for value, name in names.items()
    )
    if not is_good:
        raise UsageError(f"names: expected whole numbers and their names, such as {{1: 'liver'}}, found {names!r:.100}")


class Mask(Labels):
    """A mask volume; 0 is background. `at` checks that it is on the grid of the image, and never bends it.

    `names` gives the names of values; else they are those that a .seg.nrrd of 3D Slicer holds. A single value without a
    name is called as the file is, others `label-2` and so on.
    """

    kind = "mask"

    def __init__(self, content: bytes, where: str, names: Mapping[int, str]) -> None:
        self.where, self.links = where, Links()
        self._array, self._grid, own = _read(content, where)
        values = [int(v) for v in _values(self._array, where)]
        stem = Path(where).name.split(".")[0]
        only = stem if len(values) == 1 else ""
        self.segments = tuple(
            Segment(v, names.get(v) or one_line(own.get(v, "")) or only or f"label-{v}") for v in values
        )

    def at(self, slices: Grid) -> Mask:
        """Return the mask itself, if it is on the grid of an image; its axes may be in another order or direction.

        Raises Refusal: `label-mirrored` if it would be on it when mirrored, else `label-off-grid`.
        """
        if _is_same_grid(self._grid, slices):
            return self
        for words, axes in MIRRORS.items():
            if _is_same_grid(_mirrored(self._grid, axes), slices):
                raise Refusal(
                    "label-mirrored",
                    f"{self.where}: expected the grid of the image, found it with {words} mixed up; the program that "
                    "wrote it may have taken RAS for LPS; write it again with the affine of the image",
                )
        raise Refusal(
            "label-off-grid",
            f"{self.where}: expected the grid of the image ({_words(slices)}), found another one "
            f"({_words(self._grid)}); resample it to the image with the program that made it",
        )

    def stacks(self, segment: Segment, grid: Grid) -> Iterator[Stack]:
        """Yield the planes of one value."""
        del grid  # the mask has voxels of its own
        axes, (along, row, column) = axes_of(self._grid)
        planes = []
        for k, plane in enumerate(self._array):
            box = crop(plane == segment.number)
            if box is not None:
                corner = (k * row + box[0], k * column + box[1])
                planes.append(Plane((k - 0.5) * along, (k + 0.5) * along, *corner, box[2]))
        yield Stack(self._grid.affine[:3, 3], axes, planes)


def _values(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Return the values of the labels. Raises Refusal: `label-unknown` if they are not whole numbers, `label-empty`."""
    found: NDArray[Any] = np.empty(0)
    for plane in array:
        is_small = plane.dtype.kind == "u" and plane.dtype.itemsize <= 2
        here = np.flatnonzero(np.bincount(plane.ravel())) if is_small else np.unique(plane)
        found = np.union1d(found, here)
        if (
            len(found) > MAX_VALUES
            or not np.isfinite(found).all()
            or (found != np.round(found)).any()
            or found.min() < 0
        ):
            raise Refusal(
                "label-unknown",
                f"{where}: expected a mask, whose values are whole numbers from 0 on, found {found.min():g} to "
                f"{found.max():g}, {len(found)} values or more",
            )
    found = found[found > 0]
    if not found.size:
        raise Refusal("label-empty", f"{where}: expected a mask, found no voxel other than 0")
    return found


def _read(content: bytes, where: str) -> tuple[NDArray[Any], Grid, dict[int, str]]:
    """Return the voxels and the grid, both (z, y, x) of the file, and the names of values that stand in it."""
    kind = compression_of(content)
    if kind and not (kind == "gz" and nifti.is_nifti(decompressed_head(content[:MAX_HEADER_BYTES], NIFTI_BYTES))):
        try:
            content = decompress(content, MAX_BYTES)
        except ValueError as error:
            raise Refusal("label-damaged", f"{where}: {one_line(error)}") from error
    try:
        header = read_header(content, where)
        if header.data_file:
            raise Refusal(
                "label-unknown", f"{where}: expected the voxels in the same file, found a header for other files"
            )
        refuse_if_more(header.voxel_bytes, MAX_BYTES, "bytes of voxels", where)
        array = np.empty(header.shape, header.dtype.newbyteorder("="))
        for out, plane in zip(array, voxels.planes(header, FileBytes.held(content)), strict=True):
            out[...] = plane
        if (header.slope, header.intercept) != (1, 0):
            array = array * header.slope + header.intercept
        is_nrrd = content.startswith(nrrd.MARK)
        own = nrrd.segment_names(content[:MAX_HEADER_BYTES]) if is_nrrd else {}
        return array, Grid(header.shape, header.affine), own
    except Refusal as refusal:
        if refusal.reason in LABEL_REASONS:
            raise
        reason = "label-unknown" if refusal.reason in ("not-3d", "not-hu") else "label-damaged"
        raise Refusal(reason, one_line(refusal.message)) from refusal
    except ValueError as error:  # no affine
        raise Refusal("label-damaged", f"{where}: cannot be read as a mask volume: {one_line(error)}") from error


def _mirrored(grid: Grid, axes: tuple[int, ...]) -> Grid:
    """Return a grid whose coordinates have the wrong sign along patient axes."""
    affine = np.array(grid.affine)
    affine[list(axes)] *= -1
    return Grid(grid.shape, affine)


def _is_same_grid(grid: Grid, other: Grid) -> bool:
    """Tell whether two grids have their voxels at the same places, in whatever order."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in grid.shape))))
    places = other.to_index(grid.to_patient(corners))
    wanted = np.array(list(itertools.product(*((0, n - 1) for n in other.shape))))
    distances = np.abs(places[:, None] - wanted).max(2)
    is_there = (distances.min(0) <= MOVED).all() and (distances.min(1) <= MOVED).all()
    return bool(is_there) and sorted(grid.shape) == sorted(other.shape)


def _words(grid: Grid) -> str:
    size = " x ".join(map(str, grid.shape))
    x, y, z = grid.affine[:3, 3].tolist()
    return f"{size} of {' x '.join(f'{s:.3g}' for s in grid.spacing)} mm from ({x:.1f}, {y:.1f}, {z:.1f})"

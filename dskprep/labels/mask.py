"""Mask volumes: NIfTI, NRRD and MetaImage, one value per label."""

from __future__ import annotations

import copy
import itertools
import numbers
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.dicom.sniff import compression_of, decompress, decompressed_head
from dskprep.errors import LABEL_REASONS, SET_ASIDE, Refusal, UsageError
from dskprep.formats import nifti, nrrd, voxels
from dskprep.formats.header import MAX_HEADER_BYTES
from dskprep.formats.read import read_header
from dskprep.formats.voxels import FileBytes
from dskprep.labels.attributes import one_line, refuse_if_more
from dskprep.labels.stack import Plane, Stack, axes_of, crop
from dskprep.labels.values import Labels, Links, Segment
from dskprep.volume import Grid, TiltedGrid

MAX_BYTES = 1 << 30
"""Most bytes of the voxels, and of the file once it is decompressed: 1000 slices of 512 x 512 as float32."""
MORE_BYTES = 1 << 20
"""So much more than its voxels may be in a file that is decompressed at once: the header, and what fills it up."""
MAX_PLANES = 100_000
"""Most planes of all layers; each is looked at by itself."""
NIFTI_BYTES = 544
"""A header of NIfTI, of either version, in whole; a file of it may stay compressed until its planes are read."""
MAX_VALUES = 10_000
"""Most different values of a mask; more are those of an image."""
MOVED = 0.1
"""A mask is on a grid if none of its voxels lies off it by more than this part of one."""
CROPPING = 3
"""Bytes per voxel of a plane that is made a mask and cropped."""
ROUNDED = 1e-6
"""A scaled value is whole if it differs from a whole number by less than this, or this part of it."""
SUFFIX = re.compile(r"(?:\.nii|(?:\.seg)?\.(?:nrrd|nhdr)|\.mha|\.mhd)(?:\.(?:gz|bz2|xz))?$", re.IGNORECASE)
"""What stands in the name of a mask's file behind its own name."""
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


def name_by_file(where: str) -> str:
    """Return what the only value of a mask volume is called by its file, if nothing else names it."""
    return SUFFIX.sub("", Path(where).name)


class Mask(Labels):
    """A mask volume; 0 is background. `at` checks that it is on the grid of the image, and never bends it.

    `names` gives the names of values; else they are those that a .seg.nrrd of 3D Slicer holds. A single value without a
    name is called as the file is, others `label-2` and so on. Where a .seg.nrrd has several layers, since its segments
    overlap, a value stands for another segment in each: they are numbered from 1 on, in the order of layers and values.
    """

    kind = "mask"

    def __init__(self, content: bytes, where: str, names: Mapping[int, str]) -> None:
        self.where, self.links = where, Links()
        self._layers, self._grid, own = _read(content, where)
        found = [(k, int(v)) for k, layer in enumerate(self._layers) for v in _values(layer, where)]
        if not found:
            raise Refusal("label-empty", f"{where}: expected a mask, found no voxel other than 0")
        refuse_if_more(len(found), MAX_VALUES, "segments", where)
        only = name_by_file(where) if len(found) == 1 else ""
        is_one = len(self._layers) == 1
        self._of_number = {value if is_one else n: (layer, value) for n, (layer, value) in enumerate(found, 1)}
        self.segments = tuple(
            Segment(number, names.get(number) or one_line(own.get(place, "")) or only or f"label-{number}")
            for number, place in self._of_number.items()
        )

    def at(self, slices: Grid) -> Mask:
        """Return the mask as it lies in an image, if each of its voxels lies on one, or would beyond the image's edges.

        Its axes may be in another order or direction, and it may be cropped or padded (see `_at_tilted`).

        Raises Refusal: `label-mirrored` if it would be on it when mirrored, else `label-off-grid`.
        """
        if _is_same_grid(self._grid, slices):
            return self
        if isinstance(slices, TiltedGrid):
            return self._at_tilted(slices)
        part = _part_of(self._grid, slices)
        for words, axes in MIRRORS.items():
            mirrored = _mirrored(self._grid, axes)
            other = None if part and _is_within(part, slices) else _part_of(mirrored, slices)
            if _is_same_grid(mirrored, slices) or (other and _is_within(other, slices)):
                raise Refusal(
                    "label-mirrored",
                    f"{self.where}: expected the grid of the image, found it with {words} mixed up; the program that "
                    "wrote it may have taken RAS for LPS; write it again with the affine of the image",
                )
        if part is None:
            raise Refusal(
                "label-off-grid",
                f"{self.where}: expected voxels of the grid of the image ({_words(slices)}), found others "
                f"({_words(self._grid)}); resample it to the image with the program that made it",
            )
        placed = copy.copy(self)
        placed._grid = part
        return placed

    def is_on(self, grid: Grid) -> bool:
        """Tell whether the mask has the whole of a grid: its voxels, in whatever order."""
        return _is_same_grid(self._grid, grid)

    def _at_tilted(self, upright: TiltedGrid) -> Mask:
        """Return the mask as it lies in a series whose gantry was tilted, and whose whole grid it has not.

        It must lie on the slices, askew as they were. A part of the upright grid will not do: programs that do not
        correct a tilt write the affine of such a part for slices that lie elsewhere.
        """
        try:
            return self.at(upright.slices)
        except Refusal as refusal:
            if refusal.reason != "label-off-grid":
                raise
        raise Refusal(
            "label-off-grid",
            f"{self.where}: expected the whole grid of the image ({_words(upright)}), since the gantry was tilted and "
            f"each slice was shifted to its place on it, found another ({_words(self._grid)}); draw the mask on the "
            "volume in the dataset, or resample it to that",
        )

    def stacks(self, segment: Segment, grid: Grid) -> Iterator[Stack]:
        """Yield the planes of one segment."""
        del grid  # the mask has voxels of its own
        axes, (along, row, column) = axes_of(self._grid)
        layer, value = self._of_number[segment.number]
        n, *size = self._grid.shape

        def planes() -> Iterator[Plane]:
            for k, plane in enumerate(self._layers[layer]):
                box = crop(plane == value)
                if box is not None:
                    corner = (k * row + box[0], k * column + box[1])
                    yield Plane((k - 0.5) * along, (k + 0.5) * along, *corner, box[2])

        boxes = [((k - 0.5) * along, (k + 0.5) * along, k * row, k * column, *size) for k in range(n)]
        yield Stack(self._grid.affine[:3, 3], axes, planes(), np.array(boxes), CROPPING * size[0] * size[1])


def _values(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Return the values of the labels. Raises Refusal `label-unknown` if they are not whole numbers."""
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
    return found[found > 0]


def _read(content: bytes, where: str) -> tuple[NDArray[Any], Grid, dict[tuple[int, int], str]]:
    """Return the voxels (layer, z, y, x) of the file, their grid, and the names of layers and values that it gives."""
    kind = compression_of(content)
    try:
        if kind and not (kind == "gz" and nifti.is_nifti(decompressed_head(content[:MAX_HEADER_BYTES], NIFTI_BYTES))):
            content = _unpacked(content, where)
        header = read_header(content, where, is_mask=True)
        if header.data_file:
            raise Refusal(
                "label-unknown", f"{where}: expected the voxels in the same file, found a header for other files"
            )
        refuse_if_more(header.voxel_bytes, MAX_BYTES, "bytes of voxels", where)
        refuse_if_more(header.layers * header.shape[0], MAX_PLANES, "planes of all layers", where)
        array = np.empty((header.layers, *header.shape), header.dtype.newbyteorder("="))
        for k, plane in enumerate(voxels.planes(header, FileBytes.held(content))):
            array[:, k] = np.moveaxis(plane, 2, 0) if header.layers > 1 else plane
        if (header.slope, header.intercept) != (1, 0):
            array = _scaled(array, header.slope, header.intercept)
        is_nrrd = content.startswith(nrrd.MARK)
        own = nrrd.segment_names(content[:MAX_HEADER_BYTES]) if is_nrrd else {}
        return array, Grid(header.shape, header.affine), own
    except Refusal as refusal:
        if refusal.reason in LABEL_REASONS | SET_ASIDE:
            raise
        reason = "label-unknown" if refusal.reason in ("not-3d", "not-hu") else "label-damaged"
        raise Refusal(reason, one_line(refusal.message)) from refusal
    except ValueError as error:  # no affine
        raise Refusal("label-damaged", f"{where}: cannot be read as a mask volume: {one_line(error)}") from error


def _unpacked(content: bytes, where: str) -> bytes:
    """Return what a file holds that is compressed as a whole: no more than its header says, and MORE_BYTES."""
    header = read_header(decompressed_head(content, MAX_HEADER_BYTES), where, is_mask=True)
    most = MORE_BYTES + (header.start or 0) + header.skip + header.voxel_bytes
    try:
        return decompress(content, min(most, MAX_BYTES))
    except ValueError as error:
        raise Refusal("label-damaged", f"{where}: {one_line(error)}") from error


def _scaled(array: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float64]:
    """Return stored values as the header scales them; those that are whole but for its rounding are whole.

    nibabel writes a mask of 0.0 and 1.0 as bytes of 0 and 255, and 1 / 255 as a float32 that gives 1.00000002.
    """
    out = np.empty(array.shape, np.float64)
    for k in np.ndindex(array.shape[:2]):  # so that no more than a plane is held beside the two
        values = array[k] * slope + intercept
        whole = np.round(values)
        out[k] = np.where(np.abs(values - whole) <= ROUNDED * np.maximum(1, np.abs(whole)), whole, values)
    return out


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


def _part_of(grid: Grid, other: Grid) -> Grid | None:
    """Return a grid as a part of another one, of its affine to the last digit, if each voxel lies on one of that.

    They may lie beyond its edges. Axes may be in another order or direction. Returns None if a voxel lies off them.
    """
    to_other = np.linalg.inv(other.affine) @ grid.affine
    whole = np.round(to_other)
    corners = np.array(list(itertools.product(*((0, n - 1) for n in grid.shape), (1,))))
    is_whole = np.abs(corners @ (to_other - whole).T).max() <= MOVED
    are_axes = (np.abs(whole[:3, :3]).sum(0) == 1).all() and (np.abs(whole[:3, :3]).sum(1) == 1).all()
    return Grid(grid.shape, other.affine @ whole) if is_whole and are_axes else None


def _is_within(part: Grid, other: Grid) -> bool:
    """Tell whether all voxels of a grid lie in another one."""
    ends = other.to_index(part.to_patient(np.array([(0, 0, 0), np.subtract(part.shape, 1)])))
    return bool((ends > -0.5).all() and (ends < np.array(other.shape) - 0.5).all())


def _words(grid: Grid) -> str:
    size = " x ".join(map(str, grid.shape))
    x, y, z = grid.affine[:3, 3].tolist()
    return f"{size} of {' x '.join(f'{s:.3g}' for s in grid.spacing)} mm from ({x:.1f}, {y:.1f}, {z:.1f})"

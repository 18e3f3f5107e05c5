"""A series of the planes of one volume file: NIfTI, NRRD or MetaImage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.formats import voxels
from dskprep.formats.header import Header
from dskprep.formats.voxels import FileBytes
from dskprep.series import hounsfield, upright
from dskprep.series.continuity import STEP, Continuity
from dskprep.series.geometry import MAX_EXTENT_MM, Layout
from dskprep.series.series import Series, Stored, facts_of
from dskprep.volume import PADDING, Grid

MIN_SPACING_MM, MAX_SPACING_MM = 0.01, 20.0
"""Distances of voxels beyond these come from a wrong unit or a damaged header."""
MIN_WIDTH_MM = 80.0
"""A volume whose longest edge is shorter shows no chest, not even of a newborn: its unit is wrong."""
MAX_ORIGIN_MM = 1e6
"""Largest coordinate; a larger one comes from a damaged header."""
MAX_SHEAR = 1e-3
"""Largest cosine of the angle between two axes, as for the directions of a slice."""
MIN_VOLUME = 1e-6
"""A determinant of unit directions below this is that of axes that lie in one plane."""
MAX_EDGE = 1 << 15
"""Most voxels along an axis."""
MAX_VOXELS = 1 << 34
"""Most voxels of a volume, as in a dataset."""
MAX_LABEL = 255
"""Highest value of a mask that is known for one."""
MAX_LABELS = 128
"""Most values of a mask that is known for one. Grey values of 8 bits are more."""
MAX_CHANGES = 0.2
"""Largest share of neighbours, neither of them 0, that have different labels. Noise makes most grey values differ."""
DOUBT = "the header of a volume file, which does not say what the values are,"


def of_volume(
    header: Header,
    file: FileBytes,
    *,
    min_slices: int = 10,
    to_hu: hounsfield.ToHU | None = None,
    check_hu: bool = True,
    encoded_bytes: int = 0,
) -> Series:
    """Return the series of the planes of a volume file, whose voxels are in `file`.

    Rows and columns are put the way that DICOM has them: towards the patient's left, back and foot. Axes stay as they
    are, and the planes come in the order of the file; the affine says where they lie. No format says that values are
    HU, so the values must show it.

    Raises Refusal if the header is none of a volume: `bad-affine`, `sheared`, `bad-header`, `too-few-slices`,
    `truncated`.
    """
    check_place(header)
    n = header.shape[0]
    if n < max(min_slices, 2):
        raise Refusal("too-few-slices", f"{header.where}: expected at least {max(min_slices, 2)} planes, found {n}")
    voxels.check_size(header, file)
    affine, flips = _facing(header)
    layout = Layout(Grid(header.shape, affine), tuple(range(n)), ((0.0, 0.0),) * n, 0.0, ())
    values = _Values(header, file, flips)
    return Series(
        layout,
        n,
        values.planes,
        facts=facts_of(layout, n, header.shape[1:]),
        first_gap_mm=abs(float(affine[2, 0])),
        warnings=(),
        doubt=DOUBT,
        to_hu=to_hu,
        check_hu=check_hu,
        check_values=values.refuse_mask,
        check_order=values.refuse_scrambled,
        encoded_bytes=encoded_bytes,
    )


def check_place(header: Header) -> None:
    """Raise Refusal if the affine or the size of a volume cannot be those of a scan of a chest."""
    with np.errstate(all="ignore"):  # a number may be anything
        _check_place(header)


def _check_place(header: Header) -> None:
    where, shape, steps = header.where, header.shape, header.affine[:3, :3]
    if max(shape) > MAX_EDGE or float(np.prod(shape, dtype=np.float64)) > MAX_VOXELS:
        raise Refusal("bad-header", f"{where}: expected the size of a scan, found {_words(shape)} voxels")
    if not np.isfinite(header.affine).all():
        raise Refusal("bad-affine", f"{where}: expected an affine of finite numbers, found {_matrix(header)}")
    spacing = np.linalg.norm(steps, axis=0)
    if not spacing.all() or abs(np.linalg.det(steps / spacing)) < MIN_VOLUME:
        message = f"expected three axes with directions of their own, found a singular affine: {_matrix(header)}"
        raise Refusal("bad-affine", f"{where}: {message}")
    widths = spacing * shape
    if (
        spacing.min() < MIN_SPACING_MM
        or spacing.max() > MAX_SPACING_MM
        or not MIN_WIDTH_MM <= widths.max() <= MAX_EXTENT_MM
        or np.abs(header.affine[:3, 3]).max() > MAX_ORIGIN_MM
    ):
        raise Refusal(
            "bad-affine",
            f"{where}: expected the size of a body in mm, found voxels of {_words(spacing)} mm, {_words(widths)} mm in "
            f"all, from {_words(header.affine[:3, 3])}; the unit in the header is wrong, or the spacing",
        )
    cosines = (steps / spacing).T @ (steps / spacing) - np.eye(3)
    if np.abs(cosines).max() > MAX_SHEAR:
        degrees = np.degrees(np.arcsin(min(1.0, float(np.abs(cosines).max()))))
        raise Refusal(
            "sheared",
            f"{where}: expected axes at right angles, found a shear of {degrees:.2f} degrees; resample it to a "
            "right-angled grid with the program that made it, or take the original slices",
        )


def _facing(header: Header) -> tuple[NDArray[np.float64], tuple[slice, slice]]:
    """Return the affine of planes whose rows and columns run to the left, back and foot, and the slices that do it."""
    order, affine = upright.patient_order(header.affine), header.affine.copy()
    flips = [slice(None), slice(None)]
    for axis in (1, 2):
        patient_axis = 2 - order.index(axis)
        is_backward = affine[patient_axis, axis] < 0
        if is_backward != (patient_axis == 2):
            affine[:3, 3] += affine[:3, axis] * (header.shape[axis] - 1)
            affine[:3, axis] *= -1
            flips[axis - 1] = slice(None, None, -1)
    return affine, (flips[0], flips[1])


class _Values:
    """The stored values of a file, whether all of them are those of a mask, and whether their rows are in place."""

    def __init__(self, header: Header, file: FileBytes, flips: tuple[slice, slice]) -> None:
        self._header, self._file, self._flips = header, file, flips
        self._is_whole = float(header.slope).is_integer() and float(header.intercept).is_integer()
        self._counts: NDArray[np.int64] | None = np.zeros(MAX_LABEL + 1, np.int64)
        self._n_neighbours = self._n_changes = 0
        self._continuity = Continuity()

    def planes(self) -> Iterator[Stored]:
        """Yield the planes. Floats become whole HU, since a volume is stored so; what is not a number, PADDING."""
        slope, intercept = self._header.slope, self._header.intercept
        for plane in voxels.planes(self._header, self._file):
            self._compare(plane)
            values = np.ascontiguousarray(plane[self._flips])
            if values.dtype.kind == "f":
                values, is_whole = _to_whole(values, slope, intercept)
                self._count(values, is_whole)
                yield Stored(values, 1.0, 0.0)
            else:
                self._count(values, self._is_whole)
                yield Stored(values, slope, intercept)
        self._file = FileBytes.held(b"")  # what was held can go

    def _compare(self, plane: NDArray[Any]) -> None:
        n_rows, n_columns = (n // STEP for n in plane.shape)
        cells = plane[: n_rows * STEP, : n_columns * STEP].reshape(n_rows, STEP, n_columns, STEP)
        some = np.stack([cells[:, 0, :, 0], cells[:, 1, :, 0], cells[:, 0, :, 1]])
        with np.errstate(all="ignore"):  # infinities
            self._continuity.add(some * np.float64(self._header.slope) + np.float64(self._header.intercept))

    def _count(self, values: NDArray[Any], is_whole: bool) -> None:
        if self._counts is None:
            return
        if self._header.dtype.kind == "f":
            found = values
        else:
            found = values * self._header.slope + self._header.intercept if is_whole else values
        if is_whole and found.min() >= 0 and found.max() <= MAX_LABEL:
            self._counts += np.bincount(found.ravel().astype(np.uint8), minlength=MAX_LABEL + 1)
            left, right = found[:, :-1], found[:, 1:]
            is_inside = (left != 0) & (right != 0)
            self._n_neighbours += int(np.count_nonzero(is_inside))
            self._n_changes += int(np.count_nonzero((left != right) & is_inside))
        else:
            self._counts = None

    def refuse_scrambled(self) -> None:
        """Raise Refusal `undecodable-pixels` if rows or planes are not where the header has them."""
        if broken := self._continuity.broken_axis(self._header.spacing):
            raise Refusal(
                "undecodable-pixels",
                f"{self._header.where}: expected {broken} that are like their neighbours, found them hardly more alike "
                f"than any two values; the sizes in the header ({_words(self._header.shape[::-1])}) are not those of "
                "the voxels, or not in their order",
            )

    def refuse_mask(self) -> None:
        """Raise Refusal `no-image` if the values are those of a mask: few whole numbers from 0 on, in patches.

        Nothing but 0 is a mask only if a value has one byte: no HU can be stored so.
        """
        if self._counts is None or not self._counts[0] or self._n_changes > MAX_CHANGES * self._n_neighbours:
            return
        found = np.flatnonzero(self._counts)
        is_blank = len(found) == 1
        if len(found) <= MAX_LABELS and not (is_blank and self._header.dtype.itemsize > 1):
            what = "nothing but 0" if is_blank else f"{len(found)} whole numbers from 0 to {found[-1]}"
            raise Refusal("no-image", f"{self._header.where}: holds no image, but a mask: {what}")


def _to_whole(values: NDArray[Any], slope: float, intercept: float) -> tuple[NDArray[np.int16], bool]:
    """Return floats as int16 HU, rounded and clipped, PADDING where they are no number; and whether they were whole."""
    with np.errstate(all="ignore"):  # infinities
        scaled = values * np.float64(slope) + np.float64(intercept)
    is_number = np.isfinite(scaled)
    whole = np.rint(scaled)
    is_whole = bool((whole == scaled)[is_number].all())
    whole = np.clip(np.where(is_number, whole, PADDING), PADDING, hounsfield.INT16_HU[1])
    return whole.astype(np.int16), is_whole


def _words(values: Any) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


def _matrix(header: Header) -> str:
    return " ".join(f"({_words(row)})" for row in header.affine[:3])

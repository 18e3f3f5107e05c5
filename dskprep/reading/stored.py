"""One written volume: its place in the patient, its voxels, whole or by boxes, and its way to other libraries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from dskprep import storage
from dskprep.dataset import layout, opened, shards, volume_rows
from dskprep.dataset.box import Index, as_index, as_size
from dskprep.dataset.facts import Geometry, StoredObject
from dskprep.dataset.record import Record
from dskprep.errors import DamagedDataset, UsageError
from dskprep.reading import convert, labelled
from dskprep.reading.display import VolumeDisplay
from dskprep.reading.labelled import StoredLabels, VolumeLabels
from dskprep.reading.normalized import normalize
from dskprep.volume import Grid, Triple, Volume

if TYPE_CHECKING:
    import dask.array
    import nibabel
    import pandas as pd
    import SimpleITK
    import xarray

What = str
"""`image`, `lungs`, or the name of another label."""

Opened = TypeVar("Opened", shards.Array, "zarr.Array[Any]")

SAME_INDEX = 1e-6
"""A fractional index this close to a whole one is taken for it: it was computed from millimetres, and rounded."""


@dataclass(frozen=True, eq=False, repr=False)
class StoredVolume(VolumeDisplay):
    """A written volume. Voxels are read when they are asked for. It can be pickled.

    Attributes
    ----------
    key
        The name of the volume in its dataset.
    url
        Where its OME-Zarr image lies.
    record
        What is known of it: its source, geometry, lungs, warnings and processing times.
    at_level
        The level at which it is read: 0 is the image as it was prepared (see `level`).

    Examples
    --------
    >>> volume = dataset["patient-7"]  # doctest: +SKIP
    >>> volume.image[40]  # one axial plane, (y, x)  # doctest: +SKIP
    >>> volume.patch(64, center_mm=(-62.5, 10.0, -140.0)).array  # doctest: +SKIP
    """

    key: str
    url: str
    record: Record
    at_level: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"key": self.key, "url": self.url, "record": self.record, "at_level": self.at_level}

    @property
    def n_levels(self) -> int:
        """How many levels were written: 1 unless the settings of the dataset ask for more."""
        return layout.n_levels(self.record.objects)

    def level(self, level: int) -> StoredVolume:
        """Return the volume at another level, with half as many voxels per axis for each: shape and affine are its own.

        Voxels of the image are means, those of labels what most of theirs are. Raises UsageError if there is none.
        """
        if level not in range(self.n_levels):
            raise UsageError(f"{self.key}: expected level 0 to {self.n_levels - 1} (setting levels), found {level!r}")
        return StoredVolume(self.key, self.url, self.record, int(level))

    @property
    def image(self) -> zarr.Array[Any]:
        """The image (z, y, x): int16 HU unless `values` says otherwise."""
        return self.array("image")

    @property
    def lungs(self) -> zarr.Array[Any] | None:
        """The lung mask (z, y, x), uint8: 1 in the right lung, 2 in the left one. None in a dataset without lungs."""
        return self.array("lungs") if self.has_lungs else None

    @property
    def has_lungs(self) -> bool:
        """Whether a lung mask was written. It may be empty (warning `lungs-not-found`)."""
        return self.record.lungs is not None

    @property
    def labels(self) -> VolumeLabels:
        """The labels that `annotate` has written, but for the lungs: from name to array (z, y, x), uint8, 1 inside."""
        return VolumeLabels(self, self._labels)

    @property
    def points(self) -> pd.DataFrame:
        """The points of the volume, one per row: `x`, `y`, `z` in LPS mm, and what else their tables have."""
        return volume_rows.points_of_volume(self._target, self.key, self.record.input_digest)

    @property
    def shape(self) -> Index:
        """Number of voxels along (z, y, x)."""
        return self._grid.shape

    @property
    def affine(self) -> NDArray[np.float64]:
        """A copy of the 4 x 4 matrix that maps an index (z, y, x, 1) to LPS millimetres (x, y, z, 1)."""
        return self._grid.affine.copy()

    @property
    def spacing(self) -> Triple:
        """Distance between voxel centres along (z, y, x), in mm."""
        z, y, x = (2**self.at_level * mm for mm in self._geometry.spacing_mm)
        return z, y, x

    @property
    def values(self) -> str:
        """What the image's numbers are: `HU`, `normalized`, `uint8` (of grt123) or `own` (of a user's step)."""
        return self.record.values or "HU"

    @property
    def is_to_normalize(self) -> bool:
        """Whether normalizing changes the values. Raises UsageError if they are neither HU nor normalized."""
        if self.values not in ("HU", "normalized"):
            raise UsageError(f"{self.key}: expected HU, found values of another kind ({self.values}); use load()")
        return self.values == "HU"

    def to_patient(self, index: ArrayLike) -> NDArray[np.float64]:
        """Map indices (..., 3) in (z, y, x) to LPS millimetres (..., 3) in (x, y, z)."""
        return self._grid.to_patient(index)

    def to_index(self, point_mm: ArrayLike) -> NDArray[np.float64]:
        """Map LPS millimetres (..., 3) in (x, y, z) to fractional indices (..., 3) in (z, y, x)."""
        return self._grid.to_index(point_mm)

    def load(self, of: What = "image") -> Volume:
        """Read the whole image or lung mask into memory.

        Raises DamagedDataset if one of its objects is damaged or gone, UsageError if there is no mask.
        """
        return Volume(self.shards(of).read((0, 0, 0), self.shape), self.affine)

    def normalized(self) -> Volume:
        """Read the whole image and map -1000..400 HU to 0..1, minus 0.25, as float32.

        An image that is stored so is returned as it is. Raises UsageError if the image holds other values.
        """
        volume = self.load()
        return normalize(volume) if self.is_to_normalize else volume

    def patch(
        self,
        size: int | Index,
        *,
        center_mm: ArrayLike | None = None,
        index: ArrayLike | None = None,
        of: What = "image",
        outside: float | None = None,
        normalized: bool = False,
    ) -> Volume:
        """Read a box of the volume. Only the chunks that it touches are read.

        Parameters
        ----------
        size
            Voxels along each axis, or along (z, y, x).
        center_mm, index
            The middle of the box, as LPS mm (x, y, z) or as an index (z, y, x); it may be fractional. The box begins
            at the first voxel at or after `index - size / 2`: for whole numbers, at `index - size // 2`.
        of
            The image or the lung mask.
        outside
            The stored value of voxels beyond the volume; by default air, or 0 in the mask.
        normalized
            Normalize the values, as `normalized()` does.

        Returns
        -------
        The box, with an affine of its own.

        Raises
        ------
        UsageError
            The box does not touch the volume, the size or the middle is none, or there is no mask.
        DamagedDataset
            An object of the volume is damaged or gone.
        """
        if (center_mm is None) == (index is None):
            raise UsageError("a patch needs its middle: either center_mm or index")
        sides = as_size(size)
        middle = np.asarray(center_mm if index is None else index, np.float64)
        if middle.shape != (3,) or not np.isfinite(middle).all():
            raise UsageError(f"expected three finite coordinates as the middle of a patch, found {middle.tolist()}")
        if index is None:
            middle = self.to_index(middle)
        first = np.ceil(middle - np.array(sides) / 2 - SAME_INDEX).astype(np.int64)
        if (first >= self.shape).any() or (first + sides <= 0).any():
            raise UsageError(
                f"{self.key}: the patch from {first.tolist()} of {list(sides)} voxels (z, y, x) does not touch"
                f" the volume of {list(self.shape)}; is its middle in LPS mm (x, y, z)?"
            )
        affine = self.affine
        affine[:3, 3] = self.to_patient(first)
        box = Volume(self.shards(of).read(as_index(first), sides, outside), affine)
        return normalize(box) if normalized and self.is_to_normalize else box

    def as_dask(self, of: What = "image", chunks: Index | None = None) -> dask.array.Array:
        """Return the image or mask as a dask array (z, y, x), by default with the chunks of the store."""
        return convert.to_dask(self.array(of), of, (self.url, self._objects(of), self.at_level), chunks)

    def as_xarray(self) -> xarray.Dataset:
        """Return `image`, and `lungs` if there is a mask, lazily, with coordinates in mm: see `convert.to_xarray`."""
        names: list[What] = ["image", "lungs"] if self.has_lungs else ["image"]
        about = {"key": self.key, "values": self.values}
        return convert.to_xarray({name: self.as_dask(name) for name in names}, self._grid, about)

    def to_nifti(self, of: What = "image") -> nibabel.Nifti1Image:
        """Read the whole image or mask for nibabel, which also saves it: `.to_filename("x.nii.gz")`."""
        return convert.to_nifti(self.load(of))

    def to_sitk(self, of: What = "image") -> SimpleITK.Image:
        """Read the whole image or mask for SimpleITK."""
        return convert.to_sitk(self.load(of))

    def shards(self, of: What = "image") -> shards.Array:
        """Return the stored array of the image or mask, for reading boxes; it is opened once."""
        self._check_exists(of)
        known: dict[str, shards.Array] = vars(self).setdefault("_shards", {})
        if of not in known:
            path = layout.path_of(of, self.at_level)
            sizes = {n.removeprefix(f"{path}/"): s for n, s in self._sizes(of).items() if n.startswith(f"{path}/")}
            known[of] = self._checked(of, shards.open_array(storage.join(self.url, path), sizes))
        return known[of]

    @property
    def _geometry(self) -> Geometry:
        if self.record.geometry is None:
            raise DamagedDataset(f"{self.key}: its record does not say where the volume lies")
        return self.record.geometry

    @cached_property
    def _grid(self) -> Grid:
        return layout.level_grid(Grid(self._geometry.shape, self._geometry.matrix()), self.at_level)

    def array(self, of: What) -> zarr.Array[Any]:
        """Return the image, the lungs or another label, opened by zarr once in each process: forks cannot share it."""
        self._check_exists(of)
        known: dict[tuple[int, str], zarr.Array[Any]] = vars(self).setdefault("_arrays", {})
        if (process := os.getpid(), of) not in known:
            path = layout.path_of(of, self.at_level)
            known[process, of] = self._checked(of, opened.open_array(self.url, path, self._sizes(of)))
        return known[process, of]

    def _sizes(self, of: What) -> dict[str, int]:
        """Return the bytes of each object of the volume, or of one of its labels."""
        return {name: about.n_bytes for name, about in self._objects(of).items()}

    def _objects(self, of: What) -> Mapping[str, StoredObject]:
        return self.record.objects if of in layout.FOLDERS else self._labels[of].objects

    @cached_property
    def _labels(self) -> StoredLabels:
        return labelled.stored_labels(self._target, self.record)

    @property
    def _target(self) -> str:
        return self.url.rpartition("/volumes/")[0]

    def _checked(self, of: What, array: Opened) -> Opened:
        """Return the array, if it has the shape of the record and the volume's own metadata say the same of it."""
        place = storage.join(self.url, layout.path_of(of, self.at_level), "zarr.json")
        if tuple(array.shape) != tuple(self.shape):
            raise layout.damaged(place, f"expected the record's shape {list(self.shape)}, found {list(array.shape)}")
        fill = array.fill if isinstance(array, shards.Array) else array.fill_value
        if of != "image" and (array.dtype != np.uint8 or fill != 0):
            raise layout.damaged(place, f"expected a mask of uint8, 0 where nothing is, found {array.dtype}, {fill}")
        if not vars(self).get("_is_checked"):
            layout.check_volume(self.url, self.n_levels)
            vars(self)["_is_checked"] = True
        return array

    def _check_exists(self, of: What) -> None:
        if of == "lungs" and not self.has_lungs:
            raise UsageError(f"{self.key}: has no lung mask; the settings of its dataset did not ask for lungs")
        if of not in layout.FOLDERS and of not in self._labels:
            known = ", ".join(map(repr, ("image", "lungs", *self._labels)))
            raise UsageError(f"{self.key}: expected {known}, found {of!r}")

"""Reading a dataset: its index, its volumes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from dskprep import storage
from dskprep.dataset import convert, index, omezarr, patches, shards, store
from dskprep.dataset.patches import LungPatches
from dskprep.dataset.record import Geometry, Record, RecordName
from dskprep.dataset.shards import Index
from dskprep.errors import DamagedDataset, UsageError
from dskprep.series import hounsfield
from dskprep.volume import Grid, Triple, Volume

if TYPE_CHECKING:
    import dask.array
    import nibabel
    import pandas as pd
    import SimpleITK
    import xarray

What = Literal["image", "lungs"]

PATHS = {"image": "0", "lungs": "labels/lungs/0"}
"""Where the arrays of a volume lie below it."""

SAME_MM = 1e-6
"""Indices nearer than this to a voxel's are that voxel's: they come from millimetres."""


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """A written volume, read when it is used.

    `image` (int16 HU, unless the settings say otherwise: see `values`) and `lungs` (uint8: 1 right, 2 left)
    are zarr arrays (z, y, x), `affine` maps an index (z, y, x, 1) to LPS mm (x, y, z, 1). May be pickled.
    """

    key: str
    url: str
    record: Record

    def __getstate__(self) -> dict[str, Any]:
        return {"key": self.key, "url": self.url, "record": self.record}

    @property
    def image(self) -> zarr.Array[Any]:
        return self._zarr("image")

    @property
    def lungs(self) -> zarr.Array[Any] | None:
        """The lung mask, or None in a dataset without lungs."""
        return self._zarr("lungs") if self.has_lungs else None

    @property
    def has_lungs(self) -> bool:
        """Whether a lung mask was written; it may be empty (`lungs-not-found`)."""
        return self.record.lungs is not None

    @property
    def shape(self) -> Index:
        """Number of voxels along (z, y, x)."""
        return self._grid.shape

    @property
    def affine(self) -> NDArray[np.float64]:
        return self._geometry.matrix()

    @property
    def spacing(self) -> Triple:
        """Distance between voxel centres along (z, y, x), in mm."""
        return self._geometry.spacing_mm

    @property
    def values(self) -> str:
        """What the image's numbers are: `HU`, `normalized`, `uint8` (of grt123) or `own` (of a user's step)."""
        return self.record.values or "HU"

    def to_patient(self, index: ArrayLike) -> NDArray[np.float64]:
        """Map indices (..., 3) in (z, y, x) to LPS millimetres (..., 3) in (x, y, z)."""
        return self._grid.to_patient(index)

    def to_index(self, point_mm: ArrayLike) -> NDArray[np.float64]:
        """Map LPS millimetres (..., 3) in (x, y, z) to fractional indices (..., 3) in (z, y, x)."""
        return self._grid.to_index(point_mm)

    def load(self, of: What = "image") -> Volume:
        """The whole image, or lung mask, in memory. Raises UsageError if it is damaged, or there is no mask."""
        self._check_there_is(of)
        return Volume(self.shards(of).read((0, 0, 0), self.shape), self.affine)

    def normalized(self) -> Volume:
        """The whole image, -1000..400 HU brought to 0..1, minus 0.25: float32, or as it is if it is stored so.

        Raises UsageError if the image holds neither HU nor these.
        """
        return self._normalized(self.load())

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
        """A box of the volume, and its place; only the chunks that it touches are read.

        Parameters
        ----------
        size
            Voxels along (z, y, x), or along each.
        center_mm, index
            The middle, either in LPS mm (x, y, z) or as an index (z, y, x), which may be fractional. The box begins
            at the first voxel from `index - size / 2` on: for whole numbers, at `index - size // 2`.
        of
            The image or the lung mask.
        outside
            What lies beyond the volume becomes this, in the values that are stored; by default air, or 0 in the mask.
        normalized
            As `normalized()` does it.

        Raises
        ------
        UsageError
            The box does not touch the volume, or not exactly one middle is given.
        """
        if (center_mm is None) == (index is None):
            raise UsageError("a patch needs its middle: either center_mm or index")
        self._check_there_is(of)
        middle = np.asarray(index, np.float64) if center_mm is None else self.to_index(center_mm)
        sides = np.broadcast_to(np.asarray(size, np.int64), 3)
        if middle.shape != (3,) or not np.isfinite(middle).all() or sides.min() < 1:
            raise UsageError("expected three finite coordinates as the middle, and a size of one voxel or more")
        first = np.ceil(middle - sides / 2 - SAME_MM).astype(np.int64)
        if (first >= self.shape).any() or (first + sides <= 0).any():
            raise UsageError(
                f"{self.key}: the patch from {first.tolist()} of {sides.tolist()} voxels (z, y, x) does not touch"
                f" the volume of {list(self.shape)}; is its middle in LPS mm (x, y, z)?"
            )
        affine = self.affine
        affine[:3, 3] = self.to_patient(first)
        box = Volume(self.shards(of).read(_triple(first), _triple(sides), outside), affine)
        return self._normalized(box) if normalized else box

    def as_dask(self, of: What = "image", chunks: tuple[int, int, int] | None = None) -> dask.array.Array:
        """The image, or the mask, as a dask array (z, y, x): by default a chunk of it is one of the store."""
        self._check_there_is(of)
        objects = self.record.objects
        content = [objects[name].sha256 for name in sorted(objects) if name.startswith(PATHS[of])]
        token = hashlib.sha256(repr((self.url, of, content)).encode()).hexdigest()[:16]
        return convert.to_dask(self._zarr(of), f"{of}-{token}", chunks)

    def as_xarray(self) -> xarray.Dataset:
        """`image` and `lungs` (if there is a mask), lazily, with coordinates in mm: see `exchange.to_xarray`."""
        names: list[What] = ["image", "lungs"] if self.has_lungs else ["image"]
        about = {"key": self.key, "values": self.values}
        return convert.to_xarray({name: self.as_dask(name) for name in names}, self._grid, about)

    def to_nifti(self, of: What = "image") -> nibabel.Nifti1Image:
        """The whole image, or mask, for nibabel, which also saves it: `volume.to_nifti().to_filename("x.nii.gz")`."""
        return convert.to_nifti(self.load(of))

    def to_sitk(self, of: What = "image") -> SimpleITK.Image:
        """The whole image, or mask, for SimpleITK."""
        return convert.to_sitk(self.load(of))

    def shards(self, of: What = "image") -> shards.Array:
        """The stored array of the image, or the mask, for reading boxes."""
        opened: dict[str, shards.Array] = vars(self).setdefault("_shards", {})
        if of not in opened:
            path = PATHS[of] + "/"
            objects = self.record.objects.items()
            sizes = {name.removeprefix(path): about.n_bytes for name, about in objects if name.startswith(path)}
            opened[of] = shards.open_array(storage.join(self.url, PATHS[of]), sizes)
        return opened[of]

    @property
    def _geometry(self) -> Geometry:
        if self.record.geometry is None:
            raise DamagedDataset(f"{self.key}: its record does not say where the volume lies")
        return self.record.geometry

    @cached_property
    def _grid(self) -> Grid:
        """The place of the voxels, without them."""
        return Grid(self._geometry.shape, self.affine)

    def _zarr(self, of: What) -> zarr.Array[Any]:
        """Opened once by each process: what s3fs opened does not work in a forked child."""
        opened: dict[tuple[int, str], zarr.Array[Any]] = vars(self).setdefault("_arrays", {})
        process = os.getpid()
        if (process, of) not in opened:
            opened[process, of] = omezarr.open_array(self.url, PATHS[of], self.record.objects)
        return opened[process, of]

    def _check_there_is(self, of: What) -> None:
        if of not in PATHS:
            raise UsageError(f"expected 'image' or 'lungs', found {of!r}")
        if of == "lungs" and not self.has_lungs:
            raise UsageError(f"{self.key}: has no lung mask; the settings of its dataset did not ask for lungs")

    def _normalized(self, volume: Volume) -> Volume:
        if self.values == "normalized":
            return volume
        if self.values != "HU":
            raise UsageError(f"{self.key}: expected HU, found values of another kind ({self.values}); use load()")
        return hounsfield.normalize(volume)


@dataclass(frozen=True)
class Dataset(Mapping[str, StoredVolume]):
    """The written volumes of a dataset by key, or those of them that were chosen: a mapping, sorted. May be pickled."""

    url: str
    chosen: frozenset[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("index", "rows")}

    @cached_property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = store.describe(self.url)["settings"]
        return settings

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row a series, those that are not written too; of chosen volumes, theirs."""
        table = index.read(self.url)
        return table if self.chosen is None else table[table["key"].isin(self._names)]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The index's rows of the (chosen) written volumes, sorted by key, as plain dictionaries."""
        return list(self._rows())

    def where(self, is_wanted: Callable[[dict[str, Any]], bool]) -> Dataset:
        """Those volumes whose row of the index is wanted: `dataset.where(lambda row: row["spacing_z_mm"] == 1)`."""
        return Dataset(self.url, frozenset(row["key"] for row in self._rows() if is_wanted(row)))

    def select(self, keys: Iterable[str]) -> Dataset:
        """The volumes of these keys. Raises KeyError if one is not written."""
        chosen = frozenset(keys)
        if missing := sorted(chosen - self._names.keys()):
            raise KeyError(missing[0])
        return Dataset(self.url, chosen)

    def lung_patches(
        self, size: int | Index, *, seed: int = 0, outside: float | None = None, normalized: bool = True
    ) -> LungPatches:
        """Random patches inside the lungs, as many of each volume and of each lung: see `LungPatches`.

        `size`, `outside` and `normalized` are those of `StoredVolume.patch`. Volumes without lungs are left out.
        Raises UsageError if there is no other.
        """
        sides = _triple(np.broadcast_to(np.asarray(size, np.int64), 3))
        rows = self._rows("right_lung_ml", "left_lung_ml")
        return patches.of_rows(self, rows, sides, seed=seed, outside=outside, normalized=normalized)

    @cached_property
    def _names(self) -> dict[str, RecordName]:
        return {row["key"]: RecordName(*(row[name] for name in index.NAME)) for row in self._rows(*index.NAME)}

    def _rows(self, *columns: str) -> Iterator[dict[str, Any]]:
        """The rows of the (chosen) written volumes, one after another; with these columns, if any are named."""
        for row in index.rows(self.url, [*{"status", "key", *columns}] if columns else None):
            if row["status"] == "written" and (self.chosen is None or row["key"] in self.chosen):
                yield row

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def __getitem__(self, key: str) -> StoredVolume:
        """Raises KeyError if no volume of that key is written."""
        name = self._names[key]
        return StoredVolume(key, store.volume_url(self.url, key), store.read_record(self.url, name))


def open_dataset(url: str | os.PathLike[str]) -> Dataset:
    """Open a dataset for reading. Raises UsageError if there is none at the URL."""
    dataset = Dataset(storage.absolute(url))
    store.describe(dataset.url)
    return dataset


def _triple(numbers: NDArray[np.int64]) -> Index:
    z, y, x = (int(number) for number in numbers)
    return z, y, x

"""Reading a dataset: its index, its volumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from dskprep import index, intensity, omezarr, storage, store
from dskprep.errors import UsageError
from dskprep.volume import Triple, Volume


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """A written volume, read when it is used.

    `image` (int16 HU, unless the settings say otherwise: see `values`) and `lungs` (uint8: 1 right, 2 left)
    are zarr arrays (z, y, x), `affine` maps an index (z, y, x, 1) to LPS mm (x, y, z, 1).
    """

    key: str
    url: str
    record: dict[str, Any]

    @cached_property
    def image(self) -> zarr.Array[Any]:
        return omezarr.open_array(self.url, "0")

    @cached_property
    def lungs(self) -> zarr.Array[Any] | None:
        """The lung mask, or None in a dataset without lungs."""
        return omezarr.open_array(self.url, "labels/lungs/0") if "lungs" in self.record else None

    @property
    def affine(self) -> NDArray[np.float64]:
        return np.array(self.record["geometry"]["affine"], np.float64)

    @property
    def spacing(self) -> Triple:
        """Distance between voxel centres along (z, y, x), in mm."""
        z, y, x = self.record["geometry"]["spacing_mm"]
        return z, y, x

    @property
    def values(self) -> str:
        """What the image's numbers are: `HU`, `normalized`, `uint8` (of grt123) or `own` (of a user's step)."""
        return str(self.record.get("values", "HU"))

    def load(self) -> Volume:
        """The whole image in memory."""
        return Volume(np.asarray(self.image[...]), self.affine)

    def normalized(self) -> Volume:
        """The whole image, -1000..400 HU brought to 0..1, minus 0.25: float32, or as it is if it is stored so.

        Raises UsageError if the image holds neither HU nor these.
        """
        if self.values == "normalized":
            return self.load()
        if self.values != "HU":
            raise UsageError(f"{self.key}: expected HU, found values of another kind ({self.values}); use load()")
        return intensity.normalized(self.load())


@dataclass(frozen=True)
class Dataset:
    """The written volumes of a dataset, by key."""

    url: str

    @cached_property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = store.describe(self.url)["settings"]
        return settings

    @cached_property
    def index(self) -> pd.DataFrame:
        """One row a series, those that are not written too."""
        return index.read(self.url)

    @cached_property
    def _names(self) -> dict[str, store.RecordName]:
        rows = self.index[self.index["status"] == "written"]
        return {
            key: store.RecordName("written", key, digest)
            for key, digest in zip(rows["key"], rows["input_digest"], strict=True)
        }

    def keys(self) -> list[str]:
        """The keys of the written volumes, sorted."""
        return sorted(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def __getitem__(self, key: str) -> StoredVolume:
        """Raises KeyError if no volume of that key is written."""
        name = self._names[key]
        return StoredVolume(key, store.volume_url(self.url, key), store.read_record(self.url, name))


def open_dataset(url: str) -> Dataset:
    """Open a dataset for reading. Raises UsageError if there is none at the URL."""
    dataset = Dataset(storage.absolute(url))
    store.describe(dataset.url)
    return dataset

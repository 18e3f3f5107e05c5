"""Read boxes of a written array: only the chunks that a box touches, by ranged reads of the shards that hold them."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from dskprep import storage
from dskprep.errors import DamagedDataset, UsageError

Index = tuple[int, int, int]

NOTHING = 2**64 - 1
"""Offset and length, in a shard's index, of a chunk that is not stored because it holds only the fill value."""

CODECS = [["sharding_indexed"], ["bytes", "blosc"], ["bytes", "crc32c"]]
"""Codecs of the array, of an inner chunk, and of the shard index."""


@dataclass(frozen=True, eq=False)
class Array:
    """An array (z, y, x) in the layout that `omezarr.encode` writes.

    zarr can read it too, but for each read it requests a shard's index again, and then one chunk after another. Here
    an index is read once and kept (16 bytes per chunk), and the chunks that a box needs from a shard are requested
    together. `objects` holds the size in bytes of each stored shard, by its name below `url`; a shard that is not
    among them holds only the fill value. An opened array is safe to share between threads and across a fork, and can
    be pickled.
    """

    url: str
    objects: dict[str, int]
    shape: Index
    dtype: np.dtype[Any]
    fill: float
    chunk: Index
    shard: Index
    _indices: dict[str, NDArray[np.uint64]] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_indices": {}}

    def read(self, first: Index, size: Index, outside: float | None = None) -> NDArray[Any]:
        """Return the box of `size` voxels that begins at voxel `first`.

        Voxels beyond the array become `outside`, by default the fill value. Raises DamagedDataset if a shard is
        damaged or gone.
        """
        box = np.full(size, self.fill if outside is None else outside, self.dtype)
        low, high = np.maximum(first, 0), np.minimum(np.add(first, size), self.shape)
        if (low >= high).any():
            return box
        inside = box[tuple(map(slice, low - first, high - first))]
        if outside is not None:
            inside[...] = self.fill
        touched = (range(a // n, -(-b // n)) for a, b, n in zip(low.tolist(), high.tolist(), self.chunk, strict=True))
        by_shard = defaultdict(list)
        for chunk in itertools.product(*touched):
            by_shard[tuple(i * c // s for i, c, s in zip(chunk, self.chunk, self.shard, strict=True))].append(chunk)
        for shard, chunks in by_shard.items():
            for chunk, voxels in self._read_chunks(shard, chunks):
                start = np.multiply(chunk, self.chunk)
                begin, end = np.maximum(start, low), np.minimum(start + self.chunk, high)
                target, source = (tuple(map(slice, begin - origin, end - origin)) for origin in (low, start))
                inside[target] = voxels[source]
        return box

    def chunks(self) -> list[tuple[Index, NDArray[Any]]]:
        """Return the first voxel and the content of each stored chunk; those at the array's end are cut off there."""
        found = []
        for shard in np.ndindex(*(-(-n // s) for n, s in zip(self.shape, self.shard, strict=True))):
            name = _name(shard)
            if name not in self.objects:
                continue
            url = storage.join(self.url, name)
            (content,) = _fetch(url)
            places = self._parse(url, content[-self._index_bytes :])
            for place in np.argwhere(places[..., 0] != NOTHING):
                offset, length = places[tuple(place)].tolist()
                start = np.multiply(shard, self.shard) + place * self.chunk
                chunk = self._decode(url, content[offset : offset + length])
                found.append((as_index(start), chunk[tuple(map(slice, self.shape - start))]))
        return found

    def _read_chunks(
        self, shard: tuple[int, ...], chunks: list[tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
        """Yield those of a shard's chunks that are stored."""
        name = _name(shard)
        if name not in self.objects:
            return
        url = storage.join(self.url, name)
        if name not in self._indices:
            end = self.objects[name]
            self._indices[name] = self._parse(url, *_fetch(url, [(end - self._index_bytes, end)]))
        n_chunks = self._chunks_per_shard
        places = {chunk: self._indices[name][tuple(np.mod(chunk, n_chunks))].tolist() for chunk in chunks}
        stored = {chunk: (offset, offset + n) for chunk, (offset, n) in places.items() if offset != NOTHING}
        if stored:
            for chunk, content in zip(stored, _fetch(url, list(stored.values())), strict=True):
                yield chunk, self._decode(url, content)

    @property
    def _chunks_per_shard(self) -> Index:
        return as_index(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @property
    def _index_bytes(self) -> int:
        return 16 * math.prod(self._chunks_per_shard) + 4

    def _parse(self, url: str, content: bytes) -> NDArray[np.uint64]:
        """Return the offset and length of each chunk, from a shard's index."""
        footer, checksum = content[:-4], content[-4:]
        if len(content) != self._index_bytes or google_crc32c.value(footer) != int.from_bytes(checksum, "little"):
            raise damaged(url, "this shard's index is damaged")
        return np.frombuffer(footer, "<u8").reshape(*self._chunks_per_shard, 2)

    def _decode(self, url: str, content: bytes) -> NDArray[Any]:
        try:
            return np.frombuffer(blosc.decompress(content), self.dtype.newbyteorder("<")).reshape(self.chunk)
        except (RuntimeError, ValueError) as error:
            raise damaged(url, f"a chunk is damaged ({error})") from error


def open_array(url: str, objects: dict[str, int]) -> Array:
    """Open the array at a URL; `objects` as in `Array`.

    Raises DamagedDataset if its metadata are damaged or gone, UsageError if its layout is not that of dskprep.
    """
    place = storage.join(url, "zarr.json")
    (content,) = _fetch(place)
    try:
        metadata = json.loads(content)
        sharding = metadata["codecs"][0].get("configuration", {})
        levels = (metadata["codecs"], sharding.get("codecs", []), sharding.get("index_codecs", []))
        found = [[codec["name"] for codec in codecs] for codecs in levels]
        location, keys = sharding.get("index_location", "end"), metadata["chunk_key_encoding"]["name"]
        if is_ours := found == CODECS and location == "end" and keys == "default":
            array = Array(
                url,
                objects,
                as_index(metadata["shape"]),
                np.dtype(metadata["data_type"]),
                metadata["fill_value"],
                as_index(sharding["chunk_shape"]),
                as_index(metadata["chunk_grid"]["configuration"]["chunk_shape"]),
            )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise damaged(place, "is damaged") from error
    if not is_ours:
        raise UsageError(f"{url}: expected the codecs {CODECS}, found {found}; read it with zarr")
    return array


def damaged(url: str, what: str) -> DamagedDataset:
    """Return the error for an object that is not as it was written."""
    return DamagedDataset(f"{url}: {what}; `dskprep verify` finds all such volumes")


def as_index(numbers: Iterable[Any]) -> Index:
    """Return three numbers as plain integers. Raises ValueError if there are more or fewer."""
    z, y, x = (int(number) for number in numbers)
    return z, y, x


def _name(shard: tuple[int, ...]) -> str:
    return "/".join(["c", *map(str, shard)])


def _fetch(url: str, ranges: Sequence[tuple[int, int]] = ()) -> list[bytes]:
    """Read ranges of an object, or all of it. Raises DamagedDataset if it is gone."""
    try:
        return storage.read_ranges(url, ranges) if ranges else [storage.read(url)]
    except FileNotFoundError as error:
        raise damaged(url, "is gone") from error

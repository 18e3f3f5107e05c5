"""Boxes of a written array: the chunks they touch, by ranged reads of the shards that hold them."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator
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
"""Offset and length, in a shard's index, of a chunk that holds nothing but fill."""

CODECS = [["sharding_indexed"], ["bytes", "blosc"], ["bytes", "crc32c"]]
"""Of an array, of a chunk in its shards, and of their index."""


@dataclass(frozen=True, eq=False)
class Array:
    """An array (z, y, x) as `omezarr.encode` writes it.

    zarr reads the same; it asks for a shard's index anew each time, and for one chunk after another. Here an
    index is read once and kept (16 bytes a chunk), and what a box needs of a shard is one request, or a few at
    once. `objects` are the sizes of the shards that there are, by their place below `url`. Opened arrays may be
    shared by threads, pickled, and taken along by a fork.
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
        """The box of `size` voxels from voxel `first` on; beyond the array it is `outside`, by default fill.

        Raises DamagedDataset if a shard is damaged or gone.
        """
        out = np.full(size, self.fill if outside is None else outside, self.dtype)
        inner = [
            range(max(0, start), min(start + n, end)) for start, n, end in zip(first, size, self.shape, strict=True)
        ]
        if not all(inner):
            return out
        if outside is not None:
            out[tuple(slice(r[0] - f, r[-1] + 1 - f) for r, f in zip(inner, first, strict=True))] = self.fill
        shards = [range(r[0] // s, r[-1] // s + 1) for r, s in zip(inner, self.shard, strict=True)]
        for shard in itertools.product(*shards):
            self._read_shard(out, first, inner, _index(*shard))
        return out

    def chunks(self) -> list[tuple[Index, NDArray[Any]]]:
        """First voxel and content of every chunk that holds something other than fill, cut at the array's end."""
        found = []
        grid = (range(-(-n // s)) for n, s in zip(self.shape, self.shard, strict=True))
        for shard in itertools.product(*grid):
            name = _name(_index(*shard))
            if name not in self.objects:
                continue
            with self._is_there(name):
                content = storage.read(storage.join(self.url, name))
            places = self._parse(name, content[-self._index_bytes :])
            for place in np.ndindex(*places.shape[:3]):
                offset, length = (int(v) for v in places[place])
                start = _index(
                    *(s * n + p * c for s, n, p, c in zip(shard, self.shard, place, self.chunk, strict=True))
                )
                if offset != NOTHING:
                    chunk = self._decode(content[offset : offset + length], name)
                    found.append(
                        (start, chunk[tuple(slice(max(0, n - s)) for s, n in zip(start, self.shape, strict=True))])
                    )
        return found

    def _read_shard(self, out: NDArray[Any], first: Index, inner: list[range], shard: Index) -> None:
        name = _name(shard)
        if name not in self.objects:
            return
        places = self._places(name)
        start = [s * n for s, n in zip(shard, self.shard, strict=True)]
        touched = [
            range(max(0, r[0] - s) // c, min(r[-1] - s, n - 1) // c + 1)
            for r, s, n, c in zip(inner, start, self.shard, self.chunk, strict=True)
        ]
        wanted = [place for place in itertools.product(*touched) if int(places[place][0]) != NOTHING]
        if not wanted:
            return
        ranges = [(int(offset), int(offset + length)) for offset, length in (places[place] for place in wanted)]
        with self._is_there(name):
            contents = storage.read_ranges(storage.join(self.url, name), ranges)
        for place, content in zip(wanted, contents, strict=True):
            target, source = [], []
            for p, c, s, r, f in zip(place, self.chunk, start, inner, first, strict=True):
                begin = s + p * c
                low, high = max(begin, r[0]), min(begin + c, r[-1] + 1)
                target.append(slice(low - f, high - f))
                source.append(slice(low - begin, high - begin))
            out[tuple(target)] = self._decode(content, name)[tuple(source)]

    def _places(self, name: str) -> NDArray[np.uint64]:
        """Offset and length of each chunk of a shard."""
        if name not in self._indices:
            end = self.objects[name]
            with self._is_there(name):
                (content,) = storage.read_ranges(storage.join(self.url, name), [(end - self._index_bytes, end)])
            self._indices[name] = self._parse(name, content)
        return self._indices[name]

    @contextlib.contextmanager
    def _is_there(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise damaged(f"{self.url}/{name}", "is gone") from error

    @property
    def _grid(self) -> Index:
        """Chunks of a shard."""
        return _index(*(s // c for s, c in zip(self.shard, self.chunk, strict=True)))

    @property
    def _index_bytes(self) -> int:
        return 16 * math.prod(self._grid) + 4

    def _parse(self, name: str, content: bytes) -> NDArray[np.uint64]:
        footer, checksum = content[:-4], content[-4:]
        if len(content) != self._index_bytes or google_crc32c.value(footer) != int.from_bytes(checksum, "little"):
            raise damaged(f"{self.url}/{name}", "this shard's index is damaged")
        return np.frombuffer(footer, "<u8").reshape(*self._grid, 2)

    def _decode(self, content: bytes, name: str) -> NDArray[Any]:
        try:
            chunk = np.frombuffer(blosc.decompress(content), self.dtype.newbyteorder("<"))
            return chunk.reshape(self.chunk)
        except (RuntimeError, ValueError) as error:
            raise damaged(f"{self.url}/{name}", f"a chunk is damaged ({error})") from error


def open_array(url: str, objects: dict[str, int]) -> Array:
    """Open the array at a URL; `objects` as in `Array`.

    Raises DamagedDataset if its metadata are damaged or gone, UsageError if it is not laid out as dskprep does it.
    """
    try:
        metadata = json.loads(storage.read(storage.join(url, "zarr.json")))
        sharding = metadata["codecs"][0].get("configuration", {})
        levels = (metadata["codecs"], sharding.get("codecs", []), sharding.get("index_codecs", []))
        found = [[codec["name"] for codec in codecs] for codecs in levels]
        place, keys = sharding.get("index_location", "end"), metadata["chunk_key_encoding"]["name"]
        if is_ours := found == CODECS and place == "end" and keys == "default":
            array = Array(
                url,
                objects,
                _index(*metadata["shape"]),
                np.dtype(metadata["data_type"]),
                metadata["fill_value"],
                _index(*sharding["chunk_shape"]),
                _index(*metadata["chunk_grid"]["configuration"]["chunk_shape"]),
            )
    except FileNotFoundError as error:
        raise damaged(f"{url}/zarr.json", "is gone") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise damaged(f"{url}/zarr.json", "is damaged") from error
    if not is_ours:
        raise UsageError(f"{url}: expected the codecs {CODECS}, found {found}; read it with zarr")
    return array


def damaged(place: str, what: str) -> DamagedDataset:
    """The error of a volume that is not as it was written."""
    return DamagedDataset(f"{place}: {what}; `dskprep verify` finds all such volumes")


def _name(shard: Index) -> str:
    return f"c/{shard[0]}/{shard[1]}/{shard[2]}"


def _index(*numbers: int) -> Index:
    z, y, x = numbers
    return z, y, x

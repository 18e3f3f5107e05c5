"""Open an array of a written volume with zarr, so that zarr sees only what dskprep wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, NoReturn

import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from dskprep import storage
from dskprep.dataset import layout
from dskprep.dataset.box import Index
from dskprep.dataset.layout import damaged, index_bytes
from dskprep.dataset.shards import fetch, parse_index


def open_array(url: str, path: str, sizes: Mapping[str, int]) -> zarr.Array[Any]:
    """Open an array of a written volume for lazy reading; `sizes` are the bytes of all objects of the volume, by path.

    Raises DamagedDataset if the array's metadata are damaged or gone, or name what dskprep does not write. Reading
    voxels raises it if an object is gone or cut.
    """
    place = f"{path}/zarr.json"
    # zarr gets the very metadata that were checked: it does not read them again, and no parser sees them differently
    metadata = layout.read_array(storage.join(url, path))
    store = CheckedStore(url, sizes, {place: json.dumps(metadata).encode()}, layout.chunks_per_shard(metadata))
    try:
        return zarr.open_array(store, path=path, mode="r", zarr_format=3)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(storage.join(url, place), "is damaged") from error


class CheckedStore(Store):
    """The objects of a volume by its record: what the record names must be there, whole; nothing else is there.

    zarr takes a missing object for the fill value, and so would read a lost shard as air. All that zarr's pipelines
    call is in this class, or is built by zarr upon it: it wraps no other store that a new method could lead past it.
    """

    def __init__(
        self, url: str, sizes: Mapping[str, int], checked: Mapping[str, bytes], n_chunks: Index | None = None
    ) -> None:
        super().__init__(read_only=True)
        self._n_chunks = n_chunks  # per shard, if the shards are as dskprep writes them
        self._url, self._sizes, self._checked = url, dict(sizes), dict(checked)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckedStore) and (self._url, self._sizes) == (other._url, other._sizes)

    def __hash__(self) -> int:
        return hash(self._url)

    def __str__(self) -> str:
        return self._url

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        content = self._checked.get(key)
        size = self._sizes.get(key) if content is None else len(content)
        if size is None:
            return None
        start, end = _as_range(byte_range, size)
        if content is None:
            url = storage.join(self._url, key)
            (part,) = await asyncio.to_thread(fetch, url, [(start, end)], size)
            if self._n_chunks and "/c/" in key and end == size:  # zarr's own error would not say which volume it is
                self._check_index(url, part, self._n_chunks)
        else:
            part = content[start:end]
        return prototype.buffer.from_bytes(part)

    def _check_index(self, url: str, end_of_shard: bytes, n_chunks: Index) -> None:
        if len(end_of_shard) >= (n_bytes := index_bytes(n_chunks)):
            parse_index(url, end_of_shard[-n_bytes:], n_chunks)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, asked) for key, asked in key_ranges)))

    async def exists(self, key: str) -> bool:
        if key in self._sizes and key not in self._checked:
            await self.getsize(key)
        return key in self._sizes or key in self._checked

    async def getsize(self, key: str) -> int:
        if key in self._checked:
            return len(self._checked[key])
        if key not in self._sizes:
            raise FileNotFoundError(key)
        url = storage.join(self._url, key)
        entry = await asyncio.to_thread(storage.entry_of, url)
        if entry is None:
            raise damaged(url, "is gone")
        if entry.size != self._sizes[key]:
            raise damaged(url, f"expected {self._sizes[key]} bytes, found {entry.size}")
        return self._sizes[key]

    @property
    def supports_listing(self) -> bool:
        return True

    async def list(self) -> AsyncIterator[str]:
        for key in sorted(self._sizes):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in sorted(self._sizes):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = prefix.rstrip("/") + "/" if prefix else ""
        below = (key.removeprefix(start) for key in self._sizes if key.startswith(start))
        for name in sorted({key.partition("/")[0] for key in below}):
            yield name

    @property
    def supports_writes(self) -> bool:
        return False

    @property
    def supports_deletes(self) -> bool:
        return False

    async def set(self, key: str, value: Buffer) -> NoReturn:  # noqa: ARG002
        self._check_writable()
        raise NotImplementedError

    async def delete(self, key: str) -> NoReturn:  # noqa: ARG002
        self._check_writable()
        raise NotImplementedError


def _as_range(asked: ByteRequest | None, size: int) -> tuple[int, int]:
    """Return the first byte that is asked for, and the one after the last, of an object of `size` bytes."""
    if asked is None:
        return 0, size
    if isinstance(asked, RangeByteRequest):
        return min(asked.start, size), min(asked.end, size)
    if isinstance(asked, SuffixByteRequest):
        return max(0, size - asked.suffix), size
    return min(asked.offset, size), size

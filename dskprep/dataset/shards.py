"""Read boxes of a written array: only the chunks that a box touches, by ranged reads of the shards that hold them."""

from __future__ import annotations

import itertools
import math
import struct
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from imagecodecs import zstd_decode
from numcodecs import blosc
from numpy.typing import NDArray

from dskprep import storage
from dskprep.dataset import layout
from dskprep.dataset.box import Index, as_fill, as_index
from dskprep.dataset.layout import damaged, index_bytes
from dskprep.errors import InfrastructureError, UsageError

NOTHING = 2**64 - 1
"""Offset and length, in a shard's index, of a chunk that is not stored because it holds only the fill value."""

BLOSC_HEADER = struct.Struct("<4xIII")
"""Of the header of a blosc chunk: its size when decompressed, the size of a block, and its size as it is."""


class Target(NamedTuple):
    """A box to be filled with the voxels of an array from `first` on."""

    first: Index
    box: NDArray[Any]


class Piece(NamedTuple):
    """Chunks of one shard that are fetched together: their bytes, and each with the boxes that it touches."""

    shard: str
    ranges: list[tuple[int, int]]
    chunks: list[tuple[Index, list[Target]]]


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
    codec: str = "blosc"
    _indices: dict[str, NDArray[np.uint64]] = field(default_factory=dict, repr=False)
    _held: dict[str, bytes] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_indices": {}, "_held": {}}

    def read(self, first: Index, size: Index, outside: float | None = None) -> NDArray[Any]:
        """Return the box of `size` voxels that begins at voxel `first`.

        Voxels beyond the array become `outside`, by default the fill value. Raises DamagedDataset if a shard is
        damaged or gone.
        """
        target = Target(first, np.empty(size, self.dtype))
        for piece in self.pieces([target], outside):
            self.fill_in(piece)
        return target.box

    def pieces(
        self,
        targets: Iterable[Target],
        outside: float | None = None,
        *,
        most_bytes: float = math.inf,
        is_union: bool = False,
    ) -> list[Piece]:
        """Return what has to be fetched to fill boxes, each stored chunk once; a piece has about so many bytes at most.

        What is not stored is written into the boxes now, but not for a union: the fill value, and beyond the array
        `outside`. The index of a shard is read if it is not known yet. Raises as `read` does.
        """
        wanted: dict[Index, dict[Index, list[Target]]] = defaultdict(lambda: defaultdict(list))
        for target in targets:
            inside = self._within(target, (0, 0, 0), self.shape)
            if not is_union and inside != [(0, n) for n in target.box.shape]:
                target.box[...] = self.fill if outside is None else as_fill(outside, self.dtype)
            if any(low == high for low, high in inside):
                continue
            axes = zip(target.first, inside, self.chunk, strict=True)
            touched = (range((start + low) // n, -(-(start + high) // n)) for start, (low, high), n in axes)
            for chunk in itertools.product(*touched):
                z, y, x = (i * c // s for i, c, s in zip(chunk, self.chunk, self.shard, strict=True))
                wanted[z, y, x][as_index(chunk)].append(target)
        found = []
        for shard, chunks in wanted.items():
            name = _name(shard)
            places = [(self._place(name, chunk), chunk, boxes) for chunk, boxes in chunks.items()]
            n_bytes = -1
            for (begin, end), chunk, boxes in sorted(places, key=lambda place: place[0]):
                if begin == end:
                    for target in [] if is_union else boxes:
                        self._part_of(target, chunk)[0][...] = self.fill
                    continue
                if n_bytes < 0 or n_bytes + end - begin > most_bytes:
                    found.append(Piece(name, [], []))
                    n_bytes = 0
                n_bytes += end - begin
                found[-1].ranges.append((begin, end))
                found[-1].chunks.append((chunk, boxes))
        return found

    def fill_in(self, piece: Piece, lock: threading.Lock | None = None) -> None:
        """Fetch a piece, decode each of its chunks once, and copy it into the boxes that it touches.

        With a lock, which is held to write, a box keeps its voxels where they are larger: the union of labels.
        """
        url = storage.join(self.url, piece.shard)
        for (chunk, targets), content in zip(piece.chunks, self._read(piece.shard, piece.ranges), strict=True):
            voxels = self._decode(url, content)
            for target in targets:
                box, part = self._part_of(target, chunk)
                if lock is None:
                    box[...] = voxels[part]
                else:
                    with lock:
                        np.maximum(box, voxels[part], out=box)

    def hold(self) -> None:
        """Read all shards now, and keep them packed: what is read from then on needs no request."""
        for name, n_bytes in self.objects.items():
            if name.startswith("c/") and name not in self._held:
                (self._held[name],) = fetch(storage.join(self.url, name), [(0, n_bytes)], n_bytes)

    def chunks(self) -> list[tuple[Index, NDArray[Any]]]:
        """Return the first voxel and the content of each stored chunk; those at the array's end are cut off there."""
        found = []
        for shard in np.ndindex(*(-(-n // s) for n, s in zip(self.shape, self.shard, strict=True))):
            name = _name(shard)
            if name not in self.objects:
                continue
            url = storage.join(self.url, name)
            (content,) = self._read(name, [(0, self.objects[name])])
            places = parse_index(url, content[-self._index_bytes :], self._chunks_per_shard)
            for place in np.argwhere(places[..., 0] != NOTHING):
                begin, end = self._range(url, name, *places[tuple(place)].tolist())
                start = np.multiply(shard, self.shard) + place * self.chunk
                chunk = self._decode(url, content[begin:end])
                found.append((as_index(start), chunk[tuple(map(slice, self.shape - start))]))
        return found

    def _within(self, target: Target, start: Index, stop: Index) -> list[tuple[int, int]]:
        """Return which voxels of a box lie from `start` to before `stop`, per axis: first, and before what."""
        edges = zip(target.first, target.box.shape, start, stop, strict=True)
        ends = [(max(a - first, 0), min(b - first, size)) for first, size, a, b in edges]
        return [(low, max(low, high)) for low, high in ends]

    def _part_of(self, target: Target, chunk: Index) -> tuple[NDArray[Any], tuple[slice, ...]]:
        """Return the voxels of a box that lie in a chunk, and where they lie in it."""
        start = as_index(i * n for i, n in zip(chunk, self.chunk, strict=True))
        stop = as_index(min(a + n, end) for a, n, end in zip(start, self.chunk, self.shape, strict=True))
        inside = self._within(target, start, stop)
        moved = [first - a for first, a in zip(target.first, start, strict=True)]
        part = tuple(slice(low + d, high + d) for (low, high), d in zip(inside, moved, strict=True))
        return target.box[tuple(slice(low, high) for low, high in inside)], part

    def _place(self, name: str, chunk: Index) -> tuple[int, int]:
        """Return the first byte of a chunk and the one after its last; (0, 0) if it is not stored."""
        if name not in self.objects:
            return 0, 0
        n_chunks = self._chunks_per_shard
        if name not in self._indices:
            end = self.objects[name]
            (content,) = self._read(name, [(max(0, end - self._index_bytes), end)])
            self._indices[name] = parse_index(storage.join(self.url, name), content, n_chunks)
        z, y, x = (i % n for i, n in zip(chunk, n_chunks, strict=True))
        offset, length = self._indices[name][z, y, x].tolist()
        return (0, 0) if offset == NOTHING else self._range(storage.join(self.url, name), name, offset, length)

    def _read(self, name: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        if name in self._held:
            return [self._held[name][begin:end] for begin, end in ranges]
        return fetch(storage.join(self.url, name), ranges, self.objects[name])

    @property
    def _chunks_per_shard(self) -> Index:
        return as_index(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @property
    def _index_bytes(self) -> int:
        return index_bytes(self._chunks_per_shard)

    def _range(self, url: str, name: str, offset: int, length: int) -> tuple[int, int]:
        """Return the first byte of a chunk that is stored, and the one after its last."""
        if not length:
            raise damaged(url, "a chunk is damaged (it has no bytes)")
        if offset + length > self.objects[name] - self._index_bytes:
            raise damaged(url, "this shard's index points beyond its chunks")
        if length > layout.most_bytes(self.chunk, self.dtype.itemsize):  # as in a file of holes
            raise damaged(url, f"a chunk is damaged (it has {length} bytes, more than its voxels)")
        return offset, offset + length

    def _decode(self, url: str, content: bytes) -> NDArray[Any]:
        n_bytes = math.prod(self.chunk) * self.dtype.itemsize
        try:
            voxels = _unpack_blosc(content, n_bytes) if self.codec == "blosc" else zstd_decode(content, out=n_bytes)
            return np.frombuffer(voxels, self.dtype.newbyteorder("<")).reshape(self.chunk)
        except (RuntimeError, ValueError) as error:
            raise damaged(url, f"a chunk is damaged ({error})") from error


def _unpack_blosc(content: bytes, n_bytes: int) -> bytes:
    # blosc believes its header: it would read beyond what is there, and make room for whatever is claimed
    sizes = BLOSC_HEADER.unpack_from(content) if len(content) >= BLOSC_HEADER.size else (0, 0, 0)
    if (sizes[0], sizes[2]) != (n_bytes, len(content)):
        raise ValueError(f"expected {n_bytes} bytes in {len(content)}, found {sizes[0]} bytes")
    voxels: bytes = blosc.decompress(content)
    return voxels


def open_array(url: str, objects: dict[str, int]) -> Array:
    """Open the array at a URL; `objects` as in `Array`.

    Raises DamagedDataset if its metadata are damaged or gone, UsageError if its layout is not that of dskprep.
    """
    metadata = layout.read_array(url)
    codec = layout.codec_of(metadata)
    if not codec:
        expected, found = " or ".join(map(str, layout.OURS.values())), layout.names_of_codecs(metadata)
        raise UsageError(f"{url}: expected the codecs {expected}, found {found}; read it with zarr")
    sharding = metadata["codecs"][0]["configuration"]
    most = layout.most_shard_bytes(metadata)
    for name, n_bytes in objects.items():
        if name.startswith("c/") and n_bytes > most:  # it may be a file of holes
            raise damaged(storage.join(url, name), f"expected a shard of at most {most} bytes, found {n_bytes}")
    return Array(
        url,
        objects,
        as_index(metadata["shape"]),
        np.dtype(metadata["data_type"]),
        float(metadata["fill_value"]),
        as_index(sharding["chunk_shape"]),
        as_index(metadata["chunk_grid"]["configuration"]["chunk_shape"]),
        codec,
    )


def parse_index(url: str, content: bytes, n_chunks: Index) -> NDArray[np.uint64]:
    """Return the offset and length of each chunk, from a shard's index. Raises DamagedDataset if it is damaged."""
    footer, checksum = content[:-4], content[-4:]
    if len(content) != index_bytes(n_chunks) or google_crc32c.value(footer) != int.from_bytes(checksum, "little"):
        raise damaged(url, "this shard's index is damaged")
    return np.frombuffer(footer, "<u8").reshape(*n_chunks, 2)


def _name(shard: Sequence[int]) -> str:
    return "/".join(["c", *map(str, shard)])


def fetch(url: str, ranges: Sequence[tuple[int, int]], size: int) -> list[bytes]:
    """Read ranges of an object of `size` bytes. Raises DamagedDataset if it is gone, or has another size."""
    try:
        return storage.read_ranges(url, ranges)
    except FileNotFoundError as error:
        raise damaged(url, "is gone") from error
    except InfrastructureError as error:
        entry = storage.entry_of(url)  # what is cut cannot be read again, however often it is tried
        if entry is None or entry.size != size:
            found = "nothing" if entry is None else f"{entry.size}"
            raise damaged(url, f"expected {size} bytes, found {found}") from error
        raise

"""What the metadata of a stored array may say. It is checked before anything opens the array: it may be a stranger's.

zarr finds the codecs that metadata name in a registry, and some of them run code that lies in the data: numcodecs'
`pickle` loads pickles. So only the codecs that dskprep writes are let through, and only numbers of plain types.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from dskprep import storage
from dskprep.errors import DamagedDataset
from dskprep.plain import in_one_line
from dskprep.typed import converter
from dskprep.volume import Grid

Edge = Annotated[int, msgspec.Meta(ge=1)]
Index = tuple[Edge, Edge, Edge]

CODECS = ("bytes", "blosc", "zstd", "crc32c", "transpose", "sharding_indexed")
"""The codecs that an array may have, also within its shards and their indices."""
OURS = {codec: [["sharding_indexed"], ["bytes", codec], ["bytes", "crc32c"]] for codec in ("blosc", "zstd")}
"""Codecs of an array that dskprep writes, of an inner chunk, and of the shard index: by what its chunks are packed."""
BLOSC: dict[str, Any] = {"cname": "zstd", "shuffle": "bitshuffle"}
"""What blosc is set to in such an array."""
MAX_BLOCK_BYTES = 2**21
"""The most that blosc compresses at once.

Left to itself it cuts a chunk into blocks of 32 KiB. As one block, chunks of 64^3 int16 of four chests are 5 to 7 %
smaller, and take six to eight tenths of the CPU to pack, and about half of it to unpack. Nobody reads part of a chunk.
"""
AXES = ("z", "y", "x")
DTYPES = ("int16", "uint8", "float32", "float64")
"""The types of numbers that the recipes write."""
FOLDERS = {"image": "", "lungs": "labels/lungs/"}
"""Where the arrays of a volume that every run writes lie below it: `0`, and from `1` on each half as fine."""
MAX_SHARD = (384, 448, 448)
"""Longest edges of a shard (z, y, x): at most 154 MB of int16, which compress to an object of less than 100 MB.

Wider types have a shorter z, so that a shard is no larger. An array of other shards does not count as dskprep's where
leftovers are deleted.
"""
MAX_VOXELS = 2**34
"""Voxels of an array, or of a shard: 34 GB of int16, more than any worker can prepare."""
MAX_CHUNK_VOXELS = 256**3
"""Voxels of a chunk: the largest that the settings allow."""
MAX_CHUNKS = 2**22
"""Chunks of an array, or of a shard: those of MAX_VOXELS in the smallest chunks that the settings allow."""

Setting = str | int | float | bool | list[int] | None


class _Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    configuration: dict[str, Any] = {}


class _Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chunk_shape: Index


class _ChunkGrid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Literal["regular"]
    configuration: _Grid


class _KeyEncoding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Literal["default"]
    configuration: dict[Literal["separator"], Literal["/"]] = {}


class _Sharding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chunk_shape: Index
    codecs: list[_Named]
    index_codecs: list[_Named]
    index_location: Literal["start", "end"] = "end"


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: Index
    data_type: Literal[
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"
    ]
    chunk_grid: _ChunkGrid
    chunk_key_encoding: _KeyEncoding
    fill_value: float | Literal["NaN", "Infinity", "-Infinity"]
    codecs: list[_Named]
    attributes: dict[str, Any] = {}
    dimension_names: tuple[str | None, str | None, str | None] | None = None
    storage_transformers: Annotated[list[Any], msgspec.Meta(max_length=0)] = []


_to_metadata, _to_sharding, _to_settings = converter(_Metadata), converter(_Sharding), converter(dict[str, Setting])


def read_array(url: str) -> dict[str, Any]:
    """Read the metadata of the array at a URL, as plain JSON values.

    Raises DamagedDataset if they are gone, damaged, or say what dskprep never writes.
    """
    place = storage.join(url, "zarr.json")
    metadata = _read(place)
    try:
        _check(_to_metadata(metadata))
    except (ValueError, RecursionError) as error:  # a ValidationError is a ValueError
        raise damaged(place, f"is damaged ({in_one_line(error, 200)})") from error
    return metadata


def names_of_codecs(metadata: dict[str, Any]) -> list[list[str]]:
    """Return the names of the codecs of an array, of an inner chunk, and of the shard index."""
    outer = metadata["codecs"]
    sharding = outer[0].get("configuration", {}) if outer else {}
    levels = (outer, sharding.get("codecs", []), sharding.get("index_codecs", []))
    return [[codec["name"] for codec in codecs] for codecs in levels]


def codec_of(metadata: dict[str, Any]) -> str:
    """Return by what the chunks of an array are packed, one of OURS; "" if its codecs are not those of dskprep."""
    found = names_of_codecs(metadata)
    sharding = metadata["codecs"][0].get("configuration", {}) if metadata["codecs"] else {}
    at_end = sharding.get("index_location", "end") == "end"
    return next((codec for codec, ours in OURS.items() if ours == found and at_end), "")


def chunks_per_shard(metadata: dict[str, Any]) -> Index | None:
    """Return how many chunks a shard has along each axis; None if the codecs are not those that dskprep writes."""
    if not codec_of(metadata):
        return None
    sharding = metadata["codecs"][0]["configuration"]
    shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    z, y, x = (s // c for s, c in zip(shard, sharding["chunk_shape"], strict=True))
    return z, y, x


def index_bytes(n_chunks: Index) -> int:
    """Return the size of the index of a shard of so many chunks."""
    return 16 * math.prod(n_chunks) + 4


def most_bytes(chunk: Sequence[int], item_bytes: int) -> int:
    """Return the most bytes of a packed chunk: voxels that do not shrink grow by a header and some marks."""
    return math.prod(chunk) * item_bytes * 129 // 128 + 1024


def most_shard_bytes(metadata: dict[str, Any]) -> int:
    """Return the most bytes of a shard, with its index, of codecs that dskprep writes."""
    chunk, n_chunks = metadata["codecs"][0]["configuration"]["chunk_shape"], chunks_per_shard(metadata) or (1, 1, 1)
    each = most_bytes(chunk, np.dtype(metadata["data_type"]).itemsize)
    return math.prod(n_chunks) * each + index_bytes(n_chunks)


def block_bytes(edge: int, item_bytes: int) -> int:
    """Return the size of blosc's blocks in a chunk of this edge: the whole chunk, if it is not too large."""
    return min(edge**3 * item_bytes, MAX_BLOCK_BYTES)


def shard_shape(shape: Sequence[int], item_bytes: int, edge: int) -> Index:
    """Return the shape of the shards of an array: whole chunks of this edge, and no more of them than a shard holds."""
    z, y, x = MAX_SHARD
    limits = (z // max(1, item_bytes // 2), y, x)
    z, y, x = (edge * -(-min(n, longest) // edge) for n, longest in zip(shape, limits, strict=True))
    return z, y, x


def is_ours(url: str) -> bool:
    """Tell whether the array at a URL has metadata as dskprep writes them, whatever its shape."""
    try:
        metadata = read_array(url)
    except DamagedDataset:
        return False
    is_plain = metadata["data_type"] in DTYPES and not metadata.get("attributes")
    codec = codec_of(metadata)
    if not is_plain or not codec or metadata.get("dimension_names") != [*AXES]:
        return False
    sharding = metadata["codecs"][0]["configuration"]
    edge, *others = sharding["chunk_shape"]
    shard = shard_shape(metadata["shape"], np.dtype(metadata["data_type"]).itemsize, edge)
    is_laid_out = [edge, edge] == others and [*shard] == metadata["chunk_grid"]["configuration"]["chunk_shape"]
    packed: dict[str, Any] = sharding["codecs"][1].get("configuration", {})
    return is_laid_out and (codec != "blosc" or packed.items() >= BLOSC.items())


def check_volume(url: str, n_levels: int) -> None:
    """Check what the metadata of the volume at a URL say of its arrays.

    Nothing is ever read by such a copy (zarr's consolidated metadata), but whoever opens the volume with zarr reads by
    it. Raises DamagedDataset if it is not what the array says of itself, or the volume's own metadata are damaged.
    """
    place = storage.join(url, "zarr.json")
    group = _read(place)
    try:
        copies = (group.get("consolidated_metadata") or {}).get("metadata", {})
        if group["zarr_format"] != 3 or group["node_type"] != "group":
            raise ValueError("expected a group of zarr format 3")
        for path in (path_of(name, level) for name in FOLDERS for level in range(n_levels)):
            own = read_array(storage.join(url, path)) if path in copies else None
            if own is not None and not _says_the_same(copies[path], own):
                raise ValueError(f"its consolidated metadata are not those of {path}/zarr.json")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(place, f"is damaged ({in_one_line(error, 200)})") from error


def path_of(name: str, level: int = 0) -> str:
    """Return where the image, the lungs or another label lies below its volume, at a level."""
    return f"{FOLDERS.get(name, f'labels/{name}/')}{level}"


def n_levels(names: Collection[str]) -> int:
    """Return how many levels a volume has, by the names of its objects."""
    return next(level for level in itertools.count(1) if f"{level}/zarr.json" not in names)


def level_shape(shape: Sequence[int], level: int) -> Index:
    """Return the shape of a level; one that is odd is rounded up when it is halved."""
    z, y, x = (-(-n // 2**level) for n in shape)
    return z, y, x


def level_grid(grid: Grid, level: int) -> Grid:
    """Return the grid of a level of an image: its voxels lie in the middle of those that they were made from."""
    factor = 2**level
    to_finest = np.diag([factor, factor, factor, 1.0])
    to_finest[:3, 3] = (factor - 1) / 2
    return Grid(level_shape(grid.shape, level), grid.affine @ to_finest)


def label_of(name: str) -> str:
    """Return the label whose group has its metadata in this object of a volume, or ""."""
    parts = name.split("/")
    return parts[1] if len(parts) == 3 and (parts[0], parts[2]) == ("labels", "zarr.json") else ""


def damaged(url: str, what: str) -> DamagedDataset:
    """Return the error for an object that is not as it was written."""
    return DamagedDataset(f"{url}: {what}; `dskprep verify` finds all such volumes")


def _read(place: str) -> dict[str, Any]:
    try:
        content = storage.read_small(place)
    except FileNotFoundError as error:
        raise damaged(place, "is gone") from error
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(place, "is damaged (no JSON)") from error
    if not isinstance(found, dict):
        raise damaged(place, "is damaged (expected a JSON object)")
    return found


def _says_the_same(copy: dict[str, Any], own: dict[str, Any]) -> bool:
    """Tell whether a copy of an array's metadata agrees with its own; what is empty may be left out."""
    names = copy.keys() | own.keys()
    return all((copy.get(name) or None) == (own.get(name) or None) for name in names)


def _check(metadata: _Metadata) -> None:
    """Raise ValueError for codecs that are not ours, and for sizes that no volume has."""
    chunk = _check_codecs(metadata.codecs, metadata.chunk_grid.configuration.chunk_shape)
    if math.prod(metadata.shape) > MAX_VOXELS:
        raise ValueError(f"expected at most {MAX_VOXELS} voxels, found a shape of {list(metadata.shape)}")
    if math.prod(-(-n // c) for n, c in zip(metadata.shape, chunk, strict=True)) > MAX_CHUNKS:
        raise ValueError(f"expected at most {MAX_CHUNKS} chunks, found chunks of {list(chunk)}")
    if math.prod(chunk) > MAX_CHUNK_VOXELS:
        raise ValueError(f"expected chunks of at most {MAX_CHUNK_VOXELS} voxels, found {list(chunk)}")


def _check_codecs(codecs: list[_Named], outer: Index) -> Index:
    """Check the codecs of chunks of the shape `outer`; return the shape of the chunks that are stored."""
    chunk = outer
    for codec in codecs:
        if codec.name not in CODECS:
            raise ValueError(f"expected the codecs {', '.join(CODECS)}, found {codec.name!r:.100}")
        if codec.name != "sharding_indexed":
            _to_settings(codec.configuration)
            continue
        sharding = _to_sharding(codec.configuration)
        counts = [s // c for s, c in zip(outer, sharding.chunk_shape, strict=True)]
        if [n * c for n, c in zip(counts, sharding.chunk_shape, strict=True)] != list(outer):
            raise ValueError(f"expected whole chunks of {list(sharding.chunk_shape)} in a shard of {list(outer)}")
        if math.prod(outer) > MAX_VOXELS or math.prod(counts) > MAX_CHUNKS:
            raise ValueError(f"expected a smaller shard, found {list(outer)} in chunks of {list(sharding.chunk_shape)}")
        if any(each.name == "sharding_indexed" for each in (*sharding.codecs, *sharding.index_codecs)):
            raise ValueError("expected no shards within a shard")
        _check_codecs(sharding.index_codecs, outer)
        chunk = _check_codecs(sharding.codecs, sharding.chunk_shape)
    return chunk

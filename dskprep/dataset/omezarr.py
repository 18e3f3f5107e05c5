"""Encode a prepared volume, and labels on its grid, as the objects of an OME-Zarr image."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from dskprep.dataset import layout, ome
from dskprep.dataset.shards import NOTHING
from dskprep.kernels import pyramid
from dskprep.kernels.masks import are_all
from dskprep.preparation.prepared import Prepared
from dskprep.settings import PrepConfig
from dskprep.volume import Grid

if TYPE_CHECKING:
    from dskprep.labels.draw import Drawn


def encode(prepared: Prepared, config: PrepConfig, provenance: dict[str, Any]) -> dict[str, bytes]:
    """Return the image and its lung mask as objects, by their path below the volume.

    The same volume and settings give the same bytes. Each array is sharded; an inner chunk that holds only the fill
    value (air, or 0 in the mask) is not stored. `provenance` becomes part of the image's attributes.
    """
    image = prepared.image
    attributes = {
        "ome": ome.image_of("image", image.grid, config.levels, config.ome_zarr, "mean"),
        "dskprep": {"affine": image.affine.round(6).tolist(), "values": prepared.values, **provenance},
    }
    objects = {"zarr.json": ome.group_json(attributes)}
    _add_levels(objects, "image", image.array, prepared.fill, pyramid.halve_by_mean, config)
    if prepared.lungs is not None:
        mask = prepared.lungs.mask
        objects["labels/zarr.json"] = ome.labels_json(["lungs"], config.ome_zarr)
        objects["labels/lungs/zarr.json"] = _label_json("lungs", mask.grid, config, ome.LUNGS)
        _add_levels(objects, "lungs", mask.array, 0, pyramid.halve_by_majority, config)
    return dict(sorted(objects.items()))


class LabelEncoder:
    """Encodes labels on the grid of one volume. What is the same for all of them is made once."""

    def __init__(self, grid: Grid, config: PrepConfig) -> None:
        self._grid, self._config = grid, config
        self._shapes = [layout.level_shape(grid.shape, level) for level in range(config.levels)]
        self._metadata = [_array_json(shape, np.dtype(np.uint8), 0, config) for shape in self._shapes]

    def encode(
        self, name: str, title: str, rgb: tuple[int, int, int], drawn: Drawn, about: dict[str, Any]
    ) -> dict[str, bytes]:
        """Return the objects of one label, by their path below the volume.

        Only the chunks that the label's box touches are looked at. `name` is that under which it is stored, `title`
        the author's; `about` becomes the attribute `dskprep`.
        """
        shows = ome.label_of({1: title}, {1: rgb})
        objects = {f"labels/{name}/zarr.json": _label_json(name, self._grid, self._config, shows, dskprep=about)}
        first, mask = np.array(drawn.first), drawn.mask.view(np.uint8)
        for level, shape in enumerate(self._shapes):
            if level:
                first, mask = _halve_box(first, mask, self._shapes[level - 1])
            path = layout.path_of(name, level)
            objects[f"{path}/zarr.json"] = self._metadata[level]
            for index, shard in _shards_of_box(first, mask, shape, self._config):
                objects[f"{path}/c/{'/'.join(map(str, index))}"] = shard
        return objects


def _halve_box(
    first: NDArray[np.int64], mask: NDArray[np.uint8], shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return a box of an otherwise empty mask of this shape, as it is when the mask is halved."""
    low = first // 2 * 2
    high = np.minimum(-(-np.add(first, mask.shape) // 2) * 2, shape)
    whole = np.zeros(high - low, np.uint8)
    whole[tuple(slice(a, a + n) for a, n in zip(first - low, mask.shape, strict=True))] = mask
    return low // 2, pyramid.halve_by_majority(whole)


def _shards_of_box(
    first: NDArray[np.int64], mask: NDArray[np.uint8], shape: tuple[int, int, int], config: PrepConfig
) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Yield the index and content of each shard that holds a voxel of a box, of an otherwise empty mask."""
    shard = layout.shard_shape(shape, 1, config.chunk)
    for index in np.ndindex(*(-(-n // s) for n, s in zip(shape, shard, strict=True))):
        corner = np.multiply(index, shard)
        low, high = np.maximum(first, corner), np.minimum(np.add(first, mask.shape), corner + shard)
        if (low >= high).any():
            continue
        part = mask[tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))]
        content = _encode_shard(part, shard, 0, config, (low - corner).tolist())
        if content:
            yield index, content


def _label_json(name: str, grid: Grid, config: PrepConfig, shows: dict[str, Any], **more: Any) -> bytes:
    """Return the metadata of a label's group; `more` are attributes beside those of OME-Zarr."""
    image = ome.image_of(name, grid, config.levels, config.ome_zarr, "majority")
    return ome.group_json({"ome": image | {"image-label": shows}, **more})


def _add_levels(
    objects: dict[str, bytes],
    name: str,
    array: NDArray[Any],
    fill: float,
    halve: Callable[[NDArray[Any]], NDArray[Any]],
    config: PrepConfig,
) -> None:
    """Add the metadata and the shards of each level of an array."""
    for level in range(config.levels):
        array = halve(array) if level else array
        path, shard = layout.path_of(name, level), layout.shard_shape(array.shape, array.itemsize, config.chunk)
        objects[f"{path}/zarr.json"] = _array_json(array.shape, array.dtype, fill, config)
        for index in np.ndindex(*(-(-n // s) for n, s in zip(array.shape, shard, strict=True))):
            part = array[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, shard, strict=True))]
            content = _encode_shard(part, shard, fill, config)
            if content:
                objects[f"{path}/c/{'/'.join(map(str, index))}"] = content


def _array_json(shape: tuple[int, ...], dtype: np.dtype[Any], fill: float, config: PrepConfig) -> bytes:
    return ome.array_json(shape, dtype, fill, edge=config.chunk, codec=config.codec, level=config.zstd_level)


def _encode_shard(
    part: NDArray[Any],
    shard: tuple[int, ...],
    fill: float,
    config: PrepConfig,
    label_at: Sequence[int] | None = None,
) -> bytes:
    """Encode a shard as zarr v3's codec `sharding_indexed` does: the chunks one after another, then their index.

    The index holds the offset and length (little-endian uint64) of each chunk in C order, and ends with its CRC-32C.
    A chunk that holds only the fill value is not stored; its offset and length are NOTHING. Returns no bytes if no
    chunk is stored. All chunks share one buffer: the allocations of zarr's codec pipeline cost more than compressing.
    The shard grows in place, so that it is not held twice. Of a label, `part` is its box, which begins at the voxel
    `label_at` of the shard.
    """
    blosc.set_nthreads(1)  # a worker has one CPU, and its neighbours need the others
    edge = config.chunk
    little = np.dtype(part.dtype).newbyteorder("<")
    chunk, corner = np.empty((edge, edge, edge), little), label_at or (0, 0, 0)
    places = np.full((*(s // edge for s in shard), 2), NOTHING, "<u8")
    content, even = io.BytesIO(), dict[Any, bytes]()
    reached = [range(c // edge, -(-(c + n) // edge)) for c, n in zip(corner, part.shape, strict=True)]
    for index in itertools.product(*reached):
        low = [max(i * edge - c, 0) for i, c in zip(index, corner, strict=True)]
        piece = part[tuple(slice(a, (i + 1) * edge - c) for a, i, c in zip(low, index, corner, strict=True))]
        is_whole = piece.shape == chunk.shape
        value = piece[0, 0, 0] if label_at and are_all(piece, piece[0, 0, 0]) else None
        if value == fill:
            continue
        packed = even.get(value) if is_whole else None
        if packed is None:
            if not is_whole:
                chunk.fill(fill)
            begins = [a + c - i * edge for a, i, c in zip(low, index, corner, strict=True)]
            chunk[tuple(slice(b, b + n) for b, n in zip(begins, piece.shape, strict=True))] = piece
            if not label_at:  # a chunk is one piece of memory, which is fast to look through
                value = _only_value(chunk)
                if value == fill:
                    continue
                packed = even.get(value)
            packed = packed or _compress(chunk, config)
            if is_whole and value is not None:  # as in the middle of a large label
                even[value] = packed
        places[index] = content.tell(), content.write(packed)
    if content.tell():
        footer = places.tobytes()
        content.write(footer)
        content.write(google_crc32c.value(footer).to_bytes(4, "little"))
    return content.getvalue()


def _only_value(array: NDArray[Any]) -> Any:
    """Return the value that all voxels have, or None."""
    least, most = array.min(), array.max()
    return least if least == most else None


def _compress(chunk: NDArray[Any], config: PrepConfig) -> bytes:
    if config.codec == "zstd":
        packed: bytes = zstd.compress(chunk, config.zstd_level)
    else:
        block = layout.block_bytes(config.chunk, chunk.itemsize)
        packed = blosc.compress(chunk, b"zstd", config.zstd_level, blosc.BITSHUFFLE, block)
    return packed

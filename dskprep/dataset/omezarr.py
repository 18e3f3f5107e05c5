"""Encode a prepared volume, and labels on its grid, as the objects of an OME-Zarr 0.5 image."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from dskprep import sides
from dskprep.dataset import layout
from dskprep.dataset.shards import NOTHING
from dskprep.preparation.prepared import Prepared
from dskprep.settings import PrepConfig
from dskprep.volume import Grid

if TYPE_CHECKING:
    from dskprep.labels.draw import Drawn

ORIENTATION = {"z": "inferior-to-superior", "y": "anterior-to-posterior", "x": "right-to-left"}
"""The direction of each axis, in the words of OME-Zarr's RFC 4. The axes of an oblique volume are only near it."""

LUNG_ALPHA = 128
"""Opacity of the lungs in a viewer, from 0 to 255; at one half, the image shows through."""


def encode(prepared: Prepared, config: PrepConfig, provenance: dict[str, Any]) -> dict[str, bytes]:
    """Return the image and its lung mask as objects, by their path below the volume.

    The same volume and settings give the same bytes. Each array is sharded; an inner chunk that holds only the fill
    value (air, or 0 in the mask) is not stored. `provenance` becomes part of the image's attributes.
    """
    image = prepared.image
    attributes = {
        "ome": {"version": "0.5", "multiscales": [_multiscale("image", image.grid)]},
        "dskprep": {"affine": image.affine.round(6).tolist(), "values": prepared.values, **provenance},
    }
    objects = {"zarr.json": layout.group_json(attributes), **_array("0", image.array, prepared.fill, config)}
    if prepared.lungs is not None:
        mask = prepared.lungs.mask
        label = {
            "colors": [{"label-value": value, "rgba": [*rgb, LUNG_ALPHA]} for value, rgb in sides.RGB.items()],
            "properties": [{"label-value": value, "name": name} for value, name in sides.NAMES.items()],
            "source": {"image": "../../"},
        }
        attributes = {"ome": {"version": "0.5", "multiscales": [_multiscale("lungs", mask.grid)], "image-label": label}}
        objects |= {
            "labels/zarr.json": layout.labels_json(["lungs"]),
            "labels/lungs/zarr.json": layout.group_json(attributes),
        }
        objects |= _array("labels/lungs/0", mask.array, 0, config)
    return dict(sorted(objects.items()))


class LabelEncoder:
    """Encodes labels on the grid of one volume. What is the same for all of them is made once."""

    def __init__(self, grid: Grid, edge: int, zstd_level: int) -> None:
        self._grid, self._edge, self._level = grid, edge, zstd_level
        self._shard = layout.shard_shape(grid.shape, 1, edge)
        self._metadata = layout.array_json(grid.shape, np.dtype(np.uint8), self._shard, 0, edge, zstd_level)

    def encode(
        self, name: str, title: str, rgb: tuple[int, int, int], drawn: Drawn, about: dict[str, Any]
    ) -> dict[str, bytes]:
        """Return the objects of one label, by their path below the volume.

        Only the chunks that the label's box touches are looked at. `name` is that under which it is stored, `title`
        the author's; `about` becomes the attribute `dskprep`.
        """
        label = {
            "colors": [{"label-value": 1, "rgba": [*rgb, LUNG_ALPHA]}],
            "properties": [{"label-value": 1, "name": title}],
            "source": {"image": "../../"},
        }
        ome = {"version": "0.5", "multiscales": [_multiscale(name, self._grid)], "image-label": label}
        objects = {f"labels/{name}/0/c/{'/'.join(map(str, i))}": shard for i, shard in self._shards(drawn)}
        objects[f"labels/{name}/0/zarr.json"] = self._metadata
        objects[f"labels/{name}/zarr.json"] = layout.group_json({"ome": ome, "dskprep": about})
        return objects

    def _shards(self, drawn: Drawn) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Yield the index and content of each shard that holds a voxel of the label."""
        first, end = np.array(drawn.first), np.add(drawn.first, drawn.mask.shape)
        for index in np.ndindex(*(-(-n // s) for n, s in zip(self._grid.shape, self._shard, strict=True))):
            corner = np.multiply(index, self._shard)
            low = np.maximum(first // self._edge * self._edge, corner)  # whole chunks
            high = np.minimum(np.minimum(-(-end // self._edge) * self._edge, corner + self._shard), self._grid.shape)
            if (low >= high).any():
                continue
            part = np.zeros(high - low, np.uint8)
            inside = [slice(a, b) for a, b in zip(np.maximum(first, low), np.minimum(end, high), strict=True)]
            to = tuple(slice(i.start - a, i.stop - a) for i, a in zip(inside, low, strict=True))
            part[to] = drawn.mask[tuple(slice(i.start - f, i.stop - f) for i, f in zip(inside, first, strict=True))]
            content = _encode_shard(part, self._shard, self._edge, 0, self._level, (low - corner) // self._edge)
            if content:
                yield index, content


def _array(path: str, array: NDArray[Any], fill: float, config: PrepConfig) -> dict[str, bytes]:
    """Return an array's metadata and its shards."""
    edge, level = config.chunk, config.zstd_level
    shard = layout.shard_shape(array.shape, array.itemsize, edge)
    objects = {f"{path}/zarr.json": layout.array_json(array.shape, array.dtype, shard, fill, edge, level)}
    for index in np.ndindex(*(-(-n // s) for n, s in zip(array.shape, shard, strict=True))):
        part = array[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, shard, strict=True))]
        content = _encode_shard(part, shard, edge, fill, level)
        if content:
            objects[f"{path}/c/{'/'.join(map(str, index))}"] = content
    return objects


def _encode_shard(
    part: NDArray[Any],
    shard: tuple[int, ...],
    edge: int,
    fill: float,
    level: int,
    first: NDArray[np.int64] | tuple[int, int, int] = (0, 0, 0),
) -> bytes:
    """Encode a shard as zarr v3's codec `sharding_indexed` does: the chunks one after another, then their index.

    The index holds the offset and length (little-endian uint64) of each chunk in C order, and ends with its CRC-32C.
    A chunk that holds only the fill value is not stored; its offset and length are NOTHING. Returns no bytes if no
    chunk is stored. All chunks share one buffer: the allocations of zarr's codec pipeline cost more than compressing.
    The shard grows in place, so that it is not held twice. `first` is the chunk of the shard at which `part` begins.
    """
    blosc.set_nthreads(1)  # a worker has one CPU, and its neighbours need the others
    little = np.dtype(part.dtype).newbyteorder("<")
    chunk = np.empty((edge, edge, edge), little)
    places = np.full((*(s // edge for s in shard), 2), NOTHING, "<u8")
    content = io.BytesIO()
    for index in np.ndindex(*(-(-n // edge) for n in part.shape)):
        piece = part[tuple(slice(i * edge, (i + 1) * edge) for i in index)]
        if piece.size == 0 or (piece == fill).all():
            continue
        if piece.shape != chunk.shape:
            chunk.fill(fill)
        chunk[tuple(slice(n) for n in piece.shape)] = piece
        begin = content.tell()
        places[tuple(np.add(index, first))] = (
            begin,
            content.write(blosc.compress(chunk, b"zstd", level, blosc.BITSHUFFLE)),
        )
    if content.tell():
        footer = places.tobytes()
        content.write(footer)
        content.write(google_crc32c.value(footer).to_bytes(4, "little"))
    return content.getvalue()


def _multiscale(name: str, grid: Grid) -> dict[str, Any]:
    """Return the scale and translation to patient mm. They omit an oblique volume's rotation: see `dskprep.affine`."""
    x, y, z = grid.affine[:3, 3].tolist()
    return {
        "name": name,
        "axes": [
            {"name": axis, "type": "space", "unit": "millimeter", "orientation": {"type": "anatomical", "value": value}}
            for axis, value in ORIENTATION.items()
        ],
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [round(s, 9) for s in grid.spacing]},
                    {"type": "translation", "translation": [z, y, x]},
                ],
            }
        ],
    }

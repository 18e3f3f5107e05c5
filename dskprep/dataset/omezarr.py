"""Encode a prepared volume as the objects of an OME-Zarr 0.5 image."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from dskprep import sides
from dskprep.dataset import layout
from dskprep.dataset.shards import NOTHING
from dskprep.preparation.prepared import Prepared
from dskprep.settings import PrepConfig
from dskprep.volume import Volume

ORIENTATION = {"z": "inferior-to-superior", "y": "anterior-to-posterior", "x": "right-to-left"}
"""The direction of each axis, in the words of OME-Zarr's RFC 4. The axes of an oblique volume are only near it."""

LUNG_ALPHA = 128
"""Opacity of the lungs in a viewer, from 0 to 255; at one half, the image shows through."""


def encode(prepared: Prepared, config: PrepConfig, provenance: dict[str, Any]) -> dict[str, bytes]:
    """Return the image and its lung mask as objects, by their path below the volume.

    The same volume and settings give the same bytes. Each array is sharded; an inner chunk that holds only the fill
    value (air, or 0 in the mask) is not stored. `provenance` becomes part of the image's attributes.
    """
    _use_one_thread()
    objects: dict[str, Any] = {}
    store = MemoryStore(objects)
    image = prepared.image
    attributes = {
        "ome": {"version": "0.5", "multiscales": [_multiscale("image", image)]},
        "dskprep": {"affine": image.affine.round(6).tolist(), "values": prepared.values, **provenance},
    }
    zarr.create_group(store, path="", zarr_format=3, attributes=attributes)
    _add_array(objects, store, "0", image.array, prepared.fill, config)
    if prepared.lungs is not None:
        mask = prepared.lungs.mask
        zarr.create_group(
            store, path="labels", zarr_format=3, attributes={"ome": {"version": "0.5", "labels": ["lungs"]}}
        )
        label = {
            "colors": [{"label-value": value, "rgba": [*rgb, LUNG_ALPHA]} for value, rgb in sides.RGB.items()],
            "properties": [{"label-value": value, "name": name} for value, name in sides.NAMES.items()],
            "source": {"image": "../../"},
        }
        attributes = {"ome": {"version": "0.5", "multiscales": [_multiscale("lungs", mask)], "image-label": label}}
        zarr.create_group(store, path="labels/lungs", zarr_format=3, attributes=attributes)
        _add_array(objects, store, "labels/lungs/0", mask.array, 0, config)
    return {name: c if isinstance(c, bytes) else c.to_bytes() for name, c in sorted(objects.items())}


def _add_array(
    objects: dict[str, Any], store: MemoryStore, path: str, array: NDArray[Any], fill: float, config: PrepConfig
) -> None:
    """Add an array's metadata, written by zarr, and its shards, encoded here."""
    edge = config.chunk
    shard = layout.shard_shape(array.shape, array.itemsize, edge)
    zarr.create_array(
        store,
        name=path,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(edge, edge, edge),
        shards=shard,
        compressors=BloscCodec(clevel=config.zstd_level, typesize=array.itemsize, **layout.BLOSC),
        fill_value=fill,
        dimension_names=layout.AXES,
        zarr_format=3,
    )
    for index in np.ndindex(*(-(-n // s) for n, s in zip(array.shape, shard, strict=True))):
        part = array[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, shard, strict=True))]
        content = _encode_shard(part, shard, edge, fill, config.zstd_level)
        if content:
            objects[f"{path}/c/{'/'.join(map(str, index))}"] = content


def _encode_shard(part: NDArray[Any], shard: tuple[int, ...], edge: int, fill: float, level: int) -> bytes:
    """Encode a shard as zarr v3's codec `sharding_indexed` does: the chunks one after another, then their index.

    The index holds the offset and length (little-endian uint64) of each chunk in C order, and ends with its CRC-32C.
    A chunk that holds only the fill value is not stored; its offset and length are NOTHING. Returns no bytes if no
    chunk is stored. All chunks share one buffer: the allocations of zarr's codec pipeline cost more than compressing.
    """
    little = np.dtype(part.dtype).newbyteorder("<")
    chunk = np.empty((edge, edge, edge), little)
    places = np.full((*(s // edge for s in shard), 2), NOTHING, "<u8")
    encoded: list[bytes] = []
    offset = 0
    for index in np.ndindex(*places.shape[:3]):
        piece = part[tuple(slice(i * edge, (i + 1) * edge) for i in index)]
        if piece.size == 0 or (piece == fill).all():
            continue
        if piece.shape != chunk.shape:
            chunk.fill(fill)
        chunk[tuple(slice(n) for n in piece.shape)] = piece
        encoded.append(blosc.compress(chunk, b"zstd", level, blosc.BITSHUFFLE))
        places[index] = offset, len(encoded[-1])
        offset += len(encoded[-1])
    if not encoded:
        return b""
    footer = places.tobytes()
    return b"".join([*encoded, footer, google_crc32c.value(footer).to_bytes(4, "little")])


def _multiscale(name: str, volume: Volume) -> dict[str, Any]:
    """Return the scale and translation to patient mm. They omit an oblique volume's rotation: see `dskprep.affine`."""
    x, y, z = volume.affine[:3, 3].tolist()
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
                    {"type": "scale", "scale": [round(s, 9) for s in volume.spacing]},
                    {"type": "translation", "translation": [z, y, x]},
                ],
            }
        ],
    }


def _use_one_thread() -> None:
    """Keep zarr and blosc to one thread: a worker has one CPU, and its neighbours need the others."""
    blosc.set_nthreads(1)
    zarr.config.set({"threading.max_workers": 1})

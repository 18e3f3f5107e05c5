"""A prepared volume to the objects of an OME-Zarr 0.5 image, and back. The only user of zarr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from dskprep import sides
from dskprep.dataset.shards import damaged
from dskprep.preparation.prepared import Prepared
from dskprep.settings import PrepConfig
from dskprep.volume import Volume

MAX_SHARD = (384, 448, 448)
"""Longest edges of a shard: about 150 MB of int16 at most, so an object stays under 100 MB; floats have a shorter z."""

ORIENTATION = {"z": "inferior-to-superior", "y": "anterior-to-posterior", "x": "right-to-left"}
"""Where the axes lead, in the words of OME-Zarr's RFC 4; those of an oblique volume do nearly."""

LUNG_ALPHA = 128
"""Opacity of the lungs in a viewer, from 0 to 255: half of the image shines through."""


def encode(prepared: Prepared, config: PrepConfig, provenance: dict[str, Any]) -> dict[str, bytes]:
    """The image and its labels as objects, by their path below the volume.

    The same volume and settings give the same bytes. Each array is sharded; an inner chunk that holds
    nothing but fill (air, or 0 for the mask) is not stored.
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


def open_array(url: str, path: str, names: Iterable[str]) -> zarr.Array[Any]:
    """An array of a written volume, read lazily; `names` are those of the volume's objects.

    Raises DamagedDataset if the array's metadata are damaged or gone, as does reading where one of the objects is gone.
    """
    inner = FsspecStore.from_url(url, read_only=True) if "://" in url else LocalStore(url, read_only=True)
    try:
        return zarr.open_array(_WholeStore(inner, url, frozenset(names)), path=path, mode="r")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(f"{url}/{path}/zarr.json", "is damaged") from error


class _WholeStore(WrapperStore[Store]):
    """A volume's store that knows its objects: zarr takes an object that is not there for one of nothing but fill."""

    def __init__(self, store: Store, url: str, names: frozenset[str]) -> None:
        super().__init__(store)
        self._url, self._names = url, names

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and key in self._names:
            raise damaged(f"{self._url}/{key}", "is gone")
        return found


def _add_array(
    objects: dict[str, Any], store: MemoryStore, path: str, array: NDArray[Any], fill: float, config: PrepConfig
) -> None:
    """Let zarr write the array's metadata, and encode its shards here."""
    edge = config.chunk
    z, y, x = MAX_SHARD
    limits = (z // max(1, array.itemsize // 2), y, x)
    shard = tuple(edge * -(-min(n, longest) // edge) for n, longest in zip(array.shape, limits, strict=True))
    zarr.create_array(
        store,
        name=path,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(edge, edge, edge),
        shards=shard,
        compressors=BloscCodec(cname="zstd", clevel=config.zstd_level, shuffle="bitshuffle", typesize=array.itemsize),
        fill_value=fill,
        dimension_names=("z", "y", "x"),
        zarr_format=3,
    )
    for index in np.ndindex(*(-(-n // s) for n, s in zip(array.shape, shard, strict=True))):
        part = array[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, shard, strict=True))]
        content = _encode_shard(part, shard, edge, fill, config.zstd_level)
        if content:
            objects[f"{path}/c/{'/'.join(map(str, index))}"] = content


def _encode_shard(part: NDArray[Any], shard: tuple[int, ...], edge: int, fill: float, level: int) -> bytes:
    """One shard as zarr v3's sharding codec has it: chunks one after another, then their index.

    The index holds offset and length (little-endian uint64) of each chunk in C order, all ones for a
    chunk of nothing but fill, and ends with its CRC-32C. Empty if every chunk is. One buffer is used for
    all chunks: the allocations of a general codec pipeline cost more than the compression.
    """
    little = np.dtype(part.dtype).newbyteorder("<")
    chunk = np.empty((edge, edge, edge), little)
    places = np.full((*(s // edge for s in shard), 2), 2**64 - 1, "<u8")
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
    """Scale and translation to patient mm. An oblique volume's rotation is in `dskprep.affine` only."""
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
    """A worker computes on one CPU; the other threads of zarr and blosc would take its neighbours'."""
    blosc.set_nthreads(1)
    zarr.config.set({"threading.max_workers": 1})

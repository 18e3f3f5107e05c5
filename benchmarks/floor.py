"""The floor of the default preset's stages: bytes at the speed of memory, codecs at the speed of their libraries."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np
import pydicom
import ways
from numcodecs import blosc
from pydicom.encaps import get_frame

from dskprep import settings as config
from dskprep.dataset import layout, omezarr
from dskprep.dicom import pixels


def measure(folder: Path) -> dict[str, Any]:
    """The least CPU seconds of each stage of the default preset: its bytes at the speed of memory, and libraries.

    Reading is every file from the page cache into one buffer; decoding reads the pixels once, and imagecodecs
    decodes the frames that are compressed; resampling writes its result, the slices being in the cache; the lungs
    read this and write a mask; encoding reads both and compresses the chunks that are not empty; writing is one
    write of each object.
    """
    settings = config.preset("default")
    made, read = ways.prepared(folder, settings, ways.Clock())
    native_shape = [int(read.facts[axis]) for axis in ("slices", "rows", "columns")]
    native, image = np.zeros(native_shape, np.int16), made.image.array
    mask = made.lungs.mask.array if made.lungs else np.zeros(image.shape, np.uint8)
    paths = common.slice_files(folder)
    buffer = bytearray(max(path.stat().st_size for path in paths))
    objects = omezarr.encode(made, settings, {})
    speed = common.bandwidth()

    def files() -> None:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                file.readinto(buffer)

    def written() -> None:
        with tempfile.TemporaryDirectory() as target:
            for n, content in enumerate(objects.values()):
                Path(target, str(n)).write_bytes(content)

    stages = {
        "read": common.cpu_of(files),
        "decode": native.nbytes / speed.read + _decoding(paths),
        "resample": image.nbytes / speed.fresh,
        "lungs": image.nbytes / speed.read + mask.nbytes / speed.fresh,
        "encode": (image.nbytes + mask.nbytes) / speed.read
        + _compression(image, made.fill, settings)
        + _compression(mask, 0, settings),
        "write": common.cpu_of(written),
    }
    figures = {"native": native.shape, "image": image.shape, "compressed": sum(map(len, objects.values()))}
    return figures | {
        "stages": stages,
        "bandwidth": speed,
        "sha256": common.cpu_of(lambda: hashlib.sha256(native.data)),
    }


def _decoding(paths: list[Path]) -> float:
    """CPU seconds of imagecodecs for the frames of compressed files; 0 for native ones."""
    slices = [pydicom.dcmread(path, specific_tags=["PixelData"]) for path in paths]
    decode = pixels.DECODERS.get(slices[0].file_meta.TransferSyntaxUID)
    if decode is None:
        return 0.0
    frames = [get_frame(s.PixelData, 0, number_of_frames=1) for s in slices if "PixelData" in s]
    return common.cpu_of(lambda: [decode(frame) for frame in frames] and None)


def _compression(array: np.ndarray, fill: float, settings: config.PrepConfig) -> float:
    """CPU seconds of blosc alone, for chunks that lie ready."""
    blosc.set_nthreads(1)
    edge = settings.chunk
    padded = np.pad(array, [(0, -n % edge) for n in array.shape], constant_values=fill)
    z, y, x = (n // edge for n in padded.shape)
    chunks = padded.reshape(z, edge, y, edge, x, edge).transpose(0, 2, 4, 1, 3, 5).reshape(-1, edge**3)
    ready = [np.ascontiguousarray(chunk) for chunk in chunks if (chunk != fill).any()]
    how = (b"zstd", settings.zstd_level, blosc.BITSHUFFLE, layout.block_bytes(edge, array.itemsize))
    return common.cpu_of(lambda: [len(blosc.compress(chunk, *how)) for chunk in ready])

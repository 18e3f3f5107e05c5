"""Decode the pixel data of one frame to stored values."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from dskprep.dicom import codestream
from dskprep.errors import Refusal

NATIVE = {
    "1.2.840.10008.1.2": "<",  # implicit VR little endian
    "1.2.840.10008.1.2.1": "<",  # explicit VR little endian
    "1.2.840.10008.1.2.1.99": "<",  # deflated explicit VR little endian
    "1.2.840.10008.1.2.2": ">",  # explicit VR big endian
}
"""Byte order of the transfer syntaxes that are not compressed frame by frame."""

RLE = "1.2.840.10008.1.2.5"
"""Transfer syntax of DICOM's own run-length encoding (PS3.5 annex G)."""
JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 55, 57, 70)}
"""Transfer syntaxes of JPEG: baseline, extended (12 bit), two retired ones, and lossless (57 and 70)."""
JPEG_LS = {f"1.2.840.10008.1.2.4.{n}" for n in (80, 81)}
"""Transfer syntaxes of JPEG-LS, lossless and near-lossless."""
JPEG_2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203)}
"""Transfer syntaxes of JPEG 2000, and of its form of high throughput (201 to 203)."""
LOSSY = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 55, 81, 91, 203)}
"""Transfer syntaxes that may lose detail (.91 and .203 may also be lossless)."""

DECODERS: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(JPEG, imagecodecs.jpeg8_decode),
    **dict.fromkeys(JPEG_LS, imagecodecs.jpegls_decode),
    # its htj2k_decode takes half the time, and raises no error for data that are cut or damaged
    **dict.fromkeys(JPEG_2000, imagecodecs.jpeg2k_decode),
}
"""The decoder of each compressed transfer syntax but RLE, whose decoder needs the pixels' type and size."""

MATCH = 0.1
"""Pixels match those beside them if the median step is less than this share of what BitsStored can hold."""
MAX_EDGE = 10_000
"""Most rows or columns of a slice. Scanners reconstruct 2048 at most, so more come from a damaged header."""


@dataclass(frozen=True)
class PixelFormat:
    """How the pixels of a frame are stored (DICOM PS3.5 section 8).

    With `has_overlay`, the bits outside of BitsStored are those of an overlay.
    """

    transfer_syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    has_overlay: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        return self.rows * self.columns * self.bits_allocated // 8


def check_decodable(transfer_syntax: str, where: str) -> None:
    """Raise Refusal `missing-decoder` for a transfer syntax that is not read here."""
    if transfer_syntax not in NATIVE and transfer_syntax not in DECODERS and transfer_syntax != RLE:
        raise Refusal(
            "missing-decoder",
            f"{where}: dskprep has no decoder for transfer syntax {transfer_syntax} ({UID(transfer_syntax).name}); "
            "rewrite the files first, with gdcmconv --raw (package libgdcm-tools) or what the scanner's maker offers",
        )


def check_format(layout: PixelFormat, where: str) -> None:
    """Raise Refusal `missing-decoder` or `undecodable-pixels` if pixels in this format are not read here."""
    check_decodable(layout.transfer_syntax, where)
    if layout.bits_allocated not in (8, 16, 32):
        raise Refusal("undecodable-pixels", f"{where}: BitsAllocated {layout.bits_allocated} is not 8, 16 or 32")


def stored_values(data: bytes | memoryview, layout: PixelFormat, where: str) -> NDArray[Any]:
    """Decode one frame to its stored values, an integer array (rows, columns).

    Raises Refusal: `missing-decoder`, `undecodable-pixels`, `truncated`.
    """
    check_format(layout, where)
    is_native = layout.transfer_syntax in NATIVE
    values = _read_native(data, layout, where) if is_native else _decompress(bytes(data), layout, where)
    return _apply_format(values, layout, where)


def _read_native(data: bytes | memoryview, layout: PixelFormat, where: str) -> NDArray[Any]:
    if len(data) < layout.frame_bytes:
        raise Refusal("truncated", f"{where}: expected {layout.frame_bytes} bytes of pixels, found {len(data)}")
    order = NATIVE[layout.transfer_syntax]
    kind = "i" if layout.is_signed else "u"
    values = np.frombuffer(data, f"{order}{kind}{layout.bits_allocated // 8}", layout.rows * layout.columns)
    return values.reshape(layout.rows, layout.columns)


def _decompress(data: bytes, layout: PixelFormat, where: str) -> NDArray[Any]:
    syntax = layout.transfer_syntax
    # for data cut short, libjpeg fills the rest with grey, and charls searches for the end for seconds
    if syntax in JPEG | JPEG_LS and not codestream.reaches_end(data):
        raise Refusal("truncated", f"{where}: the JPEG data have no end-of-image marker")
    # for data that are zero from somewhere on, openjpeg fills the rest
    if syntax in JPEG_2000 and not codestream.has_all_tiles(data):
        raise Refusal("truncated", f"{where}: the JPEG 2000 data end before their last tile does")
    if syntax != RLE:
        _check_stream(data, layout, where)
    try:
        if syntax == RLE:
            dtype = np.dtype(f"{'i' if layout.is_signed else 'u'}{layout.bits_allocated // 8}")
            most = 2 * layout.frame_bytes  # damaged runs may expand to a thousand times that
            values = np.frombuffer(imagecodecs.dicomrle_decode(data, dtype, out=most), dtype)
        else:
            values = np.asarray(DECODERS[syntax](data))
    except imagecodecs.DelayedImportError as error:
        raise Refusal(
            "missing-decoder",
            f"{where}: transfer syntax {syntax} ({UID(syntax).name}): this build of the package imagecodecs lacks "
            f"{error}; install its wheel",
        ) from error
    except Exception as error:  # each codec of imagecodecs has an error class of its own
        raise Refusal("undecodable-pixels", f"{where}: cannot decode transfer syntax {syntax}: {error}") from error
    # libjpeg reads on in lossless data of which some are lost: then there is noise, which few bits cannot hold
    is_noise = syntax in JPEG and int(values.max(initial=0)) >> codestream.jpeg_bits(data)
    if is_noise or (syntax in JPEG and not codestream.has_all_values(data, layout.rows * layout.columns)):
        raise Refusal("undecodable-pixels", f"{where}: the lossless JPEG data are damaged: codes are lost or wrong")
    if values.size != layout.rows * layout.columns or values.dtype.kind not in "iu":
        raise Refusal(
            "undecodable-pixels",
            f"{where}: expected {layout.rows} x {layout.columns} integer pixels, found {values.shape} {values.dtype}",
        )
    return values.reshape(layout.rows, layout.columns)


def _check_stream(data: bytes, layout: PixelFormat, where: str) -> None:
    """Refuse a stream that is not one grey image of the header's size, before a codec allocates memory for it."""
    is_jpeg = layout.transfer_syntax in JPEG | JPEG_LS
    try:
        rows, columns, samples = (codestream.jpeg_size if is_jpeg else codestream.jpeg_2000_size)(data)
    except struct.error as error:
        raise Refusal("undecodable-pixels", f"{where}: the compressed stream has no header of its size") from error
    if (rows, columns, samples) != (layout.rows, layout.columns, 1):
        raise Refusal(
            "undecodable-pixels",
            f"{where}: expected {layout.rows} x {layout.columns} grey pixels, found a stream of {rows} x {columns} "
            f"with {samples} sample{'s' * (samples != 1)} per pixel",
        )


def _are_foreign_bits(is_beyond: NDArray[np.bool_], values: NDArray[Any], lower: NDArray[Any], bits: int) -> bool:
    """Tell whether bits above BitsStored hold something else, such as an overlay that the header does not declare.

    `is_beyond` has the pixels in which they are in use, and `lower` the values without them. They belong to the values
    if these hold one or two numbers, which is padding, or if the pixels would not match those beside them without these
    bits, as metal would not.
    """
    beyond = values[is_beyond]
    if not ((beyond != beyond.min()) & (beyond != beyond.max())).any():
        return False
    wide = lower.astype(np.int64)
    steps = [np.abs(np.diff(wide, axis=k))[np.diff(is_beyond, axis=k)] for k in (0, 1)]
    edges = np.concatenate(steps)
    return bool(len(edges)) and float(np.median(edges)) < MATCH * (1 << bits)


def _lacks_sign(values: NDArray[Any], bits: int) -> bool:
    """Tell whether the sign bit of signed values stands within BitsStored alone, and is not repeated above it.

    Padding that does not fit into BitsStored may be negative all the same.
    """
    half = 1 << (bits - 1)
    return int(values.max()) >= half and (values.min() >= 0 or not ((values >= -half) & (values < 0)).any())


def _apply_format(values: NDArray[Any], layout: PixelFormat, where: str) -> NDArray[Any]:
    """Give decoded values the sign and width that the header declares.

    Values wider than BitsStored are kept where they can be meant, because vendors store padding beyond it. Where the
    decoder did not apply the declared sign, they are sign-extended (signed) or masked (unsigned).
    """
    bits, width = layout.bits_stored, 8 * values.itemsize
    shift = layout.high_bit + 1 - bits
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if layout.has_overlay:
        values = values.view(f"u{values.itemsize}")
        values = values & values.dtype.type(((1 << bits) - 1) << shift & ((1 << width) - 1))
    if shift > 0:
        if (values & values.dtype.type((1 << shift) - 1)).any():
            raise Refusal("undecodable-pixels", f"{where}: there are bits in use below those that HighBit declares")
        values = values >> shift
    if layout.is_signed:
        return _signed(values, bits) if bits <= width else values
    unsigned = values.view(f"u{values.itemsize}")
    lower: NDArray[Any] = unsigned & unsigned.dtype.type((1 << min(bits, width)) - 1)
    if values.dtype.kind == "i":
        return lower
    if bits < width and int(values.max()) >> bits:
        is_beyond = values != lower
        values = lower if _are_foreign_bits(is_beyond, values, lower, bits) else values
    return values


def _signed(values: NDArray[Any], bits: int) -> Any:
    """Return values of so many bits, of which the highest is the sign, with this sign."""
    half, spare = 1 << (bits - 1), 8 * values.itemsize - bits
    stored = values.view(f"i{values.itemsize}")
    if values.dtype.kind == "u":
        return (stored << spare) >> spare  # repeats the sign bit
    if spare == 0 or (-half <= int(stored.min()) and int(stored.max()) < half):
        return stored
    repeated = (stored << spare) >> spare
    if _lacks_sign(stored, bits):
        is_beyond, meant = stored < 0, repeated
    else:
        is_beyond, meant = stored != repeated, stored
    if is_beyond.any():
        return repeated if _are_foreign_bits(is_beyond, stored, repeated, bits) else np.where(is_beyond, stored, meant)
    return meant


def swapped_words(pixels: memoryview) -> bytes:
    """Return the pixels of big endian words of two bytes, which hold pixels of 1 or 8 bits, in the order of pixels."""
    swapped = bytearray(pixels)
    swapped[::2], swapped[1::2] = pixels[1::2], pixels[::2]
    return bytes(swapped)

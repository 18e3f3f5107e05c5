"""The pixels of a DICOM Segmentation: bits, bytes or encapsulated frames, one frame at a time as a mask."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import generate_frames

from dskprep.dicom.pixels import MAX_EDGE, NATIVE, PixelFormat, stored_values
from dskprep.errors import Refusal
from dskprep.labels.attributes import one_line, refuse_if_more

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
"""Transfer syntax of frames that are deflated one by one."""
MAX_FRAMES = 200_000
"""Most frames; 100 organs in 2000 slices."""
MAX_PIXELS = 1 << 35
"""Most pixels of all frames; MAX_FRAMES of 400 x 400."""


class Layout:
    """How the pixels of all frames are stored, and one frame at a time as a mask.

    `numbers` are those of the segments that the object describes; the values of a label map are among them. A
    fractional pixel is set from the value `least` on; `highest` is the highest value of the frames that were seen.
    """

    def __init__(self, header: Dataset, pixels: bytes | memoryview, numbers: Iterable[int], where: str) -> None:
        self.where = where
        self._known = {0, *numbers} | ({int(rest)} if (rest := header.get("PixelPaddingValue")) is not None else set())
        self.rows, self.columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        refuse_if_more(max(self.rows, self.columns), MAX_EDGE, "rows or columns", where)
        self.n_frames = int(header.get("NumberOfFrames") or 1)
        refuse_if_more(self.n_frames, MAX_FRAMES, "frames", where)
        refuse_if_more(self.rows * self.columns * self.n_frames, MAX_PIXELS, "pixels", where)
        self.bits = int(header.get("BitsAllocated") or 0)
        self.syntax = str(header.file_meta.TransferSyntaxUID)
        self.kind = str(header.get("SegmentationType") or "BINARY")
        largest = int(header.get("MaximumFractionalValue") or 255)
        self.least = (largest + 1) // 2 if self.kind == "FRACTIONAL" and self.bits > 1 else 1
        if min(self.rows, self.columns, self.n_frames) < 1 or self.bits not in (1, 8, 16):
            raise Refusal(
                "label-damaged",
                f"{where}: expected frames of 1, 8 or 16 bits, found {self.n_frames} of {self.rows} x {self.columns} "
                f"with {self.bits} bits",
            )
        self.frame_bits = self.rows * self.columns * self.bits
        self.highest = 0
        self._encoded: list[bytes] | None = None
        self._present: dict[int, NDArray[Any]] = {}
        if self.syntax in NATIVE:
            needed = (self.frame_bits * self.n_frames + 7) // 8
            if len(pixels) < needed:
                raise Refusal("label-damaged", f"{where}: expected {needed} bytes of pixels, found {len(pixels)}")
        else:
            self._encoded = self._split(pixels)

    def _split(self, pixels: bytes | memoryview) -> list[bytes]:
        try:
            found = list(
                itertools.islice(generate_frames(bytes(pixels), number_of_frames=self.n_frames), self.n_frames)
            )
        except (ValueError, IndexError, EOFError, struct.error) as error:
            raise Refusal(
                "label-damaged", f"{self.where}: encapsulated pixels are damaged: {one_line(error)}"
            ) from error
        if len(found) != self.n_frames:
            raise Refusal("label-damaged", f"{self.where}: expected {self.n_frames} frames, found {len(found)}")
        return found

    def union(self, pixels: bytes | memoryview, indices: Sequence[int], number: int | None) -> NDArray[np.bool_]:
        """Return where one or more of several frames of one place are set, as `mask` does."""
        total: NDArray[np.bool_] | None = None
        for index in indices:
            mask = self.mask(pixels, index, number)
            if total is None:
                total = mask
            elif mask is not None:
                np.logical_or(total, mask, out=total)
        return np.zeros((0, 0), np.bool_) if total is None else total

    def mask(self, pixels: bytes | memoryview, index: int, number: int | None) -> NDArray[np.bool_] | None:
        """Return where a frame is set, bool (rows, columns); in a label map, where it is `number`; None if nowhere.

        Raises Refusal `label-damaged` if the frame of a label map has a value that is no segment's.
        """
        if number is None:
            values = self._values(pixels, index)
            if self.least > 1:
                self.highest = max(self.highest, int(values.max()))
            is_inside: NDArray[np.bool_] = values >= self.least
            return is_inside
        if index in self._present and number not in self._present[index]:
            return None
        values = self._values(pixels, index)
        if index not in self._present:
            self._present[index] = self._segments_in(values)
        is_set: NDArray[np.bool_] = values == number
        return is_set

    def _segments_in(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values of a frame of a label map; 0 and the padding are what is in no segment."""
        found = np.flatnonzero(np.bincount(values.ravel()))
        if unknown := sorted(set(found.tolist()) - self._known):
            raise Refusal(
                "label-damaged",
                f"{self.where}: expected pixels of the segments in it, found some of segment {unknown[0]}",
            )
        return found

    def _values(self, pixels: bytes | memoryview, index: int) -> NDArray[Any]:
        shape = (self.rows, self.columns)
        if self._encoded is None and self.bits > 1:
            size = self.frame_bits // 8
            return self._decode(pixels[index * size : (index + 1) * size], self.syntax)
        if self._encoded is not None and self.syntax != DEFLATED_FRAMES:
            return self._decode(self._encoded[index], self.syntax)
        if self._encoded is not None:
            n_bytes = (self.frame_bits + 7) // 8
            try:
                data: bytes | memoryview = zlib.decompressobj(-zlib.MAX_WBITS).decompress(self._encoded[index], n_bytes)
            except zlib.error as error:
                raise Refusal("label-damaged", f"{self.where}: frame {index + 1}: {error}") from error
            if len(data) < n_bytes:
                raise Refusal("label-damaged", f"{self.where}: frame {index + 1} inflates to less than its size")
            if self.bits > 1:
                return self._decode(data, "1.2.840.10008.1.2.1")
            begin = 0
        else:
            begin = index * self.frame_bits
            data = pixels[begin // 8 : (begin + self.frame_bits + 7) // 8]
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[begin % 8 :][: self.frame_bits].reshape(shape)

    def _decode(self, data: bytes | memoryview, syntax: str) -> NDArray[Any]:
        bits = max(self.bits, 8)
        layout = PixelFormat(syntax, self.rows, self.columns, bits, bits, bits - 1, False)
        try:
            return stored_values(data, layout, self.where)
        except Refusal as refusal:
            raise Refusal("label-damaged", refusal.message) from refusal

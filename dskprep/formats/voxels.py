"""The stored values of a volume file, plane by plane; no more than one plane is decompressed at a time."""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.formats.header import GZIP, Header

PIECE_BYTES = 1 << 20
"""Most bytes that are decompressed in one go."""
CUT_BYTES = 1 << 16
"""Most bytes that are given to a decompressor in one go."""
ANY_DEFLATE = 32 + zlib.MAX_WBITS
"""Tells zlib to take gzip and its own format."""
MAX_GROWTH = {"": 1, "deflate": 1100, "bz2": 1 << 17}
"""Most bytes that one byte can hold: the limits of the algorithms, and something for headers."""

Blocks = Iterable[bytes | memoryview]
"""The bytes of a file, one block after another."""


@dataclass(frozen=True, eq=False)
class FileBytes:
    """A file of `n_bytes`. `blocks_from` gives its bytes from one on; unless they are held, it reads them then."""

    n_bytes: int
    blocks_from: Callable[[int], Blocks]
    is_held: bool = False

    @classmethod
    def held(cls, content: bytes) -> FileBytes:
        """Return a file whose content is in memory."""
        return cls(len(content), lambda start: [memoryview(content)[start:]], is_held=True)

    def head(self, n_bytes: int) -> bytes:
        """Return the first bytes, or all if there are fewer."""
        found = b""
        for block in self.blocks_from(0):
            found += block[: n_bytes - len(found)]
            if len(found) == n_bytes:
                break
        return found


def check_size(header: Header, file: FileBytes) -> None:
    """Raise Refusal `truncated` if a file cannot hold all voxels, before any is read."""
    before = header.head_bytes if header.start is None else header.start
    most = (file.n_bytes - before) * MAX_GROWTH[header.compression]
    if most < header.skip + header.voxel_bytes:
        how = "compressed to " if header.compression else ""
        raise Refusal(
            "truncated",
            f"{header.where}: expected {header.voxel_bytes} bytes of voxels, found {how}{file.n_bytes} bytes in all",
        )


def planes(header: Header, file: FileBytes) -> Iterator[NDArray[Any]]:
    """Yield the stored values (y, x) of plane after plane, in the byte order of this machine.

    Where there are several layers, they are the last axis: (y, x, layer).

    Raises Refusal `truncated` if there are too few bytes or they cannot be decompressed, and `undecodable-pixels` if
    there are so many that the header must be wrong.
    """
    check_size(header, file)
    start = file.n_bytes - header.voxel_bytes if header.start is None else header.start
    reader = _Reader(_decompress(header, file.blocks_from(start)))
    reader.skip(header.skip)
    shape = (*header.shape[1:], header.layers) if header.layers > 1 else header.shape[1:]
    for number in range(header.shape[0]):
        plane = np.empty(shape, header.dtype)
        if reader.read_into(plane.reshape(-1).view(np.uint8).data) < header.plane_bytes:
            raise Refusal(
                "truncated",
                f"{header.where}: expected {header.shape[0]} planes, found the end of the file in plane {number}",
            )
        yield plane.astype(plane.dtype.newbyteorder("="), copy=False)
    row = bytearray(header.shape[2] * header.dtype.itemsize)
    if reader.read_into(memoryview(row)) == len(row):  # at the end of the file a checksum is compared
        raise Refusal(
            "undecodable-pixels",
            f"{header.where}: expected {header.voxel_bytes} bytes of voxels by its header, found more",
        )


class _Reader:
    """Fills buffers from pieces of any size."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces, self._rest = iter(pieces), memoryview(b"")

    def read_into(self, out: memoryview) -> int:
        """Fill a buffer; return how many bytes there were for it."""
        filled = 0
        while filled < len(out):
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            n = min(len(out) - filled, len(self._rest))
            out[filled : filled + n] = self._rest[:n]
            self._rest = self._rest[n:]
            filled += n
        return filled

    def skip(self, n_bytes: int) -> None:
        buffer = bytearray(min(n_bytes, PIECE_BYTES))
        while n_bytes and (n := self.read_into(memoryview(buffer)[:n_bytes])):
            n_bytes -= n


def _decompress(header: Header, blocks: Blocks) -> Blocks:
    if header.compression == "deflate":
        return _inflate(blocks, header.where)
    return _expand_bz2(blocks, header.where) if header.compression == "bz2" else blocks


def _inflate(blocks: Blocks, where: str) -> Iterator[bytes]:
    """Decompress gzip or zlib; several gzip files one after another are one."""
    machine = zlib.decompressobj(ANY_DEFLATE)
    for block in _cut(blocks):
        rest: bytes | memoryview = block
        while rest and not (machine.eof and bytes(rest[:1]) != GZIP[:1]):  # what else follows is padding
            if machine.eof:
                machine = zlib.decompressobj(ANY_DEFLATE)
            try:
                yield machine.decompress(rest, PIECE_BYTES)
            except zlib.error as error:
                raise Refusal("truncated", f"{where}: cannot be decompressed: {error}") from error
            rest = machine.unused_data if machine.eof else machine.unconsumed_tail
    if not machine.eof:
        raise Refusal("truncated", f"{where}: its compressed voxels end too early")


def _expand_bz2(blocks: Blocks, where: str) -> Iterator[bytes]:
    machine = bz2.BZ2Decompressor()
    for block in _cut(blocks):
        rest: bytes | memoryview = block
        while not machine.eof and (rest or not machine.needs_input):
            try:
                yield machine.decompress(rest, PIECE_BYTES)
            except OSError as error:
                raise Refusal("truncated", f"{where}: cannot be decompressed: {error}") from error
            rest = b""
    if not machine.eof:
        raise Refusal("truncated", f"{where}: its compressed voxels end too early")


def _cut(blocks: Blocks) -> Iterator[bytes | memoryview]:
    """Cut blocks into small ones: what a decompressor has not used of a block it copies at each call."""
    for block in blocks:
        for first in range(0, len(block), CUT_BYTES):
            yield block[first : first + CUT_BYTES]

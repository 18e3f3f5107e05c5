"""What lies in the bytes of an object: text in its escapes, and what is compressed, encoded or packed in it.

In: a file that can be read from any place. Out: its bytes in blocks, and those of all that is in it, with how they
were reached. Door: `pieces`. Memory is bounded, however large the object is: a block, or a batch of rows.
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import gzip
import html
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple
from urllib.parse import unquote_to_bytes

from pyarrow import parquet, types

from dskprep import tables
from dskprep.errors import InfrastructureError

BLOCK = 1 << 24
"""Bytes that are looked at together."""
OVERLAP = 1 << 20
"""Bytes of the block before that are looked at again, so that what lies across its end is seen whole."""
HEAD = 1 << 12
"""First bytes that say whether a file is text."""
DEEPEST = 4
"""Levels of things within things."""
MOST_BYTES = 1 << 36
"""Most bytes that one object unpacks to."""
ROWS = 500
"""Rows of a table that are looked at together."""
MOST_COLUMN_BYTES = 1 << 30
"""Most bytes that a column of a table unpacks to, in a group of its rows."""
LONG = 256
"""Longer runs of base64 may hold a picture or a compressed file."""

PACKED: dict[bytes, tuple[str, Callable[[Any], IO[bytes]]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),  # type: ignore[dict-item]
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\0": ("xz", lzma.open),
}
"""What files begin with that are one compressed stream, and how that is opened."""
CLOSED = {b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "rar"}
"""What files begin with that are not unpacked here."""
ZIP, PARQUET, PNG = OTHERS = b"PK\x03\x04", b"PAR1", b"\x89PNG\r\n\x1a\n"
"""What other files begin with in which text is packed."""

_BASE64 = re.compile(rb"[A-Za-z0-9+/]{8,}={0,2}")
_ESCAPES = re.compile(rb"((?:\\{1,8}u[0-9a-fA-F]{4})+)|\\{1,8}x([0-9a-fA-F]{2})")
"""Runs of characters as JSON writes them, of which some are pairs; JSON within JSON doubles the backslashes."""


class Piece(NamedTuple):
    """A block of bytes, how it was reached (`gzip`, `base64` …), and whether it is text."""

    data: bytes
    how: tuple[str, ...]
    is_text: bool


class CannotUnpack(Exception):
    """A part of an object is damaged, encrypted, or of a kind that is not unpacked."""


def pieces(file: IO[bytes], how: tuple[str, ...] = (), budget: list[int] | None = None) -> Iterator[Piece]:
    """Yield the pieces of a file that can be read from any place. Raises CannotUnpack after all that can be yielded."""
    budget = [MOST_BYTES] if budget is None else budget
    head = file.read(HEAD)
    file.seek(0)
    is_text = min(head, default=9) >= 9 and not head.startswith((ZIP, PARQUET))
    with _named(how):
        yield from _blocks(file, how, is_text, budget)
        file.seek(0)
        if len(how) < DEEPEST:
            yield from _inside(file, head, how, budget)


@contextlib.contextmanager
def _named(how: tuple[str, ...]) -> Iterator[None]:
    """Raise CannotUnpack for whatever a library raises of what it cannot read in the block."""
    try:
        yield
    except (InfrastructureError, FileNotFoundError, CannotUnpack):
        raise
    except Exception as error:
        raise CannotUnpack(_where(error, how)) from error


def _where(error: Exception, how: tuple[str, ...]) -> str:
    """Say what went wrong; not in the words of the error, which may repeat names."""
    return " in ".join((type(error).__name__, *how[::-1]))


def _inside(file: IO[bytes], head: bytes, how: tuple[str, ...], budget: list[int]) -> Iterator[Piece]:
    for mark, (name, opened) in PACKED.items():
        if head.startswith(mark):
            with opened(file) as inner:
                yield from pieces(inner, (*how, name), budget)
    for mark, name in CLOSED.items():
        if head.startswith(mark):
            raise ValueError(f"{name} is not unpacked")
    if head.startswith(ZIP):
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                yield Piece(info.filename.encode(), (*how, "zip"), True)
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("by other methods the library unpacks without a limit")
                with archive.open(info) as member:
                    yield from pieces(member, (*how, "zip"), budget)
    elif head.startswith(PARQUET):
        yield from _rows(file, (*how, "parquet"), budget)
    elif head.startswith(PNG):
        for text in _texts_of_png(file):
            yield from pieces(io.BytesIO(text), (*how, "png"), budget)


def _blocks(file: IO[bytes], how: tuple[str, ...], is_text: bool, budget: list[int]) -> Iterator[Piece]:
    tail, problem = b"", None
    while block := file.read(BLOCK):
        budget[0] -= len(block)
        if budget[0] < 0:
            raise CannotUnpack(f"more than {MOST_BYTES} bytes")
        data = tail + block
        yield Piece(data, how, is_text)
        if is_text:
            try:
                with _named(how):
                    yield from _texts(data, how, budget)
            except CannotUnpack as error:  # the blocks that follow are searched all the same
                problem = error
        tail = data[-OVERLAP:]
    if problem:
        raise problem


def _texts(data: bytes, how: tuple[str, ...], budget: list[int]) -> Iterator[Piece]:
    """Yield text without its escapes, one kind after another, and what is base64 in it."""
    plain = data
    for name, undo in (("json", _unescape), ("html", _unescape_html), ("percent", unquote_to_bytes)):
        undone = undo(plain)
        if undone != plain:
            how = (*how, name) if len(how) < DEEPEST else how
            yield Piece(undone, how, True)
            plain = undone
    if len(how) >= DEEPEST:
        return
    short = []
    for run in _base64_in(data):
        text = run.rstrip(b"=")
        text = text[: len(text) - (len(text) % 4 == 1)]
        decoded = base64.b64decode(text + b"=" * (-len(text) % 4))
        if len(text) <= LONG and not decoded.startswith((*PACKED, *OTHERS)):
            short.append(decoded)
        else:
            try:
                yield from pieces(io.BytesIO(decoded), (*how, "base64"), budget)
            except CannotUnpack:  # a long word is no file, whatever it begins with
                continue
    if short:
        yield Piece(b"\0".join(short), (*how, "base64"), False)


def _base64_in(data: bytes) -> Iterator[bytes]:
    """Yield what may be base64. A slash may be a letter of it, or part it from the path before it."""
    for run in _BASE64.finditer(data):
        yield run[0]
        if b"/" in run[0]:
            yield from (part for part in run[0].split(b"/") if _BASE64.fullmatch(part))


def _unescape(data: bytes) -> bytes:
    def character(found: re.Match[bytes]) -> bytes:
        if found[2]:
            return chr(int(found[2], 16)).encode()
        units = bytes.fromhex(found[1].replace(b"\\", b"").replace(b"u", b"").decode())
        return units.decode("utf-16-be", "surrogatepass").encode(errors="surrogatepass")

    return _ESCAPES.sub(character, data) if b"\\" in data else data


def _unescape_html(data: bytes) -> bytes:
    if b"&" not in data:
        return data
    return html.unescape(data.decode(errors="surrogateescape")).encode(errors="surrogateescape")


def _rows(file: IO[bytes], how: tuple[str, ...], budget: list[int]) -> Iterator[Piece]:
    about = parquet.ParquetFile(file)
    for key, value in (about.metadata.metadata or {}).items():
        yield from pieces(io.BytesIO(key + b" " + value), how, budget)
    groups = [about.metadata.row_group(n) for n in range(about.metadata.num_row_groups)]
    columns = [group.column(n) for group in groups for n in range(group.num_columns)]
    if (largest := max((column.total_uncompressed_size for column in columns), default=0)) > MOST_COLUMN_BYTES:
        raise CannotUnpack(f"a column of {largest} bytes; at most {MOST_COLUMN_BYTES} are looked at")
    # kept as it is stored: a text of a kilobyte may stand in each of a million rows
    table = parquet.ParquetFile(file, read_dictionary=tables.texts_of(about.schema_arrow))
    for batch in table.iter_batches(batch_size=ROWS):
        once = [column.unique() if types.is_dictionary(column.type) else column for column in batch.columns]
        text = json.dumps([column.to_pylist() for column in once], ensure_ascii=False, default=_as_text)
        yield from pieces(io.BytesIO(text.encode(errors="surrogatepass")), how, budget)


def _as_text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _texts_of_png(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the texts of a PNG that are compressed; the others stand in its bytes as they are."""
    file.seek(len(PNG))
    while len(start := file.read(8)) == 8:
        n_bytes, kind = int.from_bytes(start[:4], "big"), start[4:]
        if kind not in (b"zTXt", b"iTXt", b"iCCP"):
            file.seek(n_bytes + 4, io.SEEK_CUR)
            continue
        if n_bytes > BLOCK:
            raise ValueError("expected a shorter text")
        _, _, rest = file.read(n_bytes).partition(b"\0")
        file.seek(4, io.SEEK_CUR)
        if kind == b"iTXt":
            if rest[:1] != b"\1":
                continue
            rest = rest[2:].split(b"\0", 2)[2]
        stream = zlib.decompressobj()
        yield stream.decompress(rest if kind == b"iTXt" else rest[1:], BLOCK)
        if not stream.eof:
            raise ValueError("expected a shorter text, and its end")

"""The files in a zip or tar archive, read in memory and never unpacked to disk."""

from __future__ import annotations

import bisect
import io
import itertools
import lzma
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from dskprep.errors import Refusal

ZIP_MARKS = (b"PK\3\4", b"PK\5\6")
"""First bytes of a zip archive, and of an empty one."""
ZIP_METHODS = {9: "deflate64", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma", 93: "zstd", 95: "xz"}
"""What is told by name of how files in a zip are compressed that are not read."""
TAR_WITHOUT_FILE = (tarfile.DIRTYPE, b"V", b"D")
"""Members of a tar that are no file: a folder, the name of the whole, and the list of a folder."""
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)
"""What the standard library raises on damaged, encrypted or unsupported archives."""


MAX_MEMBERS = 1 << 17
"""Most members of an archive, 40 times those of a large series: Python holds a kilobyte of each."""
MAX_HEADER_BYTES = 1 << 18
"""Most bytes of all headers of one file in a tar: a path has 4 KiB at most, and what Linux notes beside it 150."""
MAX_BESIDE_BYTES = 1 << 27
"""Most bytes of a tar beside its files: MAX_MEMBERS times a header and what fills the last block."""
MAX_LINKS = 40
"""Links on the way to a file in an archive, as Linux allows."""
MAX_PATH = 1024
"""Most characters of a path in an archive that holds links: what looks for their ends takes time by its square."""
_NUMBER_WITHOUT_END = re.compile(rb"\d{256}")
"""What takes the library the square of its length in a header, in Python older than 3.11.10 (CVE-2024-6232)."""


class Outgrown(Exception):
    """An archive unpacks to more than was allowed for."""


def members(content: bytes, name: str, max_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every regular file, in the order of the archive.

    Names are labels only: absolute ones, `..` and links cannot reach anything; hidden files are left
    out, as in a folder. Raises Refusal `bad-archive` if it is damaged or of a rare form, `truncated` if a link in it
    leads to nothing in it, or a device or a pipe is in it, Outgrown if the files hold more than `max_bytes` in all.
    """
    left = max_bytes
    try:
        # not is_zipfile(): that finds a zip inside a tar
        for label, size, read in _zip(content) if content.startswith(ZIP_MARKS) else _tar(content, max_bytes):
            if _is_hidden(label):
                continue
            if size > left:
                raise Outgrown(f"{name}: unpacks to more than {max_bytes} bytes")
            data = read(size)
            left -= len(data)
            yield label, data
    except DAMAGE as error:
        why = str(error) if content else "it is empty"
        if "\n" in why:  # a tar's error has a line for each way of compression
            why = "it is neither a zip nor a tar, plain or by gz, bz2 or xz; or it was cut"
        raise Refusal("bad-archive", f"{name}: cannot be unpacked: {why}") from error


def _zip(content: bytes) -> Iterator[tuple[str, int, Callable[[int], bytes]]]:
    """Yield the name and the size of every file, and a function that reads so many of its bytes."""
    names: set[str] = set()
    links: dict[str, str] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        _check_number(len(archive.infolist()))
        if min((info.header_offset for info in archive.infolist()), default=content.find(ZIP_MARKS[1])) != 0:
            raise zipfile.BadZipFile("other bytes are before it, as in zips joined by cat; unpack each by itself")
        for info in archive.infolist():
            name = posixpath.normpath(info.filename)
            names.add(name)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # unpacked without a limit
                method = ZIP_METHODS.get(info.compress_type, f"method {info.compress_type}")
                raise ValueError(f"{name!r:.200}: expected it stored or deflated, found {method}; zip it anew")
            if stat.S_ISLNK(info.external_attr >> 16):
                with archive.open(info) as file:
                    to = file.read(MAX_PATH + 1).decode(errors="surrogateescape")
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), to))
            elif not info.is_dir():
                with archive.open(info) as file:
                    yield info.filename, info.file_size, file.read
            elif info.file_size:
                raise zipfile.BadZipFile(f"{name!r:.200} is called a folder, and holds bytes")
    _refuse_dead(links, names)


def _tar(content: bytes, max_bytes: int) -> Iterator[tuple[str, int, Callable[[int], bytes]]]:
    names: set[str] = set()
    links: dict[str, str] = {}
    with _Tar.open(fileobj=io.BytesIO(content)) as archive:
        stream = archive.fileobj
        assert isinstance(stream, _Rationed)
        for number in itertools.count(1):
            stream.header_left = MAX_HEADER_BYTES
            if (info := archive.next()) is None:
                break
            _check_number(number)
            _check_member(archive, info)
            if archive.offset > max_bytes + MAX_BESIDE_BYTES:  # also of what is passed over
                raise Outgrown(f"{info.name!r:.200}: ends after more than {max_bytes} bytes")
            name = posixpath.normpath(info.name)
            names.add(name)
            if info.issym() or info.islnk():
                beside = posixpath.dirname(name) if info.issym() else ""
                links[name] = posixpath.normpath(posixpath.join(beside, info.linkname))
            elif info.isdev() and not _is_hidden(name):
                raise Refusal("truncated", f"{name!r:.200}: expected a file, found a device or a pipe")
            elif not (info.isreg() or info.type in TAR_WITHOUT_FILE or _is_hidden(name)):
                raise Refusal("truncated", f"{name!r:.200}: expected a file, found a member of type {info.type!r}")
            file = archive.extractfile(info) if info.isreg() else None
            if file is not None:
                stream.header_left = None
                yield info.name, info.size, file.read
        stream.header_left = None
        stream.seek(archive.offset)
        end = stream.read(tarfile.BLOCKSIZE)
        if end != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends without a mark of its end")  # the library takes any end for the end
        while end := stream.read(1 << 20):  # to the checksum of what it is compressed by
            if end.strip(b"\0"):
                raise tarfile.ReadError("more follows its end, as in tars joined by cat; unpack each by itself")
            if stream.tell() > max_bytes + MAX_BESIDE_BYTES:
                raise Outgrown(f"its end is longer than {max_bytes} bytes")
    _refuse_dead(links, names)


def _check_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
    if info.size < 0:  # the library would go back by it, and find this member again
        raise tarfile.ReadError(f"{info.name!r:.200} has a size of {info.size} bytes")
    if info.issparse():  # the time for it grows by the square of its holes
        raise tarfile.ReadError(f"{info.name!r:.200} is stored with holes; make the tar anew without --sparse")
    if sum(map(len, itertools.chain(*archive.pax_headers.items()))) > MAX_HEADER_BYTES:  # each member is given all
        raise tarfile.ReadError(f"expected global headers of at most {MAX_HEADER_BYTES} bytes, found more")
    archive.members.clear()  # type: ignore[attr-defined]  # the library keeps all, with their headers


class _Rationed:
    """A stream of which only so much is read as headers: the library reads one whole, of whatever size it claims.

    `header_left` is how many bytes, or None while the content of a file is read.
    """

    header_left: int | None = MAX_HEADER_BYTES

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell, self.seekable, self.close = stream.seek, stream.tell, stream.seekable, stream.close

    def read(self, n_bytes: int) -> bytes:
        if self.header_left is None:
            return self._stream.read(n_bytes)
        if not 0 <= n_bytes <= self.header_left:
            raise ValueError(f"expected headers of at most {MAX_HEADER_BYTES} bytes, found longer ones")
        self.header_left -= n_bytes
        data = self._stream.read(n_bytes)
        if _NUMBER_WITHOUT_END.search(data):
            raise ValueError("expected numbers of some digits in a header, found hundreds of digits")
        return data


class _Tar(tarfile.TarFile):
    """A tar of which no more is read than is allowed."""

    @classmethod
    def taropen(cls, name: Any, mode: Any = "r", fileobj: Any = None, **more: Any) -> _Tar:
        """Open what is in a tar, whatever it was compressed by."""
        rationed: Any = _Rationed(fileobj)
        return super().taropen(name, mode, rationed, **more)


def _check_number(n_members: int) -> None:
    if n_members > MAX_MEMBERS:
        raise ValueError(f"expected at most {MAX_MEMBERS} files in one archive, found more")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/") if part not in (".", ".."))


def _refuse_dead(links: dict[str, str], names: set[str]) -> None:
    """Raise Refusal if a link leads to nothing in the archive: it may be a slice, which would be lost in silence."""
    if not links:
        return
    if longest := next((path for path in itertools.chain(names, links.values()) if len(path) > MAX_PATH), None):
        raise ValueError(f"expected paths of at most {MAX_PATH} characters, found {longest!r:.200}")
    there = sorted(f"{name}/" for name in names - links.keys())  # each folder above a name comes right before it
    for name, to in links.items():
        place = _end_of(to, links)
        at = bisect.bisect_left(there, f"{place}/")
        is_there = place == "." or (place and at < len(there) and there[at].startswith(f"{place}/"))
        if not is_there and not _is_hidden(name):
            raise Refusal(
                "truncated", f"{name}: expected a file, found a link to {to!r:.200}, which is not in the archive"
            )


def _end_of(place: str, links: dict[str, str]) -> str:
    """Return where a place lies in the end, if it or a folder above it is a link."""
    for _ in range(MAX_LINKS):
        link = next((part for part in (*_above(place), place) if part in links), None)
        if link is None:
            return place
        if len(place) > MAX_PATH:
            break
        place = posixpath.normpath(posixpath.join(links[link], place[len(link) + 1 :]))
    return ""


def _above(place: str) -> list[str]:
    parts = place.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]

"""The files in a zip or tar archive, read in memory and never unpacked to disk."""

from __future__ import annotations

import bisect
import io
import itertools
import lzma
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

from dskprep.errors import Refusal

ZIP_MARKS = (b"PK\3\4", b"PK\5\6")
"""First bytes of a zip archive, and of an empty one."""
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)
"""What the standard library raises on damaged, encrypted or unsupported archives."""


MAX_MEMBERS = 1 << 17
"""Most members of an archive, 40 times those of a large series: Python holds a kilobyte of each."""
MAX_LINKS = 40
"""Links on the way to a file in an archive, as Linux allows."""
MAX_PATH = 1024
"""Most characters of a path in an archive that holds links: what looks for their ends takes time by its square."""


class Outgrown(Exception):
    """An archive unpacks to more than was allowed for."""


def members(content: bytes, name: str, max_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every regular file, in the order of the archive.

    Names are labels only: absolute ones, `..` and links cannot reach anything; hidden files are left
    out, as in a folder. Raises Refusal `bad-archive` if it is damaged, `truncated` if a link in it leads to nothing in
    it, or a device or a pipe is in it, Outgrown if the files hold more than `max_bytes` in all.
    """
    left = max_bytes
    try:
        # not is_zipfile(): that finds a zip inside a tar
        for label, size, read in _zip(content) if content.startswith(ZIP_MARKS) else _tar(content):
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
        for info in archive.infolist():
            name = posixpath.normpath(info.filename)
            names.add(name)
            if stat.S_ISLNK(info.external_attr >> 16):
                with archive.open(info) as file:
                    to = file.read(MAX_PATH + 1).decode(errors="surrogateescape")
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), to))
            elif not info.is_dir():
                with archive.open(info) as file:
                    yield info.filename, info.file_size, file.read
    _refuse_dead(links, names)


def _tar(content: bytes) -> Iterator[tuple[str, int, Callable[[int], bytes]]]:
    names: set[str] = set()
    links: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for number, info in enumerate(archive, 1):
            _check_number(number)
            if info.size < 0:  # the library would go back by it, and find this member again
                raise tarfile.ReadError(f"{info.name!r:.200} has a size of {info.size} bytes")
            name = posixpath.normpath(info.name)
            names.add(name)
            if info.issym() or info.islnk():
                beside = posixpath.dirname(name) if info.issym() else ""
                links[name] = posixpath.normpath(posixpath.join(beside, info.linkname))
            elif info.isdev() and not _is_hidden(name):
                raise Refusal("truncated", f"{name!r:.200}: expected a file, found a device or a pipe")
            file = archive.extractfile(info) if info.isreg() else None
            if file is not None:
                yield info.name, info.size, file.read
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends without a mark of its end")  # the library takes any end for the end
    _refuse_dead(links, names)


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

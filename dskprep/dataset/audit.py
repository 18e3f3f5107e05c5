"""Does any byte of a dataset, or of another folder, hold one of some words: a search through all that it is made of."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dskprep import storage
from dskprep.dataset import opened, unpacking
from dskprep.dataset.ahead import ahead
from dskprep.dataset.sentinels import Hit, Sentinels
from dskprep.errors import InfrastructureError, UsageError
from dskprep.storage import Entry
from dskprep.storage.threads import Threads

AT_ONCE, AHEAD = 4, 16
"""Objects that are searched at the same time, and that are under way."""
SLAB_BYTES = 1 << 26
"""Voxels of an array are looked at in slabs of about so many bytes."""
READ_BYTES = 1 << 20
"""Bytes that one request asks for, at least."""


class FoundWord(NamedTuple):
    """A word that is there: its number in the list, and how it is written, such as `base64, png, utf-8`."""

    word: int
    how: str


class Searched(NamedTuple):
    """An object that was searched, what was found in it, and why some of it could not be decoded, or "".

    In `name` the words are hidden, so that it can be told to anybody.
    """

    name: str
    found: tuple[FoundWord, ...] = ()
    problem: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether all of it was searched, and nothing was found."""
        return not self.found and not self.problem


def audit(
    target: str | os.PathLike[str], sentinels: str | os.PathLike[str] | Sequence[str] | Sentinels
) -> Iterator[Searched]:
    """Search a folder or bucket for words that must not be there, such as the names of patients.

    Names of objects are searched, their bytes, and what is packed in them: escapes of JSON, HTML and URLs, base64,
    texts of PNG files, gzip, bzip2, xz, zip, Parquet, and the voxels of zarr arrays. Text may be UTF-8, Latin-1 or
    UTF-16, in either case, and a name in any order and with any separator, such as DICOM's ``^``.

    Parameters
    ----------
    target
        A dataset, an export, or any other folder or bucket, as a path or URL.
    sentinels
        The file with one word or name per line, or these lines.

    Yields
    ------
    Searched
        For each object, and for each array.

    Raises
    ------
    UsageError
        There is nothing at the target, or no word, or one that is too short.

    Examples
    --------
    >>> [searched.name for searched in dskprep.audit("scans-1mm", "names.txt") if searched.found]  # doctest: +SKIP
    []
    """
    target = storage.absolute(target)
    words = sentinels if isinstance(sentinels, Sentinels) else read_sentinels(target, sentinels)
    if not storage.exists(target):
        raise UsageError(f"{target}: there is nothing here; check the path")
    return _search_all(target, words)


def read_sentinels(target: str, lines: str | os.PathLike[str] | Sequence[str]) -> Sentinels:
    """Read the words to look for. Raises UsageError as `audit` does, and if the file lies in what is searched."""
    if not isinstance(lines, (str, os.PathLike)):
        return Sentinels(lines)
    place = storage.absolute(lines)
    if storage.is_within(place, target):
        raise UsageError(f"{place}: lies in {target}, and would be found there; move it")
    try:
        text = storage.read(place).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"{place}: expected a file with one word per line, found none; check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: expected UTF-8, found other bytes; convert it") from error
    if "\0" in text:  # as in UTF-16: such words would be looked for, and stand nowhere
        raise UsageError(f"{place}: expected UTF-8, found zero bytes, as in UTF-16; convert it")
    try:
        return Sentinels(text.splitlines())
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error


def _search_all(target: str, words: Sentinels) -> Iterator[Searched]:
    folder, entries = target, _entries(target)
    if not storage.is_folder(target) and (entry := storage.entry_of(target)):
        folder, entries = target.rpartition("/")[0], iter([entry])
    with Threads(AT_ONCE, "audit") as threads:
        try:
            searches = _searches(folder, entries, words)
            yield from filter(None, ahead(searches, threads.submit, AHEAD))
        finally:
            threads.shutdown(cancel_futures=True)


def _searches(folder: str, entries: Iterator[Entry], words: Sentinels) -> Iterator[Callable[[], Searched | None]]:
    for entry in entries:
        yield functools.partial(_search, folder, entry, words)
        if entry.name.rpartition("/")[2] in ("zarr.json", ".zarray"):
            yield functools.partial(_search_array, folder, entry.name, words)


def _entries(target: str) -> Iterator[Entry]:
    """Yield all objects below a folder, and empty folders of a disk as objects without bytes."""
    yield from storage.listing_below(target)
    if not storage.is_bucket(target):
        empty = (f.path for f in storage.walk(target) if f.path and not (f.entries or f.has_subfolders))
        yield from (Entry(f"{path}/", 0, "") for path in empty)


def _search(folder: str, entry: Entry, words: Sentinels) -> Searched:
    """Search one object, and its name."""
    found = {FoundWord(hit.word, "name") for hit in words.in_text(entry.name.encode(errors="surrogateescape"))}
    problem = ""
    file = io.BufferedReader(_Stored(storage.join(folder, entry.name), entry.size), READ_BYTES)
    try:
        for piece in unpacking.pieces(file) if entry.size else ():
            hits = words.in_text(piece.data) if piece.is_text else words.in_bytes(piece.data)
            found |= _found(hits, piece.how)
    except unpacking.CannotUnpack as error:
        problem = f"cannot be unpacked ({error})"
    except FileNotFoundError:
        problem = "is not there any more"
    except storage.UnreadableFile:
        problem = "cannot be read"
    return Searched(words.hide(entry.name), _shortest(found), problem)


def _search_array(folder: str, name: str, words: Sentinels) -> Searched | None:
    """Search the voxels of the array with these metadata; None if they are those of a group."""
    path = name.rpartition("/")[0]
    parent, _, own = (storage.join(folder, path) if path else folder).rpartition("/")
    found: set[FoundWord] = set()
    problem = ""
    try:
        content = json.loads(storage.read_small(storage.join(folder, name)))
        if name.endswith("zarr.json") and content.get("node_type") != "array":
            return None
        sizes = {f"{own}/{e.name}": e.size for e in storage.listing_below(storage.join(parent, own))}
        for slab in _slabs(opened.open_array(parent, own, sizes)):
            found |= _found(words.in_voxels(slab), ("voxels",))
    except FileNotFoundError:
        problem = "is not there any more"
    except storage.UnreadableFile:
        problem = "its voxels cannot be read"
    except InfrastructureError:
        raise
    except Exception as error:  # whatever zarr and its codecs raise
        problem = f"its voxels cannot be decoded ({type(error).__name__}): it is not as dskprep writes arrays"
    return Searched(words.hide(f"{path}/"), _shortest(found), problem)


def _slabs(array: Any) -> Iterator[bytes]:
    """Yield the voxels of an array (z, y, x), some planes at a time, or some rows of one, so that rows are whole."""
    n_z, n_y, n_x = array.shape
    row_bytes = n_x * array.dtype.itemsize
    if row_bytes > SLAB_BYTES:
        raise ValueError(f"expected rows of at most {SLAB_BYTES} bytes")
    n_rows = min(n_y, SLAB_BYTES // row_bytes)
    n_planes = max(1, min(array.chunks[0], SLAB_BYTES // (n_rows * row_bytes)))
    for z in range(0, n_z, n_planes):
        for y in range(0, n_y, n_rows):
            yield np.ascontiguousarray(array[z : z + n_planes, y : y + n_rows]).tobytes()


def _found(hits: Iterator[Hit], how: tuple[str, ...]) -> set[FoundWord]:
    return {FoundWord(hit.word, ", ".join((*how, hit.encoding))) for hit in hits}


def _shortest(found: set[FoundWord]) -> tuple[FoundWord, ...]:
    """Return each word once, as it was reached in the fewest steps: text without escapes is searched with them too."""
    best: dict[int, FoundWord] = {}
    for each in sorted(found, key=lambda each: (each.how.count(","), each.how)):
        best.setdefault(each.word, each)
    return tuple(best[word] for word in sorted(best))


class _Stored(io.RawIOBase):
    """An object of a store as a file that can be read from any place."""

    def __init__(self, url: str, n_bytes: int) -> None:
        self._url, self._n_bytes, self._at = url, n_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._n_bytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._n_bytes)
        if self._at >= stop:
            return 0
        (content,) = storage.read_ranges(self._url, [(self._at, stop)])
        buffer[: len(content)] = content
        self._at = stop
        return len(content)

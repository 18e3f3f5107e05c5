"""Words that must not be there, in all the ways in which they may be written, and where they stand in bytes."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from dskprep import keys
from dskprep.errors import UsageError
from dskprep.kernels import words

ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be")
"""How text may be stored."""
BETWEEN = ("^", " ", "_", "-", ".", ",", ", ", "+", "=", "/", "__", "")
"""What may stand between the parts of a name; DICOM has `^`, and a key `__` for a slash."""
LEAST_BYTES = 3
"""Fewest bytes of a word: of two, the bytes of any picture hold all there are."""
SURE_BYTES = 6
"""Shorter words are looked for in text alone, and as whole words: other bytes hold them by chance.

Six letters of either case are met by chance once in 4 TB.
"""
SURE_CHARACTERS = 9
"""Shorter words are not looked for as UTF-16 among voxels: HU of soft tissue are the codes of letters."""

FOLD = bytes(range(256)).lower()
"""Each byte, with the letters of ASCII in lower case."""
_FOLD = np.frombuffer(FOLD, np.uint8)
_HEX = re.compile(r"[0-9a-f]+", re.IGNORECASE)
_PARTS = re.compile(r"[\s^,_=]+")


class Hit(NamedTuple):
    """A word that was found: its number, from 1 on, how it was encoded, and where it begins and ends."""

    word: int
    encoding: str
    start: int
    stop: int


class _Pattern(NamedTuple):
    content: bytes
    word: int
    encoding: str
    is_whole: bool


class Sentinels:
    """Words, ready to be looked for. They are told by their number alone, so that no log repeats them."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Take one word or name of each line that is not empty; its number is that of the line.

        Raises UsageError if there is none, or one is too short.
        """
        found = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
        if short := [number for number, word in found.items() if len(word.encode()) < LEAST_BYTES]:
            raise UsageError(
                f"expected words of {LEAST_BYTES} bytes or more, found a shorter one in line {short[0]}: it stands in "
                "everything; leave it out"
            )
        if not found:
            raise UsageError("expected a word in each line, found none")
        self.n_words = len(found)
        patterns = list(_patterns(found))
        self.longest = max(len(pattern.content) for pattern in patterns)
        self._in_text = _Finder(patterns, LEAST_BYTES)
        sure = [pattern for pattern in patterns if len(pattern.content) >= SURE_BYTES]
        self._in_bytes = _Finder(sure, SURE_BYTES)
        self._in_voxels = _Finder(
            [p for p in sure if len(p.content) >= 2 * SURE_CHARACTERS or not p.encoding.startswith("utf-16")],
            SURE_BYTES,
        )

    def in_text(self, data: bytes) -> Iterator[Hit]:
        """Yield where the words stand in text of any encoding."""
        return self._in_text.find(data)

    def in_bytes(self, data: bytes) -> Iterator[Hit]:
        """Yield where the words stand in bytes of any kind."""
        return self._in_bytes.find(data)

    def in_voxels(self, data: bytes) -> Iterator[Hit]:
        """Yield where the words stand in the bytes of an array of numbers."""
        return self._in_voxels.find(data)

    def hide(self, text: str) -> str:
        """Return a text, such as a name, with `[word N]` in place of each word, as far as it is written as it is."""
        data = text.encode(errors="surrogateescape")
        hits = sorted(self.in_text(data), key=lambda hit: (hit.start, -hit.stop))
        parts, at = [], 0
        for hit in hits:
            if hit.start >= at:
                parts += [data[at : hit.start], b"[word %d]" % hit.word]
                at = hit.stop
        return b"".join([*parts, data[at:]]).decode(errors="surrogateescape")


def _patterns(found: dict[int, str]) -> Iterator[_Pattern]:
    """Yield the bytes of each word in each way to write it; of two words that are the same there, the first."""
    known: set[bytes] = set()
    for encoding in ENCODINGS:
        for number, word in found.items():
            for spelling in _spellings(word):
                try:
                    content = spelling.encode(encoding).translate(FOLD)
                except UnicodeEncodeError:
                    continue
                if content not in known and len(content) >= LEAST_BYTES:
                    known.add(content)
                    is_whole = len(spelling.encode()) < SURE_BYTES or bool(_HEX.fullmatch(spelling))
                    yield _Pattern(content, number, encoding, is_whole)


def _spellings(word: str) -> Iterator[str]:
    """Yield the ways to write a word: the parts of a name in either order, either case, accents apart or not."""
    parts = [part for part in _PARTS.split(word) if part]
    written = [word]
    if len(parts) > 1:
        written += [between.join(order) for order in (parts, parts[::-1]) for between in BETWEEN]
    for text in dict.fromkeys(written):
        for normal in dict.fromkeys((unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text))):
            for form in (normal, keys.UNSAFE.sub("_", normal)):  # as it stands in a key
                yield from dict.fromkeys((form, form.lower(), form.upper(), form.title()))


class _Finder:
    """Finds patterns of `n` bytes or more."""

    def __init__(self, patterns: Iterable[_Pattern], n: int) -> None:
        self._n = n
        self._by_beginning: dict[bytes, list[_Pattern]] = defaultdict(list)
        for pattern in patterns:
            self._by_beginning[pattern.content[:n]].append(pattern)
        joined = np.frombuffer(b"".join(self._by_beginning), np.uint8)
        self._table = words.table_of(joined.reshape(-1, n))

    def find(self, data: bytes) -> Iterator[Hit]:
        array, places, first = np.frombuffer(data, np.uint8), np.empty(1 << 16, np.int64), 0
        while first < len(data):
            count, first = words.find_beginnings(array, _FOLD, self._table, self._n, first, places)
            for start in places[:count].tolist():
                beginning = data[start : start + self._n].translate(FOLD)
                for pattern in self._by_beginning.get(beginning, ()):
                    stop = start + len(pattern.content)
                    if data[start:stop].translate(FOLD) == pattern.content and not (
                        pattern.is_whole and _goes_on(data, start, stop, pattern)
                    ):
                        yield Hit(pattern.word, pattern.encoding, start, stop)


def _goes_on(data: bytes, start: int, stop: int, pattern: _Pattern) -> bool:
    """Tell whether a letter stands beside a match; of one with digits, a letter or digit."""
    beside = data[max(0, start - 1) : start] + data[stop : stop + 1]
    is_part = bytes.isalnum if any(48 <= byte <= 57 for byte in pattern.content) else bytes.isalpha
    return any(is_part(beside[i : i + 1]) for i in range(len(beside)))

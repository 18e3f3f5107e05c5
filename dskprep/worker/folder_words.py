"""What of the name of a mask's file is the name of its folder: that of a patient, where keys are hashed."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

WORD = re.compile(r"[^\W_]+")
"""Letters and digits that stand together."""
DIGEST = re.compile(r"_[0-9a-f]{8}$")
"""What ends a key from which its folder's name cannot be read back (see `source.case.key_of`)."""
NO_NAME = re.compile(r"[^\W\d]?|\d{1,2}")
"""What names nobody: a letter, which may be a side, and one or two digits, which number labels."""
INSIDE = 4
"""Fewest letters and digits of a name that is found within a longer word."""
DRAWN = frozenset(
    "lung lungs lobe lobes left right upper middle lower airway trachea nodule nodules lesion lesions tumor tumour "
    "mass gtv ctv ptv rul rml rll lul lll rt lt mask masks seg segmentation label labels roi".split()
)
"""Words that say what was drawn. A folder that has one of them, too, is no patient for it."""


class _Word(NamedTuple):
    """A word in small letters: without accents, and of the letters alone that a key keeps."""

    plain: str
    safe: str

    def is_same(self, other: _Word) -> bool:
        return any(a == b and not NO_NAME.fullmatch(a) for a, b in zip(self, other, strict=True))

    def is_within(self, other: _Word) -> bool:
        return any(len(a) >= INSIDE and a in b for a, b in zip(self, other, strict=True))


def without_folder(name: str, folders: Sequence[str]) -> str:
    """Return what is left of a file's name at its end or beginning without the names of folders, "" if nothing is.

    Case, accents and separators do not count. Left out is the whole name of a folder, and each word that it has too, or
    holds; but words that say what was drawn stay.

    >>> without_folder("Smith-John_lung_left", ["JOHN.SMITH"]), without_folder("seg", ["smith"])
    ('lung_left', 'seg')
    >>> without_folder("left_smith_1970", ["smith"]), without_folder("smith_2", ["smith"])
    ('', '')
    """
    name = unicodedata.normalize("NFC", name)
    places = [word.span() for word in WORD.finditer(name)]
    words = [_word(name[begin:end]) for begin, end in places]
    wholes = [part for folder in (*folders, "_".join(folders)) for part in (folder, DIGEST.sub("", folder))]
    told = [_word(part) for part in wholes]
    own = [_word(word) for part in wholes for word in WORD.findall(unicodedata.normalize("NFC", part))]
    gone = {k for k, word in enumerate(words) if _is_told(word, own, told)}
    runs = sorted(itertools.combinations(range(len(words) + 1), 2), key=lambda run: run[1] - run[0])
    found: list[range] = []
    for run in itertools.starmap(range, runs):
        here = _Word(*map("".join, zip(*(words[k] for k in run), strict=True)))
        if not any(set(shorter) <= set(run) for shorter in found) and any(_is_named(here, whole) for whole in told):
            found.append(run)
    gone.update(*found)
    left = [k for k in range(len(words)) if k not in gone]
    if not gone:
        return name
    if not left or left != list(range(left[0], left[-1] + 1)):
        return ""
    rest = name[places[left[0]][0] : places[left[-1]][1]]
    return rest if any(letter.isalpha() for letter in rest) else ""


def _is_told(word: _Word, own: Sequence[_Word], wholes: Sequence[_Word]) -> bool:
    """Tell whether a word of a file's name is one of its folder's, or stands within the folder's name."""
    is_own = any(word.is_same(other) for other in own) or any(word.is_within(whole) for whole in wholes)
    return is_own and word.plain not in DRAWN


def _is_named(words: _Word, whole: _Word) -> bool:
    """Tell whether words of a file's name are a folder's name, or hold it."""
    return whole.plain not in DRAWN and (whole.is_same(words) or whole.is_within(words))


def _word(text: str) -> _Word:
    plain = unicodedata.normalize("NFKD", text).casefold()
    safe = re.sub("[^A-Za-z0-9]", "", unicodedata.normalize("NFC", text)).lower()
    return _Word("".join(letter for letter in plain if letter.isalnum()), safe)

"""Which lung a label is called by: the words of its name that tell a lung and a side."""

from __future__ import annotations

import re
import unicodedata

from dskprep.sides import LEFT, RIGHT

LETTERS = re.compile(r"[^\W\d_]+")
"""Letters that stand together; digits and all else part them."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+")
"""Words that capitals part, as in LeftLung."""
LUNG = re.compile(r"lung.*|.*lungs?|lobe.*|pulmo")
"""Words that tell a lung, also in German and Latin; a lobe may be that of another organ."""
OTHERS = re.compile(r"liver|hepat.*|thyroid.*|prostat.*|brain|cerebr.*|temporal|frontal|parietal|occipital|caudate")
"""Words of other organs that have lobes."""
SIDE = {
    RIGHT: re.compile(r"right|rt|r|rechte?[rsn]?|dexter|dextra"),
    LEFT: re.compile(r"left|lt|l|linke?[rsn]?|sinister|sinistra"),
}
"""Words that tell a side, by the label of that lung."""
LOBES = {RIGHT: re.compile(r"r[uml]l"), LEFT: re.compile(r"l[ul]l")}
"""Words that tell a lobe, and so a lung and a side: right and left, upper, middle and lower."""
JOINED = re.compile(r"(lungs?)(right|left|rt|lt|r|l)|(right|left|rt|lt|r|l)(lungs?)")
"""A lung and its side in one word, as in LUNGL."""


def side_of(name: str) -> int | None:
    """Return the lung that a label is called by, `RIGHT` or `LEFT`; None if its name does not tell.

    >>> [side_of(name) for name in ("Lung_R", "LeftLung", "RUL", "lung", "lungs left and right")]
    [1, 2, 1, None, None]
    """
    words = [word for letters in LETTERS.findall(unicodedata.normalize("NFC", name)) for word in _parts(letters)]
    found = {side for side, lobes in LOBES.items() if _has(words, lobes)}
    if found or _has(words, LUNG):
        found |= {side for side, told in SIDE.items() if _has(words, told)}
    return found.pop() if len(found) == 1 and not _has(words, OTHERS) else None


def _has(words: list[str], pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(word) for word in words)


def _parts(letters: str) -> list[str]:
    """Return the words of letters that stand together, in small letters."""
    if joined := JOINED.fullmatch(letters.lower()):
        return [word for word in joined.groups() if word]
    return [word.lower() for word in WORD.findall(letters)]

"""Keys: what a volume may be called, so that its name is a name on any file system and in any bucket."""

from __future__ import annotations

import hashlib
import re

UNSAFE = re.compile(r"[^A-Za-z0-9._=@,-]")
"""What a key must not hold."""

FURTHER = "+"
"""In the key of a further series of a folder, stands between the folder's key and the digest of the series."""

_OF_SERIES = re.compile(r"[A-Za-z0-9_=@,-][A-Za-z0-9._=@,+-]*")


def is_plain(text: str) -> bool:
    """Tell whether a text can be a name: not empty, not hidden, and of safe characters, so no path."""
    return bool(text) and not text.startswith(".") and not UNSAFE.search(text)


def is_of_series(text: str) -> bool:
    """Tell whether a text can be the key of a series in a dataset."""
    return bool(_OF_SERIES.fullmatch(text))


def series_digest(uid: str) -> str:
    """Return the digest by which records name a SeriesInstanceUID."""
    return hashlib.sha256(uid.encode(errors="surrogateescape")).hexdigest()[:12]

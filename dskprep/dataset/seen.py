"""What the headers said by which series are chosen (`[select]`), kept in the dataset so that each is read once.

`headers.jsonl.gz` has a line per series: its key and input digest, the keyed digest of its patient, or of its study
and patient, how it
fits each rule, and the digest of its SeriesInstanceUID; null and empty for what is no choice.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from dskprep import storage

FILE = "headers.jsonl.gz"
MAX_LINE = 4096
"""Longest line, in bytes."""


class Seen(NamedTuple):
    """What is known of one series."""

    key: str
    digest: str
    family: str | None
    scores: list[float]
    uid_sha256: str | None


def read(target: str) -> Iterator[Seen]:
    """Yield what earlier runs have read, up to the first line that is damaged: the rest is read again."""
    try:
        file = gzip.GzipFile(fileobj=io.BytesIO(storage.read_small(storage.join(target, FILE))))
        while line := file.readline(MAX_LINE):
            yield msgspec.json.decode(line, type=Seen)
    except (FileNotFoundError, gzip.BadGzipFile, EOFError, zlib.error, msgspec.DecodeError):
        return


def write(target: str, seen: Iterable[Seen]) -> None:
    """Write what is known now."""
    lines = b"".join(msgspec.json.encode(one) + b"\n" for one in seen)
    storage.write_many(target, {FILE: gzip.compress(lines, 1, mtime=0)})

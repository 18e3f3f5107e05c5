"""What the headers said by which series are chosen (`[select]`), kept in the dataset so that each is read once.

`headers.jsonl.gz` has a line per series: its key and input digest, the keyed digest of its study or patient, how it
fits each rule, and the digest of its SeriesInstanceUID; null and empty for what is no choice.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dskprep import storage

FILE = "headers.jsonl.gz"


class Seen(NamedTuple):
    """What is known of one series."""

    key: str
    digest: str
    family: str | None
    scores: list[float]
    uid_sha256: str | None


def read(target: str) -> Iterator[Seen]:
    """Yield what earlier runs have read; nothing if there is no such file, or it cannot be used: then all is read."""
    try:
        lines = gzip.decompress(storage.read(storage.join(target, FILE))).splitlines()
        found = [Seen(*json.loads(line)) for line in lines]
    except (FileNotFoundError, OSError, EOFError, zlib.error, ValueError, TypeError):
        return
    yield from found


def write(target: str, seen: Iterable[Seen]) -> None:
    """Write what is known now."""
    lines = "".join(json.dumps(one) + "\n" for one in seen)
    storage.write_many(target, {FILE: gzip.compress(lines.encode(), 1, mtime=0)})

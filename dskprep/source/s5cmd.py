"""A manifest for s5cmd, as the portal of the Imaging Data Commons (IDC) and idc-index write it. It is only read."""

from __future__ import annotations

import re
import shlex

from dskprep import storage
from dskprep.errors import UsageError

SUFFIX = ".s5cmd"
_ONLY_GOOGLES = frozenset(storage.PUBLIC_BUCKETS["gs"]) - frozenset(storage.PUBLIC_BUCKETS["s3"])
_GOOGLES_ENDPOINT = "storage.googleapis.com"
"""In a comment of a manifest for Google's buckets, whose URLs begin with `s3://` too."""
_SERIES = re.compile(r"(s3|gs)://([a-z0-9-]+)/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/\*")
_FLAGS = frozenset({"--show-progress", "-sp"})
"""Options that say nothing about which files are copied."""


def read(source: str) -> dict[str, str]:
    """Return the UUID of each series, in the order of the lines, and the scheme of the bucket that it is copied from.

    A series that stands in several lines is one. Raises UsageError if a line is anything but the plain copy of one
    series out of a bucket of IDC.
    """
    try:
        lines = storage.read(source).decode().splitlines()
    except FileNotFoundError as error:
        raise UsageError(f"{source}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: expected a manifest for s5cmd in UTF-8, found other bytes") from error
    is_googles = any(_GOOGLES_ENDPOINT in line for line in lines if line.lstrip().startswith("#"))
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            scheme, uuid = _read_line(line, f"{source}, line {number}")
            found.setdefault(uuid, "gs" if is_googles else scheme)
    return found


def _read_line(line: str, where: str) -> tuple[str, str]:
    """Return the scheme of the bucket that a line copies from, and the UUID of its series."""
    if storage.holds_credentials(line):
        raise UsageError(f"{where}: {storage.CREDENTIALS}")
    try:
        command, *words = shlex.split(line)
    except ValueError:
        command, words = "", []
    places = [word for word in words if word not in _FLAGS]
    named = _SERIES.fullmatch(places[0]) if places else None
    is_copy = command in ("cp", "sync") and len(places) == 2 and not re.match(r"-|\w+://", places[1])
    if not named or not is_copy:
        raise UsageError(
            f"{where}: expected the copy of one series, as cp s3://{storage.PUBLIC_BUCKETS['s3'][0]}/<uuid>/* ., "
            f"found {line!r:.100}; no other line is read"
        )
    scheme, bucket, uuid = named.groups()
    scheme = "gs" if bucket in _ONLY_GOOGLES else scheme
    if bucket not in storage.PUBLIC_BUCKETS[scheme]:
        raise UsageError(f"{where}: expected a bucket of the Imaging Data Commons, found {bucket!r:.80}; leave it out")
    return scheme, uuid

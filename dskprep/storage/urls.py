"""URLs of folders and buckets: which ones there are, and what none may hold.

A chain of URLs (`a::b`) is none of them: nothing here takes a URL apart at `::`, which in a name is a name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from dskprep.errors import UsageError
from dskprep.storage.public import store_of

SCHEMES = ("file", "s3", "s3a", "az")
"""Of the URLs that can be opened, beside `gs` for public buckets; whatever has no scheme is a path."""
BUCKETS = ("s3", "s3a", "az", "gs")
"""Schemes of buckets and containers, whose names have no colon."""
CREDENTIALS = "a URL must not hold credentials; set them in the environment or a profile"
"""What is said of a URL that holds some. It is not repeated."""

MAX_CHARACTERS = 4096
"""Longest URL or path: what Linux takes; keys on S3 have a quarter of it."""

_HINTS = {"gs": ", of which only the buckets of the Imaging Data Commons are read"} | dict.fromkeys(
    ("abfs", "abfss", "wasb", "wasbs"), "; write az://container/folder, and name the account in the environment"
)
"""What to do about a scheme that cannot be opened."""

_PLACE = re.compile(r"(?<!\w)(\w*):/+([^/]*)")
"""A scheme and the host behind it, of a URL or of one within it."""
_ONE_SLASH = re.compile(r"(s3a?|az|gs|file|https?|ftp|abfss?|wasbs?|hdfs):(?!//)", re.IGNORECASE)
"""How a URL begins that has lost a slash, as in a Path of Python."""
_GRANTS = re.compile(r"sig|token|secret|passw|credential|key|auth|accessid", re.IGNORECASE)
"""Names of what stands in the query of a URL that grants access to whoever has it."""


def absolute(url: str | os.PathLike[str]) -> str:
    """Return a URL or path in a form that means the same in every process: relative paths become absolute.

    Raises UsageError if it is too long, holds credentials (URLs go into tasks, records and messages), has another
    scheme than SCHEMES, names a version of an object, or no place, or the way to a place in a bucket by `.`, `..` or
    nothing, which requests cannot name. (s3fs can name a folder without a name on S3, if it is not the first.)
    """
    if not isinstance(url, (str, os.PathLike)):
        raise UsageError(f"expected a path or a URL, found {url!r}")
    url = os.fspath(url)
    if len(url) > MAX_CHARACTERS:
        raise UsageError(f"expected a URL or path of at most {MAX_CHARACTERS} characters, found {len(url)}")
    if holds_credentials(url):
        raise UsageError(CREDENTIALS)
    if not url or url.rstrip("/").lower() in ("s3:", "s3a:", "az:", "file:"):
        raise UsageError(f"{url!r} names no place; expected a path, or a URL such as s3://bucket/prefix")
    check_scheme(url)
    if _ONE_SLASH.match(url):
        raise UsageError(f"{url!r:.200}: expected two slashes behind the colon; a folder of this name is ./{url:.80}")
    scheme, place = _split(url)
    if scheme in ("", "file"):
        try:
            return Path(place.rstrip("/") or "/").expanduser().resolve().as_posix()
        except (RuntimeError, ValueError) as error:  # no such user, links in a circle, a NUL
            raise UsageError(f"{url!r} names no place: {error}; expected a path") from error
    url = f"{'s3' if scheme == 's3a' else scheme}://{place}".rstrip("/")
    if "?versionid=" in place.lower():
        raise UsageError(f"{url}: expected a bucket and a key, found a version; only current objects are read")
    key = place.rstrip("/").partition("/")[2]
    is_no_path = "//" in f"/{key}" if scheme == "az" else key.startswith("/")
    if is_no_path or not {".", ".."}.isdisjoint(key.split("/")):
        raise UsageError(f"{url}: expected the names of folders, found a second slash, '.' or '..'; leave it out")
    return url


def check_scheme(url: str) -> None:
    """Raise UsageError for a URL that cannot be opened by its scheme. It is not repeated, as it may hold a secret."""
    scheme, place = _split(url)
    if scheme and scheme not in SCHEMES and not store_of(f"{scheme}://{place}"):
        only = _HINTS.get(scheme, "")
        raise UsageError(
            f"expected a path, or a URL that begins with s3://, az:// or file://, found {f'{scheme}://'!r:.60}{only}"
        )


def holds_credentials(text: str) -> bool:
    """Tell whether a URL, or one within it, seems to hold credentials: a user's, or those of a signed URL."""
    text = unquote(text)
    scheme, place = _split(text)
    is_foreign = bool(scheme) and scheme not in SCHEMES
    names = (part.partition("=") for part in re.split(r"[?&;#]", text)[1:])
    is_signed = any(mark and "/" not in name and _GRANTS.search(name) for name, mark, _ in names)
    if is_signed or (is_foreign and "@" in place):  # a secret may hold a slash
        return True
    return any(_is_users(scheme.lower(), host) for scheme, host in _PLACE.findall(text))


def _is_users(scheme: str, host: str) -> bool:
    """Tell whether what stands at the place of a host has credentials; of buckets, access points have a colon.

    A secret may hold a slash, so that what is behind it, with the `@`, is not in `host`.
    """
    has_colon = scheme in BUCKETS and ":" in host and not host.startswith("arn:")
    return has_colon or ("@" in host and scheme != "file")


def _split(url: str) -> tuple[str, str]:
    """Return the scheme of a URL in lower case, "" for a path, and what follows it."""
    scheme, mark, place = url.partition("://")
    return (scheme.lower(), place) if scheme and mark and "/" not in scheme else ("", url)


def join(url: str, *names: str) -> str:
    return "/".join([url.rstrip("/"), *names])


def is_within(url: str, other: str) -> bool:
    """Tell whether `url` is `other` or lies below it."""
    url, other = (absolute(u).rstrip("/") + "/" for u in (url, other))
    return url.startswith(other)


def above(url: str) -> list[str]:
    """Return the folders that an absolute URL lies in, the nearest first; the last is the bucket, or the root."""
    if is_bucket(url):
        scheme, _, place = url.partition("://")
        bucket, *names = place.rstrip("/").split("/")
        return [f"{scheme}://{'/'.join([bucket, *names[:n]])}" for n in reversed(range(len(names)))]
    return [place.as_posix() for place in Path(url).parents]


def is_bucket(url: str) -> bool:
    """Tell whether the URL is in a bucket. Objects there are whole or absent, even if their writer was killed."""
    return url.startswith(("s3://", "gs://", "az://"))

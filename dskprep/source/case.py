"""A case, the unit of work, and the key that it gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from dskprep import keys
from dskprep.attribution import Attribution
from dskprep.errors import InfrastructureError
from dskprep.selecting import Chosen
from dskprep.storage import Entry

MAX_KEY = 160
"""Longest key. File systems allow names of 255 bytes, and a digest and suffixes are appended to the key."""

HASH_DIGITS = 8
"""Hexadecimal digits of the digest of a path at the end of a key."""


@dataclass(frozen=True)
class Case:
    """One unit of work: the files of a folder or an archive, which hold one series or a few.

    The files are those directly in the folder, or with `is_deep` all below it; with `is_single` the URL is that of the
    only file, or of the header of a volume. `digest` is made of their listing (names, sizes, ETags or modification
    times), so that a changed input counts as another input. Of a line of a manifest that cannot be listed, `problem`
    says why. `left_out` are the archives below its folder, which are read only if they have lines of their own.

    Of a series of the Imaging Data Commons (IDC) the table says who made it and under which licence (`attribution`).
    `is_catalogued` says that the numbers are from that table too, and that nothing was listed; `refusal` is the reason
    and the message, if the table is enough to know that the series is not read.

    For the choice between series, `header` has what a table says of the attributes of the series, and `sample` is
    one of its files, most likely a slice; both are left out once the choice is made. `chosen` says why it was chosen
    among others.
    `is_asked` is False of a series that only takes part in the choice. With `is_hashed` the key is a keyed digest,
    `place` one of the URL, and neither a record nor a message may name the files.
    """

    key: str
    url: str
    digest: str
    n_files: int
    n_bytes: int
    is_archive: bool = False
    is_deep: bool = False
    is_single: bool = False
    problem: str = ""
    left_out: tuple[str, ...] = ()
    attribution: Attribution | None = None
    is_catalogued: bool = False
    refusal: tuple[str, str] | None = None
    header: tuple[tuple[str, str], ...] = ()
    sample: Entry | None = None
    chosen: Chosen | None = None
    is_asked: bool = True

    def bare(self) -> Case:
        """Return it without what only the choice needs: that names patients."""
        return replace(self, header=(), sample=None) if self.header or self.sample else self

    def set_aside(self, reason: str, message: str) -> Case:
        """Return it as one whose files are not read, so they do not count either."""
        return replace(self, n_files=0, n_bytes=0, refusal=(reason, message))

    is_hashed: bool = False
    place: str = ""


def digest(entries: Iterable[Entry]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 over names, sizes and tags."""
    sha256 = hashlib.sha256()
    for entry in sorted(entries):
        sha256.update(f"{entry.name}\0{entry.size}\0{entry.tag}\n".encode(errors="surrogateescape"))
    return sha256.hexdigest()[:16]


def key_of(path: str) -> str:
    """Make a key from a path: a slash becomes two underscores, any other unsafe character one.

    If the path cannot be read back from the key, the key ends in a digest of the path. That does not depend on which
    other patients there are, so no patient that is added later can take the key over.

    >>> key_of("LIDC-IDRI-0001/1.3.6/1.3.7")
    'LIDC-IDRI-0001__1.3.6__1.3.7'
    """
    path = path.strip("/")
    key = keys.UNSAFE.sub("_", path.replace("/", "__")).lstrip(".")
    if not key or "__" in path or key != path.replace("/", "__") or len(key) > MAX_KEY:
        key = f"{key[: MAX_KEY - 9]}_{short_hash(path)}"
    return key


def is_key(text: str) -> bool:
    """Whether a key of a manifest can name a volume."""
    return len(text) <= MAX_KEY and keys.is_plain(text)


def unused(key: str, path: str, used: set[str]) -> str:
    """Return a key that is not used yet, and note it. A folder may be called as the key of another one would be."""
    while key in used:
        key = f"{key}_{short_hash(path)}"
    used.add(key)
    return key


def shorter_key(case: Case) -> str:
    """Return the key that a case would have if no other one had it, "" if that is its own: see `unused`."""
    plain, _, end = case.key.rpartition("_")
    parts = case.url.split("/") if len(end) == HASH_DIGITS else []
    paths = ("/".join(parts[i:]) for i in range(len(parts)))
    return plain if any(short_hash(path) == end for path in paths) else ""


def apart(cases: Iterable[Case], target: str) -> Iterator[Case]:
    """Yield cases for a disk that takes capitals and small letters for one.

    Raises InfrastructureError for a case whose volume would be written over that of an earlier one.
    """
    used: dict[str, Case] = {}
    for case in cases:
        first = used.setdefault(case.key.casefold(), case)
        if first.key != case.key:
            raise InfrastructureError(
                f"{target}: its disk takes the keys {first.key} and {case.key} for one; rename {first.url} or "
                f"{case.url}, or choose a target on another disk"
            )
        yield case


def outside(cases: Iterable[Case], target: str) -> Iterator[Case]:
    """Yield cases; one whose folder holds the target, or lies in it, says so in place of its files.

    Only a line of a manifest can name such a folder. Each run would find among the files what it has written itself.
    """
    for case in cases:
        url = case.url
        if f"{target}/".startswith(f"{url.rstrip('/')}/") or url.startswith(f"{target}/"):
            problem = (
                f"{url}: expected a folder apart from the target, found the target {target} inside it or around it; "
                "correct this line of the manifest, or choose another target"
            )
            case = Case(case.key, url, digest([]), 0, 0, problem=problem)
        yield case


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:HASH_DIGITS]

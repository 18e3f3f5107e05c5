"""The file of a split: what it was made by, the side of each volume, and a seal that shows whether it was altered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator

import msgspec

from dskprep import keys, storage
from dskprep.dataset.record import to_json
from dskprep.errors import DamagedDataset, UsageError
from dskprep.plain import in_one_line
from dskprep.reading.split_rule import Rule, check
from dskprep.typed import converter

FORMAT = 1
"""Version of the file of a split."""


class Side(msgspec.Struct, frozen=True, array_like=True):
    """Where a volume is: its part, if there are parts, and its fold, which the part `test` has not."""

    part: str | None
    fold: int | None


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of a split; `groups` are those of the user's that were given as a mapping."""

    format: int
    rule: Rule
    sides: dict[str, Side]
    groups: dict[str, str]
    sha256: str = ""

    def sealed(self) -> Content:
        """Return it with the SHA-256 of all the rest."""
        plain = to_json(msgspec.to_builtins(msgspec.structs.replace(self, sha256="")))
        return msgspec.structs.replace(self, sha256=hashlib.sha256(plain).hexdigest())


_to_content = converter(Content)


def place_of(target: str, place: str | os.PathLike[str]) -> str:
    """Return where a split lies: beside the dataset if it is named by a plain word, else where the path says."""
    if isinstance(place, str) and keys.is_plain(place) and not place.endswith(".json"):
        return storage.join(target, f"splits/{place}.json")
    return storage.absolute(place)


def read(target: str, place: str | os.PathLike[str]) -> tuple[Content, str]:
    url = place_of(target, place)
    try:
        content = _to_content(json.loads(storage.read_metadata(url)))
        check(content.rule)
        is_whole = content.sealed() == content
    except FileNotFoundError as error:
        raise UsageError(f"{url}: there is no such split; dskprep split, or split.save, writes one") from error
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise DamagedDataset(f"{url}: is no split, or a damaged one ({in_one_line(error, 200)})") from error
    if content.format != FORMAT:
        raise UsageError(f"{url}: a split of format {content.format}; this dskprep reads format {FORMAT}")
    if not is_whole:
        raise DamagedDataset(f"{url}: was altered since it was written; put the original back, or make another split")
    return content, url


def write(target: str, place: str | os.PathLike[str], content: Content) -> str:
    """Write the file once, and return where it lies. Raises UsageError if another one is there."""
    url = place_of(target, place)
    if url == storage.absolute(place) and not (url.endswith(".json") and url.isprintable()):
        raise UsageError(
            f"{str(place)!r:.100}: expected a name of letters, digits and ._=@,- for a split beside the dataset, or "
            "the path of a file that ends in .json"
        )
    plain = to_json(msgspec.to_builtins(content.sealed()))
    if url.startswith(f"{target}/"):
        storage.refuse_links(target, [url.removeprefix(f"{target}/")])
    if not storage.create_if_absent(url, plain) and storage.read_small(url) != plain:
        raise UsageError(f"{url}: there is another split of this name, and a split is written once; choose another")
    return url


def moved(target: str, content: Content) -> Iterator[tuple[str, list[str]]]:
    """Yield the saved splits beside a dataset that have this rule, and the volumes that are on another side there."""
    folder = storage.join(target, "splits")
    for entry in storage.listing(folder):
        try:
            other, url = read(target, storage.join(folder, entry.name))
        except (UsageError, DamagedDataset):
            continue
        sides = content.sides
        if other.rule == content.rule and (
            keys := [k for k in other.sides.keys() & sides if other.sides[k] != sides[k]]
        ):
            yield url, sorted(keys)

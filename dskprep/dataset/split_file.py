"""The file of a split: what it was made by, the side of each volume, and a seal that shows whether it was altered."""

from __future__ import annotations

import hashlib
import json
import os

import msgspec

from dskprep import keys, storage
from dskprep.dataset.record import to_json
from dskprep.errors import DamagedDataset, UsageError
from dskprep.plain import in_one_line
from dskprep.typed import converter

FORMAT = 1
"""Version of the file of a split."""
PARTS = {0: (), 2: ("train", "test"), 3: ("train", "validation", "test")}
"""The names of the parts, by the number of shares."""
MOST_FOLDS = 1000


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What a split was made by: see `Dataset.split`. `stratify` is None where nothing is balanced."""

    by: tuple[str, ...]
    folds: int
    seed: int
    stratify: tuple[str, ...] | None
    shares: tuple[float, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts."""
        return PARTS[len(self.shares)]


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


def check(rule: Rule) -> Rule:
    """Raise UsageError for what no split can be made by."""
    if type(rule.folds) is not int or not 2 <= rule.folds <= MOST_FOLDS:
        raise UsageError(f"folds must be a whole number from 2 to {MOST_FOLDS}, not {rule.folds!r}")
    if type(rule.seed) is not int:
        raise UsageError(f"seed must be a whole number, not {rule.seed!r}")
    is_sum = abs(sum(rule.shares) - 1) < 1e-6
    if rule.shares and not (len(rule.shares) in PARTS and is_sum and all(share > 0 for share in rule.shares)):
        raise UsageError(
            "shares must be two (train, test) or three (train, validation, test) numbers above 0 that sum to 1, not "
            f"{rule.shares!r}"
        )
    return rule


def read(target: str, place: str | os.PathLike[str]) -> tuple[Content, str]:
    url = place_of(target, place)
    try:
        content = _to_content(json.loads(storage.read_metadata(url)))
        check(content.rule)
        is_whole = content.sealed() == content
    except FileNotFoundError as error:
        raise UsageError(f"{url}: there is no such split; split.save writes one") from error
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
    plain = to_json(msgspec.to_builtins(content.sealed()))
    if url.startswith(f"{target}/"):
        storage.refuse_links(target, [url.removeprefix(f"{target}/")])
    if not storage.create(url, plain) and storage.read(url) != plain:
        raise UsageError(f"{url}: there is another split of this name, and a split is written once; choose another")
    return url

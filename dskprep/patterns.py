"""Patterns of names, as `GTV*`: lists of them that callers give, and what they match."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from dskprep.errors import UsageError

OF_READER = re.compile(r"-reader-\d+(?![a-z0-9])")
"""What a name has that is one reader's own outline of a nodule, as `nodule-1-reader-2`; in small letters."""


def as_patterns(given: Iterable[str], what: str) -> tuple[str, ...]:
    """Return patterns that a caller gave as `what`. Raises UsageError for one text, whose letters would be patterns.

    >>> as_patterns(["GTV*"], "only")
    ('GTV*',)
    """
    patterns = None if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if patterns is None or not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"{what} must be a list of names or patterns, such as ['GTV*'], not {given!r:.100}")
    return patterns


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a name matches one of the patterns; case does not matter."""
    return any(fnmatch.fnmatchcase(name.casefold(), pattern.casefold()) for pattern in patterns)


def matches_label(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a label's name matches one of the patterns, as `GTV*`; case does not matter.

    A reader's own outline, `nodule-1-reader-2`, matches only a pattern that says `reader`: `nodule-*` is what readers
    agree on, `nodule-*-reader-*` what each of them drew.

    >>> [matches_label("nodule-1-reader-2", [pattern]) for pattern in ("nodule-*", "nodule-*-reader-*")]
    [False, True]
    """
    is_of_reader = OF_READER.search(name.casefold()) is not None
    return matches(name, (p for p in patterns if not is_of_reader or "reader" in p.casefold()))

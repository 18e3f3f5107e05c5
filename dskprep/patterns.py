"""Patterns of names, as `GTV*`: lists of them that callers give, and what they match."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from dskprep.errors import UsageError


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

"""What a split is made by: folds, shares, and which volumes belong together, as the user gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import msgspec
import pandas as pd

from dskprep.errors import UsageError

PARTS = {0: (), 2: ("train", "test"), 3: ("train", "validation", "test")}
"""The names of the parts, by the number of shares."""
MOST_FOLDS = 1000
PATIENT, PIXELS = ALWAYS = ("patient", "hu_sha256")
"""Columns of the index that always join volumes: a patient, and the same pixels."""


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


def rule_of(by: Any, folds: Any, seed: Any, stratify: Any, shares: Any) -> tuple[Rule, dict[str, str]]:
    """Return the rule that the arguments of `Dataset.split` are, and the groups of a mapping from keys.

    Raises UsageError for what no split can be made by.
    """
    is_mapping = isinstance(by, (Mapping, pd.Series))
    names = () if is_mapping else _names(by, "by")
    try:
        shares = () if shares is None else tuple(float(share) for share in shares)
    except (TypeError, ValueError) as error:
        raise UsageError(f"shares must be numbers, such as (0.8, 0.1, 0.1), not {shares!r:.100}") from error
    rule = Rule(
        by=tuple(name for name in names if name not in ALWAYS),
        folds=_whole(folds),
        seed=_whole(seed),
        stratify=None if stratify is None else _names(stratify, "stratify"),
        shares=shares,
    )
    return check(rule), groups_of(by) if is_mapping else {}


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


def groups_of(given: Mapping[str, Any] | pd.Series) -> dict[str, str]:
    """Return the user's groups by key, without the volumes that have none."""
    return {str(key): str(value) for key, value in given.items() if joins(value)}


def joins(value: Any) -> bool:
    """Tell whether volumes with this value in a column belong together: not if it is missing, or an empty text."""
    return value is not None and not pd.isna(value) and bool(value != "")


def _names(columns: str | Sequence[str], what: str) -> tuple[str, ...]:
    names = (columns,) if isinstance(columns, str) else columns
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        also = ", or a mapping from keys to groups" if what == "by" else ""
        raise UsageError(f"{what} must be a column or a list of columns{also}, not {type(columns).__name__}")
    return tuple(names)


def _whole(number: Any) -> Any:
    """Return a whole number of numpy's as Python's own."""
    return int(number) if isinstance(number, Integral) and not isinstance(number, bool) else number

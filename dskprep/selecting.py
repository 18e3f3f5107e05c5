"""The table `[select]` of the settings: by which rules some series of a study or patient are chosen, from headers."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dskprep.errors import UsageError
from dskprep.plain import to_number

PER = ("study", "patient")
SLICES = "slices"
"""The number of slices, among the texts that a series is judged by."""

LENGTH = "length_mm"
"""The slices times their thickness: about how much of the body there is."""

_COMPARED: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_NUMBERS = {
    "thickness": "slice_thickness_mm",
    "slices": SLICES,
    "length": LENGTH,
    "kvp": "kvp",
    "diameter": "reconstruction_diameter_mm",
}
_WORDS = {
    "kernel": ("kernel_class", ("soft", "sharp", "unknown")),
    "contrast": ("contrast", ("yes", "no", "unknown")),
    "pet-ct": ("pet_ct", ("yes", "no", "unknown")),
}
_ORDERS = {"most-slices": (SLICES, 1), "fewest-slices": (SLICES, -1), "thinnest": ("slice_thickness_mm", -1)}
NOTHING = -1e12
"""How well a series fits an order of numbers if its header states none."""
GRAMMAR = (
    "a comparison such as 'thickness<=1.5' (thickness, slices, length, kvp or diameter, with <=, >=, < or >), "
    "a word such as 'kernel:soft' (kernel:soft|sharp|unknown, contrast:yes|no|unknown, pet-ct:yes|no|unknown), "
    "'most-slices', 'fewest-slices' or 'thinnest'"
)

KEPT = frozenset({"source-changed", "too-large", "missing-decoder"})
"""Reasons of a refusal that another run may not meet, so that no other series is taken for it."""


class Chosen(NamedTuple):
    """Why a series was chosen among others, and the warnings that its record gets for that."""

    why: str
    warnings: tuple[str, ...] = ()

    @property
    def is_runner_up(self) -> bool:
        """Whether a better series was refused."""
        return "runner-up" in self.warnings


class Rule(NamedTuple):
    """One rule: its text, what it looks at, and how well a value fits; the larger the better."""

    text: str
    column: str
    fit: Callable[[str], float]


@dataclass(frozen=True)
class Select:
    """Of all series of one study (or patient), keep so many: those that fit the first rule best, then the second …

    Raises UsageError if a value is out of range or a rule is none.

    Examples
    --------
    >>> select = Select(prefer=("thickness<=1.5", "kernel:soft"))
    >>> select.scores({"slice_thickness_mm": "1.25", "kernel_class": "sharp"})
    (1.0, 0.0)
    """

    per: str = "study"
    prefer: tuple[str, ...] = ()
    keep: int = 1

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise UsageError(f"select.per must be 'study' or 'patient', not {self.per!r}")
        if not isinstance(self.keep, int) or isinstance(self.keep, bool) or self.keep < 1:
            raise UsageError(f"select.keep must be a whole number, 1 or more, not {self.keep!r}")
        if not isinstance(self.prefer, (list, tuple)) or not self.prefer:
            raise UsageError(f"select.prefer must be a list of rules, one or more, not {self.prefer!r}")
        object.__setattr__(self, "prefer", tuple(self.prefer))
        self.rules()

    @classmethod
    def of(cls, values: Any) -> Select:
        """Make it of the values of the table, or return it as it is. Raises UsageError for an unknown key."""
        if isinstance(values, Select):
            return values
        if not isinstance(values, Mapping) or (unknown := set(values) - {"per", "prefer", "keep"}):
            found = f"the key {min(unknown)!r}" if isinstance(values, Mapping) else repr(values)
            raise UsageError(f"select must be a table with per, prefer and keep, found {found}")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"per": self.per, "prefer": list(self.prefer), "keep": self.keep}

    def rules(self) -> list[Rule]:
        """Return the rules, in their order."""
        return [_rule(text) for text in self.prefer]

    @property
    def columns(self) -> set[str]:
        """What the rules look at."""
        return {rule.column for rule in self.rules()}

    def scores(self, texts: Mapping[str, str]) -> tuple[float, ...]:
        """Return how well a series fits each rule. What its header does not say fits none."""
        return tuple(rule.fit(texts.get(rule.column, "")) for rule in self.rules())

    def decided_by(self, better: Sequence[float], worse: Sequence[float]) -> str:
        """Return the first rule that two series fit differently, "" if there is none: a tie."""
        pairs = zip(self.prefer, better, worse, strict=True)
        return next((text for text, one, other in pairs if one != other), "")

    def why_first(self, better: Sequence[float], worse: Sequence[float]) -> str:
        """Say by what one series comes before another."""
        return self.decided_by(better, worse) or "a tie, which the digest of SeriesInstanceUID decides"


def order_of(scores: Sequence[float], uid_sha256: str) -> tuple[tuple[float, ...], str]:
    """Return what the series of a study are sorted by, the best first; no order of a listing has a part in it."""
    return tuple(-score for score in scores), uid_sha256


def chosen_of(
    select: Select, scores: Sequence[float], next_scores: Sequence[float] | None, n_rivals: int, instead_of: str | None
) -> Chosen | None:
    """Say why a series was chosen of `n_rivals`, of which the best that was not has `next_scores`; None if alone."""
    if n_rivals == 1:
        return None
    warnings, by = [], ""
    if next_scores is not None:
        by = f", by {select.why_first(scores, next_scores)}"
        warnings = [] if select.decided_by(scores, next_scores) else ["chosen-by-tie"]
    instead = f", in place of {instead_of}" if instead_of else ""
    return Chosen(
        f"of {n_rivals} series of the {select.per}{by}{instead}", (*warnings, *(["runner-up"] if instead_of else []))
    )


def _rule(text: str) -> Rule:
    if isinstance(text, str):
        if text in _ORDERS:
            column, sign = _ORDERS[text]
            return Rule(text, column, lambda value: NOTHING if (n := _positive(value)) is None else sign * n)
        name, _, word = text.partition(":")
        if name in _WORDS and word in _WORDS[name][1]:
            return Rule(text, _WORDS[name][0], lambda value: float((value or "unknown") == word))
        found = re.fullmatch(r"(\w+)(<=|>=|<|>)(\d+(?:\.\d+)?)", text.replace(" ", ""), re.ASCII)
        if found and found[1] in _NUMBERS:
            compare, limit = _COMPARED[found[2]], float(found[3])
            column = _NUMBERS[found[1]]
            return Rule(text, column, lambda value: float((n := _positive(value)) is not None and compare(n, limit)))
    raise UsageError(f"select.prefer: expected {GRAMMAR}, found {text!r}")


def _positive(text: str) -> float | None:
    """Return the number that a header states; 0 and below is none of any of these."""
    number = to_number(text)
    return number if number is not None and number > 0 else None

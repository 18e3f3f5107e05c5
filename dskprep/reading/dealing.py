"""Which side of a split a group of volumes is on: by its own name alone, or so that the sides are balanced.

A rule without a memory that never moves a group when others are added can look at nothing but the group itself. So it
cannot keep exact shares. `place_alone` is that rule. `deal` is exact, but what is added later must be dealt around
those that have their side already.
"""

from __future__ import annotations

import bisect
import hmac
import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

Side = str | int


@dataclass(frozen=True)
class Group:
    """Volumes that belong together: a name that no other group has, how many they are, and their stratum."""

    name: str
    n_volumes: int
    stratum: Hashable = ()


def place_alone(groups: Sequence[Group], shares: Mapping[Side, float], seed: int, what: str) -> list[Side]:
    """Return the side of each group, with these shares as probabilities, by its name alone."""
    sides, ends = list(shares), list(itertools.accumulate(shares.values()))
    places = [ends[-1] * _number(seed, what, group.name) / 2**64 for group in groups]
    return [sides[min(bisect.bisect_right(ends, place), len(sides) - 1)] for place in places]


def deal(
    groups: Sequence[Group],
    shares: Mapping[Side, float],
    seed: int,
    what: str,
    known: Sequence[tuple[Group, Side]] = (),
) -> list[Side]:
    """Return the side of each group, so that in each stratum and in all each side has its share of the volumes.

    The largest groups are dealt first, each to the side that lacks most; `known` are groups that have their side.
    """
    n_in: Counter[Hashable] = Counter()
    has: Counter[tuple[Hashable, Side]] = Counter()
    of_all: Counter[Side] = Counter()
    for group in (*groups, *(group for group, _ in known)):
        n_in[group.stratum] += group.n_volumes
    for group, side in known:
        has[group.stratum, side] += group.n_volumes
        of_all[side] += group.n_volumes
    n_all = n_in.total()
    order = sorted(
        range(len(groups)), key=lambda i: (-groups[i].n_volumes, _number(seed, what, groups[i].name), groups[i].name)
    )
    by_stratum: dict[Hashable, list[int]] = defaultdict(list)
    for i in order:
        by_stratum[groups[i].stratum].append(i)
    placed: dict[int, Side] = {}
    for stratum in sorted(by_stratum, key=repr):
        for i in by_stratum[stratum]:
            lacks = {
                side: (round(n_in[stratum] * share - has[stratum, side], 6), n_all * share - of_all[side])
                for side, share in shares.items()
            }
            side = max(lacks, key=lacks.__getitem__)
            placed[i] = side
            has[stratum, side] += groups[i].n_volumes
            of_all[side] += groups[i].n_volumes
    return [placed[i] for i in range(len(groups))]


def name_of(values: Sequence[str], seed: int) -> str:
    """Return one of the values, always the same whichever others there are beside it and it."""
    return min(values, key=lambda value: (_number(seed, "name", value), value))


def _number(seed: int, what: str, name: str) -> int:
    """Return a number of 64 bits that is the same on every machine."""
    digest = hmac.digest(f"dskprep split {seed}".encode(), f"{what}\0{name}".encode(errors="surrogateescape"), "sha256")
    return int.from_bytes(digest[:8], "big")

"""Which stored labels a name takes as a class of an export or the mask of a patch: those with a number behind it too.

Labels that a source asks to be stored under one name are one class. All but the first have a number.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from dskprep.dataset.label_record import MAX_NAME, safe_name
from dskprep.patterns import matches_label


def first_names(labels: Iterable[tuple[Hashable, Any, Any, Any]]) -> dict[tuple[Hashable, str], str]:
    """Return the name without its number of each label that has one since its source has others of that name.

    Of such labels all but the first have a number (`label_names.free_name`). Records of older versions do not have the
    name that was asked for: there a number may also be the author's, or come of the name of the file, and then no other
    label of the source is stored under what is before it.

    Parameters
    ----------
    labels
        The source of each label, the name under which it is stored, if it is, the name that its author gave, and the
        one that was asked for, if that is known.

    >>> first_names([("1", "GTV-2", "GTV", "GTV"), ("1", "T-2", "T-2", "T-2")])
    {('1', 'GTV-2'): 'GTV'}
    >>> first_names([("1", "GTV", "GTV", ""), ("1", "GTV-2", "GTV", ""), ("2", "GTV-3", "GTV", "")])
    {('1', 'GTV-2'): 'GTV'}
    """
    found, unsaid = {}, []
    for source, label, name, asked in labels:
        if not (isinstance(asked, str) and asked):
            unsaid.append((source, label, name))
        elif isinstance(label, str) and label and label != asked:
            found[source, label] = asked
    return found | _first_names_of_old(unsaid)


def _first_names_of_old(labels: Iterable[tuple[Hashable, Any, Any]]) -> dict[tuple[Hashable, str], str]:
    known = {
        (source, label if isinstance(label, str) else "", safe_name(name).casefold())  # pandas has NaN where none is
        for source, label, name in labels
        if isinstance(name, str)
    }
    stored = {(source, _shortened(label).casefold()) for source, label, _ in known if label}
    refused = {(source, _shortened(own)) for source, label, own in known if not label}
    found = {}
    for source, label, own in known:
        base, _, number = label.rpartition("-")
        if not number.isdigit() or (own.endswith(f"-{number}") and label.casefold().endswith(own)):
            continue
        short = _shortened(own)
        is_second = base.casefold() in (short, f"{short}_") and (source, short) in refused
        if is_second or (source, base.casefold()) in stored:
            found[source, label] = base
    return found


def _shortened(name: str) -> str:
    return name.encode()[: MAX_NAME - 6].decode(errors="ignore")


def labels_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the labels of rows of annotations, sorted: the name of each, and that without its number, or ""."""
    names = [((row["source"], row["source_options"]), row["label"], row["name"], row["asked_as"]) for row in rows]
    firsts = first_names(names)
    there = {
        (label, firsts.get((source, label), "")) for source, label, *_ in names if isinstance(label, str) and label
    }
    return sorted(there)


def matches_stored(label: str, first_name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a label matches one of the patterns, also by its name without its number if it has one."""
    return matches_label(label, patterns) or (first_name != "" and matches_label(first_name, patterns))

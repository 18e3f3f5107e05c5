"""The latest runs of a dataset, as the report lists them. Their summaries may be a stranger's, or damaged."""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any

import msgspec

from dskprep import storage
from dskprep.dataset.undisturbed import undisturbed
from dskprep.typed import converter

MAX_RUNS = 20
"""Latest runs that the page lists."""

_Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class _Summary(msgspec.Struct):
    """What the page takes from the summary of a run; older ones do not know of `elsewhere`."""

    run_id: str
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    counts: dict[str, _Number]
    already: dict[str, _Number]
    elsewhere: dict[str, _Number] = {}
    is_interrupted: bool = False
    stopped_by: str = ""


_to_summary = converter(_Summary)


def latest_runs(target: str) -> list[dict[str, Any]]:
    """Return what the page says of the latest runs, newest first, without damaged ones."""
    return undisturbed(target, functools.partial(_read, storage.join(target, "runs")))


def _read(folder: str) -> list[dict[str, Any]]:
    there = storage.listing_below(folder, follow_links=False)
    entries = sorted((e for e in there if e.name.endswith("/summary.json")), key=lambda entry: entry.name)
    found = []
    for _, content in storage.read_many_metadata(folder, entries[: -MAX_RUNS - 1 : -1]):
        try:
            run = _to_summary(json.loads(content))
        except (ValueError, RecursionError):
            continue
        n_before = sum(run.already.values())
        n_new = sum(run.counts.values()) - n_before - sum(run.elsewhere.values())
        per_minute = 60 * n_new / run.seconds if run.seconds else 0.0
        found.append(msgspec.structs.asdict(run) | {"n_new": n_new, "n_before": n_before, "per_minute": per_minute})
    return found

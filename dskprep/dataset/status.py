"""How many series of a dataset have which status, and why."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyarrow import compute

from dskprep import storage
from dskprep.counts import n_of
from dskprep.dataset import annotations as labels_of
from dskprep.dataset import claims, index, store
from dskprep.dataset.past_runs import PastRun, last_run
from dskprep.dataset.record import FURTHER, GOOD, in_words

SILENT_S = 60.0
"""A run that tells nothing of itself for so long was probably killed, in seconds."""


@dataclass(frozen=True)
class RunUnderWay:
    """A run that has not ended, as it told of itself.

    `done` counts its patients until then. `since` is the time of its start by its own clock, `heard_at` that of its
    last word by the store's clock (UTC, ISO 8601). A run tells of itself every ten seconds, so one that has not for a
    minute was probably killed. `is_dead` says that it has certainly ended without an account: its process ran on this
    machine, and is gone, or it has left word that the account could not be written.
    """

    run_id: str
    host: str
    pid: int
    since: str
    heard_at: str
    done: int
    is_dead: bool


@dataclass(frozen=True, repr=False)
class Status:
    """What became of all series of a dataset.

    `counts` has the number of series per status (`written`, `set-aside`, `refused`, `failed`, `killed`), `reasons` per
    ``"<status>: <reason>"`` of those not written, `warnings` per word of docs/reasons.md. Each of `split_series` is
    a group of keys whose volumes seem to be parts of one series. `damaged_records` has the keys of the records that
    cannot be read, and why; in the counts they are `failed: damaged-record`. `runs` are the runs under way.
    `label_sources` has the number of label sources per status, `label_reasons` of sources, and of single labels, that
    are not written per ``"<status>: <reason>"``, `label_warnings` of sources per warning; `labels` has the number of
    volumes per label, the most frequent first. `damaged_labels` has the paths of the records of label sources that
    cannot be read, and why; they count as `failed: damaged-record` too. `labels_gone` counts labels and points of
    images that the dataset has no more: their files have changed, or they were forgotten. `last_run` is the run that
    ended last. `missing` is the number of series that have no record any more, as after `verify --forget`: main
    series of its patients, and further ones that a record names.
    """

    target: str
    series: int
    counts: dict[str, int]
    reasons: dict[str, int]
    warnings: dict[str, int]
    split_series: list[list[str]]
    damaged_records: dict[str, str] = field(default_factory=dict)
    runs: list[RunUnderWay] = field(default_factory=list)
    label_sources: dict[str, int] = field(default_factory=dict)
    label_reasons: dict[str, int] = field(default_factory=dict)
    label_warnings: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    points: int = 0
    damaged_labels: dict[str, str] = field(default_factory=dict)
    labels_gone: int = 0
    missing: int = 0
    last_run: PastRun | None = None

    def __repr__(self) -> str:
        labels = f"; {n_of(sum(self.labels.values()), 'label')}, {n_of(self.points, 'point')}"
        return (
            f"<Status: {self.series} series: {in_words(self.counts)}{labels * bool(self.label_sources)}; {self.target}>"
        )

    @property
    def is_clean(self) -> bool:
        """Whether every series is written, and as a whole, or set aside, and no record damaged.

        While a run is under way, after one that was killed, and if the last one left patients without a status, it is
        not known whether these are all series; nor where no run has left an account.
        """
        are_good = set(self.counts) <= GOOD and not (self.split_series or self.damaged_labels)
        last = self.last_run
        is_done = last is not None and last.is_complete
        under_way = [run for run in self.runs if not (last and is_done and _is_silent_since(run, last))]
        return are_good and not under_way and is_done and not self.missing

    def as_dict(self) -> dict[str, Any]:
        """Return the status as plain JSON values."""
        return dataclasses.asdict(self)


def status(target: str | os.PathLike[str]) -> Status:
    """Count the series of a dataset by status, reason and warning.

    The records count: `index.parquet` may be out of date, as after a run that was killed, and is left as it is.

    Parameters
    ----------
    target
        The dataset, as a path or URL.

    Returns
    -------
    Status
        The counts.

    Raises
    ------
    UsageError
        If there is no dataset.

    Examples
    --------
    >>> dskprep.status("scans-1mm").counts  # doctest: +SKIP
    {'written': 1595, 'refused': 12}
    """
    target = storage.absolute(target)
    store.describe(target)
    table = index.current_table(target, (*index.OF_ACCOUNT, "input_digest", "further_series"))
    lost = table.filter(compute.not_equal(table["status"], "written"))
    reasons = zip(lost["status"].to_pylist(), lost["reason"].to_pylist(), strict=True)
    words = Counter[str]()
    for said, n in _count(table["warnings"]).items():
        words.update(dict.fromkeys(filter(None, said.split(",")), n))
    last = last_run(target)
    return Status(
        target,
        len(table),
        dict(_count(table["status"]).most_common()),
        dict(Counter(f"{status}: {reason or ''}" for status, reason in reasons).most_common()),
        dict(words.most_common()),
        index.split_series(table),
        index.damaged(table),
        runs(target),
        **_labels(target, labels_of.images_in(table)),
        missing=_n_missing(table, last) if last and last.is_complete else 0,
        last_run=last,
    )


def _n_missing(table: pa.Table, last: PastRun) -> int:
    """Return how many series have no record, of those that the last run found and that other records name."""
    is_further = compute.match_substring(table["key"], FURTHER)
    main, further = table.filter(compute.invert(is_further)), table.filter(is_further)
    n_inputs: int = main.group_by(["key", "input_digest"]).aggregate([]).num_rows  # one may have two records
    there = set(zip(further["key"].to_pylist(), further["input_digest"].to_pylist(), strict=True))
    naming = main.filter(compute.not_equal(main["further_series"].cast(pa.string()).fill_null(""), ""))
    named = zip(naming["further_series"].to_pylist(), naming["input_digest"].to_pylist(), strict=True)
    lost = {(name.partition("/")[2], digest) for names, digest in named for name in names.split(" ")} - there
    return max(0, last.inputs - n_inputs) + len(lost)


def _is_silent_since(run: RunUnderWay, last: PastRun) -> bool:
    """Tell whether a run was last heard of a minute before the last one began: it was killed on another machine."""
    heard_s = datetime.datetime.fromisoformat(run.heard_at).timestamp()
    return heard_s + SILENT_S < last.ended_s - last.seconds


def _count(values: pa.ChunkedArray) -> Counter[str]:
    """Return how often each value comes, those first that come first."""
    return Counter({each["values"]: each["counts"] for each in compute.value_counts(values.drop_null()).to_pylist()})


def _labels(target: str, images: pa.Array) -> dict[str, Any]:
    rows = labels_of.current_table(target)
    by_source = labels_of.by_source(rows)
    damaged = labels_of.damaged(rows)
    sources = Counter("failed" if name.path in damaged else name.status for name in by_source)
    words = (word for found in by_source.values() for word in (found[0]["source_warnings"] or "").split(",") if word)
    rows, gone = labels_of.part_by_images(labels_of.without_repeats(rows), images)
    columns = ("status", "reason", "label")
    table = [dict(zip(columns, row, strict=True)) for row in zip(*(rows[c].to_pylist() for c in columns), strict=True)]
    lost = Counter(f"{row['status']}: {row['reason']}" for row in table if row["status"] != "written")
    labels = Counter(row["label"] for row in table if row["status"] == "written" and row["label"])
    return {
        "label_sources": dict(sources.most_common()),
        "label_reasons": dict(lost.most_common()),
        "label_warnings": dict(Counter(words).most_common()),
        "labels": dict(labels.most_common()),
        "points": sum(row["status"] == "written" and not row["label"] for row in table),
        "damaged_labels": damaged,
        "labels_gone": len(gone),
    }


def runs(target: str) -> list[RunUnderWay]:
    """Return the runs that have told of themselves and have not ended."""
    entries = claims.listing(target).leases
    return [
        RunUnderWay(
            run_id,
            lease.host,
            lease.pid,
            lease.since,
            claims.utc(entries[run_id].modified_s),
            lease.n_done,
            lease.is_dead,
        )
        for run_id, lease in sorted(claims.read_leases(target, entries.values()).items())
    ]

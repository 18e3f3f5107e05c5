"""A dataset for other programs: the same bag and workers as for patients, and then the files beside the volumes."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from distributed import Client

from dskprep import endings, storage
from dskprep.dataset import identity, target_place
from dskprep.dataset.facts import StoredObject
from dskprep.errors import UsageError
from dskprep.exchange import cohort, croissant, monai, nnunet, place
from dskprep.exchange.cohort import Cohort
from dskprep.patterns import as_patterns
from dskprep.pipeline import cluster_check, executor
from dskprep.pipeline.crew import Crew, Start
from dskprep.pipeline.observer import LoggedNotes, Observer, tell
from dskprep.reading import convert
from dskprep.reading.dataset import Dataset, open_dataset
from dskprep.reading.splits import Split
from dskprep.worker import export as work
from dskprep.worker.export import Exported

LAYOUTS: dict[str, Any] = {"nnunet": nnunet, "monai": monai}
"""The kinds with files of voxels."""
KINDS = (*LAYOUTS, "croissant")
TIME_LIMIT_S = 1800.0
"""Limit for reading, compressing and writing one volume, in seconds."""


ALTERED = "somebody has changed it since it was written"
"""What is said of a file of an export that is not as it was written."""


@dataclass(repr=False)
class ExportSummary:
    """What became of the volumes of an export.

    `counts` has how many are `written` now, `already` there, `left-out` and `failed`, of `n_asked` that were not there;
    `left_out` and `failed` say why, by key. Where one failed, the files beside the volumes are not written: export
    again.
    """

    kind: str
    target: str
    out: str
    counts: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    bytes_written: int = 0
    seconds: float = 0.0
    n_asked: int = 0
    is_interrupted: bool = False

    def __repr__(self) -> str:
        how = "interrupted, " if self.is_interrupted else ""
        return f"<ExportSummary: {how}{self.kind}: {self.in_words() or 'nothing written'}; {self.out}>"

    def in_words(self) -> str:
        """Return the counts in one line."""
        return ", ".join(f"{n} {word.replace('-', ' ')}" for word, n in self.counts.items())

    def add(self, volume: Exported) -> None:
        """Count one volume."""
        self.counts["failed" if volume.problem else "written"] += 1
        self.bytes_written += volume.n_bytes
        if volume.problem:
            self.failed[volume.key] = volume.problem

    @property
    def exit_code(self) -> int:
        """0 if the export is whole; else 1."""
        return 1 if self.failed or self.is_interrupted else 0

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        names = ("kind", "target", "out", "left_out", "failed", "bytes_written", "is_interrupted")
        content = {name: getattr(self, name) for name in names}
        return content | {"counts": dict(self.counts), "seconds": round(self.seconds, 2)}


def export(
    kind: str,
    target: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    labels: Sequence[str] = ("lungs",),
    split: str | os.PathLike[str] | None = None,
    licence: str = "",
    client: Client | None = None,
    observers: Sequence[Observer] = (),
) -> ExportSummary:
    """Write a dataset in the form that another program takes. The dataset itself is only read.

    The same dataset gives the same bytes. An export that was stopped goes on where it was when it is called again, and
    one of a dataset that has changed since is brought up to date.

    Parameters
    ----------
    kind
        `nnunet` (the raw data of nnU-Net v2), `monai` (NIfTI files and a datalist) or `croissant` (a description of the
        dataset for catalogues, without voxels).
    target
        The dataset, as a path or URL.
    out
        An empty or new folder or prefix. Its last part is the name of the export.
    labels
        The classes of the masks, 1, 2, …: names of labels, or patterns whose labels together are one class. `lungs` is
        both lungs. A reader's own outline of a nodule is taken only by a pattern that says `reader`: not by `nodule-*`,
        by `nodule-*-reader-*`. Where labels overlap, the later one counts. Volumes that lack one are left out, and
        named.
    split
        A split that was saved: its name, or a path or URL. Volumes that are not in it are left out.
    licence
        The licence of the data, such as https://creativecommons.org/licenses/by/4.0/.
    client, observers
        As in `run`; observers hear of notes.

    Returns
    -------
    ExportSummary
        What became of the volumes.

    Raises
    ------
    UsageError
        Nothing was started: there is no dataset or split, no volume has the labels, a fold of the split has too few for
        nnU-Net, `out` lies in the dataset or holds something else, or nibabel is not installed.
    InfrastructureError
        A store or the scheduler cannot be used.

    Examples
    --------
    >>> dskprep.export("nnunet", "scans-1mm", "raw/Dataset007_GTV", labels=["GTV*"], split="v1")  # doctest: +SKIP
    """
    begun = begin(kind, target, out, labels=labels, split=split, licence=licence)
    return execute(begun, client=client, observers=observers)


@dataclass(frozen=True)
class BegunExport:
    """An export that has begun, as far as that needs no workers; `found` are the volumes to be written."""

    kind: str
    dataset: Dataset
    out: str
    split: Split | None
    found: Cohort | None
    licence: str


def begin(
    kind: str,
    target: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    labels: Sequence[str] = ("lungs",),
    split: str | os.PathLike[str] | None = None,
    licence: str = "",
) -> BegunExport:
    """Look at all that can be wrong before there are workers, then begin the export in its place.

    Arguments and errors are those of `export`.
    """
    target, out = storage.absolute(target), storage.absolute(out)
    if kind not in KINDS:
        raise UsageError(f"expected nnunet, monai or croissant, found {kind!r}")
    labels = as_patterns(labels, "labels")
    if storage.is_within(out, target) or storage.is_within(target, out):
        raise UsageError(f"{out}: expected a place outside of the dataset {target}; choose another")
    target_place.refuse_file(out, "place of the export")
    dataset = open_dataset(target)
    chosen = dataset.read_split(split) if split is not None else None
    whose = identity.fingerprint_of(target)
    asked: dict[str, Any] = {"kind": kind, "of": dataset.settings, "dataset": whose, "licence": licence}
    if chosen is not None:
        asked["split"] = chosen.digest
    found = None
    if kind != "croissant":
        convert.check_nifti()
        layout = LAYOUTS[kind]
        found = cohort.choose(dataset, labels, chosen, layout.IMAGE, layout.MASK, layout.TEST)
        if kind == "nnunet":
            nnunet.check(found)
        asked["labels"] = list(labels)
    place.begin(out, asked)
    return BegunExport(kind, dataset, out, chosen, found, licence)


def execute(
    begun: BegunExport,
    *,
    client: Client | None = None,
    starts: Start | None = None,
    observers: Sequence[Observer] = (),
) -> ExportSummary:
    """Do an export that was begun. Arguments, result and errors are those of `export`.

    In place of a client, `starts` may start the workers: it is called if there is a volume to be written.
    """
    began_s, started, everybody = time.time(), time.monotonic(), [*(observers or [LoggedNotes()])]
    kind, dataset, out = begun.kind, begun.dataset, begun.out
    name = out.rstrip("/").rpartition("/")[2]
    summary = ExportSummary(kind, dataset.url, out)
    if begun.found is None:
        files = croissant.describe(dataset, begun.split, name, begun.licence)
        altered = place.altered_files(out, files)
        summary.counts["written"] = len(dataset)
    else:
        crew = Crew(client, starts, functools.partial(cluster_check.check, source=dataset.url, target=out))
        if kind == "nnunet" and (note := nnunet.note_of(name)):
            tell(everybody, "on_note", note)
        files = LAYOUTS[kind].describe(begun.found, name, begun.licence)
        altered = place.altered_files(out, files)
        _write_volumes(begun.found, summary, crew, everybody, files.keys() - altered.keys())
    if summary.exit_code == 0:
        due = {path: files[path] for path in files if path not in altered}
        place.describe(out, due)
        place.tidy(out, files, began_s)
        summary.bytes_written += sum(map(len, due.values()))
        for path, written in altered.items():
            if written == StoredObject.of(files[path]):
                tell(everybody, "on_note", f"{path}: {ALTERED}; it stays")
            else:
                why = f"{path}: {ALTERED}, and would be another one now; move it away, and export again"
                summary.add(left := Exported(path, problem=why))
                tell(everybody, "on_export", summary, left)
    summary.seconds = time.monotonic() - started
    return summary


def _write_volumes(
    found: Cohort,
    summary: ExportSummary,
    crew: Crew,
    observers: list[Observer],
    described: Collection[str],
) -> None:
    """Write the volumes that are not there yet, and delete those that are no more part of it."""
    wanted = {member.job.key: member.job for member in found.members}
    done, partial, altered = place.records(summary.out)
    stale = [*partial.values()]  # of an export that was killed as it deleted them, or somebody has deleted a file
    stale += [r for key, r in done.items() if key not in wanted or wanted[key].digest != r.digest]
    kept = {r.key: path for r in stale if (path := altered.pop(r.key, "") or place.altered_mask(summary.out, r))}
    stale = [r for r in stale if r.key not in kept]
    is_due = {key: key not in done or done[key].digest != job.digest for key, job in wanted.items()}
    jobs = [job for key, job in wanted.items() if is_due[key] and key not in kept]
    summary.n_asked = len(jobs) + len(kept)
    if jobs:
        crew.start()
    for note in [*crew.notes, *(f"{path}: {ALTERED}; it stays" for path in altered.values())]:
        tell(observers, "on_note", note)
    for key, path in kept.items():
        why = f"{path}: {ALTERED}, and the dataset has another one now; move it away, and export again"
        summary.add(left := Exported(key, problem=why))
        tell(observers, "on_export", summary, left)
    if stale or jobs or kept:
        storage.delete(summary.out, described)  # what describes an export is there only while it is whole
    place.drop(summary.out, stale)
    summary.left_out = found.left_out
    counts = {"already": len(wanted) - len(jobs) - len(kept.keys() & wanted.keys()), "left-out": len(found.left_out)}
    summary.counts.update({word: n for word, n in counts.items() if n})
    limits = crew.limits(TIME_LIMIT_S)
    task = functools.partial(work.export_volume, target=summary.target, out=summary.out, **limits)
    failures = executor.Failures("volumes", "export again")
    with (
        endings.taken(functools.partial(setattr, summary, "is_interrupted", True)),
        closing(executor.execute(crew.client, iter(jobs), task)) as ended,
    ):
        for job, outcome in ended:
            if outcome is None:
                outcome = Exported(job.key, problem="its worker process died twice while it held this volume")
            summary.add(outcome)
            tell(observers, "on_export", summary, outcome)
            failures.count(outcome.problem)

"""From the bytes of one label source to its labels, drawn on the grids of its volumes, none of them written yet."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from dskprep import storage
from dskprep.dataset import linking, omezarr
from dskprep.dataset.label_record import POINTS, LabelRecord, StoredLabel
from dskprep.dataset.linking import Linked, Linker
from dskprep.dataset.record import Record
from dskprep.errors import DamagedDataset, Refusal, UsageError
from dskprep.labels import memory
from dskprep.labels.hold import Admit
from dskprep.labels.lidc import Lidc, PlacedLidc
from dskprep.labels.mask import Mask
from dskprep.labels.points import Points
from dskprep.labels.read import read_labels
from dskprep.labels.rtstruct import RtStruct
from dskprep.labels.seg import Seg
from dskprep.labels.values import Labels
from dskprep.settings import PrepConfig
from dskprep.source import away
from dskprep.stopwatch import Stopwatch
from dskprep.volume import Grid, TiltedGrid
from dskprep.worker import label_facts, process
from dskprep.worker.admission import FIXED_BYTES, Ledger, Ticket
from dskprep.worker.label_checks import check_new, check_side
from dskprep.worker.label_job import LabelJob, begin_label_record
from dskprep.worker.label_names import begin_label, free_name, stored_name
from dskprep.worker.label_points import place_points, points_of
from dskprep.worker.lost_labels import Progress, lost_labels, without_any
from dskprep.worker.nameless import points_without_names, segments_without_key

if TYPE_CHECKING:
    import pandas as pd

DRAWN_BYTES = 4
"""Bytes per voxel of the image while a label is drawn, at most: shares, mask, chunks, and the choice of voxels."""
CUT = 0.001
"""A label of which more than this share is cut off has a warning."""


@dataclass(eq=False)
class MadeLabels:
    """What a source gave: its record so far, the objects of each label, and its points.

    `ours` are the columns of the points that mean what they do in annotations.parquet.
    """

    record: LabelRecord
    objects: list[dict[str, bytes]] = field(default_factory=list)
    points: list[pd.DataFrame] = field(default_factory=list)
    ours: tuple[str, ...] = (*POINTS, "diameter_mm")

    def add(self, label: StoredLabel, objects: dict[str, bytes] | None = None) -> None:
        """Add a label with its objects, or without any if it is not to be written."""
        self.objects.append(objects or {})
        self.record = self.record.changed(labels=(*self.record.labels, label))


def _file_bytes(job: LabelJob) -> int:
    """Return the bytes of memory that reading a source is estimated to take, by its first bytes."""
    head = b""
    with contextlib.suppress(storage.ObjectChanged):  # it is gone; reading it says so
        head = storage.read_head(job.case.url, min(memory.HEAD_BYTES, job.case.n_bytes)) if job.case.n_bytes else b""
    return FIXED_BYTES + memory.memory_bytes(head, job.case.n_bytes)


def make_labels(
    job: LabelJob,
    target: str,
    config: PrepConfig,
    ledger: Ledger,
    ticket: Ticket,
    clock: Stopwatch,
    need_bytes: int,
    seen: Progress,
) -> MadeLabels:
    """Read a source and draw its labels; `seen` learns what is known of it on the way."""
    begun, file_bytes = begin_label_record(job, "refused"), _file_bytes(job)
    try:
        if not job.case.n_bytes:
            raise Refusal("label-damaged", f"{job.case.url}: expected a label, found 0 bytes; fetch it again")
        with process.SLOTS("read", job.case.key, clock), clock("read"):
            ledger.admit(ticket, job.case.n_bytes, max(file_bytes, need_bytes))
            content = _content(job.case.url)
            if len(content) != job.case.n_bytes:
                raise Refusal(
                    "source-changed",
                    f"{job.case.url}: expected {job.case.n_bytes} bytes as it was listed, found {len(content)}",
                )
            begun = begun.changed(sha256=hashlib.sha256(content).hexdigest())
            file_bytes += memory.parsed_bytes(content)
            ledger.grow(ticket, file_bytes)
        with process.SLOTS("compute", job.case.key, clock):
            with clock("decode"):
                labels = _read(job, content)
            seen.note(labels, job.asked.only)
            if not isinstance(labels, Mask):  # a mask belongs to the volume that its name says
                check_new(target, job, begun)
            begun = begun.changed(kind=labels.kind)
            linker = linking.of(target, job.run)
            if isinstance(labels, Points):
                placed = place_points(labels, linker)
                begun = begun.changed(**placed.facts, status="written", n_points=len(placed.table))
                table = points_without_names(placed.table) if job.case.is_hashed else placed.table
                return MadeLabels(begun, points=[table])
            linked = _link(job, labels, linker)
            seen.volumes = linked.volumes
            begun = begun.changed(linked_by=linked.by)
            made = MadeLabels(begun)
            for volume in linked.volumes:
                shape = volume.geometry.shape if volume.geometry else (0, 0, 0)
                need_bytes = file_bytes + DRAWN_BYTES * int(np.prod(shape))
                ledger.grow(ticket, need_bytes)

                def admit(planes_bytes: int, need_bytes: int = need_bytes) -> None:
                    ledger.grow(ticket, need_bytes + planes_bytes)

                with clock("draw"):
                    _draw_all(job, linker, labels, volume, config, made, admit)
            _add_unlinked(job, linker, labels, linked.volumes, made)
            ledger.finish(ticket, sum(len(c) for objects in made.objects for c in objects.values()))
            return _judge(made, linked)
    except Refusal as refusal:
        refused = begun.changed(status=refusal.status, reason=refusal.reason, message=refusal.message)
        is_bad = refusal.status == "refused"
        lost = lost_labels(job, target, seen, refusal.reason, refusal.message) if is_bad else ()
        return MadeLabels(refused.changed(labels=lost, **refusal.facts))


def _content(url: str) -> bytes:
    try:
        return storage.read(url)
    except FileNotFoundError as error:
        away.check(url)
        raise Refusal("source-changed", f"{url}: was there when it was listed, and is not any more") from error


def _read(job: LabelJob, content: bytes) -> Labels:
    try:
        return read_labels(content, name=PurePosixPath(job.case.url).name, names=job.asked.names)
    except UsageError as error:  # a library for mask volumes is missing
        raise Refusal("missing-decoder", str(error)) from error


def _link(job: LabelJob, labels: Labels, linker: Linker) -> Linked:
    if isinstance(labels, Mask):
        record, _ = linker.link_key(job.case.path, labels.where)
        return Linked([record], "key")
    return linker.link(labels.links, labels.where)


def _draw_all(
    job: LabelJob,
    linker: Linker,
    labels: Labels,
    volume: Record,
    config: PrepConfig,
    made: MadeLabels,
    admit: Admit,
) -> None:
    """Draw all labels that are asked for on the grid of one volume; see `hold` for `admit`."""
    if volume.geometry is None:
        raise DamagedDataset(f"{volume.key}: its record does not say where the volume lies")
    grid = Grid(volume.geometry.shape, volume.geometry.matrix())
    placed = _placed(job, linker, labels, made.record.linked_by, volume, grid)
    segments = placed.named(*job.asked.only) if job.asked.only else placed.segments
    is_called_so = linker.is_called(volume, job.case.path)
    if job.case.is_hashed:
        folders = linker.folders_of(volume, job.case.path)
        segments = segments_without_key(segments, job.case, folders, is_mask=isinstance(labels, Mask))
    is_nameless = is_called_so and isinstance(labels, Mask) and len(labels.segments) == 1
    points = points_of(placed, volume)
    if not segments and (points is None or job.asked.only):
        what = f"label named {' or '.join(job.asked.only)}" if job.asked.only else "label, and no point"
        raise Refusal("label-not-asked", f"{labels.where}: has no {what}")
    if points is not None and not job.asked.only:
        made.points.append(points)
        made.ours = (*POINTS, "kind", "name", "ml")
    if isinstance(placed, PlacedLidc) and placed.left_out:
        more = f" (and {len(placed.left_out) - 1} more)" if len(placed.left_out) > 1 else ""
        message = f"left out: {placed.left_out[0]}{more}"
        made.record = made.record.changed(warnings=("marks-left-out",), message=message)
    if isinstance(placed, RtStruct) and any(placed.n_open.get(segment.number) for segment in segments):
        made.record = made.record.changed(warnings=("contours-left-out",))
    here = {segment.number for segment in linker.belonging(volume, labels.links, segments)}
    encoder = omezarr.LabelEncoder(grid, config)
    taken: set[str] = set()
    names = [stored_name(job.asked, job.case, segment, is_nameless=is_nameless) for segment in segments]
    for number, (segment, name) in enumerate(zip(segments, names, strict=True)):
        if segment.number not in here:
            continue
        stored = begin_label(volume, segment, number, name)
        try:
            label = free_name(name, taken, labels.where)
            drawn = placed.draw(segment, grid, admit)
            check_side(segment.name, drawn, volume, linker.target, labels.where)
            whose = {"owner": job.owner, "volume": volume.key, "label": label}  # not where a user's copy of it lies
            about = whose | {"image": volume.input_digest, "name": segment.name}
            objects = encoder.encode(label, segment.name, stored.rgb, drawn, about)
            made.add(label_facts.describe(stored, label, drawn), objects)
            if drawn.overlap and "planes-overlap" not in made.record.warnings:
                made.record = made.record.changed(warnings=(*made.record.warnings, "planes-overlap"))
        except Refusal as refusal:
            if refusal.reason == "label-mirrored":
                raise  # then so are the others of the file
            made.add(stored.changed(reason=refusal.reason, message=refusal.message))


def _add_unlinked(job: LabelJob, linker: Linker, labels: Labels, volumes: list[Record], made: MadeLabels) -> None:
    """Name the segments that belong to none of the volumes."""
    there = {label.number for label in made.record.labels}
    asked = labels.named(*job.asked.only) if job.asked.only and labels.segments else labels.segments
    for number, segment in enumerate(asked):
        if segment.number not in there and (lack := linker.lack_of(volumes, segment)):
            message = f"{labels.where}: {segment.name!r}: no volume {lack}"
            name = stored_name(job.asked, job.case, segment, is_nameless=False)
            begun = begin_label(volumes[0], segment, number, name)
            made.add(begun.changed(reason="label-unlinked", message=message))


def _placed(job: LabelJob, linker: Linker, labels: Labels, linked_by: str | None, volume: Record, grid: Grid) -> Labels:
    """Return the labels as they lie in the volume. A mask may also be one of the prepared volume itself."""
    acquired = volume.acquired.grid() if volume.acquired else None
    is_tilted = volume.source is not None and bool(volume.source.tilt_degrees)
    are_known = acquired is not None and isinstance(acquired, TiltedGrid) == is_tilted
    if isinstance(labels, Mask) and not are_known and any(labels.is_on(each) for each in (grid, acquired) if each):
        return labels  # wherever the slices lay
    if not are_known and (isinstance(labels, Lidc) or (isinstance(labels, Mask) and is_tilted)):
        raise Refusal(
            "label-unlinked",
            f"{labels.where}: {volume.key} was prepared by an older version, whose record does not say where its "
            "slices lie; prepare it again",
        )
    if isinstance(labels, Mask):
        if isinstance(acquired, TiltedGrid):
            grid = TiltedGrid(grid.shape, grid.affine, acquired.slices)
        try:
            return labels.at(acquired or grid)
        except Refusal:
            with contextlib.suppress(Refusal):
                return labels.at(grid)
            raise
    if isinstance(labels, Lidc) and acquired:
        return labels.at(acquired, job.asked.consensus, linker.slices_of(volume, labels.links))
    if isinstance(labels, Seg) and linked_by == "frame-of-reference":
        return labels  # it may have been drawn on other slices
    return labels.at(acquired) if acquired else labels


def _judge(made: MadeLabels, linked: Linked) -> MadeLabels:
    """Say whether the source is written: it is if any of its labels or points is."""
    record = made.record
    written = {(label.number, label.name) for label in record.written}
    # of a series in several stacks, a label lies in one of them
    kept = [
        label.is_written or not ((label.number, label.name) in written and label.reason == "label-outside-volume")
        for label in record.labels
    ]
    made.objects = list(itertools.compress(made.objects, kept))
    labels = tuple(itertools.compress(record.labels, kept))
    warnings = [
        *record.warnings,
        *linked.warnings,
        *(["label-cut-off"] if any(label.outside > CUT for label in record.written) else []),
        *(["label-renamed"] if any(label.is_renamed for label in record.written) else []),
    ]
    record = record.changed(labels=labels, warnings=tuple(warnings))
    if written or made.points:
        made.record = record.changed(status="written", n_points=sum(map(len, made.points)))
    else:
        made.record = without_any(record)
    return made

"""From the files of one case to its volumes and records, none of them written yet."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from dskprep.dataset import omezarr, thumbnail
from dskprep.dataset.facts import Acquired, Aside, Crop, Curation, Geometry, LungFigures, source_of
from dskprep.dataset.identity import Identities
from dskprep.dataset.record import Record, further_key
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.preparation import spine
from dskprep.preparation.prepare import prepare
from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import recipe
from dskprep.series.assembly import Reread
from dskprep.series.series import Series
from dskprep.settings import PrepConfig
from dskprep.source.archive import Outgrown
from dskprep.source.case import Case
from dskprep.source.files import File, open_case
from dskprep.source.found import Name, aside_counts, assemble_as, each_series
from dskprep.source.volumes import CaseContents
from dskprep.stopwatch import Stopwatch
from dskprep.worker import admission, process
from dskprep.worker.admission import Ledger, Ticket, Underestimated
from dskprep.worker.slots import Slots

MAX_NAMES = 20
"""Names of files set aside that a record lists."""


@dataclass(frozen=True, eq=False)
class Line:
    """What the stages of one case share on their way through a worker."""

    case: Case
    config: PrepConfig
    slots: Slots
    ledger: Ledger
    ticket: Ticket
    clock: Stopwatch
    identities: Identities | None = None

    def hold(self, n_bytes: int) -> None:
        """Ask for the memory of files that turn out to hold more than was thought. Raises Underestimated."""
        if n_bytes > self.ticket.need_bytes:
            raise Underestimated(2 * n_bytes)  # what comes after them may hold as much

    def reserve(self, found: Series) -> None:
        """Ask for the memory of a series before it is decoded. Raises Underestimated, or Refusal `too-large`."""
        need_bytes = admission.series_bytes(found, self.config, is_held=self.ticket.is_held)
        if need_bytes > self.ledger.total_bytes and self.ticket.is_held and recipe(self.config.recipe).streams:
            raise Underestimated(need_bytes)  # its files need not be held
        self.ledger.check(need_bytes)
        self.ledger.grow(self.ticket, need_bytes)


@dataclass(frozen=True, eq=False)
class Made:
    """One series: its record, and its encoded volume and thumbnail (both empty if it became no volume)."""

    record: Record
    objects: dict[str, bytes] = field(default_factory=dict)
    thumbnail: bytes = b""

    @property
    def rank(self) -> tuple[int, str, int]:
        """What the series of a case are sorted by."""
        name = Name(self.record.series_uid_sha256 or "", self.record.stack)
        return name.rank(self.record.source.slices if self.record.source else 0)


def make_case(line: Line, need: Underestimated | None) -> list[Made]:
    """Read and compute all series of a case, the main one last; `need` is what an earlier try turned out to need.

    Raises Underestimated if there is not enough memory now.
    """
    contents = CaseContents()
    held: list[File] = []
    reread: Reread | None = None
    try:
        with line.slots("read", line.case.key, line.clock), line.clock("read"):
            files = open_case(line.case)
            admission.admit(files, line.config, line.ledger, line.ticket, need)
            if line.ticket.is_held:
                held = list(files.read(max_bytes=line.ticket.need_bytes - files.n_bytes))
            else:
                contents.add_all(files.read_headers(), with_pixels=False)
                contents.parts.update(files.parts())
                reread = files.reread
        with line.slots("compute", line.case.key, line.clock):
            made = list(_compute(line, contents, held, reread))
    except Outgrown as error:
        raise Underestimated(2 * line.ticket.need_bytes) from error
    except Refusal as refusal:
        made = [_refuse(begin_record(line.case, line.config, status="refused"), refusal)]
    line.ledger.finish(line.ticket, sum(len(content) for each in made for content in each.objects.values()))
    return _give_keys(made, line.case.key)


def begin_record(case: Case, config: PrepConfig, *, status: str, **more: Any) -> Record:
    """Begin the record of a case with what every record says."""
    return Record(
        key=case.key,
        status=status,
        input_digest=case.digest,
        url=case.url,
        place=case.place or None,
        n_files=case.n_files,
        bytes_read=case.n_bytes,
        attribution=case.attribution,
        settings_digest=config.digest(),
        dskprep=version("dskprep"),
        worker=f"{os.uname().nodename}:{os.getpid()}",
        **more,
    )


def _give_keys(made: list[Made], key: str) -> list[Made]:
    """Sort the series: the main one is last, and keeps the key of the case; each of the others gets its own."""
    if len({each.record.patient for each in made} - {None}) > 1:
        made = [_warn(each, "several-patients") for each in made]
    *others, main = sorted(made, key=lambda each: each.rank)
    further = []
    for each in others:
        own_key = further_key(key, each.record.series_uid_sha256, each.record.stack)
        further.append(replace(each, record=each.record.changed(key=own_key)))
    names = tuple(f"{each.record.status}/{each.record.key}" for each in further)
    return [*further, replace(main, record=main.record.changed(further_series=names))]


def _warn(made: Made, warning: str) -> Made:
    warnings = (*made.record.warnings, warning) if made.record.is_written else ()
    return replace(made, record=made.record.changed(warnings=warnings))


def _compute(line: Line, contents: CaseContents, files: list[File], reread: Reread | None) -> Iterator[Made]:
    """Make a volume, or a refusal, of each series in the contents and the files. Empties `files` as it goes."""
    with line.clock("decode"):
        files.reverse()
        while files:
            contents.add(*files.pop())
            line.hold(contents.held_bytes)
    for archive in line.case.left_out:
        contents.leave_out(archive)
    counts = aside_counts(contents)
    archives_first = sorted(contents.aside, key=lambda a: a.kind != "archive")  # the first names only are listed
    names = tuple(f"{a.name}: {a.kind} {a.detail}".strip() for a in archives_first[:MAX_NAMES])
    warnings = ["localizer-skipped"] if "localizer" in counts else []
    if "archive" in counts:
        warnings.append("archives-left-out")
    if contents.n_series() + len(contents.volumes()) > 1:
        warnings.append("one-of-several-series")
    begun = begin_record(line.case, line.config, status="refused", aside=Aside(counts, names))

    def assemble(slices: list[Slice]) -> list[Series | Refusal]:
        with line.clock("decode"):
            return assemble_as(slices, line.config, reread)

    for name, made in each_series(contents, assemble, functools.partial(_make, line, begun, warnings), line.config):
        if isinstance(made, Refusal):
            made = _refuse(begun, made)
        record = made.record.changed(series_uid_sha256=name.uid_sha256, stack=name.stack)
        chosen = name.chosen or line.case.chosen
        if chosen and record.is_written:
            record = record.changed(chosen=chosen.why, warnings=(*chosen.warnings, *record.warnings))
        yield replace(made, record=record)


def _make(line: Line, begun: Record, warnings: list[str], found: Series) -> Made:
    """Make the volume of one series."""
    line.reserve(found)
    begun = begun.changed(source=source_of(found.facts), acquired=Acquired.of(found.grid), **_identity(line, found))
    decoded, is_volume_file = found.decode(), found.encoded_bytes is not None
    prepared = prepare(decoded, line.config, line.clock)
    hu_sha256, warnings, lungs = decoded.hu_sha256, [*warnings, *decoded.warnings], None
    del found, decoded  # a native volume is not held while the image is encoded
    process.give_back_memory()
    if prepared.lungs is not None:
        warnings += prepared.lungs.warnings
        with line.clock("lungs"):
            warnings += ["spine-in-front"] if is_volume_file and spine.is_in_front(prepared) else []
            lungs = LungFigures.of(prepared.lungs, prepared.mean_lung_hu())
    record = begun.changed(
        status="written",
        warnings=tuple(warnings),
        hu_sha256=hu_sha256,
        geometry=_geometry(prepared),
        values=prepared.values,
        lungs=lungs,
        curation=prepared.curation and Curation(**dataclasses.asdict(prepared.curation)),
    )
    provenance = {name: getattr(record, name) for name in ("settings_digest", "hu_sha256", "dskprep")}
    with line.clock("encode"):
        return Made(record, omezarr.encode(prepared, line.config, provenance), thumbnail.draw(prepared))


def _identity(line: Line, found: Series) -> dict[str, str | None]:
    """Return the digests of what a series says of its patient."""
    if line.identities is None:
        return {}
    digest, who = line.identities.digest, found.identity
    return {
        "patient": digest("patient", who.patient, who.issuer) if who.patient else None,
        "patient_without_issuer": digest("patient", who.patient, "") if who.patient and who.issuer else None,
        "study": digest("study", who.study),
        "frame_of_reference": digest("frame of reference", who.frame_of_reference),
        "instances": line.identities.instances(found.instances),
    }


def _refuse(begun: Record, refusal: Refusal) -> Made:
    return Made(begun.changed(status=refusal.status, reason=refusal.reason, message=refusal.message, **refusal.facts))


def _geometry(prepared: Prepared) -> Geometry:
    z, y, x = (round(mm, 6) for mm in prepared.image.spacing)
    affine = tuple(tuple(row) for row in prepared.image.affine.round(6).tolist())
    crop = prepared.crop and Crop(prepared.crop.first, prepared.crop.shape)
    return Geometry(prepared.image.shape, (z, y, x), affine, crop)

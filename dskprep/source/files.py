"""The files of one case, once there is memory for them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil

from dskprep import settings as config
from dskprep import storage
from dskprep.dicom.contents import Contents, is_named_otherwise, may_be_ct
from dskprep.dicom.header import with_blank_pixels
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.preparation.recipes import recipe
from dskprep.series import series
from dskprep.series.series import Reread
from dskprep.settings import PrepConfig
from dskprep.source import archive, cases
from dskprep.source.cases import Case
from dskprep.volume import Triple
from dskprep.worker import admission
from dskprep.worker.admission import Ledger, Ticket, Underestimated

ARCHIVE_GROWTH = 3
"""An archive is taken to need this many times its size, until its first series is decoded."""

LARGE_FILE_BYTES = 1 << 26
"""A slice has half a megabyte; a file larger than this is read whole only if it begins as a CT object does."""

HEAD_BYTES = 1 << 16
"""So much of a large file shows what it is."""

HEADERS_AT_ONCE = 16

MAX_STEP_MM = 20.0
"""A SliceThickness beyond this is no guess of the distance between slices."""


@dataclass(frozen=True, eq=False)
class Files:
    """Name and content of the files of a case.

    With `reread`, the contents' pixels are blank, and it gives slices with theirs; `is_held` says whether a worker
    holds all files at once to compute the case.
    """

    contents: Iterator[tuple[str, bytes]]
    reread: Reread | None = None
    is_held: bool = True


def read_case(
    case: Case, config: PrepConfig, ledger: Ledger, ticket: Ticket, need: Underestimated | None = None
) -> Files:
    """The case's files, held all at once if there can be memory for that, else only their headers.

    Waits until the ledger admits the case, with its `need` or an estimate made from its largest file.
    Raises Refusal, now or as the files are read: `source-changed` if the files are not those that were listed,
    `too-large` if they never fit.
    """
    entries = _entries(case)
    if cases.digest(entries) != case.digest:
        raise Refusal(
            "source-changed",
            f"expected the {case.n_files} files that were listed, found {len(entries)} with other names, sizes or "
            "tags; run again",
        )
    if case.is_archive:
        if not entries:
            raise Refusal("no-dicom", f"{case.url}: there is no such file")
        guess_bytes = ARCHIVE_GROWTH * case.n_bytes + admission.FIXED_BYTES
        ledger.admit(ticket, case.n_bytes, need.need_bytes if need else guess_bytes)
        return Files(_unpacked(case, entries, ticket))
    with _changes_refused():
        unread = dict(_not_worth_reading(case.url, entries))
        entries = [entry for entry in entries if entry.name not in unread]
        n_bytes = sum(entry.size for entry in entries)
        if admission.FIXED_BYTES + max((entry.size for entry in entries), default=0) > ledger.total_bytes:
            raise ledger.refusal(admission.FIXED_BYTES + n_bytes)
        guess = _guess(case, entries)
    if need is not None and not need.is_held:
        return _headers_first(case, entries, unread, need.need_bytes, ledger, ticket)
    need_bytes = max(n_bytes, need.need_bytes if need else _estimate_bytes(guess, config, is_held=True))
    if need_bytes > ledger.total_bytes and _may_reread(guess, entries, config):
        least_bytes = _estimate_bytes(guess, config, is_held=False)
        return _headers_first(case, entries, unread, least_bytes, ledger, ticket)
    ledger.admit(ticket, n_bytes, need_bytes)
    return Files(itertools.chain(unread.items(), _read(case.url, entries)))


def _headers_first(
    case: Case, entries: list[storage.Entry], unread: dict[str, bytes], need_bytes: int, ledger: Ledger, ticket: Ticket
) -> Files:
    """The headers of a case's files, once the ledger admits the case without the files themselves."""
    ticket.is_held = False
    ledger.admit(ticket, min(need_bytes, len(entries) * admission.HEADER_BYTES), need_bytes)
    return _headers(case.url, entries, unread, is_held=False)


def _headers(url: str, entries: list[storage.Entry], unread: dict[str, bytes], *, is_held: bool) -> Files:
    return Files(itertools.chain(unread.items(), _read_headers(url, entries)), _reread(url, entries), is_held)


def _reread(url: str, entries: list[storage.Entry]) -> Reread:
    """Reads the files of slices again, a few at a time, in the order in which the slices are asked for."""
    by_name = {entry.name: entry for entry in entries}

    def reread(slices: Sequence[Slice]) -> Iterator[Slice]:
        for first in range(0, len(slices), admission.READ_AHEAD):
            group = slices[first : first + admission.READ_AHEAD]
            files = [by_name.get(s.name) or by_name[s.name.rpartition("[")[0]] for s in group]  # file[k] is a frame
            for expected, (name, content) in zip(group, _read(url, files), strict=True):
                yield _slice_like(expected, name, content)

    return reread


def _slice_like(expected: Slice, name: str, content: bytes) -> Slice:
    """The slice of a file that is what its header was."""
    contents = Contents()
    contents.add(name, content)
    for found in itertools.chain.from_iterable(contents.slices.values()):
        is_like = found.plane == expected.plane and replace(found, data=expected.data).is_copy_of(expected)
        if found.name == expected.name and is_like:
            return found
    raise next(
        iter(contents.damage.values()),
        Refusal("source-changed", f"{expected.name}: is not the slice that its header promised; run again"),
    )


def _unpacked(case: Case, entries: list[storage.Entry], ticket: Ticket) -> Iterator[tuple[str, bytes]]:
    try:
        for name, content in _read(case.url.rpartition("/")[0], entries):
            yield from archive.members(content, name, ticket.need_bytes - case.n_bytes)
    except archive.Outgrown as error:
        raise Underestimated(2 * ticket.need_bytes) from error


def _read(url: str, entries: Sequence[storage.Entry]) -> Iterator[tuple[str, bytes]]:
    with _changes_refused():
        yield from storage.read_many(url, entries)


@contextmanager
def _changes_refused() -> Iterator[None]:
    try:
        yield
    except storage.DeadLink as error:
        raise Refusal("truncated", str(error)) from error
    except (storage.ObjectChanged, FileNotFoundError) as error:
        raise Refusal("source-changed", str(error)) from error


def read_headers(case: Case, config: PrepConfig) -> tuple[int, Files]:
    """The least memory with which a worker would admit the case, and its files, their pixels blank.

    Of a file only its first HEADER_BYTES are read, or all where the pixels do not begin in them. An archive
    is read whole, and has its pixels.
    """
    entries = _entries(case)
    if case.is_archive:
        if not entries:
            raise Refusal("no-dicom", f"{case.url}: there is no such file")
        members = archive.members(storage.read(case.url), entries[0].name, psutil.virtual_memory().available)
        return ARCHIVE_GROWTH * case.n_bytes + admission.FIXED_BYTES, Files(members)
    unread = dict(_not_worth_reading(case.url, entries))
    entries = [entry for entry in entries if entry.name not in unread]
    guess = _guess(case, entries)
    is_held = not _may_reread(guess, entries, config)
    return _estimate_bytes(guess, config, is_held=is_held), _headers(case.url, entries, unread, is_held=is_held)


def _may_reread(guess: _Guess | None, entries: list[storage.Entry], config: PrepConfig) -> bool:
    """Whether slices may be read again when their turn comes: they are done with one by one, and are a file each."""
    return recipe(config.recipe).streams and guess is not None and guess[0][0] == len(entries)


def _read_headers(url: str, entries: list[storage.Entry]) -> Iterator[tuple[str, bytes]]:
    places = [storage.join(url, entry.name) for entry in entries]
    with _changes_refused(), ThreadPoolExecutor(HEADERS_AT_ONCE) as threads:
        heads = threads.map(storage.read_head, places, itertools.repeat(admission.HEADER_BYTES))
        for entry, place, head in zip(entries, places, heads, strict=True):
            blank = head if entry.size <= admission.HEADER_BYTES else with_blank_pixels(head, entry.size)
            yield entry.name, storage.read(place) if blank is None else blank


def read_series(
    url: str | os.PathLike[str], settings: PrepConfig | None = None, *, uid_sha256: str | None = None
) -> series.Series:
    """Read a folder, with all below it, or an archive of DICOM files: its largest CT series, put right.

    As a run with these `settings` reads it, by default those of the preset `default`. With `uid_sha256`, which is a
    record's `series_uid_sha256`, that series instead of the largest. Raises Refusal if there is none, or it makes no
    volume.
    """
    settings = config.given(settings)
    url = storage.absolute(url)
    if cases.is_archive(url) and not storage.is_folder(url):
        files = archive.members(storage.read(url), url, psutil.virtual_memory().available)
    else:
        entries = cases.files_of(url, is_deep=True)
        unread = dict(_not_worth_reading(url, entries))
        files = itertools.chain(unread.items(), _read(url, [entry for entry in entries if entry.name not in unread]))
    contents = Contents()
    for name, content in files:
        contents.add(name, content)
    if not contents.slices:
        raise next(iter(contents.damage.values()), nothing_found(contents))
    chosen = [uid for uid in contents.slices if uid_sha256 in (None, series.uid_digest(uid))]
    if not chosen:
        raise Refusal("no-dicom", f"expected the series of digest {uid_sha256}, found {len(contents.slices)} others")
    uid = max(chosen, key=lambda uid: len(contents.slices[uid]))
    damage = contents.flaw(uid)
    if damage is not None:
        raise damage
    return series.assemble(
        contents.slices[uid],
        min_slices=settings.min_slices,
        max_gap_slices=settings.fillable_slices,
        to_hu=recipe(settings.recipe).to_hu,
    )


def nothing_found(contents: Contents) -> Refusal:
    """Why files without any CT slice are refused."""
    counts = aside_counts(contents)
    if "localizer" in counts:
        return Refusal("localizer-only", f"expected CT slices, found localizers and such only ({counts})")
    if "not-ct" in counts:
        kinds = sorted({a.detail for a in contents.aside if a.kind == "not-ct"})
        return Refusal("not-ct", f"expected CT images, found {', '.join(kinds)[:200]}")
    return Refusal("no-dicom", f"expected DICOM files, found none among {sum(counts.values())} files")


def aside_counts(contents: Contents) -> dict[str, int]:
    """How many files were set aside, by kind."""
    counts: dict[str, int] = {}
    for aside in contents.aside:
        counts[aside.kind] = counts.get(aside.kind, 0) + 1
    return counts


def _entries(case: Case) -> list[storage.Entry]:
    if not case.is_archive:
        return cases.files_of(case.url, is_deep=case.is_deep)
    entry = storage.entry_of(case.url)
    return [entry] if entry else []


def _not_worth_reading(url: str, entries: list[storage.Entry]) -> Iterator[tuple[str, bytes]]:
    """Large files that are no CT by their name or their first bytes, with these in the place of their content."""
    for entry in entries:
        if entry.size <= LARGE_FILE_BYTES:
            continue
        head = b""
        if not is_named_otherwise(entry.name):
            with _changes_refused():
                head = storage.read_head(storage.join(url, entry.name), HEAD_BYTES)
        if not may_be_ct(head):
            yield entry.name, head


_Guess = tuple[tuple[int, int, int], Triple]


def _guess(case: Case, entries: list[storage.Entry]) -> _Guess | None:
    """Shape and spacing, judged by the largest file as if all were slices like it; None if it is no slice."""
    contents = Contents()
    largest = sorted(entries, key=lambda entry: entry.size)[-1:]
    for name, content in storage.read_many(case.url, largest):
        contents.add(name, content)
    slices = next(iter(contents.slices.values()), None)
    if not slices:
        return None
    plane = slices[0].plane
    return (len(slices) * len(entries), *plane.shape), (_thickness_mm(slices[0]), *plane.pixel_mm)


def _estimate_bytes(guess: _Guess | None, config: PrepConfig, *, is_held: bool) -> int:
    return 0 if guess is None else admission.estimate_bytes(*guess, config, is_held=is_held)


def _thickness_mm(s: Slice) -> float:
    """SliceThickness, good for a guess of the step; 1 where it says nothing."""
    try:
        thickness = float(s.facts["slice_thickness_mm"])
    except ValueError:
        return 1.0
    return thickness if 0 < thickness <= MAX_STEP_MM else 1.0

"""The files of one case, once there is memory for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil

from dskprep import archive, discover, memory, series, steps, storage
from dskprep.config import PrepConfig
from dskprep.dicom import Contents, Slice, is_named_otherwise, may_be_ct, with_blank_pixels
from dskprep.discover import Case
from dskprep.errors import Refusal
from dskprep.memory import Ledger, Ticket

ARCHIVE_GROWTH = 3
"""An archive is taken to need this many times its size, until its first series is decoded."""

LARGE_FILE_BYTES = 1 << 26
"""A slice has half a megabyte; a file larger than this is read whole only if it begins as a CT object does."""

HEAD_BYTES = 1 << 16
"""So much of a large file shows what it is."""

HEADER_BYTES = 1 << 15
"""In so many bytes the header of an ordinary slice ends."""

HEADERS_AT_ONCE = 16

MAX_STEP_MM = 20.0
"""A SliceThickness beyond this is no guess of the distance between slices."""


def read_case(
    case: Case, config: PrepConfig, ledger: Ledger, ticket: Ticket, need_bytes: int = 0
) -> Iterator[tuple[str, bytes]]:
    """Name and content of the case's files.

    Waits until the ledger admits the case, with `need_bytes` or an estimate made from its largest file.
    Raises Refusal: `source-changed` if the files are not those that were listed, `too-large` if they
    never fit.
    """
    entries = _entries(case)
    if discover.digest(entries) != case.digest:
        raise Refusal(
            "source-changed",
            f"expected the {case.n_files} files that were listed, found {len(entries)} with other names, sizes or "
            "tags; run again",
        )
    if case.is_archive and not entries:
        raise Refusal("no-dicom", f"{case.url}: there is no such file")
    try:
        unread = [] if case.is_archive else list(_not_worth_reading(case.url, entries))
        entries = [entry for entry in entries if entry.name not in dict(unread)]
        n_bytes = sum(entry.size for entry in entries)
        ledger.check(n_bytes)
        if case.is_archive:
            ledger.admit(ticket, case.n_bytes, need_bytes or ARCHIVE_GROWTH * case.n_bytes + memory.FIXED_BYTES)
            for name, content in storage.read_many(case.url.rpartition("/")[0], entries):
                yield from archive.members(content, name, ticket.need_bytes - case.n_bytes)
        else:
            ledger.admit(ticket, n_bytes, need_bytes or _estimate(case, entries, config))
            yield from unread
            yield from storage.read_many(case.url, entries)
    except (storage.ObjectChanged, FileNotFoundError) as error:
        raise Refusal("source-changed", str(error)) from error
    except archive.Outgrown as error:
        raise memory.Underestimated(2 * ticket.need_bytes) from error


def read_headers(case: Case, config: PrepConfig) -> tuple[int, Iterator[tuple[str, bytes]]]:
    """The memory with which a worker would admit the case, and name and content of its files, their pixels blank.

    Of a file only its first HEADER_BYTES are read, or all where the pixels do not begin in them. An archive
    is read whole.
    """
    entries = _entries(case)
    if case.is_archive:
        if not entries:
            raise Refusal("no-dicom", f"{case.url}: there is no such file")
        content = storage.read(case.url)
        most = psutil.virtual_memory().available
        return ARCHIVE_GROWTH * case.n_bytes + memory.FIXED_BYTES, archive.members(content, entries[0].name, most)
    unread = dict(_not_worth_reading(case.url, entries))
    entries = [entry for entry in entries if entry.name not in unread]
    need_bytes = max(sum(entry.size for entry in entries), _estimate(case, entries, config))
    return need_bytes, itertools.chain(unread.items(), _headers(case.url, entries))


def _headers(url: str, entries: list[storage.Entry]) -> Iterator[tuple[str, bytes]]:
    places = [storage.join(url, entry.name) for entry in entries]
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as threads:
        heads = threads.map(storage.read_head, places, itertools.repeat(HEADER_BYTES))
        for entry, place, head in zip(entries, places, heads, strict=True):
            blank = head if entry.size <= HEADER_BYTES else with_blank_pixels(head, entry.size)
            yield entry.name, storage.read(place) if blank is None else blank


def read_series(url: str, *, min_slices: int = 10, max_gap_slices: int = 0, recipe: str = "default") -> series.Series:
    """Read a folder, with all below it, or an archive of DICOM files: its largest CT series, put right.

    Up to `max_gap_slices` missing slices in a row are interpolated.

    For a `recipe` of 2017, as that recipe would have read it. Raises Refusal if there is none, or it makes no volume.
    """
    url = storage.absolute(url)
    if discover.is_archive(url) and not storage.is_folder(url):
        files = archive.members(storage.read(url), url, psutil.virtual_memory().available)
    else:
        entries = discover.files_of(url, is_deep=True)
        unread = dict(_not_worth_reading(url, entries))
        files = itertools.chain(
            unread.items(), storage.read_many(url, [entry for entry in entries if entry.name not in unread])
        )
    contents = Contents()
    for name, content in files:
        contents.add(name, content)
    if not contents.slices:
        raise next(iter(contents.damage.values()), nothing_found(contents))
    uid = max(contents.slices, key=lambda uid: len(contents.slices[uid]))
    damage = contents.flaw(uid)
    if damage is not None:
        raise damage
    return series.assemble(
        contents.slices[uid],
        min_slices=min_slices,
        max_gap_slices=max_gap_slices,
        to_hu=steps.RECIPE_HU.get(recipe),
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
        return discover.files_of(case.url, is_deep=case.is_deep)
    entry = storage.entry_of(case.url)
    return [entry] if entry else []


def _not_worth_reading(url: str, entries: list[storage.Entry]) -> Iterator[tuple[str, bytes]]:
    """Large files that are no CT by their name or their first bytes, with these in the place of their content."""
    for entry in entries:
        if entry.size <= LARGE_FILE_BYTES:
            continue
        head = b"" if is_named_otherwise(entry.name) else storage.read_head(storage.join(url, entry.name), HEAD_BYTES)
        if not may_be_ct(head):
            yield entry.name, head


def _estimate(case: Case, entries: list[storage.Entry], config: PrepConfig) -> int:
    """Memory for the case, judged by its largest file as if all were slices like it."""
    contents = Contents()
    largest = sorted(entries, key=lambda entry: entry.size)[-1:]
    for name, content in storage.read_many(case.url, largest):
        contents.add(name, content)
    slices = next(iter(contents.slices.values()), None)
    if not slices:
        return sum(entry.size for entry in entries)
    plane = slices[0].plane
    shape = (len(slices) * len(entries), *plane.shape)
    return memory.estimate_bytes(shape, (_thickness_mm(slices[0]), *plane.pixel_mm), config)


def _thickness_mm(s: Slice) -> float:
    """SliceThickness, good for a guess of the step; 1 where it says nothing."""
    try:
        thickness = float(s.facts["slice_thickness_mm"])
    except ValueError:
        return 1.0
    return thickness if 0 < thickness <= MAX_STEP_MM else 1.0

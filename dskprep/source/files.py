"""The files of one case: what can be known before they are read, and the ways to read them."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from dskprep import storage
from dskprep.dicom.contents import VAGUE_SUFFIXES, Contents, is_named_otherwise, may_be_ct
from dskprep.dicom.header import with_blank_pixels
from dskprep.dicom.slices import Slice
from dskprep.dicom.sniff import compression_of
from dskprep.errors import Refusal, UsageError
from dskprep.formats import names
from dskprep.formats.header import MAX_HEADER_BYTES
from dskprep.formats.voxels import FileBytes
from dskprep.plain import to_number
from dskprep.series.of_volume import check_place
from dskprep.source import archive, away, cases
from dskprep.source.case import Case, digest
from dskprep.source.heads import plain_name, plain_size, read_plain_head
from dskprep.source.inputs import is_packed, why_not_read
from dskprep.source.volumes import open_volume
from dskprep.storage import Entry
from dskprep.storage.threads import Threads
from dskprep.volume import Triple

LARGE_FILE_BYTES = 1 << 26
"""A slice has half a megabyte; a file larger than this is read whole only if it begins as a CT object does."""
HEAD_BYTES = 1 << 16
"""First bytes of a large file that are read to see what it is."""
HEADER_BYTES = 1 << 15
"""The header of an ordinary slice ends within so many bytes."""
BLOCK_BYTES = 1 << 23
"""Bytes of a volume file that are read in one go, where it is too large to be held."""
HEADERS_AT_ONCE = 16
"""Files whose headers are read at the same time."""
READ_AHEAD = 16
"""Files that are read again in one go, where a case is too large to be held."""
MAX_STEP_MM = 20.0
"""A SliceThickness beyond this says nothing about the distance between slices."""

File = tuple[str, bytes]
"""Name and content."""


class Guess(NamedTuple):
    """Shape (z, y, x) and spacing (mm) of a series, judged by one slice."""

    shape: tuple[int, int, int]
    spacing_mm: Triple


@dataclass(frozen=True, eq=False)
class CaseFiles:
    """The listed files of a case, none of them read yet; `folder` is the URL that their names are relative to.

    `not_ct` are large files that cannot be CT, with their first bytes, which stand in for their content.
    """

    folder: str
    is_archive: bool
    entries: tuple[Entry, ...]
    not_ct: dict[str, bytes]

    @property
    def n_bytes(self) -> int:
        """Bytes of all files that are to be read, decompressed."""
        return sum(map(plain_size, self.entries))

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest file that is to be read, decompressed."""
        return max(map(plain_size, self.entries), default=0)

    @property
    def is_volume(self) -> bool:
        """Whether these are one volume file, or its header and the file of its voxels."""
        return len(self._parts) == len(self.entries) > 0 and sum(map(names.is_volume, self._parts)) == 1

    @cached_property
    def _parts(self) -> set[str]:
        return names.parts_of(entry.name for entry in self.entries)

    @cached_property
    def guess(self) -> Guess | None:
        """Shape and spacing, as if all files were like the largest one, which is read for it; None if that is no CT.

        Those of a volume file stand in its header. Volume files beside slices, or several of them, are not looked at.
        """
        if self.is_volume:
            with contextlib.suppress(Refusal):
                (name,) = filter(names.is_volume, self._parts)
                header, _ = open_volume(name, self.parts())
                check_place(header)
                return Guess(header.shape, header.spacing)
            return None
        slice_files = [entry for entry in self.entries if entry.name not in self._parts]
        contents = Contents()
        contents.add_all(self._read(sorted(slice_files, key=plain_size)[-1:]))
        slices = next(iter(contents.slices.values()), None)
        if not slices:
            return None
        plane = slices[0].plane
        return Guess((len(slices) * len(slice_files), *plane.shape), (_thickness_mm(slices[0]), *plane.pixel_mm))

    @property
    def is_one_slice_each(self) -> bool:
        """Whether each file seems to be one slice, so that it can be read again when its turn comes."""
        return self.guess is not None and self.guess.shape[0] == len(self.entries)

    def read(self, max_bytes: int) -> Iterator[File]:
        """Read all files, those in an archive included.

        Raises Refusal `source-changed` if a file is not the one that was listed, `truncated` for a link that leads
        nowhere, `bad-archive`; archive.Outgrown if an archive holds more than `max_bytes`.
        """
        if not self.is_archive:
            return itertools.chain(self.not_ct.items(), self._read(self.entries))
        return itertools.chain.from_iterable(
            archive.members(content, name, max_bytes) for name, content in self._read(self.entries)
        )

    def read_headers(self) -> Iterator[File]:
        """Read the first HEADER_BYTES of each file; its pixels are blank, unless they begin only after these bytes.

        A file that is compressed is read whole. Volume files are left out: see `parts`.
        """
        yield from self.not_ct.items()
        entries = [entry for entry in self.entries if entry.name not in self._parts]
        places = [storage.join(self.folder, entry.name) for entry in entries]
        with _changes_refused(), Threads(HEADERS_AT_ONCE, "headers") as threads:
            heads = threads.map(_read_header, places, entries)
            for entry, place, head in zip(entries, places, heads, strict=True):
                blank: bytes | None = head
                if entry.size > HEADER_BYTES:
                    blank = None if compression_of(head) else with_blank_pixels(head, entry.size)
                yield entry.name, storage.read(place) if blank is None else blank

    def parts(self) -> dict[str, FileBytes]:
        """Return the volume files, and those that may hold the voxels of one, by name; read only when asked for."""
        return {
            entry.name: FileBytes(entry.size, functools.partial(_blocks, self.folder, entry))
            for entry in self.entries
            if entry.name in self._parts
        }

    def reread(self, slices: Sequence[Slice]) -> Iterator[Slice]:
        """Re-read header-only slices with their pixels, a few files at a time, in the order of `slices`."""
        by_name = {entry.name: entry for entry in self.entries}
        for first in range(0, len(slices), READ_AHEAD):
            group = slices[first : first + READ_AHEAD]
            files = [by_name.get(s.name) or by_name[s.name.rpartition("[")[0]] for s in group]  # file[k] is a frame
            for expected, (name, content) in zip(group, self._read(files), strict=True):
                yield _slice_like(expected, name, content)

    def _read(self, entries: Sequence[Entry]) -> Iterator[File]:
        with _changes_refused():
            yield from storage.read_many(self.folder, entries)


def open_case(case: Case) -> CaseFiles:
    """List the files of a case again.

    Raises Refusal `source-changed` if they are not those that were listed before, `no-dicom` if there are none or they
    could not be listed then, and what a catalogue says against reading them; InfrastructureError if all are gone with
    the folder that they lay in.
    """
    if case.problem:
        raise Refusal("no-dicom", case.problem)
    way = {"is_archive": case.is_archive, "is_deep": case.is_deep, "is_single": case.is_single}
    if case.refusal:
        raise Refusal(*case.refusal)
    entries = cases.files_of(case.url, **way)
    if case.left_out and not entries:
        raise Refusal(
            "no-dicom",
            f"expected DICOM files in {case.url}, found archives only, such as {case.left_out[0]}; give each a line of "
            "its own in the manifest, or unpack them",
        )
    if case.is_catalogued:
        _check_complete(case, entries)
    elif digest(entries) != case.digest:
        if not entries:
            away.check(case.url)
        raise Refusal(
            "source-changed",
            f"expected the {case.n_files} files that were listed, found {len(entries)} with other names, sizes or "
            "tags; run again",
        )
    if not entries and not storage.exists(case.url):  # only a manifest names what is not there
        raise Refusal(
            "no-dicom", f"expected a folder or archive at {case.url}, found nothing there; check the manifest"
        )
    return _case_files(case.url, entries, is_archive=case.is_archive, is_single=case.is_single)


def _check_complete(case: Case, entries: list[Entry]) -> None:
    """Raise Refusal unless there are as many files as the table of the Imaging Data Commons says."""
    if len(entries) != case.n_files:
        raise Refusal(
            "source-changed" if entries else "no-dicom",
            f"expected {case.n_files} files in {case.url}, as the table of the Imaging Data Commons says, found "
            f"{len(entries)}; look whether the bucket is whole, or upgrade idc-index-data",
        )


def open_place(url: str) -> CaseFiles:
    """List the files of a folder, with all below it, or of an archive, or a single file; a volume with its voxels.

    Raises UsageError if there is nothing there.
    """
    if not storage.exists(url):
        raise UsageError(f"{url}: there is no such folder or archive; check the path")
    is_archive = is_packed(url)
    is_single = not is_archive and not storage.is_folder(url)
    entries = cases.files_of(url, is_archive=is_archive, is_single=is_single, is_deep=True)
    return _case_files(url, entries, is_archive=is_archive, is_single=is_single)


def _case_files(url: str, entries: list[Entry], *, is_archive: bool, is_single: bool) -> CaseFiles:
    if is_archive and (why := why_not_read(url)):
        raise Refusal("bad-archive", why)
    if not entries:
        raise Refusal("no-dicom", f"expected DICOM files in {url}, found none; hidden files and archives do not count")
    folder = url.rpartition("/")[0] if is_archive or is_single else url
    not_ct = {} if is_archive else dict(_not_ct(folder, entries))
    return CaseFiles(folder, is_archive, tuple(entry for entry in entries if entry.name not in not_ct), not_ct)


def _not_ct(folder: str, entries: list[Entry]) -> Iterator[File]:
    """Name and first bytes of the large files that are no CT by their name or by these bytes."""
    parts = names.parts_of(entry.name for entry in entries)
    for entry in entries:
        if plain_size(entry) <= LARGE_FILE_BYTES or entry.name in parts:
            continue
        head = b""
        name = plain_name(entry.name)
        if name.lower().endswith(VAGUE_SUFFIXES) or not is_named_otherwise(name):
            with _changes_refused():
                head = read_plain_head(storage.join(folder, entry.name), HEAD_BYTES)
        if not may_be_ct(head):
            yield entry.name, head


def _blocks(folder: str, entry: Entry, start: int) -> Iterator[bytes]:
    """Yield the bytes of a file from one on, in pieces. Raises Refusal `source-changed` if it is not as listed."""
    place, first, n_bytes = storage.join(folder, entry.name), start, MAX_HEADER_BYTES  # often only a header is wanted
    with _changes_refused():
        while first < entry.size:
            last = min(first + n_bytes, entry.size)
            yield from storage.read_ranges(place, [(first, last)])
            first, n_bytes = last, BLOCK_BYTES
        now = storage.entry_of(place)
        if now is None or (now.size, now.tag) != (entry.size, entry.tag):
            raise storage.ObjectChanged(f"{entry.name}: changed while it was read; run again")


def _read_header(place: str, entry: Entry) -> bytes:
    return storage.read_head(place, HEADER_BYTES) if entry.size else b""  # S3 has no range of an empty object


@contextmanager
def _changes_refused() -> Iterator[None]:
    try:
        yield
    except storage.NoFile as error:
        raise Refusal("truncated", str(error)) from error
    except (storage.ObjectChanged, FileNotFoundError) as error:
        raise Refusal("source-changed", str(error)) from error


def _slice_like(expected: Slice, name: str, content: bytes) -> Slice:
    """Return the slice of a file that has the header of `expected`, now with its pixels."""
    contents = Contents()
    contents.add(name, content)
    for found in itertools.chain.from_iterable(contents.slices.values()):
        is_like = found.plane == expected.plane and replace(found, data=expected.data).is_copy_of(expected)
        if found.name == expected.name and is_like:
            return found
    raise next(
        iter(contents.all_damage()),
        Refusal("source-changed", f"{expected.name}: is not the slice that its header promised; run again"),
    )


def _thickness_mm(s: Slice) -> float:
    """Return SliceThickness, a fair guess of the distance between slices; 1 where it says nothing."""
    thickness = to_number(s.facts["slice_thickness_mm"]) or 1.0
    return thickness if 0 < thickness <= MAX_STEP_MM else 1.0

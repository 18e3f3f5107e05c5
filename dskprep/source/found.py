"""Which series the files of a case hold, which of them is the main one, and reading that one."""

from __future__ import annotations

import functools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import psutil

from dskprep import storage
from dskprep.counts import n_of
from dskprep.dicom.contents import Contents
from dskprep.dicom.owners import ALONE, part_by_owner
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.formats import names
from dskprep.keys import series_digest
from dskprep.preparation.recipes import recipe
from dskprep.selecting import Chosen
from dskprep.series import assembly
from dskprep.series.assembly import Reread
from dskprep.series.of_volume import of_volume
from dskprep.series.series import Series
from dskprep.settings import PrepConfig, given
from dskprep.source.files import File, open_place
from dskprep.source.volumes import CaseContents
from dskprep.source.within import Owned, Rivals

T = TypeVar("T")

LONE_SLICES = 5
"""A folder with at least so many series, each of one slice, holds one series that lost its SeriesInstanceUID."""
MOST_NAMED = 5
"""Further series of a folder that a note lists one by one."""


class Name(NamedTuple):
    """Which stack of a case: the digest of its SeriesInstanceUID, and its number in the series if it holds several.

    `chosen` says why the series was chosen among others of the case.
    """

    uid_sha256: str
    stack: int | None = None
    chosen: Chosen | None = None

    def rank(self, n_slices: int) -> tuple[int, str, int]:
        """Return what the stacks of one case are sorted by: the last one is the main one, and has the case's own key.

        A stack that is refused has no slices here.
        """
        return n_slices, self.uid_sha256, -(self.stack or 0)


class Found(NamedTuple):
    """One stack of a folder, its number of slices, and the series that is made of it or why it is refused.

    Of a series that was refused, all slices count that could be read.
    """

    name: Name
    n_slices: int
    made: Series | Refusal


def each_series(
    contents: CaseContents,
    assemble: Callable[[list[Slice]], list[Series | Refusal]],
    make: Callable[[Series], T],
    settings: PrepConfig,
) -> Iterator[tuple[Name, T | Refusal]]:
    """Yield each stack that is read of each CT series: what `make` makes of it, or why it is refused.

    `assemble` makes stacks of the slices of a series, as `assemble_as` does. After them come the volume files, each a
    series of its own.

    Raises Refusal if there is no CT series and no volume file at all.
    """
    uids, volumes = contents.uids(), contents.volumes()
    if not uids and not volumes:
        raise _nothing_found(contents)
    if len(contents.slices) >= LONE_SLICES and _are_slices_of_one(list(contents.slices.values())):
        raise Refusal(
            "too-few-slices",
            f"expected slices that share a SeriesInstanceUID, found {len(uids)} slices with one of their own each, as "
            "some anonymisers write them; give the slices of each series one UID",
        )
    flaws = {uid: contents.flaw(uid) for uid in uids}
    series_of = _take_owned(contents, flaws)
    rivals = Rivals(series_of, settings.select, settings.min_slices)
    for one in rivals.order:
        slices, flaw = series_of.pop(one), flaws[one.uid]
        is_alone = one.n_owners == 1
        if beaten := rivals.is_beaten(one):
            yield Name(one.digest, None if is_alone else one.owner), beaten
            continue
        found = [flaw] if flaw else assemble(slices)
        # owners take turns, so that no number of theirs depends on how many stacks another one has
        for number, series in enumerate(found):
            made = _make_or_refuse(series, make)
            stack = number * one.n_owners + one.owner if len(found) > 1 or not is_alone else None
            yield Name(one.digest, stack, rivals.tried(one, made)), made
    taken = set(uids)
    for name in volumes:
        stem = names.stem(name)
        label = name if stem in taken else stem  # a file may be called by its SeriesInstanceUID, or as another one is
        taken.add(label)
        yield Name(series_digest(label)), _make_or_refuse(volume_as(contents, name, settings), make)


def _take_owned(contents: Contents, flaws: dict[str, Refusal | None]) -> dict[Owned, list[Slice]]:
    """Take the slices of each series out of the contents, and part them by owner; sets a flaw where that cannot be."""
    taken: dict[Owned, list[Slice]] = {}
    for uid, flaw in flaws.items():
        slices = contents.slices.pop(uid, [])
        parts = [slices] if flaw else part_by_owner(slices)
        if len(parts) > 1 and 2 * sum(len(part) for part in parts if len(part) <= ALONE) >= len(slices):
            flaws[uid] = Refusal(
                "too-few-slices",
                f"expected slices of one patient, found {len(slices)} of {len(parts)} patients in one series, as some "
                "anonymisers write them; give the slices of each series one PatientID",
            )
            parts = [slices]
        taken |= {Owned(uid, number, len(parts)): part for number, part in enumerate(parts, 1)}
    return taken


def _make_or_refuse(series: Series | Refusal, make: Callable[[Series], T]) -> T | Refusal:
    try:
        return series if isinstance(series, Refusal) else make(series)
    except Refusal as refusal:
        return refusal


def _are_slices_of_one(found: list[list[Slice]]) -> bool:
    """Tell whether each series has one slice, and all of them could lie in one stack."""
    return all(len(slices) == 1 and found[0][0].plane.shares_grid(slices[0].plane) for slices in found)


def aside_counts(contents: Contents) -> dict[str, int]:
    """Count the files that are no CT slices, by kind."""
    return dict(Counter(aside.kind for aside in contents.aside))


def read_series(
    url: str | os.PathLike[str],
    settings: PrepConfig | None = None,
    *,
    uid_sha256: str | None = None,
    stack: int | None = None,
) -> Series:
    """Read the main CT series of a folder, with all below it, or of an archive of DICOM files; or a volume file.

    The main series is the one with the most slices of those that make a volume. If there are further ones, a
    UserWarning says which was taken. A volume in NIfTI, NRRD or MetaImage is a series of its own.

    Parameters
    ----------
    url
        A path, or a URL such as s3://bucket/scans.
    settings
        The series is read as a run with these settings reads it; by default those of the preset `default`.
    uid_sha256
        The `series_uid_sha256` of a record: read that series instead of the largest that can be written.
    stack
        The `stack` of a record: read that stack of the series instead of the longest.

    Raises
    ------
    UsageError
        There is nothing at the path.
    Refusal
        There is no such series, or it makes no volume.
    """
    main, *others = find_series(url, settings, uid_sha256=uid_sha256, stack=stack)
    if others and not isinstance(main.made, Refusal):
        note = f"{os.fspath(url)}: {describe_choice(main, others)}; uid_sha256 chooses another"
        warnings.warn(note, stacklevel=2)
    return made_of(main)


def find_series(
    url: str | os.PathLike[str],
    settings: PrepConfig | None = None,
    *,
    uid_sha256: str | None = None,
    stack: int | None = None,
) -> list[Found]:
    """Find the CT series of a folder or archive (see `read_series`), the main one first, refused ones last.

    Raises UsageError if there is nothing at the path, Refusal if there is no such series.
    """
    settings = given(settings)
    if uid_sha256:  # it was chosen, maybe in place of another one
        settings = replace(settings, select=None)
    contents = CaseContents()
    contents.add_all(files_at(url))
    n_slices = {series_digest(uid): len(slices) for uid, slices in contents.slices.items()}
    assemble = functools.partial(assemble_as, settings=settings)
    found = [
        Found(name, n_slices.get(name.uid_sha256, 0) if isinstance(made, Refusal) else made.n_slices, made)
        for name, made in each_series(contents, assemble, lambda series: series, settings)
    ]
    wanted = [one for one in found if uid_sha256 in (None, one.name.uid_sha256) and stack in (None, one.name.stack)]
    if not wanted:
        raise Refusal("no-dicom", f"expected the series of digest {uid_sha256}, found {len(found)} others")
    return sorted(wanted, key=lambda one: (isinstance(one.made, Series), one.name.rank(one.n_slices)), reverse=True)


def made_of(found: Found) -> Series:
    """Return the series that was found. Raises the Refusal if it was refused."""
    if isinstance(found.made, Refusal):
        raise found.made
    return found.made


def describe_choice(taken: Found, others: Sequence[Found]) -> str:
    """Say in a line which series was taken of how many, and how many slices each of the others has."""
    each = ", ".join(
        f"{other.n_slices}{f' (refused, {other.made.reason})' if isinstance(other.made, Refusal) else ''}"
        for other in others[:MOST_NAMED]
    )
    rest = f", and {len(others) - MOST_NAMED} more series" if len(others) > MOST_NAMED else ""
    n = len(others) + 1
    which = f"the largest of {n} series that can be written was taken"
    if isinstance(taken.made, Refusal):
        which = f"none of {n} series can be written; the largest was taken"
    return f"{which}, with {n_of(taken.n_slices, 'slice')}; the others have {each}{rest}"


def files_at(url: str | os.PathLike[str]) -> Iterator[File]:
    """Read the files of a folder, with all below it, or of an archive. Raises UsageError if there is nothing there."""
    return open_place(storage.absolute(url)).read(psutil.virtual_memory().available)


def assemble_as(slices: list[Slice], settings: PrepConfig, reread: Reread | None = None) -> list[Series | Refusal]:
    """Assemble the stacks of one series that the settings ask for; a Refusal stands for one that makes no volume."""
    options: dict[str, Any] = {
        "min_slices": settings.min_slices,
        "max_gap_slices": settings.fillable_slices,
        "to_hu": recipe(settings.recipe).to_hu,
        "reread": reread,
        "check_hu": settings.check_hu,
    }
    try:
        if settings.stacks == "all":
            return assembly.assemble_all(slices, **options)
        return [assembly.assemble(slices, **options)]
    except Refusal as refusal:
        return [refusal]


def volume_as(contents: CaseContents, name: str, settings: PrepConfig) -> Series | Refusal:
    """Return the series of a volume file of the contents, as the settings ask for, or why it makes none."""
    try:
        header, file, held_bytes = contents.pop_volume(name)
        return of_volume(
            header,
            file,
            min_slices=settings.min_slices,
            to_hu=recipe(settings.recipe).to_hu,
            check_hu=settings.check_hu,
            encoded_bytes=held_bytes,
        )
    except Refusal as refusal:
        return refusal


def _nothing_found(contents: Contents) -> Refusal:
    """Say why files without any CT slice are refused."""
    if stray := contents.lone_stray():
        return stray
    counts = aside_counts(contents)
    if "localizer" in counts:
        found = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        return Refusal("localizer-only", f"expected CT slices, found localizers and such only ({found})")
    kinds = {kind: sorted({a.detail for a in contents.aside if a.kind == kind}) for kind in ("not-ct", "no-image")}
    if kinds["not-ct"]:
        return Refusal("not-ct", f"expected CT images, found {', '.join(kinds['not-ct'])[:200]}")
    if kinds["no-image"]:
        found = ", ".join(kinds["no-image"])[:200]
        return Refusal("no-image", f"holds no images, but {found}; `dskprep annotate` reads labels")
    packed = f", of which {counts['archive']} are archives; unpack these" if "archive" in counts else ""
    return Refusal("no-dicom", f"expected DICOM files, found none among {sum(counts.values())} files{packed}")

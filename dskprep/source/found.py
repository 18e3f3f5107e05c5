"""Which series the files of a case hold, which of them is the main one, and reading that one."""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import psutil

from dskprep import storage
from dskprep.dicom.contents import Contents
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.preparation.recipes import recipe
from dskprep.series import series
from dskprep.series.series import Reread, Series
from dskprep.settings import PrepConfig, given
from dskprep.source.files import File, open_place

T = TypeVar("T")

MOST_NAMED = 5
"""Further series of a folder that a note lists one by one."""


class Found(NamedTuple):
    """One series of a folder: the digest of its UID, its number of slices, and the series or why it is refused.

    Of a series that was refused, all slices count that could be read.
    """

    uid_sha256: str
    n_slices: int
    made: Series | Refusal


def each_series(contents: Contents, make: Callable[[list[Slice]], T]) -> Iterator[tuple[str, T | Refusal]]:
    """Yield each CT series, by the digest of its UID: what `make` makes of its slices, or why it is refused.

    Raises Refusal if there is no CT series at all.
    """
    uids = contents.uids()
    if not uids:
        raise _nothing_found(contents)
    for uid in uids:
        made: T | Refusal | None = contents.flaw(uid)
        if made is None:
            try:
                made = make(contents.slices.pop(uid))
            except Refusal as refusal:
                made = refusal
        yield digest_of(uid), made


def digest_of(uid: str) -> str:
    """Return the digest by which records name a SeriesInstanceUID."""
    return hashlib.sha256(uid.encode()).hexdigest()[:12]


def rank(uid_sha256: str, n_slices: int) -> tuple[int, str]:
    """Return what the series of one case are sorted by: the last one is the main one, and has the case's own key.

    A series that is refused has no slices here.
    """
    return n_slices, uid_sha256


def aside_counts(contents: Contents) -> dict[str, int]:
    """Count the files that are no CT slices, by kind."""
    return dict(Counter(aside.kind for aside in contents.aside))


def read_series(
    url: str | os.PathLike[str], settings: PrepConfig | None = None, *, uid_sha256: str | None = None
) -> Series:
    """Read the main CT series of a folder, with all below it, or of an archive of DICOM files.

    The main series is the one with the most slices of those that make a volume. If there are further ones, a
    UserWarning says which was taken.

    Parameters
    ----------
    url
        A path or an fsspec URL.
    settings
        The series is read as a run with these settings reads it; by default those of the preset `default`.
    uid_sha256
        The `series_uid_sha256` of a record: read that series instead of the largest.

    Raises
    ------
    UsageError
        There is nothing at the path.
    Refusal
        There is no such series, or it makes no volume.
    """
    main, *others = find_series(url, settings, uid_sha256=uid_sha256)
    if others and not isinstance(main.made, Refusal):
        note = f"{os.fspath(url)}: {describe_choice(main, others)}; uid_sha256 chooses another"
        warnings.warn(note, stacklevel=2)
    return made_of(main)


def find_series(
    url: str | os.PathLike[str], settings: PrepConfig | None = None, *, uid_sha256: str | None = None
) -> list[Found]:
    """Find the CT series of a folder or archive (see `read_series`), the main one first, refused ones last.

    Raises UsageError if there is nothing at the path, Refusal if there is no such series.
    """
    settings = given(settings)
    contents = Contents()
    contents.add_all(files_at(url))
    n_slices = {digest_of(uid): len(slices) for uid, slices in contents.slices.items()}
    found = [
        Found(uid, n_slices.get(uid, 0) if isinstance(made, Refusal) else made.n_slices, made)
        for uid, made in each_series(contents, functools.partial(assemble_as, settings=settings))
    ]
    wanted = [one for one in found if uid_sha256 in (None, one.uid_sha256)]
    if not wanted:
        raise Refusal("no-dicom", f"expected the series of digest {uid_sha256}, found {len(found)} others")
    return sorted(wanted, key=_rank_found, reverse=True)


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
    rest = f", and {len(others) - MOST_NAMED} series more" if len(others) > MOST_NAMED else ""
    which = ", of which none can be written" if isinstance(taken.made, Refusal) else " that can be written"
    return (
        f"of {len(others) + 1} series took the largest{which}; its number of slices: {taken.n_slices}, "
        f"that of the others: {each}{rest}"
    )


def files_at(url: str | os.PathLike[str]) -> Iterator[File]:
    """Read the files of a folder, with all below it, or of an archive. Raises UsageError if there is nothing there."""
    return open_place(storage.absolute(url)).read(psutil.virtual_memory().available)


def _rank_found(found: Found) -> tuple[bool, tuple[int, str]]:
    return not isinstance(found.made, Refusal), rank(found.uid_sha256, found.n_slices)


def assemble_as(slices: list[Slice], settings: PrepConfig, reread: Reread | None = None) -> Series:
    """Assemble a series as the settings say (see `series.assemble`)."""
    return series.assemble(
        slices,
        min_slices=settings.min_slices,
        max_gap_slices=settings.fillable_slices,
        to_hu=recipe(settings.recipe).to_hu,
        reread=reread,
    )


def _nothing_found(contents: Contents) -> Refusal:
    """Say why files without any CT slice are refused."""
    counts = aside_counts(contents)
    if "localizer" in counts:
        return Refusal("localizer-only", f"expected CT slices, found localizers and such only ({counts})")
    if "not-ct" in counts:
        kinds = sorted({aside.detail for aside in contents.aside if aside.kind == "not-ct"})
        return Refusal("not-ct", f"expected CT images, found {', '.join(kinds)[:200]}")
    return Refusal("no-dicom", f"expected DICOM files, found none among {sum(counts.values())} files")

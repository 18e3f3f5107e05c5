"""Which series the files of a case hold, which of them is the main one, and reading that one."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

import psutil

from dskprep import storage
from dskprep.dicom.contents import Contents
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.preparation.recipes import recipe
from dskprep.series import series
from dskprep.series.series import Reread, Series
from dskprep.settings import PrepConfig, given
from dskprep.source.files import open_place

T = TypeVar("T")


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
        yield hashlib.sha256(uid.encode()).hexdigest()[:12], made


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
    settings = given(settings)
    files = open_place(storage.absolute(url))
    contents = Contents()
    contents.add_all(files.read(psutil.virtual_memory().available))
    found = dict(each_series(contents, functools.partial(assemble_as, settings=settings)))
    ranks = [
        rank(uid, 0 if isinstance(made, Refusal) else made.n_slices)
        for uid, made in found.items()
        if uid_sha256 in (None, uid)
    ]
    if not ranks:
        raise Refusal("no-dicom", f"expected the series of digest {uid_sha256}, found {len(found)} others")
    main = found[max(ranks)[1]]
    if isinstance(main, Refusal):
        raise main
    return main


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

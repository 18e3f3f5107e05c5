"""Which series the files of a case hold, which of them is the main one, and reading that one."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import psutil

from dskprep import storage
from dskprep.dicom.contents import Contents
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal
from dskprep.preparation.recipes import recipe
from dskprep.series import assembly
from dskprep.series.series import Reread, Series
from dskprep.settings import PrepConfig, given
from dskprep.source.files import open_place

T = TypeVar("T")

LONE_SLICES = 5
"""A folder with at least so many series, each of one slice, holds one series that lost its SeriesInstanceUID."""


class Name(NamedTuple):
    """Which stack of a case: the digest of its SeriesInstanceUID, and its number in the series if it holds several."""

    uid_sha256: str
    stack: int | None = None

    def rank(self, n_slices: int) -> tuple[int, str, int]:
        """Return what the stacks of one case are sorted by: the last one is the main one, and has the case's own key.

        A stack that is refused has no slices here.
        """
        return n_slices, self.uid_sha256, -(self.stack or 0)


def each_series(
    contents: Contents, assemble: Callable[[list[Slice]], list[Series | Refusal]], make: Callable[[Series], T]
) -> Iterator[tuple[Name, T | Refusal]]:
    """Yield each stack that is read of each CT series: what `make` makes of it, or why it is refused.

    `assemble` makes stacks of the slices of a series, as `assemble_as` does.

    Raises Refusal if there is no CT series at all.
    """
    uids = contents.uids()
    if not uids:
        raise _nothing_found(contents)
    if len(uids) >= LONE_SLICES and all(len(contents.slices.get(uid, ())) == 1 for uid in uids):
        raise Refusal(
            "too-few-slices",
            f"expected slices that share a SeriesInstanceUID, found {len(uids)} slices with one of their own each, as "
            "some anonymisers write them; give the slices of each series one UID",
        )
    for uid in uids:
        digest = hashlib.sha256(uid.encode()).hexdigest()[:12]
        flaw = contents.flaw(uid)
        found = [flaw] if flaw else assemble(contents.slices.pop(uid))
        for number, series in enumerate(found, 1):
            made: T | Refusal
            try:
                made = series if isinstance(series, Refusal) else make(series)
            except Refusal as refusal:
                made = refusal
            yield Name(digest, number if len(found) > 1 else None), made


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
    """Read the main CT series of a folder, with all below it, or of an archive of DICOM files.

    Parameters
    ----------
    url
        A path or an fsspec URL.
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
    settings = given(settings)
    files = open_place(storage.absolute(url))
    contents = Contents()
    contents.add_all(files.read(psutil.virtual_memory().available))
    found = list(each_series(contents, functools.partial(assemble_as, settings=settings), lambda series: series))
    asked = [each for each in found if uid_sha256 in (None, each[0].uid_sha256) and stack in (None, each[0].stack)]
    if not asked:
        raise Refusal("no-dicom", f"expected the series of digest {uid_sha256}, found {len(found)} others")
    _, main = max(asked, key=lambda each: each[0].rank(0 if isinstance(each[1], Refusal) else each[1].n_slices))
    if isinstance(main, Refusal):
        raise main
    return main


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


def _nothing_found(contents: Contents) -> Refusal:
    """Say why files without any CT slice are refused."""
    counts = aside_counts(contents)
    if "localizer" in counts:
        return Refusal("localizer-only", f"expected CT slices, found localizers and such only ({counts})")
    kinds = {kind: sorted({a.detail for a in contents.aside if a.kind == kind}) for kind in ("not-ct", "no-image")}
    if kinds["not-ct"]:
        return Refusal("not-ct", f"expected CT images, found {', '.join(kinds['not-ct'])[:200]}")
    if kinds["no-image"]:
        return Refusal("no-image", f"holds no images, but {', '.join(kinds['no-image'])[:200]}")
    if stray := contents.lone_stray():
        return stray
    return Refusal("no-dicom", f"expected DICOM files, found none among {sum(counts.values())} files")

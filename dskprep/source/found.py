"""Which series the files of a case hold, which of them is the main one, and reading that one."""

from __future__ import annotations

import functools
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
from dskprep.series.series import Reread, Series, uid_digest
from dskprep.settings import PrepConfig, given
from dskprep.source.files import open_place
from dskprep.volume import Triple

T = TypeVar("T")


def each_series(contents: Contents, make: Callable[[list[Slice]], T]) -> Iterator[tuple[str, T | Refusal]]:
    """Yield the digest of each CT series and what `make` makes of its slices, or why it is refused.

    Raises Refusal if there is no CT series at all.
    """
    uids = contents.uids()
    if not uids:
        raise _nothing_found(contents)
    for uid in uids:
        made: T | Refusal
        try:
            flaw = contents.flaw(uid)
            if flaw is not None:
                raise flaw
            made = make(contents.slices.pop(uid))
        except Refusal as refusal:
            made = refusal
        yield uid_digest(uid), made


def rank(uid_sha256: str, n_slices: int, *, is_written: bool) -> tuple[bool, int, str]:
    """Return what the series of one case are sorted by: the last one is the main one, and has the case's own key."""
    return is_written, n_slices, uid_sha256


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
    Refusal
        There is no such series, or it makes no volume.
    """
    settings = given(settings)
    files = open_place(storage.absolute(url))
    contents = Contents()
    for name, content in files.read(psutil.virtual_memory().available):
        contents.add(name, content)
    assemble = functools.partial(assemble_as, settings=settings)
    found = dict(each_series(contents, assemble))
    chosen = [uid for uid in found if uid_sha256 in (None, uid)]
    if not chosen:
        raise Refusal("no-dicom", f"expected the series of digest {uid_sha256}, found {len(found)} others")
    main = found[max(chosen, key=lambda uid: rank_of(uid, found[uid]))]
    if isinstance(main, Refusal):
        raise main
    return main


def rank_of(uid_sha256: str, found: Series | Refusal) -> tuple[bool, int, str]:
    """Return the rank of a series that was assembled, or refused."""
    if isinstance(found, Refusal):
        return rank(uid_sha256, 0, is_written=False)
    return rank(uid_sha256, int(found.facts["slices"]), is_written=True)


def assemble_as(
    slices: list[Slice],
    settings: PrepConfig,
    *,
    reserve: Callable[[tuple[int, int, int], Triple], None] = lambda _shape, _spacing: None,
    reread: Reread | None = None,
) -> Series:
    """Assemble a series as the settings say (see `series.assemble`)."""
    return series.assemble(
        slices,
        min_slices=settings.min_slices,
        max_gap_slices=settings.fillable_slices,
        to_hu=recipe(settings.recipe).to_hu,
        reserve=reserve,
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

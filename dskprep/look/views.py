"""Which views a picture shows: a volume of a dataset, the series that it was made from, a source before any run."""

from __future__ import annotations

import os

from dskprep import settings as config
from dskprep.dataset import dataset
from dskprep.errors import UsageError
from dskprep.look import picture
from dskprep.look.picture import View
from dskprep.look.surface import SURFACES
from dskprep.preparation import prepare, user_steps
from dskprep.settings import PrepConfig
from dskprep.source.cases import only_case
from dskprep.source.found import read_series


def show(
    place: str | os.PathLike[str],
    key: str | None = None,
    *,
    surface: str | None = None,
    with_source: bool = False,
    settings: PrepConfig | None = None,
) -> bytes:
    """Draw a volume: three planes with the outline of the lungs, a histogram, and what is known of it in words.

    Parameters
    ----------
    place
        A dataset, if there is a key; else a folder or archive that holds the DICOM files of one patient, which is
        drawn as acquired and, below, as a run would write it. A path or URL.
    key
        The key of a volume in the dataset.
    surface
        Draw this surface from three sides instead: ``"lungs"``, ``"bone"`` or ``"tissue"``.
    with_source
        Draw the series that the volume was made from above the volume.
    settings
        Prepare the DICOM files with these settings; by default with those of the preset ``default``.

    Returns
    -------
    bytes
        The picture as PNG.

    Raises
    ------
    UsageError
        If there is no such volume or patient, or the arguments do not go together.
    Refusal
        If the series cannot be made into a volume.

    Examples
    --------
    >>> png = dskprep.show("scans-1mm", "LIDC-0314", surface="bone")  # doctest: +SKIP
    >>> Path("LIDC-0314.png").write_bytes(png)  # doctest: +SKIP
    """
    if key and settings is not None:
        raise UsageError("settings are for DICOM files; a volume of a dataset has the dataset's settings")
    if with_source and (surface or not key):
        raise UsageError("with_source is for the planes of a volume of a dataset; leave it out")
    if surface not in (None, "lungs", *SURFACES):
        raise UsageError(f"surface must be one of {', '.join(('lungs', *SURFACES))}, not {surface!r}")
    if key:
        name, views = key, views_of_stored(place, key, with_source=with_source)
    else:
        name, views = views_of_source(place, config.given(settings))
    return picture.draw_surface(name, views[-1], surface) if surface else picture.draw(name, *views)


def views_of_stored(target: str | os.PathLike[str], key: str, *, with_source: bool = False) -> list[View]:
    """Return the view of a volume in a dataset, with `with_source` after that of the series it was made from.

    Raises UsageError if there is no such volume; it says what became of the key.
    """
    opened = dataset.open_dataset(target)
    try:
        stored = opened[key]
    except KeyError as error:
        raise UsageError(str(error.args[0])) from error
    views = [picture.of_stored(stored)]
    if with_source:
        settings = config.from_dict(opened.settings, f"{target}: dataset.json")
        views.insert(0, _view_as_acquired(stored.record.url, settings, stored.record.series_uid_sha256))
    return views


def views_of_source(place: str | os.PathLike[str], settings: PrepConfig) -> tuple[str, list[View]]:
    """Return the key of the one patient at a place, and its views as acquired and as a run would write it.

    Raises UsageError if there are none or several, Refusal if the series cannot be made into a volume.
    """
    case = only_case(place)
    user_steps.check(settings)
    prepared = prepare.prepare(read_series(case.url, settings), settings)
    return case.key, [_view_as_acquired(case.url, settings), picture.of_prepared(prepared)]


def _view_as_acquired(url: str, settings: PrepConfig, uid_sha256: str | None = None) -> View:
    """Read a series as it was acquired: without the recipe, since one of 2017 may read other HU from it."""
    s = settings
    plain = PrepConfig(min_slices=s.min_slices, on_gap=s.on_gap, max_gap_slices=s.max_gap_slices)
    return picture.of_series(read_series(url, plain, uid_sha256=uid_sha256))

"""Which views a picture shows: a volume of a dataset, the series that it was made from, a source before any run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dskprep import settings as config
from dskprep import storage
from dskprep.dataset import store
from dskprep.dataset.record import Record
from dskprep.errors import SET_ASIDE, DskprepError, Refusal, UsageError
from dskprep.look import picture, refused, remains
from dskprep.look.picture import View
from dskprep.look.surface import SURFACES
from dskprep.preparation import prepare, user_steps
from dskprep.reading import dataset
from dskprep.reading.dataset import Dataset
from dskprep.settings import PrepConfig
from dskprep.source.archive import Outgrown
from dskprep.source.cases import only_case
from dskprep.source.found import Found, Name, describe_choice, find_series, made_of, read_series

N_NAMED = 3
"""Keys of a dataset that are named where one is missing."""


@dataclass(frozen=True)
class Shown:
    """A picture as PNG, and what is to be said beside it.

    That is why the series is refused, or set aside as nothing is wrong with it, and which of several was taken.
    """

    key: str
    png: bytes
    refusal: str = ""
    set_aside: str = ""
    note: str = ""


def show(
    place: str | os.PathLike[str],
    key: str | None = None,
    *,
    surface: str | None = None,
    with_source: bool = False,
    label: str | None = None,
    settings: PrepConfig | None = None,
) -> bytes:
    """Draw a volume: three planes in windows for lung and soft tissue, a histogram, and what is known of it in words.

    The lungs and the labels are outlined in their colours, with a legend. Letters say which side of the patient is
    where: R and L, A (front) and P (back), H (head) and F (feet). Each plane has a scale bar with its length.

    Of several series in a folder the largest that can be written is drawn. A series that is refused or set aside is
    drawn too, with the reason across the picture: one of its slices, and two cuts in which each slice lies at its own
    position, so that gaps are seen.

    Parameters
    ----------
    place
        A dataset, if there is a key; else a folder or archive that holds the DICOM files of one patient, which is
        drawn as acquired and, below, as a run would write it. A path or URL.
    key
        The key of a volume in the dataset, or of a series that was refused or set aside, which is drawn from its
        source.
    surface
        Draw this surface from three sides instead: ``"lungs"``, ``"bone"`` or ``"tissue"``.
    with_source
        Draw the series that the volume was made from above the volume.
    label
        The planes go through the middle of this label of the volume, or of the first that matches a pattern such as
        ``"GTV*"``; by default of the first one, if it has any.
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
        If a surface is asked for, and the series cannot be made into a volume.

    Examples
    --------
    >>> png = dskprep.show("scans-1mm", "LIDC-0314", surface="bone")  # doctest: +SKIP
    >>> Path("LIDC-0314.png").write_bytes(png)  # doctest: +SKIP
    """
    return draw(place, key, surface=surface, with_source=with_source, label=label, settings=settings).png


def draw(
    place: str | os.PathLike[str],
    key: str | None = None,
    *,
    surface: str | None = None,
    with_source: bool = False,
    label: str | None = None,
    settings: PrepConfig | None = None,
) -> Shown:
    """Do what `show` does, and tell what is to be said beside the picture."""
    if key and settings is not None:
        raise UsageError("settings are for DICOM files; a volume of a dataset has the dataset's settings")
    if with_source and (surface or not key):
        raise UsageError("with_source is for the planes of a volume of a dataset; leave it out")
    if label and (surface or not key):
        raise UsageError("label is for the planes of a volume of a dataset; leave it out")
    if surface not in (None, "lungs", *SURFACES):
        raise UsageError(f"surface must be one of {', '.join(('lungs', *SURFACES))}, not {surface!r}")
    if not key:
        if storage.exists(storage.join(storage.absolute(place), "dataset.json")):
            some = ", ".join(itertools.islice(dataset.open_dataset(place), N_NAMED))
            raise UsageError(f"{place}: is a dataset; name the KEY of a volume in it too{some and f', such as {some}'}")
        return _draw_source(place, config.given(settings), surface)
    opened = dataset.open_dataset(place)
    if surface is None and key not in opened and (record := _record_without_volume(opened, key)):
        return _draw_without_volume(
            key, record.reason or "", record.message or "", record.url, record.series_uid_sha256
        )
    views = views_of_stored(place, key, with_source=with_source, label=label)
    return Shown(key, _draw_views(key, views, surface))


def views_of_stored(
    target: str | os.PathLike[str], key: str, *, with_source: bool = False, label: str | None = None
) -> list[View]:
    """Return the view of a volume in a dataset, with `with_source` after that of the series it was made from.

    Raises UsageError if there is no such volume or label; it says what became of the key.
    """
    opened = dataset.open_dataset(target)
    try:
        stored = opened[key]
    except KeyError as error:
        raise UsageError(str(error.args[0])) from error
    views = [picture.of_stored(stored, label)]
    if with_source:
        settings = config.from_dict(opened.settings, f"{target}: dataset.json")
        record = stored.record
        if not record.url:
            raise UsageError(f"{target}: has hashed keys, and does not say where {key} came from; show its source")
        views.insert(0, _view_as_acquired(record.url, settings, record.series_uid_sha256, record.stack))
    return views


def views_of_source(url: str, found: Found, settings: PrepConfig) -> list[View]:
    """Return the views of a series of a source: as acquired, and as a run would write it.

    Raises Refusal if the series cannot be made into a volume.
    """
    prepared = prepare.prepare(made_of(found), settings)
    return [_view_as_acquired(url, settings, *found.name[:2]), picture.of_prepared(prepared)]


def _draw_source(place: str | os.PathLike[str], settings: PrepConfig, surface: str | None) -> Shown:
    """Draw the largest series that can be written, or if there is none the largest, with the reason."""
    case = only_case(place)
    user_steps.check(settings)
    try:
        every = find_series(case.url, settings)
    except Refusal as refusal:
        if surface:
            raise
        return _draw_without_volume(case.key, refusal.reason, refusal.message, case.url, None)
    refusals: dict[Name, Refusal] = {}
    for found in every:
        try:
            views = views_of_source(case.url, found, settings)
        except Refusal as refusal:  # of good headers too: what is wrong with pixels shows when they are decoded
            refusals[found.name] = refusal
            continue
        note = _note(found, every, refusals)
        views[0].words.extend([note] if note else [])
        return Shown(case.key, _draw_views(case.key, views, surface), note=note)
    largest = max(every, key=lambda found: found.n_slices)
    why = refusals[largest.name]
    if surface:
        raise why
    note = _note(largest, every, refusals)
    return _draw_without_volume(case.key, why.reason, why.message, case.url, largest.name.uid_sha256, note)


def _note(taken: Found, every: Sequence[Found], refusals: Mapping[Name, Refusal]) -> str:
    """Say which of several series was taken; nothing if there is but one."""
    told = [found._replace(made=refusals.get(found.name, found.made)) for found in every]
    others = [found for found in told if found.name != taken.name]
    (taken,) = (found for found in told if found.name == taken.name)
    return describe_choice(taken, others) if others else ""


def _draw_views(title: str, views: list[View], surface: str | None) -> bytes:
    return picture.draw_surface(title, views[-1], surface) if surface else picture.draw(title, *views)


def _draw_without_volume(
    key: str, reason: str, message: str, url: str, uid_sha256: str | None, note: str = ""
) -> Shown:
    """Draw what can be drawn of a series that is refused or set aside.

    A source that cannot be read any more leaves the reason alone, and so does one that is not known, as in a dataset
    with hashed keys.
    """
    words = [note] if note else []
    try:
        drawn = remains.read(url, uid_sha256) if url else None
        if drawn and reason in ("not-hu", "hu-implausible"):
            drawn = replace(drawn, trust=max(drawn.trust, remains.Trust.PLACE))
    except (DskprepError, OSError, Outgrown) as error:
        drawn = None
        words.append(f"its source cannot be read: {error}")
    png, why = refused.draw(key, reason, message, drawn, words), f"{reason}: {message}"
    if reason in SET_ASIDE:
        return Shown(key, png, set_aside=why, note=note)
    return Shown(key, png, refusal=why, note=note)


def _record_without_volume(opened: Dataset, key: str) -> Record | None:
    """Return the record of a series that was refused or set aside, None if there is none of this key."""
    name = opened.names_of("refused", "set-aside").get(key)
    return store.read_record(opened.url, name) if name else None


def _view_as_acquired(url: str, settings: PrepConfig, uid_sha256: str | None = None, stack: int | None = None) -> View:
    """Read a series as it was acquired: without the recipe, since one of 2017 may read other HU from it."""
    names = ("min_slices", "on_gap", "max_gap_slices", "stacks", "check_hu")
    plain = PrepConfig(**{name: getattr(settings, name) for name in names})
    return picture.of_series(read_series(url, plain, uid_sha256=uid_sha256, stack=stack))

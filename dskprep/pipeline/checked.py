"""All that can be wrong with a run and shows without workers: places, settings, an empty source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dskprep import settings as config
from dskprep import storage
from dskprep.dataset import licences, store, target_place
from dskprep.errors import UsageError
from dskprep.patterns import as_patterns
from dskprep.pipeline import hashed_keys
from dskprep.pipeline.survey import Asked, marked
from dskprep.preparation import user_steps
from dskprep.settings import PrepConfig
from dskprep.source import cases as discover
from dskprep.source import idc
from dskprep.source.case import Case, outside

RETRIES: dict[str | None, tuple[str, ...]] = {
    None: (),
    "refused": ("refused",),
    "failed": ("failed", "killed"),
    "set-aside": ("set-aside",),
    "all": ("set-aside", "refused", "failed", "killed"),
}
"""Which statuses are done again, by the value of `retry`."""


@dataclass(frozen=True)
class Checked:
    """A run that can begin, as far as that is known without workers: see `run` for what it holds.

    With `asked`, one series per study or patient is chosen of all cases, and then of these what is asked for.
    """

    source: str
    place: str
    target: str
    settings: PrepConfig
    cases: Iterator[Case]
    asked: Asked | None
    again: tuple[str, ...]
    labels: Sequence[str]
    keys: str | None
    mapping: hashed_keys.Mapping | None


def check(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    settings: PrepConfig,
    limit: int | None = None,
    only: str | None = None,
    retry: str | None = None,
    patient_folders: bool = False,
    licence: str | None = None,
    labels: Sequence[str] = (),
    keys: str | None = None,
    mapping: str | os.PathLike[str] | None = None,
) -> Checked:
    """Look at all that can be wrong with a run before there are workers. Arguments and errors are those of `run`."""
    place, target = discover.where(source), storage.absolute(target)
    source = str(source) if idc.is_in_words(source) else place
    labels = as_patterns(labels, "labels")
    if labels and (idc.is_in_words(source) or idc.is_manifest(source)):
        raise UsageError(f"{source:.200}: labels of these series are given by dskprep annotate; leave --labels out")
    if storage.is_within(target, place):
        raise UsageError(f"the target {target} lies inside the source {source}; choose a place outside it")
    if storage.is_within(place, target):
        raise UsageError(f"the source {source} lies inside the target {target}; choose another target")
    if keys not in hashed_keys.KEYS:
        raise UsageError(f"keys must be folder or hashed, not {keys!r:.80}")
    if mapping is not None and not str(mapping):
        raise UsageError("mapping: expected a file, found an empty name; is a variable of the shell not set?")
    if mapping and keys == "folder":
        raise UsageError("a mapping says which hashed key is whose; leave it out, or ask for hashed keys")
    if retry not in RETRIES:
        raise UsageError(f"retry must be refused, failed, set-aside or all, not {retry!r}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be 1 or more, not {limit}")
    settings = config.given(settings)
    user_steps.check(settings)
    if not idc.is_in_words(source):
        storage.meet(place)
        target_place.refuse_as_source(place)
    asked = Asked(only, limit)
    is_choice = settings.select is not None and not patient_folders  # there, each patient is chosen from on its own
    of_these = Asked() if is_choice else asked
    cases = discover.choose(source, **of_these._asdict(), patient_folders=patient_folders, licence=licence)
    cases = outside(marked(cases, only) if is_choice else cases, target)
    for each in (place, target):
        storage.meet(each)  # the buckets of a source in words only now: without its tables nobody need be asked
    keys = "hashed" if mapping else keys
    mapped = hashed_keys.Mapping(mapping, place, target) if mapping else None
    store.check_settings(target, settings, keys)
    if licence:
        licences.check_commercial(target)
    chosen_of = asked if is_choice else None
    return Checked(source, place, target, settings, cases, chosen_of, RETRIES[retry], labels, keys, mapped)

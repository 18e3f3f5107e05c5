"""Lungs that a function of the user's own finds, such as a network, compared with those that dskprep finds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from dskprep.preparation import mask_slots, user_steps
from dskprep.preparation.lungs import agreement, lungs
from dskprep.settings import PrepConfig
from dskprep.stopwatch import Stopwatch
from dskprep.volume import Volume


def find_lungs(path: str, image: Volume, config: PrepConfig, clock: Stopwatch) -> lungs.Lungs:
    """Find the lungs in an image (int16 HU, PADDING outside the field of view) with the function of that path.

    If it runs out of memory, the lungs are those that dskprep finds, with the warning `lungs-fallback`. Raises
    StepFailed if the function raises, or returns something else than a mask.
    """
    mask = None
    with suppress(user_steps.OutOfMemory):
        mask = _ask(path, image, config, clock)
    with clock("lungs"):
        own = lungs.find_lungs(image)
        if mask is None:
            found = replace(own, warnings=(*own.warnings, "lungs-fallback"))
        else:
            found = agreement.compare(lungs.judge(mask), own)
        return lungs.grow(found, config.lung_margin_mm)


def _ask(path: str, image: Volume, config: PrepConfig, clock: Stopwatch) -> Volume:
    if not config.mask_slots:
        with clock("lungs"):
            return user_steps.find_lungs(path, image)
    with mask_slots.take(path, config.mask_slots) as slot, clock("lungs"):  # to wait is no part of the stage
        return slot.find_lungs(image)

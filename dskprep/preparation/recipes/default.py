"""Recipe `default`: HU on a grid of even spacing along the patient's axes, and the lungs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np

from dskprep.preparation import curation, mask_slots, resample, user_steps
from dskprep.preparation.lungs import agreement, lungs
from dskprep.preparation.prepared import Prepared
from dskprep.preparation.recipes import ENCODING_SHARE, Memory, Native, Recipe
from dskprep.series import upright
from dskprep.settings import PrepConfig
from dskprep.stopwatch import Stopwatch
from dskprep.volume import AIR_HU, PADDING, Volume

STEP_SHARE = 2.5
"""Bytes per byte of the image during a step of the user's: input, output (taken to be int16 too), mask (0.5)."""

MASK_SHARE = 2.5
"""Bytes per byte of the image while a function of the user's finds the lungs: it, two masks, what is made of them.

The copy that the function is given in the same process comes on top.
"""


def prepare(native: Native, config: PrepConfig, clock: Stopwatch) -> Prepared:
    """Resample, find the lungs, look at the image, turn padding into air, apply the user's steps."""
    with clock("resample"):
        image = _resample(native, config)
    found = _find_lungs(image, config, clock) if config.lungs else None
    with clock("lungs"):
        looked = curation.measure(image, found.mask if found else None)
    for plane in image.array:  # in place: the array is ours, and a copy would be the peak of a patient's memory
        plane[plane == PADDING] = AIR_HU
    for step in config.steps:
        with clock("steps"):
            image = user_steps.apply(step, image, keep_grid=found is not None)
    if image.array.dtype == np.int16:
        return Prepared(image, found, curation=looked)
    return Prepared(image, found, values="own", fill=0, curation=looked)


def _resample(native: Native, config: PrepConfig) -> Volume:
    """Resample slices as they come, and turn the image to the patient's axes at the end."""
    patient_axes = upright.patient_order(native.grid.affine)
    z, y, x = (spacing for _, spacing in sorted(zip(patient_axes, config.spacing_mm, strict=True)))
    image = resample.of_planes(native.planes(), native.grid, (z, y, x), smooth=config.smooth)
    return upright.to_patient_axes(image)


def _find_lungs(image: Volume, config: PrepConfig, clock: Stopwatch) -> lungs.Lungs:
    if isinstance(config.lungs, str):
        return _find_by_own(config.lungs, image, config, clock)
    with clock("lungs"):
        return lungs.find_lungs(image, margin_mm=config.lung_margin_mm)


def _find_by_own(path: str, image: Volume, config: PrepConfig, clock: Stopwatch) -> lungs.Lungs:
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
        with clock("lungs"):  # a copy, as many functions clip or scale their input in place
            return user_steps.find_lungs(path, image.with_array(image.array.copy()))
    with mask_slots.take(path, config.mask_slots) as slot, clock("lungs"):  # to wait is no part of the stage
        return slot.find_lungs(image)


def memory(n_native: int, n_output: float, config: PrepConfig) -> Memory:  # noqa: ARG001
    """Return the memory of `prepare`: slices go as the image grows, and later only a step or a network needs much."""
    output = 2 * n_output
    computing, encoding = output, (STEP_SHARE if config.steps else ENCODING_SHARE) * output
    if isinstance(config.lungs, str):
        computing = MASK_SHARE * output + (0 if config.mask_slots else output + config.mask_bytes)
    return Memory(computing, encoding)


RECIPE = Recipe("default", prepare, memory, streams=True)

"""The slices of one series to a volume in HU."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dskprep import geometry, intensity, pixels
from dskprep.dicom import Slice
from dskprep.errors import Refusal
from dskprep.volume import Volume


@dataclass(frozen=True, eq=False)
class Series:
    """A series put right.

    `volume` is int16 HU (z, y, x) along the patient's axes, PADDING where nothing was measured;
    `hu_sha256` is over the HU as acquired (little-endian int16, slices by position along the normal,
    padding as the scanner wrote it); `warnings` are words of errors.WARNINGS.
    """

    volume: Volume
    hu_sha256: str
    warnings: tuple[str, ...]
    first_gap_mm: float
    """How far the first two slices are apart along the patient's z axis."""
    facts: dict[str, str | int | float]


def assemble(
    slices: list[Slice], *, min_slices: int = 10, max_bytes: int | None = None, to_hu: intensity.ToHU | None = None
) -> Series:
    """Order the slices of one series, decode them and make their volume. Empties `slices` as it goes.

    With `to_hu`, a recipe's way to HU, the volume is as the recipes of 2017 had it: padding is not marked,
    and slices lie as they were stored, from foot to head.

    Raises Refusal if they make no volume, or one of more than `max_bytes`.
    """
    planes = [s.plane for s in slices]
    stack = geometry.stack_up(planes, min_slices=min_slices, is_copy=lambda a, b: _is_copy(slices[a], slices[b]))
    chosen = [slices[i] for i in stack.order]
    slices.clear()
    facts = _facts(chosen, stack)
    warnings = list(stack.warnings)
    if len({(s.slope, s.intercept) for s in chosen}) > 1:
        warnings.append("mixed-rescale")
    if any(s.is_lossy or s.layout.transfer_syntax in pixels.LOSSY for s in chosen):
        warnings.append("lossy-compression")
    shape = (len(chosen), *chosen[0].plane.shape)
    n_bytes = 2 * shape[0] * shape[1] * shape[2]
    if max_bytes is not None and n_bytes > max_bytes:
        raise Refusal("too-large", f"{shape} voxels need {n_bytes} bytes, more than the {max_bytes} there are")
    first_gap_mm = _first_gap_mm(chosen)
    array, digest, n_clipped = _decode(chosen, shape, to_hu)
    if n_clipped:
        warnings.append("hu-clipped")
    volume = Volume(array, stack.affine)
    volume = geometry.to_patient_axes(volume) if to_hu is None else geometry.upwards(volume)
    return Series(volume, digest, tuple(warnings), first_gap_mm, facts)


def _first_gap_mm(chosen: list[Slice]) -> float:
    """Distance in z of the two lowest slices."""
    low, next_ = sorted(s.plane.position[2] for s in chosen)[:2]
    return abs(low - next_)


def _decode(
    chosen: list[Slice], shape: tuple[int, int, int], to_hu: intensity.ToHU | None
) -> tuple[NDArray[np.int16], str, int]:
    """HU of every slice, one after another, each slice's encoded pixels freed when it is done."""
    array = np.empty(shape, np.int16)
    sha256 = hashlib.sha256()
    n_clipped = 0
    chosen.reverse()
    for plane in array:
        s = chosen.pop()
        stored = pixels.stored_values(s.data, s.layout, s.name)
        intensity.to_hu(stored, s.slope, s.intercept, out=plane)
        sha256.update(plane.astype("<i2", copy=False).data)
        if to_hu is not None:
            to_hu(stored, s.slope, s.intercept, plane)
            continue
        intensity.mark_padding(plane, _padding_hu(s))
        n_clipped += int(np.count_nonzero(plane == intensity.INT16_HU[1]))
    return array, sha256.hexdigest(), n_clipped


def _padding_hu(s: Slice) -> tuple[int, int] | None:
    """The declared padding in HU, rounded and clipped as the slice is."""
    if s.padding is None:
        return None
    low, high = sorted(intensity.to_hu(np.array([s.padding], np.int64), s.slope, s.intercept)[0].tolist())
    return low, high


def _facts(chosen: list[Slice], stack: geometry.Stack) -> dict[str, str | int | float]:
    """What the record says of the source: the commonest value of each attribute, and the geometry."""
    facts: dict[str, str | int | float] = {
        key: Counter(s.facts[key] for s in chosen).most_common(1)[0][0] for key in chosen[0].facts
    }
    z, y, x = (float(v) for v in np.linalg.norm(stack.affine[:3, :3], axis=0))
    facts.update(slices=len(chosen), rows=chosen[0].layout.rows, columns=chosen[0].layout.columns)
    facts.update(step_mm=round(z, 6), row_spacing_mm=y, column_spacing_mm=x)
    for axis, value in zip("xyz", stack.affine[:3, 3], strict=True):
        facts[f"first_{axis}_mm"] = round(float(value), 4)
    return facts


def _is_copy(a: Slice, b: Slice) -> bool:
    """Whether pixels and rescale are equal."""
    return (a.layout, a.slope, a.intercept, a.data) == (b.layout, b.slope, b.intercept, b.data)

"""Whether the values of a series can be Hounsfield units, judged from their histogram.

On the Hounsfield scale air is -1000, fat -100, water 0 and soft tissue 20 to 80 (DICOM PS3.3 C.11.1.1.2). A wrong
rescale moves all of them together. The rules look for something in the wrong place, never for something that is
missing: a scan may hold no air, no tissue, or neither. What they find on real scans is in docs/geometry.md.
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

from dskprep.kernels import values
from dskprep.series.hounsfield import AIR_RANGE_HU, IMPOSSIBLE_HU
from dskprep.volume import PADDING

MIN_VALUES = 2000
"""Fewer values than this, measured and counted, say nothing."""
DENSE_HU = 2000
"""Few voxels lie above: bone ends near 2000; metal and enamel, which do not, are small."""
NARROW_HU = 50
"""Noise of air spreads wider than this; that of water in a phantom may not, where it was smoothed away."""
MAX_RESCALES = 4
"""Rescales whose slices are judged by themselves; some makers give each slice its own."""
REACH = 1 << 15
"""Values from -REACH to REACH - 1 are counted, one by one."""

Counts = NDArray[np.int64]


class Histogram:
    """The values of a series from -REACH to REACH - 1, counted in a quarter of its rows and half of its columns."""

    def __init__(self) -> None:
        # not by malloc: a block of this size that lives as long as the series makes malloc keep the memory of decoded
        # slices, and a worker's peak 5 % higher
        self.counts: Counts = np.frombuffer(mmap.mmap(-1, 2 * REACH * 8), np.int64)
        self._fills: set[tuple[int, int]] = set()

    def add(self, hu: NDArray[np.int16], fills: set[tuple[int, int]]) -> None:
        """Count a slice (y, x) of int16 HU. `fills` are ranges of values that say nothing (see `find_fills`)."""
        values.count_values(hu, self.counts)
        self._fills |= fills

    def with_all(self, others: list[Histogram]) -> Histogram:
        """Return one histogram of these."""
        together = Histogram()
        for one in (self, *others):
            together.counts += one.counts
            together._fills |= one._fills
        return together

    def measured(self) -> Counts:
        """Return how often each value was found, without the values that fill."""
        counts = self.counts.copy()
        for low, high in (*self._fills, (PADDING, PADDING)):
            counts[low + REACH : high + REACH + 1] = 0
        counts[counts[: IMPOSSIBLE_HU + REACH].argmax()] = 0  # padding that no header declares, and no corner shows
        return counts


class Histograms:
    """The values of a series, by the rescale of its slices: a few may have lost theirs."""

    def __init__(self) -> None:
        self._by_rescale: dict[tuple[float, float] | None, Histogram] = {}

    def of(self, slope: float, intercept: float) -> Histogram:
        """Return where the slices with this rescale are counted: beyond MAX_RESCALES, all others together."""
        rescale: tuple[float, float] | None = (slope, intercept)
        if rescale not in self._by_rescale:
            rescale = rescale if len(self._by_rescale) < MAX_RESCALES else None
        if rescale not in self._by_rescale:
            self._by_rescale[rescale] = Histogram()
        return self._by_rescale[rescale]

    def what_else(self) -> str | None:
        """Say what the values that cannot be HU look like: all of them, or those of one rescale."""
        found = what_else(self._together())
        for rescale, histogram in self._by_rescale.items():
            own = what_else(histogram) if rescale and not found else None
            if rescale and own:
                found = f"in slices of slope {rescale[0]:g} and intercept {rescale[1]:g} {own}"
        return found

    def show_hu(self) -> bool:
        """Tell whether the values show that they are HU (see `show_hu`)."""
        return show_hu(self._together())

    def _together(self) -> Histogram:
        first, *others = self._by_rescale.values()
        return first.with_all(others) if others else first


def what_else(histogram: Histogram) -> str | None:
    """Say what values that cannot be HU look like; None if they can be HU, or are too few to tell."""
    found = np.flatnonzero(histogram.counts) - REACH
    is_narrow = len(found) > 0 and np.ptp(found) <= (NARROW_HU if found[-1] < AIR_RANGE_HU[1] else 2)
    if is_narrow and histogram.counts.sum() >= MIN_VALUES:
        return f"nothing but {found[0]} to {found[-1]}, such as a blank image or one that was scaled down"
    counts = histogram.measured()
    n = int(counts.sum())
    if n < MIN_VALUES:
        return None

    def share(start: int, stop: int) -> float:
        return float(counts[start + REACH : stop + REACH].sum()) / n

    if share(DENSE_HU, REACH) > 0.15:
        return f"{share(DENSE_HU, REACH):.0%} of the values lie above {DENSE_HU}, such as raw or scaled ones"
    if _are_bytes(counts):
        return "8-bit grey values"
    # tissue near 1000: sharply above what lies just below it, as bone is not, or without any fat or air
    is_peak = share(824, 1224) > 3 * share(400, 800) or share(-REACH, -100) < 0.002
    if share(-REACH, -500) < 0.02 and share(824, 1224) > 0.03 and is_peak:
        return f"no rescale: nothing is air, and {share(824, 1224):.0%} of the values lie between 824 and 1224"
    if share(-500, REACH) < 0.04 and share(-1224, -824) > 0.2 and share(-REACH, -1200) > 0.02:
        return f"rescaled twice: the values that should be tissue lie near -1000, and air below {IMPOSSIBLE_HU}"
    if share(-REACH, -650) < 0.005 and share(-650, -250) > 0.15:
        return f"an offset: nothing is air, and {share(-650, -250):.0%} of the values lie between -650 and -250"
    too_low = share(-REACH, IMPOSSIBLE_HU)
    if too_low > 0.2:
        return f"{too_low:.0%} of the values lie below {IMPOSSIBLE_HU}, and differ too much for padding"
    return None


def show_hu(histogram: Histogram) -> bool:
    """Tell whether the values show that they are HU: air and soft tissue, each where it belongs, and little beyond."""
    counts = histogram.measured()
    n = int(counts.sum())
    air, tissue, within = (
        int(counts[start + REACH : stop + REACH].sum()) for start, stop in ((-1100, -750), (-200, 200), (-1200, 2000))
    )
    return (
        n >= MIN_VALUES and air > 0.01 * n and tissue > 0.03 * n and within > 0.95 * n and what_else(histogram) is None
    )


def _are_bytes(counts: Counts) -> bool:
    """Tell whether the values are grey values of an export: 256 at most, from 0 on or where no tissue is.

    Those of a narrow window of HU, such as 0 to 80 for the brain, pile up at its upper end; those of air lie close
    together.
    """
    found = np.flatnonzero(counts)
    lowest, highest = int(found[0]) - REACH, int(found[-1]) - REACH
    if highest - lowest > 255 or len(found) < 60:
        return False
    if lowest >= 0:
        return highest >= 200 or counts[found[-1]] <= 0.01 * counts.sum()
    middle = np.searchsorted(np.cumsum(counts), counts.sum() / 2)
    is_air = counts[found[-1]] <= 0.01 * counts.sum() and counts[middle - 64 : middle + 65].sum() > 0.85 * counts.sum()
    return not is_air and (highest < -200 or lowest > 200)

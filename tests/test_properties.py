"""Any series, good or spoilt: the right volume, or the refusal that names what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from builders import AXIAL, CORONAL, SAGITTAL, File, assembled, ct_files, decoded, normal_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.series.series import Decoded
from dskprep.volume import PADDING

SHAPE, PIXEL_MM = (9, 11), (0.75, 0.5)


def turned(quaternion: tuple[float, ...]) -> tuple[float, ...]:
    """Row and column directions turned by any angle about any axis."""
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    row = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    return *row, 2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)


quaternions = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: float(np.linalg.norm(q)) > 0.1)
orientations = st.sampled_from([AXIAL, CORONAL, SAGITTAL]) | quaternions.map(turned)


@dataclass
class Scan:
    """What was scanned, slice by slice, and what is done to its files."""

    orientation: tuple[float, ...]
    n: int
    step_mm: float
    lean: tuple[float, float]  # mm along the columns and rows for each mm along the normal
    slopes: list[float]
    first: tuple[float, ...]
    order: Any
    lost: set[int] = field(default_factory=set)
    copied: set[int] = field(default_factory=set)
    contradicted: set[int] = field(default_factory=set)
    moved: int | None = None

    def lean_mm(self) -> NDArray[np.float64]:
        row, column = np.reshape(np.array(self.orientation), (2, 3))
        return self.lean[0] * column + self.lean[1] * row

    def places(self, k: int) -> NDArray[np.float64]:
        """Where the pixels of slice k lie: DICOM PS3.3 equation C.7.6.2.1-1."""
        row, column = np.reshape(np.array(self.orientation), (2, 3))
        start = np.array(self.first) + k * self.step_mm * (normal_of(self.orientation) + self.lean_mm())
        j, i = (v.ravel()[:, None] for v in np.indices(SHAPE))
        return start + j * PIXEL_MM[0] * column + i * PIXEL_MM[1] * row

    def stored(self, k: int) -> NDArray[np.int16]:
        return np.rint((body(self.places(k) - self.first) + 1024) / self.slopes[k]).reshape(SHAPE).astype(np.int16)

    def hu(self, k: int) -> NDArray[np.float64]:
        return np.rint(self.stored(k) * self.slopes[k] - 1024)

    def files(self) -> list[File]:
        positions = [k * self.step_mm for k in range(self.n)]
        if self.moved is not None:
            positions[self.moved] += 0.35 * self.step_mm
        files = []
        for k in range(self.n):
            made = ct_files(
                np.stack([self.stored(k), self.stored(k) + 1]),
                first=self.first,
                orientation=self.orientation,
                positions_mm=[positions[k]] * 2,
                lean=self.lean_mm(),
                PixelSpacing=list(PIXEL_MM),
                RescaleSlope=self.slopes[k],
            )
            if k not in self.lost:
                files += [(f"a{k}", made[0][1])]
                files += [(f"b{k}", made[0][1])] * (k in self.copied) + [(f"c{k}", made[1][1])] * (
                    k in self.contradicted
                )
        self.order.shuffle(files)
        return files


def body(offsets_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """HU that change evenly, so that linear interpolation is exact."""
    return offsets_mm @ [9.0, -7.0, 5.0] + 200


@st.composite
def scans(draw: st.DrawFn, *, n: tuple[int, int] = (5, 16), is_tilted: bool = False) -> Scan:
    count = draw(st.integers(*n))
    angle, turn = draw(st.floats(4, 34)), draw(st.floats(0, 2 * np.pi))
    slope = float(np.tan(np.radians(angle)))
    return Scan(
        orientation=tuple(round(v, 10) for v in draw(orientations)),
        n=count,
        step_mm=draw(st.integers(60, 500)) / 100,
        lean=(slope * float(np.cos(turn)), slope * float(np.sin(turn))) if is_tilted else (0.0, 0.0),
        slopes=draw(st.lists(st.sampled_from([1.0, 0.5, 1.25]), min_size=count, max_size=count)),
        first=draw(st.tuples(*[st.integers(-40000, 40000).map(lambda v: v / 100)] * 3)),
        order=draw(st.randoms(use_true_random=False)),
    )


def refusal_of(scan: Scan, **options: Any) -> str:
    with pytest.raises(Refusal) as caught:
        decoded(scan.files(), **options)
    assert "\n" not in caught.value.message
    return caught.value.reason


def check(scan: Scan, found: Decoded) -> None:
    """Every acquired pixel is in the volume at its place; every value of the volume is the body's there."""
    volume = found.volume
    for k in sorted(set(range(scan.n)) - scan.lost):
        index = volume.to_index(scan.places(k))
        nearest = np.rint(index).astype(int)
        assert ((nearest >= 0) & (nearest < volume.shape)).all()
        if not any(scan.lean):
            assert np.abs((index - nearest) * volume.spacing).max() < 1e-3
            assert (volume.array[tuple(nearest.T)] == scan.hu(k).ravel()).all()
    is_measured = (volume.array != PADDING).ravel()
    everywhere = volume.to_patient(np.indices(volume.shape).reshape(3, -1).T)
    off = np.abs(volume.array.ravel() - body(everywhere - scan.first))[is_measured]
    rim = 0.5 * 9 * max(PIXEL_MM) * 2 if any(scan.lean) else 0.0  # half a pixel, where an edge value continues
    assert off.max() <= 1.8 + rim
    assert np.median(off) <= 1.2
    axes = volume.affine[:3, :3] / volume.spacing
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-5)
    assert (np.diag(axes[::-1])[[0, 1, 2]] > 0).all()  # towards superior, posterior, left


quick = settings(max_examples=30, deadline=None, derandomize=True)


@quick
@given(scans())
def test_a_good_series_is_its_volume(scan: Scan) -> None:
    found = decoded(scan.files())
    assert set(found.warnings) <= {"mixed-rescale"}
    check(scan, found)


@pytest.mark.slow
@quick
@given(scans(is_tilted=True))
def test_a_tilted_series_is_the_body_upright(scan: Scan) -> None:
    assume(np.hypot(*scan.lean) * scan.step_mm * (scan.n - 1) > 1)  # more than what rounded headers may drift
    found = decoded(scan.files())
    assert "tilt-corrected" in found.warnings
    assert assembled(scan.files()).facts["tilt_degrees"] == pytest.approx(
        np.degrees(np.arctan(np.hypot(*scan.lean))), abs=1
    )
    check(scan, found)


@quick
@given(scans(n=(10, 16), is_tilted=True))
def test_a_series_that_leans_too_far_is_refused(scan: Scan) -> None:
    scan.lean = (scan.lean[0] + np.copysign(1, scan.lean[0]), scan.lean[1])
    assert refusal_of(scan) == "gantry-tilt"


@pytest.mark.slow
@quick
@given(scans(n=(11, 22)), st.data())
def test_a_gap_is_refused_or_filled_as_asked(scan: Scan, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, scan.n - 3))
    scan.lost = {first} if data.draw(st.booleans()) else {first, first + 1}
    assert refusal_of(scan) == "missing-slices"
    for allowed in (1, 2):
        if len(scan.lost) <= min(allowed, 0.1 * scan.n):
            found = decoded(scan.files(), max_gap_slices=allowed)
            assert "gap-interpolated" in found.warnings
            facts = assembled(scan.files(), max_gap_slices=allowed).facts
            assert len(str(facts["interpolated_mm"]).split()) == len(scan.lost)
            assert sorted(found.volume.shape) == sorted([scan.n, *SHAPE])
            check(scan, found)
        else:
            assert refusal_of(scan, max_gap_slices=allowed) == "missing-slices"


@quick
@given(scans(), st.data())
def test_copies_change_nothing(scan: Scan, data: st.DataObject) -> None:
    scan.copied = data.draw(st.sets(st.integers(0, scan.n - 1), min_size=1))
    found = decoded(scan.files())
    assert "identical-duplicates-dropped" in found.warnings
    check(scan, found)


@quick
@given(scans(), st.data())
def test_contradicting_slices_are_refused(scan: Scan, data: st.DataObject) -> None:
    scan.contradicted = data.draw(st.sets(st.integers(0, scan.n - 1), min_size=1))
    assert refusal_of(scan) == "duplicate-positions"


@quick
@given(scans(n=(6, 16)), st.data())
def test_a_slice_out_of_step_is_refused(scan: Scan, data: st.DataObject) -> None:
    scan.moved = data.draw(st.integers(1, scan.n - 2))
    assert refusal_of(scan) == "uneven-spacing"
    assert refusal_of(scan, max_gap_slices=5) == "uneven-spacing"

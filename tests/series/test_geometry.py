"""Which slices make a volume, in which order, and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import AXIAL, CORONAL, SAGITTAL, normal_of
from numpy.typing import ArrayLike

from dskprep.dicom.plane import Plane
from dskprep.errors import Refusal
from dskprep.series.stacks import Stack, stack_up
from dskprep.series.upright import to_patient_axes
from dskprep.volume import Volume


def make_planes(
    along: ArrayLike, *, orientation: ArrayLike = AXIAL, shift: ArrayLike = (0, 0, 0), **changes: object
) -> list[Plane]:
    """Planes at positions (mm) along their normal; `shift` is added once a mm."""
    row, column = (tuple(v) for v in np.reshape(np.asarray(orientation, float), (2, 3)).tolist())
    first = Plane((8, 9), (0.75, 0.5), (0, 0, 0), row, column)
    normal = normal_of(orientation)
    places = [np.array([-10.0, -20.0, -30.0]) + mm * (normal + shift) for mm in np.asarray(along, float)]
    return [replace(first, position=tuple(place.tolist()), **changes) for place in places]  # type: ignore[arg-type]


def stacked(planes: list[Plane], min_slices: int = 3) -> Stack:
    return stack_up(planes, min_slices=min_slices)


def refusal_of(planes: list[Plane], min_slices: int = 3) -> Refusal:
    with pytest.raises(Refusal) as caught:
        stack_up(planes, min_slices=min_slices)
    assert "\n" not in caught.value.message
    return caught.value


STEPS = np.arange(20) * 2.5


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, (1, 0, 0, 0, -1, 0), (0.8, 0.6, 0, -0.6, 0.8, 0)])
def test_slices_are_ordered_along_their_normal(orientation: tuple[float, ...]) -> None:
    shuffled = np.random.default_rng(0).permutation(20)
    stack = stacked(make_planes(STEPS[shuffled], orientation=orientation))
    assert [shuffled[i] for i in stack.order] == list(range(20))
    assert stack.layout.grid.affine[:3, 0] == pytest.approx(2.5 * normal_of(orientation))
    assert stack.layout.grid.affine[:3, 3] == pytest.approx([-10, -20, -30])


def test_pixel_spacing_is_row_distance_then_column_distance() -> None:
    affine = stacked(make_planes(STEPS)).layout.grid.affine
    assert affine[:3, 1] == pytest.approx([0, 0.75, 0])  # to the next row: posterior
    assert affine[:3, 2] == pytest.approx([0.5, 0, 0])  # to the next column: left


def test_a_missing_slice_is_refused_by_its_place() -> None:
    refusal = refusal_of(make_planes(np.delete(STEPS, [7, 8, 15])))
    assert refusal.reason == "missing-slices"
    assert "every 2.500 mm, found 3 missing" in refusal.message
    assert "-15.00 and -7.50, 5.00 and 10.00 mm" in refusal.message


@pytest.mark.parametrize("n", [4, 6, 10])
def test_no_gap_is_overlooked_in_a_short_stack(n: int) -> None:
    for lost in range(1, n - 1):
        assert refusal_of(make_planes(np.delete(STEPS[:n], lost))).reason in ("missing-slices", "uneven-spacing")


def test_a_gap_in_the_first_pair_is_seen() -> None:
    assert refusal_of(make_planes(np.delete(STEPS, 1))).reason == "missing-slices"


@pytest.mark.parametrize("step", [0.625, 0.75, 1.25, 3.2, 0.9765625])
@pytest.mark.parametrize("n", [20, 400])
def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even(step: float, n: int) -> None:
    stack = stacked(make_planes(np.round(np.arange(n) * step, 1)))
    assert np.linalg.norm(stack.layout.grid.affine[:3, 0]) == pytest.approx(step, abs=0.1 / n)


@pytest.mark.parametrize(
    ("step", "decimals"), [(0.33, 1), (0.45, 1), (0.3, 1), (0.4, 1), (0.67, 1), (0.05, 2), (3.27, 0), (5.0, 0)]
)
@pytest.mark.parametrize("n", [20, 400])
@pytest.mark.parametrize("orientation", [AXIAL, CORONAL])
def test_positions_may_be_off_by_as_much_as_the_header_rounds(
    step: float, decimals: int, n: int, orientation: ArrayLike
) -> None:
    planes = make_planes(np.arange(n) * step + 0.123, orientation=orientation)
    rounded = [replace(p, position=tuple(np.round(p.position, decimals).tolist())) for p in planes]
    stack = stacked(rounded)
    assert np.linalg.norm(stack.layout.grid.affine[:3, 0]) == pytest.approx(step, abs=10.0**-decimals / n)
    for lost in (1, n // 2, n - 2):
        assert refusal_of(rounded[:lost] + rounded[lost + 1 :]).reason in ("missing-slices", "uneven-spacing")


def test_the_same_distance_off_is_uneven_where_the_header_does_not_round() -> None:
    along = np.arange(20) * 0.3333
    along[7] += 0.05
    assert refusal_of(make_planes(along)).reason == "uneven-spacing"


@pytest.mark.parametrize("step", [0.625, 1.25])
def test_a_gap_is_found_among_rounded_positions(step: float) -> None:
    refusal = refusal_of(make_planes(np.delete(np.round(np.arange(400) * step, 1), 123)))
    assert refusal.reason == "missing-slices"
    assert "found 1 missing" in refusal.message


@pytest.mark.parametrize(
    "along",
    [
        [*range(10), *range(11, 31, 2)],  # thick slices join thin ones: 1 mm, then 2 mm
        [*range(0, 40, 4), *range(43, 113, 7)],
        [0, 1, 2, 3.5, 4, 5, 6, 7, 8, 9],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9.4],
        np.cumsum(np.linspace(1, 2, 20)),
    ],
)
def test_uneven_steps_are_refused(along: list[float]) -> None:
    assert refusal_of(make_planes(along)).reason in ("uneven-spacing", "missing-slices")


def test_uneven_steps_that_are_no_gaps_are_called_uneven() -> None:
    refusal = refusal_of(make_planes([0, 1, 2, 3.4, 4, 5, 6, 7, 8, 9]))
    assert refusal.reason == "uneven-spacing"
    assert "0.600 to 1.400 mm" in refusal.message


def test_too_few_positions_are_refused() -> None:
    refusal = refusal_of(make_planes([*STEPS[:9], STEPS[0]]), min_slices=10)
    assert (refusal.reason, "found 9 in 10 slices" in refusal.message) == ("too-few-slices", True)
    assert refusal_of([]).reason == "too-few-slices"
    assert refusal_of(make_planes([0]), min_slices=1).reason == "too-few-slices"
    assert len(stacked(make_planes([0, 3]), min_slices=1).order) == 2


def test_different_slices_at_one_position_are_refused() -> None:
    refusal = refusal_of(make_planes([*STEPS, 5.001]))
    assert refusal.reason == "duplicate-positions"
    assert "at -25.00 mm" in refusal.message


def test_copies_are_dropped_even_if_their_positions_are_written_otherwise() -> None:
    planes = make_planes([*STEPS, 5.0, 7.5004, 7.5])
    copies = {2: "a", 20: "a", 3: "b", 21: "b", 22: "b"}
    stack = stack_up(planes, min_slices=3, is_copy=lambda a, b: copies.get(a, a) == copies.get(b, b))
    assert len(stack.order) == 20
    assert stack.warnings == ("identical-duplicates-dropped",)


def test_copies_at_other_positions_stay() -> None:
    stack = stack_up(make_planes(STEPS), min_slices=3, is_copy=lambda _a, _b: True)
    assert len(stack.order) == 20


def test_of_several_stacks_the_longest_is_taken() -> None:
    first, second = make_planes(STEPS[:8], stack=("1",)), make_planes(STEPS, stack=("2",))
    mixed = [plane for pair in zip(first + [None] * 12, second, strict=True) for plane in pair if plane]
    stack = stacked(mixed)
    assert {mixed[i].stack for i in stack.order} == {("2",)}
    assert len(stack.order) == 20
    assert stack.warnings == ("one-of-several-stacks",)


def test_of_equal_stacks_the_first_by_its_tags_is_taken_in_any_order() -> None:
    planes = make_planes(STEPS, stack=("2",)) + make_planes(STEPS, stack=("1",))
    assert {planes[i].stack for i in stacked(planes).order} == {("1",)}
    assert {planes[::-1][i].stack for i in stacked(planes[::-1]).order} == {("1",)}


def test_tags_that_differ_do_not_part_a_stack_without_duplicates() -> None:
    planes = make_planes(STEPS[:10], stack=("1",)) + make_planes(STEPS[10:], stack=("2",))
    assert len(stacked(planes).order) == 20


def test_tags_that_differ_from_slice_to_slice_do_not_part_stacks() -> None:
    planes = [replace(plane, stack=(str(i),)) for i, plane in enumerate(make_planes([*STEPS, 5.0]))]
    assert refusal_of(planes).reason == "duplicate-positions"
    assert refusal_of(planes, min_slices=2).reason == "duplicate-positions"


def test_two_shifted_stacks_are_not_mixed() -> None:
    """Interleaved acquisitions without tags look like one uneven stack."""
    assert refusal_of(make_planes([*STEPS, *(STEPS + 1)])).reason == "uneven-spacing"


UP, DOWN = range(40), range(39, -1, -1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (UP, range(-10, 30)),
        (UP, range(49, 9, -1)),
        (UP, range(20, 60)),
        (UP, range(29, -11, -1)),
        (DOWN, range(-10, 30)),
        (DOWN, range(49, 9, -1)),
        (DOWN, range(29, -11, -1)),
        (UP, range(45, 5, -1)),
        (UP, range(-2, 38)),
        ([*range(20, 40), *range(20)], [*range(20, 40), *range(20)]),  # each in two parts
    ],
)
@pytest.mark.parametrize("longer", [0, 1])
@pytest.mark.parametrize("way", [0, 1])
def test_two_sweeps_are_told_apart_by_their_order_and_never_mixed(
    first: Sequence[int], second: Sequence[int], longer: int, way: int
) -> None:
    sweeps = [[*first], [*second]]
    del sweeps[1 - longer][-3:]
    made = [place for sweep in sweeps for place in sweep]
    planes = []
    for number, plane in enumerate(make_planes(np.array(made) * 6.0)):
        order = ["", ""]
        order[way] = f"{number:05}"
        planes.append(replace(plane, order=tuple(order)))
    stack = stacked(planes)
    of_sweep = {int(i >= len(sweeps[0])) for i in stack.order}
    assert of_sweep == {longer}
    assert len(stack.order) == 40
    assert "one-of-several-stacks" in stack.warnings
    assert "stacks-joined" not in stack.warnings


def test_slices_on_another_grid_that_reach_further_along_the_body_are_said() -> None:
    planes = make_planes(STEPS) + make_planes(STEPS[:8] + STEPS[-1] + 2.5, pixel_mm=(0.9, 0.9))
    stack = stacked(planes)
    assert stack.warnings == ("one-of-several-stacks", "body-left-out")
    assert stack.left_out_mm == pytest.approx(20.0)


def test_a_scout_in_the_series_is_left_out() -> None:
    scout = make_planes([3.0], orientation=CORONAL)
    stack = stacked(scout + make_planes(STEPS))
    assert stack.order == list(range(1, 21))
    assert stack.warnings == ("one-of-several-stacks",)
    assert np.linalg.norm(stack.layout.grid.affine[:3, 0]) == pytest.approx(2.5)


@pytest.mark.parametrize(
    "change", [{"shape": (9, 9)}, {"pixel_mm": (0.76, 0.5)}, {"orientation": (0.99995, 0.01, 0, -0.01, 0.99995, 0)}]
)
def test_two_grids_without_a_clear_majority_are_refused(change: dict[str, object]) -> None:
    planes = make_planes(STEPS) + make_planes(STEPS[:11] + 50, **change)  # type: ignore[arg-type]
    assert refusal_of(planes).reason == "mixed-geometry"


def test_headers_that_round_differently_share_a_grid() -> None:
    """Values on both sides of a rounding boundary are still the same."""
    tilted = (1, 0.0005, 0, -0.0005, 1, 0)
    planes = [
        *make_planes(STEPS[:10], orientation=tilted, pixel_mm=(0.70315, 0.5)),
        *make_planes(STEPS[10:], orientation=np.array(tilted) * 0.99999, pixel_mm=(0.7031499, 0.5)),
    ]
    assert len(stacked(planes).order) == 20


def tan(degrees: float) -> float:
    return float(np.tan(np.radians(degrees)))


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, (1, 0, 0, 0, 0.9483, -0.3173)])
@pytest.mark.parametrize(("lean_row", "lean_column"), [(0, 18.5), (0, -22), (-12, 0), (9, -15), (0, 34)])
def test_tilted_slices_lie_where_they_were_on_a_right_angled_grid(
    orientation: tuple[float, ...], lean_row: float, lean_column: float
) -> None:
    row, column = np.reshape(np.asarray(orientation, float), (2, 3))
    planes = make_planes(STEPS, orientation=orientation, shift=tan(lean_row) * row + tan(lean_column) * column)
    stack = stacked(planes)
    layout, grid = stack.layout, stack.layout.grid
    assert stack.warnings == ("tilt-corrected",)
    angle = np.degrees(np.arctan(np.hypot(tan(lean_row), tan(lean_column))))
    assert layout.tilt_degrees == pytest.approx(angle, abs=0.01)
    axes = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-4)
    corners = [(j, i) for j in (0, 7) for i in (0, 8)]
    for number, offset, k in zip(layout.numbers, layout.offsets, stack.order, strict=True):
        plane = planes[k]
        for j, i in corners:
            true = np.array(plane.position) + j * 0.75 * np.array(plane.column) + i * 0.5 * np.array(plane.row)
            index = (number, j + offset[0], i + offset[1])
            assert grid.to_patient(index) == pytest.approx(true, abs=1e-3)
            assert all(-1e-6 <= v <= n - 1 + 1e-3 for v, n in zip(index, grid.shape, strict=True))
    reach = abs(47.5 * np.array([tan(lean_column) / 0.75, tan(lean_row) / 0.5]))
    assert grid.shape == (20, *(np.array([8, 9]) + np.ceil(reach.round(3))).astype(int))


def test_a_tilt_beyond_any_gantry_is_refused() -> None:
    refusal = refusal_of(make_planes(STEPS, shift=(0, tan(36), 0)))
    assert refusal.reason == "gantry-tilt"
    assert "35 degrees at most, found slices sheared by 36.0" in refusal.message


@pytest.mark.parametrize("bend_mm", [np.linspace(0, 1, 20) ** 2 * 20, np.repeat([0, 6], 10)])
def test_a_tilt_that_is_not_constant_is_refused(bend_mm: ArrayLike) -> None:
    planes = [
        replace(plane, position=(plane.position[0], plane.position[1] + bend, plane.position[2]))
        for plane, bend in zip(make_planes(STEPS, shift=(0, tan(15), 0)), np.asarray(bend_mm), strict=True)
    ]
    refusal = refusal_of(planes)
    assert refusal.reason == "gantry-tilt"
    assert "expected one tilt" in refusal.message


def test_tilt_is_measured_on_the_whole_stack_and_rounded_positions_do_not_bend_it() -> None:
    planes = [
        replace(plane, position=tuple(np.round(plane.position, 1).tolist()))
        for plane in make_planes(np.arange(200) * 1.25, shift=(0, tan(20), 0))
    ]
    assert stacked(planes).layout.tilt_degrees == pytest.approx(20, abs=0.02)


def filled(planes: list[Plane], max_gap_slices: int) -> Stack:
    return stack_up(planes, min_slices=3, max_gap_slices=max_gap_slices)


@pytest.mark.parametrize(("lost", "allowed"), [([7], 1), ([7, 12], 1), ([7, 8], 2), ([1], 5)])
def test_a_small_gap_is_left_open_for_interpolation(lost: list[int], allowed: int) -> None:
    stack = filled(make_planes(np.delete(STEPS, lost)), allowed)
    assert list(stack.layout.numbers) == [k for k in range(20) if k not in lost]
    assert stack.layout.grid.shape == (20, 8, 9)
    assert stack.layout.gaps_mm == pytest.approx([-30 + STEPS[k] for k in lost])
    assert stack.warnings == ("gap-interpolated",)
    assert stack.layout.grid.affine == pytest.approx(stacked(make_planes(STEPS)).layout.grid.affine)


@pytest.mark.parametrize(("lost", "allowed"), [([7, 8], 1), ([5, 8, 11], 1), ([5, 8, 11], 5), ([7], 0)])
def test_a_larger_gap_is_refused_with_the_limits(lost: list[int], allowed: int) -> None:
    with pytest.raises(Refusal, match=f"found {len(lost)} missing") as caught:
        filled(make_planes(np.delete(STEPS, lost)), allowed)
    assert caught.value.reason == "missing-slices"
    assert (f"{allowed} in a row and 10% in all may be" in caught.value.message) == (allowed > 0)


def test_uneven_steps_are_no_gap_to_fill() -> None:
    with pytest.raises(Refusal, match="uneven-spacing"):
        filled(make_planes([0, 1, 2, 3.4, 4, 5, 6, 7, 8, 9]), 5)
    with pytest.raises(Refusal, match="uneven-spacing"):
        filled(make_planes([*range(10), *range(11, 31, 2)]), 5)


def test_a_slice_that_lies_aside_is_refused() -> None:
    planes = make_planes(STEPS)
    x, y, z = planes[5].position
    planes[5] = replace(planes[5], position=(x + 12, y, z))
    refusal = refusal_of(planes)
    assert refusal.reason == "mixed-geometry"
    assert "12.0 mm aside" in refusal.message


def test_positions_rounded_to_a_millimetre_tenth_sideways_are_upright() -> None:
    planes = make_planes(STEPS)
    jitter = np.random.default_rng(0).uniform(-0.05, 0.05, (20, 2)).round(2)
    planes = [
        replace(plane, position=(plane.position[0] + dx, plane.position[1] + dy, plane.position[2]))
        for plane, (dx, dy) in zip(planes, jitter.tolist(), strict=True)
    ]
    assert len(stacked(planes).order) == 20


def test_slices_spread_over_more_than_a_patient_are_refused() -> None:
    refusal = refusal_of(make_planes(np.arange(12) * 1e4))
    assert refusal.reason == "mixed-geometry"
    assert "within 3000 mm" in refusal.message


ORIENTATIONS = {
    "axial": AXIAL,
    "axial, rows upward": (1, 0, 0, 0, -1, 0),
    "axial, prone": (-1, 0, 0, 0, -1, 0),
    "axial, turned": (0, 1, 0, -1, 0, 0),
    "coronal": CORONAL,
    "coronal, feet up": (-1, 0, 0, 0, 0, 1),
    "sagittal": SAGITTAL,
    "sagittal, backwards": (0, -1, 0, 0, 0, -1),
    "tilted to the left": (0.96, 0, 0.28, 0, 1, 0),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_voxel_keeps_its_place_in_the_patient(orientation: tuple[float, ...]) -> None:
    affine = stacked(make_planes(STEPS, orientation=orientation)).layout.grid.affine
    acquired = Volume(np.arange(20 * 8 * 9, dtype=np.int32).reshape(20, 8, 9), affine)
    turned = to_patient_axes(acquired)
    index = np.stack(np.unravel_index(np.argsort(turned.array, axis=None), turned.shape), axis=1)
    before = acquired.to_patient(np.indices(acquired.shape).reshape(3, -1).T)
    assert turned.to_patient(index) == pytest.approx(before, abs=1e-9)
    z, y, x = turned.affine[:3, :3].T
    assert (z[2] > 0.9 * np.linalg.norm(z), y[1] > 0.9 * np.linalg.norm(y), x[0] > 0.9 * np.linalg.norm(x)) == (1, 1, 1)
    assert turned.array.flags.c_contiguous
    assert sorted(turned.spacing) == pytest.approx([0.5, 0.75, 2.5])


def test_the_affine_of_a_layout_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        stacked(make_planes(STEPS)).layout.grid.affine[0, 0] = 1


def test_slices_of_thousands_of_kinds_are_refused_before_all_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    shares_grid = Plane.shares_grid
    monkeypatch.setattr(Plane, "shares_grid", lambda *both: (compared.append(1), shares_grid(*both))[1])
    planes = [Plane((8, 9), (0.75 + k / 1000, 0.5), (0, 0, k), (1, 0, 0), (0, 1, 0)) for k in range(1500)]
    with pytest.raises(Refusal, match=r"mixed-geometry.*kinds"):
        stack_up(planes, min_slices=3)
    assert len(compared) < 100_000


def test_thousands_of_different_slices_at_one_position_are_refused_before_all_are_compared() -> None:
    compared = []

    def is_copy(a: int, b: int) -> bool:
        compared.append((a, b))
        return False

    planes = [Plane((8, 9), (0.75, 0.5), (0, 0, k % 3), (1, 0, 0), (0, 1, 0)) for k in range(12_000)]
    with pytest.raises(Refusal, match=r"duplicate-positions.*different ones"):
        stack_up(planes, min_slices=3, is_copy=is_copy)
    assert len(compared) < 3_000_000

"""Lungs are found: against the truth of phantoms, and in real CT. Morphology: against scipy."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
from builders import ct_files, read
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.preparation import morphology, prepare, resample
from dskprep.preparation.lungs.expected import Chest
from dskprep.preparation.lungs.lungs import Lungs, find_lungs, judge
from dskprep.series import assembly
from dskprep.settings import PrepConfig
from dskprep.sides import LEFT, LUNG, RIGHT
from dskprep.synthetic.phantom import Phantom, make_phantom
from dskprep.volume import AIR_HU, PADDING, Triple, Volume

SIDES = (RIGHT, LEFT)
SPACING = (2.5, 1.5, 1.5)
SHAPE = (116, 234, 234)


@cache
def patient(seed: int = 1, spacing: Triple = SPACING, shape: tuple[int, int, int] = SHAPE, **anatomy: Any) -> Phantom:
    phantom = make_phantom(seed=seed, spacing_mm=spacing, shape=shape, **anatomy)
    array = np.where(phantom.volume.array < AIR_HU, PADDING, phantom.volume.array).astype(np.int16)
    return Phantom(Volume(array, phantom.volume.affine), phantom.lungs)


def changed(volume: Volume, where: NDArray[np.bool_], hu: Any) -> Volume:
    array = volume.array.copy()
    array[where] = np.clip(hu, AIR_HU, 3000)
    return volume.with_array(array)


def dice(found: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth)))


def assert_like(found: Lungs, truth: NDArray[Any], least_dice: float = 0.98) -> None:
    for side in SIDES:
        if (truth == side).any():
            assert dice(found.mask.array == side, truth == side) >= least_dice
        else:
            assert not (found.mask.array == side).any()


# ---------------------------------------------------------------------------------------------------
# Phantoms
# ---------------------------------------------------------------------------------------------------


def test_each_lung_is_found() -> None:
    phantom = patient()
    found = find_lungs(phantom.volume)
    assert_like(found, phantom.lungs.array)
    assert found.warnings == ()


def test_the_result_is_a_uint8_mask_in_the_same_place_with_its_volumes() -> None:
    phantom = patient()
    before = phantom.volume.array.copy()
    found = find_lungs(phantom.volume)
    np.testing.assert_array_equal(phantom.volume.array, before)
    assert found.mask.array.dtype == np.uint8
    np.testing.assert_array_equal(found.mask.affine, phantom.volume.affine)
    for side, ml in zip(SIDES, (found.right_ml, found.left_ml), strict=True):
        assert ml == pytest.approx(np.count_nonzero(found.mask.array == side) * found.mask.voxel_ml)


@pytest.mark.parametrize(("spacing", "shape"), [((5.0, 1.2, 1.2), (58, 292, 292)), ((1.2, 2.0, 2.0), (242, 175, 175))])
def test_thick_and_thin_slices_give_the_same_lungs(spacing: Triple, shape: tuple[int, int, int]) -> None:
    phantom = patient(1, spacing, shape)
    found = find_lungs(phantom.volume)
    usual = find_lungs(patient(1).volume)
    assert_like(found, phantom.lungs.array)
    assert found.right_ml == pytest.approx(usual.right_ml, rel=0.01)
    assert found.left_ml == pytest.approx(usual.left_ml, rel=0.01)


def test_noise_does_no_harm() -> None:
    phantom = patient()
    noise = np.random.default_rng(0).normal(0, 60, SHAPE)
    is_measured = phantom.volume.array != PADDING
    noisy = changed(phantom.volume, is_measured, (phantom.volume.array + noise)[is_measured])
    assert_like(find_lungs(noisy), phantom.lungs.array)


def test_emphysema_is_lung() -> None:
    phantom = patient()
    aerated = (phantom.lungs.array > 0) & (phantom.volume.array < -700)
    patches = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), (1.6, 3, 3))
    hu = (phantom.volume.array - 65 - 30 * np.clip(patches / patches.std(), -2, 2))[aerated]
    assert hu.mean() < -915
    assert np.mean(hu < -950) > 0.15
    assert_like(find_lungs(changed(phantom.volume, aerated, hu)), phantom.lungs.array, 0.97)


@pytest.mark.parametrize("remove_lung", ["left", "right"])
def test_a_single_lung_keeps_its_side(remove_lung: Literal["left", "right"]) -> None:
    phantom = patient(5, remove_lung=remove_lung)
    found = find_lungs(phantom.volume)
    assert_like(found, phantom.lungs.array)
    assert "one-lung" in found.warnings


def test_a_table_that_touches_the_back_stays_out() -> None:
    phantom = patient(9, table_touches_back=True)
    assert_like(find_lungs(phantom.volume), phantom.lungs.array)


def test_consolidation_costs_no_more_than_itself() -> None:
    phantom = patient(7, consolidation=0.3)
    found = find_lungs(phantom.volume).mask.array
    truth = phantom.lungs.array
    aerated = ndimage.binary_opening((truth > 0) & (phantom.volume.array < -600))
    assert np.mean(found[aerated] == truth[aerated]) > 0.99
    assert np.count_nonzero((found > 0) & (truth == 0)) < 0.02 * np.count_nonzero(truth)


GRID: dict[str, dict[str, Any]] = {
    "0.6 mm slices": {"spacing": (0.6, 2.0, 2.0), "shape": (484, 176, 176)},
    "1.25 mm slices": {"spacing": (1.25, 2.0, 2.0), "shape": (232, 176, 176)},
    "5 mm slices": {"spacing": (5.0, 2.0, 2.0), "shape": (58, 176, 176)},
    "prone": {"prone": True},
    "arms down": {"arms_down": True, "shape": (116, 176, 250)},
    "a table that touches the back": {"table_touches_back": True},
    "no left lung": {"remove_lung": "left"},
    "no right lung": {"remove_lung": "right"},
    "a little dense": {"consolidation": 0.15},
    "consolidation": {"consolidation": 0.33},
    "effusion": {"effusion": 0.33},
    "consolidation and effusion": {"consolidation": 0.17, "effusion": 0.16},
    "consolidation in 0.6 mm slices": {"spacing": (0.6, 2.0, 2.0), "shape": (484, 176, 176), "consolidation": 0.33},
    "effusion in 5 mm slices": {"spacing": (5.0, 2.0, 2.0), "shape": (58, 176, 176), "effusion": 0.33},
    "effusion, arms down, on the table": {
        "effusion": 0.33,
        "arms_down": True,
        "table_touches_back": True,
        "shape": (116, 176, 250),
    },
}


def grid_patient(seed: int, **options: Any) -> Phantom:
    return patient(seed, **{"spacing": (2.5, 2.0, 2.0), "shape": (116, 176, 176), **options})


@pytest.mark.slow
@pytest.mark.parametrize("dense_lung", ["left", pytest.param("right", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", GRID)
def test_lungs_are_found_in_every_case_of_the_grid(case: str, dense_lung: str) -> None:
    is_dense = GRID[case].keys() & {"consolidation", "effusion"}
    if dense_lung == "right" and not is_dense:
        phantom = grid_patient(4, **GRID[case])  # another patient
    else:
        phantom = grid_patient(6, dense_lung=dense_lung, **GRID[case])
    found = find_lungs(phantom.volume)
    assert dice(found.mask.array > 0, phantom.lungs.array > 0) >= (0.93 if is_dense else 0.985)
    assert_like(found, phantom.lungs.array, 0.93 if is_dense else 0.985)
    assert ("dense-lung" in found.warnings) == bool(is_dense)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 10))])
def test_a_third_of_any_lung_may_be_dense(seed: int) -> None:
    kinds = ({"consolidation": 0.33}, {"effusion": 0.33}, {"consolidation": 0.17, "effusion": 0.16})
    for n, dense_lung in enumerate(("left", "right")):
        phantom = grid_patient(seed, dense_lung=dense_lung, **kinds[(seed + n) % 3])
        found = find_lungs(phantom.volume)
        assert dice(found.mask.array > 0, phantom.lungs.array > 0) >= 0.96
        assert_like(found, phantom.lungs.array, 0.925)
        assert "dense-lung" in found.warnings
        assert found.dense_share == pytest.approx(0.33, abs=0.07)


@pytest.mark.parametrize("side", SIDES)
def test_a_dense_upper_lobe_is_lung(side: int) -> None:
    phantom = grid_patient(6)
    slices = np.flatnonzero((phantom.lungs.array == side).any(axis=(1, 2)))
    upper = phantom.lungs.array == side
    upper[: int(slices[0] + 0.65 * (slices[-1] - slices[0]))] = False
    found = find_lungs(changed(phantom.volume, upper, noisy(35)[upper]))
    assert_like(found, phantom.lungs.array, 0.97)
    assert found.warnings == ("dense-lung",)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("noise_hu", [10, 45])
def test_a_tumour_beside_the_spine_is_lung(side: int, noise_hu: float) -> None:
    """It lies behind and above the hilum, within 60 mm of the middle; sharp kernels have as much noise."""
    phantom = grid_patient(6)
    lung = phantom.lungs.array == side
    z, y = (np.flatnonzero(lung.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    k, j, i = np.ogrid[tuple(slice(n) for n in lung.shape)]
    height, depth = (k - z[0]) / (z[-1] - z[0]), (j - y[0]) / (y[-1] - y[0])
    is_near = np.abs(i - lung.shape[2] / 2) * phantom.volume.spacing[2] < 60
    tumour = lung & is_near & (depth > 0.62) & (height > 0.62) & (height < 0.82)
    found = find_lungs(changed(phantom.volume, tumour, noisy(40, noise_hu)[tumour]))
    assert np.mean(found.mask.array[tumour] == side) > 0.9
    assert found.warnings == ("dense-lung",)


def test_haze_at_the_edge_of_lungs_is_lung() -> None:
    phantom = grid_patient(6)
    depth_mm = ndimage.distance_transform_edt(phantom.lungs.array > 0, sampling=phantom.volume.spacing)
    rim = (depth_mm > 0) & (depth_mm < 8)
    found = find_lungs(changed(phantom.volume, rim, noisy(-250, 60)[rim]))
    assert_like(found, phantom.lungs.array, 0.95)
    assert "dense-lung" in found.warnings


def test_a_thin_layer_of_density_behind_both_lungs_is_lung() -> None:
    """It collects there in patients who lie on their backs."""
    phantom = grid_patient(6)
    lungs = phantom.lungs.array > 0
    depth_mm = np.flip(np.cumsum(np.flip(lungs, 1), axis=1), 1) * phantom.volume.spacing[1]
    layer = lungs & (depth_mm <= 6)
    layer[layer.shape[0] // 2 :] = False
    found = find_lungs(changed(phantom.volume, layer, noisy(-330, 30)[layer]))
    assert np.mean(found.mask.array[layer] > 0) > 0.75
    assert found.warnings == ("dense-lung",)


def test_a_thin_layer_of_density_all_round_the_lungs_is_none_behind_them() -> None:
    """Thick voxels make such a layer out of the edge of a healthy lung."""
    phantom = grid_patient(6)
    lungs = phantom.lungs.array > 0
    depth_mm = ndimage.distance_transform_edt(lungs, sampling=phantom.volume.spacing)
    slices = np.flatnonzero(lungs.any(axis=(1, 2)))
    first, last = (int(slices[0] + share * (slices[-1] - slices[0])) for share in (0.5, 0.65))
    layer = lungs & (depth_mm < 4.1)
    layer[:first], layer[last:] = False, False
    found = find_lungs(changed(phantom.volume, layer, noisy(-330, 30)[layer]))
    assert found.warnings == ()


def test_fluid_behind_both_lungs_is_not_silent() -> None:
    """Neither lung shows how far the other one should reach; the ribs do."""
    phantom = grid_patient(6)
    rows = np.flatnonzero((phantom.lungs.array > 0).any(axis=(0, 2)))
    fluid = phantom.lungs.array > 0
    fluid[:, : int(rows[0] + 0.7 * (rows[-1] - rows[0]))] = False
    found = find_lungs(changed(phantom.volume, fluid, noisy(10, 5)[fluid]))
    assert_like(found, phantom.lungs.array, 0.84)
    assert "dense-lung" in found.warnings


def test_a_single_lung_with_fluid_is_completed() -> None:
    phantom = grid_patient(4, remove_lung="left", effusion=0.33)
    found = find_lungs(phantom.volume)
    assert_like(found, phantom.lungs.array, 0.93)
    assert "dense-lung" in found.warnings


def test_lung_that_hu_do_not_tell_from_what_lies_round_it_is_missing() -> None:
    """The lower third of a lung and all tissue round it but bone have the same HU."""
    phantom = grid_patient(6)
    slices = np.flatnonzero((phantom.lungs.array == RIGHT).any(axis=(1, 2)))
    lower = phantom.lungs.array == RIGHT
    lower[int(slices[0] + 0.35 * (slices[-1] - slices[0])) :] = False
    soft = (phantom.volume.array > -300) & (phantom.volume.array < 200)
    found = find_lungs(changed(phantom.volume, lower | soft, noisy(50)[lower | soft]))
    assert not (found.mask.array[ndimage.binary_erosion(lower, iterations=4)] > 0).any()
    assert "lung-missing" in found.warnings
    assert found.missing_place == "right lower"
    assert found.missing_ml is not None
    lower_ml = np.count_nonzero(lower) * phantom.volume.voxel_ml
    assert found.missing_ml == pytest.approx(lower_ml, rel=0.3)


@pytest.mark.parametrize("seed", range(4))
def test_of_healthy_lungs_nothing_is_missing(seed: int) -> None:
    found = find_lungs(grid_patient(seed).volume)
    assert (found.missing_ml, found.missing_place, found.warnings) == (0, "", ())


def noisy(hu: float, deviation: float = 10) -> NDArray[Any]:
    shape = grid_patient(6).volume.shape
    return hu + np.random.default_rng(0).normal(0, deviation, shape)


def test_dense_lung_of_which_the_scan_cuts_the_back_off_is_told_and_not_filled() -> None:
    phantom = grid_patient(0, consolidation=0.33)
    rows = np.flatnonzero((phantom.lungs.array > 0).any(axis=(0, 2)))
    part = Volume(phantom.volume.array[:, : rows[-1] - 15].copy(), phantom.volume.affine)
    found = find_lungs(part)
    assert found.warnings == ("lungs-touch-border", "dense-lung", "lung-missing")
    assert np.mean(part.array[found.mask.array > 0] > -100) < 0.05


def test_patients_of_the_grid_have_a_bubble_in_the_stomach_and_a_trachea_in_the_top_slice() -> None:
    phantom = grid_patient(6)
    gas, _ = ndimage.label((phantom.volume.array < -900) & (phantom.lungs.array == 0))
    sizes = np.bincount(gas.ravel()) * phantom.volume.voxel_ml
    stomach = gas[: SHAPE[0] // 3, :, 88:]
    assert np.any((sizes[stomach] > 10) & (sizes[stomach] < 200) & (stomach > 0))
    trachea = gas[-1, 60:110, 78:98]  # inside the neck
    assert np.any((sizes[trachea] > 10) & (sizes[trachea] < 200) & (trachea > 0))


@pytest.mark.parametrize("options", [{}, {"consolidation": 0.33}, {"effusion": 0.33}])
def test_every_second_slice_gives_the_same_lungs(options: dict[str, float]) -> None:
    volume = patient(3, (1.25, 2.0, 2.0), (232, 176, 176), **options).volume
    affine = volume.affine @ np.diag([2.0, 1.0, 1.0, 1.0])
    full = find_lungs(volume).mask.array[::2]
    half = find_lungs(Volume(np.ascontiguousarray(volume.array[::2]), affine)).mask.array
    for side in SIDES:
        assert dice(half == side, full == side) >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("turn", "lean"),
    [
        ((1, 1, 1), (0, 0, 0)),
        ((1, -1, -1), (0, 0, 0)),  # as most scanners write a prone patient, head first
        ((-1, -1, 1), (0, 0, 0)),  # feet first, prone
        ((-1, 1, -1), (0, 0, 0)),  # feet first, on the back
        ((1, 1, 1), (0, 0.27, 0)),  # a gantry tilted by 15 degrees
    ],
)
def test_lungs_do_not_depend_on_how_the_patient_was_scanned(turn: Triple, lean: Triple) -> None:
    """The same patient, written as series whose slices, rows and columns (`turn`) run the other way."""
    phantom = grid_patient(6, effusion=0.33)
    volume = phantom.volume
    centre_k = (volume.shape[0] - 1) / 2
    planes = [
        ndimage.shift(plane.astype(np.float32), (-(k - centre_k) * 2.5 * lean[1] / 2.0, 0), order=1, mode="nearest")
        for k, plane in enumerate(volume.array)
    ]
    order = tuple(slice(None, None, int(t)) for t in turn)
    stored = (np.stack(planes) + 1024).round().clip(0).astype(np.int16)[order]
    corner = [0 if t > 0 else n - 1 for t, n in zip(turn, volume.shape, strict=True)]
    first = volume.to_patient(corner) - np.array([0, lean[1], 0]) * centre_k * 2.5
    orientation = (turn[2], 0, 0, 0, turn[1], 0)
    files = ct_files(stored, first=first, orientation=orientation, step_mm=2.5, lean=lean, PixelSpacing=[2, 2])
    (slices,) = read(files).slices.values()
    prepared = prepare.prepare(assembly.assemble(slices), PrepConfig(spacing_mm=(2.5, 2.0, 2.0)))
    assert prepared.lungs is not None
    mask = prepared.lungs.mask
    inside = np.argwhere(np.ones(mask.shape, np.bool_))
    at = np.rint(volume.to_index(mask.to_patient(inside))).astype(int)
    is_in = np.all((at >= 0) & (at < volume.shape), axis=1)
    truth = np.zeros(mask.shape, np.uint8)
    truth.ravel()[is_in] = phantom.lungs.array[tuple(at[is_in].T)]
    assert dice(mask.array > 0, truth > 0) >= 0.96
    for side in SIDES:
        assert dice(mask.array == side, truth == side) >= 0.93


def test_masks_that_fell_apart_or_look_like_no_lung_are_noted() -> None:
    phantom = grid_patient(6)
    truth = phantom.lungs
    assert judge(truth).warnings == find_lungs(phantom.volume).warnings == ()
    in_pieces = truth.array.copy()
    in_pieces[55:65][in_pieces[55:65] == LEFT] = 0
    assert judge(truth.with_array(in_pieces)).warnings == ("lungs-in-pieces",)
    one_label = (truth.array > 0) * np.uint8(LUNG)
    assert judge(truth.with_array(one_label)).warnings == ("one-lung",)
    block = np.zeros_like(truth.array)
    block[20:80, 60:110, 30:80] = RIGHT
    block[20:80, 60:110, 100:150] = LEFT
    assert judge(truth.with_array(block)).warnings == ("lung-shape-unlikely",)


def touching(widest: int = 13) -> tuple[Volume, NDArray[np.uint8]]:
    """Two lungs with no tissue between them where it is not wider than some voxels; their mask."""
    phantom = patient()
    truth = phantom.lungs.array
    x = np.arange(SHAPE[2])
    right_end = np.where(truth == RIGHT, x, -1).max(axis=2)[..., None]
    left_end = np.where(truth == LEFT, x, SHAPE[2]).min(axis=2)[..., None]
    is_near = (right_end >= 0) & (left_end < SHAPE[2]) & (left_end - right_end <= widest)
    bridge = is_near & (x > right_end) & (x < left_end)
    assert np.count_nonzero(bridge) * phantom.volume.voxel_ml > 5
    return changed(phantom.volume, bridge, -860), truth


def test_lungs_that_touch_are_split() -> None:
    volume, truth = touching()
    assert_like(find_lungs(volume), truth, 0.97)


@pytest.mark.parametrize("side", SIDES)
def test_lungs_that_touch_are_split_where_most_of_one_is_dense(side: int) -> None:
    volume, truth = touching(18)
    slices = np.flatnonzero((truth == side).any(axis=(1, 2)))
    dense = truth == side
    dense[int(slices[0] + 0.6 * slices.size) :] = False
    found = find_lungs(changed(volume, dense, 40)).mask.array
    aerated = ndimage.binary_erosion((truth > 0) & ~dense, iterations=2)
    assert np.mean(found[aerated] == truth[aerated]) > 0.98


def test_an_open_airway_does_not_drain_the_lungs() -> None:
    phantom = patient()
    gas, _ = ndimage.label(phantom.volume.array[-6] < -900)
    names, sizes = np.unique(gas[:, SHAPE[2] // 2 - 8 : SHAPE[2] // 2 + 8], return_counts=True)
    is_trachea = gas == min(n for n in zip(sizes, names, strict=True) if n[1] > 0 and n[0] > 20)[1]
    assert 100 < np.count_nonzero(is_trachea) * np.prod(SPACING[1:]) < 500
    y, x = np.argwhere(is_trachea).mean(axis=0).astype(int)
    channel = np.zeros(SHAPE, np.bool_)
    channel[-6:, :y, x - 6 : x + 6] = True
    assert_like(find_lungs(changed(phantom.volume, channel, -1000)), phantom.lungs.array)


def test_gas_elsewhere_in_the_body_stays_out() -> None:
    phantom = patient()
    labels, _ = ndimage.label((phantom.volume.array < -900) & (phantom.lungs.array == 0))
    sizes = np.bincount(labels.ravel())[1:] * phantom.volume.voxel_ml
    is_enclosed = np.flatnonzero((sizes > 5) & (sizes < 500)) + 1  # stomach, bowel, airway
    gas = ndimage.binary_erosion(np.isin(labels, is_enclosed), iterations=2)
    assert is_enclosed.size >= 3
    assert np.count_nonzero(find_lungs(phantom.volume).mask.array[gas]) == 0


@pytest.mark.parametrize(("radius_mm", "side"), [(6, LEFT), (10, RIGHT), (14, LEFT)])
def test_a_nodule_at_the_chest_wall_is_lung(radius_mm: float, side: int) -> None:
    phantom = patient()
    z, y = 58, 121
    row = np.flatnonzero(phantom.lungs.array[z, y] == side)
    x = row[0] if side == RIGHT else row[-1]
    offsets = [(np.arange(n) - at) * s for n, at, s in zip(SHAPE, (z, y, x), SPACING, strict=True)]
    distance2 = sum(o**2 for o in np.ix_(*offsets))
    nodule = (distance2 <= radius_mm**2) & (phantom.lungs.array > 0)
    found = find_lungs(changed(phantom.volume, nodule, 40))
    assert np.mean(found.mask.array[nodule] == side) > 0.85
    assert_like(found, phantom.lungs.array)


@pytest.mark.parametrize("is_padded", [True, False])
def test_lungs_cut_by_the_field_of_view_are_kept_and_noted(is_padded: bool) -> None:
    phantom = patient()
    offsets = [(np.arange(n) - n / 2) * s for n, s in zip(SHAPE[1:], SPACING[1:], strict=True)]
    if is_padded:
        distance = np.hypot(*np.ix_(*offsets))
        beyond = np.broadcast_to(distance > 100, SHAPE)
        volume, truth = changed(phantom.volume, beyond, 0), np.where(beyond, 0, phantom.lungs.array)
        volume.array[beyond] = PADDING
    else:
        box = np.s_[:, 60:174, 54:180]
        volume = Volume(phantom.volume.array[box].copy(), phantom.volume.affine)
        truth = phantom.lungs.array[box]
    found = find_lungs(volume)
    assert_like(found, truth, 0.97)
    assert "lungs-touch-border" in found.warnings


@pytest.mark.parametrize("part", [slice(60, None), slice(None, 60), slice(50, 70)])
def test_lungs_cut_by_the_ends_of_the_scan_are_kept_and_noted(part: slice) -> None:
    phantom = patient()
    found = find_lungs(Volume(phantom.volume.array[part].copy(), phantom.volume.affine))
    assert_like(found, phantom.lungs.array[part], 0.97)
    assert "lungs-touch-border" in found.warnings


def test_lungs_that_are_too_small_or_too_large_are_noted() -> None:
    phantom = patient()
    for scale, is_noted in ((0.5, True), (1.0, False), (1.6, True)):
        affine = phantom.volume.affine.copy()
        affine[:3, :3] *= scale
        warnings_ = find_lungs(Volume(phantom.volume.array, affine)).warnings
        assert ("lung-volume-unlikely" in warnings_) == is_noted


@pytest.mark.parametrize("hu", [PADDING, -1000, 40])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 60, 60), (40, 5, 5), (30, 60, 60)])
def test_a_volume_without_lungs_gives_an_empty_mask(hu: int, shape: tuple[int, int, int]) -> None:
    found = find_lungs(Volume(np.full(shape, hu, np.int16), patient().volume.affine))
    assert found.mask.shape == shape
    assert not found.mask.array.any()
    assert (found.right_ml, found.left_ml, found.warnings) == (0.0, 0.0, ("lungs-not-found",))


@pytest.mark.parametrize("margin_mm", [-1.0, float("nan")])
def test_a_margin_below_nothing_is_an_error(margin_mm: float) -> None:
    with pytest.raises(ValueError, match="margin_mm must be 0 or more"):
        find_lungs(patient().volume, margin_mm=margin_mm)


def test_margin_grows_the_mask_by_a_ball_and_not_into_the_other_lung() -> None:
    phantom = patient()
    part = Volume(phantom.volume.array[50:76].copy(), phantom.volume.affine)
    plain = find_lungs(part)
    grown = find_lungs(part, margin_mm=6.0)
    assert (grown.right_ml, grown.left_ml) == (plain.right_ml, plain.left_ml)
    is_lung = plain.mask.array > 0
    np.testing.assert_array_equal(grown.mask.array[is_lung], plain.mask.array[is_lung])
    distance = ndimage.distance_transform_edt(~is_lung, sampling=SPACING)
    np.testing.assert_array_equal(grown.mask.array > 0, distance <= 6.0 + 1e-4)


# ---------------------------------------------------------------------------------------------------
# Real CT
# ---------------------------------------------------------------------------------------------------


@cache
def real_volume(folder: str, every: int = 1) -> Volume:
    """Read a canonical series with SimpleITK, each `every`-th slice, at 1 mm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its wrapper, at import
        sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder))
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    array = sitk.GetArrayFromImage(image)[::every].astype(np.int16)
    x, y, z = image.GetSpacing()
    affine = np.eye(4)[[2, 1, 0, 3]] @ np.diag([z * every, y, x, 1.0])
    affine[:3, 3] = image.GetOrigin()
    volume = Volume(np.where(array < AIR_HU, PADDING, array).astype(np.int16), affine)
    return resample.to_spacing(volume, (1.0, 1.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lidc_0001", "lidc_0314"])
def test_real_lungs_have_a_likely_volume(name: str, data_folder: Any) -> None:
    found = find_lungs(real_volume(str(data_folder.volumes / name)))
    litres = (found.right_ml + found.left_ml) / 1000
    assert litres == pytest.approx(data_folder.expected_volumes[name]["crude_lung_litres"], rel=0.2)
    assert "lungs-touch-border" not in found.warnings


def test_real_lung_bases_are_noted_as_cut_off(data_folder: Any) -> None:
    found = find_lungs(real_volume(str(data_folder.volumes / "crlm_1004")))
    assert found.warnings == ("lungs-touch-border",)
    assert np.flatnonzero(found.mask.array.any(axis=(1, 2)))[0] > 90  # no stomach, no bowel


@pytest.mark.slow
def test_a_real_tumour_beside_the_spine_is_lung_in_a_soft_and_in_a_sharp_kernel(data_folder: Any) -> None:
    sharp, soft = (
        find_lungs(real_volume(str(folder))) for folder in sorted(data_folder.wild.rglob("*.000000-5mm-4????"))
    )
    assert sharp.warnings == soft.warnings == ("dense-lung",)
    assert sharp.left_ml == pytest.approx(soft.left_ml, rel=0.01)
    assert dice(sharp.mask.array == LEFT, soft.mask.array == LEFT) > 0.98


def test_a_real_belly_has_no_lungs(data_folder: Any) -> None:
    volume = real_volume(str(data_folder.volumes / "crlm_1004"))
    belly = Volume(volume.array[:95].copy(), volume.affine)
    assert find_lungs(belly).warnings == ("lungs-not-found",)


def test_real_lungs_do_not_depend_on_slice_thickness(data_folder: Any) -> None:
    folder = str(data_folder.volumes / "lidc_0001")
    full, half = (find_lungs(real_volume(folder, every)).mask for every in (1, 2))
    offset = np.rint(full.to_index(half.to_patient([0, 0, 0])))[0].astype(int)
    first, last = max(0, offset), min(full.shape[0], offset + half.shape[0])
    same = half.array[first - offset : last - offset]
    for side in SIDES:
        assert dice(same == side, full.array[first:last] == side) >= 0.97


# ---------------------------------------------------------------------------------------------------
# Morphology
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 9, 11), (1, 5, 1), (20, 15, 25), (3, 4, 64), (3, 4, 130)])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.35, 0.6, 1.0])
def test_pieces_are_those_of_scipy(shape: tuple[int, int, int], density: float) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random(shape) < density
    pieces = morphology.Pieces.of(mask)
    expected, n = ndimage.label(mask)
    np.testing.assert_array_equal(pieces.sizes, np.bincount(expected.ravel(), minlength=n + 1)[1:])
    where = rng.random(shape) < 0.5
    np.testing.assert_array_equal(pieces.counts(where), np.bincount(expected[where], minlength=n + 1)[1:])
    is_chosen = rng.random(n) < 0.5
    np.testing.assert_array_equal(pieces.select(is_chosen).array, np.append(False, is_chosen)[expected])
    assert pieces.heights().tolist() == [box[0].stop - box[0].start for box in ndimage.find_objects(expected)]
    held = np.unique(expected[where & mask])
    np.testing.assert_array_equal(morphology.select_connected(mask, where), np.isin(expected, held) & mask)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (5.0, 1.4, 1.3), (1.0, 7.0, 0.7)])
def test_what_lies_round_each_piece_is_counted_for_it_alone(spacing: Triple) -> None:
    rng = np.random.default_rng(0)
    mask, *where = (rng.random((9, 17, 70)) < share for share in (0.02, 0.5, 0.2))
    mask[4, 5:9, 10:40] = True  # wide, and near others
    expected, n = ndimage.label(mask)
    is_chosen = rng.random(n) < 0.7
    found = np.array(morphology.Pieces.of(mask).counts_around(is_chosen, 2.5, 6.0, spacing, *where))
    for number in range(n):
        mm = ndimage.distance_transform_edt(expected != number + 1, sampling=spacing)
        ring = (mm > 2.5) & (mm <= 6.0) & is_chosen[number]
        assert found[:, number].tolist() == [np.count_nonzero(ring & each) for each in (True, *where)]


@pytest.mark.parametrize(
    ("limit_mm", "spacing"),
    [(2.0, (2.0, 2.0, 2.0)), (9.0, (5.0, 1.4, 1.3)), (12.0, (1.0, 1.0, 1.5)), (100.0, (1.0, 1.0, 1.5))],
)
def test_nearer_gives_the_nearest_label_within_the_limit(limit_mm: float, spacing: Triple) -> None:
    rng = np.random.default_rng(0)
    dice_ = rng.random((20, 31, 40))
    labels = (dice_ < 0.001).astype(np.uint8) + 2 * (dice_ > 0.999).astype(np.uint8)
    to_first, to_second = (ndimage.distance_transform_edt(labels != k, sampling=spacing) for k in (1, 2))
    found = morphology.expand_labels(labels, limit_mm, spacing)
    np.testing.assert_array_equal(found > 0, np.minimum(to_first, to_second) <= limit_mm + 1e-4)
    np.testing.assert_array_equal(found[found > 0], np.where(to_first <= to_second + 1e-9, 1, 2)[found > 0])
    where = rng.random(labels.shape) < 0.5
    np.testing.assert_array_equal(morphology.expand_labels(labels, limit_mm, spacing, where), found * where)


# ---------------------------------------------------------------------------------------------------
# Fields of view that show a part
# ---------------------------------------------------------------------------------------------------


def lucent(volume: Volume, lungs: NDArray[np.uint8], by_hu: int) -> Volume:
    """Lungs with more air."""
    where = (lungs > 0) & (volume.array < -600) & (volume.array != PADDING)
    return changed(volume, where, volume.array[where] - by_hu)


def window(phantom: Phantom, size_mm: float, shift_mm: float, *, is_round: bool) -> tuple[Volume, NDArray[np.uint8]]:
    """A square or circle of the axial plane, as for a heart; the mask in it."""
    volume = phantom.volume
    y, x = (np.arange(n) * s - n * s / 2 for n, s in zip(volume.shape[1:], volume.spacing[1:], strict=True))
    x = x - shift_mm
    rows, columns = (np.flatnonzero(np.abs(axis) <= size_mm / 2) for axis in (y, x))
    part = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    array, mask = volume.array[part].copy(), phantom.lungs.array[part].copy()
    if is_round:
        outside = np.hypot(y[rows][:, None], x[columns]) > size_mm / 2
        array[:, outside], mask[:, outside] = PADDING, 0
    return Volume(array, volume.affine), mask


@pytest.mark.parametrize("by_hu", [0, 60], ids=["usual", "emphysema"])
@pytest.mark.parametrize("is_round", [False, True], ids=["square", "circle"])
@pytest.mark.parametrize(("size_mm", "shift_mm"), [(200, 0), (240, 30), (280, -50)])
def test_a_narrow_field_of_view_loses_no_lung(size_mm: float, shift_mm: float, is_round: bool, by_hu: int) -> None:
    cut, mask = window(patient(), size_mm, shift_mm, is_round=is_round)
    found = find_lungs(lucent(cut, mask, by_hu))
    assert dice(found.mask.array > 0, mask > 0) >= 0.95
    assert "lungs-touch-border" in found.warnings
    assert "lung-missing" not in found.warnings


@pytest.mark.parametrize("size_mm", [120, 140])
def test_air_in_a_lung_at_the_edge_of_a_round_field_of_view_is_lung(size_mm: float) -> None:
    cut, mask = window(patient(), size_mm, 70, is_round=True)
    to_edge = ndimage.distance_transform_edt(cut.array != PADDING, cut.spacing)
    slices = np.flatnonzero((mask > 0).any(axis=(1, 2)))
    is_middle = np.abs(np.arange(cut.shape[0]) - slices.mean()) * cut.spacing[0] < 30
    bulla = (mask > 0) & (to_edge < 30) & (cut.array < -600) & is_middle[:, None, None]
    noise = np.random.default_rng(0).normal(0, 10, np.count_nonzero(bulla))
    found = find_lungs(changed(cut, bulla, (-970 + noise).astype(np.int16)))
    assert dice(found.mask.array > 0, mask > 0) >= 0.98


@pytest.mark.parametrize(("dense_lung", "side"), [("right", RIGHT), ("left", LEFT)])
@pytest.mark.parametrize("is_round", [False, True], ids=["square", "circle"])
def test_dense_lung_in_a_narrow_field_of_view_is_told(
    dense_lung: Literal["left", "right"], side: int, is_round: bool
) -> None:
    cut, mask = window(grid_patient(6, consolidation=0.33, dense_lung=dense_lung), 250, 0, is_round=is_round)
    found = find_lungs(cut)
    assert {"lungs-touch-border", "lung-missing"} <= set(found.warnings)
    assert found.missing_ml is not None
    assert found.missing_ml <= np.count_nonzero((mask == side) & (found.mask.array == 0)) * cut.voxel_ml
    assert found.missing_place == f"{dense_lung} lower"


def test_a_lung_whose_side_cannot_be_known_is_not_called_right() -> None:
    phantom = patient()
    middle = phantom.volume.shape[2] // 2
    for part in (np.s_[:, :, :middle], np.s_[:, :, middle:]):
        cut = Volume(np.ascontiguousarray(phantom.volume.array[part]), phantom.volume.affine)
        found = find_lungs(cut)
        assert (found.right_ml, found.left_ml) == (0.0, 0.0)
        assert found.unsided_ml == pytest.approx(np.count_nonzero(found.mask.array == LUNG) * cut.voxel_ml)
        assert dice(found.mask.array == LUNG, phantom.lungs.array[part] > 0) >= 0.95
        assert "one-lung" in found.warnings


@pytest.mark.parametrize("side", SIDES)
def test_a_dense_base_is_told_where_the_field_of_view_holds_one_lung(side: int) -> None:
    phantom = grid_patient(6, consolidation=0.33, dense_lung="right" if side == RIGHT else "left")
    cut, _ = window(phantom, 200, -80 if side == RIGHT else 80, is_round=False)
    assert "dense-lung" in find_lungs(cut).warnings
    healthy, _ = window(grid_patient(6), 200, -80 if side == RIGHT else 80, is_round=False)
    assert "dense-lung" not in find_lungs(healthy).warnings


@pytest.mark.parametrize("side", SIDES)
def test_what_is_dense_between_two_parts_of_a_lung_is_told_where_the_field_of_view_holds_that_lung_alone(
    side: int,
) -> None:
    phantom = grid_patient(6)
    lung = phantom.lungs.array == side
    z, y = (np.flatnonzero(lung.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    rows = np.arange(lung.shape[1])[:, None] > np.median(y)
    slices = np.abs(np.arange(lung.shape[0]) - (z[0] + z[-1]) / 2)[:, None, None] * SPACING[0] < 24
    tumour = Phantom(changed(phantom.volume, lung & rows & slices, 40), phantom.lungs)
    cut, _ = window(tumour, 200, -80 if side == RIGHT else 80, is_round=False)
    assert "dense-lung" in find_lungs(cut).warnings


def test_cut_lungs_are_not_mirrored_at_a_plane_far_from_the_spine() -> None:
    labels = np.zeros((20, 30, 62), np.uint8)
    labels[2:18, 5:25, 6:28] = RIGHT
    labels[2:18, 5:25, 34:] = LEFT  # cut off
    labels[2:18, 5:11, 41:] = 0  # these rows are whole, and their middle is 26 mm off
    arguments = np.zeros(labels.shape, np.int16), (4.0, 4.0, 4.0), labels, np.zeros(labels.shape, np.bool_), None
    for spine, middle in ((30.0, 30.0), (None, 23.0), (24.0, 23.0)):
        chest = Chest.of(*arguments, spine, is_cut_off=True)
        assert chest is not None
        assert chest.off_mm[0, 0, 0] == pytest.approx(-4.0 * middle)


def test_lungs_of_which_one_is_less_than_half_of_the_other_are_noted() -> None:
    for height, is_noted in ((90, False), (30, True)):
        mask = np.zeros((100, 60, 100), np.uint8)
        mask[5:95, 5:55, 5:45] = RIGHT
        mask[5 : 5 + height, 5:55, 55:95] = LEFT
        found = judge(Volume(mask, np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]]))
        assert ("lungs-unequal" in found.warnings) == is_noted
        assert "lung-volume-unlikely" not in found.warnings


def opened_trachea() -> tuple[Volume, NDArray[np.bool_]]:
    """A chest whose trachea opens into the right lung, and where the trachea is."""
    phantom = patient()
    right = phantom.lungs.array == RIGHT
    is_gas = (phantom.volume.array < -950) & ~ndimage.binary_dilation(phantom.lungs.array > 0, iterations=2)
    pieces, _ = ndimage.label(is_gas & (phantom.volume.array != PADDING))
    _, ny, nx = SHAPE
    trachea = (
        pieces
        == np.bincount(pieces[100, ny // 2 - 8 : ny // 2 + 8, nx // 2 - 8 : nx // 2 + 8].ravel())[1:].argmax() + 1
    )
    assert 10 < np.count_nonzero(trachea) * phantom.volume.voxel_ml < 30
    y, x = (int(axis.mean()) for axis in np.nonzero(trachea[90]))
    hole = np.zeros(SHAPE, np.bool_)
    hole[85:93, y - 3 : y + 4, np.flatnonzero(right[90, y])[-1] : x] = True
    return changed(phantom.volume, hole & (phantom.volume.array > -900), -860), trachea


def test_a_trachea_that_is_half_sure_gas_is_no_lung_where_it_opens_into_one() -> None:
    opened, trachea = opened_trachea()
    is_pale = np.arange(SHAPE[0])[:, None, None] % 5 >= 2  # three of five slices
    found = find_lungs(changed(opened, trachea & is_pale, -945))
    assert np.count_nonzero((found.mask.array > 0) & trachea) * opened.voxel_ml < 0.5


@pytest.mark.parametrize("fill_hu", [-1024, -2048, PADDING])
def test_a_trachea_is_no_lung_whatever_was_filled_in_outside_of_a_round_field_of_view(fill_hu: int) -> None:
    opened, trachea = opened_trachea()
    noise = np.random.default_rng(0).normal(0, 8, SHAPE)
    y, x = (np.arange(n) * s - n * s / 2 for n, s in zip(SHAPE[1:], SPACING[1:], strict=True))
    is_filled = np.broadcast_to(np.hypot(y[:, None], x) > 160, SHAPE)
    air = (opened.array < -950) & ~ndimage.binary_dilation(opened.array > -900, iterations=2) & ~trachea
    scan = changed(changed(opened, air, (-985 + noise)[air]), trachea, (-960 + noise)[trachea])
    array = np.where(is_filled, fill_hu, np.where(scan.array == PADDING, -985, scan.array)).astype(np.int16)
    found = find_lungs(scan.with_array(array))
    assert np.count_nonzero((found.mask.array > 0) & trachea) * opened.voxel_ml < 0.5
    assert_like(found, patient().lungs.array)


@pytest.mark.parametrize("side", SIDES)
def test_a_single_lung_in_a_whole_body_is_named(side: int) -> None:
    phantom = patient()
    gone = phantom.lungs.array == RIGHT + LEFT - side
    found = find_lungs(changed(phantom.volume, gone, 40))
    assert_like(found, np.where(gone, 0, phantom.lungs.array), 0.97)
    assert "one-lung" in found.warnings


@pytest.mark.parametrize("height_mm", [40, 60])
def test_the_bases_of_an_abdominal_scan_are_two(height_mm: float) -> None:
    phantom = patient()
    first = int(np.flatnonzero(phantom.lungs.array.any(axis=(1, 2)))[0])
    end = first + round(height_mm / phantom.volume.spacing[0])
    truth = phantom.lungs.array[:end]
    found = find_lungs(Volume(np.ascontiguousarray(phantom.volume.array[:end]), phantom.volume.affine))
    assert_like(found, truth, 0.85)  # a thin edge of some millimetres round a small volume
    assert "one-lung" not in found.warnings


@pytest.mark.parametrize("side", SIDES)
def test_a_lung_below_a_dense_lobe_stays_where_the_scan_cuts_the_other_one_off(side: int) -> None:
    phantom = patient()
    other = phantom.lungs.array == RIGHT + LEFT - side
    slices = np.flatnonzero(phantom.lungs.array.any(axis=(1, 2)))
    dense = phantom.lungs.array == side
    dense[: slices[0] + round(0.4 * slices.size)] = False
    volume = changed(phantom.volume, dense, 40)
    end = np.flatnonzero(other.any(axis=(1, 2)))[-1] - round(25 / phantom.volume.spacing[0])
    found = find_lungs(Volume(np.ascontiguousarray(volume.array[:end]), volume.affine))
    below = ((phantom.lungs.array == side) & ~dense)[:end]
    assert np.mean(found.mask.array[below] == side) >= 0.95


def test_foam_between_back_and_table_is_no_lung() -> None:
    phantom = patient()
    volume = phantom.volume
    body = ndimage.binary_fill_holes(volume.array.max(axis=0) > -300)
    rows = np.flatnonzero(body.any(axis=1))
    behind = np.zeros(volume.shape, np.bool_)  # from back to table and from side to side, over the whole height
    behind[:, (rows[0] + rows[-1]) // 2 : rows[-1] + 20] = True
    behind &= ~np.maximum.accumulate(body[::-1], axis=0)[::-1] & (volume.array < -300)
    noise = np.random.default_rng(0).normal(0, 25, np.count_nonzero(behind))
    foam = changed(volume, behind, -915 + noise)
    inner = np.flatnonzero(body.any(axis=0))[8:-8]  # the field of view ends within the body, at both sides
    part = np.s_[:, :, inner[0] : inner[-1] + 1]
    found = find_lungs(Volume(np.ascontiguousarray(foam.array[part]), volume.affine))
    truth = phantom.lungs.array[part]
    assert dice(found.mask.array > 0, truth > 0) >= 0.98


def test_air_between_back_and_a_bar_of_the_table_is_no_lung() -> None:
    phantom = patient()
    volume = phantom.volume
    body = ndimage.binary_fill_holes(volume.array.max(axis=0) > -300)
    back = np.flatnonzero(body.any(axis=1))[-1]
    array = volume.array.copy()
    behind = ~np.maximum.accumulate(body[::-1], axis=0)[::-1]
    behind[: back - 60] = False
    noise = np.random.default_rng(0).normal(0, 25, (volume.shape[0], np.count_nonzero(behind)))
    array[:, behind] = -930 + noise  # foam
    middle = volume.shape[2] // 2
    array[:, back + 6 : back + 14, middle - 40 : middle + 40] = 100
    y, x = np.ogrid[: volume.shape[1], : volume.shape[2]]
    outside = np.hypot(y - back + 95, x - middle) > 115
    array[:, outside] = PADDING
    found = find_lungs(volume.with_array(array))
    truth = (phantom.lungs.array > 0) & ~outside
    assert dice(found.mask.array > 0, truth) >= 0.98


def test_lungs_behind_a_thin_chest_wall_are_found() -> None:
    phantom = patient()
    volume = phantom.volume
    is_far = ndimage.distance_transform_edt(phantom.lungs.array == 0, volume.spacing) > 7
    z, x = np.arange(volume.shape[0])[:, None, None], np.arange(volume.shape[2])
    between_ribs = (z * SPACING[0] % 32 < 12) & (np.abs(x - volume.shape[2] / 2) * SPACING[2] > 60)
    found = find_lungs(changed(volume, between_ribs & is_far, AIR_HU))
    assert dice(found.mask.array > 0, phantom.lungs.array > 0) >= 0.98


@pytest.mark.parametrize("side", SIDES)
def test_a_base_that_is_aerated_below_consolidation_is_lung(side: int) -> None:
    phantom = patient()
    lung = phantom.lungs.array == side
    slices = np.flatnonzero(lung.any(axis=(1, 2)))
    dense = lung.copy()
    dense[slices[0] + 16 : slices[0] + slices.size * 3 // 4] = False
    base = dense & (np.arange(lung.shape[0]) < slices[0] + 16)[:, None, None]
    found = find_lungs(changed(phantom.volume, lung & ~dense, 40))
    assert np.mean(found.mask.array[base] == side) >= 0.9

"""Patches are where they say they are, and random ones are balanced and the same for all who draw them."""

from __future__ import annotations

import functools
import itertools
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import tiny
from test_house import loaded_by

import dskprep
from dskprep import storage
from dskprep.dataset import store
from dskprep.errors import UsageError
from dskprep.synthetic import phantom, scanner

SETTINGS = dskprep.PrepConfig(spacing_mm=(4, 3, 3), chunk=16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dskprep.Dataset:
    """Two chests, one that lacks a lung, and a series without lungs."""
    folder = tmp_path_factory.mktemp("dataset")
    grid = {"spacing_mm": (4.0, 3.0, 3.0), "shape": (72, 120, 120)}
    for seed, removed in ((1, "none"), (2, "none"), (3, "left")):
        patient = phantom.make_phantom(seed=seed, remove_lung=removed, **grid)
        tiny.write(folder / f"scans/p{seed}", dict(scanner.series_files(patient, name=f"p{seed}", seed=seed)))
    tiny.write(folder / "scans/tiny", tiny.series())
    dskprep.run(str(folder / "scans"), str(folder / "out"), settings=SETTINGS)
    return dskprep.open_dataset(f"{folder}/out")


def test_a_patch_is_a_slice_of_the_array(dataset: dskprep.Dataset) -> None:
    volume = dataset["p1"]
    patch = volume.patch((10, 21, 32), index=(30, 40, 50))
    expected = volume.image[25:35, 30:51, 34:66]
    np.testing.assert_array_equal(patch.array, expected)
    np.testing.assert_allclose(patch.to_patient([0, 0, 0]), volume.to_patient([25, 30, 34]))
    np.testing.assert_array_equal(
        volume.patch(8, index=(30, 40, 50), of="lungs").array, volume.lungs[26:34, 36:44, 46:54]
    )
    assert volume.patch(8, index=(30, 40, 50), of="lungs").array.dtype == np.uint8


@pytest.mark.parametrize(
    ("middle", "size", "first"), [(5, 4, 3), (5, 5, 3), (5.4, 5, 3), (5.6, 5, 4), (5.2, 4, 4), (5, 1, 5)]
)
def test_a_box_lies_round_its_middle(dataset: dskprep.Dataset, middle: float, size: int, first: int) -> None:
    volume = dataset["p1"]
    patch = volume.patch(size, index=(middle, middle + 20, middle + 20))
    np.testing.assert_allclose(volume.to_index(patch.to_patient([0, 0, 0])), [first, first + 20, first + 20], atol=1e-9)


def test_a_landmark_is_found_by_its_place_in_the_patient(tmp_path: Path) -> None:
    """A bright voxel at a place that the DICOM header gives it, on an oblique grid."""
    turn = np.deg2rad(20)
    orientation = (1, 0, 0, 0, np.cos(turn), np.sin(turn))
    stored = np.full((20, 24, 28), 24, np.int16)
    stored[7, 11, 5] = 3000
    files = builders.ct_files(stored, first=(-31.5, 12.25, 80), orientation=orientation, step_mm=1, PixelSpacing=[1, 1])
    row, column = np.array([1, 0, 0]), np.array([0, np.cos(turn), np.sin(turn)])
    landmark_mm = np.array([-31.5, 12.25, 80]) + 5 * row + 11 * column + 7 * np.cross(row, column)
    tiny.write(tmp_path / "scans/p", dict(files))
    dskprep.run(f"{tmp_path}/scans", f"{tmp_path}/out", settings=dskprep.PrepConfig(lungs=False, chunk=16))
    volume = dskprep.open_dataset(f"{tmp_path}/out")["p"]
    patch = volume.patch(5, center_mm=landmark_mm)
    assert np.unravel_index(patch.array.argmax(), patch.shape) == (2, 2, 2)
    np.testing.assert_allclose(patch.to_patient([2, 2, 2]), landmark_mm, atol=0.01)
    np.testing.assert_allclose(volume.to_index(volume.to_patient([3, 4, 5])), [3, 4, 5], atol=1e-9)


def test_beyond_the_volume_a_patch_is_air_or_as_asked(dataset: dskprep.Dataset) -> None:
    volume = dataset["p1"]
    patch = volume.patch(8, index=(0, 50, 50))
    assert (patch.array[:4] == dskprep.AIR_HU).all()
    np.testing.assert_array_equal(patch.array[4:], volume.image[:4, 46:54, 46:54])
    assert (volume.patch(8, index=(0, 50, 50), outside=-3000).array[:4] == -3000).all()
    assert (volume.patch(8, index=(0, 50, 50), outside=-3000).array[4:] == volume.image[:4, 46:54, 46:54]).all()
    assert (volume.patch(8, index=(0, 50, 50), of="lungs").array[:4] == 0).all()


def test_a_patch_is_normalized_as_the_whole_is(dataset: dskprep.Dataset) -> None:
    volume = dataset["p1"]
    patch = volume.patch(8, index=(0, 50, 50), normalized=True).array
    assert patch.dtype == np.float32
    np.testing.assert_array_equal(patch[4:], volume.normalized().array[:4, 46:54, 46:54])
    assert (patch[:4] == np.float32(-0.25)).all()


@pytest.mark.parametrize("outside", [1e9, -32769, float("nan"), float("inf"), "air"])
def test_what_no_voxel_can_hold_is_not_outside(dataset: dskprep.Dataset, outside: Any) -> None:
    with pytest.raises(UsageError, match="outside: expected a number from -32768 to 32767, found"):
        dataset["p1"].patch(8, index=(0, 50, 50), outside=outside)


def test_one_text_is_no_list_of_keys(dataset: dskprep.Dataset) -> None:
    with pytest.raises(UsageError, match=r"found one text, 'p1'; write \['p1'\]"):
        dataset.select("p1")


def test_what_makes_no_patch_says_so(dataset: dskprep.Dataset) -> None:
    volume = dataset["p1"]
    with pytest.raises(UsageError, match="does not touch the volume"):
        volume.patch(8, index=(10, 10, 500))
    with pytest.raises(UsageError, match="either center_mm or index"):
        volume.patch(8)
    with pytest.raises(UsageError, match="either center_mm or index"):
        volume.patch(8, index=(1, 1, 1), center_mm=(1, 1, 1))
    with pytest.raises(UsageError, match="three finite coordinates"):
        volume.patch(8, index=(1, 1))
    with pytest.raises(UsageError, match="three finite coordinates"):
        volume.patch(8, center_mm=(1, 1))
    for size in (0, (8, 8), (8, 8, 0), 1.5, True, None, "4", float("nan"), 2**40, (2**70, 8, 8)):
        with pytest.raises(UsageError, match="size of 1 to 65536 voxels"):
            volume.patch(size, index=(1, 1, 1))
        with pytest.raises(UsageError, match="size of 1 to 65536 voxels"):
            dataset.lung_patches(size)
    with pytest.raises(UsageError, match="expected 'image', 'lungs', found 'heart'"):
        volume.patch(8, index=(1, 1, 1), of="heart")  # type: ignore[arg-type]


def test_a_dataset_is_narrowed_by_its_index(dataset: dskprep.Dataset) -> None:
    assert list(dataset) == ["p1", "p2", "p3", "tiny"]
    large = dataset.where(lambda row: row["n_z"] > 20)
    assert list(large.keys()) == list(large) == ["p1", "p2", "p3"]
    assert len(large) == 3
    assert "tiny" not in large
    assert sorted(large.index["key"]) == list(large)
    with pytest.raises(KeyError):
        large["tiny"]
    whole = large.where(lambda row: not row["warnings"])
    assert list(whole) == [key for key in large if not large[key].record.warnings]
    assert list(dataset.select(["p2"])) == ["p2"]
    with pytest.raises(KeyError, match="p9"):
        dataset.select(["p2", "p9"])


def test_the_middle_of_a_random_patch_is_a_voxel_of_the_lung_it_names(dataset: dskprep.Dataset) -> None:
    patches = dataset.lung_patches((8, 9, 10), normalized=False)
    for patch in itertools.islice(patches, 24):
        volume = dataset[patch.key]
        assert volume.lungs[patch.index] == patch.side
        expected = volume.patch((8, 9, 10), index=patch.index)
        np.testing.assert_array_equal(patch.image.array, expected.array)
        np.testing.assert_array_equal(patch.image.affine, expected.affine)
        np.testing.assert_array_equal(patch.lungs, volume.patch((8, 9, 10), index=patch.index, of="lungs").array)
        assert patch.lungs[4, 4, 5] == patch.side


def test_every_volume_gives_as_many_of_each_lung(dataset: dskprep.Dataset) -> None:
    """In each round; one without a left lung gives right ones, one without lungs none."""
    patches = dataset.lung_patches(2)
    for start in (0, 6, 60):
        found = Counter((p.key, p.side) for p in map(patches.__getitem__, range(start, start + 6)))
        assert found == {("p1", 1): 1, ("p1", 2): 1, ("p2", 1): 1, ("p2", 2): 1, ("p3", 1): 2}
    orders = {tuple((p.key, p.side) for p in map(patches.__getitem__, range(6 * i, 6 * i + 6))) for i in range(5)}
    assert len(orders) > 1


def test_each_voxel_of_a_lung_is_as_likely(dataset: dskprep.Dataset) -> None:
    """Means and quarters of the drawn places are those of the lung, within five standard errors."""
    patches = dataset.select(["p1"]).lung_patches(1)
    drawn = np.array([p.index for p in itertools.islice(patches, 1200) if p.side == 2], float)
    truth = np.argwhere(np.asarray(dataset["p1"].lungs[...]) == 2)
    assert len(drawn) == 600
    error = truth.std(axis=0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(axis=0) - truth.mean(axis=0)) < 5 * error).all()
    for part in (0.25, 0.75):
        share = (drawn <= np.quantile(truth, part, axis=0)).mean(axis=0)
        expected = (truth <= np.quantile(truth, part, axis=0)).mean(axis=0)
        assert (np.abs(share - expected) < 5 * np.sqrt(0.25 / len(drawn))).all()


def place(patch: dskprep.Patch) -> tuple[object, ...]:
    return patch.key, patch.side, patch.index


def test_a_patch_depends_on_seed_epoch_and_number_alone(dataset: dskprep.Dataset) -> None:
    patches = dataset.lung_patches(4, seed=7)
    forwards = [place(patches[i]) for i in range(12)]
    copy = pickle.loads(pickle.dumps(patches))
    assert [place(copy[i]) for i in reversed(range(12))] == forwards[::-1]
    assert len(set(forwards)) == 12
    others = [place(dataset.lung_patches(4, seed=8)[i]) for i in range(12)]
    later = [place(patches.draw(i, epoch=1)) for i in range(12)]
    assert not set(forwards) & set(others)
    assert not set(forwards) & set(later)
    with pytest.raises(IndexError):
        patches[-1]


def test_without_lungs_there_are_no_patches(dataset: dskprep.Dataset) -> None:
    with pytest.raises(UsageError, match="no volume with lungs"):
        dataset.select(["tiny"]).lung_patches(4)


def test_of_no_volumes_there_are_no_patches(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    none = dataset.where(lambda _: False)
    store.create(str(tmp_path / "empty"), dskprep.PrepConfig())
    for chosen, why in ((none, "0 volumes are selected"), (dskprep.open_dataset(tmp_path / "empty"), "no volume is")):
        draws = (
            functools.partial(chosen.lung_patches, 4),
            functools.partial(chosen.stream, 4, 2),
            functools.partial(chosen.patches, 4),
            functools.partial(chosen.stream, 4, 2, around="GTV*"),
        )
        for draw in draws:
            with pytest.raises(UsageError, match=f"{chosen.url}: expected volumes to take patches from, but {why}"):
                draw()


@pytest.mark.s3
def test_patches_from_a_bucket_are_those_from_a_folder(s3: str, dataset: dskprep.Dataset) -> None:
    tiny.write(f"{s3}/out", tiny.everything_below(dataset.url))
    here, there = (dskprep.open_dataset(url).lung_patches(16) for url in (dataset.url, f"{s3}/out"))
    for i in range(6):
        assert place(here[i]) == place(there[i])
        np.testing.assert_array_equal(here[i].image.array, there[i].image.array)


@pytest.mark.slow
def test_drawing_patches_imports_nothing_that_it_does_not_use(dataset: dskprep.Dataset) -> None:
    loaded = loaded_by("import dskprep", f"dskprep.open_dataset({json.dumps(dataset.url)}).lung_patches(4)[0]")
    assert "zarr" in loaded
    assert loaded & {"torch", "distributed", "matplotlib", "SimpleITK", "nibabel", "xarray"} == set()


def test_a_volume_without_a_mask_has_no_lung_patches(tmp_path: Path) -> None:
    tiny.write(tmp_path / "scans/p", tiny.series())
    dskprep.run(f"{tmp_path}/scans", f"{tmp_path}/out", settings=dskprep.PrepConfig(lungs=False))
    volume = dskprep.open_dataset(f"{tmp_path}/out")["p"]
    with pytest.raises(UsageError, match="no lung mask"):
        volume.patch(4, index=(1, 1, 1), of="lungs")
    with pytest.raises(UsageError, match="no lung mask"):
        volume.load("lungs")


def test_a_volume_that_travelled_reads_the_same(dataset: dskprep.Dataset) -> None:
    volume = dataset["p1"]
    expected = volume.image[10:12]
    volume.patch(4, index=(10, 10, 10))
    copy = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(copy.image[10:12], expected)
    assert storage.exists(copy.url)

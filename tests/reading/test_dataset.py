"""What a data scientist does with a finished dataset."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.errors import DamagedDataset, UsageError
from dskprep.reading import normalized


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dskprep.Dataset:
    """Two volumes and a refused patient."""
    folder = tmp_path_factory.mktemp("dataset")
    tiny.write_patients(folder / "scans", ["p2", "p1"])
    tiny.write(folder / "scans/p3", {"notes.txt": b"no scan"})
    dskprep.run(str(folder / "scans"), str(folder / "out"))
    return dskprep.open_dataset(f"{folder}/out")


def test_it_is_a_mapping_of_the_written_volumes(dataset: dskprep.Dataset) -> None:
    assert list(dataset.keys()) == list(dataset) == ["p1", "p2"]
    assert len(dataset) == 2
    assert "p1" in dataset
    assert "p3" not in dataset
    assert [key for key, volume in dataset.items() if volume.shape == (12, 24, 24)] == ["p1", "p2"]
    assert dataset.get("p3") is None


def test_a_volume_whose_record_was_deleted_meanwhile_is_damage_and_names_it(tmp_path: Path) -> None:
    dskprep.run(tiny.write_patients(tmp_path / "in", ["p1", "p2"]), tmp_path / "out")
    dataset = dskprep.open_dataset(tmp_path / "out")
    assert list(dataset) == ["p1", "p2"]
    dskprep.forget(tmp_path / "out", ["p1"])
    with pytest.raises(DamagedDataset, match="the record of p1 is gone since this dataset was opened; open it again"):
        dataset["p1"]
    assert dataset["p2"].load().shape == (12, 24, 24)


def test_of_an_object_that_is_longer_than_it_was_written_what_was_written_is_read(tmp_path: Path) -> None:
    target = tmp_path / "out"
    dskprep.run(tiny.write_patients(tmp_path / "in", ["p1"]), target)
    written = dskprep.open_dataset(target)["p1"].load().array
    with (target / "volumes/p1.zarr/0/c/0/0/0").open("ab") as file:
        file.write(b"more")
    volume = dskprep.open_dataset(target)["p1"]
    assert np.array_equal(volume.load().array, written)
    assert np.array_equal(volume.image[...], written)
    assert [finding.is_damaged for finding in dskprep.verify(target)] == [True]


def test_a_key_that_is_not_written_says_what_became_of_it(dataset: dskprep.Dataset) -> None:
    with pytest.raises(KeyError, match="p3: was refused, no-dicom: expected"):
        dataset["p3"]
    with pytest.raises(KeyError, match="no volume 'p4' is written; there are 2, such as p1, "):
        dataset["p4"]
    with pytest.raises(KeyError, match="p2: is not in this selection of 1 volume"):
        dataset.select(["p1"])["p2"]
    with pytest.raises(KeyError, match=r"no volume 'p11' is written; there are 2; did you mean 'p1'\?"):
        dataset["p11"]
    with pytest.raises(KeyError, match="p3: was refused"):
        dataset.select(["p1", "p3"])


def test_the_index_has_the_others_too(dataset: dskprep.Dataset) -> None:
    table = dataset.index.set_index("key")
    assert table["status"].to_dict() == {"p1": "written", "p2": "written", "p3": "refused"}
    assert table.loc["p3", "reason"] == "no-dicom"
    assert table.loc["p1", ["n_z", "n_y", "n_x"]].tolist() == [12, 24, 24]


def test_an_image_is_sliced_where_it_lies(dataset: dskprep.Dataset) -> None:
    volume = dataset["p2"]
    assert volume.image.shape == (12, 24, 24)
    np.testing.assert_array_equal(volume.image[3:6, 10], tiny.hu(0)[3:6, 10])
    assert volume.lungs is not None
    assert volume.lungs.shape == volume.image.shape
    assert volume.lungs.dtype == np.uint8


def test_a_volume_knows_its_place(dataset: dskprep.Dataset) -> None:
    volume = dataset["p1"]
    assert volume.spacing == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], [-100.123457, -50.5, 10.25, 1], atol=1e-6)
    attributes = json.loads(storage.read(f"{volume.url}/zarr.json"))["attributes"]
    assert (
        attributes["dskprep"]["affine"]
        == volume.affine.tolist()
        == [list(row) for row in volume.record.geometry.affine]
    )
    assert volume.record.key == volume.key == "p1"


def test_a_volume_is_loaded_whole_or_normalized(dataset: dskprep.Dataset) -> None:
    volume = dataset["p1"]
    loaded, normalized = volume.load(), volume.normalized()
    np.testing.assert_array_equal(loaded.array, tiny.hu(1))
    expected = np.clip((tiny.hu(1) + 1000.0) / 1400.0, 0, 1) - 0.25
    assert normalized.array.dtype == np.float32
    np.testing.assert_allclose(normalized.array, expected, atol=1e-6)
    np.testing.assert_array_equal(normalized.affine, loaded.affine)


def test_normalized_is_the_tutorials_0_to_1_minus_the_mean() -> None:
    hu = np.array([[[-32768, -1500, -1000, -300, 400, 3000]]], np.int16)
    values = normalized.normalize(dskprep.Volume(hu, np.eye(4))).array
    assert values.dtype == np.float32
    assert values[0, 0] == pytest.approx([-0.25, -0.25, -0.25, 0.25, 0.75, 0.75])


def test_its_settings_are_known(dataset: dskprep.Dataset) -> None:
    assert dataset.settings == dskprep.PrepConfig().as_dict()


def test_a_dataset_without_lungs_has_none(tmp_path: Path) -> None:
    tiny.write_patients(tmp_path / "scans", ["p1"])
    dskprep.run(f"{tmp_path}/scans", f"{tmp_path}/out", settings=dskprep.PrepConfig(lungs=False))
    volume = dskprep.open_dataset(f"{tmp_path}/out")["p1"]
    assert volume.lungs is None
    assert not [name for name in tiny.everything_below(volume.url) if name.startswith("labels")]


def test_what_is_no_dataset_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no dskprep dataset here"):
        dskprep.open_dataset(str(tmp_path))


def test_credentials_in_its_url_are_refused() -> None:
    with pytest.raises(UsageError, match="must not hold credentials"):
        dskprep.open_dataset("s3://AKIA:secret@bucket/x")


@pytest.mark.s3
def test_a_dataset_in_a_bucket_is_read_from_there(s3: str, dataset: dskprep.Dataset) -> None:
    tiny.write(f"{s3}/out", tiny.everything_below(dataset.url))
    there = dskprep.open_dataset(f"{s3}/out")
    assert there.keys() == dataset.keys()
    np.testing.assert_array_equal(there["p1"].image[:, 5], dataset["p1"].image[:, 5])


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("0/c/0/0/0", None, "is gone; `dskprep verify` finds"),
        ("0/zarr.json", None, "is gone; `dskprep verify` finds"),
        ("0/zarr.json", b"{", r"is damaged \(no JSON\); `dskprep verify` finds"),
        ("0/zarr.json", b"[]", r"is damaged \(expected a JSON object\); `dskprep verify` finds"),
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        lambda volume: volume.load(),
        lambda volume: volume.patch(8, index=(8, 8, 8)),
        lambda volume: volume.image[:8, :8, :8],
        lambda volume: pickle.loads(pickle.dumps(volume.image))[...],
        lambda volume: volume.as_dask().max().compute(),
    ],
    ids=["load", "patch", "zarr", "zarr that travelled", "dask"],
)
def test_a_volume_that_is_not_whole_is_never_read_as_air(
    place: str, dataset: dskprep.Dataset, name: str, content: bytes | None, problem: str, read: Callable[[Any], Any]
) -> None:
    objects = tiny.everything_below(dataset.url)
    objects.pop(f"volumes/p1.zarr/{name}")
    tiny.write(place, objects | ({f"volumes/p1.zarr/{name}": content} if content else {}))
    damaged, whole = (dskprep.open_dataset(place)[key] for key in ("p1", "p2"))
    with pytest.raises(DamagedDataset, match=f"p1.zarr/{name}: {problem}"):
        read(damaged)
    read(whole)

"""PyTorch's data loaders draw each patch once, the same whoever draws it."""

from __future__ import annotations

import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny

import dskprep
from dskprep.errors import UsageError
from dskprep.synthetic import scanner

N = 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dskprep.Dataset:
    folder = tmp_path_factory.mktemp("dataset")
    scanner.write_patients(str(folder / "scans"), 2, spacing_mm=(4.0, 3.0, 3.0), shape=(72, 120, 120), broken=False)
    settings = dskprep.PrepConfig(spacing_mm=(4, 3, 3), chunk=16)
    dskprep.run(str(folder / "scans"), str(folder / "out"), settings=settings)
    return dskprep.open_dataset(f"{folder}/out")


def test_without_torch_it_says_so(dataset: dskprep.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "dskprep.reading.training", raising=False)
    with pytest.raises(UsageError, match="torch is not installed"):
        dataset.lung_patches(8).as_torch(N)


def drawn(dataset: Any, **options: Any) -> list[tuple[object, ...]]:
    """Key, middle and sum of the patches in the order in which a loader gives them."""
    from torch.utils.data import DataLoader

    found = []
    for batch in DataLoader(dataset, batch_size=2, **options):
        assert batch["image"].shape[1:] == batch["lungs"].shape[1:] == (1, 8, 8, 8)
        for key, middle, image in zip(batch["key"], batch["center_mm"], batch["image"], strict=True):
            found.append((key, *middle.tolist(), float(image.sum())))
    return found


def test_items_are_the_patches(dataset: dskprep.Dataset) -> None:
    torch = pytest.importorskip("torch")
    patches = dataset.lung_patches(8, seed=3)
    items = patches.as_torch(N)
    assert len(items) == N
    for i in (0, 7):
        item, patch = items[i], patches[i]
        assert (item["image"].dtype, item["lungs"].dtype) == (torch.float32, torch.uint8)
        np.testing.assert_array_equal(item["image"][0].numpy(), patch.image.array)
        np.testing.assert_array_equal(item["lungs"][0].numpy(), patch.lungs)
        np.testing.assert_allclose(dataset[item["key"]].to_index(item["center_mm"].numpy()), patch.index, atol=1e-6)
    with pytest.raises(IndexError):
        items[N]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_workers_share_the_patches_and_change_nothing(dataset: dskprep.Dataset, way: str) -> None:
    pytest.importorskip("torch")
    items = dataset.lung_patches(8).as_torch(N)
    items.set_epoch(0)
    alone = drawn(items)
    assert len(set(alone)) == N
    assert drawn(items, num_workers=2, multiprocessing_context=way) == alone
    assert drawn(pickle.loads(pickle.dumps(items)), num_workers=1, multiprocessing_context=way) == alone


def test_an_epoch_has_patches_of_its_own_with_persistent_workers_too(dataset: dskprep.Dataset) -> None:
    torch = pytest.importorskip("torch")
    items = dataset.lung_patches(8).as_torch(N)
    loader = torch.utils.data.DataLoader(
        items, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
    )
    epochs = []
    for epoch in range(3):
        items.set_epoch(epoch)
        epochs.append([(item["key"], *item["center_mm"].tolist()) for item in loader])
    assert all(len(set(epoch)) == N for epoch in epochs)
    assert not set(epochs[0]) & set(epochs[1])
    items.set_epoch(1)
    assert [(items[i]["key"], *items[i]["center_mm"].tolist()) for i in range(N)] == epochs[1]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_each_epoch_draws_anew_by_itself_unless_it_is_set(dataset: dskprep.Dataset, n_workers: int) -> None:
    """Lightning calls `set_epoch` on samplers only."""
    pytest.importorskip("torch")
    items = dataset.lung_patches(8).as_torch(N)
    how = {"num_workers": n_workers, "multiprocessing_context": "fork" if n_workers else None}
    one, two = drawn(items, **how), drawn(items, **how)
    assert len({*one, *two}) == 2 * N
    items.set_epoch(1)
    assert drawn(items, **how) == drawn(items, **how) == two


@pytest.mark.s3
@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.slow
def test_workers_read_from_a_bucket_that_their_parent_has_read(
    s3: str, dataset: dskprep.Dataset, way: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The threads that read from S3 do not survive a fork."""
    pytest.importorskip("torch")
    tiny.write(f"{s3}/out", tiny.everything_below(dataset.url))
    items = dskprep.open_dataset(f"{s3}/out").lung_patches(8).as_torch(N)
    items.set_epoch(0)
    expected = drawn(items)
    assert expected == drawn(dataset.lung_patches(8).as_torch(N))
    assert drawn(items, num_workers=2, multiprocessing_context=way, timeout=tiny.LIMIT_S) == expected
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_that_was_forked_has_both_the_image_and_its_zarr_array(
    dataset: dskprep.Dataset, tmp_path: Path
) -> None:
    """Arrays that the parent opened are opened anew."""
    pytest.importorskip("torch")
    from torch.multiprocessing import get_context

    volume = dataset[next(iter(dataset))]
    expected = volume.image[3]
    np.save(tmp_path / "expected.npy", expected)
    process = get_context("fork").Process(target=_save, args=(volume, tmp_path / "found.npy"))
    process.start()
    process.join(tiny.LIMIT_S)
    assert process.exitcode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)


def _save(volume: dskprep.StoredVolume, path: Path) -> None:
    np.save(path, volume.image[3])


def test_columns_of_a_joined_table_are_in_the_items(dataset: dskprep.Dataset) -> None:
    torch = pytest.importorskip("torch")
    one, other = dataset
    joined = dataset.join(pd.DataFrame({"key": [one, other], "grade": [2, None], "site": [None, "A"]}))
    loader = torch.utils.data.DataLoader(joined.lung_patches(8, seed=1).as_torch(4), batch_size=4)
    (batch,) = loader
    for key, grade, site in zip(batch["key"], batch["grade"].tolist(), batch["site"], strict=True):
        assert (grade, site) == (2, "") if key == one else (math.isnan(grade) and site == "A")
    with pytest.raises(UsageError, match="joined column is called 'image'"):
        dataset.join(pd.DataFrame({"key": [one, other], "image": [1, 2]})).lung_patches(8).as_torch(4)

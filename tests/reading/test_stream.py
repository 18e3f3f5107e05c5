"""Batches that are read ahead are the same patches, fetched once, whoever stops, goes on or shares them."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.errors import DamagedDataset, UsageError
from dskprep.reading.stream import Room, Stream, Window
from dskprep.synthetic import phantom, scanner

SETTINGS = dskprep.PrepConfig(spacing_mm=(4, 3, 3), chunk=16)
SIZE = (8, 20, 24)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dskprep.Dataset:
    """Three chests, one of which lacks a lung."""
    folder = tmp_path_factory.mktemp("dataset")
    grid = {"spacing_mm": (4.0, 3.0, 3.0), "shape": (72, 120, 120)}
    for seed, removed in ((1, "none"), (2, "none"), (3, "left")):
        patient = phantom.make_phantom(seed=seed, remove_lung=removed, **grid)
        tiny.write(folder / f"scans/p{seed}", dict(scanner.series_files(patient, name=f"p{seed}", seed=seed)))
    dskprep.run(str(folder / "scans"), str(folder / "out"), settings=SETTINGS)
    return dskprep.open_dataset(f"{folder}/out")


def streamed(dataset: dskprep.Dataset, resume: Any = None, **options: Any) -> Stream:
    how = {"volumes": 2, "per_volume": 6} | options
    return dataset.lung_patches(SIZE, seed=5).stream(4, resume=resume, **how)


def taken(batches: Any, n: int) -> list[dict[str, Any]]:
    with contextlib.closing(iter(batches)) as iterator:
        return list(itertools.islice(iterator, n))


def same(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> bool:
    arrays = ("image", "lungs", "center_mm")
    return len(one) == len(two) and all(
        (a["key"], a["state"]) == (b["key"], b["state"]) and all(np.array_equal(a[name], b[name]) for name in arrays)
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.slow
def test_batches_are_the_patches_one_after_another(dataset: dskprep.Dataset) -> None:
    """Three windows and more, of patches that reach beyond the volume too."""
    stream = streamed(dataset)
    for k, batch in enumerate(taken(stream, 10)):
        assert batch["image"].dtype == np.float32
        for i in range(4):
            patch = stream.draws[4 * k + i]
            np.testing.assert_array_equal(batch["image"][i, 0], patch.image.array)
            np.testing.assert_array_equal(batch["lungs"][i, 0], patch.lungs)
            assert batch["key"][i] == patch.key
            np.testing.assert_allclose(dataset[patch.key].to_index(batch["center_mm"][i]), patch.index, atol=1e-9)


def test_what_lies_beyond_a_volume_is_as_asked(dataset: dskprep.Dataset) -> None:
    stream = dataset.lung_patches(80, seed=1, outside=-3000, normalized=False).stream(2)
    (batch,) = taken(stream, 1)
    assert batch["image"].dtype == np.int16
    assert (batch["image"] == -3000).any()
    for i in range(2):
        np.testing.assert_array_equal(batch["image"][i, 0], stream.draws[i].image.array)


def test_a_volume_of_other_numbers_is_named_and_not_cut_to_those_of_the_first(
    dataset: dskprep.Dataset, tmp_path: Path
) -> None:
    """As somebody may put one into a dataset: its values beyond int16 would become others in silence."""
    shutil.copytree(dataset.url, tmp_path / "out")
    metadata = tmp_path / "out/volumes/p2.zarr/0/zarr.json"
    metadata.write_text(metadata.read_text().replace('"int16"', '"float32"'))
    with pytest.raises(UsageError, match=r"p2\.zarr/0: expected int16, as in the other volumes, found float32"):
        taken(streamed(dskprep.open_dataset(tmp_path / "out")), 10)


def test_a_window_has_few_volumes_and_a_round_all_of_them_equally(dataset: dskprep.Dataset) -> None:
    stream = streamed(dataset)
    windows = [stream.draws.window(k) for k in range(6)]
    assert [number for window in windows for number in window] == list(range(3 * 18))
    for start in (0, 2, 4):
        spots = [[stream.draws.spot(number) for number in window] for window in windows[start : start + 2]]
        assert [len({spot.key for spot in some}) for some in spots] == [2, 1]
        found = Counter((spot.key, spot.side) for spot in itertools.chain(*spots))
        assert found == {("p1", 1): 3, ("p1", 2): 3, ("p2", 1): 3, ("p2", 2): 3, ("p3", 1): 6}
    rounds = [[stream.draws.home(number) for number in range(start, start + 18)] for start in (0, 18, 36)]
    assert rounds[0] != rounds[1] != rounds[2]


def test_order_depends_on_the_seed_and_not_on_memory(dataset: dskprep.Dataset) -> None:
    n_bytes = 3 * 3 * int(np.prod(SIZE)) * 3  # three patches in a window
    assert same(taken(streamed(dataset), 8), taken(streamed(dataset, memory=n_bytes), 8))
    other = dataset.lung_patches(SIZE, seed=6).stream(4, volumes=2, per_volume=6)
    assert taken(other, 1)[0]["key"] != taken(streamed(dataset), 1)[0]["key"] or not same(
        taken(other, 1), taken(streamed(dataset), 1)
    )


@pytest.mark.parametrize("n_done", [1, 3, 7])
def test_a_stream_that_goes_on_is_the_unbroken_one(dataset: dskprep.Dataset, n_done: int) -> None:
    """Amid a window, at the end of one, in the next round."""
    whole = taken(streamed(dataset), n_done + 4)
    written = json.dumps(whole[n_done - 1]["state"])
    assert len(written) < 100
    assert same(taken(streamed(dataset, json.loads(written)), 4), whole[n_done:])


def test_the_state_of_another_stream_is_refused(dataset: dskprep.Dataset) -> None:
    state = taken(streamed(dataset), 1)[0]["state"]
    for other in (
        lambda: dataset.lung_patches(SIZE, seed=6).stream(4, volumes=2, per_volume=6, resume=state),
        lambda: dataset.lung_patches(8, seed=5).stream(4, volumes=2, per_volume=6, resume=state),
        lambda: streamed(dataset, state, volumes=3),
        lambda: streamed(dataset.select(["p1", "p2"]), state),
    ):
        with pytest.raises(UsageError, match="the state is that of another stream"):
            other()
    with pytest.raises(UsageError, match="one patch or more"):
        dataset.stream(8, 0)
    with pytest.raises(UsageError, match="one volume and patch"):
        streamed(dataset, volumes=0)
    with pytest.raises(UsageError, match="say what places"):
        dataset.stream(8, 1, labels=["lungs"])


@pytest.mark.parametrize("n", [-1, "x", "1", 1.5, 1e30, 10**30, None])
def test_a_state_that_no_stream_gave_is_refused(dataset: dskprep.Dataset, n: Any) -> None:
    state = taken(streamed(dataset), 1)[0]["state"]
    changed = [state | {"batches": n}, state | {"parts": n}]
    for bad in (*changed, state | {"parts": 0}, {"of": state["of"]}, [1], "x"):
        with pytest.raises(UsageError, match=r"expected .*state.*found") as caught:
            streamed(dataset, bad)
        assert "\n" not in str(caught.value)


def everything_fetched(dataset: dskprep.Dataset, monkeypatch: pytest.MonkeyPatch, n: int) -> Counter[Any]:
    """The bytes of shards that a window of `n` patches requests: how often each range."""
    fetched: Counter[Any] = Counter()
    ranged = storage.read_ranges

    def noted(url: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        fetched.update((url, begin, end) for begin, end in ranges)
        return ranged(url, ranges)

    stream = streamed(dataset, volumes=3, per_volume=16)
    assert len(stream.draws.window(0)) == 48
    with monkeypatch.context() as patched, ThreadPoolExecutor(4) as threads:
        patched.setattr(storage, "read_ranges", noted)
        window = Window(stream.draws, range(n), Room(stream.dtypes, (n, *SIZE)), threads)
    np.testing.assert_array_equal(window.arrays["lungs"][0], stream.draws[0].lungs)
    return fetched


def test_each_chunk_is_fetched_once_in_a_window(
    place: str, dataset: dskprep.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder, and from a real S3 server. Four times the patches need less than three times the requests."""
    tiny.write(f"{place}/out", tiny.everything_below(dataset.url))
    there = dskprep.open_dataset(f"{place}/out")
    few, many = (everything_fetched(there, monkeypatch, n) for n in (12, 48))
    for fetched in (few, many):
        assert set(fetched.values()) == {1}
        for _, some in itertools.groupby(sorted(fetched), key=lambda part: part[0]):
            assert all(one[2] <= two[1] for one, two in itertools.pairwise(some))  # no byte twice either
    assert len(many) < 3 * len(few)


@pytest.mark.s3
def test_a_bucket_gives_what_a_folder_gives(s3: str, dataset: dskprep.Dataset) -> None:
    tiny.write(f"{s3}/out", tiny.everything_below(dataset.url))
    assert same(taken(streamed(dskprep.open_dataset(f"{s3}/out")), 6), taken(streamed(dataset), 6))


@pytest.mark.slow
def test_memory_is_bounded(dataset: dskprep.Dataset) -> None:
    """Windows of a thousand patches, 330 MB each; read as pieces of 8 MB at most."""

    def peak(memory: int, batches: int) -> int:
        stream = dataset.lung_patches(48, seed=1).stream(2, volumes=3, per_volume=334, memory=memory)
        held: list[Any] = []  # 0.66 MB each
        most = tiny.most_bytes_of(lambda: held.extend(taken(stream, batches)))
        assert len(held) == batches
        return most

    peak(2**20, 40)  # what is opened and compiled once is so before
    assert peak(24 * 2**20, 40) < 80 * 2**20
    assert peak(24 * 2**20, 400) > 200 * 2**20  # so it would have been seen


def test_a_lost_shard_is_an_error_that_names_it(tmp_path: Any, dataset: dskprep.Dataset) -> None:
    tiny.write(tmp_path / "out", tiny.everything_below(dataset.url))
    lost = dskprep.open_dataset(tmp_path / "out")
    storage.delete(f"{lost['p2'].url}/0", ["c/0/0/0"])
    with pytest.raises(DamagedDataset, match=r"volumes/p2[^ ]*/0/c/0/0/0: is gone"):
        taken(streamed(lost), 12)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


def test_who_stops_leaves_no_thread(dataset: dskprep.Dataset) -> None:
    for _ in streamed(dataset):
        break
    taken(streamed(dataset), 3)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


def test_columns_of_a_joined_table_are_in_the_batches(dataset: dskprep.Dataset) -> None:
    table = pd.DataFrame({"key": [*dataset], "grade": [1, 2, None], "site": ["A", None, "B"]})
    stream = streamed(dataset.join(table))
    for batch in taken(stream, 3):
        for key, grade, site in zip(batch["key"], batch["grade"], batch["site"], strict=True):
            assert site == {"p1": "A", "p2": "", "p3": "B"}[key]
            assert np.array_equal(grade, {"p1": 1, "p2": 2, "p3": np.nan}[key], equal_nan=True)


def epochs(stream: Stream, n: int, n_workers: int, n_epochs: int, **ranks: int) -> Iterator[list[Any]]:
    """The batches of some epochs as a data loader gives them: their state, keys and middles."""
    from torch.utils.data import DataLoader

    how = {"multiprocessing_context": "fork", "persistent_workers": n_epochs > 1} if n_workers else {}
    loader = DataLoader(stream.as_torch(n, **ranks), batch_size=None, num_workers=n_workers, **how)
    assert len(loader) == n
    for _ in range(n_epochs):
        yield [(b["state"], b["key"], b["center_mm"].tolist(), float(b["image"].sum())) for b in loader]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_epochs_go_on_and_a_resumed_one_is_the_unbroken_one(dataset: dskprep.Dataset, n_workers: int) -> None:
    pytest.importorskip("torch")
    one, two = epochs(streamed(dataset), 5, n_workers, 2)
    middles = [tuple(middle) for batch in (*one, *two) for middle in batch[2]]
    assert len(one) == len(two) == 5
    assert len(set(middles)) == len(middles) == 40
    (rest,) = epochs(streamed(dataset, one[2][0]), 5, n_workers, 1)
    assert rest == one[3:]
    (last,) = epochs(streamed(dataset, two[3][0]), 5, n_workers, 1)
    assert last == two[4:]
    if n_workers:
        with pytest.raises(UsageError, match="read in 2 parts, not 1: take as many"):
            taken(streamed(dataset, one[0][0]), 1)
    else:
        assert [batch["key"] for batch in taken(streamed(dataset), 5)] == [batch[1] for batch in one]


def test_workers_and_ranks_share_the_windows_out(dataset: dskprep.Dataset) -> None:
    """Six parts of one volume each, so no volume is read twice in a round, and none is left out."""
    pytest.importorskip("torch")
    stream = streamed(dataset, volumes=1, per_volume=4)
    found = []
    for rank in range(3):
        (batches,) = epochs(stream, 2, 2, 1, rank=rank, ranks=3)
        found += [(batch[1], tuple(map(tuple, batch[2]))) for batch in batches]
    alone = [(b["key"], tuple(map(tuple, b["center_mm"].tolist()))) for b in taken(stream, 6)]
    assert sorted(found) == sorted(alone)
    assert all(len({*keys}) == 1 for keys, _ in found)
    with pytest.raises(UsageError, match="a rank below 2"):
        stream.as_torch(1, rank=2, ranks=2)

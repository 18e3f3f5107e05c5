"""Patches around annotated places: where they lie, how many of them, and that all workers draw the same."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import ct_file
from label_builders import SERIES, frames_of, grid_of, seg_file

import dskprep
from dskprep.errors import UsageError
from dskprep.reading.dataset import Dataset
from dskprep.reading.examples import Examples, Row
from dskprep.settings import PrepConfig
from dskprep.synthetic import scanner

SIZE = 24


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two phantoms with lungs, with points as LUNA16 has them, and a SEG of a box in one of the lungs."""
    place = tmp_path_factory.mktemp("examples")
    scanner.write_patients(str(place / "in"), 3, seed=3)
    dskprep.run(place / "in", place / "out", settings=PrepConfig(spacing_mm=(2.0, 2.0, 2.0)))
    opened = dskprep.open_dataset(place / "out")
    lines, candidates = [], []
    for key, volume in opened.items():
        inside = np.argwhere(volume.load("lungs").array > 0)
        for k in (len(inside) // 3, len(inside) // 2):
            x, y, z = volume.to_patient(inside[k])
            lines.append(f"{key},{x},{y},{z},8.0")
        x, y, z = volume.to_patient(inside[len(inside) // 5])
        candidates.append(f"{key},{x},{y},{z},0")
    labels = place / "labels"
    labels.mkdir()
    (labels / "annotations.csv").write_text("key,x,y,z,diameter_mm\n" + "\n".join(lines) + "\n")
    (labels / "candidates.csv").write_text("key,x,y,z,class\n" + "\n".join(candidates) + "\n")
    assert dskprep.annotate(place / "out", labels).points == 3 * len(opened)
    return dskprep.open_dataset(place / "out")


def middle_of(examples: Examples, number: int) -> tuple[str, np.ndarray[Any, Any]]:
    patch = examples[number]
    return patch.key, patch.image.to_patient(np.array(patch.image.shape) // 2)


@pytest.mark.slow
def test_positives_lie_around_places_within_the_jitter_and_hold_them(dataset: Dataset) -> None:
    examples = dataset.patches(SIZE, positives=1.0, jitter_mm=6.0)
    offsets = []
    for number in range(40):
        patch = examples[number]
        assert patch.is_positive
        point = np.array([patch.row["x"], patch.row["y"], patch.row["z"]])
        index = patch.image.to_index(point)
        assert ((index > -0.5) & (index < SIZE - 0.5)).all()
        offsets.append(patch.image.to_patient(np.full(3, SIZE // 2)) - point)
    apart = np.abs(offsets)
    assert apart.max() <= 6.0 + 1.0 + 1e-6  # a middle is a whole voxel, of 2 mm
    assert apart.mean() > 1.5


def test_a_negative_that_a_volume_cannot_give_is_taken_from_another(dataset: Dataset) -> None:
    """All of the lungs of one volume is annotated, by one box."""
    keys = [*dataset]

    def is_meant(row: Row) -> bool:
        row["diameter_mm"] = 3000.0
        return bool(row["key"] != keys[0])

    examples = dataset.patches(SIZE, around=is_meant, positives=0.0, seed=2)
    drawn = [(e.key, tuple(e.image.affine[:3, 3])) for e in map(examples.draw, range(8))]
    assert {key for key, _ in drawn} == {keys[0]}
    again = pickle.loads(pickle.dumps(examples))
    assert [(e.key, tuple(e.image.affine[:3, 3])) for e in map(again.draw, reversed(range(8)))] == drawn[::-1]
    with pytest.raises(UsageError, match="take a smaller size, or negatives"):
        _ = dataset.select(keys[1:]).patches(SIZE, around=is_meant, positives=0.0)[0]


def test_a_place_stays_in_a_patch_that_is_smaller_than_the_jitter(dataset: Dataset) -> None:
    for patch in (dataset.patches(4, positives=1.0, jitter_mm=50.0)[k] for k in range(20)):
        index = patch.image.to_index([patch.row["x"], patch.row["y"], patch.row["z"]])
        assert ((index > -0.5) & (index < 3.5)).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 2 / 3, 1.0])
def test_the_share_of_positives_holds_in_any_row_of_numbers(dataset: Dataset, share: float) -> None:
    examples = dataset.patches(SIZE, positives=share)
    found = [examples[k].is_positive for k in range(24)]
    for start in range(12):
        for n in (6, 12):
            assert abs(sum(found[start : start + n]) - share * n) <= 1


def test_a_stream_is_balanced_too_in_each_batch_and_by_place(dataset: Dataset) -> None:
    stream = dataset.patches(8, positives=0.25).stream(8, volumes=1, per_volume=4)
    places: Counter[Any] = Counter()
    for k, batch in zip(range(8), stream, strict=False):
        assert batch["is_positive"].sum() == 2
        spots = [stream.draws.spot(8 * k + i) for i in range(8)]
        assert [spot.key for spot in spots] == batch["key"]
        places.update((spot.key, spot.row["x"]) for spot in spots if spot.is_positive)
    assert len(places) == 4
    assert set(places.values()) == {4}


def test_each_place_comes_once_in_a_round(dataset: Dataset) -> None:
    examples = dataset.patches(SIZE, positives=1.0)
    for turn in range(3):
        rows = [examples[4 * turn + k].row for k in range(4)]
        assert len({(row["key"], row["x"]) for row in rows}) == 4


def test_negatives_hold_nothing_of_what_is_annotated(dataset: Dataset) -> None:
    examples = dataset.patches(SIZE, positives=0.0)
    places = list(dataset.patches(SIZE, positives=1.0).places)
    keys = Counter()
    for number in range(30):
        patch = examples[number]
        keys[patch.key] += 1
        assert not patch.is_positive
        for place in places:
            if place.key == patch.key:
                beyond = np.abs(patch.image.to_index(place.center_mm) - (SIZE - 1) / 2) - SIZE / 2
                assert beyond.max() * 2.0 >= 4.0 - 1e-6  # farther out than its radius
    assert set(keys.values()) == {15}


def test_negatives_may_be_candidates(dataset: Dataset) -> None:
    examples = dataset.patches(SIZE, positives=0.5, negatives="candidates", jitter_mm=0)
    others = [patch for patch in (examples[k] for k in range(8)) if not patch.is_positive]
    assert {patch.row["class"] for patch in others} == {"0"}
    assert len({patch.key for patch in others}) == 2


def test_patches_depend_only_on_seed_epoch_and_number(dataset: Dataset) -> None:
    one, two = dataset.patches(SIZE, seed=1), pickle.loads(pickle.dumps(dataset.patches(SIZE, seed=1)))
    for number in (5, 0, 7):
        assert np.array_equal(one[number].image.array, two[number].image.array)
    other = dataset.patches(SIZE, seed=2)
    assert any(not np.array_equal(one[k].image.array, other[k].image.array) for k in range(4))
    assert any(not np.array_equal(one.draw(k, 0).image.array, one.draw(k, 1).image.array) for k in range(4))


@pytest.mark.slow
def test_labels_lie_beside_the_image_on_the_same_box(tmp_path: Path) -> None:
    shape, grid = (12, 30, 30), grid_of((12, 30, 30), (1.0, 1.0, 1.0))
    stored = np.zeros(shape, np.int16)
    box = np.zeros(shape, np.bool_)
    box[4:8, 10:16, 12:20] = True
    stored[box] = 1000  # so that the image shows where the label should be
    for k, plane in enumerate(stored):
        path = tmp_path / "in" / "p" / f"{k}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        place = grid.to_patient((k, 0, 0))
        path.write_bytes(
            ct_file(plane, place, SeriesInstanceUID=SERIES, PixelSpacing=[1, 1], SOPInstanceUID=f"1.2.{k}")
        )
    dskprep.run(tmp_path / "in", tmp_path / "out", settings=PrepConfig(lungs=False, check_hu=False))
    (tmp_path / "a.dcm").write_bytes(seg_file(grid, frames_of(box), names=("Tumour",), FrameOfReferenceUID=""))
    dskprep.annotate(tmp_path / "out", tmp_path / "a.dcm")
    opened = dskprep.open_dataset(tmp_path / "out")
    examples = opened.patches(
        (8, 12, 10), around="Tum*", labels=["tumour", "lungs"], positives=1.0, jitter_mm=4, normalized=False
    )
    for number in range(10):
        patch = examples[number]
        assert np.array_equal(patch.labels["tumour"] > 0, patch.image.array == 1000 - 1024)
        assert not patch.labels["lungs"].any()
    stream = examples.stream(6, per_volume=5)
    for k, batch in zip(range(4), stream, strict=False):
        assert np.array_equal(batch["tumour"] > 0, batch["image"] == 1000 - 1024)
        assert np.array_equal(batch["tumour"][3, 0], stream.draws[6 * k + 3].labels["tumour"])
        assert batch["is_positive"].all()
        assert not batch["lungs"].any()
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    item = examples.as_torch(3)[2]
    assert (tuple(item["tumour"].shape), item["is_positive"]) == ((1, 8, 12, 10), True)
    assert torch.equal(item["tumour"][0] > 0, item["image"][0] == 1000 - 1024)
    with pytest.raises(UsageError, match="a label or joined column is called 'image'"):
        dataclasses.replace(examples, labels=("image",)).as_torch(1)
    with pytest.raises(UsageError, match="no volume has a label 'heart'; there are the labels Tumour"):
        opened.patches(8, around="Tum*", labels=["heart"], positives=1.0)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"around": "no such label"}, "found none for 'no such label'; `dataset.annotations` lists all"),
        ({"negatives": "no such label"}, "no annotation is what negatives"),
        ({"positives": 1.5}, "a share of positives"),
        ({"jitter_mm": math.nan}, "a share of positives"),
        ({"size": 0}, "size of 1 to 65536 voxels"),
    ],
)
def test_what_cannot_be_drawn_is_said_at_once(dataset: Dataset, how: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        dataset.patches(**({"size": SIZE} | how))


def test_a_function_of_a_row_chooses_too(dataset: Dataset) -> None:
    (key, *_) = dataset
    examples = dataset.patches(SIZE, around=lambda row: row["key"] == key and pd.notna(row["diameter_mm"]))
    assert {place.key for place in examples.places} == {key}

"""What is seen of a dataset in Python and in a notebook, and what its errors say."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.dataset import index, store
from dskprep.dataset.record import Record
from dskprep.preparation.lungs.lungs import Lungs
from dskprep.preparation.prepared import Prepared
from dskprep.reading.dataset import Dataset
from dskprep.reading.examples import Example
from dskprep.reading.patches import LungPatches, Patch
from dskprep.sides import LEFT, LUNG
from dskprep.volume import Volume

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])[:, [2, 1, 0, 3]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of seven volumes, and one refused series."""
    folder = tmp_path_factory.mktemp("display")
    for i in range(7):
        tiny.write(f"{folder}/in/p{i}", tiny.series(i))
    tiny.write(f"{folder}/in/bad", {"1.txt": b""})
    dskprep.run(f"{folder}/in", f"{folder}/out", at_end=())
    return f"{folder}/out"


def test_values_say_in_one_line_what_they_are() -> None:
    volume = Volume(np.zeros((4, 5, 6), np.int16), AFFINE)
    lungs = Lungs(volume.with_array(np.full((4, 5, 6), LUNG, np.uint8)), 0, 0, ("one-lung",), unsided_ml=3796.2)
    said = [repr(each) for each in (volume, volume.grid, lungs, Prepared(volume, lungs), Prepared(volume, None))]
    assert said == [
        "<Volume: 4 x 5 x 6 voxels of 2 x 1 x 1 mm (z, y, x), int16>",
        "<Grid: 4 x 5 x 6 voxels of 2 x 1 x 1 mm (z, y, x)>",
        "<Lungs: lungs 3796 ml; one-lung>",
        "<Prepared: 4 x 5 x 6 voxels of 2 x 1 x 1 mm (z, y, x), HU; <Lungs: lungs 3796 ml; one-lung>>",
        "<Prepared: 4 x 5 x 6 voxels of 2 x 1 x 1 mm (z, y, x), HU; no lungs>",
    ]


def test_a_patch_shows_none_of_its_voxels() -> None:
    volume = Volume(np.zeros((4, 5, 6), np.int16), np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])
    mask = np.zeros((4, 5, 6), np.uint8)
    grid = "4 x 5 x 6 voxels of 2 x 1 x 1 mm (z, y, x)"
    mask[1, 2, :3] = 1
    example = repr(Example(volume, {"gtv": mask}, "p", is_positive=True, row={}))
    assert example == f"<Example of p, positive: {grid}; gtv in 3 voxels>"
    assert repr(Patch(volume, mask, "p", LEFT, (7, 8, 9))) == f"<Patch of p around (7, 8, 9), in the left lung: {grid}>"
    patches = LungPatches(Dataset("/nowhere"), tuple(map(str, range(1000))), (4, 5, 6), 0, None, False)
    assert repr(patches) == "<LungPatches of 4 x 5 x 6 voxels (z, y, x), from 1000 volumes>"


def test_a_stored_volume_and_its_dataset_say_what_they_are(made: str) -> None:
    dataset = dskprep.open_dataset(made)
    assert repr(dataset) == f"<Dataset {made}>"  # to count its volumes would take requests
    assert repr(dataset["p1"]) == (
        "<StoredVolume p1: 12 x 24 x 24 voxels of 1 x 1 x 1 mm (z, y, x), HU, no lungs; lungs-not-found>"
    )
    assert repr(dataset) == f"<Dataset {made}: 7 volumes>"
    chosen = dataset.select(["p1", "p2"])
    assert len(chosen) == 2
    assert repr(chosen) == f"<Dataset {made}: 2 selected volumes>"
    assert repr(dskprep.open_dataset(made).select(["p1"])) == f"<Dataset {made}: 1 selected volume>"


def test_a_notebook_shows_the_thumbnail_of_a_volume(made: str) -> None:
    shown = dskprep.open_dataset(made)["p1"]._repr_html_()
    (picture,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', shown)
    assert base64.b64decode(picture) == storage.read(f"{made}/thumbnails/p1.webp")
    assert "12 x 24 x 24 voxels" in shown


def test_a_notebook_shows_the_counts_of_a_dataset_and_some_of_its_volumes(made: str) -> None:
    shown = dskprep.open_dataset(made)._repr_html_()
    assert "7 written, 1 refused" in shown
    assert shown.count("<img") == 6
    assert "and 1 more volume<" in shown
    assert "2 selected volumes" in dskprep.open_dataset(made).select(["p1", "p2"])._repr_html_()


@pytest.mark.parametrize("content", [None, b"<script>", b"RIFF" + 40 * b"x"])
def test_a_volume_whose_thumbnail_is_gone_or_damaged_is_shown_in_words(
    made: str, tmp_path: Path, content: bytes | None
) -> None:
    target = tiny.write(tmp_path / "copy", tiny.everything_below(made))
    storage.delete(f"{target}/thumbnails", ["p1.webp"])
    if content:
        tiny.write(target, {"thumbnails/p1.webp": content})
    shown = dskprep.open_dataset(target)["p1"]._repr_html_()
    assert "no picture" in shown
    assert "<img" not in shown
    assert "12 x 24 x 24 voxels" in shown


def test_what_strangers_wrote_stays_text(tmp_path: Path) -> None:
    shown = Dataset(f"{tmp_path}/<script>")
    store.create(shown.url, dskprep.PrepConfig())
    assert "<script>" not in shown._repr_html_()


def test_a_key_that_was_not_written_says_why(made: str) -> None:
    dataset = dskprep.open_dataset(made)
    for each in (dataset, dataset.select(["p1"])):
        with pytest.raises(KeyError, match="bad: was refused, no-dicom: "):
            each["bad"]
    with pytest.raises(KeyError, match="p2: is not in this selection of 1 volume"):
        dataset.select(["p1"])["p2"]


def test_an_array_is_no_volume() -> None:
    for call in (dskprep.find_lungs, lambda given: dskprep.to_spacing(given, (1, 1, 1))):
        with pytest.raises(TypeError, match=r"expected a Volume, found ndarray; make one by Volume\(array, affine\)"):
            call(np.zeros((4, 4, 4), np.int16))


# the index


def of_source(key: str, **facts: str) -> Record:
    numbers = dict.fromkeys(("slices", "rows", "columns"), 12)
    numbers |= dict.fromkeys(("step_mm", "row_spacing_mm", "column_spacing_mm"), 1)
    numbers |= dict.fromkeys(("first_x_mm", "first_y_mm", "first_z_mm"), 0)
    return tiny.record(key, source=numbers | facts)


def test_numbers_of_the_header_are_numbers_in_the_index_and_text_in_the_record(tmp_path: Path) -> None:
    target = f"{tmp_path}/out"
    store.create(target, dskprep.PrepConfig())
    texts = {
        "p1": ("120", "2.50"),
        "p2": (" 1.4E+2", "0.625 "),
        "p3": ("", "thin"),
        "p4": ("nan", "1\\2"),
        "p5": ("inf", "1_0"),
    }
    for key, (kvp, thickness) in texts.items():
        store.commit(target, of_source(key, kvp=kvp, slice_thickness_mm=thickness))
    index.write(target)
    table = index.current(target).set_index("key")
    pd.testing.assert_frame_equal(table, index.read(target).set_index("key"))
    nan = float("nan")
    np.testing.assert_array_equal(table["source_kvp"], [120, 140, nan, nan, nan])
    np.testing.assert_array_equal(table["source_slice_thickness_mm"], [2.5, 0.625, nan, nan, nan])
    assert dskprep.open_dataset(target)["p1"].record.source.kvp == "120"  # type: ignore[union-attr]


def test_a_column_of_numbers_without_any_can_be_compared(tmp_path: Path) -> None:
    target = f"{tmp_path}/out"
    store.create(target, dskprep.PrepConfig())
    store.commit(target, of_source("p1", kvp="", slice_thickness_mm="thin"))
    index.write(target)
    table = dskprep.open_dataset(target).index
    assert not (table["source_slice_thickness_mm"] > 1).any()


def test_an_index_of_before_whose_numbers_are_text_is_made_again(tmp_path: Path) -> None:
    target = f"{tmp_path}/out"
    store.create(target, dskprep.PrepConfig())
    store.commit(target, of_source("p1", kvp="120", slice_thickness_mm="2.5"))
    index.write(target)
    before = index.read(target)
    before.astype({"source_kvp": str, "source_slice_thickness_mm": str}).to_parquet(f"{target}/index.parquet")
    assert dskprep.open_dataset(target).index["source_kvp"].tolist() == [120.0]

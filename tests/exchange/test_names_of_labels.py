"""What the name of a class takes in exports and patches: all labels that their author calls so, and no lungs beside."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import ct_file, distinct
from label_builders import (
    FRAME_OF_REFERENCE,
    IMAGE,
    SERIES,
    frames_of,
    grid_of,
    lidc_file,
    nodule_xml,
    ring,
    seg_file,
)

import dskprep
from dskprep import tables
from dskprep.dataset import annotations
from dskprep.errors import UsageError
from dskprep.settings import PrepConfig

nib: Any = pytest.importorskip("nibabel", reason="needs the extra exchange")

SHAPE = (10, 24, 20)
GRID = grid_of(SHAPE, (1.0, 1.0, 1.0))
"""The grid of the series; that of its volume is the same."""
ONE, OTHER = np.zeros(SHAPE, np.bool_), np.zeros(SHAPE, np.bool_)
ONE[2:6, 5:12, 4:9] = True
OTHER[2:6, 5:12, 12:16] = True


@pytest.fixture
def target(tmp_path: Path) -> str:
    """A dataset of one series, with lungs, whose slice k is the instance IMAGE.k."""
    (tmp_path / "in/p").mkdir(parents=True)
    about = {"SeriesInstanceUID": SERIES, "FrameOfReferenceUID": FRAME_OF_REFERENCE, "PixelSpacing": [1, 1]}
    for k, plane in enumerate(distinct(*SHAPE)):
        place, instance = GRID.to_patient((k, 0, 0)), f"{SERIES}.{k}" if k else IMAGE
        content = ct_file(plane, place, **(about | {"SOPInstanceUID": instance}))
        (tmp_path / f"in/p/{k:03}.dcm").write_bytes(content)
    settings = PrepConfig(check_hu=False, min_slices=4, lungs="own_masks:halves")
    assert dskprep.run(tmp_path / "in", tmp_path / "out", settings=settings).exit_code == 0
    (tmp_path / "labels").mkdir()
    return str(tmp_path / "out")


def exported(target: str, *labels: str) -> Any:
    out = Path(target).parent / f"Dataset001_{len(list(Path(target).parent.iterdir()))}"
    dskprep.export("monai", target, out, labels=labels)
    return np.asarray(nib.load(out / "labels/p.nii.gz").dataobj).T


@pytest.mark.slow
@pytest.mark.parametrize("names", [("Nodule", "Nodule"), ("nodule", "NODULE"), ("a nodule", "a/nodule")])
def test_segments_of_one_name_are_one_class(target: str, tmp_path: Path, names: tuple[str, str]) -> None:
    """The second is stored as `Nodule-2`. In a mask with the first alone it would be background."""
    frames = [*frames_of(ONE), *frames_of(OTHER, 2)]
    (tmp_path / "labels/1.dcm").write_bytes(seg_file(GRID, frames, names=names))
    assert dskprep.annotate(target, tmp_path / "labels").labels == 2
    dataset, asked = dskprep.open_dataset(target), names[0].replace(" ", "_")
    (second,) = (label for label in dataset["p"].labels if label.endswith("-2"))
    assert np.array_equal(exported(target, asked), ONE | OTHER)
    assert np.array_equal(exported(target, second), OTHER)
    assert np.array_equal(exported(target, asked, second), ONE + 2 * OTHER)
    patches = dataset.patches(SHAPE, around=asked, positives=1, jitter_mm=0, labels=[asked, second], normalized=False)
    stream = patches.stream(2)
    (batch,) = itertools.islice(stream, 1)
    (n_first, n_second) = (int(np.count_nonzero(batch[name][0])) for name in (asked, second))
    assert n_first > n_second > 0
    for number in (0, 1):
        for name in (asked, second):
            assert np.array_equal(stream.draws[number].masks[name], batch[name][number, 0])


def test_a_pattern_does_not_take_the_lungs_that_dskprep_finds(target: str, tmp_path: Path) -> None:
    """They would be mixed with those that somebody has drawn."""
    (tmp_path / "labels/1.dcm").write_bytes(seg_file(GRID, frames_of(ONE), names=("Lung_L",)))
    dskprep.annotate(target, tmp_path / "labels")
    lungs = dskprep.open_dataset(target)["p"].load("lungs").array > 0
    assert np.array_equal(exported(target, "lung*"), ONE)
    assert np.array_equal(exported(target, "lungs"), lungs)
    assert np.array_equal(exported(target, "lungs", "Lung*"), np.where(ONE, 2, lungs))
    with pytest.raises(UsageError, match=r"no volume has the labels Lungs; there are the labels Lung_L, lungs"):
        exported(target, "Lungs")
    with pytest.raises(UsageError, match="each once, found Lung_L, lung_l"):
        exported(target, "Lung_L", "lung_l")


def test_a_volume_whose_mark_of_a_nodule_is_left_out_is_no_background(target: str, tmp_path: Path) -> None:
    """Nobody knows in which slice the mark lies, so its voxels are in no mask."""
    good = nodule_xml("a", [(-28.0, ring(12, 10, 4))], [3] * 9)
    wrong = nodule_xml("b", [(-28.0, ring(4, 4, 2))], [3] * 9, instances=[f"{SERIES}.3"])
    (tmp_path / "labels/1.xml").write_bytes(lidc_file(good, wrong))
    dskprep.annotate(target, tmp_path / "labels")
    for pattern in ("nodule-*", "nodule-*-reader-*"):
        with pytest.raises(UsageError, match=r"p lacks a mark \(marks-left-out\)"):
            exported(target, pattern)
        assert dskprep.open_dataset(target).lacking([pattern]) == {"p": ["a mark (marks-left-out)"]}
    assert exported(target, "nodule-1").any()
    with pytest.warns(UserWarning, match=r"such as a mark \(marks-left-out\) of p; .* and negatives may lie"):
        dskprep.open_dataset(target).patches(4)


def test_negatives_of_a_volume_that_lacks_what_positives_are_around_are_told(target: str, tmp_path: Path) -> None:
    """Its lungs may show what they are negatives of."""
    (tmp_path / "labels/1.dcm").write_bytes(seg_file(GRID, frames_of(ONE), names=("GTV",)))
    (tmp_path / "labels/2.dcm").write_bytes(seg_file(GRID, frames_of(OTHER), names=("GTV",)))
    assert dskprep.annotate(target, tmp_path / "labels").reasons == {"refused: label-exists": 1}
    dataset = dskprep.open_dataset(target)
    with pytest.warns(UserWarning, match=r"a label of 1 volume .*, such as GTV \(label-exists\) of p; "):
        dataset.patches(4, around="gtv*")
    with warnings.catch_warnings(action="error"):
        dataset.patches(4, around="gtv*", positives=1)
        dataset.patches(4, around="gtv*", negatives=lambda row: row["label"] == "GTV")


def test_a_number_that_another_option_gave_makes_no_class_of_two_files(target: str, tmp_path: Path) -> None:
    """What two readers have drawn is not one label, though the file of the second is called `2`."""
    for number, shown in ((1, ONE), (2, OTHER)):
        (tmp_path / f"labels/{number}.dcm").write_bytes(seg_file(GRID, frames_of(shown), names=("GTV",)))
    dskprep.annotate(target, tmp_path / "labels", patterns=["1.dcm"])
    dskprep.annotate(target, tmp_path / "labels", patterns=["2.dcm"], name_as="{name}-{file}")
    dataset = dskprep.open_dataset(target)
    assert set(dataset["p"].labels) == {"GTV", "GTV-2"}
    assert np.array_equal(exported(target, "GTV"), ONE)
    assert np.array_equal(exported(target, "GTV*"), ONE | OTHER)
    (patch,) = itertools.islice(dataset.patches(SHAPE, around="GTV", positives=1, jitter_mm=0, labels=["GTV"]), 1)
    assert np.count_nonzero(patch.labels["GTV"]) <= np.count_nonzero(ONE)


def test_labels_that_an_option_gives_one_name_are_one_class(target: str, tmp_path: Path) -> None:
    frames = [*frames_of(ONE), *frames_of(OTHER, 2)]
    (tmp_path / "labels/1.dcm").write_bytes(seg_file(GRID, frames, names=("GTVp", "GTVn")))
    dskprep.annotate(target, tmp_path / "labels", name_as="tumour")
    dataset = dskprep.open_dataset(target)
    assert set(dataset["p"].labels) == {"tumour", "tumour-2"}
    assert np.array_equal(exported(target, "tumour"), ONE | OTHER)
    assert dataset["p"].labels.about.named("tumour") == ("tumour", "tumour-2")
    assert dataset.patches(4, around="tumour", positives=1, labels=["tumour"]).labels == ("tumour",)


def test_a_label_is_of_a_class_also_where_the_first_of_its_name_was_refused(target: str, tmp_path: Path) -> None:
    frames = [*frames_of(np.zeros_like(ONE)), *frames_of(OTHER, 2)]
    (tmp_path / "labels/1.dcm").write_bytes(seg_file(GRID, frames, names=("GTV", "GTV")))
    dskprep.annotate(target, tmp_path / "labels")
    assert list(dskprep.open_dataset(target)["p"].labels) == ["GTV-2"]
    assert np.array_equal(exported(target, "GTV"), OTHER)


def two_readers(target: str, folder: Path, **options: Any) -> dskprep.Dataset:
    """The label of the second is refused, since that of the first has its name."""
    for number, shown in ((1, ONE), (2, OTHER)):
        (folder / f"labels/{number}.dcm").write_bytes(seg_file(GRID, frames_of(shown), names=(f"GTV {number}",)))
    assert dskprep.annotate(target, folder / "labels", **options).reasons == {"refused: label-exists": 1}
    return dskprep.open_dataset(target)


def test_a_label_is_lacking_by_the_name_that_an_option_gives_it(target: str, tmp_path: Path) -> None:
    """What the second file shows would be background in the masks of the class."""
    dataset = two_readers(target, tmp_path, name_as="tumour")
    assert dataset.lacking(["Tumour"]) == {"p": ["GTV 2 (label-exists)"]}
    assert dataset.lacking(["GTV*"]) == {}  # it would not be called so
    with pytest.raises(UsageError, match=r"p lacks GTV 2 \(label-exists\)"):
        exported(target, "tum*")
    with pytest.warns(UserWarning, match=r"such as GTV 2 \(label-exists\) of p; "):
        dataset.patches(4, around="tumour")


def test_a_source_that_came_to_nothing_is_lacking_by_the_name_that_an_option_gives_it(
    target: str, tmp_path: Path
) -> None:
    (tmp_path / "labels/1.dcm").write_bytes(seg_file(GRID, frames_of(ONE), names=("GTV",)))
    (tmp_path / "labels/p").mkdir()
    for path in ("p.nii", "p/GTV.nii"):
        (tmp_path / "labels" / path).write_bytes(b"x" * 500)
    for name_as in ("{name}", "tumour"):
        dskprep.annotate(target, tmp_path / "labels", name_as=name_as)
    dataset = dskprep.open_dataset(target)
    assert dataset.lacking(["mask"]) == {"p": ["p (label-unknown)"]}
    assert dataset.lacking(["gtv"]) == {"p": ["GTV (label-unknown)"]}
    assert dataset.lacking(["tumour"]) == {"p": ["GTV (label-unknown)", "p (label-unknown)"]}


def test_a_dataset_of_an_older_version_knows_what_is_lacking_by_the_names_of_its_authors(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_readers(target, tmp_path, name_as="tumour")
    for path in (Path(target) / "labels").rglob("*.json"):
        record = json.loads(path.read_bytes())
        for label in record["labels"]:
            del label["asked_as"]
        path.write_text(json.dumps(record))
    (Path(target) / "annotations.parquet").unlink()
    table = annotations.write(target).drop_columns("asked_as")
    (Path(target) / "annotations.parquet").write_bytes(tables.to_parquet(table))
    monkeypatch.setattr(annotations, "_parts", None)  # no record is read again
    dataset = dskprep.open_dataset(target)
    assert dataset.lacking(["GTV*"]) == {"p": ["GTV 2 (label-exists)"]}
    assert dataset.lacking(["tumour"]) == {}
    assert dataset["p"].labels.about.named("tumour") == ("tumour",)
    assert np.array_equal(exported(target, "tumour"), ONE)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "lidc-"])
def test_a_nodule_of_a_file_that_was_refused_is_lacking(target: str, tmp_path: Path, prefix: str) -> None:
    """One outline beyond the image refuses all nodules of its file. Another file of the scan has some."""
    good = nodule_xml("a", [(-28.0, ring(12, 10, 4))], [3] * 9)
    beyond = nodule_xml("b", [(-27.0, ring(12, 18, 4))], [3] * 9)
    (tmp_path / "labels/1.xml").write_bytes(lidc_file(good))
    (tmp_path / "labels/2.xml").write_bytes(lidc_file(good, beyond))
    summary = dskprep.annotate(target, tmp_path / "labels", name_as=f"{prefix}{{name}}")
    assert summary.reasons == {"refused: label-off-grid": 1}
    dataset = dskprep.open_dataset(target)
    for pattern in ("nodule-*", "nodule-*-reader-*"):
        assert dataset.lacking([f"{prefix}{pattern}"]) == {"p": ["nodule-0 (label-off-grid)"]}
    assert exported(target, f"{prefix}nodule-1").any()


def test_a_mark_that_is_left_out_is_lacking_by_the_name_that_an_option_gives_it(target: str, tmp_path: Path) -> None:
    good = nodule_xml("a", [(-28.0, ring(12, 10, 4))], [3] * 9)
    wrong = nodule_xml("b", [(-28.0, ring(4, 4, 2))], [3] * 9, instances=[f"{SERIES}.3"])
    (tmp_path / "labels/1.xml").write_bytes(lidc_file(good, wrong))
    dskprep.annotate(target, tmp_path / "labels", name_as="tumour", only=["nodule-*"])
    with pytest.raises(UsageError, match=r"p lacks a mark \(marks-left-out\)"):
        exported(target, "tumour")

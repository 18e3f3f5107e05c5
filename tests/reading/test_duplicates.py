"""The same acquisition in other forms, under the same and under other names, is found; other patients are not."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tiny
from scipy import ndimage

import dskprep
from dskprep.cli import commands
from dskprep.reading import fingerprint
from dskprep.reading.fingerprint import Fingerprint
from dskprep.settings import PrepConfig
from dskprep.synthetic import phantom, scanner
from dskprep.synthetic.phantom import Phantom
from dskprep.volume import Volume

SETTINGS = PrepConfig(spacing_mm=(2, 2, 2))
GRID = {"spacing_mm": (4.0, 2.0, 2.0), "shape": (72, 175, 175)}


def retouched(**attributes: str) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        header = pydicom.dcmread(io.BytesIO(content))
        for name, value in attributes.items():
            setattr(header, name, value)
        file = io.BytesIO()
        header.save_as(file)
        return file.getvalue()

    return edit


def write(folder: Path, key: str, volume: Volume, name: str, edit: Callable[[bytes], bytes] = bytes) -> None:
    files = scanner.series_files(Phantom(volume, volume), name=name, seed=sum(map(ord, name)))
    tiny.write(folder / key, {file: edit(content) for file, content in files})


def resampled(volume: Volume, factors: tuple[float, float, float]) -> Volume:
    """The same volume in other voxels, with the same corners."""
    array = ndimage.zoom(np.maximum(volume.array, -1024), factors, order=1)
    affine = volume.affine.copy()
    affine[:3, :3] *= (np.array(volume.array.shape) - 1) / (np.array(array.shape) - 1)
    return Volume(array, affine)


def breathing(volume: Volume, sd_mm: float, seed: int) -> Volume:
    """The same body at another time: each place lies elsewhere by some mm, smoothly."""
    noise = np.random.default_rng(seed)
    mm = np.array(volume.spacing)
    places = np.indices(volume.array.shape).astype(float)
    for axis, axis_mm in enumerate(mm):
        move = ndimage.gaussian_filter(noise.standard_normal(volume.array.shape), 25 / mm)
        places[axis] += move / move.std() * sd_mm / axis_mm
    return replace(volume, array=ndimage.map_coordinates(volume.array, places, order=0, mode="nearest"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dskprep.Dataset:
    """Five patients; of the first also other forms, some of them under the name of another patient."""
    folder = tmp_path_factory.mktemp("duplicates")
    scans = folder / "scans"
    for seed in range(5):
        write(scans, f"p{seed}", phantom.make_phantom(seed=seed, **GRID).volume, f"p{seed}")
    first = phantom.make_phantom(seed=0, **GRID).volume
    write(scans, "p0-copy", first, "somebody else")
    write(scans, "p0-copy2", first, "nobody")
    smooth = ndimage.gaussian_filter(np.maximum(first.array, -1024).astype(float), (0, 1, 1)).round().astype(np.int16)
    soft = retouched(ConvolutionKernel="B30f", SeriesInstanceUID="1.2.9.1")
    write(scans, "p0-kernel", replace(first, array=smooth), "p0", soft)
    thick = phantom.make_phantom(seed=0, spacing_mm=(6.0, 2.0, 2.0), shape=(48, 175, 175)).volume
    write(scans, "p0-thick", thick, "p0", retouched(SeriesInstanceUID="1.2.9.2"))
    noise = np.random.default_rng(1).integers(-1, 2, first.array.shape, np.int16)
    moved = first.affine + np.array([[0, 0, 0, 37.5], [0, 0, 0, -12.25], [0, 0, 0, 55.5], [0, 0, 0, 0]])
    write(scans, "q-exported", Volume(first.array + noise, moved), "q1")
    write(scans, "q-scaled", resampled(first, (1, 0.8, 0.8)), "q2")
    corner = first.affine.copy()
    corner[:3, 3] = first.to_patient((2, 8, 6))
    write(scans, "q-cropped", Volume(first.array[2:-1, 8:-5, 6:-6].copy(), corner), "q3")
    second = phantom.make_phantom(seed=1, **GRID).volume
    write(scans, "r-later", breathing(second, 1.5, 3), "r")
    later = breathing(second, 1.5, 4)
    corner = later.affine.copy()
    corner[:3, 3] = later.to_patient((3, 0, 0))
    other_study = {"StudyInstanceUID": "1.2.9.3", "FrameOfReferenceUID": "1.2.9.4", "SeriesInstanceUID": "1.2.9.5"}
    write(scans, "p1-later", Volume(later.array[3:].copy(), corner), "p1", retouched(**other_study))
    dskprep.run(scans, folder / "out", settings=SETTINGS)
    return dskprep.open_dataset(folder / "out")


@pytest.mark.slow
def test_each_kind_is_found_and_named_and_no_other_patient_is(dataset: dskprep.Dataset) -> None:
    found = dataset.duplicates()
    assert set(found.groups) == {key for key in dataset if re.match("p0|q", key)}
    assert len(set(found.groups.values())) == 1
    kinds = {(row.key, row.other): row.kind for row in found.pairs.itertuples()}
    assert kinds["p0", "p0-copy"] == kinds["p0", "p0-copy2"] == "identical"
    assert ("p0-copy", "p0-copy2") not in kinds
    assert kinds["p0", "p0-kernel"] == "other-kernel"
    assert kinds["p0", "p0-thick"] == "other-thickness"
    assert kinds["p0", "q-exported"] == "re-exported"
    assert kinds["p0", "q-scaled"] == "re-scaled"
    assert any("cropped" in kind for pair, kind in kinds.items() if "q-cropped" in pair)
    assert found.unseen == ()
    assert sum(found.counts.values()) == len(found.pairs)
    of_patient = {(row.key, row.other): row.patient for row in found.pairs.itertuples()}
    assert (of_patient["p0", "p0-kernel"], of_patient["p0", "q-exported"]) == ("same", "other")


def test_another_scan_of_a_patient_is_no_duplicate(dataset: dskprep.Dataset) -> None:
    """Neither under the patient's name, where its extent differs, nor under another one, where it is the same."""
    rows = {row["key"]: row for row in dataset.rows}
    assert rows["p1"]["patient"] == rows["p1-later"]["patient"]
    assert rows["p1"]["frame_of_reference"] != rows["p1-later"]["frame_of_reference"]
    found = dataset.duplicates().groups
    assert not {"p1", "p1-later", "r-later"} & found.keys()


def test_what_shows_nothing_is_like_nothing() -> None:
    """Where a plane lies on a part of another one without edges, rounding errors are not likeness."""
    noise = np.random.default_rng(0)
    small = np.abs(noise.normal(0, 0.05, (70, 72))).astype(np.float32)
    large = np.full((160, 160), 1e-5, np.float32)
    large[:60, :] = noise.normal(0, 0.1, (60, 160))
    one, other, blank = (Fingerprint((plane, plane)) for plane in (small, large, np.zeros_like(large)))
    assert 0 <= fingerprint.likeness(one, other) < 0.3
    assert fingerprint.likeness(one, blank) == 0
    assert fingerprint.likeness(other, Fingerprint((large[5:], large[:, 2:]))) == pytest.approx(1)


def test_the_groups_keep_near_duplicates_on_one_side_of_a_split(dataset: dskprep.Dataset) -> None:
    groups = dataset.duplicates().groups
    split = dataset.split(by=groups, folds=2, stratify=())
    assert len({split.sides[key] for key in groups}) == 1
    assert len(set(split.sides.values())) == 2


def test_without_pictures_equal_pixels_are_found_and_the_rest_is_said(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    assert dataset.duplicates(near=False).counts == {"identical": 2}
    files = tiny.everything_below(dataset.url)
    files["thumbnails/p0-kernel.webp"] = files["thumbnails/p0-kernel.webp"][:200]
    files["thumbnails/p2.webp"] = b"no picture"
    del files["thumbnails/p3.webp"]
    copy = dskprep.open_dataset(tiny.write(tmp_path / "copy", files))
    found = copy.duplicates()
    assert found.unseen == ("p0-kernel", "p2", "p3")
    assert "p0-kernel" not in found.groups
    assert set(copy.select(["p1", "p4"]).duplicates().pairs) == set(found.pairs)
    assert len(copy.select(["p1", "p4"]).duplicates().pairs) == 0
    assert copy.select([]).duplicates().groups == {}


def test_a_volume_of_a_size_that_no_body_has_is_not_looked_at(dataset: dskprep.Dataset) -> None:
    picture = tiny.everything_below(f"{dataset.url}/thumbnails")["p0.webp"]
    with pytest.raises(ValueError, match="at most 3000 mm"):
        fingerprint.of(picture, (10, 10, 10), (1e6, 1e6, 1e6))
    for mm in (1e-9, 1e-4):  # blurs of 5 mm would be so many pixels wide
        with pytest.raises(ValueError, match=r"pixels of 0\.01 mm or more"):
            fingerprint.of(picture, (10, 10, 10), (mm, mm, mm))
    for mm in (0.0, float("nan")):
        with pytest.raises(ValueError, match="a spacing above 0 mm"):
            fingerprint.of(picture, (10, 10, 10), (1.0, mm, 1.0))


def test_the_command_tells_the_pairs(dataset: dskprep.Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run_command(["duplicates", dataset.url]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^identical +p0 p0-copy  1\.00, other patient$", told, re.MULTILINE)
    assert re.search(r"^\d+ pairs among 14 volumes: ", told, re.MULTILINE)
    assert commands.run_command(["duplicates", dataset.url, "--identical", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"identical": 2}

"""Where a gantry was tilted, outlines and masks lie where the image shows what they are of, or are refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny
from builders import ct_files
from label_builders import SERIES, lidc_file, nodule_xml, ring
from numpy.typing import NDArray

import dskprep
from dskprep import storage
from dskprep.dataset import store
from dskprep.errors import Refusal
from dskprep.labels.lidc import Lidc
from dskprep.volume import Grid, TiltedGrid, Volume

SHAPE, FIRST = (14, 24, 20), np.array([-10.0, -20.0, -30.0])
AT, RADIUS, SLICES = (12, 9), 5, (9, 10, 11)
"""The centre (row, column) of what is bright in the slices, half its width and one pixel more, and where it lies."""
LEAN = [(0, 0.3, 0), (0, -0.3, 0), (0.25, 0, 0)]
SETTINGS = dskprep.PrepConfig(check_hu=False, lungs=False, spacing_mm=(1, 1, 1))


def bright() -> NDArray[np.bool_]:
    """What is bright, in the slices as they are stored."""
    found = np.zeros(SHAPE, np.bool_)
    row, column = AT
    found[SLICES[0] : SLICES[-1] + 1, row - 4 : row + 5, column - 4 : column + 5] = True
    return found


def stored_at(k: int, lean: tuple[float, float, float]) -> NDArray[np.float64]:
    """The place of the first pixel of a slice, LPS mm."""
    return FIRST + k * (np.array([0, 0, 1]) + lean)


@pytest.fixture(params=LEAN, ids=["to the back", "to the front", "to the left"])
def lean(request: pytest.FixtureRequest) -> tuple[float, float, float]:
    found: tuple[float, float, float] = request.param
    return found


@pytest.fixture
def target(tmp_path: Path, lean: tuple[float, float, float]) -> str:
    """A dataset of one volume of a tilted gantry."""
    stored = np.where(bright(), 1624, 24).astype(np.int16)
    files = ct_files(stored, first=FIRST, step_mm=1.0, lean=lean, PixelSpacing=[1, 1], SeriesInstanceUID=SERIES)
    tiny.write(tmp_path / "in/p", dict(files))
    dskprep.run(tmp_path / "in", tmp_path / "out", settings=SETTINGS, at_end=())
    (tmp_path / "labels").mkdir()
    return str(tmp_path / "out")


def outlines(lean: tuple[float, float, float]) -> bytes:
    rings = [(float(stored_at(k, lean)[2]), ring(*AT, RADIUS)) for k in SLICES]
    return lidc_file(nodule_xml("a", rings, [3] * 9))


def check_place(target: str, label: str) -> None:
    """Check that a label has what is bright in its image."""
    volume = dskprep.open_dataset(target)["p"]
    assert "tilt-corrected" in volume.record.warnings
    image, mask = volume.load().array > -200, volume.labels[label][:] > 0
    assert 2 * (image & mask).sum() / (image.sum() + mask.sum()) > 0.95
    centres = [np.argwhere(each).mean(0) for each in (image, mask)]
    np.testing.assert_allclose(*centres, atol=0.1)


def test_outlines_of_lidc_lie_where_the_image_shows_them(
    tmp_path: Path, target: str, lean: tuple[float, float, float]
) -> None:
    (tmp_path / "labels/1.xml").write_bytes(outlines(lean))
    assert dskprep.annotate(target, tmp_path / "labels").counts == {"written": 1}
    check_place(target, "nodule-1")
    (point,) = dskprep.open_dataset(target)["p"].points.to_dict("records")
    middle = stored_at(SLICES[1], lean) + [AT[1], AT[0], 0]
    np.testing.assert_allclose([point[axis] for axis in "xyz"], middle, atol=1e-3)


def test_so_they_do_on_the_grid_of_a_series_that_was_read(tmp_path: Path, lean: tuple[float, float, float]) -> None:
    tiny.write(tmp_path / "p", dict(ct_files(np.zeros(SHAPE, np.int16), first=FIRST, step_mm=1.0, lean=lean)))
    series = dskprep.read_series(tmp_path / "p", dskprep.PrepConfig(check_hu=False))
    labels = dskprep.read_labels(outlines(lean), name="1.xml")
    assert isinstance(labels, Lidc)
    (point,) = labels.at(series.grid).points.to_dict("records")
    middle = stored_at(SLICES[1], lean) + [AT[1] * 0.5, AT[0] * 0.75, 0]
    np.testing.assert_allclose([point[axis] for axis in "xyz"], middle, atol=1e-3)


def mask_of(values: NDArray[np.bool_], grid: Grid) -> bytes:
    return dskprep.to_nifti(Volume(values.astype(np.uint8), grid.affine)).to_bytes()


def test_a_mask_lies_on_the_slices_as_they_were_askew(
    tmp_path: Path, target: str, lean: tuple[float, float, float]
) -> None:
    affine = np.eye(4)
    affine[:3, 0] = [lean[0], lean[1], 1]
    affine[:3, 1], affine[:3, 2], affine[:3, 3] = (0, 1, 0), (1, 0, 0), FIRST
    (tmp_path / "labels/p.nii").write_bytes(mask_of(bright(), Grid(SHAPE, affine)))
    assert dskprep.annotate(target, tmp_path / "labels").counts == {"written": 1}
    check_place(target, "mask")


def test_a_mask_of_the_upright_grid_lies_there(tmp_path: Path, target: str) -> None:
    volume = dskprep.open_dataset(target)["p"].load()
    (tmp_path / "labels/p.nii").write_bytes(mask_of(volume.array > -200, volume.grid))
    assert dskprep.annotate(target, tmp_path / "labels").counts == {"written": 1}
    check_place(target, "mask")


@pytest.mark.parametrize("part", [slice(None), slice(2, 12)], ids=["whole", "some slices"])
def test_a_mask_by_a_program_that_corrects_no_tilt_is_refused(tmp_path: Path, target: str, part: slice) -> None:
    affine = np.eye(4)[[2, 1, 0, 3]]
    affine[:3, 3] = FIRST + [0, 0, part.start or 0]
    (tmp_path / "labels/p.nii").write_bytes(mask_of(bright()[part], Grid((len(bright()[part]), *SHAPE[1:]), affine)))
    assert dskprep.annotate(target, tmp_path / "labels").reasons == {"refused: label-off-grid": 1}


@pytest.fixture
def older(target: str) -> str:
    """The dataset with a record as older versions wrote it."""
    (record_name,) = store.record_names(target)
    record = store.read_record(target, record_name)
    assert record.acquired is not None
    assert isinstance(record.acquired.grid(), TiltedGrid)
    older = record.changed(acquired=msgspec.structs.replace(record.acquired, askew=None))
    storage.write_many(target, {record_name.path: older.to_json()})
    return target


@pytest.mark.parametrize("name", ["1.xml", "p.nii"])
def test_a_record_of_an_older_version_tells_nothing_of_the_slices(
    tmp_path: Path, older: str, lean: tuple[float, float, float], name: str
) -> None:
    affine = np.eye(4)[[2, 1, 0, 3]]
    affine[:3, 3] = FIRST
    content = outlines(lean) if name == "1.xml" else mask_of(bright(), Grid(SHAPE, affine))
    (tmp_path / "labels" / name).write_bytes(content)
    assert dskprep.annotate(older, tmp_path / "labels").reasons == {"refused: label-unlinked": 1}


def test_a_mask_that_was_drawn_on_the_volume_needs_no_slices(tmp_path: Path, older: str) -> None:
    volume = dskprep.open_dataset(older)["p"].load()
    (tmp_path / "labels/p.nii").write_bytes(mask_of(volume.array > -200, volume.grid))
    assert dskprep.annotate(older, tmp_path / "labels").counts == {"written": 1}
    check_place(older, "mask")


def test_a_series_without_tilt_has_one_grid(tmp_path: Path) -> None:
    tiny.write(tmp_path / "p", tiny.series())
    assert type(dskprep.read_series(tmp_path / "p", dskprep.PrepConfig(check_hu=False)).grid) is Grid


def test_a_mask_of_a_tilted_series_says_why_it_is_refused(lean: tuple[float, float, float]) -> None:
    upright = Grid((14, 24, 20), np.eye(4)[[2, 1, 0, 3]])
    askew = np.array(upright.affine)
    askew[:3, 0] += lean
    labels = dskprep.read_labels(mask_of(bright()[:12], upright), name="mask.nii")
    with pytest.raises(Refusal, match=r"label-off-grid.*the gantry was tilted.*draw the mask on the volume"):
        labels.at(TiltedGrid(upright.shape, upright.affine, Grid(upright.shape, askew)))

"""The synthetic patients that the other tests and the demo live on must themselves be right."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from dskprep.sides import LEFT, RIGHT
from dskprep.synthetic.phantom import PADDING_HU, Phantom, make_phantom
from dskprep.synthetic.scanner import localizer_file, series_files, write_patients

SPACING_MM, SHAPE = (5.0, 2.75, 2.75), (60, 128, 128)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(seed=3, spacing_mm=SPACING_MM, shape=SHAPE)


def lung_ml(phantom: Phantom, lung: int) -> float:
    return float((phantom.lungs.array == lung).sum()) * phantom.lungs.voxel_ml


def write(folder: Path, phantom: Phantom, transfer_syntax: str = ExplicitVRLittleEndian) -> None:
    for name, content in series_files(phantom, name="phantom", seed=3, transfer_syntax=transfer_syntax):
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_pydicom_reads_the_hu_and_the_positions_back(phantom: Phantom, transfer_syntax: str) -> None:
    files = list(series_files(phantom, name="phantom", seed=3, transfer_syntax=transfer_syntax))
    assert len(files) == SHAPE[0]
    for k in range(0, SHAPE[0], 9):
        slice_ = pydicom.dcmread(io.BytesIO(files[k][1]))
        assert slice_.file_meta.TransferSyntaxUID == transfer_syntax
        hu = slice_.pixel_array * slice_.RescaleSlope + slice_.RescaleIntercept
        np.testing.assert_array_equal(hu, phantom.volume.array[k])
        corner = phantom.volume.to_patient((k, 0, 0))
        np.testing.assert_allclose(slice_.ImagePositionPatient, corner, atol=1e-9)
        np.testing.assert_allclose(slice_.PixelSpacing, SPACING_MM[1:])


def test_simpleitk_reads_the_same_hu_and_geometry(phantom: Phantom, tmp_path: Path) -> None:
    write(tmp_path, phantom)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), phantom.volume.array)
    for z, y, x in [(0, 0, 0), (59, 127, 127), (10, 20, 30)]:
        point = image.TransformIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose(point, phantom.volume.to_patient((z, y, x)), atol=1e-3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    def files(seed: int) -> dict[str, bytes]:
        made = make_phantom(seed=seed, spacing_mm=(40, 8, 8), shape=(7, 40, 40))
        return dict(series_files(made, name="phantom", seed=seed))

    assert files(1) == files(1)
    assert not set(files(1).values()) & set(files(2).values())


def test_file_names_do_not_follow_the_slices_and_uids_are_unique(phantom: Phantom) -> None:
    files = list(series_files(phantom, name="phantom", seed=3))
    names = [name for name, _ in files]
    assert len(set(names)) == len(names)
    assert names not in (sorted(names), sorted(names, reverse=True))
    headers = [pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True) for _, content in files]
    assert len({h.SOPInstanceUID for h in headers}) == len(headers)
    assert len({h.SeriesInstanceUID for h in headers}) == 1
    assert len(headers[0]) >= 60
    assert headers[0].PatientName == "Phantom^N3"


def test_the_affine_is_canonical_with_the_spacing_asked_for(phantom: Phantom) -> None:
    assert phantom.volume.spacing == SPACING_MM
    assert phantom.volume.shape == phantom.lungs.shape == SHAPE
    assert (phantom.volume.array.dtype, phantom.lungs.array.dtype) == (np.int16, np.uint8)
    step_z, step_y, step_x = phantom.volume.affine[:3, :3].T
    assert step_z[2] > 0
    assert step_y[1] > 0
    assert step_x[0] > 0


def test_the_right_lung_lies_at_smaller_x(phantom: Phantom) -> None:
    x = [phantom.lungs.to_patient(np.argwhere(phantom.lungs.array == lung))[:, 0] for lung in (1, 2)]
    assert x[RIGHT - 1].max() < x[LEFT - 1].min()


@pytest.mark.parametrize("seed", range(6))
def test_lungs_are_as_large_and_as_dense_as_lungs_are_and_lie_inside_the_scan(seed: int) -> None:
    made = make_phantom(seed=seed, spacing_mm=SPACING_MM, shape=SHAPE)
    truth = made.lungs.array > 0
    assert -900 < made.volume.array[truth].mean() < -700
    assert 2500 < lung_ml(made, RIGHT) + lung_ml(made, LEFT) < 6500
    assert not truth[[0, -1]].any()
    assert not (truth & (made.volume.array == PADDING_HU)).any()


def test_the_trachea_is_open_at_the_top_and_no_lung(phantom: Phantom) -> None:
    top = phantom.volume.array[-1]
    middle = top[40:90, 50:78]
    assert middle.min() < -900
    assert not phantom.lungs.array[-1].any()


def test_outside_the_round_field_of_view_there_is_padding(phantom: Phantom) -> None:
    corners = phantom.volume.array[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == PADDING_HU).all()
    centre = phantom.volume.array[:, 4:-4, 64]
    assert centre.min() >= -1024


def test_another_grid_shows_the_same_patient(phantom: Phantom) -> None:
    finer = make_phantom(seed=3, spacing_mm=(3.0, 2.0, 2.0), shape=(100, 176, 176))
    for lung in (RIGHT, LEFT):
        assert lung_ml(finer, lung) == pytest.approx(lung_ml(phantom, lung), rel=0.03)
    centres = [p.lungs.to_patient(np.argwhere(p.lungs.array)).mean(axis=0) for p in (phantom, finer)]
    np.testing.assert_allclose(*centres, atol=1.5)


@pytest.mark.parametrize(("removed", "gone", "left"), [("right", 1, 2), ("left", 2, 1)])
def test_a_removed_lung_is_tissue_and_no_lung(phantom: Phantom, removed: str, gone: int, left: int) -> None:
    made = make_phantom(seed=3, spacing_mm=SPACING_MM, shape=SHAPE, remove_lung=removed)
    assert not (made.lungs.array == gone).any()
    np.testing.assert_array_equal(made.lungs.array == left, phantom.lungs.array == left)
    assert np.median(made.volume.array[phantom.lungs.array == gone]) > -50


def test_consolidation_makes_its_fraction_of_one_lung_dense_and_stays_lung(phantom: Phantom) -> None:
    made = make_phantom(seed=3, spacing_mm=SPACING_MM, shape=SHAPE, consolidation=0.3)
    np.testing.assert_array_equal(made.lungs.array, phantom.lungs.array)
    turned_dense = (made.volume.array > -300) & (phantom.volume.array < -600)
    fractions = [turned_dense[made.lungs.array == lung].mean() for lung in (RIGHT, LEFT)]
    assert min(fractions) == 0
    assert max(fractions) == pytest.approx(0.3, abs=0.06)
    with pytest.raises(ValueError, match="consolidation"):
        make_phantom(seed=3, consolidation=0.6)


def test_a_table_that_touches_leaves_no_air_behind_the_back() -> None:
    def air_below_back(*, touches: bool) -> int:
        made = make_phantom(
            seed=3, spacing_mm=(20, 1, 1), shape=(9, 360, 360), table_touches_back=touches
        ).volume.array[4, :, 180]
        back = int(np.flatnonzero(made > -50)[-1])  # the last soft tissue
        return int((made[back : back + 7] < -850).sum())

    assert air_below_back(touches=False) > air_below_back(touches=True)


def test_the_localizer_is_another_series_of_the_same_study(phantom: Phantom) -> None:
    _, content = localizer_file(phantom, name="phantom", seed=3)
    localizer = pydicom.dcmread(io.BytesIO(content))
    slice_ = pydicom.dcmread(io.BytesIO(next(series_files(phantom, name="phantom", seed=3))[1]))
    assert localizer.ImageType[2] == "LOCALIZER"
    assert localizer.StudyInstanceUID == slice_.StudyInstanceUID
    assert localizer.SeriesInstanceUID != slice_.SeriesInstanceUID
    assert localizer.pixel_array.shape == (SHAPE[0], SHAPE[2])


def test_patients_are_written_with_a_localizer_and_one_broken_stack(tmp_path: Path) -> None:
    names = write_patients(str(tmp_path / "scans"), 3, spacing_mm=(15.0, 6.0, 6.0), shape=(20, 60, 60))
    assert names == ["phantom-000", "phantom-001", "phantom-002"]
    assert sorted(p.name for p in (tmp_path / "scans").iterdir()) == names
    kinds, gaps = {}, {}
    for name in names:
        headers = [pydicom.dcmread(p) for p in sorted((tmp_path / "scans" / name).glob("*.dcm"))]
        kinds[name] = {h.ImageType[2] for h in headers}
        heights = np.sort([h.ImagePositionPatient[2] for h in headers if h.ImageType[2] == "AXIAL"])
        steps = np.diff(heights)
        gaps[name] = int((steps > 1.5 * steps.min()).sum())
    assert [kinds[name] for name in names] == [{"AXIAL", "LOCALIZER"}, {"AXIAL"}, {"AXIAL"}]
    assert [gaps[name] for name in names] == [0, 0, 1]


def test_patients_that_are_not_broken_have_all_their_slices(tmp_path: Path) -> None:
    write_patients(tmp_path.as_uri(), 2, spacing_mm=(30.0, 9.0, 9.0), shape=(10, 40, 40), broken=False)
    counts = [len(list((tmp_path / name).iterdir())) for name in ("phantom-000", "phantom-001")]
    assert counts == [10 + 1, 12]


def test_an_unknown_transfer_syntax_is_refused(phantom: Phantom) -> None:
    with pytest.raises(ValueError, match="transfer syntax"):
        next(series_files(phantom, name="phantom", seed=3, transfer_syntax="1.2.3"))

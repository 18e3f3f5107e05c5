"""What other libraries get of a volume lies where the DICOM source says, by their own reckoning."""

from __future__ import annotations

import sys
from pathlib import Path

import builders
import numpy as np
import pytest
import SimpleITK as sitk
import tiny

import dskprep
from dskprep.errors import UsageError
from dskprep.reading import convert

OBLIQUE = (0.9702957263, 0.0, -0.2419218956, 0.0594, 0.96930, 0.23824)


def orthonormal(orientation: tuple[float, ...]) -> np.ndarray:
    row, column = np.reshape(orientation, (2, 3))
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    return np.concatenate([row, column / np.linalg.norm(column)])


@pytest.fixture(params=["upright", "coronal", "oblique"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A series of distinct voxels, of three spacings."""
    orientation = {"upright": builders.AXIAL, "coronal": builders.CORONAL, "oblique": orthonormal(OBLIQUE)}
    files = builders.ct_files(builders.distinct(12, 14, 16), orientation=orientation[request.param], step_mm=1.25)
    tiny.write(tmp_path / "series", dict(files))
    return tmp_path / "series"


def dicom_by_itk(folder: Path) -> sitk.Image:
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))


def assert_same_voxels_at_the_same_places(theirs: sitk.Image, source: sitk.Image) -> None:
    """Each voxel of the source is found, by its place in the patient, with its value."""
    assert theirs.GetNumberOfPixels() == source.GetNumberOfPixels()
    rng = np.random.default_rng(0)
    for _ in range(200):
        index = [int(rng.integers(n)) for n in source.GetSize()]
        point = source.TransformIndexToPhysicalPoint(index)
        there = theirs.TransformPhysicalPointToContinuousIndex(point)
        np.testing.assert_allclose(there, np.round(there), atol=2e-3)
        assert theirs[tuple(int(n) for n in np.round(there))] == source[index]


def test_simpleitk_image_lies_where_the_source_does(source: Path) -> None:
    volume = dskprep.read_series(str(source)).decode().volume
    assert_same_voxels_at_the_same_places(dskprep.to_sitk(volume), dicom_by_itk(source))


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_written_nifti_lies_where_the_source_does(source: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("nibabel")
    volume = dskprep.read_series(str(source)).decode().volume
    dskprep.to_nifti(volume).to_filename(tmp_path / name)
    assert_same_voxels_at_the_same_places(sitk.ReadImage(str(tmp_path / name)), dicom_by_itk(source))


def test_nifti_is_ras_mm_with_both_its_affines(source: Path) -> None:
    nib = pytest.importorskip("nibabel")
    volume = dskprep.read_series(str(source)).decode().volume
    image = dskprep.to_nifti(volume)
    left, posterior, superior = volume.to_patient([3, 4, 5])
    np.testing.assert_allclose(image.affine @ [5, 4, 3, 1], [-left, -posterior, superior, 1], atol=1e-4)
    for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        np.testing.assert_allclose(affine, image.affine, atol=1e-4)
        assert code == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.get_data_dtype() == np.int16
    assert np.asarray(image.dataobj)[5, 4, 3] == volume.array[3, 4, 5]
    again = nib.Nifti1Image.from_bytes(image.to_bytes())
    np.testing.assert_allclose(nib.affines.voxel_sizes(again.affine), volume.spacing[::-1], rtol=1e-6)


@pytest.fixture
def stored(tmp_path: Path) -> dskprep.StoredVolume:
    tiny.write_patients(tmp_path / "scans", ["p"])
    dskprep.run(f"{tmp_path}/scans", f"{tmp_path}/out")
    return dskprep.open_dataset(f"{tmp_path}/out")["p"]


def test_a_stored_volume_and_its_mask_become_images(stored: dskprep.StoredVolume) -> None:
    pytest.importorskip("nibabel")
    source = sitk.GetArrayFromImage(stored.to_sitk())
    np.testing.assert_array_equal(source, tiny.hu())
    assert stored.to_sitk().GetOrigin() == pytest.approx(tuple(stored.affine[:3, 3]))
    assert stored.to_sitk("lungs").GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(np.asarray(stored.to_nifti().dataobj).T, tiny.hu())
    assert stored.to_nifti("lungs").get_data_dtype() == np.uint8


def test_dask_reads_the_same_chunk_by_chunk(stored: dskprep.StoredVolume) -> None:
    lazy = stored.as_dask()
    assert (lazy.shape, lazy.dtype, lazy.chunksize) == ((12, 24, 24), np.int16, (12, 24, 24))
    np.testing.assert_array_equal(lazy[3:5].compute(scheduler="sync"), tiny.hu()[3:5])
    assert stored.as_dask(chunks=(6, 8, 24)).numblocks == (2, 3, 1)
    assert stored.as_dask().name == lazy.name != stored.as_dask("lungs").name
    assert stored.as_dask("lungs").sum().compute(scheduler="sync") == 0


def test_dask_tells_arrays_of_other_chunks_apart(stored: dskprep.StoredVolume) -> None:
    whole, thick, thin = stored.as_dask(), stored.as_dask(chunks=(8, 24, 24)), stored.as_dask(chunks=(5, 24, 24))
    found = (thick[0:6].astype(float) - thin[6:12] + whole[0:6]).compute(scheduler="sync")
    np.testing.assert_array_equal(found, 2.0 * tiny.hu()[0:6] - tiny.hu()[6:12])


def test_dask_tells_a_label_that_was_drawn_anew_from_the_one_before(
    stored: dskprep.StoredVolume, tmp_path: Path
) -> None:
    target, names = stored.url.rpartition("/volumes/")[0], []
    for n in (1, 2):
        mask = np.zeros(stored.shape, np.uint8)
        mask[:n] = 1
        (tmp_path / "labels").mkdir(parents=True, exist_ok=True)
        dskprep.to_nifti(dskprep.Volume(mask, stored.affine)).to_filename(tmp_path / f"labels/{stored.key}.nii.gz")
        dskprep.annotate(target, tmp_path / "labels", retry="all")
        lazy = dskprep.open_dataset(target)[stored.key].as_dask("mask")
        assert lazy.sum().compute(scheduler="sync") == mask.sum()
        names.append(lazy.name)
    assert names[0] != names[1]


def test_xarray_finds_a_voxel_by_millimetres(stored: dskprep.StoredVolume) -> None:
    pytest.importorskip("xarray")
    table = stored.as_xarray()
    assert set(table) == {"image", "lungs"}
    assert table["image"].dims == ("z", "y", "x")
    x, y, z = stored.to_patient([7, 8, 9])
    found = table["image"].sel(z=z, y=y, x=x, method="nearest", tolerance=1e-6)
    assert int(found.compute(scheduler="sync")) == tiny.hu()[7, 8, 9]
    assert table["z"].attrs == {"units": "mm"}
    np.testing.assert_array_equal(np.reshape(table.attrs["affine"], (4, 4)), stored.affine)


@pytest.mark.parametrize(("library", "use"), [("SimpleITK", convert.to_sitk)])
def test_a_library_that_is_not_there_is_named(library: str, use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    volume = dskprep.Volume(np.zeros((2, 3, 4), np.int16), np.eye(4))
    with pytest.raises(
        UsageError, match=rf"{library} is not installed: in a clone of dskprep, pip install '\.\[exchange\]'"
    ):
        use(volume)

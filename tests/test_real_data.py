"""The main job on real CT: every series accounted for, the right ones written, right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import store
from dskprep.reading import dataset

OUTCOMES = {
    "volumes__lidc_0001": "written",
    "volumes__lidc_0314": "written",
    "volumes__crlm_1004": "written",
    "tricky__acrin_coronal": "written",
    "tricky__mixed_philips_study__S1000": "localizer-only",
    "tricky__mixed_philips_study__S2010": "written",
    "tricky__mixed_philips_study__S4010": "not-ct",
    "tricky__d2n_failing__notavolume__001": "too-few-slices",
    "tricky__d2n_failing__sliceincrement__002": "too-few-slices",
    "tricky__fodicom_a": "not-ct",
    "tricky__pydicom_misc": "truncated",
    "tricky__reformats_a__A048383__axial": "too-few-slices",
    "tricky__reformats_a__A048383__coronal": "too-few-slices",
    "tricky__reformats_a__A048383__sagittal": "too-few-slices",
    "tricky__reformats_a__A098752__axial": "too-few-slices",
    "tricky__reformats_a__A098752__coronal": "too-few-slices",
    "tricky__reformats_a__A098752__sagittal": "too-few-slices",
    "tricky__scout_ffp": "localizer-only",
    "tricky__tilt_ge_head": "uneven-spacing",
    "tricky__transfer_syntaxes": "too-few-slices",
}
"""What each folder of the real data must become: `written`, or the reason of its refusal."""

LITRE_TOLERANCE = 0.2


@pytest.fixture(scope="module")
def tree(data_folder, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("real")
    (root / "volumes").symlink_to(data_folder.volumes)
    (root / "tricky").symlink_to(data_folder.tricky)
    return root


@pytest.fixture(scope="module")
def local_run(tree, tmp_path_factory) -> tuple[int, str]:
    target = str(tmp_path_factory.mktemp("target"))
    return commands.run_command(["run", str(tree), target, "--scheduler", "sync"]), target


def records(target: str) -> dict[str, dict]:
    return {name.key: store.read_record(target, name) for name in store.record_names(target)}


@pytest.mark.slow
def test_whole_tree_ends_with_exit_code_1(local_run):
    assert local_run[0] == 1


def test_every_folder_is_accounted_for_by_status_and_reason(local_run):
    found = records(local_run[1])
    outcome = {key: r.status if r.status == "written" else r.reason for key, r in found.items() if "+" not in key}
    assert outcome == OUTCOMES


def test_every_further_series_has_a_record_of_its_own(local_run):
    further = {key: r.reason for key, r in records(local_run[1]).items() if "+" in key}
    assert set(further.values()) == {"too-few-slices", "truncated"}
    assert sum(key.startswith("tricky__reformats_a") for key in further) == 6
    assert sum(key.startswith("tricky__pydicom_misc") for key in further) == 4


@pytest.mark.parametrize("name", ["lidc_0001", "lidc_0314", "crlm_1004"])
def test_hu_and_geometry_before_resampling_are_those_recorded(local_run, data_folder, name):
    expected, record = data_folder.expected_volumes[name], records(local_run[1])[f"volumes__{name}"]
    source = record.source
    assert record.hu_sha256 == expected["hu_int16le_zyx_sha256"]
    assert source.slices == expected["slices"]
    assert source.step_mm == pytest.approx(expected["slice_step_mm"], abs=1e-4)
    assert [source.row_spacing_mm, source.column_spacing_mm] == expected["pixel_spacing_mm"]
    first = [source.first_x_mm, source.first_y_mm, source.first_z_mm]
    assert first == pytest.approx(expected["first_ipp_lps"], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lidc_0001", ("soft", "yes", "", "GE LightSpeed Plus", "no", 1.0, 1.0)),
        ("lidc_0314", ("sharp", "unknown", "", "Philips Brilliance 16P", "no", 1.0, 1.0)),
        ("crlm_1004", ("soft", "yes", "", "GE LightSpeed16", "no", 1.0, 1.0)),
    ],
)
def test_columns_for_a_cohort(local_run, name, expected):
    source = records(local_run[1])[f"volumes__{name}"].source
    words = (source.kernel_class, source.contrast, source.contrast_phase, source.scanner, source.pet_ct)
    assert (*words, source.thickness_ratio, round(source.diameter_ratio, 2)) == expected


@pytest.mark.parametrize("name", ["lidc_0001", "lidc_0314"])
def test_lung_volume_is_within_a_fifth_of_the_crude_litres(local_run, data_folder, name):
    lungs = records(local_run[1])[f"volumes__{name}"].lungs
    litres = (lungs.right_ml + lungs.left_ml) / 1000
    assert litres == pytest.approx(data_folder.expected_volumes[name]["crude_lung_litres"], rel=LITRE_TOLERANCE)


def test_abdomen_with_lung_bases_is_flagged(local_run):
    assert "lungs-touch-border" in records(local_run[1])["volumes__crlm_1004"].warnings


@pytest.mark.parametrize("name", ["lidc_0001", "lidc_0314"])
def test_written_volume_covers_the_box_that_simpleitk_reads(local_run, data_folder, name):
    """The outer faces lie at most a quarter of a millimetre from the original's."""
    written = dataset.open_dataset(local_run[1])[f"volumes__{name}"].load()
    image = sitk.ReadImage(_files(data_folder.volumes / name))
    for end in (0, 1):
        native = [(-0.5, n - 0.5)[end] for n in image.GetSize()]
        ours = [(-0.5, n - 0.5)[end] for n in written.shape]
        distance = np.abs(written.to_patient(ours) - image.TransformContinuousIndexToPhysicalPoint(native))
        assert distance.max() <= 0.25 + 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lidc_0001", "lidc_0314"])
def test_hu_without_smoothing_are_those_of_simpleitk_within_1(data_folder, name):
    files = _files(data_folder.volumes / name)
    volume = dskprep.read_series(str(Path(files[0]).parent)).decode().volume
    ours = dskprep.to_spacing(volume, (1, 1, 1), smooth=False)
    image = sitk.ReadImage(files)
    theirs = _on_grid_of(ours, image, sitk.sitkLinear)
    # where padding has a part in theirs, ours leaves it out
    padding = sitk.GetImageFromArray((volume.array == dskprep.PADDING).astype(np.float32))
    padding.CopyInformation(image)
    is_pure = _on_grid_of(ours, padding, sitk.sitkLinear) == 0
    assert is_pure.mean() > 0.7
    assert np.abs(ours.array - theirs)[is_pure].max() <= 1


def _on_grid_of(volume: dskprep.Volume, image: sitk.Image, how: int) -> np.ndarray:
    grid = sitk.Image(*volume.shape[::-1], sitk.sitkUInt8)
    grid.SetOrigin(volume.affine[:3, 3].tolist())
    grid.SetSpacing(volume.spacing[::-1])
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), how, 0.0, sitk.sitkFloat32))


def _files(folder: Path) -> tuple[str, ...]:
    """The series' files in SimpleITK's order."""
    where = max((p.parent for p in folder.rglob("*.dcm")), key=lambda folder: len(list(folder.iterdir())))
    return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(where))


@pytest.mark.s3
@pytest.mark.slow
def test_from_s3_to_s3_on_two_workers_the_bytes_are_the_same(local_run, data_folder, s3):
    """The same volumes, from bucket to bucket through worker processes."""
    for name in ("lidc_0001", "crlm_1004"):
        folder = data_folder.volumes / name
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        storage.write_many(f"{s3}/scans/volumes__{name}", files)
    arguments = ["run", f"{s3}/scans", f"{s3}/out", "--scheduler", "local", "--workers", "2"]
    assert commands.run_command(arguments) == 0
    local, remote = records(local_run[1]), records(f"{s3}/out")
    for name in ("lidc_0001", "crlm_1004"):
        key = next(k for k in remote if k.startswith(f"volumes__{name}"))
        theirs = remote[key].objects
        ours = local[f"volumes__{name}"].objects
        arrays = [path for path in ours if "/c/" in path]
        assert arrays
        assert {path: theirs[path] for path in arrays} == {path: ours[path] for path in arrays}
    assert commands.run_command(["verify", f"{s3}/out"]) == 0
    assert commands.run_command(arguments) == 0


def test_status_counts_what_the_records_say(local_run, capsys):
    assert commands.run_command(["status", local_run[1], "--json"]) == 1
    status = json.loads(capsys.readouterr().out)
    assert status["counts"] == {"written": 5, "refused": 25}
    assert sum(status["reasons"].values()) == 25


def series_by_itk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.slow
@pytest.mark.parametrize("name", [key for key, outcome in OUTCOMES.items() if outcome == "written"])
def test_real_ct_that_itk_has_written_in_another_format_is_the_same(tree: Path, tmp_path: Path, name: str) -> None:
    """All kinds of volume files have the values and the place of the slices; one of them is prepared as they are."""
    folder = tree / name.replace("__", "/")
    image = series_by_itk(folder)
    slices = dskprep.read_series(folder)
    expected, grid = slices.decode(), slices.grid
    prepared = dskprep.prepare(expected)
    for suffix in (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"):
        sitk.WriteImage(image, str(tmp_path / f"ct{suffix}"), useCompression=suffix in (".nii.gz", ".nrrd", ".mhd"))
        found = dskprep.read_series(tmp_path / f"ct{suffix}")
        np.testing.assert_allclose(found.grid.affine, grid.affine, atol=1e-3)
        decoded = found.decode()
        if suffix == ".nii.gz":
            again = dskprep.prepare(decoded)
            # NIfTI has its affine in float32: the last bits of a weight
            assert np.abs(again.image.array.astype(int) - prepared.image.array).max() <= 1
            assert np.mean(again.lungs.mask.array != prepared.lungs.mask.array) < 1e-5
            assert again.lungs.warnings == prepared.lungs.warnings
        else:
            assert sum(1 for _ in decoded.planes()) == slices.n_slices
        assert decoded.hu_sha256 == expected.hu_sha256

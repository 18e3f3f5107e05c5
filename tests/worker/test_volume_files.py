"""Volume files as patients: written as the DICOM series is that they were made from, or refused by name."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from builders import ct_files
from numpy.typing import NDArray
from volume_builders import KINDS, by_itk, chest, files, nifti

import dskprep
from dskprep import settings, storage
from dskprep.cli import commands
from dskprep.dataset import store
from dskprep.dataset.record import Record
from dskprep.formats.header import MAX_HEADER_BYTES
from dskprep.pipeline.prediction import predict
from dskprep.settings import PrepConfig
from dskprep.source import cases
from dskprep.source import files as case_files
from dskprep.source.files import open_case
from dskprep.volume import Volume
from dskprep.worker import admission, patient
from dskprep.worker.patient import Job

CHEST = chest()
HU, AFFINE = CHEST.array, CHEST.affine
CLIPPED = HU.clip(-1024)
SETTINGS = PrepConfig(spacing_mm=(4, 4, 4))


def records(
    source: str | Path, target: str | Path, config: PrepConfig = SETTINGS, memory: int = 2 << 30
) -> list[Record]:
    """The records of all patients of a source."""
    if not storage.exists(f"{target}/dataset.json"):
        store.create(str(target), config)
    return [
        record
        for case in cases.cases(str(source))
        for record in patient.prepare_patient(Job(case), target=str(target), config=config, memory_bytes=memory).records
    ]


def outcome(tmp_path: Path, named: Mapping[str, bytes], config: PrepConfig = SETTINGS) -> Record:
    """The record of the one volume among these files; it is no failure."""
    tiny.write(tmp_path / "in", named)
    (record,) = records(tmp_path / "in", tmp_path / "out", config)
    assert record.status != "failed", record.traceback
    return record


def voxels(target: str | Path, key: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    volume = dskprep.open_dataset(target)[key]
    return volume.image[...], volume.lungs[...], volume.affine


# the same chest


def test_the_same_chest_in_every_format_is_the_same_volume(place: str) -> None:
    slices = ct_files(HU + 1024, first=AFFINE[:3, 3], step_mm=12, PixelSpacing=[8, 8])
    tiny.write(f"{place}/in", {f"dicom/{name}": content for name, content in slices})
    for kind in KINDS:
        tiny.write(f"{place}/in", {f"{kind[1:]}/{name}": content for name, content in files(CHEST, kind).items()})
    summary = dskprep.run(f"{place}/in", f"{place}/out", settings=SETTINGS)
    assert summary.account.counts == {"written": 1 + len(KINDS)}, summary.account.reasons
    assert summary.exit_code == 0
    dataset = dskprep.open_dataset(f"{place}/out")
    found = {key: dataset[key].record for key in dataset}
    assert len({record.hu_sha256 for record in found.values()}) == 1
    assert {record.warnings for record in found.values()} == {found["dicom"].warnings}
    image, lungs, affine = voxels(f"{place}/out", "dicom")
    assert (lungs > 0).sum() > 10_000
    for key in found:
        other = voxels(f"{place}/out", key)
        assert (other[0] == image).all()
        assert (other[1] == lungs).all()
        np.testing.assert_allclose(other[2], affine, atol=1e-4)


ORDERS = {
    "as nibabel's canonical RAS": (slice(None), slice(None, None, -1), slice(None, None, -1)),
    "left-handed": (slice(None), slice(None), slice(None, None, -1)),
    "from head to foot": (slice(None, None, -1), slice(None), slice(None)),
}


@pytest.mark.parametrize("order", ORDERS)
def test_voxels_stored_in_another_direction_lie_where_they_did(tmp_path: Path, order: str) -> None:
    flips = ORDERS[order]
    affine = AFFINE.copy()
    for axis, flip in enumerate(flips):
        if flip.step == -1:
            affine[:3, 3] += affine[:3, axis] * (HU.shape[axis] - 1)
            affine[:3, axis] *= -1
    named = {"a/ct.nii": nifti(HU, AFFINE), "b/ct.nii": nifti(np.ascontiguousarray(HU[flips]), affine)}
    tiny.write(tmp_path / "in", named)
    straight, turned = records(tmp_path / "in", tmp_path / "out")
    assert turned.status == "written"
    assert turned.warnings == straight.warnings
    one, two = (voxels(tmp_path / "out", key) for key in ("a__ct", "b__ct"))
    np.testing.assert_allclose(two[2], one[2], atol=1e-4)
    assert np.abs(one[0].astype(int) - two[0]).max() <= (order == "from head to foot")  # sums in another order
    assert np.mean(one[1] != two[1]) < 1e-3


def test_axes_in_another_order_and_an_oblique_affine_are_kept(tmp_path: Path) -> None:
    angle = np.radians(12)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = AFFINE.copy()
    affine[:3, :3] = turn @ AFFINE[:3, :3]
    sagittal = np.ascontiguousarray(HU.transpose(2, 0, 1))
    record = outcome(tmp_path, {"ct.nii.gz": gzip.compress(nifti(sagittal, affine[:, [2, 0, 1, 3]]))})
    assert record.status == "written", record.message
    image, _, found = voxels(tmp_path / "out", "ct")
    direct = dskprep.prepare(Volume(HU, affine), SETTINGS).image
    np.testing.assert_allclose(found, direct.affine, atol=1e-4)
    assert np.abs(image.astype(int) - direct.array).max() <= 1


@pytest.mark.parametrize(
    ("array", "fields"),
    [
        (CLIPPED.astype(np.float32), {}),
        (CLIPPED.astype(np.float64), {}),
        (CLIPPED.astype(np.int32), {}),
        ((CLIPPED + 1024).astype(np.uint16), {"scl_slope": 1, "scl_inter": -1024}),
        ((CLIPPED * 2 + 4096).astype(np.int16), {"scl_slope": 0.5, "scl_inter": -2048}),
        (CLIPPED.astype(np.float32) / 1000, {"scl_slope": 1000, "scl_inter": 0}),
        (CLIPPED, {"scl_slope": 0, "scl_inter": 7}),
        (CLIPPED, {"scl_slope": np.nan, "scl_inter": np.nan}),
        (CLIPPED, {"xyzt_units": 0}),
    ],
    ids=["float32", "float64", "int32", "uint16", "half", "float, scaled", "slope 0", "slope nan", "no unit"],
)
def test_stored_values_become_hu(tmp_path: Path, array: NDArray[Any], fields: dict[str, Any]) -> None:
    tiny.write(tmp_path / "in", {"a.nii": nifti(CLIPPED, AFFINE), "b.nii": nifti(array, AFFINE, **fields)})
    plain, scaled = records(tmp_path / "in", tmp_path / "out")
    assert scaled.status == "written", scaled.message
    assert scaled.hu_sha256 == plain.hu_sha256


def test_millimetres_in_metres_and_micrometres(tmp_path: Path) -> None:
    for name, code, scale in (("m", 1, 1e-3), ("um", 3, 1e3)):
        affine = AFFINE.copy()
        affine[:3] *= scale
        tiny.write(tmp_path / "in", {f"{name}.nii": nifti(HU, affine, xyzt_units=code)})
    for record in records(tmp_path / "in", tmp_path / "out"):
        assert record.status == "written", record.message
        np.testing.assert_allclose([record.source.step_mm, record.source.row_spacing_mm], [12, 8], rtol=1e-5)


def test_padding_of_luna16_is_air_and_nan_was_never_measured(tmp_path: Path) -> None:
    y, x = (np.linspace(-1, 1, n) for n in HU.shape[1:])
    outside = np.broadcast_to(y[:, None] ** 2 + x**2 > 1, HU.shape)
    luna = by_itk(np.where(outside, np.int16(-3024), HU), AFFINE, ".mhd", compress=True)
    record = outcome(tmp_path / "luna", luna)
    assert (record.status, record.warnings) == ("written", outcome(tmp_path / "plain", files(CHEST, ".mhd")).warnings)
    nan = np.where(outside, np.nan, HU).astype(np.float32)
    record = outcome(tmp_path / "nan", {"ct.nii": nifti(nan, AFFINE)})
    assert record.status == "written", record.message
    assert (voxels(tmp_path / "luna/out", "ct")[0] == voxels(tmp_path / "nan/out", "ct")[0]).all()
    assert voxels(tmp_path / "nan/out", "ct")[0].min() >= -1100


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["zuidhof", "luo-2017", "grt123"])
def test_the_recipes_of_2017_take_volume_files_as_they_take_slices(tmp_path: Path, preset: str) -> None:
    config = settings.preset(preset)
    slices = ct_files(HU + 1024, first=AFFINE[:3, 3], step_mm=12, PixelSpacing=[8, 8])
    tiny.write(tmp_path / "in", {f"a/{name}": content for name, content in slices} | {"b.nii": nifti(HU, AFFINE)})
    by_slices, by_volume = records(tmp_path / "in", tmp_path / "out", config)
    assert (by_volume.status, by_volume.reason) == (by_slices.status, by_slices.reason)
    assert {name: o.sha256 for name, o in by_volume.objects.items() if "/c/" in name} == {
        name: o.sha256 for name, o in by_slices.objects.items() if "/c/" in name
    }


# planted faults


def sheared() -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[:3, 0] += 0.05 * affine[:3, 1]
    return affine


def scaled(by: float) -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[:3] *= by
    return affine


def singular() -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[:3, 1] = affine[:3, 2]
    return affine


def meta(**fields: str) -> bytes:
    """The MetaImage file of the chest with other lines in its header."""
    (content,) = by_itk(HU, AFFINE, ".mha").values()
    for name, value in fields.items():
        line = next(line for line in content.split(b"\n") if line.startswith(f"{name} =".encode()))
        content = content.replace(line, f"{name} = {value}".encode(), 1)
    return content


def scrambled() -> bytes:
    """The MetaImage file of a finer chest whose header has the sizes, and the spacing, in the order of the array."""
    fine = chest((40, 64, 80), (6, 6, 5))
    (content,) = by_itk(fine.array, fine.affine, ".mha").values()
    content = content.replace(b"DimSize = 80 64 40", b"DimSize = 40 64 80")
    return content.replace(b"ElementSpacing = 5 6 6", b"ElementSpacing = 6 6 5")


NIFTI = nifti(HU, AFFINE)
UNIT = ((HU - HU.min()) / np.ptp(HU)).astype(np.float32)
FAULTS: dict[str, tuple[str, bytes, str]] = {
    "sheared": ("ct.nii", nifti(HU, sheared(), qform_code=0), "sheared"),
    "singular": ("ct.mha", meta(TransformMatrix="1 0 0 1 0 0 0 0 1"), "bad-affine"),
    "affine of nan": ("ct.mha", meta(Offset="nan 0 0"), "bad-affine"),
    "no spacing": ("ct.mha", meta(ElementSpacing="0 8 12"), "bad-affine"),
    "mm called metres": ("ct.nii", nifti(HU, AFFINE, xyzt_units=1), "bad-affine"),
    "mm called micrometres": ("ct.nii", nifti(HU, AFFINE, xyzt_units=3), "bad-affine"),
    "cm called mm": ("ct.nii", nifti(HU, scaled(0.1)), "bad-affine"),
    "metres called mm": ("ct.mha", meta(ElementSpacing="0.008 0.008 0.012"), "bad-affine"),
    "rescaled twice": ("ct.nii", nifti(HU, AFFINE, scl_slope=1, scl_inter=-1024), "hu-implausible"),
    "rescaled twice by 8192": ("ct.nii", nifti(HU, AFFINE, scl_slope=1, scl_inter=-8192), "hu-implausible"),
    "never rescaled by 8192": ("ct.nii", nifti((HU + 8192).astype(np.int16), AFFINE), "hu-implausible"),
    "never rescaled": ("ct.nii", nifti((HU + 1024).astype(np.int16), AFFINE), "hu-implausible"),
    "normalized to 0..1": ("ct.nii", nifti(UNIT, AFFINE), "hu-implausible"),
    "z-scores": ("ct.nii", nifti(((HU - HU.mean()) / HU.std()).astype(np.float32), AFFINE), "hu-implausible not-hu"),
    "grey values": ("ct.nii", nifti((UNIT * 255).astype(np.uint8), AFFINE), "hu-implausible"),
    "window of lungs": ("ct.nii", nifti(HU.clip(-1000, -400), AFFINE), "not-hu"),
    "4-D": ("ct.nii", nifti(np.stack([HU, HU]), AFFINE), "not-3d"),
    "RGB": ("ct.mha", by_itk(np.stack([HU.astype(np.uint8)] * 3, -1), AFFINE, ".mha")["ct.mha"], "not-hu"),
    "truncated": ("ct.nii", NIFTI[:-1000], "truncated"),
    "truncated gz": ("ct.nii.gz", gzip.compress(NIFTI)[:-1000], "truncated"),
    "truncated mha": ("ct.mha", meta()[:-1], "truncated"),
    "empty": ("ct.nii.gz", b"", "bad-header"),
    "int16 called uint16": ("ct.nii", nifti(HU, AFFINE, datatype=512), "hu-implausible not-hu"),
    "int16 called float32": ("ct.nii", nifti(HU, AFFINE, datatype=16, bitpix=32), "truncated"),
    "int16 called uint8": ("ct.nii", nifti(HU, AFFINE, datatype=2, bitpix=8), "undecodable-pixels"),
    "little called big": ("ct.mha", meta(BinaryDataByteOrderMSB="True"), "hu-implausible"),
    "fewer planes": ("ct.mha", meta(DimSize="48 48 20"), "undecodable-pixels"),
    "more planes": ("ct.nii.gz", gzip.compress(nifti(HU, AFFINE, dim=[3, 48, 48, 40, 1, 1, 1, 1])), "truncated"),
    "size of no scan": ("ct.mha", meta(DimSize="48 48 2000000000"), "bad-header"),
    "few planes": ("ct.nii", nifti(HU[:5], AFFINE), "too-few-slices"),
    "one value": ("ct.nii", nifti(np.full_like(HU, -1000), AFFINE), "hu-implausible"),
    "gz bomb": (
        "ct.nii.gz",
        gzip.compress(nifti(HU, scaled(0.004), dim=[3, 30000, 30000, 15, 1, 1, 1, 1]) + bytes(100 << 20)),
        "truncated",
    ),
    "sizes in another order": ("ct.mha", scrambled(), "undecodable-pixels"),
    "no place": ("ct.nii", nifti(HU, AFFINE, sform_code=0, qform_code=0), "missing-attribute"),
    "text": ("ct.nrrd", b"<html>404 Not Found</html>", "bad-header"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(tmp_path: Path, fault: str) -> None:
    name, content, reasons = FAULTS[fault]
    record = outcome(tmp_path, {name: content})
    assert (record.status, record.reason) in [("refused", reason) for reason in reasons.split()], record.message
    assert "\n" not in record.message
    if record.reason not in ("hu-implausible", "not-hu"):
        assert name in record.message


def test_front_and_back_mixed_up_is_a_warning(tmp_path: Path) -> None:
    """RAS taken for LPS; and an array that was flipped without its affine."""
    ras = AFFINE.copy()
    ras[:2] *= -1
    tiny.write(tmp_path / "in", {"a.nii": NIFTI, "b.nii": nifti(HU, ras), "c.nii": nifti(HU[:, ::-1].copy(), AFFINE)})
    right, *turned = records(tmp_path / "in", tmp_path / "out")
    assert "spine-in-front" not in right.warnings
    assert [(record.status, "spine-in-front" in record.warnings) for record in turned] == [("written", True)] * 2


@pytest.mark.parametrize("noise_hu", [60, 150])
def test_noise_is_not_taken_for_rows_out_of_place(tmp_path: Path, noise_hu: float) -> None:
    """A crop of soft tissue at a low dose: neighbours differ as much as any two values, in all directions."""
    soft = np.random.default_rng(0).normal(40, noise_hu, (40, 64, 64)).astype(np.int16)
    config = PrepConfig(spacing_mm=(4, 4, 4), lungs=False, check_hu=False)
    record = outcome(tmp_path, {"ct.nii": nifti(soft, np.diag([3.0, 3.0, 3.0, 1.0]))}, config)
    assert (record.status, record.reason) == ("written", None), record.message


@pytest.mark.parametrize("shape", [(200, 3, 120), (200, 120, 3)])
def test_a_volume_of_few_rows_or_columns_is_no_failure(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    thin = np.random.default_rng(0).normal(40, 60, shape).astype(np.int16)
    config = PrepConfig(spacing_mm=(4, 4, 4), lungs=False, check_hu=False)
    assert outcome(tmp_path, {"ct.nii": nifti(thin, np.diag([2.0, 2.0, 2.0, 1.0]))}, config).status == "written"


LUNGS = np.where(HU < -500, 1, 0).astype(np.uint8)
MASKS = {
    "uint8": LUNGS,
    "float": LUNGS.astype(np.float64),
    "many": (np.arange(HU.size).reshape(HU.shape) // 3000 % 110 * LUNGS).astype(np.int16),
    "255": LUNGS * 255,
    "empty": LUNGS * 0,
    "small": (np.indices(HU.shape).sum(0) == 61).astype(np.uint8),
}


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_beside_its_image_is_set_aside(tmp_path: Path, mask: str) -> None:
    seg = nifti(MASKS[mask], AFFINE)
    tiny.write(tmp_path / "in", {"p1/ct.nii.gz": gzip.compress(NIFTI), "p1/ct_seg.nii.gz": gzip.compress(seg)})
    image, aside = records(tmp_path / "in", tmp_path / "out")
    assert (image.key, image.status) == ("p1__ct", "written")
    assert (aside.key, aside.status, aside.reason) == ("p1__ct_seg", "set-aside", "no-image")
    assert "a mask" in aside.message


def test_check_hu_can_be_turned_off(tmp_path: Path) -> None:
    named = {"ct.nii": nifti(HU.clip(-1000, -400), AFFINE)}
    assert outcome(tmp_path / "a", named).reason == "not-hu"
    assert outcome(tmp_path / "b", named, PrepConfig(spacing_mm=(4, 4, 4), check_hu=False)).status == "written"


def test_files_of_a_patient_that_are_volumes_and_slices_are_all_accounted_for(tmp_path: Path) -> None:
    named = {"ct.nii": NIFTI, "mask.nrrd": by_itk(LUNGS, AFFINE, ".nrrd")["ct.nrrd"], "bad.mha": b"x"}
    named |= {f"dicom/{name}": content for name, content in tiny.series().items()}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/p1.zip").write_bytes(tiny.zipped(named))
    *further, main = records(tmp_path / "in", tmp_path / "out")
    assert (main.key, main.status, main.source.slices) == ("p1", "written", 24)
    assert sorted(record.status for record in further) == ["refused", "set-aside", "written"]
    assert len({record.key for record in further}) == 3
    assert "one-of-several-series" in main.warnings


def test_series_that_are_called_alike_are_kept_apart(tmp_path: Path) -> None:
    """Two files of one name, and one that is called by the SeriesInstanceUID of slices, as those of LUNA16 are."""
    slices = tiny.series(series_uid="1.2.3.77")
    short = nifti(HU[:12], AFFINE)
    named = {"ct.nii": NIFTI, "ct.nii.gz": gzip.compress(short), "ct.mha": meta(), "1.2.3.77.nii": short}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/p1.zip").write_bytes(tiny.zipped(slices | named))
    found = records(tmp_path / "in", tmp_path / "out")
    assert {record.status for record in found} == {"written"}
    assert len({record.key for record in found}) == len({record.series_uid_sha256 for record in found}) == 5
    tiny.write(tmp_path / "alone", {"1.2.3.77.nii": NIFTI} | {f"dicom/{name}": c for name, c in slices.items()})
    volume, series = records(tmp_path / "alone", tmp_path / "out")
    assert volume.series_uid_sha256 == series.series_uid_sha256


# memory


LARGE = HU.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.float64)


@pytest.mark.parametrize("kind", [".nii", ".mhd"])
def test_a_volume_too_large_to_be_held_is_read_piece_by_piece(
    place: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """26 MB of floats; a worker of which 20 MB are for them does not even ask for the whole."""
    affine = AFFINE.copy()
    affine[:3, :3] /= 4
    tiny.write(f"{place}/in", files(Volume(LARGE, affine), kind))
    (whole,) = records(f"{place}/in", f"{place}/whole")
    monkeypatch.setattr(case_files, "BLOCK_BYTES", 1_000_000)
    monkeypatch.setattr(admission, "BLOCK_BYTES", 1_000_000)
    monkeypatch.setattr(storage, "read_many", None)
    usable = admission.FIXED_BYTES + 20_000_000
    memory = int((admission.BASE_BYTES + usable) / admission.USABLE_SHARE) + 1
    (pieces,) = records(f"{place}/in", f"{place}/pieces", memory=memory)
    assert (whole.status, pieces.status) == ("written", "written"), (whole.message, pieces.traceback)
    assert pieces.hu_sha256 == whole.hu_sha256
    assert predict(next(iter(cases.cases(f"{place}/in"))), SETTINGS, usable)[0].status == "written"


def test_a_volume_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path / "in", {"ct.nii": NIFTI})
    monkeypatch.setattr(admission, "admit", lambda *args: setattr(args[3], "is_held", False))
    read_ranges = storage.read_ranges

    def touched(url: str, ranges: Any) -> list[bytes]:
        found = read_ranges(url, ranges)
        os.utime(url, ns=(1, 1))
        return found

    monkeypatch.setattr(storage, "read_ranges", touched)
    (record,) = records(tmp_path / "in", tmp_path / "out")
    assert (record.status, record.reason) == ("refused", "source-changed")


@pytest.mark.parametrize("fault", ["sheared", "mm called metres", "4-D", "RGB", "truncated", "few planes", "no place"])
def test_a_plan_names_what_the_header_shows(tmp_path: Path, fault: str) -> None:
    name, content, reason = FAULTS[fault]
    tiny.write(tmp_path, {name: content})
    (found,) = predict(next(iter(cases.cases(str(tmp_path)))), SETTINGS)
    assert (found.status, found.reason) == ("refused", reason)


def test_a_plan_reads_no_voxels(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(place, files(CHEST, ".nii") | {"b/ct.nii.gz": gzip.compress(NIFTI)})
    monkeypatch.setattr(storage, "read_many", None)
    monkeypatch.setattr(storage, "read", None)
    for case in cases.cases(place):
        (found,) = predict(case, SETTINGS)
        assert (found.status, found.n_slices, found.native_voxels) == ("written", 24, HU.size)


def test_a_volume_file_is_shown_and_so_is_why_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path / "in", {"ct.nii": NIFTI, "bad.nii": FAULTS["sheared"][1]})
    records(tmp_path / "in", tmp_path / "out")
    picture = ["-o", str(tmp_path / "picture.png")]
    for place in ([str(tmp_path / "in/ct.nii")], [str(tmp_path / "out"), "ct", "--source"]):
        assert commands.run_command(["show", *place, *picture]) == 0
    for place in ([str(tmp_path / "in/bad.nii")], [str(tmp_path / "out"), "bad"]):
        assert commands.run_command(["show", *place, *picture]) == 1
        assert "sheared: bad.nii: expected axes at right angles" in " ".join(capsys.readouterr().err.split())


def test_of_a_volume_only_the_header_is_read_before_its_memory_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "in", {"ct.nii": nifti(LARGE, scaled(0.25))})
    read: list[tuple[int, int]] = []
    read_ranges = storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda url, ranges: read.extend(ranges) or read_ranges(url, ranges))
    (case,) = cases.cases(str(tmp_path / "in"))
    assert open_case(case).guess == ((96, 192, 192), pytest.approx((3, 2, 2)))
    assert sum(end - start for start, end in read) <= MAX_HEADER_BYTES


def test_volumes_beside_slices_are_not_read_to_guess_the_size_of_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "in", {f"p1/{name}": content for name, content in tiny.series().items()})
    tiny.write(tmp_path / "in", {"p1/a/ct.nii": NIFTI, "p1/b/ct.nii": NIFTI})
    (case,) = cases.cases(str(tmp_path / "in"), patient_folders=True)
    read: list[str] = []
    read_many = storage.read_many
    monkeypatch.setattr(storage, "read_many", lambda url, e: read.extend(each.name for each in e) or read_many(url, e))
    assert open_case(case).guess == ((12, 24, 24), (1, 1, 1))
    assert len(read) == 1
    assert read[0].endswith(".dcm")

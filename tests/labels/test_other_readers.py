"""Other programs draw the same: dcmqi the same voxels of a SEG, plastimatch nearly the same of an RTSTRUCT."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import ct_dataset
from label_builders import FRAME_OF_REFERENCE, SERIES, grid_of, rtstruct_file, written
from numpy.typing import NDArray
from test_rtstruct import at, polygon

import dskprep
from dskprep.volume import Grid

sitk = pytest.importorskip("SimpleITK", reason="needs the extra exchange")

GRID = grid_of((14, 80, 90), (2.5, 0.8, 0.8), (-36, -32, -15))


def program(name: str) -> str:
    """The path of a program that a package of the extra interop installs beside Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"needs {name}: the extra interop")
    return found


def read(path: Path) -> tuple[NDArray[np.generic], Grid]:
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return array, Grid(array.shape, affine)


def images() -> list:
    """The slices of a CT on GRID."""
    return [
        ct_dataset(
            np.zeros(GRID.shape[1:], np.int16),
            GRID.to_patient((k, 0, 0)),
            PixelSpacing=list(GRID.spacing[1:]),
            SOPInstanceUID=f"1.2.3.{k + 1}",
            FrameOfReferenceUID=FRAME_OF_REFERENCE,
            SliceThickness=GRID.spacing[0],
            InstanceNumber=k + 1,
            **dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID"), SERIES),
            **dict.fromkeys("PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime".split(), ""),
            **dict.fromkeys("PositionReferenceIndicator ReferringPhysicianName Manufacturer".split(), ""),
        )
        for k in range(GRID.shape[0])
    ]


def test_dcmqi_reads_the_same_voxels(tmp_path: Path) -> None:
    segimage2itkimage = program("segimage2itkimage")
    highdicom = pytest.importorskip("highdicom", reason="needs the extra interop")
    from pydicom.sr.codedict import codes

    chance = np.random.default_rng(5)
    masks = chance.random((2, *GRID.shape)) < 0.3
    masks[1] &= chance.random(GRID.shape[:1]).reshape(-1, 1, 1) < 0.5  # in some slices only
    described = [
        highdicom.seg.SegmentDescription(n, name, codes.SCT.Organ, codes.SCT.Lung, "MANUAL")
        for n, name in ((1, "one"), (2, "two"))
    ]
    seg = highdicom.seg.Segmentation(
        images(), np.stack([*masks], -1).astype(np.uint8), "BINARY", described,
        "1.2.3.5", 1, "1.2.3.6", 1, "maker", "model", "1", "serial",
    )  # fmt: skip
    (tmp_path / "seg.dcm").write_bytes(written(seg))
    words = [
        segimage2itkimage,
        "--inputDICOM",
        str(tmp_path / "seg.dcm"),
        "--outputDirectory",
        str(tmp_path),
        "-t",
        "nrrd",
    ]
    subprocess.run(words, check=True, capture_output=True)
    labels = dskprep.read_labels(tmp_path / "seg.dcm")
    seen = set()
    for path in tmp_path.glob("*.nrrd"):
        array, grid = read(path)
        for number in set(np.unique(array).tolist()) - {0}:
            (segment,) = [s for s in labels.segments if s.number == number]
            assert (labels.draw(segment, grid).whole() == (array == number)).all()
            seen.add(number)
    assert seen == {1, 2}


def test_plastimatch_draws_nearly_the_same(tmp_path: Path) -> None:
    """But for holes: it fills a contour in another one, and the edges of a keyhole."""
    plastimatch = program("plastimatch")
    (tmp_path / "ct").mkdir()
    for k, image in enumerate(images()):
        (tmp_path / "ct" / f"{k}.dcm").write_bytes(written(image))
    slices = [float(z) for z in GRID.to_patient([(k, 0, 0) for k in range(3, 11)])[:, 2]]
    rois = {
        "ellipse": [at(z, polygon(150, 17.3, (1.37, -0.61), 0.71)) for z in slices],
        "islands": [at(z, polygon(70, 6.17, (x, 0.4))) for z in slices for x in (-13.2, 12.9)],
    }
    (tmp_path / "rs.dcm").write_bytes(rtstruct_file(rois))
    words = [plastimatch, "convert", "--input", str(tmp_path / "rs.dcm"), "--referenced-ct", str(tmp_path / "ct")]
    words += ["--output-prefix", str(tmp_path / "out"), "--prefix-format", "nii.gz"]
    subprocess.run(words, check=True, capture_output=True)
    labels = dskprep.read_labels(tmp_path / "rs.dcm")
    for segment in labels.segments:
        array, grid = read(tmp_path / "out" / f"{segment.name}.nii.gz")
        theirs, ours = array > 0, labels.draw(segment, grid).whole() > 0
        assert theirs.sum() > 1000
        assert 2 * np.count_nonzero(ours & theirs) / (ours.sum() + theirs.sum()) >= 0.99, segment.name
        assert ours.sum() == pytest.approx(theirs.sum(), rel=0.01), segment.name

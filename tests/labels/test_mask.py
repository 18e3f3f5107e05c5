"""Mask volumes: on the grid of the image, or refused; never bent."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path

import nibabel
import numpy as np
import pytest
from label_builders import blobs, grid_of
from numpy.typing import NDArray
from test_draw import turn

import dskprep
from dskprep.dicom import sniff
from dskprep.errors import Refusal
from dskprep.volume import Grid, Volume

sitk = pytest.importorskip("SimpleITK", reason="needs the extra exchange")

GRID = grid_of((8, 24, 20), turned=turn((6, -4, 3)))
VALUES = (blobs(GRID.shape) + 2 * (blobs(GRID.shape, 1) & ~blobs(GRID.shape))).astype(np.uint8)


def nifti(values: NDArray[np.generic] = VALUES, grid: Grid = GRID) -> bytes:
    return dskprep.to_nifti(Volume(values, grid.affine)).to_bytes()


def itk(tmp_path: Path, suffix: str, grid: Grid = GRID) -> bytes:
    path = tmp_path / f"mask{suffix}"
    sitk.WriteImage(dskprep.to_sitk(Volume(VALUES, grid.affine)), str(path), useCompression=True)
    return path.read_bytes()


def refusal(content: bytes, name: str = "mask") -> Refusal:
    with pytest.raises(Refusal) as caught:
        dskprep.read_labels(content, name=name).at(GRID)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_each_format_lies_where_it_says(tmp_path: Path, kind: str) -> None:
    content = {".nii": nifti, ".nii.gz": lambda: gzip.compress(nifti())}.get(kind, lambda: itk(tmp_path, kind))()
    labels = dskprep.read_labels(content, name=f"p1{kind}", names={2: "tumour"}).at(GRID)
    assert [(s.number, s.name) for s in labels.segments] == [(1, "label-1"), (2, "tumour")]
    for segment in labels.segments:
        assert (labels.draw(segment, GRID).whole() == (segment.number == VALUES)).all()


def test_segments_of_3d_slicer_have_their_names(tmp_path: Path) -> None:
    image = dskprep.to_sitk(Volume(VALUES, GRID.affine))
    written = {
        "Segment0_Name": "left lung",
        "Segment0_LabelValue": "2",
        "Segment1_Name": "a\x1b[31m b",
        "Segment1_LabelValue": "1",
        "Segment2_Name": "nothing of it",
        "Segment2_LabelValue": "9",
        "Segment3_Name": "damaged",
        "Segment3_LabelValue": "1e3",
    }
    for key, text in written.items():
        image.SetMetaData(key, text)
    path = tmp_path / "p1.seg.nrrd"
    sitk.WriteImage(image, str(path), useCompression=True)
    first, second = dskprep.read_labels(path).at(GRID).segments
    assert (second.number, second.name) == (2, "left lung")
    assert first.number == 1
    assert first.name.startswith("a")
    assert "\x1b" not in first.name
    assert [s.name for s in dskprep.read_labels(path, names={2: "mine"}).segments] == [first.name, "mine"]


def layered(layers: NDArray[np.uint8], encoding: str = "gzip", **pairs: str) -> bytes:
    """A segmentation as 3D Slicer writes it where segments overlap: the values of all layers of a voxel in a row."""
    n, z, y, x = layers.shape
    steps = " ".join(f"({','.join(map(repr, GRID.affine[:3, k].tolist()))})" for k in (2, 1, 0))
    header = (
        f"NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: {n} {x} {y} {z}\n"
        f"space directions: none {steps}\nkinds: list domain domain domain\nencoding: {encoding}\n"
        f"space origin: ({','.join(map(repr, GRID.affine[:3, 3].tolist()))})\n"
    )
    lines = "".join(f"{key}:={text}\n" for key, text in pairs.items())
    voxels = np.ascontiguousarray(np.moveaxis(layers, 0, 3)).tobytes()
    return f"{header}{lines}\n".encode() + (gzip.compress(voxels) if encoding == "gzip" else voxels)


LUNG, NODULE, HEART = blobs(GRID.shape), blobs(GRID.shape, 1), blobs(GRID.shape, 2) & ~blobs(GRID.shape)
LAYERS = np.stack([LUNG + 2 * HEART, NODULE]).astype(np.uint8)
SEGMENTS = {
    f"Segment{k}_{key}": text
    for k, segment in enumerate([("lung", "1", "0"), ("nodule", "1", "1"), ("heart", "2", "0")])
    for key, text in zip(("Name", "LabelValue", "Layer"), segment, strict=True)
}


@pytest.mark.parametrize("encoding", ["gzip", "raw"])
def test_segments_that_overlap_lie_in_several_layers(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "p1.seg.nrrd"
    path.write_bytes(layered(LAYERS, encoding, **SEGMENTS))
    labels = dskprep.read_labels(path).at(GRID)
    assert [(s.number, s.name) for s in labels.segments] == [(1, "lung"), (2, "heart"), (3, "nodule")]
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # the layers are the parts of a vector
    for segment, mask in zip(
        labels.segments, (theirs[..., 0] == 1, theirs[..., 0] == 2, theirs[..., 1] == 1), strict=True
    ):
        assert (labels.draw(segment, GRID).whole() == mask).all()
    assert [s.name for s in dskprep.read_labels(path, names={3: "mine"}).segments] == ["lung", "heart", "mine"]


def test_layers_are_read_as_simpleitk_writes_them(tmp_path: Path) -> None:
    """It calls the axis of layers a vector."""
    slicer, path = tmp_path / "slicer.seg.nrrd", tmp_path / "p1.seg.nrrd"
    slicer.write_bytes(layered(LAYERS, **SEGMENTS))
    sitk.WriteImage(sitk.ReadImage(str(slicer)), str(path), useCompression=True)
    assert b"kinds: vector domain" in path.read_bytes()[:2000]
    theirs, ours = (dskprep.read_labels(each).at(GRID) for each in (slicer, path))
    assert [(s.number, s.name) for s in ours.segments] == [(s.number, s.name) for s in theirs.segments]
    for segment in ours.segments:
        assert (ours.draw(segment, GRID).whole() == theirs.draw(segment, GRID).whole()).all()


def test_four_axes_without_segments_are_no_mask() -> None:
    """They may be times, or values of diffusion."""
    assert refusal(layered(LAYERS), "p1.nrrd").reason == "label-unknown"
    assert refusal(layered(LAYERS, **SEGMENTS)[:-9], "p1.seg.nrrd").reason == "label-damaged"
    assert refusal(layered(LAYERS, **SEGMENTS).replace(b": 2 20", b": 3 20"), "p1.seg.nrrd").reason == "label-damaged"
    assert refusal(layered(LAYERS * 0, **SEGMENTS), "p1.seg.nrrd").reason == "label-empty"


def test_a_mask_may_be_compressed_as_a_whole(tmp_path: Path) -> None:
    for content in (bz2.compress(nifti()), lzma.compress(nifti()), gzip.compress(itk(tmp_path, ".nrrd"))):
        assert len(dskprep.read_labels(content, name="p1").segments) == 2


def test_no_more_is_unpacked_of_a_mask_than_its_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(
        "dskprep.labels.mask.decompress",
        lambda content, most: (limits.append(most), sniff.decompress(content, most))[1],
    )
    for plain, pack in ((nifti(), bz2.compress), (itk(tmp_path, ".nrrd"), gzip.compress), (nifti(), lzma.compress)):
        bomb = pack(plain + bytes(8 << 20))
        assert len(bomb) < 20_000
        assert refusal(bomb).reason == "label-damaged"
    assert max(limits) < 3 << 20


def test_a_single_label_is_called_as_its_file_is(tmp_path: Path) -> None:
    (tmp_path / "heart.nii.gz").write_bytes(gzip.compress(nifti((VALUES == 1).astype(np.uint8))))
    assert [s.name for s in dskprep.read_labels(tmp_path / "heart.nii.gz").segments] == ["heart"]


def test_axes_in_another_order_and_direction_are_the_same_place() -> None:
    flipped = VALUES.transpose(2, 0, 1)[::-1]
    affine = GRID.affine[:, [2, 0, 1, 3]]
    affine[:3, 3] += affine[:3, 0] * (flipped.shape[0] - 1)
    affine[:3, 0] *= -1
    labels = dskprep.read_labels(nifti(flipped, Grid(flipped.shape, affine)), name="mask").at(GRID)
    assert (labels.draw(labels.segments[0], GRID).whole() == (VALUES == 1)).all()


@pytest.mark.parametrize(
    ("axes", "words"), [((0, 1), "left and right, front and back"), ((0,), "left and right"), ((1,), "front and back")]
)
def test_a_mask_that_is_mirrored_is_refused(axes: tuple[int, ...], words: str) -> None:
    affine = GRID.affine.copy()
    affine[list(axes)] *= -1
    found = refusal(nifti(VALUES, Grid(GRID.shape, affine)))
    assert found.reason == "label-mirrored"
    assert f"with {words} mixed up" in found.message


def moved(values: NDArray[np.generic], first: tuple[float, ...]) -> tuple[NDArray[np.generic], Grid]:
    """Values on a part of the image's grid, or beyond its edges, from the voxel `first` on."""
    affine = GRID.affine.copy()
    affine[:3, 3] = GRID.to_patient(first)
    return values, Grid(values.shape, affine)


PARTS = {
    "cropped": moved(VALUES[2:6, 5:20, 3:11], (2, 5, 3)),
    "padded": moved(np.pad(VALUES, 3), (-3, -3, -3)),
    "sticking out": moved(np.random.default_rng(2).integers(0, 3, (9, 9, 9)).astype(np.uint8), (-4, 18, 5)),
    "a slice": moved(VALUES[3:4], (3, 0, 0)),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", [".nii.gz", ".nrrd", ".mha"])
def test_a_part_of_the_grid_lies_where_it_says(tmp_path: Path, part: str, kind: str) -> None:
    """As SimpleITK places it, which takes the nearest voxel; the axes of the file may be in another order."""
    values, grid = PARTS[part]
    if kind == ".nii.gz":
        affine = grid.affine[:, [2, 0, 1, 3]] * [1, -1, 1, 1]
        affine[:3, 3] -= affine[:3, 1] * (values.shape[0] - 1)
        values = values.transpose(2, 0, 1)[:, ::-1]
        grid = Grid(values.shape, affine)
    path = tmp_path / f"p1{kind}"
    image = dskprep.to_sitk(Volume(np.ascontiguousarray(values), grid.affine))
    sitk.WriteImage(image, str(path))
    reference = dskprep.to_sitk(Volume(VALUES, GRID.affine))
    theirs = sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), sitk.sitkNearestNeighbor))
    labels = dskprep.read_labels(path).at(GRID)
    for segment in labels.segments:
        found = labels.draw(segment, GRID)
        assert (found.whole() == (theirs == segment.number)).all()
        n_all = np.count_nonzero(values == segment.number)
        assert found.outside == pytest.approx(1 - np.count_nonzero(theirs == segment.number) / n_all, abs=1e-6)


def test_a_part_that_lies_beyond_the_image_is_refused() -> None:
    labels = dskprep.read_labels(nifti(*moved(VALUES, (30, 0, 0))), name="mask").at(GRID)
    with pytest.raises(Refusal) as caught:
        labels.draw(labels.segments[0], GRID)
    assert caught.value.reason == "label-outside-volume"


def test_a_part_is_refused_where_only_its_mirror_image_lies_in_the_image() -> None:
    """An image whose voxels lie symmetrically about x = 0, so that those of the mirror image do too."""
    image = grid_of((8, 24, 20), (2.5, 1.0, 1.0), (-9.5, -60.0, -30.0))
    part = grid_of((8, 10, 6), (2.5, 1.0, 1.0), (-9.5, 50.0, -30.0))  # of which y should be -50, and fall
    content = nifti(VALUES[:, :10, :6], part)
    with pytest.raises(Refusal) as caught:
        dskprep.read_labels(content, name="mask").at(image)
    assert caught.value.reason == "label-mirrored"


@pytest.mark.parametrize("shift", [(0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (3, 0.15, 0)])
def test_a_mask_that_is_shifted_is_refused(shift: tuple[float, ...]) -> None:
    affine = GRID.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ shift
    assert refusal(nifti(VALUES, Grid(GRID.shape, affine))).reason == "label-off-grid"


def test_a_mask_of_another_spacing_or_shape_is_refused() -> None:
    affine = GRID.affine.copy()
    affine[:3, 0] *= 1.5
    assert refusal(nifti(VALUES, Grid(GRID.shape, affine))).reason == "label-off-grid"
    affine = GRID.affine.copy()
    affine[:3, 0] *= 1.02
    assert refusal(nifti(VALUES[:-1], Grid((7, 24, 20), affine))).reason == "label-off-grid"


def test_a_mask_of_floats_that_was_written_as_scaled_bytes_is_one() -> None:
    """As nibabel writes it: 255 times a slope that is rounded to a float32."""
    image = nibabel.Nifti1Image(
        (VALUES == 1).T.astype(np.float32), np.diag([-1, -1, 1, 1]) @ GRID.affine[:, [2, 1, 0, 3]]
    )
    image.set_data_dtype(np.uint8)
    content = image.to_bytes()
    assert nibabel.Nifti1Image.from_bytes(content).get_fdata().max() not in (1, 255)
    labels = dskprep.read_labels(content, name="p1").at(GRID)
    assert [s.number for s in labels.segments] == [1]
    assert (labels.draw(labels.segments[0], GRID).whole() == (VALUES == 1)).all()


def test_what_is_no_mask_is_refused() -> None:
    assert refusal(nifti(VALUES * 0)).reason == "label-empty"
    assert refusal(nifti(VALUES + np.float32(0.5))).reason == "label-unknown"
    assert refusal(nifti(VALUES.astype(np.int16) - 1024)).reason == "label-unknown"
    assert refusal(nifti()[:-100]).reason == "label-damaged"
    assert refusal(gzip.compress(nifti())[:-100]).reason == "label-damaged"
    nowhere = nifti()[:252] + bytes(4) + nifti()[256:]  # qform_code and sform_code
    assert "neither sform nor qform" in refusal(nowhere).message


def test_a_header_that_claims_more_than_memory_is_refused() -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((30_000, 30_000, 5000))
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"], header["sform_code"] = b"n+1", 352, 1
    file = io.BytesIO()
    header.write_to(file)
    assert refusal(file.getvalue() + bytes(1000)).reason == "label-too-large"
    nrrd = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 60000 60000 5000\nencoding: gzip\n"
    nrrd += b"space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
    nrrd += gzip.compress(bytes(1000))
    assert refusal(nrrd).reason == "label-too-large"


@pytest.mark.parametrize("sizes", [b"2 2 200000", b"200000 2 2 2"])
def test_a_mask_of_nothing_but_planes_is_refused_before_they_are_looked_at(sizes: bytes) -> None:
    layers = sizes.count(b" ") == 3
    header = NRRD.replace(b"2 2 2", sizes).replace(b"directions: ", b"directions: none " if layers else b"directions: ")
    if layers:
        header = header.replace(b"dimension: 3", b"dimension: 4") + b"kinds: list domain domain domain\n"
        header += b"Segment0_Name:=a\nSegment0_LabelValue:=1\n"
    assert refusal(header + b"\n" + bytes(8 * 200_000)).reason == "label-too-large"


NRRD = (
    b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nspace: LPS\n"
    b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"
)
META = (
    b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\n"
    b"Offset = 0 0 0\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
)


@pytest.mark.parametrize(
    "header",
    [
        NRRD + b"data file: /etc/passwd\n\n",
        NRRD + b"datafile: /etc/passwd\n\n",
        META + b"ElementDataFile = /etc/passwd\n",
        META + b"ElementDataFile = LIST\n/etc/passwd\n",
    ],
)
def test_a_header_for_other_files_reads_none(header: bytes) -> None:
    found = refusal(header)
    assert found.reason == ("label-damaged" if b"LIST" in header else "label-unknown")
    assert "other files" in found.message or "one file of voxels" in found.message

"""DICOM SEG: every frame lies where it says, whatever its encoding."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from typing import Any

import numpy as np
import pytest
from builders import ct_dataset
from label_builders import (
    DEFLATED_FRAMES,
    FRAME_OF_REFERENCE,
    IMAGE,
    SERIES,
    blobs,
    frames_of,
    grid_of,
    seg_dataset,
    seg_file,
    written,
)
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless
from test_draw import turn

import dskprep
from dskprep.errors import Refusal
from dskprep.volume import Grid

GRID = grid_of()
MASK = blobs(GRID.shape)
OTHER = blobs(GRID.shape, seed=1)


def drawn(file: bytes, number: int = 1, grid: Grid = GRID) -> NDArray[np.bool_]:
    labels = dskprep.read_labels(file, name="seg.dcm")
    (segment,) = [s for s in labels.segments if s.number == number]
    return labels.draw(segment, grid).whole() > 0


def draw_all(file: bytes) -> None:
    labels = dskprep.read_labels(file, name="seg.dcm")
    for segment in labels.segments:
        labels.draw(segment, GRID)


def refusal(file: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        draw_all(file)
    assert "\n" not in str(caught.value)
    return caught.value


def test_it_says_what_it_holds_and_to_what_it_belongs() -> None:
    labels = dskprep.read_labels(seg_file(GRID, frames_of(MASK)), name="seg.dcm")
    assert (labels.kind, labels.links.frames) == ("seg", {FRAME_OF_REFERENCE})
    assert (labels.links.series, labels.links.instances) == ({SERIES}, {IMAGE})
    assert [(s.number, s.name, s.algorithm) for s in labels.segments] == [
        (1, "Lung", "MANUAL"),
        (2, "Tumour", "MANUAL"),
    ]
    assert labels.segments[0].type == ("39607008", "SCT", "Lung")
    assert [s.name for s in labels.named("tum*")] == ["Tumour"]
    assert labels.points is None


@pytest.mark.parametrize("about", [(0, 0, 0), (15, -20, 10)], ids=["axial", "oblique"])
@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_segments_overlap_and_lie_where_their_frames_are(about: tuple, order: int) -> None:
    grid = grid_of(turned=turn(about))
    frames = (frames_of(MASK, 1) + frames_of(OTHER, 2))[::order]
    file = seg_file(grid, frames)
    assert (drawn(file, 1, grid) == MASK).all()
    assert (drawn(file, 2, grid) == OTHER).all()


def test_frames_that_are_not_there_are_empty() -> None:
    kept = [frame for frame in frames_of(MASK) if frame[1] not in (3, 4)]
    wanted = MASK.copy()
    wanted[3:5] = False
    assert (drawn(seg_file(GRID, kept)) == wanted).all()


def test_a_segment_in_every_other_slice_does_not_grow_thicker() -> None:
    kept = [frame for frame in frames_of(MASK) if frame[1] % 2]
    wanted = MASK.copy()
    wanted[::2] = False
    assert (drawn(seg_file(GRID, kept)) == wanted).all()


@pytest.mark.parametrize("declared", [(None, 2.5), (None, None), (0.5, 0.5), (7.5, 10.0)])
def test_on_the_slices_that_it_was_drawn_on_a_segment_keeps_every_voxel(declared: tuple) -> None:
    """Only some slices are drawn, or every one, or one alone; what the header says of their distance is of no help."""
    between, thickness = declared
    measures = Dataset()
    measures.PixelSpacing = [0.75, 0.5]
    if between:
        measures.SpacingBetweenSlices = between
    if thickness:
        measures.SliceThickness = thickness
    for slices in (slice(None, None, 2), slice(None), slice(3, 4)):
        mask = np.zeros_like(MASK)
        mask[slices] = MASK[slices]
        ds = seg_dataset(GRID, frames_of(mask), names=("Lung",))
        ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [measures]
        labels = dskprep.read_labels(written(ds), name="seg.dcm").at(GRID)
        assert (labels.draw(labels.segments[0], GRID).whole() == mask).all()


def test_frames_that_lie_as_far_apart_as_they_say_are_as_thick() -> None:
    """It was drawn on thicker slices, which share every second one with the image."""
    thick = grid_of((4, 24, 20), (5.0, 0.75, 0.5), (-10.0, -20.0, -28.75))
    fine = grid_of((8, 24, 20), (2.5, 0.75, 0.5), (-10.0, -20.0, -28.75))
    labels = dskprep.read_labels(seg_file(thick, frames_of(MASK[2:6])), name="seg.dcm").at(fine)
    found = labels.draw(labels.segments[0], thick)
    assert (found.whole() == MASK[2:6]).all()
    assert found.ml == pytest.approx(MASK[2:6].sum() * thick.voxel_ml)


def test_two_frames_of_one_segment_in_one_place_are_one() -> None:
    both = [*frames_of(MASK), *frames_of(OTHER)]
    labels = dskprep.read_labels(seg_file(GRID, [*frames_of(MASK), *both]), name="seg.dcm")
    found = labels.draw(labels.segments[0], GRID)
    assert (found.whole() == (MASK | OTHER)).all()
    assert found.ml == pytest.approx((MASK | OTHER).sum() * GRID.voxel_ml)


@pytest.mark.parametrize(("kind", "vr"), [("BINARY", "OB"), ("BINARY", "OW"), ("FRACTIONAL", "OW")])
def test_big_endian_words_are_in_order(kind: str, vr: str) -> None:
    """In words of two bytes the second one comes first (PS3.5 A.3)."""
    ds = seg_dataset(GRID, frames_of(200 * MASK if kind == "FRACTIONAL" else MASK), kind=kind)
    file = io.BytesIO()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds["PixelData"].VR = vr
    ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes() if vr == "OW" else ds.PixelData
    dcmwrite(file, ds, implicit_vr=False, little_endian=False, force_encoding=True)
    assert (drawn(file.getvalue()) == MASK).all()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_file_that_is_compressed_as_a_whole(compress: Any) -> None:
    file = compress(seg_file(GRID, frames_of(MASK)))
    assert (drawn(file) == MASK).all()
    assert refusal(file[:-20]).reason in ("label-damaged", "label-unknown")


def test_the_thickness_of_a_slice_is_not_its_distance() -> None:
    """Slices of 1 mm every 2.5 mm, and no SpacingBetweenSlices: the label has no gaps."""
    ds = seg_dataset(GRID, frames_of(MASK))
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SpacingBetweenSlices
    measures.SliceThickness = 1.25
    labels = dskprep.read_labels(written(ds))
    assert labels.draw(labels.segments[0], GRID).ml == pytest.approx(MASK.sum() * GRID.voxel_ml)


def test_a_fractional_segment_is_where_half_or_more_is() -> None:
    values = np.random.default_rng(3).integers(0, 201, GRID.shape, dtype=np.uint8)
    frames = [(1, k, plane) for k, plane in enumerate(values)]
    assert (drawn(seg_file(GRID, frames, kind="FRACTIONAL")) == (values >= 100)).all()


def test_a_label_map() -> None:
    values = MASK + 2 * (OTHER & ~MASK)
    file = seg_file(GRID, [(0, k, plane) for k, plane in enumerate(values)], kind="LABELMAP")
    assert (drawn(file, 1) == MASK).all()
    assert (drawn(file, 2) == (OTHER & ~MASK)).all()


def test_the_background_of_a_label_map_is_no_label() -> None:
    ds = seg_dataset(GRID, [(0, k, plane) for k, plane in enumerate(MASK + 1)], kind="LABELMAP")
    (code,) = ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    code.CodeValue, code.CodingSchemeDesignator = "125040", "DCM"
    assert [s.number for s in dskprep.read_labels(written(ds)).segments] == [2]


@pytest.mark.parametrize("is_declared", [True, False])
def test_the_rest_of_a_label_map_is_told_by_its_padding(is_declared: bool) -> None:
    """By supplement 243 the pixel padding value is the background; older writers list a segment 0 without a code."""
    ds = seg_dataset(GRID, [(0, k, plane) for k, plane in enumerate(MASK.astype(np.uint8))], kind="LABELMAP")
    first, second = ds.SegmentSequence
    first.SegmentNumber, second.SegmentNumber = 0, 1
    if is_declared:
        ds.PixelPaddingValue = 0
    else:
        del first.SegmentedPropertyTypeCodeSequence
    labels = dskprep.read_labels(written(ds))
    assert [s.number for s in labels.segments] == [1]
    assert (labels.draw(labels.segments[0], GRID).whole() == MASK).all()


def test_a_value_of_a_label_map_that_no_segment_has_is_damage_for_all_of_them() -> None:
    """Nobody knows what lies there; it is told whichever segment is drawn first, or alone."""
    values = MASK.astype(np.uint8)
    values[-1, -1, -1] = 3
    for padding in (None, 0, 255):
        ds = seg_dataset(GRID, [(0, k, plane) for k, plane in enumerate(values)], kind="LABELMAP")
        if padding is not None:
            ds.PixelPaddingValue = padding
        labels = dskprep.read_labels(written(ds), name="map.dcm")
        for segment in (*labels.segments, *labels.segments):
            with pytest.raises(Refusal, match="pixels of the segments in it, found some of segment 3") as caught:
                labels.draw(segment, GRID)
            assert caught.value.reason == "label-damaged"
    ds.PixelPaddingValue = 3
    assert (drawn(written(ds)) == MASK).all()


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def rle(data: bytes) -> bytes:
    rows, columns = GRID.shape[1:]
    how = {"rows": rows, "columns": columns, "samples_per_pixel": 1, "number_of_frames": 1}
    how |= {"bits_allocated": 8, "bits_stored": 8, "pixel_representation": 0}
    words = {"pixel_keyword": "PixelData", "photometric_interpretation": "MONOCHROME2"}
    return RLELosslessEncoder.encode(data, index=0, encoding_plugin="pydicom", **how, **words)


@pytest.mark.parametrize(
    ("kind", "syntax", "encode"),
    [
        ("BINARY", DEFLATED_FRAMES, deflate),
        ("LABELMAP", DEFLATED_FRAMES, deflate),
        ("LABELMAP", RLELossless, rle),
        ("BINARY", DeflatedExplicitVRLittleEndian, None),
    ],
)
def test_compressed_frames(kind: str, syntax: str, encode: Any) -> None:
    file = seg_file(GRID, [(1, k, plane) for k, plane in enumerate(MASK)], kind=kind, syntax=syntax, encode=encode)
    assert (drawn(file) == MASK).all()


def test_frames_of_another_grid_than_the_image() -> None:
    """A segmentation with larger pixels, of part of the image: every voxel of the image whose centre is inside."""
    coarse = grid_of((4, 6, 5), (5.0, 3.0, 2.0), GRID.to_patient((0.5, 1.5, 1.5)))
    mask = blobs(coarse.shape)
    wanted = mask.repeat(2, 0).repeat(4, 1).repeat(4, 2)
    assert (drawn(seg_file(coarse, frames_of(mask))) == wanted).all()


def test_frames_of_two_orientations() -> None:
    """Axial frames and coronal ones, each drawn in its own plane."""
    cube = grid_of((12, 12, 12), (1, 1, 1))
    turned = Grid(cube.shape, cube.affine[:, [1, 0, 2, 3]])
    mask, other = np.zeros((2, *cube.shape), bool)
    mask[2:4, 3:9, 2:7] = True
    other[8:11, 2:4, 1:6] = True  # (z, y, x); its coronal frames are (y, z, x)
    ds = seg_dataset(cube, frames_of(mask))
    coronal = seg_dataset(turned, frames_of(other.transpose(1, 0, 2)))
    orientation = coronal.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for group in coronal.PerFrameFunctionalGroupsSequence:
        group.PlaneOrientationSequence = orientation
    ds.PerFrameFunctionalGroupsSequence += coronal.PerFrameFunctionalGroupsSequence
    ds.NumberOfFrames += coronal.NumberOfFrames
    ds.PixelData += coronal.PixelData
    assert (drawn(written(ds), grid=cube) == mask | other).all()


def test_each_fault_has_its_reason() -> None:
    frames = frames_of(MASK)
    assert refusal(seg_file(GRID, frames, Rows=60000, Columns=60000, NumberOfFrames=5000)).reason == "label-too-large"
    assert refusal(seg_file(GRID, frames, NumberOfFrames=5000)).reason == "label-damaged"
    assert refusal(seg_file(GRID, frames, SharedFunctionalGroupsSequence=None)).reason == "label-damaged"
    assert refusal(seg_file(GRID, frames, BitsAllocated=32)).reason == "label-damaged"
    assert refusal(seg_file(GRID, frames)[:-300]).reason == "label-damaged"
    assert refusal(seg_file(GRID, frames)).message == "seg.dcm: 'Tumour': expected a label, found no pixel of it set"
    assert refusal(seg_file(GRID, [(1, 0, MASK[0])])).reason == "label-empty"
    far = grid_of(origin=(500, 500, 500))
    assert refusal(seg_file(far, frames)).reason == "label-outside-volume"
    ds = seg_dataset(GRID, frames)
    ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 1e9]
    assert "frame 3" in refusal(written(ds)).message
    ds = seg_dataset(GRID, frames)
    ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 1, 0, 0]
    assert "right angles" in refusal(written(ds)).message


@pytest.mark.parametrize("element", [b"\x20\x00\x13\x91SQ\0\0\0\0\0\0", b"\x62\x00\x04\x00US\x02\0\1\0"])
def test_too_many_frames_or_segments_are_refused_before_they_are_parsed(element: bytes) -> None:
    """PlanePositionSequence stands once per frame, SegmentNumber once per segment."""
    file = seg_file(GRID, frames_of(MASK)) + element * 250_000
    assert refusal(file).reason == "label-too-large"


def test_equal_to_highdicom_on_what_it_wrote() -> None:
    highdicom = pytest.importorskip("highdicom", reason="needs the extra interop")
    from pydicom.sr.codedict import codes

    grid = grid_of(turned=turn((10, 5, -8)))
    orientation = [f"{v:.10f}" for v in (*grid.affine[:3, 2] / grid.spacing[2], *grid.affine[:3, 1] / grid.spacing[1])]
    images = [
        ct_dataset(
            np.zeros(grid.shape[1:], np.int16),
            grid.to_patient((k, 0, 0)),
            ImageOrientationPatient=orientation,
            SOPInstanceUID=f"1.2.3.{k + 1}",
            FrameOfReferenceUID=FRAME_OF_REFERENCE,
            **dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID"), SERIES),
            **dict.fromkeys("PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime".split(), ""),
            **dict.fromkeys("PositionReferenceIndicator ReferringPhysicianName Manufacturer".split(), ""),
            SliceThickness=grid.spacing[0],
            InstanceNumber=k + 1,
        )
        for k in range(grid.shape[0])
    ]
    described = [
        highdicom.seg.SegmentDescription(n, name, codes.SCT.Organ, codes.SCT.Lung, "MANUAL")
        for n, name in ((1, "one"), (2, "two"))
    ]
    both = np.stack([MASK, OTHER], -1)
    for kind, pixels in (("BINARY", both), ("FRACTIONAL", both * 0.6), ("LABELMAP", MASK + 2 * (OTHER & ~MASK))):
        written_by_them = highdicom.seg.Segmentation(
            images, pixels.astype(np.float32 if kind == "FRACTIONAL" else np.uint8), kind, described,
            "1.2.3.5", 1, "1.2.3.6", 1, "maker", "model", "1", "serial",
        )  # fmt: skip
        volume = written_by_them.get_volume(combine_segments=False, allow_missing_positions=True)
        theirs = np.asarray(volume.array) >= 0.5
        where = Grid(theirs.shape[:3], volume.affine)
        for number in (1, 2):
            assert theirs[..., number - 1].any()
            assert (drawn(written(written_by_them), number, where) == theirs[..., number - 1]).all(), kind


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_frame_beside_its_slice_takes_nothing_from_the_others(is_declared: bool) -> None:
    """Two segments in the same slices; one frame of the first lies half a millimetre off."""
    frames = [(n, k, plane) for n, mask in ((1, MASK), (2, OTHER)) for k, plane in enumerate(mask)]
    ds = seg_dataset(GRID, frames)
    normal = GRID.affine[:3, 0] / GRID.spacing[0]
    place = ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    place.ImagePositionPatient = [f"{v:.6f}" for v in np.array(place.ImagePositionPatient, float) + 0.5 * normal]
    if not is_declared:
        del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    labels = dskprep.read_labels(written(ds))
    for segment, mask in zip(labels.segments, (MASK, OTHER), strict=True):
        assert labels.draw(segment, GRID).ml == pytest.approx(mask.sum() * GRID.voxel_ml, rel=0.01)


def test_frames_of_a_segment_that_is_not_described_are_damage() -> None:
    ds = seg_dataset(GRID, frames_of(MASK), names=("Lung", "Tumour"))
    ds.SegmentSequence = ds.SegmentSequence[1:]
    assert refusal(written(ds)).reason == "label-damaged"
    twice = seg_dataset(GRID, frames_of(MASK), names=("Lung", "Tumour"))
    twice.SegmentSequence[1].SegmentNumber = 1
    assert refusal(written(twice)).reason == "label-damaged"


def test_directions_that_a_header_rounds_are_of_length_one_as_those_of_slices() -> None:
    """0.98 and 0.17 are 0.9946 long: frames would be half a percent too small, 1.5 mm in 300."""
    grid = grid_of((3, 300, 300), (2.5, 1.0, 1.0), turned=turn((0, 0, np.degrees(np.arctan2(0.17, 0.98)))))
    mask = np.zeros(grid.shape, np.bool_)
    mask[1, 290:296, 290:296] = True
    ds = seg_dataset(grid, frames_of(mask), names=("x",))
    (orientation,) = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    orientation.ImageOrientationPatient = [0.98, 0.17, 0, -0.17, 0.98, 0]
    assert (drawn(written(ds), 1, grid) == mask).all()


@pytest.mark.parametrize("largest", [255, 100])
def test_a_fractional_segment_below_one_half_says_how_high_its_values_are(largest: int) -> None:
    values = np.minimum(MASK * 200, (largest + 1) // 2 - 1).astype(np.uint8)
    frames = [(1, k, plane) for k, plane in enumerate(values)]
    content = seg_file(GRID, frames, kind="FRACTIONAL", MaximumFractionalValue=largest)
    found = refusal(content)
    assert found.reason == "label-empty"
    told = f"the highest value is {values.max()}, and half of the largest possible is {(largest + 1) // 2}"
    assert told in found.message
    assert "no pixel of it set" in refusal(seg_file(GRID, [(1, 0, 0 * values[0])], kind="FRACTIONAL")).message

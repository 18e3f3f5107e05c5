"""Label objects as files, made to measure: SEG, RTSTRUCT and the XML of LIDC-IDRI, with any damage."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from builders import with_attributes
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RTStructureSetStorage,
    SegmentationStorage,
)

from dskprep.volume import Grid

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
SERIES, IMAGE, FRAME_OF_REFERENCE = "1.2.3.10", "1.2.3.11", "1.2.3.12"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

UPRIGHT = np.eye(3)

Points = Sequence[Sequence[float]] | NDArray[np.float64]


def grid_of(
    shape: tuple[int, int, int] = (8, 24, 20),
    spacing: Sequence[float] = (2.5, 0.75, 0.5),
    origin: Sequence[float] = (-10.0, -20.0, -30.0),
    turned: ArrayLike = UPRIGHT,
) -> Grid:
    """A grid (slice, row, column): axial, or turned by a rotation matrix."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(turned) @ np.eye(3)[:, ::-1] * spacing
    affine[:3, 3] = origin
    return Grid(shape, affine)


def blobs(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.bool_]:
    """A mask that no symmetry maps to itself, with whole voxels in every slice but the first and last."""
    mask = np.random.default_rng(seed).random(shape) < 0.3
    mask[[0, -1]] = False
    return mask


def _item(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _object(class_uid: str, syntax: str) -> FileDataset:
    ds = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = class_uid
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3.98", FRAME_OF_REFERENCE
    ds.Modality = "RTSTRUCT" if class_uid == RTStructureSetStorage else "SEG"
    ds.StudyInstanceUID = SERIES
    ds.PatientName, ds.PatientID = "Mustermann^Erika", "4711"
    return ds


def written(dataset: FileDataset) -> bytes:
    """The bytes of a file. pydicom does not write DEFLATED_FRAMES, so another UID of its length goes in its place."""
    is_deflated = dataset.file_meta.TransferSyntaxUID == DEFLATED_FRAMES
    if is_deflated:
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    if is_deflated:
        return file.getvalue().replace(JPEG2000Lossless.encode(), DEFLATED_FRAMES.encode() + b"\0", 1)
    return file.getvalue()


def seg_dataset(
    grid: Grid,
    frames: Iterable[tuple[int, int, NDArray[Any]]],
    names: Sequence[str] = ("Lung", "Tumour"),
    *,
    kind: str = "BINARY",
    syntax: str = ExplicitVRLittleEndian,
    encode: Any = None,
    **attributes: Any,
) -> FileDataset:
    """A SEG whose frames (segment, slice, pixels) lie on the slices of a grid.

    `encode` compresses the bytes of one frame. An attribute given as None is left out.
    """
    ds = _object(LABEL_MAP if kind == "LABELMAP" else SegmentationStorage, syntax)
    frames = list(frames)
    ds.SegmentationType, ds.NumberOfFrames = kind, len(frames)
    ds.Rows, ds.Columns = grid.shape[1:]
    bits = 1 if kind == "BINARY" else 8
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit = bits - 1
    if kind == "FRACTIONAL":
        ds.SegmentationFractionalType, ds.MaximumFractionalValue = "PROBABILITY", 200
    lung = {"SegmentedPropertyCategoryCodeSequence": [_code("123037004", "SCT", "Anatomical Structure")]}
    ds.SegmentSequence = [
        _item(
            SegmentNumber=number,
            SegmentLabel=name,
            SegmentAlgorithmType="MANUAL",
            SegmentedPropertyTypeCodeSequence=[_code("39607008", "SCT", name)],
            **lung,
        )
        for number, name in enumerate(names, 1)
    ]
    ds.ReferencedSeriesSequence = [
        _item(SeriesInstanceUID=SERIES, ReferencedInstanceSequence=[_item(ReferencedSOPInstanceUID=IMAGE)])
    ]
    z, y, x = grid.spacing
    measures = _item(PixelSpacing=[y, x], SliceThickness=z, SpacingBetweenSlices=z)
    row, column = grid.affine[:3, 2] / x, grid.affine[:3, 1] / y
    orientation = _item(ImageOrientationPatient=[f"{v:.10f}" for v in (*row, *column)])
    ds.SharedFunctionalGroupsSequence = [
        _item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])
    ]
    groups = []
    for segment, k, _ in frames:
        position = [f"{v:.6f}" for v in grid.to_patient((k, 0, 0))]
        group = _item(PlanePositionSequence=[_item(ImagePositionPatient=position)])
        if kind != "LABELMAP":
            group.SegmentIdentificationSequence = [_item(ReferencedSegmentNumber=segment)]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    pixels = [np.asarray(p).astype(np.uint8).ravel() for _, _, p in frames]
    if encode:
        parts = [np.packbits(p, bitorder="little").tobytes() if bits == 1 else p.tobytes() for p in pixels]
        ds.PixelData = encapsulate([encode(part) for part in parts])
        ds["PixelData"].is_undefined_length = True
    else:
        data = np.concatenate(pixels) if pixels else np.empty(0, np.uint8)
        ds.PixelData = (np.packbits(data, bitorder="little") if bits == 1 else data).tobytes()
        ds.PixelData += b"\0" * (len(ds.PixelData) % 2)
    ds["PixelData"].VR = "OB"
    return with_attributes(ds, attributes)


def seg_file(grid: Grid, frames: Iterable[tuple[int, int, NDArray[Any]]], **how: Any) -> bytes:
    return written(seg_dataset(grid, frames, **how))


def frames_of(mask: NDArray[np.bool_], segment: int = 1) -> list[tuple[int, int, NDArray[np.bool_]]]:
    """Frames of a mask (slice, row, column), without its empty ones."""
    return [(segment, k, plane) for k, plane in enumerate(mask) if plane.any()]


def rtstruct_dataset(rois: Mapping[str, Iterable[Points]], kind: str = "CLOSED_PLANAR") -> FileDataset:
    """An RTSTRUCT with contours (n, 3) in LPS mm, by the name of their ROI."""
    ds = _object(RTStructureSetStorage, ImplicitVRLittleEndian)
    series = _item(
        SeriesInstanceUID=SERIES,
        ContourImageSequence=[_item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID=IMAGE)],
    )
    ds.ReferencedFrameOfReferenceSequence = [
        _item(
            FrameOfReferenceUID=FRAME_OF_REFERENCE,
            RTReferencedStudySequence=[_item(RTReferencedSeriesSequence=[series])],
        )
    ]
    ds.StructureSetROISequence = [
        _item(
            ROINumber=n, ROIName=name, ROIGenerationAlgorithm="MANUAL", ReferencedFrameOfReferenceUID=FRAME_OF_REFERENCE
        )
        for n, name in enumerate(rois, 1)
    ]
    ds.RTROIObservationsSequence = [
        _item(ObservationNumber=n, ReferencedROINumber=n, RTROIInterpretedType="ORGAN") for n in range(1, len(rois) + 1)
    ]
    ds.ROIContourSequence = [
        _item(
            ReferencedROINumber=n,
            ContourSequence=[
                _item(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(points),
                    ContourData=[f"{v:.9g}" for v in np.asarray(points, float).ravel()],
                )
                for points in contours
            ],
        )
        for n, contours in enumerate(rois.values(), 1)
    ]
    return ds


def rtstruct_file(rois: Mapping[str, Iterable[Points]], kind: str = "CLOSED_PLANAR") -> bytes:
    return written(rtstruct_dataset(rois, kind))


RATINGS = "subtlety internalStructure calcification sphericity margin lobulation spiculation texture malignancy".split()


def nodule_xml(
    name: str,
    outlines: Iterable[tuple[float | None, Sequence[tuple[int, int]]]],
    ratings: Sequence[int] = (),
    inside: str = "TRUE",
    instances: Sequence[str] = (),
) -> str:
    """A nodule with outlines (z in mm or None, pixels as (column, row)), and the UIDs of their slices if they have any.

    Without ratings, and with fewer pixels than enclose one, it is a small one.
    """
    rated = "".join(f"<{key}>{value}</{key}>" for key, value in zip(RATINGS, ratings, strict=False))
    rois = [
        f"<roi>{'' if z is None else f'<imageZposition>{z}</imageZposition>'}"
        f"<imageSOP_UID>{uid}</imageSOP_UID><inclusion>{inside}</inclusion>"
        + "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in pixels)
        + "</roi>"
        for (z, pixels), uid in itertools.zip_longest(outlines, instances, fillvalue="")
    ]
    characteristics = f"<characteristics>{rated}</characteristics>" if ratings else ""
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{characteristics}{''.join(rois)}</unblindedReadNodule>"


def lidc_file(*sessions: str, before: str = "") -> bytes:
    """The XML of LIDC-IDRI, with what each reader marked."""
    header = f"<ResponseHeader><SeriesInstanceUid>{SERIES}</SeriesInstanceUid></ResponseHeader>"
    read = "".join(f"<readingSession>{session}</readingSession>" for session in sessions)
    root = f'<LidcReadMessage uid="1" xmlns="http://www.nih.gov">{header}{read}</LidcReadMessage>'
    return f'<?xml version="1.0" encoding="UTF-8"?>{before}{root}'.encode()


def ring(row: int, column: int, radius: int) -> list[tuple[int, int]]:
    """The pixels (column, row) of a square outline, one after another; it closes on the first."""
    r = radius
    upper = [(column + d, row - r) for d in range(-r, r)]
    right = [(column + r, row + d) for d in range(-r, r)]
    lower = [(column - d, row + r) for d in range(-r, r)]
    left = [(column - r, row - d) for d in range(-r, r)]
    return [*upper, *right, *lower, *left, upper[0]]

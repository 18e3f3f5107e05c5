"""CT slices and series as DICOM files, made to measure: any place, any pixels, any damage."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian

from dskprep.dicom.contents import Contents
from dskprep.preparation.lungs.lungs import Lungs
from dskprep.preparation.prepared import Prepared
from dskprep.series import assembly
from dskprep.series.series import Decoded, Series
from dskprep.volume import Volume

AXIAL = (1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)
SAGITTAL = (0, 1, 0, 0, 0, -1)
"""ImageOrientationPatient as scanners write it."""

UID = "1.2.3.4"

File = tuple[str, bytes]


def distinct(*shape: int) -> NDArray[np.int16]:
    """Stored values of which no two are equal, so that each voxel can be found again."""
    return np.random.default_rng(len(shape)).permutation(np.prod(shape)).reshape(shape).astype(np.int16)


def ct_dataset(stored: NDArray[Any], position: ArrayLike = (-10, -20, -30), **attributes: Any) -> FileDataset:
    """One slice (rows, columns) of int or uint pixels. An attribute given as None is left out."""
    ds = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    ds.file_meta.TransferSyntaxUID = attributes.pop("syntax", ExplicitVRLittleEndian)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = attributes.pop("SOPClassUID", CTImageStorage)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID + ".1"
    ds.SeriesInstanceUID, ds.Modality, ds.ImageType = UID, "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientName, ds.PatientID = "Mustermann^Erika", "4711"
    ds.ImagePositionPatient = [f"{v:.9g}" for v in np.asarray(position, float)]
    ds.ImageOrientationPatient, ds.PixelSpacing = list(AXIAL), [0.75, 0.5]
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8 * stored.itemsize
    ds.HighBit = attributes.get("BitsStored", ds.BitsStored) - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    order = ">" if ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    ds.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    ds["PixelData"].VR = "OW"
    return with_attributes(ds, attributes)


def with_attributes(ds: Dataset, attributes: Mapping[str, Any]) -> Any:
    """The dataset with these attributes; None takes one away."""
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def saved(ds: FileDataset) -> bytes:
    file = io.BytesIO()
    dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def ct_file(stored: NDArray[Any], position: ArrayLike = (-10, -20, -30), **attributes: Any) -> bytes:
    return saved(ct_dataset(stored, position, **attributes))


def compressed(data: bytes) -> bytes:
    """PixelData of one frame of a compressed transfer syntax."""
    return encapsulate([data])


def normal_of(orientation: ArrayLike) -> NDArray[np.float64]:
    row, column = np.reshape(np.asarray(orientation, float), (2, 3))
    return np.cross(row, column)


def ct_files(
    stored: NDArray[Any],
    *,
    first: ArrayLike = (-10, -20, -30),
    orientation: ArrayLike = AXIAL,
    step_mm: float = 1.25,
    positions_mm: Iterable[float] | None = None,
    lean: ArrayLike = (0, 0, 0),
    **attributes: Any,
) -> list[File]:
    """A series (slices, rows, columns), at even steps along its normal or at `positions_mm` along it.

    `lean` (x, y, z) is how far the slices lie sideways for each mm along the normal: a tilted gantry.
    """
    along = [k * step_mm for k in range(len(stored))] if positions_mm is None else positions_mm
    attributes["ImageOrientationPatient"] = [f"{v:.10f}" for v in np.asarray(orientation, float)]
    places = [np.asarray(first, float) + mm * (normal_of(orientation) + np.asarray(lean, float)) for mm in along]
    return [
        (f"{k:04}.dcm", ct_file(plane, place, **attributes))
        for k, (plane, place) in enumerate(zip(stored, places, strict=True))
    ]


def enhanced_file(
    stored: NDArray[Any],
    positions: Iterable[ArrayLike],
    *,
    slopes: Iterable[float] | None = None,
    stack_ids: Iterable[str] | None = None,
    **attributes: Any,
) -> bytes:
    """The same as one Enhanced CT object: what slices share and what they do not in functional groups."""
    ds = ct_dataset(stored[0], **attributes, SOPClassUID=EnhancedCTImageStorage)
    ds.NumberOfFrames = len(stored)
    ds.PixelData = stored.tobytes()
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = ds.PixelSpacing, ds.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    frames = []
    n = len(stored)
    for place, slope, stack_id in zip(positions, slopes or [1] * n, stack_ids or ["1"] * n, strict=True):
        frame, position, rescale, content = Dataset(), Dataset(), Dataset(), Dataset()
        content.StackID = stack_id
        frame.FrameContentSequence = Sequence([content])
        position.ImagePositionPatient = [f"{v:.9g}" for v in np.asarray(place, float)]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, ds.RescaleIntercept, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Sequence([position]), Sequence([rescale])
        frames.append(frame)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, keyword)
    del ds.RescaleSlope, ds.RescaleIntercept
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    return saved(ds)


def read(files: Iterable[File]) -> Contents:
    contents = Contents()
    contents.add_all(files)
    return contents


def assembled(files: Iterable[File], **options: Any) -> Series:
    """The one series that the files hold."""
    contents = read(files)
    assert contents.all_damage() == []
    (slices,) = contents.slices.values()
    return assembly.assemble(slices, **{"min_slices": 3, **options})


def decoded(files: Iterable[File], **options: Any) -> Decoded:
    """The one series that the files hold, all its planes taken: what cannot be decoded is refused here."""
    found = assembled(files, **options).decode()
    _ = found.volume
    return found


def prepared(shape: tuple[int, int, int] = (60, 80, 100), spacing: tuple[float, float, float] = (1, 1, 1)) -> Prepared:
    """Tissue all over, a block of bone at the head end, on the patient's left, at the front; lungs as two boxes."""
    z, y, x = shape
    array = np.full(shape, -400, np.int16)
    array[z // 3 :, : y * 5 // 8, x // 2 :] = 1000
    mask = np.zeros(shape, np.uint8)
    mask[z // 4 : -z // 4, y // 4 : -y // 4, x // 8 : x * 3 // 8] = 1
    mask[z // 4 : -z // 4, y // 4 : -y // 4, -x * 3 // 8 : -x // 8] = 2
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*spacing, 1)
    return Prepared(Volume(array, affine), Lungs(Volume(mask, affine), 1.0, 1.0, ()))

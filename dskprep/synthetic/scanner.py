"""Synthetic patients as DICOM files, as a scanner would write them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import set_pixel_data
from pydicom.valuerep import format_number_as_ds

from dskprep import storage
from dskprep.synthetic.phantom import RESCALE_INTERCEPT, STORED_PADDING, Phantom, make_phantom
from dskprep.synthetic.readings import readings_xml
from dskprep.volume import Triple

ENCODINGS = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.RLELossless)
"""Transfer syntaxes that can be written."""


def series_files(
    phantom: Phantom, *, name: str, seed: int, transfer_syntax: str = uid.ExplicitVRLittleEndian
) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of each slice, as a scanner would write the phantom.

    The UIDs follow from `name`, `seed` and the grid, so the same arguments give the same bytes. The
    slices come bottom up; their file names are shuffled.

    Parameters
    ----------
    name
        Becomes the patient's id.
    transfer_syntax
        Explicit or implicit VR little endian, or RLE lossless.
    """
    if transfer_syntax not in ENCODINGS:
        raise ValueError(f"cannot write transfer syntax {transfer_syntax}, only {', '.join(ENCODINGS)}")
    volume = phantom.volume
    slice_mm, row_mm, column_mm = volume.spacing
    header = _patient_header(name, seed)
    grid = f"{volume.shape} {volume.spacing}"
    field_mm = min(volume.shape[1] * row_mm, volume.shape[2] * column_mm)
    _set(header, SeriesInstanceUID=_series_uid(phantom, name, seed), SeriesNumber=2, SeriesDescription="Chest axial")
    _set(header, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], ScanOptions="HELICAL MODE")
    _set(header, ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[_decimal(row_mm), _decimal(column_mm)])
    _set(header, SliceThickness=_decimal(slice_mm), SpacingBetweenSlices=_decimal(slice_mm))
    header.ReconstructionDiameter = _decimal(round(field_mm, 3))
    count = len(volume.array)
    numbers = np.random.default_rng([seed, 6]).permutation(count)
    for k, plane in enumerate(volume.array):
        x, y, z = volume.to_patient((k, 0, 0))
        header.SOPInstanceUID = _uid(name, seed, "slice", grid, str(k))
        header.InstanceNumber = count - k
        header.ImagePositionPatient = [_decimal(x), _decimal(y), _decimal(z)]
        header.SliceLocation = _decimal(z)
        header.XRayTubeCurrent = int(180 + 60 * math.cos(k / count * math.tau))
        yield f"IM{numbers[k]:05d}.dcm", _encode(header, plane, transfer_syntax)


def localizer_file(phantom: Phantom, *, name: str, seed: int) -> tuple[str, bytes]:
    """Return (file name, content) of a localizer: the phantom seen from the front, in its own series."""
    volume = phantom.volume
    slice_mm, _, column_mm = volume.spacing
    header = _patient_header(name, seed)
    series, sop = _uid(name, seed, "localizer series"), _uid(name, seed, "localizer")
    first = volume.to_patient((volume.shape[0] - 1, (volume.shape[1] - 1) / 2, 0))
    _set(header, SeriesInstanceUID=series, SeriesNumber=1, SeriesDescription="Localizer", ScanOptions="SCOUT MODE")
    _set(header, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SOPInstanceUID=sop, InstanceNumber=1)
    _set(header, ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=[_decimal(v) for v in first])
    header.PixelSpacing = [_decimal(slice_mm), _decimal(column_mm)]
    projection = np.maximum(volume.array[::-1], RESCALE_INTERCEPT).mean(axis=1)
    return "SCOUT001.dcm", _encode(header, np.rint(projection).astype(np.int16), uid.ExplicitVRLittleEndian)


def write_patients(
    target_url: str,
    count: int,
    *,
    seed: int = 0,
    spacing_mm: Triple = (3.0, 1.1, 1.1),
    shape: tuple[int, int, int] = (100, 320, 320),
    broken: bool = True,
    readings_url: str = "",
) -> list[str]:
    """Write `count` patients as <target>/<patient id>/<file>.dcm; return the ids.

    Like real data, they are not all alike. The first patient's folder also holds a localizer. Some have finer or
    coarser slices, a consolidation, one lung, or lie directly on the table. Existing files of the same names are
    replaced.

    Parameters
    ----------
    target_url
        A local folder, or a URL such as s3://bucket/scans.
    seed
        Patient number i has the seed `seed` + i.
    spacing_mm, shape
        The usual grid, (z, y, x).
    broken
        The last of two patients or more lacks a slice in the middle of the stack.
    readings_url
        Where to write <patient id>.xml as well: what four readers say of the nodules, as in LIDC-IDRI.
    """
    last = count - 1 if broken and count > 1 else None
    return [
        write_patient(
            index,
            target_url,
            seed=seed,
            spacing_mm=spacing_mm,
            shape=shape,
            broken=index == last,
            readings_url=readings_url,
        )
        for index in range(count)
    ]


def write_patient(
    index: int,
    target_url: str,
    *,
    seed: int = 0,
    spacing_mm: Triple = (3.0, 1.1, 1.1),
    shape: tuple[int, int, int] = (100, 320, 320),
    broken: bool = False,
    readings_url: str = "",
) -> str:
    """Write patient number `index` of the set that `write_patients` describes; return its id."""
    name = f"phantom-{index:03d}"
    slice_mm = round(spacing_mm[0] * {1: 0.8, 3: 1.25}.get(index % 5, 1.0), 4)
    phantom = make_phantom(
        seed=seed + index,
        spacing_mm=(slice_mm, *spacing_mm[1:]),
        shape=(round(shape[0] * spacing_mm[0] / slice_mm), *shape[1:]),
        remove_lung="left" if index % 12 == 8 else "none",
        consolidation=0.2 if index % 6 == 4 else 0.0,
        table_touches_back=index % 4 == 2,
    )
    files = list(series_files(phantom, name=name, seed=seed + index))
    if broken:
        del files[len(files) // 2]
    if index == 0:
        files.append(localizer_file(phantom, name=name, seed=seed + index))
    storage.write_many(storage.absolute(target_url), {f"{name}/{file}": content for file, content in files})
    if readings_url:
        xml = readings_xml(phantom, _series_uid(phantom, name, seed + index), seed=seed + index)
        storage.write_many(storage.absolute(readings_url), {f"{name}.xml": xml})
    return name


def _series_uid(phantom: Phantom, name: str, seed: int) -> str:
    return _uid(name, seed, "series", f"{phantom.volume.shape} {phantom.volume.spacing}")


def _uid(name: str, seed: int, *parts: str) -> str:
    return str(uid.generate_uid(entropy_srcs=["dskprep phantom", name, str(seed), *parts]))


def _decimal(value: float) -> str:
    """Return a number as DICOM's decimal string, of 16 characters at most (PS3.5 6.2)."""
    return format_number_as_ds(float(value))


def _set(header: Dataset, **values: Any) -> None:
    """Set elements by DICOM's keywords for them."""
    for keyword, value in values.items():
        setattr(header, keyword, value)


def _patient_header(name: str, seed: int) -> Dataset:
    """Return what all images of a patient's study share; its identity is plainly synthetic."""
    rng = np.random.default_rng([seed, 7])
    date, time = f"20200{rng.integers(1, 10)}{rng.integers(10, 29)}", f"{rng.integers(8, 18):02d}1530.000"
    sex, age, weight = ("F", "M")[rng.integers(2)], rng.integers(40, 80), rng.integers(55, 95)
    study, frame = _uid(name, seed, "study"), _uid(name, seed, "frame of reference")
    header = Dataset()
    for kind in ("Study", "Series", "Acquisition", "Content", "InstanceCreation"):
        _set(header, **{f"{kind}Date": date, f"{kind}Time": time})
    _set(header, SpecificCharacterSet="ISO_IR 100", SOPClassUID=uid.CTImageStorage, Modality="CT")
    _set(header, StudyInstanceUID=study, StudyID=str(seed), StudyDescription="Synthetic chest CT", AcquisitionNumber=1)
    _set(header, FrameOfReferenceUID=frame, PositionReferenceIndicator="SN", PatientPosition="HFS")
    _set(header, PatientID=name, PatientName=f"Phantom^N{seed}", PatientBirthDate="", PatientSex=sex)
    _set(header, PatientAge=f"{age:03d}Y", PatientWeight=str(weight), BodyPartExamined="CHEST")
    _set(header, Manufacturer="dskprep", ManufacturerModelName="Phantom", DeviceSerialNumber="0")
    _set(header, SoftwareVersions="synthetic", InstitutionName="SYNTHETIC", StationName="PHANTOM")
    _set(header, ReferringPhysicianName="", AccessionNumber=f"SYN{seed:06d}", ProtocolName="Chest")
    _set(header, KVP=120, XRayTubeCurrent=200, ExposureTime=500, Exposure=100, GeneratorPower=24, FilterType="BODY")
    _set(header, DistanceSourceToDetector=949, DistanceSourceToPatient=541, DataCollectionDiameter=500)
    _set(header, GantryDetectorTilt=0, TableHeight=150, RotationDirection="CW", RevolutionTime=0.5)
    _set(header, SingleCollimationWidth=0.625, TotalCollimationWidth=40.0, SpiralPitchFactor=0.984, FocalSpots="0.7")
    _set(header, RescaleIntercept=RESCALE_INTERCEPT, RescaleSlope=1, RescaleType="HU", ConvolutionKernel="STANDARD")
    _set(header, BurnedInAnnotation="NO", PixelPaddingValue=STORED_PADDING)
    _set(header, WindowCenter=[40, -600], WindowWidth=[400, 1500])
    procedure = Dataset()
    _set(procedure, CodeValue="CTCHEST", CodingSchemeDesignator="99PHANTOM", CodeMeaning="CT of the chest")
    header.ProcedureCodeSequence = [procedure]
    private = header.private_block(0x0009, "DSKPREP_PHANTOM", create=True)
    private.add_new(0x01, "LO", "synthetic, of no person")
    private.add_new(0x02, "SL", seed)
    return header


def _encode(header: Dataset, hu: NDArray[np.int16], transfer_syntax: str) -> bytes:
    """Put the pixels of one image, int16 HU (y, x), into the header and write it as a DICOM file."""
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid.UID(transfer_syntax)
    set_pixel_data(header, hu - RESCALE_INTERCEPT, "MONOCHROME2", 16, generate_instance_uid=False)
    if transfer_syntax == uid.RLELossless:
        header.compress(uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    content = io.BytesIO()
    pydicom.dcmwrite(content, header, enforce_file_format=True)
    return content.getvalue()

"""DICOM files to slices: what is one, what its header says, and what is done with damage."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pydicom
import pytest
from builders import UID, ct_dataset, ct_file, enhanced_file, read, saved
from conftest import DataFolder
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    MPEG2MPML,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RLELossless,
    RTDoseStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

from dskprep.dicom import header
from dskprep.dicom.contents import Contents
from dskprep.dicom.slices import Slice
from dskprep.errors import Refusal

PIXELS = np.arange(12 * 16, dtype=np.int16).reshape(12, 16)


def slice_of(content: bytes) -> Slice:
    contents = read([("IM1.dcm", content)])
    assert contents.all_damage() == []
    assert contents.aside == []
    ((one,),) = contents.slices.values()
    return one


def damage_of(content: bytes, name: str = "IM1.dcm", frame: str = "") -> Refusal:
    contents = read([(name, content)])
    assert contents.slices == {}
    assert contents.aside == []
    (refusal,) = contents.all_damage()
    assert refusal.message.startswith(f"{name}{frame}: ")
    assert "\n" not in refusal.message
    assert len(refusal.message) < 400
    return refusal


def aside_of(content: bytes, name: str = "IM1.dcm") -> tuple[str, str]:
    contents = read([(name, content)])
    assert (contents.slices, contents.all_damage()) == ({}, [])
    (aside,) = contents.aside
    assert aside.name == name
    return aside.kind, aside.detail


# What a slice is


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_a_slice_has_its_place_rescale_and_pixels(syntax: str) -> None:
    found = slice_of(
        ct_file(PIXELS, (1.5, -2, 3e1), syntax=syntax, PixelSpacing=[0.7, 0.6], RescaleSlope="2.5", RescaleIntercept=-9)
    )
    assert found.plane.position == (1.5, -2, 30)
    assert (found.plane.row, found.plane.column) == ((1, 0, 0), (0, 1, 0))
    assert (found.plane.shape, found.plane.pixel_mm) == ((12, 16), (0.7, 0.6))
    assert (found.slope, found.intercept) == (2.5, -9)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    assert found.data[: PIXELS.nbytes] == PIXELS.astype(f"{order}i2").tobytes()


@pytest.mark.parametrize("vr", ["OW", "OB"])
def test_bytes_in_big_endian_words_are_in_the_order_of_pixels(vr: str) -> None:
    pixels = np.arange(96, dtype=np.uint8).reshape(8, 12)
    dataset = ct_dataset(pixels, syntax=ExplicitVRBigEndian)
    dataset.PixelData = pixels.reshape(-1, 2)[:, ::-1].tobytes() if vr == "OW" else pixels.tobytes()
    dataset["PixelData"].VR = vr
    content = saved(dataset)
    np.testing.assert_array_equal(pydicom.dcmread(io.BytesIO(content)).pixel_array, pixels)  # as pydicom has them
    assert bytes(slice_of(content).data) == pixels.tobytes()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_file_without_preamble_and_meta_header_is_read(syntax: str) -> None:
    dataset = ct_dataset(PIXELS, syntax=syntax)
    dataset.remove_private_tags()
    plain = Dataset(dataset)
    file = io.BytesIO()
    plain.save_as(file, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    found = slice_of(file.getvalue())
    assert found.pixel_format.transfer_syntax == syntax
    assert found.data == PIXELS.tobytes()


def test_facts_hold_only_what_may_leave_the_file() -> None:
    found = slice_of(
        ct_file(PIXELS, Manufacturer="Maker", ConvolutionKernel=["B30f", "2"], KVP=120, ContrastBolusAgent="Ultravist",
                InstitutionName="Hospital", PatientBirthDate="19501231", StudyDescription="Mustermann")
    )  # fmt: skip
    assert found.facts["manufacturer"] == "Maker"
    assert found.facts["kernel"] == "B30f\\2"
    assert found.facts["contrast"] == "yes"
    assert found.facts["transfer_syntax"] == ExplicitVRLittleEndian
    for secret in ("Mustermann", "4711", "Hospital", "1950"):
        assert secret not in repr(found.facts)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("vr", "value", "dtype", "expected"),
    [
        ("SS", -2000, "i2", -2000),
        ("US", 63536, "i2", -2000),  # the wrong VR, as LIDC-IDRI-0001 has it
        ("US", 63536, "u2", 63536),
        ("SS", -2000, "u2", 63536),
        ("US", 0, "i2", 0),
    ],
)
def test_declared_padding_is_the_stored_value(syntax: str, vr: str, value: int, dtype: str, expected: int) -> None:
    dataset = ct_dataset(PIXELS.astype(dtype), syntax=syntax)
    dataset.add_new("PixelPaddingValue", vr, value)
    assert slice_of(saved(dataset)).padding == (expected, expected)
    dataset.add_new("PixelPaddingRangeLimit", "US", 5)
    assert slice_of(saved(dataset)).padding == (min(5, expected), max(5, expected))


def test_a_range_limit_alone_is_no_padding() -> None:
    dataset = ct_dataset(PIXELS)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -5)
    assert slice_of(saved(dataset)).padding is None
    dataset.add_new("PixelPaddingValue", "SS", None)
    assert slice_of(saved(dataset)).padding is None


def test_slices_are_kept_by_series() -> None:
    files = [(f"{k}", ct_file(PIXELS, SeriesInstanceUID=f"1.2.{k % 2}")) for k in range(5)]
    assert {uid: len(slices) for uid, slices in read(files).slices.items()} == {"1.2.0": 3, "1.2.1": 2}


# What is no slice


@pytest.mark.parametrize(
    ("sop_class", "detail"),
    [(ComputedRadiographyImageStorage, "Computed Radiography Image Storage"), ("1.2.3.99", "1.2.3.99")],
)
def test_other_objects_are_set_aside(sop_class: str, detail: str) -> None:
    assert aside_of(ct_file(PIXELS, SOPClassUID=sop_class)) == ("not-ct", detail)


@pytest.mark.parametrize(
    "sop_class", [EncapsulatedPDFStorage, SegmentationStorage, RTStructureSetStorage, RTDoseStorage]
)
def test_what_is_no_image_is_called_so(sop_class: str) -> None:
    assert aside_of(ct_file(PIXELS, SOPClassUID=sop_class, PixelData=None, Rows=None))[0] == "no-image"


def test_a_dicomdir_is_set_aside() -> None:
    dataset = ct_dataset(PIXELS, SOPClassUID=MediaStorageDirectoryStorage)
    del dataset.SOPClassUID
    file = io.BytesIO()
    dataset.save_as(file)
    assert aside_of(file.getvalue(), "DICOMDIR") == ("not-ct", "Media Storage Directory Storage")


def test_a_dicomdir_says_nothing_against_slices_without_a_uid_of_their_series() -> None:
    directory = io.BytesIO()
    dataset = ct_dataset(PIXELS, SOPClassUID=MediaStorageDirectoryStorage, SeriesInstanceUID="")
    del dataset.PixelData
    dataset.save_as(directory)
    slices = [(f"{k}", ct_file(PIXELS, (0, 0, k), SeriesInstanceUID="")) for k in range(3)]
    contents = read([*slices, ("DICOMDIR", directory.getvalue())])
    assert [aside.kind for aside in contents.aside] == ["not-ct"]
    assert contents.flaw("") is None
    other = ct_file(PIXELS, SOPClassUID=MRImageStorage, SeriesInstanceUID="")
    assert read([*slices, ("x", other)]).flaw("") is not None


def test_what_slices_keep_in_memory_counts_all_that_their_files_hold() -> None:
    dataset = ct_dataset(PIXELS)
    dataset.add_new(0xFFFCFFFC, "OB", bytes(1 << 20))
    whole = saved(dataset)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    for content in (gzip.compress(whole), bz2.compress(whole), saved(dataset)):
        assert len(content) < 20_000
        contents = read([("1.dcm", content)])
        assert contents.held_bytes >= 1 << 20
        assert not contents.all_damage()


@pytest.mark.parametrize(
    "image_type",
    [
        ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ["DERIVED", "SECONDARY", "OTHER", "DOSE_INFO"],
        "LOCALIZER",
        ["ORIGINAL ", "PRIMARY ", "LOCALIZER ", "CT_SOM5 TOP"],
    ],
)
def test_a_localizer_is_set_aside(image_type: Any) -> None:
    assert aside_of(ct_file(PIXELS, ImageType=image_type))[0] == "localizer"


@pytest.mark.parametrize(("vr", "value"), [("US", 7), ("DS", "1.5"), ("FD", 2.5), ("SQ", []), ("OB", b"ab")])
def test_a_type_of_image_that_is_no_text_says_nothing(vr: str, value: Any) -> None:
    dataset = ct_dataset(PIXELS)
    dataset.add_new("ImageType", vr, value)
    slice_of(saved(dataset))


@pytest.mark.parametrize("vr", ["US", "UL", "LT"])
def test_pixels_that_are_no_bytes_are_damage(vr: str) -> None:
    content = ct_file(PIXELS, SOPInstanceUID=f"{UID}.2")
    at = content.index(b"\xe0\x7f\x10\x00OW")
    value = content[at + 12 :]
    short = content[:at] + b"\xe0\x7f\x10\x00" + vr.encode() + len(value).to_bytes(2, "little") + value
    for whole in (short, short[132:]):  # and without its mark and File Meta Information, which pydicom reads
        contents = read([("IM1.dcm", whole)])
        assert len(contents.slices) + len(contents.all_damage()) == 1


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n" + bytes(500), bytes(range(256)) * 40])
def test_other_files_are_set_aside(content: bytes) -> None:
    assert aside_of(content, "README.txt") == ("not-dicom", "")


# Damage


GOOD = [(f"a/IM{k:04}.dcm", ct_file(PIXELS, (0, 0, k))) for k in range(12)]


def in_syntax(syntax: str) -> bytes:
    dataset = ct_dataset(PIXELS)
    if syntax == RLELossless:
        dataset.compress(syntax)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    return saved(dataset)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("n_bytes", [1, 8, 17, 2048])
def test_zeros_that_fill_a_whole_file_up_to_a_block_do_no_harm(n_bytes: int, syntax: str) -> None:
    content = in_syntax(syntax)
    whole, padded = slice_of(content), slice_of(content + bytes(n_bytes))
    assert (padded.data, padded.plane) == (whole.data, whole.plane)


@pytest.mark.parametrize("n_digits", [1, 4, 9])
def test_a_slice_that_is_cut_within_its_series_uid_may_be_of_each_series_that_begins_so(n_digits: int) -> None:
    cut = ct_file(PIXELS, (0, 0, 12))
    at = cut.index(b"\x20\x00\x0e\x00UI") + 8
    contents = read([*GOOD, ("a/IM0012.dcm", cut[: at + n_digits])])
    refusal = contents.flaw(UID)
    assert refusal is not None
    assert (refusal.reason, refusal.message[:13]) == ("truncated", "a/IM0012.dcm:")
    assert contents.uids() == [UID]


@pytest.mark.parametrize("representation", [2, 0x2020, 0xFFFF])
def test_pixels_that_are_neither_signed_nor_unsigned_are_refused(representation: int) -> None:
    refusal = damage_of(ct_file(PIXELS, PixelRepresentation=representation))
    assert refusal.reason == "undecodable-pixels"
    assert f"expected PixelRepresentation 0 or 1 (signed), found {representation}" in refusal.message


def test_zeros_instead_of_elements_are_not_read_one_by_one() -> None:
    n_read = 0
    for content in (bytes(10_000_000), ct_file(PIXELS)[:400] + bytes(10_000_000)):
        with pytest.raises(ValueError, match="zeros stand before byte"), counted_reads() as reads:
            header.read_attributes(content)
        n_read += len(reads)
    assert n_read < 1000


@contextlib.contextmanager
def counted_reads() -> Iterator[list[int]]:
    """The sizes that are read of a file's bytes."""
    sizes: list[int] = []

    class Counting(header._Elements):
        def read(self, size: int | None = -1, /) -> bytes:
            sizes.append(size or 0)
            return super().read(size)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(header, "_Elements", Counting)
        yield sizes


@pytest.mark.parametrize("content", [b"", b"\n", b"no slice", bytes(5000), b"\x89PNG\r\n" + bytes(500)])
@pytest.mark.parametrize(
    "name",
    [
        "x.dcm",
        "a/IM0012",
        "IM0012.tmp",
        "IM12.dcm.part",
        "im0012.dcm.gz",
        "a/b/IM1.IMA",
        "IM0012.crdownload",
        "x.dcm.6eF9Bd2a",
    ],
)
def test_what_is_named_as_a_slice_and_cannot_be_read_may_have_been_one(name: str, content: bytes) -> None:
    contents = read([*GOOD, (name, content)])
    refusal = contents.flaw(UID)
    assert refusal is not None
    assert (refusal.reason, refusal.message.startswith(f"{name}: ")) == ("truncated", True)


@pytest.mark.parametrize("content", [b"", bytes(5000)])
def test_where_the_slices_have_no_name_in_common_any_file_may_have_been_one(content: bytes) -> None:
    """As in an archive that calls its objects by a number of 8 hexadecimal digits."""
    numbers = [f"{k * 2654435761 % 2**32:08X}" for k in range(1, 14)]
    slices = [(number, content) for number, (_, content) in zip(numbers, GOOD, strict=False)]
    refusal = read([*slices, (numbers[12], content)]).flaw(UID)
    assert refusal is not None
    assert refusal.message.startswith(f"{numbers[12]}: ")
    for other in ("notes.txt", "LICENSE", "x.dat"):
        assert read([*slices, (other, content)]).flaw(UID) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"seen by a reader, no finding", bytes(5000), b"\x08\x00abc"])
@pytest.mark.parametrize(
    "name",
    "notes _SUCCESS LOCKFILE manifest a/.lock x.tcia x.mrml x.mat x.hdr x.cfg x.roi x.bak x.dat x.bin x.avi x.tmp "
    "IM0012.txt IM0012.json Thumbs.db".split(),
)
def test_stray_files_beside_a_series_do_it_no_harm(name: str, content: bytes) -> None:
    contents = read([*GOOD, (name, content)])
    assert contents.flaw(UID) is None
    assert contents.aside == [(name, "not-dicom", "")]


@pytest.mark.parametrize("name", ["notes", "x.txt", "x.tmp", "IM0012.json"])
def test_what_begins_as_a_slice_and_is_cut_refuses_whatever_its_name(name: str) -> None:
    contents = read([*GOOD, (name, ct_file(PIXELS, (0, 0, 12))[:400])])
    refusal = contents.flaw(UID)
    assert refusal is not None
    assert refusal.message.startswith(f"{name}: ")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["IM0012.dcm.gz", "IM0012.dcm"])  # a store may have compressed it behind its name
def test_a_compressed_slice_is_read(name: str, compress: Callable[[bytes], bytes]) -> None:
    content = ct_file(PIXELS, (0, 0, 12))
    assert slice_of(compress(content)).data == slice_of(content).data
    cut = read([*GOOD, (name, compress(content)[:-20])]).flaw(UID)
    assert cut is not None
    assert "cannot be decompressed" in cut.message or "cannot be read" in cut.message


def test_a_compressed_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(ct_file(PIXELS)[:-8] + bytes(300 << 20), 1)
    assert "more than 256 MiB" in damage_of(bomb).message


def test_a_compressed_file_of_another_kind_is_set_aside() -> None:
    assert read([*GOOD, ("mask.nii.gz", gzip.compress(bytes(2000)))]).flaw(UID) is None


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
def test_pixels_that_are_no_whole_numbers_are_called_so(keyword: str) -> None:
    content = ct_file(PIXELS, PixelData=None, **{keyword: PIXELS.astype(np.float64).tobytes()})
    assert (damage_of(content).reason, keyword in damage_of(content).message) == ("undecodable-pixels", True)


def test_nested_sequences_without_end_are_called_so() -> None:
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    bomb = ct_file(PIXELS)[:-400] + (b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff" + item) * 50_000
    assert read([*GOOD, ("IM0012.dcm", bomb)]).flaw(UID) is not None


def test_a_slice_without_class_and_series_is_one_by_its_modality() -> None:
    dataset = ct_dataset(PIXELS)
    dataset.SOPClassUID = dataset.SOPInstanceUID = dataset.SeriesInstanceUID = ""
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=False)
    assert slice_of(file.getvalue()).plane.shape == (12, 16)


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless])
def test_a_file_cut_anywhere_never_passes(syntax: str) -> None:
    content = in_syntax(syntax)
    slice_of(content)
    end = len(content) - (8 if syntax == RLELossless else 0)  # a lost sequence delimiter costs nothing
    for length in range(132, end):
        contents = read([("IM1", content[:length])])
        assert contents.slices == {}, length
        assert contents.aside == [], length
        (refusal,) = contents.all_damage()
        assert refusal.reason in ("truncated", "missing-attribute"), length


@pytest.mark.parametrize(
    ("keyword", "reason"),
    [
        ("ImagePositionPatient", "missing-attribute"),
        ("ImageOrientationPatient", "missing-attribute"),
        ("PixelSpacing", "missing-attribute"),
        ("Rows", "missing-attribute"),
        ("Columns", "missing-attribute"),
        ("BitsAllocated", "missing-attribute"),
        ("PixelRepresentation", "missing-attribute"),
        ("PixelData", "truncated"),
    ],
)
def test_what_geometry_and_hu_need_must_be_there(keyword: str, reason: str) -> None:
    refusal = damage_of(ct_file(PIXELS, **{keyword: None}))
    assert refusal.reason == reason
    assert keyword in refusal.message or keyword == "PixelData"


@pytest.mark.parametrize("value", [b"abc", b"nan", b"-inf", b"1e999", b"1\\2", b"\xff\xfe\x00"])
@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"])
def test_values_that_are_no_numbers_are_refused(keyword: str, value: bytes) -> None:
    content = ct_file(
        PIXELS, **{keyword: ["7.7777777"] * {"ImagePositionPatient": 3, "PixelSpacing": 2}.get(keyword, 1)}
    )
    damaged = content.replace(b"7.7777777", value.ljust(9), 1)
    assert damage_of(damaged).reason in ("missing-attribute", "not-hu")


@pytest.mark.parametrize("keyword", ["KVP", "AcquisitionNumber", "SliceThickness"])
def test_nonsense_in_an_attribute_that_is_not_needed_does_no_harm(keyword: str) -> None:
    content = ct_file(PIXELS, **{keyword: 77777777}).replace(b"77777777", b"1.5.x\\\xff ")
    assert slice_of(content).plane.position == (-10, -20, -30)


def test_an_element_that_cannot_be_parsed_and_is_not_needed_does_no_harm() -> None:
    content = ct_file(PIXELS, KVP=120)
    kvp = b"\x18\x00\x60\x00DS"
    assert kvp in content
    found = slice_of(content.replace(kvp, kvp[:4] + b"QQ"))
    assert (found.plane.position, found.facts["kvp"]) == ((-10, -20, -30), "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "not-hu"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "not-hu"),
        ({"RescaleType": "MGML"}, "not-hu"),
        ({"ModalityLUTSequence": [Dataset()], "RescaleSlope": None, "RescaleIntercept": None}, "not-hu"),
        ({"RescaleType": "HU_MOD"}, "not-hu"),
        ({"RescaleSlope": 0}, "not-hu"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "mixed-geometry"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "mixed-geometry"),
        ({"ImageOrientationPatient": [1e300, 0, 0, -1e300, 1, 0]}, "mixed-geometry"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "missing-attribute"),
        ({"PixelSpacing": [0, 1]}, "mixed-geometry"),
        ({"PixelSpacing": [-0.7, 0.7]}, "mixed-geometry"),
        ({"PixelSpacing": [1e-200, 0.7]}, "mixed-geometry"),
        ({"PixelSpacing": [0.7, 1e9]}, "mixed-geometry"),
        ({"ImagePositionPatient": ["1e300", 0, 0]}, "mixed-geometry"),
        ({"Rows": 65535, "Columns": 65535}, "undecodable-pixels"),
        ({"Rows": 9999, "Columns": 9999}, "truncated"),
        ({"Rows": 0}, "undecodable-pixels"),
        ({"BitsStored": 17, "HighBit": 16}, "undecodable-pixels"),
        ({"BitsAllocated": 0, "BitsStored": 0, "HighBit": 0}, "undecodable-pixels"),
        ({"NumberOfFrames": 0}, "undecodable-pixels"),
        ({"NumberOfFrames": -3}, "undecodable-pixels"),
        ({"NumberOfFrames": 2_000_000_000}, "truncated"),
        ({"syntax": MPEG2MPML, "PixelData": b"\xfe\xff\x00\xe0\x00\x00\x00\x00"}, "missing-decoder"),
        ({"syntax": RLELossless, "PixelData": b"\xfe\xff\x00\xe0\x00\x00\x00\x00"}, "truncated"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_impossible_headers_are_refused(changes: dict[str, Any], reason: str) -> None:
    assert damage_of(ct_file(PIXELS, **changes)).reason == reason


@pytest.mark.parametrize("rescale_type", ["HU", "hu ", "HOUNSFIELD", "Houndsfield Unit", None])
def test_hu_by_other_names(rescale_type: str | None) -> None:
    attributes = {} if rescale_type is None else {"RescaleType": rescale_type}
    assert slice_of(ct_file(PIXELS, **attributes)).intercept == -1024


@pytest.mark.parametrize(
    ("attributes", "doubt"),
    [
        ({"RescaleType": "US"}, "RescaleType US"),
        ({"RescaleType": "normalized"}, "RescaleType NORMALIZED"),
        ({"RescaleSlope": None}, "no RescaleSlope"),
        ({"RescaleIntercept": None}, "no RescaleIntercept"),
        ({"RescaleType": "HU"}, ""),
    ],
)
def test_a_header_that_leaves_open_whether_values_are_hu_says_so(attributes: dict[str, Any], doubt: str) -> None:
    assert slice_of(ct_file(PIXELS, **attributes)).doubt == doubt


@pytest.mark.parametrize(
    ("image_type", "is_derived"),
    [
        (["DERIVED", "SECONDARY", "MPR", "CSA MPR"], True),
        (["DERIVED", "SECONDARY", "PROJECTION IMAGE", "MIP"], True),
        (["DERIVED ", "SECONDARY ", "AXIAL ", "MPR ", "1"], True),
        (["DERIVED", "PRIMARY", "AXIAL"], False),  # compressed with loss, as a rule
        (["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], False),
    ],
)
def test_slices_computed_from_others_say_so(image_type: list[str], is_derived: bool) -> None:
    assert slice_of(ct_file(PIXELS, ImageType=image_type)).is_derived is is_derived


@pytest.mark.parametrize(("position", "has_overlay"), [(0, False), (12, True)])
def test_an_overlay_in_the_pixels_is_seen(position: int, has_overlay: bool) -> None:
    dataset = ct_dataset(PIXELS, BitsStored=12)
    dataset.add_new(0x60020102, "US", position)
    dataset.add_new(0x60040102, "US", 0)
    assert slice_of(saved(dataset)).pixel_format.has_overlay is has_overlay


@pytest.mark.slow
def test_a_deflated_bomb_is_not_inflated() -> None:
    head, tail = ct_file(PIXELS, syntax=DeflatedExplicitVRLittleEndian), zlib.compressobj(9, wbits=-15)
    mib = bytes(1 << 20)
    start = head.index(DeflatedExplicitVRLittleEndian.encode()) + 22
    bomb = head[:start] + b"".join(tail.compress(mib) for _ in range(600)) + tail.flush()
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    refusal = damage_of(bomb)
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()
    assert refusal.reason == "truncated"
    assert "inflate to more than 256 MiB" in refusal.message


def test_damage_is_kept_with_its_series_and_the_other_series_is_read() -> None:
    files = [
        ("a", ct_file(PIXELS, SeriesInstanceUID="1.2.1")),
        ("b", ct_file(PIXELS, SeriesInstanceUID="1.2.2", PixelSpacing=None)),
        ("c", ct_file(PIXELS, SeriesInstanceUID="1.2.2", Rows=None)),
    ]
    contents = read(files)
    assert list(contents.slices) == ["1.2.1"]
    assert {uid: refusal.message for uid, refusal in contents.damage.items()} == {
        "1.2.2": "b: expected PixelSpacing, found none"
    }


WHOLE = ct_file(PIXELS, PixelPaddingValue=-5, ConvolutionKernel="B30f", AcquisitionNumber=3, KVP=120)
WHOLE_ENHANCED = enhanced_file(np.stack([PIXELS, PIXELS]), [(0, 0, 0), (0, 0, 1)])


@pytest.mark.slow
@pytest.mark.parametrize("whole", [WHOLE, WHOLE_ENHANCED])
@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_damaged_byte_raises(whole: bytes, data: st.DataObject) -> None:
    content = bytearray(whole)
    places = st.tuples(st.integers(128, len(whole) - PIXELS.nbytes), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = value
    contents = read([("IM1", bytes(content))])
    n_slices = sum(map(len, contents.slices.values()))
    assert bool(n_slices) + len(contents.all_damage()) + len(contents.aside) == 1


# Enhanced CT


def test_a_frame_takes_its_attributes_from_its_own_group_then_the_shared_one() -> None:
    stored = np.stack([PIXELS, PIXELS + 1, PIXELS + 2])
    contents = read([("E", enhanced_file(stored, [(0, 0, 5), (0, 0, 9), (0, 0, 7)], slopes=[1, 2, 0.5]))])
    (slices,) = contents.slices.values()
    assert [s.name for s in slices] == ["E[0]", "E[1]", "E[2]"]
    assert [s.plane.position for s in slices] == [(0, 0, 5), (0, 0, 9), (0, 0, 7)]
    assert [s.slope for s in slices] == [1, 2, 0.5]
    assert {s.plane.pixel_mm for s in slices} == {(0.75, 0.5)}
    assert [s.data for s in slices] == [plane.tobytes() for plane in stored]


def test_an_enhanced_object_says_kernel_and_voltage_in_groups_of_its_frames() -> None:
    whole = pydicom.dcmread(io.BytesIO(enhanced_file(np.stack([PIXELS] * 3), [(0, 0, k) for k in range(3)])))
    for frame, kernel in zip(whole.PerFrameFunctionalGroupsSequence, ("B30f", "B30f", "B70f"), strict=True):
        reconstruction = Dataset()
        reconstruction.ConvolutionKernel, reconstruction.ReconstructionDiameter = kernel, "350"
        frame.CTReconstructionSequence = [reconstruction]
    shared, details = whole.SharedFunctionalGroupsSequence[0], Dataset()
    details.KVP, shared.PixelMeasuresSequence[0].SliceThickness = "120", "1.5"
    shared.CTXRayDetailsSequence = [details]
    (slices,) = read([("E", saved(whole))]).slices.values()
    assert [s.facts["kernel_class"] for s in slices] == ["soft", "soft", "sharp"]
    names = ("kvp", "slice_thickness_mm", "reconstruction_diameter_mm", "transfer_syntax")
    assert [slices[0].facts[name] for name in names] == ["120", "1.5", "350", ExplicitVRLittleEndian]


def test_a_missing_functional_group_is_a_missing_attribute() -> None:
    content = enhanced_file(np.stack([PIXELS] * 3), [(0, 0, k) for k in range(3)])
    position_sequence = b"\x20\x00\x13\x91SQ"
    refusal = damage_of(content.replace(position_sequence, b"\x20\x00\x13\x99SQ"), frame="[0]")
    assert (refusal.reason, "ImagePositionPatient" in refusal.message) == ("missing-attribute", True)


def test_fewer_frames_than_announced_are_truncated() -> None:
    content = enhanced_file(np.stack([PIXELS] * 3), [(0, 0, k) for k in range(3)], SeriesInstanceUID=UID)
    assert damage_of(content[:-200]).reason == "truncated"


# Real files


def outcome(data_folder: DataFolder, name: str) -> Contents:
    return read([(name.rpartition("/")[2], (data_folder.tricky / name).read_bytes())])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "detail"),
    [
        ("scout_ffp/TCGA-D1-A0ZP_1-1.dcm", "localizer", "CT Image Storage"),
        ("mixed_philips_study/S1000/I10", "localizer", "CT Image Storage"),
        ("mixed_philips_study/S1000/DIRFILE", "not-ct", "Media Storage Directory Storage"),
        ("mixed_philips_study/S4010/I30", "not-ct", "Secondary Capture Image Storage"),
        ("fodicom_a/GH1728.dcm", "not-ct", "Secondary Capture Image Storage"),
        ("fodicom_a/GH179A.dcm", "not-ct", "Secondary Capture Image Storage"),
        ("pydicom_misc/MR_truncated.dcm", "not-ct", "MR Image Storage"),
        ("pydicom_misc/rtplan_truncated.dcm", "no-image", "RT Plan Storage"),
        ("pydicom_misc/test-SR.dcm", "no-image", "Comprehensive SR Storage"),
        ("pydicom_misc/badVR.dcm", "no-image", "RT Dose Storage"),
        ("pydicom_misc/image_dfl.dcm", "not-ct", "Secondary Capture Image Storage"),
        ("pydicom_misc/ExplVR_BigEnd.dcm", "not-ct", "Ultrasound Image Storage"),
        ("pydicom_misc/ExplVR_LitEndNoMeta.dcm", "no-image", "RT Ion Plan Storage"),
        ("pydicom_misc/README.txt", "not-dicom", ""),
        ("pydicom_misc/test1.json", "not-dicom", ""),
        ("pydicom_misc/zipMR.gz", "not-ct", "MR Image Storage"),
    ],
)
def test_real_files_that_are_no_slices_are_set_aside(
    data_folder: DataFolder, name: str, kind: str, detail: str
) -> None:
    contents = outcome(data_folder, name)
    assert (contents.slices, contents.all_damage()) == ({}, [])
    assert [(a.kind, a.detail) for a in contents.aside] == [(kind, detail)]


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("CT_small.dcm", (1, 0, 0), (0, 1, 0)),
        ("explicit_VR-UN.dcm", (1, 0, 0), (0, -1, 0)),
        ("bad_sequence.dcm", None, None),
        ("J2K_pixelrep_mismatch.dcm", None, None),
    ],
)
def test_odd_real_slices_are_read(data_folder: DataFolder, name: str, row: Any, column: Any) -> None:
    contents = outcome(data_folder, f"pydicom_misc/{name}")
    ((found,),) = contents.slices.values()
    if row:
        assert (found.plane.row, found.plane.column) == (row, column)


def test_a_real_enhanced_ct_that_is_not_in_hu_says_so(data_folder: DataFolder) -> None:
    ((found, *_),) = outcome(data_folder, "pydicom_misc/eCT_Supplemental.dcm").slices.values()
    assert found.doubt == "RescaleType US"

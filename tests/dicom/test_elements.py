"""The fast way to a header finds what pydicom's plain reader finds, or nothing."""

from __future__ import annotations

import random
import warnings

import mutations
import numpy as np
import pydicom
import pytest
from builders import ct_dataset, ct_file, distinct, enhanced_file, saved
from conftest import DataFolder
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dskprep.dicom import header as attributes
from dskprep.dicom.elements import find_elements

CASES = 2000


def outcome(header: attributes.Attributes) -> str:
    """All that is used of a header, NaN equal to itself."""
    pixels = bytes(header.pop("PixelData", None) or b"")
    values = [(keyword, value) for keyword, value in header.items() if keyword not in ("", "SpecificCharacterSet")]
    return repr(sorted(values)) + pixels.hex()


def assert_same(content: bytes) -> bool:
    """Whether the fast way found anything; if it did, pydicom found the same."""
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        found = attributes._plain_attributes(content)
        if found is None:
            return False
        assert outcome(found) == outcome(attributes._any_attributes(content))
    return True


def nested(*, is_undefined: bool) -> bytes:
    """A file with sequences within sequences before its pixels, of stated or undefined lengths."""
    inner, outer = Dataset(), Dataset()
    inner.CodeValue = "ITEM_END \ufffe"[:8]
    inner.is_undefined_length_sequence_item = is_undefined
    outer.PurposeOfReferenceCodeSequence = Sequence([inner, Dataset()])
    outer["PurposeOfReferenceCodeSequence"].is_undefined_length = is_undefined
    outer.is_undefined_length_sequence_item = is_undefined
    ds = ct_dataset(distinct(4, 6), ReferencedImageSequence=Sequence([outer, outer]))
    ds["ReferencedImageSequence"].is_undefined_length = is_undefined
    return saved(ds)


PLAIN = {
    "explicit": ct_file(distinct(4, 6)),
    "unsigned, padded": ct_file(distinct(4, 6).astype(np.uint16), PixelPaddingValue=63536, BitsStored=16),
    "signed, padded": ct_file(distinct(4, 6), PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900),
    "implicit": ct_file(distinct(4, 6), syntax=ImplicitVRLittleEndian, PixelPaddingValue=-2000),
    "implicit, unsigned": ct_file(distinct(4, 6).astype("u2"), syntax=ImplicitVRLittleEndian, PixelPaddingValue=63536),
    "other letters": ct_file(distinct(4, 6), SpecificCharacterSet="ISO_IR 192", Manufacturer="Ünlü 医"),
    "sequences": nested(is_undefined=False),
    "sequences of undefined length": nested(is_undefined=True),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_read_the_fast_way(name: str) -> None:
    assert assert_same(PLAIN[name])


@pytest.mark.parametrize(
    "content",
    [
        ct_file(distinct(4, 6), syntax=DeflatedExplicitVRLittleEndian),
        ct_file(distinct(4, 6), syntax=ExplicitVRBigEndian),
        enhanced_file(distinct(3, 4, 6), [(0, 0, k) for k in range(3)]),
        PLAIN["explicit"][132:],
        PLAIN["explicit"][:-1],
        PLAIN["explicit"] + b"\0",
        PLAIN["explicit"].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"),
        b"",
    ],
    ids=["deflated", "big endian", "enhanced", "no mark", "cut", "more", "explicit, says implicit", "empty"],
)
def test_any_other_file_is_left_to_pydicom(content: bytes) -> None:
    assert find_elements(content, attributes._WANTED) is None


def test_sequences_nested_without_end_are_left_to_pydicom() -> None:
    meta, first, _ = PLAIN["implicit"].partition(b"\x08\0\x08\0")  # ImageType
    assert first
    level = bytes.fromhex("0800 4011 ffffffff feff 00e0 ffffffff")  # ReferencedImageSequence and its first item
    assert find_elements(meta + 20_000 * level, attributes._WANTED) is None


def test_damaged_files_are_read_as_pydicom_reads_them_or_left_to_it() -> None:
    rng = random.Random(3)
    contents = list(PLAIN.values())
    n_found = sum(assert_same(rng.choice(mutations.MUTATIONS)(rng, rng.choice(contents))) for _ in range(CASES))
    assert n_found > CASES / 5  # the test sees both ways


@pytest.mark.slow
def test_real_files_are_read_as_pydicom_reads_them(data_folder: DataFolder) -> None:
    files = [path for folder in (data_folder.volumes, data_folder.tricky) for path in folder.rglob("*.dcm")]
    assert sum(assert_same(path.read_bytes()) for path in files) > len(files) / 2

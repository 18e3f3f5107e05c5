"""Headers of NIfTI, NRRD and MetaImage: place and type as nibabel and ITK read them, or named."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from volume_builders import KINDS, LPS_TO_RAS, by_itk, chest, files, itk_reads, nifti

from dskprep.errors import Refusal
from dskprep.formats import names, voxels
from dskprep.formats.header import Header
from dskprep.formats.read import read_header
from dskprep.formats.voxels import FileBytes

TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
"""A rotation."""


def turned(*, mirrored: bool = False, order: tuple[int, int, int] = (0, 1, 2)) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = (TURN * (2.5, 0.7, 0.8))[:, order]
    if mirrored:
        affine[:3, 1] *= -1
    affine[:3, 3] = 12.5, -140.25, 801
    return affine


def read(named: dict[str, bytes]) -> tuple[Header, NDArray[Any]]:
    """The header and all stored values of the one volume among these files."""
    (name,) = filter(names.is_volume, named)
    header = read_header(named[name], name)
    data = named[names.beside(name, header.data_file)] if header.data_file else named[name]
    return header, np.stack(list(voxels.planes(header, FileBytes.held(data))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "affine", [turned(), turned(mirrored=True), turned(order=(2, 0, 1))], ids=["oblique", "left-handed", "reordered"]
)
def test_a_volume_lies_where_itk_and_nibabel_put_it(kind: str, affine: NDArray[np.float64]) -> None:
    volume = chest((3, 5, 7))
    named = files(type(volume)(volume.array, affine), kind)
    header, values = read(named)
    if not kind.startswith(".nii"):
        array, by_others = itk_reads(named)
    else:
        (content,) = named.values()
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content) if kind.endswith("gz") else content)
        array, by_others = np.asarray(image.dataobj).T, (LPS_TO_RAS @ image.affine)[:, [2, 1, 0, 3]]
    assert (values == array).all()
    assert (values == volume.array).all()
    np.testing.assert_allclose(header.affine, by_others, atol=1e-4)
    np.testing.assert_allclose(header.affine, affine, atol=1e-4)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_values_of_all_types_are_read(suffix: str, dtype: str) -> None:
    array = (np.arange(60).reshape(3, 4, 5) - (0 if dtype[0] == "u" else 30)).astype(dtype)
    named = {"ct.nii": nifti(array, turned())} if suffix == ".nii" else by_itk(array, turned(), suffix)
    header, values = read(named)
    assert values.dtype == array.dtype
    assert (values == array).all()
    assert header.voxel_bytes == array.nbytes


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_values_in_the_other_byte_order_are_read(suffix: str) -> None:
    array = np.arange(-30, 30, dtype=np.int16).reshape(3, 4, 5)
    swapped = array.astype(">i2").tobytes()
    if suffix == ".nii":
        big = nibabel.Nifti1Image(array.T, np.eye(4), nibabel.Nifti1Header(endianness=">"))
        big.set_sform(np.eye(4), 1)
        named = {"ct.nii": big.to_bytes()}
    else:
        (content,) = by_itk(array, turned(), suffix).values()
        content = content.replace(b"endian: little", b"endian: big")
        content = content.replace(b"OrderMSB = False", b"OrderMSB = True")
        named = {f"ct{suffix}": content[: -array.nbytes] + swapped}
    assert (read(named)[1] == array).all()


def with_header_size(content: bytes, n_gap: int, size: int, *, after: bool = False) -> bytes:
    """A .mha with other bytes between header and voxels, and a HeaderSize, counted `after` its header."""
    last = b"ElementDataFile = LOCAL\n"
    before, stored = content.split(last)
    line = b"HeaderSize = %9d\n"
    n_head = len(before + line % 0 + last)
    return before + line % (size + n_head * after) + last + b"\7" * n_gap + stored


@pytest.mark.parametrize(
    ("n_gap", "size", "after"),
    [(7, 7, True), (48, 48, True), (48, -1, False), (0, 0, True), (0, -1, False), (0, 0, False)],
)
def test_the_voxels_of_a_mha_lie_where_its_header_size_says(n_gap: int, size: int, after: bool) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    (content,) = by_itk(array, turned(), ".mha").values()
    named = {"ct.mha": with_header_size(content, n_gap, size, after=after)}
    assert (itk_reads(named)[0] == array).all()
    assert (read(named)[1] == array).all()


def test_compressed_voxels_of_a_mha_lie_where_its_header_size_says() -> None:
    array = np.arange(6000, dtype=np.int16).reshape(30, 10, 20)
    (content,) = by_itk(array, turned(), ".mha", compress=True).values()
    named = {"ct.mha": with_header_size(content, 48, 48, after=True)}
    assert (itk_reads(named)[0] == array).all()
    assert (read(named)[1] == array).all()


def test_voxels_of_a_mha_never_lie_in_its_header() -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    (content,) = by_itk(array, turned(), ".mha").values()
    for size, after in ((1, False), (-1, True), (1 << 25, False)):
        assert refusal(with_header_size(content, 0, size, after=after)).reason == "bad-header"
    (nrrd,) = by_itk(array, turned(), ".nrrd").values()
    nrrd = nrrd.replace(b"encoding: raw", b"encoding: raw\nbyte skip: -1")
    for name, whole in (("ct.mha", with_header_size(content, 0, -1)), ("ct.nrrd", nrrd)):
        assert (read({name: whole})[1] == array).all()
        with pytest.raises(Refusal) as caught:
            read({name: whole[:-1]})
        assert caught.value.reason == "truncated"


def test_nifti_2_is_read() -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nibabel.Nifti2Image(array.T, LPS_TO_RAS @ turned()[:, [2, 1, 0, 3]])
    header, values = read({"ct.nii": image.to_bytes()})
    assert (values == array).all()
    np.testing.assert_allclose(header.affine, turned(), atol=1e-12)


def test_sform_comes_before_qform_and_either_is_enough() -> None:
    content = nifti(chest((3, 4, 5)).array, turned())
    for codes, is_placed in (((1, 0), True), ((0, 1), True), ((0, 0), False)):
        header = nibabel.Nifti1Header(content[:348])
        header["qform_code"], header["sform_code"] = codes
        changed = header.binaryblock + content[348:]
        if is_placed:
            np.testing.assert_allclose(read_header(changed, "").affine, turned(), atol=1e-4)
        else:
            assert refusal(changed).reason == "missing-attribute"
    header["qform_code"], header["sform_code"], header["srow_x"] = 1, 2, (0, 0, 9, 0)
    expected = LPS_TO_RAS @ header.get_best_affine()[:, [2, 1, 0, 3]]
    np.testing.assert_allclose(read_header(header.binaryblock + content[348:], "").affine, expected)


@pytest.mark.parametrize(("code", "scale"), [(1, 1000), (2, 1), (3, 0.001), (0, 1), (10, 1)])
def test_units_of_nifti_are_turned_into_mm(code: int, scale: float) -> None:
    header = read_header(nifti(chest((3, 4, 5)).array, turned(), xyzt_units=code), "")
    np.testing.assert_allclose(header.affine[:3], turned()[:3] * scale, rtol=1e-5, atol=1e-4 * scale)


@pytest.mark.parametrize("space", ["RAS", "right-anterior-superior", "LAS", "left-posterior-superior"])
def test_spaces_of_nrrd_are_those_of_itk(space: str) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    (content,) = by_itk(array, turned(), ".nrrd").values()
    content = content.replace(b"left-posterior-superior", space.encode())
    np.testing.assert_allclose(read_header(content, "").affine, itk_reads({"ct.nrrd": content})[1], atol=1e-4)


LUNA16 = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = -198.10000600000001 -195 -335.209991
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 0.7617189884185791 0.7617189884185791 2.5
DimSize = 512 512 121
ElementType = MET_SHORT
ElementDataFile = 1.3.6.1.4.1.14519.5.2.1.6279.6001.105756658031515062000744821260.raw
"""
"""The header of a scan of LUNA16, as it was published."""
SLICER = """NRRD0004
# Complete NRRD file format specification at:
# http://teem.sourceforge.net/nrrd/format.html
type: short
dimension: 3
space: left-posterior-superior
sizes: 256 256 176
space directions: (0,1,0) (0,0,-1) (-1,0,0)
kinds: domain domain domain
endian: little
encoding: gzip
space origin: (87.5, -127.5, 127.5)

"""
"""The header of a volume that 3D Slicer wrote."""

NIFTI = nifti(chest((3, 4, 5)).array, turned())


def test_the_header_of_a_scan_of_luna16() -> None:
    header = read_header(LUNA16.encode(), "")
    assert header.shape == (121, 512, 512)
    assert header.spacing == pytest.approx((2.5, 0.7617189884185791, 0.7617189884185791))
    assert header.affine[:3, 3].tolist() == [-198.10000600000001, -195, -335.209991]
    assert header.data_file == "1.3.6.1.4.1.14519.5.2.1.6279.6001.105756658031515062000744821260.raw"
    flipped = read_header(LUNA16.replace("1 0 0 0 1 0 0 0 1", "-1 0 0 0 -1 0 0 0 1").encode(), "")
    assert np.diag(flipped.affine[:3, 2::-1]).tolist() == [-0.7617189884185791, -0.7617189884185791, 2.5]


def test_the_header_of_a_volume_of_3d_slicer() -> None:
    header = read_header(SLICER.encode(), "")
    assert header.shape == (176, 256, 256)
    assert header.affine.tolist() == [[-1, 0, 0, 87.5], [0, 0, 1, -127.5], [0, -1, 0, 127.5], [0, 0, 0, 1]]
    assert (header.compression, header.start, header.skip) == ("deflate", len(SLICER), 0)
    windows = read_header(SLICER.replace("\n", "\r\n").encode(), "")
    assert (windows.affine == header.affine).all()


def refusal(content: bytes, name: str = "ct") -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_header(content, name)
    assert "\n" not in str(caught.value)
    assert caught.value.message.startswith(f"{name}: ")
    return caught.value


@pytest.mark.parametrize(
    ("header", "words", "by", "reason"),
    [
        (LUNA16, "DimSize = 512 512 121", "DimSize = 512 512", "bad-header"),
        (LUNA16, "DimSize = 512 512 121", "DimSize = 512 512 nan", "bad-header"),
        (LUNA16, "DimSize = 512 512 121", "DimSize = 512 512 -121", "bad-header"),
        (LUNA16, "DimSize = 512 512 121", "DimSize = 512 512 " + "9" * 4000, "bad-header"),
        (LUNA16, "ElementDataFile = 1", "ElementDataFile = " + " " * 250_000 + "LIST", "bad-header"),
        (LUNA16, "NDims = 3", "NDims = many", "bad-header"),
        (LUNA16, "NDims = 3", "NDims = 99999999999", "bad-header"),
        (LUNA16, "Offset = ", "Offset = x ", "bad-header"),
        (LUNA16, "Offset = ", "Elsewhere = ", "missing-attribute"),
        (LUNA16, "TransformMatrix", "Elsewhere", "missing-attribute"),
        (LUNA16, "ElementSpacing", "Elsewhere", "missing-attribute"),
        (LUNA16, "MET_SHORT", "MET_SHORT_ARRAY", "undecodable-pixels"),
        (LUNA16, "BinaryData = True", "BinaryData = False", "undecodable-pixels"),
        (LUNA16, "MET_SHORT", "MET_UCHAR\nElementNumberOfChannels = 3", "not-hu"),
        (LUNA16, "ElementDataFile = 1", "ElementDataFile = LIST\n1", "bad-header"),
        (LUNA16, "ElementDataFile = 1", "ElementDataFile = %03d.raw 1 121 1", "bad-header"),
        (LUNA16, "ElementDataFile", "Elsewhere", "bad-header"),
        (LUNA16, "CompressedData = False", "CompressedData = True\nHeaderSize = -1", "bad-header"),
        (LUNA16, "NDims = 3", "NDims = 3\nElementByteOrderMSB = True", "bad-header"),
        (LUNA16, "NDims = 3", "NDims = 3\nDistanceUnits = um", "bad-affine"),
        (LUNA16, "NDims = 3", "NDims = 3\nElementToIntensityFunctionSlope = 2", "bad-header"),
        (LUNA16, "NDims = 3", "NDims = 3\nElementToIntensityFunctionOffset = -1024", "bad-header"),
        (LUNA16, "NDims = 3", "NDims = 3\nElementToIntensityFunctionOffset = many", "bad-header"),
        (LUNA16, "NDims = 3", "NDims = 3\nElementSpacing = 2 2 2", "bad-header"),
        (LUNA16, "NDims = 3", "NDims = 3\nCompressedData = True", "bad-header"),
        (LUNA16, "NDims = 3", "NDims = 3\nPosition = 0 0 0", "bad-header"),
        (LUNA16, "NDims = 3", "NDims = 3\nRotation = -1 0 0 0 -1 0 0 0 1", "bad-header"),
        (LUNA16, "ElementSpacing = ", "ElementSpacing = -", "bad-affine"),
        (SLICER, "dimension: 3", "dimension: 4", "bad-header"),
        (SLICER, "dimension: 3", "dimension: 3\nspace origin: (0, 0, 0)", "bad-header"),
        (SLICER, "dimension: 3", "dimension: 3\nSpace Origin: (0, 0, 0)", "bad-header"),
        (SLICER, "dimension: 3", "dimension: 3\nspacings: 1 2 1", "bad-header"),
        (SLICER, "dimension: 3", "dimension: 3\nspacings: 1 -1 1", "bad-header"),
        (SLICER, "dimension: 3", "dimension: 3\nspacings: 1 1", "bad-header"),
        (SLICER, "sizes: 256 256 176", "sizes: 256 256", "bad-header"),
        (SLICER, "sizes: 256 256 176", "sizes: 256 256 0", "bad-header"),
        (SLICER, "(0,1,0)", "(0,1)", "bad-header"),
        (SLICER, "(0,1,0)", "none", "not-3d"),
        (SLICER, "space: left-posterior-superior", "space: scanner-xyz", "missing-attribute"),
        (SLICER, "space: left-posterior-superior", "content: ct", "missing-attribute"),
        (SLICER, "space directions", "content", "missing-attribute"),
        (SLICER, "kinds: domain domain domain", 'space units: "furlong" "mm" "mm"', "bad-affine"),
        (SLICER, "endian: little", "content: ct", "missing-attribute"),
        (SLICER, "type: short", "type: block", "undecodable-pixels"),
        (SLICER, "encoding: gzip", "encoding: ascii", "undecodable-pixels"),
        (SLICER, "encoding: gzip", "encoding: raw\ndata file: LIST", "bad-header"),
        (SLICER, "encoding: gzip", "encoding: raw\nline skip: 2", "bad-header"),
        (SLICER, "encoding: gzip", "encoding: gzip\nbyte skip: -1", "bad-header"),
        (SLICER, "encoding: gzip", "encoding: gzip\nbyte skip: 99999999999", "bad-header"),
        (SLICER, "\n\n", "\n", "truncated"),
    ],
)
def test_a_bad_line_of_a_header_is_named(header: str, words: str, by: str, reason: str) -> None:
    assert words in header
    assert refusal(header.replace(words, by).encode()).reason == reason


@pytest.mark.parametrize(
    ("header", "words", "more"),
    [
        (LUNA16, "NDims = 3", "DistanceUnits = mm\nElementToIntensityFunctionSlope = 1.0"),
        (LUNA16, "NDims = 3", "ElementToIntensityFunctionOffset = 0\nPosition = -198.10000600000001 -195. -335.209991"),
        (LUNA16, "NDims = 3", "NDims = 3\nDimSize =  512 512 121\nComment = a\nComment = b"),
        (LUNA16, "NDims = 3", "ElementSize = 0.76 0.76 1.25"),  # slices may overlap
        (LUNA16, "NDims = 3", "ElementByteOrderMSB = false"),
        (SLICER, "dimension: 3", "spacings: 1 1 1.0001\ndimension: 3"),
        (SLICER, "dimension: 3", "spacings: nan nan nan\nspace origin: (87.5, -127.5, 127.5)"),
    ],
)
def test_lines_that_agree_change_nothing(header: str, words: str, more: str) -> None:
    read, plain = (read_header(text.encode(), "") for text in (header.replace(words, f"{words}\n{more}"), header))
    assert (read.affine == plain.affine).all()
    assert read.shape == plain.shape


def test_four_axes_and_colour_are_named() -> None:
    four = (
        SLICER.replace("dimension: 3", "dimension: 4")
        .replace("sizes: ", "sizes: 3 ")
        .replace("(0,1,0)", "none (0,1,0)")
    )
    assert refusal(four.encode()).reason == "not-3d"
    assert refusal(four.replace("kinds: domain", "kinds: RGB-color domain").encode()).reason == "not-hu"
    one = four.replace("sizes: 3 ", "sizes: 1 ")
    assert read_header(one.encode(), "").shape == (176, 256, 256)
    array = np.zeros((2, 3, 4, 5), np.int16)
    assert refusal(nifti(array, turned())).reason == "not-3d"
    assert read_header(nifti(array[:1], turned()), "").shape == (3, 4, 5)
    colour = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert refusal(nibabel.Nifti1Image(colour.T, np.eye(4)).to_bytes()).reason == "not-hu"
    assert refusal(nifti(np.zeros((3, 4, 5), np.complex64), turned())).reason == "undecodable-pixels"


def test_what_is_no_volume_is_named() -> None:
    for content in (b"", b"some text", bytes(400), b"\x89PNG", gzip.compress(b"some text")):
        assert refusal(content).reason == "bad-header"
    content = nifti(chest((3, 4, 5)).array, turned())
    assert refusal(content[:344] + b"ni1\0" + content[348:]).reason == "bad-header"
    assert refusal(content[:348].replace(b"n+1\0", b"")).reason == "bad-header"
    assert refusal(gzip.compress(content)[:5]).reason == "bad-header"
    assert refusal(b"\x1f\x8b" + b"no gzip").reason == "truncated"
    for offset in (0, 100, 348, 351, 1 << 30):  # nifti1.h: of one file, 352 and more
        assert refusal(nifti(chest((3, 4, 5)).array, turned(), vox_offset=offset)).reason == "bad-header"
    assert refusal(nifti(chest((3, 4, 5)).array, turned(), xyzt_units=7)).reason == "bad-header"


@pytest.mark.parametrize("start", [LUNA16.encode(), SLICER.encode(), NIFTI[:352]], ids=["mhd", "nrrd", "nii"])
def test_damage_at_random_places_is_a_refusal_or_a_header(start: bytes) -> None:
    rng, messages = np.random.default_rng(0), []
    for _ in range(2000):
        content = bytearray(start)
        for at in rng.integers(0, len(start), rng.integers(1, 8)):
            content[at] = rng.integers(0, 256)
        try:
            read_header(bytes(content), "")
        except Refusal as refused:
            messages.append(str(refused))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)

"""Pixel data of every transfer syntax to stored values."""

from __future__ import annotations

import struct
import tracemalloc

import imagecodecs
import numpy as np
import pytest
from conftest import DataFolder
from pydicom.encaps import generate_frames
from pydicom.filereader import dcmread

from dskprep.dicom.pixels import DECODERS, NATIVE, PixelFormat, stored_values
from dskprep.errors import Refusal

EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
HTJ2K = "1.2.840.10008.1.2.4.201"

ROWS, COLUMNS = 24, 40


def layout_of(
    syntax: str, *, bits: int = 16, allocated: int = 16, signed: bool = True, high_bit: int = 0
) -> PixelFormat:
    return PixelFormat(syntax, ROWS, COLUMNS, allocated, bits, high_bit or bits - 1, signed)


def smooth(low: int, high: int) -> np.ndarray:
    """An image with values from `low` to `high`, both reached, neighbours alike."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    wave = np.sin(x / 7) + np.cos(y / 5)
    return np.rint(low + (wave - wave.min()) / np.ptp(wave) * (high - low)).astype(np.int32)


def refusal_of(data: bytes, layout: PixelFormat) -> Refusal:
    with pytest.raises(Refusal) as caught:
        stored_values(data, layout, "IM7.dcm")
    assert caught.value.message.startswith("IM7.dcm: ")
    assert "\n" not in caught.value.message
    return caught.value


# Uncompressed


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("i2", -2000, 3071), ("u2", 0, 63536), ("u1", 0, 255), ("i1", -9, 9)]
)
def test_uncompressed_values_are_read_as_they_are(syntax: str, dtype: str, low: int, high: int) -> None:
    image, kind = smooth(low, high), np.dtype(dtype)
    layout = layout_of(syntax, bits=8 * kind.itemsize, allocated=8 * kind.itemsize, signed=kind.kind == "i")
    data = image.astype(kind.newbyteorder(">" if syntax == BIG_ENDIAN else "<")).tobytes()
    assert (stored_values(data + b"\0", layout, "") == image).all()


@pytest.mark.parametrize(("syntax", "kind"), [(EXPLICIT, "<u2"), (BIG_ENDIAN, ">u2")])
def test_12_bit_negative_values_without_sign_extension_are_negative(syntax: str, kind: str) -> None:
    image = smooth(-1500, 2000)
    data = (image & 0xFFF).astype(kind).tobytes()
    assert (stored_values(data, layout_of(syntax, bits=12), "") == image).all()


def test_padding_beyond_bits_stored_does_not_take_the_sign_of_a_slice() -> None:
    image = smooth(-1500, 2000)
    stored = (image & 0xFFF).astype("<u2")
    stored[0, 0] = 0x8830
    image[0, 0] = 0x8830 - 0x10000
    assert (stored_values(stored.tobytes(), layout_of(EXPLICIT, bits=12), "") == image).all()


@pytest.mark.parametrize(("syntax", "kind"), [(EXPLICIT, "<u2"), (BIG_ENDIAN, ">u2")])
@pytest.mark.parametrize(("signed", "high_bit"), [(False, 11), (True, 11), (False, 15)])
def test_an_overlay_in_the_unused_bits_is_left_out(syntax: str, kind: str, signed: bool, high_bit: int) -> None:
    image = smooth(-1500, 2000) if signed else smooth(0, 4095)
    drawing = np.random.default_rng(0).integers(0, 16, image.shape)
    stored = (image & 0xFFF) << 4 | drawing if high_bit == 15 else (image & 0xFFF) | drawing << 12
    layout = PixelFormat(syntax, ROWS, COLUMNS, 16, 12, high_bit, signed, has_overlay=True)
    assert (stored_values(stored.astype(kind).tobytes(), layout, "") == image).all()


def test_12_bit_negative_values_with_sign_extension_are_negative() -> None:
    image = smooth(-1500, 2000)
    assert (stored_values(image.astype("<i2").tobytes(), layout_of(EXPLICIT, bits=12), "") == image).all()


@pytest.mark.parametrize("signed", [True, False])
def test_values_beyond_the_declared_12_bits_are_kept(signed: bool) -> None:
    """Padding of -2000 and metal of 6000 HU in a header that declares 12 bits."""
    image = smooth(-3000, 6000) if signed else smooth(0, 63536)
    data = image.astype("<i2" if signed else "<u2").tobytes()
    assert (stored_values(data, layout_of(EXPLICIT, bits=12, signed=signed), "") == image).all()


def test_bits_beyond_the_declared_12_that_belong_to_something_else_are_left_out() -> None:
    image = smooth(0, 3000)
    stored = image.copy()
    stored[5:15, 5:20] |= 1 << 12
    data = stored.astype("<u2").tobytes()
    assert (stored_values(data, layout_of(EXPLICIT, bits=12, signed=False), "") == image).all()


@pytest.mark.parametrize("bit", [12, 14, 15])
@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
@pytest.mark.parametrize("is_extended", [True, False], ids=["sign repeated", "sign once"])
def test_an_overlay_that_nothing_declares_is_left_out_of_signed_values(
    syntax: str, bit: int, is_extended: bool
) -> None:
    image = smooth(-1500, 2000)
    stored = image & (0xFFFF if is_extended else 0xFFF)
    stored[5:15, 5:20] |= 1 << bit
    stored[:, 30] |= 1 << bit
    data = rle(stored) if syntax == RLE else stored.astype("<u2").tobytes()
    assert (stored_values(data, layout_of(syntax, bits=12), "") == image).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bit", [12, 15])
@pytest.mark.parametrize("syntax", [RLE, JPEG_2000, JPEG_LS, JPEG_LOSSLESS])
def test_a_declared_overlay_is_left_out_of_compressed_values(syntax: str, bit: int, signed: bool) -> None:
    image = smooth(-1500, 2000) if signed else smooth(0, 4095)
    stored = image & 0xFFFF
    stored[::2] |= 1 << bit
    data = rle(stored) if syntax == RLE else encoded(syntax, stored, 16)
    layout = PixelFormat(syntax, ROWS, COLUMNS, 16, 12, 11, signed, has_overlay=True)
    assert (stored_values(data, layout, "") == image).all()


def test_a_filled_block_beyond_the_12_bits_is_left_out_though_metal_stands_beside_it() -> None:
    image = smooth(0, 2000)
    image[2:4, 2:4] = 4095
    stored = image.copy()
    stored[5:, 5:20] |= 1 << 12
    data = stored.astype("<u2").tobytes()
    assert (stored_values(data, layout_of(EXPLICIT, bits=12, signed=False), "") == image).all()


@pytest.mark.parametrize("signed", [True, False])
def test_metal_beyond_the_declared_12_bits_stays_metal(signed: bool) -> None:
    image = smooth(900, 1100)
    image[10:13, 10:16] = [3000, 4200, 5000, 5200, 4300, 2800]  # its rim, and no value near 4095
    image[20:, 20:] = smooth(-1000, -900)[20:, 20:] if signed else 5
    data = image.astype("<u2").tobytes()
    assert (stored_values(data, layout_of(EXPLICIT, bits=12, signed=signed), "") == image).all()


def test_values_stored_in_the_upper_bits_are_shifted_down() -> None:
    image = smooth(0, 4095)
    data = (image << 4).astype("<u2").tobytes()
    layout = layout_of(EXPLICIT, bits=12, signed=False, high_bit=15)
    assert (stored_values(data, layout, "") == image).all()


def test_a_high_bit_that_contradicts_the_values_is_refused() -> None:
    layout = layout_of(EXPLICIT, bits=12, signed=False, high_bit=15)
    refusal = refusal_of(smooth(0, 4095).astype("<u2").tobytes(), layout)
    assert (refusal.reason, "HighBit" in refusal.message) == ("undecodable-pixels", True)


@pytest.mark.parametrize("allocated", [1, 12, 64])
def test_an_odd_number_of_bits_is_refused(allocated: int) -> None:
    layout = layout_of(EXPLICIT, bits=min(allocated, 12), allocated=allocated)
    assert refusal_of(bytes(ROWS * COLUMNS * 8), layout).reason == "undecodable-pixels"


def test_short_pixel_data_are_truncated() -> None:
    refusal = refusal_of(bytes(ROWS * COLUMNS * 2 - 2), layout_of(EXPLICIT))
    assert refusal.reason == "truncated"
    assert f"expected {ROWS * COLUMNS * 2} bytes of pixels, found {ROWS * COLUMNS * 2 - 2}" in refusal.message


# Compressed


def encoded(syntax: str, image: np.ndarray, bits: int) -> bytes:
    if syntax == JPEG_LOSSLESS:
        return imagecodecs.jpeg8_encode(image.astype(np.uint16), lossless=True, predictor=1, bitspersample=bits)
    if syntax == JPEG_LS:
        return imagecodecs.jpegls_encode(image.astype(np.uint16))
    if syntax == JPEG_2000:
        kind = np.int16 if image.min() < 0 else np.uint16
        return imagecodecs.jpeg2k_encode(image.astype(kind), reversible=True, level=0, codecformat="j2k")
    assert syntax == HTJ2K
    return imagecodecs.htj2k_encode(image.astype(np.uint16), reversible=True)


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS, JPEG_2000, HTJ2K])
@pytest.mark.parametrize("signed", [True, False])
def test_lossless_compression_gives_the_values_back(syntax: str, signed: bool) -> None:
    image = smooth(-2000, 3071) if signed else smooth(0, 63536)
    data = encoded(syntax, image & 0xFFFF, 16)
    assert (stored_values(data, layout_of(syntax, signed=signed), "") == image).all()


def test_a_signed_jpeg_2000_stream_gives_signed_values() -> None:
    image = smooth(-2000, 3071)
    assert (stored_values(encoded(JPEG_2000, image, 16), layout_of(JPEG_2000), "") == image).all()


@pytest.mark.parametrize("bits", range(9, 17))
def test_jpeg_lossless_of_any_precision(bits: int) -> None:
    image = smooth(0, (1 << bits) - 1)
    layout = layout_of(JPEG_LOSSLESS, bits=bits, signed=False)
    assert (stored_values(encoded(JPEG_LOSSLESS, image, bits), layout, "") == image).all()
    negative = smooth(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    data = encoded(JPEG_LOSSLESS, negative & ((1 << bits) - 1), bits)
    assert (stored_values(data, layout_of(JPEG_LOSSLESS, bits=bits), "") == negative).all()


@pytest.mark.parametrize("damage", ["a hole", "lost bytes", "cut, with an end marker"])
@pytest.mark.parametrize("bits", [12, 16])
def test_jpeg_lossless_that_has_lost_some_is_refused(bits: int, damage: str) -> None:
    noise = np.random.default_rng(0).integers(-40, 40, (ROWS, COLUMNS))
    whole = encoded(JPEG_LOSSLESS, smooth(100, 3900) + noise, bits)
    at = len(whole) // 3
    rest = {"a hole": bytes(64) + whole[at + 64 :], "lost bytes": whole[at + 64 :]}.get(damage, b"\xff\xd9")
    refusal = refusal_of(whole[:at] + rest, layout_of(JPEG_LOSSLESS, bits=12, signed=False))
    assert refusal.reason == "undecodable-pixels"
    assert "codes are lost or wrong" in refusal.message


def with_restarts(image: np.ndarray) -> bytes:
    """Lossless JPEG (T.81 annex H) of 16 bits with codes of 5 and 6 bits, and a restart after each row."""
    head = bytes.fromhex("ffd8 ffc3000b10") + struct.pack(">HH", *image.shape) + bytes.fromhex("01011100")
    head += (
        bytes.fromhex("ffc40024 00") + bytes([0] * 4 + [15, 2] + [0] * 10) + bytes(range(17))
    )  # codes of 5 and 6 bits
    head += bytes.fromhex("ffdd0004") + struct.pack(">H", image.shape[1]) + bytes.fromhex("ffda0008 0101000100 00")
    rows = []
    for row in image.tolist():
        text = ""
        for value, before in zip(row, [1 << 15, *row], strict=False):
            step = (value - before + (1 << 15)) % (1 << 16) - (1 << 15)
            category = abs(step).bit_length()
            text += f"{category:05b}" if category < 15 else f"{category + 15:06b}"
            text += f"{step if step >= 0 else step + (1 << category) - 1:0{category}b}" if category % 16 else ""
        text += "1" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\x00"))
    marked = [row + bytes([0xFF, 0xD0 + k % 8]) for k, row in enumerate(rows[:-1])]
    return head + b"".join([*marked, rows[-1]]) + b"\xff\xd9"


def test_jpeg_lossless_that_restarts_is_read_and_damage_of_it_seen() -> None:
    image = smooth(0, 65535)
    whole = with_restarts(image)
    layout = layout_of(JPEG_LOSSLESS, bits=16, signed=False)
    assert (imagecodecs.jpeg8_decode(whole) == image).all()  # so it is one
    assert (stored_values(whole, layout, "") == image).all()
    assert (stored_values(whole[:-2] + b"\xff\xff\xff\xd9", layout, "") == image).all()  # fill bytes
    at = len(whole) // 2
    assert refusal_of(whole[:at] + whole[at + 9 :], layout).reason == "undecodable-pixels"


@pytest.mark.parametrize("predictor", range(1, 8))
def test_jpeg_lossless_of_any_predictor(predictor: int) -> None:
    image = smooth(0, 4095)
    data = imagecodecs.jpeg8_encode(image.astype(np.uint16), lossless=True, predictor=predictor, bitspersample=12)
    assert (stored_values(data, layout_of(JPEG_LOSSLESS, bits=12, signed=False), "") == image).all()


def rle(image: np.ndarray) -> bytes:
    """DICOM PS3.5 annex G: a segment a byte plane, high bytes first, here in literal runs."""
    planes = image.astype(">i2").view(np.uint8).reshape(ROWS, COLUMNS, 2)
    segments = [b"".join(bytes([COLUMNS - 1]) + row.tobytes() for row in planes[..., k]) for k in range(2)]
    header = np.zeros(16, "<u4")
    header[:3] = 2, 64, 64 + len(segments[0])
    return header.tobytes() + b"".join(segments)


@pytest.mark.parametrize("signed", [True, False])
def test_run_length_encoding(signed: bool) -> None:
    image = smooth(-2000, 3071) if signed else smooth(0, 30000)
    assert (stored_values(rle(image), layout_of(RLE, signed=signed), "") == image).all()


@pytest.mark.parametrize("part", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("syntax", [JPEG_BASELINE, JPEG_LOSSLESS, JPEG_LS, JPEG_2000, HTJ2K, RLE])
def test_cut_compressed_data_are_refused_and_never_painted_grey(syntax: str, part: float) -> None:
    image = smooth(0, 255)
    if syntax == RLE:
        data = rle(image)
    elif syntax == JPEG_BASELINE:
        data = imagecodecs.jpeg8_encode(image.astype(np.uint8), level=90)
    else:
        data = encoded(syntax, image, 16)
    layout = layout_of(syntax, bits=8 if syntax == JPEG_BASELINE else 16)
    whole = stored_values(data, layout, "")
    pads = (b"\0", b"\xff", b"\x20", b"\xa5", b"\xff\xd8", b"\0\xff" * 9)
    for pad in pads[:1] if syntax == RLE else pads:
        assert (stored_values(data + pad, layout, "") == whole).all()
        cut = data[: int(part * len(data))]
        assert refusal_of(cut + pad, layout).reason in ("truncated", "undecodable-pixels")
    if syntax != RLE:  # which does not say how long a segment is: values of zero are whole
        zero_filled = cut + bytes(len(data) - len(cut))
        assert refusal_of(zero_filled, layout).reason in ("truncated", "undecodable-pixels")


@pytest.mark.parametrize("syntax", sorted({*DECODERS, RLE}))
@pytest.mark.parametrize("data", [b"", b"\0" * 99, b"\xff\xd8\xff\xd9", bytes(range(256)) * 9])
def test_nonsense_is_refused_by_every_decoder(syntax: str, data: bytes) -> None:
    assert refusal_of(data, layout_of(syntax)).reason in ("truncated", "undecodable-pixels")


def test_an_image_of_another_size_is_refused() -> None:
    data = imagecodecs.jpeg8_encode(np.zeros((ROWS, COLUMNS + 1), np.uint8))
    refusal = refusal_of(data, layout_of(JPEG_BASELINE, bits=8, allocated=8))
    assert refusal.reason == "undecodable-pixels"
    assert (
        f"expected {ROWS} x {COLUMNS} grey pixels, found a stream of 24 x 41 with 1 sample per pixel" in refusal.message
    )


SIZE_AT = {JPEG_LOSSLESS: (b"\xff\xc3", 5, "H"), JPEG_LS: (b"\xff\xf7", 5, "H"), JPEG_2000: (b"\xff\x51", 6, "I"),
           HTJ2K: (b"\xff\x51", 6, "I")}  # fmt: skip
"""Where the two edges stand in a stream: after which marker, how far, how wide."""


@pytest.mark.parametrize(("syntax", "is_boxed"), [*((syntax, False) for syntax in SIZE_AT), (JPEG_2000, True)])
def test_a_stream_that_claims_another_size_is_refused_before_it_is_decoded(
    syntax: str, is_boxed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, beside, kind = SIZE_AT[syntax]
    if is_boxed:
        data = bytearray(imagecodecs.jpeg2k_encode(smooth(0, 4095).astype(np.uint16), reversible=True, level=0))
    else:
        data = bytearray(encoded(syntax, smooth(0, 4095), 16))
    layout = layout_of(syntax, signed=False)
    stored_values(bytes(data), layout, "")
    monkeypatch.setitem(DECODERS, syntax, lambda _data: pytest.fail("it was decoded"))
    struct.pack_into(f">2{kind}", data, data.index(marker) + beside, 60000, 60000)
    refusal = refusal_of(bytes(data), layout)
    assert refusal.reason == "undecodable-pixels"
    assert "found a stream of 60000 x 60000" in refusal.message


def test_a_stream_of_many_components_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(encoded(JPEG_2000, smooth(0, 4095), 16))
    monkeypatch.setitem(DECODERS, JPEG_2000, lambda _data: pytest.fail("it was decoded"))
    struct.pack_into(">H", data, data.index(b"\xff\x51") + 38, 16384)
    refusal = refusal_of(bytes(data), layout_of(JPEG_2000))
    assert "16384 samples per pixel" in refusal.message


def test_runs_that_promise_a_thousand_frames_are_refused_in_little_memory() -> None:
    segment = bytes([129, 7]) * 200_000  # 128 times 7 each: 26 MB, where 960 bytes are due
    header = np.zeros(16, "<u4")
    header[:3] = 2, 64, 64 + len(segment)
    tracemalloc.start()
    refusal = refusal_of(header.tobytes() + segment + segment, layout_of(RLE))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert refusal.reason == "undecodable-pixels"


def test_colour_in_the_stream_is_refused() -> None:
    data = imagecodecs.jpeg8_encode(np.zeros((ROWS, COLUMNS, 3), np.uint8))
    assert refusal_of(data, layout_of(JPEG_BASELINE, bits=8, allocated=8)).reason == "undecodable-pixels"


def test_an_unknown_transfer_syntax_is_a_missing_decoder() -> None:
    refusal = refusal_of(b"", layout_of("1.2.840.10008.1.2.4.100"))
    assert refusal.reason == "missing-decoder"
    assert "1.2.840.10008.1.2.4.100 (MPEG2 Main Profile / Main Level)" in refusal.message
    assert "gdcmconv --raw (package libgdcm-tools)" in refusal.message


# One real slice in 16 encodings


@pytest.mark.slow
def test_every_real_encoding_is_as_close_to_the_original_as_known(data_folder: DataFolder) -> None:
    folder = data_folder.tricky / "transfer_syntaxes"
    original = dcmread(folder / "CTImage.dcm")
    hu = original.pixel_array * float(original.RescaleSlope) + float(original.RescaleIntercept)
    expected = data_folder.expected_tricky["transfer_syntaxes"]
    assert len(expected) == 16
    for name, facts in expected.items():
        ds = dcmread(folder / name)
        syntax = str(ds.file_meta.TransferSyntaxUID)
        data = ds.PixelData if syntax in NATIVE else next(generate_frames(ds.PixelData, number_of_frames=1))
        layout = PixelFormat(
            syntax, ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation == 1
        )
        values = stored_values(data, layout, name) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        # .53 and .55 are the 12-bit .51 in another order of coefficients
        bound = facts["max_abs_hu_diff"] if facts["decodes"] else 35.7
        assert np.abs(values - hu).max() <= bound + 1e-3, name

"""Every installed decoder on every transfer syntax: CPU seconds of a series, whether it is right, and holds the GIL.

    python benchmarks/decoders.py [--quick] [--results FOLDER] [FOLDER_OF_DICOM ...]

A hundred slices from the middle of each series are encoded anew in each syntax, without loss, and decoded by dskprep,
by each codec called directly, and by pydicom with each of its plug-ins; the decoders take turns. Without folders:
a synthetic patient, and the volumes below DSKPREP_DATA if it is set. Writes benchmarks/results/decoders.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, RLELossless

from dskprep.dicom import pixels

Decoder = Callable[[int], Any]
"""From the number of a frame to its values, or their bytes."""


def _rle(plane: np.ndarray) -> bytes:
    encoder = pydicom.pixels.get_encoder(RLELossless)
    header = {"rows": plane.shape[0], "columns": plane.shape[1], "samples_per_pixel": 1, "number_of_frames": 1}
    bits = {"bits_allocated": 16, "bits_stored": 16, "pixel_representation": 0}
    return encoder.encode(plane, encoding_plugin="pydicom", photometric_interpretation="MONOCHROME2", **header, **bits)


SYNTAXES: dict[str, tuple[str, Callable[[np.ndarray, int], bytes]]] = {
    "native": ("1.2.840.10008.1.2.1", lambda plane, _bits: plane.tobytes()),
    "RLE": ("1.2.840.10008.1.2.5", lambda plane, _bits: _rle(plane)),
    "JPEG lossless (SV1)": (
        "1.2.840.10008.1.2.4.70",
        lambda plane, bits: imagecodecs.jpeg8_encode(plane, lossless=True, predictor=1, bitspersample=bits),
    ),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", lambda plane, _bits: imagecodecs.jpegls_encode(plane)),
    "JPEG 2000": (
        "1.2.840.10008.1.2.4.90",
        lambda plane, bits: imagecodecs.jpeg2k_encode(
            plane, reversible=True, level=0, codecformat="j2k", bitspersample=bits
        ),
    ),
    "HTJ2K": ("1.2.840.10008.1.2.4.201", lambda plane, _bits: imagecodecs.htj2k_encode(plane, reversible=True)),
}
"""Transfer syntax, and how a plane of uint16 is encoded in it."""

DIRECT = {
    "JPEG lossless (SV1)": ("jpeg8_decode", "jpegsof3_decode", "ljpeg_decode"),
    "JPEG-LS": ("jpegls_decode",),
    "JPEG 2000": ("jpeg2k_decode",),
    "HTJ2K": ("jpeg2k_decode", "htj2k_decode"),
}
"""Decoders of imagecodecs."""

TRIES = 30
"""Calls in which a decoder may let go of the GIL."""

PLUGINS = {"gdcm": "gdcm", "pylibjpeg": "pylibjpeg", "pyjpegls": "jpeg_ls", "pydicom": "pydicom"}
"""Plug-ins of pydicom, and the module that each needs."""


def decoders(name: str, frames: list[bytes], layout: pixels.PixelFormat) -> Iterator[tuple[str, Decoder]]:
    """All that may decode these frames."""
    syntax, shape = layout.transfer_syntax, (layout.rows, layout.columns)
    yield "dskprep.pixels.stored_values", lambda n: pixels.stored_values(frames[n], layout, "")
    if name == "native":
        yield "numpy.frombuffer, copied", lambda n: np.frombuffer(frames[n], "<u2").reshape(shape).copy()
        return
    if name == "RLE":
        yield "imagecodecs.dicomrle_decode", lambda n: imagecodecs.dicomrle_decode(frames[n], np.dtype("<u2"))
        if find_spec("rle"):
            from rle import rle

            yield "pylibjpeg-rle", lambda n: rle.decode_frame(frames[n], shape[0] * shape[1], 16, "<")
    for function in DIRECT.get(name, ()):
        decode = getattr(imagecodecs, function)
        yield f"imagecodecs.{function}", lambda n, decode=decode: decode(frames[n])
    if name == "JPEG-LS" and find_spec("jpeg_ls"):
        import jpeg_ls

        yield "pyjpegls", lambda n: jpeg_ls.decode(np.frombuffer(frames[n], np.uint8))
    if name in ("JPEG 2000", "HTJ2K") and find_spec("openjpeg"):
        import openjpeg

        yield "pylibjpeg-openjpeg", lambda n: openjpeg.decode(frames[n])
    slices = [_dataset(frame, layout) for frame in frames]
    decoder = pydicom.pixels.get_decoder(UID(syntax))
    for plugin in decoder.available_plugins:
        if find_spec(PLUGINS.get(plugin, plugin)):
            yield (
                f"pydicom with {plugin}",
                lambda n, plugin=plugin: pydicom.pixels.pixel_array(slices[n], decoding_plugin=plugin),
            )


def _dataset(frame: bytes, layout: pixels.PixelFormat) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(layout.transfer_syntax)
    ds.Rows, ds.Columns = layout.rows, layout.columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = layout.bits_allocated, layout.bits_stored, layout.high_bit
    ds.PixelRepresentation, ds.SamplesPerPixel = int(layout.is_signed), 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    return ds


def is_right(found: Any, expected: np.ndarray) -> bool:
    """Whether the bits of each pixel are those expected."""
    if isinstance(found, (bytes, bytearray)):
        found = np.frombuffer(found, "<u2")
    found = np.asarray(found)
    if found.dtype == np.uint8 and found.size == 2 * expected.size:
        found = np.frombuffer(found.tobytes(), "<u2")
    mask = np.int64((1 << int(expected.max()).bit_length()) - 1)
    return found.size == expected.size and bool(
        ((found.ravel().astype(np.int64) & mask) == expected.ravel().astype(np.int64)).all()
    )


def held_share(decode: Decoder, n_frames: int) -> float:
    """The longest part of a call in which no other thread could run, in the best of some calls: 1 if the GIL is held.

    Nobody is asked to give up the GIL meanwhile, so another thread that wants it only runs if the decoder lets go.
    """
    ran_at: list[float] = []
    is_done = threading.Event()

    def run() -> None:
        while not is_done.is_set():
            ran_at.append(time.perf_counter())
            time.sleep(0)

    other, interval = threading.Thread(target=run), sys.getswitchinterval()
    gaps, calls = [], []
    sys.setswitchinterval(1000)
    other.start()
    try:
        for n in range(TRIES):
            time.sleep(0.001)  # the other thread is at work
            ran_at.clear()
            start = time.perf_counter()
            decode(n % n_frames)
            end = time.perf_counter()
            seen = [start, *(t for t in ran_at if start < t < end), end]
            gaps.append(max(later - earlier for earlier, later in itertools.pairwise(seen)))
            calls.append(end - start)
    finally:
        is_done.set()
        sys.setswitchinterval(interval)
        other.join()
    return min(1.0, min(gaps) / min(calls))


def one_series(folder: Path, report: common.Report, *, quick: bool) -> None:
    slices = [pydicom.dcmread(path) for path in common.slice_files(folder)]
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    middle, half = len(slices) // 2, 2 if quick else 50
    slices = slices[max(0, middle - half) : middle + half]
    bits, is_signed = slices[0].BitsStored, bool(slices[0].PixelRepresentation)
    planes = [s.pixel_array.astype(np.int64) & ((1 << bits) - 1) for s in slices]
    planes = [np.ascontiguousarray(plane.astype(np.uint16)) for plane in planes]
    rows, columns = planes[0].shape
    report.heading(f"{folder.name}: {len(planes)} slices of {rows} x {columns}, {bits} bits")
    for name, (syntax, encode) in SYNTAXES.items():
        frames = [encode(plane, bits) for plane in planes]
        layout = pixels.PixelFormat(syntax, rows, columns, 16, bits, bits - 1, is_signed)
        ways, seconds, lines = {}, {}, []
        for way, decode in decoders(name, frames, layout):
            try:
                right = all(is_right(decode(n), plane) for n, plane in enumerate(planes))
            except Exception as error:
                lines.append([way, "", f"cannot: {type(error).__name__}", ""])
                continue
            ways[way], seconds[way] = (decode, right), []
        for _ in range(1 if quick else 3):
            for way, (decode, _) in ways.items():
                start = common.now()
                for n in range(len(planes)):
                    decode(n)
                seconds[way].append((common.now() - start).cpu)
                print(way, seconds[way][-1], file=sys.stderr, flush=True)
        for way, (decode, right) in ways.items():
            held = "" if name == "native" else f"{held_share(decode, len(planes)):.0%}"
            lines.append([way, f"{statistics.median(seconds[way]):.3f}", "equal" if right else "DIFFERENT", held])
        size = sum(map(len, frames)) / 1e6
        report.table((f"{name}, {size:.1f} MB", "CPU s", "result", "GIL held for"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    args = parser.parse_args()
    packages = ("imagecodecs", "pydicom", "pylibjpeg-rle", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm")
    with (
        tempfile.TemporaryDirectory() as scratch,
        common.report(args.results / "decoders.json", "Decoders of pixel data", packages) as report,
    ):
        report.line(
            "CPU seconds of all slices, medians of alternating rounds, frames in memory. GIL held for: the longest "
            "part of a call in which no other thread could run; 100 % if the decoder never releases the GIL."
        )
        for folder in args.folders or common.series_folders(Path(scratch), quick=args.quick):
            one_series(folder.resolve(), report, quick=args.quick)


if __name__ == "__main__":
    main()

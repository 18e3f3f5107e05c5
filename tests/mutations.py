"""Flip, cut and rewrite the files of whole series: a right volume of what the files now say, or a named refusal.

    python tests/mutations.py [--cases 10000] [--seed 0] [--only CASE] [FOLDER_OF_A_REAL_SERIES ...]

The judge reads the mutated files by itself (pydicom's plain reader, and the stored bytes): every slice that it finds
must lie in the volume, at the place that its header gives it and with its values; or a warning or a file set aside
says why it does not. An exception, a case of more than MAX_S CPU seconds, memory beyond MAX_MIB, or a volume without
such a reason is a failure; the exit code is 1, and `--only` repeats a case. Counts go to stdout.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import tiny
from builders import CORONAL, compressed, ct_files, distinct, enhanced_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dskprep.dicom import contents as dicom
from dskprep.dicom import header
from dskprep.errors import Refusal
from dskprep.series import assembly
from dskprep.series.series import Decoded
from dskprep.volume import PADDING

MAX_S = 10.0
MAX_MIB = 1500

Files = dict[str, bytes]

STORED = distinct(12, 10, 14)
LITTLE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"}


# Series to be mutated


def _encoded(syntax: str, encode: Callable[[Any], bytes]) -> Files:
    return {
        f"{k:04}.dcm": dict(ct_files(STORED.astype(np.uint16), PixelData=compressed(encode(p)), syntax=syntax))[
            f"{k:04}.dcm"
        ]
        for k, p in enumerate(STORED.astype(np.uint16))
    }


def _rle() -> Files:
    files = {}
    for name, content in ct_files(STORED):
        ds = pydicom.dcmread(io.BytesIO(content))
        ds.compress(RLELossless, encoding_plugin="pydicom")
        file = io.BytesIO()
        ds.save_as(file)
        files[name] = file.getvalue()
    return files


def bases(real: list[Path]) -> dict[str, Files]:
    made = {
        "explicit": dict(ct_files(STORED, RescaleSlope="1.5")),
        "implicit": dict(ct_files(STORED, syntax=ImplicitVRLittleEndian, AcquisitionNumber=3)),
        "big endian": dict(ct_files(STORED, syntax=ExplicitVRBigEndian)),
        "deflated": dict(ct_files(STORED, syntax=DeflatedExplicitVRLittleEndian)),
        "coronal": dict(ct_files(STORED.astype(np.uint16), orientation=CORONAL, PixelPaddingValue=63536)),
        "tilted": dict(ct_files(STORED, lean=(0, 0.3, 0), step_mm=3)),
        "JPEG-LS": _encoded(JPEGLSLossless, imagecodecs.jpegls_encode),
        "JPEG 2000": _encoded(
            JPEG2000Lossless, lambda p: imagecodecs.jpeg2k_encode(p, reversible=True, level=0, codecformat="j2k")
        ),
        "RLE": _rle(),
        "Enhanced": {"e": enhanced_file(STORED, [(-10, -20, -30 + 2 * k) for k in range(12)])},
    }
    for folder in real:
        paths = sorted(p for p in folder.rglob("*") if p.suffix != ".txt" and p.is_file())
        by_place = sorted(
            paths, key=lambda p: float(pydicom.dcmread(p, stop_before_pixels=True).ImagePositionPatient[2])
        )
        made[f"real {folder.name}"] = {p.name: p.read_bytes() for p in by_place[:6]}
    return made


# Mutations


def flip(rng: random.Random, content: bytes) -> bytes:
    data, end = bytearray(content), min(len(content), 1500) if rng.random() < 0.8 else len(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwrite(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content))
    n = min(rng.choice([1, 2, 4, 8, 64, 512]), len(content) - at)
    filling = rng.choice([b"\0", b"\xff", b" ", b"9", b"\x7f", b"DICM", rng.randbytes(8)])
    return content[:at] + (filling * n)[:n] + content[at + n :]


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def remove(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice([1, 2, 4, 100]) :]


def insert(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.choice([1, 2, 8, 300])) + content[at:]


def wrong_length(rng: random.Random, content: bytes) -> bytes:
    """A length or another number of the header becomes large, negative or off by a little."""
    at = rng.randrange(132, min(len(content) - 4, 1500))
    value = rng.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 60000, 1 << 20])
    size = rng.choice([2, 4])
    return content[:at] + (value & ((1 << 8 * size) - 1)).to_bytes(size, "little") + content[at + size :]


VALUES: list[Any] = [
    None,
    "",
    "0",
    "-1",
    "1e9",
    "1e-9",
    "60000",
    "nan",
    "abc",
    "1\\2\\3",
    "0.5\\0.5",
    "1\\0\\0\\0\\1\\0",
]
KEYWORDS = [k for k in sorted(header._KEYWORDS) if not k.endswith("Sequence") and k != "PixelData"]


def rewrite(rng: random.Random, content: bytes) -> bytes:
    """Another value of an attribute that is read, written as a writer of files would."""
    try:
        ds = pydicom.dcmread(io.BytesIO(content))
        keyword = rng.choice(KEYWORDS)
        tag = pydicom.datadict.tag_for_keyword(keyword)
        value = rng.choice(VALUES)
        if value is None:
            del ds[tag]
        elif pydicom.datadict.dictionary_VR(tag) in ("US", "SS", "US or SS"):
            ds.add_new(tag, "US", rng.choice([0, 1, 8, 12, 15, 16, 17, 32, 60000, 65535]))
        else:
            ds.add_new(tag, pydicom.datadict.dictionary_VR(tag), value)
        file = io.BytesIO()
        ds.save_as(file)
        return file.getvalue()
    except Exception:  # pydicom writes no such value
        return content


MUTATIONS = [flip, flip, overwrite, cut, remove, insert, wrong_length, rewrite, rewrite]


def mutated(rng: random.Random, files: Files) -> Files:
    """Some of the files changed; sometimes one is gone, twice there, or another's."""
    files = dict(files)
    kind = rng.random()
    if kind < 0.06 and len(files) > 1:
        del files[rng.choice(list(files))]
    elif kind < 0.12:
        files["again"] = rng.choice(list(files.values()))
    elif kind < 0.15:
        files[rng.choice(list(files))] = rng.choice(list(files.values()))
    if kind > 0.1:
        n = len(files) if rng.random() < 0.15 else rng.choice([1, 1, 2])
        mutation, seed = rng.choice(MUTATIONS), rng.random()
        for name in rng.sample(list(files), min(n, len(files))):
            # the same change in every file, or another in each
            files[name] = mutation(random.Random(seed) if n > 2 else rng, files[name])
    return files


# The judge


class Unjudged(Exception):
    """The plain reader cannot say what is right."""


def plain_slices(content: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places (n, 3) of the pixels and their HU, for each frame; none if this is no CT slice of the series."""
    try:
        ds = pydicom.dcmread(io.BytesIO(content), force=True)
        sop_class = str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID"))
        n_frames = int(ds.get("NumberOfFrames") or 1)
        if sop_class not in dicom.CT_CLASSES or "PixelData" not in ds:
            return []
        syntax = str(ds.file_meta.TransferSyntaxUID)
        shape = (n_frames, ds.Rows, ds.Columns)
        if ds.BitsStored != ds.BitsAllocated or ds.HighBit != ds.BitsStored - 1:
            raise Unjudged
        if syntax in LITTLE or syntax == ExplicitVRBigEndian:
            order = ">" if syntax == ExplicitVRBigEndian else "<"
            kind = f"{order}{'iu'[ds.PixelRepresentation == 0]}{ds.BitsAllocated // 8}"
            stored = np.frombuffer(ds.PixelData, kind, int(np.prod(shape))).reshape(shape)
        elif syntax == RLELossless:
            stored = ds.pixel_array.reshape(shape)
        elif syntax in (JPEGLSLossless, JPEG2000Lossless):
            decode = imagecodecs.jpegls_decode if syntax == JPEGLSLossless else imagecodecs.jpeg2k_decode
            (frame,) = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
            stored = decode(frame).reshape(shape)
        else:
            raise Unjudged
        return [_plain_frame(ds, k, stored[k]) for k in range(n_frames)]
    except Unjudged:
        raise
    except Exception as error:
        raise Unjudged from error


def _plain_frame(ds: pydicom.Dataset, k: int, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    position, orientation, spacing, slope, intercept = ds, ds, ds, ds, ds
    if "PerFrameFunctionalGroupsSequence" in ds:
        own, shared = ds.PerFrameFunctionalGroupsSequence[k], ds.SharedFunctionalGroupsSequence[0]
        position, slope = own.PlanePositionSequence[0], own.PixelValueTransformationSequence[0]
        orientation, spacing = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
        intercept = slope
    row, column = np.reshape(np.array(orientation.ImageOrientationPatient, float), (2, 3))
    j, i = (v.ravel() for v in np.indices(stored.shape))
    down, across = (float(v) for v in spacing.PixelSpacing)
    first = np.array(position.ImagePositionPatient, float)
    hu = np.clip(np.rint(stored * float(slope.RescaleSlope) + float(intercept.RescaleIntercept)), -32767, 32767)
    return first + np.outer(j * down, column) + np.outer(i * across, row), hu.ravel()


def judge(files: Files, found: Decoded, n_slices: int, n_aside: int) -> str:
    """`right`, or what a reader of the files would object to. Raises Unjudged if it cannot read them."""
    volume = found.volume
    n_right = 0
    for content in files.values():
        for places, hu in plain_slices(content):
            index = volume.to_index(places)
            nearest = np.rint(index).astype(int)
            if not ((nearest >= 0) & (nearest < volume.shape)).all():
                continue
            off = np.abs((index - nearest) * volume.spacing)
            values = volume.array[tuple(nearest.T)]
            if "tilt-corrected" in found.warnings:
                n_right += 1  # places are tested elsewhere; values lie between the pixels'
            elif off.max() < 0.6 and ((values == hu) | (values == PADDING)).all():
                n_right += 1
    expected = sum(len(plain_slices(content)) for content in files.values())
    if n_right == expected == n_slices:
        return "right"
    if found.warnings or n_aside:
        return "right, with a warning" if n_right >= n_slices else "differs, with a warning"
    return f"WRONG: {expected} slices in the files, {n_slices} in the volume, {n_right} of them right"


def run_case(files: Files, max_gap_slices: int) -> str:
    contents = dicom.Contents()
    for name, content in files.items():
        contents.add(name, content)
    uids = contents.uids()
    if not uids:
        return "refused: no slices"
    uid = max(uids, key=lambda uid: len(contents.slices.get(uid, [])))
    try:
        damage = contents.flaw(uid)
        if damage is not None:
            raise damage
        found = assembly.assemble(contents.slices[uid], min_slices=3, max_gap_slices=max_gap_slices)
        decoded = found.decode()
        _ = decoded.volume
    except Refusal as refusal:
        return f"refused: {refusal.reason}"
    try:
        return judge(files, decoded, int(found.facts["slices"]), len(contents.aside) + len(uids) - 1)
    except Unjudged:
        return "unjudged"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("real", nargs="*", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    made = bases(arguments.real)
    counts: Counter[str] = Counter()
    failures = 0
    slowest = 0.0
    cases = range(arguments.cases) if arguments.only is None else [arguments.only]
    for case in cases:
        rng = random.Random(f"{arguments.seed}/{case}")
        base = rng.choice(list(made))
        files = mutated(rng, made[base])
        started = time.process_time()
        try:
            outcome = run_case(files, rng.choice([0, 1]))
        except Exception:
            outcome = f"EXCEPTION\n{traceback.format_exc()}"
        seconds = time.process_time() - started
        slowest = max(slowest, seconds if case else 0.0)  # the first case compiles
        if seconds > MAX_S and case:
            outcome = f"SLOW: {seconds:.1f} s"
        if outcome[:5].isupper():
            failures += 1
            print(f"case {case} ({base}): {outcome}")
        counts[outcome.splitlines()[0][:60]] += 1
    peak_mib = tiny.peak_bytes() // 2**20
    for outcome, n in counts.most_common():
        print(f"{n:7} {outcome}")
    print(f"{len(cases)} cases, {failures} failures, slowest {slowest:.2f} s, peak memory {peak_mib} MiB")
    return int(failures > 0 or peak_mib > MAX_MIB)


if __name__ == "__main__":
    sys.exit(main())

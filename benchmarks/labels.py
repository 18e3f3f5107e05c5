"""How true labels are, and what they cost: SEGs against highdicom, RTSTRUCTs against a mask, at 1 mm, and their CPU.

    python benchmarks/labels.py seg FOLDER                         # every SEG below it; needs highdicom
    python benchmarks/labels.py rtstruct FILE SERIES [MASK.nii]    # the folder of its CT; a mask of its first ROI

`seg` draws each segment on the grid that highdicom gives it, and counts voxels that differ. `rtstruct` draws each ROI
at 1 mm: by how much its volume differs from that of its contours, and how far its centre lies from theirs. On the grid
of the slices it is compared with the pixels of which half or more is inside, by 32 x 32 points each, and with the mask.
CPU seconds are the least of three, for all ROIs from bytes to encoded labels with their thumbnails, and for their image
from bytes to encoded volume.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

import dskprep
from dskprep.dataset import omezarr, thumbnail
from dskprep.errors import Refusal
from dskprep.settings import PrepConfig
from dskprep.volume import Grid

ROUNDS = 3
POINTS = 32


def compare_segs(folder: Path) -> None:
    import highdicom

    print("| file | segment | voxels, highdicom | differ |\n|---|---|---:|---:|")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            labels = dskprep.read_labels(path)
        except Refusal as refusal:
            print(f"| {path.name} | {refusal.reason} | | |")
            continue
        if labels.kind != "seg":
            continue
        volume = highdicom.seg.segread(path).get_volume(combine_segments=False, rescale_fractional=True)
        grid = Grid(volume.array.shape[:3], volume.affine)
        numbers = highdicom.seg.segread(path).segment_numbers
        for segment in labels.segments:
            theirs = volume.array[..., list(numbers).index(segment.number)] >= 0.5
            ours = labels.at(grid).draw(segment, grid).whole() > 0
            print(f"| {path.name} | {segment.name} | {theirs.sum()} | {(ours != theirs).sum()} |")


def compare_rtstruct(file: Path, series: Path, mask: Path | None) -> None:
    slices = dskprep.read_series(series).grid
    prepared = dskprep.prepare(dskprep.read_series(series))
    fine, content, config = prepared.image.grid, file.read_bytes(), PrepConfig()
    labels = dskprep.read_labels(content, name=file.name).at(slices)
    if mask:
        import nibabel

        image = nibabel.load(mask)
        affine = (np.diag([-1, -1, 1, 1]) @ image.affine)[:, [2, 1, 0, 3]]
        theirs = np.asarray(image.dataobj).T > 0
        ours = labels.draw(labels.segments[0], Grid(theirs.shape, affine)).whole() > 0
        dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        print(f"{labels.segments[0].name}: Dice {dice:.4f} with the mask, volume {ours.sum() / theirs.sum() - 1:+.2%}")
    print("| ROI | ml | volume at 1 mm | centre, mm | Dice, on slices |\n|---|---:|---:|---:|---:|")
    for segment in labels.segments:
        try:
            drawn = labels.draw(segment, fine)
        except Refusal as refusal:
            print(f"| {segment.name} | {refusal.reason} | | | |")
            continue
        off = fine.to_patient(np.argwhere(drawn.mask) + drawn.first).mean(0) - drawn.centroid_mm
        volume = drawn.mask.sum() * fine.voxel_ml / (drawn.ml * (1 - drawn.outside)) - 1
        ours, true = labels.draw(segment, slices).whole() > 0, by_points(contours_of(content, segment.number), slices)
        dice = 2 * (ours & true).sum() / (ours.sum() + true.sum())
        print(f"| {segment.name} | {drawn.ml:.2f} | {volume:+.2%} | {np.linalg.norm(off):.3f} | {dice:.4f} |")

    def draw_all() -> None:
        read, encoder = dskprep.read_labels(content, name=file.name).at(slices), omezarr.LabelEncoder(fine, config)
        for segment in read.segments:
            try:
                drawn = read.draw(segment, fine)
            except Refusal:
                continue
            encoder.encode("a", "a", (1, 2, 3), drawn, {})
            thumbnail.draw_label(drawn.mask, drawn.first, fine.shape, fine.spacing, (1, 2, 3))

    def make_image() -> None:
        made = dskprep.prepare(dskprep.read_series(series))
        omezarr.encode(made, config, {})
        thumbnail.draw(made)

    labels_s, image_s = cpu_seconds(draw_all), cpu_seconds(make_image)
    print(f"CPU: labels {labels_s:.2f} s, image {image_s:.2f} s: {labels_s / image_s:.0%}")


def contours_of(content: bytes, number: int) -> list[NDArray[np.float64]]:
    """Return the closed contours of an ROI, as pydicom reads them."""
    header = pydicom.dcmread(io.BytesIO(content))
    items = [item for item in header.ROIContourSequence if item.ReferencedROINumber == number]
    found = [c for item in items for c in item.ContourSequence if c.ContourGeometricType.startswith("CLOSED")]
    return [np.array(contour.ContourData, np.float64).reshape(-1, 3) for contour in found]


def by_points(contours: list[NDArray[np.float64]], slices: Grid) -> NDArray[np.bool_]:
    """Return the pixels of which half or more is inside by the even-odd rule, for contours that lie on slices."""
    inside = np.zeros(slices.shape, np.float32)
    points = (np.arange(POINTS) + 0.5) / POINTS - 0.5
    for contour in contours:
        index = slices.to_index(contour)
        k, ways = round(index[:, 0].mean()), index[:, 1:]
        if not 0 <= k < slices.shape[0]:
            continue
        (top, left), (bottom, right) = np.floor(ways.min(0)).astype(int), np.ceil(ways.max(0)).astype(int) + 1
        y, x = ((np.arange(a, b)[:, None] + points).ravel() for a, b in ((top, bottom), (left, right)))
        is_in = np.zeros((y.size, x.size), np.bool_)
        for (y0, x0), (y1, x1) in zip(ways, np.roll(ways, -1, axis=0), strict=True):
            lines = (y >= min(y0, y1)) & (y < max(y0, y1))
            if lines.any():
                is_in[lines] ^= x < (x0 + (y[lines] - y0) * (x1 - x0) / (y1 - y0))[:, None]
        share = is_in.reshape(bottom - top, POINTS, right - left, POINTS).mean((1, 3))
        part = inside[k, top:bottom, left:right]
        part[...] = np.abs(part - share[: part.shape[0], : part.shape[1]])  # a contour in another one is a hole
    return inside >= 0.5


def cpu_seconds(work: Callable[[], Any]) -> float:
    took = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["seg", folder]:
            compare_segs(Path(folder))
        case ["rtstruct", file, series, *mask]:
            compare_rtstruct(Path(file), Path(series), Path(mask[0]) if mask else None)
        case _:
            sys.exit(__doc__)

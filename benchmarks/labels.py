"""How true labels are, and what they cost: SEGs against highdicom, RTSTRUCTs against a mask, at 1 mm, and their CPU.

    python benchmarks/labels.py seg FOLDER                         # every SEG below it; needs highdicom
    python benchmarks/labels.py rtstruct FILE SERIES [MASK.nii]    # the folder of its CT; a mask of its first ROI

`seg` draws each segment on the grid that highdicom gives it, and counts voxels that differ. `rtstruct` draws each ROI
at 1 mm: by how much its volume differs from that of its contours, and how far its centre lies from theirs. On the grid
of the slices it is compared with the mask. CPU seconds are the least of three, for all ROIs from bytes to encoded
labels with their thumbnails, and for their image from bytes to encoded volume.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import dskprep
from dskprep.dataset import omezarr, thumbnail
from dskprep.errors import Refusal
from dskprep.settings import PrepConfig
from dskprep.volume import Grid

ROUNDS = 3


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
    print("| ROI | ml | volume at 1 mm | centre, mm |\n|---|---:|---:|---:|")
    for segment in labels.segments:
        try:
            drawn = labels.draw(segment, fine)
        except Refusal as refusal:
            print(f"| {segment.name} | {refusal.reason} | | |")
            continue
        off = fine.to_patient(np.argwhere(drawn.mask) + drawn.first).mean(0) - drawn.centroid_mm
        volume = drawn.mask.sum() * fine.voxel_ml / (drawn.ml * (1 - drawn.outside)) - 1
        print(f"| {segment.name} | {drawn.ml:.2f} | {volume:+.2%} | {np.linalg.norm(off):.3f} |")

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

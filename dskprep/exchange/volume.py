"""One volume of a dataset as NIfTI files: its image, and one mask with a number for each class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dskprep.dataset import store
from dskprep.dataset.facts import StoredObject
from dskprep.dataset.record import Record, RecordName
from dskprep.exchange import place
from dskprep.exchange.place import VolumeRecord
from dskprep.reading import convert
from dskprep.reading.stored import StoredVolume
from dskprep.volume import Volume

VOXEL_BYTES = {"HU": 2, "uint8": 1}
"""Bytes per voxel of an image, by its values; other values have 8 at most."""


@dataclass(frozen=True)
class ExportJob:
    """A volume to be written as files.

    `image` and `mask` are their paths, `mask` is "" if there is none. `classes` are the numbers of the mask, each with
    the name of a label of the volume; where labels overlap, the later one counts. `digest` is that of all of this.
    """

    record: RecordName
    image: str
    mask: str
    classes: tuple[tuple[int, str], ...]
    digest: str

    @property
    def case(self) -> ExportJob:
        """What the executor asks for the key."""
        return self

    @property
    def key(self) -> str:
        """The key of the volume."""
        return self.record.key


def need_bytes(record: Record) -> int:
    """Return the memory that a volume needs while it is written: itself, and its file if that hardly shrinks."""
    n_voxels = math.prod(record.geometry.shape) if record.geometry else 0
    return 2 * n_voxels * VOXEL_BYTES.get(record.values or "HU", 8) + 3 * n_voxels


def write(target: str, out: str, job: ExportJob, record: Record) -> VolumeRecord:
    """Write the files of one volume, and then the record that says so. The same volume gives the same bytes."""
    volume = StoredVolume(job.key, store.volume_url(target, job.key), record)
    files = {job.image: convert.to_nifti_gz(volume.load())}
    if job.mask:
        files[job.mask] = convert.to_nifti_gz(_join(volume, job.classes))
    written = VolumeRecord(job.key, job.digest, {name: StoredObject.of(content) for name, content in files.items()})
    place.write(out, written, files)
    return written


def _join(volume: StoredVolume, classes: tuple[tuple[int, str], ...]) -> Volume:
    """Return one mask of several labels: uint8, the number of the class in each voxel, 0 outside of all."""
    mask = np.zeros(volume.shape, np.uint8)
    for number, label in classes:
        mask[volume.load(label).array > 0] = number
    return Volume(mask, volume.affine)

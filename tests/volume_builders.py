"""Volume files by other programs than dskprep: NIfTI by nibabel, NRRD and MetaImage by ITK."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dskprep.volume import Volume

KINDS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".mhd compressed")
"""All ways in which a volume is written here."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def chest(shape: tuple[int, int, int] = (24, 48, 48), spacing: tuple[float, float, float] = (12, 8, 8)) -> Volume:
    """A body with two lungs, a spine and noise; air round it. int16 HU."""
    z, y, x = (np.linspace(-1, 1, n) for n in shape)
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    hu = np.where((x / 0.85) ** 2 + (y / 0.65) ** 2 < 1, 40, -1000) + np.zeros(shape)
    for side in (-0.4, 0.4):
        hu[((x - side) / 0.28) ** 2 + (y / 0.42) ** 2 + (z / 0.8) ** 2 < 1] = -850
    hu[np.broadcast_to(x**2 + (y - 0.45) ** 2 < 0.01, shape)] = 700
    hu += np.random.default_rng(0).normal(0, 20, shape)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*spacing, 1)
    affine[:3, 3] = -150.5, -190.25, -300
    return Volume(hu.round().astype(np.int16), affine)


def nifti(array: NDArray[Any], affine: NDArray[np.float64], **fields: Any) -> bytes:
    """A NIfTI file of stored values (z, y, x) and an LPS affine for their indices; header `fields` as given."""
    ras = LPS_TO_RAS @ affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(array.T, ras, dtype=array.dtype)
    image.set_sform(ras, 1)
    image.set_qform(ras, 1, strip_shears=True)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return bytes(header.binaryblock + content[348:])


def by_itk(
    array: NDArray[Any], affine: NDArray[np.float64], suffix: str, *, compress: bool = False
) -> dict[str, bytes]:
    """The files that ITK writes for a volume called `ct`, by name."""
    spacing = np.linalg.norm(affine[:3, 2::-1], axis=0)
    image = sitk.GetImageFromArray(array)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, 2::-1] / spacing).ravel().tolist())
    with tempfile.TemporaryDirectory() as folder:
        sitk.WriteImage(image, f"{folder}/ct{suffix}", useCompression=compress)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def files(volume: Volume, kind: str, array: NDArray[Any] | None = None) -> dict[str, bytes]:
    """The files of a volume called `ct` in one of KINDS, by name."""
    array = volume.array if array is None else array
    if kind.startswith(".nii"):
        content = nifti(array, volume.affine)
        return {f"ct{kind}": gzip.compress(content) if kind.endswith(".gz") else content}
    suffix = kind.split()[0]
    return by_itk(array, volume.affine, suffix, compress=kind in (".nrrd", ".nhdr", ".mha", ".mhd compressed"))


def itk_reads(named: Mapping[str, bytes]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The values (z, y, x) of a file that ITK reads, and the LPS affine of their indices."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in named.items():
            Path(folder, name).write_bytes(content)
        (header,) = (name for name in named if not name.endswith(("raw", ".raw.gz")))
        image = sitk.ReadImage(f"{folder}/{header}")
    affine = np.eye(4)
    affine[:3, 2::-1] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), affine

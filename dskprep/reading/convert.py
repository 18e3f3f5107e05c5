"""Convert volumes to objects of nibabel (NIfTI), SimpleITK, dask and xarray. The home of their imports."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from dskprep.errors import UsageError
from dskprep.volume import Grid, Volume

if TYPE_CHECKING:
    import dask.array
    import nibabel
    import SimpleITK
    import xarray

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Maps DICOM's patient axes to NIfTI's: x and y point the other way."""

REVERSED = [2, 1, 0, 3]
"""Columns of an affine for indices (z, y, x, 1), in the order for (x, y, z, 1)."""

GZIP_LEVEL = 1
"""Compression of NIfTI files: a third of the time of zlib's default, for files that are a tenth larger."""

SCANNER = 1
"""NIFTI_XFORM_SCANNER_ANAT: the affine maps to the scanner's coordinates (nifti1.h)."""


def to_nifti(volume: Volume) -> nibabel.Nifti1Image:
    """Return a volume as a NIfTI image: its array is (x, y, z), its affine maps to RAS mm (nifti1.h).

    The voxels are not copied.
    """
    nib = importlib.import_module("nibabel")
    affine = LPS_TO_RAS @ volume.affine[:, REVERSED]
    image: nibabel.Nifti1Image = nib.Nifti1Image(volume.array.T, affine)
    image.set_sform(affine, SCANNER)
    image.set_qform(affine, SCANNER)
    image.header.set_xyzt_units("mm")
    return image


def to_nifti_gz(volume: Volume) -> bytes:
    """Return a volume as the content of a `.nii.gz` file. The same volume gives the same bytes, whatever the time is.

    Raises UsageError if nibabel is not installed.
    """
    image, content = to_nifti(volume), io.BytesIO()
    with gzip.GzipFile("", "wb", GZIP_LEVEL, content, mtime=0) as file:
        image.to_stream(file)
    return content.getvalue()


def check_nifti() -> None:
    """Raise UsageError if nibabel is not installed."""
    _needs("nibabel")


def to_sitk(volume: Volume) -> SimpleITK.Image:
    """Return a volume as a SimpleITK image: origin, spacing and direction are in LPS mm, as ITK defines them.

    Raises UsageError if SimpleITK is not installed.
    """
    sitk = _needs("SimpleITK")
    image: SimpleITK.Image = sitk.GetImageFromArray(volume.array)
    image.SetOrigin(volume.affine[:3, 3].tolist())
    image.SetSpacing(volume.spacing[::-1])
    image.SetDirection((volume.affine[:3, 2::-1] / volume.spacing[::-1]).ravel().tolist())
    return image


def to_dask(array: Any, what: str, content: object, chunks: tuple[int, ...] | None) -> dask.array.Array:
    """Return a zarr array as a dask array; by default each zarr chunk is a dask chunk.

    `content` tells its voxels from all others: with the chunks it makes the name, by which dask takes blocks for equal.
    """
    chunks = chunks or array.chunks
    token = hashlib.sha256(repr((content, chunks)).encode()).hexdigest()[:16]
    lazy: dask.array.Array = importlib.import_module("dask.array").from_array(array, chunks, name=f"{what}-{token}")
    return lazy


def to_xarray(arrays: dict[str, Any], grid: Grid, attributes: dict[str, Any]) -> xarray.Dataset:
    """Return arrays (z, y, x) of one grid as an xarray dataset, with coordinates in mm along each axis.

    For an upright volume the coordinates are the patient's LPS z, y and x. For an oblique one they start at the place
    of its first voxel and run along its own axes. The attribute `affine` is exact for both. Raises UsageError if
    xarray is not installed.
    """
    xr = _needs("xarray")
    starts = grid.affine[2::-1, 3]
    coordinates = {
        axis: (axis, start + step * np.arange(n), {"units": "mm"})
        for axis, start, step, n in zip("zyx", starts, grid.spacing, grid.shape, strict=True)
    }
    attributes = {"frame": "LPS", "affine": grid.affine.ravel().tolist(), **attributes}
    variables = {name: (("z", "y", "x"), array) for name, array in arrays.items()}
    dataset: xarray.Dataset = xr.Dataset(variables, coordinates, attributes)
    return dataset


def _needs(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UsageError(f"{library} is not installed: in a clone of dskprep, pip install '.[exchange]'") from error

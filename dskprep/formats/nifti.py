"""The header of NIfTI-1 and NIfTI-2 files, by nibabel. Its only reader here."""

from __future__ import annotations

from typing import Any

import numpy as np

from dskprep.errors import Refusal
from dskprep.formats.header import MAX_SKIP, RAS_TO_LPS, UNITS_MM, Header, affine_of, damaged, three_axes

MARKS = {b"n+1\0": 344, b"n+2\0": 4}
"""What tells NIfTI-1 and NIfTI-2 in one file, and where it stands (nifti1.h, nifti2.h)."""
PAIR_MARKS = {b"ni1\0": 344, b"ni2\0": 4}
"""The same of a header whose voxels are in an .img file."""
UNITS = {0: "mm", 1: "m", 2: "mm", 3: "um"}
"""Units of length (xyzt_units, its lowest three bits). None counts as mm, as other readers have it."""


def is_nifti(head: bytes) -> bool:
    """Tell whether decompressed first bytes are those of NIfTI, in one file or with its voxels in another."""
    return any(head[at : at + 4] == mark for mark, at in (MARKS | PAIR_MARKS).items())


def read(head: bytes, where: str, *, is_compressed: bool) -> Header:
    """Read the header in the first bytes of a file, decompressed. Its voxels are compressed if the file was."""
    import nibabel  # 0.3 s that a run over DICOM need not spend

    if any(head[at : at + 4] == mark for mark, at in PAIR_MARKS.items()):
        raise damaged(where, "expected the voxels in the same file, found a header for an .img file; write one .nii")
    kind: Any = nibabel.Nifti2Header if head[4:8] == b"n+2\0" else nibabel.Nifti1Header
    if len(head) < kind.template_dtype.itemsize:
        raise Refusal("truncated", f"{where}: expected the header of NIfTI, found {len(head)} bytes")
    with np.errstate(all="ignore"):  # whether the numbers make sense is judged later
        return _read(kind, head, where, is_compressed=is_compressed)


def _read(kind: Any, head: bytes, where: str, *, is_compressed: bool) -> Header:
    try:
        found = kind(head[: kind.template_dtype.itemsize], check=False)
        sizes = [int(n) for n in found.get_data_shape()]
        code, skip = int(found["datatype"]), int(found["vox_offset"])
        slope, intercept = found.get_slope_inter()
        unit = UNITS.get(int(found["xyzt_units"]) & 7)
        is_placed = bool(found["sform_code"] > 0 or found["qform_code"] > 0)
        affine = np.array(found.get_best_affine() if is_placed else np.eye(4), np.float64)
        dtype = found.get_data_dtype()
    except Exception as error:  # whatever damaged bytes lead nibabel to
        raise damaged(where, f"cannot be read as NIfTI: {error}") from error
    if not is_placed:
        raise Refusal("missing-attribute", f"{where}: expected a place, found neither sform nor qform")
    if unit is None:
        raise damaged(where, f"expected metres, mm or micrometres in xyzt_units, found {int(found['xyzt_units'])}")
    least = kind.template_dtype.itemsize + 4  # four bytes that tell of extensions follow the header
    if not least <= skip <= MAX_SKIP:
        raise damaged(where, f"expected voxels soon after the header, at {least} or later, found vox_offset {skip}")
    shape = three_axes(sizes, where)
    lps = RAS_TO_LPS * UNITS_MM[unit]
    return Header(
        where,
        shape,
        affine_of(lps[:, None] * affine[:3, :3], lps * affine[:3, 3]),
        _checked(dtype, code, where),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        start=0 if is_compressed else skip,
        skip=skip if is_compressed else 0,
        compression="deflate" if is_compressed else "",
    )


def _checked(dtype: np.dtype[Any], code: int, where: str) -> np.dtype[Any]:
    if dtype.names:  # RGB24 and RGBA32
        raise Refusal("not-hu", f"{where}: expected one grey value per voxel, found colour")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Refusal("undecodable-pixels", f"{where}: expected whole numbers or floats, found datatype {code}")
    return dtype

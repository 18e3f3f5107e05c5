"""The function of TotalSegmentator 2.18.0. Right is where the affine of the image says."""

import nibabel
import numpy as np

from .map_to_binary import class_map


def totalsegmentator(
    input,
    output=None,
    ml=False,
    nr_thr_resamp=1,
    nr_thr_saving=6,
    fast=False,
    nora_tag="None",
    preview=False,
    task="total",
    roi_subset=None,
    statistics=False,
    radiomics=False,
    crop_path=None,
    body_seg=False,
    force_split=False,
    output_type="nifti",
    quiet=False,
    verbose=False,
    test=0,
    skip_saving=False,
    device="gpu",
):
    assert isinstance(input, nibabel.Nifti1Image)
    assert isinstance(roi_subset, list)
    assert (output, ml, device) == (None, True, "gpu:0")
    hu = np.asarray(input.dataobj)
    assert hu.min() >= -1024
    i, j, k = np.indices(hu.shape)
    right_mm, _, up_mm = np.einsum("ab,bxyz->axyz", input.affine[:3, :3], np.array([i, j, k]))
    upper, right = up_mm >= np.median(up_mm), right_mm >= np.median(right_mm)
    found = np.where(right, np.where(upper, 12, 14), np.where(upper, 10, 11))
    found[(up_mm > np.quantile(up_mm, 0.4)) & ~upper & right] = 13
    found[~((hu > -950) & (hu < -500))] = 0
    found[hu > 0] = 5  # the liver is no lung
    wanted = [number for number, name in class_map[task].items() if name in roi_subset]
    found *= np.isin(found, wanted)
    return nibabel.Nifti1Image(found.astype(np.uint8), input.affine)

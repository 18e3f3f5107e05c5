"""The metadata of OME-Zarr, in versions 0.5 and 0.6: how an image or a label lies, its arrays, a volume's labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dskprep import sides
from dskprep.dataset import layout
from dskprep.series import upright
from dskprep.volume import Grid, Triple

VERSIONS = ("0.5", "0.6")
"""Versions of OME-Zarr that are written."""
LIST = "labels/zarr.json"
"""Where below a volume its labels are listed: the metadata of their group."""
ORIENTATION = ("inferior-to-superior", "anterior-to-posterior", "right-to-left")
"""The directions of the patient's z, y and x, in the words of OME-Zarr's RFC 4."""
INTRINSIC, PATIENT = "intrinsic", "LPS"
"""Coordinate systems of 0.6, both in mm: along the axes of the volume, and of the patient as DICOM has them."""
ALPHA = 128
"""Opacity of a label in a viewer, from 0 to 255; at one half, the image shows through."""


def image_of(name: str, grid: Grid, n_levels: int, version: str, method: str) -> dict[str, Any]:
    """Return the metadata of an image, or of a label without what it shows. `method` says how levels are halved.

    The scale and translation to patient mm omit an oblique volume's rotation. In 0.6 it is in the transformation from
    INTRINSIC to PATIENT; of 0.5 see `dskprep.affine`.
    """
    x, y, z = grid.affine[:3, 3].tolist()
    multiscale = {
        "name": name,
        "axes": [
            {"name": axis, "type": "space", "unit": "millimeter", "orientation": {"type": "anatomical", "value": value}}
            for axis, value in zip(layout.AXES, _orientation(grid), strict=True)
        ],
        "datasets": [
            {
                "path": f"{level}",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [round(2**level * s, 9) for s in grid.spacing]},
                    {"type": "translation", "translation": _first_voxel((z, y, x), grid.spacing, level)},
                ],
            }
            for level in range(n_levels)
        ],
        **({"type": method} if n_levels > 1 else {}),
    }
    ome = {"version": "0.5", "multiscales": [multiscale]}
    return ome if version == "0.5" else to_06(ome, grid.affine.round(6))


def _orientation(grid: Grid) -> list[str]:
    """Return the direction to which each axis is nearest. Recipes of 2017 have slices as stored, also of the prone."""
    order = upright.patient_order(grid.affine)
    found = []
    for axis in range(3):
        patient_axis = order.index(axis)
        start, _, end = ORIENTATION[patient_axis].partition("-to-")
        is_backward = grid.affine[2 - patient_axis, axis] < 0
        found.append(f"{end}-to-{start}" if is_backward else ORIENTATION[patient_axis])
    return found


def _first_voxel(first: Triple, spacing: Triple, level: int) -> list[float]:
    """Return where the middle of a level's first voxel lies, which is that of the voxels it was made from."""
    return [mm + (2**level - 1) / 2 * s if level else mm for mm, s in zip(first, spacing, strict=True)]


def label_of(names: dict[int, str], rgb: dict[int, tuple[int, int, int]]) -> dict[str, Any]:
    """Return what a label shows: the name and colour of each value."""
    return {
        "colors": [{"label-value": value, "rgba": [*rgb[value], ALPHA]} for value in rgb],
        "properties": [{"label-value": value, "name": name} for value, name in names.items()],
        "source": {"image": "../../"},
    }


LUNGS = label_of(sides.NAMES, sides.RGB)
"""What the lungs show."""


def to_06(ome: dict[str, Any], affine: ArrayLike) -> dict[str, Any]:
    """Return metadata of version 0.5, as they are written here, in version 0.6; those of 0.6 as they are.

    `affine` maps an index (z, y, x, 1) to patient LPS (x, y, z, 1) in mm, rounded as in the record.
    """
    if ome["version"] == "0.6":
        return ome
    changed: dict[str, Any] = {"version": "0.6"}
    if "multiscales" in ome:
        changed["multiscales"] = [_multiscale_06(each, np.array(affine, np.float64)) for each in ome["multiscales"]]
    return ome | changed


def _multiscale_06(old: dict[str, Any], affine: NDArray[np.float64]) -> dict[str, Any]:
    scale, first = (list(step.values())[1] for step in old["datasets"][0]["coordinateTransformations"])
    new = {
        "name": old["name"],
        "coordinateSystems": [{"name": name, "axes": old["axes"]} for name in (INTRINSIC, PATIENT)],
        "datasets": [
            {
                "path": each["path"],
                "coordinateTransformations": [
                    {
                        "type": "sequence",
                        "input": {"path": each["path"]},
                        "output": {"name": INTRINSIC},
                        "transformations": each["coordinateTransformations"],
                    }
                ],
            }
            for each in old["datasets"]
        ],
        "coordinateTransformations": [
            {**_to_patient(scale, first, affine), "input": {"name": INTRINSIC}, "output": {"name": PATIENT}}
        ],
    }
    return new | {name: old[name] for name in ("type",) if name in old}


def _to_patient(scale: Sequence[float], first: Sequence[float], affine: NDArray[np.float64]) -> dict[str, Any]:
    """Return the transformation from INTRINSIC to PATIENT, both (z, y, x): for an upright volume they are the same."""
    turned = affine[2::-1]
    if (turned[:, :3] == np.diag(np.abs(np.diag(turned)))).all():
        return {"type": "identity"}
    matrix = turned[:, :3] / scale
    offset = turned[:, 3] - matrix @ first
    return {"type": "affine", "affine": (np.column_stack([matrix, offset]).round(9) + 0.0).tolist()}


def group_json(attributes: dict[str, Any]) -> bytes:
    """Return the metadata of a group, as zarr writes them."""
    return json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=2).encode()


def array_json(
    shape: tuple[int, ...], dtype: np.dtype[Any], fill: float, *, edge: int, codec: str, level: int
) -> bytes:
    """Return the metadata of an array that is stored as one of `layout.OURS`, byte for byte as zarr writes them.

    Its chunks have this edge, and are packed by the setting `codec` at this level of zstd.
    """
    endian = {"configuration": {"endian": "little"}}
    blosc = {
        "typesize": dtype.itemsize,
        "cname": layout.BLOSC["cname"],
        "clevel": level,
        "shuffle": layout.BLOSC["shuffle"],
        "blocksize": layout.block_bytes(edge, dtype.itemsize),
    }
    packing = {
        "blosc-zstd": {"name": "blosc", "configuration": blosc},
        "zstd": {"name": "zstd", "configuration": {"level": level, "checksum": False}},
    }
    sharding = {
        "chunk_shape": [edge, edge, edge],
        "codecs": [{"name": "bytes", **(endian if dtype.itemsize > 1 else {})}, packing[codec]],
        "index_codecs": [{"name": "bytes", **endian}, {"name": "crc32c"}],
        "index_location": "end",
    }
    shard = layout.shard_shape(shape, dtype.itemsize, edge)
    metadata = {
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": dtype.type(fill).item(),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": list(layout.AXES),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    return json.dumps(metadata, indent=2).encode()


def labels_json(names: Iterable[str], version: str) -> bytes:
    """Return the metadata of the group of all labels of a volume: their names, that of the lungs first."""
    in_order = sorted(names, key=lambda name: (name != "lungs", name))
    return group_json({"ome": {"version": version, "labels": in_order}})


def listed_labels(content: bytes) -> set[str] | None:
    """Return the names in the metadata of that group; None if they are not as dskprep writes them."""
    try:
        names = json.loads(content)["attributes"]["ome"]["labels"]
        return set(names) if any(content == labels_json(names, version) for version in VERSIONS) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def version_of(content: bytes) -> str:
    """Return the version of a volume by its metadata; if they are damaged, the older one."""
    try:
        found = json.loads(content)["attributes"]["ome"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = ""
    return found if found in VERSIONS else VERSIONS[0]

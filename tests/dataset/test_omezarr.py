"""A written volume is an OME-Zarr image that other programs open."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import zarr

from dskprep import storage
from dskprep.dataset import layout, omezarr
from dskprep.preparation.lungs import lungs
from dskprep.preparation.prepared import Prepared
from dskprep.settings import PrepConfig
from dskprep.volume import AIR_HU, Volume

AFFINE = np.array([[0, 0, 0.75, -120.5], [0, 1.5, 0, -80.25], [2, 0, 0, -300], [0, 0, 0, 1]], np.float64)


def prepared(shape: tuple[int, int, int] = (20, 30, 40), *, has_lungs: bool = True) -> Prepared:
    rng = np.random.default_rng(0)
    image = Volume(rng.integers(-1024, 3000, shape, dtype=np.int16), AFFINE)
    mask = image.with_array((rng.random(shape) > 0.5).astype(np.uint8))
    found = lungs.Lungs(mask, 1.0, 0.0, ()) if has_lungs else None
    return Prepared(image, found)


def test_what_is_written_is_what_is_read(place: str) -> None:
    given = prepared()
    tiny.write(place, omezarr.encode(given, PrepConfig(), {}))
    image, mask = zarr.open_array(place, path="0", mode="r"), zarr.open_array(place, path="labels/lungs/0", mode="r")
    assert given.lungs is not None
    assert (image.dtype, mask.dtype) == (np.int16, np.uint8)
    np.testing.assert_array_equal(image[...], given.image.array)
    np.testing.assert_array_equal(mask[...], given.lungs.mask.array)
    np.testing.assert_array_equal(zarr.open_group(place, mode="r").attrs["dskprep"]["affine"], AFFINE)
    np.testing.assert_array_equal(image[3:5, 7, ::2], given.image.array[3:5, 7, ::2])


def test_it_is_valid_ome_zarr(place: str) -> None:
    from ome_zarr_models.v05.image import Image
    from ome_zarr_models.v05.image_label import ImageLabel
    from ome_zarr_models.v05.labels import Labels

    tiny.write(place, omezarr.encode(prepared(), PrepConfig(), {"dskprep": "0"}))
    image = Image.from_zarr(zarr.open_group(place, mode="r"))
    Labels.from_zarr(zarr.open_group(f"{place}/labels", mode="r"))
    label = ImageLabel.from_zarr(zarr.open_group(f"{place}/labels/lungs", mode="r"))
    for multiscale in (image.ome_attributes.multiscales[0], label.ome_attributes.multiscales[0]):
        assert [(axis.name, axis.type, axis.unit) for axis in multiscale.axes] == [
            (name, "space", "millimeter") for name in "zyx"
        ]
        scale, translation = multiscale.datasets[0].coordinateTransformations
        assert scale.scale == [2.0, 1.5, 0.75]
        assert translation.translation == [-300.0, -80.25, -120.5]


def test_plain_zarr_opens_it_with_the_names_of_its_axes(tmp_path: Path) -> None:
    url = tiny.write(tmp_path / "v", omezarr.encode(prepared(), PrepConfig(chunk=16), {}))
    array = zarr.open_group(url, mode="r")["0"]
    assert isinstance(array, zarr.Array)
    assert (array.shape, array.chunks, array.shards) == ((20, 30, 40), (16, 16, 16), (32, 32, 48))
    assert array.metadata.dimension_names == ("z", "y", "x")  # type: ignore[union-attr]
    assert array.fill_value == AIR_HU


def test_the_same_volume_gives_the_same_bytes() -> None:
    first, second = (omezarr.encode(prepared(), PrepConfig(), {"hu_sha256": "x"}) for _ in range(2))
    assert first == second
    assert list(first) == sorted(first)


def test_what_the_default_says_of_a_volume_stays_as_it_was() -> None:
    """Recorded before there were levels and 0.6. Chunks are left out: other releases of zstd pack otherwise."""
    objects = omezarr.encode(prepared(), PrepConfig(), {"dskprep": "0"})
    recorded = {
        "zarr.json": "403e005cada5e196",
        "labels/zarr.json": "b152e0c8edf4f94e",
        "labels/lungs/zarr.json": "c64fa63fe5e24800",
    }
    assert {name: hashlib.sha256(objects[name]).hexdigest()[:16] for name in recorded} == recorded
    assert objects.keys() - recorded == {
        f"{path}/{of}" for path in ("0", "labels/lungs/0") for of in ("zarr.json", "c/0/0/0")
    }


def test_what_is_air_alone_takes_no_chunk_and_reads_as_air(place: str) -> None:
    air = Volume(np.full((20, 20, 20), AIR_HU, np.int16), AFFINE)
    objects = omezarr.encode(Prepared(air, None), PrepConfig(), {})
    assert set(objects) == {"zarr.json", "0/zarr.json"}
    tiny.write(place, objects)
    assert (zarr.open_array(place, path="0", mode="r")[...] == AIR_HU).all()


@pytest.mark.parametrize(("dtype", "fill"), [("float64", -0.25), ("float32", -0.25), ("uint8", 170)])
def test_an_image_of_another_type_is_stored_with_its_own_air(place: str, dtype: str, fill: float) -> None:
    array = np.full((20, 40, 20), fill, dtype)
    array[3, 4, 5] = 0.1 if fill < 0 else 3
    objects = omezarr.encode(Prepared(Volume(array, AFFINE), None, fill=fill), PrepConfig(chunk=16), {})
    tiny.write(place, objects)
    image = zarr.open_array(place, path="0", mode="r")
    assert (image.dtype, image.fill_value) == (np.dtype(dtype), fill)
    np.testing.assert_array_equal(image[...], array)


def test_without_lungs_there_is_no_label() -> None:
    objects = omezarr.encode(prepared(has_lungs=False), PrepConfig(), {})
    assert not [name for name in objects if name.startswith("labels")]


def test_a_volume_beyond_one_shard_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layout, "MAX_SHARD", (32, 32, 32))
    given = prepared((70, 40, 33))
    objects = omezarr.encode(given, PrepConfig(chunk=16), {})
    assert len([name for name in objects if name.startswith("0/c/")]) == 3 * 2 * 2
    url = tiny.write(tmp_path / "v", objects)
    np.testing.assert_array_equal(zarr.open_array(url, path="0", mode="r")[...], given.image.array)


def test_where_it_comes_from_stands_in_its_attributes(place: str) -> None:
    tiny.write(place, omezarr.encode(prepared(), PrepConfig(), {"hu_sha256": "abc"}))
    attributes = json.loads(storage.read(f"{place}/zarr.json"))["attributes"]
    assert attributes["dskprep"] == {"affine": AFFINE.tolist(), "values": "HU", "hu_sha256": "abc"}


@pytest.mark.parametrize(
    ("columns", "directions"),
    [
        ([(0, 0, 2), (0, 1, 0), (1, 0, 0)], "inferior-to-superior anterior-to-posterior right-to-left"),
        ([(0, 0.3, 2), (0, 1, -0.2), (1, 0, 0)], "inferior-to-superior anterior-to-posterior right-to-left"),
        ([(0, 0, 2), (0, -1, 0), (-1, 0, 0)], "inferior-to-superior posterior-to-anterior left-to-right"),  # prone
        ([(0, 2, 0), (0, 0, -1), (1, 0, 0)], "anterior-to-posterior superior-to-inferior right-to-left"),  # coronal
    ],
)
def test_the_direction_of_each_axis_is_that_of_the_affine(columns: list[Any], directions: str) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.transpose(columns)
    image = Volume(np.zeros((4, 5, 6), np.int16), affine)
    objects = omezarr.encode(Prepared(image, None), PrepConfig(), {})
    (multiscale,) = json.loads(objects["zarr.json"])["attributes"]["ome"]["multiscales"]
    assert [axis["orientation"]["value"] for axis in multiscale["axes"]] == directions.split()


def test_metadata_is_strict_json() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for name, content in omezarr.encode(prepared(), PrepConfig(), {}).items():
        if name.endswith(".json"):
            json.loads(content, parse_constant=refuse)

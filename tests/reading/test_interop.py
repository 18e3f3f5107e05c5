"""Other readers of OME-Zarr open a written volume: the same voxels, spacing, place and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import zarr

from dskprep.dataset import layout, omezarr
from dskprep.preparation.lungs import lungs
from dskprep.preparation.prepared import Prepared
from dskprep.settings import PrepConfig
from dskprep.volume import Volume

SHAPE, SPACING, FIRST = (70, 40, 50), (2.5, 1.5, 0.75), (-300.0, -80.25, -120.5)
"""(z, y, x), in voxels and mm."""

READS_OLD_FORMATS_TOO = "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
pytestmark = [pytest.mark.filterwarnings(words) for words in READS_OLD_FORMATS_TOO]  # their own, and of their imports


@pytest.fixture(scope="module")
def truth() -> Prepared:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = SPACING
    affine[:3, 3] = FIRST[::-1]
    affine[3, 3] = 1
    rng = np.random.default_rng(0)
    image = Volume(rng.integers(-1024, 3000, SHAPE, dtype=np.int16), affine)
    image.array[:16] = -1024  # chunks that are not stored
    mask = image.with_array(rng.integers(0, 3, SHAPE, dtype=np.uint8))
    return Prepared(image, lungs.Lungs(mask, 1.0, 1.0, ()))


@pytest.fixture(
    scope="module",
    params=[
        PrepConfig(chunk=16),
        PrepConfig(chunk=16, codec="zstd", levels=3),
        PrepConfig(chunk=16, ome_zarr="0.6", levels=3),
        PrepConfig(chunk=16, ome_zarr="0.6", codec="zstd"),
    ],
    ids=lambda config: f"{config.ome_zarr}, {config.codec}, {config.levels} levels",
)
def settings(request: pytest.FixtureRequest) -> PrepConfig:
    config: PrepConfig = request.param
    return config


@pytest.fixture(scope="module")
def volume(truth: Prepared, settings: PrepConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The volume in several shards of several chunks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(layout, "MAX_SHARD", (32, 32, 32))
        objects = omezarr.encode(truth, settings, {"dskprep": "0"})
    return tiny.write(tmp_path_factory.mktemp("interop") / "v.zarr", objects)


def steps_of(transformations: list[Any]) -> list[Any]:
    """Scale and translation of a level, which 0.6 puts into one sequence."""
    (first, *_) = transformations
    kind = first["type"] if isinstance(first, dict) else first.type
    if kind != "sequence":
        return transformations
    return list(first["transformations"] if isinstance(first, dict) else first.transformations)


def mask_of(truth: Prepared) -> np.ndarray:
    assert truth.lungs is not None
    return truth.lungs.mask.array


@pytest.mark.slow
def test_ome_zarr_models_finds_image_and_labels_valid(volume: str, settings: PrepConfig) -> None:
    models = f"ome_zarr_models.v{settings.ome_zarr.replace('.', '')}"  # of 0.6 since version 1.8
    image_of, label_of, labels_of = (
        pytest.importorskip(f"{models}.{name}") for name in ("image", "image_label", "labels")
    )
    image = image_of.Image.from_zarr(zarr.open_group(volume, mode="r"))
    labels_of.Labels.from_zarr(zarr.open_group(f"{volume}/labels", mode="r"))
    label = label_of.ImageLabel.from_zarr(zarr.open_group(f"{volume}/labels/lungs", mode="r"))
    for multiscale in (image.ome_attributes.multiscales[0], label.ome_attributes.multiscales[0]):
        assert len(multiscale.datasets) == settings.levels
        scale, translation = steps_of(multiscale.datasets[0].coordinateTransformations)
        assert (tuple(scale.scale), tuple(translation.translation)) == (SPACING, FIRST)


@pytest.mark.parametrize(("path", "of"), [("", "image"), ("/labels/lungs", "lungs")])
def test_ngff_zarr_validates_it_and_knows_its_place(
    volume: str, settings: PrepConfig, truth: Prepared, path: str, of: str
) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    image, *coarser = ngff_zarr.from_ngff_zarr(volume + path, validate=True).images
    assert len(coarser) == settings.levels - 1
    for level, each in enumerate(coarser, 1):  # their first voxels lie between those that they are made from
        assert tuple(each.scale[axis] for axis in "zyx") == tuple(2**level * np.array(SPACING))
        assert tuple(each.translation[axis] for axis in "zyx") == tuple(FIRST + (2**level - 1) / 2 * np.array(SPACING))
    assert tuple(image.dims) == ("z", "y", "x")
    assert tuple(image.scale[axis] for axis in "zyx") == SPACING
    assert tuple(image.translation[axis] for axis in "zyx") == FIRST
    assert set(image.axes_units.values()) == {"millimeter"}
    leads = {axis: orientation.value.value for axis, orientation in image.axes_orientations.items()}
    assert leads == {"z": "inferior-to-superior", "y": "anterior-to-posterior", "x": "right-to-left"}
    expected = truth.image.array if of == "image" else mask_of(truth)
    np.testing.assert_array_equal(np.asarray(image.data), expected)


def test_ome_zarr_py_reads_image_and_labels(volume: str, settings: PrepConfig, truth: Prepared) -> None:
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    image, _, label = Reader(parse_url(volume))()
    for node, expected in ((image, truth.image.array), (label, mask_of(truth))):
        assert len(node.data) == settings.levels
        np.testing.assert_array_equal(np.asarray(node.data[0]), expected)
        scale, translation = steps_of(node.metadata["coordinateTransformations"][0])
        assert (tuple(scale["scale"]), tuple(translation["translation"])) == (SPACING, FIRST)
    assert label.metadata["properties"] == {1: {"name": "right lung"}, 2: {"name": "left lung"}, 3: {"name": "lung"}}


def test_tensorstore_reads_the_same_voxels(volume: str, truth: Prepared) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    for path, expected in (("0", truth.image.array), ("labels/lungs/0", mask_of(truth))):
        kvstore = {"driver": "file", "path": f"{volume}/{path}/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
        assert array.domain.labels == ("z", "y", "x")
        np.testing.assert_array_equal(array.read().result(), expected)
        np.testing.assert_array_equal(array[30:33, 7, 20:45].read().result(), expected[30:33, 7, 20:45])


def test_zarrs_reads_the_same_voxels(volume: str, truth: Prepared) -> None:
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        for path, expected in (("0", truth.image.array), ("labels/lungs/0", mask_of(truth))):
            array = zarr.open_array(volume, path=path, mode="r")
            np.testing.assert_array_equal(array[...], expected)
            np.testing.assert_array_equal(array[30:33, 7, 20:45], expected[30:33, 7, 20:45])


def test_xarray_opens_it_as_it_is(volume: str, truth: Prepared) -> None:
    """Levels have the names of their axes in common and not their sizes, so all but one are left out."""
    xarray = pytest.importorskip("xarray")
    coarser = ["1", "2"]
    how = {"consolidated": False, "chunks": None, "mask_and_scale": False, "drop_variables": coarser}
    with xarray.open_zarr(volume, **how) as table:
        assert table["0"].dims == ("z", "y", "x")
        np.testing.assert_array_equal(table["0"].values, truth.image.array)


def test_it_can_be_copied_by_plain_files(volume: str, tmp_path: Path, truth: Prepared) -> None:
    """A volume needs nothing from outside its folder."""
    copy = tiny.write(tmp_path / "elsewhere", tiny.everything_below(volume))
    np.testing.assert_array_equal(zarr.open_array(copy, path="0", mode="r")[...], truth.image.array)

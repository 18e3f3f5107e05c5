"""Other readers of OME-Zarr open a written volume: the same voxels, spacing, place and labels."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture(scope="module")
def volume(truth: Prepared, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The volume in several shards of several chunks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(layout, "MAX_SHARD", (32, 32, 32))
        objects = omezarr.encode(truth, PrepConfig(chunk=16), {"dskprep": "0"})
    return tiny.write(tmp_path_factory.mktemp("interop") / "v.zarr", objects)


def mask_of(truth: Prepared) -> np.ndarray:
    assert truth.lungs is not None
    return truth.lungs.mask.array


def test_ome_zarr_models_finds_image_and_labels_valid(volume: str) -> None:
    from ome_zarr_models.v05.image import Image
    from ome_zarr_models.v05.image_label import ImageLabel
    from ome_zarr_models.v05.labels import Labels

    image = Image.from_zarr(zarr.open_group(volume, mode="r"))
    Labels.from_zarr(zarr.open_group(f"{volume}/labels", mode="r"))
    label = ImageLabel.from_zarr(zarr.open_group(f"{volume}/labels/lungs", mode="r"))
    for multiscale in (image.ome_attributes.multiscales[0], label.ome_attributes.multiscales[0]):
        scale, translation = multiscale.datasets[0].coordinateTransformations
        assert (scale.scale, translation.translation) == (list(SPACING), list(FIRST))


@pytest.mark.parametrize(("path", "of"), [("", "image"), ("/labels/lungs", "lungs")])
def test_ngff_zarr_validates_it_and_knows_its_place(volume: str, truth: Prepared, path: str, of: str) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    (image,) = ngff_zarr.from_ngff_zarr(volume + path, validate=True).images
    assert tuple(image.dims) == ("z", "y", "x")
    assert tuple(image.scale[axis] for axis in "zyx") == SPACING
    assert tuple(image.translation[axis] for axis in "zyx") == FIRST
    assert set(image.axes_units.values()) == {"millimeter"}
    leads = {axis: orientation.value.value for axis, orientation in image.axes_orientations.items()}
    assert leads == {"z": "inferior-to-superior", "y": "anterior-to-posterior", "x": "right-to-left"}
    expected = truth.image.array if of == "image" else mask_of(truth)
    np.testing.assert_array_equal(np.asarray(image.data), expected)


def test_ome_zarr_py_reads_image_and_labels(volume: str, truth: Prepared) -> None:
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    image, _, label = Reader(parse_url(volume))()
    for node, expected in ((image, truth.image.array), (label, mask_of(truth))):
        np.testing.assert_array_equal(np.asarray(node.data[0]), expected)
        ((scale, translation),) = node.metadata["coordinateTransformations"]
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
    xarray = pytest.importorskip("xarray")
    with xarray.open_zarr(volume, consolidated=False, chunks=None, mask_and_scale=False) as table:
        assert table["0"].dims == ("z", "y", "x")
        np.testing.assert_array_equal(table["0"].values, truth.image.array)


def test_it_can_be_copied_by_plain_files(volume: str, tmp_path: Path, truth: Prepared) -> None:
    """A volume needs nothing from outside its folder."""
    copy = tiny.write(tmp_path / "elsewhere", tiny.everything_below(volume))
    np.testing.assert_array_equal(zarr.open_array(copy, path="0", mode="r")[...], truth.image.array)

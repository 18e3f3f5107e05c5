"""A volume at several levels, in either version and codec: each level lies right and holds what the finest one does."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tiny
import zarr
from builders import ct_files, distinct

import dskprep
from dskprep import storage
from dskprep.dataset import omezarr
from dskprep.errors import UsageError
from dskprep.labels.draw import Drawn
from dskprep.preparation.lungs import lungs
from dskprep.preparation.prepared import Prepared
from dskprep.reading import convert
from dskprep.settings import PrepConfig
from dskprep.volume import Grid, Volume

SHAPE, N = (37, 22, 51), 3
COS, SIN = np.cos(np.deg2rad(17)), np.sin(np.deg2rad(17))
OBLIQUE = np.array([[0, 0, 1.5, -120.5], [-2 * SIN, 1.5 * COS, 0, -80.25], [2 * COS, 1.5 * SIN, 0, -300], [0, 0, 0, 1]])
"""Turned about the axis from right to left."""


def blocks(array: np.ndarray, level: int) -> Any:
    """The index of each voxel of a level, and the voxels of the finest one that it stands for."""
    edge = 2**level
    for index in np.ndindex(*(-(-n // edge) for n in array.shape)):
        yield index, array[tuple(slice(edge * i, edge * (i + 1)) for i in index)]


def most_frequent(block: np.ndarray) -> int:
    values, counts = np.unique(block, return_counts=True)
    return int(values[counts == counts.max()].max())


def prepared(dtype: str = "int16", affine: np.ndarray = OBLIQUE) -> Prepared:
    rng = np.random.default_rng(0)
    image = Volume(rng.integers(-1024 if dtype != "uint8" else 0, 255, SHAPE).astype(dtype), affine)
    mask = image.with_array(rng.integers(0, 3, SHAPE, dtype=np.uint8))
    return Prepared(image, lungs.Lungs(mask, 1.0, 1.0, ()), fill=0)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_a_level_is_the_mean_of_the_image_and_the_majority_of_the_mask(tmp_path: Path, dtype: str) -> None:
    given = prepared(dtype)
    assert given.lungs is not None
    url = tiny.write(tmp_path / "v", omezarr.encode(given, PrepConfig(chunk=16, levels=2), {}))
    image, mask = (zarr.open_array(url, path=path, mode="r")[...] for path in ("1", "labels/lungs/1"))
    assert image.dtype == dtype
    for index, block in blocks(given.image.array, 1):
        assert abs(image[index] - block.mean(dtype=np.float64)) <= (0.5 if dtype != "float32" else 1e-4)
    for index, block in blocks(given.lungs.mask.array, 1):
        assert mask[index] == most_frequent(block)


def test_levels_beyond_the_second_follow_from_the_one_before() -> None:
    objects = omezarr.encode(prepared(), PrepConfig(chunk=16, levels=8), {})
    shapes = [json.loads(objects[f"{level}/zarr.json"])["shape"] for level in range(8)]
    assert shapes[2:] == [[10, 6, 13], [5, 3, 7], [3, 2, 4], [2, 1, 2], [1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("first", [(0, 0, 0), (3, 5, 7), (30, 13, 38), (8, 4, 16)])
def test_a_labels_levels_are_those_of_the_whole_mask(tmp_path: Path, first: tuple[int, int, int]) -> None:
    mask = np.random.default_rng(3).random((7, 9, 13)) < 0.6
    whole = np.zeros(SHAPE, np.uint8)
    whole[tuple(slice(f, f + n) for f, n in zip(first, mask.shape, strict=True))] = mask
    grid, config = Grid(SHAPE, OBLIQUE), PrepConfig(chunk=16, levels=3)
    drawn = Drawn(grid, first, mask, 1.0, (0.0, 0.0, 0.0), 0.0)
    url = tiny.write(tmp_path / "v", omezarr.LabelEncoder(grid, config).encode("a", "A", (1, 2, 3), drawn, {}))
    finer = whole
    for level in (1, 2):
        found = zarr.open_array(url, path=f"labels/a/{level}", mode="r")[...]
        for index, block in blocks(finer, 1):
            assert found[index] == most_frequent(block)
        finer = found


class Reader06:
    """Knows of OME-Zarr 0.6 what its specification says of coordinates, and nothing else."""

    def __init__(self, url: str) -> None:
        ome = json.loads(Path(url, "zarr.json").read_bytes())["attributes"]["ome"]
        assert ome["version"] == "0.6"
        self.url, (self.multiscale,) = url, ome["multiscales"]

    def corners(self, path: str, system: str) -> np.ndarray:
        """Where the corners of a level lie in a coordinate system, along its axes."""
        shape = json.loads(Path(self.url, path, "zarr.json").read_bytes())["shape"]
        points = np.array(list(itertools.product(*[(0, n - 1) for n in shape])), float)
        (step,) = [d["coordinateTransformations"][0] for d in self.multiscale["datasets"] if d["path"] == path]
        assert step["input"] == {"path": path}
        points = self.apply(step, points)
        (further,) = self.multiscale["coordinateTransformations"]
        assert (further["input"], further["output"]) == (step["output"], {"name": system})
        return self.apply(further, points)

    def apply(self, step: dict[str, Any], points: np.ndarray) -> np.ndarray:
        if step["type"] == "sequence":
            for each in step["transformations"]:
                points = self.apply(each, points)
            return points
        if step["type"] == "affine":
            matrix = np.array(step["affine"])
            return points @ matrix[:, :3].T + matrix[:, 3]
        return {
            "identity": lambda: points,
            "scale": lambda: points * step["scale"],
            "translation": lambda: points + step["translation"],
        }[step["type"]]()


UPRIGHT = np.array([[0, 0, 0.7, -120.123456789], [0, 0.7, 0, -80.25], [1.25, 0, 0, -300], [0, 0, 0, 1]])


@pytest.mark.parametrize(("affine", "kind"), [(OBLIQUE, "affine"), (UPRIGHT, "identity")])
@pytest.mark.parametrize("folder", ["", "labels/lungs"])
def test_a_reader_of_06_alone_puts_each_level_into_the_patient(
    tmp_path: Path, affine: np.ndarray, kind: str, folder: str
) -> None:
    config = PrepConfig(chunk=16, levels=N, ome_zarr="0.6")
    url = tiny.write(tmp_path / "v", omezarr.encode(prepared(affine=affine), config, {}))
    reader = Reader06(f"{url}/{folder}")
    assert reader.multiscale["coordinateTransformations"][0]["type"] == kind
    system = {each["name"]: each["axes"] for each in reader.multiscale["coordinateSystems"]}["LPS"]
    assert [(axis["name"], axis["unit"], axis["orientation"]["value"]) for axis in system] == [
        ("z", "millimeter", "inferior-to-superior"),
        ("y", "millimeter", "anterior-to-posterior"),
        ("x", "millimeter", "right-to-left"),
    ]
    for level in range(N):
        edge, shape = 2**level, [-(-n // 2**level) for n in SHAPE]
        middles = np.array(list(itertools.product(*[(0, n - 1) for n in shape]))) * edge + (edge - 1) / 2
        expected = (middles @ affine[:3, :3].T + affine[:3, 3])[:, ::-1]
        np.testing.assert_allclose(reader.corners(f"{level}", "LPS"), expected, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own classes
def test_another_library_puts_an_oblique_volume_into_the_patient(tmp_path: Path) -> None:
    image = pytest.importorskip("ome_zarr_models.v06.image").Image
    objects = omezarr.encode(prepared(), PrepConfig(chunk=16, levels=N, ome_zarr="0.6"), {})
    url = tiny.write(tmp_path / "v", objects)
    (multiscale,) = image.from_zarr(zarr.open_group(url, mode="r")).ome_attributes.multiscales
    to_intrinsic, to_patient = (
        multiscale.datasets[0].coordinateTransformations[0],
        multiscale.coordinateTransformations[0],
    )
    for corner in itertools.product(*[(0, n - 1) for n in SHAPE]):
        found = to_patient.transform_point(to_intrinsic.transform_point(corner))
        np.testing.assert_allclose(found[::-1], (OBLIQUE @ (*corner, 1))[:3], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("edge", "dtype", "block"), [(64, "i2", 64**3 * 2), (16, "f4", 16**3 * 4), (128, "i2", 2**21)])
def test_blosc_packs_a_chunk_as_one_block(edge: int, dtype: str, block: int) -> None:
    """As its header says (C-Blosc's README_CHUNK_FORMAT), and the metadata too; a large chunk has a few of 2 MiB."""
    image = Volume(np.random.default_rng(0).integers(-1024, 3000, (edge,) * 3).astype(dtype), np.eye(4))
    objects = omezarr.encode(Prepared(image, None), PrepConfig(chunk=edge), {})
    assert np.frombuffer(objects["0/c/0/0/0"][4:12], "<u4").tolist() == [image.array.nbytes, block]
    (sharding,) = json.loads(objects["0/zarr.json"])["codecs"]
    assert sharding["configuration"]["codecs"][1]["configuration"]["blocksize"] == block


def test_a_chunk_of_zstd_is_a_plain_frame() -> None:
    """As decoders want it that know no blosc: one frame for each chunk, which says its size (RFC 8878)."""
    array = np.random.default_rng(0).integers(-1024, 3000, (16, 16, 16), dtype=np.int16)
    objects = omezarr.encode(Prepared(Volume(array, np.eye(4)), None), PrepConfig(chunk=16, codec="zstd"), {})
    offset, length = np.frombuffer(objects["0/c/0/0/0"][-20:-4], "<u8")
    frame = objects["0/c/0/0/0"][int(offset) : int(offset + length)]
    assert frame[:4] == b"\x28\xb5\x2f\xfd"
    assert int.from_bytes(frame[5:7], "little") + 256 == array.nbytes  # a single segment, its size in two bytes
    assert imagecodecs.zstd_decode(frame) == array.astype("<i2").tobytes()


@pytest.fixture(scope="module", params=["blosc-zstd", "zstd"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dskprep.Dataset:
    """An oblique volume with a label, at three levels."""
    folder = tmp_path_factory.mktemp("levels")
    series = ct_files(distinct(13, 30, 41), orientation=[1, 0, 0, 0, COS, SIN], PixelSpacing=[1, 1], step_mm=1.0)
    tiny.write(folder / "scans/p", dict(series))
    config = PrepConfig(check_hu=False, chunk=16, levels=N, codec=request.param)
    dskprep.run(folder / "scans", folder / "out", settings=config)
    volume = dskprep.open_dataset(folder / "out")["p"]
    mask = np.zeros(volume.shape, np.uint8)
    mask[3:9, 4:20, 10:31] = 1
    tiny.write(folder / "labels", {"p.nii.gz": convert.to_nifti_gz(Volume(mask, volume.affine))})
    assert dskprep.annotate(folder / "out", folder / "labels").exit_code == 0
    return dskprep.open_dataset(folder / "out")


def test_a_volume_is_read_at_each_level_in_every_way(dataset: dskprep.Dataset) -> None:
    pytest.importorskip("xarray")
    finest = dataset["p"]
    (name,) = finest.labels
    assert finest.n_levels == N
    for level in range(N):
        volume = pickle.loads(pickle.dumps(finest.level(level)))
        truth = zarr.open_array(f"{volume.url}/{level}", mode="r")[...]  # by zarr alone
        assert volume.shape == truth.shape == tuple(-(-n // 2**level) for n in finest.shape)
        for found in (
            volume.image[...],
            volume.load().array,
            volume.patch(volume.shape, index=[n / 2 for n in volume.shape]).array,
            volume.as_dask().compute(scheduler="sync"),
            volume.as_xarray()["image"].values,
            np.asarray(volume.to_nifti().dataobj).T,
        ):
            np.testing.assert_array_equal(found, truth)
        label = zarr.open_array(f"{volume.url}/labels/{name}/{level}", mode="r")[...]
        np.testing.assert_array_equal(volume.labels[name][...], label)
        np.testing.assert_array_equal(volume.load(name).array, label)
        assert label.any()
        assert not volume.lungs[...].any()
        assert volume.spacing == tuple(2**level * mm for mm in finest.spacing)
        edge = (2**level - 1) / 2
        np.testing.assert_allclose(
            volume.to_patient([1, 2, 3]), finest.to_patient(np.multiply([1, 2, 3], 2**level) + edge)
        )
        np.testing.assert_allclose(volume.to_sitk().GetOrigin(), finest.to_patient([edge] * 3))
    z, y, x = finest.level(1).shape
    assert repr(finest.level(1)).startswith(f"<StoredVolume p at level 1: {z} x {y} x {x} voxels of 2 x 2 x 2 mm")
    assert f"<b>p</b>, level 1<br>{z} x {y} x {x} voxels of 2 x 2 x 2 mm" in finest.level(1)._repr_html_()
    assert finest.level(1).as_dask().name != finest.as_dask().name


def test_tensorstore_reads_each_level(dataset: dskprep.Dataset) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    for level in range(N):
        volume = dataset["p"].level(level)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{volume.url}/{level}/"}}
        found = tensorstore.open(spec, read=True).result().read().result()
        np.testing.assert_array_equal(found, volume.load().array)


def test_a_level_that_is_not_there_is_named(dataset: dskprep.Dataset) -> None:
    for level in (-1, N, "1", 0.5):
        with pytest.raises(UsageError, match=r"p: expected level 0 to 2 \(setting levels\), found"):
            dataset["p"].level(level)  # type: ignore[arg-type]


def test_every_level_is_in_the_records(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    target = tiny.write(tmp_path / "out", tiny.everything_below(dataset.url))
    (name,) = dataset["p"].labels
    for path in ("1/c/0/0/0", "labels/lungs/2/zarr.json", f"labels/{name}/1/c/0/0/0"):
        whole = storage.read(f"{target}/volumes/p.zarr/{path}")
        tiny.write(f"{target}/volumes/p.zarr", {path: whole + b" "})
        (fault,) = [fault for finding in dskprep.verify(target) for fault in finding.faults]
        assert path in fault
        tiny.write(f"{target}/volumes/p.zarr", {path: whole})


def test_levels_go_with_their_volume_and_those_of_others_stay(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    target = tiny.write(tmp_path / "out", tiny.everything_below(dataset.url))
    theirs = {"volumes/p.zarr/3/zarr.json": b"{}", "volumes/p.zarr/3/c/0/0/0": b"mine"}
    tiny.write(target, theirs)
    assert [finding.faults for finding in dskprep.verify(target)] == [(), ()]
    assert dskprep.forget_labels(target, "*")
    dskprep.forget(target, ["p"])
    left = {name for name in tiny.everything_below(target) if name.startswith("volumes/")}
    assert left - {"volumes/p.zarr/labels/zarr.json"} == theirs.keys()


def test_what_a_run_left_of_levels_is_cleaned(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    objects = tiny.everything_below(dataset.url)
    kept = {
        n: c for n, c in objects.items() if n == "dataset.json" or (n.startswith("volumes/") and "/labels/" not in n)
    }
    target = tiny.write(tmp_path / "out", kept)
    deleted = set(dskprep.clean(target, older_than_s=-60, without_records=True))
    assert deleted == kept.keys() - {"dataset.json"}
    assert any("/2/c/" in name for name in deleted)


def test_a_label_without_a_record_is_written_over_at_every_level(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    """As one that a worker wrote before it died, of a file that is another one by now."""
    target = tiny.write(tmp_path / "out", tiny.everything_below(dataset.url))
    volume = dskprep.open_dataset(target)["p"]
    mask = np.zeros(volume.shape, np.uint8)
    mask[5, 6, 7] = 1  # too small for any other level
    tiny.write(tmp_path / "labels", {"p.nii.gz": convert.to_nifti_gz(Volume(mask, volume.affine))})
    storage.delete(f"{target}/labels", [e.name for e in storage.listing_below(f"{target}/labels")])
    assert dskprep.annotate(target, tmp_path / "labels").exit_code == 0
    volume = dskprep.open_dataset(target)["p"]
    (name,) = volume.labels
    folder = f"labels/{name}/"
    there = {e.name for e in storage.listing_below(volume.url) if e.name.startswith(folder)}
    assert there == volume.labels.about[name].objects.keys()
    assert [int(volume.level(level).labels[name][...].sum()) for level in range(N)] == [1, 0, 0]
    assert [fault for finding in dskprep.verify(target) for fault in finding.faults] == []


def test_a_picture_is_drawn_from_a_level_that_is_enough(tmp_path: Path) -> None:
    """Of a volume twice as fine as the picture, the finest level is not read."""
    tiny.write(tmp_path / "scans/p", dict(ct_files(distinct(12, 20, 900), PixelSpacing=[1, 1], step_mm=1.0)))
    target = str(tmp_path / "out")
    dskprep.run(tmp_path / "scans", target, settings=PrepConfig(check_hu=False, lungs=False, levels=2))
    for name in tiny.everything_below(target):
        if name.startswith("volumes/p.zarr/0/c/"):
            tiny.write(target, {name: b""})
    assert dskprep.show(target, "p").startswith(b"\x89PNG")

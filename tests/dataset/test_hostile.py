"""A dataset of a stranger: reading it runs no code, asks for no room that it lacks, and takes nothing lost for air."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pickle
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
import tiny
import zarr
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import opened, store
from dskprep.errors import DamagedDataset
from dskprep.reading import convert
from dskprep.reading.stored import StoredVolume

WAYS: dict[str, Callable[[StoredVolume], Any]] = {
    "load": lambda volume: volume.load(),
    "mask": lambda volume: volume.load("lungs"),
    "normalized": lambda volume: volume.normalized(),
    "patch": lambda volume: volume.patch(8, index=(8, 8, 8)),
    "zarr": lambda volume: volume.image[...],
    "zarr mask": lambda volume: volume.lungs[...],
    "dask": lambda volume: volume.as_dask().max().compute(),
    "xarray": lambda volume: volume.as_xarray().load(),
    "nifti": lambda volume: convert.to_nifti(volume.load()).get_fdata(),
    "sitk": lambda volume: volume.to_sitk(),
    "chunks": lambda volume: volume.shards("lungs").chunks(),
}
ARRAYS = ("0", "labels/lungs/0")
Metadata = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects of a dataset of one volume; its mask is not empty."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.write_patients(folder / "in", ["p1"])
    dskprep.run(f"{folder}/in", f"{folder}/out", settings=dskprep.PrepConfig(lungs="own_steps:bright"))
    return tiny.everything_below(f"{folder}/out")


@pytest.fixture(autouse=True)
def pickles_are_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As numcodecs did before 0.16.6 and zarr before 3.4, and as both do where somebody allows it."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    with zarr.config.set({"array.allow_unsafe_pickle_decode": True}):
        yield


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def put(folder: Path, objects: dict[str, bytes], change: Callable[[str, dict[str, bytes]], None]) -> StoredVolume:
    """Change the objects below each array of a dataset, let its record speak of them, and open the volume."""
    volume = {n.removeprefix("volumes/p1.zarr/"): c for n, c in objects.items() if n.startswith("volumes/")}
    for array in ARRAYS:
        change(array, volume)
    others = {name: content for name, content in objects.items() if not name.startswith("volumes/")}
    (name,) = [name for name in others if name.startswith("records/")]
    record = json.loads(others[name])
    record["objects"] = {n: {"bytes": len(c), "sha256": "0" * 64} for n, c in volume.items()}
    others[name] = json.dumps(record).encode()
    tiny.write(folder, others | {f"volumes/p1.zarr/{n}": c for n, c in volume.items()})
    return dskprep.open_dataset(folder)["p1"]


def changed_metadata(change: Callable[[Metadata], Any]) -> Callable[[str, dict[str, bytes]], None]:
    def apply(array: str, volume: dict[str, bytes]) -> None:
        metadata = json.loads(volume[f"{array}/zarr.json"])
        change(metadata)
        volume[f"{array}/zarr.json"] = json.dumps(metadata).encode()

    return apply


def of_format_2(bomb: Bomb) -> Callable[[str, dict[str, bytes]], None]:
    """Arrays in zarr's old format, whose only chunk is a pickle."""

    def apply(array: str, volume: dict[str, bytes]) -> None:
        shape = json.loads(volume.pop(f"{array}/zarr.json"))["shape"]
        codecs = [{"id": "vlen-utf8"}, numcodecs.Pickle().get_config()]  # zarr only looks at the first of them
        about = {"zarr_format": 2, "shape": shape, "chunks": shape, "dtype": "|O", "fill_value": None, "order": "C"}
        volume[f"{array}/.zarray"] = json.dumps(about | {"filters": codecs, "compressor": None}).encode()
        volume[f"{array}/0.0.0"] = pickle.dumps(bomb)

    return apply


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning", "ignore::zarr.errors.UnstableSpecificationWarning")
def test_a_pickle_in_the_data_is_never_loaded(whole: dict[str, bytes], tmp_path: Path, way: str) -> None:
    fuse = tmp_path / "it-went-off"
    volume = put(tmp_path / "out", whole, of_format_2(Bomb(fuse)))
    with pytest.raises(DamagedDataset, match=r"zarr\.json: is gone"):
        WAYS[way](volume)
    assert not fuse.exists()


def test_the_bomb_goes_off_where_nothing_is_checked(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Or the test above would say nothing."""
    volume = put(tmp_path / "out", whole, of_format_2(Bomb(tmp_path / "it-went-off")))
    with contextlib.suppress(Exception):
        zarr.open_array(f"{volume.url}/0", mode="r")[...]
    assert (tmp_path / "it-went-off").exists()


def sharding(metadata: Metadata) -> Metadata:
    (codec,) = metadata["codecs"]
    configuration: Metadata = codec["configuration"]
    return configuration


def nested(metadata: Metadata, codec: str) -> None:
    """Put a codec into shards within the shards."""
    inner = sharding(metadata)
    deeper = json.loads(json.dumps(metadata["codecs"][0]))
    deeper["configuration"]["codecs"] = [{"name": codec}]
    inner["codecs"] = [deeper]


def deep(metadata: Metadata) -> None:
    for _ in range(100):
        (codec,) = metadata["codecs"]
        metadata["codecs"] = [{**codec, "configuration": {**codec["configuration"], "codecs": [codec]}}]


CHANGES: dict[str, Callable[[Metadata], Any]] = {
    "a registered codec": lambda m: m["codecs"].append({"name": "numcodecs.zlib", "configuration": {}}),
    "pickle": lambda m: m["codecs"].append({"name": "numcodecs.pickle", "configuration": {}}),
    "json2": lambda m: m.update(codecs=[{"name": "numcodecs.json2", "configuration": {}}]),
    "a codec in shards": lambda m: sharding(m)["codecs"].append({"name": "numcodecs.pickle"}),
    "a codec in the index": lambda m: sharding(m)["index_codecs"].append({"name": "gzip"}),
    "a codec in shards in shards": lambda m: nested(m, "vlen-utf8"),
    "shards in the index": lambda m: sharding(m)["index_codecs"].insert(0, json.loads(json.dumps(m["codecs"][0]))),
    "a codec in a codec": lambda m: sharding(m)["codecs"][1]["configuration"].update(more={"name": "x"}),
    "a codec by its name": lambda m: m.update(codecs=["bytes"]),
    "no codecs": lambda m: m.pop("codecs"),
    "shards without end": deep,
    "text": lambda m: m.update(data_type="string", fill_value=""),
    "bytes": lambda m: m.update(data_type="variable_length_bytes", fill_value=""),
    "objects": lambda m: m.update(data_type="object"),
    "a record": lambda m: m.update(data_type={"name": "structured", "configuration": {"fields": []}}),
    "a fill that is none": lambda m: m.update(fill_value={"name": "x"}),
    "format 2": lambda m: m.update(zarr_format=2),
    "a group": lambda m: m.update(node_type="group"),
    "another key": lambda m: m.update(must_understand=True),
    "transformers": lambda m: m.update(storage_transformers=[{"name": "numcodecs.pickle"}]),
    "another grid": lambda m: m["chunk_grid"].update(name="rectangular"),
    "keys of format 2": lambda m: m["chunk_key_encoding"].update(name="v2"),
    "10^12 voxels": lambda m: m.update(shape=[10**4] * 3),
    "10^60 voxels": lambda m: m.update(shape=[10**20] * 3),
    "huge chunks": lambda m: (sharding(m).update(chunk_shape=[10**4] * 3), grid_of(m, 10**4)),
    "huge shards": lambda m: grid_of(m, 64 * 10**4),
    "shards of too many chunks": lambda m: (sharding(m).update(chunk_shape=[1] * 3), grid_of(m, 2000)),
    "chunks that are nothing": lambda m: sharding(m).update(chunk_shape=[0] * 3),
    "chunks that do not fill a shard": lambda m: sharding(m).update(chunk_shape=[63] * 3),
    "another shape than the record's": lambda m: m.update(shape=[24, 24, 24]),
    "four axes": lambda m: m.update(shape=[1, *m["shape"]]),
}


def grid_of(metadata: Metadata, edge: int) -> None:
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [edge] * 3


@pytest.mark.parametrize("way", ["load", "mask", "zarr", "zarr mask", "dask"])
@pytest.mark.parametrize("what", CHANGES)
def test_metadata_that_dskprep_never_writes_are_damaged(
    whole: dict[str, bytes], tmp_path: Path, what: str, way: str
) -> None:
    volume = put(tmp_path, whole, changed_metadata(CHANGES[what]))
    with pytest.raises(DamagedDataset, match=r"/zarr\.json: (is damaged|expected)") as caught:
        WAYS[way](volume)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600


def test_a_record_may_claim_a_huge_volume_but_gets_no_room_for_it(whole: dict[str, bytes], tmp_path: Path) -> None:
    (name,) = [name for name in whole if name.startswith("records/")]
    record = json.loads(whole[name])
    record["geometry"]["shape"] = [10**5] * 3
    tiny.write(tmp_path, whole | {name: json.dumps(record).encode()})
    for way in WAYS.values():
        with pytest.raises(DamagedDataset, match="expected the record's shape"):
            way(dskprep.open_dataset(tmp_path)["p1"])


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_consolidated_metadata_must_say_what_the_arrays_say(whole: dict[str, bytes], tmp_path: Path) -> None:
    tiny.write(tmp_path, whole)
    place = tmp_path / "volumes/p1.zarr/zarr.json"
    zarr.consolidate_metadata(str(place.parent))
    for way in WAYS.values():
        way(dskprep.open_dataset(tmp_path)["p1"])
    group = json.loads(place.read_bytes())
    group["consolidated_metadata"]["metadata"]["0"]["codecs"] = [{"name": "numcodecs.pickle"}]
    place.write_text(json.dumps(group))
    for way in WAYS.values():
        with pytest.raises(DamagedDataset, match=r"p1\.zarr/zarr\.json: .*consolidated metadata are not those of 0/"):
            way(dskprep.open_dataset(tmp_path)["p1"])


@pytest.mark.parametrize(
    "content", [b"[]", b"{", b"{}", b'{"zarr_format": 3, "node_type": "group", "consolidated_metadata": 1}']
)
def test_damaged_metadata_of_the_volume_are_one_line(whole: dict[str, bytes], tmp_path: Path, content: bytes) -> None:
    tiny.write(tmp_path, whole | {"volumes/p1.zarr/zarr.json": content})
    for way in WAYS.values():
        with pytest.raises(DamagedDataset, match=r"p1\.zarr/zarr\.json: is damaged"):
            way(dskprep.open_dataset(tmp_path)["p1"])


# what is lost, cut, or lies about its size

PIPELINES = ["zarr.core.codec_pipeline.BatchedCodecPipeline"]
if hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
    PIPELINES.append("zarr.core.codec_pipeline.FusedCodecPipeline")
PIPELINES.append("zarrs.ZarrsCodecPipeline")


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.filterwarnings("ignore:Array is unsupported by ZarrsCodecPipeline")
def test_a_damaged_index_of_a_shard_is_named_in_every_pipeline(
    whole: dict[str, bytes], tmp_path: Path, pipeline: str
) -> None:
    if pipeline.startswith("zarrs"):
        pytest.importorskip("zarrs")
    objects = {**whole}
    for array in ARRAYS:
        content = bytearray(objects[name := f"volumes/p1.zarr/{array}/c/0/0/0"])
        content[-10] ^= 1
        objects[name] = bytes(content)
    tiny.write(tmp_path, objects)
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        for way in WAYS.values():
            with pytest.raises(DamagedDataset, match="c/0/0/0: this shard's index is damaged"):
                way(dskprep.open_dataset(tmp_path)["p1"])


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("left", [None, 0, 10, 0.5, -1], ids=lambda left: f"left {left}")
@pytest.mark.filterwarnings("ignore:Array is unsupported by ZarrsCodecPipeline")
def test_a_shard_that_is_lost_or_cut_is_an_error_in_every_pipeline(
    whole: dict[str, bytes], tmp_path: Path, pipeline: str, left: float | None
) -> None:
    if pipeline.startswith("zarrs"):
        pytest.importorskip("zarrs")
    objects = {**whole}
    for array in ARRAYS:
        name = f"volumes/p1.zarr/{array}/c/0/0/0"
        content = objects.pop(name)
        if left is not None:
            objects[name] = content[: int(left * len(content)) if left == 0.5 else int(left)]
    tiny.write(tmp_path, objects)
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        for way in WAYS.values():
            with pytest.raises(DamagedDataset, match=r"c/0/0/0: (is gone|expected \d+ bytes, found \d+);"):
                way(dskprep.open_dataset(tmp_path)["p1"])


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.filterwarnings("ignore:Array is unsupported by ZarrsCodecPipeline")
def test_a_whole_volume_is_read_by_every_pipeline(whole: dict[str, bytes], tmp_path: Path, pipeline: str) -> None:
    if pipeline.startswith("zarrs"):
        pytest.importorskip("zarrs")
    tiny.write(tmp_path, whole)
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        volume = dskprep.open_dataset(tmp_path)["p1"]
        np.testing.assert_array_equal(volume.image[...], tiny.hu())
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume.image))[3:5, 7], tiny.hu()[3:5, 7])
        np.testing.assert_array_equal(volume.as_xarray()["image"].to_numpy(), tiny.hu())


NO_READING = {"clear", "close", "delete", "delete_dir", "delete_sync", "open", "set", "set_if_not_exists", "set_sync"}
NO_READING |= {"set_range", "set_range_sync", "read_only", "with_read_only"}
LISTING = {"list", "list_dir", "list_prefix", "is_empty", "getsize_prefix"}
PROTOTYPE = default_buffer_prototype()
READS: dict[str, Callable[[Any, str], Any]] = {
    "get": lambda store, key: sync(store.get(key, PROTOTYPE)),
    "get_partial_values": lambda store, key: sync(
        store.get_partial_values(PROTOTYPE, [("0/zarr.json", None), (key, SuffixByteRequest(5))])
    ),
    "get_ranges": lambda store, key: sync(_all(store.get_ranges(key, [RangeByteRequest(0, 5)], prototype=PROTOTYPE))),
    "get_sync": lambda store, key: store.get_sync(key, prototype=PROTOTYPE),
    "exists": lambda store, key: sync(store.exists(key)),
    "getsize": lambda store, key: sync(store.getsize(key)),
}
"""How each method of a store reads a key."""


async def _all(found: Any) -> list[Any]:
    return [each async for each in found]


def test_every_way_to_read_from_a_store_is_guarded(whole: dict[str, bytes], tmp_path: Path) -> None:
    """A newer zarr may read by methods that this one lacks: they must stand here, and must not lead past the guard."""
    url = f"{tmp_path}/volumes/p1.zarr"
    prefix = "volumes/p1.zarr/"
    sizes = {name.removeprefix(prefix): len(c) for name, c in whole.items() if name.startswith(prefix)}
    tiny.write(tmp_path, whole)
    storage.delete(url, ["0/c/0/0/0"])
    guard = opened.CheckedStore(url, sizes, {})
    # nothing is inherited but what zarr builds upon the methods above
    assert opened.CheckedStore.__mro__[1] is Store
    public = {name for name, _ in inspect.getmembers(opened.CheckedStore) if not name.startswith("_")}
    public -= NO_READING | LISTING | {name for name in public if name.startswith("supports_")}
    if "get_sync" not in public and "get_ranges_sync" in public:  # zarr builds the one upon the other
        with pytest.raises(TypeError, match="does not support synchronous reads"):
            guard.get_ranges_sync("0/c/0/0/0", [None], prototype=PROTOTYPE)
        public -= {"get_ranges_sync"}
    assert {"get", "get_partial_values", "exists", "getsize"} <= public <= READS.keys()
    for name in public:
        with pytest.raises(DamagedDataset, match="0/c/0/0/0: is gone"):
            READS[name](guard, "0/c/0/0/0")
        READS[name](guard, "0/zarr.json")


def test_what_the_record_does_not_name_is_not_there(whole: dict[str, bytes], tmp_path: Path) -> None:
    tiny.write(tmp_path, whole | {"volumes/p1.zarr/0/.zarray": b"{}", "volumes/p1.zarr/0/c/9/9/9": b"x"})
    store = dskprep.open_dataset(tmp_path)["p1"].image.store
    for key in ("0/.zarray", "0/c/9/9/9", "../../dataset.json"):
        assert sync(store.get(key, PROTOTYPE)) is None
        assert not sync(store.exists(key))
    with pytest.raises(ValueError, match="read-only"):
        sync(store.set("0/c/0/0/0", PROTOTYPE.buffer.from_bytes(b"x")))


def repacked(change: Callable[[bytearray, np.ndarray], None]) -> Callable[[str, dict[str, bytes]], None]:
    """Change the only chunk of a shard or its place in the index, whose checksum is made right again."""

    def apply(array: str, volume: dict[str, bytes]) -> None:
        content = bytearray(volume[f"{array}/c/0/0/0"])
        index = np.frombuffer(bytes(content[-20:-4]), "<u8").copy()
        change(content, index)
        footer = index.tobytes()
        content[-20:] = footer + google_crc32c.value(footer).to_bytes(4, "little")
        volume[f"{array}/c/0/0/0"] = bytes(content)

    return apply


def set_header(field: int, value: int) -> Callable[[bytearray, np.ndarray], None]:
    return lambda content, _: struct.pack_into("<I", content, field, value)


@pytest.mark.parametrize("way", ["load", "mask", "patch", "chunks"])
@pytest.mark.parametrize(
    "change",
    [
        set_header(4, 2**31 - 1),
        set_header(4, 8),
        set_header(12, 2**31 - 1),
        set_header(12, 16),
        lambda _, index: index.__setitem__(0, 2**63),
        lambda _, index: index.__setitem__(1, 2**62),
        lambda _, index: index.__setitem__(1, 4),
        lambda _, index: index.__setitem__(1, 0),
    ],
    ids=["bomb", "small", "beyond", "short", "far", "long", "cut", "nothing"],
)
def test_a_chunk_that_lies_about_its_size_is_damaged(
    whole: dict[str, bytes], tmp_path: Path, change: Callable[[bytearray, np.ndarray], None], way: str
) -> None:
    volume = put(tmp_path, whole, repacked(change))
    with pytest.raises(DamagedDataset, match=r"c/0/0/0: (a chunk is damaged|this shard's index points beyond)"):
        WAYS[way](volume)


@pytest.mark.parametrize("chain", ["", "reference://::", "simplecache::"])
def test_the_url_of_a_record_asks_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str], chain: str) -> None:
    """`show` reads the source of a record by itself."""
    tiny.write_patients(tmp_path / "in", ["p1"])
    tiny.write(tmp_path / "in", {"bad/1.dcm": b"no slice"})
    target = str(tmp_path / "out")
    dskprep.run(f"{tmp_path}/in", target)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        for name in store.record_names(target):
            path = Path(target, name.path)
            url = f"{chain}http://127.0.0.1:{server.getsockname()[1]}/x.json"
            path.write_text(json.dumps(json.loads(path.read_bytes()) | {"url": url}))
        assert dskprep.show(target, "bad")
        assert commands.run_command(["show", target, "p1", "--source", "-o", str(tmp_path / "x.png")]) == 2
        assert "expected a path, or a URL that begins with s3://, az:// or file://, found '" in capsys.readouterr().err
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("place", ["records/written/more", "volumes/p1.zarr/more", "claims/more", "runs/more"])
def test_a_tree_of_links_is_not_walked(tmp_path: Path, whole: dict[str, bytes], place: str) -> None:
    """Each folder has two links to the next one: 2^40 ways to the last."""
    target = tmp_path / "out"
    tiny.write(target, whole)
    folders = [tmp_path / f"tree/{i}" for i in range(40)]
    for folder, below in zip(folders, [*folders[1:], None], strict=True):
        folder.mkdir(parents=True)
        for name in ("a", "b") if below else ():
            (folder / name).symlink_to(below)
    (target / place).parent.mkdir(parents=True, exist_ok=True)
    (target / place).symlink_to(folders[0])
    assert dskprep.status(target).counts == {"written": 1}
    assert [finding.faults for finding in dskprep.verify(target)] == [()]
    assert dskprep.report(target)

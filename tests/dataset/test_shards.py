"""Boxes of a written array are what zarr reads of it, and only the chunks they touch are fetched."""

from __future__ import annotations

import json
import pickle
import sys

import google_crc32c
import numpy as np
import pytest
import tiny
from numcodecs import blosc, zstd

from dskprep import storage
from dskprep.dataset import layout, omezarr, shards
from dskprep.errors import DamagedDataset, UsageError
from dskprep.preparation.prepared import Prepared
from dskprep.settings import PrepConfig
from dskprep.volume import AIR_HU, Volume

SHAPE = (70, 40, 50)
CODEC = "blosc-zstd"


@pytest.fixture(autouse=True, params=["blosc-zstd", "zstd"])
def _codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "CODEC", request.param)


def written(place: str, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, shards.Array]:
    """An array of several shards of several chunks, some of them nothing but air: the truth, and as it is opened."""
    monkeypatch.setattr(layout, "MAX_SHARD", (32, 32, 32))
    array = np.random.default_rng(0).integers(-1024, 3000, SHAPE, dtype=np.int16)
    array[:32, :32, :32] = AIR_HU
    array[32:48, 16:32] = AIR_HU
    objects = omezarr.encode(Prepared(Volume(array, np.eye(4)), None), PrepConfig(chunk=16, codec=CODEC), {})
    tiny.write(place, objects)
    sizes = {name.removeprefix("0/"): len(content) for name, content in objects.items() if name.startswith("0/")}
    assert "c/0/0/0" not in sizes
    assert len(sizes) == 3 * 2 * 2
    return array, shards.open_array(f"{place}/0", sizes)


def test_a_box_is_the_slice_and_beyond_the_array_it_is_fill(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, opened = written(place, monkeypatch)
    margin = 20
    padded = np.pad(truth, margin, constant_values=AIR_HU)
    rng = np.random.default_rng(1)
    for _ in range(30):
        first = [int(rng.integers(-margin, n)) for n in SHAPE]
        size = [int(rng.integers(1, n + margin - f + 1)) for n, f in zip(SHAPE, first, strict=True)]
        expected = padded[tuple(slice(f + margin, f + margin + s) for f, s in zip(first, size, strict=True))]
        found = opened.read(tuple(first), tuple(size))
        assert found.dtype == np.int16
        np.testing.assert_array_equal(found, expected)


def test_a_box_outside_is_fill_and_reads_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = written(place, monkeypatch)[1]
    monkeypatch.setattr(storage, "read_ranges", None)
    assert (opened.read((70, 0, 0), (2, 3, 4)) == AIR_HU).all()
    assert (opened.read((-5, 0, 0), (5, 3, 4)) == AIR_HU).all()
    assert (opened.read((0, 0, 0), (32, 32, 32)) == AIR_HU).all()


def test_beyond_the_array_it_is_as_asked_but_air_within_stays_air(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, opened = written(place, monkeypatch)
    found = opened.read((-2, -2, 28), (40, 20, 30), outside=-3000)
    padded = np.pad(truth, 20, constant_values=-3000)
    np.testing.assert_array_equal(found, padded[18:58, 18:38, 48:78])
    assert (found[2:34, 2:18, :4] == AIR_HU).all()


def test_only_the_chunks_that_are_touched_are_fetched_and_an_index_once(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, opened = written(place, monkeypatch)
    asked: list[tuple[str, int]] = []
    ranged = storage.read_ranges

    def noted(url: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        asked.append((url.removeprefix(f"{place}/0/"), len(ranges)))
        return ranged(url, ranges)

    monkeypatch.setattr(storage, "read_ranges", noted)
    np.testing.assert_array_equal(opened.read((1, 33, 2), (10, 4, 10)), truth[1:11, 33:37, 2:12])
    assert asked == [("c/0/1/0", 1), ("c/0/1/0", 1)]  # the index, one chunk
    asked.clear()
    opened.read((1, 33, 2), (10, 4, 20))
    assert asked == [("c/0/1/0", 2)]
    asked.clear()
    opened.read((40, 20, 0), (4, 4, 4))  # a chunk of air in a shard of others
    assert asked == [("c/1/0/0", 1)]


def test_its_chunks_are_all_that_is_not_air(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, opened = written(place, monkeypatch)
    found = np.full(SHAPE, AIR_HU, np.int16)
    for first, chunk in opened.chunks():
        assert (chunk != AIR_HU).any()
        found[tuple(slice(f, f + n) for f, n in zip(first, chunk.shape, strict=True))] = chunk
    np.testing.assert_array_equal(found, truth)


def test_a_copy_that_travelled_reads_the_same(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, opened = written(place, monkeypatch)
    opened.read((40, 0, 0), (1, 1, 1))
    copy = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(copy.read((30, 30, 30), (9, 9, 9)), truth[30:39, 30:39, 30:39])


def test_a_damaged_shard_is_named(tmp_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"{tmp_path}/v"
    _, opened = written(place, monkeypatch)
    content = bytearray(storage.read(f"{place}/0/c/2/0/0"))
    content[-10] ^= 1
    tiny.write(f"{place}/0", {"c/2/0/0": bytes(content)})
    with pytest.raises(DamagedDataset, match="c/2/0/0: this shard's index is damaged"):
        opened.read((64, 0, 0), (2, 2, 2))
    tiny.write(f"{place}/0", {"c/2/0/0": bytes(content[:-10])})
    with pytest.raises(DamagedDataset, match=r"c/2/0/0: expected \d+ bytes, found \d+;"):
        opened.read((64, 0, 0), (2, 2, 2))
    storage.delete(f"{place}/0", ["c/2/0/0"])
    with pytest.raises(DamagedDataset, match="c/2/0/0: is gone"):
        opened.read((64, 0, 0), (2, 2, 2))
    with pytest.raises(DamagedDataset, match="c/2/0/0: is gone"):
        opened.chunks()


@pytest.mark.parametrize("damage", ["another size", "two frames", "cut", "flipped"])
def test_a_damaged_chunk_is_named_and_takes_no_more_memory_than_a_chunk(
    tmp_path: str, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """What a chunk claims of itself is not believed: 256 MiB of zeros pack to some kilobytes."""
    _, opened = written(f"{tmp_path}/v", monkeypatch)
    url = f"{tmp_path}/v/0/c/2/0/0"
    content = storage.read(url)
    places = shards.parse_index(url, content[-opened._index_bytes :], (2, 2, 2)).copy()
    offset, length = (int(number) for number in places[0, 0, 0])
    chunk = content[offset : offset + length]
    if damage in ("another size", "two frames"):
        zeros = np.zeros(2**28, np.int8)
        bomb = zstd.compress(zeros) if CODEC == "zstd" else blosc.compress(zeros, b"zstd", 1, blosc.BITSHUFFLE)
        chunk = chunk + bomb if damage == "two frames" else bomb
    elif damage == "cut":
        chunk = chunk[:-7]
    else:
        chunk = bytes([chunk[0] ^ 255]) + chunk[1:]
    places[:] = shards.NOTHING
    places[0, 0, 0] = 0, len(chunk)
    footer = places.tobytes()
    made = chunk + footer + google_crc32c.value(footer).to_bytes(4, "little")
    tiny.write(f"{tmp_path}/v/0", {"c/2/0/0": made})
    opened.objects["c/2/0/0"] = len(made)

    def read() -> None:
        with pytest.raises(DamagedDataset, match="c/2/0/0: a chunk is damaged"):
            opened.read((64, 0, 0), (2, 2, 2))

    assert tiny.most_bytes_of(read) < 2**26
    if damage == "another size":
        decompress = (zstd if CODEC == "zstd" else blosc).decompress
        assert tiny.most_bytes_of(lambda: decompress(bomb)) > 2**27  # so it would have been seen


def test_a_shard_or_chunk_larger_than_its_voxels_is_not_asked_for(
    tmp_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of holes has any size and costs its maker nothing."""
    _, opened = written(f"{tmp_path}/v", monkeypatch)
    n_bytes = 16**3 * 2 * 8 + opened._index_bytes
    with pytest.raises(DamagedDataset, match=r"c/2/0/0: expected a shard of at most \d+ bytes, found \d+"):
        shards.open_array(opened.url, {**opened.objects, "c/2/0/0": 2 * n_bytes})
    places = np.full((2, 2, 2, 2), shards.NOTHING, "<u8")
    places[0, 0, 0] = 0, 16**3 * 2 * 2
    footer = places.tobytes()
    made = bytes(16**3 * 2 * 2) + footer + google_crc32c.value(footer).to_bytes(4, "little")
    tiny.write(f"{tmp_path}/v/0", {"c/2/0/0": made})
    found = shards.open_array(opened.url, {**opened.objects, "c/2/0/0": len(made)})
    with pytest.raises(DamagedDataset, match=r"c/2/0/0: a chunk is damaged \(it has 16384 bytes, more than its voxels"):
        found.read((64, 0, 0), (2, 2, 2))


def test_an_array_laid_out_otherwise_is_not_misread(tmp_path: str) -> None:
    objects = omezarr.encode(Prepared(Volume(np.zeros(SHAPE, np.int16), np.eye(4)), None), PrepConfig(), {})
    metadata = json.loads(objects["0/zarr.json"])
    metadata["codecs"][0]["configuration"]["index_location"] = "start"
    tiny.write(f"{tmp_path}/v", {"0/zarr.json": json.dumps(metadata).encode()})
    with pytest.raises(UsageError, match="read it with zarr"):
        shards.open_array(f"{tmp_path}/v/0", {})


def test_an_array_whose_store_cannot_be_opened_is_not_called_damaged() -> None:
    with pytest.raises(UsageError, match="a URL that begins with s3://"):
        shards.open_array("nonsense://v/0", {})

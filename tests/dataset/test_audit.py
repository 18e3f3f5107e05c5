"""The audit finds a word wherever and however it is written, and in nothing that does not hold it."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import imagecodecs
import numpy as np
import pyarrow as pa
import pytest
import tiny
import zarr
from click.testing import CliRunner
from pyarrow import parquet

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import audit, unpacking
from dskprep.dataset.sentinels import Sentinels
from dskprep.errors import UsageError
from dskprep.settings import PrepConfig
from dskprep.source.case import key_of

WORD = "Müller^Änne"
"""What must not be there; each case below writes it in its own way."""
NOISE = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()


def parquet_file(**columns: Any) -> bytes:
    file = io.BytesIO()
    table = pa.table(columns)
    parquet.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False)
    return file.getvalue()


def png(kind: bytes, text: bytes) -> bytes:
    """A PNG that a library wrote, with one more chunk behind its head."""
    plain = bytes(imagecodecs.png_encode(np.zeros((8, 8), np.uint8)))
    chunk = kind + text
    extra = len(text).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return plain[:33] + extra + plain[33:]


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def data_url(content: bytes) -> bytes:
    return b'<img src="data:image/png;base64,' + base64.b64encode(content) + b'">'


TEXT = "Patient: Müller, Änne (f)".encode()
LONG_TEXT = b"nothing at all, " * 100 + TEXT
SOME = [f"nobody there, {i} ülÄrM" for i in range(500)]
CASES = {
    "utf-8": (TEXT, "utf-8"),
    "latin-1": (NOISE + "x MÜLLER^ÄNNE".encode("latin-1"), "latin-1"),
    "utf-16": (NOISE + "Änne Müller".encode("utf-16-le"), "utf-16-le"),
    "utf-16-be": ("Müller_Änne".encode("utf-16-be"), "utf-16-be"),
    "in the middle": (NOISE[:70_001] + "müller änne".encode() + NOISE, "utf-8"),
    "accents apart": ("Mu\u0308ller^A\u0308nne".encode(), "utf-8"),
    "json": (json.dumps({"name": "Müller^Änne"}).encode(), "json, utf-8"),
    "json in json": (json.dumps(json.dumps(json.dumps({"name": "Müller^Änne"}))).encode(), "json, utf-8"),
    "html": (b"<td>M&uuml;ller, &#196;nne</td>", "html, utf-8"),
    "percent": (f"file:///in/{quote('Müller Änne')}/1.dcm".encode(), "percent, utf-8"),
    "percent in json": (json.dumps({"u": quote("Müller^Änne")}).encode(), "percent, utf-8"),
    "base64": (b"x = " + base64.b64encode(TEXT), "base64, utf-8"),
    "base64 behind a slash": (b"x: /thumb/" + base64.b64encode(TEXT), "base64, utf-8"),
    "a folder of a tree": ("/in/Müller/Änne".encode(), "utf-8"),
    "the key of such a folder": (key_of("Müller/Änne").encode(), "utf-8"),
    "the key of a folder": (key_of("Müller, Änne").encode(), "utf-8"),
    "png, plain": (png(b"tEXt", b"Author\0M\xfcller^\xc4nne"), "latin-1"),
    "png, zTXt": (png(b"zTXt", b"Author\0\0" + zlib.compress("Müller Änne".encode("latin-1"))), "png, latin-1"),
    "png, iTXt": (png(b"iTXt", b"Author\0\1\0de\0Autor\0" + zlib.compress(TEXT)), "png, utf-8"),
    "png in html": (data_url(png(b"zTXt", b"A\0\0" + zlib.compress(TEXT))), "base64, png, utf-8"),
    "gzip": (gzip.compress(LONG_TEXT), "gzip, utf-8"),
    "gzip in base64 in html": (data_url(gzip.compress(LONG_TEXT)), "base64, gzip, utf-8"),
    "two gzip members": (gzip.compress(NOISE) + gzip.compress(LONG_TEXT), "gzip, utf-8"),
    "bzip2": (bz2.compress(LONG_TEXT), "bzip2, utf-8"),
    "xz": (lzma.compress(LONG_TEXT), "xz, utf-8"),
    "zip member": (zipped("1.txt", LONG_TEXT), "zip, utf-8"),
    "gzip in a zip": (zipped("1.gz", gzip.compress(LONG_TEXT)), "zip, gzip, utf-8"),
    "parquet": (parquet_file(who=[*SOME, "Müller^Änne"]), "parquet, utf-8"),
    "parquet, nested": (parquet_file(a=[*([{"n": text}] for text in SOME), [{"n": "Müller^Änne"}]]), "parquet, utf-8"),
    "parquet, bytes": (
        parquet_file(a=[*(t.encode() for t in SOME), "Änne.Müller".encode("latin-1")]),
        "parquet, utf-8",
    ),
}


def search(place: str, *words: str) -> dict[str, str]:
    """How the first word is found, by object."""
    return {s.name: s.found[0].how for s in dskprep.audit(place, words or (WORD,)) if s.found}


@pytest.mark.parametrize("case", CASES)
def test_a_word_is_found_however_it_is_written(case: str, tmp_path: Path) -> None:
    content, how = CASES[case]
    (tmp_path / "object").write_bytes(content)
    (tmp_path / "other").write_bytes(NOISE)
    assert search(str(tmp_path)) == {"object": how}
    assert search(str(tmp_path), "Schulz^Änne") == {}


def test_all_objects_are_searched_on_a_disk_and_in_a_bucket(place: str) -> None:
    storage.write_many(place, {f"a/{i}/{name}": case[0] for i, (name, case) in enumerate(CASES.items())})
    storage.write_many(place, {"b/Müller_Änne/1.json": b"{}", "b/clean.json": b"{}"})
    searched = list(dskprep.audit(place, [WORD]))
    assert len(searched) == len(CASES) + 2
    found = {s.name: s.found for s in searched if s.found}
    assert len(found) == len(CASES) + 1
    assert [s.how for s in found["b/[word 1]/1.json"]] == ["name"]


def test_an_empty_folder_has_a_name_too(tmp_path: Path) -> None:
    (tmp_path / "müller änne").mkdir()
    assert search(str(tmp_path)) == {"[word 1]/": "name"}


def test_a_word_across_two_blocks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "BLOCK", 1000)
    monkeypatch.setattr(unpacking, "OVERLAP", 100)
    for at in range(990, 1003):
        (tmp_path / f"{at}").write_bytes(NOISE[:at] + b"Mustermann^Erika" + NOISE[:3000])
    assert len(search(str(tmp_path), "Erika Mustermann")) == 13


def test_memory_is_bounded_however_much_is_packed(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "large.gz", "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
        file.write(b" Mustermann^Erika")
    list(dskprep.audit(tmp_path, ["Nobody^There"]))
    found: dict[str, str] = {}
    assert tiny.most_bytes_of(lambda: found.update(search(str(tmp_path), "Mustermann Erika"))) < 100 << 20
    assert found == {"large.gz": "gzip, utf-8"}
    packed = (tmp_path / "large.gz").read_bytes()
    assert tiny.most_bytes_of(lambda: gzip.decompress(packed)) > 200 << 20  # so it would have been seen


@pytest.mark.parametrize(
    ("word", "text", "is_found"),
    [
        ("Ann", b"annotations, Joanna", False),
        ("Ann", b"url: /in/ann_1.dcm", True),
        ("Ann", NOISE * 20, False),
        ("47110815", b'"sha256": "ab4711081507"', False),
        ("47110815", b"id=47110815;", True),
        ("Mustermann", b"xMUSTERMANNx", True),
        ("Anna Maria Lee", b"lee^anna^maria", False),  # parts in their order, or in the opposite one
        ("Anna Maria Lee", b"LEE MARIA,ANNA and Lee, Maria, Anna", True),
    ],
)
def test_short_words_count_where_they_stand_alone(word: str, text: bytes, is_found: bool, tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(text)
    assert bool(search(str(tmp_path), word)) == is_found


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    source = tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    target = str(tmp_path / "out")
    dskprep.run(source, target, settings=PrepConfig(check_hu=False, lungs=False))
    return target


def test_a_dataset_holds_nothing_of_its_headers(dataset: str) -> None:
    searched = list(dskprep.audit(dataset, [f"{tiny.IDENTITY[0]}^Erika", *tiny.IDENTITY, "IM000.dcm"]))
    assert [s for s in searched if not s.is_clean] == []
    assert {"volumes/p1.zarr/0/", "index.parquet", "records/written/p1"} <= {
        s.name.partition(".json")[0].rpartition(".")[0] if s.name.startswith("records") else s.name for s in searched
    }


def test_a_word_in_voxels_and_in_attributes_is_found(dataset: str) -> None:
    group = zarr.open_group(f"{dataset}/volumes/p2.zarr", mode="r+")
    array: Any = group["0"]
    codes = np.frombuffer(b"Mustermann^Erika", np.int16)
    array[5, 7, 3 : 3 + codes.size] = codes
    group.attrs["by"] = "Erika M\u00fcller"
    found = search(dataset, "Mustermann^Erika", "Müller^Erika")
    assert found == {"volumes/p2.zarr/0/": "voxels, utf-8", "volumes/p2.zarr/zarr.json": "json, utf-8"}


@pytest.mark.parametrize("n_times", [1, 2, 3])
def test_a_name_of_rare_characters_is_found_as_json_writes_it(tmp_path: Path, n_times: int) -> None:
    text = "𠮷野太郎"
    for _ in range(n_times):
        text = json.dumps(text)
    assert text.isascii()
    (tmp_path / "record.json").write_text(text)
    assert search(str(tmp_path), "𠮷野太郎") == {"record.json": "json, utf-8"}


def test_what_is_unpacked_in_part_is_not_called_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "BLOCK", 1 << 16)
    late = zlib.compress(bytes(1 << 16) + TEXT)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:  # the library unpacks it whole, whatever it claims
        archive.writestr("1.txt", LONG_TEXT)
    files = {
        "long.png": png(b"zTXt", b"Comment\0\0" + late),
        "cut.png": png(b"zTXt", b"Comment\0\0" + zlib.compress(NOISE[:1000])[:-100]),
        "large.png": png(b"zTXt", b"Comment\0\0" + zlib.compress(NOISE)),
        "bzip2.zip": file.getvalue(),
    }
    tiny.write(tmp_path, files | {"good.png": png(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 1000))})
    assert {s.name for s in dskprep.audit(tmp_path, ["Nobody"]) if "cannot be" in s.problem} == files.keys()


def test_what_cannot_be_decoded_is_not_called_clean(tmp_path: Path) -> None:
    good = gzip.compress(LONG_TEXT)
    files = {
        "cut.gz": good[:-20],
        "cut.parquet": parquet_file(a=["x"])[:-9],
        "other.zst": b"\x28\xb5\x2f\xfd" + NOISE[:40],
        "a/.zarray": b'{"zarr_format": 2}',
    }
    tiny.write(tmp_path, files)
    problems = {s.name: s.problem for s in dskprep.audit(tmp_path, ["Nobody"]) if s.problem}
    assert set(problems) == {"cut.gz", "cut.parquet", "other.zst", "a/"}
    assert all("cannot be" in problem for problem in problems.values())


def test_what_a_library_cannot_decode_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of 5000 digits, and days beyond what Python can count, raise errors of their own."""
    monkeypatch.setattr(unpacking, "BLOCK", 1 << 16)
    far = pa.array([2**31 - 1], pa.int32()).cast(pa.date32())
    files = {
        "digits.html": b"&#" + b"9" * 5000 + b";" + b" " * (1 << 17) + TEXT,
        "day.parquet": parquet_file(day=far, name=["Müller^Änne"]),
        "moment.parquet": parquet_file(at=pa.array([2**62], pa.timestamp("us"))),
        "long.parquet": parquet_file(took=pa.array([2**62], pa.duration("s"))),
        "z": TEXT,
    }
    tiny.write(tmp_path, files)
    searched = {s.name: s for s in dskprep.audit(tmp_path, [WORD])}
    assert {name for name, s in searched.items() if "cannot be unpacked" in s.problem} == files.keys() - {"z"}
    assert {"digits.html", "z"} <= {name for name, s in searched.items() if s.found}


def test_a_table_that_repeats_one_text_is_searched_in_bounded_memory(tmp_path: Path) -> None:
    """Of some thousand bytes on disk, 3 GB in memory if each row is given its own copy."""
    one, file = "Müller^Änne " + "x" * 1_000_000, io.BytesIO()
    repeated = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int32)), pa.array([one]))
    parquet.write_table(pa.table({"who": repeated}), file, compression="gzip")
    tiny.write(tmp_path, {"bomb.parquet": file.getvalue()})
    list(dskprep.audit(tmp_path, ["Nobody^There"]))
    found: dict[str, str] = {}
    assert tiny.most_bytes_of(lambda: found.update(search(str(tmp_path), WORD))) < 100 << 20
    assert found == {"bomb.parquet": "parquet, utf-8"}


def test_a_column_that_unpacks_to_too_much_is_named_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MOST_COLUMN_BYTES", 1000)
    tiny.write(tmp_path, {"bomb.parquet": parquet_file(n=np.zeros(1000))})
    (found,) = dskprep.audit(tmp_path, ["Nobody^There"])
    assert "cannot be" in found.problem
    assert "a column of 8" in found.problem


def audit_command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(commands.main, ["audit", *words], standalone_mode=False)
    return done.return_value, done.output


def test_the_command_says_where_and_never_which_word(tmp_path: Path) -> None:
    words, folder = tmp_path / "words.txt", tmp_path / "out"
    words.write_text("\nSchmidt^Jan\nMüller^Änne\n", encoding="utf-8")
    tiny.write(folder, {"x/jan schmidt.txt": TEXT, "clean": b"nothing"})
    code, said = audit_command(str(folder), "--sentinels", str(words))
    assert code == 1
    assert said.splitlines() == [
        "x/[word 2].txt: word 2 (name); word 3 (utf-8)",
        "2 objects searched for 2 words: words in 1 object",
    ]
    code, said = audit_command(str(folder), "--sentinels", str(words), "--json")
    told = json.loads(said)
    assert (code, told["is_clean"], told["objects"]) == (1, False, 2)
    assert told["found"][1] == {"object": "x/[word 2].txt", "word": 3, "how": "utf-8"}
    (folder / "x/jan schmidt.txt").unlink()
    assert audit_command(str(folder), "--sentinels", str(words)) == (
        0,
        "1 object searched for 2 words: none found\n",
    )


def test_wrong_lists_are_named_by_their_line_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    tiny.write(folder, {"a": b"1", "words.txt": b"Mustermann"})
    (tmp_path / "short.txt").write_text("Mustermann\nLi\n")
    (tmp_path / "none.txt").write_text("\n \n")
    for name, message in (
        ("out/words.txt", "would be found there; move it"),
        ("short.txt", "expected words of 3 bytes or more, found a shorter one in line 2"),
        ("none.txt", "expected a word in each line, found none"),
        ("lacks.txt", "expected a file with one word per line, found none"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            dskprep.audit(folder, str(tmp_path / name))
        assert "Mustermann" not in str(error.value).replace(str(tmp_path), "")
    with pytest.raises(UsageError, match="there is nothing here"):
        dskprep.audit(tmp_path / "lacks", ["Mustermann"])


def test_one_file_can_be_searched_alone(tmp_path: Path) -> None:
    (tmp_path / "export.zip").write_bytes(zipped("1.txt", LONG_TEXT))
    assert search(str(tmp_path / "export.zip")) == {"export.zip": "zip, utf-8"}


def test_names_are_hidden_as_they_are_written() -> None:
    words = Sentinels(["Mustermann^Erika", "Mustermann"])
    assert words.hide("a/ERIKA_Mustermann/MUSTERMANN.dcm") == "a/[word 1]/[word 2].dcm"


def test_the_voxels_of_a_chest_are_not_taken_for_letters() -> None:
    hu = np.random.default_rng(1).integers(60, 123, 3_000_000).astype(np.int16).tobytes()
    assert list(Sentinels(["Mustermann", "Lindner", "Weber"]).in_voxels(hu)) == []


def test_planes_of_any_size_are_searched_in_bounded_memory(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array: Any = zarr.open_group(f"{dataset}/volumes/p2.zarr", mode="r+")["0"]
    codes = np.frombuffer(b"Mustermann^Erika", np.int16)
    array[5, 23, 3 : 3 + codes.size] = codes
    seen: list[int] = []
    words = Sentinels.in_voxels

    def in_voxels(self: Sentinels, data: bytes) -> Any:
        seen.append(len(data))
        return words(self, data)

    monkeypatch.setattr(Sentinels, "in_voxels", in_voxels)
    monkeypatch.setattr(audit, "SLAB_BYTES", 2 * 2 * array.shape[2])
    assert search(dataset, "Mustermann^Erika") == {"volumes/p2.zarr/0/": "voxels, utf-8"}
    assert max(seen) == audit.SLAB_BYTES
    monkeypatch.setattr(audit, "SLAB_BYTES", array.shape[2])
    assert any(s.name == "volumes/p2.zarr/0/" and s.problem for s in dskprep.audit(dataset, ["Nobody"]))


def test_an_array_is_searched_by_itself_too(dataset: str) -> None:
    array: Any = zarr.open_group(f"{dataset}/volumes/p2.zarr", mode="r+")["0"]
    codes = np.frombuffer(b"Mustermann^Erika", np.int16)
    array[5, 7, 3 : 3 + codes.size] = codes
    assert search(f"{dataset}/volumes/p2.zarr/0", "Mustermann^Erika") == {"/": "voxels, utf-8"}


def test_a_lost_object_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path, {"a": b"1"})

    def lost(*_: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(audit.storage, "read_ranges", lost)
    assert [s.problem for s in dskprep.audit(tmp_path, ["Mustermann"])] == ["is not there any more"]

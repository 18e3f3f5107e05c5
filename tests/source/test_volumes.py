"""Volume files in a source: which are patients, under which keys, and which file holds their voxels."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import tiny
from volume_builders import by_itk, chest, files, nifti

from dskprep import storage
from dskprep.errors import Refusal, UsageError
from dskprep.source import cases
from dskprep.source.case import Case
from dskprep.source.files import open_case
from dskprep.source.found import find_series, read_series

CHEST = chest()
NIFTI = nifti(CHEST.array, CHEST.affine)


def keys(source: str | Path, **options: Any) -> list[str]:
    return [case.key for case in cases.cases(str(source), **options)]


def only(source: str | Path) -> Case:
    (case,) = cases.cases(str(source))
    return case


def renamed(named: dict[str, bytes], stem: str) -> dict[str, bytes]:
    """The files of the volume `ct` under another name, which the header knows."""
    return {name.replace("ct", stem): c.replace(b" ct.", f" {stem}.".encode()) for name, c in named.items()}


def test_each_volume_file_is_a_patient_of_its_own(place: str) -> None:
    named = {f"p1/{name}": content for name, content in files(CHEST, ".mhd").items()}
    named |= {"p2/a.nii.gz": b"x", "p2/b.NRRD": b"x", "p2/notes.txt": b"x", "top.nii": b"x", "p3/1.dcm": b"x"}
    named |= {"p3/mask.nii.gz": b"x", "p4/study/ct.mha": b"x", "p5/._ct.nii": b"x", "p5/notes.txt": b"x"}
    tiny.write(place, named)
    assert sorted(keys(place)) == ["p1__ct", "p2__a", "p2__b", "p3", "p3__mask", "p4__study__ct", "p5", "top"]


def test_a_folder_of_volumes_asks_the_store_for_nothing_more(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named = [renamed(files(CHEST, ".mhd"), f"v{i}") for i in range(4)]
    tiny.write(f"{place}/subset0", {name: content for each in named for name, content in each.items()})
    monkeypatch.setattr(storage, "read_head", None)
    monkeypatch.setattr(storage, "entry_of", None)
    found = list(cases.cases(f"{place}/subset0"))
    assert [(case.key, case.n_files) for case in found] == [(f"v{i}", 2) for i in range(4)]


def test_the_digest_covers_header_and_voxels(place: str) -> None:
    named = files(CHEST, ".mhd")
    tiny.write(place, named)
    before = only(place)
    assert before.n_bytes == sum(map(len, named.values()))
    tiny.write(place, {"ct.raw": named["ct.raw"][:-1] + b"x", "ct.json": b"{}"})
    storage.delete(place, ["ct.raw"])
    tiny.write(place, {"ct.raw": named["ct.raw"] + b"x"})
    after = only(place)
    assert (after.key, after.n_files) == (before.key, 2)
    assert after.digest != before.digest
    with pytest.raises(Refusal, match="source-changed"):
        open_case(before)
    assert open_case(after).n_bytes == after.n_bytes


def test_voxels_under_a_name_of_their_own_belong_to_their_header(place: str) -> None:
    one, two = files(CHEST, ".mhd"), renamed(files(CHEST, ".mhd"), "other")
    named = {"one.mhd": one["ct.mhd"].replace(b"ct.raw", b"a.raw"), "a.raw": one["ct.raw"]}
    named |= {"two.mhd": two["other.mhd"].replace(b"other.raw", b"b.raw"), "b.raw": two["other.raw"]}
    tiny.write(place, named)
    found = list(cases.cases(place))
    assert [(case.key, case.n_files) for case in found] == [("one", 2), ("two", 2)]
    assert [e.name for e in open_case(found[1]).entries] == ["two.mhd", "b.raw"]
    assert read_series(found[0].url).n_slices == 24


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../secret.raw",
        "sub/../../secret.raw",
        "file:///etc/passwd",
        "s3://bucket/secret.raw",
        "http://127.0.0.1/secret.raw",
        "C:\\secret.raw",
        "..\\secret.raw",
        "~/secret.raw",
        "nothing.raw",
    ],
)
@pytest.mark.parametrize("kind", [".mhd", ".nhdr"])
def test_a_header_reads_no_file_outside_of_its_folder(tmp_path: Path, kind: str, path: str) -> None:
    named = by_itk(CHEST.array, CHEST.affine, kind)
    header = named.pop(f"ct{kind}").replace(b"ct.raw", path.encode())
    tiny.write(tmp_path, {"secret.raw": named["ct.raw"], f"in/ct{kind}": header, "in/other.raw": b"x"})
    for source in (tmp_path / "in", tmp_path / f"in/ct{kind}"):
        with pytest.raises(Refusal) as caught:
            read_series(source)
        assert caught.value.reason == "bad-header"
        assert "expected its voxels in a file beside it" in caught.value.message
    archive = tiny.zipped({"secret.raw": named["ct.raw"], f"in/ct{kind}": header})
    (tmp_path / "a.zip").write_bytes(archive)
    if "secret" not in path or path.startswith(("..", "sub")):
        return
    with pytest.raises(Refusal, match="bad-header"):
        read_series(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", [".nii.gz", ".mhd", ".mhd compressed", ".nhdr", ".nrrd"])
@pytest.mark.parametrize("pack", [tiny.zipped, tiny.tarred])
def test_volumes_in_archives_are_series_of_one_patient(tmp_path: Path, kind: str, pack: Any) -> None:
    named = {f"scan/{name}": content for name, content in files(CHEST, kind).items()}
    short = chest((12, 48, 48))
    named |= {f"scan/short/{name}": content for name, content in files(short, kind).items()}
    suffix = ".zip" if pack is tiny.zipped else ".tar"
    (tmp_path / f"p1{suffix}").write_bytes(pack(named))
    assert keys(tmp_path) == ["p1"]
    assert [one.n_slices for one in find_series(tmp_path / f"p1{suffix}")] == [24, 12]


def test_with_one_key_for_a_folder_its_volumes_are_series_of_that_patient(tmp_path: Path) -> None:
    named = {"p1/a/ct.nii": NIFTI, "p1/b/1.nii.gz": gzip.compress(NIFTI)} | {
        f"p1/c/{name}": content for name, content in tiny.series().items()
    }
    tiny.write(tmp_path / "in", named)
    assert keys(tmp_path / "in") == ["p1__a__ct", "p1__b__1", "p1__c"]
    assert keys(tmp_path / "in", patient_folders=True) == ["p1"]
    (tmp_path / "list.csv").write_text("key,url\nall,in/p1\none,in/p1/a/ct.nii\ntwo,in/p1/b\n")
    manifest = {case.key: case for case in cases.cases(str(tmp_path / "list.csv"))}
    assert {key: case.n_files for key, case in manifest.items()} == {"all": 14, "one": 1, "two": 1}
    assert len(find_series(manifest["all"].url)) == 3
    assert open_case(manifest["one"]).is_volume


def test_a_source_may_be_one_volume_file(place: str) -> None:
    tiny.write(place, files(CHEST, ".nhdr") | {"notes.txt": b"x"})
    case = only(f"{place}/ct.nhdr")
    assert (case.key, case.n_files) == ("ct", 2)
    with pytest.raises(UsageError, match=r"a volume \(\.nii"):
        keys(f"{place}/notes.txt")

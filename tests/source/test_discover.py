"""Every layout of a source becomes one case a patient, under a stable and safe key."""

from __future__ import annotations

import io
import os
import re
import string
from pathlib import Path

import pandas as pd
import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st

from dskprep import storage
from dskprep.errors import InfrastructureError, UsageError
from dskprep.source import cases as discover
from dskprep.source.case import MAX_KEY, Case, digest, is_key, key_of, short_hash
from dskprep.source.inputs import ARCHIVE_SUFFIXES
from dskprep.storage import Entry


def keys(source: str | Path) -> list[str]:
    return [case.key for case in discover.cases(str(source))]


def by_key(source: str | Path) -> dict[str, Case]:
    return {case.key: case for case in discover.cases(str(source))}


def put(place: str | Path, *names: str) -> str:
    """Files of a few bytes below a place."""
    return tiny.write(place, dict.fromkeys(names, b"x"))


def test_a_folder_a_patient(place: str) -> None:
    put(place, "stage1/p2/1.dcm", "stage1/p2/2.dcm", "stage1/p1/1", "stage1_labels.csv")
    cases = by_key(f"{place}/stage1")
    assert list(cases) == ["p1", "p2"]
    assert cases["p2"].bare() == Case("p2", f"{storage.absolute(place)}/stage1/p2", cases["p2"].digest, 2, 2)


def test_the_tree_of_tcia(place: str) -> None:
    put(place, "LIDC-1/1.2/1.3/1.dcm", "LIDC-1/1.2/1.4/1.dcm", "LIDC-2/1.5/1.6/1.dcm", "LICENSE", "metadata.csv")
    assert keys(place) == ["LIDC-1__1.2__1.3", "LIDC-1__1.2__1.4", "LIDC-2__1.5__1.6"]


def test_files_directly_in_the_source(place: str) -> None:
    put(place, "p1/1.dcm", "p1/2.dcm")
    assert keys(f"{place}/p1") == ["p1"]


def test_a_folder_may_hold_both_slices_and_folders(place: str) -> None:
    put(place, "p1/1.dcm", "p1/more/2.dcm")
    assert keys(place) == ["p1", "p1__more"]
    assert by_key(place)["p1"].n_files == 1


@pytest.mark.parametrize("suffix", ARCHIVE_SUFFIXES)
def test_an_archive_a_patient(tmp_path: Path, suffix: str) -> None:
    put(tmp_path, f"a/p1{suffix}", f"a/p2{suffix.upper()}", "a/labels.csv", f"p3{suffix}")
    assert keys(tmp_path) == ["p3", "a__p1", "a__p2"]
    case = by_key(tmp_path)["a__p1"]
    assert (case.url, case.n_files, case.n_bytes) == (f"{tmp_path}/a/p1{suffix}", 1, 1)


def test_archives_in_a_bucket_and_one_alone(place: str) -> None:
    put(place, "p1.zip", "p2.tar.gz", "p3/1.dcm")
    assert sorted(keys(place)) == ["p1", "p2", "p3"]
    assert keys(f"{place}/p2.tar.gz") == ["p2"]


def test_a_folder_and_an_archive_of_one_name_get_two_keys(tmp_path: Path) -> None:
    put(tmp_path, "p1.zip", "p1/1.dcm")
    first, second = sorted(keys(tmp_path))
    assert first == "p1"
    assert re.fullmatch(r"p1_[0-9a-f]{8}", second)


def test_an_absent_archive_is_wrong_use(place: str) -> None:
    with pytest.raises(UsageError, match=r"p1\.zip: there is no such file"):
        keys(f"{place}/p1.zip")


def test_an_empty_folder_is_a_case_but_an_empty_source_holds_none(tmp_path: Path) -> None:
    (tmp_path / "source/p1").mkdir(parents=True)
    assert keys(tmp_path / "source") == ["p1"]
    assert by_key(tmp_path / "source")["p1"].n_files == 0
    assert keys(tmp_path / "source/p1") == []


def test_a_folder_that_holds_no_image_is_a_case_if_it_is_a_leaf(place: str) -> None:
    put(place, "p1/report.pdf", "p2/1.dcm", "p2/notes/read.txt")
    assert keys(place) == ["p1", "p2", "p2__notes"]


def test_a_patients_folder_can_be_taken_as_a_whole(place: str) -> None:
    tiny.write(
        place,
        {
            "p1/study/s1/1.dcm": b"1",
            "p1/study/s2/1.dcm": b"2",
            "p1/2.dcm": b"3",
            "p1/.hidden/3.dcm": b"4",
            "p1/more.zip": b"5",
            "p2/1.dcm": b"6",
            "p3.zip": b"7",
            ".trash/1.dcm": b"8",
            "loose.dcm": b"9",
        },
    )
    found = {case.key: case for case in discover.cases(place, patient_folders=True)}
    name = place.rpartition("/")[2]
    assert {key: case.n_files for key, case in found.items() if not case.is_archive} == {"p1": 3, "p2": 1, name: 1}
    assert sum(case.is_archive for case in found.values()) == 2
    for case in found.values():
        if not case.is_archive:  # what a worker lists is what the client listed
            assert digest(discover.files_of(case.url, is_deep=case.is_deep)) == case.digest
    whole = {case.key for case in discover.cases(f"{place}/p1", patient_folders=True)}
    assert "study" in whole


@pytest.mark.parametrize("name", ["labels.csv", "README.md", "LICENSE", "DICOMDIR", ".DS_Store"])
def test_what_lies_beside_the_patients_is_no_patient(place: str, name: str) -> None:
    put(place, name, "p1/1.dcm")
    assert keys(place) == ["p1"]


def test_hidden_files_and_folders_count_for_nothing(place: str) -> None:
    put(place, "p1/1.dcm", "p1/.hidden", ".cache/x/1.dcm", "p1/.git/1.dcm", ".p2.zip")
    assert keys(place) == ["p1"]
    assert by_key(place)["p1"].n_files == 1


def test_a_linked_folder_is_a_patient(tmp_path: Path) -> None:
    put(tmp_path, "all/p1/1.dcm", "all/p2/1.dcm")
    (tmp_path / "some").mkdir()
    (tmp_path / "some/p2").symlink_to(tmp_path / "all/p2")
    assert keys(tmp_path / "some") == ["p2"]
    assert by_key(tmp_path / "some")["p2"].digest == by_key(tmp_path / "all")["p2"].digest


def test_the_digest_is_that_of_a_later_listing(place: str) -> None:
    put(place, "p1/2.dcm", "p1/1.dcm", "p1/.hidden", "p1/inner.zip")
    case = by_key(place)["p1"]
    assert digest(discover.inputs(storage.listing(case.url))) == case.digest


def test_another_content_name_or_size_is_another_digest(place: str) -> None:
    def digest() -> str:
        return by_key(place)["p1"].digest

    put(place, "p1/1.dcm", "p1/2.dcm")
    seen = [digest()]
    assert digest() == seen[0]
    tiny.write(place, {"p1/1.dcm": b"y"})
    if "://" not in place:
        os.utime(Path(place, "p1/1.dcm"), ns=(1, 1))
    seen.append(digest())
    tiny.write(place, {"p1/1.dcm": b"yy"})
    seen.append(digest())
    put(place, "p1/3.dcm")
    seen.append(digest())
    storage.delete(place, ["p1/2.dcm"])
    seen.append(digest())
    assert len(set(seen)) == len(seen)


def test_the_order_of_a_listing_does_not_matter() -> None:
    entries = [Entry("a", 1, "x"), Entry("b", 2, "y")]
    assert digest(entries) == digest(entries[::-1])


def test_a_case_is_small_and_the_same_on_every_listing(place: str) -> None:
    tiny.write_patients(place, [f"p{i}" for i in range(3)])
    assert list(discover.cases(place)) == list(discover.cases(place))


@given(st.text(min_size=1, max_size=300))
@example("/")  # of an object whose key begins with two slashes
def test_any_path_gives_a_key_that_can_name_a_file(path: str) -> None:
    key = key_of(path)
    assert 0 < len(key) <= MAX_KEY
    assert set(key) <= {*string.ascii_letters, *string.digits, *"._=@,-"}
    assert not key.startswith(".")
    assert is_key(key)


def test_a_name_made_up_to_be_the_key_of_another_patient_takes_nothing_over(tmp_path: Path) -> None:
    """The archive and the volume have one name, so one of them gets a digest; which, anybody can compute."""
    taken = f"p1_{short_hash('p1.zip')}"
    put(tmp_path, f"{taken}.nii.gz", "p1.nii.gz", "p1.zip")
    found = keys(tmp_path)
    assert {"p1", taken} < set(found)
    assert len(set(found)) == 3


def test_keys_stay_apart_where_their_paths_differ_in_unsafe_characters_only(tmp_path: Path) -> None:
    names = ["a b", "a_b", "a+b", "ä_b", "x" * 200, "x" * 201, "a/b", "a__b"]
    put(tmp_path, *(f"{name}/1.dcm" for name in names))
    found = keys(tmp_path)
    assert len(set(found)) == len(found) == len(names)
    assert keys(tmp_path) == found


# manifests


def manifest(place: str, text: str, name: str = "list.csv") -> str:
    tiny.write(place, {name: text.encode()})
    return f"{place}/{name}"


def test_a_csv_manifest_with_relative_and_absolute_urls(place: str) -> None:
    put(place, "scans/p1/1.dcm", "scans/p2.zip", "far/p3/1.dcm")
    text = f"label,url,key\n0,scans/p1,one\n1,scans/p2.zip,two\n,{storage.absolute(place)}/far/p3/,NA\n"
    cases = by_key(manifest(place, text))
    assert list(cases) == ["one", "two", "NA"]  # in the order of the lines; NA is a name like others
    assert cases["one"].digest == by_key(f"{place}/scans")["p1"].digest
    assert cases["two"].digest == by_key(f"{place}/scans")["p2"].digest
    assert cases["NA"].url == f"{storage.absolute(place)}/far/p3"


def test_a_parquet_manifest_with_keys_that_are_numbers(place: str) -> None:
    put(place, "a/1.dcm", "b/1.dcm")
    file = io.BytesIO()
    pd.DataFrame({"key": [100, 200], "url": ["a", "b"]}).to_parquet(file)
    tiny.write(place, {"list.parquet": file.getvalue()})
    assert keys(f"{place}/list.parquet") == ["100", "200"]


def test_a_manifest_written_by_excel(tmp_path: Path) -> None:
    put(tmp_path, "a/1.dcm")
    (tmp_path / "list.CSV").write_bytes(b"\xef\xbb\xbfkey,url\r\np1,a\r\n")
    assert keys(tmp_path / "list.CSV") == ["p1"]


def test_a_line_that_leads_nowhere_is_a_case_too(place: str) -> None:
    cases = by_key(manifest(place, "key,url\np1,absent\np2,absent.zip\n"))
    assert [(c.key, c.n_files) for c in cases.values()] == [("p1", 0), ("p2", 0)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be read"),
        ("key\np1\n", "columns 'key' and 'url', found 'key'$"),
        ("Key,URL\np1,a\n", "columns 'key' and 'url', found 'Key', 'URL'$"),
        ("key;url\np1;a\n", "expected commas between fields, found ';'; save it as CSV with commas$"),
        ("key,url\np1,\n", "one empty in row 1$"),
        ("key,url\np1,a\n,b\n", "one empty in row 2$"),
        ("key,url\np1,a\np1,b\n", "'p1' stands in more than one line"),
        ("key,url\nok,a\np 1,b\n", "'p 1' cannot name a volume"),
        ("key,url\nok,a\n../p1,b\n", "cannot name a volume"),
        ("key,url\nok,a\np+1,b\n", "cannot name a volume"),
        ("key,url\nok,a\np1,s3://AKIA:secret@bucket/x\n", "must not hold credentials"),
        ('key,url\n"p1,a\n', "cannot be read"),
        ("key,url\nxx,shifted,a\n", "cannot be read"),
        ("key,url\np1,a\np2,b,c\n", "cannot be read"),
        ("key,url,z\np1,a,1,2,3\n", "cannot be read"),
        ("key,key,url\np1,p2,a\n", "the column 'key' is there twice"),
    ],
)
def test_a_bad_manifest_is_refused_before_its_first_line_is_done(tmp_path: Path, text: str, problem: str) -> None:
    source = manifest(str(tmp_path), text)
    with pytest.raises(UsageError, match=problem):
        next(discover.cases(source))


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_an_absent_or_damaged_manifest_is_wrong_use(place: str, name: str) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        keys(f"{place}/{name}")
    tiny.write(place, {name: b"\xff\xfe\x00 no table"})
    with pytest.raises(UsageError, match=r"cannot be read as a manifest|columns 'key' and 'url'"):
        keys(f"{place}/{name}")


def test_an_empty_manifest_holds_no_case(tmp_path: Path) -> None:
    assert keys(manifest(str(tmp_path), "key,url\n")) == []


def test_a_folder_named_like_a_manifest_or_an_archive_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "scans.csv/p1/1.dcm", "scans.zip/p2/1.dcm")
    assert keys(tmp_path / "scans.csv") == ["p1"]
    assert keys(tmp_path / "scans.zip") == ["p2"]


@pytest.mark.s3
def test_an_absent_bucket_is_no_empty_source(s3: str) -> None:
    with pytest.raises(InfrastructureError, match="no such bucket"):
        keys(f"{s3}-absent/scans")


def test_a_link_to_itself_costs_its_folder_only(tmp_path: Path) -> None:
    put(tmp_path, "p1/1.dcm", "p2/1.dcm")
    (tmp_path / "p1/again").symlink_to(tmp_path / "p1/again")
    assert keys(tmp_path) == ["p1", "p2"]

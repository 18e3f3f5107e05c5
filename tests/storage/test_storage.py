"""Folders and buckets behave alike, and what a store cannot do is one line that names it."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pytest
import tiny
from fsspec.implementations.local import LocalFileSystem

from dskprep import storage
from dskprep.errors import InfrastructureError, UsageError
from dskprep.storage import S3_SETTINGS, bucket_listing, connection

ONE_BYTE = storage.Entry("x", 1, "")


@pytest.fixture
def place(any_place: str) -> str:
    return any_place


def names(entries: Any) -> list[str]:
    return [entry.name for entry in entries]


def path_of(folder: storage.Folder) -> str:
    return folder.path


def test_what_is_written_is_listed_and_read_back(place: str) -> None:
    storage.write_many(place, {"a/one": b"1", "a/b/two": b"22", "three": b""})
    assert names(storage.listing(f"{place}/a")) == ["one"]
    assert sorted(names(storage.listing_below(place))) == ["a/b/two", "a/one", "three"]
    assert [e.size for e in storage.listing(place)] == [0]
    assert storage.read(f"{place}/a/b/two") == b"22"
    assert dict(storage.read_many(f"{place}/a", storage.listing(f"{place}/a"))) == {"one": b"1"}
    assert storage.is_folder(f"{place}/a")
    assert not storage.is_folder(f"{place}/a/one")
    assert storage.exists(f"{place}/three")


def test_nothing_is_listed_where_nothing_is(place: str) -> None:
    assert storage.listing(f"{place}/absent") == []
    assert list(storage.listing_below(f"{place}/absent")) == []
    assert storage.entry_of(f"{place}/absent") is None
    assert not storage.exists(f"{place}/absent")
    with pytest.raises(FileNotFoundError):
        storage.read(f"{place}/absent")


def test_many_objects_come_in_the_order_asked_for(place: str) -> None:
    storage.write_many(place, {f"{i:03}": str(i).encode() for i in range(40)})
    entries = storage.listing(place)[::-1]
    assert [content for _, content in storage.read_many(place, entries)] == [str(i).encode() for i in range(39, -1, -1)]


def test_the_entry_of_a_file_is_that_of_its_listing(place: str) -> None:
    storage.write_many(place, {"p.zip": b"123"})
    (listed,), entry = storage.listing(place), storage.entry_of(f"{place}/p.zip")
    assert entry is not None
    assert tiny.timeless([entry]) == tiny.timeless([listed])
    assert entry.modified_s == pytest.approx(listed.modified_s, abs=2)  # S3 tells it by the second


def test_names_that_look_like_patterns_are_only_names(place: str) -> None:
    folder = f"{place}/scan [1]"
    storage.write_many(folder, {"IM[0-9].dcm": b"x", "IM5.dcm": b"5", "a*": b"y", "what?": b"z"})
    content = dict(storage.read_many(folder, storage.listing(folder)))
    assert content == {"IM[0-9].dcm": b"x", "IM5.dcm": b"5", "a*": b"y", "what?": b"z"}
    storage.delete(folder, ["IM[0-9].dcm", "a*"])
    assert names(storage.listing(folder)) == ["IM5.dcm", "what?"]


@pytest.mark.parametrize("name", ["a%20b", "100%", "a#b", "a?b", "a::b", "a;b=c&d", "[x]*", "ä b", "~x"])
def test_a_folder_may_have_any_name(place: str, name: str) -> None:
    storage.write_many(f"{place}/{name}", {"p1/1.dcm": b"x"})
    url = storage.absolute(f"{place}/{name}")
    assert storage.is_folder(url)
    assert [folder.path for folder in storage.walk(url) if folder.entries] == ["p1"]
    assert dict(storage.read_many(f"{url}/p1", storage.listing(f"{url}/p1"))) == {"1.dcm": b"x"}
    assert storage.folders(place) == [name]


@pytest.mark.s3
@pytest.mark.parametrize("is_forked", [False, True], ids=["obstore", "s3fs"])
def test_an_object_with_a_content_encoding_arrives_as_it_is_stored(
    s3: str, monkeypatch: pytest.MonkeyPatch, is_forked: bool
) -> None:
    """The size of a listing is that of the stored bytes; a client that decoded them would not find it."""
    import fsspec

    stored = gzip.compress(bytes(range(256)) * 1000)
    fs = fsspec.filesystem("s3", **S3_SETTINGS)
    bucket_name = s3.removeprefix("s3://")
    fs.call_s3("put_object", Bucket=bucket_name, Key="p1/1.dcm", Body=stored, ContentEncoding="gzip")
    assert fs.call_s3("head_object", Bucket=bucket_name, Key="p1/1.dcm")["ContentEncoding"] == "gzip"
    monkeypatch.setattr(connection.fork, "is_obstore_lost", is_forked)
    entries = storage.listing(f"{s3}/p1")
    assert [entry.size for entry in entries] == [len(stored)]
    assert dict(storage.read_many(f"{s3}/p1", entries)) == {"1.dcm": stored}
    assert storage.read(f"{s3}/p1/1.dcm") == stored
    assert storage.read_head(f"{s3}/p1/1.dcm", 100) == stored[:100]
    assert storage.read_ranges(f"{s3}/p1/1.dcm", [(5, 50)]) == [stored[5:50]]


def test_a_replaced_file_has_another_tag(place: str) -> None:
    storage.write_many(place, {"x": b"first"})
    before = storage.entry_of(f"{place}/x")
    storage.write_many(place, {"x": b"other"})
    if "://" not in place:
        os.utime(Path(place, "x"), ns=(1, 1))  # the clock of a file system may be coarse
    after = storage.entry_of(f"{place}/x")
    assert before is not None
    assert after is not None
    assert before.size == after.size
    assert before.tag != after.tag


def test_a_file_that_is_not_as_listed_is_not_read(place: str) -> None:
    storage.write_many(place, {"x": b"first", "y": b"first"})
    entries = storage.listing(place)
    storage.write_many(place, {"x": b"longer than it was"})
    with pytest.raises(storage.ObjectChanged):
        list(storage.read_many(place, entries))
    storage.delete(place, ["x"])
    with pytest.raises(storage.ObjectChanged):
        list(storage.read_many(place, entries))


def test_one_of_many_racers_creates(place: str) -> None:
    start = threading.Barrier(8)

    def race(number: int) -> bool:
        start.wait()
        return storage.create(f"{place}/sub/x", str(number).encode() * 1000)

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(race, range(8)))
    assert sum(won) == 1
    assert storage.read(f"{place}/sub/x") == str(won.index(True)).encode() * 1000
    assert names(storage.listing(f"{place}/sub")) == ["x"]


def test_deleting_what_is_gone_is_no_error(place: str) -> None:
    storage.write_many(place, {"x": b"", "y": b""})
    storage.delete(place, ["x", "z"])
    storage.delete(place, [])
    assert names(storage.listing(place)) == ["y"]


@pytest.mark.s3
def test_a_large_object_is_written_in_one_request(s3: str) -> None:
    """A killed process leaves no parts of a multipart upload, which would be invisible and paid for."""
    content = bytes(100 << 20)  # from this size on s3fs would write in parts, and the ETag end in their number
    storage.write_many(s3, {"x": content})
    assert storage.create(f"{s3}/y", content)
    assert [(entry.size, len(entry.tag)) for entry in storage.listing(s3)] == [(100 << 20, 32)] * 2


@pytest.mark.s3
def test_an_object_that_cannot_be_deleted_is_reported(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    storage.write_many(s3, {"x": b""})
    answer = {"Errors": [{"Key": "x", "Code": "AccessDenied", "Message": "no"}]}
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", lambda *_, **__: answer)
    with pytest.raises(InfrastructureError, match=r"/x: cannot be deleted: AccessDenied"):
        storage.delete(s3, ["x"])


@pytest.mark.s3
def test_the_listing_of_a_large_bucket_equals_that_of_the_same_folders(s3: str, tmp_path: Path) -> None:
    # interleaved: keys sort by their bytes, in which '-' and '.' come before '/' and '0' after it
    folders = ["a", "a-b", "a.b", "a0", "a/a", "a/a-a", "b/c/d", "b/c", "b", "", "é"]
    objects = {f"{f}/{i:03}".lstrip("/"): b"" for f in folders for i in range(95)}
    objects |= {f"a/z{i}": b"" for i in range(3)}
    assert len(objects) > 1000
    storage.write_many(s3, objects)
    storage.write_many(str(tmp_path), objects)

    def seen(url: str) -> dict[str, tuple[list[str], bool]]:
        listed = [(f.path, names(f.entries), f.has_subfolders) for f in storage.walk(url) if f.entries]
        assert len({path for path, _, _ in listed}) == len(listed)  # no folder comes twice
        return {path: (files, has_subfolders) for path, files, has_subfolders in listed}

    assert seen(s3) == seen(str(tmp_path))
    assert seen(f"{s3}/a") == seen(f"{tmp_path}/a")
    assert sorted(names(storage.listing_below(s3))) == sorted(objects)


@pytest.mark.s3
@pytest.mark.parametrize("at_once", [1, 7, 5000])
def test_a_bucket_is_walked_the_same_after_a_fork_and_whatever_is_held_at_once(
    s3: str, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    objects = {f"{f}/{i}".lstrip("/"): b"1" for f in ("", "a", "a/b", "a/b/c", "a-b", "d/e", "d0") for i in range(8)}
    storage.write_many(f"{s3}/tree", objects)
    monkeypatch.setattr(bucket_listing, "LISTED_AT_ONCE", at_once)
    by_obstore = tiny.timeless_walk(f"{s3}/tree")
    monkeypatch.setattr(connection.fork, "is_obstore_lost", True)
    by_s3fs = tiny.timeless_walk(f"{s3}/tree")
    assert sorted(by_obstore, key=path_of) == sorted(by_s3fs, key=path_of)
    assert {f"{f.path}/{e.name}".lstrip("/") for f in by_obstore for e in f.entries} == set(objects)
    assert {f.path for f in by_obstore if f.has_subfolders} == {"", "a", "a/b"}


@pytest.mark.s3
@pytest.mark.parametrize("is_forked", [False, True])
def test_the_empty_objects_that_consoles_make_of_folders_are_no_files(
    s3: str, monkeypatch: pytest.MonkeyPatch, is_forked: bool
) -> None:
    import fsspec

    monkeypatch.setattr(connection.fork, "is_obstore_lost", is_forked)
    storage.write_many(f"{s3}/tree", {"p1/1.dcm": b"1", "p1/empty": b"", "p2/1.dcm": b"1"})
    fs = fsspec.filesystem("s3", **S3_SETTINGS)
    for folder in ("", "p1/", "lone/", "p2/lone/"):
        fs.call_s3("put_object", Bucket=s3.removeprefix("s3://"), Key=f"tree/{folder}", Body=b"")
    found = {folder.path: names(list(folder.entries)) for folder in storage.walk(f"{s3}/tree")}
    assert found == {"p1": ["1.dcm", "empty"], "p2": ["1.dcm"]}


@pytest.mark.s3
def test_keys_that_are_no_paths_are_left_to_s3fs(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore.exceptions

    storage.write_many(f"{s3}/tree", {"p1/1.dcm": b"1", "p2/1.dcm": b"2"})
    expected = tiny.timeless_walk(f"{s3}/tree")

    def no_path(*_: object, **__: object) -> None:  # what obstore does of `a//b`, which this server has not
        raise obstore.exceptions.InvalidPathError("Encountered object with invalid path")

    def no_key(*_: object, **__: object) -> None:
        raise ValueError("Could not parse path")

    for name in ("list", "list_with_delimiter"):
        with monkeypatch.context() as patched:
            patched.setattr(obstore, name, no_path)
            assert tiny.timeless_walk(f"{s3}/tree") == expected
    monkeypatch.setattr(obstore, "get", no_key)
    assert storage.read(f"{s3}/tree/p2/1.dcm") == b"2"


@pytest.mark.s3
def test_an_object_whose_key_is_no_path_lies_in_a_folder_of_its_own(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore.exceptions
    import s3fs

    storage.write_many(f"{s3}/a", {"1.dcm": b"1", "b/2.dcm": b"2"})
    call_s3 = s3fs.S3FileSystem.call_s3

    def with_odd_key(self: Any, method: str, **request: Any) -> Any:
        """Give the page of a server that has `a//3.dcm`; this one makes `a/3.dcm` of it."""
        page = call_s3(self, method, **request)
        if "Delimiter" in request or not page.get("Contents"):
            return page
        return {**page, "Contents": [{**page["Contents"][0], "Key": "a//3.dcm"}, *page["Contents"]]}

    def refuse_odd_key(*_: object, **__: object) -> None:
        raise obstore.exceptions.InvalidPathError("Encountered object with invalid path")

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", with_odd_key)
    monkeypatch.setattr(obstore, "list", refuse_odd_key)
    found = {f.path: (names(f.entries), f.has_subfolders) for f in storage.walk(s3)}
    assert found == {"a/": (["3.dcm"], False), "a": (["1.dcm"], True), "a/b": (["2.dcm"], False)}
    assert names(storage.listing_below(f"{s3}/a")) == ["/3.dcm", "1.dcm", "b/2.dcm"]


FORKS = """
import os, sys
from dskprep import storage
url, content = sys.argv[1], b"0123456789" * 100
storage.write_many(url, {str(number): content for number in range(20)})
entries = storage.listing(url)
assert len(list(storage.read_many(url, entries))) == 20
for _ in range(2):
    child = os.fork()
    if not child:
        assert [found for _, found in storage.read_many(url, entries)] == [content] * 20
        assert storage.read_ranges(f"{url}/7", [(1, 3), (998, 1000)]) == [b"12", b"89"]
        assert [len(folder.entries) for folder in storage.walk(url)] == [20]
        print("the child has read", flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    storage.write_many(url, {str(number): content for number in range(20)})
"""
"""A program that reads from S3, and whose children do so after it."""


@pytest.mark.s3
def test_a_process_that_was_forked_reads_and_lists_and_complains_of_nothing(s3: str) -> None:
    words = [sys.executable, "-c", FORKS, f"{s3}/f"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=tiny.LIMIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the child has read\n" * 2, "")


def test_local_folders_are_walked_in_a_stable_order_and_empty_ones_too(tmp_path: Path) -> None:
    for name in ("c", "a/x", "b"):
        (tmp_path / name).mkdir(parents=True)
    assert [(f.path, f.has_subfolders) for f in storage.walk(str(tmp_path))] == [
        ("", True),
        ("a", True),
        ("a/x", False),
        ("b", False),
        ("c", False),
    ]


def test_a_file_of_the_same_size_that_took_the_place_of_a_listed_one_is_not_read(place: str) -> None:
    storage.write_many(place, {"x": b"first", "y": b"first"})
    each = storage.read_many(place, entries := storage.listing(place))
    assert next(each) == ("x", b"first")
    storage.write_many(place, {"y": b"other"})
    if "://" not in place:
        os.utime(Path(place, "y"), ns=(1, 1))  # the clock of a file system may be coarse
    with pytest.raises(storage.ObjectChanged, match="y: "):
        list(each if "://" not in place else storage.read_many(place, entries))  # of a bucket both were read at once


def test_a_file_that_is_written_over_while_it_is_read_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place, so that the file that was opened is the one that was listed."""
    (tmp_path / "x").write_bytes(bytes(1 << 16))
    os.utime(tmp_path / "x", ns=(1, 1))
    (entry,) = storage.listing(str(tmp_path))
    really_open = os.fdopen

    def open_and_write_over(*args: Any) -> Any:
        monkeypatch.undo()
        (tmp_path / "x").write_bytes(b"1" * (1 << 16))
        return really_open(*args)

    monkeypatch.setattr(os, "fdopen", open_and_write_over)
    with pytest.raises(storage.ObjectChanged, match="x: "):
        list(storage.read_many(str(tmp_path), [entry]))


def _lose(folder: Path, how: str) -> None:
    """Take a folder away as a disk goes: with its mount point, or from it; or put another folder there."""
    folder.rename(folder.with_name(f"{folder.name}.away"))
    if how == "left empty":
        folder.mkdir()


@pytest.mark.parametrize("how", ["gone", "left empty"])
@pytest.mark.parametrize("lost", ["", "m", "m/b"])
@pytest.mark.parametrize("listed", [storage.walk, storage.listing_below])
def test_a_folder_that_is_lost_while_it_is_listed_is_an_error(
    tmp_path: Path, lost: str, how: str, listed: Callable[[str], Any]
) -> None:
    """The folders in it that were not listed yet would be lost without a word."""
    storage.write_many(f"{tmp_path}/in", dict.fromkeys(["a/1", "m/b/c/1", "m/b/d/1", "z/1"], b"1"))
    each = listed(f"{tmp_path}/in")
    for found in each:
        if (found.path if isinstance(found, storage.Folder) else found.name) in ("m/b/c", "m/b/c/1"):
            break
    _lose(tmp_path / "in" / lost, how)
    with pytest.raises(InfrastructureError, match=f"^{(tmp_path / 'in' / lost)}: expected the folder that was there"):
        list(each)


@pytest.mark.parametrize("how", ["gone", "left empty"])
def test_a_folder_that_is_lost_at_the_end_of_its_listing_is_an_error(tmp_path: Path, how: str) -> None:
    """The files of the last folder were to be looked at."""
    storage.write_many(f"{tmp_path}/in", dict.fromkeys(["a/1", "b/1"], b"1"))
    each = storage.walk(f"{tmp_path}/in")
    assert [next(each).path for _ in range(3)] == ["", "a", "b"]
    _lose(tmp_path / "in", how)
    with pytest.raises(InfrastructureError, match="expected the folder that was there"):
        list(each)


def test_one_folder_that_is_deleted_while_the_others_are_listed_is_passed_over(tmp_path: Path) -> None:
    storage.write_many(f"{tmp_path}/in", dict.fromkeys(["a/1", "b/1", "b/c/1", "d/1"], b"1"))
    each = storage.walk(f"{tmp_path}/in")
    assert [next(each).path for _ in range(2)] == ["", "a"]
    shutil.rmtree(tmp_path / "in/b")
    assert [folder.path for folder in each] == ["d"]
    assert list(storage.walk(f"{tmp_path}/absent")) == []


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    storage.write_many(str(tmp_path / "far"), {"x": b"abc", "deep/y": b""})
    (tmp_path / "near").mkdir()
    (tmp_path / "near/file").symlink_to(tmp_path / "far/x")
    (tmp_path / "near/folder").symlink_to(tmp_path / "far")
    (tmp_path / "far/back").symlink_to(tmp_path / "near")
    walked = {f.path: f.entries for f in storage.walk(str(tmp_path / "near"))}
    assert {path: names(entries) for path, entries in walked.items()} == {
        "": ["file"],
        "folder": ["x"],
        "folder/deep": ["y"],
    }
    entry = storage.listing(str(tmp_path / "near"))[0]
    assert (entry.size, entry.tag) == (3, storage.listing(str(tmp_path / "far"))[0].tag)
    assert dict(storage.read_many(str(tmp_path / "near"), [entry])) == {"file": b"abc"}


@pytest.mark.parametrize("to", ["..", "../..", "/"])
def test_a_walk_that_begins_further_down_follows_the_same_links(tmp_path: Path, to: str) -> None:
    storage.write_many(str(tmp_path), {"all/a/x": b"", "all/b/y": b""})
    (tmp_path / "all/a/up").symlink_to(to)
    for start, expected in (("all", ["a/x", "b/y"]), ("all/a", ["x"])):
        assert names(storage.listing_below(f"{tmp_path}/{start}")) == expected


def test_a_tree_of_links_is_one_line(tmp_path: Path) -> None:
    """Each folder has two links to the next one: 2^40 ways to the last."""
    for i in range(40):
        (tmp_path / f"{i:02}").mkdir()
        for name in ("a", "b") if i < 39 else ():
            (tmp_path / f"{i:02}/{name}").symlink_to(tmp_path / f"{i + 1:02}")
    for start in (tmp_path, tmp_path / "00", tmp_path / "00/a/b"):
        with pytest.raises(InfrastructureError, match=r"(/[ab]){4}: expected at most 3 links"):
            list(storage.walk(str(start)))
    assert len(list(storage.walk(f"{tmp_path}/36"))) == 1 + 2 + 4 + 8


def test_hidden_folders_do_not_count_as_subfolders(place: str) -> None:
    storage.write_many(place, dict.fromkeys(["a/1", "a/.h/1", "b/1", "b/c/1", "b/c/.h/d/1"], b"1"))
    seen = {f.path: f.has_subfolders for f in storage.walk(place) if f.entries}
    assert seen == {"a": False, "a/.h": False, "b": True, "b/c": False, "b/c/.h/d": False}


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "absent")
    entries = storage.listing(str(tmp_path))
    assert names(entries) == ["x"]
    with pytest.raises(storage.ObjectChanged):
        list(storage.read_many(str(tmp_path), entries))


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_many(str(tmp_path), {"closed/x": b"", "open/x": b""})
    scandir = os.scandir

    def fail_on_closed(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail_on_closed)
    assert [(f.path, len(f.entries)) for f in storage.walk(str(tmp_path))] == [("", 0), ("closed", 0), ("open", 1)]
    with pytest.raises(InfrastructureError, match="permission denied"):
        storage.listing(f"{tmp_path}/closed")
    with pytest.raises(InfrastructureError, match="permission denied"):
        list(storage.walk(f"{tmp_path}/closed"))


def test_a_denied_permission_names_the_place_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not by the name of the unfinished file that could not be made."""

    def deny(_: Any, path: str, *__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(LocalFileSystem, "pipe_file", deny)
    for action in (
        lambda: storage.write_many(str(tmp_path), {"a/x.json": b""}),
        lambda: storage.create(f"{tmp_path}/a/x.json", b""),
    ):
        with pytest.raises(InfrastructureError) as caught:
            action()
        assert str(caught.value) == (
            f"{tmp_path}/a/x.json: permission denied; check the credentials and the path's rights"
        )
    monkeypatch.setattr(LocalFileSystem, "makedirs", lambda *_, **__: deny(None, str(tmp_path)))
    with pytest.raises(InfrastructureError, match=rf"^{tmp_path}: permission denied; check"):
        storage.create(f"{tmp_path}/b/x", b"")


def test_a_local_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_many(str(tmp_path), {"x": b"old"})

    def break_off(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", break_off)
    with pytest.raises(InfrastructureError, match="No space left"):
        storage.write_many(str(tmp_path), {"x": b"new"})
    assert storage.read(f"{tmp_path}/x") == b"old"


@pytest.mark.parametrize("parent", ["file", "file/below"])
def test_a_place_below_a_file_cannot_be_written(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InfrastructureError, match="file"):
        storage.create(f"{tmp_path}/{parent}/dataset.json", b"")


@pytest.mark.s3
def test_an_absent_bucket_says_so(s3: str) -> None:
    for action in (
        lambda: storage.create(f"{s3}-absent/x", b""),
        lambda: storage.write_many(f"{s3}-absent", {"x": b""}),
        lambda: list(storage.walk(f"{s3}-absent")),
    ):
        with pytest.raises(InfrastructureError, match="no such bucket"):
            action()


@pytest.mark.s3
def test_wrong_credentials_are_permission_denied(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for action in (lambda: storage.create(f"{s3}/x", b""), lambda: list(storage.walk(s3))):
        with pytest.raises(InfrastructureError, match="permission denied"):
            action()


@pytest.mark.s3
def test_no_credentials_say_what_to_set(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(InfrastructureError, match="set AWS_PROFILE"):
        storage.create(f"{s3}/x", b"")


@pytest.mark.parametrize("path", ["~no.such.user/scans", "a\0b"])
def test_a_path_that_cannot_be_is_one_line(path: str) -> None:
    with pytest.raises(UsageError, match="names no place"):
        storage.absolute(path)


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("scans/") == f"{tmp_path.resolve()}/scans"
    assert storage.absolute(f"file://{tmp_path}/x/../scans") == f"{tmp_path.resolve()}/scans"
    assert storage.absolute("s3a://bucket/scans/") == storage.absolute("s3://bucket/scans") == "s3://bucket/scans"
    assert storage.absolute("/") == "/"


def test_a_scheme_may_be_in_capitals(place: str) -> None:
    storage.write_many(place, {"Sub/x": b"1"})
    url = place if "://" in place else f"file://{place}"
    scheme, _, rest = url.partition("://")
    for capitals in (f"{scheme.upper()}://{rest}/Sub", f"{scheme.capitalize()}://{rest}/Sub/"):
        assert storage.absolute(capitals) == storage.absolute(f"{place}/Sub")
        assert names(storage.listing(storage.absolute(capitals))) == ["x"]
    assert storage.absolute("S3A://Bucket/Key") == "s3://Bucket/Key"


@pytest.mark.parametrize("url", ["s3://bucket/scans/p1?versionId=3", "S3://bucket/p1.zip?versionid=3"])
def test_versions_of_objects_are_not_read(url: str) -> None:
    with pytest.raises(UsageError, match=r"^s3://bucket/\S+: expected a bucket and a key, found a version; only cur"):
        storage.absolute(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:secret@bucket/x",
        "s3://AKIA:sec/ret@bucket/x",
        "s3:/AKIA:secret@bucket/x",
        "s3://AKIA%3Asecret%40bucket/x",
        "https://me:secret@host/x",
        "https://me:sec/ret@host/x",
        "s3a://k:s@b",
        "az://account:sec/ret==@container/x",
        "az://account:secret",
        "AZ://account:sec/ret/x",
        "/data/x::az://account:sec/ret@container",
        "gs://me:sec/ret@bucket/x",
        "reference://::s3://AKIA:secret@bucket/x",
        "simplecache::s3://AKIA:secret@bucket/x",
        "/data/x::s3://AKIA:secret@bucket/x",
        "s3://bucket/x::s3a://AKIA:secret/x",
        "https://bucket.s3.amazonaws.com/x?X-Amz-Credential=secret&X-Amz-Signature=secret",
        "s3://bucket/x?versionId=3&x-amz-security-token=secret",
        "https://store.blob.core.windows.net/x?sv=2024&sig=secret",
        "https://storage.googleapis.com/b/x?GoogleAccessId=secret",
        "http://host/x?AWSAccessKeyId=secret",
        "http://host/x?access_token=secret",
        "http://host/x#%74oken=secret",
        "host/x?a=b&Signature=secret",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        storage.absolute(url)
    assert "credentials" in str(caught.value)
    assert "sec" not in str(caught.value)


def test_access_points_are_no_credentials() -> None:
    url = "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/scans/stage1"
    assert storage.absolute(url) == url


@pytest.mark.parametrize(
    ("url", "other", "expected"),
    [
        ("/data/scans/out", "/data/scans", True),
        ("/data/scans-out", "/data/scans", False),
        ("/data/scans", "/data/scans", True),
        ("file:///data/scans/x", "/data/scans", True),
        ("s3://b/scans/x", "s3a://b/scans", True),
        ("s3://b/scans", "s3://b/scans/x", False),
        ("s3://b/x", "s3://b", True),
        ("s3://b/data", "/b/data", False),
    ],
)
def test_what_lies_within_what(url: str, other: str, expected: bool) -> None:
    assert storage.is_within(url, other) is expected


SCHEMES_THAT_ARE_NONE = [
    "nonsense://bucket/x",
    "http://127.0.0.1/x",
    "memory://x",
    "local:///etc",
    "data://text/plain,x",
    "reference://::data:application/json;base64,e30=",
    "reference://::s3://bucket/x",
    "simplecache::s3://bucket/x",
    "dir::file:///etc",
]


@pytest.mark.parametrize("url", SCHEMES_THAT_ARE_NONE)
def test_no_other_scheme_and_no_chain_is_opened(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("was opened")

    monkeypatch.setattr(fsspec, "filesystem", opened)
    monkeypatch.setattr(fsspec.core, "url_to_fs", opened)
    for door in (storage.absolute, storage.read, storage.meet, storage.listing, lambda url: list(storage.walk(url))):
        with pytest.raises(
            UsageError, match=r"expected a path, or a URL that begins with s3://, az:// or file://, found '.*://"
        ):
            door(url)


@pytest.mark.parametrize("text", ["?sig" * 100_000, "?" * 400_000, "x" * 400_000, ":/" * 200_000, "?a=b&" * 80_000])
def test_whether_a_text_holds_credentials_is_found_in_one_pass(text: str) -> None:
    """With an expression that goes back, each of these took minutes or more."""
    assert not storage.holds_credentials(text)


def test_a_url_has_a_longest_length() -> None:
    with pytest.raises(UsageError, match="expected a URL or path of at most 4096 characters, found 5010"):
        storage.absolute("s3://" + "x" * 5005)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / "dataset.json")
    else:
        (tmp_path / "dataset.json").symlink_to("/dev/zero")
    where = f"{tmp_path}/dataset.json"
    for read in (storage.read, lambda url: storage.read_head(url, 10), lambda url: storage.read_ranges(url, [(0, 10)])):
        with pytest.raises((InfrastructureError, storage.NoFile), match="expected a file, found a device, a pipe or a"):
            read(where)
    entries = storage.listing(str(tmp_path))
    assert names(entries) == ["dataset.json"]  # it is not passed over
    with pytest.raises(storage.NoFile):
        list(storage.read_many(str(tmp_path), entries))


@pytest.mark.parametrize("read", [storage.read, lambda url: list(storage.read_many(str(Path(url).parent), [ONE_BYTE]))])
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], Any]
) -> None:
    (tmp_path / "x").write_bytes(b"1")
    really_open = os.open

    def open_too_late(path: str, *more: Any, **how: Any) -> int:
        monkeypatch.setattr(os, "open", really_open)
        Path(path).unlink()
        os.mkfifo(path)
        return really_open(path, *more, **how)

    monkeypatch.setattr(os, "open", open_too_late)
    with pytest.raises((InfrastructureError, storage.NoFile), match="expected a file, found a device, a pipe or a"):
        read(str(tmp_path / "x"))


def test_no_more_is_read_of_a_file_than_was_listed(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 43)  # more than any memory
    with pytest.raises(storage.ObjectChanged, match="was listed with 1 bytes, now has 8796093022208"):
        list(storage.read_many(str(tmp_path), [ONE_BYTE]))
    with pytest.raises(InfrastructureError, match=r"fits into memory, of which \d+ bytes are free, found 879609"):
        storage.read(str(tmp_path / "x"))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_disk(self: object, path: str, content: bytes) -> None:  # noqa: ARG001
        Path(path).write_bytes(content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LocalFileSystem, "pipe_file", fill_disk)
    for write in (storage.create, lambda _, content: storage.write_many(str(tmp_path), {"x": content})):
        with pytest.raises(InfrastructureError, match="No space left on device"):
            write(str(tmp_path / "x"), b"123")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.parametrize("n_files", [1, 3, 400])
def test_folders_of_few_objects_are_listed_together_and_none_is_lost(
    s3: str, monkeypatch: pytest.MonkeyPatch, n_files: int
) -> None:
    """A request answers with up to a thousand objects; one for each folder would be thirty times more."""
    n_folders = 120 if n_files < 400 else 7
    made = {f"p{n:03}": [f"s{n % 2}/{k:03}.dcm" for k in range(n_files)] for n in range(n_folders)}
    made |= {f"p{n:03}_a": ["x.dcm"] for n in range(0, n_folders, 50)}
    beside = ["p003.txt", "p000x", "zz"]
    files = {f"{folder}/{name}": b"1" for folder, inner in made.items() for name in inner}
    storage.write_many(f"{s3}/tree", files | dict.fromkeys(beside, b"1"))
    listed: list[str] = []
    real = obstore.list
    monkeypatch.setattr(obstore, "list", lambda *a, **more: (listed.append(str(a[1])), real(*a, **more))[1])
    monkeypatch.setattr(bucket_listing, "GROUP_OBJECTS", 100 * n_files)
    found = list(storage.walk(f"{s3}/tree"))
    assert {f"{f.path}/{e.name}".lstrip("/") for f in found for e in f.entries} == {*files, *beside}
    tops = [f.path.partition("/")[0] for f in found if f.path]
    assert tops == sorted(tops)
    assert len(listed) <= (8 if n_files < 400 else 7 + 1)


@pytest.mark.s3
def test_a_store_that_begins_a_listing_too_late_loses_no_folder(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"p{n:03}/{k}.dcm": b"1" for n in range(40) for k in range(3)}
    storage.write_many(s3, files)
    real = obstore.list

    def too_late(store: Any, prefix: str | None, *, offset: str | None = None, **more: Any) -> Any:
        late = f"{offset[:3]}9/~" if offset else None
        return real(store, prefix, offset=late, **more)

    monkeypatch.setattr(obstore, "list", too_late)
    assert {f"{f.path}/{e.name}" for f in storage.walk(s3) for e in f.entries} == {*files}


@pytest.mark.parametrize(
    "url", ["s3:/bucket/scans", "S3:bucket/scans", "az:/container/x", "file:/data", "https:/host/x"]
)
def test_a_url_that_has_lost_a_slash_is_no_folder(url: str) -> None:
    with pytest.raises(UsageError, match="expected two slashes behind the colon"):
        storage.absolute(url)
    with pytest.raises(UsageError, match="expected two slashes"):
        storage.absolute(Path(url))
    assert storage.absolute(f"./{url}") == str(Path.cwd() / url)

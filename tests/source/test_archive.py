"""Archives are read in memory; what is damaged or unsafe is a named refusal, never a shorter list."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import signal
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import tiny

from dskprep.errors import Refusal
from dskprep.source import archive

FILES = {"a/IM1.dcm": b"one" * 1000, "a/IM2.dcm": b"two" * 1000, "notes.txt": b"three"}
ROOM = 1_000_000

WRITERS = {
    "zip": tiny.zipped,
    "tar": tiny.tarred,
    "tar.gz": lambda files: tiny.tarred(files, "gz"),
    "tar.bz2": lambda files: tiny.tarred(files, "bz2"),
    "tar.xz": lambda files: tiny.tarred(files, "xz"),
}


def unpack(content: bytes, room: int = ROOM) -> dict[str, bytes]:
    return dict(archive.members(content, "p1", room))


def refusal(content: bytes, room: int = ROOM) -> Refusal:
    with pytest.raises(Refusal, match="p1") as caught:
        unpack(content, room)
    assert "\n" not in caught.value.message
    return caught.value


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_archive_is_read_in_its_order(kind: str) -> None:
    assert list(unpack(WRITERS[kind](FILES)).items()) == list(FILES.items())


@pytest.mark.parametrize("kind", WRITERS)
def test_an_archive_may_fill_the_room_but_not_exceed_it(kind: str) -> None:
    size = sum(map(len, FILES.values()))
    content = WRITERS[kind](FILES)
    assert unpack(content, size) == FILES
    with pytest.raises(archive.Outgrown):
        unpack(content, size - 1)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_a_bomb_is_refused_before_it_is_unpacked(kind: str) -> None:
    bomb = WRITERS[kind]({"zeros": bytes(30_000_000)})
    assert len(bomb) < 100_000
    with pytest.raises(archive.Outgrown):
        unpack(bomb, 1_000_000)


def test_a_zip_that_lies_about_its_sizes_is_damaged() -> None:
    content = bytearray(tiny.zipped({"zeros": bytes(30_000_000)}))
    size = struct.pack("<I", 30_000_000)
    assert content.count(size) == 2  # in the file's header and in the directory
    assert refusal(bytes(content).replace(size, struct.pack("<I", 10))).reason == "bad-archive"


@pytest.mark.parametrize("kind", WRITERS)
def test_names_are_labels_that_reach_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"../../etc/passwd": b"1", "/etc/shadow": b"2", "C:\\x": b"3"}
    assert set(unpack(WRITERS[kind](files)).values()) == {b"1", b"2", b"3"}
    assert list(tmp_path.iterdir()) == []


def linked(*links: tarfile.TarInfo) -> bytes:
    """A tar with one file, `a/1.dcm`, its folder, and links."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(link("a", "", tarfile.DIRTYPE))
        info = tarfile.TarInfo("a/1.dcm")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"data"))
        for each in links:
            tar.addfile(each)
    return file.getvalue()


@pytest.mark.parametrize(
    "dead",
    [
        [link("a/2.dcm", "/etc/passwd")],
        [link("a/2.dcm", "3.dcm")],
        [link("a/2.dcm", "a/1.dcm")],
        [link("a/2.dcm", "1.dcm", tarfile.LNKTYPE)],
        [link("a/2.dcm", "../../1.dcm")],
        [link("a/2.dcm", "2.dcm")],
        [link("a/2.dcm", "3.dcm"), link("a/3.dcm", "2.dcm")],
        [link("b", "a"), link("2.dcm", "b/3.dcm")],
    ],
)
def test_a_link_to_nothing_in_a_tar_may_be_a_lost_slice(dead: list[tarfile.TarInfo]) -> None:
    with pytest.raises(Refusal, match=r"expected a file, found a link to") as caught:
        unpack(linked(*dead))
    assert caught.value.reason == "truncated"


def test_a_link_to_what_is_in_the_tar_is_one_more_name_and_no_loss() -> None:
    links = [
        link("a/2.dcm", "1.dcm"),
        link("3.dcm", "./a/1.dcm", tarfile.LNKTYPE),
        link("b", "a"),
        link("4.dcm", "b/1.dcm"),
        link("c/5.dcm", "../a/2.dcm"),
        link("here", "."),
        link("a/.dead", "absent"),
    ]
    assert unpack(linked(*links)) == {"a/1.dcm": b"data"}


@pytest.mark.parametrize("path", ["a/" * 100_000 + "x", "x" * 3000])
@pytest.mark.parametrize("is_target", [False, True])
def test_links_of_endless_paths_are_refused_and_not_followed(path: str, is_target: bool) -> None:
    """Each folder on the way is looked at: of a path of 200 KB that would take 10 GB."""
    links = [link("b", path if is_target else "a/1.dcm"), link("c" if is_target else path, "a/1.dcm")]
    with pytest.raises(Refusal, match="at most 1024 characters") as refused:
        unpack(linked(*links))
    assert refused.value.reason == "bad-archive"
    assert len(str(refused.value)) < 500


def test_many_deep_paths_beside_a_link_take_no_memory_for_each_folder_on_the_way() -> None:
    """All folders above 500 such names would be 150 MB, and above those of an archive of 300 KB some 6 GB."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for n in range(500):
            tar.addfile(tarfile.TarInfo(f"{n:04}/{'a/' * 500}x"))
        tar.addfile(link("1.dcm", "0007/a/a"))
        tar.addfile(link("2.dcm", "absent"))
    content = file.getvalue()
    tracemalloc.start()
    try:
        with pytest.raises(Refusal, match=r"truncated: 2.dcm: expected a file, found a link to 'absent'"):
            unpack(content)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_may_stand_in_the_place_of_a_slice_as_in_a_folder(kind: bytes) -> None:
    with pytest.raises(Refusal, match="expected a file, found a device") as refused:
        unpack(linked(link("a/2.dcm", "", kind)))
    assert refused.value.reason == "truncated"
    assert unpack(linked(link("a/.2.dcm", "", kind))) == {"a/1.dcm": b"data"}


def zip_with_link(name: str, to: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive_:
        archive_.writestr("a/1.dcm", b"data")
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive_.writestr(info, to)
    return file.getvalue()


def test_a_link_in_a_zip_is_one_more_name_or_a_lost_slice_as_in_a_tar() -> None:
    assert unpack(zip_with_link("a/2.dcm", "1.dcm")) == {"a/1.dcm": b"data"}
    with pytest.raises(Refusal, match=r"a/2.dcm: expected a file, found a link to '../outside") as refused:
        unpack(zip_with_link("a/2.dcm", "../../outside/1.dcm"))
    assert refused.value.reason == "truncated"


@pytest.mark.parametrize(("name", "kind"), [(".a", tarfile.REGTYPE), ("a", b"Z"), ("a", tarfile.GNUTYPE_SPARSE)])
def test_a_tar_with_a_size_below_zero_does_not_go_round_in_circles(name: str, kind: bytes) -> None:
    """By a size of -512 the library comes back to the same member, for ever, and keeps each."""
    info = tarfile.TarInfo(name)
    info.type = kind
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[124:136] = (256**12 - 512).to_bytes(12, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it does not end"))
    signal.alarm(20)
    try:
        assert refusal(tarfile.TarInfo("b").tobuf() + bytes(head) + bytes(1024)).reason == "bad-archive"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_of_a_great_many_empty_files_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 5)
    assert len(unpack(WRITERS[kind]({str(n): b"" for n in range(5)}))) == 5
    assert refusal(WRITERS[kind]({f".{n}": b"" for n in range(6)})).reason == "bad-archive"


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_hidden_files_are_left_out_as_in_a_folder(kind: str) -> None:
    files = {"./a/IM1": b"1", "__MACOSX/a/._IM1": b"", ".DS_Store": b"", "a/.git/x": b"", "../IM2": b"2"}
    assert set(unpack(WRITERS[kind](files)).values()) == {b"1", b"2"}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_a_cut_archive_is_damaged(kind: str, share: float) -> None:
    content = WRITERS[kind]({**FILES, "random": random.Random(0).randbytes(20_000)})
    if kind == "tar":  # it ends in 10 KiB of padding
        content = content[: -tarfile.RECORDSIZE]
    assert refusal(content[: int(share * len(content))]).reason == "bad-archive"


@pytest.mark.parametrize("compression", ["", "gz"])
def test_a_tar_cut_between_two_files_is_damaged(compression: str) -> None:
    content = tiny.tarred({name: bytes(3000) for name in "abc"})[: 2 * (512 + 3072)]
    if compression:
        content = gzip.compress(content)
    assert refusal(content).reason == "bad-archive"


def test_a_tar_with_a_damaged_header_in_its_middle_is_damaged() -> None:
    content = bytearray(tiny.tarred({name: bytes(3000) for name in "abc"}))
    content[512 + 3072 + 5] ^= 1  # in the name of the second file
    assert refusal(bytes(content)).reason == "bad-archive"


def test_an_encrypted_zip_is_refused() -> None:
    content = bytearray(tiny.zipped({"a": b"x" * 100}))
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1  # the flag of encryption
    refused = refusal(bytes(content))
    assert refused.reason == "bad-archive"
    assert "encrypted" in refused.message


def test_a_zip_inside_a_tar_does_not_hide_the_tar() -> None:
    files = {"IM1.dcm": b"1" * 600, "inner.zip": tiny.zipped({"other": b"2"})}
    assert unpack(tiny.tarred(files)) == files


def test_an_empty_archive_holds_nothing() -> None:
    assert unpack(tiny.zipped({})) == {}
    assert unpack(tiny.tarred({})) == {}


@pytest.mark.parametrize("content", [b"", b"no archive", bytes(2000), b"PK\3\4 but no zip", b"\x1f\x8b but no gzip"])
def test_what_is_no_archive_is_damaged(content: bytes) -> None:
    if content == bytes(2000):
        assert unpack(content) == {}  # two blocks of zeros are an empty tar
    else:
        assert refusal(content).reason == "bad-archive"


@pytest.mark.parametrize("kind", WRITERS)
def test_flipped_bytes_lead_to_the_true_files_or_a_refusal(kind: str) -> None:
    rng = random.Random(kind)
    good = WRITERS[kind](FILES)
    for _ in range(150):
        content = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        with contextlib.suppress(Refusal, archive.Outgrown):
            found = unpack(bytes(content))
            if kind != "tar":  # a plain tar has no checksum over its contents
                assert set(found.values()) <= set(FILES.values())


def test_a_zip_with_an_unknown_compression_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zip_file:
        zip_file.writestr("a", b"x" * 100)
    content = bytearray(file.getvalue())
    for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        content[content.index(mark) + place] = 97
    assert refusal(bytes(content)).reason == "bad-archive"

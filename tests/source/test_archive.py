"""Archives are read in memory; what is damaged or unsafe is a named refusal, never a shorter list."""

from __future__ import annotations

import bz2
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


def forged(content: bytes, claimed: int, method: int) -> bytes:
    """A zip of one file, packed by a method, that claims to unpack to so many bytes."""
    sizes = struct.pack("<III", 0, len(content), claimed)
    head = struct.pack("<HHHHH", 46, 0, method, 0, 0) + sizes + struct.pack("<HH", 1, 0)
    local = b"PK\3\4" + head + b"a" + content
    listed = b"PK\1\2" + struct.pack("<H", 46) + head + bytes(14) + b"a"
    return local + listed + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(listed), len(local), 0)


@pytest.mark.parametrize(("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")])
@pytest.mark.parametrize("to", ["a", ".a"])
def test_what_the_library_unpacks_without_a_limit_is_refused_by_name(method: int, name: str, to: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as zip_file:
        zip_file.writestr(to, b"data")
    assert name in refusal(file.getvalue()).message


def test_a_zip_that_claims_less_than_it_unpacks_to_takes_no_memory_for_the_rest() -> None:
    bomb = forged(bz2.compress(bytes(100_000_000)), 1000, zipfile.ZIP_BZIP2)
    assert refused_within(bomb, 20_000_000).reason == "bad-archive"


def refused_within(content: bytes, n_bytes: int) -> Refusal:
    """How an archive is refused, which must take no more memory than this."""
    tracemalloc.start()
    try:
        found = refusal(content)
        assert tracemalloc.get_traced_memory()[1] < n_bytes
    finally:
        tracemalloc.stop()
    return found


def header(kind: bytes, size: int) -> bytes:
    """The block before what tells more of the next file in a tar, such as its long name."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


EXTENSIONS = [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXTENSIONS)
@pytest.mark.parametrize("before", [b"", tiny.tarred({"first": b"data"})[:1024]])
@pytest.mark.parametrize("size", [100_000_000, -512])
def test_a_header_without_end_in_a_tar_is_refused_and_not_read(kind: bytes, before: bytes, size: int) -> None:
    bomb = gzip.compress(before + header(kind, size) + bytes(100_000_000) + tiny.tarred({"a": b"data"}))
    assert "headers of at most" in refused_within(bomb, 20_000_000).message


def test_a_chain_of_headers_in_a_tar_is_refused() -> None:
    chain = (header(tarfile.GNUTYPE_LONGNAME, 50_000) + bytes(50_176)) * 100
    assert "headers of at most" in refused_within(gzip.compress(chain + tiny.tarred({"a": b""})), 20_000_000).message


def test_headers_of_all_files_that_grow_with_each_file_are_refused() -> None:
    """The library would give each file a copy of all of them, and keep it."""
    records = [b"".join(b"%d %05d=%s\n" % (1012, n, b"v" * 1000) for n in range(k, k + 200)) for k in (0, 200)]
    file = tiny.tarred({"a": b""})[:512]
    assert all(len(each) == 202_400 for each in records)
    parts = [header(tarfile.XGLTYPE, len(each)) + each.ljust(202_752, b"\0") + file for each in records]
    assert unpack(parts[0] + bytes(1024)) == {"a": b""}
    assert "global headers" in refusal(b"".join(parts) + bytes(1024)).message


def test_a_number_of_thousands_of_digits_in_a_header_takes_no_hours() -> None:
    """By the library of Python 3.11.9 and older, 250,000 digits take a quarter of an hour."""
    body = b"1" * 250_000
    bomb = header(tarfile.XHDTYPE, len(body)) + body.ljust(250_368, b"\0") + tiny.tarred({"a": b""})
    assert "hundreds of digits" in refusal(bomb).message


def test_files_with_names_and_notes_as_long_as_linux_has_them_are_read() -> None:
    info = tarfile.TarInfo("/".join(["n" * 250] * 16))
    info.size, info.pax_headers = 4, {"SCHILY.xattr.user.x": "v" * 65_536, "LIBARCHIVE.xattr.user.x": "v" * 87_384}
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form, pax_headers={"comment": "c" * 40}) as tar:
            tar.addfile(info, io.BytesIO(b"data"))
            tar.addfile(info, io.BytesIO(b"more"))
        assert list(archive.members(file.getvalue(), "p1", ROOM)) == [(info.name, b"data"), (info.name, b"more")]


def test_a_sparse_file_in_a_tar_is_refused_by_name() -> None:
    info = tarfile.TarInfo("a")
    info.size, info.pax_headers = 3, {"GNU.sparse.map": "0,3", "GNU.sparse.size": "3"}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(info, io.BytesIO(b"abc"))
    assert "--sparse" in refusal(file.getvalue()).message


@pytest.mark.parametrize("name", [".a", "a"])
def test_what_is_passed_over_in_a_tar_counts_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a kilobyte of bzip2 stands for megabytes, and an hour can pass until a hidden file ends."""
    monkeypatch.setattr(archive, "MAX_BESIDE_BYTES", 1 << 20)
    bomb = tiny.tarred({name: bytes(5_000_000), "b": b""}, "bz2")
    assert len(unpack(bomb, 5_000_000)) == (1 if name == ".a" else 2)
    with pytest.raises(archive.Outgrown):
        unpack(bomb, 1_000_000)


@pytest.mark.parametrize("kind", WRITERS)
def test_archives_joined_by_cat_are_refused_and_not_read_in_part(kind: str) -> None:
    one, other = WRITERS[kind]({"a": b"1" * 3000}), WRITERS[kind]({"b": b"2" * 3000})
    assert "joined by cat" in refusal(one + other).message


def test_a_block_of_zeros_in_the_middle_of_a_tar_is_not_its_end() -> None:
    one, other = tiny.tarred({"a": b"1" * 300})[:1024], tiny.tarred({"b": b"2" * 300})
    assert len(unpack(one + other)) == 2
    assert "more follows its end" in refusal(one + bytes(512) + other).message


def test_the_checksum_of_a_gzip_around_a_tar_is_compared() -> None:
    content = bytearray(gzip.compress(tiny.tarred({"a": b"voxels" * 100})))
    content[-8] ^= 1  # CRC-32 and size are its last eight bytes
    assert "CRC" in refusal(bytes(content)).message
    assert refusal(bytes(content[:-8])).reason == "bad-archive"


def test_an_end_of_a_tar_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BESIDE_BYTES", 1 << 20)
    content = tiny.tarred({"a": b""})
    assert unpack(content + bytes(500_000)) == {"a": b""}
    with pytest.raises(archive.Outgrown):
        unpack(gzip.compress(content + bytes(10_000_000)))


@pytest.mark.parametrize("kind", [b"M", b"Z", b"A"])
def test_a_member_of_an_unknown_type_in_a_tar_may_be_a_lost_slice(kind: bytes) -> None:
    with pytest.raises(Refusal, match="expected a file, found a member of type") as refused:
        unpack(linked(link("a/2.dcm", "", kind)))
    assert refused.value.reason == "truncated"
    assert unpack(linked(link("a/.2.dcm", "", kind))) == unpack(linked(link("a name", "", b"V")))


def test_a_folder_in_a_zip_that_holds_bytes_may_be_a_lost_slice() -> None:
    assert "called a folder" in refusal(tiny.zipped({"a/": b"data"})).message
    assert unpack(tiny.zipped({"a/": b"", "a/b": b"data"})) == {"a/b": b"data"}


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
    signal.alarm(200)
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

"""A line of a manifest that cannot be read makes one record; the lines after it are done. A plan says the same."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pandas as pd
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import index
from dskprep.errors import InfrastructureError, UsageError
from dskprep.source import cases as discover
from dskprep.worker import process

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WAIT_S", 0.0)


def manifest(place: Path | str, lines: dict[str, str]) -> str:
    text = "key,url\n" + "".join(f'{key},"{url}"\n' for key, url in lines.items())
    return f"{tiny.write(place, {'list.csv': text.encode()})}/list.csv"


def outcomes(source: str, target: str) -> dict[str, tuple[str, str, str]]:
    """Status, reason and message of each key after a run, which a plan has predicted."""
    planned = {p.key: (p.status, p.reason) for p in dskprep.plan(source).predictions}
    dskprep.run(source, target)
    rows = index.rows_of(index.current_table(target))
    found = {row["key"]: (row["status"], row["reason"] or "", row["message"] or "") for row in rows}
    assert planned == {key: (status, reason) for key, (status, reason, _) in found.items()}
    return found


BAD = {
    "an unknown protocol": "foo://x/y",
    "another store": "gs://bucket/x",
    "a chain": "simplecache::foo://x",
    "a chain that ends in a bucket": "simplecache::s3://bucket/x",
    "templates": "reference://::data:application/json;base64,e30=",
    "a memory": "memory://x",
    "nothing on this machine": "http://127.0.0.1:9/x",
    "a missing folder": "absent/folder",
    "a missing archive": "absent.zip",
    "a home that there is not": "~nobody-of-this-name/x",
    "a name that is too long": "x" * 5000,
    "no bucket": "s3://",
    "a version": "s3://bucket/x?versionId=7",
    "up and away": "../../../../../../../../../absent",
    "a chain in a name": "a::b",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_makes_one_record(tmp_path: Path, kind: str) -> None:
    tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    source = manifest(tmp_path / "in", {"a": "p1", "bad": BAD[kind], "z": "p2"})
    found = outcomes(source, str(tmp_path / "out"))
    assert (found["a"][0], found["z"][0]) == ("written", "written")
    status, reason, message = found["bad"]
    assert (status, reason) == ("refused", "no-dicom")
    assert "\n" not in message
    assert BAD[kind].rpartition("../")[2][:40] in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_one_record(tmp_path: Path) -> None:
    tiny.write_patients(tmp_path / "in", ["p1", "p2", "p3"])
    (tmp_path / "in/p2").chmod(0)
    found = outcomes(manifest(tmp_path / "in", {"a": "p1", "bad": "p2", "z": "p3"}), str(tmp_path / "out"))
    (tmp_path / "in/p2").chmod(0o700)
    assert found["bad"][:2] == ("refused", "no-dicom")
    assert f"{tmp_path}/in/p2: permission denied" in found["bad"][2]


@pytest.mark.s3
def test_bad_lines_of_buckets_make_one_record_each(s3: str, tmp_path: Path) -> None:
    tiny.write_patients(f"{s3}/in", ["p1"])
    tiny.write_patients(tmp_path / "in", ["p2"])
    tiny.write(f"{s3}/in/empty", {"1.dcm": b""})
    lines = {
        "a": f"{s3}/in/p1",
        "b": f"{s3}-absent/x",
        "c": f"{s3}/in/../p1",
        "d": f"{s3}//in/p1",
        "e": f"{s3}/in/empty",
        "f": f"{s3}/in/empty/1.dcm",
        "z": f"{tmp_path}/in/p2",
    }
    found = outcomes(manifest(f"{s3}/in", lines), str(tmp_path / "out"))
    assert {key: each[:2] for key, each in found.items()} == {
        "a": ("written", ""),
        "b": ("refused", "no-dicom"),
        "c": ("refused", "no-dicom"),
        "d": ("refused", "no-dicom"),
        "e": ("refused", "truncated"),
        "f": ("refused", "truncated"),
        "z": ("written", ""),
    }
    for key in "bcd":
        assert lines[key] in found[key][2]


@pytest.mark.parametrize("n", [1, 3, discover.MAX_OUTAGES + 5])
def test_a_store_that_fails_for_every_line_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    source = manifest(tmp_path, {f"p{i}": f"x{i}" for i in range(n)})
    asked: list[str] = []

    def fail(url: str) -> list[storage.Entry]:
        asked.append(url)
        raise InfrastructureError(f"{url}: no route to host")

    monkeypatch.setattr(storage, "listing_below", fail)
    with pytest.raises(InfrastructureError, match=r"lines in a row that cannot be listed.*no route to host"):
        dskprep.run(source, tmp_path / "out")
    assert len(asked) == min(n, discover.MAX_OUTAGES)
    assert not (tmp_path / "out").exists()


def test_what_was_made_of_a_line_stays_while_it_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    source, target = manifest(tmp_path / "in", {"a": "p1", "b": "p2"}), str(tmp_path / "out")
    dskprep.run(source, target)
    listing_below = storage.listing_below

    def fail(url: str, **options: bool):
        if url.endswith("/p2"):
            raise InfrastructureError(f"{url}: no route to host")
        return listing_below(url, **options)

    with monkeypatch.context() as outage:
        outage.setattr(storage, "listing_below", fail)
        assert dskprep.run(source, target).account.counts == {"written": 1, "refused": 1}
    assert dskprep.open_dataset(target)["b"].load().shape == (12, 24, 24)
    assert dskprep.run(source, target).account.already == {"written": 2}
    assert dskprep.status(target).counts == {"written": 2}


def test_faults_of_the_whole_manifest_begin_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name a volume"):
        dskprep.run(manifest(tmp_path, {"a": "x", "..": "y"}), tmp_path / "out")
    with pytest.raises(UsageError, match="must not hold credentials"):
        dskprep.run(manifest(tmp_path, {"a": "x", "b": "s3://AKIA:secret@bucket/x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


SECRETS = {
    "in a chain": "key,url\na,x\nb,reference://::s3://AKIA:hush@bucket/x\n",
    "in a signed URL": "key,url\na,x\nb,https://h.invalid/x?X-Amz-Credential=hush&X-Amz-Signature=hush\n",
    "in place of a key": "key,url\ns3://AKIA:hush@bucket/x,b\n",
    "without a header": "s3://AKIA:hush@bucket/x,a\n",
}


@pytest.mark.parametrize("where", SECRETS)
def test_a_secret_in_a_manifest_is_nowhere_repeated(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"{tiny.write(tmp_path, {'list.csv': SECRETS[where].encode()})}/list.csv"
    for words in (["plan", source], ["run", source, str(tmp_path / "out"), "--scheduler", "sync", "--log-json"]):
        assert commands.run_command(words) == 2
        told = "".join(capsys.readouterr())
        assert "must not hold credentials" in told
        assert "hush" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["list.csv"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_line_that_is_not_utf_8_costs_itself_alone(tmp_path: Path, kind: str) -> None:
    tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    tiny.write_patients(tmp_path / "in", [os.fsdecode(b"caf\xe9")])
    urls = [b"p1", b"gone\xff\xfe", b"caf\xe9", b"p2"]
    content = io.BytesIO()
    if kind == "csv":
        content.write(b"key,url\n" + b"".join(b"%d,%s\n" % line for line in enumerate(urls)))
    else:
        pd.DataFrame({"key": [b"%d" % i for i in range(4)], "url": urls}).to_parquet(content)
    tiny.write(tmp_path / "in", {f"list.{kind}": content.getvalue()})
    found = outcomes(str(tmp_path / f"in/list.{kind}"), str(tmp_path / "out"))
    assert [found[str(i)][0] for i in range(4)] == ["written", "refused", "written", "written"]


def test_a_line_with_a_path_of_megabytes_is_not_repeated_whole(tmp_path: Path) -> None:
    tiny.write_patients(tmp_path / "in", ["p1"])
    long, good = discover.cases(manifest(tmp_path / "in", {"long": "x" * 2_000_000, "p1": "p1"}))
    assert "at most 4096 characters, found 2000" in (long.problem or "")
    assert len(long.problem or "") + len(long.url) < 1000
    assert not good.problem

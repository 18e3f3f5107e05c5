"""Azure Blob Storage, against Microsoft's own emulator. What cannot be used is one line."""

from __future__ import annotations

import http.client
import os
import threading
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import azurite as emulator
import numpy as np
import pytest
import tiny
from azurite import Azurite
from test_unreachable import COMMANDS, Silent, line_of

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.errors import InfrastructureError, UsageError
from dskprep.storage import azure, connection
from dskprep.synthetic.s3server import HOST


@pytest.fixture
def container(azurite: Azurite) -> str:
    """URL of a container of this test's own."""
    return azurite.make_container(f"c-{uuid.uuid4().hex}")


@pytest.mark.slow
def test_a_whole_dataset_is_made_and_used(container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = f"{container}/in", f"{container}/out"
    tiny.write_patients(source, ["p0", "p1"])
    storage.write_many(source, {"bad/notes.txt": b"no DICOM"})
    assert commands.run_command(["run", source, target, "--scheduler", "sync"]) == 1
    assert commands.run_command(["run", source, target, "--scheduler", "sync"]) == 1
    assert "0 done, 3 done before" in capsys.readouterr().out
    half = {"zarr.json": storage.read(f"{target}/volumes/p1.zarr/zarr.json"), "0/c/0/0/0": b"of a run that died"}
    storage.write_many(f"{target}/volumes/p9.zarr", half)
    for command in (["status", target], ["verify", target], ["plan", source]):
        assert commands.run_command(command) in (0, 1), capsys.readouterr().err
    capsys.readouterr()
    assert commands.run_command(["clean", target, "--older-than", "0"]) == 0
    assert "2 leftovers deleted" in capsys.readouterr().out
    points = tmp_path / "nodules.csv"
    points.write_text("key,x,y,z\np1,-98,-48,15\n")
    storage.write_many(container, {"labels/nodules.csv": points.read_bytes()})
    assert commands.run_command(["annotate", target, f"{container}/labels"]) == 0
    dataset = dskprep.open_dataset(target)
    volume = dataset["p1"]
    np.testing.assert_array_equal(volume.load().array, tiny.hu(1))
    np.testing.assert_array_equal(volume.image[5, 3:9], tiny.hu(1)[5, 3:9])
    np.testing.assert_array_equal(volume.patch(4, index=(6, 6, 6)).array, tiny.hu(1)[4:8, 4:8, 4:8])
    assert volume.points[["x", "y", "z"]].to_numpy().tolist() == [[-98, -48, 15]]
    assert dataset.index.status.value_counts().to_dict() == {"written": 2, "refused": 1}


def test_of_many_that_create_one_blob_one_succeeds(container: str) -> None:
    storage.write_many(container, {"warm": b""})
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return storage.create(f"{container}/record", b"%d" % number)

    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(create, range(8)))
    assert created.count(True) == 1
    assert storage.read(f"{container}/record") == b"%d" % created.index(True)


def test_a_blob_that_was_replaced_after_it_was_listed_is_not_read(container: str) -> None:
    storage.write_many(container, {"p/1.dcm": b"first"})
    entries = storage.listing(f"{container}/p")
    storage.write_many(container, {"p/1.dcm": b"other"})
    with pytest.raises(storage.ObjectChanged, match=r"p/1\.dcm"):
        list(storage.read_many(f"{container}/p", entries))


def test_the_head_of_an_empty_blob_is_empty(container: str) -> None:
    storage.write_many(container, {"empty": b"", "short": b"ab"})
    assert storage.read_head(f"{container}/empty", 10) == b""
    assert storage.read_head(f"{container}/short", 10) == b"ab"
    with pytest.raises(storage.ObjectChanged):
        storage.read_head(f"{container}/absent", 10)


def test_what_is_not_there_is_deleted_in_peace_and_the_rest_too(container: str) -> None:
    storage.write_many(container, {f"d/{i}": b"x" for i in range(5)})
    storage.delete(f"{container}/d", ["absent", *map(str, range(4))])
    assert [entry.name for entry in storage.listing(f"{container}/d")] == ["4"]


def key_of_az(_: Azurite, __: str) -> dict[str, str]:
    return {"AZURE_STORAGE_ACCOUNT": emulator.ACCOUNT, "AZURE_STORAGE_KEY": emulator.KEY}


def signature(server: Azurite, container: str) -> dict[str, str]:
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": emulator.ACCOUNT,
        "AZURE_STORAGE_SAS_TOKEN": server.signed_access(container, "rwdlac"),
    }


def connection_string(server: Azurite, _: str) -> dict[str, str]:
    parts = {"AccountName": emulator.ACCOUNT, "AccountKey": emulator.KEY, "BlobEndpoint": server.endpoint}
    return {azure.CONNECTION_STRING: ";".join(f"{name}={value}" for name, value in parts.items())}


def signed_connection_string(server: Azurite, container: str) -> dict[str, str]:
    access = server.signed_access(container, "rwdlac")
    parts = f"AccountName={emulator.ACCOUNT};BlobEndpoint={server.endpoint}/;SharedAccessSignature={access}"
    return {azure.CONNECTION_STRING: parts}


@pytest.mark.parametrize("credentials", [key_of_az, signature, connection_string, signed_connection_string])
def test_credentials_are_found_where_azures_tools_look(
    azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch, credentials: Any
) -> None:
    clear(monkeypatch)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azurite.endpoint)
    for name, value in credentials(azurite, container).items():
        monkeypatch.setenv(name, value)
    storage.write_many(container, {"a/b": b"1"})
    assert storage.create(f"{container}/a/c", b"2")
    assert not storage.create(f"{container}/a/c", b"3")
    assert dict(storage.read_many(f"{container}/a", storage.listing(f"{container}/a"))) == {"b": b"1", "c": b"2"}
    storage.delete(container, ["a/b"])
    assert [entry.name for entry in storage.listing_below(container)] == ["a/c"]


def test_a_signature_that_only_reads_cannot_write_and_is_not_repeated(
    azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_many(container, {"a": b"1"})
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", azurite.signed_access(container, "rl"))
    assert storage.read(f"{container}/a") == b"1"
    with pytest.raises(InfrastructureError, match="permission denied") as caught:
        storage.write_many(container, {"b": b"2"})
    chain = [caught.value, caught.value.__cause__, caught.value.__cause__.__cause__]  # type: ignore[union-attr]
    assert not any("sig=" in str(each) for each in chain)


def clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_MSI_ENDPOINT", f"http://{HOST}:9")


@pytest.fixture
def no_setup(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account at all; waits are short."""
    clear(monkeypatch)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, HOST)
    monkeypatch.setattr(azure, "CONTACT_LIMITS", dict.fromkeys(azure.CONTACT_LIMITS, timedelta(seconds=0.2)))
    connection.fork.connections.clear()
    yield
    connection.fork.connections.clear()


@pytest.mark.usefixtures("no_setup")
@pytest.mark.parametrize("command", COMMANDS)
def test_an_endpoint_that_never_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    tiny.write_patients(tmp_path, ["p1"])
    with Silent() as silent:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "me")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", emulator.KEY)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", silent.endpoint)
        line = line_of(COMMANDS[command], tmp_path, capsys, bucket="az://bucket")
        assert silent.n_connections
    assert "az://bucket/" in line
    assert line.endswith("check AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT and the network")
    assert "Debug source" not in line


@pytest.mark.usefixtures("no_setup")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9/me?sv=2024&sig=SENTINEL"),
        ("azure_endpoint", "http://me:SENTINEL@127.0.0.1:9/me"),
        ("AZURE_STORAGE_ENDPOINT", "http://me:SENTINEL\u2100@127.0.0.1:9/me"),
        ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=me;BlobEndpoint=http://127.0.0.1:9/me?sig=SENTINEL"),
    ],
)
def test_a_secret_in_an_endpoint_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "me")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", emulator.KEY)
    monkeypatch.setenv(name, value)
    with pytest.raises(InfrastructureError, match=f"{name}: expected an endpoint such as") as caught:
        storage.exists("az://bucket/p")
    assert "SENTINEL" not in "".join(traceback.format_exception(caught.value))


def test_the_first_request_fails_within_half_a_minute() -> None:
    retries, limits = azure.CONTACT_RETRIES, azure.CONTACT_LIMITS
    assert (1 + retries["max_retries"]) * limits["timeout"] <= timedelta(seconds=15)  # type: ignore[operator]
    assert retries["retry_timeout"] <= timedelta(seconds=15)


@pytest.mark.usefixtures("no_setup")
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "set AZURE_STORAGE_ACCOUNT_NAME, or AZURE_STORAGE_CONNECTION_STRING"),
        ({"AZURE_STORAGE_ACCOUNT_NAME": "me"}, "set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or"),
        ({"AZURE_STORAGE_ACCOUNT": "me", "AZURE_STORAGE_KEY": "%geheim"}, "correct AZURE_STORAGE_ACCOUNT_KEY"),
        ({azure.CONNECTION_STRING: "AccountKey=geheim"}, "expected AccountName=… or BlobEndpoint=…, found neither"),
        ({"AZURE_STORAGE_ACCOUNT_NAME": "me", "REQUESTS_CA_BUNDLE": "/none.pem"}, "REQUESTS_CA_BUNDLE: expected"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert commands.run_command(["status", "az://container/out"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "geheim" not in line


def test_wrong_keys_and_absent_containers_are_one_line(
    container: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tiny.write_patients(tmp_path, ["p1"])
    for words in (["status", "az://absent/x"], ["plan", "az://absent"], ["run", source, "az://absent/x"]):
        assert commands.run_command(words) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("there is no such bucket; create it, or correct the name")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "QUFB")
    for words in (["status", f"{container}/x"], ["plan", container], ["run", source, f"{container}/x"]):
        assert commands.run_command(words) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "AuthorizationFailure: Server failed to authenticate the request" in line
        assert "permission denied" in line
        assert line.endswith("check the credentials and the path's rights")


def test_a_name_that_is_no_path_is_said(azurite: Azurite, container: str) -> None:
    """Azure takes such names, and obstore cannot name them."""
    access = azurite.signed_access(container, "rwdlac")
    server = http.client.HTTPConnection(HOST, azurite.port, timeout=emulator.START_S)
    path = f"/{emulator.ACCOUNT}/{container.removeprefix('az://')}/p//1.dcm?{access}"
    server.request("PUT", path, b"x", {"x-ms-blob-type": "BlockBlob", "x-ms-version": emulator.VERSION})
    assert server.getresponse().status == 201
    server.close()
    with pytest.raises(InfrastructureError, match="rename it"):
        list(storage.walk(container))


def test_a_forked_process_says_what_to_do(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_many(container, {"a": b"1"})
    monkeypatch.setattr(connection.fork, "is_obstore_lost", True)
    for use in (lambda: storage.read(f"{container}/a"), lambda: storage.create(f"{container}/b", b"")):
        with pytest.raises(InfrastructureError, match="multiprocessing_context='spawn'"):
            use()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("abfss://data/x", "write az://container/folder"),
        ("az://", "names no place"),
        ("az://data/a//b", "second slash"),
        ("gs://data/x", "only the buckets of the Imaging Data Commons"),
        ("az://data/x?sv=1&sig=geheim", "a URL must not hold credentials"),
    ],
)
def test_urls_that_cannot_be_opened(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        storage.absolute(url)
    assert "geheim" not in str(caught.value)
    assert storage.absolute("AZ://Data/x/") == "az://Data/x"

"""Fixtures shared by the tests: an S3 server, a bucket, real CT data."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import s3fs
import tiny
from azurite import Azurite, find_azurite

from dskprep.cli import terminal
from dskprep.errors import InfrastructureError
from dskprep.storage import connection
from dskprep.synthetic import s3server

hypothesis.settings.load_profile("ci")  # the same examples each time, and no limits of time


@pytest.fixture(autouse=True)
def connections(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests share dskprep's connections, which depend on the settings; those of `storage` open their own."""
    if request.path.parent.name != "storage":
        yield
        return
    connection.fork.connections.clear()
    yield
    connection.fork.connections.clear()


@pytest.fixture(autouse=True)
def untold_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command waits for is not told, as tests read all that it says, and run on slow machines too.

    What was waited for is forgotten, also where a test has called a part of a command.
    """
    for name in ("TOLD_AFTER_S", "TOLD_EVERY_S"):
        monkeypatch.setattr(terminal, name, tiny.NEVER_S)
    yield
    terminal.end_command()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3server.S3Server]:
    """One SeaweedFS for the whole session, started by the first test that asks for it."""
    try:
        s3server.find_weed()
    except InfrastructureError as error:
        pytest.skip(str(error))
    with s3server.S3Server() as server:
        yield server


@pytest.fixture
def s3_environment(s3_server: s3server.S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever opens an S3 URL in this process or its children reaches the server, with no options at all.

    What a test opens by s3fs is its own.
    """
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)  # nothing of this machine's setup, such as AWS_PROFILE, leaks in
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(s3_server: s3server.S3Server, s3_environment: None) -> str:  # noqa: ARG001
    """URL of a fresh bucket."""
    return s3_server.make_bucket(f"test-{uuid.uuid4().hex}")


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """One emulator of Azure's blobs for the whole session, started by the first test that asks for it."""
    if find_azurite() is None:
        pytest.skip("Azurite is not installed: make azurite")
    with Azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def azurite(azurite_server: Azurite, monkeypatch: pytest.MonkeyPatch) -> Azurite:
    """Whatever opens a URL of Azure in this process or its children reaches the emulator."""
    for name in [name for name in os.environ if name.startswith(("AZURE_", "REQUESTS_CA_BUNDLE"))]:
        monkeypatch.delenv(name)
    for name, value in azurite_server.environment.items():
        monkeypatch.setenv(name, value)
    return azurite_server


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty place: once a local folder, once a prefix (the first write to a bucket takes a second)."""
    return _place(request, tmp_path)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3), "azure"])
def any_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Likewise, and once a prefix in a container of Azure."""
    return _place(request, tmp_path)


def _place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "place")
    if request.param == "azure":
        azurite: Azurite = request.getfixturevalue("azurite")
        return f"{azurite.make_container('places')}/{uuid.uuid4().hex}"
    request.getfixturevalue("s3_environment")
    server: s3server.S3Server = request.getfixturevalue("s3_server")
    return f"{server.make_bucket('places')}/{uuid.uuid4().hex}"


class DataFolder:
    """Real CT data; see README.md in the folder that DSKPREP_DATA names.

    `volumes`, `tricky` and `wild` hold one folder for each archive, unpacked when first asked for.
    """

    def __init__(self, source: Path, unpacked: Path) -> None:
        self._source = source
        self._unpacked = unpacked

    @cached_property
    def volumes(self) -> Path:
        return self._unpack("volumes")

    @cached_property
    def tricky(self) -> Path:
        return self._unpack("tricky")

    @cached_property
    def wild(self) -> Path:
        return self._unpack("wild")

    @property
    def labels(self) -> Path:
        return self._source / "labels"

    @cached_property
    def expected_volumes(self) -> dict[str, Any]:
        return self._read("expected_volumes.json")

    @cached_property
    def expected_tricky(self) -> dict[str, Any]:
        return self._read("expected_tricky.json")

    def _unpack(self, name: str) -> Path:
        archives = sorted((self._source / name).glob("*.tar.bz2"))
        if not archives:
            pytest.fail(f"DSKPREP_DATA: no *.tar.bz2 in {self._source / name}")
        with (self._unpacked / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self._unpacked / name).exists():
                for path in archives:
                    with tarfile.open(path) as archive:
                        archive.extractall(self._unpacked / f"{name}.partial", filter="data")
                (self._unpacked / f"{name}.partial").rename(self._unpacked / name)
        return self._unpacked / name

    def _read(self, name: str) -> dict[str, Any]:
        expected: dict[str, Any] = json.loads((self._source / name).read_text())
        return expected


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataFolder]:
    """Real CT data, unpacked once into a temporary folder that goes with the last worker of the session."""
    source = os.environ.get("DSKPREP_DATA")
    if not source:
        pytest.skip("DSKPREP_DATA does not name a folder of CT data")
    mine = tmp_path_factory.getbasetemp()
    place = mine.parent if os.environ.get("PYTEST_XDIST_WORKER") else mine  # the workers of a session share it
    with (place / "data.lock").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        (place / "data").mkdir(exist_ok=True)
        yield DataFolder(Path(source), place / "data")
        with contextlib.suppress(BlockingIOError):  # others still use it
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place / "data")

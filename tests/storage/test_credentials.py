"""Credentials that are renewed under a run, a reader, or an open array: the new ones are taken, and nobody notices."""

from __future__ import annotations

import configparser
import http.server
import json
import multiprocessing
import re
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec.config
import numpy as np
import psutil
import pytest
import tiny
from front_s3 import FrontS3

import dskprep
from dskprep import storage
from dskprep.errors import InfrastructureError
from dskprep.storage import connection, credential_program
from dskprep.synthetic.s3server import HOST, S3Server

pytestmark = pytest.mark.s3

FILES = {f"{i:02}": bytes([i]) * 20_000 for i in range(6)}


@pytest.fixture(scope="module")
def server(s3_server: S3Server) -> Iterator[S3Server]:  # noqa: ARG001 (skips where there is none)
    """A server whose credentials change: not the one that other tests share."""
    with S3Server() as server:
        yield server


class Profile:
    """A credentials file that somebody rewrites."""

    def __init__(self, server: S3Server, path: Path) -> None:
        self.server, self.path = server, path
        self.write()

    def write(self) -> None:
        parser = configparser.ConfigParser()
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        parser["scans"] = {name.lower(): self.server.environment[name] for name in names}
        with (new := self.path.with_suffix(".new")).open("w") as file:
            parser.write(file)
        new.replace(self.path)

    def rotate(self) -> None:
        """Make the server refuse the present keys, and write new ones into the file."""
        self.server.change_credentials()
        self.write()


@pytest.fixture
def profile(server: S3Server, s3_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Profile:  # noqa: ARG001
    """Whatever opens an S3 URL finds its keys in a profile."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "scans")
    return Profile(server, tmp_path / "credentials")


@pytest.fixture
def place(server: S3Server, profile: Profile) -> str:  # noqa: ARG001
    return f"{server.make_bucket('renewed')}/{uuid.uuid4().hex}"


# a file that is rewritten


@pytest.mark.parametrize("is_forked", [False, True], ids=["obstore", "after a fork"])
def test_each_kind_of_request_takes_the_new_keys(
    place: str, profile: Profile, monkeypatch: pytest.MonkeyPatch, is_forked: bool
) -> None:
    monkeypatch.setattr(connection.fork, "is_obstore_lost", is_forked)
    storage.write_many(place, FILES)
    entries = tiny.timeless(storage.listing(place))
    requests: list[Callable[[], Any]] = [
        lambda: dict(storage.read_many(place, entries)) == FILES,
        lambda: storage.read(f"{place}/03") == FILES["03"],
        lambda: storage.read_ranges(f"{place}/04", [(3, 10)]) == [FILES["04"][:7]],
        lambda: storage.read_head(f"{place}/05", 4) == FILES["05"][:4],
        lambda: tiny.timeless(storage.listing(place)) == entries,
        lambda: tiny.timeless(storage.listing_below(place)) == entries,
        lambda: [tiny.timeless(folder.entries) for folder in storage.walk(place)] == [entries],
        lambda: tiny.timeless([storage.entry_of(f"{place}/02")]) == entries[2:3],
        lambda: storage.exists(f"{place}/01"),
        lambda: not storage.exists(f"{place}/absent"),
        lambda: storage.is_folder(place),
        lambda: storage.write_many(f"{place}-w", {"x": b"1"}) is None,
        lambda: storage.create(f"{place}-c/x", b"1"),
        lambda: storage.delete(f"{place}-w", ["x"]) is None,
    ]
    for number, request in enumerate(requests):
        profile.rotate()
        assert request(), number


@pytest.mark.slow
def test_a_run_goes_on_in_client_and_workers(place: str, profile: Profile) -> None:
    keys = [f"p{i}" for i in range(6)]
    tiny.write_patients(f"{place}/in", keys)

    class Rotation(dskprep.Observer):
        def on_patient(self, *_: Any) -> None:
            profile.rotate()

    with dskprep.local_client(workers=2) as client:
        summary = dskprep.run(f"{place}/in", f"{place}/out", client=client, observers=[Rotation()])
    assert summary.account.counts == {"written": 6}
    profile.rotate()
    assert all(not finding.faults for finding in dskprep.verify(f"{place}/out"))
    again = dskprep.run(f"{place}/in", f"{place}/out")
    assert again.account.already == {"written": 6}


def test_a_reader_and_its_open_arrays_go_on(place: str, profile: Profile) -> None:
    tiny.write_patients(f"{place}/in", ["p1", "p2"])
    dskprep.run(f"{place}/in", f"{place}/out")
    dataset = dskprep.open_dataset(f"{place}/out")
    volume = dataset["p1"]
    whole = volume.load().array
    image, lungs = volume.image, volume.lungs
    assert lungs is not None
    profile.rotate()
    np.testing.assert_array_equal(volume.patch(8, index=(6, 12, 12)).array, whole[2:10, 8:16, 8:16])
    profile.rotate()
    np.testing.assert_array_equal(image[...], whole)
    profile.rotate()
    np.testing.assert_array_equal(volume.image[2:5], whole[2:5])
    assert lungs[...].shape == whole.shape
    profile.rotate()
    np.testing.assert_array_equal(dskprep.open_dataset(f"{place}/out")["p1"].as_dask().compute(), whole)
    profile.rotate()
    assert len(dskprep.open_dataset(f"{place}/out").index) == 2


FORKED = """
import os, sys
from dskprep import open_dataset
volume = open_dataset(sys.argv[1])["p1"]
whole = volume.load().array
print("opened", flush=True)
sys.stdin.readline()  # the credentials have been renewed
child = os.fork()
assert (volume.patch(8, index=(6, 12, 12)).array == whole[2:10, 8:16, 8:16]).all()
assert (volume.image[...] == whole).all()
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
"""A program that forks after its credentials were renewed; parent and child read."""


def test_a_forked_child_goes_on(place: str, profile: Profile) -> None:
    tiny.write_patients(f"{place}/in", ["p1"])
    dskprep.run(f"{place}/in", f"{place}/out")
    words = [sys.executable, "-c", FORKED, f"{place}/out"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "opened\n"
        profile.rotate()
        _, complaints = child.communicate("\n", timeout=tiny.LIMIT_S)
    assert (child.returncode, complaints) == (0, "")


def read_on(volume: Any, step: Any, pipe: Any) -> None:
    """Read a patch before and after each renewal, as a worker of a DataLoader does."""
    for _ in range(3):
        pipe.send(int(volume.patch(8, index=(6, 12, 12)).array.sum()))
        step.wait(tiny.LIMIT_S)


def test_workers_of_a_loader_go_on(place: str, profile: Profile) -> None:
    tiny.write_patients(f"{place}/in", ["p1"])
    dskprep.run(f"{place}/in", f"{place}/out")
    volume = dskprep.open_dataset(f"{place}/out")["p1"]
    expected = int(volume.patch(8, index=(6, 12, 12)).array.sum())
    context = multiprocessing.get_context("spawn")
    step = context.Barrier(3)
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    workers = [context.Process(target=read_on, args=(volume, step, send)) for _, send in pipes]
    for worker in workers:
        worker.start()
    for _ in range(3):
        for receive, _ in pipes:
            assert receive.poll(tiny.LIMIT_S)
            assert receive.recv() == expected
        profile.rotate()
        step.wait(tiny.LIMIT_S)
    for worker in workers:
        worker.join(tiny.LIMIT_S)
        assert worker.exitcode == 0


def test_keys_that_are_written_late_are_waited_for(place: str, profile: Profile) -> None:
    storage.write_many(place, FILES)
    entries = tiny.timeless(storage.listing(place))
    profile.server.change_credentials()
    was_refused = threading.Event()
    look = connection.clients.open_s3fs

    def write_after_the_first_look(*limits: Any, **more: Any) -> Any:
        fs = look(*limits, **more)
        if was_refused.is_set():
            profile.write()
        was_refused.set()
        return fs

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(connection.clients, "open_s3fs", write_after_the_first_look)
        assert dict(storage.read_many(place, entries)) == FILES


def test_keys_that_stay_refused_are_one_line_and_not_tried_in_vain(
    place: str, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RENEWAL_WAITS_S", (0.0, 0.01))
    storage.write_many(place, FILES)
    entries = tiny.timeless(storage.listing(place))
    profile.server.change_credentials()
    for request in (
        lambda: list(storage.read_many(place, entries)),
        lambda: storage.entry_of(f"{place}/01"),
        lambda: storage.exists(f"{place}/01"),
        lambda: storage.write_many(place, {"x": b""}),
    ):
        with pytest.raises(InfrastructureError, match=r"permission denied .*The access key ID you provided") as caught:
            request()
        assert len(str(caught.value).splitlines()) == 1
    profile.write()
    assert dict(storage.read_many(place, entries)) == FILES


@pytest.mark.usefixtures("profile")
def test_rights_that_are_lacking_are_not_waited_for(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """New keys would not help, and a thousand lines of a manifest may lead to buckets of others."""
    environment = s3_server.environment
    key, secret = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setattr(connection, "RENEWAL_WAITS_S", (0.0, 1000.0))
    with FrontS3(s3_server.endpoint, key, secret) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        place = f"{s3_server.make_bucket('forbidden')}/{uuid.uuid4().hex}"
        storage.write_many(place, FILES)
        front.keys, front.refusal = {}, (403, "AccessDenied")
        for request in (lambda: storage.listing(place), lambda: storage.entry_of(f"{place}/01")):
            with pytest.raises(InfrastructureError, match=r"permission denied .*AccessDenied"):
                request()
        front.keys, front.refusal = None, (403, "InvalidAccessKeyId")
        assert storage.entry_of(f"{place}/01")


# other sources of credentials


@pytest.fixture
def front(s3_server: S3Server) -> Iterator[FrontS3]:
    """A store that takes the keys and tokens that a test says, and no others."""
    environment = s3_server.environment
    key, secret = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    with FrontS3(s3_server.endpoint, key, secret) as front:
        front.keys, front.refusal = {}, (400, "ExpiredToken")
        yield front


class Vendor(http.server.BaseHTTPRequestHandler):
    """Sells credentials as the metadata services of EC2 and ECS do, and as STS for a web identity."""

    protocol_version = "HTTP/1.1"
    n_sold = 0
    expires_in = timedelta(hours=6)

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("me" if self.path.endswith("/security-credentials/") else json.dumps(self.sold()))

    def do_PUT(self) -> None:
        self.answer("a-token-for-the-metadata")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        sold = self.sold()
        self.answer(
            "<AssumeRoleWithWebIdentityResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'>"
            "<AssumeRoleWithWebIdentityResult><Credentials>"
            f"<AccessKeyId>{sold['AccessKeyId']}</AccessKeyId><SecretAccessKey>{sold['SecretAccessKey']}"
            f"</SecretAccessKey><SessionToken>{sold['Token']}</SessionToken><Expiration>{sold['Expiration']}"
            "</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        )

    def sold(self) -> dict[str, str]:
        number = Vendor.n_sold
        expires = datetime.now(UTC) + Vendor.expires_in
        return {
            "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
            "AccessKeyId": f"ASIA{number}", "SecretAccessKey": f"secret-{number}", "Token": f"token-{number}",
            "Expiration": f"{expires:%Y-%m-%dT%H:%M:%SZ}",
        }  # fmt: skip

    def answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def vendor() -> Iterator[str]:
    Vendor.n_sold = 0
    server = http.server.ThreadingHTTPServer((HOST, 0), Vendor)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://{HOST}:{server.server_port}"
    server.shutdown()
    server.server_close()


def write_config(path: Path, **values: str) -> None:
    parser = configparser.ConfigParser()
    parser["default"] = values
    with path.open("w") as file:
        parser.write(file)


SOURCES = ("environment", "profile", "process", "web identity", "ecs", "ec2", "settings of s3fs")


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_asked_again_when_its_keys_are_refused(
    s3_server: S3Server, s3_environment: None, front: FrontS3, vendor: str, source: str,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """Both libraries send key and token of the source, and after a refusal the ones that it gives now."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", front.endpoint)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    program = tmp_path / "program.py"
    if source == "process":
        write_config(tmp_path / "config", credential_process=f"{sys.executable} {program}")
    elif source == "web identity":
        (tmp_path / "token").write_text("a-web-identity")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/scans")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", vendor)
    elif source == "ecs":
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{vendor}/credentials")
    elif source == "ec2":
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", vendor)

    def give(number: int) -> None:
        """Let the source give other credentials from now on, and the store take no others."""
        Vendor.n_sold = number
        key, secret, token = f"ASIA{number}", f"secret-{number}", f"token-{number}"
        if source == "environment":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
            monkeypatch.setenv("AWS_SESSION_TOKEN", token)
        elif source == "profile":
            write_config(
                tmp_path / "config", aws_access_key_id=key, aws_secret_access_key=secret, aws_session_token=token
            )
        elif source == "process":
            sold = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret, "SessionToken": token}
            program.write_text(f"print({json.dumps(json.dumps(sold))})")
        elif source == "settings of s3fs":
            monkeypatch.setitem(fsspec.config.conf, "s3", {"key": key, "secret": secret, "token": token})
        front.keys = {key: token}

    give(1)
    place = f"{s3_server.make_bucket('sources')}/{uuid.uuid4().hex}"
    storage.write_many(place, FILES)
    entries = tiny.timeless(storage.listing(place))
    for number, request in enumerate(
        (
            lambda: dict(storage.read_many(place, entries)) == FILES,
            lambda: tiny.timeless([storage.entry_of(f"{place}/02")]) == entries[2:3],
            lambda: storage.write_many(place, {"x": b""}) is None,
        ),
        start=2,
    ):
        give(number)
        front.log.clear()
        assert request()
        taken = [(entry["key"], entry["token"]) for entry in front.log if entry["status"] == 200]
        assert set(taken) == {(f"ASIA{number}", f"token-{number}")}


@pytest.mark.usefixtures("s3_environment")
def test_keys_of_which_the_end_is_known_are_renewed_before_it(
    s3_server: S3Server,
    front: FrontS3,
    vendor: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request that is refused is the last resort: botocore asks a service again some minutes before."""
    monkeypatch.setattr(connection.clients, "CREDENTIALS_FOR", timedelta(0))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", front.endpoint)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{vendor}/credentials")
    monkeypatch.setattr(Vendor, "expires_in", timedelta(minutes=1))
    front.keys = {f"ASIA{number}": f"token-{number}" for number in range(3)}
    place = f"{s3_server.make_bucket('sources')}/{uuid.uuid4().hex}"
    storage.write_many(place, FILES)
    entries = tiny.timeless(storage.listing(place))
    Vendor.n_sold = 2
    front.log.clear()
    assert dict(storage.read_many(place, entries)) == FILES
    storage.write_many(place, {"x": b""})
    assert {entry["key"] for entry in front.log} == {"ASIA2"}
    assert {entry["status"] for entry in front.log} == {200}


@pytest.fixture
def program(s3_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:  # noqa: ARG001
    """A program that gives credentials, to be written."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    write_config(tmp_path / "config", credential_process=f"{sys.executable} {tmp_path / 'program.py'}")
    return tmp_path / "program.py"


def fail_at_credentials() -> str:
    """Return the one line in which it ends."""
    with pytest.raises(InfrastructureError) as caught:
        storage.listing("s3://sources/x")
    told = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in told
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_program_for_credentials_that_fails_is_one_line_without_what_it_said(program: Path) -> None:
    program.write_text("import sys; print('key hunter2'); sys.exit('the vault is shut to hunter2')")
    said = fail_at_credentials()
    assert re.search(
        r"python[\d.]* ended with 1; run it yourself to see what it says; mend what the profile gets", said
    )


def test_a_program_that_gives_no_credentials_is_one_line(program: Path) -> None:
    program.write_text("print('hunter2')")
    fail_at_credentials()


def test_a_program_that_is_not_there_is_one_line(program: Path) -> None:
    write_config(program.parent / "config", credential_process=f"{program.parent}/vault --password hunter2")
    assert "vault cannot be started (No such file or directory); mend what the profile" in fail_at_credentials()


NEVER = """
(while kill -0 $$; do sleep 1; done) 2>/dev/null &
echo $$ > "$0.started"
wait
"""
"""A program that never ends, and whose child holds its output open; one of the shell, which starts soon."""


@pytest.mark.parametrize("by_role", [False, True])
def test_a_program_for_credentials_that_never_ends_is_one_line(
    program: Path, monkeypatch: pytest.MonkeyPatch, by_role: bool
) -> None:
    monkeypatch.setattr(credential_program, "LIMIT_S", 2.0)
    program.write_text(NEVER)
    write_config(program.parent / "config", credential_process=f"sh {program}")
    if by_role:
        parser = configparser.ConfigParser()
        parser["default"] = {"role_arn": "arn:aws:iam::123456789012:role/scans", "source_profile": "vault"}
        parser["profile vault"] = {"credential_process": f"sh {program}"}
        with (program.parent / "config").open("w") as file:
            parser.write(file)
    assert "did not end within 2 s; mend what the profile gets its credentials from" in fail_at_credentials()
    started = Path(f"{program}.started")
    assert not psutil.pid_exists(int(started.read_text()))

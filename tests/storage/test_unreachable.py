"""A store that cannot be used is one line soon, whichever command meets it; lines of a manifest cost a record each."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from front_s3 import FrontS3

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import index
from dskprep.errors import InfrastructureError
from dskprep.source import cases
from dskprep.storage import answers, clients, connection
from dskprep.storage.public import VARIABLE
from dskprep.synthetic.s3server import HOST

COMMANDS = {
    "run": ["run", "s3://bucket/in", "s3://bucket/out", "--scheduler", "sync"],
    "run to a bucket": ["run", "{folder}", "s3://bucket/out", "--scheduler", "sync"],
    "plan": ["plan", "s3://bucket/in"],
    "status": ["status", "s3://bucket/out"],
    "verify": ["verify", "s3://bucket/out"],
    "open_dataset": [],
}


class Silent:
    """A server that takes connections and requests, and never answers."""

    def __init__(self) -> None:
        self.n_connections = 0
        self._listener = socket.create_server((HOST, 0), backlog=100)
        self._waker, self._ended = socket.socketpair()
        self.endpoint = f"http://{HOST}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Silent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waker.close()
        self._thread.join()
        self._listener.close()
        self._ended.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as held:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._ended, selectors.EVENT_READ)
            while all(key.fileobj is self._listener for key, _ in selector.select()):
                held.enter_context(self._listener.accept()[0])
                self.n_connections += 1


@pytest.fixture
def no_setup(s3_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(clients, "CONTACT_LIMITS", clients.CONTACT_LIMITS | {"read_timeout": 0.2})


@pytest.fixture
def silent(no_setup: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:  # noqa: ARG001
    with Silent() as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", silent.endpoint)
        yield silent


class Dripping(Silent):
    """A server that sends its answer byte by byte, and never ends it."""

    def _serve(self) -> None:
        self._listener.settimeout(0.05)
        held: list[socket.socket] = []
        while not select.select([self._ended], [], [], 0.05)[0]:
            with contextlib.suppress(TimeoutError):
                held.append(self._listener.accept()[0])
                held[-1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                self.n_connections += 1
            for each in held:
                with contextlib.suppress(OSError):
                    each.sendall(b"<")
        for each in held:
            each.close()


def line_of(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str], bucket: str = "s3://bucket") -> str:
    """Return the one line in which a command ends, or `open_dataset`."""
    if not words:
        with pytest.raises(InfrastructureError) as caught:
            dskprep.open_dataset(f"{bucket}/out")
        return str(caught.value)
    words = [word.format(folder=folder).replace("s3://bucket", bucket) for word in words]
    assert commands.run_command(words) == 3
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_first_request_fails_within_half_a_minute() -> None:
    limits = clients.CONTACT_LIMITS
    retries = limits["retries"]
    assert isinstance(retries, dict)
    n_tries, longest_waits_s = retries["total_max_attempts"], 1 + 2  # botocore doubles a second, at random below it
    assert n_tries == 3
    assert n_tries * limits["read_timeout"] + longest_waits_s < 20


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.parametrize("command", COMMANDS)
def test_an_endpoint_that_never_answers(
    silent: Silent, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    tiny.write_patients(tmp_path, ["p1"])
    line = line_of(COMMANDS[command], tmp_path, capsys)
    assert "Read timeout on endpoint URL" in line
    assert silent.endpoint in line
    assert line.endswith("check the endpoint (AWS_ENDPOINT_URL), region and network")
    assert silent.n_connections


@pytest.mark.s3
def test_without_the_tables_of_idc_nobody_is_asked(
    silent: Silent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, silent.endpoint)
    monkeypatch.setitem(sys.modules, "idc_index_data", None)  # as if it were not installed
    assert commands.run_command(["run", "idc:lidc_idri", "s3://bucket/out", "--scheduler", "sync"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("found none installed; in the clone of dskprep, pip install '.[idc]'")
    assert not silent.n_connections


@pytest.mark.s3
@pytest.mark.usefixtures("no_setup")
@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        (f"http://{HOST}:9", f"; check the network, and {VARIABLE} if a mirror is named there"),
        ("localhost:9000", f"; expected one such as https://host:9000; correct {VARIABLE}"),
    ],
)
def test_public_buckets_have_a_setting_of_their_own(monkeypatch: pytest.MonkeyPatch, endpoint: str, said: str) -> None:
    monkeypatch.setenv(VARIABLE, endpoint)
    with pytest.raises(InfrastructureError) as caught:
        storage.meet("s3://idc-open-data/x")
    assert str(caught.value).endswith(said)
    assert "AWS_ENDPOINT_URL" not in str(caught.value)


@pytest.mark.s3
@pytest.mark.usefixtures("no_setup")
def test_an_answer_that_never_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "CONTACT_S", 5.0)
    monkeypatch.setattr(clients, "CONTACT_LIMITS", clients.CONTACT_LIMITS | {"read_timeout": 60})
    with Dripping() as dripping:
        monkeypatch.setenv("AWS_ENDPOINT_URL", dripping.endpoint)
        line = line_of(COMMANDS["status"], tmp_path, capsys)
    assert dripping.n_connections
    assert f"no whole answer came from {dripping.endpoint} within 5 s" in line


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.usefixtures("no_setup")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        (f"http://{HOST}:9", "Could not connect to the endpoint URL"),
        ("localhost:9000", "Invalid endpoint: localhost:9000; expected one such as https://host:9000"),
        ("localhost", "Invalid endpoint: localhost; expected one such as https://host:9000"),
        ("htp://localhost", "Invalid endpoint: htp://localhost; expected one such as https://host:9000"),
    ],
)
def test_an_endpoint_that_is_not_there_or_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    command: str, endpoint: str, said: str,
) -> None:  # fmt: skip
    tiny.write_patients(tmp_path, ["p1"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert said in line_of(COMMANDS[command], tmp_path, capsys)


@pytest.mark.s3
@pytest.mark.usefixtures("no_setup")
@pytest.mark.parametrize("command", COMMANDS)
def test_no_credentials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    tiny.write_patients(tmp_path, ["p1"])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "Unable to locate credentials; set AWS_PROFILE" in line_of(COMMANDS[command], tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "code"),
    [("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch")],
)
def test_credentials_that_the_server_refuses(
    s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    command: str, name: str, code: str,
) -> None:  # fmt: skip
    tiny.write_patients(tmp_path, ["p1"])
    storage.write_many(s3, {"in/p1/1.dcm": b"", "out/dataset.json": b"{}"})
    monkeypatch.setenv(name, "wrong")
    line = line_of(COMMANDS[command], tmp_path, capsys, s3)
    assert f"permission denied ({code}: " in line or f": {code}: " in line
    assert line.endswith("check the credentials and the path's rights")


# lines of a manifest


def manifest(folder: Path, lines: dict[str, str]) -> str:
    text = "key,url\n" + "".join(f"{key},{url}\n" for key, url in lines.items())
    return f"{tiny.write(folder, {'list.csv': text.encode()})}/list.csv"


@pytest.mark.s3
@pytest.mark.parametrize("url", ["s3://bucket/p{}", "s3://bucket-{}/p"], ids=["one bucket", "many buckets"])
def test_a_thousand_lines_of_a_silent_store_cost_one_first_contact(
    silent: Silent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(connection, "REMEMBERED_S", 1e6)
    asked: list[str] = []
    contact = clients.first_contact
    monkeypatch.setattr(
        clients, "first_contact", lambda bucket, **more: asked.append(bucket) or contact(bucket, **more)
    )
    tiny.write_patients(tmp_path / "in", ["p1"])
    lines = {}
    for number in range(1000):
        lines[f"dead-{number}"] = url.format(number)
        if number % 15 == 0:  # twenty in a row would end the run
            lines[f"good-{number}"] = "p1"
    found = {case.key: case for case in cases.cases(manifest(tmp_path / "in", lines))}
    assert len(found) == len(lines)
    assert {key for key, case in found.items() if case.problem} == {key for key in lines if key.startswith("dead")}
    assert len(asked) == 1
    assert silent.n_connections


@pytest.mark.s3
@pytest.mark.usefixtures("silent")
def test_lines_after_those_of_a_silent_store_are_done(tmp_path: Path) -> None:
    tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    source = manifest(tmp_path / "in", {"a": "p1", "b": "s3://bucket/x", "c": "s3://other/y", "z": "p2"})
    summary = dskprep.run(source, tmp_path / "out")
    assert summary.account.counts == {"written": 2, "refused": 2}
    rows = {row["key"]: row for row in index.rows_of(index.current_table(str(tmp_path / "out")))}
    for key in "bc":
        assert "Read timeout on endpoint URL" in rows[key]["message"]


@pytest.mark.s3
def test_a_name_that_no_bucket_can_have_costs_its_own_line_alone(s3: str, tmp_path: Path) -> None:
    tiny.write_patients(f"{s3}/in", ["p1"])
    (tmp_path / "in").mkdir()
    connection.fork.connections.clear()  # nothing has answered yet
    source = manifest(tmp_path / "in", {"a": "s3://no bucket/x", "z": f"{s3}/in/p1"})
    found = {case.key: case.problem for case in cases.cases(source)}
    assert "Invalid bucket name" in (found["a"] or "")
    assert not found["z"]


@pytest.mark.s3
def test_a_store_that_falls_silent_is_asked_in_short_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one request that nothing came of, the next one has to make contact first, within its limits."""
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setattr(clients, "RETRY_S", 0.1)
    monkeypatch.setattr(connection, "WAIT_S", 0.01)
    monkeypatch.setattr(connection, "REMEMBERED_S", 1e6)
    with FrontS3(os.environ["AWS_ENDPOINT_URL"], key, secret) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        tiny.write(f"{s3}/in", {"x": b"1"})
        assert storage.read(f"{s3}/in/x") == b"1"
    asked: list[str] = []

    def first_contact(bucket: str, **more: Any) -> clients.Place:
        asked.append(bucket)
        return contact(bucket, **more)

    contact = clients.first_contact
    monkeypatch.setattr(clients, "first_contact", first_contact)
    for _ in range(3):
        with pytest.raises(InfrastructureError, match="Could not connect to the endpoint"):
            storage.read(f"{s3}/in/x")
    assert len(asked) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:43017/bucket?list-type=2", "https://certificate.test/sso/301/key"])
def test_what_stands_in_a_url_is_not_taken_for_what_the_server_said(url: str) -> None:
    assert answers.advice_for(f'Read timeout on endpoint URL: "{url}"') == answers.DEFAULT_ADVICE
    assert "AWS_DEFAULT_REGION" in answers.advice_for(f'301 for "{url}"')
    took = "Generic MicrosoftAzure error: Error performing GET REDACTED in 301.013432ms: Connection refused"
    assert "AZURE_STORAGE_ENDPOINT" in answers.advice_for(took)

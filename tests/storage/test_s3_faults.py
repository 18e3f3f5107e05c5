"""S3 on a bad day: every fault costs a retry at most, and what cannot be had is one line, soon."""

from __future__ import annotations

import configparser
import contextlib
import http.client
import json
import logging
import os
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec.config
import pytest
import tiny
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from faulty_s3 import ERRORS, FaultyS3

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import store
from dskprep.dataset.record import Record
from dskprep.errors import InfrastructureError
from dskprep.settings import PrepConfig
from dskprep.source import cases
from dskprep.storage import S3_SETTINGS, clients, connection
from dskprep.synthetic.s3server import REGION, S3Server
from dskprep.worker import patient, process

pytestmark = pytest.mark.s3

ONE_OFF = ("500", "503", "reset", "lost", "cut", "stall", "timeout")
"""Faults after which the same request succeeds."""

FILES = {f"{i:02}": bytes([i]) * 20_000 for i in range(6)}


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[FaultyS3]:
    with FaultyS3(s3_server.endpoint, stall_s=20) as proxy:
        yield proxy


@pytest.fixture
def faulty(proxy: FaultyS3, s3_environment: None, monkeypatch: pytest.MonkeyPatch) -> FaultyS3:  # noqa: ARG001
    """Whatever opens an S3 URL meets the proxy; waits are short."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr(connection, "WAIT_S", 0.01)
    monkeypatch.setattr(process, "WAIT_S", 0.01)
    connection.fork.connections.clear()
    proxy.forget()
    return proxy


def give_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of silence is a fault. A busy machine may be silent for as long, so not where requests count."""
    config = S3_SETTINGS["config_kwargs"] | {"read_timeout": 0.5}
    monkeypatch.setitem(S3_SETTINGS, "config_kwargs", config)
    monkeypatch.setattr(clients, "SILENCE_S", 0.5)
    connection.fork.connections.clear()


@pytest.fixture(params=["obstore", "after a fork"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test is done with obstore, and with s3fs as in a process that was forked after obstore was used."""
    monkeypatch.setattr(connection.fork, "is_obstore_lost", request.param == "after a fork")


@pytest.fixture
def place(s3_server: S3Server, faulty: FaultyS3) -> str:  # noqa: ARG001
    return f"{s3_server.make_bucket('faults')}/{uuid.uuid4().hex}"


@pytest.fixture
def full(place: str, faulty: FaultyS3) -> str:
    """A place with FILES in it, the proxy's notes still empty."""
    storage.write_many(place, FILES)
    faulty.forget()
    return place


# the proxy itself


def test_what_fails_at_random_depends_on_the_seed_and_the_object_only(s3_server: S3Server) -> None:
    def faults(seed: int, numbers: list[int]) -> dict[str, str]:
        with FaultyS3(s3_server.endpoint, seed=seed, share=0.5, stall_s=0.01) as proxy:
            for number in numbers:
                connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=tiny.LIMIT_S)
                with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                    connection.request("GET", f"/bucket/{number}")
                    connection.getresponse().read()
            assert sum(proxy.injected.values()) == sum(1 for entry in proxy.log if entry["fault"])
            return {entry["path"]: entry["fault"] for entry in proxy.log}

    numbers = list(range(40))
    first = faults(1, numbers)
    assert first == faults(1, numbers[::-1])
    assert first != faults(2, numbers)
    assert 8 < sum(1 for fault in first.values() if fault) < 32
    assert len(set(first.values())) > 4


# one fault at a time


@pytest.mark.slow
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", ONE_OFF)
def test_one_fault_costs_a_retry_and_nothing_else(
    full: str, faulty: FaultyS3, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> None:
        assert dict(storage.read_many(full, entries)) == FILES

    def cat() -> None:
        assert storage.read(f"{full}/04") == FILES["04"]

    def ranges() -> None:
        assert storage.read_ranges(f"{full}/05", [(3, 10), (19_990, 20_000)]) == [FILES["05"][:7], FILES["05"][:10]]

    def listing() -> None:
        assert tiny.timeless(storage.listing(full)) == entries

    def walk() -> None:
        assert [tiny.timeless(folder.entries) for folder in storage.walk(full)] == [entries]

    def write() -> None:
        storage.write_many(full + "-w", {"x": b"1" * 1000, "y": b""})
        assert {e.name: e.size for e in storage.listing(full + "-w")} == {"x": 1000, "y": 0}

    def create() -> None:
        storage.create(f"{full}-c/{kind}", b"mine")  # who wrote it cannot be known where an answer was lost
        assert storage.read(f"{full}-c/{kind}") == b"mine"
        assert not storage.create(f"{full}-c/{kind}", b"other")

    def delete() -> None:
        storage.write_many(full + "-d", {"x": b"1"})
        storage.delete(full + "-d", ["x"])
        assert storage.listing(full + "-d") == []

    def entry() -> None:
        assert tiny.timeless([storage.entry_of(f"{full}/04")]) == entries[4:5]

    entries = tiny.timeless(storage.listing(full))
    work: list[tuple[Callable[[], None], str, str]] = [
        (read, "GET", "/03$"),
        (cat, "GET", "/04$"),
        (ranges, "GET", "/05$"),
        (entry, "HEAD", "/04$"),
        (listing, "GET", "list-type"),
        (walk, "GET", "list-type"),
        (write, "PUT", "-w/x"),
        (create, "PUT", "-c/"),
        (delete, "POST", "delete"),
    ]
    if kind in ("stall", "timeout"):  # the others differ in nothing but the time it takes
        work = [work[i] for i in (0, 2, 4, 6, 7)]
        give_up_soon(monkeypatch)
    for do, method, path in work:
        faulty.forget()
        faulty.script(kind, path, method=method)
        do()
        assert faulty.injected == {kind: 1}, do.__name__


def test_after_a_fork_s3fs_reads_equal_bytes_while_requests_fail(
    full: str, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = storage.listing(full)
    agents = []
    for is_forked in (False, True):
        monkeypatch.setattr(connection.fork, "is_obstore_lost", is_forked)
        faulty.forget()
        for path in ("00", "03"):
            faulty.script("500", f"/{path}$", times=2)
        faulty.script("503", "/04$")
        faulty.script("cut", "/01$", times=2)
        faulty.script("reset", "/05$", times=2)
        assert dict(storage.read_many(full, entries)) == FILES
        assert faulty.injected == {"500": 4, "503": 1, "cut": 2, "reset": 2}
        agents.append({entry["user_agent"] for entry in faulty.log})
    assert not agents[0] & agents[1]  # s3fs indeed


def test_a_patient_passes_through_all_faults_at_once(place: str, faulty: FaultyS3) -> None:
    tiny.write_patients(f"{place}/in", ["p1", "p2"])
    undisturbed = dskprep.run(f"{place}/in", f"{place}/calm")
    assert undisturbed.account.counts == {"written": 2}
    faulty.forget()
    for nth, kind in enumerate(("500", "reset", "cut", "503")):
        faulty.script(kind, f"in/p1/IM00{nth}", times=2)
        faulty.script(kind, "/rough/volumes/p2", method="PUT", nth=2 * nth + 1)
    faulty.script("lost", "/rough/records", method="PUT", times=2)
    faulty.script("lost", "/rough/dataset.json", method="PUT")
    faulty.script("cut", "list-type", nth=2)
    summary = dskprep.run(f"{place}/in", f"{place}/rough")
    assert summary.account.counts == {"written": 2}
    assert {"500", "503", "reset", "cut", "lost"} <= set(faulty.injected)
    assert tiny.everything_below(f"{place}/rough/volumes") == tiny.everything_below(f"{place}/calm/volumes")
    assert all(not finding.faults for finding in dskprep.verify(f"{place}/rough"))


def test_latency_is_hidden_by_reading_many_at_once(full: str, faulty: FaultyS3) -> None:
    entries = storage.listing(full)
    faulty.script("hold", "/0", times=0)
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(lambda: dict(storage.read_many(full, entries)))
        wait_until(lambda: faulty.n_held == len(FILES))  # none is waited for before another is asked for
        faulty.release()
        assert future.result(tiny.LIMIT_S) == FILES


# faults that stay


def test_a_permanent_error_is_one_failed_record_and_the_others_are_written(place: str, faulty: FaultyS3) -> None:
    tiny.write_patients(f"{place}/in", ["p1", "p2", "p3"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(connection, "ATTEMPTS", 2)
        patched.setattr(clients, "RETRY_S", 0.3)
        faulty.script("500", "in/p2/IM003", times=0)
        summary = dskprep.run(f"{place}/in", f"{place}/out")
    assert summary.account.counts == {"written": 2, "failed": 1}
    assert faulty.injected["500"] >= process.ATTEMPTS
    (name,) = [n for n in store.record_names(f"{place}/out") if n.status == "failed"]
    record = store.read_record(f"{place}/out", name)
    assert (name.key, record.reason) == ("p2", "InfrastructureError")
    assert "IM003.dcm: could not be read" in record.message
    assert len(record.message.splitlines()) == 1
    faulty.forget()
    again = dskprep.run(f"{place}/in", f"{place}/out", retry="failed")
    assert again.account.counts == {"written": 3}


@pytest.mark.slow
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", ["timeout", "stall", "reset"])
def test_an_object_that_never_comes_is_given_up_in_time(
    full: str, faulty: FaultyS3, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [entry for entry in storage.listing(full) if entry.name == "02"]
    give_up_soon(monkeypatch)
    monkeypatch.setattr(connection, "DEADLINE_S", 1.0)
    monkeypatch.setattr(clients, "RETRY_S", 0.5)
    faulty.script(kind, "/02$", times=0)
    with pytest.raises(InfrastructureError, match="02: could not be read"):
        list(storage.read_many(full, entries))
    assert 1 <= faulty.injected[kind] <= 40


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", ["expired", "expired-403"])
def test_expired_credentials_are_one_line_and_no_hang(full: str, faulty: FaultyS3, kind: str) -> None:
    entries = storage.listing(full)
    faulty.script(kind, method="GET|PUT|POST", times=0)
    for do in (
        lambda: list(storage.read_many(full, entries)),
        lambda: storage.read_ranges(f"{full}/05", [(3, 10)]),
        lambda: storage.listing(full),
        lambda: storage.write_many(full, {"x": b""}),
        lambda: storage.delete(full, ["x"]),
    ):
        with pytest.raises(InfrastructureError, match=r"permission denied .*expired.*check the credentials") as caught:
            do()
        assert len(str(caught.value).splitlines()) == 1
    assert faulty.injected[kind] <= 12  # nothing was repeated in vain


def test_credentials_that_expire_under_a_run_cost_failed_patients_only(place: str, faulty: FaultyS3) -> None:
    tiny.write_patients(f"{place}/in", ["p1", "p2"])
    faulty.script("expired-403", "in/p1/", times=0)
    summary = dskprep.run(f"{place}/in", f"{place}/out")
    assert summary.account.counts == {"written": 1, "failed": 1}
    (name,) = [n for n in store.record_names(f"{place}/out") if n.status == "failed"]
    message = store.read_record(f"{place}/out", name).message
    assert "permission denied" in message
    assert "ExpiredToken" in message
    faulty.forget()
    assert dskprep.run(f"{place}/in", f"{place}/out", retry="failed").account.counts == {"written": 2}


def test_credentials_renewed_in_their_file_are_used_by_the_next_try(
    place: str, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny.write_patients(f"{place}/in", ["p1"])
    (case,) = cases.cases(f"{place}/in")
    good = {name: os.environ[name.upper()] for name in ("aws_access_key_id", "aws_secret_access_key")}
    write_ini(tmp_path / "credentials", "default", **good | {"aws_secret_access_key": "of-yesterday"})
    for name in good:
        monkeypatch.delenv(name.upper())
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    connection.fork.connections.clear()
    n_tries = []

    def renew(seconds: float) -> None:  # somebody does, while the patient waits for its next try
        n_tries.append(seconds)
        write_ini(tmp_path / "credentials", "default", **good)

    monkeypatch.setattr(
        process, "time", SimpleNamespace(sleep=renew, monotonic=time.monotonic, process_time=time.process_time)
    )
    (record,) = patient.prepare_patient(
        patient.Job(case), target=f"{place}/out", config=PrepConfig(), memory_bytes=2 << 30
    ).records
    assert (record.status, len(n_tries)) == ("written", 1)
    assert {entry["status"] for entry in faulty.log} >= {200, 403}


def test_a_bucket_whose_credentials_are_expired_exits_with_3(
    place: str, faulty: FaultyS3, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_patients(f"{place}/in", ["p1"])
    faulty.script("expired", method="GET|PUT|POST|HEAD", times=0)
    assert commands.run_command(["run", f"{place}/in", f"{place}/out", "--scheduler", "sync"]) == 3
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "expired" in captured.err


# the source changes under the run


def signed_put(s3_server: S3Server, path: str) -> str:
    """The target of a PUT that its sender need not sign."""
    environment = s3_server.environment
    credentials = Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    request = AWSRequest("PUT", f"{s3_server.endpoint}/{path}")
    S3SigV4QueryAuth(credentials, "s3", REGION, expires=600).add_auth(request)
    url: str = request.prepare().url
    return url.removeprefix(s3_server.endpoint)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("same_size", [True, False])
def test_an_object_replaced_between_its_listing_and_its_get_is_refused(
    place: str, faulty: FaultyS3, s3_server: S3Server, same_size: bool
) -> None:
    tiny.write(f"{place}/in/p1", tiny.series())
    (case,) = cases.cases(f"{place}/in")
    other = tiny.series(7)["IM005.dcm"] + (b"" if same_size else b"\0\0")
    path = f"{place.removeprefix('s3://')}/in/p1/IM005.dcm"
    faulty.script("first", "IM005", first=("PUT", signed_put(s3_server, path), other))
    (record,) = patient.prepare_patient(
        patient.Job(case), target=f"{place}/out", config=PrepConfig(), memory_bytes=2 << 30
    ).records
    assert (record.status, record.reason) == ("refused", "source-changed")
    assert [e["first"] for e in faulty.log if "first" in e] == [200]
    assert [e["status"] for e in faulty.log if "IM005" in e["path"] and e["method"] == "GET"] == [412]
    assert storage.read(f"{place}/in/p1/IM005.dcm") == other
    assert storage.listing(f"{place}/out/volumes/p1.zarr") == []


def test_an_object_removed_while_others_are_read_is_refused(place: str, faulty: FaultyS3) -> None:
    tiny.write(f"{place}/in/p1", tiny.series())
    (case,) = cases.cases(f"{place}/in")
    faulty.script("hold", "IM005")

    def prepare() -> tuple[Record, ...]:
        job = patient.Job(case)
        return patient.prepare_patient(job, target=f"{place}/out", config=PrepConfig(), memory_bytes=2 << 30).records

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(prepare)
        wait_until(lambda: faulty.n_held == 1)
        storage.delete(f"{place}/in/p1", ["IM005.dcm"])
        faulty.release()
        (record,) = future.result(tiny.LIMIT_S)
    assert (record.status, record.reason) == ("refused", "source-changed")


def wait_until(is_so: Callable[[], bool], limit_s: float = tiny.LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# whose credentials


def seen(faulty: FaultyS3, full: str) -> tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]:
    """What the requests of s3fs, which writes, and of obstore, which reads, say of their sender."""
    names = ("access_key", "region", "signed", "token", "request_payer")
    entries = storage.listing(full)
    faulty.forget()
    storage.write_many(f"{full}-more", {"x": b""})
    by_s3fs = {tuple(entry[name] for name in names) for entry in faulty.log}
    faulty.forget()
    assert dict(storage.read_many(full, entries)) == FILES
    by_obstore = {tuple(entry[name] for name in names) for entry in faulty.log}
    assert faulty.requests == {"GET": len(FILES)}
    return by_s3fs, by_obstore


def test_both_libraries_use_the_environment(full: str, faulty: FaultyS3) -> None:
    sender = {(os.environ["AWS_ACCESS_KEY_ID"], REGION, True, False, "")}
    assert seen(faulty, full) == (sender, sender)


def test_both_libraries_use_a_profile_with_its_endpoint_and_region(
    full: str, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    write_ini(tmp_path / "config", "profile scans", region="eu-west-3", endpoint_url=faulty.endpoint)
    write_ini(tmp_path / "credentials", "scans", aws_access_key_id=key, aws_secret_access_key=secret)
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_ALLOW_HTTP"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "scans")
    connection.fork.connections.clear()
    sender = {(key, "eu-west-3", True, False, "")}
    assert seen(faulty, full) == (sender, sender)


def test_both_libraries_send_a_session_token(full: str, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token-of-a-session")
    connection.fork.connections.clear()
    entries = [storage.Entry("00", 1, "x")]
    for do in (lambda: storage.write_many(full, {"x": b""}), lambda: list(storage.read_many(full, entries))):
        faulty.forget()
        with pytest.raises((InfrastructureError, storage.ObjectChanged)):  # the server knows no such session
            do()
        assert [entry["token"] for entry in faulty.log] == [True] * len(faulty.log) != []


def test_anonymous_requests_are_not_signed(
    full: str, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entries = storage.listing(full)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    connection.fork.connections.clear()
    for do in (
        lambda: storage.listing(full),
        lambda: list(storage.read_many(full, entries)),
        lambda: storage.write_many(full, {"x": b""}),
    ):
        faulty.forget()
        with pytest.raises(InfrastructureError, match="permission denied"):  # not a public bucket
            do()
        assert faulty.log
        assert not any(entry["signed"] or entry["access_key"] for entry in faulty.log)
    # and by the variable, in a process of its own
    faulty.forget()
    script = f"from dskprep import storage; storage.listing({full!r})"
    environment = {**os.environ, "FSSPEC_S3_ANON": "true"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=tiny.LIMIT_S,
    )  # fmt: skip
    assert "permission denied" in done.stderr
    assert faulty.log
    assert not any(entry["signed"] for entry in faulty.log)


def test_the_requester_pays_where_the_configuration_says_so(
    full: str, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"requester_pays": True})
    connection.fork.connections.clear()
    sender = {(os.environ["AWS_ACCESS_KEY_ID"], REGION, True, False, "requester")}
    assert seen(faulty, full) == (sender, sender)


def write_ini(path: Path, section: str, **values: str) -> None:
    parser = configparser.ConfigParser()
    parser[section] = values
    with path.open("w") as file:
        parser.write(file)


def test_an_object_that_may_not_be_written_is_named(place: str, faulty: FaultyS3) -> None:
    faulty.script("denied", "summary.json", method="PUT", times=0)
    with pytest.raises(InfrastructureError, match=f"^{place}/runs/1/summary.json: permission denied"):
        storage.write_many(place, {"runs/1/summary.json": b"{}"})


# secrets


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", ["expired", "denied"])
def test_what_a_refusal_repeats_is_in_no_error_and_none_of_its_causes(
    full: str, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    entries = storage.listing(full)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token-of-a-session")
    monkeypatch.setattr(connection, "ATTEMPTS", 1)
    monkeypatch.setattr(clients, "RETRY_S", 0.1)
    connection.fork.connections.clear()
    faulty.script(kind, method="GET|PUT|POST", times=0)
    for do in (
        lambda: list(storage.read_many(full, entries)),
        lambda: storage.read_head(f"{full}/05", 3),
        lambda: storage.listing(full),
        lambda: list(storage.walk(full)),
        lambda: storage.write_many(full, {"x": b""}),
        lambda: storage.create(f"{full}/x", b""),
        lambda: storage.delete(full, ["x"]),
    ):
        with pytest.raises(InfrastructureError, match=ERRORS[kind][2].rstrip(".")) as caught:
            do()
        said = "".join(traceback.format_exception(caught.value))
        for secret in ("a-token-of-a-session", os.environ["AWS_ACCESS_KEY_ID"], "Signature=", "CanonicalRequest"):
            assert secret not in said.replace("Signature=[withheld]", "")


def test_no_secret_is_written_logged_or_sent_in_a_task(
    place: str,
    faulty: FaultyS3,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pickle

    from dskprep.pipeline import executor

    caplog.set_level(logging.INFO)
    tasks: list[bytes] = []
    bag = executor._bag
    monkeypatch.setattr(executor, "_bag", lambda *a: tasks.append(pickle.dumps(a)) or bag(*a))
    monkeypatch.setattr(connection, "ATTEMPTS", 1)
    monkeypatch.setattr(clients, "RETRY_S", 0.1)
    monkeypatch.setattr(clients, "SILENCE_S", 5.0)  # of p4
    monkeypatch.setattr(process, "ATTEMPTS", 1)
    tiny.write_patients(f"{place}/in", ["p1", "p2", "p3", "p4"])
    faulty.script("500", "in/p2/IM003", times=0)
    faulty.script("expired-403", "in/p3/", times=0)
    faulty.script("timeout", "in/p4/IM002", times=0)
    code = commands.run_command(["--debug", "run", f"{place}/in", f"{place}/out", "--scheduler", "sync"])
    assert code == 1
    said = capfd.readouterr()
    written = tiny.everything_below(f"{place}/out")
    records = [json.loads(content) for name, content in written.items() if name.startswith("records/")]
    assert sorted(r["status"] for r in records) == ["failed", "failed", "failed", "written"]
    assert all("traceback" in r for r in records if r["status"] == "failed")
    assert len(tasks) == 4
    everything = b"\n".join([*written.values(), *tasks, said.out.encode(), said.err.encode(), caplog.text.encode()])
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in everything
    assert os.environ["AWS_ACCESS_KEY_ID"].encode() not in everything
    assert b"Signature=" not in everything.replace(b"Signature=[withheld]", b"")
    assert b"CanonicalRequest" not in everything

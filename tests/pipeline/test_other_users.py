"""What other users of the machine can do to a local run: look at its dashboard, and no more."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import other_user
import psutil
import pytest
import tiny
from distributed import Client, LocalCluster
from numba.core.caching import UserProvidedCacheLocator

import dskprep
from dskprep.pipeline import cluster, page

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ASK = """
import asyncio, json, sys
from distributed.core import connect
from distributed.security import Security

async def ask(address, security, seconds):
    try:
        comm = await connect(address, timeout=seconds, **security.get_connection_args("client"))
        await comm.write({"op": "identity", "reply": True})
        return str(await comm.read())
    except Exception:  # an answer that is no message, such as a TLS alert, leads to any error
        return ""

async def main(seconds, *ports):
    ways = [("tcp", Security()), ("tls", Security.temporary())]
    asked = [ask(f"{scheme}://127.0.0.1:{port}", how, int(seconds)) for port in ports for scheme, how in ways]
    return [answer for answer in await asyncio.gather(*asked) if answer]

print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
"""
"""Speaks to each port as a client of Dask does, for so many seconds; prints the answers.

It does so without TLS, and with a certificate of its own.
"""

READ = """
import os, sys
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        try:
            print(os.path.join(folder, name), len(open(os.path.join(folder, name), "rb").read()))
        except OSError:
            pass
"""
"""Prints each file below a folder that can be read."""


def our_processes() -> list[psutil.Process]:
    us = psutil.Process()
    return [us, *(p for p in us.children(recursive=True) if "weed" not in p.name())]


def ports_of(client: Client) -> list[str]:
    """The ports of scheduler, workers and nannies."""
    workers = cluster.workers_of(client)
    addresses = [client.scheduler.address, *workers, *(worker["nanny"] for worker in workers.values())]
    assert len(addresses) == 1 + 2 * len(workers)
    return [address.rpartition(":")[2] for address in addresses]


def said_by_another(script: str, *arguments: object) -> str:
    words = other_user.command([sys.executable, "-c", script, *map(str, arguments)], other_user.UIDS[0])
    return subprocess.run(words, check=True, capture_output=True, text=True, cwd="/", timeout=120).stdout


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder for temporary files that all users share, in which another was first."""
    with other_user.shared_folder() as folder:
        for name in ("dask-scratch-space", f"dask-scratch-space-{os.getuid()}"):
            (folder / name).mkdir()
            (folder / name).chmod(0o777)
            (folder / name / "planted.py").write_text("")
        yield folder


@pytest.fixture(scope="module")
def client(shared: Path) -> Iterator[Client]:
    """A local cluster of which one worker was started again."""
    with dask.config.set({"temporary-directory": str(shared)}), dskprep.local_client(2, "1GiB") as client:
        first, _ = cluster.workers_of(client)
        client.restart_workers([first], timeout=60)
        yield client


def test_another_user_gets_no_answer_from_scheduler_nannies_and_workers(client: Client) -> None:
    other_user.skip_without()
    assert client.scheduler.address.startswith("tls://127.0.0.1:")
    assert json.loads(said_by_another(ASK, 3, *ports_of(client))) == []
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as open_to_all:
        (answer,) = json.loads(said_by_another(ASK, 30, open_to_all.scheduler_address.rpartition(":")[2]))
    assert "Scheduler" in answer  # so this is how one asks


def test_a_client_with_the_certificate_of_the_run_is_let_in(client: Client) -> None:
    with Client(client.scheduler.address, security=client.security) as second:
        assert second.submit(int, 3).result() == 3


def test_the_way_in_is_in_no_file_environment_argument_or_setting(client: Client, shared: Path) -> None:
    key = client.security.tls_worker_key
    assert "PRIVATE KEY" in key
    secret = key.splitlines()[2]  # of the middle: not the name of the kind of key
    assert not any(secret.encode() in path.read_bytes() for path in shared.rglob("*") if path.is_file())
    for process in our_processes():
        assert not any(secret in words for words in (*process.cmdline(), *process.environ().values()))
    for settings in (dask.config.config, *client.run(lambda: dask.config.config).values()):
        assert secret not in repr(settings)
    assert secret not in repr((client, client.cluster, client.security, client.scheduler_info(n_workers=-1)))


def test_other_users_read_and_plant_nothing_in_the_files_of_a_run(client: Client, shared: Path) -> None:
    (ours,) = shared.glob("dskprep-*")
    assert stat.S_IMODE(ours.stat().st_mode) == 0o700
    for folder in client.run(lambda dask_worker: dask_worker.local_directory).values():
        assert Path(folder).is_relative_to(ours)
        (Path(folder) / "secret").write_text("of a patient")
    for path in (sys.path, *client.run(lambda: sys.path).values()):
        assert not [place for place in path if place.startswith(str(shared)) and not place.startswith(str(ours))]
    other_user.skip_without()
    assert {line.split()[0].rpartition("/")[2] for line in said_by_another(READ, shared).splitlines()} == {"planted.py"}


def test_nothing_is_left_of_a_run_that_another_could_take_the_place_of(tmp_path: Path) -> None:
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        with dskprep.local_client(1, "1GiB"):
            assert any(place.startswith(str(tmp_path)) for place in sys.path)
        assert dask.config.get("temporary-directory") == str(tmp_path)
    assert not any(place.startswith(str(tmp_path)) for place in sys.path)
    assert list(tmp_path.iterdir()) == []


SOME_PAGES = ["/status", "/dskprep", "/workers", "/info/main/logs.html"]
"""Of the pages that Bokeh draws only a few: each that is looked at costs the scheduler time from then on."""


def ask_by_http(url: str, method: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, method=method, data=None if method in ("GET", "HEAD") else b'{"n": 2}')
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def routes_of(application: Any) -> set[str]:
    """Every path that an application of tornado and those below it answer, as they are looked up."""
    found, routers = set(), [application.default_router, application.wildcard_router]
    while routers:
        for rule in routers.pop().rules:
            if hasattr(rule.target, "rules"):
                routers.append(rule.target)
            elif hasattr(rule.matcher, "regex"):
                found.add(
                    rule.matcher.regex.pattern.rstrip("$").removesuffix("/?").replace("(.*)", "x").replace("\\", "")
                )
    return found.union(
        *(routes_of(below) for below in vars(application).get("applications", ()) if hasattr(below, "default_router"))
    )


IN_A_FOLDER_OF_ALL = """
import sys
import dskprep

if __name__ == "__main__":
    with dskprep.local_client(workers=1) as client:
        places, = client.run(lambda: __import__("sys").path).values()
        assert set(sys.path) < set(places), places
        client.restart()  # a nanny starts its worker anew
        assert client.submit(len, "abc").result() == 3
"""


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path, shared: Path) -> None:
    """Another user may have put them there, where all may write."""
    ran, script = tmp_path / "ran", tmp_path / "script.py"
    script.write_text(IN_A_FOLDER_OF_ALL)
    for name in ("multiprocessing", "runpy", "pickle", "struct", "dask", "tempfile", "threading"):
        (shared / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r})\nraise ImportError")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=shared, check=False, capture_output=True, text=True, timeout=120
    )
    assert not ran.exists(), ran.read_text()
    assert done.returncode == 0, done.stderr


def test_the_dashboard_shows_and_changes_nothing(client: Client) -> None:
    assert page.install(client) == ""
    paths = routes_of(client.cluster.scheduler.http_application)
    assert {"/status", "/dskprep", "/info/main/workers.html", "/json/counts.json"} <= paths
    base = client.dashboard_link.rpartition("/")[0]
    for path in paths - {"/eventstream"}:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert ask_by_http(base + path, method)[0] >= 400, (method, path)
    for path in [path for path in paths if path.startswith(("/info", "/json", "/metrics", "/health"))] + SOME_PAGES:
        assert b"PRIVATE KEY" not in ask_by_http(base + path, "GET")[1], path
    worker = next(iter(cluster.workers_of(client).values()))
    port = worker["services"]["dashboard"]
    for path in (f"/proxy/{port}/127.0.0.1/health", "/api/v1/retire_workers", "/api/v1", "/jupyter", "/lab"):
        assert [ask_by_http(base + path, method)[0] for method in ("GET", "POST")] == [404, 404], path
    for path in ("/health", "/metrics", "/status", "/info/main/workers.html"):
        assert ask_by_http(f"http://127.0.0.1:{port}{path}", "POST")[0] >= 400, path
    assert len(cluster.workers_of(client)) == 2


def test_settings_of_the_user_open_no_door_of_the_dashboard() -> None:
    with (
        dask.config.set({"distributed.scheduler.http.routes": ["distributed.http.scheduler.api"]}),
        dskprep.local_client(1, "1GiB") as client,
    ):
        base = client.dashboard_link.rpartition("/")[0]
        assert ask_by_http(f"{base}/api/v1/retire_workers", "POST")[0] == 404
        assert ask_by_http(f"{base}/info/main/workers.html", "GET")[0] == 200


def compiled_for(folder: Path) -> dict[str, str]:
    """The environment of a user whose code is compiled already, with what this Python has compiled."""
    package = Path(dskprep.__file__).parent
    for kept in package.rglob("*.nb?"):
        module = next(kept.parents[1].glob("*.py"))
        place = folder / "compiled" / UserProvidedCacheLocator.get_suitable_cache_subpath(str(module))
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(kept, place)
    return {"NUMBA_CACHE_DIR": str(folder / "compiled"), "HOME": str(folder)}


def test_two_users_run_at_the_same_time() -> None:
    other_user.skip_without()
    with other_user.shared_folder() as shared:
        source = tiny.write_patients(shared / "scans", ["p1", "p2", "p3"])
        started = []
        for uid in other_user.UIDS:
            home = shared / str(uid)
            home.mkdir()
            environment = {**os.environ, **compiled_for(home), "TMPDIR": str(shared)}
            for path in (home, *home.rglob("*")):
                os.chown(path, uid, uid)
            words = [sys.executable, "-m", "dskprep", "run", source, str(home / "out")]
            words = other_user.command([*words, "--workers", "1", "--memory-limit", "1GiB"], uid)
            started.append(
                subprocess.Popen(words, env=environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            )
        for process in started:
            said = process.communicate(timeout=240)[0].decode()
            assert process.returncode == 0, said
        for uid in other_user.UIDS:
            assert dskprep.status(shared / str(uid) / "out").counts == {"written": 3}
            assert {path.stat().st_uid for path in (shared / str(uid)).rglob("*")} == {uid}
        assert {path.name for path in shared.iterdir()} == {"scans", *map(str, other_user.UIDS)}

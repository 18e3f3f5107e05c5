"""Azurite, Microsoft's own emulator of Azure Blob Storage, on loopback: `make azurite` installs it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
from email.utils import formatdate
from pathlib import Path

import tiny

from dskprep.synthetic.s3server import HOST, LAUNCHER

FOLDER = Path(sys.executable).parents[1] / "azurite" / "node_modules" / ".bin"
ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(os.urandom(64)).decode()
START_S = 200.0
VERSION = "2020-02-10"
"""Of the protocol, as requests made here name it."""


class Azurite:
    """One server with random credentials, within a `with` block; what it holds goes with it."""

    def __init__(self, folder: Path) -> None:
        self.port = 0
        self._folder = folder
        self._cleanup = contextlib.ExitStack()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}/{ACCOUNT}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead to the server; others that begin with AZURE_ must be unset."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
            "AZURE_MSI_ENDPOINT": f"http://{HOST}:9",  # no test asks the machine's own
            "NO_PROXY": HOST,
            "no_proxy": HOST,
        }

    def __enter__(self) -> Azurite:
        (self.port,) = tiny.free_ports(1)
        node = shutil.which("node")
        assert node
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), node, str(find_azurite())]
            + ["--blobPort", str(self.port), "--inMemoryPersistence", "--disableTelemetry", "--silent"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._folder,
            start_new_session=True, env={"PATH": os.defpath, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
        )  # fmt: skip
        self._cleanup.callback(process.wait)
        self._cleanup.callback(process.kill)
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                self.make_container("probe")
                return self
            assert process.poll() is None, "Azurite ended"
            assert time.monotonic() < deadline, "Azurite does not answer"
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def make_container(self, name: str) -> str:
        """Make a container unless it exists, and return its URL."""
        date = formatdate(usegmt=True)
        about = [f"x-ms-date:{date}", f"x-ms-version:{VERSION}", f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"]
        signed = "\n".join(["PUT", *[""] * 11, *about])
        headers = {"x-ms-date": date, "x-ms-version": VERSION, "Content-Length": "0"}
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{_signature(signed)}"
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=START_S)) as connection:
            connection.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=headers)
            answer = connection.getresponse()
            assert answer.status in (201, 409), answer.read()
        return f"az://{name}"

    def signed_access(self, container: str, permissions: str) -> str:
        """Return a shared access signature (SAS) of a container for an hour."""
        now = time.time()
        start, end = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + s)) for s in (-3600, 3600))
        resource = f"/blob/{ACCOUNT}/{container.removeprefix('az://')}"
        fields = [permissions, start, end, resource, "", "", "https,http", VERSION, "c", *[""] * 6]
        query = {"sv": VERSION, "sr": "c", "sp": permissions, "st": start, "se": end, "spr": "https,http"}
        return urllib.parse.urlencode(query | {"sig": _signature("\n".join(fields))})


def find_azurite() -> Path | None:
    """Return the program of the emulator, if it and Node.js are installed."""
    found = shutil.which("azurite-blob", path=f"{FOLDER}{os.pathsep}{os.environ['PATH']}")
    return Path(found).resolve() if found and shutil.which("node") else None


def _signature(text: str) -> str:
    return base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()

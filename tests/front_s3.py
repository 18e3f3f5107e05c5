"""Other people's S3: an HTTP(S) front before the real server, which demands what some stores demand.

It checks who signs and for which region, then signs anew for the server behind. It is a forward proxy too: it takes
requests with a whole URL, whatever their host, and tunnels (CONNECT) to itself. All runs in threads on loopback.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import re
import select
import socket
import ssl
import subprocess
import threading
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

HOST = "127.0.0.1"
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class FrontS3:
    """The front of a server, within a `with` block; what it demands may be changed at any time.

    Attributes
    ----------
    keys
        Access keys that are taken, and the session token that must come with each; all if it is None.
    refusal
        Status and code of the answer to other keys.
    region
        The region in which all buckets lie; any if it is empty.
    names_region
        Where a request for another region learns the right one: "header" (301) or "body" (400), or "" for not at all.
    needs
        Headers that a request must have, by its method.
    takes_checksums
        Whether headers and trailers of checksums are known.
    archived
        Names of objects that are there and listed, and cannot be read, as those that S3 has moved to Glacier.
    domain
        Host below which each bucket has a name of its own; its path then holds no bucket.
    """

    def __init__(self, upstream: str, key: str, secret: str, certificate: Path | None = None) -> None:
        self.keys: dict[str, str] | None = None
        self.refusal = (403, "InvalidAccessKeyId")
        self.region = self.domain = ""
        self.names_region = "header"
        self.needs: dict[str, dict[str, str]] = {}
        self.takes_checksums = True
        self.archived: set[str] = set()
        self.log: list[dict[str, Any]] = []
        self.connections: set[socket.socket] = set()
        self._upstream, self._credentials = upstream, Credentials(key, secret)
        front = self

        class Handler(_Handler):
            owner = front

        self._server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.endpoint = f"{'https' if certificate else 'http'}://{HOST}:{self._server.server_port}"

    def __enter__(self) -> FrontS3:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for one in list(self.connections):  # those that clients keep open
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def judge(self, method: str, headers: Mapping[str, str]) -> tuple[int, str, str, dict[str, str]] | None:
        """Return the status, code, text and headers of a refusal, or None if the request is as it should be."""
        for name, value in self.needs.get(method, {}).items():
            if headers.get(name, "") != value:
                return 403, "AccessDenied", f"Access Denied: {name} must be {value}", {}
        words = " ".join([*headers.keys(), *headers.values()]).lower()
        if not self.takes_checksums and ("x-amz-checksum-" in words or "trailer" in words):
            return 400, "InvalidRequest", "The value STREAMING-UNSIGNED-PAYLOAD-TRAILER is not supported", {}
        found = re.search(r"Credential=([^/,]+)/[^/]+/([^/]+)/", headers.get("Authorization", ""))
        if self.keys is not None:
            key, token = found[1] if found else "", headers.get("x-amz-security-token", "")
            if key not in self.keys or token != self.keys[key]:
                return *self.refusal, "these credentials are not taken (any more)", {}
        if self.region and found and found[2] != self.region:
            if self.names_region == "header":
                return 301, "PermanentRedirect", "use the right region", {"x-amz-bucket-region": self.region}
            text = f"the region '{found[2]}' is wrong" + f"; expecting '{self.region}'" * bool(self.names_region)
            return 400, "AuthorizationHeaderMalformed", text, {}
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: FrontS3
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        self.owner.connections.add(self.connection)
        with contextlib.suppress(OSError):
            super().handle()
        self.owner.connections.discard(self.connection)

    def do_GET(self) -> None:
        front = self.owner
        body = self._body()
        url = urllib.parse.urlsplit(self.path)
        host = (url.netloc or self.headers["Host"]).partition(":")[0]
        path = self.path if not url.netloc else urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
        bucket = host.removesuffix(f".{front.domain}") if front.domain and host != front.domain else ""
        found = re.search(r"Credential=([^/,]+)/[^/]+/([^/]+)/", self.headers.get("Authorization", ""))
        entry = {
            "method": self.command, "path": path, "host": host, "is_proxied": bool(url.netloc),
            "key": found[1] if found else "", "region": found[2] if found else "",
            "token": self.headers.get("x-amz-security-token", ""), "agent": self.headers.get("User-Agent", ""),
        }  # fmt: skip
        front.log.append(entry)
        refusal = front.judge(self.command, self.headers)
        if not refusal and front.domain and not bucket:
            refusal = (404, "NoSuchBucket", "virtual-hosted addresses only", {})
        if (
            not refusal
            and self.command == "GET"
            and urllib.parse.unquote(url.path).rpartition("/")[2] in front.archived
        ):
            text = "The operation is not valid for the object's storage class"
            refusal = (403, "InvalidObjectState", text, {})
        entry["status"] = refusal[0] if refusal else 0
        if refusal:
            status, code, text, headers = refusal
            region = front.region if front.names_region == "body" else ""
            content = f"<Error><Code>{code}</Code><Message>{text}</Message><Region>{region}</Region></Error>"
            content = content.replace("<Region></Region>", "")
            return self._answer(status, headers | {"Content-Type": "application/xml"}, content.encode())
        return self._forward(f"/{bucket}{path}" if bucket else path, body, entry)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def do_CONNECT(self) -> None:
        """Tunnel to wherever is asked for, on this machine."""
        self.owner.log.append({"method": "CONNECT", "path": self.path, "status": 200})
        host, _, port = self.path.rpartition(":")
        assert host == HOST, f"a test asks for {host}"
        with socket.create_connection((host, int(port))) as server:
            self.send_response(200)
            self.end_headers()
            pairs = {self.connection: server, server: self.connection}
            while True:
                for one in select.select(list(pairs), [], [])[0]:
                    content = one.recv(1 << 16)
                    if not content:
                        self.close_connection = True
                        return
                    pairs[one].sendall(content)

    def _body(self) -> bytes:
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            content = self._chunks(self.rfile)
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            content = self._chunks(io.BytesIO(content))
        return content

    @staticmethod
    def _chunks(stream: Any) -> bytes:
        parts = []
        while size := int(stream.readline().partition(b";")[0], 16):
            parts.append(stream.read(size))
            stream.readline()
        while stream.readline().strip():  # trailers
            pass
        return b"".join(parts)

    def _forward(self, path: str, body: bytes, entry: dict[str, Any]) -> None:
        host = self.owner._upstream.removeprefix("http://")
        kept = ("range", "if-match", "if-none-match", "content-type", "content-md5")
        headers = {name: value for name, value in self.headers.items() if name.lower() in kept}
        request = AWSRequest(self.command, f"{self.owner._upstream}{path}", headers=headers, data=body)
        S3SigV4Auth(self.owner._credentials, "s3", "us-east-1").add_auth(request)
        with contextlib.closing(http.client.HTTPConnection(host, timeout=200)) as server:
            server.request(self.command, path, body, dict(request.headers.items()))
            answer = server.getresponse()
            entry["status"] = answer.status
            content = answer.read()
            said = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
            if self.command == "HEAD":
                said["Content-Length"] = answer.getheader("Content-Length") or "0"
        self._answer(answer.status, said, content)

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def private_ca(folder: Path) -> tuple[Path, Path]:
    """Make a CA of its own; return the file of its certificate, and one of a key and certificate for 127.0.0.1."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout")
    openssl(*new, "ca.key", "-x509", "-days", "2", "-out", "ca.pem", "-subj", "/CN=A private CA",
            "-addext", "basicConstraints=critical,CA:TRUE")  # fmt: skip
    openssl(*new, "host.key", "-out", "host.csr", "-subj", f"/CN={HOST}")
    (folder / "names").write_text(f"subjectAltName=IP:{HOST}\nbasicConstraints=CA:FALSE\n")
    openssl("x509", "-req", "-in", "host.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-out", "host.pem", "-extfile", "names")  # fmt: skip
    whole = folder / "server.pem"
    whole.write_text((folder / "host.key").read_text() + (folder / "host.pem").read_text())
    return folder / "ca.pem", whole

"""A bad day for S3: an HTTP proxy before a real S3 server that fails as S3 and networks fail.

It runs as a process of its own on loopback and forwards the Host header as it is, so signatures stay valid
and the server behind it checks them. Faults come by scripted rules (the nth request of a method whose path
matches), else at random. Which fault the nth request for one object meets depends on the seed only, not on
the order of requests for different objects.

    python tests/faulty_s3.py --to http://127.0.0.1:8333 --seed 1 --share 0.05
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import ctypes
import http.client
import json
import os
import random
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys
import urllib.parse
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PRIVATE = "/-faulty-s3-/"
START_TIMEOUT_S = 200.0
MAX_LOG = 20_000

ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "503-unavailable": (503, "ServiceUnavailable", "Service is unable to handle request."),
    "429": (429, "TooManyRequests", "Too many requests."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),  # AWS answers 400
    "expired-403": (403, "ExpiredToken", "The security token included in the request is expired"),
    "denied": (403, "AccessDenied", "Access Denied"),
}
"""Kinds that are answered in place of the server: status, code and message."""

KINDS = {
    **dict.fromkeys(ERRORS, "answered here; the server never sees the request"),
    "reset": "the connection is reset; the server never sees the request",
    "lost": "the server does what is asked, then the connection is reset before the answer",
    "cut": "the answer's Content-Length is promised, and the connection closed in the middle of the body",
    "stall": "as cut, but the connection stays open without another byte for `stall_s`",
    "timeout": "the server does what is asked, and the client hears nothing for `stall_s`",
    "hold": "forwarded only when `release` is called",
    "first": "another request is sent to the server first: an object is replaced behind the client's back",
    "pass": "nothing happens: shields what it matches from random faults",
}

AT_RANDOM = {"500": 4, "503": 4, "reset": 4, "lost": 4, "cut": 4, "stall": 1, "timeout": 1, "expired": 1}
"""Kinds that come at random, by weight."""


@dataclass
class Rule:
    """`kind` happens to the `nth` request that matches, and to `times` - 1 further ones (for ever if 0)."""

    kind: str
    method: str = "GET"
    path: str = ""
    nth: int = 1
    times: int = 1
    first: dict[str, str] = field(default_factory=dict)
    seen: int = 0

    def meets(self, method: str, path: str) -> bool:
        if method not in self.method.split("|") or not re.search(self.path, path):
            return False
        self.seen += 1
        return self.seen >= self.nth and (not self.times or self.seen < self.nth + self.times)


@dataclass
class Message:
    """The head of a request or an answer, and its body as it came over the wire."""

    start: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    is_whole: bool = True

    def __getitem__(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def encoded(self) -> bytes:
        lines = [self.start, *(f"{key}: {value}" for key, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")


class Proxy:
    """The process's inside: everything happens in one event loop."""

    def __init__(self, upstream: str, seed: int, share: float, latency_ms: tuple[float, float], stall_s: float) -> None:
        host, _, port = upstream.removeprefix("http://").rpartition(":")
        self.upstream = host, int(port)
        self.seed, self.share, self.latency_ms, self.stall_s = seed, share, latency_ms, stall_s
        self.latencies = random.Random(seed)
        self.rules: list[Rule] = []
        self.injected: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.nth: Counter[tuple[str, str]] = Counter()
        self.log: deque[dict[str, Any]] = deque(maxlen=MAX_LOG)
        self.released = asyncio.Event()
        self.n_held = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection, with its own connection to the server."""
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while (request := await read_message(reader, writer)) is not None:
                method, target, _ = request.start.split(" ", 2)
                if target.startswith(PRIVATE):
                    writer.write(self.control(target.removeprefix(PRIVATE), request.body))
                    await writer.drain()
                    continue
                kind, rule, entry = self.choose(method, target, request)
                if kind == "hold":
                    self.n_held += 1
                    await self.released.wait()
                    self.n_held -= 1
                if kind == "first" and rule:
                    entry["first"] = await self.send_first(rule.first)
                low, high = self.latency_ms
                if high:
                    await asyncio.sleep(self.latencies.uniform(low, high) / 1000)
                if kind in ERRORS:
                    entry["status"] = ERRORS[kind][0]
                    writer.write(error_answer(kind, method, request))
                    await writer.drain()
                    continue
                if kind == "reset":
                    return reset(writer)
                for last_try in (False, True):
                    fresh = server is None
                    server = server or await asyncio.open_connection(*self.upstream, limit=1 << 20)
                    answer = await exchange(server, request, method)
                    if answer is not None or fresh or last_try:
                        break
                    server[1].close()  # it had closed a connection that was kept
                    server = None
                if answer is None:
                    return reset(writer)
                entry["status"] = int(answer.start.split(" ", 2)[1])
                if kind == "lost":
                    return reset(writer)
                if kind == "timeout":
                    await asyncio.sleep(self.stall_s)
                    return None
                if kind in ("cut", "stall"):
                    head = answer.encoded()
                    whole = head + answer.body
                    n_sent = len(head) + len(answer.body) // 2 if answer.body else len(head) // 2
                    writer.write(whole[:n_sent])
                    await writer.drain()
                    if kind == "stall":
                        await asyncio.sleep(self.stall_s)
                    return None
                writer.write(answer.encoded() + answer.body)
                await writer.drain()
                if not answer.is_whole or "close" in answer["connection"].lower():
                    return None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return None  # the client is gone
        finally:
            for one in filter(None, [server and server[1], writer]):
                with contextlib.suppress(OSError):
                    one.close()
        return None

    def choose(self, method: str, target: str, request: Message) -> tuple[str, Rule | None, dict[str, Any]]:
        """What happens to a request; it is counted and noted."""
        path, _, query = target.partition("?")
        path = urllib.parse.unquote(path)
        self.requests[method] += 1
        self.nth[method, path] += 1
        kind, chosen = "", None
        for rule in self.rules:  # each rule counts what it matches, whichever acts
            if rule.meets(method, f"{path}?{query}" if query else path) and not kind:
                kind, chosen = rule.kind, rule
        if not kind and self.share:
            # not by the bucket's name, which is another one in every run
            key = path.strip("/").partition("/")[2]
            draw = random.Random(f"{self.seed} {method} {key} {query} {self.nth[method, path]}")
            if draw.random() < self.share:
                (kind,) = draw.choices(list(AT_RANDOM), list(AT_RANDOM.values()))
        if kind and kind != "pass":
            self.injected[kind] += 1
        credential = re.search(r"Credential=([^/,]+)/[^/]+/([^/]+)/", request["authorization"])
        entry = {
            "method": method,
            "path": path,
            "query": query,
            "fault": kind,
            "status": 0,  # the server's, or that of the fault
            "signed": bool(request["authorization"]) or "X-Amz-Signature" in query,
            "access_key": credential[1] if credential else "",
            "region": credential[2] if credential else "",
            "token": bool(request["x-amz-security-token"]),
            "request_payer": request["x-amz-request-payer"],
            "if_match": request["if-match"],
            "if_none_match": request["if-none-match"],
            "user_agent": request["user-agent"],
        }
        self.log.append(entry)
        return kind, chosen, entry

    def control(self, action: str, body: bytes) -> bytes:
        """The private path: what was injected, and what is to be."""
        given = json.loads(body) if body else {}
        if action == "rules":
            self.rules.append(Rule(**given))
        elif action == "settings":
            for name, value in given.items():
                setattr(self, name, value)
        elif action == "forget":
            self.rules.clear()
            self.log.clear()
            for counter in (self.injected, self.requests):
                counter.clear()
        elif action == "release":
            self.released.set()
            self.released = asyncio.Event()
        state = {"injected": self.injected, "requests": self.requests, "held": self.n_held, "log": []}
        if action == "log":
            state["log"] = list(self.log)
        content = json.dumps(state).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        return head.encode() + content

    async def send_first(self, first: dict[str, str]) -> int:
        """Send a request that was signed beforehand to the server, on its own connection."""
        server = await asyncio.open_connection(*self.upstream, limit=1 << 20)
        body = base64.b64decode(first.get("body", ""))
        headers = [("Host", "{}:{}".format(*self.upstream)), ("Content-Length", str(len(body)))]
        request = Message(f"{first['method']} {first['target']} HTTP/1.1", headers, body)
        answer = await exchange(server, request, first["method"])
        server[1].close()
        return int(answer.start.split(" ", 2)[1]) if answer else 0


async def read_message(
    reader: asyncio.StreamReader, continues: asyncio.StreamWriter | None = None, method: str = ""
) -> Message | None:
    """One request (or the answer to `method`) with its body, or None if the peer has closed."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, OSError):
        return None
    start, *lines = head.rstrip("\r\n").split("\r\n")
    headers = [(key, value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    message = Message(start, headers)
    if continues and message["expect"]:
        continues.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        message.headers = [(key, value) for key, value in headers if key.lower() != "expect"]
    is_answer = start.startswith("HTTP/")
    if is_answer and (method == "HEAD" or start.split(" ", 2)[1] in ("204", "304")):
        return message
    if "chunked" in message["transfer-encoding"].lower():
        message.body = await read_chunks(reader)
    elif message["content-length"]:
        message.body = await reader.readexactly(int(message["content-length"]))
    elif is_answer:
        message.body, message.is_whole = await reader.read(), False  # it ends with the connection
    return message


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body, framing and trailers included."""
    parts = []
    size = -1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        parts += [line, await reader.readexactly(size + 2)] if size else [line]
    while parts[-1] != b"\r\n":
        parts.append(await reader.readuntil(b"\r\n"))
    return b"".join(parts)


async def exchange(
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: Message, method: str
) -> Message | None:
    reader, writer = server
    try:
        writer.write(request.encoded() + request.body)
        await writer.drain()
        return await read_message(reader, method=method)
    except (OSError, asyncio.IncompleteReadError):
        return None


def error_answer(kind: str, method: str, request: Message) -> bytes:
    """Return the answer in place of the server's; it repeats what was sent, as AWS and others do."""
    status, code, message = ERRORS[kind]
    token, signed = request["x-amz-security-token"], request["authorization"]
    key_id = (re.search(r"Credential=([^/]*)", signed) or ["", ""])[1]
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
        f"<Message>{message} {token} {signed}</Message>"
        f"<Token-0>{token}</Token-0><AWSAccessKeyId>{key_id}</AWSAccessKeyId>"
        f"<CanonicalRequest>{method}\nx-amz-security-token:{token}\n\nauthorization: {signed}</CanonicalRequest>"
        f"<RequestId>FAULTYS3</RequestId><HostId>faulty</HostId></Error>"
    ).encode()
    head = (
        f"HTTP/1.1 {status} {code}\r\nx-amz-request-id: FAULTYS3\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    return head if method == "HEAD" else head + body


def reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the peer sees a reset, not an end."""
    one = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def run(o: argparse.Namespace) -> None:
    low, _, high = o.latency_ms.partition("-")
    proxy = Proxy(o.to, o.seed, o.share, (float(low), float(high or low)), o.stall_s)
    server = await asyncio.start_server(proxy.serve, HOST, o.port, limit=1 << 20, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()  # until SIGTERM, which ends a process at once


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--to", required=True, help="the server's endpoint")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--share", type=float, default=0.0, help="of the requests that fail at random")
    options.add_argument("--latency-ms", default="0", help="such as 30-50, added to every answer")
    options.add_argument("--stall-s", type=float, default=60.0)
    options.add_argument("--parent", type=int, default=0, help="die with this process")
    o = options.parse_args()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if o.parent and prctl:
        prctl(ctypes.c_int(1), ctypes.c_ulong(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if o.parent and os.getppid() != o.parent:
        sys.exit("the parent is gone already")
    asyncio.run(run(o))


class FaultyS3:
    """The proxy as a process of its own; use it in a `with` block. It dies with the thread that started it."""

    def __init__(
        self, to: str, *, seed: int = 0, share: float = 0.0, latency_ms: str = "0", stall_s: float = 60.0
    ) -> None:
        self.endpoint = ""
        self.upstream = to
        self._options = {"--seed": seed, "--share": share, "--latency-ms": latency_ms, "--stall-s": stall_s}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> FaultyS3:
        words = [str(word) for pair in self._options.items() for word in pair]
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__)), "--to", self.upstream, "--parent", str(os.getpid()), *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            port = stdout.readline() if selector.select(START_TIMEOUT_S) else ""
        if not port:
            self.__exit__()
            raise RuntimeError("the faulty S3 proxy did not start")
        self.endpoint = f"http://{HOST}:{int(port)}"
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
        self._process = None

    @property
    def injected(self) -> dict[str, int]:
        """How often each kind of fault happened."""
        injected: dict[str, int] = self._control("state")["injected"]
        return injected

    @property
    def requests(self) -> dict[str, int]:
        """How many requests of each method came in."""
        requests: dict[str, int] = self._control("state")["requests"]
        return requests

    @property
    def n_held(self) -> int:
        """Requests that wait for `release`."""
        return int(self._control("state")["held"])

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every request since `forget`: method, path, fault, status, and what it says of who sent it."""
        log: list[dict[str, Any]] = self._control("log")["log"]
        return log

    def script(
        self,
        kind: str,
        path: str = "",
        *,
        method: str = "GET",
        nth: int = 1,
        times: int = 1,
        first: tuple[str, str, bytes] | None = None,
    ) -> None:
        """Let `kind` happen to the `nth` request (and `times` - 1 more; 0: for ever) whose path matches."""
        if kind not in KINDS:
            raise ValueError(f"unknown fault {kind!r}")
        rule: dict[str, Any] = {"kind": kind, "method": method, "path": path, "nth": nth, "times": times}
        if first:
            verb, target, body = first
            rule["first"] = {"method": verb, "target": target, "body": base64.b64encode(body).decode()}
        self._control("rules", rule)

    def set(self, **settings: Any) -> None:
        """Change `share`, `seed`, `latency_ms` (a pair) or `stall_s` from the next request on."""
        self._control("settings", settings)

    def release(self) -> None:
        """Let the requests go that are held."""
        self._control("release")

    def forget(self) -> None:
        """Drop all rules, counts and notes."""
        self._control("forget")

    def _control(self, action: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=START_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("POST", PRIVATE + action, json.dumps(content or {}))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer


if __name__ == "__main__":
    main()

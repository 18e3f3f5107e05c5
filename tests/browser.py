"""A headless Chromium, driven by the DevTools protocol over a pipe: open a page, press keys, read it, look at it."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ANSWER_S = 200.0
"""Longest wait for an answer, or for a page to be as expected."""

DRAWN_TEXT = """
(() => {
  const words = [];
  const walk = node => {
    if (node.nodeType === Node.TEXT_NODE) words.push(node.textContent);
    if (["STYLE", "SCRIPT"].includes(node.nodeName)) return;
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  return words.join(" ").replace(/\\s+/g, " ");
})()
"""
"""All text of a page; Bokeh draws into shadow roots, where innerText does not look."""

WORDS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--remote-debugging-pipe", "--hide-scrollbars", "--disable-background-networking", "--disable-extensions"),
)


def find_chromium() -> str:
    """The program; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on the path (apt-get install chromium)")
    return found


class Browser:
    """One page. `errors` are what its scripts threw, what they logged as errors, and what its policy forbade."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._received = b""
        self._n_sent = 0
        self._session: dict[str, str] = {}
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": session["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._n_sent += 1
        message = {"id": self._n_sent, "method": method, "params": params, **self._session}
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._to, content) :]
        deadline = time.monotonic() + ANSWER_S
        while (answer := self._next(deadline)).get("id") != self._n_sent:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("Chromium did not answer")
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium has ended")
            self._received += chunk
        content, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(content)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:200])

    def open(self, url: str) -> None:
        """Go to a page, and wait until it has loaded."""
        self.send("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def look(self, *, width: int = 1280, height: int = 900, is_dark: bool = False) -> None:
        """The size of the window, and what the user's system prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {json.dumps(result['exceptionDetails'])[:500]}")
        return result["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + ANSWER_S
        while True:
            with contextlib.suppress(RuntimeError):  # the page is just being changed for another
                if self.evaluate(expression):
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {expression}")
            select.select([self._from], [], [], 0.05)

    def wait_for_text(self, words: str) -> str:
        """All text of the page, once the words are in it."""
        self.wait_for(f"{DRAWN_TEXT.strip()}.includes({json.dumps(words)})")
        return str(self.evaluate(DRAWN_TEXT))

    def go_offline(self) -> None:
        """From now on, no address answers."""
        nothing = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.send("Network.emulateNetworkConditions", offline=True, **nothing)

    def press(self, key: str) -> None:
        """One key, such as Tab, Enter, Escape, ArrowRight or a letter."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        more = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **more)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path | str) -> None:
        Path(path).write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def opened(*more_words: str) -> Iterator[Browser]:
    """A browser with one empty page; it ends with the block."""
    program = find_chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, contextlib.ExitStack() as pipes:
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in _pipes(pipes)]  # 3 and 4 are to be free
        for end in ends:
            pipes.callback(os.close, end)
        its_in, to_browser, from_browser, its_out = ends
        silence = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        its_ends = [(os.POSIX_SPAWN_DUP2, its_in, 3), (os.POSIX_SPAWN_DUP2, its_out, 4)]
        words = [program, *WORDS, *more_words, f"--user-data-dir={profile}"]
        process = os.posix_spawn(program, words, os.environ, file_actions=[*silence, *its_ends])
        try:
            yield Browser(to_browser, from_browser)
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _pipes(until: contextlib.ExitStack) -> list[int]:
    ends = [*os.pipe(), *os.pipe()]
    for end in ends:
        until.callback(os.close, end)
    return ends

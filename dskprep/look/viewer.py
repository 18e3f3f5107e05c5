"""One volume and its labels in a browser, served to this machine alone by niivue and what stands beside it here."""

from __future__ import annotations

import contextlib
import hmac
import http.server
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2

from dskprep import sides
from dskprep.errors import DskprepError, InfrastructureError, UsageError
from dskprep.look import outlines
from dskprep.look.picture import LUNG_WINDOW, SOFT_WINDOW
from dskprep.reading.dataset import open_dataset
from dskprep.reading.stored import StoredVolume

NIIVUE_VERSION = "0.69.0"
"""The version of niivue (BSD-2-Clause) that `make viewer` fetches."""
FOLDER = (Path(sys.prefix) if sys.prefix != sys.base_prefix else Path.home() / ".cache/dskprep") / "viewer"
"""Where it is: in the virtual environment, or without one in the user's cache."""
NIIVUE = FOLDER / "node_modules/@niivue/niivue/dist/index.js"
BONE_WINDOW = (-450, 1050)
"""HU that are black and white where bone is looked at."""
MOST_SHOWN = 8
"""Layers that are shown at first; others when they are ticked."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""What the page may load: nothing from elsewhere."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""What a browser may call this machine. Another name that leads here is that of somebody's page (DNS rebinding)."""

Answer = tuple[str, Callable[[], bytes]]
"""The type of a part of the page, and what makes its bytes."""


@contextlib.contextmanager
def view(target: str | os.PathLike[str], key: str, *, port: int = 0) -> Iterator[str]:
    """Serve one volume of a dataset with its labels to a browser on this machine, over the block.

    The page is niivue's: planes and a rendering that turn, scroll and zoom, with the lungs and labels laid over. It
    opens in the middle of the largest label, if there is one, and a click on a label's name goes to its middle. It
    loads nothing from elsewhere.

    Parameters
    ----------
    target, key
        The dataset, as a path or URL, and the key of a volume in it.
    port
        The port on 127.0.0.1; by default a free one.

    Yields
    ------
    str
        The address of the page. Only who knows it can read the volume: it holds a secret of this call.

    Raises
    ------
    UsageError
        There is no such volume, or the port is taken.
    InfrastructureError
        niivue is not there; the message says how to fetch it, once.

    Examples
    --------
    >>> with dskprep.view("scans-1mm", "LIDC-0314") as address:  # doctest: +SKIP
    ...     input(f"{address} until Enter is pressed")
    """
    try:
        stored = open_dataset(target)[key]
    except KeyError as error:
        raise UsageError(str(error.args[0])) from error
    if not NIIVUE.exists():
        raise InfrastructureError(
            f"{NIIVUE}: expected niivue, found none; fetch it once by: npm install --prefix {FOLDER} "
            f"@niivue/niivue@{NIIVUE_VERSION} (`make viewer` does that for the .venv of a clone)"
        )
    token = secrets.token_urlsafe(24)
    handler = _handler(f"/{token}/", _answers(stored))
    try:
        server = _Server(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise UsageError(f"port {port} cannot be used ({error}); choose another one, or none") from error
    with server:
        thread = threading.Thread(target=server.serve_forever, name="viewer", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{token}/"
        finally:
            server.shutdown()
            thread.join()


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of a browser that has gone."""


def _answers(stored: StoredVolume) -> dict[str, Answer]:
    """Return the parts of the page by their path. Voxels are read when they are asked for."""
    layers, here = _layers(stored), resources.files("dskprep") / "look"
    content = {
        "windows": _windows(stored),
        "unit": "HU" if stored.values == "HU" else "",
        "layers": list(layers.values()),
    }
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (here / "view.html").read_text(encoding="utf-8")
    )

    def nifti_of(name: str) -> Answer:
        return "application/octet-stream", lambda: bytes(stored.to_nifti(name).to_bytes())

    return {
        "": ("text/html; charset=utf-8", lambda: page.render(key=stored.key, content=content).encode()),
        "view.js": ("text/javascript", (here / "view.js").read_bytes),
        "niivue.js": ("text/javascript", NIIVUE.read_bytes),
        "image.nii": nifti_of("image"),
        **{layer["path"]: nifti_of(name) for name, layer in layers.items()},
    }


def _layers(stored: StoredVolume) -> dict[str, dict[str, Any]]:
    """Return what is laid over the image, by its name in the dataset: the lungs, then the labels, the largest first.

    A later one is drawn over an earlier one, and so a nodule over its lobe. Each has its title, path, colours by value,
    whether it is shown at first, and a label its middle in LPS mm.
    """
    layers: dict[str, dict[str, Any]] = {}
    if stored.record.lungs:
        lungs = stored.record.lungs
        title = sides.in_words(lungs.right_ml, lungs.left_ml, lungs.unsided_ml)
        all_ml = {sides.RIGHT: lungs.right_ml, sides.LEFT: lungs.left_ml, sides.LUNG: lungs.unsided_ml}
        if any(all_ml.values()):
            colours = {side: sides.RGB[side] for side, ml in all_ml.items() if ml}
            layers["lungs"] = {"title": title, "colours": colours, "middle_mm": None}
    for each in outlines.largest_first(outlines.of_stored(stored)):
        about = each.about
        layers[about.label] = {"title": each.title, "colours": {1: each.rgb}, "middle_mm": about.centroid_mm}
    for n, layer in enumerate(layers.values()):
        layer |= {"path": f"{n}.nii", "is_shown": n < MOST_SHOWN}
    return layers


def _windows(stored: StoredVolume) -> list[tuple[str, tuple[float, float]]]:
    """Return what can be looked at and the values that are black and white; nothing where an image holds no HU."""
    if stored.values != "HU":
        return []
    return [("lung", LUNG_WINDOW), ("soft tissue", SOFT_WINDOW), ("bone", BONE_WINDOW)]


def _handler(root: str, answers: dict[str, Answer]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            is_here = urlsplit(f"//{self.headers.get('Host', '')}").hostname in LOOPBACK
            is_known = is_here and hmac.compare_digest(path[: len(root)].encode(), root.encode())
            answer = answers.get(path[len(root) :]) if is_known else None
            if answer is None:
                self._send(404, "text/plain", b"There is nothing here. The address of dskprep view has a secret in it.")
                return
            kind, make = answer
            try:
                self._send(200, kind, make())
            except (DskprepError, OSError) as error:
                with contextlib.suppress(OSError):  # the browser has gone
                    self._send(500, "text/plain; charset=utf-8", str(error).encode(errors="backslashreplace"))

        def _send(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Type": kind,
                "Content-Length": str(len(content)),
                "Content-Security-Policy": POLICY,
                "Cross-Origin-Resource-Policy": "same-origin",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-store",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def version_string(self) -> str:
            return "dskprep"

        def log_message(self, *_: object) -> None:
            """Say nothing: the path is a secret."""

    return Handler

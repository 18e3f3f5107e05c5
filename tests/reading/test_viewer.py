"""A viewer of the web, niivue, shows a written volume at its true size, place and orientation in a real browser."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
import tiny
from PIL import Image

from dskprep.dataset import omezarr
from dskprep.look.viewer import NIIVUE
from dskprep.preparation.lungs import lungs
from dskprep.preparation.prepared import Prepared
from dskprep.settings import PrepConfig
from dskprep.volume import AIR_HU, Volume

SOFTWARE_GL = ("--enable-unsafe-swiftshader", "--use-angle=swiftshader")

SHAPE, SPACING, FIRST = (40, 60, 90), (2.0, 1.5, 1.0), (-200.0, -70.0, -30.0)
"""(z, y, x), in voxels and mm."""
LANDMARK = (slice(25, 35), slice(10, 16), slice(60, 80))
"""Bone in soft tissue: on the patient's left, in front, and above; 20 x 9 x 20 mm."""

# The window, and the affine: OME-Zarr does not say whose left x is, and niivue takes it for the patient's right.
PAGE = """<!doctype html><body style="margin: 0"><canvas id="view" width="700" height="700"></canvas>
<script type="module">
import { Niivue } from "./niivue.js"
const url = location.origin + "/volume.zarr"
const view = new Niivue({ crosshairWidth: 0, isRadiologicalConvention: false, isOrientationTextVisible: false })
await view.attachTo("view")
await view.loadVolumes([{ url, name: "volume.zarr", zarrLevel: 0, zarrMaxVolumeSize: 512 }])
const { affine } = (await (await fetch(url + "/zarr.json")).json()).attributes.dskprep
const ras = affine.map(([z, y, x, mm], row) => [x, y, z, mm].map((value) => (row < 2 ? -value : value)))
const volume = view.volumes[0]
window.show = () => {
  view.setVolumeAffine(0, ras)
  volume.cal_min = -1350
  volume.cal_max = 1350
  view.setSliceType(view.sliceTypeAxial)
  view.updateGLVolume()
}
window.at = (mm) => volume.getValue(...view.frac2vox(view.mm2frac(mm)))
window.go = (mm) => {
  view.scene.crosshairPos = view.mm2frac(mm)
  view.drawScene()
}
window.volume = volume
</script>"""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder by HTTP, parts of files too."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if asked:
                first, last = asked.groups()
                content = content[int(first) : int(last) + 1 if last else None] if first else content[-int(last) :]
            self.send_response(206 if asked else 200)
            types = {".js": "text/javascript", ".html": "text/html", ".json": "application/json"}
            self.send_header("Content-Type", types.get(path.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def volume() -> Volume:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = SPACING
    affine[:3, 3] = FIRST[::-1]
    affine[3, 3] = 1
    hu = np.full(SHAPE, AIR_HU, np.int16)
    hu[2:-2, 5:-5, 5:-5] = -300
    hu[LANDMARK] = 1300
    return Volume(hu, affine)


@pytest.fixture(scope="module")
def page(volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if not NIIVUE.exists():
        pytest.skip("niivue is not installed here: make viewer")
    browser.find_chromium()
    folder = tmp_path_factory.mktemp("viewer")
    found = lungs.Lungs(volume.with_array((volume.array == 1300).astype(np.uint8)), 1.0, 0.0, ())
    tiny.write(folder / "volume.zarr", omezarr.encode(Prepared(volume, found), PrepConfig(chunk=32), {}))
    (folder / "niivue.js").symlink_to(NIIVUE)
    (folder / "index.html").write_text(PAGE)
    with served(folder) as url, browser.opened(*SOFTWARE_GL) as opened:
        opened.look(width=700, height=700)
        opened.open(f"{url}/index.html")
        n_voxels = int((volume.array != AIR_HU).sum())
        opened.wait_for(
            f"window.volume && volume.img.filter((hu) => hu !== {AIR_HU} && hu !== 0).length === {n_voxels}"
        )
        opened.evaluate("show()")
        yield opened


def ras_mm(volume: Volume, index: tuple[float, ...]) -> list[float]:
    x, y, z = volume.to_patient(index).tolist()
    return [-x, -y, z]


@pytest.mark.browser
def test_it_reads_spacing_and_place_by_itself(page: browser.Browser) -> None:
    assert page.evaluate("volume.pixDims.slice(1, 4)") == list(SPACING[::-1])
    assert page.evaluate("volume.dims.slice(1, 4)") == list(SHAPE[::-1])
    assert page.evaluate("volume.zarrHelper !== null")


@pytest.mark.browser
def test_voxels_lie_at_their_place_in_the_patient(page: browser.Browser, volume: Volume) -> None:
    rng = np.random.default_rng(0)
    inside = [tuple(int(rng.integers(part.start, part.stop)) for part in LANDMARK) for _ in range(5)]
    anywhere = [tuple(int(rng.integers(n)) for n in SHAPE) for _ in range(15)]
    for index in [*inside, *anywhere]:
        assert page.evaluate(f"at({ras_mm(volume, index)})") == volume.array[index], index


@pytest.mark.browser
def test_what_is_left_and_in_front_is_seen_there_at_its_size(
    page: browser.Browser, volume: Volume, tmp_path: Path
) -> None:
    """In the axial picture, with the patient's left on the left and the front above."""
    page.evaluate(f"go({ras_mm(volume, (30, 30, 45))})")
    page.screenshot(tmp_path / "axial.png")
    grey = np.asarray(Image.open(tmp_path / "axial.png").convert("L"), float)
    body, bone = np.argwhere(grey > 65), np.argwhere(grey > 176)
    size = np.ptp(body, axis=0)
    assert size[1] / size[0] == pytest.approx(80 * 1.0 / (50 * 1.5), rel=0.03)
    assert np.ptp(bone, axis=0) / size == pytest.approx([6 / 50, 20 / 80], rel=0.1)
    up, left = (bone.mean(axis=0) - body.min(axis=0)) / size
    assert up == pytest.approx((13 - 5) / 50, abs=0.03)
    assert left == pytest.approx((85 - 70) / 80, abs=0.03)

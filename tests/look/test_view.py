"""`dskprep view`: a browser shows a volume and its labels at their place, to who has the address and to nobody else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
import tiny
from PIL import Image

import dskprep
from dskprep.cli import commands
from dskprep.errors import InfrastructureError, UsageError
from dskprep.look import viewer
from dskprep.reading.stored import StoredVolume
from dskprep.settings import PrepConfig
from dskprep.synthetic import scanner

SOFTWARE_GL = ("--enable-unsafe-swiftshader", "--use-angle=swiftshader")
HOSTILE = "<img src=x onerror='window.hacked = 1'>"
needs_niivue = pytest.mark.skipif(not viewer.NIIVUE.exists(), reason="niivue is not installed here: make viewer")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A volume with lungs and two labels: one of a hostile name on the patient's left, in front, near the head."""
    folder = tmp_path_factory.mktemp("view")
    key = scanner.write_patient(0, str(folder / "in"), spacing_mm=(4.0, 3.0, 3.0), shape=(72, 120, 120))
    dskprep.run(folder / "in", folder / "out", settings=PrepConfig(spacing_mm=(4.0, 3.0, 3.0)))
    volume = dskprep.open_dataset(folder / "out")[key]
    (folder / "labels" / key).mkdir(parents=True)
    mask = volume.load("lungs").array * 0
    mask[box_of(volume)] = 1
    mask[5:10, -20:-10, 10:20] = 2
    made = volume.to_nifti("lungs")
    made.__class__(mask.T, made.affine).to_filename(folder / "labels" / f"{key}.nii.gz")
    dskprep.annotate(folder / "out", folder / "labels", names={1: HOSTILE, 2: "another"})
    assert len(volume.labels) == 2
    return str(folder / "out")


def box_of(volume: StoredVolume) -> tuple[slice, slice, slice]:
    """Voxels (z, y, x) above, in front, on the patient's left: 10 x 12 x 20 of them."""
    z, y, x = volume.shape
    return slice(z - 20, z - 10), slice(y // 2 - 30, y // 2 - 18), slice(x // 2 + 15, x // 2 + 35)


def large_of(volume: StoredVolume) -> str:
    """The name of the label in that box, which is larger than the other one, and behind it by name."""
    another, large = sorted(volume.labels)
    assert another == "another"
    return large


@pytest.fixture(scope="module")
def volume(dataset: str) -> StoredVolume:
    (stored,) = dskprep.open_dataset(dataset).values()
    return stored


@pytest.fixture(scope="module")
def address(dataset: str, volume: StoredVolume) -> Iterator[str]:
    """Of the page, from the command itself, which Ctrl-C ends without a word of complaint."""
    words = [*tiny.PROGRAM, "view", dataset, volume.key]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background inherits that it is ignored
    with subprocess.Popen(words, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout
        assert process.stderr
        line = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", line), process.stderr.read()
        yield line
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stderr.read()) == (0, "")


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[browser.Browser]:
    browser.find_chromium()
    with browser.opened(*SOFTWARE_GL) as opened:
        opened.look(width=1000, height=800)
        opened.open(address)
        opened.wait_for("document.body.dataset.state === 'ready'")
        yield opened


@needs_niivue
@pytest.mark.browser
def test_the_page_says_which_label_loads_until_all_are_there(address: str) -> None:
    browser.find_chromium()
    hold = """
        window.held = []
        const fetched = window.fetch
        window.fetch = async (path) => {
          if (/^[0-9]+\\.nii$/.test(path)) await new Promise((go) => window.held.push(go))
          return fetched(path)
        }
    """
    with browser.opened(*SOFTWARE_GL) as opened:
        opened.send("Page.addScriptToEvaluateOnNewDocument", source=hold)
        opened.open(address)
        for n in (1, 2, 3):
            opened.wait_for(f"document.getElementById('loading').textContent === 'loading label {n} of 3'")
            assert "mm (LPS): " in opened.wait_for_text("mm (LPS): ")
            opened.wait_for("window.held.length === 1")
            boxes = opened.evaluate("[...document.querySelectorAll('#layers input')].map((box) => box.disabled)")
            assert boxes == [False] * (n - 1) + [True] * (4 - n)
            opened.evaluate("window.held.pop()()")
        opened.wait_for("document.body.dataset.state === 'ready'")
        assert opened.evaluate("document.getElementById('loading').textContent") == ""


def value_at(page: browser.Browser, n: int, volume: StoredVolume, index: tuple[int, ...]) -> float:
    x, y, z = volume.to_patient(index).tolist()
    of = f"window.view.volumes[{n}]"
    return float(page.evaluate(f"{of}.getValue(...window.view.frac2vox(window.view.mm2frac([{-x}, {-y}, {z}])))"))


def place(page: browser.Browser) -> list[float]:
    """Where the planes cross, in RAS."""
    return list(page.evaluate("Array.from(window.view.frac2mm(window.view.scene.crosshairPos)).slice(0, 3)"))


def seen(page: browser.Browser, folder: Path) -> np.ndarray:
    """What the page looks like when it is drawn (row, column, colour)."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.screenshot(folder / "seen.png")
    with Image.open(folder / "seen.png") as opened:
        return np.asarray(opened.convert("RGB"), int)


CHOOSE = "(id, value) => { const e = document.getElementById(id); e.value = value; e.onchange?.(); e.oninput?.() }"


@pytest.mark.slow
@needs_niivue
@pytest.mark.browser
def test_the_page_opens_in_the_middle_of_the_largest_label_and_a_click_on_a_name_goes_to_its(
    page: browser.Browser, volume: StoredVolume
) -> None:
    x, y, z = volume.to_patient([(part.start + part.stop - 1) / 2 for part in box_of(volume)]).tolist()
    assert place(page) == pytest.approx([-x, -y, z], abs=0.1)
    assert f"x {x:.1f}, y {y:.1f}, z {z:.1f} mm (LPS): " in page.wait_for_text("mm (LPS): ")
    click = "[...document.querySelectorAll('#layers button')].find(b => b.textContent.startsWith({!r})).click()"
    page.evaluate("document.querySelectorAll('#layers input')[2].click()")
    page.wait_for("window.view.volumes.length === 3")
    page.evaluate(click.format("another"))
    page.wait_for("window.view.volumes.length === 4")  # it is shown again
    n_y = volume.shape[1]
    x, y, z = volume.to_patient((7, n_y - 15.5, 14.5)).tolist()
    assert place(page) == pytest.approx([-x, -y, z], abs=0.1)
    page.evaluate(click.format("<img"))
    assert page.evaluate("window.view.volumes.length") == 4
    assert place(page) != pytest.approx([-x, -y, z], abs=0.1)


@pytest.mark.slow
@needs_niivue
@pytest.mark.browser
@pytest.mark.parametrize(
    ("plane", "letters", "near"), [("axial", "RLAP", "LA"), ("coronal", "RLHF", "LH"), ("sagittal", "APHF", "AH")]
)
def test_each_plane_has_the_letters_of_the_other_pictures_where_that_side_is(
    page: browser.Browser, volume: StoredVolume, tmp_path: Path, plane: str, letters: str, near: str
) -> None:
    """The large label lies on the patient's left, in front, near the head. A letter is read on white and on black."""
    page.evaluate(f"({CHOOSE})('planes', {plane!r}); ({CHOOSE})('opacity', '1')")
    page.evaluate("document.querySelectorAll('#layers button')[0].click()")
    page.evaluate(
        """{
        window.written = {}
        const write = window.view.drawText.bind(window.view)
        window.view.drawText = (at, letter, ...more) => {
            const { left, top } = window.view.canvas.getBoundingClientRect()
            window.written[letter] = [at[1] + top + window.view.fontPx / 2, at[0] + left + window.view.fontPx / 3]
            write(at, letter, ...more)
        }
        window.view.drawScene()
        window.view.drawText = write
        }"""
    )
    places = {letter: np.array(at) for letter, at in page.evaluate("window.written").items()}
    assert set(places) == set(letters)
    picture = seen(page, tmp_path)
    found = np.argwhere(np.abs(picture[:, :750] - volume.labels.about[large_of(volume)].rgb).max(axis=2) < 25)
    assert len(found) > 100
    left, right, above, below = letters
    for (one, other), axis in (((left, right), 1), ((above, below), 0)):
        assert places[one][axis] < places[other][axis]
        nearer = min(one, other, key=lambda name: abs(places[name][axis] - found.mean(axis=0)[axis]))
        assert nearer in near
    for row, column in places.values():
        around = picture[int(row) - 14 : int(row) + 14, max(int(column) - 14, 0) : int(column) + 14]
        assert (around.min(axis=2) > 200).any()
        assert (around.max(axis=2) < 50).any()


@needs_niivue
@pytest.mark.browser
def test_every_voxel_of_the_image_and_its_labels_is_at_its_place(page: browser.Browser, volume: StoredVolume) -> None:
    assert page.evaluate("window.view.volumes.length") == 4
    layers = [volume.image, volume.lungs, volume.labels[large_of(volume)], volume.labels["another"]]
    rng = np.random.default_rng(0)
    inside = [tuple(int(rng.integers(part.start, part.stop)) for part in box_of(volume)) for _ in range(10)]
    anywhere = [tuple(int(rng.integers(n)) for n in volume.shape) for _ in range(20)]
    for n, layer in enumerate(layers):
        assert layer is not None
        for index in [*inside, *anywhere]:
            assert value_at(page, n, volume, index) == layer[index], (n, index)


@needs_niivue
@pytest.mark.browser
def test_the_page_shows_names_as_text_and_loads_nothing_from_elsewhere(page: browser.Browser, address: str) -> None:
    text = page.wait_for_text(HOSTILE)
    assert "right lung " in text
    assert page.evaluate("[...document.getElementById('window').options].map(o => o.text)[0]") == "lung"
    assert "another, " in text
    assert page.evaluate("document.querySelector('aside img') === null && window.hacked === undefined")
    assert page.errors == []
    assert {url.split(":")[0] for url in page.requests if not url.startswith(address)} <= {"blob", "data"}


@pytest.mark.slow
@needs_niivue
@pytest.mark.browser
def test_the_patients_left_is_on_the_right_and_the_front_above(
    page: browser.Browser, volume: StoredVolume, tmp_path: Path
) -> None:
    """In the axial plane through the label, which is drawn in its colour; without its tick it is gone."""
    x, y, z = volume.to_patient([(part.start + part.stop - 1) / 2 for part in box_of(volume)]).tolist()
    page.evaluate(f"({CHOOSE})('planes', 'axial'); ({CHOOSE})('opacity', '1')")
    page.evaluate(f"window.view.scene.crosshairPos = window.view.mm2frac([{-x}, {-y}, {z}]); window.view.drawScene()")
    colour = volume.labels.about[large_of(volume)].rgb

    def in_colour() -> np.ndarray:
        return np.argwhere(np.abs(seen(page, tmp_path)[60:750, :700] - colour).max(axis=2) < 25)

    shown = in_colour()
    row, column = shown.mean(axis=0)
    height, width = np.ptp(shown, axis=0)
    assert column > 350 + 20  # the middle of the canvas
    assert row < 345
    assert width / height == pytest.approx(20 / 12, rel=0.1)
    tick = "document.querySelectorAll('#layers input')[1].click()"
    page.evaluate(tick)
    page.wait_for("window.view.volumes.length === 3")
    assert len(in_colour()) < len(shown) / 20
    page.evaluate(tick)
    page.wait_for("window.view.volumes.length === 4")


@needs_niivue
@pytest.mark.parametrize(
    ("host", "status"), [("localhost:99", 200), ("[::1]:8000", 200), ("evil.example:80", 404), ("", 404)]
)
def test_a_page_whose_name_leads_to_this_machine_sees_nothing(address: str, host: str, status: int) -> None:
    request = urllib.request.Request(address, headers={"Host": host})
    try:
        with urllib.request.urlopen(request) as answer:
            found = answer.status
    except urllib.error.HTTPError as error:
        found = error.code
    assert found == status


@needs_niivue
def test_who_does_not_know_the_address_sees_nothing(address: str) -> None:
    assert urllib.request.urlopen(f"{address}image.nii").status == 200
    origin, token = address.rstrip("/").rsplit("/", 1)
    for path in (
        "",
        "/",
        "/image.nii",
        f"/{token[:-1]}/image.nii",
        f"/{token}x/",
        f"/{token}/../image.nii",
        f"/{token}",
    ):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(origin + path)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}..%2f..%2fetc/passwd")


@needs_niivue
def test_a_damaged_volume_is_named_in_place_of_its_picture(volume: StoredVolume, dataset: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", dataset, copy], check=True)
    (shard,) = (path for path in (copy / f"volumes/{volume.key}.zarr/0/c").rglob("*") if path.is_file())
    os.truncate(shard, 1000)
    with viewer.view(copy, volume.key) as address, pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{address}image.nii")
    assert raised.value.code == 500
    assert volume.key in raised.value.read().decode()


@needs_niivue
def test_a_wrong_key_and_a_taken_port_are_wrong_use(dataset: str, volume: StoredVolume) -> None:
    assert commands.run_command(["view", dataset, "nobody"]) == 2
    with viewer.view(dataset, volume.key) as address:
        port = address.split(":")[2].split("/")[0]
        assert commands.run_command(["view", dataset, volume.key, "--port", port]) == 2


def test_without_niivue_the_error_says_how_to_fetch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "NIIVUE", tmp_path / "absent.js")
    dskprep.run(tiny.write_patients(tmp_path / "in", ["p1"]), tmp_path / "out")
    how = r"npm install --prefix \S+ @niivue/niivue@[\d.]+ .*make viewer"
    with pytest.raises(InfrastructureError, match=how), viewer.view(tmp_path / "out", "p1"):
        pass
    for target, key, problem in (("out", "p2", "p2"), ("in", "p1", "there is no dskprep dataset here")):
        with pytest.raises(UsageError, match=problem), viewer.view(tmp_path / target, key):  # nothing is fetched for it
            pass


def test_make_fetches_the_version_that_the_error_names() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert f"NIIVUE := {viewer.NIIVUE_VERSION}\n" in makefile

"""The report shows labels where they are, in their colours, whatever is damaged and whatever they are called."""

from __future__ import annotations

import base64
import colorsys
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import browser
import nibabel
import numpy as np
import pandas as pd
import pytest
import tiny
from numpy.typing import NDArray
from PIL import Image

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.look import picture, report, views
from dskprep.look.figures import rank_labelled
from dskprep.settings import PrepConfig
from dskprep.synthetic import scanner
from dskprep.synthetic.phantom import Phantom, make_phantom

HOSTILE = "</script><img src=x onerror='window.stung = 1'> $\\frac{1}{ {{ 7 * 7 }}"
GRID: dict[str, Any] = {"seed": 3, "spacing_mm": (2.0, 1.5, 1.5), "shape": (150, 230, 230)}
KEY = "phantom-000"
EDGE = 280


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One phantom whose nodules four readers have outlined, made by one run with labels."""
    folder = tmp_path_factory.mktemp("ran")
    source = str(folder / "in")
    scanner.write_patients(source, 1, readings_url=source, broken=False, **GRID)
    summary = dskprep.run(source, folder / "out", settings=PrepConfig(lungs=False), labels=["*.xml"])
    assert summary.exit_code == 0
    return str(folder / "out")


@pytest.fixture(scope="module")
def read(ran: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same without the outlines of each reader, so that each nodule has one."""
    target = copied(ran, tmp_path_factory.mktemp("read"))
    dskprep.forget_labels(target, "*reader*")
    return target


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(**GRID)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three tiny volumes. The first has a large label of a hostile name and a small one within it."""
    folder = tmp_path_factory.mktemp("masked")
    tiny.write_patients(folder / "in", ["p1", "p2", "p3"])
    dskprep.run(folder / "in", folder / "out", settings=PrepConfig(lungs=False), at_end=())
    for key in ("p1", "p2"):
        mask = np.zeros((12, 24, 24), np.uint8)
        mask[2:10, 4:20, 4:20] = 1
        mask[5:7, 8:12, 8:12] = 2
        annotate(folder / "out", folder / "masks", key, mask, {1: HOSTILE if key == "p1" else "GTV-1", 2: "GTV-2"})
    return str(folder / "out")


def annotate(target: Path | str, folder: Path, key: str, mask: NDArray[np.uint8], names: dict[int, str]) -> None:
    affine = dskprep.open_dataset(target)[key].to_nifti().affine
    folder.mkdir(exist_ok=True)
    nibabel.Nifti1Image(mask.T, affine).to_filename(folder / f"{key}.nii.gz")
    summary = dskprep.annotate(target, folder, patterns=[f"{key}.nii.gz"], names=names)
    assert summary.exit_code == 0


def copied(target: str, folder: Path) -> str:
    return str(shutil.copytree(target, folder / "copy"))


def figures(html: str) -> list[str]:
    return re.findall(r'<figure class="cut">.*?</figure>', html, re.DOTALL)


def picture_of(figure: str) -> NDArray[np.float64]:
    """The pixels of a picture, 0 to 1, decoded by another library."""
    (content,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', figure)
    assert len(content) < 40_000
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")) / 255


def plane_of(figure: str) -> int:
    (number,) = re.findall(r'class="dim">axial plane (\d+) of', figure)
    return int(number) - 1


def coloured(pixels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pixels have a colour: those of the image, the letters and the scale are grey."""
    return (pixels.max(2) - pixels.min(2)) > 0.25


def colours_of(figure: str) -> list[tuple[int, ...]]:
    found = re.findall(r'class="swatch" style="background: rgb\((\d+), (\d+), (\d+)\)"', figure)
    return [tuple(map(int, rgb)) for rgb in found]


def hue_apart(a: Sequence[float], b: Sequence[float]) -> float:
    apart = abs(colorsys.rgb_to_hsv(*a)[0] - colorsys.rgb_to_hsv(*b)[0])
    return min(apart, 1 - apart)


@pytest.mark.slow
def test_outlines_lie_where_the_nodules_of_the_phantom_are(read: str, phantom: Phantom) -> None:
    (figure,) = figures(report.report(read))
    pixels = picture_of(figure)
    assert pixels.shape == (EDGE, 2 * EDGE, 3)
    volume = dskprep.open_dataset(read)[KEY]
    largest = max(phantom.nodules, key=lambda nodule: nodule.radius_mm)
    z, row, column = volume.to_index(largest.center_mm)
    assert plane_of(figure) == pytest.approx(z, abs=2)
    _, n_rows, n_columns = volume.shape
    edge = max(n_rows, n_columns)  # voxels of 1 mm
    expected = np.array([row + (edge - n_rows) / 2 + 0.5, column + (edge - n_columns) / 2 + 0.5]) * EDGE / edge
    others = [nodule for nodule in phantom.nodules if nodule is not largest]
    is_alone = all(abs(n.center_mm[2] - largest.center_mm[2]) > n.radius_mm + 5 for n in others)
    assert is_alone  # else its outline is not the only one
    there = np.argwhere(coloured(pixels[:, :EDGE]))
    assert len(there) > 8
    np.testing.assert_allclose((there.min(0) + there.max(0) + 1) / 2, expected, atol=3)
    extent = np.ptp(there, axis=0) + 1
    np.testing.assert_allclose(extent, 2 * largest.radius_mm * EDGE / edge, atol=6)
    close = np.argwhere(coloured(pixels[:, EDGE:]))
    np.testing.assert_allclose((close.min(0) + close.max(0) + 1) / 2, EDGE / 2, atol=6)
    assert np.ptp(close, axis=0).min() > 2 * extent.max()


def test_an_outline_has_the_colour_of_its_legend(read: str) -> None:
    (figure,) = figures(report.report(read))
    close = picture_of(figure)[:, EDGE:]
    (rgb,) = colours_of(figure)
    seen = close[coloured(close)]
    strongest = seen[np.argsort(np.ptp(seen, axis=1))[-20:]].mean(0)
    assert hue_apart(strongest, np.array(rgb) / 255) < 0.06
    largest = max(dskprep.open_dataset(read)[KEY].labels.about.values(), key=lambda about: about.ml or 0)
    assert largest.rgb == rgb
    assert f"{largest.name}, {largest.ml:#.3g} ml" in figure


def test_only_the_chunks_of_one_plane_are_read(read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got: dict[str, int] = {}
    original = storage.read_ranges

    def counted(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        found = original(url, ranges)
        got[url] = got.get(url, 0) + sum(map(len, found))
        return found

    monkeypatch.setattr(storage, "read_ranges", counted)
    report.report(read)
    volume = dskprep.open_dataset(read)[KEY]
    whole = sum(about.n_bytes for name, about in volume.record.objects.items() if name.startswith("0/c"))
    image = sum(n for url, n in got.items() if "/labels/" not in url)
    layers = -(-volume.shape[0] // volume.shards().chunk[0])
    assert layers > 2
    assert 0 < image < 2 * whole / layers


def test_the_side_is_the_patients_and_the_front_is_up(masked: str, tmp_path: Path) -> None:
    target = copied(masked, tmp_path)
    mask = np.zeros((12, 24, 24), np.uint8)
    mask[3:9, 2:6, 16:22] = 1  # low y is the front, high x the patient's left
    annotate(target, tmp_path / "masks", "p3", mask, {1: "mark"})
    (figure,) = [figure for figure in figures(report.report(target)) if "mark" in figure]
    there = np.argwhere(coloured(picture_of(figure)[:, :EDGE]))
    middle = (there.min(0) + there.max(0) + 1) / 2
    np.testing.assert_allclose(middle, np.array([4, 19]) / 24 * EDGE, atol=4)
    np.testing.assert_allclose(np.ptp(there, axis=0) + 1, np.array([4, 6]) / 24 * EDGE, atol=8)


def test_a_label_of_two_parts_is_shown_in_one_of_them(masked: str, tmp_path: Path) -> None:
    target = copied(masked, tmp_path)
    mask = np.zeros((12, 24, 24), np.uint8)
    mask[:2, 4:9, 4:9] = mask[9:, 14:20, 14:20] = 1
    annotate(target, tmp_path / "masks", "p3", mask, {1: "nodes"})
    (figure,) = [figure for figure in figures(report.report(target)) if "nodes" in figure]
    assert coloured(picture_of(figure)).sum() > 50
    assert mask[plane_of(figure)].any()


def test_labels_of_hostile_names_stay_text(masked: str) -> None:
    html = report.report(masked)
    assert HOSTILE not in html
    assert "&lt;/script&gt;&lt;img src=x" in html
    assert len(re.findall("<img", html)) == 2
    assert not re.search(r"""(src|href)=["']?(?!data:image/webp;base64,)[a-z]+:""", html)
    assert " 49" not in html
    first, second = figures(html)
    assert [len(colours_of(figure)) for figure in (first, second)] == [2, 2]
    assert second.index("GTV-1, 2.0") < second.index("GTV-2, 0.0320 ml")  # the largest first


def test_a_damaged_label_costs_its_outline_and_a_damaged_image_its_picture(masked: str, tmp_path: Path) -> None:
    target = copied(masked, tmp_path)
    (Path(target) / "volumes/p2.zarr/labels/GTV-1/0/c/0/0/0").write_bytes(b"cut")
    (Path(target) / "volumes/p1.zarr/0/c/0/0/0").unlink()
    first, second = figures(report.report(target))
    assert "<img" not in first
    assert re.search(r"not drawn: \S*p1.zarr/0/c/0/0/0: .*is gone", first)
    assert len(colours_of(second)) == 1
    assert "GTV-2, 0.0320 ml" in second
    assert re.search(r"not drawn: \S*p2.zarr/labels/GTV-1/0/c/0/0/0: .*expected \d+ bytes, found 3", second)
    there = np.argwhere(coloured(picture_of(second)[:, :EDGE]))
    np.testing.assert_allclose((there.min(0) + there.max(0) + 1) / 2, np.array([10, 10]) / 24 * EDGE, atol=4)


def test_what_a_record_says_wrongly_of_a_label_ends_no_report(masked: str, tmp_path: Path) -> None:
    target = copied(masked, tmp_path)
    for path in Path(target, "labels/written").glob("*.json"):
        record = json.loads(path.read_text())
        for label in record["labels"]:
            label |= {"rgb": [900, 0, 0], "centroid_mm": [1e8, -1e8, 1e8]}
            label |= {"shape": [2**31] * 3} if label["volume"] == "p1" else {"first": [2**31] * 3}
        path.write_text(json.dumps(record))
    first, second = figures(report.report(target))
    assert coloured(picture_of(first)).any()
    assert "<img" not in second
    assert "the label GTV-1 is empty where its record says it lies; annotate again" in second


def test_a_damaged_record_of_labels_costs_the_pictures_of_its_volume(masked: str, tmp_path: Path) -> None:
    target = copied(masked, tmp_path)
    opened = dskprep.open_dataset(target)
    assert "labels: GTV-1, " in opened["p2"]._repr_html_()
    (path,) = [each for each in Path(target, "labels/written").iterdir() if each.name.startswith("p2")]
    size = path.stat().st_size
    path.write_bytes(b"{" + b" " * (size - 1))
    assert len(figures(report.report(target))) == 1  # it is named as damaged beside the figures
    assert '>1</td><td class="name failed">failed</td><td>damaged-record</td>' in report.report(target)
    assert "damaged" in dskprep.open_dataset(target)["p2"]._repr_html_()


def test_a_notebook_names_the_labels_of_a_volume_without_reading_a_voxel(masked: str, tmp_path: Path) -> None:
    target = copied(masked, tmp_path)
    shutil.rmtree(f"{target}/volumes")
    dataset = dskprep.open_dataset(target)
    assert dataset["p2"]._repr_html_().endswith("<br>labels: GTV-1, 2.02 ml; GTV-2, 0.0320 ml</div>")
    assert "&lt;img src=x" in dataset["p1"]._repr_html_()
    assert "labels" not in dataset["p3"]._repr_html_()


def over_thumbnails(page: str) -> dict[str, list[str]]:
    """The thumbnails of labels that lie over that of each volume, by key."""
    rows = re.search(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)
    assert rows
    return {row["key"]: row.get("labels", []) for row in json.loads(rows[1])["rows"]}


def test_the_thumbnails_of_report_and_notebook_have_the_outlines_of_labels(masked: str, tmp_path: Path) -> None:
    target = copied(masked, tmp_path)
    shutil.rmtree(f"{target}/volumes")
    dataset = dskprep.open_dataset(target)
    over = over_thumbnails(report.report(target))
    assert [len(over[key]) for key in ("p2", "p3")] == [2, 0]
    first, second = over["p2"]
    with Image.open(io.BytesIO(base64.b64decode(first))) as picture:
        larger = np.asarray(picture.convert("RGBA"))
    assert larger.shape == (144, 288, 4)
    assert (larger[:, :, 3] > 0).any()
    shown = dataset["p2"]._repr_html_()
    assert shown.index(first) < shown.index(second)
    assert shown.count("<img") == 3
    assert dataset["p3"]._repr_html_().count("<img") == 1


def test_what_is_no_thumbnail_of_a_label_is_not_shown(masked: str, tmp_path: Path) -> None:
    target = copied(masked, tmp_path)
    hostile = ['"><img src=x onerror=alert(1)>', base64.b64encode(b"<svg onload=alert(1)>").decode()]
    for path in Path(target, "labels/written").glob("*.json"):
        record = json.loads(path.read_text())
        for label, text in zip(record["labels"], hostile, strict=False):
            label["thumbnail"] = text
        path.write_text(json.dumps(record))
    assert not any(over_thumbnails(report.report(target)).values())
    assert dskprep.open_dataset(target)["p2"]._repr_html_().count("<img") == 1


def test_a_run_with_labels_writes_a_report_with_pictures(ran: str, read: str) -> None:
    (page,) = Path(ran).glob("runs/*/qc.html")
    (figure,) = figures(page.read_text(encoding="utf-8"))
    assert "reader-1" in figure
    assert coloured(picture_of(figure)).sum() > 50
    assert "reader-1" not in report.report(read)


def test_a_dataset_without_labels_has_no_pictures_of_them(masked: str, tmp_path: Path) -> None:
    target = copied(masked, tmp_path)
    words = r'\.cut|class="cut|<img|Labels</h2>'
    assert len(set(re.findall(words, report.report(target)))) == 4
    dskprep.forget_labels(target, "*")
    assert not re.search(words, report.report(target))


def test_volumes_with_unusual_sizes_come_first_and_labels_of_other_images_do_not_count() -> None:
    rows = [
        {"key": f"p{n:02}", "image": f"i{n}", "status": "written", "label": "GTV", "ml": 5 + n / 10} for n in range(20)
    ]
    rows[4]["ml"], rows[7]["ml"], rows[9]["image"] = 0.01, 900.0, "of before"
    rows += [{"key": "p03", "image": "i3", "status": "written", "label": "", "ml": 1e6}]
    rows += [{"key": "p05", "image": "i5", "status": "refused", "label": "GTV", "ml": 1e6}]
    rows += [{"key": "p08", "image": "i8", "status": "written", "label": "rare", "ml": None}]
    written = pd.DataFrame({"key": [f"p{n:02}" for n in range(25)], "digest": [f"i{n}" for n in range(25)]})
    ranked = rank_labelled(pd.DataFrame(rows), written)
    assert set(ranked["key"][:2]) == {"p04", "p07"}
    assert sorted(ranked["key"]) == sorted({f"p{n:02}" for n in range(20)} - {"p09"})
    chosen = report.outliers_and_others(ranked, report.MAX_LABELLED)["key"]
    assert len(set(chosen)) == 12
    assert {"p04", "p07"} < set(chosen)


def test_show_takes_a_pattern_of_labels(masked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = dskprep.open_dataset(masked)["p2"].labels.about
    for pattern, name in (("GTV*", "GTV-1"), ("*-2", "GTV-2"), ("gtv-2", "GTV-2"), ("GTV-1", "GTV-1")):
        (view,) = views.views_of_stored(masked, "p2", label=pattern)
        np.testing.assert_array_equal(view.middle_mm, about[name].centroid_mm)
    assert commands.run_command(["show", masked, "p2", "--label", "GTV*", "-o", str(tmp_path / "p2.png")]) == 0
    assert commands.run_command(["show", masked, "p2", "--label", "PTV*"]) == 2
    assert "one of the labels GTV-1, GTV-2, found 'PTV*'" in capsys.readouterr().err


@pytest.mark.browser
def test_the_pictures_are_seen_in_a_browser_without_a_network(masked: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(report.report(masked), encoding="utf-8")
    with browser.opened() as page:
        page.look(width=500)
        page.open(f"file://{tmp_path / 'report.html'}")
        page.wait_for("[...document.querySelectorAll('.cut img')].every(i => i.complete && i.naturalWidth === 560)")
        assert page.evaluate("document.querySelectorAll('.cut img').length") == 2
        assert HOSTILE in page.evaluate("document.querySelector('.cut').textContent")
        assert page.evaluate("document.documentElement.scrollWidth <= 500")
        assert page.evaluate("window.stung") is None
        assert page.errors == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


def test_a_label_that_is_asked_for_is_seen_among_what_each_reader_drew(ran: str) -> None:
    volume = dskprep.open_dataset(ran)[KEY]
    for asked in ("nodule-1", "nodule-1-reader-1"):
        drawn = np.asarray(Image.open(io.BytesIO(picture.draw("", picture.of_stored(volume, asked)))).convert("RGB"))
        seen = {
            name: int((np.abs(drawn.astype(int) - about.rgb).max(2) < 30)[:800, :1200].sum())
            for name, about in volume.labels.about.items()
            if name.startswith("nodule-1-reader") or name == "nodule-1"
        }
        assert len(seen) > 2
        assert seen.pop(asked) > 1.5 * max(seen.values())

"""The page of a dataset: what it says, that it is safe to open, and that it can be used in a real browser."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import browser
import pandas as pd
import pytest
import tiny
from builders import prepared
from label_builders import rtstruct_file

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import store, thumbnail
from dskprep.dataset.record import Record
from dskprep.dataset.rows import to_row
from dskprep.look import report
from dskprep.look.figures import histograms, label_figures
from dskprep.settings import PrepConfig, from_dict
from dskprep.stopwatch import STAGES

HOSTILE = "</script><script>window.stung = 1</script><img src=x onerror='window.stung = 1'>{{ 7 * 7 }}&amp;"
OUTLIER = "p07"


def written(n: int) -> Record:
    """Volumes that are alike, but for their lungs: OUTLIER's are dense."""
    key = f"p{n:02}"
    return tiny.record(
        key,
        geometry={"shape": [300, 300 + n, 300], "spacing_mm": [1.0, 1.0, 1.0], "affine": tiny.AFFINE},
        lungs={"right_ml": 2500.0 + n, "left_ml": 2300.0, "mean_hu": -500.0 if key == OUTLIER else -820.0 - n % 3},
        source={
            "slices": 120 + n,
            "step_mm": 2.5,
            "row_spacing_mm": 0.7,
            "manufacturer": HOSTILE,
            "model": HOSTILE,
            "kernel": HOSTILE,
        },
        seconds={"read": 0.5, "decode": 0.25, "lungs": 1.0 + n / 100},
        warnings=["lungs-touch-border"] if n == 3 else [],
    )


def series(numbers: Iterable[int]) -> pd.DataFrame:
    """What the page says of these volumes."""
    return report.describe(pd.DataFrame([to_row(written(n)) for n in numbers]))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve volumes and three that were not written, one of which tries to break out of the page."""
    target = str(tmp_path_factory.mktemp("report") / "dataset")
    store.create(target, PrepConfig())
    picture = thumbnail.draw(prepared())
    for n in range(12):
        store.commit(target, written(n))
        store.write_thumbnail(target, f"p{n:02}", picture)
    store.commit(target, tiny.record("q1", "refused", reason="too-few-slices", message="expected at least 10"))
    store.commit(target, tiny.record("q2", "refused", reason="not-hu", message=HOSTILE))
    store.commit(target, tiny.record("q3", "failed", reason="OSError", message="<b>disk on fire"))
    counts = {"written": 12, "refused": 2, "failed": 1}
    summary = {"run_id": "R1", "inputs": 15, "seconds": 30.0, "counts": counts, "already": {}, "is_interrupted": False}
    store.write_run(target, "R1", {**summary, "stopped_by": ""})
    tiny.write(target, {"runs/R0/summary.json": b"{damaged"})
    return target


@pytest.fixture(scope="module")
def html(target: str) -> str:
    return report.report(target, records_at="../..")


class Reader(HTMLParser):
    """The elements of a page, as a browser without scripts sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_every_series_and_counts_them(html: str) -> None:
    text = " ".join(Reader(html).text.split())
    assert "12 written 2 refused 1 failed" in re.sub(r"\s+", " ", re.sub(r"(\d+)([a-z])", r"\1 \2", text))
    for n in range(12):
        assert f'"key": "p{n:02}"' in html
    assert "too-few-slices" in text
    assert "fewer slices than a volume needs" in text


def test_the_settings_are_written_as_a_settings_file_has_them(tmp_path: Path) -> None:
    select = {"per": "study", "keep": 1, "prefer": ["kernel:soft", "thickness<=1.5"]}
    settings = from_dict({"select": select}, "settings")
    store.create(str(tmp_path / "dataset"), settings)
    (line,) = (line for line in report.report(tmp_path / "dataset").splitlines() if "spacing_mm" in line)
    words = unescape(line.rpartition(" · ")[2].removesuffix("</p>"))
    assert 'recipe = "default", select.keep = 1' in words
    assert "smooth = true, spacing_mm = [1.0, 1.0, 1.0]" in words
    assert 'select.per = "study"' in words
    assert 'select.prefer = ["kernel:soft", "thickness<=1.5"]' in words
    toml = tomllib.loads(re.sub(r", (?=[a-z_.]+ = )", "\n", words))
    assert from_dict(toml, "page") == settings


def test_what_strangers_wrote_stays_text(html: str) -> None:
    tags = Reader(html).tags
    assert sum(tag == "script" for tag, _ in tags) == 2
    assert not [tag for tag, attributes in tags if tag == "img" or "onerror" in attributes]
    assert not [tag for tag, _ in tags if tag == "b" and _ == {}]
    assert "{{ 7 * 7 }}" in html  # no template of its own is run
    assert " 49" not in html


def test_the_page_needs_nothing_beside_it(html: str) -> None:
    for tag, attributes in Reader(html).tags:
        assert tag not in ("link", "iframe", "object", "embed"), tag
        assert "src" not in attributes, attributes
    policy = next(a["content"] for t, a in Reader(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"https?://", html)


def test_the_stranger_a_volume_is_the_further_in_front_it_stands() -> None:
    ranked = report.rank(series(range(12))).set_index("key")
    assert list(ranked.index[:2]) == ["p03", OUTLIER]  # a doubt about the lungs first
    assert ranked.loc[OUTLIER, "unusual"] == "mean HU in the lungs -500 HU, the median is -821 HU"
    assert ranked.loc["p05", "score"] < 3


def test_volumes_without_lungs_do_not_change_what_lungs_are_compared_with() -> None:
    """The same median as that of the histogram: 4600 ml in eight volumes, and no lungs in seven."""
    table = series(range(15))
    table["lungs_ml"] = [0.0] * 7 + [4600.0] * 7 + [9212.5]
    table["mean_lung_hu"] = -820.0
    ranked = report.rank(table)
    said = ranked[ranked["unusual"].str.startswith("lung volume")]
    assert said["unusual"].tolist() == ["lung volume 9213 ml, the median is 4600 ml"]
    (median,) = (h.median for h in histograms(table) if h.title == "Lung volume")
    assert median == 4600


def test_few_volumes_or_equal_ones_do_not_stand_out() -> None:
    assert set(report.rank(series(range(5, 9)))["score"]) == {0.0}
    assert set(report.rank(series([1] * 20))["score"]) == {0.0}


def test_histograms_count_every_volume_once() -> None:
    volumes = series(range(12))
    volumes.loc[0, "mean_lung_hu"] = math.nan
    volumes.loc[1, "mean_lung_hu"] = math.inf  # of an index that a stranger made
    found = {h.title: h for h in report.histograms(volumes)}
    assert sum(found["Slices"].counts) == 12
    assert (found["Slices"].edges[0], found["Slices"].edges[-1]) == (120, 131)
    assert sum(found["Mean HU in the lungs"].counts) == 10
    assert found["Slice step"].median == 2.5


def test_stage_times_are_those_of_the_records() -> None:
    found = report.stages(series(range(12)))
    assert [stage.name for stage in found] == ["read", "decode", "lungs"]
    assert found[-1].mean_s == pytest.approx(1 + 5.5 / 100)


def test_every_stage_has_its_bar_and_counts_in_the_sort_by_seconds(tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    store.create(target, PrepConfig())
    seconds = {stage: 1.0 + number for number, stage in enumerate(STAGES)}
    store.commit(target, written(1).changed(seconds=seconds))
    html = report.report(target)
    (label,) = [
        a["aria-label"] for tag, a in Reader(html).tags if tag == "svg" and "on average" in (a["aria-label"] or "")
    ]
    assert label == " ".join(f"{stage} {s:.2f} s on average;" for stage, s in seconds.items()) + " "
    found = re.search(r'<script type="application/json" id="rows">(.*?)</script>', html, re.DOTALL)
    assert found
    (row,) = json.loads(found[1])["rows"]
    assert row["seconds"] == seconds  # the page sorts by their sum


GOOD = {"run_id": "R9", "inputs": 1, "seconds": 3.0, "counts": {"written": 1}, "already": {}}


@pytest.mark.parametrize(
    "damaged",
    [
        b"[" * 100_000,
        b'{"counts":' * 100_000,
        json.dumps(GOOD | {"seconds": 10**400}).encode(),
        json.dumps(GOOD | {"counts": {"written": 10**400}}).encode(),
        json.dumps(GOOD | {"already": {"written": None}}).encode(),
        json.dumps({name: value for name, value in GOOD.items() if name != "run_id"}).encode(),
        json.dumps(GOOD | {"seconds": float("nan")}).encode(),
        b"5",
        None,
    ],
)
def test_a_damaged_summary_costs_its_own_line_alone(tmp_path: Path, damaged: bytes | None) -> None:
    target = str(tmp_path / "out")
    store.create(target, PrepConfig())
    store.write_run(target, "R8", GOOD | {"run_id": "R8"})
    store.write_run(target, "R9", GOOD)
    place = Path(target, "runs/R9/summary.json")
    assert "R9" in report.report(target)
    if damaged is None:
        place.unlink()
        os.mkfifo(place)
    else:
        place.write_bytes(damaged)
    page = report.report(target)
    assert "R8" in page
    assert "R9" not in page


def test_only_thumbnails_come_onto_the_page_and_nothing_that_a_link_leads_to(tmp_path: Path) -> None:
    """The page is made to be sent, and the dataset may be a stranger's."""
    target = tmp_path / "out"
    store.create(str(target), PrepConfig())
    picture = thumbnail.draw(prepared())
    for n in range(5):
        store.commit(str(target), written(n))
    store.write_thumbnail(str(target), "p00", picture)
    assert base64.b64encode(picture).decode() in report.report(str(target))
    (tmp_path / "key").write_bytes(b"-----BEGIN PRIVATE KEY-----")
    (tmp_path / "other.webp").write_bytes(picture)
    pictures = target / "thumbnails"
    (pictures / "p00.webp").unlink()
    (pictures / "p00.webp").symlink_to(tmp_path / "key")
    (pictures / "p01.webp").symlink_to(tmp_path / "other.webp")
    (pictures / "p02.webp").write_bytes(b"<svg onload=alert(1)>")
    (pictures / "p03.webp").write_bytes(picture + bytes(1 << 20))
    (pictures / "p04.webp").write_bytes(b"")
    page = report.report(str(target))
    for content in (b"-----BEGIN PRIVATE KEY-----", picture[:99], b"<svg onload=alert(1)>"):
        assert base64.b64encode(content).decode()[:28] not in page


def test_a_run_writes_the_page_beside_its_summary_and_the_thumbnails_are_verified(place: str) -> None:
    tiny.write_patients(f"{place}/in", ["p1", "p2"])
    summary = dskprep.run(f"{place}/in", f"{place}/out")
    page = storage.read(f"{place}/out/runs/{summary.run_id}/qc.html").decode()
    assert page.count('"picture": "UklGR') == 2  # RIFF, as a WebP begins
    again = dskprep.run(f"{place}/in", f"{place}/out")
    assert storage.entry_of(f"{place}/out/runs/{again.run_id}/qc.html") is None  # nothing was done
    storage.delete(f"{place}/out", ["thumbnails/p1.webp"])
    storage.write_many(f"{place}/out", {"thumbnails/p2.webp": b"RIFF"})
    faults = {finding.key: finding.faults for finding in dskprep.verify(f"{place}/out")}
    assert faults["p1"] == ("thumbnails/p1.webp is missing",)
    assert "thumbnails/p2.webp has 4 bytes instead of" in faults["p2"][0]
    assert "Series" in report.report(f"{place}/out")


def test_a_dataset_without_records_or_thumbnails_has_a_page(tmp_path: Path) -> None:
    store.create(str(tmp_path / "empty"), PrepConfig())
    assert "Reasons and warnings" not in report.report(str(tmp_path / "empty"))
    store.commit(str(tmp_path / "empty"), written(1))
    assert '"picture": null' in report.report(str(tmp_path / "empty"))


def test_a_folder_that_is_not_called_in_utf8_has_a_page(tmp_path: Path) -> None:
    target = f"{tmp_path}/{os.fsdecode(bytes([0x74, 0xFF]))}"
    summary = dskprep.run(tiny.write_patients(tmp_path / "in", ["p1"]), target)
    assert Path(target, "runs", summary.run_id, "qc.html").read_bytes()
    assert commands.run_command(["report", target, "-o", str(tmp_path / "page.html")]) == 0


def test_the_command_writes_the_page(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run_command(["report", target, "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="rows">(.*?)</script>', content, re.DOTALL)
    assert found
    assert json.loads(found[1])["records_at"] == target
    assert commands.run_command(["report", str(tmp_path)]) == 2


# In a real browser


@pytest.fixture(scope="module")
def page(target: str, html: str) -> Iterator[browser.Browser]:
    tiny.write(target, {"runs/R1/qc.html": html.encode()})
    with browser.opened() as opened:
        opened.look()
        yield opened


@pytest.fixture
def fresh(page: browser.Browser, target: str) -> browser.Browser:
    page.open(f"file://{target}/runs/R1/qc.html")
    return page


def keys(page: browser.Browser) -> list[str]:
    found: list[str] = page.evaluate("[...document.querySelectorAll('#wall .key')].map(e => e.textContent)")
    return found


def choose(page: browser.Browser, select: str, value: str) -> None:
    page.evaluate(
        f"{{const s = document.getElementById('{select}'); s.value = '{value}'; s.dispatchEvent(new Event('input'))}}"
    )


@pytest.mark.browser
def test_it_opens_with_outliers_first_and_their_pictures(fresh: browser.Browser) -> None:
    assert keys(fresh)[:2] == ["p03", OUTLIER]
    assert len(keys(fresh)) == 12
    fresh.wait_for("[...document.images].every(i => i.complete && i.naturalWidth === 288)")
    assert fresh.evaluate("document.images.length") == 12
    assert fresh.evaluate("window.stung") is None
    assert fresh.errors == []
    assert [url for url in fresh.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [800, 1280])
def test_no_word_of_a_card_is_cut_off(fresh: browser.Browser, width: int) -> None:
    fresh.look(width=width)
    assert fresh.evaluate("document.querySelectorAll('#wall .line').length") == 36
    assert fresh.evaluate("[...document.querySelectorAll('#wall *')].every(e => e.scrollWidth <= e.clientWidth + 1)")
    fresh.look()


@pytest.mark.browser
def test_on_a_narrow_page_a_reason_breaks_to_the_left_and_a_status_does_not(
    page: browser.Browser, tmp_path: Path
) -> None:
    store.create(str(tmp_path), PrepConfig())
    for key, status, reason in (("q1", "refused", "missing-slices"), ("q2", "set-aside", "not-chosen")):
        store.commit(str(tmp_path), tiny.record(key, status, reason=reason, message="as it is"))
    (tmp_path / "page.html").write_text(report.report(str(tmp_path)), encoding="utf-8")
    page.look(width=360)
    page.open(f"file://{tmp_path}/page.html")
    lines = """(() => {
      const all = document.createRange()
      return [...document.querySelectorAll(%r)].map(e => {
        all.selectNodeContents(e)
        return [...all.getClientRects()].map(line => line.left)
      })
    })()"""
    reasons = page.evaluate(lines % "td button")
    assert [len(lefts) for lefts in reasons] == [2, 2]
    assert [len(set(lefts)) for lefts in reasons] == [1, 1]
    assert [len(lefts) for lefts in page.evaluate(lines % "td:nth-child(2)")] == [1, 1]
    page.look()


@pytest.mark.browser
def test_it_sorts_both_ways(fresh: browser.Browser) -> None:
    choose(fresh, "sort", "slices")
    assert keys(fresh) == [f"p{n:02}" for n in range(12)]
    fresh.evaluate("document.getElementById('turn').click()")
    assert keys(fresh) == [f"p{n:02}" for n in reversed(range(12))]
    choose(fresh, "sort", "mean_lung_hu")
    assert keys(fresh)[0] == OUTLIER


@pytest.mark.browser
def test_it_filters_by_words_status_and_reason(fresh: browser.Browser) -> None:
    fresh.press("/")
    assert fresh.evaluate("document.activeElement.id") == "find"
    fresh.type("P1")
    assert sorted(keys(fresh)) == ["p10", "p11"]
    assert fresh.evaluate("document.getElementById('count').textContent") == "2 of 15"
    fresh.evaluate("{const f = document.getElementById('find'); f.value = ''; f.dispatchEvent(new Event('input'))}")
    choose(fresh, "show", "refused")
    assert sorted(keys(fresh)) == ["q1", "q2"]
    choose(fresh, "show", "")
    assert len(keys(fresh)) == 15
    fresh.evaluate("document.querySelector('[data-show=\"warning: lungs-touch-border\"]').click()")
    assert keys(fresh) == ["p03"]
    fresh.evaluate("document.querySelector('[data-show=\"refused: too-few-slices\"]').click()")
    assert keys(fresh) == ["q1"]


@pytest.mark.browser
def test_a_patient_opens_by_keyboard_and_leads_to_its_record(fresh: browser.Browser, target: str) -> None:
    fresh.evaluate("document.querySelector('#wall button').focus()")
    fresh.press("Tab")
    fresh.press("Enter")
    assert fresh.evaluate("document.getElementById('one').open") is True
    assert fresh.evaluate("document.getElementById('one-key').textContent") == OUTLIER
    assert "-500" in fresh.evaluate("document.getElementById('one-body').textContent")
    url = fresh.evaluate("document.querySelector('#one-body a').href")
    assert json.loads(Path(url.removeprefix("file://")).read_text())["key"] == OUTLIER
    fresh.press("ArrowLeft")
    assert fresh.evaluate("document.getElementById('one-key').textContent") == "p03"
    fresh.press("ArrowLeft")  # there is none before
    assert fresh.evaluate("document.getElementById('one-key').textContent") == "p03"
    fresh.press("Escape")
    fresh.wait_for("!document.getElementById('one').open")
    fresh.wait_for("document.activeElement.dataset.index === '0'")
    assert Path(target).is_dir()


@pytest.mark.browser
def test_hostile_words_are_shown_as_they_are(fresh: browser.Browser) -> None:
    choose(fresh, "show", "")
    fresh.evaluate("[...document.querySelectorAll('#wall .key')].find(e => e.textContent === 'q2').parentNode.click()")
    assert HOSTILE in fresh.evaluate("document.getElementById('one-body').textContent")
    assert fresh.evaluate("window.stung") is None
    assert fresh.errors == []


@pytest.mark.browser
@pytest.mark.parametrize("is_dark", [False, True])
def test_text_stands_out_from_its_ground_in_light_and_dark(fresh: browser.Browser, is_dark: bool) -> None:
    """WCAG 2.1: a contrast of 4.5 at least for small text."""
    fresh.look(is_dark=is_dark)
    inks = ("text", "dim", "accent", "doubt", "bad", "good")
    style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
    styles = {name: fresh.evaluate(style.format(name)) for name in ("page", "card", *inks)}
    fresh.look()
    assert (luminance(styles["page"]) < 0.2) == is_dark
    for ground in ("page", "card"):
        for ink in inks:
            low, high = sorted([luminance(styles[ground]), luminance(styles[ink])])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.1)."""
    digits = colour.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_says_what_labels_there_are(tmp_path: Path) -> None:
    table = pd.DataFrame(
        [
            {"key": "p1", "status": "written", "reason": None, "label": "GTV", "ml": 2.0},
            {"key": "p2", "status": "written", "reason": None, "label": "GTV", "ml": 6.0},
            {"key": "p2", "status": "written", "reason": None, "label": "<b>", "ml": 1.0},
            {"key": "p3", "status": "written", "reason": None, "label": "", "ml": None},
            {"key": "", "status": "refused", "reason": "label-unlinked", "label": "", "ml": None},
        ]
    )
    found = label_figures(table)
    assert found is not None
    assert [tuple(label) for label in found["names"]] == [("GTV", 2, 2.0, 4.0, 6.0), ("<b>", 1, 1.0, 1.0, 1.0)]
    assert (found["n_labels"], found["n_points"], found["n_volumes"]) == (3, 1, 3)
    assert found["lost"] == {"refused: label-unlinked": 1}
    tiny.write_patients(tmp_path / "in", ["p1"])
    dskprep.run(tmp_path / "in", tmp_path / "out")
    assert "Labels</h2>" not in report.report(tmp_path / "out")
    (tmp_path / "a.csv").write_text("key,x,y,z\np1,-95,-45,12\n")
    dskprep.annotate(tmp_path / "out", tmp_path / "a.csv")
    html = report.report(tmp_path / "out")
    assert "Labels</h2>" in html
    assert "0 labels and 1 point in 1 volume" in html
    shutil.copy(tmp_path / "a.csv", tmp_path / "b.csv")
    dskprep.annotate(tmp_path / "out", tmp_path / "b.csv")
    html = report.report(tmp_path / "out")
    assert re.search(r"<td>label-exists</td><td>.*; that stays as it is</td>", html)


def test_what_was_set_aside_is_explained(tmp_path: Path) -> None:
    tiny.write_patients(tmp_path / "in", ["p1"])
    (tmp_path / "in/p2").mkdir()
    (tmp_path / "in/p2/rs.dcm").write_bytes(rtstruct_file({}))
    dskprep.run(tmp_path / "in", tmp_path / "out")
    html = report.report(tmp_path / "out")
    assert re.search(r">no-image</button></td><td>no image: a segmentation or mask, contours", html)

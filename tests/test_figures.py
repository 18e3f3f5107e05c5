"""Figures in README and docs are those of the stored results of the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
STORED: dict[str, Any] = {
    "trial": {
        "title": "A trial",
        "command": "python benchmarks/trial.py",
        "made": "on a day",
        "blocks": [
            {"heading": "one: 3 x 4"},
            {"text": "Words <b>of</b> a stranger."},
            {"header": ["", "CPU s", "floor"], "rows": [["dskprep, all", "2.345", "1.0"], ["other", "9.5", ""]]},
            {"heading": "two"},
            {"header": ["", "CPU s", "floor"], "rows": [["dskprep, all", "4.0", "2.0"], ["other", "refused", ""]]},
        ],
    }
}


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import figures
    return sys.modules[figures.__name__]


def test_readme_docs_and_pages_hold_the_stored_figures(figures: ModuleType) -> None:
    stored = figures.results()
    quoting = [path for path in figures.quoting() if "<!-- patient" in path.read_text(encoding="utf-8")]
    assert {"README.md", "speed.md"} <= {path.name for path in quoting}
    for path in figures.quoting():
        text = path.read_text(encoding="utf-8")
        assert figures.filled(text, stored) == text, f"{path.name}: run python benchmarks/figures.py"
    for name, result in stored.items():
        assert (figures.RESULTS / f"{name}.md").read_text(encoding="utf-8") == figures.markdown(result)
    assert (figures.RESULTS / "index.html").read_text(encoding="utf-8") == figures.page(stored)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        (
            "takes 7.0<!-- trial: one ; dskprep, all ; CPU s -->",
            "takes 2.3<!-- trial: one ; dskprep, all ; CPU s -->",
        ),
        ("| 1<!-- trial: most ; dskprep, all ; CPU s --> |", "| 4<!-- trial: most ; dskprep, all ; CPU s --> |"),
        ("0.00<!-- trial: median ; dskprep, all ; floor -->", "1.50<!-- trial: median ; dskprep, all ; floor -->"),
        ("0.00<!-- trial: least ; other ; CPU s -->", "9.50<!-- trial: least ; other ; CPU s -->"),
        (
            "<!-- trial.json: two, table 1 -->\n| stale | table |\n|---|---|\n| x | 1 |\n\nwords",
            "<!-- trial.json: two, table 1 -->\n|  | CPU s | floor |\n|---|---:|---:|\n| dskprep, all | 4.0 | 2.0 |\n"
            "| other | refused |  |\n\nwords",
        ),
        ("7.0 and <!-- a note --> 8 | 9", "7.0 and <!-- a note --> 8 | 9"),
    ],
)
def test_a_stale_figure_is_replaced_and_nothing_else(figures: ModuleType, text: str, filled: str) -> None:
    assert figures.filled(text, STORED) == filled


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1<!-- trials: one ; other ; CPU s -->", "trials"),
        ("1<!-- trial: three ; other ; CPU s -->", "three"),
        ("1<!-- trial: one ; others ; CPU s -->", "others"),
        ("1<!-- trial: ; dskprep, all ; CPU s -->", "2 cells"),
        ("<!-- trial.json: one, table 2 -->\n", "expected 2 tables"),
    ],
)
def test_a_figure_that_nobody_measured_is_an_error(figures: ModuleType, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        figures.filled(text, STORED)


def test_the_page_escapes_words_and_loads_nothing(figures: ModuleType) -> None:
    html = figures.page(STORED)
    assert "Words &lt;b&gt;of&lt;/b&gt; a stranger." in html
    assert '<td style="--n: 24.7%">2.345</td>' in html  # of 9.5
    assert '<td style="--n: 10.5%">1.0</td>' in html  # a floor has the scale of what it is the floor of
    assert "http" not in html
    assert "<script" not in html

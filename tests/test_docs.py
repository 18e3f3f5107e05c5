"""The pages name every reason, warning, setting and public name that there is, and lead only to what exists."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import browser
import pytest
from packaging.requirements import Requirement

import dskprep
from dskprep.dataset import columns, rows
from dskprep.errors import LABEL_REASONS, REASONS, WARNINGS
from dskprep.settings import PrepConfig

DOCS = Path(__file__).parent.parent / "docs"


def tables(page: str) -> dict[str, list[list[str]]]:
    """The rows of each section's table, by the section's title."""
    sections = re.split(r"^##? ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        title, _, text = section.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("|")]
        found[title] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return found


@pytest.mark.parametrize(
    ("section", "words"), [("Refused", REASONS), ("Labels that are refused", LABEL_REASONS), ("Warnings", WARNINGS)]
)
def test_every_reason_and_warning_has_a_remedy(section: str, words: dict[str, str]) -> None:
    (rows,) = [rows for title, rows in tables("reasons.md").items() if title.startswith(section)]
    assert [row[0].strip("`") for row in rows] == list(words)
    assert all(len(row) == 3 and row[1] and row[2] for row in rows)


def test_every_setting_is_explained_with_its_default() -> None:
    rows = {row[0].strip("`"): row for row in tables("settings.md")["Settings"]}
    fields = dataclasses.fields(PrepConfig)
    assert list(rows) == [field.name for field in fields]
    for field in fields:
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        default = {} if default is None else default  # an empty table
        assert tomllib.loads(f"x = {rows[field.name][1].strip('`')}")["x"] == default, field.name
        assert rows[field.name][3], field.name


def test_every_column_of_the_index_is_explained() -> None:
    assert sorted(columns.DESCRIBED) == sorted(rows.schema([]).names)
    listed = tables("reading.md")["The columns of the index"]
    assert {row[0].strip("`"): row[1] for row in listed} == columns.DESCRIBED
    for name, meaning in columns.DESCRIBED.items():
        assert len(meaning.split()) > 2, name
        assert meaning.lower() != name.replace("_", " ")


ROOT = DOCS.parent
PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "cluster/README.md"))]


def anchor_of(title: str) -> str:
    """A heading as GitHub turns it into an anchor."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(anchor_of, titles), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_has_a_heading(page: Path) -> None:
    """A row after an empty line is no row: it is shown with its bars."""
    lines = ["", *page.read_text().splitlines(), ""]
    starts = [i for i in range(1, len(lines)) if lines[i].startswith("|") and not lines[i - 1].startswith("|")]
    assert [lines[i] for i in starts if not re.fullmatch(r"\|[ :|-]+\|", lines[i + 1])] == []


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS.glob("*.md") if f"(docs/{page.name}" not in readme] == []


def test_every_room_stands_in_the_layout_with_its_own_words() -> None:
    layout = dict(row[:2] for row in tables("contributing.md")["The rooms"])
    rooms = {f"`{path.parent.name}`": path for path in (ROOT / "dskprep").glob("*/__init__.py")}
    own_words = {room: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for room, path in rooms.items()}
    assert {room: layout.get(room) for room in rooms} == {room: text.split("\n")[0] for room, text in own_words.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_paths_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.-])(?:\.\./)?((?:tests|benchmarks|dskprep)/[\w./-]*\w)", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_private_names_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`(_[a-z]\w+)(?:\(\))?`", page.read_text(encoding="utf-8"))
    code = [path.read_text(encoding="utf-8") for path in (ROOT / "dskprep").rglob("*.py")] if named else []
    assert [name for name in named if not any(re.search(rf"\b{name}\b", text) for text in code)] == []


def test_the_api_page_lists_the_public_names() -> None:
    listed = re.findall(r"^::: dskprep\.(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(dskprep.__all__)


class Loads(HTMLParser):
    """What a browser fetches by itself for a page: `href` of links in its head, `src` of all else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fetched = ("href",) if tag == "link" else ("src", "srcset", "data", "poster")
        self.urls += [value or "" for name, value in attrs if name in fetched and tag != "a"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    site = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return site


@pytest.mark.browser
def test_a_narrow_window_holds_the_tables_of_words_and_no_heading_is_an_empty_row(site: Path) -> None:
    with browser.opened() as tab:
        tab.look(width=420)
        for page in ("reading", "reasons", "settings", "labels", "security"):
            tab.open(f"file://{site}/{page}.html")
            firsts = tab.evaluate("[...document.querySelectorAll('td:first-child')].map(cell => cell.offsetWidth)")
            assert max(firsts) <= 210, page
            heads = "[...document.querySelectorAll('thead')]"
            words = tab.evaluate(f"{heads}.map(head => head.textContent.trim() !== '')")
            assert tab.evaluate(f"{heads}.map(head => head.offsetHeight > 0)") == words, page
        tab.open(f"file://{site}/reasons.html")
        assert tab.evaluate("Math.max(...[...document.querySelectorAll('table')].map(e => e.offsetWidth))") <= 420


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {page.stem for page in DOCS.glob("*.md")} <= {path.stem for path in pages}
    links = [(path, link) for path, text in pages.items() for link in re.findall(r'href="([^"#:]+)["#]', text)]
    dead = {link for path, link in links if path.name != "404.html" and not (path.parent / link).exists()}
    assert dead == set()
    loads = [url for text in pages.values() for url in Loads(text).urls]
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    loads += [url for text in styles for url in re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", text)]
    assert any(url.endswith(".css") for url in loads)
    assert [url for url in loads if re.match(r"(\w+:)?//", url) and not url.startswith("data:")] == []
    assert list(site.rglob("__pycache__")) == []
    api = (site / "api.html").read_text(encoding="utf-8")
    assert [name for name in dskprep.__all__ if f'id="dskprep.{name}"' not in api] == []


def test_the_policy_grants_what_the_pages_name() -> None:
    """The actions of the IAM policy are those that runs.md says are needed, and the JSON is whole."""
    (policy,) = re.findall(r"```json\n(.*?)```", (DOCS / "sizing.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    granted = {action for statement in json.loads(policy)["Statement"] for action in statement["Action"]}
    named = set(re.findall(r"`(s3:\w+)`", (DOCS / "runs.md").read_text(encoding="utf-8")))
    assert granted == named


def texts() -> list[Path]:
    root = DOCS.parent
    found = [root / "README.md", root / "CONTRIBUTING.md", root / "Makefile"]
    for folder, pattern in (("docs", "*.md"), ("dskprep", "*.py"), ("cluster", "*"), ("notebooks", "*.ipynb")):
        found += sorted((root / folder).rglob(pattern))
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


def test_nobody_is_told_to_install_dskprep_from_a_registry() -> None:
    """There the name may be anybody's."""
    by_name = re.compile(r"""(?:pipx?|uv|conda|poetry) (?:install|add|run)(?: -+\S+)* ['"]?dskprep\b""")
    found = {str(path) for path in texts() if by_name.search(path.read_text(encoding="utf-8"))}
    assert found == set()
    assert by_name.search("pip install 'dskprep[exchange]'")
    assert by_name.search("run `pip install -U dskprep`")
    assert not by_name.search("in a clone of dskprep, pip install '.[exchange]'")


def test_what_is_tested_is_what_may_be_installed() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = dict(
        line.lower().split("==")
        for line in (DOCS.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    wanted = [*project["dependencies"], *(w for each in project["optional-dependencies"].values() for w in each)]
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower()
        if name != project["name"]:
            version = pinned.get(name) or pinned[name.replace("_", "-")]
            assert requirement.specifier.contains(version), requirement


@pytest.mark.parametrize(
    ("name", "bad"),
    [("distributed", "2026.6.0"), ("dask", "2026.6.0"), ("fsspec", "2026.4.0"), ("numcodecs", "0.16.5")],
)
def test_versions_with_known_holes_are_not_installed(name: str, bad: str) -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (requirement,) = [r for r in map(Requirement, project["dependencies"]) if r.name == name]
    assert not requirement.specifier.contains(bad)


def test_what_one_is_told_to_make_can_be_made() -> None:
    """By the pages, by messages, and by tests that are skipped."""
    root = DOCS.parent
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    told = re.compile(
        r"(?:`|^DSKPREP_DATA=\S+ )make ([a-z-]+)|: make ([a-z-]+)[\"`]|^make ([a-z-]+) +#", flags=re.MULTILINE
    )
    pages = [*texts(), *sorted((root / "tests").rglob("*.py")), root / ".ci/run"]
    named = {name for path in pages for pair in told.findall(path.read_text(encoding="utf-8")) for name in pair if name}
    assert {"viewer", "demo", "test", "interop"} <= named
    assert named - targets == set()

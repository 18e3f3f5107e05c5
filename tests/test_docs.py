"""The pages in docs/ speak of every reason, warning and setting that there is, and of no other."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest

from dskprep.errors import REASONS, WARNINGS
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


@pytest.mark.parametrize(("section", "words"), [("Refused", REASONS), ("Warnings", WARNINGS)])
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
        assert tomllib.loads(f"x = {rows[field.name][1].strip('`')}")["x"] == default, field.name
        assert rows[field.name][3], field.name


ROOT = DOCS.parent
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "cluster/README.md"]


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


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS.glob("*.md") if f"(docs/{page.name}" not in readme] == []


def test_every_module_stands_in_the_layout() -> None:
    layout = (DOCS / "contributing.md").read_text(encoding="utf-8")
    modules = {path.stem for path in (ROOT / "dskprep").glob("*.py") if not path.stem.startswith("__")}
    assert {module for module in modules if f"`{module}`" not in layout} == set()


def test_the_policy_grants_what_the_pages_name() -> None:
    """The actions of the IAM policy are those that runs.md says are needed, and the JSON is whole."""
    (policy,) = re.findall(r"```json\n(.*?)```", (DOCS / "sizing.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    granted = {action for statement in json.loads(policy)["Statement"] for action in statement["Action"]}
    named = set(re.findall(r"`(s3:\w+)`", (DOCS / "runs.md").read_text(encoding="utf-8")))
    assert granted == named

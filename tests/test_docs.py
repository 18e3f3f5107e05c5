"""The pages in docs/ speak of every reason, warning and setting that there is, and of no other."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from dskprep.config import PrepConfig
from dskprep.errors import REASONS, WARNINGS

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

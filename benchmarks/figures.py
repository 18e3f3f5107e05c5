"""The stored results of the benchmarks, as Markdown, as one page, and as the figures that README and docs quote.

    python benchmarks/figures.py

brings all three up to date with benchmarks/results/*.json, and is all there is to do after a benchmark was run anew.
A test compares them. In README and docs

- a table under `<!-- RESULT.json: SECTION, table 1 -->` is that table of benchmarks/results/RESULT.json, and
- a number before `<!-- RESULT: SECTION ; ROW ; COLUMN -->` is that cell, with as many decimals as it has now.

SECTION is what a heading of the result begins with, or nothing for what stands before the first one. For a number it
may also be `least`, `median` or `most`, of all sections.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OF_ALL: dict[str, Callable[[list[float]], float]] = {"least": min, "median": statistics.median, "most": max}


class Table(NamedTuple):
    """One of a result's tables: its columns' names, and rows whose first cell is a name."""

    section: str
    header: list[str]
    rows: list[list[str]]


def results() -> dict[str, Any]:
    """All stored results by the name of their benchmark, one patient first."""
    files = sorted(RESULTS.glob("*.json"), key=lambda path: (path.stem != "patient", path.stem))
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    return {name: result for name, result in read.items() if "blocks" in result}


def tables(result: dict[str, Any]) -> Iterator[Table]:
    section = ""
    for block in result["blocks"]:
        section = block.get("heading", section)
        if "rows" in block:
            yield Table(section, block["header"], block["rows"])


def markdown(result: dict[str, Any]) -> str:
    """One result as a Markdown file."""
    return f"# {result['title']}\n\n`{result['command']}`\n{result['made']}\n\n{markdown_of(result['blocks'])}\n"


def markdown_of(blocks: Iterable[dict[str, Any]]) -> str:
    parts = []
    for block in blocks:
        if "heading" in block:
            parts.append(f"## {block['heading']}")
        elif "text" in block:
            parts.append(block["text"].strip())
        else:
            parts.append(_table(Table("", block["header"], block["rows"])))
    return re.sub(r"(?m)(^- .*)\n\n(?=- )", r"\1\n", "\n\n".join(parts))


def filled(text: str, stored: dict[str, Any]) -> str:
    """A page of the docs with its tables and figures as they are stored.

    Raises
    ------
    ValueError
        If there is no such result, section, table, row or column.
    """

    def table(found: re.Match[str]) -> str:
        name, section, number = found["name"], found["section"], int(found["number"])
        every = [t for t in _tables_of(stored, name) if t.section.startswith(section)]
        if number > len(every):
            raise ValueError(f"results/{name}.json: expected {number} tables in {section!r}, found {len(every)}")
        return f"{found['mark']}\n{_table(every[number - 1])}\n"

    def number(found: re.Match[str]) -> str:
        value = _cell(stored, *(found[part].strip() for part in ("name", "section", "row", "column")))
        decimals = len(found["number"].partition(".")[2])
        return f"{value:.{decimals}f}{found['mark']}"

    text = re.sub(
        r"(?m)^(?P<mark><!-- (?P<name>\w+)\.json: (?P<section>.*?), table (?P<number>\d+) -->)\n(\|.*\n)*", table, text
    )
    cell = r"(?P<name>\w+): (?P<section>[^;\n]*);(?P<row>[^;\n]*);(?P<column>[^;\n]*?)"
    return re.sub(rf"(?P<number>\d+(\.\d+)?)(?P<mark><!-- {cell} -->)", number, text)


def page(stored: dict[str, Any]) -> str:
    """All results as one HTML page that needs nothing beside it; each column's figures have bars on one scale."""
    from jinja2 import Environment

    template = (Path(__file__).parent / "figures.html").read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(template).render(results=stored.values(), bars=_bars) + "\n"


def quoting() -> list[Path]:
    """The files that may quote figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _tables_of(stored: dict[str, Any], name: str) -> list[Table]:
    if name not in stored:
        raise ValueError(f"expected one of the stored results {sorted(stored)}, found {name!r}")
    return list(tables(stored[name]))


def _cell(stored: dict[str, Any], name: str, section: str, row: str, column: str) -> float:
    found = [
        cells[table.header.index(column)]
        for table in _tables_of(stored, name)
        if (section in OF_ALL or table.section.startswith(section)) and column in table.header
        for cells in table.rows
        if cells[0] == row
    ]
    values = [number for number in map(_number, found) if number is not None]
    if not values or (section not in OF_ALL and len(values) > 1):
        raise ValueError(f"results/{name}.json: {section}; {row}; {column}: {len(values)} cells hold a number")
    return OF_ALL.get(section, max)(values)


def _table(table: Table) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (table.header, *table.rows)]
    return "\n".join([lines[0], f"|---|{'---:|' * (len(table.header) - 1)}", *lines[1:]])


def _bars(block: dict[str, Any]) -> list[list[float]]:
    """The length of each cell's bar, in percent. A column and its floor have one scale; words have none."""
    numbers = [[_number(cell) or 0.0 for cell in row] for row in block["rows"]]
    most = [max(column) for column in zip(*numbers, strict=True)]
    if "floor" in block["header"]:
        floor = block["header"].index("floor")
        most[floor] = most[floor - 1]
    return [[100 * n / top if top else 0.0 for n, top in zip(row, most, strict=True)] for row in numbers]


def _number(cell: str) -> float | None:
    """The number that a cell begins with; None for words."""
    found = re.match(r"\d+(\.\d+)?(?![\w.])", cell)
    return float(found[0]) if found else None


def main() -> None:
    stored = results()
    for name, result in stored.items():
        (RESULTS / f"{name}.md").write_text(markdown(result), encoding="utf-8")
    (RESULTS / "index.html").write_text(page(stored), encoding="utf-8")
    for path in quoting():
        path.write_text(filled(path.read_text(encoding="utf-8"), stored), encoding="utf-8")


if __name__ == "__main__":
    main()

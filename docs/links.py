"""Hook of mkdocs: the files outside docs/ that a page links to become part of the site.

So one link works both there and in the repository. Such a file lies under `repository/` in the site, and Markdown
becomes a page. A link to a folder becomes plain text.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent.resolve()
ROOT = DOCS.parent
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def place_in_site(path: Path) -> str:
    """Return where a file of the repository lies in the site."""
    return str(path.relative_to(DOCS)) if path.is_relative_to(DOCS) else f"repository/{path.relative_to(ROOT)}"


def links(page: Path) -> list[Path]:
    """Return the existing files and folders that a page links to."""
    found = [(page.parent / path).resolve() for _, path, _ in LINK.findall(page.read_text(encoding="utf-8"))]
    return [path for path in found if path.exists()]


def on_files(files: Files, config: Any) -> Files:
    """Add the linked files from outside docs/, and what these link to in turn."""
    pages = sorted(DOCS.glob("*.md"))
    while pages:
        for path in links(pages.pop()):
            place = place_in_site(path)
            if path.is_file() and place not in files.src_uris:
                files.append(File.generated(config, place, abs_src_path=str(path)))
                if path.suffix == ".md":
                    pages.append(path)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page lead to places in the site."""
    source = Path(page.file.abs_src_path).resolve()

    def rewrite(match: re.Match[str]) -> str:
        text, path, anchor = match.groups(default="")
        linked = (source.parent / path).resolve()
        if "://" in path or not linked.exists():
            return match[0]
        if linked.is_dir():
            return text
        return f"[{text}]({os.path.relpath(place_in_site(linked), Path(page.file.src_uri).parent)}{anchor})"

    return LINK.sub(rewrite, markdown)

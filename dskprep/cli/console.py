"""A console for which words are words."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from dskprep import plain


class Plain(Console):
    """A console that escapes words, and takes no `[red]`, `:bug:` or number for more.

    Rich makes every string a Text here, also those in the cells of tables. What is a Text already must be escaped.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(plain.escape(text), **(settings | {"markup": False, "emoji": False}))

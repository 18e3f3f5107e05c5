"""The only way to a terminal. What comes from headers, names and records is shown, and never obeyed."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from typing import Any

import click

from dskprep.plain import escape


def say(line: str, *, is_error: bool = False) -> None:
    """Print a line to standard output, or to standard error."""
    click.echo(escape(line), err=is_error)


def say_json(content: Any) -> None:
    """Print a line of JSON to standard output. JSON escapes what cannot be seen, but for one character."""
    click.echo(json.dumps(content).replace("\x7f", "\\u007f"))


def shell_words(words: Iterable[str]) -> str:
    """Return words as a command that a shell takes apart into the same words, also once it was escaped."""
    return " ".join(shlex.quote(word) if word.isprintable() else _quote_bytes(word) for word in words)


def _quote_bytes(word: str) -> str:
    """Quote a word of any bytes for bash, ksh and zsh."""
    plain = {ord("'"): r"\'", ord("\\"): r"\\"}
    return "$'" + "".join(plain.get(b, chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in os.fsencode(word)) + "'"

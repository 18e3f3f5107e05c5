"""The settings of a dataset as lines for people."""

from __future__ import annotations

import json
from typing import Any


def as_toml(settings: dict[str, Any], table: str = "") -> list[str]:
    """Return a line per setting, as in a settings file: `select.keep = 1`. TOML writes plain values as JSON does."""
    lines = []
    for name, value in settings.items():
        if isinstance(value, dict):
            lines += as_toml(value, f"{table}{name}.")
        elif value is not None:
            lines.append(f"{table}{name} = {json.dumps(value, ensure_ascii=False)}")
    return lines

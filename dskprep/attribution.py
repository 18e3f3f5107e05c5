"""Whose data a series is, and what may be done with it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_COMMERCIAL = re.compile(r"(CC0|CC BY)( \d\.\d)?")
"""Licences, by their short names, under which something may be made of the data for sale."""


@dataclass(frozen=True)
class Attribution:
    """The licence of a series by its short name, and the DOI and the citation of the data that it belongs to."""

    licence: str
    doi: str = ""
    citation: str = ""

    @property
    def is_commercial(self) -> bool:
        """Whether the licence is known to allow commercial use of what is made of the series.

        >>> Attribution("CC BY 4.0").is_commercial, Attribution("CC BY-NC 3.0").is_commercial
        (True, False)
        """
        return bool(_COMMERCIAL.fullmatch(self.licence))

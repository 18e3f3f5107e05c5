"""Parse the readers' XML of LIDC-IDRI: four reading sessions with nodules, their ratings, and outlines in pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from dskprep.errors import Refusal
from dskprep.labels.attributes import one_line, refuse_if_more

RATINGS = (
    *("subtlety", "internalStructure", "calcification", "sphericity", "margin"),
    *("lobulation", "spiculation", "texture", "malignancy"),
)
"""The nine ratings of a nodule of 3 mm or more, by their names in the file."""
ROOTS = {"LidcReadMessage"}
"""Name of the outermost element. That of chest radiographs is another."""
NAMES = {
    name.lower(): name
    for name in (
        *("readingSession", "unblindedReadNodule", "nonNodule", "noduleID", "nonNoduleID", "roi", "seriesInstanceUid"),
        *("imageZposition", "imageSOP_UID", "inclusion", "edgeMap", "locus", "xCoord", "yCoord", *RATINGS, *ROOTS),
    )
}
"""The elements that are read. They are known without a prefix, and in capitals or not."""
LEAST_POINTS = 4
"""Fewest points of an outline that encloses a pixel."""
MAX_BYTES = 1 << 26
"""Longest file; the longest of LIDC-IDRI has 2 MB."""
MAX_DEPTH = 32
"""Deepest nesting; it is 6."""
MAX_POINTS = 200_000
"""Most points of all outlines; there are some thousands."""


@dataclass
class Outline:
    """An outline in one slice: its points are pixels, (n, 2) int64 as (column, row), the first pixels outside.

    What it encloses belongs to the nodule, or, without `is_inside`, does not.
    """

    z_mm: float = np.nan  # or it has none
    instance: str = ""
    is_inside: bool = True
    points: list[tuple[int, int]] = field(default_factory=list)

    @property
    def pixels(self) -> NDArray[np.int64]:
        """The points as an array."""
        return np.array(self.points, np.int64).reshape(-1, 2)


@dataclass
class Mark:
    """What one reader marked: `kind` is `nodule` (3 mm or more: outlined or rated), `small-nodule` or `non-nodule`.

    Readers are numbered 1 to 4 in the order of the file: their true numbers differ from file to file.
    """

    kind: str
    reader: int
    name: str = ""
    ratings: dict[str, int] = field(default_factory=dict)
    outlines: list[Outline] = field(default_factory=list)


@dataclass
class Reading:
    """All marks of a file, and the UID of its series."""

    series: str = ""
    marks: list[Mark] = field(default_factory=list)


def parse(content: bytes, where: str) -> Reading:
    """Parse a file. Raises Refusal: `no-label` for another kind of XML, `label-damaged`, `label-too-large`."""
    refuse_if_more(len(content), MAX_BYTES, "bytes of XML", where)
    builder = _Builder(where)
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.refuse_doctype
    parser.buffer_text = True
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise Refusal("label-damaged", f"{where}: cannot be read as XML: {one_line(error)}") from error
    return builder.reading


def _known(name: str) -> str:
    """Return the name of an element as it is in `NAMES`, or as it is."""
    name = name.rpartition(":")[2]
    return NAMES.get(name.lower(), name)


class _Builder:
    """Builds a `Reading` from the events of the parser."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.reading = Reading()
        self._path: list[str] = []
        self._text = ""
        self._reader = 0
        self._n_points = 0
        self._mark: Mark | None = None
        self._outline: Outline | None = None
        self._place = [0, 0]

    def refuse_doctype(self, *_: Any) -> None:
        raise Refusal("label-damaged", f"{self.where}: expected XML without a document type, which can hold entities")

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        name = _known(name)
        if not self._path and name not in ROOTS:
            raise Refusal("no-label", f"{self.where}: expected the XML of LIDC-IDRI, found <{one_line(name)[:40]}>")
        self._path.append(name)
        self._text = ""
        if len(self._path) > MAX_DEPTH:
            raise Refusal("label-damaged", f"{self.where}: expected {MAX_DEPTH} levels of elements at most")
        if name == "readingSession":
            self._reader += 1
        elif name == "unblindedReadNodule":
            self._mark = Mark("small-nodule", self._reader)
        elif name == "nonNodule":
            self._mark = Mark("non-nodule", self._reader)
            self._outline = Outline()
        elif name == "roi":
            self._outline = Outline()

    def text(self, text: str) -> None:
        if len(self._text) < 1000:
            self._text += text

    def end(self, name: str) -> None:
        name = _known(name)
        self._path.pop()
        text, self._text = self._text.strip(), ""
        if name == "seriesInstanceUid":
            self.reading.series = self.reading.series or one_line(text)
        if self._mark is None:
            return
        if name in ("noduleID", "nonNoduleID"):
            self._mark.name = one_line(text)
        elif name in RATINGS and text:
            self._mark.ratings[name] = self._whole(name, text)
            self._mark.kind = "nodule"
        elif name in ("roi", "nonNodule") and self._outline is not None:
            self._end_outline(self._outline)
        if name in ("unblindedReadNodule", "nonNodule"):
            self._end_mark(self._mark)
        elif self._outline is not None:
            self._end_in_outline(self._outline, name, text)

    def _end_in_outline(self, outline: Outline, name: str, text: str) -> None:
        if name == "imageZposition":
            outline.z_mm = self._number(name, text) if text else np.nan
        elif name == "imageSOP_UID":
            outline.instance = one_line(text)
        elif name == "inclusion":
            outline.is_inside = text.upper() != "FALSE"
        elif name in ("xCoord", "yCoord"):
            self._place[name == "yCoord"] = self._whole(name, text)
        elif name in ("edgeMap", "locus"):
            outline.points.append((self._place[0], self._place[1]))
            self._n_points += 1
            refuse_if_more(self._n_points, MAX_POINTS, "points", self.where)

    def _end_outline(self, outline: Outline) -> None:
        if not outline.points or (np.isnan(outline.z_mm) and not outline.instance):
            raise Refusal(
                "label-damaged", f"{self.where}: expected points, and imageZposition or imageSOP_UID, in each roi"
            )
        assert self._mark is not None
        self._mark.outlines.append(outline)
        self._outline = None

    def _end_mark(self, mark: Mark) -> None:
        if not mark.outlines:
            raise Refusal("label-damaged", f"{self.where}: {mark.name!r}: expected an roi, found none")
        if mark.kind == "small-nodule" and any(len(set(o.points)) >= LEAST_POINTS for o in mark.outlines):
            mark.kind = "nodule"
        if not mark.reader:
            raise Refusal("label-damaged", f"{self.where}: {mark.name!r}: expected it in a readingSession")
        self.reading.marks.append(mark)
        self._mark = None

    def _number(self, name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not abs(value) < 1e6:
            raise Refusal("label-damaged", f"{self.where}: expected a number in {name}, found {one_line(text)[:40]!r}")
        return value

    def _whole(self, name: str, text: str) -> int:
        value = self._number(name, text)
        if value != int(value):
            raise Refusal("label-damaged", f"{self.where}: expected a whole number in {name}, found {value}")
        return int(value)

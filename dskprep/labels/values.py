"""What a label object says of itself, and the methods that all kinds of them have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dskprep.counts import n_of, some_of
from dskprep.labels.draw import Drawn, draw
from dskprep.labels.hold import Admit
from dskprep.labels.stack import Stack
from dskprep.patterns import as_patterns, matches_label
from dskprep.volume import Grid

if TYPE_CHECKING:
    import pandas as pd


class Code(NamedTuple):
    """A coded term (DICOM PS3.3 section 8), for instance ("39607008", "SCT", "Lung")."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Links:
    """What a label object asks to be linked to: UIDs of DICOM, as they stand in it. Each may be empty.

    `frames` are the frames of reference in which it lies; a segment may say in which of them. `patient` (PatientID) and
    `study` are those of the object itself: it is linked by neither, but they may say that it is of somebody else.
    `are_drawn_on` says that the instances are the slices that it was drawn on, and not only those of its series.
    """

    series: frozenset[str] = frozenset()
    instances: frozenset[str] = frozenset()
    frames: frozenset[str] = frozenset()
    patient: str = ""
    study: str = ""
    are_drawn_on: bool = False


@dataclass(frozen=True)
class Segment:
    """A segment of a SEG, an ROI of an RTSTRUCT, a value of a mask, or a nodule.

    `number` is what the object calls it by, `name` is the author's own. `category` and `type` are the codes of what it
    is; `algorithm` says who drew it: MANUAL, SEMIAUTOMATIC, AUTOMATIC, or the reader. `interpreted_type` is what
    radiotherapy calls an ROI: ORGAN, GTV, EXTERNAL … `frame_of_reference` is the UID of its own, or "". `instances` are
    the UIDs of the slices that it was drawn on, if it says so.
    """

    number: int
    name: str
    category: Code | None = None
    type: Code | None = None
    algorithm: str = ""
    interpreted_type: str = ""
    frame_of_reference: str = ""
    instances: frozenset[str] = field(default=frozenset(), repr=False)


class Labels(ABC):
    """A label object. `kind` is `seg`, `rtstruct`, `lidc`, `mask` or `points`; `where` is its name, for messages."""

    kind: str
    where: str
    links: Links
    segments: tuple[Segment, ...] = ()

    def __repr__(self) -> str:
        names = [segment.name for segment in self.segments]
        said = [f"{n_of(len(names), 'segment')} {some_of(names)}"] if names else []
        said += [n_of(len(points), "point")] if (points := self.points) is not None else []
        return f"<{self.kind} {self.where}: {' and '.join(said) or 'nothing'}>"

    def named(self, *patterns: str) -> tuple[Segment, ...]:
        """Return the segments whose name matches one of the patterns, as `GTV*`; case does not matter.

        A reader's own outline of a nodule is taken only by a pattern that says `reader`, as `nodule-*-reader-*`.
        """
        wanted = as_patterns(patterns, "patterns")
        return tuple(segment for segment in self.segments if matches_label(segment.name, wanted))

    def at(self, slices: Grid) -> Labels:
        """Return the labels as they lie in an image, given the grid of its slices as they are stored.

        Its axes are (slice, row, column). Labels that have a place of their own in the patient are returned as they
        are; see the kinds for what is refused.
        """
        del slices
        return self

    def draw(self, segment: Segment, grid: Grid, admit: Admit | None = None) -> Drawn:
        """Draw one segment on a grid. `admit` is told before how many bytes its planes will take.

        Raises Refusal: `label-empty`, `label-outside-volume`, `label-too-large`, or `label-damaged`.
        """
        return draw(self.stacks(segment, grid), grid, f"{self.where}: {segment.name!r}", admit)

    @abstractmethod
    def stacks(self, segment: Segment, grid: Grid) -> Iterable[Stack]:
        """Return the planes of one segment; `grid` is what they will be drawn on."""

    @property
    def points(self) -> pd.DataFrame | None:
        """One row per point or nodule, with its place `x`, `y`, `z` in LPS mm; None if the kind has none."""
        return None

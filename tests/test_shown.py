"""What functions return shows itself in a line, not with all that it holds."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from dskprep.dataset.label_record import LabelRecord
from dskprep.dataset.record import Record
from dskprep.dataset.status import Status
from dskprep.look.comparison import Compared, Difference, Preparation
from dskprep.pipeline.account import Account, Summary
from dskprep.pipeline.export import ExportSummary
from dskprep.pipeline.label_account import LabelSummary
from dskprep.pipeline.plan import Plan
from dskprep.pipeline.prediction import Prediction
from dskprep.reading.duplicates import Duplicates
from dskprep.volume import Volume

VOXELS = np.zeros((2, 3, 4), np.int16)
PLACE = Volume(VOXELS, np.eye(4))
ACCOUNT = Account(counts=Counter(refused=1, written=2), inputs=3, is_listed=True)
DIFFERENCE = Difference("a", ((2, 3, 4),) * 2, ((1.0, 1.0, 1.0),) * 2, 0.0, 1.0, 0.5, 3.0, 12.25, dice=0.98765)
COMPARED = Compared(DIFFERENCE, Preparation(PLACE, "HU", None), VOXELS > 0, PLACE, None, None)
PAIRS = pd.DataFrame({"key": ["a", "a", "b"], "other": ["b", "c", "c"], "kind": ["cropped", "identical", "cropped"]})
PREDICTIONS = (Prediction("a", "written"), Prediction("b", "refused", "not-ct"))
REFUSED = Record(key="a", status="refused", input_digest="0", reason="not-ct", message="expected CT, found MR")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Summary("id", "in", "out", ACCOUNT, 1.0), "<Summary: 3 patients: 2 written, 1 refused; out>"),
        (
            Summary("id", "in", "out", ACCOUNT, 1.0, is_interrupted=True),
            "<Summary: interrupted, 3 patients: 2 written, 1 refused; out>",
        ),
        (
            LabelSummary("id", "out", Counter(written=2), labels=1),
            "<LabelSummary: 2 label sources: 2 written; 1 label and 0 points written; out>",
        ),
        (
            ExportSummary("monai", "in", "out", Counter({"written": 2, "left-out": 1})),
            "<ExportSummary: monai: 2 written, 1 left out; out>",
        ),
        (Status("out", 3, {"refused": 1, "written": 2}, {}, {}, []), "<Status: 3 series: 2 written, 1 refused; out>"),
        (
            Status("out", 1, {"written": 1}, {}, {}, [], label_sources={"written": 1}, labels={"GTV": 2}, points=1),
            "<Status: 1 series: 1 written; 2 labels, 1 point; out>",
        ),
        (
            Plan("in", 9, 2, PREDICTIONS, None, None),
            "<Plan: 9 patients, by the headers of 2 their series would be 1 written, 1 refused; in>",
        ),
        (Duplicates(PAIRS), "<Duplicates: 3 pairs: 2 cropped, 1 identical>"),
        (Duplicates(PAIRS[:0]), "<Duplicates: 0 pairs>"),
        (COMPARED, "<Compared: a: HU differ by 12.2 at most, Dice of the lungs 0.9877>"),
        (
            dataclasses.replace(COMPARED, difference=dataclasses.replace(DIFFERENCE, max_hu=None, dice=None)),
            "<Compared: a: no HU to compare, no lungs to compare>",
        ),
        (REFUSED, "<Record of a: refused, not-ct: expected CT, found MR>"),
        (REFUSED.changed(status="written"), "<Record of a: written>"),
        (
            LabelRecord(source="a.dcm", status="failed", options="0", digest="1", reason="OSError", message="gone"),
            "<LabelRecord of a.dcm: failed, OSError: gone>",
        ),
    ],
)
def test_a_value_is_shown_in_a_line(value: object, shown: str) -> None:
    assert repr(value) == shown

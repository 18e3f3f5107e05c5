"""Tables of points, as LUNA16 has them and as others do."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dskprep
from dskprep.errors import Refusal, UsageError
from dskprep.volume import Grid

LUNA16 = (
    b"seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3.6.1,-128.6,-175.3,-298.4,5.65\n1.3.6.2,103.8,-211.9,-227.1,4.22\n"
)
CANDIDATES = b"seriesuid,coordX,coordY,coordZ,class\n1.3.6.1,68.4,-74.4,-288.7,0\n1.3.6.1,-95.2,-91.8,-377.4,1\n"


def read(content: bytes, name: str = "points.csv") -> pd.DataFrame:
    table = dskprep.read_labels(content, name=name).points
    assert table is not None
    return table


def test_the_annotations_of_luna16_as_they_are() -> None:
    table = read(LUNA16)
    assert table.columns.tolist() == ["seriesuid", "x", "y", "z", "diameter_mm"]
    assert table.loc[1, ["x", "y", "z", "diameter_mm"]].tolist() == [103.8, -211.9, -227.1, 4.22]
    labels = dskprep.read_labels(LUNA16, name="annotations.csv")
    assert (labels.kind, labels.links.series) == ("points", {"1.3.6.1", "1.3.6.2"})
    with pytest.raises(UsageError, match="nothing to draw"):
        labels.draw(dskprep.Segment(1, "x"), Grid((1, 1, 1), np.eye(4)))


def test_the_candidates_of_luna16_keep_their_class() -> None:
    assert read(CANDIDATES)["class"].tolist() == ["0", "1"]


def test_other_tables_keep_their_other_columns() -> None:
    table = pd.DataFrame({"key": ["p1", "p2"], "Z": [1.5, 2], "Y": [3, 4], "X": [5, 6], "score": [0.1, 0.9]})
    file = io.BytesIO()
    table.to_parquet(file)
    for content, name in ((file.getvalue(), "points.parquet"), (table.to_csv(index=False).encode(), "points.csv")):
        found = read(content, name)
        assert found[["x", "y", "z"]].to_numpy().tolist() == [[5, 3, 1.5], [6, 4, 2]]
        assert found["key"].tolist() == ["p1", "p2"]
        assert found["score"].astype(float).tolist() == [0.1, 0.9]


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (b"a,b\n1,2\n", "no-label", "found a, b"),
        (b"seriesuid,coordX,coordY\n1,2,3\n", "label-unknown", "coordZ"),
        (b"x,y,z\n1,2,3\n", "label-unknown", "key or seriesuid"),
        (b"key,x,X,y,z\np,1,1,2,3\n", "label-unknown", "each column once"),
        (b"key,x,y,z,coordX,coordY,coordZ\np,1,2,3,4,5,6\n", "label-unknown", "found x and coordX"),
        (b"seriesuid,coordX,coordY,coordZ,Z\np,1,2,3,4\n", "label-unknown", "found Z and coordZ"),
        (b"key,x,y,z\n", "label-empty", "without rows"),
        (b"key,x,y,z\np,1,2,3\np,1,nan,3\n", "label-damaged", "row 2: expected y"),
        (b"key,x,y,z\np,1,2,inf\n", "label-damaged", "row 1: expected z"),
        (b"key,x,y,z\np,1,2,1e9\n", "label-damaged", "'1e9'"),
        (b"key,x,y,z\np,1,2,\x1b[31mred\n", "label-damaged", r"'\\x1b[31mred'"),
        (b"key,x,y,z\n,1,2,3\n", "label-damaged", "none in row 1"),
        (b"key,x,y,z\np,1,2,3,4,5\np,1\n", "label-damaged", ""),
        (b'key,x,y,z\n"p,1,2,3\n', "label-damaged", "cannot be read as a table"),
        (bytes(range(256)) * 10, "label-damaged", "cannot be read as a table"),
        (b"", "label-damaged", "cannot be read as a table"),
        (b"," * 100_000 + b"\n", "label-too-large", "columns"),
        (b"PAR1" + bytes(100), "label-damaged", "cannot be read as a table"),
        (b"key,x,y,z,diameter_mm\np,1,2,3,big\n", "label-damaged", "a diameter in mm"),
    ],
)
def test_each_fault_has_its_reason(content: bytes, reason: str, words: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(content)
    assert caught.value.reason == reason
    assert words in caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"key": ["p", None]}, "a key in every row, found none in row 2"),
        ({"key": [7.0, None]}, "a key in every row, found none in row 2"),
        ({"seriesuid": [None, "1.2"]}, "a seriesuid in every row, found none in row 1"),
        ({"x": [True, False]}, "row 1: expected x in LPS mm, found 'True'"),
        ({"y": [None, True]}, "row 1: expected y in LPS mm"),
        ({"z": pd.to_datetime([1, 2])}, "row 1: expected z in LPS mm"),
        ({"diameter_mm": [True, False]}, "row 1: expected a diameter in mm, found 'True'"),
    ],
)
def test_parquet_has_no_key_and_no_coordinate_that_csv_has_not(columns: dict[str, Any], words: str) -> None:
    file = io.BytesIO()
    pd.DataFrame({"key": ["p", "q"], "x": [1.0, 2], "y": [1, 2], "z": [1, 2]} | columns).to_parquet(file)
    with pytest.raises(Refusal) as caught:
        read(file.getvalue(), "points.parquet")
    assert caught.value.reason == "label-damaged"
    assert words in caught.value.message


def test_lines_may_end_in_carriage_returns() -> None:
    content = b"key,x,y,z\rp,1,2,3\rp,4,5,6\r"
    assert dskprep.read_labels(content, name="a.csv").points["z"].tolist() == [3, 6]


def test_a_header_of_one_endless_name_is_damage() -> None:
    with pytest.raises(Refusal) as caught:
        dskprep.read_labels(b"key,x,y,z," + b"a" * 200_000 + b"\np,1,2,3,4\n", name="a.csv")
    assert caught.value.reason in ("label-damaged", "label-unknown")

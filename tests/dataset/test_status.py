"""What became of all series of a dataset, in numbers."""

from __future__ import annotations

import dataclasses

import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.dataset.status import Status
from dskprep.errors import UsageError


def test_series_are_counted_by_status_reason_and_warning(place: str) -> None:
    source, target = tiny.write_patients(f"{place}/in", ["p1", "p2"]), f"{place}/out"
    tiny.write(source, {"p3/notes.txt": b"", "p4/1.dcm": b""})
    dskprep.run(source, target)
    found = dskprep.status(target)
    assert found == Status(
        target,
        4,
        {"written": 2, "refused": 2},
        {"refused: no-dicom": 1, "refused: truncated": 1},
        {"lungs-not-found": 2},
        [],
    )
    assert not found.is_clean
    assert found.as_dict() == dataclasses.asdict(found)
    storage.delete(target, ["index.parquet"])  # as after a run that was killed
    assert dskprep.status(target) == found
    assert not storage.exists(f"{target}/index.parquet")


def test_a_dataset_is_clean_if_every_series_is_written_as_a_whole(place: str) -> None:
    dskprep.run(tiny.write_patients(f"{place}/in", ["p1"]), f"{place}/out")
    found = dskprep.status(f"{place}/out")
    assert (found.counts, found.reasons, found.is_clean) == ({"written": 1}, {}, True)
    assert not dataclasses.replace(found, split_series=[["p1", "p2"]]).is_clean
    with pytest.raises(UsageError, match="no dskprep dataset"):
        dskprep.status(f"{place}/in")

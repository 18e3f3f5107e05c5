"""Slices of one SeriesInstanceUID are parted by whose they are; what a header lacks, or makes up, parts nothing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from builders import ct_file, read

from dskprep.dicom.owners import has_strays, owner_of, part_by_owner
from dskprep.dicom.slices import Slice

Whose = tuple[str, str, str]
"""PatientID, StudyInstanceUID, FrameOfReferenceUID of a slice."""

ANNA, BERT = ("A", "1.5.1", "1.6.1"), ("B", "1.5.2", "1.6.2")


def slices_of(whose: Iterable[Whose]) -> list[Slice]:
    """Slices of one series; slice k is named k."""
    plane = np.zeros((2, 2), np.int16)
    names = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")
    files = [
        (str(k), ct_file(plane, SOPInstanceUID=f"1.9.{k}", **dict(zip(names, who, strict=True))))
        for k, who in enumerate(whose)
    ]
    (slices,) = read(files).slices.values()
    return slices


def parted(whose: Iterable[Whose]) -> list[list[int]]:
    return [sorted(int(s.name) for s in part) for part in part_by_owner(slices_of(whose))]


@pytest.mark.parametrize(
    "other",
    [BERT, ("B", "", ""), ("A", "1.5.2", "1.6.1"), ("A", "1.5.1", "1.6.2"), ("", "1.5.2", "1.6.2")],
    ids=["all", "patient", "study", "frame", "no patient"],
)
def test_slices_of_two_owners_are_parted(other: Whose) -> None:
    assert parted([ANNA, other, ANNA, other, ANNA, other, other]) == [[1, 3, 5, 6], [0, 2, 4]]


def test_slices_without_any_identifier_are_of_one_owner() -> None:
    assert parted([("", "", "")] * 5) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("lack", [("", "1.5.1", "1.6.1"), ("A", "", ""), ("A", "1.5.1", ""), ("", "", "")])
def test_a_slice_that_lacks_an_identifier_stays_with_the_others(lack: Whose) -> None:
    assert parted([ANNA, lack, ANNA, lack, lack, ANNA]) == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("lack", [("", "1.5.1", "1.6.1"), ("A", "", ""), ("", "", "1.6.1")])
def test_beside_another_owner_it_goes_with_those_with_which_it_shares_one(lack: Whose) -> None:
    assert parted([ANNA, lack, BERT, ANNA, BERT, BERT, lack]) == [[0, 1, 3, 6], [2, 4, 5]]


def test_beside_two_owners_a_slice_of_nobody_is_neithers() -> None:
    assert parted([ANNA, ANNA, ("", "", ""), BERT, BERT, BERT]) == [[3, 4, 5], [0, 1], [2]]


def test_a_frame_of_reference_of_each_slice_parts_nothing() -> None:
    assert parted([("A", "1.5.1", f"1.6.{k}") for k in range(5)]) == [[0, 1, 2, 3, 4]]


def test_nor_does_one_that_a_few_slices_share_by_chance() -> None:
    assert parted([("A", "1.5.1", f"1.6.{max(0, k - 3)}") for k in range(12)]) == [[*range(12)]]


@pytest.mark.parametrize("stray", [("A", "1.5.2", "1.6.1"), ("A", "1.5.1", "1.6.2")], ids=["study", "frame"])
def test_a_stray_identifier_of_a_slice_does_not_tear_the_series_of_a_patient(stray: Whose) -> None:
    assert parted([ANNA] * 15 + [stray] + [ANNA] * 15) == [[*range(31)]]


def test_a_few_slices_that_say_that_they_are_of_another_day_are_told() -> None:
    other = ("A", "1.5.2", "1.6.2")
    assert has_strays(slices_of([ANNA] * 40 + [other] * 3))
    assert not has_strays(slices_of([ANNA] * 40))
    assert not has_strays(slices_of([ANNA] * 40 + [("A", "1.5.2", "1.6.1"), ("A", "1.5.1", "1.6.2"), ("", "", "")]))
    assert not has_strays(slices_of([("A", f"1.5.{k}", f"1.6.{k}") for k in range(40)]))  # as in LIDC-IDRI
    assert not has_strays(slices_of([ANNA]))


def test_a_series_of_many_studies_of_a_patient_is_parted_into_all_of_them() -> None:
    studies = [("A", f"1.5.{k // 5}", f"1.6.{k // 5}") for k in range(60)]
    assert sorted(parted(studies)) == [[*range(k, k + 5)] for k in range(0, 60, 5)]
    assert sorted(map(len, parted([ANNA] * 60 + [("A", "1.5.2", "1.6.2")] * 5))) == [5, 60]


def test_a_stray_slice_of_another_patient_or_of_one_that_is_not_known_is_parted() -> None:
    assert parted([ANNA] * 15 + [BERT] + [ANNA] * 15) == [[*range(15), *range(16, 31)], [15]]
    nobody, other = ("", "1.5.1", "1.6.1"), ("", "1.5.2", "1.6.2")
    assert parted([nobody] * 15 + [other] * 3) == [[*range(15)], [15, 16, 17]]


def test_it_parts_nothing_beside_another_patient_either() -> None:
    made_up = [("A", "1.5.1", f"1.7.{k}") for k in range(4)]
    assert parted([*made_up, BERT, BERT, BERT]) == [[0, 1, 2, 3], [4, 5, 6]]


def test_the_order_of_the_files_has_no_part_in_it() -> None:
    slices = slices_of([ANNA, BERT, ANNA, BERT, ANNA, BERT])
    found = [[s.identity.patient for s in part] for part in part_by_owner(slices)]
    assert found == [[s.identity.patient for s in part] for part in part_by_owner(slices[::-1])]
    assert found == [["A"] * 3, ["B"] * 3]


def test_an_owner_is_called_by_what_its_slices_say_that_say_it() -> None:
    slices = slices_of([("", "1.5.1", ""), ("", "1.5.1", ""), ANNA])
    assert owner_of(slices)[:5] == ("A", "", "1.5.1", "1.6.1", "")

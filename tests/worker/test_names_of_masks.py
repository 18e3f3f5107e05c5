"""What of the name of a mask's file is that of its patient."""

from __future__ import annotations

import pytest

from dskprep.worker.folder_words import without_folder


@pytest.mark.parametrize(
    ("name", "folders", "left"),
    [
        ("Müller_lung", ["M_ller_J_rg_08c8311b"], "lung"),  # as a key is made of that name
        ("lung Müller, Jörg", ["M_ller__J_rg_08c8311b"], "lung"),
        ("Mu\u0308ller-GTV", ["Muller"], "GTV"),
        ("Garcia GTV", ["GARCÍA"], "GTV"),
        ("김철수_lung", ["김철수"], "lung"),
        ("0012345_GTV-1", ["MRN0012345"], "GTV-1"),
        ("Kim_lung", ["Kim_Lee"], "lung"),
        ("lung of Kim Lee, Kim", ["Kim_Lee"], "lung of"),
        ("Kim_lung_Lee", ["Kim_Lee"], "lung"),
        ("lung_Kim_1970", ["Kim_Lee"], ""),
        ("SegKim", ["Kim"], "SegKim"),  # three letters stand in many words
        ("SegMeyer", ["Meyer"], ""),
        ("lung_left", ["LUNG1-001"], "lung_left"),
        ("lung_left", ["lung"], "lung_left"),
        ("L_lung", ["L_Smith"], "L_lung"),
        ("nodule_2", ["2"], "nodule_2"),
        ("heart", ["p1"], "heart"),
        ("", ["p1"], ""),
        ("___", ["___"], "___"),
        ("heart", [""], "heart"),
    ],
)
def test_a_name_loses_that_of_its_folder_and_nothing_else(name: str, folders: list[str], left: str) -> None:
    assert without_folder(name, folders) == left

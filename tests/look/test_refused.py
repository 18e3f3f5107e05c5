"""A refused series is drawn with its reason: slices at their own places, gaps blank, the whole message to be read."""

from __future__ import annotations

import hashlib
import io
import itertools
import shutil
from pathlib import Path

import builders
import numpy as np
import pytest
import tiny
import volume_builders
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from pydicom.uid import SecondaryCaptureImageStorage

import dskprep
from dskprep.cli import commands
from dskprep.errors import Refusal, UsageError
from dskprep.look import refused, remains, views
from dskprep.look.remains import Trust

AMBER = tuple(int(refused.WARNING[at : at + 2], 16) for at in (1, 3, 5))
GREY = 1024 - 600
"""A stored value in the middle of the lung window."""


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened.convert("RGB")).astype(int)


def is_amber(drawn: np.ndarray) -> np.ndarray:
    return (np.abs(drawn - AMBER) < 3).all(axis=2)


def below_band(png: bytes) -> np.ndarray:
    """Which pixels are amber, below the band across the picture."""
    amber = is_amber(pixels(png))
    band = np.flatnonzero(amber[:, [2, -3]].all(axis=1))
    return amber[band[-1] + 2 :]


def grey(n: int = 12, size: int = 60) -> np.ndarray:
    return np.full((n, size, size), GREY, np.int16)


def folder(path: Path, files: list[builders.File] | dict[str, bytes]) -> Path:
    tiny.write(path, dict(files))
    return path


def show(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, list[str], bytes]:
    """Exit code, what was said, the lines of complaint, and the picture."""
    capsys.readouterr()
    code = commands.run_command(["show", *map(str, words)])
    said = capsys.readouterr()
    path = Path(said.out.strip())
    return code, said.out, said.err.splitlines(), path.read_bytes() if path.is_file() else b""


def test_a_refused_series_is_drawn_and_its_reason_is_one_line_and_the_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = builders.ct_files(grey(), positions_mm=[1.0 * k for k in range(13) if k != 6])
    place, png = folder(tmp_path / "p1", files), tmp_path / "x.png"
    code, out, err, drawn = show(capsys, place, "-o", png)
    assert (code, out.strip()) == (1, str(png))
    assert len(err) == 1
    assert err[0].startswith("dskprep: missing-slices: expected a slice every 1.000 mm, found 1 missing")
    assert pixels(drawn).shape[1] == refused.WIDTH * refused.DPI
    np.testing.assert_array_equal(pixels(dskprep.show(place)), pixels(drawn))
    with pytest.raises(Refusal, match="missing-slices"):
        dskprep.show(place, surface="tissue")


def test_a_gap_is_blank_in_both_cuts_where_it_is_and_nowhere_else(tmp_path: Path) -> None:
    even = folder(tmp_path / "even", builders.ct_files(grey(9, 16), step_mm=1.0))
    gap = folder(tmp_path / "gap", builders.ct_files(grey(9, 16), positions_mm=[0, 1, 2, 3, 4, 5, 6, 9, 10]))
    assert not below_band(dskprep.show(even)).any()  # it is refused as too short
    amber = below_band(dskprep.show(gap))
    third = amber.shape[1] // 3
    for start in (third, 2 * third):
        panel = amber[:, start : start + third]
        rows, columns = np.flatnonzero(panel.any(axis=1)), np.flatnonzero(panel.any(axis=0))
        assert len(rows) == rows[-1] - rows[0] + 1  # one band of them
        assert panel[rows[0] : rows[-1], columns[0] : columns[-1]].all()
    found = remains.read(str(gap))
    assert found is not None
    blank = np.isnan(found.cut(1).array).all(axis=1)
    mm = np.linspace(-0.5, 10.5, len(blank) + 1)[:-1] + 5.5 / len(blank) + found.along_mm[0]
    np.testing.assert_array_equal(blank, (mm > found.along_mm[6] + 0.55) & (mm < found.along_mm[7] - 0.55))


def test_each_slice_lies_at_its_own_place_in_a_cut(tmp_path: Path) -> None:
    """Steps of 1 and of 2 mm, one slice twice: each row holds the value of the nearest slice."""
    mm = [0, 1, 2, 3, 4, 4, 5, 7, 9]
    stored = np.arange(9, dtype=np.int16)[:, None, None] * np.ones((1, 8, 6), np.int16)
    found = remains.read(str(folder(tmp_path / "p", builders.ct_files(stored, positions_mm=mm))))
    assert found is not None
    assert found.step_mm == pytest.approx(1)
    np.testing.assert_allclose(found.repeated_mm - found.along_mm[0], [4])
    for across, width in ((0, 8), (1, 6)):
        cut = found.cut(across)
        assert cut.array.shape[1] == width
        at = cut.low_mm + (np.arange(len(cut.array)) + 0.5) * (cut.high_mm - cut.low_mm) / len(cut.array)
        at -= found.along_mm[0]
        for value, place in enumerate(mm):
            near = np.abs(at - place) < 0.45
            assert near.any()
            assert set((cut.array[near] + 1024).ravel()) <= {value, *(4, 5) * (place == 4)}
        assert np.isnan(cut.array[(np.abs(at - 6) < 0.4) | (np.abs(at - 8) < 0.4)]).all()


def test_slices_that_lie_sideways_are_drawn_sideways(tmp_path: Path) -> None:
    files = builders.ct_files(grey(12, 20), step_mm=1.0, lean=(0, 1.5, 0))
    found = remains.read(str(folder(tmp_path / "p", files)))
    assert found is not None
    upright, sheared = found.cut(1), found.cut(0)
    assert not np.isnan(upright.array).any()
    assert sheared.wide_mm == pytest.approx((20 + 11 * 2) * 0.75)
    first = [np.flatnonzero(~np.isnan(row))[0] for row in sheared.array]
    assert (first[0], first[-1]) == (0, 22)


def test_the_whole_message_can_be_read() -> None:
    """Lines are measured with the font: words that do not fit go to the next line, and long ones are broken."""
    canvas = FigureCanvasAgg(Figure(dpi=refused.DPI))
    measure = refused.measure_with(canvas, refused.MESSAGE)
    width = refused.WIDTH - 2 * refused.MARGIN
    for message in ("iii " * 200, "WWWW " * 99, f"at a/{'W' * 300}.dcm, found $one$ ${'l' * 900}", "a" * 5, ""):
        lines = refused.wrap(message, width, measure)
        assert "".join(lines).replace(" ", "") == message.replace(" ", "")
        assert max(map(measure, lines)) <= width
        assert all(measure(f"{a} {b.split()[0]}") > width for a, b in itertools.pairwise(lines))
        drawn = pixels(refused.draw("key" * 80, "truncated", message, None))
        edge = round(refused.MARGIN * refused.DPI) - 3
        for side in (drawn[:, :edge], drawn[:, -edge:]):
            assert (side == side[:, :1]).all()
    odd = refused.draw("\udcff", "truncated", "caf\udce9 \N{CJK UNIFIED IDEOGRAPH-4E2D} $\\no_math$\n_", None)
    assert pixels(odd).shape[1] == refused.WIDTH * refused.DPI


def test_more_words_make_a_higher_band() -> None:
    few, many = (pixels(refused.draw("k", "truncated", "word " * n, None)) for n in (5, 500))
    heights = [int(is_amber(drawn)[:, 2].sum()) for drawn in (few, many)]
    assert heights[1] > 3 * heights[0]


def localizer(**more: object) -> bytes:
    stored = builders.distinct(30, 40)
    return builders.ct_file(stored, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **more)


@pytest.mark.parametrize(
    ("files", "reason", "is_drawn"),
    [
        ({"a.dcm": localizer()}, "localizer-only", True),
        ({"a.dcm": localizer(RescaleSlope=None, ImagePositionPatient=None)}, "localizer-only", True),
        (
            {"a.dcm": builders.ct_file(builders.distinct(9, 9), ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])},
            "localizer-only",
            False,
        ),
        (
            {"a.dcm": builders.ct_file(builders.distinct(9, 9), SOPClassUID=SecondaryCaptureImageStorage)},
            "not-ct",
            False,
        ),
        ({"a.dcm": b"no DICOM"}, "truncated", False),
        ({"a.dcm": b"\0" * 128 + b"DICM"}, "truncated", False),
        ({"a.dcm": builders.ct_file(builders.distinct(9, 9), PixelData=b"\0\0")}, "truncated", False),
        (
            {"a.dcm": builders.ct_file(np.zeros((9, 9), np.uint8), PhotometricInterpretation="RGB", SamplesPerPixel=3)},
            "not-hu",
            False,
        ),
        (dict(builders.ct_files(builders.distinct(12, 9, 9), RescaleSlope=None)), "not-hu", True),
        (dict(builders.ct_files(builders.distinct(12, 9, 9), RescaleType="US")), "not-hu", True),
        (dict(builders.ct_files(builders.distinct(12, 9, 9), PixelSpacing=None)), "missing-attribute", True),
        (dict(builders.ct_files(builders.distinct(12, 9, 9), positions_mm=[5] * 12)), "too-few-slices", True),
        (dict(builders.ct_files(builders.distinct(1, 9, 9))), "too-few-slices", True),
        ({"a.zip": b"PK\3\4 damaged"}, "bad-archive", False),
    ],
)
def test_there_is_a_picture_whatever_can_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes], reason: str, is_drawn: bool
) -> None:
    place = folder(tmp_path / "p", files)
    code, _, err, png = show(capsys, place, "-o", tmp_path / "x.png")
    assert code == 1
    assert len(err) == 1
    assert err[0].startswith(f"dskprep: {reason}: ")
    drawn = pixels(png)
    height = drawn.shape[0] / refused.DPI
    assert (height > refused.SLOT) == is_drawn
    is_grey = (drawn.max(axis=2) == drawn.min(axis=2)) & (drawn[:, :, 0] > 60) & (drawn[:, :, 0] < 200)
    assert (is_grey.sum() > 20_000) == is_drawn


@pytest.mark.parametrize(
    ("more", "trust"),
    [({}, Trust.HU), ({"RescaleIntercept": None}, Trust.PLACE), ({"ImageOrientationPatient": None}, Trust.NOTHING)],
)
def test_what_a_header_lacks_is_not_made_up(tmp_path: Path, more: dict[str, None], trust: Trust) -> None:
    stored = builders.distinct(4, 9, 7)
    datasets = [builders.ct_dataset(plane, (0, 0, k), **more) for k, plane in enumerate(stored)]
    place = folder(tmp_path / "p", {f"{k}.dcm": builders.saved(ds) for k, ds in enumerate(datasets)})
    found = remains.read(str(place))
    assert found is not None
    assert found.trust == trust
    hu = trust == Trust.HU
    assert found.is_hu == hu
    np.testing.assert_array_equal(found.slices[1], stored[2] - 1024.0 * hu)
    words = " ".join(refused._describe(found))
    assert ("not HU" in words) == (not hu)
    assert ("usual step 1 mm" in words) == (trust != Trust.NOTHING)
    assert ("neither where the slices lie" in words) == (trust == Trust.NOTHING)


def test_enhanced_objects_without_hu_are_drawn_at_their_places(tmp_path: Path) -> None:
    stored = builders.distinct(12, 9, 7)
    places = [(0, 0, 2.0 * k) for k in range(12)]
    content = builders.enhanced_file(stored, places, slopes=[-1.0] * 12)
    found = remains.read(str(folder(tmp_path / "p", {"a.dcm": content})))
    assert found is not None
    assert (found.trust, found.step_mm, found.n_slices) == (Trust.PLACE, 2.0, 12)
    assert refused._describe(found)[0] == "all 12 slices that are there; 9 x 7 pixels"  # one may have been lost


def test_the_largest_group_is_drawn_and_what_does_not_decode_leaves_a_gap(tmp_path: Path) -> None:
    files = dict(builders.ct_files(grey(10, 20), step_mm=1.0))
    files |= {f"s{n}": data for n, data in builders.ct_files(grey(6, 18), step_mm=1.0)}
    files["0004.dcm"] = files["0004.dcm"][:-100]
    found = remains.read(str(folder(tmp_path / "p", files)))
    assert found is not None
    assert (found.plane.shape, len(found.along_mm), found.n_slices) == ((20, 20), 9, 16)
    assert np.isnan(found.cut(0).array).any()
    assert refused._describe(found)[0].startswith("9 of the 16 slices that are there: those that decode, share size")


def test_one_position_from_a_damaged_header_does_not_squeeze_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = builders.ct_files(grey(13), positions_mm=[*np.arange(12) * 0.5, 9e5])
    place = folder(tmp_path / "p", files)
    found = remains.read(str(place))
    assert found is not None
    assert (len(found.along_mm), found.n_slices) == (12, 13)
    assert not np.isnan(found.cut(0).array).any()
    code, _, err, png = show(capsys, place, "-o", tmp_path / "x.png")
    assert (code, err[0].split(":")[1]) == (1, " mixed-geometry")
    assert not below_band(png).any()


def test_a_recipe_that_refuses_what_another_takes_is_drawn_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = grey() + np.arange(60, dtype=np.int16) - 300
    place = folder(tmp_path / "p", builders.ct_files(stored, step_mm=1.0, lean=(0, 0.2, 0)))
    assert show(capsys, place, "-o", tmp_path / "x.png")[0] == 0
    code, _, err, png = show(capsys, place, "--preset", "zuidhof", "-o", tmp_path / "x.png")
    assert (code, len(err)) == (1, 1)
    assert err[0].startswith("dskprep: gantry-tilt: expected no tilt")
    assert below_band(png).any()


def test_a_stack_of_coronal_slices_stands_upright(tmp_path: Path) -> None:
    """The head is bright: it is up in the slice, and the gap stands upright in the sagittal cut."""
    stored = grey(12, 40)
    stored[:, :20] += 500
    mm = [k * 3.0 for k in range(14) if k not in (4, 5)]
    files = builders.ct_files(stored, orientation=builders.CORONAL, positions_mm=mm)
    place = folder(tmp_path / "p", files)
    drawn = pixels(dskprep.show(place))
    top = np.flatnonzero(is_amber(drawn)[:, 2])[-1] + 2
    third = drawn.shape[1] // 3
    slice_ = drawn[top:, 60 : third - 60, 0]
    assert slice_[100:200].mean() > slice_[230:330].mean() + 20
    sagittal = is_amber(drawn[top:, 2 * third :])
    rows, columns = sagittal.any(axis=1).sum(), sagittal.any(axis=0).sum()
    assert rows > 2 * columns > 0


def test_of_several_series_the_largest_that_can_be_written_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tiny.series(1, n=63)
    good = {f"s{name}": data for name, data in tiny.series(2, n=30).items()}
    small = {f"t{name}": data for name, data in tiny.series(3, n=11).items()}
    gap = {name: data for k, (name, data) in enumerate(whole.items()) if k not in (20, 21, 22)}
    place = folder(tmp_path / "p", gap | good | small)
    code, _, err, png = show(capsys, place, "-o", tmp_path / "x.png")
    told = (
        "the largest of 3 series that can be written was taken, with 30 slices; the others have "
        "11, 60 (refused, missing-slices)"
    )
    assert (code, err) == (0, [f"note: {told}"])
    assert not is_amber(pixels(png)).all(axis=1).any()
    shown = views.draw(place)
    assert (shown.key, shown.note, shown.refusal) == ("p", told, "")


def test_a_series_whose_pixels_do_not_decode_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = dict(builders.ct_files(grey(20), step_mm=1.0, SeriesInstanceUID="1.2.9", BitsStored=12, HighBit=15))
    good = {f"s{name}": data for name, data in tiny.series(2, n=15).items()}
    code, _, err, _ = show(capsys, folder(tmp_path / "p", damaged | good), "-o", tmp_path / "x.png")
    assert code == 0
    assert err[0].endswith("with 15 slices; the others have 20 (refused, undecodable-pixels)")


def test_of_series_that_are_all_refused_the_largest_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{uid}{name}": data for uid in (1, 2, 3) for name, data in tiny.series(uid, n=2 + uid % 3).items()}
    code, _, err, _ = show(capsys, folder(tmp_path / "p", files), "-o", tmp_path / "x.png")
    assert code == 1
    assert err == [
        "note: none of 3 series can be written; the largest was taken, with 4 slices; the others have "
        "3 (refused, too-few-slices), 2 (refused, too-few-slices)",
        "dskprep: too-few-slices: expected at least 10 slice positions, found 4 in 4 slices",
    ]


def test_many_further_series_are_not_all_named(tmp_path: Path) -> None:
    files = {f"{uid}{name}": data for uid in range(9) for name, data in tiny.series(uid, n=10).items()}
    shown = views.draw(folder(tmp_path / "p", files))
    assert shown.note.endswith("the others have 10, 10, 10, 10, 10, and 3 more series")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A dataset of p1, written; p2, whose two series are refused; p3, that holds no CT."""
    tiny.write_patients(tmp_path / "in", ["p1"])
    few = tiny.series(4, n=4) | {f"s{name}": data for name, data in tiny.series(5, n=6).items()}
    tiny.write(tmp_path / "in/p2", few)
    tiny.write(tmp_path / "in/p3", {"notes.txt": b""})
    dskprep.run(tmp_path / "in", tmp_path / "out")
    return tmp_path / "out"


def test_a_key_that_was_refused_is_drawn_from_its_source(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = dskprep.open_dataset(target).index
    heights = {}
    for row in index[index["status"] == "refused"].to_dict("records"):
        code, _, err, png = show(capsys, target, row["key"], "-o", tmp_path / "x.png")
        assert code == 1
        assert err == [f"dskprep: {row['reason']}: {row['message']}"]
        np.testing.assert_array_equal(pixels(dskprep.show(target, row["key"])), pixels(png))
        heights[row["key"]] = pixels(png).shape[0] / refused.DPI
    assert heights.pop("p3") < 2
    assert len(heights) == 2
    assert min(heights.values()) > refused.SLOT
    with pytest.raises(UsageError, match="p2: was refused, too-few-slices"):
        dskprep.show(target, "p2", surface="tissue")


def band_colour(png: bytes) -> tuple[int, ...]:
    """The colour at both ends of the band, below the title."""
    drawn = pixels(png)
    rows = (drawn[:, 2] != 255).any(axis=1) & (drawn[:, 2] == drawn[:, -3]).all(axis=1)
    return tuple(drawn[np.flatnonzero(rows)[1], 2])


def is_calm(colour: tuple[int, ...]) -> bool:
    """No warning: all but without a hue."""
    return max(colour) - min(colour) < 40


def test_a_series_that_another_was_chosen_for_is_set_aside_and_nothing_is_wrong_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"StudyInstanceUID": "1.2.9", "PatientID": "P"}
    for name, thickness in (("thick", "5"), ("thin", "1")):
        tiny.write(tmp_path / "in" / name, tiny.series(int(thickness), SliceThickness=thickness, **said))
    chosen = dskprep.PrepConfig(lungs=False, check_hu=False, select={"prefer": ["thickness<=1.5"]})
    dskprep.run(tmp_path / "in", tmp_path / "out", settings=chosen)
    words = words_of_pictures(monkeypatch)
    code, out, err, png = show(capsys, tmp_path / "out", "thick", "-o", tmp_path / "x.png")
    assert (code, out.strip()) == (0, str(tmp_path / "x.png"))
    assert len(err) == 1
    assert err[0].startswith("note: set aside: not-chosen: ")
    assert "set aside: not-chosen" in words
    assert not any("refused" in word for word in words)
    assert is_calm(band_colour(png))
    assert pixels(png).shape[0] / refused.DPI > refused.SLOT  # its slices are drawn


@pytest.mark.parametrize("is_file", [True, False])
def test_a_volume_file_that_is_no_image_is_set_aside(
    tmp_path: Path, is_file: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chest = volume_builders.chest()
    mask = (chest.array < -500).astype(np.uint8)
    place = folder(tmp_path / "p", volume_builders.files(chest, ".nii", mask))
    words = words_of_pictures(monkeypatch)
    code, _, err, png = show(capsys, next(place.iterdir()) if is_file else place, "-o", tmp_path / "x.png")
    assert (code, len(err)) == (0, 1)
    assert err[0].startswith("note: set aside: no-image: ")
    assert "set aside: no-image" in words
    assert is_calm(band_colour(png))


def words_of_pictures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that are written into figures from now on."""
    words: list[str] = []
    write = Figure.text

    def text(figure: Figure, x: float, y: float, line: str, **style: object) -> object:
        words.append(line)
        return write(figure, x, y, line, **style)

    monkeypatch.setattr(Figure, "text", text)
    return words


def test_the_band_of_a_refused_series_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of_pictures(monkeypatch)
    png = dskprep.show(folder(tmp_path / "p", tiny.series(n=4)))
    assert "refused: too-few-slices" in words
    assert band_colour(png) == AMBER


def test_a_key_whose_source_is_gone_has_the_reason_alone(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "in/p2")
    code, _, err, png = show(capsys, target, "p2", "-o", tmp_path / "x.png")
    assert code == 1
    assert len(err) == 1
    assert pixels(png).shape[0] / refused.DPI < 2
    tiny.write(tmp_path / "in/p2", tiny.series(7))  # another series
    assert pixels(dskprep.show(target, "p2")).shape[0] / refused.DPI < 2


def test_the_series_of_a_digest_is_read_and_no_other(tmp_path: Path) -> None:
    files = tiny.series(1, n=4) | {f"s{name}": data for name, data in tiny.series(2, n=3).items()}
    place = str(folder(tmp_path / "p", files))
    counts = []
    for uid in ("1.2.3.1", "1.2.3.2", "1.2.3.9", None):
        found = remains.read(place, uid and hashlib.sha256(uid.encode()).hexdigest()[:12])
        counts.append(found and len(found.along_mm))
    assert counts == [4, 3, None, 4]


def test_a_dead_link_costs_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder(tmp_path / "p", tiny.series())
    (place / "x.dcm").symlink_to("absent")
    code, _, err, png = show(capsys, place, "-o", tmp_path / "x.png")
    assert code == 1
    assert "a link that leads nowhere" in err[0]
    assert pixels(png).shape[0] / refused.DPI > refused.SLOT
    found = remains.read(str(place))
    assert found is not None
    assert len(found.along_mm) == tiny.N_SLICES
    assert any("reading ended before the last file: truncated: x.dcm" in line for line in refused._describe(found))
    (place / "A.dcm").symlink_to("absent")  # comes before all others
    with pytest.raises(Refusal, match=r"A\.dcm: expected a file"):
        remains.read(str(place))
    assert pixels(dskprep.show(place)).shape[0] / refused.DPI < 2

"""Pictures: planes that fill their panel, words that are the record's, surfaces lit from the right side."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import dskprep
from dskprep import settings as config
from dskprep.cli import commands
from dskprep.errors import UsageError
from dskprep.look import picture, surface, views
from dskprep.look.picture import View
from dskprep.preparation.prepared import Prepared
from dskprep.reading import dataset
from dskprep.source.found import find_series
from dskprep.volume import Volume

RECORD = {
    "source": {
        "slices": 133,
        "rows": 512,
        "columns": 512,
        "step_mm": 2.5,
        "row_spacing_mm": 0.703125,
        "column_spacing_mm": 0.703125,
        "manufacturer": "GE",
        "model": "LightSpeed",
        "kernel": "LUNG",
        "kvp": "120",
        "contrast": "yes",
        "tilt_degrees": 12.0,
    },
    "geometry": {"shape": [332, 360, 360]},
    "lungs": {
        "right_ml": 1986.4,
        "left_ml": 1768.0,
        "mean_hu": -825.2,
        "missing_ml": 210.4,
        "missing_place": "right lower",
    },
    "warnings": ["lung-missing"],
}


def volume(array: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> Volume:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*spacing, 1)
    return Volume(array, affine)


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened.convert("RGB")).astype(int)


def balls(radius: float = 20) -> np.ndarray:
    """uint8 (z, y, x): a ball on each side, the patient's right one 1, the left one 2."""
    z, y, x = np.ogrid[:60, :120, :120]
    right = (z - 30) ** 2 + (y - 60) ** 2 + (x - 30) ** 2 < radius**2
    left = (z - 30) ** 2 + (y - 60) ** 2 + (x - 90) ** 2 < radius**2
    return (right + 2 * left).astype(np.uint8)


def test_the_record_in_words() -> None:
    record = tiny.record("p", **RECORD)
    assert picture.in_words(record.source, record.geometry, record.lungs, record.warnings) == [
        "133 slices of 512 x 512, every 2.5 mm, pixels of 0.703 mm",
        "GE LightSpeed, kernel LUNG, 120 kV, with contrast",
        "gantry tilted by 12.0 degrees",
        "332 x 360 x 360 voxels of 1 x 1 x 1 mm (z, y, x)",
        "right lung 1986 ml, left lung 1768 ml, mean -825 HU",
        "missing lung: about 210 ml, right lower",
        "lung-missing: a part of a lung that should be there was not found",
    ]
    assert picture.in_words() == []


def test_lines_break_between_phrases_and_within_long_ones_only() -> None:
    phrases = ["100 slices of 320 x 320", "120 kV", "right lung 1986 ml, left lung 1769 ml", "localizer-skipped"] * 3
    lines = picture.in_lines([*phrases, "a warning of many words, " * 20])
    spaced = [line.replace(picture.NO_BREAK, " ") for line in lines]
    found = [phrase.strip() for line in spaced for phrase in line.split("|")]
    assert found[: len(phrases)] == phrases
    assert len(lines) > 2
    assert max(map(len, lines)) <= picture.LINE
    assert " ".join(found[len(phrases) :]).split() == ("a warning of many words, " * 20).split()


@pytest.mark.parametrize("shape", [(120, 6, 100), (6, 120, 100), (120, 100, 6)])
def test_a_flat_volume_fills_the_panel_that_faces_it(shape: tuple[int, int, int]) -> None:
    """One plane of three is large, and is drawn large; the others are lines."""
    view = View("flat", volume(np.full(shape, 1000, np.int16)), None, [])
    drawn = pixels(picture.draw("", view))
    white = (drawn[30:420, :1200] > 250).all(axis=2)
    black = (drawn[30:420, :1200] < 5).all(axis=2)
    assert black.sum() > 120_000  # of the two flat planes
    side = 300
    bright = [white[60:330, start : start + side].mean() for start in (20, 420, 820)]
    assert max(bright) > 0.8


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 300, 4), (12, 24, 24)])
def test_any_shape_can_be_drawn_with_any_mask(shape: tuple[int, int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[0, 0, 0] = 1
    view = View("$odd$", volume(np.zeros(shape, np.int16)), mask, ["a $price$ in words"])
    assert pixels(picture.draw("$t", view, view)).shape[1] == 1600
    assert pixels(picture.draw_surface("t", view, "lungs")).shape[1] == 1200
    assert pixels(picture.draw_surface("t", view, "bone")).shape[1] == 1200


def test_a_volume_of_other_values_is_shown_in_hu_if_it_tells_them_and_has_no_bone_if_not() -> None:
    hu = np.full((20, 20, 20), -300, np.int16)
    normalized = (hu.astype(np.float32) + 1000) / 1400 - 0.25
    shown = picture.of_prepared(Prepared(volume(normalized), None, values="normalized"))
    np.testing.assert_allclose(shown.volume.array, hu, atol=1)
    own = picture.of_prepared(Prepared(volume(normalized), None, values="own"))
    assert pixels(picture.draw("own", own)).shape[1] == 1600
    with pytest.raises(UsageError, match="holds no HU"):
        picture.draw_surface("own", own, "bone")


def test_two_views_show_the_same_place_of_the_patient() -> None:
    """A bright plane lies at the middle of the lungs: both rows cut it, at their own index."""
    fine = np.full((80, 80, 80), -1000, np.int16)
    fine[40:44] = 1000
    mask = np.zeros(fine.shape, np.uint8)
    mask[30:54, 20:60, 20:60] = 1
    coarse = volume(fine[::4].copy(), (4, 1, 1))
    drawn = pixels(picture.draw("", View("coarse", coarse, None, []), View("fine", volume(fine), mask, [])))
    height = drawn.shape[0] // 2
    for row in (0, 1):
        axial = drawn[row * height + 150 : row * height + 250, 100:250]
        assert (axial.min(axis=2) > 200).mean() > 0.7


def test_a_ball_is_round_and_lit_from_over_the_left_shoulder() -> None:
    mask = (balls() == 1).astype(np.uint8)
    drawn = surface.draw(surface.of_mask(volume(mask)), 0)
    lit = drawn.any(axis=2)
    assert lit.sum() * surface.PIXEL_MM**2 == pytest.approx(np.pi * 20**2, rel=0.05)
    rows, columns = np.nonzero(lit)
    middle = round(rows.mean()), round(columns.mean())
    reach = round(12 / surface.PIXEL_MM)
    brightness = drawn.sum(axis=2)
    upper_left, lower_right = (brightness[middle[0] + s * reach, middle[1] + s * reach] for s in (-1, 1))
    assert upper_left > 1.5 * lower_right > 0


def test_the_right_lung_is_on_the_left_and_the_left_comes_to_the_front_when_turned() -> None:
    front = surface.draw(surface.of_mask(volume(balls())), 0)
    blue, orange = front[:, :, 2] > front[:, :, 0], front[:, :, 0] > front[:, :, 2]
    assert np.nonzero(blue)[1].max() < np.nonzero(orange)[1].min()
    turned = surface.draw(surface.of_mask(volume(balls())), 90)
    assert (turned[:, :, 0] > turned[:, :, 2]).sum() > 100  # the left one hides the right one
    assert (turned[:, :, 2] > turned[:, :, 0]).sum() == 0


def test_bone_is_what_is_above_its_level_and_tissue_hides_it() -> None:
    array = np.full((60, 120, 120), -1000, np.int16)
    array[balls(28) > 0] = 50
    array[balls(10) > 0] = 900
    areas = {
        kind: surface.draw(surface.of_hu(volume(array), kind), 0).any(axis=2).sum() * surface.PIXEL_MM**2
        for kind in ("tissue", "bone")
    }
    assert areas["bone"] == pytest.approx(2 * np.pi * 10**2, rel=0.15)
    assert areas["tissue"] == pytest.approx(2 * np.pi * 28**2, rel=0.06)


def test_show_draws_a_source_as_the_settings_ask(tmp_path: Path) -> None:
    tiny.write_patients(tmp_path / "in", ["p1"])
    plain, fine = config.PrepConfig(), config.PrepConfig(spacing_mm=(0.5, 0.5, 0.5), lungs=False)
    for settings, spacing in ((plain, 1.0), (fine, 0.5), (config.preset("zuidhof"), 1.0)):
        url = str(tmp_path / "in/p1")
        acquired, written = views.views_of_source(url, find_series(url, settings)[0], settings)
        np.testing.assert_array_equal(acquired.volume.array, tiny.hu())
        assert written.volume.spacing == pytest.approx((spacing,) * 3)
        assert (written.mask is None) == (settings is fine)


def test_show_draws_the_series_that_a_volume_was_made_from(tmp_path: Path) -> None:
    small = {f"s{name}": data for name, data in tiny.series(1, n=10, series_uid="1.2.9").items()}
    tiny.write(tmp_path / "in/p1", tiny.series() | small)
    target = str(tmp_path / "out")
    assert commands.run_command(["run", str(tmp_path / "in"), target, "--scheduler", "sync"]) == 0
    n_slices = {}
    for key in dataset.open_dataset(target):
        acquired, written = views.views_of_stored(target, key, with_source=True)
        n_slices[key] = acquired.volume.shape[0]
        np.testing.assert_array_equal(acquired.volume.array, written.volume.array)
    assert n_slices.pop("p1") == tiny.N_SLICES
    assert list(n_slices.values()) == [10]


def test_show_draws_a_source_before_any_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    tiny.write(tmp_path / "in", {"p3/notes.txt": b""})
    png = tmp_path / "p1.png"
    assert commands.run_command(["show", str(tmp_path / "in/p1"), "-o", str(png)]) == 0
    two_rows = pixels(png.read_bytes()).shape[0]
    assert commands.run_command(["run", str(tmp_path / "in"), str(tmp_path / "out"), "--scheduler", "sync"]) == 1
    assert commands.run_command(["show", str(tmp_path / "out"), "p1", "-o", str(png)]) == 0
    assert pixels(png.read_bytes()).shape[0] < two_rows
    assert commands.run_command(["show", str(tmp_path / "out"), "p1", "--source", "-o", str(png)]) == 0
    assert pixels(png.read_bytes()).shape[0] == two_rows
    assert commands.run_command(["show", str(tmp_path / "out"), "p1", "--3d", "bone", "-o", str(png)]) == 0
    broken = tmp_path / "broken.toml"
    broken.write_text('steps = ["own_steps:broken"]')
    capsys.readouterr()
    for words, problem in (
        (["show", str(tmp_path / "in")], "expected one folder or archive of DICOM files, or one volume, found several"),
        (["show", str(tmp_path / "out")], "is a dataset; name the KEY"),
        (["show", str(tmp_path / "nowhere")], "there is no such folder"),
        (["show", str(tmp_path / "in/p1"), "--config", str(broken)], "own_steps:broken: ValueError: not today"),
        (["compare", "default", str(broken), "--series", str(tmp_path / "in/p1")], "ValueError: not today"),
        (
            ["compare", "default", "zuidhof", "--series", str(tmp_path / "in")],
            "of DICOM files, or one volume, found several",
        ),
        (["compare", "default", "zuidhof", "--series", str(tmp_path / "in/p1"), "--only", "p*"], "--only chooses"),
        (["show", str(tmp_path / "out"), "p1", "--preset", "zuidhof"], "--preset and --config are for PLACE alone"),
        (["show", str(tmp_path / "out"), "p1", "--config", str(broken)], "--preset and --config are for PLACE alone"),
        (["show", str(tmp_path / "in/p1"), "--preset", "zuidhof", "--config", str(broken)], "not both"),
        (["show", str(tmp_path / "in/p1"), "--source"], "--source is for the planes of a volume KEY"),
        (["show", str(tmp_path / "out"), "p1", "--source", "--3d", "bone"], "--source is for the planes"),
    ):
        assert commands.run_command(words) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.slow
def test_show_returns_what_the_command_writes(tmp_path: Path) -> None:
    tiny.write_patients(tmp_path / "in", ["p1"])
    target, png = tmp_path / "out", tmp_path / "p1.png"
    dskprep.run(tmp_path / "in", target)
    for words, drawn in (
        ([target, "p1"], dskprep.show(target, "p1")),
        ([target, "p1", "--source"], dskprep.show(target, "p1", with_source=True)),
        ([target, "p1", "--3d", "tissue"], dskprep.show(target, "p1", surface="tissue")),
        ([tmp_path / "in/p1"], dskprep.show(tmp_path / "in/p1")),
        (
            [tmp_path / "in/p1", "--preset", "zuidhof"],
            dskprep.show(tmp_path / "in/p1", settings=config.preset("zuidhof")),
        ),
    ):
        assert commands.run_command(["show", *map(str, words), "-o", str(png)]) == 0
        np.testing.assert_array_equal(pixels(png.read_bytes()), pixels(drawn))


def test_what_does_not_go_together_is_wrong_use(tmp_path: Path) -> None:
    tiny.write_patients(tmp_path / "in", ["p1"])
    dskprep.run(tmp_path / "in", tmp_path / "out")
    for words, more, problem in (
        (("out", "p1"), {"settings": config.PrepConfig()}, "settings are for DICOM files"),
        (("in/p1",), {"with_source": True}, "with_source is for the planes"),
        (("out", "p1"), {"with_source": True, "surface": "bone"}, "with_source is for the planes"),
        (("out", "p1"), {"surface": "skin"}, "surface must be one of lungs, bone, tissue, not 'skin'"),
        (("out",), {}, "is a dataset; name the KEY"),
    ):
        with pytest.raises(UsageError, match=problem):
            dskprep.show(tmp_path / words[0], *words[1:], **more)

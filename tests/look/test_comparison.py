"""Two preparations of one patient are compared on one grid, in mm and HU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from scipy import ndimage

from dskprep.cli import commands
from dskprep.errors import UsageError
from dskprep.look import comparison, side_by_side
from dskprep.look.comparison import Preparation
from dskprep.look.label_comparison import sample
from dskprep.look.panels import OUTLINES
from dskprep.pipeline import run
from dskprep.reading import dataset
from dskprep.settings import PrepConfig
from dskprep.volume import Volume

PNG = b"\x89PNG"


def affine_of(first: tuple[float, float, float] = (0, 0, 0), spacing_mm: float = 1.0) -> NDArray[np.float64]:
    """Place of the first voxel (z, y, x) and the spacing, in LPS mm."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = first[::-1]
    return affine


def preparation(
    array: Any, affine: NDArray[np.float64] | None = None, *, values: str = "HU", lungs: Any = None
) -> Preparation:
    return Preparation(Volume(np.asarray(array), affine_of() if affine is None else affine), values, lungs)


@pytest.fixture
def hu() -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(-1000, 400, (8, 9, 10)).astype(np.int16)


def test_a_patient_is_like_itself(hu: NDArray[np.int16]) -> None:
    lungs = (hu < -600).astype(np.uint8)
    found = comparison.compare_preparations(
        preparation(hu, lungs=lungs), preparation(hu, lungs=lungs), key="p1"
    ).difference
    assert (found.mean_hu, found.rare_hu, found.max_hu) == (0, 0, 0)
    assert (found.dice, found.lungs_ml, found.index_mm, found.overlap) == (1, 0, 0, 1)
    assert found.key == "p1"
    assert found.as_line().split()[5] == "-"  # nothing is largest
    assert found.as_line().endswith("  p1")  # no spacings, as they are the same


def test_a_difference_is_measured_and_found_in_the_patient(hu: NDArray[np.int16]) -> None:
    other = hu.copy()
    other[2, 3, 4] += 100
    other[5] += 1
    affine = affine_of((10, 20, 30), 2.0)
    found = comparison.compare_preparations(preparation(hu, affine), preparation(other, affine)).difference
    assert found.max_hu == 100
    assert found.max_at_mm == (30 + 2 * 4, 20 + 2 * 3, 10 + 2 * 2)
    assert found.mean_hu == pytest.approx((100 + 90) / hu.size)
    apart = comparison.compare_preparations(preparation(hu), preparation(hu, affine), key="p1").difference
    assert apart.as_line().endswith("  p1 (1.0000/2.0000 1.0000/2.0000 1.0000/2.0000 mm)")
    assert (found.dice, found.lungs_ml) == (None, None)


def test_grids_are_compared_by_place_not_by_index(hu: NDArray[np.int16]) -> None:
    lungs = (hu < -600).astype(np.uint8)
    part = preparation(hu[2:, 1:-1, 3:], affine_of((2, 1, 3)), lungs=lungs[2:, 1:-1, 3:])
    found = comparison.compare_preparations(preparation(hu, lungs=lungs), part).difference
    assert (found.max_hu, found.shapes) == (0, ((8, 9, 10), (6, 7, 7)))
    assert found.overlap == pytest.approx(6 * 7 * 7 / hu.size)
    assert found.index_mm == pytest.approx(np.sqrt(2**2 + 1**2 + 3**2))
    outside = np.count_nonzero(lungs) - np.count_nonzero(lungs[2:, 1:-1, 3:])
    assert found.lungs_ml == pytest.approx(-outside / 1000)
    inside = np.count_nonzero(lungs[2:, 1:-1, 3:])
    assert found.dice == pytest.approx(2 * inside / (2 * inside + outside))


def test_a_flipped_array_with_its_affine_is_the_same_patient(hu: NDArray[np.int16]) -> None:
    affine = affine_of()
    affine[:, 1] *= -1
    affine[1, 3] = hu.shape[1] - 1
    found = comparison.compare_preparations(preparation(hu), preparation(hu[:, ::-1], affine)).difference
    assert (found.max_hu, found.overlap) == (0, 1)
    assert found.index_mm == hu.shape[1] - 1


def test_a_ramp_on_another_spacing_is_the_same_ramp() -> None:
    ramp = np.broadcast_to(np.arange(0, 100, 10), (4, 4, 10)).astype(np.int16)
    fine = np.broadcast_to(np.arange(0, 91, 5), (7, 7, 19)).astype(np.int16)
    found = comparison.compare_preparations(preparation(ramp), preparation(fine, affine_of(spacing_mm=0.5))).difference
    assert found.max_hu == pytest.approx(0, abs=1e-3)
    assert found.overlap == 1


def test_other_values_are_brought_to_hu(hu: NDArray[np.int16]) -> None:
    beyond = hu.copy()
    beyond[0] = 2000  # both beyond what normalized values tell
    normalized = np.clip((beyond + 1000) / 1400, 0, 1) - 0.25
    assert (
        comparison.compare_preparations(
            preparation(beyond), preparation(normalized, values="normalized")
        ).difference.max_hu
        < 0.01
    )
    grey = (np.clip((hu + 1200) / 1800, 0, 1) * 255).astype(np.uint8)
    grey[3] = 170  # painted over
    found = comparison.compare_preparations(preparation(hu), preparation(grey, values="uint8")).difference
    assert found.max_hu is not None
    assert 0 < found.max_hu <= 1800 / 255
    own = comparison.compare_preparations(preparation(hu), preparation(hu.astype(np.float32), values="own")).difference
    assert (own.mean_hu, own.max_hu, own.max_at_mm) == (None, None, None)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A source and two datasets of it, which share one patient."""
    folder = tmp_path_factory.mktemp("compare")
    tiny.write_patients(folder / "in", ["p1", "p2"])
    settings = PrepConfig(recipe="luo-2017", dtype="float32")
    run.run(str(folder / "in"), str(folder / "a"))
    run.run(str(folder / "in"), str(folder / "b"), settings=settings, only="p2")
    return str(folder / "in"), str(folder / "a"), str(folder / "b")


def test_datasets_are_compared_patient_by_patient(
    places: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, a, b = places
    assert commands.run_command(["compare", a, b, "--json", "--pictures", str(tmp_path / "pictures")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["key"], found["shapes"]) == ("p2", [[12, 24, 24]] * 2)
    assert found["max_hu"] < 0.1  # voxels of 1 mm already, so nothing is resampled
    assert (tmp_path / "pictures/p2.png").read_bytes().startswith(PNG)
    assert commands.run_command(["compare", a, b]) == 0
    header, line, *legend = capsys.readouterr().out.splitlines()
    assert len(header.split("patient")[0]) == line.index("p2")
    for column in ("index mm", "overlap", "mean", "99.9 %", "max HU", "at x,y,z mm", "Dice", "ml"):
        assert column in header
        assert column in "\n".join(legend)


def test_a_series_is_compared_under_two_presets(
    places: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "coarse.toml").write_text("spacing_mm = [2, 2, 2]\n")
    words = ["default", str(tmp_path / "coarse.toml"), "--series", f"{places[0]}/p1", "--json"]
    assert commands.run_command(["compare", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shapes"] == [[12, 24, 24], [6, 12, 12]]
    assert commands.run_command(["compare", "default", "grt123", "--series", f"{places[0]}/p1"]) == 1
    assert "no-lungs" in capsys.readouterr().err


def test_datasets_without_a_common_patient_say_so(places: tuple[str, str, str]) -> None:
    _, a, b = places
    with pytest.raises(UsageError, match=r"no patient that matches 'p1' .* \(2 are\)"):
        comparison.compare(a, b, "p1")


def test_a_picture_needs_hu(hu: NDArray[np.int16]) -> None:
    with pytest.raises(UsageError, match="only images that hold HU"):
        side_by_side.draw_comparison(
            comparison.compare_preparations(preparation(hu), preparation(hu, values="own")), ("a", "b")
        )


def test_datasets_of_one_name_are_drawn_side_by_side(hu: NDArray[np.int16]) -> None:
    compared = comparison.compare_preparations(preparation(hu), preparation(hu))
    assert side_by_side.draw_comparison(compared, ("scans", "scans")).startswith(PNG)


def test_a_picture_shows_planes_that_both_images_cover_and_says_where_they_are(hu: NDArray[np.int16]) -> None:
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[0] = lungs[:, 0] = 1  # where the second image is not
    lungs[5, 3:5, 4:6] = 1
    lungs[4:6, 6, 4:7] = 1
    second = preparation(hu[2:, 2:], affine_of((14, 24, 30), 2.0), lungs=np.zeros_like(lungs[2:, 2:]))
    compared = comparison.compare_preparations(preparation(hu, affine_of((10, 20, 30), 2.0), lungs=lungs), second)
    assert side_by_side.planes(compared) == (5, 6)
    figure = side_by_side.figure_of(compared, ("scans", "scans"))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == ["A: scans\naxial plane at z = 20 mm", "B: scans\naxial plane at z = 20 mm"]
    assert titles[3].endswith("coronal plane at y = 32 mm")
    assert np.isnan(np.asarray(figure.axes[1].images[0].get_array().filled(np.nan), np.float64)[:2]).all()
    legend = [line.get_text() for line in figure.legends[0].get_texts()]
    assert legend == ["lungs of A: scans", "lungs of B: scans (over those of A)"]
    assert not {*side_by_side.COLOURS} & {*OUTLINES.values()}  # those of the right and the left lung


def test_a_picture_of_equals_goes_through_the_middle_of_the_lungs(hu: NDArray[np.int16]) -> None:
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[4:7, 2:5, 3:6] = 1
    compared = comparison.compare_preparations(preparation(hu, lungs=lungs), preparation(hu, lungs=lungs))
    assert side_by_side.planes(compared) == (5, 3)


def test_stored_volumes_are_what_was_written(places: tuple[str, str, str]) -> None:
    stored = dataset.open_dataset(places[1])["p1"]
    np.testing.assert_array_equal(stored.load().array, tiny.hu(0))


@pytest.mark.parametrize("shape", [(5, 6, 7), (4, 8, 7), (7, 3, 9)])
def test_an_array_on_the_same_grid_is_as_scipy_samples_it(shape: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    for order in (0, 1):
        expected = ndimage.affine_transform(array, np.eye(3), 0.0, shape, order=order, mode="grid-constant")
        assert np.array_equal(sample(array, np.eye(4), shape, order), expected)
        again = sample(array, np.diag([1.0, 1.0, 1.0 + 1e-12, 1.0]), shape, order)
        assert np.array_equal(again, expected)

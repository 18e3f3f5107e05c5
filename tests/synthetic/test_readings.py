"""The readings of a phantom are where its nodules are, and read as the real ones do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dskprep
from dskprep.settings import PrepConfig
from dskprep.synthetic import scanner
from dskprep.synthetic.phantom import make_phantom


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_nodule_is_where_the_phantom_says(seed: int) -> None:
    phantom = make_phantom(seed=seed, spacing_mm=(2.0, 1.5, 1.5), shape=(150, 230, 230))
    assert 2 <= len(phantom.nodules) <= 5
    volume = phantom.volume
    for nodule in phantom.nodules:
        z, y, x = np.rint(volume.to_index(nodule.center_mm)).astype(int)
        assert phantom.lungs.array[z, y, x] > 0
        middle = volume.array[z, y - 1 : y + 2, x - 1 : x + 2].mean()
        assert middle > -700  # parenchyma is about -860
    assert all(2.0 < nodule.radius_mm < 11.0 for nodule in phantom.nodules)


def test_readers_outline_what_the_image_shows(tmp_path: Path) -> None:
    spacing, shape = (2.0, 1.5, 1.5), (150, 230, 230)
    where = {"seed": 3, "spacing_mm": spacing, "shape": shape, "broken": False}
    scanner.write_patients(str(tmp_path / "in"), 1, readings_url=str(tmp_path / "readings"), **where)
    dskprep.run(tmp_path / "in", tmp_path / "out", settings=PrepConfig(lungs=False))
    summary = dskprep.annotate(tmp_path / "out", tmp_path / "readings")
    phantom = make_phantom(seed=3, spacing_mm=spacing, shape=shape)
    assert (summary.exit_code, summary.counts) == (0, {"written": 1})
    volume = dskprep.open_dataset(tmp_path / "out")["phantom-000"]
    found = {n: about for n, about in volume.labels.about.items() if "reader" not in n}
    assert len(found) == len(phantom.nodules)
    for nodule in phantom.nodules:
        apart = {n: np.linalg.norm(np.subtract(a.centroid_mm, nodule.center_mm)) for n, a in found.items()}
        nearest = min(apart, key=lambda name: apart[name])
        assert apart[nearest] < 2.0
        ball_ml = 4 / 3 * np.pi * nodule.radius_mm**3 / 1000
        assert found[nearest].ml == pytest.approx(ball_ml, rel=0.5)
        mask = volume.load(nearest).array > 0
        assert volume.load().array[mask].mean() > -700
    assert set(volume.points["malignancy"].dropna()) <= {1, 2, 3, 4, 5}

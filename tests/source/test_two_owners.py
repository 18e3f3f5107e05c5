"""One SeriesInstanceUID, or none, over two patients: each has a volume of its own voxels, and nobody is lost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tiny

import dskprep
from dskprep.source.found import find_series, made_of, read_series

NO_UID = ""


def of(seed: int, patient: str, *, uid: str = "1.2.9", **more: Any) -> dict[str, bytes]:
    own = {"PatientID": patient, "StudyInstanceUID": f"1.5.{seed}", "FrameOfReferenceUID": f"1.6.{seed}"}
    files = tiny.series(seed, series_uid=uid, **own | more)
    return {f"{seed}-{name}": content for name, content in files.items()}


def moved(files: dict[str, bytes], by_mm: float) -> dict[str, bytes]:
    """The files, each `by_mm` further to the head."""
    found = {}
    for name, content in files.items():
        ds = pydicom.dcmread(io.BytesIO(content))
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, float(z) + by_mm]
        file = io.BytesIO()
        ds.save_as(file)
        found[name] = file.getvalue()
    return found


def run(source: Path, target: Path, **settings: Any) -> dskprep.Dataset:
    dskprep.run(source, target, settings=dskprep.PrepConfig(check_hu=False, lungs=False, **settings), at_end=())
    return dskprep.open_dataset(target)


def test_slices_of_another_day_at_the_end_of_a_series_are_told(tmp_path: Path) -> None:
    first, later = of(1, "A", n=40), of(2, "A", n=40)
    tiny.write(tmp_path / "in/own", first)
    tiny.write(tmp_path / "in/mixed", dict([*first.items()][:37] + [*later.items()][37:]))
    dataset = run(tmp_path / "in", tmp_path / "out")
    told = {key: "slices-of-another-study" in dataset[key].record.warnings for key in dataset}
    assert told == {"own": False, "mixed": True}
    assert dataset["mixed"].shape[0] == 40


@pytest.mark.parametrize("uid", ["1.2.9", NO_UID])
@pytest.mark.parametrize("by_mm", [0.0, 0.5, float(tiny.N_SLICES)], ids=["same places", "between", "goes on"])
def test_each_patient_has_a_volume_of_its_own_voxels(tmp_path: Path, by_mm: float, uid: str) -> None:
    tiny.write(tmp_path / "in/p", of(1, "A", uid=uid) | moved(of(2, "B", uid=uid), by_mm))
    dataset = run(tmp_path / "in", tmp_path / "out")
    assert len(dataset) == 2
    records = [dataset[key].record for key in dataset]
    assert len({record.patient for record in records}) == 2
    assert all("several-patients" in record.warnings for record in records)
    found = {dataset[key].load().array.tobytes() for key in dataset}
    assert found == {np.asarray(tiny.hu(seed), np.int16).tobytes() for seed in (1, 2)}
    for record in records:
        series = read_series(tmp_path / "in/p", uid_sha256=record.series_uid_sha256, stack=record.stack)
        decoded = series.decode()
        assert decoded.volume.array.shape == (tiny.N_SLICES, tiny.SIZE, tiny.SIZE)
        assert decoded.hu_sha256 == record.hu_sha256


def test_two_studies_of_a_patient_are_two_series(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p", of(1, "A") | of(2, "A"))
    dataset = run(tmp_path / "in", tmp_path / "out")
    assert [dataset[key].record.warnings for key in dataset] == [("one-of-several-series",)] * 2


def test_a_choice_per_study_takes_one_of_each_patient(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p", of(1, "A", StudyInstanceUID="1.5") | of(2, "B", StudyInstanceUID="1.7"))
    dataset = run(tmp_path / "in", tmp_path / "out", select={"prefer": ["most-slices"]})
    assert len({dataset[key].record.patient for key in dataset}) == 2


def test_so_it_does_where_they_share_the_study_but_no_series(tmp_path: Path) -> None:
    series = (of(seed, who, uid=f"1.2.{seed}", StudyInstanceUID="1.5") for seed, who in ((1, "A"), (2, "B"), (3, "B")))
    tiny.write(tmp_path / "in/p", {name: content for files in series for name, content in files.items()})
    dataset = run(tmp_path / "in", tmp_path / "out", select={"prefer": ["most-slices"]})
    records = [dataset[key].record for key in dataset]
    assert (len(records), len({record.patient for record in records})) == (2, 2)


def test_a_series_of_one_owner_goes_on_as_ever(tmp_path: Path) -> None:
    files = of(1, "A")
    files |= dict(list(of(1, "").items())[:5])  # these have lost their PatientID
    tiny.write(tmp_path / "in/p", files)
    dataset = run(tmp_path / "in", tmp_path / "out")
    (record,) = [dataset[key].record for key in dataset]
    assert (record.key, record.stack, record.warnings, record.source.slices) == ("p", None, (), tiny.N_SLICES)
    assert record.patient


def test_a_part_that_makes_no_volume_is_told(tmp_path: Path) -> None:
    tiny.write(tmp_path / "p", of(1, "A") | dict(list(of(2, "B").items())[:4]))
    main, other = find_series(tmp_path / "p")
    assert made_of(main).n_slices == tiny.N_SLICES
    assert isinstance(other.made, dskprep.Refusal)
    assert other.made.reason == "too-few-slices"
    assert (main.name.stack, other.name.stack) == (1, 2)


def test_slices_of_a_patient_each_are_refused_as_one_series(tmp_path: Path) -> None:
    files = {}
    for k in range(tiny.N_SLICES):
        files |= {name: content for name, content in of(1, f"P{k}").items() if name == f"1-IM{k:03}.dcm"}
    tiny.write(tmp_path / "p", files)
    (found,) = find_series(tmp_path / "p")
    assert isinstance(found.made, dskprep.Refusal)
    assert found.made.reason == "too-few-slices"
    assert f"{tiny.N_SLICES} patients" in found.made.message

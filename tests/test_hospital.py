"""A hospital's export goes through every command: each trap in it is named by one, and no name in it comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hospital import Hospital, go_through, search_by_hand, write_hospital

import dskprep
from dskprep.dataset import store

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Hospital, dict[str, Any]]:
    pytest.importorskip("nibabel", reason="exports need the extra exchange")
    folder = tmp_path_factory.mktemp("hospital")
    made = write_hospital(folder)
    return folder, made, go_through(made, folder)


@pytest.fixture(scope="module")
def keys(hospital: tuple[Path, Hospital, dict[str, Any]]) -> dict[str, list[str]]:
    """The keys of the folders of each trap."""
    _, made, said = hospital
    return {trap: [said["keys"][place] for place in places] for trap, places in made.traps.items()}


@pytest.fixture(scope="module")
def records(hospital: tuple[Path, Hospital, dict[str, Any]]) -> dict[str, dskprep.Record]:
    target = hospital[2]["target"]
    return {name.key: store.read_record(target, name) for name in store.record_names(target)}


def test_every_input_is_accounted_for_and_a_second_run_does_nothing(hospital: Any) -> None:
    _, _, said = hospital
    assert said["run"].account.counts == {"written": 14, "refused": 2, "set-aside": 1}
    assert (said["again"].n_new, said["again"].account.already.total()) == (0, 17)
    assert len(said["keys"]) == 17


def test_what_is_refused_or_set_aside_is_named_before_and_after(hospital: Any, keys: Any, records: Any) -> None:
    _, made, said = hospital
    expected = {"localizer alone": "localizer-only", "gap": "missing-slices", "structures": "no-image"}
    for trap, reason in expected.items():
        assert records[keys[trap][0]].reason == reason
    planned = {p.reason for p in said["plan"].predictions if not p.is_written}
    assert planned == set(expected.values())
    assert said["plan"].compare(said["target"]).differences == []
    assert "localizer-skipped" in records[keys["localizer"][0]].warnings
    del made


@pytest.mark.parametrize(
    ("trap", "kind", "patient"),
    [
        ("kernels", "other-kernel", "same"),
        ("thicknesses", "other-thickness", "same"),
        ("repeat", "identical", "same"),
        ("anonymised twice", "identical", "other"),
    ],
)
def test_duplicates_names_one_acquisition_in_two_forms(
    trap: str, kind: str, patient: str, hospital: Any, keys: Any
) -> None:
    found = hospital[2]["duplicates"].pairs
    pair = found[found["key"].isin(keys[trap]) & found["other"].isin(keys[trap])]
    assert [(kind in row.kind.split("+"), row.patient) for row in pair.itertuples()] == [(True, patient)]


def test_a_split_keeps_one_patient_and_one_acquisition_together(hospital: Any, keys: Any) -> None:
    dataset = dskprep.open_dataset(hospital[2]["target"])
    split = dataset.read_split("v1")
    side = {key: fold for fold in (0, 1) for key in split.fold(fold)[1]}
    for trap in ("kernels", "thicknesses", "repeat", "anonymised twice"):
        assert len({side[key] for key in keys[trap]}) == 1, trap


def test_two_patients_of_one_name_are_two(records: Any, keys: Any) -> None:
    one, other = (records[key].patient for key in keys["one name"])
    assert one != other


def test_one_patient_of_two_names_is_found_by_a_table_alone(hospital: Any, keys: Any, records: Any) -> None:
    """Neither number nor name nor pixels say that the two scans are of one person: only whoever knows can say so."""
    first, second = keys["two names"]
    assert records[first].patient != records[second].patient
    found = hospital[2]["duplicates"].pairs
    assert found[found["key"].isin([first, second]) & found["other"].isin([first, second])].empty
    dataset = dskprep.open_dataset(hospital[2]["target"])
    table = pd.DataFrame({"key": list(dataset), "person": [f"p{i}" for i in range(len(dataset))]})
    table.loc[table["key"].isin([first, second]), "person"] = "married"
    split = dataset.join(table, on="key").split(folds=2, by="person")
    side = {key: fold for fold in (0, 1) for key in split.fold(fold)[1]}
    assert side[first] == side[second]
    assert tuple(sorted([first, second])) in split.of_several
    assert "of several patients" in split.describe()


def test_the_structures_lie_in_their_volume(hospital: Any, keys: Any) -> None:
    _, _, said = hospital
    volume = dskprep.open_dataset(said["target"])[keys["kernels"][0]]
    assert said["run"].labels.counts == {"written": 1}
    assert said["labels"].counts == {"written": 1, "refused": 1}  # the same structures once more
    assert volume.labels["GTV"][:].any()
    assert volume.points["diameter_mm"].tolist() == [7.5]


@pytest.mark.parametrize("place", ["dataset", "given away", "logs"])
def test_no_name_is_in_any_byte(place: str, hospital: Any) -> None:
    folder, made, _ = hospital
    searched = list(dskprep.audit(folder / place, made.words))
    assert searched
    assert [s for s in searched if not s.is_clean] == []
    assert list(search_by_hand(folder / place, made.tokens)) == []


def test_the_searches_find_the_names_where_they_are(hospital: Any) -> None:
    folder, made, _ = hospital
    found = {f.word for s in dskprep.audit(folder / "export", made.words) for f in s.found}
    assert found == set(range(1, len(made.words) + 1))
    assert next(search_by_hand(folder / "export", made.tokens[:1]))
    assert [s.found for s in dskprep.audit(folder / "who.csv", made.words)] != [()]

"""Two sources whose folders have the same names, one dataset: neither takes the other's volumes."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import tiny
from volume_builders import chest, nifti

import dskprep
from dskprep.cli import commands
from dskprep.dataset import index

HASHED = pytest.mark.parametrize("keys", ["folder", "hashed"])


def written_below(target: str) -> dict[str, bytes]:
    """All objects of volumes, thumbnails and records of written series."""
    parts = ("volumes", "thumbnails", "records/written")
    return {f"{part}/{k}": v for part in parts for k, v in tiny.everything_below(f"{target}/{part}").items()}


def reasons(target: str) -> list[tuple[str, str]]:
    table = index.read(target)
    return sorted(zip(table["status"], table["reason"].fillna(""), strict=True))


@pytest.mark.slow
@HASHED
def test_a_folder_of_another_source_does_not_replace_a_volume_of_its_name(place: str, keys: str) -> None:
    one = tiny.write(f"{place}/one/p1", tiny.series(1, PatientID="A")).rpartition("/")[0]
    two = tiny.write(f"{place}/two/p1", tiny.series(2, PatientID="B")).rpartition("/")[0]
    tiny.write(f"{place}/two/p2", tiny.series(3, PatientID="C"))
    target = f"{place}/out"
    dskprep.run(one, target, keys=keys)
    before = written_below(target)
    second = dskprep.run(two, target)
    after = written_below(target)
    assert {name: after.get(name) for name in before} == before
    assert second.exit_code == 1
    assert reasons(target) == [("refused", "key-taken"), ("written", ""), ("written", "")]
    for source, code in ((one, 0), (two, 1)):  # nor is anything done again
        summary = dskprep.run(source, target)
        assert (summary.n_new, summary.exit_code) == (0, code)
    assert written_below(target) == after
    assert dskprep.run(two, target, retry="refused").account.counts == {"written": 1, "refused": 1}
    assert written_below(target) == after
    assert not any(finding.faults for finding in dskprep.verify(target))
    assert list(dskprep.clean(target, older_than_s=0)) == []
    assert len(dskprep.open_dataset(target)) == 2


@pytest.mark.parametrize("fails", [False, True], ids=["whole", "failed"])
def test_with_hashed_keys_patients_without_a_number_are_told_apart_by_their_places(
    place: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = {"PatientID": "", "StudyInstanceUID": ""}
    one = tiny.write(f"{place}/one/p1", tiny.series(1, **nobody)).rpartition("/")[0]
    two = tiny.write(f"{place}/two/p1", tiny.series(2, **nobody)).rpartition("/")[0]
    target = f"{place}/out"
    dskprep.run(one, target, keys="hashed")
    before = written_below(target)
    with monkeypatch.context() as patched:
        if fails:
            patched.setattr("dskprep.worker.patient.make_case", None)
        dskprep.run(two, target)
    assert written_below(target) == before
    assert reasons(target) == [("failed", "TypeError") if fails else ("refused", "key-taken"), ("written", "")]
    tiny.write(f"{place}/one/p1", tiny.series(3, **nobody))
    assert dskprep.run(one, target).account.counts == {"written": 1}, "what has changed in its place is made anew"


def test_with_hashed_keys_a_source_that_has_moved_replaces_what_has_changed_in_it(place: str) -> None:
    before = tiny.write(f"{place}/before/p1", tiny.series(1)).rpartition("/")[0]
    after = tiny.write(f"{place}/after/p1", tiny.series(1, n=14)).rpartition("/")[0]
    dskprep.run(before, f"{place}/out", keys="hashed")
    assert dskprep.run(after, f"{place}/out").account.counts == {"written": 1}
    assert [volume.shape[0] for volume in dskprep.open_dataset(f"{place}/out").values()] == [14]


def test_the_volume_that_is_there_is_the_one_that_a_reader_gets(place: str) -> None:
    one = tiny.write(f"{place}/one/p1", tiny.series(1)).rpartition("/")[0]
    two = tiny.write(f"{place}/two/p1", tiny.series(2)).rpartition("/")[0]
    dskprep.run(one, f"{place}/out")
    expected = dskprep.open_dataset(f"{place}/out")["p1"].image[...]
    dskprep.run(two, f"{place}/out")
    found = dskprep.open_dataset(f"{place}/out")
    assert list(found) == ["p1"]
    assert np.array_equal(found["p1"].image[...], expected)


def test_a_broken_folder_of_another_source_costs_itself_alone(place: str) -> None:
    one = tiny.write(f"{place}/one/p1", tiny.series(1)).rpartition("/")[0]
    two = tiny.write(f"{place}/two/p1", tiny.series(2, n=3)).rpartition("/")[0]
    dskprep.run(one, f"{place}/out")
    before = written_below(f"{place}/out")
    dskprep.run(two, f"{place}/out")
    assert written_below(f"{place}/out") == before
    assert reasons(f"{place}/out") == [("refused", "too-few-slices"), ("written", "")]


def test_volume_files_of_one_name_are_told_apart_by_their_voxels(place: str) -> None:
    real = chest()
    other = real.array.copy()
    other[0, 0, 0] += 1
    tiny.write(f"{place}/one/p1", {"ct.nii": nifti(real.array, real.affine)})
    tiny.write(f"{place}/same/p1", {"ct.nii.gz": gzip.compress(nifti(real.array, real.affine))})
    tiny.write(f"{place}/two/p1", {"ct.nii": nifti(other, real.affine)})
    settings = dskprep.PrepConfig(spacing_mm=(4, 4, 4))
    runs = [dskprep.run(f"{place}/{name}", f"{place}/out", settings=settings) for name in ("one", "same", "two")]
    counts = [run.account.counts for run in runs]
    assert counts == [{"written": 1}, {"written": 1}, {"refused": 1}]
    assert reasons(f"{place}/out") == [("refused", "key-taken"), ("written", "")]


def test_a_source_that_has_moved_replaces_what_has_changed_in_it(place: str) -> None:
    before = tiny.write(f"{place}/before/p1", tiny.series(1)).rpartition("/")[0]
    after = tiny.write(f"{place}/after/p1", tiny.series(1, n=14)).rpartition("/")[0]
    dskprep.run(before, f"{place}/out")
    assert dskprep.run(after, f"{place}/out").account.counts == {"written": 1}
    assert reasons(f"{place}/out") == [("written", "")]
    assert dskprep.open_dataset(f"{place}/out")["p1"].shape[0] == 14


@pytest.mark.parametrize("n", [12, 3], ids=["whole", "too short"])
def test_one_series_uid_for_all_patients_makes_them_no_single_series(place: str, n: int) -> None:
    one = tiny.write(f"{place}/one/p1", tiny.series(1, series_uid="1.2.9", PatientID="A")).rpartition("/")[0]
    two = tiny.write(f"{place}/two/p1", tiny.series(2, n=n, series_uid="1.2.9", PatientID="B")).rpartition("/")[0]
    dskprep.run(one, f"{place}/out")
    before = written_below(f"{place}/out")
    assert dskprep.run(two, f"{place}/out").account.counts == {"refused": 1}
    assert written_below(f"{place}/out") == before


def test_what_the_first_source_has_refused_stays_in_its_account(place: str) -> None:
    one = tiny.write(f"{place}/one/p1", tiny.series(1)).rpartition("/")[0]
    tiny.write(f"{place}/one/p1/short", tiny.series(5, n=3))
    two = tiny.write(f"{place}/two/p1", tiny.series(2)).rpartition("/")[0]
    dskprep.run(one, f"{place}/out", patient_folders=True)
    before = tiny.everything_below(f"{place}/out/records")
    assert reasons(f"{place}/out") == [("refused", "too-few-slices"), ("written", "")]
    dskprep.run(two, f"{place}/out", patient_folders=True)
    after = tiny.everything_below(f"{place}/out/records")
    assert {name: after.get(name) for name in before} == before
    assert dskprep.run(one, f"{place}/out", patient_folders=True).n_new == 0


def test_the_same_voxels_under_other_identifiers_are_the_same_series(place: str) -> None:
    """As of a copy from which identities were removed anew."""
    one = tiny.write(f"{place}/one/p1", tiny.series(1)).rpartition("/")[0]
    two = tiny.write(f"{place}/two/p1", tiny.series(1, series_uid="1.2.9", StudyInstanceUID="1.9")).rpartition("/")[0]
    dskprep.run(one, f"{place}/out")
    assert dskprep.run(two, f"{place}/out").account.counts == {"written": 1}


def test_what_is_in_the_way_is_named_with_what_to_do(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    one = tiny.write(f"{place}/one/p1", tiny.series(1)).rpartition("/")[0]
    two = tiny.write(f"{place}/two/p1", tiny.series(2)).rpartition("/")[0]
    dskprep.run(one, f"{place}/out")
    assert commands.run_command(["run", two, f"{place}/out", "--scheduler", "sync"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    said = (
        f"refused p1 key-taken: p1: expected no volume of this name, found that of another series, read from {one}/p1"
    )
    assert said in told
    dskprep.forget(f"{place}/out", ["p1"])
    assert dskprep.run(two, f"{place}/out", retry="refused").account.counts == {"written": 1}
    assert not tiny.everything_below(f"{place}/out/records/refused")

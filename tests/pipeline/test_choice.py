"""One series per study or patient: the right one, whatever the order, and each of the others with its reason."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import identity, index, seen, store
from dskprep.errors import InfrastructureError, UsageError
from dskprep.pipeline.account import Account
from dskprep.pipeline.choice import choose
from dskprep.pipeline.survey import Asked
from dskprep.source.case import Case
from dskprep.source.cases import cases as cases_of
from dskprep.storage.public import VARIABLE
from dskprep.worker import admission

PREFER = ["thickness<=1.5", "kernel:soft", "most-slices"]


def config(prefer: list[str] | None = None, **table: Any) -> dskprep.PrepConfig:
    return dskprep.PrepConfig(lungs=False, check_hu=False, select={"prefer": prefer or PREFER, **table})


class Planted(NamedTuple):
    """A series of a study: its thickness, its kernel, and the slice that it lacks."""

    study: str
    thickness: str = "1"
    kernel: str = "STANDARD"
    n: int = tiny.N_SLICES
    lacks: int | None = None
    patient: str = ""


def planted(root: Path | str, series: Mapping[str, Planted]) -> str:
    """Write series under these names."""
    files = {}
    for name, one in series.items():
        said = {
            "StudyInstanceUID": f"1.2.{one.study}",
            "PatientID": one.patient or f"P{one.study}",
            "SliceThickness": one.thickness,
            "ConvolutionKernel": one.kernel,
        }
        seed = int.from_bytes(name.encode()) % 1000
        found = tiny.series(seed, n=one.n, series_uid=f"1.2.3.{int.from_bytes(name.encode())}", **said)
        lost = f"IM{one.lacks:03}.dcm" if one.lacks is not None else ""
        files |= {f"{name}/{file}": content for file, content in found.items() if file != lost}
    return tiny.write(root, files)


def fates(target: str) -> dict[str, str]:
    table = index.current(target)
    words = table["reason"].where(table["status"] != "written", "written")
    return dict(zip(table["key"], words, strict=True))


def row_of(target: str, key: str) -> dict[str, Any]:
    table = index.current(target).set_index("key")
    return {str(name): value for name, value in table.loc[key].items()}


class Notes(dskprep.Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_note(self, message: str) -> None:
        self.said.append(message)


def run(source: str, target: str, chosen: dskprep.PrepConfig, **more: Any) -> tuple[dskprep.Summary, list[str]]:
    notes = Notes()
    summary = dskprep.run(source, target, settings=chosen, observers=[notes], at_end=(), **more)
    account = summary.account
    assert account.is_complete
    assert account.inputs == account.counts.total()
    return summary, notes.said


STUDIES = {
    "a_thick": Planted("1", "5"),
    "a_sharp": Planted("1", "1.25", "LUNG"),
    "a_soft": Planted("1", "1.0"),
    "b_one": Planted("2", "5"),
    "b_two": Planted("2", "5"),
    "c_alone": Planted("3", "5", "BONE"),
    "c_scout": Planted("3", "1", n=2),
}


def test_the_best_of_each_study_is_written_and_the_rest_says_why(place: str) -> None:
    source, target = planted(f"{place}/in", STUDIES), f"{place}/out"
    summary, notes = run(source, target, config())
    found = fates(target)
    tied = {key: found.pop(key) for key in ("b_one", "b_two")}
    assert found == {
        "a_thick": "not-chosen",
        "a_sharp": "not-chosen",
        "a_soft": "written",
        "c_alone": "written",
        "c_scout": "too-few-slices",
    }
    assert sorted(tied.values()) == ["not-chosen", "written"]
    assert summary.account.counts == {"written": 3, "set-aside": 3, "refused": 1}
    assert row_of(target, "a_thick")["message"].endswith("of this study was chosen: a_soft, by thickness<=1.5")
    assert (
        row_of(target, "a_sharp")["message"]
        == "another of the 3 series of this study was chosen: a_soft, by kernel:soft"
    )
    assert row_of(target, "a_soft")["chosen"] == "of 3 series of the study, by kernel:soft"
    winner = min(tied, key=lambda key: tied[key] != "written")
    assert row_of(target, winner)["warnings"] == "chosen-by-tie"
    assert not isinstance(row_of(target, "c_alone")["chosen"], str)
    (cost,) = (note for note in notes if "one header of each of 7 series" in note)
    assert ("requests" in cost, "on S3" in cost) == (is_bucket := storage.is_bucket(source), is_bucket)
    assert any("1 are decided by a tie" in note for note in notes)


def test_a_study_that_two_patients_share_is_one_of_each(tmp_path: Path) -> None:
    series = {
        "a_thick": Planted("1", "5", patient="A"),
        "a_thin": Planted("1", "1", patient="A"),
        "b_thick": Planted("1", "5", patient="B"),
        "c": Planted("2"),
    }
    source, target = planted(tmp_path / "in", series), str(tmp_path / "out")
    for _ in range(2):
        run(source, target, config())
        assert fates(target) == {"a_thick": "not-chosen", "a_thin": "written", "b_thick": "written", "c": "written"}
    planted(tmp_path / "in", {"b_thin": Planted("1", "1", patient="B")})  # what is written stays
    run(source, target, config())
    assert fates(target) | {"b_thick": "written", "b_thin": "not-chosen"} == fates(target)


def test_what_an_older_version_noted_of_studies_is_read_again(tmp_path: Path) -> None:
    series = {"a": Planted("1", patient="A"), "b": Planted("1", patient="B"), "c": Planted("1", "5", patient="B")}
    source, target = planted(tmp_path / "in", series), str(tmp_path / "out")
    run(source, target, config(), limit=1)
    noted = list(seen.read(target))
    assert len(noted) == 3
    seen.write(target, [one._replace(family=(one.family or "").partition("+")[0]) for one in noted])
    _, notes = run(source, target, config())
    assert any("one header of each of 3 series" in note for note in notes)
    assert fates(target) == {"a": "written", "b": "written", "c": "not-chosen"}
    assert list(seen.read(target)) == noted


def test_without_the_table_all_are_written(tmp_path: Path) -> None:
    source = planted(tmp_path / "in", STUDIES)
    summary = dskprep.run(source, tmp_path / "out", settings=dskprep.PrepConfig(lungs=False, check_hu=False), at_end=())
    assert summary.account.counts == {"written": 6, "refused": 1}


def test_a_plan_says_what_a_run_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = planted(tmp_path / "in", STUDIES | {"d_1": Planted("4", "1", lacks=5), "d__2": Planted("4", "5")})
    notes: list[str] = []
    plan = dskprep.plan(source, settings=config(), sample=0, on_note=notes.append)
    assert "one header of each of 9 series" in notes[0]
    run(source, str(tmp_path / "out"), config())
    assert plan.compare(tmp_path / "out") == (9, [])
    table = index.current(str(tmp_path / "out")).set_index("key")
    assert {p.key: ",".join(p.warnings) for p in plan.predictions} == dict(table["warnings"])
    path = tmp_path / "prep.toml"
    path.write_text(f"lungs = false\n[select]\nprefer = {json.dumps(PREFER)}\n")
    commands.run_command(["plan", source, "--config", str(path), "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["patients"] == 9
    assert "one header of each of 9 series" in printed.err


def test_the_next_best_is_written_where_the_best_is_refused_and_says_so(tmp_path: Path) -> None:
    series = {
        "best": Planted("1", "1", lacks=5),
        "second": Planted("1", "1", "LUNG", lacks=6),
        "third": Planted("1", "5"),
        "fourth": Planted("1", "5", "LUNG"),
    }
    source, target = planted(tmp_path / "in", series), str(tmp_path / "out")
    expected = {"best": "missing-slices", "second": "missing-slices", "third": "written", "fourth": "not-chosen"}
    for _ in range(2):
        summary, _ = run(source, target, config())
        assert fates(target) == expected
        assert summary.account.counts == {"written": 1, "set-aside": 1, "refused": 2}
    third = row_of(target, "third")
    assert third["warnings"] == "runner-up"
    assert third["chosen"] == "of 4 series of the study, by kernel:soft, in place of second, which was refused"


@pytest.mark.parametrize(
    ("more", "other", "n_written"),
    [
        ({"IssuerOfPatientID": "H"}, {}, 1),
        ({}, {"PatientID": ""}, 1),
        ({}, {"PatientID": "Q"}, 2),
    ],
)
def test_what_a_header_lacks_of_the_patient_does_not_part_a_study_in_one_folder(
    tmp_path: Path, more: dict[str, str], other: dict[str, str], n_written: int
) -> None:
    said = {"StudyInstanceUID": "1.2.9", "PatientID": "P", "ConvolutionKernel": "STANDARD"}
    one = tiny.series(1, series_uid="1.2.3.1", **(said | {"SliceThickness": "1"} | more))
    two = tiny.series(2, series_uid="1.2.3.2", **(said | {"SliceThickness": "5"} | other))
    files = {f"p/{name}-{file}": content for name, found in (("a", one), ("b", two)) for file, content in found.items()}
    source, target = tiny.write(tmp_path / "in", files), str(tmp_path / "out")
    run(source, target, config())
    assert sorted(fates(target).values()) == ["not-chosen"] * (2 - n_written) + ["written"] * n_written


def test_an_issuer_that_some_headers_lack_does_not_part_a_study_over_folders(tmp_path: Path) -> None:
    said = {"StudyInstanceUID": "1.2.9", "PatientID": "P", "ConvolutionKernel": "STANDARD"}
    target = str(tmp_path / "out")
    expected = {}
    for n, (key, issuer) in enumerate({"a": "H", "b": "", "c": "H", "d": "", "e": "Other"}.items()):
        about = said | {"SliceThickness": f"{n + 1}", "IssuerOfPatientID": issuer}
        files = {f"{key}/{name}": content for name, content in tiny.series(n, series_uid=f"1.2.3.{n}", **about).items()}
        source = tiny.write(tmp_path / "in", files)
        expected[key] = "not-chosen" if n else "written"
        if n:  # b comes with a, the others come when a is written
            run(source, target, config())
            assert fates(target) == expected
    shutil.rmtree(tmp_path / "in/a")
    run(str(tmp_path / "in"), target, config(), retry="set-aside")
    assert fates(target) == expected


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "gone"])
def test_a_study_whose_issuer_was_a_part_of_its_name_in_an_older_version_is_not_written_twice(
    tmp_path: Path, *, is_there: bool
) -> None:
    said = {"StudyInstanceUID": "1.2.9", "PatientID": "P", "IssuerOfPatientID": "H", "SliceThickness": "5"}
    source = tiny.write(tmp_path / "in", {f"a/{name}": one for name, one in tiny.series(0, **said).items()})
    target = str(tmp_path / "out")
    run(source, target, config())
    digest = identity.of(target).digest
    new, old = (f"{digest('study', '1.2.9')}+{digest('patient', 'P', issuer)}" for issuer in ("", "H"))
    (known,) = seen.read(target)
    assert known.family == new
    seen.write(target, [known._replace(family=old)])
    (path,) = (Path(target) / "records/written").iterdir()
    record = json.loads(path.read_bytes())
    del record["patient_without_issuer"]
    path.write_text(json.dumps(record))
    if not is_there:
        shutil.rmtree(tmp_path / "in/a")
    tiny.write(tmp_path / "in", {f"b/{name}": one for name, one in tiny.series(1, **said).items()})
    run(source, target, config())
    assert fates(target) == {"a": "written", "b": "not-chosen"}
    assert {one.family for one in seen.read(target)} == {new}


def test_a_refusal_that_more_memory_would_mend_costs_the_study_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = planted(tmp_path / "in", {"long": Planted("1", "1", n=40), "short": Planted("1", "5")})
    target = str(tmp_path / "out")
    real = admission.series_bytes

    def series_bytes(found: Any, *args: Any, **more: Any) -> int:
        return 2**60 if found.n_slices == 40 else real(found, *args, **more)

    monkeypatch.setattr(admission, "series_bytes", series_bytes)
    run(source, target, config())
    assert fates(target) == {"long": "too-large", "short": "not-chosen"}
    monkeypatch.undo()
    run(source, target, config(), retry="refused")
    assert fates(target) == {"long": "written", "short": "not-chosen"}


def test_a_better_series_that_comes_later_is_told_and_not_written(tmp_path: Path) -> None:
    source, target = planted(tmp_path / "in", {"a_5mm": Planted("1", "5")}), str(tmp_path / "out")
    run(source, target, config())
    planted(tmp_path / "in", {"a_1mm": Planted("1", "1"), "a_9mm": Planted("1", "9")})
    _, notes = run(source, target, config())
    assert fates(target) == {"a_5mm": "written", "a_1mm": "not-chosen", "a_9mm": "not-chosen"}
    assert any("1 series that came later, such as a_1mm, fit the rules better" in note for note in notes)
    assert "a_5mm, which was written before this one came" in row_of(target, "a_1mm")["message"]
    _, notes = run(source, target, config())
    assert not any("came later" in note for note in notes)  # once is enough


def test_a_choice_is_changed_by_hand(tmp_path: Path) -> None:
    source, target = planted(tmp_path / "in", {"a_5mm": Planted("1", "5")}), str(tmp_path / "out")
    run(source, target, config())
    planted(tmp_path / "in", {"a_1mm": Planted("1", "1")})
    run(source, target, config())
    (record,) = (tmp_path / "out/records/written").iterdir()
    record.unlink()
    run(source, target, config(), retry="set-aside")
    assert fates(target) == {"a_1mm": "written", "a_5mm": "not-chosen"}


def test_what_is_written_keeps_its_place_when_its_folder_is_gone(tmp_path: Path) -> None:
    source, target = planted(tmp_path / "in", {"a_1mm": Planted("1", "1")}), str(tmp_path / "out")
    run(source, target, config())
    (tmp_path / "in/a_1mm").rename(tmp_path / "a_1mm")
    planted(tmp_path / "in", {"a_5mm": Planted("1", "5")})
    run(source, target, config())
    assert fates(target) == {"a_1mm": "written", "a_5mm": "not-chosen"}
    assert "a_1mm, which is written" in row_of(target, "a_5mm")["message"]


def test_a_refused_one_that_is_mended_does_not_become_a_second(tmp_path: Path) -> None:
    series = {"best": Planted("1", "1", lacks=5), "next": Planted("1", "5")}
    source, target = planted(tmp_path / "in", series), str(tmp_path / "out")
    run(source, target, config())
    planted(tmp_path / "in", {"best": Planted("1", "1")})
    run(source, target, config())
    assert fates(target) == {"best": "not-chosen", "next": "written"}
    run(source, target, config(), retry="all")
    assert Counter(fates(target).values()) == {"written": 1, "not-chosen": 1}


def test_a_resumed_run_reads_no_header_again(tmp_path: Path) -> None:
    source, target = planted(tmp_path / "in", STUDIES), str(tmp_path / "out")
    run(source, target, config(), limit=2)
    summary, notes = run(source, target, config())
    assert not any("header" in note for note in notes)
    assert summary.account.counts["written"] == 3
    planted(tmp_path / "in", {"e_1": Planted("5")})
    _, notes = run(source, target, config())
    assert any("one header of each of 1 series" in note for note in notes)
    kept = gzip.decompress((tmp_path / "out" / seen.FILE).read_bytes())
    assert kept.count(b"\n") == 8
    assert not any(secret.encode() in kept for secret in ("P1", *tiny.IDENTITY, "1.2."))


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [b"", b"damaged", gzip.compress(b"x" * 10_000), gzip.compress(b"[1, 2, 3, 4, 5]\n"), gzip.compress(b"{}\n")[:-9]],
    ids=["empty", "no gzip", "a long line", "other types", "cut"],
)
def test_headers_are_read_again_where_the_dataset_has_lost_them(tmp_path: Path, content: bytes) -> None:
    source, target = planted(tmp_path / "in", STUDIES), tmp_path / "out"
    run(source, str(target), config())
    before = fates(str(target))
    (target / seen.FILE).write_bytes(content)
    _, notes = run(source, str(target), config())
    assert any("one header of each of 7 series" in note for note in notes)
    assert fates(str(target)) == before


def test_a_header_that_may_not_be_read_costs_its_own_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = planted(tmp_path / "in", STUDIES), str(tmp_path / "out")
    real = storage.read_head

    def read_head(url: str, n_bytes: int) -> bytes:
        if "a_thick" in url:
            raise InfrastructureError(f"{url}: permission denied")
        return real(url, n_bytes)

    monkeypatch.setattr(storage, "read_head", read_head)
    _, notes = run(source, target, config(), only="a_s*")
    assert any("1 headers cannot be read, such as that of a_thick: " in note for note in notes)
    assert fates(target) == {"a_sharp": "not-chosen", "a_soft": "written"}
    monkeypatch.undo()
    _, notes = run(source, target, config())
    assert any("one header of each of 1 series" in note for note in notes)
    assert fates(target)["a_thick"] == "not-chosen"


def test_a_store_that_is_lost_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = planted(tmp_path / "in", {f"s{i}": Planted(str(i)) for i in range(20)})

    def read_head(url: str, n_bytes: int) -> bytes:
        raise InfrastructureError(f"{url}: does not answer {n_bytes}")

    monkeypatch.setattr(storage, "read_head", read_head)
    with pytest.raises(dskprep.RunStopped, match="does not answer"):
        dskprep.run(source, tmp_path / "out", settings=config(), at_end=())


def test_two_sources_of_one_dataset_keep_their_headers(tmp_path: Path) -> None:
    one = planted(tmp_path / "one", {"a_1": Planted("1")})
    other, target = planted(tmp_path / "other", {"b_1": Planted("2")}), str(tmp_path / "out")
    run(one, target, config())
    run(other, target, config())
    assert {found.key for found in seen.read(target)} == {"a_1", "b_1"}


def test_what_another_run_refuses_has_a_runner_up_too(tmp_path: Path) -> None:
    source = planted(tmp_path / "in", {"best": Planted("1", "1", lacks=5), "next": Planted("1", "5")})
    target = str(tmp_path / "out")
    store.create(target, config())
    choice = choose(cases_of(source), Asked(), config(), lambda _: None, target)
    rounds = choice.rounds(Account(), lambda: True)
    (first,) = next(rounds)
    refused = tiny.record(first.key, "refused", first.digest, reason="missing-slices")
    store.commit(target, refused)  # by another run
    (second,) = next(rounds)
    assert (first.key, second.key) == ("best", "next")
    assert second.chosen is not None
    assert second.chosen.is_runner_up
    assert [list(more) for more in rounds] == [[]]


def test_foreign_scores_decide_nothing(tmp_path: Path) -> None:
    source, target = planted(tmp_path / "in", STUDIES), str(tmp_path / "out")
    run(source, target, config())
    seen.write(target, [one._replace(scores=[1.0]) for one in seen.read(target)])
    planted(tmp_path / "in", {"e_1": Planted("5"), "e_5": Planted("5", "5")})
    run(source, target, config())
    assert (fates(target)["e_1"], fates(target)["e_5"]) == ("written", "not-chosen")


@pytest.mark.parametrize("asked", [{"only": "a_*"}, {"limit": 3}])
def test_a_part_of_a_source_is_chosen_from_as_the_whole(tmp_path: Path, asked: dict[str, Any]) -> None:
    source, target = planted(tmp_path / "in", STUDIES), str(tmp_path / "out")
    summary, _ = run(source, target, config(), **asked)
    assert summary.account.counts == {"written": 1, "set-aside": 2}
    assert fates(target)["a_soft"] == "written"
    run(source, target, config())
    whole = fates(target)
    run(source, str(tmp_path / "once"), config())
    assert fates(str(tmp_path / "once")) == whole
    with pytest.raises(UsageError, match="no patient matches 'x'"):
        dskprep.run(source, tmp_path / "none", settings=config(), only="x")


def test_several_are_kept_and_per_patient(tmp_path: Path) -> None:
    series = {
        "thin": Planted("1", "1", patient="X"),
        "thinner": Planted("2", "0.5", patient="X"),
        "thick": Planted("2", "5", patient="X"),
        "other": Planted("3", "5", patient="Y"),
    }
    source = planted(tmp_path / "in", series)
    one = str(tmp_path / "one")
    run(source, one, config(["thinnest"], per="patient"))
    assert {key for key, fate in fates(one).items() if fate == "written"} == {"thinner", "other"}
    two = str(tmp_path / "two")
    run(source, two, config(["thinnest"], per="patient", keep=2))
    assert {key for key, fate in fates(two).items() if fate == "written"} == {"thin", "thinner", "other"}
    assert row_of(two, "thinner")["chosen"] == "of 3 series of the patient, by thinnest"


def test_one_patient_for_all_is_told(tmp_path: Path) -> None:
    series = {f"s{i}": Planted(str(i), patient="ANONYMOUS") for i in range(3)}
    source = planted(tmp_path / "in", series)
    _, notes = run(source, str(tmp_path / "out"), config(per="patient"))
    assert any("all 3 series name the same patient" in note for note in notes)
    _, notes = run(source, str(tmp_path / "other"), config())
    assert not any("the same" in note for note in notes)


def test_in_one_folder_the_best_series_is_written_too(tmp_path: Path) -> None:
    series = {
        "best": Planted("1", "1", lacks=5),
        "second": Planted("1", "1", "LUNG"),
        "third": Planted("1", "5"),
        "other": Planted("2", "5"),
    }
    folders = planted(tmp_path / "each", series)
    every = {name.replace("/", "_"): content for name, content in tiny.everything_below(folders).items()}
    source, target = (
        tiny.write(tmp_path / "in", {f"p1/{name}": content for name, content in every.items()}),
        str(tmp_path / "out"),
    )
    plan = dskprep.plan(source, settings=config(), sample=0)
    run(source, target, config(), patient_folders=True)
    table = index.current(target)
    assert Counter(table["reason"].fillna("written")) == {"written": 2, "not-chosen": 1, "missing-slices": 1}
    written = table[table["status"] == "written"].set_index("source_kernel")
    assert written["warnings"]["LUNG"].startswith("runner-up")
    assert "in place of the series of digest" in written["chosen"]["LUNG"]
    assert plan.compare(target).differences == []


def test_a_table_that_tells_enough_saves_the_requests(tmp_path: Path) -> None:
    folders = planted(tmp_path / "in", {"a_1": Planted("1", "1"), "a_5": Planted("1", "5")})
    keywords = "key,url,PatientID,StudyInstanceUID,SeriesInstanceUID,SliceThickness,ConvolutionKernel"
    lines = [
        keywords,
        f"thin,{folders}/a_5,P,1.2.1,1.2.3.1,0.5,STANDARD",
        f"thick,{folders}/a_1,P,1.2.1,1.2.3.2,9,STANDARD",
    ]
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("\n".join(lines))
    _, notes = run(str(manifest), str(tmp_path / "out"), config())
    assert not any("header" in note for note in notes)
    assert fates(str(tmp_path / "out")) == {"thin": "written", "thick": "not-chosen"}  # the table is believed
    table = pd.read_csv(manifest, dtype={"StudyInstanceUID": str, "SeriesInstanceUID": str})
    table.assign(SliceThickness=[0.5, 9.0]).to_parquet(tmp_path / "cohort.parquet")
    _, notes = run(str(tmp_path / "cohort.parquet"), str(tmp_path / "numbers"), config(["thinnest"]))
    assert not any("header" in note for note in notes)
    assert fates(str(tmp_path / "numbers")) == {"thin": "written", "thick": "not-chosen"}
    manifest.write_text("\n".join(line.replace("STANDARD", "") for line in lines))
    _, notes = run(str(manifest), str(tmp_path / "again"), config())
    assert any("one header of each of 2 series" in note for note in notes)


def test_series_of_nlst_are_chosen_by_the_table_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb", reason="needs the extra idc")
    pytest.importorskip("idc_index_data", reason="needs the extra idc")
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9")  # nothing answers
    study = "1.2.840.113654.2.55.100326999595928992523721982946894928230"  # a scout, and 125 slices by two kernels
    source = f"idc:SELECT SeriesInstanceUID FROM index WHERE StudyInstanceUID = '{study}' AND Modality = 'CT'"
    for rule, uid in (
        ("kernel:soft", "25218616409744079140231654329629501772"),
        ("kernel:sharp", "3291066312203479577634447061541304801"),
    ):
        notes: list[str] = []
        choice = choose(cases_of(source), Asked(), config(["thickness<=2.5", rule]), notes.append)
        cases = choice.everything()
        chosen = [case for case in cases if not case.refusal and case.n_files > 2]
        assert [case.key.rpartition("__")[2] for case in chosen] == [f"1.2.840.113654.2.55.{uid}"]
        assert Counter(case.refusal and case.refusal[0] for case in cases) == {None: 2, "not-chosen": 1}
        assert not any("header" in note for note in notes)
        assert all(case.header == () for case in cases)


def test_what_is_no_choice_is_done_as_ever(tmp_path: Path) -> None:
    source = planted(tmp_path / "in", {"a_1": Planted("1", "1"), "a_5": Planted("1", "5")})
    tiny.write(
        source,
        {
            "zip.zip": tiny.zipped(tiny.series(1)),
            "nobody/1/x.dcm": b"",
            "notes/readme.txt": b"no image",
            **{f"unnamed/{n}": c for n, c in tiny.series(2, StudyInstanceUID="").items()},
        },
    )
    summary, notes = run(source, str(tmp_path / "out"), config())
    found = fates(str(tmp_path / "out"))
    assert (found["zip"], found["unnamed"], found["a_1"], found["a_5"]) == (
        "written",
        "written",
        "written",
        "not-chosen",
    )
    assert summary.account.counts["refused"] == 2
    assert any("4 more are not among them" in note for note in notes)


# Any source


def described(series: list[tuple[int, str, str, int]]) -> list[Case]:
    """Cases of a catalogue: study, thickness, kernel, number of slices."""
    return [
        Case(
            f"s{i}",
            "s3://bucket/x",
            f"{i:016x}",
            n,
            n,
            is_catalogued=True,
            header=(
                ("PatientID", "P"),
                ("StudyInstanceUID", f"1.2.{study}"),
                ("SeriesInstanceUID", f"1.2.3.{i}"),
                ("SliceThickness", thickness),
                ("ConvolutionKernel", kernel),
            ),
        )
        for i, (study, thickness, kernel, n) in enumerate(series)
    ]


def outcome(cases: list[Case], refused: set[str], keep: int) -> tuple[dict[str, str], Account]:
    """What becomes of cases of which these are refused when they are read; each is counted once."""
    account = Account()
    choice = choose(cases, Asked(), config(keep=keep), lambda _: None)
    ends: dict[str, str] = {}
    for number, some in enumerate(choice.rounds(account, lambda: False)):
        for case in some:
            account.inputs += number == 0
            assert case.key not in ends
            assert not case.header  # no worker gets the names of patients
            status = "set-aside" if case.refusal else "refused" if case.key in refused else "written"
            ends[case.key] = status
            choice.hear(tiny.record(case.key, status, case.digest, reason="missing-slices", **_needs(status)))
    return ends, account


def _needs(status: str) -> dict[str, Any]:
    return (
        {"geometry": tiny.GEOMETRY, "objects": {"zarr.json": {"bytes": 1, "sha256": ""}}} if status == "written" else {}
    )


SERIES = st.tuples(
    st.integers(0, 3), st.sampled_from(["1", "1.5", "2"]), st.sampled_from(["B30f", "B70f", "BODY"]), st.integers(8, 14)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SERIES, min_size=1, max_size=12), st.randoms(use_true_random=False), st.integers(1, 2), st.data())
def test_the_order_of_the_listing_changes_nothing_and_the_account_balances(
    series: list[tuple[int, str, str, int]], order: Any, keep: int, data: st.DataObject
) -> None:
    cases = described(series)
    refused = data.draw(st.sets(st.sampled_from([case.key for case in cases])))
    ends, account = outcome(cases, refused, keep)
    assert ends.keys() == {case.key for case in cases}
    assert account.inputs == len(cases)
    shuffled = cases[:]
    order.shuffle(shuffled)
    assert outcome(shuffled, refused, keep)[0] == ends
    # the rule, written out: the best that are not refused, of those of ten slices or more
    for study, group in itertools.groupby(sorted(zip(series, cases, strict=True), key=_study), key=_study):
        able = [(said, case.key) for said, case in group if said[3] >= 10]
        written = [said for said, key in able if ends[key] == "written"]
        assert len(written) == min(keep, sum(key not in refused for _, key in able)), study
        left = [said for said, key in able if ends[key] == "set-aside"]
        assert all(_fit(one) >= _fit(other) for one in written for other in left)


def _study(pair: tuple[tuple[int, str, str, int], Case]) -> int:
    return pair[0][0]


def _fit(said: tuple[int, str, str, int]) -> tuple[bool, bool, int]:
    return float(said[1]) <= 1.5, said[2] == "B30f", said[3]


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_study_whose_chosen_series_is_gone_has_another_one(tmp_path: Path, is_broken: bool) -> None:
    """It was not asked for, or was refused, before it was taken out of the source."""
    source, target = str(tmp_path / "in"), str(tmp_path / "out")
    best = Planted("1", lacks=4 if is_broken else None)
    planted(source, {"s0": Planted("1", "5"), "s1": Planted("1", "3"), "s2": best})
    chosen = config(["thinnest"])
    run(source, target, chosen, only="s[01]")
    assert fates(target) == {"s0": "not-chosen", "s1": "not-chosen"}
    shutil.rmtree(f"{source}/s2")
    run(source, target, chosen)
    assert fates(target) == {"s0": "not-chosen", "s1": "written"}
    again, _ = run(source, target, chosen)
    assert again.account.n_new == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_source() -> None:
    code = "import test_choice, sys; print(test_choice.peak_of(int(sys.argv[1])))"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    few, many = (
        int(subprocess.run([sys.executable, "-c", code, n], env=environment, capture_output=True, check=True).stdout)
        for n in ("1000", "21000")
    )
    assert (many - few) / 20_000 < 300  # bytes per series; a case alone takes more than 2,000


def peak_of(n: int) -> int:
    def cases() -> Iterator[Case]:
        for i in range(n):
            yield from described([(i // 3, "1", "B30f", 12)])[:1]

    choice = choose(cases(), Asked(), config(), lambda _: None)
    for some in choice.rounds(Account(), lambda: False):
        for _ in some:
            pass
    return tiny.peak_bytes()


def test_what_waits_lies_in_a_file_that_nobody_else_can_open(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": ":".join(sys.path), "TMPDIR": str(tmp_path)}  # read once in a process
    code = "import test_choice; test_choice.look_at_the_file()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def look_at_the_file() -> None:
    choice = choose(described([(i // 3, "1", "B30f", 12) for i in range(20_000)]), Asked(), config(), lambda _: None)
    opened = [path for path in Path("/proc/self/fd").iterdir() if os.path.lexists(path)]
    (file,) = [path for path in opened if str(path.readlink()).startswith(os.environ["TMPDIR"])]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_nlink == 0
    content = file.read_bytes()
    assert b"s1999" in content
    assert not any(secret in content for secret in (b"PatientID", b"StudyInstanceUID", b"1.2.3.1"))
    del choice


def test_real_folders_name_their_series(data_folder: Any) -> None:
    names = {case.key: case for case in cases_of(str(data_folder.volumes))}
    choice = choose(names.values(), Asked(), config(), lambda _: None)
    assert {case.key for case in choice.everything() if not case.refusal} == set(names)  # each of a patient of its own

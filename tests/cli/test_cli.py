"""Words to calls: what a user types, sees, and gets as an exit code."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import tiny
from builders import distinct, enhanced_file

from dskprep import storage
from dskprep.cli import commands as cli
from dskprep.cli import run_commands
from dskprep.cli.output import ENDING
from dskprep.cli.words import describe_summary
from dskprep.dataset import index, store
from dskprep.dataset.record import Record
from dskprep.dataset.status import status
from dskprep.errors import InfrastructureError
from dskprep.pipeline import checked, cluster
from dskprep.pipeline import run as pipeline
from dskprep.pipeline.account import Account, Summary, in_words
from dskprep.pipeline.observer import Observer
from dskprep.settings import PrepConfig
from dskprep.worker import admission, make, process

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dskprep(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program in this process: exit code, what it said, and what it complained of."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run_command([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def source(tmp_path: Path) -> str:
    return tiny.write_patients(tmp_path / "in", ["p1", "p2"])


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def commands() -> list[str]:
    return list(cli.main.commands)


def test_a_clean_run_says_so_and_exits_with_0(dskprep: Run, source: str, target: str) -> None:
    code, out, err = dskprep("run", source, target, "--scheduler", "sync")
    assert (code, err) == (0, "")
    assert "2 patients: 2 done" in out
    assert re.search(r"written +2", out)
    code, out, _ = dskprep("run", source, target, "--scheduler", "sync")
    assert code == 0
    assert "2 patients: 0 done" in out
    assert "2 done before" in out


def test_a_refused_patient_is_named_with_its_reason_and_the_exit_code_is_1(
    dskprep: Run, source: str, target: str
) -> None:
    tiny.write(source, {"p3/notes.txt": b""})
    for why in ("no-dicom", "done before"):  # the second time it was refused before
        code, out, _ = dskprep("run", source, target, "--scheduler", "sync")
        assert code == 1
        assert re.search(rf"\n  refused +1 *\n    {why} +1 *\n", out)
    assert "dskprep status has all" in out
    _, out, _ = dskprep("run", source, target, "--scheduler", "sync", "--retry", "refused")
    assert "refused  p3 no-dicom: expected DICOM files" in out


def test_the_account_adds_the_further_series_to_the_patients(dskprep: Run, tmp_path: Path, target: str) -> None:
    files = {**tiny.series(0), **{f"b{n}": c for n, c in tiny.series(1, n=14).items()}}
    files |= {f"c{n}": c for n, c in tiny.series(2, n=3).items()}
    source = tiny.write(tmp_path / "in", {f"p1/{n}": c for n, c in files.items()} | {"p2/notes.txt": b""})
    code, out, _ = dskprep("run", source, target, "--scheduler", "sync")
    assert code == 1
    assert "2 patients: 2 done" in out
    further = "further series in their folders: 1 written, 1 refused; with these, 2 written, 2 refused\n"
    assert f"{further}warnings of all series:\n  warning: " in out
    assert status(target).counts == {"written": 2, "refused": 2}


def test_an_interrupted_run_prints_its_account_and_exits_with_1(
    dskprep: Run, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(make, "prepare", interrupted)
        code, out, _ = dskprep("run", source, target, "--scheduler", "sync")
    assert code == 1
    assert "interrupted" in out
    assert f"to go on: dskprep run {source} {target} --scheduler sync" in out
    assert "0 done" in out
    assert dskprep("run", source, target, "--scheduler", "sync")[0] == 0


def test_a_run_with_nothing_to_do_says_how_to_get_a_report_that_is_not_there(
    dskprep: Run, source: str, target: str
) -> None:
    class Impatient(Observer):
        def on_patient(self, summary: Summary, _: Sequence[Record]) -> None:
            if summary.account.n_left == 0:  # an interruption after the last one
                raise KeyboardInterrupt

    words = ("run", source, target, "--scheduler", "sync")
    assert pipeline.run(source, target, observers=[Impatient()]).is_interrupted
    for _ in range(2):  # that the same was asked for before changes nothing
        code, out, _err = dskprep(*words)
        assert (code, "2 patients: 0 done, 2 done before" in out) == (0, True)
        assert f"report:  the last run left none; dskprep report {target} makes one\n" in out
    tiny.write(source, {f"p3/{name}": content for name, content in tiny.series(3).items()})
    for begins in ("3 patients: 1 done", "3 patients: 0 done"):
        code, out, _err = dskprep(*words)
        assert (code, begins in out, "left none" in out) == (0, True, False)


def test_statuses_are_words_in_sentences(target: str) -> None:
    account = Account()
    account.add_before("set-aside", ["set-aside"])
    account.add_elsewhere("set-aside", [])
    told = [*describe_summary(Summary("id", "in", target, account, 0.0))]
    assert "further series in their folders: 1 set aside; with these, 3 set aside" in told
    assert "by another run: 1 set aside" in told
    assert in_words(account.figures())[0].startswith("2 of 1 patient found so far, still listing: 2 set aside")


def test_an_interruption_before_anything_began_exits_with_1(
    dskprep: Run, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(checked.discover, "cases", interrupted)
    code, _, err = dskprep("run", source, target, "--scheduler", "sync")
    assert code == 1
    assert "interrupted" in err


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("run", "in"),
        ("nonsense",),
        ("run", "SOURCE", "TARGET", "--preset", "nope", "--scheduler", "sync"),
        ("run", "SOURCE", "TARGET", "--config", "absent.toml", "--scheduler", "sync"),
        ("run", "SOURCE", "TARGET", "--retry", "some"),
        ("run", "SOURCE", "TARGET", "--limit", "0"),
        ("run", "SOURCE", "TARGET", "--scheduler", "nowhere"),
        ("run", "SOURCE", "TARGET", "--scheduler", "sync", "--workers", "2"),
        ("run", "SOURCE", "TARGET", "--workers", "0"),
        ("run", "SOURCE", "TARGET", "--memory-limit", "much"),
        ("run", "SOURCE", "TARGET", "--scheduler", "sync", "--time-limit", ""),
        ("run", "SOURCE", "TARGET", "--scheduler", "sync", "--mapping", ""),
        ("run", "SOURCE", "TARGET", "--scheduler", "sync", "--config", ""),
        ("run", "SOURCE", "", "--scheduler", "sync"),
        ("annotate", "TARGET", "SOURCE", "--only", "x", "--only", ""),
        ("annotate", "TARGET", "SOURCE", "--as", ""),
        ("run", "SOURCE", "TARGET", "--scheduler", "tcp://me:topsecret@127.0.0.1:1"),
        ("run", "SOURCE", "TARGET", "--scheduler", "sync", "--time-limit", "1e999s"),
        ("phantom", "TARGET", "--seed", "-1"),
        ("run", "SOURCE", "SOURCE/out", "--scheduler", "sync"),
        ("run", "SOURCE/absent", "TARGET", "--scheduler", "sync"),
        ("run", "s3://AKIA:topsecret@bucket/x", "TARGET", "--scheduler", "sync"),
        ("status", "s3://AKIA:topsecret@bucket/x"),
        ("verify", "s3://AKIA:topsecret@bucket/x"),
        ("show", "s3://AKIA:topsecret@bucket/x", "p1"),
        ("status", "TARGET"),
        ("verify", "TARGET"),
        ("show", "TARGET", "p1"),
    ],
)
def test_wrong_use_is_a_short_message_and_exits_with_2(
    dskprep: Run, source: str, target: str, words: tuple[str, ...]
) -> None:
    words = tuple(word.replace("SOURCE", source).replace("TARGET", target) for word in words)
    code, out, err = dskprep(*words)
    assert code == 2
    assert err.strip()
    assert len(err.splitlines()) <= 4
    assert "Traceback" not in out + err
    assert "topsecret" not in out + err


@pytest.mark.parametrize(
    ("words", "typed", "meant"),
    [
        ("run in out --retry WORD", "refuse", "refused"),
        ("annotate out in --retry WORD", "unlink", "unlinked"),
        ("export WORD out x", "NNUNET", "nnunet"),
        ("show out p1 --3d WORD", "bones", "bone"),
    ],
)
def test_a_word_that_is_no_choice_is_met_with_the_nearest(dskprep: Run, words: str, typed: str, meant: str) -> None:
    code, _, err = dskprep(*words.replace("WORD", typed).split())
    assert (code, f"Did you mean '{meant}'?" in err) == (2, True)
    assert "Did you mean" not in dskprep(*words.replace("WORD", "qqqq").split())[2]


def test_the_demo_leaves_a_folder_alone_that_holds_something(dskprep: Run, tmp_path: Path) -> None:
    mine = tmp_path / "results.csv"
    mine.write_text("mine")

    code, _, said = dskprep("demo", "-o", str(tmp_path))

    assert code == 2
    assert f"{tmp_path}: is not empty" in said
    assert mine.read_text() == "mine"


def test_other_settings_are_named(dskprep: Run, source: str, target: str, tmp_path: Path) -> None:
    assert dskprep("run", source, target, "--scheduler", "sync")[0] == 0
    (tmp_path / "prep.toml").write_text("spacing_mm = [2, 2, 2]\n")
    code, _, err = dskprep("run", source, target, "--scheduler", "sync", "--config", tmp_path / "prep.toml")
    assert code == 2
    assert "spacing_mm is [1.0, 1.0, 1.0] there and [2.0, 2.0, 2.0] here" in err


def test_infrastructure_is_one_line_and_exits_with_3(dskprep: Run, source: str, tmp_path: Path) -> None:
    for words in (
        ("run", source, "/sys/dskprep-out", "--scheduler", "sync"),  # where nobody can write
        ("run", source, f"{tmp_path}/out", "--scheduler", f"{tmp_path}/absent.json"),
    ):
        code, _, err = dskprep(*words)
        assert code == 3
        assert len(err.splitlines()) == 1
        assert err.startswith("dskprep: ")


def test_a_run_that_is_stopped_prints_its_account_and_the_command_that_goes_on(
    dskprep: Run, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = store.commit

    def lost_after_p1(where: str, record: dict[str, Any]) -> None:
        if record.key != "p1":
            raise InfrastructureError("no room")
        commit(where, record)

    monkeypatch.setattr(store, "commit", lost_after_p1)
    monkeypatch.setattr(process, "WAIT_S", 0.0)
    code, out, err = dskprep("run", source, target, "--scheduler", "sync", "--only", "p*")
    assert code == 3
    assert re.search(r"written +1", out)
    command = f"dskprep run {source} {target} --scheduler sync --only 'p*'"
    assert err.strip() == f"dskprep: no room; to go on: {command}"
    monkeypatch.setattr(store, "commit", commit)
    assert dskprep(*shlex.split(command)[1:])[0] == 0


def test_patients_that_are_too_large_come_with_the_command_that_would_do_them(
    dskprep: Run, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "MEMORY_LIMIT", 300 * 10**6)
        code, out, _ = dskprep("run", source, target, "--scheduler", "sync")
        assert code == 1
        assert re.search(r"too-large +2", out)
        assert "for those too large: give the workers 0.4GiB each, and run again with --retry refused" in out
    assert dskprep("run", source, target, "--scheduler", "sync", "--retry", "refused")[0] == 0


def test_the_way_for_large_patients_fits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "MEMORY_LIMIT", 16 << 30)
    with run_commands.run.make_context("run", ["in", "out", "--only", "a b", "--workers", "8"]):
        small = run_commands._way_for_large(PrepConfig(), 5 << 30)
        large = run_commands._way_for_large(PrepConfig(), 50 << 30)
    words = shlex.split(small)
    with run_commands.run.make_context("run", words[2:]) as again:
        asked = again.params
    assert (words[:2], asked["source"], asked["target"]) == (["dskprep", "run"], "in", "out")
    assert (asked["only"], asked["retry"]) == ("a b", "refused")
    workers, limit_bytes = cluster.worker_sizes(asked["workers"], asked["memory_limit"])  # fits
    assert admission.usable_bytes(limit_bytes) >= 5 << 30
    assert workers == 2
    assert "on a machine with" in large
    network = PrepConfig(lungs="my.masks:lungs", mask_slots=1, mask_memory="8GiB")
    with run_commands.run.make_context("run", ["in", "out"]):
        assert "--workers 1" in run_commands._way_for_large(network, 5 << 30)  # beside the slot


@pytest.mark.s3
def test_no_bucket_and_no_permission_exit_with_3(
    dskprep: Run, source: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = dskprep("run", source, f"{s3}-absent/out", "--scheduler", "sync")
    assert (code, "no such bucket" in err) == (3, True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    code, _, err = dskprep("status", f"{s3}/out")
    assert (code, "permission denied" in err) == (3, True)


def test_debug_shows_the_traceback(dskprep: Run, source: str) -> None:
    with pytest.raises(InfrastructureError):
        dskprep("--debug", "run", source, "/sys/dskprep-out", "--scheduler", "sync")


def test_the_status_counts_the_records(dskprep: Run, source: str, target: str) -> None:
    tiny.write(source, {"p3/notes.txt": b"", "p4/1.dcm": b""})
    dskprep("run", source, target, "--scheduler", "sync")
    storage.delete(target, ["index.parquet"])  # as after a run that was killed
    code, out, _ = dskprep("status", target, "--json")
    assert code == 1
    said = json.loads(out)
    last = said.pop("last_run")
    assert (last["inputs"], last["counts"]) == (4, {"written": 2, "refused": 2})
    assert said == {
        "target": target,
        "series": 4,
        "counts": {"written": 2, "refused": 2},
        "reasons": {"refused: no-dicom": 1, "refused: truncated": 1},
        "warnings": {"lungs-not-found": 2},
        "split_series": [],
        "damaged_records": {},
        "runs": [],
        "label_sources": {},
        "label_reasons": {},
        "label_warnings": {},
        "damaged_labels": {},
        "labels_gone": 0,
        "labels": {},
        "points": 0,
        "missing": 0,
    }
    assert len(list(store.record_names(target))) == 4
    code, out, _ = dskprep("status", target)
    assert code == 1
    assert f"4 series in {target}" in out
    assert re.search(r"no-dicom +1", out)


def test_a_series_split_over_folders_is_said_and_patients_can_be_read_as_a_whole(
    dskprep: Run, tmp_path: Path, target: str
) -> None:
    whole = tiny.series(n=24)
    names = sorted(whole)
    for part, some in (("disk1", names[:12]), ("disk2", names[12:])):
        tiny.write(tmp_path / "in/p1" / part, {name: whole[name] for name in some})
    tiny.write(tmp_path / "in/copy1", tiny.series(5))
    tiny.write(tmp_path / "in/copy2", tiny.series(5))  # the same series twice is whole twice
    code, out, _ = dskprep("run", tmp_path / "in", target, "--scheduler", "sync")
    assert code == 1
    assert "1 series seems to be split over folders, such as p1__disk1 and p1__disk2" in out
    code, out, _ = dskprep("status", target, "--json")
    assert (code, json.loads(out)["split_series"]) == (1, [["p1__disk1", "p1__disk2"]])
    code, out, _ = dskprep("run", tmp_path / "in", f"{target}-2", "--scheduler", "sync", "--patient-folders")
    assert code == 0
    assert dict(index.read(f"{target}-2")[["key", "source_slices"]].to_numpy().tolist())["p1"] == 24


def test_the_status_of_a_clean_dataset_is_0_and_of_an_empty_one_is_not(dskprep: Run, source: str, target: str) -> None:
    store.create(target, PrepConfig())
    code, out, _ = dskprep("status", target, "--json")
    assert (code, json.loads(out)["counts"]) == (1, {})  # a run may have only just begun
    dskprep("run", source, target, "--scheduler", "sync")
    assert dskprep("status", target)[0] == 0


def test_verify_counts_and_names_faults(dskprep: Run, source: str, target: str) -> None:
    dskprep("run", source, target, "--scheduler", "sync")
    code, out, _ = dskprep("verify", target)
    assert (code, "2 volumes checked, 0 with faults" in out) == (0, True)
    storage.delete(store.volume_url(target, "p2"), ["0/zarr.json"])
    code, out, _ = dskprep("verify", target)
    assert code == 1
    assert "p2: 0/zarr.json is missing" in out
    assert "2 volumes checked, 1 with faults" in out


def test_one_file_is_run_planned_and_shown(dskprep: Run, tmp_path: Path, target: str) -> None:
    places = [(-10, -20, z) for z in range(12)]
    tiny.write(tmp_path, {"scan.dcm": enhanced_file(distinct(12, 16, 16), places), "other.dcm": b"none of it"})
    file = tmp_path / "scan.dcm"
    assert dskprep("run", file, target, "--scheduler", "sync")[0] == 0
    assert [name.key for name in store.record_names(target)] == ["scan"]
    code, out, _ = dskprep("plan", file, "--json")
    assert (code, [p["key"] for p in json.loads(out)["predictions"]]) == (0, ["scan"])
    assert dskprep("show", file, "-o", tmp_path / "a.png")[0] == 0
    assert dskprep("show", target, "scan", "--source", "-o", tmp_path / "b.png")[0] == 0


@pytest.mark.parametrize(
    "command", [("run", "FILE", "TARGET", "--scheduler", "sync"), ("plan", "FILE"), ("show", "FILE")]
)
@pytest.mark.parametrize("name", ["notes.txt", "picture.png", "notes"])
def test_one_file_of_another_kind_is_one_line(
    dskprep: Run, tmp_path: Path, target: str, command: tuple[str, ...], name: str
) -> None:
    tiny.write(tmp_path, {name: b"no scan"})
    code, _, err = dskprep(*(w.replace("FILE", f"{tmp_path}/{name}").replace("TARGET", target) for w in command))
    assert code == 2
    assert " ".join(err.split()).count("or a DICOM file, found a file of another kind") == 1
    assert "Traceback" not in err


def test_show_draws_a_picture(dskprep: Run, source: str, target: str, tmp_path: Path) -> None:
    dskprep("run", source, target, "--scheduler", "sync")
    code, out, _ = dskprep("show", target, "p1", "-o", tmp_path / "p1.png")
    assert (code, out.strip()) == (0, str(tmp_path / "p1.png"))
    assert (tmp_path / "p1.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = dskprep("show", target, "p9")
    assert code == 2
    assert "'p9'" in err


def test_a_picture_that_cannot_be_written_is_one_line(dskprep: Run, source: str, target: str, tmp_path: Path) -> None:
    dskprep("run", source, target, "--scheduler", "sync")
    code, _, err = dskprep("show", target, "p1", "-o", tmp_path / "absent/p1.png")
    assert code in (2, 3)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [(), *((name,) for name in commands())])
def test_every_command_has_help(dskprep: Run, words: tuple[str, ...]) -> None:
    code, out, _ = dskprep(*words, "--help")
    assert code == 0
    assert "Usage:" in out
    assert len(out.splitlines()) > 4


@pytest.mark.parametrize("name", commands())
def test_every_option_says_what_it_does(name: str) -> None:
    for parameter in cli.main.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize("name", ["run", "plan", "export"])
def test_a_licence_is_spelled_in_either_way(name: str) -> None:
    (found,) = [p.opts for p in cli.main.commands[name].params if p.name == "licence"]
    assert found == ["--licence", "--license"]


def test_the_version_is_shown(dskprep: Run) -> None:
    code, out, _ = dskprep("--version")
    assert code == 0
    assert re.search(r"\d+\.\d+", out)


@pytest.mark.cluster
def test_the_program_runs_on_a_cluster_of_its_own(source: str, target: str) -> None:
    tiny.write(source, {"p3/notes.txt": b""})
    words = ["run", source, target, "--workers", "1", "--memory-limit", "1GiB"]
    done = subprocess.run([*tiny.PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "1 worker with " in done.stdout
    assert "3 patients: 3 done" in done.stdout
    assert "written  p1" in done.stdout


@pytest.mark.slow
@pytest.mark.cluster
def test_ctrl_c_in_a_terminal_ends_a_run_with_its_account_and_no_tracebacks(tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", [f"p{n}" for n in range(100)])
    words = [sys.executable, "-m", "dskprep", "run", source, str(tmp_path / "out"), "--workers", "2"]
    words = ["env", "--default-signal=INT", *words]  # tests that run in the background inherit that it is ignored
    with subprocess.Popen(words, stdout=-1, stderr=subprocess.STDOUT, text=True, start_new_session=True) as process:
        assert process.stdout
        said = [next(line for line in process.stdout if line.startswith("written"))]
        os.killpg(process.pid, signal.SIGINT)  # to all of its processes, as a terminal does
        said += process.stdout
    assert process.returncode == 1
    assert sum("ending" in line for line in said) == 1
    assert any(line.startswith("interrupted: what is written stays") for line in said)
    assert "Traceback" not in "".join(said)
    n_done = int(re.findall(r"patients: (\d+) done", "".join(said))[-1])
    assert 0 < n_done < 100


def test_what_cannot_be_compared_or_written_is_wrong_use(dskprep: Run, source: str, target: str) -> None:
    dskprep("run", source, target, "--scheduler", "sync")
    for words, problem in (
        (("plan", source, "--against", f"{target}/absent"), "there is no dskprep dataset here"),
        (("show", target, "p1", "-o", "p1.jpg"), "as PNG"),
        (("show", target, "p1", "-o", "s3://bucket/p1.png"), "local file"),
    ):
        code, _, err = dskprep(*words)
        assert (code, problem in err) == (2, True)


def test_an_error_is_a_line_of_json_too(dskprep: Run, target: str) -> None:
    code, out, err = dskprep("run", f"{target}/absent", target, "--scheduler", "sync", "--log-json")
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("error", 2) == ("error", code)
    assert last["message"] in err


def test_synthetic_patients_go_where_nothing_is(dskprep: Run, place: str) -> None:
    tiny.write(place, {"scans/p1/IM1.dcm": b"of somebody"})
    code, _, err = dskprep("phantom", place, "--patients", "1")
    assert (code, "is not empty" in err) == (2, True)
    assert list(tiny.everything_below(place)) == ["scans/p1/IM1.dcm"]


def test_synthetic_patients_are_not_written_through_a_link(
    dskprep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.make_small_phantoms(monkeypatch)
    for name in ("scans", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "scans/phantom-000").symlink_to(tmp_path / "elsewhere")
    code, _, err = dskprep("phantom", str(tmp_path / "scans"), "--patients", "1")
    assert (code, "phantom-000: expected a folder, found a link" in err) == (3, True)
    assert [*(tmp_path / "elsewhere").iterdir()] == []


@pytest.mark.parametrize("leads_to", ["absent", "x.dcm"], ids=["nowhere", "itself"])
def test_a_dead_link_costs_its_patient_only_and_is_named(
    dskprep: Run, tmp_path: Path, target: str, leads_to: str
) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    (tmp_path / "in/p1/x.dcm").symlink_to(leads_to)
    code, out, _ = dskprep("run", source, target, "--scheduler", "sync")
    assert code == 1
    assert "refused  p1 truncated: x.dcm: expected a file, found a link that leads nowhere" in out
    assert "written  p2" in out
    code, out, err = dskprep("plan", source)
    assert (code, err) == (1, "")
    assert re.search(r"written +1\n +refused +1\n +truncated +1", out)
    code, _, err = dskprep("show", tmp_path / "in/p1", "-o", tmp_path / "x.png")
    assert code != 0
    assert "x.dcm: expected a file, found a link that leads nowhere" in err


@pytest.mark.slow
def test_names_that_are_not_utf8_cost_nothing(dskprep: Run, tmp_path: Path, target: str) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1", "p2", "p3", "p4"])
    there = tmp_path / "in"
    try:
        (there / "p2").rename(there / "caf\udce9")
    except OSError:
        pytest.skip("names are UTF-8 here")
    next((there / "p3").iterdir()).rename(there / "p3/IM\udcff.dcm")
    (there / "p4/cut\udcff.dcm").write_bytes(b"\0" * 128 + b"DICM")
    words = [*tiny.PROGRAM, "run", source, target, "--scheduler", "sync"]
    for n_new in (4, 0):
        done = subprocess.run(words, check=False, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
        assert (done.returncode, done.stderr) == (1, b"")
        assert f"4 patients: {n_new} done".encode() in done.stdout
    assert "cut\\udcff.dcm" in index.read(target).set_index("status").loc["refused", "message"]
    (key,) = (key for key in index.read(target)["key"] if key.startswith("caf_"))
    assert dskprep("verify", target)[0] == dskprep("report", target, "-o", tmp_path / "r.html")[0] == 0
    assert dskprep("plan", source)[0] == 1  # one is to be refused
    assert dskprep("show", target, key, "--source", "-o", tmp_path / "x.png")[0] == 0


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command whose output is a pipe of a page: it cannot end before its lines are read.

    The lines must be longer than the pipe and what is read ahead of them, 8 KiB.
    """
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        yield process


PIPE_BYTES = 4096
N_MANY = 100
"""So many patients that their lines, with keys as long as LONG, do not fit."""
LONG = "long" * 45


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--log-json"]], ids=["words", "JSON"])
def test_a_reader_that_goes_ends_a_run_with_its_account_written(tmp_path: Path, target: str, words: list[str]) -> None:
    source = tiny.write_patients(tmp_path / "in", [f"p{i}{LONG}" for i in range(N_MANY)])
    command = [*tiny.PROGRAM, "run", source, target, "--scheduler", "sync", *words]
    with started(*command) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "p" in process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 1
    *waited_for, last = told.splitlines()
    assert last == "dskprep: standard output cannot be written any more, so this ends"
    assert not {"", "dskprep: interrupted"} & set(waited_for)
    (summary,) = (json.loads(path.read_text()) for path in Path(target, "runs").glob("*/summary.json"))
    assert summary["is_interrupted"]
    assert 0 < summary["counts"]["written"] < N_MANY
    assert len(index.read(target)) == summary["counts"]["written"]


@pytest.mark.slow
def test_a_terminal_that_goes_ends_a_run_as_ctrl_c_does_unless_it_was_told_to_stay(tmp_path: Path, target: str) -> None:
    source = tiny.write_patients(tmp_path / "in", [f"p{i}{LONG}" for i in range(N_MANY)])
    command = [sys.executable, "-m", "dskprep", "run", source, target, "--scheduler", "sync"]
    for before, code in (["env", "--default-signal=HUP"], 1), (["nohup"], 0):  # these tests may run under nohup
        with started(*before, *command) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "p" in process.stdout.readline()
            process.send_signal(signal.SIGHUP)
            out, told = process.stdout.read(), process.stderr.read()
        assert (process.returncode, "interrupted" in out, "Traceback" in told) == (code, code == 1, False)
    assert status(target).counts == {"written": N_MANY}


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_workers_of_any_command_and_leaves_no_folder(
    dskprep: Run, source: str, target: str, tmp_path: Path, ending: signal.Signals
) -> None:
    (tmp_path / "own.toml").write_text('lungs = "own_masks:halves"\n')  # others find no lungs here
    assert dskprep("run", source, target, "--scheduler", "sync", "--config", str(tmp_path / "own.toml"))[0] == 0
    (tmp_path / "tmp").mkdir()
    words = ["export", "nnunet", target, str(tmp_path / "Dataset001_x"), "--workers", "1"]
    command = ["env", "--default-signal=HUP", f"TMPDIR={tmp_path}/tmp", *tiny.PROGRAM, *words]
    with started(*command) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "dashboard" in process.stdout.readline()
        assert list((tmp_path / "tmp").iterdir())
        process.send_signal(ending)
        told = process.stderr.read()
    assert (process.returncode, told) == (1, f"dskprep: {ENDING}\n\ndskprep: interrupted\n")  # as after ^C
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("place", ["/dev/null", "/dev/null/below", "{file}", "{file}/below"])
def test_a_target_that_can_be_no_folder_is_wrong_use(dskprep: Run, source: str, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    place = place.format(file=tmp_path / "file")
    for words in (["run", source, place, "--scheduler", "sync"], ["status", place], ["annotate", place, source]):
        code, _, err = dskprep(*words)
        assert code == 2, (words, err)
        assert "expected a folder as the target, found a file or device" in err or "there is no dskprep dataset" in err


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_manifest_in_utf_16_says_so(dskprep: Run, source: str, target: str, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "m.csv").write_bytes(f"key,url\np1,{source}/p1\n".encode(encoding))
    code, _, err = dskprep("run", tmp_path / "m.csv", target, "--scheduler", "sync")
    assert code == 2
    assert "expected text in UTF-8, found bytes as those of UTF-16; save it as UTF-8" in err
    (tmp_path / "names.txt").write_bytes("Mustermann\n".encode(encoding))
    code, _, err = dskprep("audit", source, "--sentinels", tmp_path / "names.txt")
    assert code == 2
    assert "expected UTF-8, found" in err


def test_too_little_memory_is_one_line(dskprep: Run, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> bytes:  # noqa: ARG001
        raise MemoryError

    Path(target).mkdir()
    monkeypatch.setattr(storage, "read_metadata", fail)
    said = (3, "", "dskprep: there is not enough memory for this on this machine\n")
    assert dskprep("status", target) == said


def test_verify_can_forget_what_is_faulty_and_a_run_mends_it(dskprep: Run, source: str, target: str) -> None:
    dskprep("run", source, target, "--scheduler", "sync")
    volume = next(Path(target, "volumes").glob("*.zarr"))
    next(path for path in volume.rglob("*") if path.is_file() and "/c/" in path.as_posix()).unlink()
    code, out, _ = dskprep("verify", target)
    assert code == 1
    assert "--forget lets the next run make them anew" in out
    assert "without --dry-run, this lets the next run" in dskprep("verify", target, "--forget", "--dry-run")[1]
    assert dskprep("verify", target, "--forget")[0] == 1
    assert dskprep("run", source, target, "--scheduler", "sync", "--config", f"{target}/dataset.json")[0] == 0
    assert dskprep("verify", target)[0] == 0


def test_a_pattern_that_matches_nobody_is_wrong_use(dskprep: Run, source: str, target: str) -> None:
    code, _, err = dskprep("run", source, target, "--scheduler", "sync", "--only", "zzz*")
    assert code == 2
    assert "zzz*" in err
    assert dskprep("run", source, target, "--scheduler", "sync", "--preset", "luo-2017")[0] == 0  # nothing was begun


@pytest.mark.parametrize("url", ["", "s3://"])
def test_an_empty_place_is_wrong_use(dskprep: Run, url: str, target: str) -> None:
    assert dskprep("run", url, target, "--scheduler", "sync")[0] == 2


def test_a_dataset_that_lost_its_settings_is_not_joined(dskprep: Run, source: str, target: str) -> None:
    dskprep("run", source, target, "--scheduler", "sync")
    Path(target, "dataset.json").unlink()
    assert dskprep("run", source, target, "--scheduler", "sync")[0] == 2


@pytest.mark.parametrize("out", ["FILE", "FILE/below", "/dev/null"])
@pytest.mark.parametrize("command", ["export croissant TARGET OUT", "phantom OUT --patients 1"])
def test_a_file_is_no_place_for_what_needs_a_folder(
    dskprep: Run, source: str, target: str, tmp_path: Path, command: str, out: str
) -> None:
    if "TARGET" in command:
        dskprep("run", source, target, "--scheduler", "sync")
    file = tmp_path / "a file"
    file.write_bytes(b"mine")
    words = {"TARGET": target, "OUT": out.replace("FILE", str(file))}
    code, _, err = dskprep(*(words.get(word, word) for word in command.split()))
    assert (code, "expected a folder as the" in err, len(err.splitlines())) == (2, True, 1)
    assert file.read_bytes() == b"mine"

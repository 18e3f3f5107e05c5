"""What a plan says beforehand is what a run then does: on made-up cases, and on real ones."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import tiny
from pydicom.uid import JPEGLSLossless, RLELossless

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import index, store
from dskprep.dicom import header
from dskprep.errors import InfrastructureError, UsageError
from dskprep.pipeline import cost, plan
from dskprep.pipeline.cost import Calibration, Estimate
from dskprep.pipeline.machines import Machine
from dskprep.pipeline.plan import Plan
from dskprep.pipeline.prediction import Prediction, predict
from dskprep.settings import PrepConfig
from dskprep.source import archive
from dskprep.source.case import Case
from dskprep.source.cases import choose
from dskprep.worker import admission

CONFIG = PrepConfig(min_slices=3)
STORED = builders.distinct(5, 200, 200) % 3000
"""Larger than what is read of a file's beginning."""


DAMAGED = builders.compressed(bytes(50_000))
"""Pixels that no decoder takes: a plan asks headers only."""


def as_files(files: list[builders.File]) -> dict[str, bytes]:
    return dict(files)


def two_at_a_position() -> dict[str, bytes]:
    """Different pixels at the same places, and nothing to part them."""
    first, second = builders.ct_files(STORED), builders.ct_files(STORED[:, ::-1])
    return as_files(first) | {f"x{name}": content for name, content in second}


def copies() -> dict[str, bytes]:
    files = as_files(builders.ct_files(STORED))
    return files | {f"x{name}": content for name, content in files.items()}


def cut(n: int) -> dict[str, bytes]:
    files = as_files(builders.ct_files(STORED))
    return files | {"0002.dcm": files["0002.dcm"][:n]}


CASES: dict[str, Callable[[], dict[str, bytes]]] = {
    "sound": lambda: as_files(builders.ct_files(STORED)),
    "implicit": lambda: as_files(builders.ct_files(STORED, syntax="1.2.840.10008.1.2")),
    "big-endian": lambda: as_files(builders.ct_files(STORED, syntax="1.2.840.10008.1.2.2")),
    "tilted": lambda: as_files(builders.ct_files(STORED, lean=(0, 0.3, 0))),
    "a gap": lambda: as_files(builders.ct_files(STORED, positions_mm=[0, 1, 2, 4, 5])),
    "uneven": lambda: as_files(builders.ct_files(STORED, positions_mm=[0, 1, 2.5, 3.1, 5])),
    "too few": lambda: as_files(builders.ct_files(STORED[:2])),
    "no DICOM": lambda: {"a.txt": b"text"},
    "a localizer": lambda: as_files(builders.ct_files(STORED, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    "another unit": lambda: as_files(builders.ct_files(STORED, RescaleType="US")),
    "no spacing": lambda: as_files(builders.ct_files(STORED, PixelSpacing=None)),
    "copies": copies,
    "two at a position": two_at_a_position,
    "cut in its pixels": lambda: cut(60_000),
    "cut in its header": lambda: cut(300),
    "a header beyond what is read first": lambda: as_files(builders.ct_files(STORED, TextValue="long " * 8000)),
    "Enhanced": lambda: {"one.dcm": builders.enhanced_file(STORED, [(0, 0, k) for k in range(5)])},
    "a decoder that there is not": lambda: (
        as_files(builders.ct_files(STORED[:, :32, :32], syntax="1.2.840.10008.1.2.1")) | {"z.dcm": _unknown_syntax()}
    ),
    "two series": lambda: (
        as_files(builders.ct_files(STORED))
        | {f"b/{n}"[2:] + "b": c for n, c in builders.ct_files(STORED[:4], SeriesInstanceUID="1.2.3.9")}
    ),
}


def _unknown_syntax() -> bytes:
    ds = builders.ct_dataset(STORED[0], position=(-10, -20, 99))
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    ds.PixelData = builders.compressed(b"mpeg")
    ds["PixelData"].VR = "OB"
    return builders.saved(ds)


def outcome_of_run(source: str, target: str, config: PrepConfig) -> dict[str, tuple[str, str]]:
    dskprep.run(source, target, settings=config)
    table = index.read(target)
    return {
        key: (status, reason)
        for key, status, reason in zip(table["key"], table["status"], table["reason"].fillna(""), strict=True)
    }


def predicted(source: str, config: PrepConfig) -> dict[str, tuple[str, str]]:
    found = [p for case in choose(source) for p in predict(case, config)]
    return {p.key: (p.status, p.reason) for p in found}


def plan_of(*predictions: Prediction) -> Plan:
    return Plan("in", len(predictions), len(predictions), predictions, None, None)


def test_the_plan_says_what_the_run_then_does(tmp_path: Path) -> None:
    for number, (_, make) in enumerate(CASES.items()):
        tiny.write(tmp_path / f"in/{number:02}", make())
    expected = outcome_of_run(str(tmp_path / "in"), str(tmp_path / "out"), CONFIG)
    assert predicted(str(tmp_path / "in"), CONFIG) == expected
    assert len({reason for _, reason in expected.values()}) > 8  # the cases are different ones


def test_a_tilt_that_recipes_of_2017_do_not_know_is_predicted(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/tilted", CASES["tilted"]())
    tiny.write(tmp_path / "in/straight", CASES["sound"]())
    config = PrepConfig(recipe="luo-2017", min_slices=3)
    expected = {"straight": ("written", ""), "tilted": ("refused", "gantry-tilt")}
    assert predicted(str(tmp_path / "in"), config) == expected
    assert outcome_of_run(str(tmp_path / "in"), str(tmp_path / "out"), config) == expected


def test_warnings_that_headers_show_are_predicted(tmp_path: Path) -> None:
    files = as_files(builders.ct_files(STORED, LossyImageCompression="01"))
    files["0002.dcm"] = as_files(builders.ct_files(STORED, RescaleSlope="0.9"))["0002.dcm"]
    tiny.write(tmp_path / "in/p1", files)
    (case,) = choose(str(tmp_path / "in"))
    (prediction,) = predict(case, CONFIG)
    assert prediction.warnings == ("mixed-rescale", "lossy-compression")
    dskprep.run(str(tmp_path / "in"), str(tmp_path / "out"), settings=CONFIG)
    (warnings,) = index.read(str(tmp_path / "out"))["warnings"]
    assert tuple(warnings.split(","))[:2] == prediction.warnings


def test_a_patient_whose_pixels_are_damaged_is_not_the_one_to_take_the_time_of(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/a", dict(builders.ct_files(STORED[:, :64, :64], syntax=RLELossless, PixelData=DAMAGED)))
    (bad,) = choose(str(tmp_path / "in"))
    done = [(bad, predict(bad, CONFIG)[-1])]
    assert cost.calibrate(done, CONFIG, {}) is None
    tiny.write(tmp_path / "in/b", CASES["sound"]())
    cases = list(choose(str(tmp_path / "in")))
    took = plan.calibrate([(case, predict(case, CONFIG)[-1]) for case in cases] + done, CONFIG, {})
    assert took is not None
    assert took.key == "b"
    assert took.bytes_written > 0


def test_a_smaller_patient_is_taken_where_no_larger_one_makes_a_volume(tmp_path: Path) -> None:
    """As beside a mask, which looks like a volume by its header."""
    tiny.write(tmp_path / "in/a", CASES["sound"]())
    large = np.zeros((len(STORED), 260, 260), STORED.dtype)
    tiny.write(tmp_path / "in/b", dict(builders.ct_files(large, syntax=RLELossless, PixelData=DAMAGED)))
    (a, b) = (predict(case, CONFIG)[-1] for case in choose(str(tmp_path / "in")))
    assert a.output_voxels < b.output_voxels
    made = dskprep.plan(tmp_path / "in", settings=CONFIG)
    assert made.calibration is not None
    assert made.calibration.key == "a"


def test_the_time_is_that_of_the_patient_in_the_middle_of_all_voxels(tmp_path: Path) -> None:
    """Of tiny ones there may be many; what is the same for all patients would be scaled up by their voxels."""
    for key, n in {"a": 10, "b": 11, "c": 12, "d": 60, "e": 70}.items():
        tiny.write(tmp_path / f"in/{key}", tiny.series(n=n))
    made = dskprep.plan(tmp_path / "in")
    assert made.calibration is not None
    assert made.calibration.key == "d"


def test_what_code_costs_once_is_not_scaled_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock of this process goes on by a minute when its first patient is prepared, and by a second for others."""
    clock = [0.0]
    prepare = cost.prepare.prepare
    seconds = iter([60.0])

    def prepared(*args: Any) -> Any:
        clock[0] += next(seconds, 1.0)
        return prepare(*args)

    cost.prepare.warm(PrepConfig())
    monkeypatch.setattr(cost.prepare, "prepare", prepared)
    monkeypatch.setattr(cost.prepare, "warm", lambda _: None)
    monkeypatch.setattr(time, "process_time", lambda: clock[0])
    source = tiny.write_patients(tmp_path / "in", ["p1", "p2", "p3"])
    made = dskprep.plan(source)
    assert made.calibration is not None
    assert made.estimate is not None
    assert (made.calibration.read_cpu_s, made.calibration.prepare_cpu_s) == (0, pytest.approx(1))
    assert made.estimate.cpu_s == pytest.approx(3)
    assert commands.run_command(["plan", source]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"time: p\d took [\d.]+ s of CPU here, the second time\. All have 3\.0 times its voxels, and", said
    )


def test_what_else_runs_on_this_machine_is_not_scaled_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock on the wall a minute goes by each time that one looks, but this process takes no CPU."""
    minutes = itertools.count()
    source = tiny.write_patients(tmp_path / "in", ["p1"])
    monkeypatch.setattr(time, "perf_counter", lambda: 60.0 * next(minutes))
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    made = dskprep.plan(source)
    assert made.calibration is not None
    assert (made.calibration.read_cpu_s, made.calibration.prepare_cpu_s) == (0, 0)


def test_a_plan_says_that_it_has_no_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path / "in/a", dict(builders.ct_files(STORED[:, :64, :64], syntax=RLELossless, PixelData=DAMAGED)))
    tiny.write(tmp_path, {"prep.toml": b"min_slices = 3\n"})
    assert commands.run_command(["plan", str(tmp_path / "in"), "--config", str(tmp_path / "prep.toml")]) == 0
    assert "no estimate of memory, time and size" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("pack", [tiny.zipped, tiny.tarred])
def test_archives_are_planned_too(place: str, pack: Callable[..., bytes]) -> None:
    suffix = "zip" if pack is tiny.zipped else "tar"
    tiny.write(f"{place}/in", {f"p1.{suffix}": pack(tiny.series()), f"p2.{suffix}": pack(tiny.series(n=4))})
    assert predicted(f"{place}/in", PrepConfig()) == {"p1": ("written", ""), "p2": ("refused", "too-few-slices")}


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
def test_compressed_slices_are_planned_without_their_pixels(tmp_path: Path, syntax: str) -> None:
    files = builders.ct_files(STORED[:, :64, :64], syntax=syntax, PixelData=DAMAGED)
    tiny.write(tmp_path / "in/p", dict(files))
    assert predicted(str(tmp_path / "in"), CONFIG) == {"p": ("written", "")}


def test_of_large_files_only_the_beginning_is_read(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(f"{place}/in/p", dict(builders.ct_files(STORED)))
    read: list[int] = []
    whole, head = storage.read, storage.read_head

    def counted_read(url: str) -> bytes:
        read.append(len(whole(url)))
        return whole(url)

    def counted_head(url: str, n_bytes: int) -> bytes:
        read.append(len(head(url, n_bytes)))
        return head(url, n_bytes)

    monkeypatch.setattr(storage, "read", counted_read)
    monkeypatch.setattr(storage, "read_head", counted_head)
    (case,) = choose(f"{place}/in")
    (prediction,) = predict(case, CONFIG)
    assert (prediction.status, prediction.n_slices) == ("written", 5)
    assert read == [1 << 15] * 5
    assert case.n_bytes > 5 * 80_000


def test_sizes_and_memory_are_those_of_the_volume(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p", dict(builders.ct_files(STORED, step_mm=2)))
    (case,) = choose(str(tmp_path / "in"))
    (p,) = predict(case, CONFIG)
    assert p.native_voxels == 5 * 200 * 200
    assert p.output_voxels == 10 * 150 * 100  # 2, 0.75 and 0.5 mm to 1 mm
    assert p.need_bytes >= admission.estimate_bytes((5, 200, 200), (2, 0.75, 0.5), CONFIG)
    (refused,) = predict(case, CONFIG, usable_bytes=p.need_bytes - 1)
    assert (refused.status, refused.reason) == ("refused", "too-large")
    assert predict(case, CONFIG, usable_bytes=p.need_bytes)[0].status == "written"


def test_a_sample_is_spread_evenly() -> None:
    cases = [Case(str(i), "", "", 1, 1) for i in range(10)]
    assert [case.key for case in plan.spread(cases, 3)] == ["0", "3", "6"]
    assert plan.spread(cases, 0) == plan.spread(cases, 10) == plan.spread(cases, 99) == cases


def test_what_a_sample_takes_is_scaled_to_all() -> None:
    cases = [Case(str(i), "", "", 100, 10**9) for i in range(40)]
    sampled = [Prediction(str(i), "written", native_voxels=20, output_voxels=60) for i in range(4)]
    took = Calibration("0", 1.0, 5.0, native_voxels=10, output_voxels=30, bytes_written=1000)
    found = cost.estimate(cases, sampled, 4, took)
    assert found.cpu_s == pytest.approx(40 * (2 * 1.0 + 2 * 5.0))
    assert (found.bytes_read, found.bytes_written) == (40 * 10**9, 40 * 2000)
    assert found.requests_dollars == pytest.approx(4000 * 0.4e-6 + 40 * 9 * 5e-6)
    packed = cost.estimate(cases, sampled, 4, took, unpack_cpu_s=3.0)
    assert (packed.unpack_cpu_s, packed.cpu_s - found.cpu_s) == (pytest.approx(30), pytest.approx(30))


def test_what_it_takes_to_unpack_is_counted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock goes on while an archive is unpacked, by a second each time, and stands otherwise."""
    clock = [0.0]
    members = archive.members

    def unpack(*args: Any) -> Iterator[tuple[str, bytes]]:
        clock[0] += 1
        return members(*args)

    monkeypatch.setattr(archive, "members", unpack)
    monkeypatch.setattr(time, "process_time", lambda: clock[0])
    for name in ("a", "b"):
        tiny.write(tmp_path / "in", {f"{name}.zip": tiny.zipped(tiny.series())})
    for name in ("c", "d", "e"):
        tiny.write(tmp_path / f"in/{name}", tiny.series())
    for only, n_unpacked in (("*", 2), ("[ab]", 2), ("[cde]", 0)):
        made = dskprep.plan(tmp_path / "in", only=only)
        assert made.estimate is not None
        assert made.calibration is not None
        assert (made.estimate.unpack_cpu_s, made.calibration.read_cpu_s < 1) == (n_unpacked, True)
    assert commands.run_command(["plan", str(tmp_path / "in")]) == 0
    assert "with 2 s to unpack archives they take about" in capsys.readouterr().out


def test_hours_are_those_of_what_is_scarce() -> None:
    machine = Machine("m", 8, 16, 1.0, 1.0)
    assert Estimate(8 * 3600, 0, 0, 0.0).hours_on(machine) == pytest.approx(1)
    assert Estimate(8 * 3600, 0, 0, 0.0).limit_on(machine) == "CPU"
    assert Estimate(1, 225 * 10**9, 225 * 10**9, 0.0).hours_on(machine) == pytest.approx(1)  # 3600 Gbit
    assert Estimate(1, 225 * 10**9, 225 * 10**9, 0.0).limit_on(machine) == "network"
    patients = [Prediction("a", "written", need_bytes=10**9), Prediction("b", "written", need_bytes=3 * 10**9)]
    made = plan_of(*patients)
    assert made.n_too_large(machine) == 1  # 1.8 GiB per worker
    assert made.n_too_large(machine._replace(memory_gib=64)) == 0


def test_the_command_says_it_in_words_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_patients(tmp_path / "in", ["p1", "p2"])
    source, target = str(tmp_path / "in"), str(tmp_path / "out")
    assert commands.run_command(["plan", source]) == 0
    words = capsys.readouterr().out
    assert "2 patients" in words
    assert "c4.2xlarge" in words
    assert not Path(target).exists()
    assert commands.run_command(["run", source, target, "--scheduler", "sync"]) == 0
    tiny.write(f"{source}/p3", tiny.series(n=4))
    capsys.readouterr()
    assert commands.run_command(["plan", source, "--against", target, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert [p["status"] for p in content["predictions"]] == ["written", "written", "refused"]
    assert content["compared"] == {"n_right": 2, "differences": []}
    assert commands.run_command(["plan", source, "--only", "p3"]) == 1
    assert "c4.2xlarge" not in capsys.readouterr().out  # nothing to take the time of
    assert commands.run_command(["plan", source, "--only", "nobody"]) == 2


@pytest.mark.parametrize("name", ["steps", "lungs"])
def test_a_function_that_cannot_be_imported_is_told_before_anything_is_listed(tmp_path: Path, name: str) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1"])
    path = "no_such_module:step"
    settings = PrepConfig(steps=[path]) if name == "steps" else PrepConfig(lungs=path)
    told: list[object] = []
    with pytest.raises(UsageError, match=r"^no_such_module:step: cannot be imported: "):
        dskprep.plan(source, settings=settings, on_case=told.append, on_patient=lambda *n: told.append(n))
    assert not told


def test_a_plan_is_what_the_command_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tiny.write_patients(tmp_path / "in", ["p1", "p2"]), str(tmp_path / "out")
    tiny.write(f"{source}/p3", tiny.series(n=4))
    dskprep.run(source, target)
    found: list[int] = []
    told: list[tuple[int, int]] = []
    made = dskprep.plan(source, on_case=found.append, on_patient=lambda n_done, n_all: told.append((n_done, n_all)))
    assert found == [1, 2, 3]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert (made.n_patients, made.n_sampled, made.is_clean) == (3, 3, False)
    assert made.compare(target) == (3, [])
    assert made.calibration is not None
    assert made.estimate is not None
    assert commands.run_command(["plan", source, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == made.as_dict().keys() | {"compared"}
    for name in ("source", "patients", "sampled", "predictions"):
        assert printed[name] == json.loads(json.dumps(made.as_dict()[name]))


def test_a_plan_of_a_sample_is_scaled_and_one_without_a_volume_has_no_estimate(tmp_path: Path) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1", "p2", "p3", "p4"])
    half, whole = dskprep.plan(source, sample=2), dskprep.plan(source, sample=0)
    assert [p.key for p in half.predictions] == ["p1", "p3"]
    assert (half.n_patients, half.n_sampled, whole.n_sampled) == (4, 2, 4)
    assert half.estimate is not None
    assert whole.estimate is not None
    assert half.estimate.bytes_read == whole.estimate.bytes_read
    too_few = dskprep.plan(source, settings=PrepConfig(min_slices=100))
    assert (too_few.calibration, too_few.estimate, too_few.is_clean) == (None, None, False)
    too_small = dskprep.plan(source, memory_limit="300MB")
    assert {p.reason for p in too_small.predictions} == {"too-large"}
    with pytest.raises(UsageError, match="sample must be 0"):
        dskprep.plan(source, sample=-1)
    with pytest.raises(UsageError, match="no preset 'nope'"):
        dskprep.plan(source, preset="nope")


def test_a_prediction_that_failed_is_named(tmp_path: Path) -> None:
    store.create(str(tmp_path), PrepConfig())
    store.commit(str(tmp_path), tiny.record("a", "refused", "0" * 16, reason="not-hu"))
    found = plan_of(Prediction("a", "written"), Prediction("b", "written")).compare(tmp_path)
    assert found == (0, ["a: expected written, found refused not-hu"])


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"DICM" * 300])
def test_what_is_no_dicom_has_no_pixels_to_blank(content: bytes) -> None:
    assert header.with_blank_pixels(content, 10**6) is None


def test_a_header_that_promises_endless_frames_takes_no_memory() -> None:
    ds = builders.ct_dataset(STORED[0], NumberOfFrames=2_000_000_000)
    ds.file_meta.TransferSyntaxUID = RLELossless
    ds.PixelData = builders.compressed(b"frames")
    ds["PixelData"].VR = "OB"
    content = builders.saved(ds)
    assert header.with_blank_pixels(content, len(content)) is None


# what cannot be read is one outcome, as in a run


def test_a_source_of_strange_names_is_planned_as_it_is_run(place: str, tmp_path: Path) -> None:
    tiny.write_patients(f"{place}/in", ["a::b", "sim::", "p 1"])
    tiny.write(f"{place}/in/empty", {"1.dcm": b"", "2.dcm": b""})
    found = predicted(f"{place}/in", PrepConfig())
    assert found == outcome_of_run(f"{place}/in", str(tmp_path / "out"), PrepConfig())
    assert sorted(found.values()) == [("refused", "truncated"), *[("written", "")] * 3]
    assert dskprep.plan(f"{place}/in").calibration is not None


def test_an_archive_that_unpacks_to_more_than_a_worker_has_is_too_large(tmp_path: Path) -> None:
    bomb = tiny.zipped({f"{i}.dcm": bytes(50_000_000) for i in range(8)})
    tiny.write(tmp_path / "in", {"bomb.zip": bomb, "p.zip": tiny.zipped(tiny.series())})
    usable_bytes = 150_000_000
    cases = {case.key: case for case in choose(str(tmp_path / "in"))}
    tracemalloc.start()
    (refused,) = predict(cases["bomb"], PrepConfig(), usable_bytes)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1.5 * usable_bytes
    assert (refused.status, refused.reason) == ("refused", "too-large")
    assert refused.need_bytes > usable_bytes
    assert predict(cases["p"], PrepConfig(), usable_bytes)[0].status == "written"


def test_a_patient_that_cannot_be_read_costs_itself_and_a_store_that_fails_ends_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.write_patients(tmp_path / "in", ["p1", "p2", "p3"])
    read_head = storage.read_head
    lost = {"p2"}

    def fail(url: str, n_bytes: int) -> bytes:
        if lost & set(url.split("/")):
            raise InfrastructureError(f"{url}: no route to host")
        return read_head(url, n_bytes)

    monkeypatch.setattr(storage, "read_head", fail)
    found = {p.key: (p.status, p.reason) for p in dskprep.plan(source).predictions}
    assert found == {"p1": ("written", ""), "p2": ("failed", "InfrastructureError"), "p3": ("written", "")}
    lost |= {"p1", "p3"}
    with pytest.raises(InfrastructureError, match=r"3 patients in a row cannot be read, .*no route to host"):
        dskprep.plan(source)


# Real CT


def test_on_real_data_every_outcome_is_predicted(data_folder, tmp_path) -> None:
    from test_real_data import OUTCOMES

    (tmp_path / "in").mkdir()
    (tmp_path / "in/volumes").symlink_to(data_folder.volumes)
    (tmp_path / "in/tricky").symlink_to(data_folder.tricky)
    found = predicted(str(tmp_path / "in"), PrepConfig())
    assert {key: reason or status for key, (status, reason) in found.items() if "+" not in key} == OUTCOMES
    assert sum(status == "written" for status, _ in found.values()) == 5
    assert sum(status == "refused" for status, _ in found.values()) == 25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lidc_0314", "lidc_0001"])
def test_on_real_data_a_patient_stays_within_the_memory_that_was_predicted(data_folder, tmp_path, name) -> None:
    """The peak of a process that does this patient only, as the kernel has it."""
    dskprep.run(tiny.write_patients(tmp_path / "tiny", ["p1"]), str(tmp_path / "warm"))  # compiling takes memory too
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).symlink_to(data_folder.volumes / name)
    (case,) = choose(str(tmp_path / "in"))
    (prediction,) = predict(case, PrepConfig())
    program = Path(__file__).parents[1] / "peak_memory.py"
    words = [str(program), str(tmp_path / "in"), str(tmp_path / "out"), str(4 << 30)]
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, check=True)
    peak_bytes = int(done.stdout.split()[0])
    assert peak_bytes <= admission.BASE_BYTES + prediction.need_bytes
    assert (
        prediction.need_bytes < 4 * 2 * max(prediction.native_voxels, prediction.output_voxels) + admission.FIXED_BYTES
    )

"""Archives of kinds that are not read are patients that are refused, as damaged ones are, and not passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

import dskprep
from dskprep.errors import DskprepError, Refusal
from dskprep.settings import PrepConfig
from dskprep.source import cases, files, found
from dskprep.source.inputs import is_archive
from dskprep.worker import patient
from dskprep.worker.patient import Job

OTHERS = (
    ".7z .rar .zipx .tar.zst .tzst .tar.Z .taz .tar.lz4 .tar.lz .tlz .tar.lzma .tar.lzo .tzo .tar.br .7z.001 .zip.001 "
    ".lzh .lha .arj .ace .cab .iso"
).split()


@pytest.mark.parametrize(("suffix", "kind"), [("tbz2", "bz2"), ("tbz", "bz2"), ("TXZ", "xz")])
def test_short_names_of_compressed_tars_are_read(tmp_path: Path, suffix: str, kind: str) -> None:
    tiny.write(tmp_path, {f"in/p1.{suffix}": tiny.tarred(tiny.series(), kind)})  # type: ignore[arg-type]
    (case,) = cases.cases(f"{tmp_path}/in")
    assert (case.key, case.is_archive) == ("p1", True)
    assert dict(files.open_case(case).read(1 << 30)) == tiny.series()
    assert found.read_series(case.url).n_slices == tiny.N_SLICES


@pytest.mark.parametrize("suffix", OTHERS)
def test_an_archive_of_another_kind_is_refused_wherever_it_is_named(place: str, suffix: str) -> None:
    name = f"scan{suffix}"
    tiny.write(f"{place}/in/p1", {"1.dcm": b"x", name: b"some bytes"})
    tiny.write(place, {"list.csv": f"key,url\nline,in/p1/{name}\n".encode()})
    beside, tree = cases.cases(f"{place}/in")
    (line,) = cases.cases(f"{place}/list.csv")
    (alone,) = cases.cases(tree.url)
    assert (beside.key, beside.n_files) == ("p1", 1)
    assert (tree.key, line.key, alone.key) == ("p1__scan", "line", "scan")
    for see in (*(lambda case=case: files.open_case(case) for case in (tree, line, alone)), *opened(tree.url)):
        with pytest.raises(
            DskprepError, match=f"scan{suffix}: expected an archive of a kind that is read .*pack it anew"
        ) as e:
            see()
        assert "\n" not in str(e.value)
        assert isinstance(e.value, Refusal)
        assert e.value.reason == "bad-archive"


def opened(url: str):  # type: ignore[no-untyped-def]
    return (lambda: files.open_place(url), lambda: found.read_series(url))


def test_a_run_and_its_plan_count_archives_of_other_kinds(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    tiny.write(source, {"p1.zip": tiny.zipped(tiny.series(1)), "p2.tbz2": tiny.tarred(tiny.series(2), "bz2")})
    tiny.write(source, {"p3.tar.zst": b"\x28\xb5\x2f\xfd" + bytes(99), "p4.7z": b"7z\xbc\xaf\x27\x1c"})
    tiny.write(source / "p5", {**tiny.series(5), "second.rar": b"Rar!\x1a\x07\0"})
    refused = {"p3": "bad-archive", "p4": "bad-archive", "p5__second": "bad-archive"}
    expected = {"p1": None, "p2": None, "p5": None, **refused}
    plan = dskprep.plan(source)
    assert {p.key: p.reason or None for p in plan.predictions} == expected
    dskprep.run(source, target)
    index = dskprep.open_dataset(target).index.set_index("key")
    assert {key: index.reason[key] if index.status[key] == "refused" else None for key in index.index} == expected
    assert "p3.tar.zst: expected an archive" in index.message["p3"]


def test_archives_of_other_kinds_below_a_line_or_in_an_archive_are_told(tmp_path: Path) -> None:
    tiny.write(tmp_path / "in/p1", {**tiny.series(1), "more/second.rar": b"Rar!"})
    tiny.write(tmp_path / "in", {"p2.zip": tiny.zipped({**tiny.series(2), "more.7z": b"7z", "ct.txz": b"x"})})
    tiny.write(tmp_path, {"list.csv": b"key,url\np1,in/p1\np2,in/p2.zip\n"})
    for case, names in zip(
        cases.cases(f"{tmp_path}/list.csv"),
        [("more/second.rar: archive",), ("more.7z: archive", "ct.txz: archive")],
        strict=True,
    ):
        made = patient.prepare_patient(
            Job(case), target=f"{tmp_path}/out", config=PrepConfig(), memory_bytes=1_200_000_000
        )
        (record,) = made.records
        assert (record.status, record.aside.names) == ("written", names)
        assert "archives-left-out" in record.warnings


@pytest.mark.parametrize("name", ["p1.nii.gz", "p1.raw.gz", "1.dcm.xz", "1.zst", "1.001", "stop.z", "p1.dcm.Z"])
def test_files_compressed_one_by_one_are_no_archives(name: str) -> None:
    assert not is_archive(name)

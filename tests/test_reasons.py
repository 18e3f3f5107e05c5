"""Every reason of a refusal has an input that leads to it, through the whole way of a patient."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import zarr
from builders import AXIAL, CORONAL, compressed, ct_file, ct_files, distinct
from conftest import DataFolder
from pydicom.uid import MPEG2MPML, ComputedRadiographyImageStorage, JPEGLSLossless
from volume_builders import chest, nifti

from dskprep import storage
from dskprep.attribution import Attribution
from dskprep.dataset import store
from dskprep.dataset.record import Record, RecordName
from dskprep.errors import REASONS
from dskprep.settings import PrepConfig
from dskprep.source import cases
from dskprep.source.case import Case
from dskprep.worker import patient
from dskprep.worker.patient import Job

Files = dict[str, bytes]

STORED = distinct(12, 16, 16)
CHEST = chest()
SHEAR = np.eye(4) + 0.1 * np.eye(4)[[1, 0, 2, 3]] * [[1], [0], [0], [0]]


def changed(**attributes: Any) -> Files:
    return dict(ct_files(STORED, **attributes))


def at(*positions_mm: float) -> Files:
    return dict(ct_files(distinct(len(positions_mm), 16, 16), positions_mm=positions_mm))


def cut(files: Files) -> Files:
    return files | {"0005.dcm": files["0005.dcm"][:-100]}


MADE: dict[str, Callable[[], Files]] = {
    "no-dicom": lambda: {"notes": b"no scan here", "more.txt": b"nor here"},
    "not-ct": lambda: changed(SOPClassUID=ComputedRadiographyImageStorage),
    "localizer-only": lambda: changed(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "too-few-slices": lambda: at(*range(9)),
    "missing-slices": lambda: at(*range(7), *range(8, 15)),
    "uneven-spacing": lambda: at(*range(7), *np.arange(7, 20, 1.6)),
    "duplicate-positions": lambda: at(*range(12), 4),
    "mixed-geometry": lambda: changed() | {f"b{name}": file for name, file in changed(PixelSpacing=[2, 2]).items()},
    "gantry-tilt": lambda: changed(lean=(0, 1, 0)),
    "not-hu": lambda: changed(RescaleType="US"),
    "bad-header": lambda: {"ct.nii.gz": b"<html>404 Not Found</html>"},
    "not-3d": lambda: {"ct.nii": nifti(np.stack([CHEST.array] * 2), CHEST.affine)},
    "bad-affine": lambda: {"ct.nii": nifti(CHEST.array, CHEST.affine, xyzt_units=1)},
    "sheared": lambda: {"ct.nii": nifti(CHEST.array, CHEST.affine @ SHEAR, qform_code=0)},
    "hu-implausible": lambda: dict(
        ct_files(np.random.default_rng(0).normal(1064, 15, (12, 64, 64)).astype(np.int16), RescaleIntercept=0)
    ),
    "no-thickness": lambda: dict(ct_files(STORED, orientation=CORONAL)),
    "no-lungs": lambda: dict(ct_files(np.full((12, 16, 16), 1064, np.int16))),
    "not-square": lambda: dict(ct_files(distinct(12, 16, 18))),
    "undecodable-pixels": lambda: changed(PixelData=compressed(b"\xff\xd8 garbage \xff\xd9"), syntax=JPEGLSLossless),
    "missing-decoder": lambda: changed(PixelData=compressed(bytes(40)), syntax=MPEG2MPML),
    "missing-attribute": lambda: changed() | {"0003.dcm": ct_file(STORED[3], ImagePositionPatient=None)},
    "truncated": lambda: cut(changed()),
    "too-large": lambda: changed(
        PixelData=compressed(bytes(4_000)), syntax=JPEGLSLossless, Rows=9000, Columns=9000, PixelSpacing=[0.1, 0.1]
    ),
    "bad-archive": lambda: {"p1.zip": tiny.zipped(changed())[:-50]},
    "licence": changed,
    "source-changed": changed,
    "key-taken": changed,
}
"""Files of a folder that is refused for that reason."""

RECIPES = {"no-thickness": "luo-2017", "no-lungs": "zuidhof", "not-square": "grt123"}
"""The recipe that refuses it."""


def prepare(source: Path, target: Path, *, patient_folders: bool = False, **settings: Any) -> list[Record]:
    (case,) = cases.cases(str(source), patient_folders=patient_folders)
    return prepare_case(case, target, **settings)


def prepare_case(case: Case, target: Path, stale: tuple[RecordName, ...] = (), **settings: Any) -> list[Record]:
    job, config = Job(case, stale), PrepConfig(**settings)
    return list(patient.prepare_patient(job, target=str(target), config=config, memory_bytes=1_200_000_000).records)


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_an_input_that_leads_to_it(
    tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = MADE[reason]()
    folder = tmp_path / ("in" if reason == "bad-archive" else "in/p1")
    tiny.write(folder, files)
    if reason == "source-changed":
        monkeypatch.setattr(storage, "listing", _changing(storage.listing, folder / "0000.dcm"))
    if reason == "licence":  # of a series whose licence a catalogue says
        monkeypatch.setattr(cases, "_cases", functools.partial(_licensed, cases._cases, "CC BY-NC 3.0"))
    stale: tuple[RecordName, ...] = ()
    if reason == "key-taken":
        tiny.write(tmp_path / "other/p1", tiny.series(5))
        (there,) = prepare(tmp_path / "other", tmp_path / "out")
        stale = (there.name,)
    licence = "commercial" if reason == "licence" else None
    (case,) = cases.cases(str(tmp_path / "in"), licence=licence)
    (record,) = prepare_case(case, tmp_path / "out", stale, recipe=RECIPES.get(reason, "default"))
    assert (record.status, record.reason) == ("refused", reason)
    assert "\n" not in record.message
    assert (tmp_path / "out/volumes").exists() == bool(stale)


def _licensed(list_cases: Callable[..., Iterator[Case]], licence: str, *source: Any, **more: Any) -> Iterator[Case]:
    return (replace(case, attribution=Attribution(licence)) for case in list_cases(*source, **more))


def _changing(listing: Callable[[str], Any], path: Path) -> Callable[[str], Any]:
    """`listing`, with a file replaced before it: someone writes while the run reads."""

    def changed_first(url: str) -> Any:
        path.write_bytes(path.read_bytes() + bytes(2))
        return listing(url)

    return changed_first


REAL = {
    "no-dicom": ["pydicom_misc/README.txt", "pydicom_misc/test1.json"],
    "not-ct": ["fodicom_a/GH1728.dcm"],
    "localizer-only": ["scout_ffp/TCGA-D1-A0ZP_1-1.dcm"],
    "too-few-slices": ["d2n_failing/notavolume/001"],
    "missing-slices": ["d2n_failing/sliceincrement/002"],
    "uneven-spacing": ["tilt_ge_head"],
}
"""Real files that are refused for that reason."""


@pytest.mark.parametrize("reason", REAL)
def test_real_inputs_lead_to_their_reasons(data_folder: DataFolder, tmp_path: Path, reason: str) -> None:
    paths = [data_folder.tricky / name for name in REAL[reason]]
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    tiny.write(tmp_path / "in/p1", {file.name: file.read_bytes() for file in files})
    (record,) = prepare(tmp_path / "in", tmp_path / "out", min_slices=3)
    assert (record.status, record.reason) == ("refused", reason)


# The same series, however its files lie


def arrays_of(target: Path) -> dict[str, dict[str, Any]]:
    """Sizes and checksums of all that was written of each volume, by key."""
    found = {}
    for name in store.record_names(str(target)):
        record = store.read_record(str(target), name)
        if record.status == "written":
            found[name.key] = record.objects
    return found


@pytest.mark.parametrize(
    "files",
    [
        dict(ct_files(STORED, lean=(0, 0.3, 0))),
        {name: file for name, file in ct_files(STORED) if name != "0006.dcm"},
        dict(ct_files(STORED) + [(f"b{name}", file) for name, file in ct_files(STORED[::-1], AcquisitionNumber=2)]),
        dict(ct_files(STORED, orientation=CORONAL) + [("scout", ct_files(STORED, orientation=AXIAL)[0][1])]),
    ],
    ids=["tilted", "with a gap", "two stacks", "with a scout"],
)
def test_shuffled_renamed_and_split_files_give_identical_bytes(tmp_path: Path, files: Files) -> None:
    contents = list(files.values())
    random.Random(0).shuffle(contents)
    renamed = {f"x{k * 7919 % 101:03}": content for k, content in enumerate(contents)}
    split = {f"s{k % 3}/deep/{name}": content for k, (name, content) in enumerate(renamed.items())}
    tiny.write(tmp_path / "plain/p1", files)
    tiny.write(tmp_path / "renamed/p1", renamed)
    tiny.write(tmp_path / "zipped", {"p1.zip": tiny.zipped(split)})
    tiny.write(tmp_path / "split/p1", split)
    tiny.write(tmp_path / "split", {"list.csv": b"key,url\np1,p1\n"})
    tiny.write(tmp_path / "tree/p1", split)
    names = ["plain", "renamed", "zipped", "split/list.csv", "tree"]
    written = []
    for k, name in enumerate(names):
        (record,) = prepare(tmp_path / name, tmp_path / f"out{k}", patient_folders=name == "tree", on_gap="interpolate")
        assert record.status == "written", record
        written.append(arrays_of(tmp_path / f"out{k}"))
    assert len(written[0]["p1"]) > 3
    assert written[1:] == [written[0]] * 4


# The patient of 2017: two overlapping series in one folder, with equal slice positions


def test_two_overlapping_series_with_equal_positions_become_two_right_volumes(tmp_path: Path) -> None:
    first, second = tiny.series(1, n=14), tiny.series(2, n=12)
    both = [file for pair in zip(first.values(), [*second.values(), b"", b""], strict=True) for file in pair if file]
    tiny.write(tmp_path / "in/p1", {f"{k:03}.dcm": file for k, file in enumerate(both)})
    records = prepare(tmp_path / "in", tmp_path / "out")
    assert [record.status for record in records] == ["written"] * 2
    assert all("one-of-several-series" in record.warnings for record in records)
    volumes = {record.source.slices: record for record in records}
    assert volumes[14].key == "p1"
    for n, seed in ((14, 1), (12, 2)):
        stored = np.random.default_rng(seed).integers(0, 2000, (n, tiny.SIZE, tiny.SIZE), dtype=np.int16)
        url = store.volume_url(str(tmp_path / "out"), volumes[n].key)
        assert (zarr.open_array(url, path="0", mode="r")[...] == stored - 1024).all()


def test_two_overlapping_series_under_one_uid_are_refused_by_name(tmp_path: Path) -> None:
    first, second = tiny.series(1, series_uid="1.2.3"), tiny.series(2, series_uid="1.2.3")
    tiny.write(tmp_path / "in/p1", first | {f"b{name}": file for name, file in second.items()})
    (record,) = prepare(tmp_path / "in", tmp_path / "out")
    assert (record.status, record.reason) == ("refused", "duplicate-positions")

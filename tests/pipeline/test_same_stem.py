"""An input of the stem of another one, as P1.tar beside P1.zip: it takes neither its key nor its labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tiny

import dskprep
from dskprep.dataset import store

PUT: dict[str, Callable[[Path, dict[str, bytes]], object]] = {
    "P1": tiny.write,
    "P1.zip": lambda path, files: path.write_bytes(tiny.zipped(files)),
    "P1.tar": lambda path, files: path.write_bytes(tiny.tarred(files)),
}


def keys_of(target: Path) -> dict[str, str]:
    """The name of the input of each written key."""
    dataset = dskprep.open_dataset(target)
    return {key: Path(dataset[key].record.url).name for key in dataset}


@pytest.mark.parametrize(("first", "later"), [("P1.zip", "P1.tar"), ("P1", "P1.zip"), ("P1.zip", "P1")])
def test_a_key_stays_with_its_input(tmp_path: Path, first: str, later: str) -> None:
    source, target, labels = tmp_path / "in", tmp_path / "out", tmp_path / "labels"
    source.mkdir()
    PUT[first](source / first, tiny.series(1, PatientID="A"))
    dskprep.run(source, target)
    volume = dskprep.open_dataset(target)["P1"]
    labels.mkdir()
    mask = dskprep.Volume(np.ones(volume.shape, np.uint8), volume.affine)
    nibabel.save(dskprep.to_nifti(mask), labels / "P1.nii")
    dskprep.annotate(target, labels)

    PUT[later](source / later, tiny.series(2, PatientID="C"))
    for _ in range(2):
        dskprep.run(source, target)
        dskprep.annotate(target, labels)
        found = keys_of(target)
        assert (found.pop("P1"), set(found.values())) in ((first, set()), (first, {later}))
        dataset = dskprep.open_dataset(target)
        assert {key: list(dataset[key].labels) for key in dataset} == {"P1": ["mask"], **{key: [] for key in found}}
    refused = [name for name in store.record_names(str(target)) if name.status == "refused"]
    assert len(refused) + len(found) == 1  # the later one is there under another key, or named

    (source / later).rename(source / later.replace("P1", "P2"))
    assert dskprep.run(source, target, retry="refused").exit_code == 0
    assert keys_of(target)["P1"] == first

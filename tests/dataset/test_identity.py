"""Keyed digests of patients, studies and frames of reference: equal where these are, of no use to others."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

import pydicom
import pytest
import tiny

import dskprep
from dskprep import storage
from dskprep.dataset import identity, store
from dskprep.errors import DamagedDataset, InfrastructureError, UsageError
from dskprep.settings import PrepConfig
from tests.builders import ct_file, distinct

KEY = "a key that this test makes up"


@pytest.fixture(autouse=True)
def _no_key_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(identity.VARIABLE, raising=False)


def write_series(folder: Path, **attributes: str) -> None:
    """Write a series of four slices, which differ in their SOPInstanceUID."""
    folder.mkdir(parents=True)
    for k, stored in enumerate(distinct(10, 12, 12)):
        content = ct_file(stored, (0, 0, k), SOPInstanceUID=f"1.2.{k}", PixelSpacing=[1, 1], **attributes)
        (folder / f"{k}.dcm").write_bytes(content)


def run(source: Path, target: Path) -> None:
    dskprep.run(source, target, settings=PrepConfig(check_hu=False, lungs=False, min_slices=4))


def source(folder: Path) -> Path:
    """Two series of one patient and study, one of another patient; all in one frame of reference each."""
    for key, patient, study in (("a", "P-1", "1.2.3"), ("b", "P-1", "1.2.3"), ("c", "P-2", "1.2.4")):
        ids = {"PatientID": patient, "StudyInstanceUID": study, "FrameOfReferenceUID": f"{study}.9"}
        write_series(folder / key, **ids)
    return folder


def rows(target: Path) -> dict[str, dict[str, str]]:
    return {row["key"]: row for row in dskprep.open_dataset(target).rows}


def test_one_patient_has_one_digest_and_another_patient_another(tmp_path: Path) -> None:
    run(source(tmp_path / "in"), tmp_path / "out")
    found = rows(tmp_path / "out")
    for name in ("patient", "study", "frame_of_reference"):
        assert found["a"][name] == found["b"][name] != found["c"][name]
    assert len({found["a"][name] for name in ("patient", "study", "frame_of_reference")}) == 3


def test_a_patient_whose_issuer_some_headers_do_not_name_is_known_again(tmp_path: Path) -> None:
    for key, issuer in (("a", "Hospital"), ("b", ""), ("c", "Other")):
        write_series(
            tmp_path / "in" / key, PatientID="P-1", IssuerOfPatientID=issuer, StudyInstanceUID=f"1.2.{ord(key)}"
        )
    run(tmp_path / "in", tmp_path / "out")
    found = rows(tmp_path / "out")
    assert len({found[key]["patient"] for key in "abc"}) == 3
    of_any = [found[key]["patient_without_issuer"] for key in "abc"]
    assert of_any == [found["b"]["patient"], None, found["b"]["patient"]]


def test_two_datasets_agree_only_with_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source(tmp_path / "in")
    run(tmp_path / "in", tmp_path / "one")
    run(tmp_path / "in", tmp_path / "two")
    assert rows(tmp_path / "one")["a"]["patient"] != rows(tmp_path / "two")["a"]["patient"]
    monkeypatch.setenv(identity.VARIABLE, KEY)
    run(tmp_path / "in", tmp_path / "three")
    run(tmp_path / "in", tmp_path / "four")
    assert rows(tmp_path / "three")["a"]["patient"] == rows(tmp_path / "four")["a"]["patient"]
    assert KEY not in (tmp_path / "three" / "identity.json").read_text()
    assert set(json.loads((tmp_path / "three" / "identity.json").read_text())) == {"fingerprint"}


def test_no_identifier_and_no_digest_that_anybody_can_make_is_in_the_dataset(tmp_path: Path) -> None:
    run(source(tmp_path / "in"), tmp_path / "out")
    everything = b"".join(storage.read(str(p)) for p in (tmp_path / "out").rglob("*") if p.is_file())
    for word in ("P-1", "P-2", "1.2.3.9", "1.2.4.9"):
        assert word.encode() not in everything
        assert hashlib.sha256(word.encode()).hexdigest()[:12].encode() not in everything


def test_a_series_without_identifiers_has_none(tmp_path: Path) -> None:
    blank = {"PatientID": "", "StudyInstanceUID": "", "FrameOfReferenceUID": ""}
    write_series(tmp_path / "in" / "a", **blank)
    run(tmp_path / "in", tmp_path / "out")
    row = rows(tmp_path / "out")["a"]
    assert [row[name] for name in ("patient", "study", "frame_of_reference")] == [None] * 3


def test_each_slice_is_among_the_instances(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a")
    run(tmp_path / "in", tmp_path / "out")
    record = dskprep.open_dataset(tmp_path / "out")["a"].record
    known = identity.split_instances(record.instances)
    uids = {dskprep_uid(path) for path in (tmp_path / "in" / "a").iterdir()}
    assert {identity.of(str(tmp_path / "out")).instance(uid) for uid in uids} == known
    assert len(known) == 10


def test_the_instances_stand_in_the_order_of_the_slices(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a")
    run(tmp_path / "in", tmp_path / "out")
    record = dskprep.open_dataset(tmp_path / "out")["a"].record
    slices = [pydicom.dcmread(path, stop_before_pixels=True) for path in (tmp_path / "in" / "a").iterdir()]
    slices.sort(key=lambda each: each.ImagePositionPatient[2])
    digests = [identity.of(str(tmp_path / "out")).instance(each.SOPInstanceUID) for each in slices]
    assert identity.slice_numbers(record.instances) == {digest: k for k, digest in enumerate(digests)}
    as_earlier = base64.b64encode(b"".join(sorted(digests))).decode()
    assert identity.slice_numbers(as_earlier) == {}
    assert identity.split_instances(as_earlier) == set(digests)


def test_slices_without_a_uid_or_with_one_for_several_keep_their_places() -> None:
    identities = identity.Identities(b"0" * 32)
    known = sorted(("a", "b", "c"), key=identities.instance, reverse=True)
    numbers = identity.slice_numbers(identities.instances([known[0], "", known[1], known[2]]))
    assert [numbers.get(identities.instance(uid)) for uid in known] == [0, 2, 3]
    assert identity.split_instances(identities.instances(["a", "", "a"])) == {identities.instance("a")}
    assert identity.slice_numbers(identities.instances(["a", "a"])) == {}
    assert identities.instances(["", ""]) is None


def dskprep_uid(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def test_another_key_than_the_datasets_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "in" / "a")
    monkeypatch.setenv(identity.VARIABLE, KEY)
    run(tmp_path / "in", tmp_path / "out")
    write_series(tmp_path / "in" / "b")
    for key, said in ((KEY + "!", "another one in DSKPREP_IDENTITY_KEY"), (None, "set DSKPREP_IDENTITY_KEY to it")):
        monkeypatch.setenv(identity.VARIABLE, key) if key else monkeypatch.delenv(identity.VARIABLE)
        with pytest.raises(UsageError, match=said):
            run(tmp_path / "in", tmp_path / "out")
    assert set(rows(tmp_path / "out")) == {"a"}


def test_a_store_that_refuses_the_key_of_the_dataset_is_infrastructure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> bytes:
        raise InfrastructureError("identity.json: permission denied (ExpiredToken)")

    monkeypatch.setattr(identity.storage, "read_metadata", refuse)
    with pytest.raises(InfrastructureError, match="ExpiredToken"):
        identity.begin(str(tmp_path))


def test_a_dataset_that_is_begun_again_in_its_place_has_the_key_that_its_digests_are_made_with(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_series(tmp_path / "in" / "a", PatientID="P-1")
    keys = set()
    for _ in range(2):
        run(tmp_path / "in", target)
        stored = json.loads((target / "identity.json").read_text())["key"]
        keys.add(stored)
        made = identity.Identities(bytes.fromhex(stored))
        assert rows(target)["a"]["patient"] == made.digest("patient", "P-1", "")
        shutil.rmtree(target)
    assert len(keys) == 2


def test_a_process_reads_the_key_anew_for_each_run(tmp_path: Path) -> None:
    """As a worker that stays up while the dataset is deleted, and begun again by another program."""
    target = str(tmp_path)
    first = identity.for_run(target, "run-1")
    (tmp_path / "identity.json").unlink()
    identity.begin(target)
    assert identity.for_run(target, "run-1") is first
    assert identity.for_run(target, "run-2").fingerprint == identity.fingerprint_of(target) != first.fingerprint


@pytest.mark.parametrize("key", ["", "short", "  short          "])
def test_a_key_that_can_be_guessed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    write_series(tmp_path / "in" / "a")
    monkeypatch.setenv(identity.VARIABLE, key)
    with pytest.raises(UsageError, match="16 characters or more"):
        run(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"fingerprint": "x", "key": "zz"}', '{"fingerprint": 1, "key": 2}']
)
def test_a_damaged_key_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(DamagedDataset, match=r"identity\.json: is damaged"):
        identity.of(str(tmp_path))


@pytest.mark.parametrize("keys", ["folder", "hashed"])
def test_a_key_that_is_gone_is_not_replaced_by_another(tmp_path: Path, keys: str) -> None:
    """With another key one patient would be two, in two folds, and with hashed keys each volume would be made again."""
    source, target = tmp_path / "in", tmp_path / "out"
    settings = PrepConfig(check_hu=False, lungs=False, min_slices=4)
    write_series(source / "a", PatientID="P-1")
    dskprep.run(source, target, settings=settings, keys=keys)
    kept = (target / "identity.json").read_bytes()
    (target / "identity.json").unlink()
    write_series(source / "b", PatientID="P-1")
    for _ in range(2):
        with pytest.raises(DamagedDataset, match=r"identity\.json: is gone"):
            dskprep.run(source, target, settings=settings)
    assert not (target / "identity.json").exists()
    (target / "identity.json").write_bytes(kept)
    dskprep.run(source, target, settings=settings)
    made = identity.Identities(bytes.fromhex(json.loads(kept)["key"]))
    assert [row["patient"] for row in rows(target).values()] == [made.digest("patient", "P-1", "")] * 2


def test_a_key_that_is_gone_is_missed_behind_any_number_of_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of what was refused have no digest, and stand before those of volumes in a listing."""
    target = tmp_path / "out"
    run(source(tmp_path / "in"), target)
    monkeypatch.setattr(identity, "LOOKED_AT", 3)
    for number in range(identity.LOOKED_AT):
        store.commit(str(target), tiny.record(f"a{number}", "refused", reason="too-few-slices"))
    (target / "identity.json").unlink()
    with pytest.raises(DamagedDataset, match=r"identity\.json: is gone"):
        identity.of(str(target))


def test_a_dataset_without_digests_gets_its_first_key(tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    store.create(target, PrepConfig())
    store.commit(target, tiny.record("p1"))
    identity.begin(target)
    assert identity.fingerprint_of(target)

"""Runs over series of the Imaging Data Commons: their buckets are read without credentials from one server, and the
dataset is written with credentials to another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import idc_builders
import numpy as np
import pytest
import s3fs
import tiny
from idc_builders import GOOGLES, MML, OF_ANOTHER_RELEASE, PD1, RICORD, SEG

import dskprep
from dskprep import storage
from dskprep.cli import commands
from dskprep.dataset import index, store
from dskprep.errors import InfrastructureError, UsageError
from dskprep.source import cases as discover
from dskprep.storage.public import PUBLIC_BUCKETS, VARIABLE
from dskprep.synthetic.s3server import S3Server

pytest.importorskip("duckdb", reason="needs the extra idc")
pytest.importorskip("idc_index_data", reason="needs the extra idc")

pytestmark = pytest.mark.s3

ALL = (PD1, MML, RICORD)
NAMED = ",".join(f"'{series.uuid}'" for series in ALL)
SQL = f"idc:SELECT crdc_series_uuid FROM index WHERE crdc_series_uuid IN ({NAMED})"


@pytest.fixture(scope="module")
def idc_server() -> Iterator[S3Server]:
    """A server of its own with the buckets of IDC at Amazon and at Google, which anybody may read."""
    with S3Server(public=[*PUBLIC_BUCKETS["s3"], *PUBLIC_BUCKETS["gs"]]) as server:
        yield server


def owner_of(server: S3Server) -> s3fs.S3FileSystem:
    """The file system of the owner of its buckets, who may write."""
    key, secret = (server.environment[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    return s3fs.S3FileSystem(key=key, secret=secret, endpoint_url=server.endpoint)


@pytest.fixture(scope="module")
def filled(idc_server: S3Server) -> None:
    for bucket in {*PUBLIC_BUCKETS["s3"], *PUBLIC_BUCKETS["gs"]}:
        idc_server.make_bucket(bucket)
    owner = owner_of(idc_server)
    for seed, series in enumerate(ALL):
        for bucket in {series.bucket, GOOGLES[series.bucket]}:
            found = idc_builders.files(series, seed)
            owner.pipe({f"{bucket}/{series.uuid}/{name}": content for name, content in found.items()})


@pytest.fixture
def target(filled: None, idc_server: S3Server, s3: str, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: ARG001
    """A place in a bucket of another server, whose credentials are those of this process."""
    monkeypatch.setenv(VARIABLE, idc_server.endpoint)
    return f"{s3}/out"


@pytest.fixture
def manifest(target: str) -> str:
    """The URL of a manifest for s5cmd, beside the target."""
    source = target.replace("/out", "/in")
    return f"{tiny.write(source, {'cohort.s5cmd': idc_builders.manifest(*ALL, SEG, OF_ANOTHER_RELEASE)})}/cohort.s5cmd"


def fates(target: str) -> dict[str, tuple[str, str]]:
    rows = index.rows_of(index.current_table(target))
    return {row["key"]: (row["status"], row["reason"] or "") for row in rows}


@pytest.mark.slow
def test_workers_read_without_credentials_and_write_with_theirs(target: str, manifest: str) -> None:
    with pytest.raises(InfrastructureError, match="permission denied"):  # nobody writes there
        storage.write_many(MML.url, {"x": b"1"})
    with dskprep.local_client(workers=2, memory_limit="1GiB") as client:
        dskprep.run(SQL, target, client=client, limit=1)
        summary = dskprep.run(manifest, target, client=client)
    assert summary.account.already["written"] == 1
    assert summary.account.counts == {"written": 3, "set-aside": 1, "refused": 1}
    found = fates(target)
    assert {key for key, (status, _) in found.items() if status == "written"} == {series.key for series in ALL}
    assert found[OF_ANOTHER_RELEASE] == ("refused", "no-dicom")
    assert [reason for key, (_, reason) in found.items() if "LIDC" in key] == ["no-image"]
    dataset = dskprep.open_dataset(target)
    for seed, series in enumerate(ALL):
        record = dataset[series.key].record
        assert record.url == series.url
        assert record.attribution
        assert record.attribution.licence == series.licence
        assert record.attribution.doi in record.attribution.citation.lower()
        stored = np.random.default_rng(seed).integers(0, 2000, (series.n_files, tiny.SIZE, tiny.SIZE), dtype=np.int16)
        assert (dataset[series.key].image[...] == stored - 1024).all()


def test_the_dataset_says_whose_data_it_is(target: str, manifest: str) -> None:
    dskprep.run(manifest, target, only="*__*")
    said = dskprep.open_dataset(target).attribution
    assert said == store.describe(target)["attribution"]
    assert {(entry["licence"], entry["series"]) for entry in said} == {(series.licence, 1) for series in ALL}
    assert all(entry["doi"] in entry["citation"].lower() for entry in said)
    out = target.replace("/out", "/export")
    dskprep.export("croissant", target, out)
    croissant = json.loads(storage.read(f"{out}/croissant.json"))
    assert croissant["license"] == sorted({series.licence for series in ALL})
    card = storage.read(f"{out}/README.md").decode()
    for entry in said:
        assert entry["citation"] in croissant["citeAs"]
        assert f"- 1 series, {entry['licence']}: {entry['citation']}" in card
    table = index.read(target).set_index("key")
    assert {series.key: table.loc[series.key, "licence"] for series in ALL} == {s.key: s.licence for s in ALL}
    before = tiny.everything_below(target)
    again = dskprep.run(manifest, target, only="*__*")
    assert again.n_new == 0
    after = tiny.everything_below(target)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed - {"index.parquet"} == {f"runs/{again.run_id}/summary.json"}


def test_a_run_goes_on_from_the_mirror_at_google(target: str) -> None:
    dskprep.run(SQL, target, limit=1)
    summary = dskprep.run(SQL.replace("idc:", "idc+gs:"), target)
    assert (summary.n_new, summary.account.already["written"]) == (2, 1)
    urls = {row["key"]: row["url"] for row in index.rows_of(index.current_table(target))}
    assert urls[PD1.key] == PD1.url
    assert urls[RICORD.key] == f"gs://{GOOGLES[RICORD.bucket]}/{RICORD.uuid}"


def test_a_plan_says_what_the_run_does_and_that_nobody_pays_for_reading(target: str, manifest: str) -> None:
    plan = dskprep.plan(manifest, licence="commercial")
    dskprep.run(manifest, target, licence="commercial")
    assert {p.key: (p.status, p.reason) for p in plan.predictions} == fates(target)
    assert fates(target)[RICORD.key] == ("refused", "licence")
    assert plan.estimate
    sizes = {case.key: case.n_bytes for case in discover.cases(SQL)}  # by the table; the files here are smaller
    assert plan.estimate.bytes_read == sizes[MML.key] + sizes[PD1.key] > 5e6
    n_puts = plan.estimate.requests_dollars / 5e-6
    assert n_puts == pytest.approx(2 * 9)
    assert set(plan.as_dict()["hours"]) >= {"c4.2xlarge"}


def test_a_series_that_the_bucket_holds_a_part_of_is_refused(
    target: str, idc_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content = max(idc_builders.files(MML, ALL.index(MML)).items())
    owner, path = owner_of(idc_server), f"{MML.bucket}/{MML.uuid}/{name}"
    owner.rm_file(path)
    try:
        dskprep.run(SQL, target)
    finally:
        owner.pipe_file(path, content)
    assert fates(target)[MML.key] == ("refused", "source-changed")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # not where these buckets are
    assert len(storage.listing(MML.url)) == MML.n_files


def test_a_dataset_with_other_licences_does_not_become_one_for_commercial_use(target: str) -> None:
    dskprep.run(SQL, target)
    with pytest.raises(UsageError, match=f"found 1 of another licence or an unknown one, such as {RICORD.key}"):
        dskprep.run("idc:cmb_mml", target, licence="commercial")
    assert fates(target)[RICORD.key] == ("written", "")


def test_the_command_line(target: str, manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run_command(["plan", SQL]) == 0
    assert "dollars" in capsys.readouterr().out
    words = ["run", manifest, target, "--licence", "commercial", "--scheduler", "sync", "--only", "*__*", "--log-json"]
    assert commands.run_command(words) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any("licence" in json.dumps(event) for event in events)
    assert commands.run_command(["run", "idc:no_such", target, "--scheduler", "sync"]) == 2
    assert "has no collection 'no_such'" in capsys.readouterr().err
    words = ["run", SQL, target, "--scheduler", "sync", "--labels", "*.seg"]
    assert commands.run_command(words) == 2
    assert "leave --labels out" in capsys.readouterr().err


def test_a_store_that_does_not_answer_is_one_line(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9")
    assert commands.run_command(["run", SQL, target, "--scheduler", "sync"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"; check the network, and {VARIABLE} if a mirror is named there")
    with pytest.raises(InfrastructureError, match=VARIABLE):
        dskprep.run(SQL, target)
    assert not storage.exists(f"{target}/dataset.json")


def test_a_target_in_a_bucket_of_idc_is_refused(target: str) -> None:
    del target
    with pytest.raises(UsageError, match="lies inside the source"):
        dskprep.run(SQL, "s3://idc-open-data/mine")


def test_settings_for_other_buckets_do_not_hold_for_these(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        "requester_pays": True,
        "s3_additional_kwargs": {"ServerSideEncryption": "aws:kms"},
        "key": "a",
        "secret": "b",
    }
    monkeypatch.setenv("FSSPEC_S3", json.dumps(own | {"client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}))
    del target
    assert len(storage.listing(PD1.url)) == PD1.n_files
    (case,) = (case for case in discover.cases(SQL) if case.key == PD1.key)
    assert len(dict(storage.read_many(case.url, storage.listing(case.url)))) == PD1.n_files

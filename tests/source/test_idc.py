"""What is asked for of the Imaging Data Commons, and which cases that gives, without one request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import idc_builders
import pandas as pd
import pytest
import tiny
from idc_builders import MML, OF_ANOTHER_RELEASE, PD1, RICORD, SEG, Known
from pyarrow import parquet

from dskprep import keys, storage
from dskprep.errors import UsageError
from dskprep.source import cases as discover
from dskprep.source.case import Case
from dskprep.storage.public import VARIABLE

pytest.importorskip("duckdb", reason="needs the extra idc")
idc_index_data = pytest.importorskip("idc_index_data", reason="needs the extra idc")


@pytest.fixture(autouse=True)
def nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any request to a bucket of IDC would fail."""
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9")


def cases(source: Path | str, **options: str) -> dict[str, Case]:
    return {case.key: case for case in discover.cases(str(source), **options)}


def test_a_collection_is_its_ct_series_with_the_sizes_of_the_table() -> None:
    columns = ["collection_id", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "series_aws_url", "instanceCount"]
    rows = parquet.read_table(
        idc_index_data.IDC_INDEX_PARQUET_FILEPATH,
        columns=[*columns, "series_size_MB", "Modality"],
        filters=[("collection_id", "=", "lidc_idri")],
    ).to_pandas()
    ct = rows[rows["Modality"] == "CT"]
    found = cases("idc:LIDC-IDRI")
    assert found == cases("idc:lidc_idri")
    assert len(ct) == len(found) == 1018  # as Armato et al. 2011 say
    for row in ct.to_dict("records"):
        case = found["__".join(row[name] for name in columns[:4])]
        assert f"{case.url}/*" == row["series_aws_url"]
        assert case.n_files == row["instanceCount"]
        assert case.n_bytes == pytest.approx(1e6 * row["series_size_MB"], abs=1)
        assert case.attribution
        assert case.attribution.licence == "CC BY 3.0"
        assert case.attribution.citation.startswith("Armato III, Samuel G.")
        assert not set("<>&\n") & set(case.attribution.citation)


def test_several_collections_and_sql() -> None:
    assert {case.split("__")[0] for case in cases("idc:cmb_mml,anti_pd_1_lung")} == {"cmb_mml", "anti_pd_1_lung"}
    sql = f"idc:SELECT SeriesInstanceUID FROM index WHERE crdc_series_uuid IN ('{MML.uuid}', '{PD1.uuid}')"
    found = cases(sql)
    assert {key: case.url for key, case in found.items()} == {s.key: s.url for s in (MML, PD1)}
    assert cases(f"{sql} ORDER BY 1 DESC LIMIT 5") == found


WORDS = {
    "idc:lidc": "IDC v\\d+ has no collection 'lidc'; did you mean lidc_idri",
    "idc:": "expected the name of a collection or one SELECT",
    "idc:c4kc_kits_nothing": "has no collection",
    "idc:SELECT PatientID FROM index": "expected one of the columns crdc_series_uuid, .*, found PatientID",
    "idc:SELECT crdc_series_uuid FROM nothing": "the SQL cannot be done: Catalog Error",
    "idc:SELECT crdc_series_uuid FROM index WHERE false": "found none",
    "idc:SELECT crdc_series_uuid FROM index; SELECT 1": "one SELECT",
}


@pytest.mark.parametrize("words", WORDS)
def test_words_that_ask_for_nothing_are_one_line(words: str) -> None:
    with pytest.raises(UsageError, match=WORDS[words]) as raised:
        cases(words)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT content AS crdc_series_uuid FROM read_text('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT file AS crdc_series_uuid FROM glob('{folder}/*')",
        "COPY (SELECT 1) TO '{folder}/written.csv'",
        "COPY (SELECT 1) TO '{table}'",
        "ATTACH '{folder}/written.db'",
        "INSTALL httpfs",
        "SET lock_configuration = false",
        "SELECT getenv('HOME') AS crdc_series_uuid",
        "SELECT crdc_series_uuid FROM rows",
    ],
)
def test_sql_reads_the_tables_and_nothing_else(tmp_path: Path, sql: str) -> None:
    secret, table = tmp_path / "secret.csv", Path(str(idc_index_data.IDC_INDEX_PARQUET_FILEPATH))
    secret.write_text("crdc_series_uuid\nsecret-4711\n")
    before = table.stat()
    with pytest.raises(UsageError) as raised:
        cases(f"idc:{sql.format(secret=secret, folder=tmp_path, table=table)}")
    assert "4711" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert (table.stat().st_size, table.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


LINES: dict[str, Callable[[Known], str]] = {
    "the portal": lambda s: f"cp {s.url}/* .",
    "idc-index": lambda s: f'sync --show-progress "{s.url}/*"  "some folder/CT_1.2.3"',
    "s5cmd": lambda s: f"  cp -sp '{s.url}/*' /data/{s.collection}/",
    "Google's scheme": lambda s: f"cp gs://{idc_builders.GOOGLES[s.bucket]}/{s.uuid}/* .",
}


@pytest.mark.parametrize("kind", LINES)
def test_a_manifest_for_s5cmd_is_read_as_it_is_written(tmp_path: Path, kind: str) -> None:
    lines = ["# a comment", "", *(LINES[kind](series) for series in (RICORD, MML, PD1)), LINES[kind](MML), "#cp x y"]
    path = tmp_path / "manifest.S5CMD"
    path.write_text("\r\n".join(lines))
    found = cases(path)
    assert list(found) == [PD1.key, MML.key, RICORD.key]
    is_googles = kind == "Google's scheme"
    for series in (MML, PD1, RICORD):
        expected = f"gs://{idc_builders.GOOGLES[series.bucket]}/{series.uuid}" if is_googles else series.url
        assert found[series.key].url == expected
        assert found[series.key].n_files == series.n_files
        assert found[series.key].attribution.licence == series.licence


def test_a_manifest_for_googles_endpoint_is_read_from_there(tmp_path: Path) -> None:
    head = b"# s5cmd --no-sign-request --endpoint-url https://storage.googleapis.com run x.s5cmd\n"
    tiny.write(tmp_path, {"x.s5cmd": head + idc_builders.manifest(PD1)})
    tiny.write(tmp_path, {"old.s5cmd": f"cp s3://public-datasets-idc/{MML.uuid}/* .\n".encode()})
    assert [case.url for case in cases(tmp_path / "x.s5cmd").values()] == [f"gs://idc-open-idc1/{PD1.uuid}"]
    assert [case.url for case in cases(tmp_path / "old.s5cmd").values()] == [f"gs://idc-open-data/{MML.uuid}"]
    assert next(case.url for case in cases("idc+gs:anti_pd_1_lung").values()).startswith("gs://idc-open-")


HOSTILE = {
    "another command": f"rm {MML.url}/*",
    "a copy away": f"cp {MML.url}/* s3://mine/",
    "a copy of a file": "cp /etc/passwd .",
    "another bucket": f"cp s3://other-bucket/{MML.uuid}/* .",
    "all of a bucket": "cp s3://idc-open-data/* .",
    "one file": f"cp {MML.url}/{MML.uuid}.dcm .",
    "a way out": f"cp s3://idc-open-data/../{MML.uuid}/* .",
    "a pipe": f"cp {MML.url}/* . | sh",
    "two commands": f"cp {MML.url}/* . ; rm -rf /",
    "a substitution": f"$(touch x) cp {MML.url}/* .",
    "an endpoint": f"--endpoint-url http://127.0.0.1:9 cp {MML.url}/* .",
    "an option that chooses": f"cp --exclude '*' {MML.url}/* .",
    "no end of a quote": f"cp '{MML.url}/* .",
    "no place": f"cp {MML.url}/*",
    "a web page": "<!DOCTYPE html>",
    "a version": f"cp {MML.url}/*?versionId=1 .",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_line_that_is_no_plain_copy_ends_everything_before_it_starts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "manifest.s5cmd"
    path.write_bytes(idc_builders.manifest(MML) + HOSTILE[kind].encode())
    with pytest.raises(UsageError, match=r"manifest.s5cmd, line 4: expected") as raised:
        cases(path)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [path]


def test_credentials_in_a_manifest_are_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "x.s5cmd").write_text("cp s3://key:geheim@idc-open-data/x/* .\n")
    with pytest.raises(UsageError, match="must not hold credentials") as raised:
        cases(tmp_path / "x.s5cmd")
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe", idc_builders.manifest("0" * 8 + MML.uuid[8:])])
def test_a_manifest_without_a_series_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.s5cmd").write_bytes(content)
    with pytest.raises(UsageError, match="expected"):
        cases(tmp_path / "x.s5cmd")


def test_a_manifest_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        cases(tmp_path / "x.s5cmd")


@pytest.mark.parametrize("column", ["crdc_series_uuid", "series_aws_url", "SeriesInstanceUID"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_table_of_a_cohort_is_read_by_any_of_its_names(tmp_path: Path, column: str, suffix: str) -> None:
    names = {"crdc_series_uuid": "uuid", "SeriesInstanceUID": "uid"}
    values = [f"{s.url}/*" if column == "series_aws_url" else getattr(s, names[column]) for s in (MML, RICORD)]
    table = pd.DataFrame({"PatientID": ["forged", "too"], column: values, "license_short_name": "CC0"})
    path = tmp_path / f"cohort.{suffix}"
    table.to_csv(path) if suffix == "csv" else table.to_parquet(path)
    found = cases(path)
    assert {key: case.url for key, case in found.items()} == {s.key: s.url for s in (MML, RICORD)}
    assert found[RICORD.key].attribution.licence == RICORD.licence  # what the file says of it does not count


def test_a_cohort_with_an_empty_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(f"crdc_series_uuid,x\n{MML.uuid},1\n,2\n")
    with pytest.raises(UsageError, match="found one empty in row 2"):
        cases(tmp_path / "cohort.csv")


def test_credentials_in_a_cohort_are_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(f"series_aws_url\n{MML.url}/*\ns3://key:geheim@idc-open-data/x/*\n")
    with pytest.raises(UsageError, match="must not hold credentials") as raised:
        cases(tmp_path / "cohort.csv")
    assert "geheim" not in str(raised.value)


def test_names_that_no_series_has_get_keys_of_their_own(tmp_path: Path) -> None:
    lost = ["s3://a/x/*", "s3://b/x/*", "../x", MML.key]
    (tmp_path / "cohort.csv").write_text("\n".join(["series_aws_url", f"{MML.url}/*", *lost]))
    found = list(discover.cases(str(tmp_path / "cohort.csv")))
    assert len({case.key for case in found}) == len(found) == 5
    assert [bool(case.problem) for case in found] == [False, *[True] * 4]
    assert all(keys.is_plain(case.key) for case in found)


def test_key_and_url_go_before_the_columns_of_idc(tmp_path: Path) -> None:
    tiny.write_patients(tmp_path / "in", ["p1"])
    (tmp_path / "in/list.csv").write_text(f"key,url,crdc_series_uuid\nmine,p1,{MML.uuid}\n")
    assert list(cases(tmp_path / "in/list.csv")) == ["mine"]


def test_what_is_no_ct_and_what_is_lost_is_known_beforehand(tmp_path: Path) -> None:
    tiny.write(tmp_path, {"x.s5cmd": idc_builders.manifest(MML, SEG, OF_ANOTHER_RELEASE)})
    kept, seg, lost = cases(tmp_path / "x.s5cmd").values()
    if kept.key != MML.key:  # sorted by collection
        kept, seg = seg, kept
    assert kept.refusal is None
    assert seg.refusal
    assert seg.refusal[0] == "no-image"
    assert "SEG" in seg.refusal[1]
    assert lost.key == OF_ANOTHER_RELEASE
    assert OF_ANOTHER_RELEASE in lost.problem
    (pet,) = [
        case.refusal for case in cases("idc:SELECT crdc_series_uuid FROM index WHERE Modality = 'PT' LIMIT 1").values()
    ]
    assert pet
    assert pet[0] == "not-ct"
    assert "PT" in pet[1]


def test_only_licences_for_commercial_use_pass(tmp_path: Path) -> None:
    tiny.write(tmp_path, {"x.s5cmd": idc_builders.manifest(MML, PD1, RICORD, SEG)})
    found = cases(tmp_path / "x.s5cmd", licence="commercial")
    assert [found[series.key].refusal for series in (MML, PD1)] == [None, None]
    reason, message = found[RICORD.key].refusal
    assert reason == "licence"
    assert (found[RICORD.key].n_files, found[RICORD.key].n_bytes) == (0, 0)  # nothing of it is read
    assert "CC BY-NC 4.0" in message
    assert {case.refusal[0] for key, case in found.items() if "LIDC" in key} == {"no-image"}
    tiny.write_patients(tmp_path / "in", ["p1"])
    with pytest.raises(UsageError, match="needs a source whose licences are known"):
        cases(tmp_path / "in", licence="commercial")
    with pytest.raises(UsageError, match="licence must be commercial, not 'any'"):
        cases("idc:cmb_mml", licence="any")


def test_options_of_folders_are_refused() -> None:
    with pytest.raises(UsageError, match="leave --patient-folders out"):
        list(discover.cases("idc:cmb_mml", patient_folders=True))


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(UsageError, match=r"idc:cmb_mml: expected the tables .* pip install '.\[idc\]'"):
        cases("idc:cmb_mml")


def test_a_case_does_not_change_with_the_mirror_that_it_is_read_from() -> None:
    one, other = cases("idc:cmb_mml"), cases("idc+gs:cmb_mml")
    assert {key: case.digest for key, case in one.items()} == {key: case.digest for key, case in other.items()}
    assert len({case.digest for case in one.values()}) == len(one)


@pytest.mark.parametrize("url", ["gs://bucket/x", "gs://idc-open-data-two/x", "GS://other"])
def test_of_google_only_the_buckets_of_idc_are_known(url: str) -> None:
    with pytest.raises(UsageError, match="of which only the buckets of the Imaging Data Commons are read"):
        storage.absolute(url)


def test_credentials_in_a_url_of_google_are_not_repeated() -> None:
    with pytest.raises(UsageError, match="must not hold credentials") as raised:
        storage.absolute("gs://me:ge/heim@idc-open-data/x")
    assert "heim" not in str(raised.value)


def test_a_row_tells_attributes_and_the_descriptions_of_nlst_tell_more() -> None:
    uid = "1.2.840.113654.2.55.3291066312203479577634447061541304801"  # 0,OPA,GE,LSPLUS,LUNG,400,2.5,120,80,0.1,1.5
    (case,) = cases(f"idc:SELECT SeriesInstanceUID FROM index WHERE SeriesInstanceUID = '{uid}'").values()
    said = dict(case.header)
    assert (said["PatientID"], said["SeriesInstanceUID"]) == ("113974", uid)
    names = ("ConvolutionKernel", "ReconstructionDiameter", "SliceThickness", "KVP")
    assert [said[name] for name in names] == ["LUNG", "400", "2.5", "120"]
    unknown = "SeriesDescription = '0,OPA,GE,LSULT,BONE,384,na,120,40,29.6,1.4' LIMIT 1"
    (case,) = cases(f"idc:SELECT SeriesInstanceUID FROM index WHERE {unknown}").values()
    assert dict(case.header)["ConvolutionKernel"] == "BONE"
    assert "SliceThickness" not in dict(case.header)
    (case,) = cases(f"idc:SELECT SeriesInstanceUID FROM index WHERE crdc_series_uuid = '{PD1.uuid}'").values()
    assert set(names).isdisjoint(dict(case.header))

"""A user's table beside the index: rows find their volume by equal values, and what does not is named."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny
from pyarrow import parquet

import dskprep
from dskprep import storage
from dskprep.errors import DamagedDataset, UsageError
from dskprep.settings import PrepConfig

KEYS = ["007", "p1", "p2"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dskprep.Dataset:
    """Three volumes, and a patient that was refused."""
    folder = tmp_path_factory.mktemp("joined")
    tiny.write_patients(folder / "scans", KEYS)
    tiny.write(folder / "scans/p3", {"notes.txt": b"no scan"})
    dskprep.run(folder / "scans", folder / "out", settings=PrepConfig(check_hu=False))
    return dskprep.open_dataset(folder / "out")


def csv(folder: Path, text: str) -> str:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return str(folder / "t.csv")


@pytest.mark.filterwarnings("ignore:.*have no")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_of_a_file_are_those_of_the_rows(dataset: dskprep.Dataset, place: str, kind: str) -> None:
    table = pd.DataFrame({"key": ["p2", "007", "p1"], "cancer": [1, 0, None], "site": ["A", "NA", ""]})
    content = table.to_csv(index=False).encode() if kind == "csv" else table.to_parquet(index=False)
    storage.write_many(place, {f"t.{kind}": content})
    joined = dataset.join(f"{place}/t.{kind}", on="key")
    assert {row["key"]: row["cancer"] for row in joined.rows} == {"007": 0, "p1": None, "p2": 1}
    assert list(joined.where(lambda row: row["cancer"] == 1)) == ["p2"]
    assert joined.index.set_index("key")["cancer"].to_dict()["p2"] == 1
    assert [row["cancer"] for row in pickle.loads(pickle.dumps(joined.select(["p2"]))).rows] == [1]
    assert "cancer" not in dataset.rows[0]


@pytest.mark.parametrize("word", ["NA", "N/A", "None", "null", "NULL", "nan", "n/a"])
def test_only_an_empty_field_is_missing_among_texts(dataset: dskprep.Dataset, tmp_path: Path, word: str) -> None:
    file = csv(
        tmp_path,
        f"key,site,all,n,yes\n007,{word},{word},{word},{word}\np1,{word},{word},2.5,True\np2,,{word},3,False\n",
    )
    joined = dataset.join(file)
    assert [row["site"] for row in joined.rows] == [word, word, None]
    assert [row["all"] for row in joined.rows] == [word] * 3
    assert [row["n"] for row in joined.rows] == [None, 2.5, 3]
    assert [row["yes"] for row in joined.rows] == [None, True, False]


def test_a_column_of_another_name_is_named(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    file = csv(tmp_path, "id,cancer\n007,1\np1,0\np2,0\n")
    with pytest.raises(
        UsageError, match=r"expected the column 'key', found 'id', 'cancer'; .* --column \(in Python, column=\)"
    ):
        dataset.join(file, on="key")
    assert [row["cancer"] for row in dataset.join(file, on="key", column="id").rows] == [1, 0, 0]


def test_what_has_no_counterpart_is_counted_and_named(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    file = csv(tmp_path, "key,cancer\np1,1\np9,0\np8,0\np3,1\n")
    with pytest.warns(UserWarning, match=r"2 volumes without a row, such as '007', 'p2'; 3 rows .* 'p9', 'p8', 'p3'"):
        joined = dataset.join(file)
    (found,) = joined.joined
    assert (found.without_row, found.without_volume) == (("007", "p2"), ("p9", "p8", "p3"))
    assert [row["cancer"] for row in joined.rows] == [None, 1, None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("key,cancer\np1,1\np2,0\np1,0\n", "each 'key' in one row, found some in more: 'p1'"),
        ("key,cancer\np1,1\n,0\n", "expected 'key' in every row, found none in row 2"),
        (
            "key,status,n_z\np1,1,2\n",
            "has columns 'n_z', 'status' already; rename them in the table, or name with columns",
        ),
        ("key,patient\np1,1\n", "has columns 'patient' already"),
        ("key,cancer\n7,1\n", "such as '007', 'p1', 'p2', found none; the first rows have '7'"),
        ("key,cancer\n P1,1\n", "the first rows have ' P1'"),
        ("key,cancer\np1,1,2\np2,0,3\n", "cannot be read as a CSV or Parquet table"),
        ("", "cannot be read as a CSV or Parquet table"),
        ("key;cancer;mm\np1;1;2,5\n", "expected commas between fields, found ';'; save it as CSV with commas"),
        ("\ufeffkey;cancer\r\np1;1\r\n", "expected commas between fields, found ';'"),
        ("key\tcancer\np1\t1\n", "expected commas between fields, found '.t'"),
        ("PK\x03\x04\x00\x00", "expected text, found a workbook or an archive; save the sheet as CSV"),
        ("\x00\x01", "expected the column 'key'|cannot be read"),
    ],
)
def test_what_cannot_be_joined_is_named(dataset: dskprep.Dataset, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        dataset.join(csv(tmp_path, text))


def test_tables_of_strangers_are_one_line(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    nested = pd.DataFrame({"key": KEYS, "many": [[1], [2], [3]]})
    nested.to_parquet(tmp_path / "nested.parquet")
    with pytest.raises(UsageError, match="expected numbers or texts in the column 'many', found lists"):
        dataset.join(tmp_path / "nested.parquet")
    table = pa.Table.from_pylist([{"key": key, "grade": 1} for key in KEYS])
    for said in (b'{"columns": [5]}', b'{"columns": [{"name": "grade", "numpy_type": "evil"}]}', b"no json"):
        parquet.write_table(table.replace_schema_metadata({b"pandas": said}), tmp_path / "t.parquet")
        assert [row["grade"] for row in dataset.join(tmp_path / "t.parquet").rows] == [1, 1, 1]
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[int(rng.integers(4, len(content)))] ^= int(rng.integers(1, 256))
        (tmp_path / "t.parquet").write_bytes(damaged)
        try:
            dataset.join(tmp_path / "t.parquet")
        except UsageError as error:
            n_refused += "\n" not in str(error)
    assert n_refused > 10


def test_other_mistakes_are_named(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    table = pd.DataFrame({"key": KEYS, "a": [1, 2, 3]})
    with pytest.raises(UsageError, match="found 'nonsense'"):
        dataset.join(table, on="nonsense")
    with pytest.raises(UsageError, match="there is no column 'b'"):
        dataset.join(table, columns=["b"])
    with pytest.raises(UsageError, match=r"nothing\.csv: there is no such file"):
        dataset.join(tmp_path / "nothing.csv")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match="cannot be read as a CSV or Parquet table"):
        dataset.join(tmp_path / "t.parquet")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"key,a\np1,1\n"))
    with pytest.raises(UsageError, match="expected text, found gzip; decompress it"):
        dataset.join(tmp_path / "t.csv.gz")
    assert dataset.join(table, columns=["a", "a"]).joined[0].columns == ("a",)
    with pytest.raises(UsageError, match="has columns 'a' already"):
        dataset.join(table).join(table)
    with pytest.raises(UsageError, match="'a' is there twice"):
        dataset.join(pd.DataFrame([["p1", 1, 2]], columns=["key", "a", "a"]))


def test_identifiers_of_a_table_are_digested_and_not_kept(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    """All three volumes are of one patient, of whom the dataset knows a keyed digest only."""
    file = csv(tmp_path, f"PatientID,age\n{tiny.IDENTITY[1]},61\nPID-0815,70\n")
    with pytest.warns(UserWarning, match="1 row without a volume, such as 'row 2'") as told:
        joined = dataset.join(file, on="PatientID")
    assert [row["age"] for row in joined.rows] == [61, 61, 61]
    kept = pickle.dumps(joined) + str(told[0].message).encode() + repr(joined).encode()
    assert tiny.IDENTITY[1].encode() not in kept
    assert b"PID-0815" not in kept
    twice = csv(tmp_path, "PatientID,age\nPID-0815,61\nPID-0815 ,70\n")
    with pytest.raises(UsageError, match="found some in more: 'row 1', 'row 2'"):
        dataset.join(twice, on="PatientID")
    by_series = csv(tmp_path, "seriesuid,grade\n1.2.3.0,a\n1.2.3.1,b\n1.2.3.2,c\n")
    graded = dataset.join(by_series, on="SeriesInstanceUID", column="seriesuid")
    assert [row["grade"] for row in graded.rows] == ["a", "b", "c"]


def test_reading_never_makes_a_new_key(dataset: dskprep.Dataset, tmp_path: Path) -> None:
    """With another key, no digest would ever match again, and a later run would write others."""
    files = tiny.everything_below(dataset.url)
    del files["identity.json"]
    copy = dskprep.open_dataset(tiny.write(tmp_path / "copy", files))
    with pytest.raises(DamagedDataset, match=r"identity\.json is gone"):
        copy.join(csv(tmp_path, "PatientID,age\nP,1\n"), on="PatientID")
    assert not (tmp_path / "copy/identity.json").exists()


def test_a_second_table_may_be_found_by_a_column_of_the_first(dataset: dskprep.Dataset) -> None:
    sites = dataset.join(pd.DataFrame({"key": KEYS, "site": ["A", "B", "A"]}))
    joined = sites.join(pd.DataFrame({"site": ["A", "B"], "country": ["X", "Y"]}), on="site")
    assert [(row["site"], row["country"]) for row in joined.rows] == [("A", "X"), ("B", "Y"), ("A", "X")]


@pytest.mark.parametrize("values", [[12], [12.0], ["12"], ["12.0"]])
def test_a_column_of_numbers_joins_by_their_value(tmp_path: Path, values: list[object]) -> None:
    tiny.write_patients(tmp_path / "scans", ["a", "b"])
    tiny.write(tmp_path / "scans/b", {"none": b"x"})
    tiny.write(tmp_path / "scans/c", tiny.series(3, n=14))
    dskprep.run(tmp_path / "scans", tmp_path / "out", settings=PrepConfig(check_hu=False, lungs=False))
    opened = dskprep.open_dataset(tmp_path / "out")
    table = pd.DataFrame({"n_z": values, "site": ["A"]})
    with pytest.warns(UserWarning, match="1 volume without a row"):
        joined = opened.join(table, on="n_z")
    assert {row["key"]: row["site"] for row in joined.rows} == {"a": "A", "b": "A", "c": None}
    assert joined.index.set_index("key")["site"].dropna().to_dict() == {"a": "A", "b": "A"}
    with pytest.raises(UsageError, match=r"in more: '12', '12\.0'"):
        opened.join(pd.DataFrame({"n_z": ["12", "12.0"], "site": ["A", "B"]}), on="n_z")
    with pytest.raises(UsageError, match="such as 12, 14, found none; the first rows have 'x'"):
        opened.join(pd.DataFrame({"n_z": ["x"], "site": ["A"]}), on="n_z")

"""No patient in two folds: not by two studies, not by the same pixels under two names, not after others came."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import dskprep
from dskprep import storage
from dskprep.dataset import store
from dskprep.dataset.record import Record
from dskprep.dataset.rows import to_row, to_table
from dskprep.errors import DamagedDataset, UsageError
from dskprep.reading.dataset import Dataset
from dskprep.reading.splits import Split
from dskprep.settings import PrepConfig


@dataclass(frozen=True)
class Row:
    """What a split looks at."""

    key: str
    patient: str | None
    pixels: str
    site: str | None = None


def dataset_of(rows: Iterable[Row]) -> Dataset:
    """A dataset with such an index, in this order. Nothing of it is stored."""
    records = [tiny.record(r.key, patient=r.patient, hu_sha256=r.pixels) for r in rows]
    dataset = Dataset("/nowhere")
    vars(dataset)["_table"] = to_table([to_row(record) for record in records])
    return dataset


def sites_of(rows: Iterable[Row]) -> dict[str, str]:
    return {row.key: row.site for row in rows if row.site is not None}


def linked(rows: list[Row]) -> list[set[str]]:
    """The keys that belong together, by joining sets until nothing changes."""
    groups = [
        ({row.key}, {f"p{row.patient}"} - {"pNone"} | {f"h{row.pixels}", f"s{row.site}"} - {"sNone"}) for row in rows
    ]
    merged: list[tuple[set[str], set[str]]] = []
    for keys, marks in groups:
        for other in [other for other in merged if other[1] & marks]:
            merged.remove(other)
            keys, marks = keys | other[0], marks | other[1]
        merged.append((keys, marks))
    return [keys for keys, _ in merged]


def cohorts(letters: str = "abcdefghijkl", prefix: str = "") -> st.SearchStrategy[list[Row]]:
    name = st.sampled_from(letters).map(lambda c: prefix + c)
    row = st.tuples(st.none() | name, st.integers(0, 60), st.none() | st.none() | name)
    return st.lists(row, min_size=1, max_size=40).map(
        lambda found: [Row(f"{prefix}k{i}", p, f"{prefix}{h}", s) for i, (p, h, s) in enumerate(found)]
    )


def placed(rows: list[Row], **rule: Any) -> Split | None:
    """The split, or None where it is refused as a side would be empty."""
    try:
        return dataset_of(rows).split(sites_of(rows), **{"folds": 2, **rule})
    except UsageError as error:
        if "would be empty" not in str(error):
            raise
        return None


RULES = st.fixed_dictionaries(
    {
        "folds": st.integers(2, 4),
        "seed": st.integers(0, 5),
        "shares": st.sampled_from([None, (0.7, 0.3), (0.6, 0.2, 0.2)]),
        "stratify": st.sampled_from([None, (), "reason"]),
    }
)


@given(rows=cohorts(), rule=RULES)
@settings(max_examples=100, deadline=None)
def test_nothing_that_belongs_together_is_on_two_sides(rows: list[Row], rule: dict[str, Any]) -> None:
    split = placed(rows, **rule)
    if split is not None:
        for group in linked(rows):
            assert len({split.sides[key] for key in group}) == 1
        assert set(split.sides) == {row.key for row in rows}
        of = {row.key: row.patient for row in rows}
        several = [sorted(group) for group in linked(rows) if len({of[key] for key in group} - {None}) > 1]
        assert sorted(map(list, split.of_several)) == sorted(several)


@given(rows=cohorts(), rule=RULES, order=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_a_listing_changes_nothing(rows: list[Row], rule: dict[str, Any], order: Any) -> None:
    split = placed(rows, **rule)
    shuffled = rows[:]
    order.shuffle(shuffled)
    other = placed(shuffled, **rule)
    assert (split and split.sides) == (other and other.sides)


@given(rows=cohorts(), added=cohorts("mnopqrst", "new "), again=st.integers(0, 40), rule=RULES)
@settings(max_examples=100, deadline=None)
def test_nobody_moves_when_patients_are_added(
    rows: list[Row], added: list[Row], again: int, rule: dict[str, Any]
) -> None:
    """Patients nobody knew, and further studies of one that was there. Nothing remembers how it was."""
    rule["stratify"] = None
    known = rows[again % len(rows)]
    if known.patient is not None:
        added = [*added, replace(known, key="again", pixels="fresh")]
    split, grown = placed(rows, **rule), placed([*rows, *added], **rule)
    if split is not None and grown is not None:
        assert {key: grown.sides[key] for key in split.sides} == split.sides


@given(rows=cohorts(), added=cohorts(), rule=RULES)
@settings(max_examples=100, deadline=None)
def test_an_extended_split_moves_nobody_or_says_who_belongs_together_now(
    rows: list[Row], added: list[Row], rule: dict[str, Any]
) -> None:
    """What is added may join groups in any way: by patients, pixels or groups that were there."""
    split = placed(rows, **rule)
    if split is None:
        return
    every = [*rows, *(replace(row, key=f"new {row.key}") for row in added)]
    try:
        grown = dataset_of(every).extend_split(split, by=sites_of(every))
    except UsageError as error:
        if "belong together now" not in str(error):
            raise
        assert any(len({split.sides[key] for key in group & split.sides.keys()}) > 1 for group in linked(every))
        return
    assert {key: grown.sides[key] for key in split.sides} == split.sides
    for group in linked(every):
        assert len({grown.sides[key] for key in group}) == 1


def patients(n: int, per_patient: int = 1) -> list[Row]:
    return [Row(f"{i}-{k}", f"patient {i}", f"{i} {k}") for i in range(n) for k in range(per_patient)]


def test_shares_without_a_memory_are_those_of_throwing_dice() -> None:
    split = dataset_of(patients(4000)).split(shares=(0.8, 0.1, 0.1), folds=4)
    n = Counter(side.part for side in split.sides.values())
    for part, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(n[part] - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5
    folds = Counter(side.fold for side in split.sides.values() if side.part != "test")
    assert set(folds) == {0, 1, 2, 3}
    assert all(abs(count - 900) < 120 for count in folds.values())
    assert all(side.fold is None for side in split.sides.values() if side.part == "test")


@pytest.fixture
def labelled() -> Dataset:
    """200 patients with one to three volumes; one in four has cancer."""
    rows = [Row(f"{i}-{k}", f"patient {i}", f"{i} {k}") for i in range(200) for k in range(1 + i % 3)]
    table = pd.DataFrame(
        {"key": [r.key for r in rows], "cancer": [int(r.key.partition("-")[0]) % 4 == 0 for r in rows]}
    )
    return dataset_of(rows).join(table)


def test_strata_have_their_shares_to_a_few_volumes(labelled: Dataset) -> None:
    split = labelled.split(folds=5, stratify="cancer")
    cancer = {row["key"]: row["cancer"] for row in labelled.rows}
    found: dict[Any, Counter[bool]] = defaultdict(Counter)
    for key, side in split.sides.items():
        found[side.fold][cancer[key]] += 1
    n = Counter(cancer.values())
    for counts in found.values():
        for has in (True, False):
            assert abs(counts[has] - n[has] / 5) <= 1
        assert abs(counts.total() - n.total() / 5) <= 1


def test_a_column_with_a_value_for_each_is_no_stratum(labelled: Dataset) -> None:
    with pytest.raises(UsageError, match="200 combinations in 200 groups"):
        labelled.split(stratify="hu_sha256")


def test_a_column_of_a_table_joins_volumes(labelled: Dataset) -> None:
    sites = pd.DataFrame({"key": list(labelled), "site": [f"site {int(k.partition('-')[0]) % 9}" for k in labelled]})
    split = labelled.join(sites).split(by="site", folds=2, stratify=())
    of_site = defaultdict(set)
    for key, side in split.sides.items():
        of_site[int(key.partition("-")[0]) % 9].add(side.fold)
    assert all(len(folds) == 1 for folds in of_site.values())


@pytest.mark.parametrize("nothing", [None, "", float("nan"), pd.NA, pd.NaT])
def test_volumes_without_a_group_are_not_one_group(nothing: Any) -> None:
    """As a mapping made from a table has them, and a column where some are empty."""
    dataset = dataset_of(patients(40))
    plain = dataset.split()
    values: dict[str, Any] = dict.fromkeys(dataset, nothing) | {"0-0": "a", "1-0": "a"}
    table = pd.DataFrame({"key": list(values), "site": list(values.values())})
    for split in (dataset.split(values), dataset.split(pd.Series(values)), dataset.join(table).split("site")):
        assert split.of_several == (("0-0", "1-0"),)
        assert [key for key in plain.sides if split.sides[key] != plain.sides[key]] in (
            [],
            ["0-0"],
            ["1-0"],
            ["0-0", "1-0"],
        )


def test_numbers_of_numpy_are_numbers() -> None:
    dataset = dataset_of(patients(40))
    split = dataset.split(folds=np.int64(4), seed=np.int32(3), shares=np.array([0.5, 0.5]))
    assert split.digest == dataset.split(folds=4, seed=3, shares=(0.5, 0.5)).digest


def test_volumes_without_a_patient_are_said_and_each_alone() -> None:
    split = dataset_of([Row(f"k{i}", None, str(i)) for i in range(60)]).split(folds=3)
    assert len(split.alone) == 60
    assert "60 volumes of no known patient, which only equal pixels, or a study that both name, put with" in repr(split)
    assert {side.fold for side in split.sides.values()} == {0, 1, 2}


def test_volumes_without_a_patient_go_with_their_study() -> None:
    """A soft and a sharp reconstruction of one scan have other pixels, and one study."""

    def dataset_of_studies(rows: Iterable[tuple[str, str | None, str]]) -> Dataset:
        records = [tiny.record(key, patient=patient, study=study, hu_sha256=key) for key, patient, study in rows]
        dataset = Dataset("/nowhere")
        vars(dataset)["_table"] = to_table([to_row(record) for record in records])
        return dataset

    kernels = list(itertools.product(range(40), ("soft", "sharp", "bone")))
    nobody = [(f"{kernel} {n}", None, f"study {n}") for n, kernel in kernels]
    half = [(f"{kernel} {n}", f"patient {n}" if kernel == "soft" else None, f"half {n}") for n, kernel in kernels]
    half = [(f"half {key}", patient, study) for key, patient, study in half]
    of_two = [("A", "a", "of two"), ("B", "b", "of two"), ("C", None, "of two"), ("D", None, "of two")]
    together = [{f"{word}{kernel} {n}" for _, kernel in kernels[:3]} for word in ("", "half ") for n in range(40)]
    split = dataset_of_studies([*nobody, *half, *of_two]).split(folds=4)
    for keys in [*together, {"C", "D"}]:
        assert len({split.sides[key] for key in keys}) == 1
    assert (len({split.sides[min(keys)] for keys in together}), split.of_several) == (4, ())
    more = dataset_of_studies([*nobody, *half, *of_two, *((f"again {n}", None, f"study {n}") for n in range(40))])
    grown = more.split(folds=4)
    assert {key: grown.sides[key] for key in split.sides} == split.sides
    two = [dataset_of_studies([*nobody, *of_two]).split(folds=4, seed=seed).sides for seed in range(9)]
    assert any(sides["A"] != sides["B"] for sides in two)  # two patients of one study stay two


def test_volumes_of_one_patientid_go_together_where_some_headers_name_no_issuer() -> None:
    def record(key: str, **who: str) -> Record:
        return tiny.record(key, hu_sha256=key, **who)

    records = []
    for n in range(40):
        records += [record(f"{n} A", patient=f"A {n}", patient_without_issuer=f"{n}"), record(f"{n}", patient=f"{n}")]
        records += [record(f"{n} B", patient=f"{n} of B", patient_without_issuer=f"two {n}")]
        records += [record(f"{n} C", patient=f"{n} of C", patient_without_issuer=f"two {n}")]
    records += [record("nobody"), record("none", study="nobody's")]
    dataset = Dataset("/nowhere")
    vars(dataset)["_table"] = to_table([to_row(one) for one in records])
    split = dataset.split(folds=4)
    assert all(split.sides[f"{n} A"] == split.sides[f"{n}"] for n in range(40))
    assert any(split.sides[f"{n} B"] != split.sides[f"{n} C"] for n in range(40))  # one number of two hospitals
    assert sorted(split.of_several) == sorted((f"{n}", f"{n} A") for n in range(40))


def test_the_side_of_a_patient_is_the_one_that_the_rule_in_the_docs_gives() -> None:
    """The rule once more: HMAC-SHA-256 with the seed as key, of what is asked and the name of the group."""
    split = dataset_of(patients(50)).split(folds=5, seed=3)
    for i in range(50):
        digest = hmac.new(b"dskprep split 3", b"fold\0patient patient %d" % i, hashlib.sha256).digest()
        assert split.sides[f"{i}-0"].fold == int.from_bytes(digest[:8], "big") * 5 // 2**64


def test_folds_of_uneven_sizes_are_said_with_what_balances_them() -> None:
    seen = set()
    for seed in range(12):
        split = dataset_of(patients(12)).split(folds=3, seed=seed)
        sizes = [sum(side.fold == fold for side in split.sides.values()) for fold in range(3)]
        is_uneven = max(sizes) > 2 * min(sizes)
        assert f"folds of {sizes[0]}, {sizes[1]}, {sizes[2]} volumes" in split.describe()
        assert ("--balanced (in Python, stratify=()) balances them" in split.describe()) == is_uneven
        seen.add(is_uneven)
    assert seen == {False, True}
    shared = dataset_of(patients(9)).split(folds=2, shares=(0.5, 0.5), stratify=())
    n_test = sum(side.part == "test" for side in shared.sides.values())
    sizes = [sum(side.fold == fold for side in shared.sides.values()) for fold in range(2)]
    told = f"train {9 - n_test}, test {n_test}; besides, all but test in folds of {sizes[0]}, {sizes[1]} volumes"
    assert (shared.describe(), sum(sizes)) == (told, 9 - n_test)
    assert "balances" not in dataset_of(patients(3)).split(folds=2, stratify=()).describe()


def test_what_leaves_a_side_empty_is_refused_with_what_to_do() -> None:
    one = [Row(f"k{i}", "the same", str(i)) for i in range(20)]
    with pytest.raises(UsageError, match=r"there is one group of volumes, all 20: .* give its column to --by"):
        dataset_of(one).split()
    with pytest.raises(UsageError, match=r"there are 2 groups of volumes \(.*; ask for 2 folds at most \(--folds 2\)"):
        dataset_of(patients(2)).split(shares=(0.5, 0.5))
    assert dataset_of(patients(5)).split(folds=5, stratify=()).describe() == "folds of 1, 1, 1, 1, 1 volumes"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"folds": 1}, "folds must be a whole number from 2"),
        ({"folds": 2.5}, "folds must be a whole number"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"shares": (0.8, 0.1)}, "sum to 1"),
        ({"shares": (0.5, 0.5, 0.0)}, "above 0"),
        ({"shares": (1.0,)}, "two .* or three"),
        ({"by": "scanner"}, "found 'scanner'"),
        ({"stratify": "sex"}, r"--join FILE; in Python, join\), found 'sex'; there is patient, study, source_"),
        ({"stratify": "pacient"}, r"found 'pacient'; did you mean patient\?$"),
        ({"stratify": "nocolumn"}, r"found 'nocolumn'; there is .{20,80}, …; `dataset\.index` has all$"),
        ({"by": {"nobody": "x"}}, "1 others, such as nobody"),
        ({"by": 3}, "a column or a list of columns, or a mapping from keys to groups, not int"),
        ({"by": pd.DataFrame({"key": ["0-0"]})}, "or a mapping from keys to groups, not DataFrame"),
        ({"by": "affine"}, "found lists in 'affine'"),
        ({"stratify": "affine"}, "found lists in 'affine'"),
        ({"stratify": 3}, "stratify must be a column or a list of columns, not int"),
        ({"shares": 0.8}, "shares must be numbers, such as"),
        ({"shares": ("a", "b")}, "shares must be numbers, such as"),
    ],
)
def test_rules_that_cannot_be_are_named(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        dataset_of(patients(30)).split(**rule)


@pytest.mark.slow
def test_another_process_with_another_hash_seed_makes_the_same_split(place: str) -> None:
    stored(place, patients(40, 2))
    code = f"import dskprep; print(sorted(dskprep.open_dataset({place!r}).split(stratify='reason').sides.items()))"
    done = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert done[0] == done[1] != b""


def stored(place: str, rows: Iterable[Row]) -> str:
    """A dataset of records alone."""
    store.create(place, PrepConfig())
    for row in rows:
        store.commit(place, tiny.record(row.key, patient=row.patient, hu_sha256=row.pixels))
    return place


def test_a_split_is_written_once_beside_the_dataset_and_read_by_its_name(place: str) -> None:
    stored(place, patients(30))
    dataset = dskprep.open_dataset(place)
    split = dataset.split(folds=3, shares=(0.7, 0.3))
    assert split.save("first") == f"{place}/splits/first.json" == split.save("first")
    again = dskprep.open_dataset(place).read_split("first")
    assert (again.rule, again.sides) == (split.rule, split.sides)
    with pytest.raises(UsageError, match="another split of this name"):
        dataset.split(folds=4).save("first")
    training, validation = again.fold(1)
    assert set(training).isdisjoint(validation)
    assert set(training) | set(validation) == set(again.part("train"))
    assert pickle.loads(pickle.dumps(again)).sides == split.sides
    assert list(again.table.columns) == ["key", "part", "fold"]
    with pytest.raises(UsageError, match="no such split"):
        dataset.read_split("second")
    with pytest.raises(UsageError, match="found 'validation'; it has train, test"):
        again.part("validation")
    with pytest.raises(UsageError, match="a fold from 0 to 2, found 3"):
        again.fold(3)


def test_nobody_is_moved_in_silence(place: str) -> None:
    """A patient under a second name, with the same pixels, may move a group: that is said when it is saved."""
    rows = patients(12)
    dataset = dskprep.open_dataset(stored(place, rows))
    before = {seed: dataset.split(folds=2, seed=seed) for seed in range(12)}
    for seed, split in before.items():
        split.save(f"before-{seed}")
    bigger = dskprep.open_dataset(stored(place, [Row("again", "a second name", rows[0].pixels)]))
    is_said = set()
    for seed, split in before.items():
        again = bigger.split(folds=2, seed=seed)
        has_moved = again.sides["0-0"] != split.sides["0-0"]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            again.save(f"after-{seed}")
            bigger.extend_split(f"before-{seed}").save(f"extended-{seed}")
        is_said.add(has_moved)
        told = [str(each.message) for each in said]
        first = f"1 volume, such as 0-0, moved: in {place}/splits/before-{seed}.json"
        assert [text.startswith(first) for text in told[:1]] == ([True] if has_moved else [])
    assert is_said == {True, False}


def test_groups_of_the_users_own_hold_also_for_volumes_that_come_later(place: str) -> None:
    dataset = dskprep.open_dataset(stored(place, patients(12)))
    keys = [*dataset]
    for seed in range(6):
        part = dataset.select(keys[:8])
        part.split(by={keys[0]: "family", keys[11]: "family"}, folds=2, seed=seed).save(f"g{seed}")
        whole = dataset.extend_split(f"g{seed}")
        assert whole.sides[keys[0]] == whole.sides[keys[11]]
    with pytest.raises(UsageError, match="expected the keys of volumes, found 1 others, such as nobody"):
        dataset.extend_split("g0", by={"nobody": "family"})


def test_a_split_that_was_read_on_a_selection_is_extended_as_a_whole(place: str) -> None:
    dataset = dskprep.open_dataset(stored(place, patients(12, per_patient=2)))
    for seed in range(4):
        before = dataset.split(shares=(0.5, 0.5), stratify=(), seed=seed)
        before.save(f"s{seed}")
        part = dataset.select([*dataset][:9:2]).read_split(f"s{seed}")
        assert len(part.sides) < len(before.sides)
        assert dataset.extend_split(part).sides == before.sides


def test_a_split_may_lie_elsewhere_and_serve_a_selection(place: str, tmp_path: Path) -> None:
    stored(place, patients(30))
    dataset = dskprep.open_dataset(place)
    split = dataset.split(folds=2)
    url = split.save(tmp_path / "mine.json")
    some = dataset.select(sorted(dataset)[:7])
    assert set(some.read_split(url).sides) == set(some)
    assert not storage.exists(f"{place}/splits/mine.json")


@pytest.mark.parametrize("name", [" ", "a b", "v1\n", "v1\n.json", "../x", "./x", "..", ".hidden"])
def test_what_is_no_name_writes_no_split(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stored(place, patients(30))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match=r"expected a name of letters.* or the path of a file that ends in \.json"):
        dskprep.open_dataset(place).split(folds=2).save(name)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "/here" in str(path)] == []
    assert not storage.exists(str(tmp_path / "x"))


def test_an_altered_split_is_refused(place: str) -> None:
    stored(place, patients(30))
    dataset = dskprep.open_dataset(place)
    url = dataset.split(folds=2).save("s")
    content = json.loads(storage.read(url))
    key, side = next(iter(content["sides"].items()))
    for altered in (
        content | {"sides": content["sides"] | {key: [None, 1 - side[1]]}},
        content | {"rule": content["rule"] | {"seed": 9}},
        content | {"sides": {k: v for k, v in content["sides"].items() if k != key}},
    ):
        storage.write_many(place, {"splits/s.json": json.dumps(altered).encode()})
        with pytest.raises(DamagedDataset, match="was altered"):
            dataset.read_split("s")
    for damaged in (b"", b"[]", b"{}", json.dumps(content).encode()[:-200]):
        storage.write_many(place, {"splits/s.json": damaged})
        with pytest.raises(DamagedDataset, match="is no split, or a damaged one"):
            dataset.read_split("s")


def test_patients_that_share_a_group_are_named_with_the_split_that_has_them(place: str) -> None:
    rows = patients(30)
    stored(place, rows)
    assert dskprep.open_dataset(place).split(folds=2).of_several == ()
    dskprep.open_dataset(place).split(folds=2).save("s")
    stored(place, [Row("again", "somebody else", rows[0].pixels)])
    assert dskprep.open_dataset(place).read_split("s").of_several == ()
    bigger = dskprep.open_dataset(place).extend_split("s")
    assert bigger.of_several == (tuple(sorted([rows[0].key, "again"])),)
    bigger.save("t")
    again = dskprep.open_dataset(place).read_split("t")
    assert again.of_several == bigger.of_several
    assert "1 group of several patients (0-0, again)" in again.describe()


def test_a_split_that_does_not_fit_is_refused(place: str) -> None:
    rows = patients(30)
    stored(place, rows)
    split = dskprep.open_dataset(place).split(folds=2)
    split.save("s")
    stored(place, [Row("new", "patient new", "new")])
    grown = dskprep.open_dataset(place).read_split("s")
    assert grown.left_out == ("new",)
    assert "1 added later and not in it" in repr(grown)
    bigger = dskprep.open_dataset(place).extend_split("s")
    assert bigger.sides.keys() - split.sides.keys() == {"new"}
    one = next(key for key, side in split.sides.items() if side.fold == 0)
    other = next(key for key, side in split.sides.items() if side.fold == 1)
    bridge = Row(
        "bridge", next(r.patient for r in rows if r.key == one), next(r.pixels for r in rows if r.key == other)
    )
    stored(place, [bridge])
    with pytest.raises(UsageError, match="belong together now"):
        dskprep.open_dataset(place).read_split("s")
    storage.delete(place, [name.path for name in store.record_names(place) if name.key in ("bridge", one)])
    with pytest.raises(UsageError, match=f"1 of its volumes are not written, such as {one}"):
        dskprep.open_dataset(place).read_split("s")
    rest = dskprep.open_dataset(place).extend_split("s")
    assert {k: s for k, s in split.sides.items() if k != one} == {k: s for k, s in rest.sides.items() if k != "new"}


def test_no_link_is_followed_when_a_split_is_written(tmp_path: Path) -> None:
    stored(str(tmp_path / "out"), patients(30))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/splits").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(dskprep.InfrastructureError, match="link"):
        dskprep.open_dataset(tmp_path / "out").split(folds=2).save("s")
    assert list((tmp_path / "elsewhere").iterdir()) == []

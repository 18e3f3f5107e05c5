"""A description of a dataset for catalogues: Croissant metadata, the index as a table, and a card.

The description says where the volumes lie below the dataset and what their bytes are; it copies no voxel.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pandas as pd

from dskprep.counts import n_of
from dskprep.dataset import columns, licences, store
from dskprep.dataset.record import Record, to_json
from dskprep.dataset.rows import INTEGERS
from dskprep.exchange.in_words import Described
from dskprep.reading.dataset import Dataset
from dskprep.reading.splits import Split

NOT_TOLD = ("url", "message", "status", "reason", "record_tag", "chosen", "series_uid_sha256", "bytes_read")
"""Columns of the index that say where the data came from, or that mean nothing to others."""
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        name: f"cr:{name}"
        for name in (
            "citeAs column equivalentProperty extract field fileProperty fileObject fileSet format includes "
            "isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate "
            "separator source subField transform"
        ).split()
    },
}
"""The words of Croissant 1.0."""
OF_EXPORT = {
    "volume": "Where its OME-Zarr image lies below the dataset",
    "volume_sha256": "SHA-256 of the lines '<SHA-256>  <object>' of all its objects, sorted by object",
    "part": "Part of the split",
    "fold": "Fold of the split, in which the volume validates",
}
"""What columns mean that the index of a dataset has not."""


def describe(dataset: Dataset, split: Split | None, name: str, licence: str) -> dict[str, bytes]:
    """Return `croissant.json`, `index.parquet` and `README.md`."""
    table = _table(dataset, split)
    origins = licences.count(table[[name for name in licences.FIELDS if name in table]].to_dict("records"))
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    index = buffer.getvalue()
    metadata = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": _summary(dataset, table),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        **({"license": licence or sorted({origin["licence"] for origin in origins})} if licence or origins else {}),
        **({"citeAs": "\n".join(sorted({origin["citation"] for origin in origins}))} if origins else {}),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "index",
                "name": "index.parquet",
                "description": "One row per volume",
                "contentUrl": "index.parquet",
                "contentSize": f"{len(index)} B",
                "encodingFormat": "application/x-parquet",
                "sha256": hashlib.sha256(index).hexdigest(),
            },
            {
                "@type": "cr:FileSet",
                "@id": "objects",
                "name": "objects",
                "description": "The objects of the volumes: OME-Zarr, one folder each; labels/ holds masks",
                "encodingFormat": "application/x-zarr",
                "includes": "volumes/*.zarr/**",
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "volumes",
                "name": "volumes",
                "description": "The index: one record per volume",
                "key": {"@id": "volumes/key"},
                "field": [_field(column, table[column]) for column in table],
            }
        ],
    }
    card = _card(dataset, split, table, origins, name, licence)
    return {"croissant.json": to_json(metadata), "index.parquet": index, "README.md": card.encode()}


def _table(dataset: Dataset, split: Split | None) -> pd.DataFrame:
    """Return the index of the written volumes, without what is not told, with their digests and their side."""
    table = dataset.index
    table = table[table["status"] == "written"].drop(columns=list(NOT_TOLD), errors="ignore")
    table = table.drop(columns=[column for column in table if str(column).startswith("seconds_")])
    table = table.dropna(axis=1, how="all").sort_values("key").reset_index(drop=True)
    digests = {key: _digest(dataset[key].record) for key in dataset}
    table.insert(1, "volume", [store.volume_name(key) for key in table["key"]])
    table.insert(2, "volume_sha256", [digests[key] for key in table["key"]])
    for column in INTEGERS & set(table.columns):  # rows of series that were refused had none
        table[column] = table[column].astype("Int64" if table[column].isna().any() else "int64")
    if split is not None:
        table = table.merge(split.table, on="key", how="left")
    return table.dropna(axis=1, how="all")


def _digest(record: Record) -> str:
    lines = (f"{about.sha256}  {name}\n" for name, about in sorted(record.objects.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _field(column: Any, values: pd.Series) -> dict[str, Any]:
    kinds = {"b": "sc:Boolean", "i": "sc:Integer", "u": "sc:Integer", "f": "sc:Float"}
    is_list = column == "affine"
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"volumes/{column}",
        "name": str(column),
        "description": _meaning(str(column)),
        "dataType": "sc:Float" if is_list else kinds.get(values.dtype.kind, "sc:Text"),
        "source": {"fileObject": {"@id": "index"}, "extract": {"column": str(column)}},
    }
    return field | ({"repeated": True} if is_list else {})


def _meaning(column: str) -> str:
    return OF_EXPORT.get(column) or columns.describe(column)


def _summary(dataset: Dataset, table: pd.DataFrame) -> str:
    found = Described(dataset, list(table["key"]))
    differing = "" if found.is_of_one_spacing else "; the spacing of each is in spacing_z_mm and its like"
    patients = f" of {n_of(table['patient'].nunique(), 'patient')}" if "patient" in table else ""
    return (
        f"{n_of(len(table), 'chest CT volume')}{patients}, prepared by dskprep: {found.axes}, {found.spacing}"
        f"{differing}, as OME-Zarr; {found.values}."
    )


def _card(
    dataset: Dataset, split: Split | None, table: pd.DataFrame, origins: list[dict[str, Any]], name: str, licence: str
) -> str:
    rows = "\n".join(f"| `{column}` | {_meaning(str(column))} |" for column in table)
    settings = "\n".join(f"| `{key}` | `{value}` |" for key, value in sorted(dataset.settings.items()))
    sides = f"\n## Split\n\n{split.describe()}. No patient is on two sides.\n" if split else ""
    whose = "".join(f"- {at['series']} series, {at['licence']}: {at['citation'] or at['doi']}\n" for at in origins)
    unknown = len(table) - sum(at["series"] for at in origins)
    rest = f"- {unknown} series: not known\n" if unknown else ""
    sources = f"\n## Sources, to be cited\n\n{whose}{rest}" if origins else ""
    given = licence or ("that of each source, below" if origins else "not stated; ask the owner")
    return f"""# {name}

{_summary(dataset, table)}

Licence: {given}

`croissant.json` describes it for programs (Croissant 1.0), `index.parquet` has one row per volume. The volumes lie
below the dataset, in `volumes/`.

```python
import dskprep

dataset = dskprep.open_dataset("URL of the dataset")
volume = dataset[{str(table["key"].iloc[0])!r}]
volume.image[...]  # (z, y, x)
```
{sides}{sources}
## Columns of the index

| column | |
|---|---|
{rows}

## Settings

| setting | value |
|---|---|
{settings}
"""

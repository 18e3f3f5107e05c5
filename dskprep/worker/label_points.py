"""The points of a table, each in its volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dskprep import keys
from dskprep.counts import n_of
from dskprep.dataset.annotation_columns import free_column
from dskprep.dataset.linking import Linker
from dskprep.dataset.record import Record
from dskprep.errors import Refusal
from dskprep.labels.points import Points
from dskprep.labels.values import Labels

if TYPE_CHECKING:
    import pandas as pd


class PlacedPoints(NamedTuple):
    """The rows that are in a volume, with its `key` and `image`, and what the record says of the table."""

    table: pd.DataFrame
    facts: dict[str, Any]


def place_points(labels: Points, linker: Linker) -> PlacedPoints:
    """Give each row of a table the key of its volume. Rows of other volumes, and beyond their images, are left out.

    Raises Refusal: `label-unlinked` or `label-outside-volume` if no row is left, `label-unlinked` if rows contradict
    themselves.
    """
    table = labels.points
    table = table.rename(columns={"image": free_column("image", table.columns)})
    column = "key" if "key" in table else "seriesuid"
    owners = table[column].unique().tolist()
    of_owner = dict(zip(owners, linker.keys_of(owners, column), strict=True))
    if column == "key" and "seriesuid" in table:
        _check_owners(table, linker, labels.where)
    several = {owner for owner, found in of_owner.items() if column == "seriesuid" and linker.are_of_several(found)}
    of_owner |= {owner: [] for owner in several}
    n_several = int(table[column].isin(several).sum())
    n_unlinked = int(table[column].map(lambda owner: not of_owner[owner]).sum())
    if n_unlinked == len(table):
        if several:
            raise Refusal(
                "label-unlinked",
                f"{labels.where}: expected a series of one patient, found {n_of(n_several, 'point')} of series of "
                "several; give the table a column key in place of seriesuid",
            )
        one = owners[0] if column == "key" else keys.series_digest(owners[0])  # no UID is written
        raise Refusal(
            "label-unlinked",
            f"{labels.where}: its {len(table)} points belong to {len(owners)} volumes by {column}, such as "
            f"{one!r:.100}; the dataset has none of them",
        )
    table["key"] = table[column].map(of_owner)
    table = table.explode("key").dropna(subset="key").reset_index(drop=True).drop(columns="seriesuid", errors="ignore")
    places, inside = table[["x", "y", "z"]].to_numpy(np.float64), np.zeros(len(table), np.bool_)
    for key, rows in table.groupby("key").indices.items():
        inside[rows] = linker.are_inside(str(key), places[rows])
    if not inside.any():
        raise Refusal(
            "label-outside-volume",
            f"{labels.where}: expected points in LPS mm inside of their images, found {len(table)} outside, such as "
            f"({', '.join(f'{v:g}' for v in places[0])}) in {table['key'].iloc[0]}; are they indices, or RAS?",
        )
    n_outside = int((~inside).sum())
    table = table[inside].reset_index(drop=True)
    table.insert(1, "image", table["key"].map(linker.image_of))
    told = (
        (n_unlinked - n_several, "belong to volumes that the dataset has not"),
        (n_several, "belong to a series of several patients"),
        (n_outside, "lie outside of their images"),
    )
    message = "; ".join(f"{n} points {what}" for n, what in told if n) or None
    warnings = [*(["points-unlinked"] if n_unlinked else []), *(["points-outside"] if n_outside else [])]
    linked_by = "key" if column == "key" else "series"
    return PlacedPoints(table, {"linked_by": linked_by, "message": message, "warnings": tuple(warnings)})


def _check_owners(table: pd.DataFrame, linker: Linker, where: str) -> None:
    """Raise Refusal if a row's key and seriesuid are of two volumes."""
    pairs = table[["key", "seriesuid"]].drop_duplicates()
    by_series = linker.keys_of(pairs["seriesuid"].tolist(), "seriesuid")
    for (key, _), found in zip(pairs.itertuples(index=False), by_series, strict=True):
        if found and key not in found:
            raise Refusal(
                "label-unlinked",
                f"{where}: expected key and seriesuid of one volume in each row, found the key {key!r:.100} with the "
                f"series of {found[0]}; correct the table, or leave one of the columns out",
            )


def points_of(labels: Labels, volume: Record) -> pd.DataFrame | None:
    """Return the points that a label object of one volume has of its own, with the volume's key and image."""
    points = labels.points
    if points is None or not len(points):
        return None
    points.insert(0, "key", volume.key)
    points.insert(1, "image", volume.input_digest)
    return points

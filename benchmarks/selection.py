"""How many studies of the chest collections of the Imaging Data Commons the rules of `[select]` decide, by its table.

    python benchmarks/selection.py [--min-slices 10] [--per study] [--rules 'thickness<=1.5' 'kernel:soft' most-slices]

Needs the extra idc, and DSKPREP_DATA for the names of the collections. The table has the number of slices and the
scanner of each series; thickness, kernel, kVp and diameter only of NLST, whose descriptions hold them. What the table
lacks fits no rule, so outside NLST only rules on slices and scanners decide here. A run reads one header instead.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.compute as pc
from pyarrow import parquet

from dskprep.selecting import SLICES, Select, order_of
from dskprep.source import cases, peek

EXAMPLE = ("thickness<=1.5", "kernel:soft", "most-slices")
TABLE = "idc/idc_v25_chest_ct_series.parquet"


def decide(collection: str, select: Select, min_slices: int) -> Counter[str]:
    """Count by what the studies of a collection are decided; and its series, as ` series`."""
    studies = defaultdict(list)
    found = Counter[str]()
    for case in cases.cases(f"idc:{collection}"):
        peeked = peek.by_table(case)
        found[" series"] += 1
        if peeked and int(peeked.texts[SLICES]) >= min_slices:
            studies[peek.group_of(peeked, select)].append((select.scores(peeked.texts), peeked.uid_sha256))
    for series in studies.values():
        series.sort(key=lambda one: order_of(*one))
        if len(series) <= select.keep:
            found["alone"] += 1
        else:
            last, loser = series[select.keep - 1][0], series[select.keep][0]
            found[select.decided_by(last, loser) or "tie"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--min-slices", type=int, default=10)
    parser.add_argument("--per", choices=("study", "patient"), default="study")
    parser.add_argument("--rules", nargs="+", default=EXAMPLE)
    asked = parser.parse_args()
    select = Select(asked.per, tuple(asked.rules))
    table = parquet.read_table(Path(os.environ["DSKPREP_DATA"]) / TABLE, columns=["collection_id"])
    names = sorted(pc.unique(table["collection_id"]).to_pylist())
    started, total = time.process_time(), Counter[str]()
    ways = ["alone", *select.prefer, "tie"]
    print("collection", "studies", *ways, sep=" | ")
    for name in names:
        found = decide(name, select, asked.min_slices)
        total += found
        print(name, sum(found[way] for way in ways), *(found[way] for way in ways), sep=" | ")
    n = sum(total[way] for way in ways)
    n_rivals = n - total["alone"]
    print("all", n, *(f"{total[way]} ({total[way] / n:.1%})" for way in ways), sep=" | ")
    print(f"{total[' series']} series of {len(names)} collections, {time.process_time() - started:.0f} s of CPU")
    print(f"without a tie: {1 - total['tie'] / n:.2%} of all, {1 - total['tie'] / n_rivals:.2%} of those with rivals")


if __name__ == "__main__":
    main()
